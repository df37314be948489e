"""train.py from its command line: what it writes, what it learns, what it refuses."""

import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.nn.functional as F
from checkpoints import TINY, mask_buffers, random_weights, sizes, write_checkpoint, write_unaligned

import evaluate
import train
from data import Tokenizer, read_split
from minimal import logits_of
from model import GPT2, load_gpt2, load_prompt
from support import cache as caching
from support.fetch import base_of

BASE = ["--model", "m", "--data", "d", "--dtype", "float32", "--batch-size", "8", "--device", "cpu"]
STEP = train.train_step


def run(*flags, out="run"):
    train.main([*BASE, "--out", out, *map(str, flags)])
    lines = [json.loads(line, parse_constant=pytest.fail) for line in open(f"{out}/metrics.jsonl")]  # JSON knows no NaN
    return json.load(open(f"{out}/run.json")), lines, json.load(open(f"{out}/summary.json"))


def watch(monkeypatch, before=lambda step, prompts: None):
    """A list that grows by what goes into every training step of this process; before(step, prompts) may disturb it."""
    steps = []

    def step(gpt2, prompts, optimizer, ids, lengths, labels, *rest, **more):
        texts = [(row[:length].tolist(), label) for row, length, label in zip(ids, lengths, labels.tolist())]
        rates = {id(tensor): group["lr"] for group in optimizer.param_groups for tensor in group["params"]}
        steps.append(SimpleNamespace(texts=texts, rates=[(rates.get(id(p.vectors)), rates[id(p.head)]) for p in prompts]))
        before(len(steps), prompts)
        return STEP(gpt2, prompts, optimizer, ids, lengths, labels, *rest, **more)

    monkeypatch.setattr(train, "train_step", step)
    return steps


def timeless(folder):
    """{file: bytes} of a run, its times taken out, and the length that these give to the log"""
    files = {str(path.relative_to(folder)): data for path, data in contents(folder).items()}
    state = files.pop("checkpoint/state.safetensors")
    header, data = state[8 : 8 + state[0] + 256 * state[1]], state[8 + state[0] + 256 * state[1] :]
    header = json.loads(header)
    about = json.loads(header["__metadata__"].pop("tree"))
    files["checkpoint"] = header["__metadata__"].pop("sha256") and (header, about, data)
    assert about.pop("log") > 0 and about.pop("log_sha256")
    lines = [json.loads(line) for line in files.pop("metrics.jsonl").splitlines()]
    times = [line.pop("examples_per_second") for line in lines]
    assert all(time is None or time > 0 for time in times)
    return files | {"metrics": lines}


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_writes_what_the_design_says(place, capsys):
    (place / "m" / "revision").write_text("abc")  # a download leaves this
    info, lines, summary = run("--prompt-tokens", 2, 3, 2, "--seeds", 0, 1, 0, "--epochs", 3)  # what comes twice is one
    names = ["p2-s0", "p2-s1", "p3-s0", "p3-s1"]
    assert [p["name"] for p in summary["prompts"]] == names and summary["finished"] is True
    assert {str(path.relative_to(place / "run")) for path in contents(place / "run")} == {
        "checkpoint/state.safetensors", "metrics.jsonl", "run.json", "summary.json",
        *(f"prompts/{name}/prompt.safetensors" for name in names)}  # fmt: skip
    printed = capsys.readouterr().out
    for p in summary["prompts"]:
        assert p.keys() >= {"name", "prompt_tokens", "seed", "lr", "accuracy", "ci95", "loss", "n", "epoch", "folder"}
        assert p["n"] == 12 and p["ci95"][0] <= p["accuracy"] <= p["ci95"][1] and 1 <= p["epoch"] <= 3
        prompt, metadata = load_prompt(f"run/{p['folder']}/prompt.safetensors")
        assert prompt.vectors.shape == (p["prompt_tokens"], 10) and len(metadata["init_ids"]) == p["prompt_tokens"]
        assert sorted(metadata) == sorted(
            "format base_model base_revision base_sha256 prompt_tokens num_labels labels init init_ids text_rule "
            "position_rule accuracy n recipe selected untrained majority".split())  # fmt: skip
        assert metadata["base_sha256"] == info["base"]["base_sha256"] == base_of("m", place / "m")["base_sha256"]
        assert metadata["base_revision"] == "abc"
        scores = p["selection"]["accuracy"], p["untrained"], summary["baselines"]["majority"]
        assert tuple(float(metadata[key]) for key in ("selected", "untrained", "majority")) == scores
        assert float(metadata["accuracy"]) == p["accuracy"] and metadata["recipe"] == {
            "data": str(place / "d"), "text_column": None, "label_column": None, "max_examples": None, "batch_size": 8, "epochs": 3, "steps": None, "train": "prompt+head", "select_on": "hold-out",
            "dtype": "float32", "lr": 0.03, "head_lr": 0.005, "seed": p["seed"], "epoch": p["epoch"]}  # fmt: skip
        row = [p["name"], "0.03", p["epoch"], f"{p['selection']['accuracy']:.4f}", f"{p['accuracy']:.4f}"]
        assert re.search(r"^" + " +".join(map(str, row)) + " .* to ", printed, flags=re.M)
    assert info["settings"]["total_steps"] == 21 and info["texts"] == {"train": 54, "hold-out": 6, "dev": 12}
    assert info["data"] == {split: digest(f"d/{split}.tsv") for split in ("train", "dev")} and info["labels"] == ["0", "1"]
    assert info["settings"]["model"] == str(place / "m") and info["prompts"] == names
    logged = [(line["step"], line["prompt"]) for line in lines if line["split"] == "train"]
    assert logged == [(step, name) for step in (7, 10, 14, 20, 21) for name in names]  # every ten, and at an epoch's end
    assert all(line.keys() == lines[0].keys() == {
        "step", "epoch", "prompt", "split", "loss", "accuracy", "lr", "examples_per_second"} for line in lines)  # fmt: skip
    assert f"majority {' ' * 20}" in printed and "95 % interval" in printed


