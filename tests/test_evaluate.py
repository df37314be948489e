"""evaluate.py: the Classifier for Python, score and predict, and the command line."""

import dataclasses
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import evaluate
from data import LONGEST
from desk import (
    EXACT,
    NAMES,
    SHIPPED,
    ask,
    changed,
    number_prompt,
    told,
    write_prompt,
    write_split,
)
from helpers import TINY
from metrics import score, score_of
from model import Prompt
from support import answers
from support.packed import PackedLinear
from support.prompt_file import read_prompt
from support.questions import VERBS
from support.terminal import sentence_of, shown

ROOT = TINY.parent.parent


# ---- what is computed -----------------------------------------------------------------------


@pytest.fixture
def seen():
    """Of every module that gives a tensor: itself, the shape of what it reads, and of what it gives
    the dtype and the graph."""
    found = []

    def look(module, inputs, output):
        if isinstance(output, torch.Tensor):
            found.append((module, tuple(inputs[0].shape), output.dtype, output.requires_grad))

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    yield found
    handle.remove()


LINEAR = (torch.nn.Linear, PackedLinear)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_verb_asks_without_a_graph_and_in_the_dtype_asked_for(capsys, desk, seen, dtype):
    """Or memory would grow with the split, and time where the hardware is slow."""
    flags = ["--dtype", str(dtype).removeprefix("torch.")]
    commands = [["score", desk.run], ["predict", desk.a, "x"], ["attention", desk.a, "x"]]
    for argv in [*commands, ["table", desk.a, desk.b]]:
        seen.clear()
        assert ask(capsys, *argv, *flags)[0] == 0
        assert not any(graph for *_, graph in seen)
        given = {kind for module, _, kind, _ in seen if isinstance(module, LINEAR)}
        assert given == {dtype}


@pytest.mark.parametrize("flags,size", [(["1"], 1), (["7"], 7), ([], 16), (["99"], 50)])
def test_texts_are_read_with_others_of_their_length(capsys, desk, seen, flags, size):
    lengths = sorted(len(desk.tokenizer.encode(text)) for text, _ in desk.data["d", "dev"])
    ask(capsys, "score", desk.a, *(["--batch-size", *flags] if flags else []))
    read = []
    for module, shape, *_ in seen:
        if getattr(module, "num_embeddings", 0) == 300:
            read.append(shape)
    parts = [lengths[i : i + size] for i in range(0, 50, size)]
    assert sorted(read) == sorted((len(part), part[-1]) for part in parts)


def test_long_work_says_where_it_is(capsys, desk, monkeypatch):
    """Without a terminal by a line a minute; here each look at the clock is 25 seconds later."""
    seconds = itertools.count(0, 25)
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    code, _, err = ask(capsys, "score", desk.a, "--batch-size", "1")
    assert code == 0
    assert re.search(r"^\d+ of 50 batches$", err, flags=re.MULTILINE)


# ---- score ----------------------------------------------------------------------------------

ASKED = [  # command, data set and split, the prompts that answer
    (["run"], "d", "dev", "b"),
    (["run", "--all"], "d", "dev", "bca"),
    (["a", "--split", "other"], "d", "other", "a"),
    (["a", "--data", "e", "--with", "c"], "e", "dev", "ac"),
    (["a", "--with", "c", "a", "run"], "d", "dev", "acb"),
]


def on_desk(desk, words):
    """Words of a command, in which names of the desk are its paths."""
    return [getattr(desk, word) if hasattr(desk, word) else word for word in words]


@pytest.mark.parametrize("words,data,split,names", ASKED)
def test_score_equals_that_of_logits_read_one_by_one(capsys, desk, words, data, split, names):
    """Whichever prompts answer, alone or together, and whatever is answered."""
    texts, labels = zip(*desk.data[data, split], strict=True)
    labels = torch.tensor(labels)
    truth = vars(score_of(desk.logits(names, texts), labels))
    assert len({*truth["precision"], *truth["recall"], truth["accuracy"]}) >= 6
    (result,) = told(capsys, "score", *on_desk(desk, words), *EXACT)
    each = [score_of(desk.logits(name, texts), labels) for name in names]
    paths = [str(getattr(desk, name)) for name in names]
    for key, value in truth.items():
        wanted = pytest.approx(value, abs=1e-4) if key == "loss" else value
        assert result[key] == wanted, key
    assert result["alone"] == [one.accuracy for one in each]
    assert result["prompt"] == " + ".join(paths)
    assert result["errors"] == []
    examples = []
    for text, label in desk.data[data, split]:
        examples.append((desk.tokenizer.encode(text), label))
    prompts = [desk.prompts[name] for name in names]
    for one, other in zip(score(desk.gpt2, prompts, examples, 7), each, strict=True):
        assert one.confusion == other.confusion


