"""At the edges: users' files, one writer, the right model, whole checkpoints, odd JSON, streams, signals, teams.

Every test tries a class of cases, most of them drawn at random or enumerated, and the same ones in every run.
"""

import contextlib
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import random_weights, sizes, write_checkpoint
from servers import redirect
from test_resume import ROOT, begin, child, end_of, team, wait_for_a_checkpoint
from test_train import BASE, contents, timeless, watch

import evaluate
import train
from model import load_prompt, save_prompt
from support import machine, run
from support.files import damaged, read_tree

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such links, FIFOs, locks and signals")
PROMPT, STEPS = "run/prompts/p2-s0/prompt.safetensors", ["--prompt-tokens", 2, "--steps", 2]
NEW, OTHER = [*BASE, *STEPS, "--out", "new"], [*BASE, *STEPS, "--out", "other"]


def ask(program, *argv, streams=None):
    """Run a program in this process -> (exit code, standard output, standard error); a traceback or a hang fails."""
    out, err = streams or (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(100)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = program.main([*map(str, argv)]) or 0
    except SystemExit as stop:
        code = stop.code
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    for stream in (out, err):
        with contextlib.suppress(OSError, AttributeError):
            stream.flush()
    return code, *(getattr(stream.buffer, "getvalue", bytes)().decode() if stream else "" for stream in (out, err))


def refused(*argv, naming=""):
    """It ends in exit code 2 and one printable sentence."""
    code, out, err = ask(*argv)
    last = err.strip().split("\n")[-1]
    assert code == 2 and last.startswith("error: ") and last.isprintable() and naming in last, (argv, code, err)


def rewritten(path, change):
    Path(path).write_bytes(change(Path(path).read_bytes()))


@pytest.fixture(scope="module")
def home(tmp_path_factory, checkpoint):
    """A model m, data d, t.tsv for GLUE's server and a finished run of two prompts, to be copied from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("home"))
        shutil.copytree(checkpoint[0], "m")
        os.mkdir("d")
        for split, rows in (("train", 40), ("dev", 8)):
            lines = "".join(f"{('dull', 'fine')[i % 2]} {split[0]}{i}\t{i % 2}\n" for i in range(rows))
            Path(f"d/{split}.tsv").write_text("sentence\tlabel\n" + lines)
        Path("t.tsv").write_text("index\tsentence\n0\tfine film\n1\tdull\n")
        assert ask(train, *BASE, *STEPS, "--seeds", 0, 1, "--out", "run")[0] == 0
    return folder


@pytest.fixture
def here(tmp_path, home, monkeypatch):
    """A working folder with a copy of all of that."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Canvas:
    """Stands for a figure and its axes; the picture is what the file says of itself."""

    containers, __init__ = (), lambda *args, **kwargs: None
    subplots = lambda self, rows, columns: setattr(self, "axes", [Canvas() for _ in range(columns)])
    __getattr__ = lambda self, name: lambda *args, **kwargs: None
    savefig = lambda self, file, format=None, metadata=None: file.write(repr(metadata).encode())


@pytest.fixture
def canvas(monkeypatch):
    monkeypatch.setattr(pytest.importorskip("matplotlib.figure"), "Figure", Canvas)


# ---- what the project did not write stays as it is --------------------------------------------

OURS = r"\.prompt-training\.tmp|run\.json|summary\.json|metrics\.jsonl|checkpoint(/state\.safetensors)?|prompts(/p\d+-s\d+(/prompt\.safetensors)?)?"
PLACES = "run.json summary.json metrics.jsonl checkpoint checkpoint/state.safetensors prompts prompts/p2-s0".split()
PLACES += [PROMPT[4:], ".prompt-training.tmp"]
NAMES = PLACES + "thesis.txt notes.tmp .notes.0123456789abcdef.tmp o.tsv.tmp sub text-cache o.tsv o.svg".split()
NAMES += "prompts/mine.txt prompts/p2-s0/notes.txt prompts/p3-s0 prompts/p3-s0/prompt.safetensors".split()
FORCED = [*itertools.product(PLACES, ["link", "file", "hard", "fifo"])]
OF_OURS = {"o.tsv": b"index\tprediction\n0\t1\n", "o.svg": b"{'Creator': 'prompt-training-picture/1'}"}


def entries(folder):
    """{name: (kind, content)} of all that lies in a folder, links not followed"""
    read = lambda path: os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return {str(path.relative_to(folder)): (path.lstat().st_mode >> 12, read(path)) for path in folder.rglob("*")}


def put(draw, name, kind, out, outside):
    """A file of any content, a folder, a link, another name of a file, a FIFO or, where that is allowed, a device."""
    path, target = out / name, draw.choice(["a.txt", "full", "no", *[f"run/{name}"] * 3])
    texts = [b"{}", b"notes\nindex\tprediction\nmore", OF_OURS.get(name, b"x")]
    if name == "run.json":  # another program's, but alike
        texts = [Path("run/run.json").read_bytes().replace(b"-run/1", b"-run/9")]
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        path.mkdir()
        path = path / "thesis.txt"
    make = {"link": lambda: path.symlink_to(outside / target), "hard": lambda: os.link(outside / "a.txt", path),
            "fifo": lambda: os.mkfifo(path), "device": lambda: os.mknod(path, 0o20666, os.makedev(1, 3))}  # fmt: skip
    make.get(kind, lambda: path.open("xb").write(draw.choice(texts)))()


def build(draw, case, outside, out):
    """A folder outside, to which links lead, and a folder out with anything in it, often a run of ours in part."""
    for folder in (outside, out):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "full").mkdir(parents=True)
        (folder / "full/a.txt").write_text("mine")
    shutil.copytree("run", outside / "run")
    (outside / "a.txt").write_text("mine")
    if draw.random() < 0.3:
        shutil.rmtree(out / "full")
    kinds = "file file file folder link link hard fifo device".split()
    names = draw.sample(NAMES, draw.randrange(5)) + draw.sample([*OF_OURS], draw.randrange(3))
    spots = [(name, draw.choice(kinds)) for name in names]
    if case < len(FORCED) or draw.random() < 0.5:
        shutil.copytree("run", out, dirs_exist_ok=True)
        spots = FORCED[case : case + 1] + spots
        for name, _ in spots[:2]:
            shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
    for name, kind in spots:
        with contextlib.suppress(OSError):  # where something is there already
            put(draw, name, kind, out, outside)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_of_a_user_is_touched(here, canvas, seed):
    """Fifteen folders: train afresh, --overwrite and --resume, predict --glue, plot and attention, in any order."""
    draw, outside, out, ended = random.Random(seed), here / "outside", here / "out", set()
    for case in range(seed, 60, 4):
        build(draw, case, outside, out)
        inputs = {"--model": "m", "--data": "d", "--init": "sample"}
        for flag, source in draw.sample([("--model", "m"), ("--data", "d"), ("--init", PROMPT)], draw.randrange(3)):
            inputs[flag] = f"out/my{flag}"  # as a user keeps all in one place
            (shutil.copy if flag == "--init" else shutil.copytree)(source, inputs[flag])
        fresh = [train, *BASE, *STEPS, *sum(inputs.items(), ()), "--out", "out"]
        glue, picture = (f"out/{draw.choice([name, 'new' + name[1:]])}" for name in ("o.tsv", "o.svg"))
        source = glue if os.path.isfile(glue) and draw.random() < 0.3 else "t.tsv"
        for argv in draw.sample([
            fresh, [*fresh, "--overwrite"], [train, "--resume", "out"], [evaluate, "plot", "run", "--out", picture],
            [evaluate, "predict", "run", "--input", source, "--glue", glue],
            [evaluate, "attention", "run", "a film", "--out", picture],
        ], 6):  # fmt: skip
            before, others = entries(out), entries(outside)
            kind, content = before.get("run.json", (0, None))
            whole = kind == 8 and b'"prompt-training-run/1"' in content and argv[-1] + argv[1] != "out--model"
            code, _, err = ask(*argv)
            after, target = entries(out), argv[-1].removeprefix("out/")
            assert code in (0, 2) and (code == 0 or re.search("(?m)^error: .+$", err)), (argv, code, err)
            assert entries(outside) == others, argv
            for name in before.keys() | after.keys():
                own = argv[0] is train and (whole or not before) and re.fullmatch(OURS, name)
                own = own and before.get(name, (8,))[0] in (8, 4)
                if argv[0] is evaluate and code == 0 and name == target:
                    own = before.get(name, (8, OF_OURS["o" + name[-4:]])) == (8, OF_OURS["o" + name[-4:]])
                assert own or before.get(name) == after.get(name), (argv, name, err)
            ended.add((argv[1] if argv[0] is evaluate else argv[-1], code))
    assert len(ended) >= 8  # most of them were refused and went through