def digest(path):
    return hashlib.sha256(open(path, "rb").read()).hexdigest()


def test_flags_mean_what_is_documented():
    documented = dict(
        model="tiny", data="reviews", prompt_tokens=[10], seeds=[0], lr=[0.03], head_lr=0.005, epochs=6, batch_size=16,
        num_labels=None, init="sample", train="prompt+head", select_on="hold-out", cache_text="auto", dtype="auto",
        steps=None, patience=None, max_examples=None, out=Path("runs/tiny-reviews"), resume=None, overwrite=False)  # fmt: skip
    assert vars(train.parse_args([])).items() >= documented.items()
    budgets = {"off": 0, "500M": 5 * 10**8, "2g": 2 * 10**9, "3k": 3000, "77": 77, "auto": "auto"}
    assert {text: train.parse_args(["--cache-text", text]).cache_text for text in budgets} == budgets


# ---- against a loop that shares no code with it -----------------------------------------------


def measure(weights, examples, tensors):
    """The mean loss of vectors and head on these examples, by minimal.py, and which answers are right"""
    logits = torch.stack([logits_of(ids, *tensors, weights, sizes(L=1)) for ids, _ in examples])
    labels = torch.tensor([label for _, label in examples])
    return F.cross_entropy(logits, labels), (logits.argmax(1) == labels).double()


def plain_run(weights, P, seed, peaks, epochs, held):
    """What a prompt becomes in these epochs, one text at a time in float64 -> how it began, the best, the log"""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(256, 299, (P,), generator=generator)  # no byte, no end of text
    head = torch.randn(2, 10, generator=generator) * 0.02
    trained = [weights["wte.weight"][ids].requires_grad_(), head.double().requires_grad_()]
    moments = [[torch.zeros_like(tensor) for _ in range(2)] for tensor in trained]
    now = lambda: [tensor.detach().clone() for tensor in trained]
    began, lines, best, step, total = now(), [], None, 0, sum(map(len, epochs))
    warm = round(0.06 * total)
    for epoch, batches in enumerate(epochs, 1):
        window = []
        for batch in batches:
            step += 1
            loss, right = measure(weights, batch, trained)
            gradients = torch.autograd.grad(loss, trained)
            norm = sum(gradient.square().sum() for gradient in gradients).sqrt()
            share = step / warm if step <= warm else (total - step + 1) / (total - warm + 1)
            for tensor, (first, second), gradient, peak in zip(trained, moments, gradients, peaks):
                gradient = gradient / max(1.0, norm)
                first.mul_(0.9).add_(gradient, alpha=0.1)
                second.mul_(0.999).add_(gradient.square(), alpha=0.001)
                tensor.data -= share * peak * first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            window += [(loss.item(), hit.item()) for hit in right]
            if step % 10 == 0 or batch is batches[-1]:
                lines.append([step, epoch, "train", *torch.tensor(window).mean(0).tolist(), share * peaks[0]])
                window = []
        loss, accuracy = (number.mean().item() for number in measure(weights, held, now()))
        lines.append([step, epoch, "hold-out", loss, accuracy, None])
        if not best or (accuracy, -loss) > best[0]:
            best = (accuracy, -loss), epoch, now()
    return began, best, lines