@pytest.mark.parametrize("words,data,split,names", ASKED)
def test_score_tells_a_person_the_same(capsys, desk, words, data, split, names):
    (result,) = told(capsys, "score", *on_desk(desk, words), *EXACT)
    lines = ask(capsys, "score", *on_desk(desk, words), *EXACT)[1].splitlines()
    paths = [str(getattr(desk, name)) for name in names]
    who = paths[0]
    if len(names) > 1:
        for path, alone, line in zip(paths, result["alone"], lines[1:], strict=False):
            assert line.split() == [path, f"{alone:.4f}"]
        lines = lines[len(names) + 1 :]
        who = "together"
    low, high = result["ci95"]
    assert lines[0] == (
        f"{who} on {getattr(desk, data)} {split}: accuracy {result['accuracy']:.4f} of "
        f"{result['n']} texts, 95 % interval {low:.3f} to {high:.3f}, loss {result['loss']:.4f}, "
        f"macro F1 {result['macro_f1']:.4f}, majority baseline {result['majority']:.4f}"
    )
    header = ["label", *[f"answered {name}" for name in NAMES], "precision", "recall"]
    assert re.split("  +", lines[1]) == header
    for i, name in enumerate(NAMES):
        shares = []
        for share in (result["precision"][i], result["recall"][i]):
            shares.append("-" if share is None else f"{share:.4f}")
        cells = [str(count) for count in result["confusion"][i]]
        assert lines[2 + i].split() == [name, *cells, *shares]


def test_the_surest_mistakes(capsys, desk):
    texts, labels = zip(*desk.data["d", "dev"], strict=True)
    sure, chosen = desk.logits("a", texts).softmax(dim=1).max(dim=1)
    wrong = [i for i in range(50) if chosen[i] != labels[i]]
    wrong.sort(key=lambda i: -sure[i])
    worst = []
    for i in wrong:
        one = {"text": texts[i], "label": labels[i], "answer": int(chosen[i])}
        worst.append(one | {"probability": pytest.approx(sure[i].item(), abs=1e-4)})
    assert len(worst) > 10
    errors = told(capsys, "score", desk.a, "--errors", "100", *EXACT)[0]["errors"]
    assert errors == worst  # every one of them, and nothing else
    assert told(capsys, "score", desk.a, "--errors", "3", *EXACT)[0]["errors"] == worst[:3]
    lines = ask(capsys, "score", desk.a, "--errors", "2", *EXACT)[1].splitlines()[-2:]
    for line, one in zip(lines, errors[:2], strict=True):
        answer = f"{one['probability']:.3f} {NAMES[one['answer']]}"
        assert line == f"{answer}, but it is {NAMES[one['label']]}: {shown(one['text'])}"


def test_a_prompt_that_answers_one_thing_is_called_collapsed(capsys, desk, tmp_path):
    file = read_prompt(desk.a)
    file.prompt.head.data[:] = file.prompt.head.data[0]  # a tie: always label 0
    path = write_prompt(tmp_path / "p.safetensors", file)
    (result,) = told(capsys, "score", path)
    zeros = sum(label == 0 for _, label in desk.data["d", "dev"]) / 50
    assert result["collapsed"]
    assert result["accuracy"] == zeros != result["majority"]
    assert result["precision"][1:] == [None, None]
    assert result["recall"] == [1.0, 0.0, 0.0]
    alarm = f"{zeros:.4f} is the share of 'bad': this model answers 'bad' for everything"
    assert result["alarm"] == alarm
    assert ask(capsys, "score", path)[1].splitlines()[-1] == f"warning: {alarm}"


# ---- predict --------------------------------------------------------------------------------


def test_run_prompt_folder_and_file_name_a_prompt(capsys, desk):
    def answer(*argv):
        return told(capsys, "predict", *argv, *EXACT, "a tin nose")[0]["logits"]

    best = answer(desk.b)  # by the selection split, never by dev
    assert best != answer(desk.a) != answer(desk.c) != best
    assert answer(desk.run) == answer(desk.b.parent) == answer(desk.b) == best


def test_a_flag_names_a_model_that_moved(capsys, desk, tmp_path):
    base = dataclasses.replace(read_prompt(desk.a).base, base_model=str(tmp_path / "nowhere"))
    moved = changed(tmp_path, desk.a, base=base)
    assert ask(capsys, "predict", moved, "a text")[0] == 2
    argv = ["a text", *EXACT]
    found = told(capsys, "predict", moved, "--model", desk.model, *argv)
    assert found == told(capsys, "predict", desk.a, *argv)


