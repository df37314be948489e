"""evaluate.py: its numbers against plain counting, its verbs from the command line."""

import functools
import io
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest
import torch
from checkpoints import TINY
from test_model import pad

import evaluate
import report
import train
from data import LONGEST, TEXT_RULE, Tokenizer, read_split
from evaluate import judge, probabilities, score, tally, wilson
from model import Prompt, classify, load_gpt2, load_prompt, save_prompt
from report import mcnemar
from support import machine
from support.checks import recipe_of
from support.fetch import base_of
from support.files import lines_of
from support.flags import training as train_flags

ROOT = TINY.parent.parent
SHIPPED = ROOT / "weights/tiny/prompts/reviews-p10"
EXACT = ("--dtype", "float32")  # where numbers are compared with numbers that were computed in another way
NAMES = ["bad", "fair", "good"]


def ask(capsys, *argv):
    """Run evaluate.py -> (exit code, stdout, stderr)"""
    return conftest.ask(capsys, evaluate, *argv)


def told(capsys, *argv):
    """Run evaluate.py -> the objects that it prints, one a line"""
    code, out, err = ask(capsys, *argv, "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def changed(tmp_path, base, vectors=None, **metadata):
    """The same prompt with other metadata (None: without), or vectors"""
    prompt, old = load_prompt(base)
    new = {key: value for key, value in (old | metadata).items() if value is not None}
    save_prompt(tmp_path / "p.safetensors", prompt if vectors is None else Prompt(vectors, prompt.head), new)
    return tmp_path / "p.safetensors"


def write_run(folder, train="prompt+head", settings={}, files={}, **prompts):
    """A finished run with made-up scores: a=(tokens, seed, accuracy on dev, on selection, untrained, and what else).

    That is the prompt p1-s0-a.  Every prompt has a curve of its own, and was best in its second epoch.
    """
    said = vars(train_flags("").parse_args([])) | {"train": train, "epochs": 3, "dtype": "float32", "device": "cpu"}
    said |= {"total_steps": 30, "processes": 1, "num_labels": 2} | settings | {"prompt_tokens": [1, 5]}
    rows, log = [], []
    for letter, (P, seed, accuracy, selected, untrained, *more) in prompts.items():
        name = f"p{P}-s{seed}-{letter}"
        rows.append({"name": name, "prompt_tokens": P, "seed": seed, "lr": 0.03, "epoch": 2, "untrained": untrained,
                     "n": 400, "accuracy": accuracy, "loss": 0.6, "ci95": [0.0, 1.0], "broke": 0, "collapsed": False,
                     "selection": {"split": "hold-out", "accuracy": selected, "loss": None, "n": 90}})  # fmt: skip
        rows[-1].update(*more)
        (folder / "prompts" / name).mkdir(parents=True)
        prompt, about = load_prompt(files.get(letter, SHIPPED / "prompt.safetensors"))
        recipe = recipe_of(said | rows[-1]) | ({} if letter not in files else about["recipe"]) | {"seed": seed}
        about |= {"recipe": recipe, "base_model": said["model"] if letter not in files else about["base_model"]}
        about |= {"n": rows[-1]["n"], "accuracy": accuracy, "selected": selected, "untrained": untrained, "majority": 0.52}
        save_prompt(folder / f"prompts/{name}/prompt.safetensors", Prompt(prompt.vectors[:P], prompt.head), about)
        for split, curve in (("hold-out", (-0.2, 0.0, -0.1)), ("dev", (0.3, 0.3, 0.3))):
            for i, (x, loss) in enumerate(zip(curve, (0.6, 0.5, 0.55)), 1):
                log.append({"prompt": name, "split": split, "loss": loss, "lr": None, "step": 10 * i, "epoch": i})
                log[-1]["accuracy"] = selected + x
    facts = {"format": "prompt-training-run/1", "argv": [], "settings": said | {"lr": [0.03]}, "labels": NAMES[::2],
             "base": base_of("tiny", TINY), "data": {"train": "0", "dev": "1"},
             "prompts": [row["name"] for row in rows]}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "summary.json").write_text(json.dumps({"prompts": rows, "baselines": {"majority": 0.52, "untrained": 0.5}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return folder


@pytest.fixture(scope="module")
def desk(checkpoint, tmp_path_factory):
    """A random model, data sets d and e, and a run of three prompts, which were trained on d and tell three labels apart.

    Asking costs milliseconds, the labels are wrong as often as right, and in many ways.
    """
    home, draw = tmp_path_factory.mktemp("desk"), random.Random(1)
    gpt2, tokenizer = load_gpt2(checkpoint[0]), Tokenizer(checkpoint[0] / "merges.txt")
    for data, split, n in (("d", "dev", 50), ("d", "other", 30), ("e", "dev", 40), ("e", "other", 20)):
        words = ["".join(draw.choices("aeinorst", k=draw.randint(1, 4))) for _ in range(3 * n)]
        rows = [f"{' '.join(words[i : i + 3])}\t{draw.choice([0, 1, 1, 2, 2, 2])}" for i in range(0, 3 * n, 3)]
        (home / data).mkdir(exist_ok=True)
        (home / data / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows, ""]))
    generator, files, prompts = torch.Generator().manual_seed(2), {}, {}
    recipe = {"data": str(home / "d"), "train": "head", "lr": 0.03, "batch_size": 16, "epochs": 3, "epoch": 2}
    metadata = {"labels": NAMES, "init_ids": [40, 41, 42], "text_rule": TEXT_RULE, "accuracy": "0.5", "n": "50",
                "selected": 0.5, "untrained": 0.5, "majority": 0.5, "recipe": recipe} | base_of(checkpoint[0], checkpoint[0])  # fmt: skip
    for name, P in (("a", 3), ("b", 2), ("c", 5)):
        prompts[name] = Prompt(torch.randn(P, 10, generator=generator), torch.randn(3, 10, generator=generator))
        save_prompt(files.setdefault(name, home / f"{name}.safetensors"), prompts[name], metadata)
    run = write_run(home / "run", files=files, a=(3, 0, 0.9, 0.5, 0.3), b=(2, 0, 0.4, 0.9, 0.3), c=(5, 0, 0.6, 0.7, 0.3))

    @functools.cache
    def read(text):
        return classify(gpt2, [*prompts.values()], *pad([tokenizer.encode(text)]))[:, 0].detach()  # (3, N)

    def logits(names, texts):
        """(n, N), read one by one: the mean over the prompts named"""
        return torch.stack([read(text)[["abc".index(name) for name in names]].mean(dim=0) for text in texts])

    paths = {path.parent.name[-1]: path for path in run.glob("prompts/*/prompt.safetensors")}
    return SimpleNamespace(run=run, d=home / "d", e=home / "e", prompts=prompts, logits=logits, tokenizer=tokenizer,
                           model=checkpoint[0], **paths)  # fmt: skip


# ---- numbers --------------------------------------------------------------------------------------


@pytest.fixture
def seen():
    """Of every module that gives a tensor: itself, the shape of what it reads, and of what it gives the dtype and the graph."""
    found = []

    def look(module, inputs, output):
        if isinstance(output, torch.Tensor):
            found.append((module, tuple(inputs[0].shape), output.dtype, output.requires_grad))

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    yield found
    handle.remove()


def test_every_verb_asks_without_a_graph_and_in_the_dtype_asked_for(capsys, desk, seen, either_dtype):
    """Or memory would grow with the split, and time where the hardware is slow."""
    for flags, dtype in (([], either_dtype), (EXACT, torch.float32), (["--dtype", "bfloat16"], torch.bfloat16)):
        for argv in (["score", desk.run], ["predict", desk.a, "x"], ["attention", desk.a, "x"], ["table", desk.a, desk.b]):
            seen.clear()
            assert ask(capsys, *argv, *flags)[0] == 0 and not any(graph for *_, graph in seen)
            assert {given for module, _, given, _ in seen if isinstance(module, torch.nn.Linear)} == {dtype}


def test_texts_are_read_as_many_at_once_as_asked_and_with_others_of_their_length(capsys, desk, seen):
    lengths = sorted(len(desk.tokenizer.encode(text)) for text, _ in read_split(desk.d, "dev", 3))
    for flags, size in ((["--batch-size", "1"], 1), (["--batch-size", "7"], 7), ([], 16), (["--batch-size", "99"], 50)):
        seen.clear()
        ask(capsys, "score", desk.a, *flags)
        read = [shape for module, shape, *_ in seen if getattr(module, "num_embeddings", 0) == 300]
        assert sorted(read) == sorted((len(b), b[-1]) for b in (lengths[i : i + size] for i in range(0, 50, size)))


def test_auto_is_bfloat16_where_the_hardware_is_fast(monkeypatch, request):
    if request.config.getoption("--body-dtype"):
        pytest.skip("--body-dtype is the answer")
    for flags, capability, fast in (("x avx512_bf16", (8, 0), True), ("amx_bf16", (9, 0), True), ("avx512f", (7, 5), False)):
        monkeypatch.setattr(Path, "read_text", lambda self, flags=flags: flags)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        auto = {machine.body_dtype("auto", torch.device(kind)) for kind in ("cpu", "cuda")}
        assert auto == {torch.bfloat16 if fast else torch.float32}


def counted(logits, labels):
    """What score should say of logits (n, N) and a list of labels, by plain counting."""
    N, loss = logits.shape[1], 0.0
    table = [[0] * N for _ in range(N)]
    for row, label in zip(logits.tolist(), labels):
        loss += math.log(sum(math.exp(x) for x in row)) - row[label]
        table[label][row.index(max(row))] += 1
    right, n = [table[i][i] for i in range(N)], len(labels)
    share = lambda part, whole: part / whole if whole else None
    return {"n": n, "accuracy": sum(right) / n, "loss": pytest.approx(loss / n, abs=1e-4), "confusion": table,
            "ci95": pytest.approx(interval(sum(right), n)), "majority": max(map(sum, table)) / n,
            "precision": [share(right[i], sum(row[i] for row in table)) for i in range(N)],
            "recall": [share(right[i], sum(table[i])) for i in range(N)], "collapsed": False, "alarm": None}  # fmt: skip


def interval(correct, n):
    """Wilson's, by scipy; with 1.96 standard deviations to the digit"""
    stats = pytest.importorskip("scipy.stats")
    return [*stats.binomtest(correct, n).proportion_ci(math.erf(1.96 / math.sqrt(2)), method="wilson")]


def test_score_equals_plain_counting(capsys, desk):
    """Whichever prompts answer, alone or together, and whatever is answered."""
    for argv, data, split, names in (
        ([desk.run], desk.d, "dev", "b"), ([desk.run, "--all"], desk.d, "dev", "bca"),
        ([desk.a, "--split", "other"], desk.d, "other", "a"),
        ([desk.a, "--data", desk.e, "--with", desk.c], desk.e, "dev", "ac"),
        ([desk.a, "--with", desk.c, desk.a, desk.run], desk.d, "dev", "acb"),
    ):  # fmt: skip
        texts, labels = zip(*read_split(data, split, 3))
        truth = counted(desk.logits(names, texts), labels)
        assert len({*truth["precision"], *truth["recall"], truth["accuracy"], truth["majority"]}) >= 7  # nothing is hidden
        (result,) = told(capsys, "score", *argv, *EXACT)
        each = [counted(desk.logits(name, texts), labels) for name in names]
        examples = [(desk.tokenizer.encode(text), label) for text, label in zip(texts, labels)]
        assert score(load_gpt2(desk.model), [desk.prompts[name] for name in names], examples, 7) == each
        alone = [one["accuracy"] for one in each]
        paths = [str(getattr(desk, name)) for name in names]
        assert result == truth | {"alone": alone, "prompt": " + ".join(paths), "errors": []}

        lines = ask(capsys, "score", *argv, *EXACT)[1].splitlines()
        if len(names) > 1:
            assert [line.split() for line in lines[1 : len(names) + 1]] == [[p, f"{x:.4f}"] for p, x in zip(paths, alone)]
            lines = lines[len(names) + 1 :]
        assert lines[0] == (
            "{who} on {data} {split}: accuracy {accuracy:.4f} of {n} texts, 95 % interval {ci95[0]:.3f} to {ci95[1]:.3f}, loss "
            "{loss:.4f}, majority baseline {majority:.4f}".format(
                **result, data=data, split=split, who=paths[0] if len(names) == 1 else "together"))  # fmt: skip
        assert re.split("  +", lines[1]) == ["label", *(f"answered {name}" for name in NAMES), "precision", "recall"]
        for i, (name, line) in enumerate(zip(NAMES, lines[2:], strict=True)):
            shares = ["-" if share is None else f"{share:.4f}" for share in (result["precision"][i], result["recall"][i])]
            assert line.split() == [name, *map(str, result["confusion"][i]), *shares]


def test_the_surest_mistakes(capsys, desk):
    texts, labels = zip(*read_split(desk.d, "dev", 3))
    sure, chosen = desk.logits("a", texts).softmax(dim=1).max(dim=1)
    wrong = [i for i in range(50) if chosen[i] != labels[i]]
    wrong.sort(key=lambda i: -sure[i])
    worst = [{"text": texts[i], "label": labels[i], "answer": int(chosen[i]),
              "probability": pytest.approx(sure[i].item(), abs=1e-4)} for i in wrong]  # fmt: skip
    assert len(worst) > 10
    errors = told(capsys, "score", desk.a, "--errors", "100", *EXACT)[0]["errors"]
    assert errors == worst  # every one of them, and nothing else
    assert told(capsys, "score", desk.a, "--errors", "3", *EXACT)[0]["errors"] == worst[:3]
    assert ask(capsys, "score", desk.a, "--errors", "2", *EXACT)[1].splitlines()[-2:] == [
        f"{one['probability']:.3f} {NAMES[one['answer']]}, but it is {NAMES[one['label']]}: {machine.shown(one['text'])}"
        for one in errors[:2]]  # fmt: skip


def test_a_prompt_that_answers_one_thing_is_called_collapsed(capsys, desk, tmp_path):
    prompt, metadata = load_prompt(desk.a)
    prompt.head.data[:] = prompt.head.data[0]  # a tie: always label 0, as with a head of one column
    save_prompt(tmp_path / "p.safetensors", prompt, metadata)
    (result,) = told(capsys, "score", tmp_path / "p.safetensors")
    zeros = sum(label == 0 for _, label in read_split(desk.d, "dev", 3)) / 50
    assert result["collapsed"] and result["accuracy"] == zeros != result["majority"]
    assert result["precision"][1:] == [None, None] and result["recall"] == [1.0, 0.0, 0.0]
    assert result["alarm"] == f"{zeros:.4f} is the share of label 0: this model answers 0 for everything"
    assert ask(capsys, "score", tmp_path / "p.safetensors")[1].splitlines()[-1] == f"warning: {result['alarm']}"
    assert tally(torch.tensor([1, 1]), torch.tensor([0, 1]), 3)["recall"] == [0.0, 1.0, None]  # the third is never there


def test_the_alarm_names_a_head_of_one_column():
    """Its argmax would be 0 for all; the threshold reads it, and the sentence says both."""
    labels = torch.tensor([0.0, 1.0, 0.8, 0.0, 1.0])  # 0.8 counts as 1
    result = judge(torch.tensor([[0.1], [0.9], [0.6], [0.7], [0.2]]), labels)
    assert result["confusion"] == [[1, 1], [1, 2]] and result["accuracy"] == 0.6 and not result["collapsed"]
    assert result["loss"] == pytest.approx((0.01 + 0.01 + 0.04 + 0.49 + 0.64) / 5)
    assert "one column" in result["alarm"] and "score 0.4000, the share of label 0" in result["alarm"]
    stuck = judge(torch.full((5, 1), 0.8), labels)
    assert stuck["alarm"].startswith("0.6000 is the share of label 1: this model answers 1 for everything; the head")
    assert probabilities(torch.tensor([[0.2], [1.3], [-1.0]])).tolist() == [pytest.approx([0.8, 0.2]), [0.0, 1.0], [1.0, 0.0]]


def test_intervals_and_mcnemar_equal_those_of_scipy():
    """The second is the exact two-sided test of who is right where the other is wrong."""
    for correct, n in ((0, 10), (7, 10), (759, 872), (5, 5), (1, 400)):
        assert wilson(correct, n) == pytest.approx(interval(correct, n), abs=1e-12)
    assert all(wilson(0, n)[0] >= 0 and wilson(n, n)[1] <= 1 for n in range(1, 500))
    stats = pytest.importorskip("scipy.stats")
    for b, c, both, neither in ((0, 5, 3, 1), (2, 6, 0, 0), (4, 4, 2, 2), (0, 0, 3, 0), (7, 3, 1, 5), (800, 750, 10, 0)):
        first = torch.tensor([True] * b + [False] * c + [True] * both + [False] * neither)
        second = torch.tensor([False] * b + [True] * c + [True] * both + [False] * neither)
        p = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1
        assert mcnemar(first, second) == {"n": b + c + both + neither, "only_right": [b, c], "p": pytest.approx(p)}


def test_run_prompt_folder_and_file_name_a_prompt_and_a_flag_its_model(capsys, desk, tmp_path):
    answer = lambda *argv: told(capsys, "predict", *argv, *EXACT, "a tin nose")[0]["logits"]
    best = answer(desk.b)  # by the selection split, never by dev
    assert best != answer(desk.a) != answer(desk.c) != best
    assert answer(desk.run) == answer(desk.b.parent) == answer(desk.b) == best
    moved = changed(tmp_path, desk.a, base_model=str(tmp_path / "nowhere"))
    assert ask(capsys, "predict", moved, "a text")[0] == 2
    assert answer(desk.a.parent) == answer(moved, "--model", desk.model) == answer(desk.a)


def test_regression_is_scored_by_a_threshold(capsys, place):
    train.main("--num-labels 1 --steps 2 --prompt-tokens 1 --data d --select-on dev --model m --out run".split())
    capsys.readouterr()
    texts, labels = zip(*read_split("d", "dev"))
    found = told(capsys, "predict", "run", *texts, *EXACT)
    for one in found:
        (x,) = one["logits"]
        assert one["label"] == int(x > 0.5) and one["probabilities"][1] == pytest.approx(min(max(x, 0), 1))
    assert evaluate.load("run", dtype="float32").predict(texts) == found
    (result,) = told(capsys, "score", "run", "--errors", "20", *EXACT)
    right = sum(one["label"] == label for one, label in zip(found, labels))
    assert result["accuracy"] == right / 12 and len(result["errors"]) == 12 - right and "one column" in result["alarm"]
    (odds,) = told(capsys, "attention", "run", texts[0], *EXACT)
    share = found[0]["probabilities"][found[0]["label"]]  # the share is all that there is
    assert odds["log_odds"] == pytest.approx(math.log(share / (1 - share)), rel=1e-4)
    assert ", log-odds " in ask(capsys, "attention", "run", texts[0])[1]


# ---- many texts ---------------------------------------------------------------------------------


def test_predict_answers_by_the_mean_logits_of_the_prompts(capsys, desk):
    texts = ["tin nose", "a rose is  a stone", "orient", "stain\tits rain"]
    for argv, names in (
        ([desk.a], "a"), ([desk.run], "b"), ([desk.run, "--all"], "abc"), ([desk.a, "--with", desk.b, desk.c], "abc"),
        ([desk.a, "--with", desk.c], "ac"), ([desk.a, "--with", desk.a], "a"),
    ):  # fmt: skip
        truth = desk.logits(names, texts)
        found = told(capsys, "predict", argv[0], *texts, *argv[1:], *EXACT)
        for text, row, one in zip(texts, truth, found, strict=True):
            label = row.tolist().index(max(row))
            assert one.keys() == {"text", "label", "label_name", "logits", "probabilities"} and one["text"] == text
            assert one["logits"] == pytest.approx(row.tolist(), abs=1e-4)
            assert (one["label"], one["label_name"]) == (label, NAMES[label])
            assert one["probabilities"] == pytest.approx(row.softmax(0).tolist(), abs=1e-4)
        plain = ask(capsys, "predict", argv[0], *texts, *argv[1:], *EXACT)[1].splitlines()
        shown = [machine.shown(text) for text in texts]
        assert plain == [f"{one['label_name']}\t{max(one['probabilities']):.3f}\t{text}" for one, text in zip(found, shown)]
    assert len({one["label"] for one in found}) > 1


def test_python_gets_the_objects_that_predict_prints_and_the_same_refusals(capsys, desk, tmp_path):
    """The very numbers, so that a program may ask in either way."""
    texts = ["tin nose", " a rose\tis\na stone ", "caf\u00e9 \x1b[31m"]
    for run, flags, more in (
        (desk.run, EXACT, {"dtype": "float32"}), (desk.a.parent, [], {}), (str(desk.c), [], {"device": "cpu"}),
        (SHIPPED, ["--model", TINY, "--batch-size", "1"], {"model": TINY, "batch_size": 1}),
    ):  # fmt: skip
        assert evaluate.load(run, **more).predict(texts) == told(capsys, "predict", run, *texts, *flags)
    args = SimpleNamespace(model=None, device=torch.device("cpu"), dtype="float32", batch_size=16)
    together = evaluate.Classifier([desk.b, desk.c, desk.a], args)
    assert together.predict(texts) == told(capsys, "predict", desk.run, "--all", *texts, *EXACT)
    assert together.labels == NAMES and together.predict([]) == []
    for run, texts, more, flags in (
        (tmp_path, ["x"], {}, []), (changed(tmp_path, desk.a, text_rule="x"), ["x"], {}, []),
        (desk.a, ["x"], {"model": "absent"}, ["--model", "absent"]), (desk.a, ["x"], {"model": TINY}, ["--model", TINY]),
        (desk.a, ["x", " \n"], {}, []), (desk.a, ["a\udce9"], {}, []), (desk.a, ["x" * (LONGEST + 1)], {}, []),
    ):  # fmt: skip
        with pytest.raises((OSError, ValueError)) as refusal:
            evaluate.load(run, **more).predict(texts)
        assert ask(capsys, "predict", run, *flags, *texts) == (2, "", f"error: {machine.sentence_of(refusal.value)}\n")


def test_nothing_that_was_read_speaks_to_the_terminal(capsys, desk, monkeypatch, tmp_path):
    """Texts, file names and metadata are shown on one line each, in which a control character is escaped."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    odd, home = "tin\x1b[31m\u202enose\x9b2Jx", tmp_path / "e\x1b]0;x\x07"
    home.mkdir()
    (home / "dev.tsv").write_text("sentence\tlabel\n" + "".join(f"{odd} {i}\t{i % 3}\n" for i in range(9)), "utf-8")
    (home / "test.tsv").write_text(f"index\tsentence\n7\t{odd}\n", "utf-8")
    path = shutil.copy(changed(tmp_path, desk.a, recipe=load_prompt(desk.a)[1]["recipe"] | {"data": str(desk.d)}), home)
    out = home / "x.tsv"
    for argv, seen in (
        (["predict", path, odd, "a\nb"], [odd, "a\nb"]), (["score", path, "--data", home, "--errors", "3"], [home, odd]),
        (["score", path, "--with", desk.b, "--data", home], [home]), (["attention", path, f"a {odd} b"], [odd]),
        (["table", path, desk.b, "--data", home], []), (["predict", path, "--input", home / "test.tsv", "--glue", out], [out]),
        (["tokens", path], []),
    ):  # fmt: skip
        code, said, err = ask(capsys, *argv)
        assert code == 0 and all(c.isprintable() or c in "\t\n" for c in said + err), argv
        assert all(machine.shown(one) in said for one in seen) and (argv[2:] != [odd, "a\nb"] or said.count("\n") == 2)


def test_arguments_a_file_and_standard_input_get_the_same_answers(capsys, monkeypatch, tmp_path):
    texts = ["great fun", "a mess , from start to finish", "🙂 fine"]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    by_arguments = ask(capsys, "predict", SHIPPED, *texts)
    assert by_arguments[1].count("\n") == 3 and ask(capsys, "predict", SHIPPED, "--input", tmp_path / "in.txt") == by_arguments
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\r\n".join(texts).encode())))
    assert ask(capsys, "predict", SHIPPED) == by_arguments
    assert ask(capsys, "predict", SHIPPED, "--batch-size", "2", *texts) == by_arguments  # a flag, then texts


def test_lines_that_cannot_be_answered_keep_their_place(capsys, desk, tmp_path):
    """Across the pieces in which a file is read.  A mark counts in the first line alone; a line may have just the limit."""
    texts = [f"tin {i}".encode() for i in range(200)]
    odd = {0: b"\xef\xbb\xbfrose", 1: b"", 9: b"caf\xe9 noir", 3: b"\xef\xbb\xbfrose", 64: b"\xef\xbb\xbfrose", 70: b"a\tmess", 99: b" " * 9,
           140: b" " * (LONGEST - 4) + b"rose", 150: b"x" * (LONGEST + 1), 199: b"fine"}  # fmt: skip
    for place, line in odd.items():
        texts[place] = line
    (tmp_path / "in.txt").write_bytes(b"\n".join(texts))
    argv = ["predict", desk.a, "--batch-size", "1", "--input", tmp_path / "in.txt", *EXACT]
    code, out, err = ask(capsys, *argv, "--json")
    limit = f"is too long: the text has {LONGEST + 1} characters; cut it, {LONGEST} are the limit"
    said = {2: "is blank", 10: "is not UTF-8", 100: "is blank", 151: limit}
    assert code == 0 and err == "".join(f"line {number} {problem}\n" for number, problem in said.items())
    plain = [line.split("\t") for line in ask(capsys, *argv)[1].split("\n")[:-1]]
    read = {1: "rose", 10: "", 100: "", 141: "rose", 151: ""}
    for number, (line, cells, text) in enumerate(zip(out.splitlines(), plain, texts, strict=True), 1):
        found = json.loads(line)
        assert found["text"] == (read[number] if number in read else text.decode())
        assert cells[2:] == [machine.shown(found["text"])]
        assert found.get("error") == said.get(number)
        known = [found[key] for key in ("label", "label_name", "logits", "probabilities")]
        if number in said:
            assert known == [None] * 4 and cells[:2] == ["-", "-"]
        else:
            assert known[2] == pytest.approx(desk.logits("a", [found["text"]])[0].tolist(), abs=1e-4) and cells[0] == known[1]


def test_a_text_is_cut_to_the_room_that_the_longest_prompt_leaves(capsys, desk, tmp_path):
    """Which is told of those alone that are longer."""
    exact, longer = "qzqzqzqzq qzqzqzqzqqq", "qzqzqzqzq qzqzqzqzq qzqzqzqzq"
    assert len(desk.tokenizer.encode(exact)) == 24 - 3 and len(desk.tokenizer.encode(longer)) > 24
    code, out, err = ask(capsys, "predict", desk.a, exact, longer, "a", "--json", *EXACT)
    assert code == 0 and err == "1 of 3 texts are cut to 21 tokens (24 positions - 3 of the prompt)\n"
    assert ask(capsys, "predict", desk.a, exact)[2] == ""
    found = [json.loads(line)["logits"] for line in out.splitlines()]
    cut = desk.tokenizer.decode(desk.tokenizer.encode(longer)[:21])
    assert found[1] == pytest.approx(desk.logits("a", [cut])[0].tolist(), abs=1e-4)
    (tmp_path / "dev.tsv").write_text(f"sentence\tlabel\n{exact}\t0\n{longer}\t0\na\t0\n")
    for argv in (["predict", desk.a, exact, longer, "a"], ["score", desk.a, "--data", tmp_path]):
        _, _, err = ask(capsys, *argv, "--with", desk.c, desk.b)
        assert err == "2 of 3 texts are cut to 19 tokens (24 positions - 5 of the prompt)\n"


def test_pieces_of_a_stream_make_whole_lines():
    """However a pipe cuts them; and a line without end is not kept."""
    reader = lambda pieces: SimpleNamespace(read1=lambda _, left=iter([*pieces, b""]): next(left))
    text = "".join(f"line {i} é\n" for i in range(50)).encode() + b"the last"
    for size in (1, 2, 3, 7, 1000):
        lists = [*lines_of(reader(text[i : i + size] for i in range(0, len(text), size)), LONGEST)]
        assert sum(lists, []) == text.decode().split("\n")
    first, second = sum(lines_of(reader([b"x" * 2**16] * 100 + [b"\nok\n"]), LONGEST), [])
    assert LONGEST < len(first) < LONGEST + 2**17 and second == "ok"
    assert sum(lines_of(reader([b"caf\xe9\nna", b"\xc3"]), LONGEST), []) == ["caf\udce9", "na\udcc3"]


def test_a_pipe_that_trickles_is_answered_as_it_goes_and_a_broken_one_ends_quietly():
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    command = [sys.executable, "evaluate.py", "predict", str(SHIPPED)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, cwd=ROOT, env=env, **pipes) as program:
        (timer := threading.Timer(100, program.kill)).start()  # or a test that fails would wait for ever
        for text in (b"great fun", b"a mess"):
            program.stdin.write(text + b"\n")
            program.stdin.flush()
            assert program.stdout.readline().endswith(text + b"\n")  # although the pipe stays open
        program.stdout.close()
        program.stdin.write(b"nobody reads the answer\n")
        program.stdin.flush()
        assert program.wait() == 141 and program.stderr.read() == b""
        timer.cancel()


@pytest.mark.parametrize("error,code,said", [
    (KeyboardInterrupt(), 130, "stopped\n"), (torch.OutOfMemoryError("x"), 2, "error: .* --batch-size .*\n"),
    (OSError(28, "No space left", "a\x1b[31m\nb"), 2, r"error: a\\x1b\[31m b: No space left\n"),
])  # fmt: skip
def test_what_ends_a_program(capsys, desk, monkeypatch, error, code, said):
    def read1(_):
        raise error

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(read1=read1)))
    stopped, out, err = ask(capsys, "predict", desk.a)
    assert (stopped, out) == (code, "") and re.fullmatch(said, err)


def test_glue_takes_the_file(capsys, desk, tmp_path):
    """Its texts end in a space, which would change answers; the index is what the file says, the row is not."""
    texts = [text for text, _ in read_split(desk.d, "dev", 3)]
    (plain, spaced) = (desk.logits("a", [text + end for text in texts]).argmax(dim=1).tolist() for end in ("", " "))
    assert sum(a != b for a, b in zip(plain, spaced)) >= 5
    rows = [f"{7 * i % 50 + 100}\t{text} \n" for i, text in enumerate(texts)]
    (tmp_path / "test.tsv").write_text("index\tsentence\n" + "".join(rows))
    argv = ["predict", desk.a, "--input", tmp_path / "test.tsv", "--glue", tmp_path / "SST-2.tsv", *EXACT]
    assert ask(capsys, *argv) == (0, f"50 predictions in {tmp_path / 'SST-2.tsv'}\n", "")
    truth = "".join(f"{7 * i % 50 + 100}\t{label}\n" for i, label in enumerate(plain))
    assert (tmp_path / "SST-2.tsv").read_text() == "index\tprediction\n" + truth
    (tmp_path / "SST-2.tsv").unlink()
    assert told(capsys, *argv) == [{"file": str(tmp_path / "SST-2.tsv"), "n": 50}]
    for rows, named in (("index\tsentence\n0\t \n", "line 2"), ("sentence\tlabel\nx\t1\n", "line 2"),
                        ("index\tsentence\n", "no rows"), ("index\tsentence\n0\tx\n-1\tx\n", "line 3")):  # fmt: skip
        (tmp_path / "test.tsv").write_text(rows)
        code, _, err = ask(capsys, "predict", desk.a, "--input", tmp_path / "test.tsv", "--glue", tmp_path / "x.tsv")
        assert code == 2 and named in err and not (tmp_path / "x.tsv").exists()


# ---- tables and pictures --------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path):
    full = {"c": (5, 0, 0.80, 0.66, 0.49), "a": (1, 0, 0.70, 0.71, 0.50), "b": (1, 1, 0.74, 0.69, 0.48)}
    full = write_run(tmp_path / "full", **full, e=(5, 0, 0.90, 0.64, 0.47, {"lr": 0.01, "epoch": 3}))
    return full, write_run(tmp_path / "head", train="head", d=(5, 0, 0.60, 0.65, 0.53), f=(1, 0, 0.55, 0.75, 0.53))


def test_the_table_against_plain_counting(capsys, runs, tmp_path):
    majority, untrained, head, lower, one, five, slow = told(capsys, "table", *runs)
    assert (majority["train"], majority["accuracy"]) == ("majority", 0.52)
    assert untrained["train"] == "untrained" and untrained["accuracy"] == pytest.approx(3 / 6)
    assert head["train"] == lower["train"] == "head"
    assert one["accuracy"] == pytest.approx(0.72) and one["sd"] == pytest.approx(math.sqrt(2 * 0.02**2))
    assert one["selected"] == pytest.approx(0.70) and one["seeds"] == 2
    assert one["ci95"] == pytest.approx(interval(288, 400)) and one["epoch"] == [2, 2] and one["epochs"] == 3
    assert one["untrained"] == pytest.approx(0.49) and one["n"] == 400
    assert five["prompt_tokens"] == 5 and five["sd"] is None
    assert (slow["lr"], slow["accuracy"], slow["epoch"]) == (0.01, 0.90, [3])
    _, out, _ = ask(capsys, "table", *runs)
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"]
    assert cells[0] == ["model", "data", "batch size", "best accuracy", "token count"]
    assert cells[2] == ["tiny", "reviews", "16", "0.7000", "1"]  # best on selection, no head alone; on dev it is not
    assert [row[2:4] + row[9:10] for row in cells[5:]] == [
        ["majority", "", "0.5200"], ["untrained", "", "0.5000"], ["head", "1", "0.5500"], ["head", "5", "0.6000"],
        ["prompt+head", "1", "0.7200"], ["prompt+head", "5", "0.8000"], ["prompt+head", "5", "0.9000"]]  # fmt: skip
    assert cells[9] == ["tiny", "reviews", "prompt+head", "1", "16", "0.03", "2", "2 2 of 3", "0.7000", "0.7200", "0.0283",
                        "{:.3f} to {:.3f}".format(*one["ci95"])]  # fmt: skip

    other = write_run(tmp_path / "other", settings={"data": "sst2"}, g=(3, 0, 0.51, 0.99, 0.9))  # has floors of its own
    lines = told(capsys, "table", *runs, other)[-3:]
    assert [line["data"] for line in lines] == ["sst2"] * 3
    out = ask(capsys, "table", *runs, other)[1]
    assert [line.split()[3:8:4] for line in out.splitlines()[2:4]] == [["reviews", "0.7000"], ["sst2", "0.5100"]]


def test_runs_that_differ_in_more_than_the_seed_are_rows_of_their_own(capsys, tmp_path):
    """Or a mean would be taken over unlike things."""
    two = {"a": (1, 0, 0.7, 0.7, 0.5), "b": (1, 1, 0.8, 0.8, 0.5)}
    first, same = write_run(tmp_path / "first", **two), write_run(tmp_path / "same", c=(1, 2, 0.6, 0.7, 0.5))
    assert [row["seeds"] for row in told(capsys, "table", first, same) if "seeds" in row] == [3]
    others = {"model": "gpt2", "data": "sst2", "train": "head", "batch_size": 8, "epochs": 2, "select_on": "dev"}
    for key, value in (others | {"prompt_tokens": 2, "lr": 0.01, "head_lr": 0.1, "steps": 7, "max_examples": 5}).items():
        P = value if key == "prompt_tokens" else 1
        other = write_run(tmp_path / key, settings={key: value}, c=(P, 2, 0.6, 0.7, 0.5, {key: value}))
        rows = [row for row in told(capsys, "table", first, other) if "seeds" in row]
        assert sorted((row["seeds"], row[key]) for row in rows)[0] == (1, value) and len(rows) == 2, key


def test_two_prompts_are_compared_on_the_split_that_both_answer(capsys, desk, tmp_path):
    for argv, data, split in (([], desk.d, "dev"), (["--data", desk.e, "--split", "other"], desk.e, "other")):
        texts, labels = zip(*read_split(data, split, 3))
        right = [desk.logits(name, texts).argmax(dim=1) == torch.tensor(labels) for name in "ac"]
        test = told(capsys, "table", desk.a, desk.c, *argv, *EXACT)[-1]["mcnemar"]
        assert test == mcnemar(*right) | {"prompts": [str(desk.a), str(desk.c)]} and 0 not in test["only_right"]
        assert ask(capsys, "table", desk.a, desk.c, *argv, *EXACT)[1].splitlines()[-1] == (
            "McNemar's test, {n} texts: {only_right[0]} only the first gets right, {only_right[1]} only the second; "
            "p = {p:.4f}, exact and two-sided".format(**test))  # fmt: skip
    two = write_run(tmp_path / "two", a=(1, 0, 0.7, 0.7, 0.5), b=(1, 1, 0.8, 0.8, 0.5))
    assert all("McNemar" not in ask(capsys, "table", *argv)[1] for argv in ([desk.a], [desk.a, desk.b, desk.c], [two]))
    other = changed(tmp_path, desk.a, recipe=load_prompt(desk.a)[1]["recipe"] | {"data": str(desk.e)})
    code, out, err = ask(capsys, "table", other, desk.a)
    assert code == 0 and "different data" in err and "--data" in err and out and "McNemar" not in out  # the table is there
    for name in ("dev", "train"):  # the same file, but other texts of it, or other labels
        (tmp_path / f"{name}.csv").write_text("sentence,plot,label,stars\nfine,dull,0,1\nawful,grand,1,1\n")
    recipe = load_prompt(desk.a)[1]["recipe"] | {"data": str(tmp_path)}
    for number, columns in enumerate(({"text_column": "plot"}, {"label_column": "stars"}, {}, {})):
        shutil.copy(changed(tmp_path, desk.a, recipe=recipe | columns), tmp_path / f"{number}.safetensors")
    for second, differ in ((0, True), (1, True), (3, False)):
        code, out, err = ask(capsys, "table", tmp_path / "2.safetensors", tmp_path / f"{second}.safetensors")
        assert code == 0 and ("different data" in err) == differ and ("McNemar" in out) != differ
    lost = changed(tmp_path, desk.a, recipe={key: value for key, value in recipe.items() if key != "data"})
    code, _, err = ask(capsys, "table", lost, desk.a)
    assert code == 2 and "should hold one of dev.tsv" in err and "Traceback" not in err


def test_pictures(capsys, runs, tmp_path, monkeypatch):
    """And one sentence where matplotlib is not there."""
    pytest.importorskip("matplotlib")
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        assert ask(capsys, "plot", *runs, SHIPPED, "--out", tmp_path / name)[:2] == (0, f"see {tmp_path / name}\n")
        assert (tmp_path / name).read_bytes().startswith(start)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = ask(capsys, "plot", *runs, "--out", tmp_path / "b.png")
    assert code == 2 and "pip install" in err and err.count("\n") == 1


def test_nothing_is_written_over(capsys, monkeypatch, desk, runs, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tx\n")
    plot, look = ["plot", *runs, "--out"], ["attention", desk.a, "x y", "--out"]
    answer = ["predict", desk.a, "--input", tmp_path / "test.tsv"]
    for kind, argv in (("png", plot), ("svg", plot), ("pdf", plot), ("svg", look),
                       ("tsv", [*answer, "--glue"]), ("csv", [*answer, "--out"])):  # fmt: skip
        own, other, link, folder = (tmp_path / f"{argv[0]}-{name}.{kind}" for name in ("own", "other", "link", "folder"))
        assert [ask(capsys, *argv, own)[0] for _ in range(2)] == [0, 2]
        other.write_text("a day's work\n")
        link.symlink_to(own)
        folder.mkdir()
        before = own.read_bytes()
        for target in (other, link, folder):
            code, out, err = ask(capsys, *argv, target)
            assert code == 2 and str(target) in err and not out, target
        assert other.read_text() == "a day's work\n" and own.read_bytes() == before and link.is_symlink()
        with monkeypatch.context() as patch:  # somebody puts it there during the work
            patch.setattr(report, "refuse_existing", lambda path: None)
            assert ask(capsys, *argv, own)[0] == ask(capsys, *argv, link)[0] == 2 and own.read_bytes() == before
    assert not [*tmp_path.glob(".*")] and [*folder.iterdir()] == []


def drawn(monkeypatch, capsys, *argv):
    """The figure that a command writes"""
    figure, kept = pytest.importorskip("matplotlib.figure").Figure, []
    with monkeypatch.context() as patch:
        spy = lambda self, *to, save=figure.savefig, **how: kept.append(self) or save(self, *to, **how)
        patch.setattr(figure, "savefig", spy)
        assert ask(capsys, *argv)[0] == 0
    return kept[0]


def test_what_a_plot_shows(capsys, runs, monkeypatch, tmp_path):
    """Of each length what is best on selection, with its interval; and the curve of every prompt, on selection."""
    monkeypatch.chdir(tmp_path)
    left, right, losses = drawn(monkeypatch, capsys, "plot", *runs, "--out", "x.png").axes
    bars = {box.get_label().removesuffix(", tiny on reviews"): box for box in left.containers}
    assert list(bars) == ["head", "prompt+head"] and left.get_title() == "95 % intervals"
    assert bars["head"].lines[0].get_xydata().tolist() == [[1, 0.55], [5, 0.60]]
    beside = [pytest.approx(1.03), pytest.approx(5.15)]  # so that intervals do not hide one another
    assert bars["prompt+head"].lines[0].get_xydata().tolist() == [[beside[0], pytest.approx(0.72)], [beside[1], 0.80]]
    assert left.get_xscale() == "log" and [text.get_text() for text in left.get_xticklabels()] == ["1", "5"]
    for segment, x, right_ones in zip(bars["prompt+head"].lines[2][0].get_segments(), beside, (288, 320), strict=True):
        assert segment.tolist() == [[x, pytest.approx(end)] for end in interval(right_ones, 400)]
    levels = {line.get_label(): line.get_ydata()[0] for line in left.lines}
    assert levels["majority, tiny on reviews"] == 0.52 and levels["untrained, tiny on reviews"] == pytest.approx(0.5)
    order = [(0.71, 2, "C0"), (0.69, 2, "C0"), (0.75, 2, "C1"), (0.66, 2, "C2"), (0.64, 3, "C2"), (0.65, 2, "C3")]
    for line, (y, chosen, color) in zip(right.lines, order, strict=True):
        assert line.get_xydata().tolist() == [[1, pytest.approx(y - 0.2)], [2, y], [3, pytest.approx(y - 0.1)]]
        assert (line.get_markevery(), line.get_color()) == ([chosen - 1], color) and line.get_marker() in "ox"
    assert [line.get_linestyle() for line in right.lines] == ["-", "-", "--", "-", "-", "--"]
    assert [axes.get_ylabel() for axes in (right, losses)] == ["accuracy on selection", "loss on selection"]
    for line, (_, chosen, color) in zip(losses.lines, order, strict=True):
        assert line.get_ydata().tolist() == [0.6, 0.5, 0.55] and line.get_color() == color
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == ["P = 1, prompt+head", "P = 1, head", "P = 5, prompt+head", "P = 5, head"]

    other = write_run(tmp_path / "other", settings={"model": "gpt2", "data": "sst2"}, g=(5, 0, 0.70, 0.99, 0.4))
    left, first, _, second, _ = drawn(monkeypatch, capsys, "plot", runs[0], other, "--out", "y.png").axes
    assert [box.get_label() for box in left.containers] == ["prompt+head, tiny on reviews", "prompt+head, gpt2 on sst2"]
    assert (first.get_title(), second.get_title()) == ("tiny on reviews", "gpt2 on sst2")
    assert [len(first.lines), len(second.lines)] == [4, 1] and second.lines[0].get_ydata()[1] == 0.99
    assert left.containers[1].lines[0].get_xydata().tolist() == [[pytest.approx(5 * 1.03), 0.70]]
    assert told(capsys, "plot", runs[0], "--out", "z.png") == [{"file": "z.png"}]
    levels = {line.get_label(): line.get_ydata()[0] for line in left.lines}
    assert levels["untrained, tiny on reviews"] == pytest.approx(0.485) and levels["untrained, gpt2 on sst2"] == 0.4


# ---- looking inside ---------------------------------------------------------------------------------


def test_attention_of_words_equals_that_of_transformers(capsys, desk):
    """One eager pass over text and prompt; `output_attentions` shows the last position's row, whose shares words add up."""
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2Model.from_pretrained(desk.model, attn_implementation="eager").eval()
    for text in ("tore ain  seat\nnose", "xxxxxx yyyyyy zzzzzz qqqqqq"):  # the second is longer than the model has places
        ids = desk.tokenizer.encode(text)[: 24 - 3]
        read = desk.tokenizer.decode(ids).split()  # what lies behind is nobody's
        starts = [len(desk.tokenizer.decode(ids[:i])) for i in range(len(ids))]
        words = [min(len(re.findall(r"\S(?=\s)", text[: start + 1])), len(read) - 1) for start in starts] + [len(read)] * 3
        x = torch.cat([model.wte.weight[ids], desk.prompts["a"].vectors])[None]  # (1, T+P, C)
        with torch.no_grad():
            seen = torch.stack(model(inputs_embeds=x, output_attentions=True).attentions)[:, 0, :, -1]  # (L, H, T+P)
        shares = torch.zeros(3, 2, len(read) + 1)  # (L, H, words and the prompt)
        for i, word in enumerate(words):
            shares[:, :, word] += seen[:, :, i]
        (found,) = told(capsys, "attention", desk.a, text, *EXACT)
        assert found["words"] == read == found["text"].split()
        assert (torch.tensor(found["layers"]) - shares).abs().max() < 1e-5
        real = torch.tensor([*found["attention"], found["to_prompt"]])
        assert (real - shares.mean(dim=(0, 1))).abs().max() < 1e-5
        out = ask(capsys, "attention", desk.a, text, *EXACT)[1]
        assert re.split("  +", out.splitlines()[1]) == ["word", "occlusion", "attention"]


def test_occlusion_is_what_the_answer_loses_without_a_word(capsys, desk):
    text = " a tin  , rose\tstain\nit "
    cut = ["tin  , rose\tstain\nit", "a  , rose\tstain\nit", "a tin rose\tstain\nit", "a tin  ,\tstain\nit",
           "a tin  , rose\nit", "a tin  , rose\tstain"]  # fmt: skip
    _, out, _ = ask(capsys, "attention", desk.a, text, *EXACT)
    (found,) = told(capsys, "attention", desk.a, text, *EXACT)
    shares = desk.logits("a", [text.strip(), *cut]).softmax(dim=1)
    label, *others = shares.argmax(dim=1).tolist()
    assert others[-1] != label  # without the last word another label wins
    odds = (shares[:, label] / (1 - shares[:, label])).log()
    assert found.keys() == {"text", "label", "label_name", "log_odds", "words", "occlusion", "attention", "to_prompt", "layers"}
    assert (found["text"], found["label"], found["label_name"]) == (text.strip(), label, NAMES[label])
    assert found["log_odds"] == pytest.approx(odds[0].item(), abs=1e-3)
    assert found["occlusion"] == pytest.approx((odds[0] - odds[1:]).tolist(), abs=1e-3)
    assert min(map(abs, found["occlusion"])) > 0.01
    assert out.startswith(f"{NAMES[label]}, log-odds {found['log_odds']:.2f}; ") and f"log-odds of {NAMES[label]} lost" in out
    assert told(capsys, "attention", desk.a, "fun")[0]["occlusion"] == [None]


def test_the_picture_of_attention(capsys, desk, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (found,) = told(capsys, "attention", desk.a, "great fun")
    panels = drawn(monkeypatch, capsys, "attention", desk.a, "great fun", "--out", "x.svg").axes
    shown = [[bar.get_width() for bar in axes.patches] for axes in panels]
    assert shown == [pytest.approx([*found["occlusion"], 0]), pytest.approx([*found["attention"], found["to_prompt"]])]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["great", "fun", "(the prompt)"]
    assert "log-odds" in panels[0].get_xlabel() and panels[1].get_xlabel() == "attention"
    assert all(axes.yaxis_inverted() for axes in panels)


def test_the_picture_of_a_long_text_wraps(capsys, monkeypatch, tmp_path):
    """Ninety words in three columns, which share their scales; not a strip of ninety rows."""
    monkeypatch.chdir(tmp_path)
    words = [*"abcdefghijklmnopqrstuvwxyz"] * 3 + [*"abcdefghijk"]
    figure = drawn(monkeypatch, capsys, "attention", SHIPPED, " ".join(words), "--out", "x.png")
    left, right = figure.axes[::2], figure.axes[1::2]
    shown = [label.get_text() for axes in left for label in axes.get_yticklabels()]
    assert shown == [*words, "(the prompt)"] and [len(axes.patches) for axes in figure.axes] == [30] * 6
    for panels in (left, right):
        assert len({axes.get_xlim() for axes in panels}) == 1
    width, height = figure.get_size_inches()
    assert 2 < width / height < 4


def test_tokens_beside_each_vector(capsys, either_dtype):
    rows = told(capsys, "tokens", SHIPPED)
    prompt, metadata = load_prompt(SHIPPED / "prompt.safetensors")
    table, tokenizer = load_gpt2(TINY).wte.weight, Tokenizer(TINY / "merges.txt")
    far, near = (1e-4, 1e-5) if either_dtype == torch.float32 else (0.01, 1e-3)  # a rounded table has other distances
    for i, (row, vector) in enumerate(zip(rows, prompt.vectors.detach(), strict=True)):
        cosines = torch.cosine_similarity(vector[None], table)  # (V,)
        values = [value for _, value in row["nearest"]]
        assert values == pytest.approx(cosines.sort(descending=True).values[:5].tolist(), abs=near)
        for name, value in row["nearest"]:
            assert "\ufffd" in name or value == pytest.approx(cosines[tokenizer.encode(name)].item(), abs=near)
        start = metadata["init_ids"][i]
        assert row["began"] == tokenizer.decode([start]) and row["vector"] == i
        assert row["moved"] == pytest.approx((vector - table[start]).square().sum().sqrt().item(), abs=far)
        assert row["norm"] == pytest.approx(vector.square().sum().sqrt().item(), abs=1e-4)
    out = ask(capsys, "tokens", SHIPPED)[1]
    median = table.square().sum(dim=1).sqrt().median().item()
    assert float(re.search(r"median norm of (\d+\.\d\d)", out)[1]) == pytest.approx(median, abs=0.006 + far)


def test_rows_of_the_table_that_are_no_tokens_are_nobodys_neighbour(capsys, desk, tmp_path):
    """Some checkpoints have more rows than the tokenizer has tokens.  And a vector that came from a file began as no token."""
    folder = shutil.copytree(desk.model, tmp_path / "padded")
    lines = (folder / "merges.txt").read_text("utf-8").splitlines(keepends=True)[:-20]
    (folder / "merges.txt").write_text("".join(lines), "utf-8")
    vectors = load_gpt2(folder).wte.weight[[279, 295]].clone()
    path = changed(tmp_path, desk.a, vectors, init_ids=[], **base_of(folder, folder))
    last, odd = told(capsys, "tokens", path, *EXACT)
    assert last["nearest"][0] == ["<|endoftext|>", pytest.approx(1)] and odd["nearest"][0][1] < 0.99
    assert last["began"] is last["moved"] is None
    assert ask(capsys, "tokens", path)[1].splitlines()[1].split()[1:3] == ["-", "-"]


# ---- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("argv,named", [
    (["score"], "RUN"), (["guess", SHIPPED], "guess"), (["predict", SHIPPED, "--colour"], "--colour"),
    (["score", SHIPPED, "more"], "more"), (["score", "nowhere"], "nowhere"), (["score", ROOT], "no finished run"),
    (["predict", SHIPPED, "  "], "text 1 is blank"), (["predict", SHIPPED, "--input", "absent.txt"], "absent.txt"),
    (["predict", SHIPPED, "--input", "x", "text"], "not both"), (["score", SHIPPED, "--split", "test"], "test.tsv"),
    (["score", SHIPPED, "--data", "absent"], "absent"), (["score", SHIPPED, "--model", "absent"], "absent"),
    (["score", SHIPPED, "--device", "warp"], "warp"), (["score", TINY / "model.safetensors"], "model.safetensors"),
    (["score", TINY / "config.json"], "config.json"),
    (["predict", SHIPPED, "a\udce9"], "text 1 is not UTF-8"), (["predict", SHIPPED, "--glue", "x.tsv"], "--input"),
    (["attention", SHIPPED, " "], "blank"), (["predict", SHIPPED, "x", "--text-column", "y"], "--text-column"),
    (["attention", SHIPPED, "x", "--out", "x.doc"], "x.doc"), (["predict", SHIPPED, "x", "--batch-size", "0"], "--batch-size"),
    (["plot", SHIPPED], "--out"), (["plot", SHIPPED, "--out", "x.txt"], ".png"), (["table", "nowhere"], "nowhere"),
    (["score", SHIPPED, "--errors", "-1"], "--errors"),
])  # fmt: skip
def test_one_sentence_and_exit_2(capsys, argv, named):
    code, out, err = ask(capsys, *argv)
    assert code == 2 and named in err and "Traceback" not in err and not out


