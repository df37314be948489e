"""train.py from its command line: what it writes, what it learns, what it refuses."""

import json
import os
import re
import shutil
import stat

import pytest
import torch
from checkpoints import mask_buffers, random_weights, sizes, write_checkpoint, write_unaligned
from safetensors import safe_open
from safetensors.torch import save_file

import evaluate
import train
from data import Tokenizer
from model import GPT2, load_gpt2, load_prompt

BASE = ["--model", "m", "--data", "d", "--dtype", "float32", "--batch-size", "8", "--device", "cpu"]


def run(*flags, out="run"):
    train.main([*BASE, "--out", out, *map(str, flags)])
    lines = [json.loads(line) for line in open(f"{out}/metrics.jsonl")]
    return json.load(open(f"{out}/run.json")), lines, json.load(open(f"{out}/summary.json"))


def timeless(folder):
    """{file: bytes} of a run, its times taken out, and the length that these give to the log"""
    files = {str(path.relative_to(folder)): data for path, data in contents(folder).items()}
    state = files.pop("checkpoint/state.safetensors")
    header, data = state[8 : 8 + state[0] + 256 * state[1]], state[8 + state[0] + 256 * state[1] :]
    files["checkpoint"] = re.sub(rb'"metrics\\": \d+', b"", header).strip() + data
    lines = [json.loads(line) for line in files.pop("metrics.jsonl").splitlines()]
    times = [line.pop("examples_per_second") for line in lines]
    assert all(time is None or time > 0 for time in times)
    return files | {"metrics": lines}


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_writes_what_the_design_says(place, capsys):
    info, lines, summary = run("--prompt-tokens", 2, 3, "--seeds", 0, 1, "--epochs", 3)
    names = ["p2-s0", "p2-s1", "p3-s0", "p3-s1"]
    assert [p["name"] for p in summary["prompts"]] == names and summary["finished"] is True
    assert sorted(str(p.relative_to("run")) for p in contents(place / "run") for p in [p.relative_to(place)]) == sorted(
        ["checkpoint/state.safetensors", "metrics.jsonl", "run.json", "summary.json", *(f"prompts/{name}/prompt.safetensors" for name in names)]
    )
    for p in summary["prompts"]:
        assert p.keys() >= {"name", "prompt_tokens", "seed", "lr", "accuracy", "ci95", "loss", "n", "epoch", "folder"}
        assert p["n"] == 12 and p["ci95"][0] <= p["accuracy"] <= p["ci95"][1] and 1 <= p["epoch"] <= 3
        with safe_open(f"run/{p['folder']}/prompt.safetensors", "pt") as file:
            assert sorted(file.keys()) == ["head.weight", "prompt"]
            assert file.get_slice("prompt").get_shape() == [p["prompt_tokens"], 10]
            metadata = file.metadata()
        assert metadata.keys() == {
            "format", "base_model", "base_revision", "base_sha256", "prompt_tokens", "num_labels", "labels", "init",
            "init_ids", "text_rule", "position_rule", "accuracy", "n", "recipe",
        }  # fmt: skip
        assert float(metadata["accuracy"]) == p["accuracy"] and len(json.loads(metadata["init_ids"])) == p["prompt_tokens"]
        assert all(256 <= i < 299 for i in json.loads(metadata["init_ids"]))  # no byte, no end of text
    assert summary["baselines"]["majority"] == 0.5
    assert info["settings"]["total_steps"] == 21 and info["texts"] == {"train": 54, "hold-out": 6, "dev": 12}
    logged = [(line["step"], line["prompt"]) for line in lines if line["split"] == "train"]
    assert logged == [(step, name) for step in (10, 20) for name in names]
    assert all(line.keys() == lines[0].keys() == {
        "step", "epoch", "prompt", "split", "loss", "accuracy", "lr", "examples_per_second"} for line in lines)  # fmt: skip
    printed = capsys.readouterr().out
    assert all(name in printed for name in names) and "majority" in printed and "95 % interval" in printed