@pytest.mark.parametrize(
    "words,names",
    [
        (["a"], "a"),
        (["run"], "b"),
        (["run", "--all"], "abc"),
        (["a", "--with", "b", "c"], "abc"),
        (["a", "--with", "c"], "ac"),
        (["a", "--with", "a"], "a"),
    ],
)
def test_predict_answers_by_the_mean_logits_of_the_prompts(capsys, desk, words, names):
    texts = ["tin nose", "a rose is  a stone", "orient", "stain\tits rain"]
    truth = desk.logits(names, texts)
    run, *flags = on_desk(desk, words)
    found = told(capsys, "predict", run, *texts, *flags, *EXACT)
    for text, row, one in zip(texts, truth, found, strict=True):
        label = row.tolist().index(max(row))
        assert list(one) == ["text", "label", "label_name", "logits", "probabilities"]
        assert one["text"] == text
        assert one["logits"] == pytest.approx(row.tolist(), abs=1e-4)
        assert (one["label"], one["label_name"]) == (label, NAMES[label])
        assert one["probabilities"] == pytest.approx(row.softmax(0).tolist(), abs=1e-4)
    plain = ask(capsys, "predict", run, *texts, *flags, *EXACT)[1].splitlines()
    for line, one in zip(plain, found, strict=True):
        share = max(one["probabilities"])
        assert line == f"{one['label_name']}\t{share:.3f}\t{shown(one['text'])}"


def test_a_file_and_standard_input_get_the_answers_of_arguments(capsys, monkeypatch, tmp_path):
    texts = ["great fun", "a mess , from start to finish", "🙂 fine"]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    by_arguments = ask(capsys, "predict", SHIPPED, *texts)
    assert by_arguments[1].count("\n") == 3
    assert ask(capsys, "predict", SHIPPED, "--input", tmp_path / "in.txt") == by_arguments
    stream = io.TextIOWrapper(io.BytesIO("\r\n".join(texts).encode()))
    monkeypatch.setattr(sys, "stdin", stream)
    assert ask(capsys, "predict", SHIPPED) == by_arguments
    assert ask(capsys, "predict", SHIPPED, "--batch-size", "2", *texts) == by_arguments


@pytest.mark.parametrize(
    "words,texts",
    [
        (["--json", "--", "-great"], ["-great"]),
        (["--json", "-great"], ["-great"]),
        (["-hated it", "--json"], ["-hated it"]),
        (["a", "--json", "b", "--", "--json", "-h"], ["a", "b", "--json", "-h"]),
        (["--json", "- a dash", "-5"], ["- a dash", "-5"]),
        (["x", "--with", str(SHIPPED), "--json", "--", "--"], ["x", "--"]),
        (["--json", "--batch-size", "2", "one", "two"], ["one", "two"]),
    ],
)
def test_texts_stand_before_and_behind_flags_and_may_begin_with_a_dash(capsys, words, texts):
    code, out, err = ask(capsys, "predict", SHIPPED, *words)
    assert code == 0, err
    assert [json.loads(line)["text"] for line in out.splitlines()] == texts


def test_the_text_of_attention_may_begin_with_a_dash(capsys, desk):
    found = told(capsys, "attention", desk.a, "--", "-tin rose")
    assert found[0]["words"] == ["-tin", "rose"]


def test_lines_that_cannot_be_answered_keep_their_place(capsys, desk, tmp_path):
    """Across the pieces in which a file is read.  A byte order mark counts in the first line alone;
    a line may have just the limit."""
    texts = [f"tin {i}".encode() for i in range(200)]
    texts[0] = b"\xef\xbb\xbfrose"
    texts[1] = b""
    texts[3] = texts[64] = b"\xef\xbb\xbfrose"
    texts[9] = b"caf\xe9 noir"
    texts[70] = b"a\tmess"
    texts[99] = b" " * 9
    texts[140] = b" " * (LONGEST - 4) + b"rose"
    texts[150] = b"x" * (LONGEST + 1)
    (tmp_path / "in.txt").write_bytes(b"\n".join(texts))
    argv = ["predict", desk.a, "--batch-size", "1", "--input", tmp_path / "in.txt", *EXACT]
    code, out, err = ask(capsys, *argv, "--json")
    limit = f"is too long: the text has {LONGEST + 1} characters; cut it, {LONGEST} are the limit"
    said = {2: "is blank", 10: "is not UTF-8", 100: "is blank", 151: limit}
    assert code == 0
    assert err == "".join(f"line {number} {problem}\n" for number, problem in said.items())
    plain = [line.split("\t") for line in ask(capsys, *argv)[1].split("\n")[:-1]]
    read = {1: "rose", 10: "", 100: "", 141: "rose", 151: ""}
    rows = zip(out.splitlines(), plain, texts, strict=True)
    for number, (line, cells, text) in enumerate(rows, 1):
        found = json.loads(line)
        assert found["text"] == (read[number] if number in read else text.decode())
        assert cells[2:] == [shown(found["text"])]
        assert found.get("error") == said.get(number)
        if number in said:
            known = [found[key] for key in ("label", "label_name", "logits", "probabilities")]
            assert known == [None] * 4
            assert cells[:2] == ["-", "-"]
        else:
            truth = desk.logits("a", [found["text"]])[0].tolist()
            assert found["logits"] == pytest.approx(truth, abs=1e-4)
            assert cells[0] == found["label_name"]