def test_a_run_equals_a_plain_loop(place, monkeypatch, capsys):
    """First vectors, batches, rates, clipping, Adam, log, best epoch, dev: all that three of a pack of eight prompts write."""
    weights = random_weights(sizes(L=1))
    write_checkpoint("m", sizes(L=1), weights)
    weights = {name: tensor.double() for name, tensor in weights.items()}
    for split, rows in (("train", "so long that a part of it has no room at all\t1\n"), ("dev", "fine\t0\n" * 5)):
        with open(f"d/{split}.tsv", "a") as file:
            file.write(rows)
    steps = watch(monkeypatch)
    monkeypatch.setattr(time, "perf_counter", lambda: float(len(steps)))  # so that the speeds are known, too
    recipe = ["--prompt-tokens", 1, 3, "--seeds", 0, 5, "--lr", 0.03, 0.2, "--head-lr", 0.05, "--batch-size", 4, "--epochs", 3]
    _, lines, summary = run(*recipe)
    assert "1 of 55 texts are cut to 21 tokens" in capsys.readouterr().err

    # Every text but the held out comes once an epoch, in the same batches in another order.
    tokens, epochs = Tokenizer("m/merges.txt"), [[step.texts for step in steps[i : i + 14]] for i in (0, 14, 28)]
    texts, dev = ([(tokens.encode(text)[:24], label) for text, label in read_split("d", name)] for name in ("train", "dev"))
    assert len(steps) == 42 and sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    held = [pair for pair in texts if pair not in sum(epochs[0], [])]
    assert len(held) == 6 and sorted(sum(epochs[0], held)) == sorted(texts)

    names = [f"p{P}-s{seed}-lr{lr}" for P in (1, 3) for seed in (0, 5) for lr in (0.03, 0.2)]
    shares = [step / 3 if step <= 3 else (43 - step) / 40 for step in range(1, 43)]
    for step, share in zip(steps, shares, strict=True):
        assert sum(step.rates, ()) == pytest.approx([share * peak for peak in [0.03, 0.05, 0.2, 0.05] * 4])
    keys, near = ("step", "epoch", "split", "loss", "accuracy", "lr"), lambda value: pytest.approx(value, rel=1e-5, abs=1e-5)
    for P, seed, lr, epoch in ((1, 0, 0.03, 1), (3, 5, 0.03, 3), (3, 0, 0.2, 3)):
        name = f"p{P}-s{seed}-lr{lr}"
        began, (_, chosen, best), expected = plain_run(weights, P, seed, (lr, 0.05), epochs, held)
        assert chosen == epoch  # which is not always the last
        for line, values in zip([line for line in lines if line["prompt"] == name], expected, strict=True):
            assert [line[key] for key in keys] == [value if isinstance(value, str | None) else near(value) for value in values]
        prompt, metadata = load_prompt(f"run/prompts/{name}/prompt.safetensors")
        assert metadata["recipe"]["epoch"] == epoch
        assert (prompt.vectors - best[0]).abs().max() < 1e-4 and (prompt.head - best[1]).abs().max() < 1e-4
        row = summary["prompts"][names.index(name)]
        assert [row[key] for key in ("name", "prompt_tokens", "seed", "lr", "epoch")] == [name, P, seed, lr, epoch]
        for its, examples in ((row, dev), (row["selection"], held)):
            loss, right = measure(weights, examples, best)
            assert [its["loss"], its["accuracy"], its["n"]] == [near(loss.item()), near(right.mean().item()), len(examples)]
        assert row["untrained"] == near(measure(weights, dev, began)[1].mean().item()) != row["accuracy"]
    untrained = [row["untrained"] for row in summary["prompts"]]
    assert summary["baselines"] == {"majority": 11 / 17, "untrained": near(sum(untrained) / 8)}
    # The first step of an epoch is warm-up; the next line's window begins where this one's ends.
    n = [len(step.texts) for step in steps]
    speeds = {line["step"]: line["examples_per_second"] for line in lines if line["split"] == "train"}
    assert speeds == {10: sum(n[1:10]) / 9, 14: sum(n[10:14]) / 4, 20: sum(n[15:20]) / 5, 28: sum(n[20:28]) / 8,
                      30: n[29], 40: sum(n[30:40]) / 10, 42: sum(n[40:]) / 2}  # fmt: skip


