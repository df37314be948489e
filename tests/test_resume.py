"""Nothing is lost: signals, kills, full disks, prompts that break, moves, and several processes."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from helpers import ROOT, ask, contents, rewrite, write_data
from run_helpers import (
    BASE,
    CHECKPOINT,
    SHORT,
    begin,
    child,
    end,
    end_of,
    forget,
    prompt_path,
    read_json,
    read_log,
    refused,
    run,
    signal_at,
    stop_at,
    stored,
    team,
    timeless,
    wait_for_steps,
    watch,
)
from support import processes, run_folder
from support.prompt_file import read_prompt
from support.request import parse_request

FLAGS = ["--prompt-tokens", 2, 3, "--seeds", 0, 1, "--steps", 25, "--lr", 0.1, "--patience", 3]

# ---- signals --------------------------------------------------------------------------------

# The first step, an epoch's last, a logged one, another, one with two to go, the very last
STOPS = [(signal.SIGINT, step) for step in (1, 7, 10, 16, 23, 25)]
STOPS += [(signal.SIGTERM, 16), (getattr(signal, "SIGHUP", signal.SIGTERM), 16)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, checkpoint):
    """The run of FLAGS that nobody stops, without its times"""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(checkpoint[0], "m")
        write_data("d")
        run(*FLAGS)
        return timeless(folder / "run")


def but_paths(files):
    """The files of a run without what says where it, its model and its data lie"""
    files = dict(files)
    del files["run.json"]
    header, tree, data = files[CHECKPOINT]
    tree = {key: value for key, value in tree.items() if key != "run"}
    files[CHECKPOINT] = (header, tree, data)
    for name in files:
        if name.endswith("prompt.safetensors"):
            files[name] = placeless_prompt(files[name])
    return files


def placeless_prompt(data):
    """A prompt's header without the paths, and its tensors"""
    end_of_header = 8 + int.from_bytes(data[:8], "little")
    header = re.sub(rb'/[^"\\]*', b"", data[8:end_of_header]).rstrip()
    return header, data[end_of_header:]


@pytest.mark.parametrize("number,at", STOPS)
def test_a_signal_finishes_the_step_and_tells_how_to_go_on(place, monkeypatch, capsys, number, at):
    steps = watch(monkeypatch, signal_at(at, number))
    code, _, err = ask(capsys, train, *BASE, "--out", "run", *FLAGS)
    assert code == 128 + number
    assert len(steps) == stored("run")["step"] == at
    assert re.search(r"python \S*train.py --resume run$", err.strip())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not os.path.exists("run/summary.json")


@pytest.mark.parametrize("number,at", STOPS)
def test_resuming_changes_no_byte(place, monkeypatch, whole, number, at):
    """Neither do lines that a killed run logged beyond the checkpoint, the last of them cut."""
    steps = watch(monkeypatch, signal_at(at, number))
    assert end(*BASE, "--out", "run", *FLAGS) == 128 + number
    with open("run/metrics.jsonl", "a") as file:
        file.write('{"step": 9, "epoch": 1}\n{"step": 1')
    assert end("--resume", "run") == 0
    resumed = timeless(place / "run")
    assert but_paths(resumed) == but_paths(whole)
    last = whole["metrics.jsonl"][-1]["step"]
    assert len(steps) == last == 25  # none was done twice, none left out


def test_a_run_that_is_whole_stays_so(place, monkeypatch):
    run(*FLAGS)
    before = contents(place / "run")
    steps = watch(monkeypatch)
    assert end("--resume", "run") == 0
    assert contents(place / "run") == before
    assert not steps


@pytest.mark.parametrize("at", [3, None])
def test_a_run_without_its_checkpoint_says_that_it_begins_again(place, monkeypatch, capsys, at):
    if at:
        stop_at(monkeypatch, at, *BASE, *FLAGS, "--out", "run")
    else:
        run("--steps", 8)
    shutil.rmtree("run/checkpoint")
    capsys.readouterr()
    train.main(["--resume", "run"])
    assert "has no checkpoint: the run begins again" in capsys.readouterr().err


def test_a_checkpoint_comes_every_200_steps_within_an_epoch_too(place, monkeypatch):
    """The folder as a kill leaves it in step 214, moved elsewhere, goes on from step 200."""
    rows = "".join(f"film {i}\t{i % 2}\n" for i in range(250))
    (place / "d" / "train.tsv").write_text("text\tlabel\n" + rows)

    def copy(step, prompts):
        if step == 214:
            shutil.copytree("run", "killed")

    steps = watch(monkeypatch, copy)
    run("--batch-size", 1, "--epochs", 1, "--prompt-tokens", 2)
    at = stored("killed")
    assert at["step"] == 200
    assert at["log"] < os.path.getsize("killed/metrics.jsonl")
    assert end("--resume", "killed") == 0
    assert timeless(place / "killed") == timeless(place / "run")
    assert len(steps) == 225 + 25