def test_what_appears_after_the_first_look_is_not_touched_either(here, monkeypatch):
    """A run of somebody else, or a file with a name of ours: made while the model is loaded."""
    load = evaluate.load_gpt2
    for make in (lambda: shutil.copytree("run", "new"), lambda: (os.mkdir("new"), shutil.copy("t.tsv", "new/metrics.jsonl"))):
        monkeypatch.setattr(evaluate, "load_gpt2", lambda *args: (make(), load(*args))[1])
        refused(train, *NEW, naming="new")
        assert entries(here / "new") in (entries(here / "run"), {"metrics.jsonl": (8, Path("t.tsv").read_bytes())})
        shutil.rmtree("new")


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_a_picture_is_never_written_over(here, kind):
    """Not even one of ours.  And a dollar in a text is a dollar."""
    pytest.importorskip("matplotlib")
    for name, text in (("one", "a $$ $x_ film"), ("two", "\\frac $\\frac$ \x1b[2J fine")):
        assert ask(evaluate, "attention", "run", text, "--out", f"{name}.{kind}")[0] == 0
    before = Path(f"one.{kind}").read_bytes()
    refused(evaluate, "attention", "run", "film", "--out", f"one.{kind}", naming=f"one.{kind} is there already")
    assert Path(f"one.{kind}").read_bytes() == before


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_prompt_is_saved_over_a_regular_file_alone(here, kind):
    """From Python, too: a link could lead elsewhere."""
    prompt, about = load_prompt(PROMPT)
    make = {"link": lambda: os.symlink(PROMPT, "p"), "fifo": lambda: os.mkfifo("p"), "folder": lambda: os.mkdir("p")}
    make[kind]()
    before = entries(here)
    with pytest.raises(ValueError, match="p is a link or of another kind"):
        save_prompt("p", prompt, about)
    assert entries(here) == before
    save_prompt("q", prompt, about)
    save_prompt("q", prompt, about)