def test_what_is_held_out_and_what_is_drawn(place, monkeypatch):
    """872 texts at most, a tenth of a smaller set; --max-examples draws at random from the rest."""
    (place / "d" / "train.tsv").write_text("text\tlabel\n" + "".join(f"{i}\t{i % 2}\n" for i in range(9000)))
    steps = watch(monkeypatch)
    info, _, _ = run("--max-examples", 40, "--epochs", 1, "--prompt-tokens", 1, "--batch-size", 64)
    assert info["texts"] == {"train": 40, "hold-out": 872, "dev": 12}
    drawn = [int(Tokenizer("m/merges.txt").decode(ids)) for ids, _ in steps[0].texts]
    assert len(set(drawn)) == 40 and sum(i < 4500 for i in drawn) in range(8, 33)


def test_folders_and_labels_have_their_names(place):
    """The bundled set's labels have names, where their number fits; one label is a number, which a threshold makes two."""
    train.main(["--model", "m", "--data", "reviews", "--device", "cpu", "--steps", "1", "--max-examples", "4"])
    assert json.load(open("runs/m-reviews/run.json"))["labels"] == ["negative", "positive"]
    for N, labels in ((3, ["0", "1", "2"]), (1, ["negative", "positive"])):
        assert run("--data", "reviews", "--num-labels", N, "--steps", 1, "--overwrite")[0]["labels"] == labels
        assert load_prompt("run/prompts/p10-s0/prompt.safetensors")[0].head.shape == (N, 10)


def test_it_learns_and_the_prompt_adds_to_the_head(place):
    """16 real sentences on the bundled model: the head alone, before an untrained prompt, gets some; both get all."""
    for split in ("train", "dev"):
        rows = [f"{text}\t{label}\n" for text, label in read_split("reviews", split)[:16]]
        (place / "d" / f"{split}.tsv").write_text("text\tlabel\n" + "".join(rows))
    recipe = ["--model", "tiny", "--batch-size", 16, "--epochs", 30, "--select-on", "dev", "--lr", 0.03, "--head-lr", 0.01]
    last, embeddings = {}, load_gpt2(TINY).wte.weight
    for part in ("head", "prompt+head"):
        _, lines, _ = run(*recipe, "--prompt-tokens", 3, "--train", part, out=part)
        last[part] = [line for line in lines if line["split"] == "train"][-1]
        prompt, metadata = load_prompt(f"{part}/prompts/p3-s0/prompt.safetensors")
        assert torch.equal(prompt.vectors, embeddings[metadata["init_ids"]]) == (part == "head")
    assert last["prompt+head"]["accuracy"] == 1 and last["prompt+head"]["loss"] < 0.05 < 0.2 < last["head"]["loss"]