@pytest.fixture
def unanswered():
    """What fails the test where a signal comes that nobody answers; until the test's end"""
    before = {}

    def fail(*_):
        pytest.fail("nobody answers the signal")

    def guard(number):
        before[number] = signal.signal(number, fail)

    yield guard
    for number, handler in before.items():
        signal.signal(number, handler)


class CallCounter:
    """Counts the calls of our functions within train.main; at one of them comes a signal."""

    def __init__(self):
        self.count = 0
        self.signal_at = 0
        self.number = 0
        self.calls_of = {}  # {(file, function): numbers of its calls}
        self.first = parse_request.__code__  # from here on signals are answered
        self.main = train.main.__wrapped__.__code__

    def look(self, frame, event, _):
        """What sys.setprofile calls"""
        code = frame.f_code
        path = code.co_filename
        begins = code is self.first
        ours = path.startswith(str(ROOT)) and "tests" not in path
        if event == "call" and ours and (self.count or begins):
            self.count += 1
            self.calls_of.setdefault((path, code.co_name), []).append(self.count)
            if self.count == self.signal_at:
                sys.setprofile(None)  # the rest is faster
                os.kill(os.getpid(), self.number)
        if event == "return" and code is self.main:
            sys.setprofile(None)

    def go(self, capsys, *argv):
        """Run train.py under this counter -> (exit code, stderr)"""
        self.count = 0
        sys.setprofile(self.look)
        try:
            code, _, err = ask(capsys, train, *argv)
        finally:
            sys.setprofile(None)
        return code, err


ANSWER = "go on with: .* --resume run|nothing was written|give the same command again"


def test_a_signal_at_any_place_is_answered_by_what_to_do(place, capsys, unanswered):
    """It comes when the n-th of our functions is called; afterwards the run ends as any other."""
    fresh = [*BASE, "--prompt-tokens", "2", "--epochs", "2", "--out", "run"]
    counter = CallCounter()
    assert counter.go(capsys, *fresh)[0] == 0
    whole = timeless(place / "run")
    calls = counter.count
    draw = random.Random(0)
    places = [1, calls, *draw.sample(range(calls), 8)]
    for (path, _), numbers in list(counter.calls_of.items()):
        if path == run_folder.__file__:
            places.append(draw.choice(numbers))  # each function there
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    for number in signals:
        unanswered(number)
    came_late = 0
    for at in places:
        forget("run")
        counter.signal_at = at
        counter.number = draw.choice(signals)
        code, err = counter.go(capsys, *fresh)
        counter.signal_at = 0
        if code == 0:  # it came when there was nothing left to stop
            assert timeless(place / "run") == whole, at
            came_late += 1
            continue
        assert code == 128 + counter.number, (at, calls, code, err)
        assert re.search(ANSWER, err), (at, calls, err)
        again = ["--resume", "run"] if "--resume" in err else fresh
        assert end(*again) == 0, (at, calls, err)
        assert timeless(place / "run") == whole, (at, calls, err)
    assert came_late < 8


IGNORED = [signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)]  # no SIGHUP on Windows


@pytest.mark.parametrize("number", IGNORED)
def test_what_was_ignored_stays_ignored(place, monkeypatch, number):
    """As under nohup"""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        watch(monkeypatch, signal_at(1, number))
        assert end(*SHORT, "--out", "new") == 0
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


# ---- a run that goes on is one that was never stopped ---------------------------------------


def write_names():
    """Labels with names"""
    for split, rows in (("train", 60), ("dev", 12)):
        lines = [f"{split} {i}\t{('spam', 'fine', 'so so')[i % 3]}\n" for i in range(rows)]
        Path(f"d/{split}.tsv").write_text("text\tlabel\n" + "".join(lines))


def write_numbers():
    """Labels that are numbers"""
    for split, rows in (("train", 60), ("dev", 12)):
        lines = [f"{split} {i}\t{i % 7 - 2}.5\n" for i in range(rows)]
        Path(f"d/{split}.tsv").write_text("text\tlabel\n" + "".join(lines))


def write_columns():
    """Columns of other names"""
    for split, rows in (("train", 60), ("dev", 12)):
        lines = [f"{i % 2},{split} {i}\n" for i in range(rows)]
        os.remove(f"d/{split}.tsv")
        Path(f"d/{split}.csv").write_text("stars,review\n" + "".join(lines))