def test_a_text_is_cut_to_the_room_that_the_longest_prompt_leaves(capsys, desk, tmp_path):
    """Which is told of those alone that are longer."""
    exact = "qzqzqzqzq qzqzqzqzqqq"
    longer = "qzqzqzqzq qzqzqzqzq qzqzqzqzq"
    assert len(desk.tokenizer.encode(exact)) == 24 - 3
    assert len(desk.tokenizer.encode(longer)) > 24
    code, out, err = ask(capsys, "predict", desk.a, exact, longer, "a", "--json", *EXACT)
    assert code == 0
    assert "1 of 3 texts are cut to 21 tokens (24 positions - 3 of the prompt)\n" in err
    assert ask(capsys, "predict", desk.a, exact)[2] == ""
    found = [json.loads(line)["logits"] for line in out.splitlines()]
    cut = desk.tokenizer.decode(desk.tokenizer.encode(longer)[:21])
    assert found[1] == pytest.approx(desk.logits("a", [cut])[0].tolist(), abs=1e-4)
    write_split(tmp_path, "dev", [(exact, 0), (longer, 0), ("a", 0)])
    commands = [["predict", desk.a, exact, longer, "a"], ["score", desk.a, "--data", tmp_path]]
    for argv in commands:
        err = ask(capsys, *argv, "--with", desk.c, desk.b)[2]
        assert "2 of 3 texts are cut to 19 tokens (24 positions - 5 of the prompt)\n" in err


def test_a_pipe_that_trickles_is_answered_as_it_goes_and_a_broken_one_ends_quietly():
    command = [sys.executable, str(ROOT / "evaluate.py"), "predict", str(SHIPPED)]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, cwd=ROOT, env=env, **pipes) as program:
        timer = threading.Timer(100, program.kill)  # or a test that fails would wait for ever
        timer.start()
        for text in (b"great fun", b"a mess"):
            program.stdin.write(text + b"\n")
            program.stdin.flush()
            assert program.stdout.readline().endswith(text + b"\n")  # the pipe stays open
        program.stdout.close()
        program.stdin.write(b"nobody reads the answer\n")
        program.stdin.flush()
        assert program.wait() == 141
        assert program.stderr.read() == b""
        timer.cancel()


@pytest.mark.parametrize(
    "error,code,said",
    [
        (KeyboardInterrupt(), 130, "stopped\n"),
        (torch.OutOfMemoryError("x"), 2, "error: .* --batch-size.*\n"),
        (OSError(28, "No space left", "a\x1b[31m\nb"), 2, r"error: a\\x1b\[31m b: No space left\n"),
    ],
)
def test_what_ends_a_program(capsys, desk, monkeypatch, error, code, said):
    def read1(_):
        raise error

    stream = SimpleNamespace(buffer=SimpleNamespace(read1=read1))
    monkeypatch.setattr(sys, "stdin", stream)
    stopped, out, err = ask(capsys, "predict", desk.a)
    assert (stopped, out) == (code, "")
    assert re.fullmatch(said, err)


# ---- numbers --------------------------------------------------------------------------------


def test_a_regression_answers_with_its_number(capsys, desk, tmp_path):
    path = number_prompt(desk, tmp_path)
    texts = ["tin nose", "a rose is  a stone"]
    found = told(capsys, "predict", path, *texts, *EXACT)
    for one in found:
        assert one["logits"] == [one["label"]]
        assert one["label_name"] is one["probabilities"] is None
    assert found[0]["label"] != found[1]["label"]
    lines = ask(capsys, "predict", path, *texts, *EXACT)[1].splitlines()
    assert lines == [f"{one['label']:.3f}\t{one['text']}" for one in found]
    assert evaluate.load(path, dtype="float32").predict(texts) == found
    (tmp_path / "in.txt").write_text("\n".join(["", *texts]))
    lines = ask(capsys, "predict", path, "--input", tmp_path / "in.txt", *EXACT)[1].splitlines()
    assert lines == ["-\t", *[f"{one['label']:.3f}\t{one['text']}" for one in found]]


def test_a_regression_is_scored_by_error_and_correlation(capsys, desk, tmp_path):
    path = number_prompt(desk, tmp_path)
    rows = [(text, label * 1.5) for text, label in desk.data["d", "dev"]]
    write_split(tmp_path / "n", "dev", rows)
    texts = [text for text, _ in rows]
    found = told(capsys, "predict", path, *EXACT, *texts)
    argv = ["score", path, "--data", tmp_path / "n", "--errors", "2", *EXACT]
    (result,) = told(capsys, *argv)
    pairs = zip(found, rows, strict=True)
    errors = [(one["label"] - label) ** 2 for one, (_, label) in pairs]
    assert result["loss"] == pytest.approx(sum(errors) / 50, rel=1e-4)
    assert result["accuracy"] is result["confusion"] is None
    assert -1 <= result["pearson"] <= 1
    worst = max(range(50), key=lambda i: errors[i])
    assert result["errors"][0]["text"] == texts[worst]
    lines = ask(capsys, *argv)[1].splitlines()
    assert f"squared error {result['loss']:.4f} (the best constant" in lines[0]
    assert f"Pearson {result['pearson']:.4f}, Spearman {result['spearman']:.4f}" in lines[0]
    assert lines[1].startswith(f"{found[worst]['label']:.3f}, but it is {rows[worst][1]:g}: ")