def test_it_learns_and_the_prompt_adds_to_the_head(place):
    """32 real sentences on the bundled model: the head alone gets some, prompt and head get all."""
    recipe = ["--model", "tiny", "--data", "reviews", "--max-examples", 32, "--batch-size", 16, "--epochs", 30]
    last = {}
    for part in ("head", "prompt+head"):
        run(*recipe, "--lr", 0.03, "--head-lr", 0.01, "--prompt-tokens", 3, "--train", part, out=part)
        last[part] = [json.loads(line) for line in open(f"{part}/metrics.jsonl") if '"train"' in line][-1]
    assert last["prompt+head"]["accuracy"] == 1 and last["prompt+head"]["loss"] < 0.05 < 0.2 < last["head"]["loss"]


def test_head_only_leaves_the_vectors_where_they_began(place):
    run("--train", "head", "--epochs", 2)
    prompt, metadata = load_prompt("run/prompts/p10-s0/prompt.safetensors")
    with safe_open("m/model.safetensors", "pt") as file:
        assert torch.equal(prompt.vectors, file.get_tensor("wte.weight")[metadata["init_ids"]])


def test_a_prompt_is_the_same_alone_and_in_a_pack(place):
    """On disk nobody can tell; float32 sums in another order, so to 1e-4 after 14 steps."""
    run("--prompt-tokens", 2, 3, "--seeds", 0, 1, "--lr", 0.01, 0.03, "--epochs", 2, out="pack")
    run("--prompt-tokens", 3, "--seeds", 1, "--lr", 0.03, "--epochs", 2, out="solo")
    (a, _), (b, _) = (load_prompt(f"{path}/prompt.safetensors") for path in ("pack/prompts/p3-s1-lr0.03", "solo/prompts/p3-s1"))
    assert (a.vectors - b.vectors).abs().max() < 1e-4 and (a.head - b.head).abs().max() < 1e-4


def test_the_same_command_writes_the_same_bytes(place):
    """In every file but for the times."""
    run("--epochs", 2)
    first = timeless(place / "run")
    run("--epochs", 2, "--overwrite")
    second = timeless(place / "run")
    second["run.json"] = second["run.json"].replace(b', "--overwrite"', b"").replace(b',\n    "--overwrite"', b"")
    assert first == second and len(first) == 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_texts_change_no_bit(place, dtype, capsys, monkeypatch):
    """Without a cache, in memory, in files, and partly in each: the same bytes, and nothing left over."""
    read, counted = GPT2.read, []
    monkeypatch.setattr(GPT2, "read", lambda self, ids: counted.append(len(ids)) or read(self, ids))
    results, reads, files = [], [], []
    monkeypatch.setattr(train.shutil, "rmtree", lambda path, remove=shutil.rmtree, **more: (
        files.append(sum(len(names) for _, _, names in os.walk(path))), remove(path, **more)))  # fmt: skip
    for memory, disk in ((0, 0), (10**9, 0), (0, 10**9), (15_000, 15_000)):
        monkeypatch.setattr(train.os, "sysconf", lambda name, memory=memory: memory * 4 if "PAGES" in name else 1)
        monkeypatch.setattr(train.shutil, "disk_usage", lambda path, disk=disk: type("Usage", (), {"free": disk * 2}))
        counted.clear()
        out = f"{memory}-{disk}"
        run("--epochs", 3, "--dtype", dtype, out=out)
        reads.append(len(counted))
        results.append([(place / out / name).read_bytes() for name in ("summary.json", "prompts/p10-s0/prompt.safetensors")])
        assert not (place / out / "text-cache").exists()
    assert results[0] == results[1] == results[2] == results[3]
    assert reads[0] - reads[1] == reads[0] - reads[2] == 14 and reads[1] < reads[3] < reads[0]  # 2 epochs of 7 batches
    ends = files[1::2]  # once before a run, for what a killed one left, and once after it
    assert not any(files[::2]) and ends[:3] == [0, 0, 7] and 0 < ends[3] < 7
    assert "GB, of which" in capsys.readouterr().out