def test_the_same_command_writes_the_same_bytes(place):
    """In every file but for the times."""
    run("--epochs", 2, "--overwrite")
    first = timeless(place / "run")
    run("--epochs", 2, "--overwrite")
    assert timeless(place / "run") == first and len(first) == 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_texts_change_no_bit(place, dtype, capsys, monkeypatch):
    """Without a cache, in memory, and partly: the same bytes.  What auto may take is a quarter of the memory, to the byte."""
    read, nbytes = GPT2.read, []
    monkeypatch.setattr(GPT2, "read", lambda self, ids: nbytes.append((text := read(self, ids)).nbytes) or text)

    def kept(memory, epochs):
        """(texts that are read, what was written) with so many bytes to be taken"""
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=memory * 4))
        monkeypatch.setattr(caching, "LIMITS", ())
        nbytes.clear()
        run("--epochs", epochs, "--dtype", dtype, "--overwrite")
        written = [(place / "run" / name).read_bytes() for name in ("summary.json", "prompts/p10-s0/prompt.safetensors")]
        return len(nbytes), written

    reads, written = kept(0, 3)
    each = nbytes[:7]  # of the batches
    said = "keys and values of some texts are not kept"
    assert said not in capsys.readouterr().out  # without memory nothing can be kept
    for memory in (sum(each), sum(each) - 1, sum(each[:3]), sum(each[:3]) - 1):
        room, again = memory, 0
        for size in each:
            room, again = (room - size, again) if size <= room else (room, again + 1)
        assert kept(memory, 3) == (reads - 14 + 2 * again, written)
        assert capsys.readouterr().out.count(said) == (again > 0)  # once, if at all
    budgets = []
    monkeypatch.setattr(train, "TextCache", lambda budget, gpt2: budgets.append(budget) or caching.TextCache(budget, gpt2))
    once = kept(0, 1)[0]
    assert kept(sum(each), 1)[0] == once and kept(sum(each), 2)[0] == kept(0, 2)[0] - 7  # in one epoch nothing is kept
    assert budgets == [0, 0, "auto", "auto"]


def test_best_only_ever_improves_and_patience_ends_it(place):
    trial = train.Trial("p", 0, 0.1, torch.nn.Linear(1, 1), [], best={})
    kept = [trial.consider({"accuracy": a, "loss": l}, epoch) for epoch, (a, l) in enumerate(
        [(0.5, 0.7), (0.6, 0.9), (0.6, 0.8), (0.6, 0.8), (0.4, 0.1), (0.6, 0.81)], 1)]  # fmt: skip
    assert kept == [True, True, True, False, False, False]
    assert (trial.best["accuracy"], trial.best["loss"], trial.best["epoch"], trial.waited) == (0.6, 0.8, 3, 3)
    _, lines, summary = run("--epochs", 50, "--patience", 2, "--lr", 1e-9, "--head-lr", 1e-9)
    last = max(line["epoch"] for line in lines)  # nothing moves but the last digits of the loss
    assert last == summary["prompts"][0]["epoch"] + 2 < 50


@pytest.mark.parametrize("init,ids", [("eot", [299] * 9), ("words", None)])
def test_inits(place, init, ids):
    run("--init", init, "--prompt-tokens", 9, "--steps", 1)
    _, metadata = load_prompt("run/prompts/p9-s0/prompt.safetensors")
    drawn = torch.randint(256, 299, (9,), generator=torch.Generator().manual_seed(0)).tolist()
    words = (Tokenizer("m/merges.txt").encode(" 0 1") + drawn)[:9]
    assert metadata["init_ids"] == (ids or words) != drawn and metadata["init"] == init


def test_init_from_a_prompt_goes_on_where_it_ended(place):
    run("--prompt-tokens", 3, "--steps", 3, out="first")
    path = "first/prompts/p3-s0/prompt.safetensors"
    info, *_ = run("--prompt-tokens", 3, "--steps", 1, "--init", path, "--lr", 1e-12, "--head-lr", 1e-12, out="second")
    (a, _), (b, _) = load_prompt(path), load_prompt("second/prompts/p3-s0/prompt.safetensors")
    assert (a.vectors - b.vectors).abs().max() < 1e-6 and (a.head - b.head).abs().max() < 1e-6
    assert info["data"]["init"] == digest(path)


def test_learning_rate_rises_and_falls():
    """Over 6 % of the steps to its peak, which is reached once, and then to just above zero."""
    rates = [train.learning_rate(step, 100) for step in range(100)]
    assert rates == pytest.approx([i / 6 for i in range(1, 6)] + [i / 95 for i in range(95, 0, -1)])
    assert [train.learning_rate(step, 3) for step in range(3)] == pytest.approx([1, 2 / 3, 1 / 3])  # one step to rise