def test_labels_0_and_1_of_one_column_are_scored_by_a_threshold(capsys, desk, tmp_path):
    path = number_prompt(desk, tmp_path)
    rows = [(text, min(label, 1)) for text, label in desk.data["d", "dev"]]
    write_split(tmp_path / "n", "dev", rows)
    (result,) = told(capsys, "score", path, "--data", tmp_path / "n", *EXACT)
    found = told(capsys, "predict", path, *EXACT, *[text for text, _ in rows])
    pairs = zip(found, rows, strict=True)
    right = sum((one["label"] > 0.5) == label for one, (_, label) in pairs)
    assert result["accuracy"] == right / 50
    assert "one column" in result["alarm"]


# ---- from Python ----------------------------------------------------------------------------


def test_python_gets_the_objects_that_predict_prints(capsys, desk):
    """The very numbers, so that a program may ask in either way."""
    texts = ["tin nose", " a rose\tis\na stone ", "caf\u00e9 \x1b[31m"]
    for run, flags, more in (
        (desk.run, EXACT, {"dtype": "float32"}),
        (desk.a.parent, [], {}),
        (str(desk.c), [], {"device": "cpu"}),
        (desk.c, [], {"device": torch.device("cpu")}),
        (SHIPPED, ["--model", TINY, "--batch-size", "1"], {"model": TINY, "batch_size": 1}),
    ):
        found = told(capsys, "predict", run, *texts, *flags)
        assert evaluate.load(run, **more).predict(texts) == found


def test_an_ensemble_from_python(capsys, desk):
    texts = ["tin nose", "a rose"]
    files = [read_prompt(path) for path in (desk.b, desk.c, desk.a)]
    together = evaluate.Classifier(files, dtype="float32")
    found = told(capsys, "predict", desk.run, "--all", *texts, *EXACT)
    assert together.predict(texts) == found
    assert together.labels == NAMES
    assert together.predict([]) == []


def test_python_and_the_command_line_refuse_in_the_same_words(capsys, desk, tmp_path):
    ruled = changed(tmp_path, desk.a, text_rule="x")
    for run, texts, more, flags in (
        (tmp_path / "nowhere", ["x"], {}, []),
        (ruled, ["x"], {}, []),
        (desk.a, ["x"], {"model": "absent"}, ["--model", "absent"]),
        (desk.a, ["x"], {"model": TINY}, ["--model", TINY]),
        (desk.a, ["x", " \n"], {}, []),
        (desk.a, ["a\udce9"], {}, []),
        (desk.a, ["x" * (LONGEST + 1)], {}, []),
        (desk.a, ["x"], {"device": "warp"}, ["--device", "warp"]),
    ):
        with pytest.raises((OSError, ValueError)) as refusal:
            evaluate.load(run, **more).predict(texts)
        told_error = f"error: {sentence_of(refusal.value)}\n"
        assert ask(capsys, "predict", run, *flags, *texts) == (2, "", told_error)


def test_any_list_of_texts_is_answered(desk):
    classifier = evaluate.load(desk.a, dtype="float32")
    assert classifier.predict(text for text in ["tin"]) == classifier.predict(("tin",))


@pytest.mark.parametrize(
    "texts,named",
    [
        ("great", "not 'great': put it in [ ]"),
        (b"great", "not b'great'"),
        (None, "not None"),
        (3, "not 3"),
        ({"a": 1}, "not {'a': 1}"),
        ([b"great"], "text 1 is no text but b'great'"),
        (["x", None], "text 2 is no text but None"),
        (["x", "y", 1], "text 3 is no text but 1"),
        ([["a"]], "text 1"),
        (["x", ""], "text 2 is blank"),
    ],
)
def test_what_is_no_text_is_named_by_its_place(desk, texts, named):
    classifier = evaluate.load(desk.a, dtype="float32")
    with pytest.raises(ValueError, match=re.escape(named)):
        classifier.predict(texts)