def test_a_compiled_model_learns_the_same(place, monkeypatch):
    """Traced by the real compiler, less its last stages (which need a C++ compiler and minutes); to float32's rounding."""
    compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode, dynamic: compile(self, backend="eager", dynamic=dynamic))
    shapes = []
    read = GPT2.read
    monkeypatch.setattr(GPT2, "read", lambda self, ids: shapes.append(ids.shape[1]) or read(self, ids))
    run("--prompt-tokens", 2, 3, "--epochs", 1, out="plain")
    widths, shapes[:] = set(shapes), []
    run("--prompt-tokens", 2, 3, "--epochs", 1, "--compile", out="compiled")
    assert len(widths) > 1 and 8 in shapes
    for name in ("p2-s0", "p3-s0"):
        (a, _), (b, _) = (load_prompt(f"{out}/prompts/{name}/prompt.safetensors") for out in ("plain", "compiled"))
        assert (a.vectors - b.vectors).abs().max() < 1e-4 and (a.head - b.head).abs().max() < 1e-4


@pytest.mark.parametrize("text,size", [("off", 0), ("500M", 5 * 10**8), ("2g", 2 * 10**9), ("77", 77), ("auto", "auto")])
def test_cache_sizes(text, size):
    assert train.budget(text) == size


def test_best_only_ever_improves_and_patience_ends_it(place):
    trial = train.Trial("p", 0, 0.1, torch.nn.Linear(1, 1), [], best={})
    kept = [trial.consider({"accuracy": a, "loss": l}, epoch) for epoch, (a, l) in enumerate(
        [(0.5, 0.7), (0.6, 0.9), (0.6, 0.8), (0.6, 0.8), (0.4, 0.1), (0.6, 0.81)], 1)]  # fmt: skip
    assert kept == [True, True, True, False, False, False]
    assert (trial.best["accuracy"], trial.best["loss"], trial.best["epoch"], trial.waited) == (0.6, 0.8, 3, 3)
    _, lines, summary = run("--epochs", 50, "--patience", 2, "--lr", 1e-9, "--head-lr", 1e-9)
    last = max(line["epoch"] for line in lines)  # nothing moves but the last digits of the loss
    assert last == summary["prompts"][0]["epoch"] + 2 < 50


def test_the_best_epoch_is_what_is_kept(place):
    _, lines, summary = run("--epochs", 6, "--lr", 0.3, "--head-lr", 0.1, "--select-on", "dev")
    scores = [(line["accuracy"], -line["loss"]) for line in lines if line["split"] == "dev"]
    best = summary["prompts"][0]
    assert len(scores) == 6 and best["epoch"] == 1 + scores.index(max(scores))
    assert best["accuracy"] == max(scores)[0] and best["loss"] == pytest.approx(-max(scores)[1], abs=1e-5)


@pytest.mark.parametrize("init,ids", [("eot", [299] * 4), ("words", None)])
def test_inits(place, init, ids):
    run("--init", init, "--prompt-tokens", 4, "--steps", 1)
    _, metadata = load_prompt("run/prompts/p4-s0/prompt.safetensors")
    words = Tokenizer("m/merges.txt").encode(" 0 1")[:4]
    assert metadata["init_ids"][: len(words)] == (ids or words) and len(metadata["init_ids"]) == 4
    assert metadata["init"] == init


def test_init_from_a_prompt_goes_on_where_it_ended(place):
    run("--prompt-tokens", 3, "--steps", 3, out="first")
    path = "first/prompts/p3-s0/prompt.safetensors"
    run("--prompt-tokens", 3, "--steps", 1, "--init", path, "--lr", 1e-12, "--head-lr", 1e-12, out="second")
    (a, _), (b, _) = load_prompt(path), load_prompt("second/prompts/p3-s0/prompt.safetensors")
    assert (a.vectors - b.vectors).abs().max() < 1e-6 and (a.head - b.head).abs().max() < 1e-6