# ---- one writer -------------------------------------------------------------------------------


def test_a_run_at_work_is_in_use_and_a_killed_one_is_not(place):
    fresh = [*BASE, "--prompt-tokens", "2", "--epochs", "15", "--out", "run"]
    process = begin(*fresh)
    try:
        wait_for_a_checkpoint([process])
        os.kill(process.pid, signal.SIGSTOP)  # it is still there when the others come, however fast it is
        before = contents(place / "run")
        for more in (["--resume", "run"], [*fresh, "--overwrite"]):
            refused(train, *more, naming="in use")
        assert contents(place / "run") == before
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert end_of(process) == 0
    whole = timeless(place / "run")
    assert end_of(begin(*fresh, "--overwrite", die=(20, 0))) == -signal.SIGKILL and ask(train, "--resume", "run")[0] == 0
    named = {"run.json": None, "checkpoint": None}  # which say how it was begun
    assert timeless(place / "run") | named == whole | named


# ---- the model that a prompt belongs to -------------------------------------------------------


def flipped(data, draw=random.Random(0)):
    """One bit of the last half: of a number, where it is weights"""
    i = draw.randrange(len(data) // 2, len(data))
    return data[:i] + bytes([data[i] ^ 1 << draw.randrange(7)]) + data[i + 1 :]


OTHERS = {f"model.safetensors {i}": flipped for i in range(3)}
OTHERS["merges.txt"] = lambda data: b"\n".join([*(lines := data.split(b"\n"))[:2], lines[3], lines[2], *lines[4:]])
for more in ({"n_head": 5}, {"layer_norm_epsilon": 1.00001e-5}):
    OTHERS[f"config.json {more}"] = lambda data, more=more: json.dumps(json.loads(data) | more).encode()


@pytest.mark.parametrize("case", OTHERS)
def test_another_model_is_refused_everywhere_and_one_that_changes_in_mid_run_stamps_no_prompt(here, monkeypatch, case):
    """Changed in place, and though the file's times are put back."""
    shutil.copytree("m", "other")
    name, seen = case.split()[0], {}
    rewritten(f"other/{name}", OTHERS[case])
    for verb in (["predict", "run", "a"], ["score", "run"], ["tokens", "run"], ["attention", "run", "a"]):
        refused(evaluate, *verb, "--model", "other", naming="another model")
    refused(train, *NEW, "--model", "other", "--init", PROMPT, naming="another model")
    assert not os.path.exists("new") and ask(train, *NEW, "--init", PROMPT)[0] == 0

    def change(step, _):
        if step == 8:
            times = os.stat(f"m/{name}")
            seen.update(contents(here / "late/prompts"))
            rewritten(f"m/{name}", OTHERS[case])
            os.utime(f"m/{name}", ns=(times.st_atime_ns, times.st_mtime_ns))

    watch(monkeypatch, change)
    refused(train, *BASE, "--prompt-tokens", 2, 3, "--epochs", 3, "--out", "late", naming="has changed")
    assert seen == contents(here / "late/prompts") and not os.path.exists("late/summary.json")


def test_every_prompt_has_a_name_of_its_own(here):
    rates = [0.1, 0.1234561, 0.1234564, 0.12345640000000001, 1e-7, 1.0000001e-7, "1E-7", 3]
    assert ask(train, *NEW, "--lr", *rates)[0] == 0
    told = {row["name"]: row["lr"] for row in json.loads(Path("new/summary.json").read_bytes())["prompts"]}
    assert sorted(told.values()) == sorted({*map(float, rates)}) and sorted(told) == sorted(os.listdir("new/prompts"))
    for name, rate in told.items():
        assert load_prompt(f"new/prompts/{name}/prompt.safetensors")[1]["recipe"]["lr"] == rate


# ---- a checkpoint is whole, or refused --------------------------------------------------------


def test_no_flip_and_no_cut_of_a_checkpoint_passes(here):
    """2,000 of them; what is read though another file has to be the same to the bit, which none is."""
    path, draw = Path("run/checkpoint/state.safetensors"), random.Random(0)
    whole, header = path.read_bytes(), 8 + int.from_bytes(path.read_bytes()[:8], "little")
    for case in range(2000):
        data, i = bytearray(whole), draw.randrange((header, len(whole))[case % 2])
        if case % 10 < 2:
            data[i : i + draw.choice([1, 8, len(whole)]) * (case % 10)] = draw.randbytes(case % 9 + 1) * (case % 20 < 11)
        else:
            data[i] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        with pytest.raises(ValueError, match="state.safetensors"), damaged(path, "is damaged"):
            assert data != whole and read_tree(path) is None
        if case % 250 < 2:
            refused(train, "--resume", "run", naming="state.safetensors")


def of_another(place, name):
    """A file of a run that differs in its rate alone"""
    assert ask(train, *OTHER, "--seeds", 0, 1, "--lr", 0.02)[0] == 0
    shutil.copy(f"other/{name}", f"run/{name}")


def edited(name, change):
    return lambda place: rewritten(f"run/{name}", change)


UNBOUND = {
    "another run's checkpoint": lambda place: of_another(place, "checkpoint/state.safetensors"),
    "another run's log": lambda place: of_another(place, "metrics.jsonl"),
    "no log": lambda place: os.remove("run/metrics.jsonl"),
    "a byte less": edited("metrics.jsonl", lambda data: data[:-1]),
    "the first line gone": edited("metrics.jsonl", lambda data: data[data.index(b"\n") + 1 :]),
    "a bit of the log": edited("metrics.jsonl", flipped),
    "another rate": edited("run.json", lambda data: data.replace(b"0.03", b"0.04")),
    "another argv": edited("run.json", lambda data: data.replace(b'"--steps"', b'"--step"')),
    "another form": edited("run.json", lambda data: json.dumps(json.loads(data)).encode()),
}  # fmt: skip


@pytest.mark.parametrize("case", UNBOUND)
def test_a_checkpoint_is_bound_to_its_run_and_its_log(here, monkeypatch, case):
    """Else nothing is trained, and no prompt and no summary is written."""
    UNBOUND[case](here)
    steps, before, log = watch(monkeypatch), contents(here / "run"), {here / "run/metrics.jsonl": None}
    refused(train, "--resume", "run", naming="run")
    assert not steps and contents(here / "run") | log == before | log


# ---- JSON of ours -----------------------------------------------------------------------------

ODD = "null true 0 1 -1 3.5 1e300 -1e999 NaN 16777215 2147483648 [] {} [1] [[1]]".split() + ["9" * 400, "9" * 5000]
ODD += ["[" * 10**5, "[" * 2000 + "]" * 2000, '{"a": 1}', '"\\ud800"']
ODD += map(json.dumps, ["", "x", "$$", "\x1b[2J", "\0", "a\nb", "../x", "a/b", "%s", ["\x1b"], "x" * 9999, "p2-s0", "head"])
READ_ARGS = SimpleNamespace(main=machine.one_sentence(lambda argv: train.parse_args(argv) and None))
FIND = SimpleNamespace(main=machine.one_sentence(lambda argv: run.find_prompts("run", True) and None))
READERS = [(evaluate, "table", "run"), (evaluate, "plot", "run", "--out", "o.svg"), (READ_ARGS, "--resume", "run"), (FIND,)]
OF_A_PROMPT = [(evaluate, "table", PROMPT), (evaluate, "plot", PROMPT, "--out", "o.svg"), (evaluate, "tokens", PROMPT)]
EXTRA = "run path majority selected untrained model prompt_tokens max_examples name help".split()
TEXT = r"[\n\t -~\u00a1-\u1fff\u2030-\ud7ff\ufffd]*"  # nothing that speaks to a terminal


def holes(value, more=()):
    """value with a hole in the place of each of its parts, and at keys that some dictionary in it has not."""
    yield "@@"
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        for hole in holes(value[key], more):
            yield value | {key: hole} if isinstance(value, dict) else [*value[:key], hole, *value[key + 1 :]]
    if isinstance(value, dict) and "lr" in value:
        yield from (value | {key: "@@"} for key in more if key not in value)


def with_metadata(data, key, text):
    """A safetensors file whose metadata say so."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"][key] = text
    told = json.dumps(header).encode()
    return len(told).to_bytes(8, "little") + told + data[end:]


def test_odd_values_in_our_json_get_an_answer_or_a_sentence(here, canvas):
    """One of the readers for each value; and now and then the whole program, which does the rest."""
    draw, tried, about = random.Random(0), 0, load_prompt(PROMPT)[1]
    places = [("run/metrics.jsonl", None, READERS[1:2], (train, "--resume", "run"))]
    places += [("run/run.json", None, READERS, (train, "--resume", "run"))]
    places += [("run/summary.json", None, READERS, (evaluate, "score", "run"))]
    places += [(PROMPT, key, OF_A_PROMPT, (evaluate, "score", "run/prompts/p2-s0")) for key in about]
    for path, key, readers, whole in places:
        data = Path(path).read_bytes()
        value = about[key] if key else json.loads(data.splitlines()[0] if path.endswith("l") else data)
        for hole in holes(value, EXTRA):
            for odd in ["0", *draw.sample(ODD, 20)]:
                tried += 1
                text = json.dumps(hole).replace('"@@"', odd)
                rest = data * path.endswith("l")  # of the log
                Path(path).write_bytes(with_metadata(data, key, text) if key else text.encode() + b"\n" + rest)
                code, out, err = ask(*(readers[tried % len(readers)] if tried % 60 else whole))
                assert re.fullmatch(TEXT, out + err), (path, key, text[:999], out, err)
                assert code == 0 or code == 2 and re.fullmatch("error: .{9,1000}\n", err), (path, key, text[:999], err)
        Path(path).write_bytes(data)
    assert tried >= 4000, tried


def test_what_we_write_is_json_whatever_the_numbers(here, canvas):
    """A head that overflows, and labels whose squared error does."""
    prompt, about = load_prompt(PROMPT)
    prompt.head.data.sign_().mul_(3e38)
    save_prompt("big.safetensors", prompt, about)
    for verb, *more in (["predict", "a film", "b"], ["score", "--errors", 3], ["attention", "a film"], ["tokens"]):
        code, out, err = ask(evaluate, verb, "big.safetensors", "--json", *more)
        assert code == 0 and [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()], err
    Path("d/dev.tsv").write_text("text\tlabel\na\t1e30\nb\t0\n")
    assert ask(train, *NEW, "--num-labels", 1, "--select-on", "dev")[0] == 0
    for path, data in contents(here / "new").items():
        assert not re.search(rb"\bNaN\b|\bInfinity\b", data), path
    for argv in ((train, "--resume", "new"), (evaluate, "table", "new", "--json"), (evaluate, "plot", "new", "--out", "p.svg")):
        code, _, err = ask(*argv)
        assert code == 0, err


# ---- streams ----------------------------------------------------------------------------------


def test_nothing_speaks_to_the_terminal_and_a_text_is_a_line(here):
    """Texts, names of files and wrong flags: each control character there is, and what breaks lines."""
    draw, signs = random.Random(0), [*map(chr, [*range(1, 32), *range(127, 160), 0x2028, 0x2029, 0x202E, 0xFEFF])]
    texts = [f"a {''.join(draw.sample(signs, 5))} b{sign}c" for sign in signs]
    code, out, err = ask(evaluate, "predict", "run", *texts)
    assert code == 0 and out.count("\n") == len(texts) == len(out.splitlines()) and re.fullmatch(TEXT, out + err)
    name = "\x1b[2J\x07\x9b\r\x85"
    for old in ("run", "m", "d"):
        os.rename(old, old + name)
    run, new = "run" + name, [train, *NEW[:-1], "new" + name, "--model", "m" + name, "--data", "d" + name]
    tell = [["score", run, "--errors", 9], ["predict", run, "--input", "t.tsv", "--glue", "o" + name], ["score", name]]
    tell += [["table", run, run], ["attention", run, texts[26]], ["score", run, "--" + name], ["tokens", run, "--model", name]]
    flags = [[flag, name] for flag in ("--lr", "--cache-text", "--model", "--device", "--init", name)]
    for argv in (new, new, *([evaluate, *each] for each in tell), *([train, *each] for each in flags)):
        code, out, err = ask(*argv)
        assert code in (0, 2) and (out + err) and re.fullmatch(TEXT, out + err), (argv, out, err)


def test_a_stream_that_is_odd_changes_no_result(here):
    """Not there, full, or one that cannot say a character; and the same from a shell."""
    shutil.copytree("d", "dé日")
    text, kinds = "naïve 日本 film", {"closed": None, "full": "/dev/full", "ascii": "said"}
    stream = lambda kind: open(kinds[kind], "w", 1, encoding="ascii") if kinds[kind] else None
    rewritten("dé日/dev.tsv", lambda data: data + b"film " * 40 + b"\t1\n")  # of which train.py says that it is cut
    assert ask(train, *OTHER, "--data", "dé日")[0] == 0
    Path("t.txt").write_text(f"{text}\n\n{'film ' * 40}\n")  # of which is said that one is blank, and one is cut
    for out, err in itertools.product(kinds, kinds):
        shutil.rmtree("new", ignore_errors=True)
        code, *_ = ask(train, *NEW, "--data", "dé日", streams=(stream(out), stream(err)))
        assert code == 0 or code == 2 and out == "full", (out, err)
        for name in ("summary.json", "checkpoint/state.safetensors"):
            assert Path(f"new/{name}").read_bytes()[:200] == Path(f"other/{name}").read_bytes()[:200], (out, err)
        code, *_ = ask(evaluate, "predict", "run", "--input", "t.txt", streams=(stream(out), stream(err)))
        assert code == (2 if out == "full" else 0), (out, err)
        assert out == err or out != "ascii" or Path("said").read_text().count("\n") == 3
    shell = {"env": os.environ | {"PYTHONIOENCODING": "ascii"}, "capture_output": True, "text": True}
    command = f"{sys.executable} {ROOT}/train.py {' '.join(map(str, NEW[:-2]))} --data dé日 --out"
    done = subprocess.run(["bash", "-c", f"{command} one; {command} two >&- 2>&- <&-"], **shell)
    assert done.returncode == 0 and "d\\xe9\\u65e5" in done.stdout and os.path.exists("one/summary.json")
    assert Path("two/summary.json").read_bytes() == Path("one/summary.json").read_bytes()
    command = f"{sys.executable} {ROOT}/evaluate.py predict run '{text}'"
    done = subprocess.run(["bash", "-c", f"{command} <&- && {command} >/dev/full"], **shell)
    assert done.returncode == 2 and "na\\xefve" in done.stdout and "error: standard output: No space" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no disk that is always full")
def test_a_log_that_can_not_be_written_says_how_to_go_on(place, monkeypatch):
    """Whatever the lines that are still to be written do when the file is closed, and the run goes on as one that met no full disk."""
    assert ask(train, *BASE, *STEPS[:2], "--epochs", "3", "--out", "whole")[0] == 0
    log, told = run.RunFolder.log, []

    def full(self, *values):
        told.append(values)
        if len(told) == 4:
            os.dup2(os.open("/dev/full", os.O_WRONLY), self.metrics.fileno())
        log(self, *values)

    fresh = [*BASE, *STEPS[:2], "--epochs", "3", "--out", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(run.RunFolder, "log", full)
        refused(train, *fresh, naming="No space left on device; mend that and go on with: python train.py --resume run")
    assert ask(train, "--resume", "run")[0] == 0
    assert Path("run/summary.json").read_bytes() == Path("whole/summary.json").read_bytes()
    assert timeless(place / "run")["metrics"] == timeless(place / "whole")["metrics"]


# ---- signals ----------------------------------------------------------------------------------


@pytest.fixture
def unanswered():
    """What a signal does to this process that nobody else answers: the test fails; until its end."""
    before = {}
    yield lambda number: before.update({number: signal.signal(number, lambda *_: pytest.fail("nobody answers it"))})
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_at_any_place_is_answered_by_what_to_do(place, unanswered):
    """It comes when the n-th of all our functions is called; afterwards the run ends as one that met no signal."""
    counted, at, number, came_late, called = 0, 0, 0, 0, {}

    def count(frame, event, _):
        nonlocal counted
        path, main = frame.f_code.co_filename, frame.f_code is train.main.__wrapped__.__wrapped__.__code__
        if event == "call" and path.startswith(str(ROOT)) and "tests" not in path and (counted or main):
            counted += 1
            called.setdefault((path, frame.f_code.co_name), []).append(counted)
            if counted == at:
                os.kill(os.getpid(), number)
        if event == "return" and main:
            sys.setprofile(None)

    def go(*argv):
        nonlocal counted
        counted = 0
        sys.setprofile(count)
        try:
            return ask(train, *argv)
        finally:
            sys.setprofile(None)

    fresh = [*BASE, "--prompt-tokens", "2", "--epochs", "2", "--out", "run"]
    assert go(*fresh)[0] == 0
    whole, calls, draw = timeless(place / "run"), counted, random.Random(0)
    in_run = [draw.choice(ns) for (path, _), ns in called.items() if path == run.__file__]  # each function there
    places, numbers = [1, calls, *draw.sample(range(calls), 8), *in_run], [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    for number in numbers:  # what comes when nobody answers it must not end these tests
        unanswered(number)
    for at in places:
        shutil.rmtree("run", ignore_errors=True)
        number = draw.choice(numbers)
        code, _, err = go(*fresh)
        done = code == 0 and timeless(place / "run") == whole  # it came when there was nothing left to stop
        told = code == 128 + number and re.search("go on with: .* --resume run|nothing was written", err)
        assert done or told, (at, calls, code, err)
        came_late += done
        again, here = ["--resume", "run"] if "--resume" in err else fresh, at
        at = 0
        assert done or ask(train, *again)[0] == 0 and timeless(place / "run") == whole, (here, calls, err)
    assert came_late < 8


@pytest.mark.parametrize("number", [signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)])  # no SIGHUP on Windows
def test_what_was_ignored_stays_ignored_and_a_download_can_be_stopped(place, monkeypatch, number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        watch(monkeypatch, lambda step, _: os.kill(os.getpid(), number))
        assert ask(train, *NEW)[0] == 0 and signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
    redirect(monkeypatch, place)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: os.kill(os.getpid(), number))
    code, _, err = ask(train, *OTHER, "--model", "gpt2")
    assert code == 128 + number and "nothing was written" in err


# ---- several processes ------------------------------------------------------------------------


def odd_child(argv, **more):
    """Of a team: rank 1 is late wherever it has to wait for nobody; rank 0 may not make a folder of the name barred."""
    join, make, rank = machine.join_processes, Path.mkdir, int(more["environment"]["RANK"])
    machine.join_processes = lambda device: (join(device), time.sleep(rank))[0]

    def mkdir(path, *args, **kwargs):
        if path.name == "barred":
            raise PermissionError(13, "Permission denied", str(path))
        make(path, *args, **kwargs)

    Path.mkdir = mkdir
    child(argv, **more)


@pytest.mark.parametrize("out", ["run", "barred", "d"])
def test_a_team_ends_as_one(place, monkeypatch, out):
    monkeypatch.setattr("test_resume.child", odd_child)
    codes = [end_of(process) for process in team(2, *BASE, *STEPS, "--out", out)]
    last = [Path(f"said{rank}").read_text().strip().split("\n")[-1] for rank in (0, 1)]
    if out == "run":
        assert codes == [0, 0] and os.path.exists("run/summary.json")
    else:
        assert codes == [2, 2] and last[0] == last[1] and re.fullmatch(f"error: .*{out}.*", last[0])


# ---- files that ask for too much --------------------------------------------------------------


def test_no_file_starts_a_download(here, monkeypatch):
    """But for the five official names, which are pinned."""
    asked, good = [], Path(PROMPT).read_bytes()
    redirect(monkeypatch, here)
    record = lambda *args, **_: asked.append(args) or (_ for _ in ()).throw(OSError("recorded"))
    for where in ("huggingface_hub.snapshot_download", "huggingface_hub.HfApi.model_info", "urllib.request.urlopen"):
        monkeypatch.setattr(where, record)
    for name in ("evil/repo", "openai-community/gpt2", "a/b ", "gpt2"):
        Path("p.safetensors").write_bytes(with_metadata(good, "base_model", name))
        for argv in (["predict", "p.safetensors", "a"], ["score", "p.safetensors"], ["tokens", "p.safetensors"],
                     ["attention", "p.safetensors", "a"], ["table", "p.safetensors", "p.safetensors"]):  # fmt: skip
            refused(evaluate, *argv)
        rewritten("run/run.json", lambda data: re.sub(rb'("model": )"[^"]*"', b'\\1"' + name.encode() + b'"', data))
        refused(train, "--resume", "run")
        assert bool(asked) == (name == "gpt2"), (name, asked)


def test_what_asks_for_too_much_is_refused_within_bounds(here, monkeypatch):
    """A merges.txt of one line, weights that are no numbers, a text of thousands of words, a flag that --resume would drop."""
    for size in (50, 15):
        Path("m/merges.txt").write_bytes(b"a" * size * 10**6 + b" b\n")
        tracemalloc.start()
        refused(train, *NEW, naming="merges.txt")
        assert tracemalloc.get_traced_memory()[1] < 80e6
        tracemalloc.stop()
    weights = random_weights(sizes())
    for name, value in (("wte.weight", "nan"), ("h.2.mlp.c_fc.bias", "inf"), ("ln_f.weight", "-inf")):
        spoilt = weights[name].clone()
        spoilt.view(-1)[-1] = float(value)
        write_checkpoint("m", sizes(), weights | {name: spoilt})
        refused(train, *NEW, naming=name)
        refused(evaluate, "predict", "run", "a", "--model", "m", naming=name)
    texts, classify = [], evaluate.classify
    monkeypatch.setattr(evaluate, "classify", lambda *args: (texts.extend(args[2]), classify(*args))[1])
    code, out, _ = ask(evaluate, "attention", "run", "--json", "film " * 3000)
    assert code == 0 and len(texts) <= 24 + 1 and 0 < len(json.loads(out)["words"]) <= 24
    for more in (["--out", "new"], ["--overwrite"]):
        refused(train, "--resume", "run", *more, naming="--resume run takes neither")