@pytest.mark.parametrize(
    "name,value",
    [
        ("batch_size", 1.5),
        ("batch_size", -1),
        ("batch_size", 0),
        ("batch_size", True),
        ("batch_size", "16"),
        ("batch_size", 2**31),
        ("dtype", "foo"),
        ("dtype", torch.float32),
        ("dtype", "int64"),
        ("dtype", None),
        ("device", "foo"),
        ("device", "meta"),
        ("device", 1.5),
        ("model", 3),
        ("model", b"m"),
        ("run", 3),
        ("run", None),
        ("run", b"run"),
    ],
)
def test_what_load_cannot_take_is_named(desk, name, value):
    with pytest.raises(ValueError, match=name):
        evaluate.load(**{"run": desk.a} | {name: value})


def test_no_answer_of_logits_that_are_not_finite(capsys, desk, tmp_path):
    file = read_prompt(desk.a)
    file.prompt.head.data[:] = 3e38  # finite, but no product with it is
    path = write_prompt(tmp_path / "p.safetensors", file)
    found = told(capsys, "predict", path, "tin nose")[0]
    assert found["label"] is found["label_name"] is found["logits"] is None
    assert "not finite" in found["error"]
    out = ask(capsys, "predict", path, "tin nose")[1]
    assert out == "-\t-\ttin nose\n"
    result = told(capsys, "score", path)[0]
    assert result["broken"]
    assert result["loss"] is None
    out = ask(capsys, "score", path)[1]
    assert "loss not finite" in out
    assert "warning: 50 of 50 texts have no answer" in out
    code, out, err = ask(capsys, "attention", path, "tin nose")
    assert code == 2
    assert "not finite" in err


# ---- the command line -----------------------------------------------------------------------

REFUSED = [
    (["score"], "RUN"),
    (["guess", SHIPPED], "guess"),
    (["predict", SHIPPED, "--colour"], "--colour"),
    (["predict", SHIPPED, "x", "--js"], "--js"),
    (["score", SHIPPED, "more"], "more"),
    (["score", "nowhere"], "nowhere"),
    (["score", ROOT], "no finished run"),
    (["predict", SHIPPED, "  "], "text 1 is blank"),
    (["predict", SHIPPED, "--input", "absent.txt"], "absent.txt"),
    (["predict", SHIPPED, "--input", "x", "text"], "not both"),
    (["score", SHIPPED, "--split", "test"], "test"),
    (["score", SHIPPED, "--data", "absent"], "absent"),
    (["score", SHIPPED, "--model", "absent"], "absent"),
    (["score", SHIPPED, "--device", "warp"], "warp"),
    (["score", TINY / "model.safetensors"], "model.safetensors"),
    (["score", TINY / "config.json"], "config.json"),
    (["predict", SHIPPED, "a\udce9"], "text 1 is not UTF-8"),
    (["predict", SHIPPED, "--glue", "x.tsv"], "--input"),
    (["attention", SHIPPED, " "], "blank"),
    (["predict", SHIPPED, "x", "--text-column", "y"], "--text-column"),
    (["attention", SHIPPED, "x", "--out", "x.doc"], "x.doc"),
    (["predict", SHIPPED, "x", "--batch-size", "0"], "--batch-size"),
    (["tokens", SHIPPED, "--batch-size", "2"], "--batch-size"),
    (["plot", SHIPPED], "--out"),
    (["plot", SHIPPED, "--out", "x.txt"], ".png"),
    (["table", "nowhere"], "nowhere"),
    (["predict", SHIPPED, "--input", "x.txt", "--out", "x.csv"], "need a table as --input"),
    (["predict", SHIPPED, "--input", "x.txt", "--glue", "x.tsv"], "need a table as --input"),
    (["predict", SHIPPED, "a" + " " * 10**6 + "b"], "text 1 is too long"),
    (["score", SHIPPED, "--errors", "-1"], "--errors"),
    (["score", SHIPPED, "--errors", "1.5"], "--errors"),
    (["predict", SHIPPED, "--input", "t.csv", "--out", "a.csv", "--glue", "b.tsv"], "--glue"),
]


@pytest.mark.parametrize("argv,named", REFUSED)
def test_one_sentence_and_exit_2(capsys, argv, named):
    code, out, err = ask(capsys, *argv)
    assert code == 2
    assert named in err
    assert err.count("\n") == 1
    assert not out


def test_a_file_that_is_not_there_is_told_before_the_model_is_read(capsys, desk, monkeypatch):
    monkeypatch.setattr(evaluate, "open_checkpoint", lambda *how: pytest.fail("was opened"))
    for flags in (["--input", "absent.txt"], ["--input", "absent.csv"]):
        assert ask(capsys, "predict", desk.a, *flags)[0] == 2


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches(capsys, verb):
    for flag in ("--help", "-h"):
        code, out, _ = ask(capsys, verb, flag)
        assert code == 0
        assert f"as in: python evaluate.py {verb} " in out
        assert "[]" not in out
        assert "None" not in out


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_of_a_verb_is_understood(verb):
    import shlex

    from support.questions import asked

    found, options = asked("", shlex.split(VERBS[verb][1]))
    assert found == verb
    assert any(options.values())