def train_first():
    """A run to begin from"""
    run("--prompt-tokens", 2, "--steps", 2, out="first")


COLUMNS = ["--text-column", "review", "--label-column", "stars"]
VARIANTS = {
    "regression": (["--num-labels", 1, "--lr", 0.3], write_numbers),
    "names": (["--select-by", "macro-f1"], write_names),
    "columns": (COLUMNS, write_columns),
    "head": (["--train", "head"], None),
    "init FILE": (["--init", "first"], train_first),
    "init TEXT": (["--init", "a film is"], None),
    "words": (["--init", "words"], None),
    "patience": (["--patience", 1, "--lr", 1e-9, "--seeds", 0, 1], None),
    "a pack": (["--prompt-tokens", 2, 3, 1, "--lr", 0.1, 0.02], None),
    "bfloat16": (["--dtype", "bfloat16"], None),
    "no cache": (["--cache-text", "off"], None),
    "a small cache": (["--cache-text", "50K"], None),
    "steps": (["--steps", 17], None),
    "max examples": (["--max-examples", 20], None),
    "one by one": (["--batch-size", 1, "--max-examples", 12], None),
    "one batch": (["--batch-size", 200, "--epochs", 20], None),
    "select on dev": (["--select-on", "dev"], None),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_run_goes_on_as_if_it_had_never_stopped(place, monkeypatch, name):
    """Stopped twice, in an epoch and near the end."""
    flags, prepare = VARIANTS[name]
    if prepare:
        prepare()
    argv = [*BASE, "--prompt-tokens", 2, "--epochs", 3, "--lr", 0.1, *flags, "--out"]
    counted = watch(monkeypatch)
    assert end(*argv, "whole") == 0
    total = len(counted)
    stops = sorted({max(1, total // 3), max(2, total - 2)})
    stop_at(monkeypatch, stops[0], *argv, "run")
    stop_at(monkeypatch, stops[1] - stops[0], "--resume", "run")
    assert end("--resume", "run") == 0
    resumed = timeless(place / "run")
    assert but_paths(resumed) == but_paths(timeless(place / "whole"))


# ---- kills ----------------------------------------------------------------------------------


def way_to_die(draw, kill, step):
    """(n, seconds): so long after the n-th step from here a run is killed; it stands at `step`"""
    if kill < 3:  # while it starts
        return 0, draw.uniform(0.001, 0.05)
    if kill % 3 == 0:  # when the second line was logged, and the checkpoint is older
        return 21 - step % 10, 0
    if kill % 3 == 1:  # in an epoch
        return draw.randint(1, 5), draw.uniform(0.001, 0.03)
    return 7, draw.uniform(0.001, 0.03)  # around its end, where all is written


def check_readable(folder):
    """Whatever a kill left is whole: JSON, lines of the log, prompts."""
    for path in folder.glob("*.json"):
        read_json(path)
    if (folder / "metrics.jsonl").exists():
        read_log(folder)
    for path in folder.glob("prompts/*/prompt.safetensors"):
        read_prompt(path)


def test_thirty_kills_at_random_moments(place):
    """A run that is killed again and again, whatever it was writing, ends as one that was not."""
    fresh = [*BASE, "--out", "run", "--prompt-tokens", 2, "--seeds", 0, 1, "--lr", 0.1]
    fresh += ["--epochs", 52]
    assert end_of(begin(*fresh)) == 0
    whole = timeless(place / "run")
    forget("run")
    draw = random.Random(0)
    step = 0
    found = 0  # kills after which there was a checkpoint
    longer = 0  # and the log was longer than that knows of
    for kill in range(30):
        die = way_to_die(draw, kill, step)
        argv = ["--resume", "run"] if os.path.exists("run/run.json") else fresh
        assert end_of(begin(*argv, die=die)) in (-signal.SIGALRM, -signal.SIGKILL)
        if os.path.exists(f"run/{CHECKPOINT}"):
            at = stored("run")
            step = at["step"]
            found += 1
            longer += os.path.getsize("run/metrics.jsonl") > at["log"]
        check_readable(place / "run")
    assert found >= 20
    assert longer >= 5
    assert not os.path.exists("run/summary.json")
    assert end_of(begin("--resume", "run")) == 0
    assert timeless(place / "run") == whole


# ---- what changed since ---------------------------------------------------------------------


def stopped(monkeypatch, *flags):
    """A run that is stopped in its third step"""
    stop_at(monkeypatch, 3, *BASE, "--out", "run", "--lr", "0.1", *flags)


CHANGED = {  # what is done to which file, and what the sentence names
    "train": ("d/train.tsv", lambda data: data.replace(b"t0\t0", b"t0\t1"), "the file of train"),
    "dev": ("d/dev.tsv", lambda data: data.replace(b"d0\t0", b"d0\t1"), "the file of dev"),
    "config": ("m/config.json", lambda data: data.replace(b"1e-05", b"2e-05"), "base model"),
    "weights": ("m/model.safetensors", lambda data: flip(data), "base model"),
    "run.json": ("run/run.json", lambda data: b"[]", "run/run.json is damaged"),
    "its settings": (
        "run/run.json",
        lambda data: data.replace(b'"settings": {', b'"settings": 1, "was": {'),
        "run/run.json is damaged",
    ),
    "checkpoint": (f"run/{CHECKPOINT}", lambda data: b"x" * 99, "state.safetensors"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_what_changed_since_is_named_and_refused(place, monkeypatch, capsys, case):
    stopped(monkeypatch)
    path, change, named = CHANGED[case]
    before = Path(path).read_bytes()
    rewrite(path, change)
    assert Path(path).read_bytes() != before
    refused(capsys, "--resume", "run", naming=named)


def test_merges_in_another_order_are_another_model(place, monkeypatch, capsys):
    stopped(monkeypatch)
    lines = Path("m/merges.txt").read_text("utf-8").split("\n")
    lines[5:7] = [lines[6], lines[5]]
    Path("m/merges.txt").write_text("\n".join(lines), "utf-8")
    refused(capsys, "--resume", "run", naming="base model")


def test_a_run_that_is_not_there_is_named(place, capsys):
    refused(capsys, "--resume", "run", naming="run/run.json")


SETTINGS = [["--lr", "0.5"], ["--head-lr", "0.5"], ["--epochs", "9"], ["--seeds", "4"]]
SETTINGS += [["--batch-size", "4"], ["--dtype", "bfloat16"], ["--train", "head"]]
SETTINGS += [["--max-examples", "7"], ["--select-on", "dev"], ["--select-by", "loss"]]
SETTINGS += [["--patience", "5"], ["--steps", "30"], ["--init", "eot"], ["--init", "a text"]]


@pytest.mark.parametrize("flags", SETTINGS, ids=" ".join)
def test_another_setting_is_refused_with_a_way_on(place, monkeypatch, capsys, flags):
    stop_at(monkeypatch, 9, *BASE, "--out", "run", "--lr", "0.1")
    before = contents(place / "run")
    sentence = refused(capsys, "--resume", "run", *flags)
    assert "--init run/prompts/p10-s0" in sentence
    assert "--overwrite" not in sentence
    assert contents(place / "run") == before


def test_a_run_without_a_prompt_advises_none(place, monkeypatch, capsys):
    stopped(monkeypatch)
    sentence = refused(capsys, "--resume", "run", "--lr", "0.5", naming="begin a new run")
    assert "--init" not in sentence


@pytest.mark.parametrize("flags", SETTINGS, ids=" ".join)
def test_the_setting_that_differs_is_named(place, monkeypatch, capsys, flags):
    stopped(monkeypatch)
    name = flags[0].removeprefix("--").replace("-", "_")
    assert refused(capsys, "--resume", "run", *flags).count(f": {name} was ") >= 1


def test_longer_goes_by_init_of_the_finished_run(place, capsys):
    """What the refusal advises can be done."""
    run("--prompt-tokens", 2, "--epochs", 2)
    sentence = refused(capsys, "--resume", "run", "--epochs", "4")
    way = re.search(r"--init (\S+)", sentence).group(1)
    run("--prompt-tokens", 2, "--epochs", 2, "--init", way, out="more")
    init = read_prompt(prompt_path("p2-s0", "more")).init
    assert init.endswith("run/prompts/p2-s0/prompt.safetensors")


@pytest.mark.parametrize("part", ["python", "torch", "threads"])
def test_another_version_is_warned_of(place, monkeypatch, capsys, part):
    """Last digits may differ, but no work is lost."""
    stopped(monkeypatch)
    facts = read_json("run/run.json")
    value = facts["versions"][part]
    facts["versions"][part] = "0"
    Path("run/run.json").write_text(json.dumps(facts))
    os.remove(f"run/{CHECKPOINT}")  # which carries the hash of run.json
    code, _, err = ask(capsys, train, "--resume", "run")
    assert code == 0
    assert f"warning: {part} was 0 when this run began and is {value} now" in err


# ---- everything has moved -------------------------------------------------------------------


def test_a_run_its_data_and_its_model_may_move(place, monkeypatch, whole):
    """And it comes to the bytes of one that never moved, but for the stored paths."""
    stop_at(monkeypatch, 10, *BASE, "--out", "run", *FLAGS)
    os.mkdir("elsewhere")
    for name in ("run", "m", "d"):
        shutil.move(name, f"elsewhere/my {name}")
    monkeypatch.chdir("elsewhere")
    moved = ["--resume", "my run", "--model", "my m", "--data", "my d"]
    assert end(*moved) == 0
    resumed = timeless(place / "elsewhere" / "my run")
    assert but_paths(resumed) == but_paths(whole)
    assert not os.path.exists("../run")


def test_what_moved_is_asked_for(place, monkeypatch, capsys):
    stopped(monkeypatch)
    shutil.move("m", "other")
    refused(capsys, "--resume", "run", naming=str(place / "m"))
    shutil.move("other", "m")
    shutil.move("d", "other")
    refused(capsys, "--resume", "run", naming=str(place / "d"))


def test_a_prompt_to_begin_from_may_move(place, monkeypatch):
    run("--prompt-tokens", 2, "--steps", 3, out="first")
    flags = [*BASE, "--prompt-tokens", 2, "--epochs", 2, "--init", "first", "--out"]
    assert end(*flags, "whole") == 0
    stop_at(monkeypatch, 5, *flags, "run")
    shutil.move("first", "moved")
    assert end("--resume", "run", "--init", "moved") == 0
    resumed = but_paths(timeless(place / "run"))
    assert resumed == but_paths(timeless(place / "whole"))


def test_another_prompt_to_begin_from_is_refused(place, monkeypatch, capsys):
    run("--prompt-tokens", 2, "--steps", 3, out="first")
    run("--prompt-tokens", 2, "--steps", 3, "--seeds", 5, out="second")
    flags = [*BASE, "--prompt-tokens", 2, "--epochs", 2, "--init", "first", "--out"]
    stop_at(monkeypatch, 5, *flags, "run")
    refused(capsys, "--resume", "run", "--init", "second", naming="the file of init")


# ---- the model that a prompt belongs to -----------------------------------------------------


def flip(data, seed=0):
    """One bit of the last half: of a number, where it is weights"""
    draw = random.Random(seed)
    i = draw.randrange(len(data) // 2, len(data))
    return data[:i] + bytes([data[i] ^ 1 << draw.randrange(7)]) + data[i + 1 :]


def swap_merges(data):
    """Two lines of merges.txt in another order"""
    lines = data.split(b"\n")
    lines[2:4] = [lines[3], lines[2]]
    return b"\n".join(lines)


OTHER_MODELS = {
    "weights": ("model.safetensors", flip),
    "merges": ("merges.txt", swap_merges),
    "heads": ("config.json", lambda data: data.replace(b'"n_head": 2', b'"n_head": 5')),
    "epsilon": ("config.json", lambda data: data.replace(b"1e-05", b"1.00001e-05")),
}


@pytest.mark.parametrize("case", OTHER_MODELS)
def test_a_prompt_is_no_beginning_on_another_model(place, capsys, case):
    run("--prompt-tokens", 2, "--steps", 1, out="first")
    shutil.copytree("m", "other")
    name, change = OTHER_MODELS[case]
    rewrite(f"other/{name}", change)
    flags = ["--model", "other", "--init", "first", "--out", "new"]
    refused(capsys, *SHORT, *flags, naming="another model")
    assert not os.path.exists("new")
    assert end(*SHORT, "--init", "first", "--out", "new") == 0


@pytest.mark.parametrize("case", OTHER_MODELS)
def test_a_model_that_changes_in_mid_run_stamps_no_prompt(place, monkeypatch, capsys, case):
    """Though the file's times are put back."""
    name, change = OTHER_MODELS[case]
    seen = {}

    def replace(step, prompts):
        if step == 8:
            times = os.stat(f"m/{name}")
            seen.update(contents(place / "late" / "prompts"))
            rewrite(f"m/{name}", change)
            os.utime(f"m/{name}", ns=(times.st_atime_ns, times.st_mtime_ns))

    watch(monkeypatch, replace)
    fresh = [*BASE, "--prompt-tokens", 2, 3, "--epochs", 3, "--out", "late"]
    refused(capsys, *fresh, naming="another model")
    assert contents(place / "late" / "prompts") == seen
    assert not os.path.exists("late/summary.json")


def test_no_run_json_starts_a_download(place, monkeypatch, capsys):
    """But for the official names, which are pinned."""
    assert end(*SHORT, "--out", "run") == 0
    asked = []

    def record(*args, **_):
        asked.append(args)
        raise OSError("recorded")

    monkeypatch.setattr("huggingface_hub.snapshot_download", record)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", record)
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "hub"))
    for name in ("evil/repo", "openai-community/gpt2", "a/b "):
        new = f'"model": "{name}"'.encode()
        rewrite("run/run.json", lambda data, new=new: re.sub(rb'"model": "[^"]*"', new, data))
        refused(capsys, "--resume", "run")
        assert not asked, name


# ---- prompts that break ---------------------------------------------------------------------

PACK = ["--prompt-tokens", 2, 3, "--seeds", 0, 1, "--epochs", 4, "--lr", 0.1]


def infinite_gradient(step, prompts):
    """The loss is finite, but not the norm of the gradient; at an epoch's end."""
    if step == 12:
        prompts[1].head.data[:] = torch.tensor([[1e25], [-1e25]])


def no_numbers(step, prompts):
    """The vectors are no numbers; at a line of the log."""
    if step == 16:
        prompts[1].vectors.data.fill_(float("nan"))


POISONS = [(infinite_gradient, 12, 14), (no_numbers, 16, 20)]  # done at, told by step


def losses_of(lines, name, other=False):
    """The losses of one prompt, or of all others"""
    return [line["loss"] for line in lines if (line["prompt"] == name) != other]


@pytest.mark.parametrize("poison,at,told", POISONS)
def test_one_prompt_that_breaks_does_not_touch_the_others(
    place, monkeypatch, capsys, poison, at, told
):
    """The run is stopped in step 18 and goes on, and has not forgotten what broke."""
    _, lines, _ = run(*PACK)

    def disturb(step, prompts):
        poison(step, prompts)
        if step == 18:
            os.kill(os.getpid(), signal.SIGINT)

    watch(monkeypatch, disturb)
    assert end(*BASE, "--out", "poisoned", *PACK) == 130
    assert end("--resume", "poisoned") == 0
    summary = read_json("poisoned/summary.json")
    poisoned = read_log("poisoned")
    said = f"p2-s1 stopped: not finite by step {told}; try a lower --lr"
    assert said in capsys.readouterr().err
    assert [row["broke"] for row in summary["prompts"]] == [0, told, 0, 0]
    assert summary["prompts"][1]["epoch"] <= at // 7

    # The line that tells of it is the last of this prompt.
    *before, last = losses_of(poisoned, "p2-s1")
    clean = [line for line in lines if line["step"] < at]
    assert before == losses_of(clean, "p2-s1")
    assert last is None or last > 1e20

    others = losses_of(poisoned, "p2-s1", other=True)
    same = losses_of(lines, "p2-s1", other=True)
    assert others == pytest.approx(same, abs=1e-5)


def test_a_prompt_whose_scores_are_not_finite_leaves_the_race(place, monkeypatch, capsys):
    """Its gradient was finite in every step; what was best before stays."""
    scored = []
    score = train.score

    def spoil(gpt2, prompts, examples, batch_size, names=None):
        scored.append(len(prompts))
        if len(scored) == 2:
            with torch.no_grad():
                prompts[0].vectors.fill_(float("nan"))
        return score(gpt2, prompts, examples, batch_size, names)

    monkeypatch.setattr(train, "score", spoil)
    _, lines, summary = run("--prompt-tokens", 2, "--seeds", 0, 1, "--epochs", 3)
    assert scored[:3] == [2, 2, 1]
    first, second = summary["prompts"]
    assert (first["broke"], first["epoch"]) == (14, 1)
    assert second["broke"] == 0
    assert "p2-s0 stopped: not finite by step 14" in capsys.readouterr().err
    last = [line for line in lines if line["prompt"] == "p2-s0"][-1]
    assert (last["step"], last["loss"]) == (14, None)


# ---- full disks -----------------------------------------------------------------------------

FULL = "No space left on device"


def disk_that_is_full_at(monkeypatch, number):
    """The n-th file that is to be safe on disk finds no room -> the count of all so far"""
    count = [0]
    fsync = os.fsync

    def full(descriptor):
        count[0] += 1
        if count[0] == number:
            raise OSError(errno.ENOSPC, FULL)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    return count


def test_a_full_disk_at_any_write_ends_in_one_sentence_and_the_run_goes_on(
    place, monkeypatch, capsys
):
    fresh = [*BASE, "--prompt-tokens", 2, "--seeds", 0, 1, "--epochs", 2, "--out"]
    with monkeypatch.context() as patch:
        count = disk_that_is_full_at(patch, 0)
        assert end(*fresh, "whole") == 0
        writes = count[0]
    whole = but_paths(timeless(place / "whole"))
    assert writes >= 12
    for number in range(1, writes + 1):
        forget("run")
        with monkeypatch.context() as patch:
            disk_that_is_full_at(patch, number)
            sentence = refused(capsys, *fresh, "run", naming=FULL)
        assert not list(place.glob("run/**/*.tmp"))
        assert not os.path.exists("run/summary.json")
        check_readable(place / "run")
        began = os.path.exists("run/run.json")
        assert ("--resume run" in sentence) == began, (number, sentence)
        again = ["--resume", "run"] if began else [*fresh, "run"]
        assert end(*again) == 0, number
        assert but_paths(timeless(place / "run")) == whole, number


def test_a_disk_that_is_full_from_the_start_leaves_nothing(place, monkeypatch, capsys):
    before = contents(place)

    def full(descriptor):
        raise OSError(errno.ENOSPC, FULL)

    monkeypatch.setattr(os, "fsync", full)
    sentence = refused(capsys, *SHORT, "--out", "run", naming=f"run/run.json: {FULL}")
    assert "--resume" not in sentence  # for there is no run
    assert contents(place) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk here is always full")
def test_a_log_that_can_not_be_written_says_how_to_go_on(place, monkeypatch, capsys):
    """Whatever the lines that are still to be written do when the file is closed."""
    fresh = [*BASE, "--prompt-tokens", "2", "--epochs", "3", "--out"]
    assert end(*fresh, "whole") == 0
    log = run_folder.RunFolder.log
    told = []

    def full(self, *values):
        told.append(values)
        if len(told) == 4:
            os.dup2(os.open("/dev/full", os.O_WRONLY), self.log_file.fileno())
        log(self, *values)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "log", full)
        naming = f"{FULL}; mend that and go on with: python"
        sentence = refused(capsys, *fresh, "run", naming=naming)
    assert sentence.endswith("train.py --resume run")
    assert end("--resume", "run") == 0
    assert but_paths(timeless(place / "run")) == but_paths(timeless(place / "whole"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize("kilobytes", [20, 125])
def test_on_a_small_disk_the_last_good_state_stays(place, kilobytes):
    """Too small for the first checkpoint, or for a later one.  With more room the run goes on."""
    flags = [*BASE, "--prompt-tokens", 2, 3, 20, "--seeds", 0, 1, 2, 3, "--epochs", 3]
    flags += ["--cache-text", "off", "--out"]
    os.mkdir("small")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", "small"]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        assert end_of(begin(*flags, "small/run", said="said")) == 2
        error = Path("said").read_text().strip().split("\n")[-1]
        assert re.search(f"small/run.*{FULL}.*--resume small/run", error)
        assert not list(place.glob("small/**/*.tmp"))
        assert not os.path.exists("small/run/summary.json")
        check_readable(place / "small" / "run")
        remount = ["mount", "-o", "remount,size=10m", "small"]
        subprocess.run(remount, check=True)
        assert os.path.exists(f"small/run/{CHECKPOINT}") == (kilobytes == 125)
        assert end_of(begin("--resume", "small/run")) == 0
        resumed = timeless(place / "small" / "run")
    finally:
        subprocess.run(["umount", "small"], check=True)
    assert end(*flags, "run") == 0
    alone = timeless(place / "run")
    assert resumed["metrics.jsonl"] == alone["metrics.jsonl"]
    assert resumed["summary.json"] == alone["summary.json"]


def test_a_run_that_never_began_is_not_sent_to_resume(place, capsys):
    """Its folder cannot be written to."""
    os.mkdir("closed")
    Path("closed/run").write_text("")
    sentence = refused(capsys, *SHORT, "--out", "closed/run/deeper")
    assert "--resume" not in sentence


# ---- several processes ----------------------------------------------------------------------

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
TORCHRUN += ["--nproc-per-node", "2"]


def check_near(one, many):
    """Two runs say the same, but for the last digits of the losses and the tensors."""
    first = timeless(one)
    second = timeless(many)
    assert second.keys() == first.keys()
    assert any(line["split"] == "train" for line in first["metrics.jsonl"])
    lines = zip(first["metrics.jsonl"], second["metrics.jsonl"], strict=True)
    for a, b in lines:
        inexact = {"loss": 0, "norm": 0}
        assert a | inexact == b | inexact
        assert abs(a["loss"] - b["loss"]) < 1e-6
        assert b["norm"] == (a["norm"] and pytest.approx(a["norm"], rel=1e-4))
    for path in one.glob("prompts/*/prompt.safetensors"):
        a = read_prompt(path).prompt
        b = read_prompt(many / "prompts" / path.parent.name / path.name).prompt
        assert (a.vectors - b.vectors).abs().max() < 1e-5
        assert (a.head - b.head).abs().max() < 1e-5


def test_two_processes_of_torchrun_reach_what_one_does(place):
    """54 texts in batches of 8: the last has 6."""
    argv = [*BASE, "--prompt-tokens", "2", "3", "--epochs", "2", "--out"]
    words = [sys.executable, *TORCHRUN, str(ROOT / "train.py"), *argv, "many"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("95 % interval") == 1
    assert end(*argv, "one") == 0
    check_near(place / "one", place / "many")


def test_three_processes_reach_what_one_does(place):
    """In batches of 53 the last has one text, fewer than there are processes."""
    argv = [*BASE, "--epochs", "10", "--batch-size", "53", "--head-lr", "0.1", "--train", "head"]
    argv.append("--out")
    for i, process in enumerate(team(3, *argv, "many")):
        assert end_of(process) == 0
        said = Path(f"said{i}").read_text()
        assert said.count("95 % interval") == (i == 0)
    assert end(*argv, "one") == 0
    check_near(place / "one", place / "many")


def test_a_process_that_dies_ends_the_others_with_its_cause(place):
    processes = team(2, *BASE, "--epochs", 1000, "--out", "run")
    wait_for_steps(processes)
    processes[1].kill()
    assert end_of(processes[0]) == 2
    said = Path("said0").read_text()
    assert re.search("the processes lost each other.*--resume run", said)
    check_a_signal_to_one_saves_and_ends_all()


def check_a_signal_to_one_saves_and_ends_all():
    """And what two processes began, two go on with, not one."""
    processes = team(2, "--resume", "run")
    wait_for_steps(processes)
    processes[1].terminate()
    for i, process in enumerate(processes):
        assert end_of(process) == 128 + signal.SIGTERM
        said = Path(f"said{i}").read_text()
        way = re.search(r"go on with: torchrun --nproc-per-node 2 \S*train.py --resume run", said)
        assert bool(way) == (i == 0)
    # Where all of them look for signals: at a line of the log, which an epoch's end has, too.
    assert 0 in (stored("run")["step"] % 10, stored("run")["step"] % 7)
    assert end("--resume", "run") == 2


def odd_child(argv, **more):
    """Of a team: rank 1 is late where it waits for nobody; rank 0 may make no folder `barred`."""
    rank = int(more["environment"]["RANK"])
    joined = processes.joined
    mkdir = Path.mkdir

    def late(device):
        time.sleep(rank)
        return joined(device)

    def refuse(path, *args, **kwargs):
        if path.name == "barred":
            raise PermissionError(13, "Permission denied", str(path))
        mkdir(path, *args, **kwargs)

    train.joined = late
    Path.mkdir = refuse
    child(argv, **more)


@pytest.mark.parametrize("out", ["run", "barred", "d"])
def test_a_team_ends_as_one(place, out):
    """By the same sentence, if it is refused."""
    team_of_two = team(2, *SHORT, "--out", out, target=odd_child)
    codes = [end_of(process) for process in team_of_two]
    last = [Path(f"said{rank}").read_text().strip().split("\n")[-1] for rank in (0, 1)]
    if out == "run":
        assert codes == [0, 0]
        assert os.path.exists("run/summary.json")
        return
    assert codes == [2, 2]
    assert last[0] == last[1]
    assert re.fullmatch(f"error: .*{out}.*", last[0])


# ---- streams --------------------------------------------------------------------------------


def open_stream(kind):
    """A stream that is closed, full, or cannot say a character"""
    if kind == "closed":
        return None
    path = "/dev/full" if kind == "full" else "said"
    return open(path, "w", 1, encoding="ascii")


KINDS = ["closed", "full", "ascii"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk here is always full")
@pytest.mark.parametrize("out", KINDS)
@pytest.mark.parametrize("err", KINDS)
def test_a_stream_that_is_odd_changes_no_result(place, monkeypatch, out, err):
    shutil.copytree("d", "dé日")
    long_row = b"film " * 40 + b"\t1\n"  # of which is said that it is cut
    rewrite("dé日/dev.tsv", lambda data: data + long_row)
    argv = [*SHORT, "--data", "dé日", "--out"]
    assert end(*argv, "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", open_stream(out))
        patch.setattr("sys.stderr", open_stream(err))
        code = end(*argv, "run")
    assert code in (0, 2 if out == "full" else 0)
    assert but_paths(timeless(place / "run")) == but_paths(timeless(place / "whole"))


def test_a_shell_without_streams_changes_no_result(place):
    shutil.copytree("d", "dé日")
    words = [sys.executable, str(ROOT / "train.py"), *SHORT, "--data", "dé日", "--out"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    script = '"$@" one; "$@" two >&- 2>&- <&-'
    shell = ["bash", "-c", script, "bash", *words]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "d\\xe9\\u65e5" in done.stdout
    assert but_paths(timeless(place / "one")) == but_paths(timeless(place / "two"))