def test_three_labels_and_one(place):
    rows = "".join(f"film {i} {'abc'[i % 3]}\t{i % 3}\n" for i in range(40))
    for split in ("train", "dev"):
        (place / "d" / f"{split}.tsv").write_text("text\tlabel\n" + rows)
    run("--num-labels", 3, "--steps", 2, "--select-on", "dev")
    assert load_prompt("run/prompts/p10-s0/prompt.safetensors")[0].head.shape == (3, 10)
    run("--num-labels", 1, "--steps", 2, "--select-on", "dev", out="one")
    assert load_prompt("one/prompts/p10-s0/prompt.safetensors")[0].head.shape == (1, 10)


def test_learning_rate_rises_and_falls():
    rates = [train.learning_rate(step, 100) for step in range(100)]
    assert rates.index(max(rates)) in (5, 6) and max(rates) == 1 and 0 < rates[0] < 0.2 and 0 < rates[-1] < 0.02
    assert rates[6:] == sorted(rates[6:], reverse=True) and train.learning_rate(0, 1) == 1


def test_long_texts_are_cut_counted_and_reported(place, capsys):
    with open("d/train.tsv", "a") as file:
        file.write("word " * 40 + "\t1\n")
    run("--steps", 1, "--select-on", "dev")
    assert "1 of 61 texts are cut to 14 tokens" in capsys.readouterr().err


# ---- what is refused --------------------------------------------------------------------------


def corrupt(path, data):
    def change(place):
        (place / path).write_bytes(data((place / path).read_bytes()) if callable(data) else data)

    return change


def other_width(place):
    save = {"prompt": torch.ones(3, 4), "head.weight": torch.ones(2, 4)}
    metadata = {"format": "prompt-training/1", "position_rule": "after-text", "labels": '["a", "b"]', "init_ids": "[]", "recipe": "{}"}
    save_file(save, place / "p.safetensors", metadata=metadata)