# ---- what is refused --------------------------------------------------------------------------


def corrupt(path, change):
    return lambda place, *_: (place / path).write_bytes(change((place / path).read_bytes()))


def full_disk(place, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))


REFUSED = {" ".join(flags): (flags, None, flags[0]) for flags in (
    ["--lrate", "1"], ["--lr", "fast"], ["--lr", "0"], ["--lr", "nan"], ["--head-lr", "inf"], ["--seeds", "-1"],
    ["--seeds", str(2**63)], ["--prompt-tokens", "0"], ["--prompt-tokens"], ["--epochs", "-1"], ["--steps", "0"],
    ["--device", "warp"], ["--device", "cuda:9"], ["--cache-text", "much"], ["--dtype", "int8"], ["--patience", "0"],
)} | {
    "unknown model": (["--model", "gpt5"], None, "gpt5"),
    "unknown data": (["--data", "imdb"], None, "imdb"),
    "unknown init": (["--init", "zeros"], None, "zeros"),
    "init of another model": (["--init", f"{TINY}/prompts/sst2-p10/prompt.safetensors"], None, "trained on another model"),
    "prompt too long": (["--prompt-tokens", "24"], None, "--prompt-tokens 24"),
    "more labels than texts": (["--num-labels", "55"], None, "--num-labels 55"),
    "label out of range": ([], corrupt("d/dev.tsv", lambda data: data + b"a\t2\n"), "dev.tsv, line 14"),
    "too few rows": ([], corrupt("d/train.tsv", lambda data: data[:25]), "--select-on dev"),
    "truncated weights": ([], corrupt("m/model.safetensors", lambda data: data[:-9]), "model.safetensors"),
    "too many merges": ([], lambda place, _: shutil.copy(TINY / "merges.txt", "m"), "merges.txt"),
    "out is a file": ([], lambda place, _: (place / "run").write_text(""), "run"),
    "out is a run": ([], lambda place, _: (os.mkdir("run"), (place / "run/run.json").write_text("")), "run.json is no JSON"),
    "out holds something else": (["--overwrite"], lambda place, _: shutil.copytree("d", "run"), "holds no run"),
    "out under a file": (["--out", "d/dev.tsv/run"], None, "dev.tsv"),
    "full disk": ([], full_disk, "run/run.json: No space left on device"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_one_sentence_exit_2_and_nothing_written(place, capsys, monkeypatch, case):
    flags, change, named = REFUSED[case]
    if change:
        change(place, monkeypatch)
    before = contents(place)
    with pytest.raises(SystemExit) as caught:
        train.main([*BASE, "--out", "run", *flags])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and named in error and "Traceback" not in error
    assert re.search(r"^(\S+: )?error: .+$", error.strip().split("\n")[-1])
    assert contents(place) == before


def test_overwrite_replaces_a_run(place, monkeypatch):
    """First what the old one left goes, then run.json is replaced, so that no kill leaves a mixture; the summary is last."""
    os.mkdir("run")
    (place / "run/.prompt-training.tmp").write_text("{")  # it was killed before it began, which is no obstacle
    run("--steps", 1, "--prompt-tokens", 2)
    replace, replaced = os.replace, []
    monkeypatch.setattr(os, "replace", lambda old, new: (replaced.append((str(new), [*contents(place / "run")])), replace(old, new)))
    run("--steps", 1, "--prompt-tokens", 3, "--overwrite")
    assert os.listdir("run/prompts") == ["p3-s0"]
    assert replaced[0][0] == "run/run.json" and {path.name.split(".")[-1] for path in replaced[0][1]} == {"json", "tmp"}
    assert [name for name, _ in replaced if name.endswith("summary.json")] == [replaced[-1][0]]


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
    del weights
    train.main(["--model", "big", "--data", "d", "--out", "run", "--steps", "3", "--prompt-tokens", "2", "--device", "cpu"])
    assert load_prompt("run/prompts/p2-s0/prompt.safetensors")[0].head.shape == (2, C)
    capsys.readouterr()
    evaluate.main(["predict", "run", "--json", "--device", "cpu", "a fine film"])
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["logits"]) == len(answer["probabilities"]) == 2
