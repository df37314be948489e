"""Whole programs: train.py and evaluate.py, one after the other, as a person uses them."""

import contextlib
import csv
import functools
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
import train
from helpers import ROOT, ask, copy_tree, entries, rewrite
from hostile import ODD_BYTES, assembled, mutate, parts
from run_helpers import SHORT, end, prompt_path, read_json, refused
from servers import hub, redirect, serve
from support.prompt_file import prompt_bytes, read_prompt

EXACT = ["--dtype", "float32"]  # as the runs of these tests are trained
PROMPT = prompt_path("p2-s0")
VERBS = {  # of which each reads the model
    "score": [],
    "predict": ["a film"],
    "attention": ["a film"],
    "tokens": [],
}
LINES = re.compile(r"[\n\t -~\u00a1-\u1fff\u2030-\ud7ff\ufffd]*")  # what speaks to no terminal


@pytest.fixture(scope="module")
def home(tmp_path_factory, checkpoint):
    """A model m, data d, t.tsv for GLUE's server, and a finished run of two prompts."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(checkpoint[0], "m")
        for split, count in (("train", 40), ("dev", 8)):
            rows = [(f"{('dull', 'fine')[i % 2]} {split[0]}{i}", i % 2) for i in range(count)]
            write(f"d/{split}.tsv", rows, ("sentence", "label"))
        write("t.tsv", [(0, "fine film"), (1, "dull")], ("index", "sentence"))
        assert end(*SHORT, "--seeds", 0, 1, "--out", "run") == 0
    return folder


@pytest.fixture
def here(tmp_path, home, monkeypatch):
    """A working folder with a copy of all of that"""
    copy_tree(home, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, rows, columns=("text", "label")):
    """A table, as .csv or .tsv"""
    path = Path(path)
    path.parent.mkdir(exist_ok=True)
    dialect = "excel" if path.suffix == ".csv" else "excel-tab"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, dialect, lineterminator="\n").writerows([columns, *rows])


def told(capsys, *argv):
    """evaluate.py with --json -> the objects that it prints, in which no number is NaN"""
    code, out, err = ask(capsys, evaluate, *argv, "--json")
    assert code == 0, err
    return [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]


def no_answer(capsys, *argv, naming=""):
    """evaluate.py ends in exit code 2 and one printable sentence, and answers nothing"""
    code, out, err = ask(capsys, evaluate, *argv)
    assert code == 2, (argv, out)
    assert re.fullmatch("error: .{9,1000}\n", err), (argv, err)
    assert err[:-1].isprintable(), (argv, err)
    assert naming in err, (argv, err)
    assert not out


# ---- data as people have it -----------------------------------------------------------------

NAMED = {  # names of labels as they first come in train, and as they are numbered
    "a sentiment": (["positive", "negative"], ["negative", "positive"]),
    "two others": (["spam", "ham"], ["spam", "ham"]),
    "three, with a space": (["so so", "bad", "good"], ["so so", "bad", "good"]),
}
WORDS = ["dull", "fine", "cold"]


def rows_of(names, count, letter):
    """Rows whose labels come one after the other, as their first words do"""
    rows = []
    for i in range(count):
        number = i % len(names)
        rows.append((f"{WORDS[number]} {letter}{i}", names[number]))
    return rows


def write_own(names, columns=("text", "label")):
    """A data set `own`, with names for its labels -> the rows of its dev"""
    dev = rows_of(names, 12, "v")
    write("own/train.csv", rows_of(names, 60, "t"), columns)
    write("own/dev.csv", dev, columns)
    return dev


@pytest.mark.parametrize("kind", NAMED)
def test_names_of_labels_go_from_train_through_every_verb(place, capsys, kind):
    names, stored = NAMED[kind]
    dev = write_own(names)
    code, _, err = ask(capsys, train, *SHORT, "--data", "own", "--out", "run")
    assert code == 0, err
    facts = read_json("run/run.json")
    assert facts["settings"]["num_labels"] == len(stored)
    assert read_prompt(PROMPT).labels == stored

    # The numbers are those of the names: counted again, from the answers and the file.
    texts = [text for text, _ in dev]
    answers = told(capsys, "predict", "run", *texts, *EXACT)
    truth = [name for _, name in dev]
    right = sum(one["label_name"] == name for one, name in zip(answers, truth, strict=True))
    (score,) = told(capsys, "score", "run", *EXACT)
    (row,) = read_json("run/summary.json")["prompts"]
    assert score["accuracy"] == row["accuracy"] == right / 12
    assert [sum(cells) for cells in score["confusion"]] == [truth.count(name) for name in stored]

    out = ask(capsys, evaluate, "score", "run", *EXACT)[1]
    assert all(name in out for name in stored)
    out = ask(capsys, evaluate, "predict", "run", "x", *EXACT)[1]
    assert out.split("\t")[0] in stored


def test_columns_are_part_of_the_recipe(place, capsys):
    """Score finds them again; of another file they are named anew."""
    columns = ("review", "sentiment")
    write_own(["neg", "pos"], columns)
    os.rename("own/dev.csv", "own/validation.csv")
    flags = ["--text-column", "review", "--label-column", "sentiment"]
    fresh = [*SHORT, "--data", "own", "--out", "run"]
    refused(capsys, *fresh, *flags[:2], naming="--label-column")
    refused(capsys, *fresh, *flags[2:], naming="--text-column")
    assert end(*fresh, *flags) == 0
    assert told(capsys, "score", "run")[0]["n"] == 12

    write("usual/dev.csv", rows_of(["neg", "pos"], 8, "v"))
    no_answer(capsys, "score", "run", "--data", "usual", naming="no column sentiment")
    flags = ["--text-column", "text", "--label-column", "label"]
    assert told(capsys, "score", "run", "--data", "usual", *flags)[0]["n"] == 8


def test_a_prompt_with_names_meets_numbers(place, capsys):
    write_own(["spam", "ham"])
    assert end(*SHORT, "--data", "own", "--out", "run") == 0
    write("numbers/dev.csv", [("dull a", 0), ("fine b", 1)])
    code, _, err = ask(capsys, evaluate, "score", "run", "--data", "numbers")
    assert code == 0
    assert "0 = spam, 1 = ham" in err
    write("other/dev.csv", [("dull a", "eggs")])
    no_answer(capsys, "score", "run", "--data", "other", naming="line 2: label 'eggs'")


def test_a_prompt_whose_numbers_overflow_still_prints_json(here, capsys):
    file = read_prompt(PROMPT)
    file.prompt.head.data.sign_().mul_(3e38)
    Path("big.safetensors").write_bytes(prompt_bytes(file))
    for verb, *more in (["predict", "a film", "b"], ["score", "--errors", 3], ["tokens"]):
        assert told(capsys, verb, "big.safetensors", *more, *EXACT)
    no_answer(capsys, "attention", "big.safetensors", "a film", *EXACT, naming="not finite")


# ---- the model that a prompt belongs to -----------------------------------------------------


def one_bit(data):
    """The least bit of the last number"""
    return data[:-4] + bytes([data[-4] ^ 1]) + data[-3:]


def two_merges(data):
    first, one, two, *rest = data.split(b"\n")
    return b"\n".join([first, two, one, *rest])


def config_with(data, **more):
    return json.dumps(json.loads(data) | more).encode()


OTHERS = {
    "a bit of a weight": ("model.safetensors", one_bit),
    "two merges in another order": ("merges.txt", two_merges),
    "more heads": ("config.json", functools.partial(config_with, n_head=5)),
    "an epsilon": ("config.json", functools.partial(config_with, layer_norm_epsilon=1.00001e-5)),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_model_is_refused_by_every_verb(here, capsys, case):
    name, change = OTHERS[case]
    shutil.copytree("m", "other")
    rewrite(Path("other", name), change)
    for verb, more in VERBS.items():
        no_answer(capsys, verb, "run", *more, "--model", "other", naming="another model")


def test_no_prompt_file_starts_a_download(here, capsys, monkeypatch):
    """But for the official names, which are pinned."""
    asked = []

    def record(*args, **_):
        asked.append(args)
        raise OSError("recorded")

    redirect(monkeypatch, here)
    for library in ("huggingface_hub.snapshot_download", "huggingface_hub.HfApi.model_info"):
        monkeypatch.setattr(library, record)
    monkeypatch.setattr("urllib.request.urlopen", record)
    good = Path(PROMPT).read_bytes()
    for name in ("evil/repo", "openai-community/gpt2", "a/b ", "gpt2"):
        Path("p.safetensors").write_bytes(with_metadata(good, "base_model", name))
        for verb, more in VERBS.items():
            no_answer(capsys, verb, "p.safetensors", *more)
        assert bool(asked) == (name == "gpt2"), (name, asked)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_download_can_be_stopped(place, capsys, monkeypatch, name):
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip("this system has no such signal")
    redirect(monkeypatch, place)

    def stop(*args, **_):
        os.kill(os.getpid(), number)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", stop)
    code, _, err = ask(capsys, train, *SHORT, "--model", "gpt2", "--out", "run")
    assert code == 128 + number
    assert "nothing was written" in err
    assert not os.path.exists("run")


def is_fetched_into(path, names):
    """What shutil.copytree leaves out of a copy of this checkout"""
    wanted = ("support", "report", "reviews")
    return [name for name in names if name not in wanted and not name.endswith((".py", ".tsv"))]


def test_a_program_fetches_what_it_needs_or_ends_in_one_sentence(tmp_path, checkpoint):
    """In a copy of the checkout that has no models"""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=is_fetched_into)
    files = {path.name: path.read_bytes() for path in checkpoint[0].iterdir()}
    environment = os.environ | {"HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}

    def run(name, **more):
        words = [sys.executable, "train.py", "--model", name, "--steps", "1", "--out", name]
        how = {"cwd": copy, "env": environment | more, "capture_output": True, "text": True}
        return subprocess.run(words, check=False, **how)

    with serve(hub("someone/small", {"2" * 40: files}, "2" * 40)) as (address, _):
        done = run("someone/small", HF_ENDPOINT=address)
        failed = run("someone/other", HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "model someone/small: " in done.stdout
    assert failed.returncode == 2
    assert re.fullmatch(r"error: could not fetch someone/other \(.*\n", failed.stderr)
    assert os.listdir(copy / "weights" / "someone") == ["small"]


# ---- odd prompts ----------------------------------------------------------------------------


def with_metadata(data, key, value):
    """A safetensors file in whose metadata a key has another value; None: it is not there."""
    end_of_header = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end_of_header])
    header["__metadata__"].pop(key, None)
    if value is not None:
        header["__metadata__"][key] = value
    return assembled(json.dumps(header).encode(), data[end_of_header:])


class Canvas:
    """What stands for the file of a picture: nothing is drawn, for that takes its time."""

    def savefig(self, file, **how):
        file.write(b"a picture")


@pytest.fixture
def ask_all(capsys, monkeypatch, tmp_path):
    """A function that asks score, table, plot and tokens of a prompt, without a network.

    Each gives an answer, or one sentence.  What is no prompt at all is refused by all alike, so
    there one verb is asked.
    """
    figure = pytest.importorskip("matplotlib.figure").Figure
    monkeypatch.setattr(figure, "savefig", Canvas.savefig)
    redirect(monkeypatch, tmp_path)

    def run(path, about):
        picture = tmp_path / "o.svg"
        picture.unlink(missing_ok=True)
        verbs = [["score"], ["table"], ["plot", "--out", picture], ["tokens"]]
        try:
            read_prompt(path)
        except ValueError:
            verbs = verbs[:1]
        for verb in verbs:
            code, out, err = ask(capsys, evaluate, verb[0], path, *verb[1:])
            assert LINES.fullmatch(out + err), (verb, about, out, err)
            assert code in (0, 2), (verb, about)
            # An answer may come with warnings.
            assert code == 0 or re.fullmatch("error: .{9,1000}\n", err), (verb, about, err)

    return run


KEYS = [
    "accuracy",
    "base_model",
    "base_revision",
    "base_sha256",
    "format",
    "init",
    "init_ids",
    "labels",
    "loss",
    "macro_f1",
    "majority",
    "n",
    "num_labels",
    "position_rule",
    "prompt_tokens",
    "recipe",
    "selected",
    "selected_loss",
    "selected_macro_f1",
    "text_rule",
    "untrained",
    "untrained_loss",
]
TAMPERED = [
    "",
    "null",
    "-1",
    "1e999",
    "[]",
    "{}",
    '["\\u001b[2J", "b"]',
    '"\\ud800"',
    "../x",
    "\x1b[2J",
    "[" * 10**5,
    "9" * 5000,
]


def test_these_are_all_the_words_of_a_prompt(home):
    header, _ = parts(home / PROMPT)
    assert sorted(header["__metadata__"]) == KEYS


@pytest.mark.parametrize("key", KEYS)
def test_a_tampered_word_gets_an_answer_or_a_sentence(home, tmp_path, ask_all, key):
    good = (home / PROMPT).read_bytes()
    path = tmp_path / "p.safetensors"
    for value in TAMPERED:
        path.write_bytes(with_metadata(good, key, value))
        ask_all(path, (key, value[:40]))


@pytest.mark.parametrize("key", ["data", "text_column", "train", "select_on", "lr", "epoch"])
def test_a_tampered_recipe_gets_an_answer_or_a_sentence(home, tmp_path, ask_all, key):
    good = (home / PROMPT).read_bytes()
    header, _ = parts(home / PROMPT)
    recipe = json.loads(header["__metadata__"]["recipe"])
    path = tmp_path / "p.safetensors"
    for value in (None, True, -1, 1e300, "", "\x1b[2J", "../x", [], {}, "x" * 9999):
        text = json.dumps(recipe | {key: value})
        path.write_bytes(with_metadata(good, "recipe", text))
        ask_all(path, (key, value))


WAYS = ["flip", "delete", "double", "insert", "swap", "cut"]


def mutated(draw, text):
    """A text after one to three odd edits of its bytes"""
    edits = []
    for _ in range(draw.randint(1, 3)):
        edits.append((draw.choice(WAYS), draw.random(), draw.random(), draw.choice(ODD_BYTES)))
    return mutate(text.encode(), edits).decode(errors="replace")


@pytest.mark.parametrize("seed", range(6))
def test_a_mutated_or_missing_word_gets_an_answer_or_a_sentence(home, tmp_path, ask_all, seed):
    """A hundred prompts each"""
    draw = random.Random(seed)
    good = (home / PROMPT).read_bytes()
    header, _ = parts(home / PROMPT)
    path = tmp_path / "p.safetensors"
    for _ in range(100):
        key = draw.choice(KEYS)
        value = None
        if draw.random() < 0.8:
            value = mutated(draw, header["__metadata__"][key])
        path.write_bytes(with_metadata(good, key, value))
        ask_all(path, (seed, key, value))


# ---- odd files ------------------------------------------------------------------------------


def cut_in_half(data):
    return data[: len(data) // 2]


def with_more_layers(data):
    return data.replace(b'"n_layer": 3', b'"n_layer": 99')


def deep(data):
    return b"[" * 10**5


def with_a_broken_merge(data):
    return data + b"a b c\n"


def with_bytes_that_are_no_text(data):
    return data + b"\xff\0\n"


def with_a_million_spaces(data):
    return data + b"a" + b" " * 10**6 + b"b\t1\n"


HOSTILE = {  # what is done to which file -> words of the one sentence
    ("m/model.safetensors", one_bit): "trained on another model",
    (str(PROMPT), cut_in_half): "is no whole safetensors file",
    ("m/config.json", with_more_layers): "lacks h.10",
    ("m/config.json", deep): "config.json",
    ("m/merges.txt", with_a_broken_merge): "merges.txt, line",
    ("d/dev.tsv", with_bytes_that_are_no_text): "dev.tsv, line 10",
    ("d/dev.tsv", with_a_million_spaces): "dev.tsv, line 10",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_ends_in_one_sentence(here, capsys, case):
    path, change = case
    rewrite(path, change)
    argv = ["score", PROMPT.parent, "--model", "m", "--data", "d"]
    no_answer(capsys, *argv, naming=HOSTILE[case])


@pytest.mark.parametrize("text", ["a" + " " * 10**6 + "b", "\udcff"])
def test_a_text_that_cannot_be_read_ends_in_one_sentence(here, capsys, text):
    no_answer(capsys, "predict", "run", text, naming="text 1 is")


# ---- what the project did not write stays as it is ------------------------------------------


def put(draw, path, kind, outside):
    """A file of anything, a folder, a link to somewhere or nowhere, a second name, or a FIFO"""
    if kind == "folder":
        path.mkdir()
        (path / "thesis.txt").write_text("mine")
    elif kind == "link":
        path.symlink_to(outside / draw.choice(["a.txt", "nowhere"]))
    elif kind == "hard":
        os.link(outside / "a.txt", path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(draw.choice([b"", b"mine", b"index\tprediction\n0\t1\n"]))


OUTPUTS = ["o.csv", "o.tsv", "o.jsonl", "o.svg"]
KINDS = ["file", "file", "folder", "link", "hard", "fifo"]


def commands_that_write(draw):
    """Each command that writes a file, into `out`"""
    table = draw.choice(["out/o.csv", "out/o.tsv", "out/o.jsonl"])
    return [
        ["predict", "run", "--input", "t.tsv", "--out", table],
        ["predict", "run", "--input", "t.tsv", "--glue", "out/o.tsv"],
        ["plot", "run", "--out", "out/o.svg"],
        ["attention", "run", "a film", "--out", "out/o.svg"],
    ]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such links and FIFOs")
@pytest.mark.parametrize("seed", range(12))
def test_nothing_of_a_user_is_touched_by_an_output(here, capsys, monkeypatch, seed):
    """Whatever lies at its name: a new file is written, or none."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    monkeypatch.setattr(figure, "savefig", Canvas.savefig)
    draw = random.Random(seed)
    outside = here / "outside"
    out = here / "out"
    for folder in (outside, out):
        folder.mkdir()
    (outside / "a.txt").write_text("mine")
    for name in draw.sample(OUTPUTS, 3):
        put(draw, out / name, draw.choice(KINDS), outside)
    others = entries(outside)
    for argv in commands_that_write(draw):
        before = entries(out)
        target = Path(argv[-1]).name
        code, _, err = ask(capsys, evaluate, *argv)
        after = entries(out)
        assert code == (2 if target in before else 0), (argv, err)
        assert target in after
        if target not in before:
            after.pop(target)
        assert after == before, argv
        assert entries(outside) == others, argv