AS_A_PROGRAM = """
import runpy, sys
prompt = sys.argv[1]
sys.argv = ["evaluate.py", "predict", prompt, "great fun"]
runpy.run_path("evaluate.py", run_name="__main__")
print("twice" if "evaluate" in sys.modules else "once")
import evaluate
evaluate.main(["predict", prompt, "a mess"])
"""


def test_it_runs_without_docstrings_and_as_one_module():
    """As a program, which does not load itself once more, and imported by another."""
    words = [sys.executable, "-c", AS_A_PROGRAM, str(SHIPPED)]
    env = os.environ | {"PYTHONOPTIMIZE": "2"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, modules, second = done.stdout.splitlines()
    assert first.endswith("great fun")
    assert modules == "once"
    assert second.endswith("a mess")


@pytest.mark.parametrize(
    "name,text",
    [
        ("summary.json", "{"),
        ("summary.json", "[]"),
        ("summary.json", '{"prompts": [{}], "baselines": {}}'),
    ],
)
def test_a_damaged_run_is_named(capsys, runs, name, text):
    (runs[0] / name).write_text(text)
    for verb in ("score", "table"):
        code, out, err = ask(capsys, verb, runs[0])
        assert code == 2
        assert str(runs[0]) in err
        assert not out


def test_prompts_that_cannot_answer_are_refused(capsys, desk, tmp_path):
    """Of another model, another text rule, or, together, of other labels."""
    for change, argv, said in (
        ({"labels": ["0", "1", "2"]}, ["score", desk.a, "--with"], "other labels"),
        ({"text_rule": "x"}, ["score"], "rule"),
        ({"base": desk.stranger}, ["score", desk.a, "--with"], "another model"),
        ({"base": desk.stranger}, ["score", "--model", desk.model], "another model"),
    ):
        code, out, err = ask(capsys, *argv, changed(tmp_path, desk.a, **change))
        assert code == 2
        assert said in err
        assert "p.safetensors" in err
        assert not out
    assert "do not fit" in ask(capsys, "score", desk.a, "--model", TINY)[2]


@pytest.mark.parametrize("P,C", [(24, 10), (3, 8)])
def test_a_prompt_without_room_or_of_other_vectors_is_refused(capsys, desk, tmp_path, P, C):
    prompt = Prompt(torch.ones(P, C), torch.ones(2, C))
    more = {"prompt": prompt, "labels": ["0", "1"], "init_ids": []}
    path = changed(tmp_path, desk.a, **more)
    code, _, err = ask(capsys, "predict", path, "x")
    assert code == 2
    assert f"holds {P} vectors of {C} channels" in err


def test_a_prompt_that_does_not_say_its_data_asks_for_it(capsys, desk, tmp_path):
    lost = changed(tmp_path, desk.a, recipe={"data": None})
    code, _, err = ask(capsys, "score", lost)
    assert code == 2
    assert "--data" in err
    assert ask(capsys, "score", lost, "--data", desk.e)[0] == 0


def test_nothing_that_was_read_speaks_to_the_terminal(capsys, desk, monkeypatch, tmp_path):
    """Texts, file names and metadata stand on one line each, with control characters escaped."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    odd = "tin\x1b[31m\u202enose\x9b2Jx"
    home = tmp_path / "e\x1b]0;x\x07"
    home.mkdir()
    rows = "".join(f"{odd} {i}\t{i % 3}\n" for i in range(9))
    (home / "dev.tsv").write_text("sentence\tlabel\n" + rows, "utf-8")
    (home / "test.tsv").write_text(f"index\tsentence\n7\t{odd}\n", "utf-8")
    path = shutil.copy(changed(tmp_path, desk.a), home)
    out = home / "x.tsv"
    test = home / "test.tsv"
    for argv, seen in (
        (["predict", path, odd, "a\nb"], [odd, "a\nb"]),
        (["score", path, "--data", home, "--errors", "3"], [home, odd]),
        (["score", path, "--with", desk.b, "--data", home], [home]),
        (["attention", path, f"a {odd} b"], [odd]),
        (["table", path, desk.b, "--data", home], []),
        (["predict", path, "--input", test, "--glue", out], [out]),
        (["tokens", path], []),
    ):
        code, said, err = ask(capsys, *argv)
        assert code == 0, err
        assert all(c.isprintable() or c in "\t\n" for c in said + err), argv
        assert all(shown(one) in said for one in seen)


def test_joined_letters_are_letters(capsys, desk):
    for text in ("می\u200cخواهم", "great 👩\u200d💻 film"):
        assert text in ask(capsys, "predict", desk.a, text)[1]


# ---- many labels ----------------------------------------------------------------------------


def test_many_labels_are_told_by_their_ends(capsys, desk, tmp_path):
    generator = torch.Generator().manual_seed(7)
    file = read_prompt(desk.a)
    prompt = Prompt(file.prompt.vectors, torch.randn(40, 10, generator=generator))
    names = [f"kind{i}" for i in range(40)]
    path = changed(tmp_path, desk.a, prompt=prompt, labels=names)
    draw = random.Random(1)
    rows = [(text, names[draw.randrange(40)]) for text, _ in desk.data["d", "dev"] * 4]
    write_split(tmp_path / "k", "dev", rows)
    (result,) = told(capsys, "score", path, "--data", tmp_path / "k")
    assert len(result["confusion"]) == 40
    out = ask(capsys, "score", path, "--data", tmp_path / "k")[1]
    assert max(map(len, out.splitlines()[1:])) < 100
    lines = out.splitlines()
    there = [share for share in result["recall"] if share is not None]
    assert lines[1] == f"{len(there)} labels by recall, 20 of them shown:"
    shares = [float(line.split()[-1]) for line in lines[3:23]]
    assert shares == [round(share, 4) for share in sorted(there, reverse=True)[:10]] + [
        round(share, 4) for share in sorted(there)[:10][::-1]
    ]
    start = lines.index("the commonest mistakes:")
    counts = [int(line.split()[0]) for line in lines[start + 2 : start + 12]]
    cells = []
    for i, row in enumerate(result["confusion"]):
        cells += [count for j, count in enumerate(row) if i != j]
    assert counts == sorted(cells, reverse=True)[:10]


# ---- tables of texts ------------------------------------------------------------------------


def test_a_table_is_answered_by_the_column_of_the_training(capsys, desk, tmp_path):
    """As score does; a flag names another one."""
    file = changed(tmp_path, desk.a, recipe={"text_column": "review"})
    (tmp_path / "in.csv").write_text("text,review\ntin,rose\nnose,stone\n")
    argv = ["predict", file, "--input", tmp_path / "in.csv"]
    assert [one["text"] for one in told(capsys, *argv)] == ["rose", "stone"]
    found = told(capsys, *argv, "--text-column", "text")
    assert [one["text"] for one in found] == ["tin", "nose"]


def test_a_missing_column_is_told_before_the_model_is_read(capsys, desk, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "open_checkpoint", lambda *how: pytest.fail("was opened"))
    (tmp_path / "in.csv").write_text("id,review\n1,rose\n")
    argv = ["predict", desk.a, "--input", tmp_path / "in.csv"]
    for flags in ([], ["--text-column", "reveiw"], ["--out", tmp_path / "o.csv"]):
        code, out, err = ask(capsys, *argv, *flags)
        assert code == 2
        assert "review" in err
        assert not out
    assert not [*tmp_path.glob("*o.csv*")]


def test_rows_that_cannot_be_answered_keep_their_place(capsys, desk, tmp_path):
    texts = ["tin", " ", "nose", "caf\udce9"]
    rows = "".join(json.dumps({"text": text, "n": i}) + "\n" for i, text in enumerate(texts))
    (tmp_path / "in.jsonl").write_text(rows + '{"n": 4}\n')
    argv = ["predict", desk.a, "--input", tmp_path / "in.jsonl", *EXACT]
    code, out, err = ask(capsys, *argv, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [one["label"] is None for one in found] == [False, True, False, True, True]
    assert [line.split()[:2] for line in err.splitlines()] == [
        ["row", "2"],
        ["row", "4"],
        ["row", "5"],
    ]
    (by_itself,) = told(capsys, "predict", desk.a, "nose", *EXACT)
    assert found[2]["logits"] == pytest.approx(by_itself["logits"], abs=1e-5)


def test_an_interrupted_table_says_that_nothing_was_written(capsys, desk, monkeypatch, tmp_path):
    def stop(*how):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "logits_of", stop)
    (tmp_path / "in.csv").write_text("text\ntin\n")
    out = tmp_path / "o.csv"
    code, _, err = ask(capsys, "predict", desk.a, "--input", tmp_path / "in.csv", "--out", out)
    assert code == 130
    assert err == f"stopped; nothing was written to {out}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_answers_are_whatever_python_calls_them():
    answer = answers.Answer("x", error="is blank")
    assert answer.as_dict()["error"] == "is blank"
    assert "error" not in answers.Answer("x", 1, "good", [0.0, 1.0], [0.3, 0.7]).as_dict()


def test_bundled_numbers_have_not_changed(capsys):
    """Those of README: what was computed before is computed still, to the printed digit."""
    line = ask(capsys, "score", SHIPPED, *EXACT)[1].splitlines()[0]
    assert "accuracy 0.78" in line or "accuracy 0.79" in line
    found = told(capsys, "predict", SHIPPED, "great fun", *EXACT)[0]
    assert found["probabilities"][1] == pytest.approx(0.9711, abs=5e-4)
    assert math.isclose(sum(found["probabilities"]), 1, abs_tol=1e-6)
    assert Path(SHIPPED).name == "reviews-p10"