REFUSED = {
    "unknown flag": (["--lrate", "1"], None, "--lrate"),
    "lr not a number": (["--lr", "fast"], None, "fast"),
    "lr zero": (["--lr", "0"], None, "--lr"),
    "lr infinite": (["--head-lr", "inf"], None, "--head-lr"),
    "zero tokens": (["--prompt-tokens", "0"], None, "--prompt-tokens"),
    "no tokens": (["--prompt-tokens"], None, "--prompt-tokens"),
    "negative epochs": (["--epochs", "-1"], None, "--epochs"),
    "unknown device": (["--device", "warp"], None, "warp"),
    "absent device": (["--device", "cuda:9"], None, "cuda:9"),
    "cache of no size": (["--cache-text", "much"], None, "--cache-text"),
    "unknown dtype": (["--dtype", "int8"], None, "int8"),
    "unknown model": (["--model", "gpt5"], None, "gpt5"),
    "unknown data": (["--data", "imdb"], None, "imdb"),
    "unknown init": (["--init", "zeros"], None, "zeros"),
    "init of another width": (["--init", "p.safetensors", "--prompt-tokens", "3"], other_width, "p.safetensors"),
    "prompt too long": (["--prompt-tokens", "24"], None, "--prompt-tokens 24"),
    "label out of range": (["--num-labels", "2"], corrupt("d/dev.tsv", b"text\tlabel\na\t2\n"), "dev.tsv, line 2"),
    "label no number": ([], corrupt("d/train.tsv", b"text\tlabel\na\tx\n"), "train.tsv, line 2"),
    "missing column": ([], corrupt("d/train.tsv", b"text\ta\n1\t1\n"), "label"),
    "empty file": ([], corrupt("d/dev.tsv", b""), "dev.tsv"),
    "bad UTF-8": ([], corrupt("d/dev.tsv", b"text\tlabel\n\xff\t1\n"), "dev.tsv, line 2"),
    "blank text": ([], corrupt("d/dev.tsv", b"text\tlabel\n  \t1\n"), "dev.tsv, line 2"),
    "too few rows": ([], corrupt("d/train.tsv", b"text\tlabel\nx\t1\n"), "--select-on dev"),
    "truncated weights": ([], corrupt("m/model.safetensors", lambda data: data[:-9]), "model.safetensors"),
    "empty weights": ([], corrupt("m/model.safetensors", b""), "model.safetensors"),
    "broken config": ([], corrupt("m/config.json", b"{,"), "config.json"),
    "broken merges": ([], corrupt("m/merges.txt", b"\xe9\x00"), "merges.txt"),
    "no merges": ([], lambda place: (place / "m/merges.txt").unlink(), "merges.txt"),
    "too many merges": ([], lambda place: shutil.copy(train.checkpoint_folder("tiny") / "merges.txt", "m"), "merges.txt"),
    "missing tensor": ([], lambda place: save_file({"wte.weight": torch.ones(300, 10)}, "m/model.safetensors"), "lacks"),
    "no weights": ([], lambda place: (place / "m/model.safetensors").unlink(), "model.safetensors"),
    "out is a file": ([], lambda place: (place / "run").write_text(""), "run"),
    "out is a run": ([], lambda place: (os.mkdir("run"), (place / "run/run.json").write_text("")), "--overwrite"),
    "out holds something else": (["--overwrite"], lambda place: shutil.copytree("d", "run"), "holds no run"),
    "out under a file": (["--out", "d/dev.tsv/run"], None, "dev.tsv"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_sentence_exit_2_and_nothing_written(place, capsys, case):
    flags, change, named = REFUSED[case]
    if change:
        change(place)
    before = contents(place)
    with pytest.raises(SystemExit) as caught:
        train.main([*BASE, "--out", "run", *flags])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and named in error and "Traceback" not in error
    assert re.search(r"^(\S+: )?error: .+$", error.strip().split("\n")[-1])
    assert contents(place) == before


def test_a_full_disk_ends_in_one_sentence_and_nothing_half_written(place, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit) as caught:
        train.main([*BASE, "--out", "run"])
    assert caught.value.code == 2 and "run/run.json: No space left on device" in capsys.readouterr().err
    assert not [path for path in contents(place / "run") if path.stat().st_size]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_ends_in_one_sentence(place, capsys):
    os.mkdir("locked")
    os.chmod("locked", stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(SystemExit) as caught:
        train.main([*BASE, "--out", "locked/run"])
    assert caught.value.code == 2 and "locked" in capsys.readouterr().err


def test_overwrite_replaces_a_run(place):
    run("--steps", 1, "--prompt-tokens", 2)
    run("--steps", 1, "--prompt-tokens", 3, "--overwrite")
    assert os.listdir("run/prompts") == ["p3-s0"]


# ---- the official sizes, with random weights ----------------------------------------------------


@pytest.mark.parametrize("C,H,L,size,config", [
    pytest.param(768, 12, 12, 548_105_171, {}, id="gpt2"),
    pytest.param(1280, 20, 36, 3_247_159_078, {"_num_labels": 1}, id="gpt2-large", marks=pytest.mark.large),
])  # fmt: skip
def test_official_sizes_load_train_and_predict_two_columns(place, capsys, C, H, L, size, config):
    """Names, mask buffers and byte size of the official files, and gpt2-large's one label in config.json."""
    config = sizes(C, H, L, V=50257, n_positions=1024, **config)
    weights = random_weights(config)
    write_checkpoint("big", config, {})
    write_unaligned("big/model.safetensors", weights | mask_buffers(config), size)
    assert (place / "big/model.safetensors").stat().st_size == size
    loaded = load_gpt2("big").state_dict()["h.3.attn.c_attn.bias"]
    assert torch.equal(loaded, weights["h.3.attn.c_attn.bias"])
    del weights, loaded
    train.main(["--model", "big", "--data", "d", "--out", "run", "--steps", "3", "--prompt-tokens", "2", "--device", "cpu"])
    assert load_prompt("run/prompts/p2-s0/prompt.safetensors")[0].head.shape == (2, C)
    capsys.readouterr()
    evaluate.main(["predict", "run", "--json", "--device", "cpu", "a fine film"])
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["logits"]) == len(answer["probabilities"]) == 2