# ---- streams and systems --------------------------------------------------------------------


def open_stream(kind):
    """A stream that is closed, full, or cannot say a character"""
    if kind == "closed":
        return None
    path = "/dev/full" if kind == "full" else "said"
    return open(path, "w", 1, encoding="ascii")


STREAMS = ["closed", "full", "ascii"]
NO_FULL_DISK = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk here is full")


@NO_FULL_DISK
@pytest.mark.parametrize("out", STREAMS)
@pytest.mark.parametrize("err", STREAMS)
def test_predict_ends_well_unless_its_answers_are_lost(here, monkeypatch, out, err):
    """Of the three lines one is blank and one is cut, which is said."""
    Path("t.txt").write_text(f"naïve 日本 film\n\n{'film ' * 40}\n")
    code = 0
    with monkeypatch.context() as patch, contextlib.suppress(OSError):
        patch.setattr("sys.stdout", open_stream(out))
        patch.setattr("sys.stderr", open_stream(err))
        try:
            evaluate.main(["predict", "run", "--input", "t.txt"])
        except SystemExit as stop:
            code = stop.code
    assert code == (2 if out == "full" else 0)
    if out == err == "ascii":
        assert Path("said").read_text().count("\n") == 3


@NO_FULL_DISK
def test_predict_in_a_shell_of_odd_streams(here):
    words = [sys.executable, str(ROOT / "evaluate.py"), "predict", "run", "naïve film"]
    script = '"$@" <&- && "$@" >/dev/full'
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    shell = ["bash", "-c", script, "bash", *words]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "na\\xefve film" in done.stdout
    assert "error: standard output: No space" in done.stderr