@pytest.mark.parametrize("name,text", [
    ("summary.json", "{"), ("summary.json", "[]"), ("summary.json", '{"prompts": [{}], "baselines": {}}'),
    ("summary.json", '{"prompts": [], "baselines": {"majority": 0.5, "untrained": 0.5}}'),
])  # fmt: skip
def test_a_damaged_run_is_named(capsys, tmp_path, name, text):
    run = write_run(tmp_path / "run", a=(1, 0, 0.7, 0.7, 0.5))
    (run / name).write_text(text)
    for verb in ("score", "table"):
        code, out, err = ask(capsys, verb, run)
        assert code == 2 and str(run) in err and "damaged" in err and not out


def test_prompts_that_cannot_answer_are_refused(capsys, desk, tmp_path):
    """Of another model, another text rule, or, together, of other labels.  One without its scores is in no table."""
    for change, argv, said in (
        ({"labels": ["0", "1", "2"]}, ["score", desk.a, "--with"], "other labels"), ({"text_rule": "x"}, ["score"], "rule"),
        ({"base_sha256": "0"}, ["score", desk.a, "--with"], "another model"), ({"base_sha256": "0"}, ["score"], "sha256"),
        ({"accuracy": None}, ["table"], "p.safetensors goes without its scores"),
    ):  # fmt: skip
        code, out, err = ask(capsys, *argv, changed(tmp_path, desk.a, **change))
        assert code == 2 and said in err and "p.safetensors" in err and not out
    assert ask(capsys, "predict", tmp_path / "p.safetensors", "x")[0] == 0
    assert "on another model" in ask(capsys, "score", desk.a, "--model", TINY)[2]
    for P, C in ((24, 10), (3, 8)):  # no room for a text, no vectors of this model
        prompt = Prompt(torch.ones(P, C), torch.ones(2, C))
        save_prompt(tmp_path / "p.safetensors", prompt, load_prompt(desk.a)[1] | {"labels": ["0", "1"]})
        code, _, err = ask(capsys, "predict", tmp_path / "p.safetensors", "x")
        assert code == 2 and f"holds {P} vectors of {C} channels" in err