def test_no_name_and_no_flag_speaks_to_the_terminal(here, capsys):
    odd = "\x1b[2J\x07\x9b\r\x85"
    os.rename("run", "run" + odd)
    run = "run" + odd
    for argv in (
        ["score", run, "--errors", 9],
        ["score", odd],
        ["score", run, "--" + odd],
        ["table", run, run],
        ["predict", run, odd],
        ["predict", run, "--input", "t.tsv", "--glue", "o" + odd],
        ["attention", run, f"a {odd} film"],
        ["tokens", run, "--model", odd],
        [odd, run],
    ):
        code, out, err = ask(capsys, evaluate, *argv)
        assert code in (0, 2)
        assert out + err
        assert LINES.fullmatch(out + err), (argv, out, err)


def test_what_other_systems_lack_is_not_needed(here, capsys, monkeypatch):
    """Windows has no SIGHUP and no O_NOFOLLOW, macOS no /proc."""
    lacking = [(os, "sysconf"), (os, "O_NOFOLLOW"), (os, "O_NONBLOCK"), (signal, "SIGHUP")]
    for owner, name in lacking:
        monkeypatch.delattr(owner, name, raising=False)
    exists = Path.exists

    def not_in_linux(path, **how):
        return not str(path).startswith(("/proc", "/sys")) and exists(path, **how)

    monkeypatch.setattr(Path, "exists", not_in_linux)
    for verb, more in VERBS.items():
        code, _, err = ask(capsys, evaluate, verb, "run", *more)
        assert code == 0, err
    argv = ["predict", "run", "--input", "t.tsv", "--out", "o.csv"]
    code, _, err = ask(capsys, evaluate, *argv)
    assert code == 0, err
