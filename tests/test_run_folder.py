"""support/run_folder.py: what a run leaves, whose the files are, one writer, whole checkpoints."""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import stat
import warnings
from pathlib import Path

import pytest
import torch

import evaluate
import train
from helpers import ask, contents, copy_tree, entries, rewrite
from run_helpers import (
    BASE,
    CHECKPOINT,
    LOCK,
    SHORT,
    TEMPORARY,
    begin,
    digest,
    end,
    end_of,
    files_in,
    forget,
    prompt_path,
    read_json,
    refused,
    run,
    signal_at,
    stop_at,
    stored,
    timeless,
    wait_for_steps,
    watch,
)
from support import run_folder
from support.checkpoint import open_checkpoint
from support.files import ODD as ODD_CONTENT
from support.prompt_file import read_prompt
from support.run_folder import LogLine, read_facts, state_bytes, state_of
from support.summary import find_prompts

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such links and FIFOs")
PROMPT = "prompts/p2-s0/prompt.safetensors"

# ---- what a run leaves ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory, checkpoint):
    """A model m, data d, and a finished run of two prompts, to be copied from."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(checkpoint[0], "m")
        Path("m/revision").write_text("abc")  # a download leaves this
        for split, rows in (("train", 40), ("dev", 8)):
            Path("d").mkdir(exist_ok=True)
            lines = [f"{('dull', 'fine')[i % 2]} {split[0]}{i}\t{i % 2}\n" for i in range(rows)]
            Path(f"d/{split}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
        assert end(*SHORT, "--seeds", 0, 1, "--out", "run") == 0
    return folder


@pytest.fixture
def here(tmp_path, home, monkeypatch):
    """A working folder with a copy of all of that"""
    copy_tree(home, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def three_epochs(place, capsys):
    """(run.json, log, summary, what was printed) of four prompts in three epochs"""
    (place / "m" / "revision").write_text("abc")
    # What comes twice is one.
    flags = ["--prompt-tokens", 2, 3, 2, "--seeds", 0, 1, 0, "--epochs", 3]
    found = run(*flags)
    return *found, capsys.readouterr().out


FOUR = ["p2-s0", "p2-s1", "p3-s0", "p3-s1"]


def test_a_run_writes_these_files_and_no_others(three_epochs, place):
    names = {CHECKPOINT, "metrics.jsonl", "run.json", "summary.json"}
    names |= {f"prompts/{name}/prompt.safetensors" for name in FOUR}
    assert set(files_in(place / "run")) == names


def test_the_lock_goes_at_the_end(three_epochs, place):
    assert not (place / "run" / LOCK).exists()


def test_run_json_says_what_the_run_is(three_epochs, place):
    facts, *_ = three_epochs
    assert facts["format"] == "prompt-training-run/1"
    assert facts["prompts"] == FOUR
    assert facts["labels"] == ["0", "1"]
    assert facts["texts"] == {"train": 54, "hold-out": 6, "dev": 12}
    assert facts["settings"]["total_steps"] == 21
    assert facts["settings"]["model"] == str(place / "m")
    assert facts["settings"]["seeds"] == [0, 1]
    hashes = {split: digest(f"d/{split}.tsv") for split in ("train", "dev")}
    assert facts["data"] == hashes
    assert facts["base"]["base_sha256"] == open_checkpoint("m").base.base_sha256
    assert facts["versions"]["torch"] == torch.__version__


def test_what_run_json_says_is_read_as_it_was_written(three_epochs):
    facts, *_ = three_epochs
    again = read_facts("run")
    assert again.settings.prompt_tokens == [2, 3]
    assert json.loads(run_folder.to_json(again)) == facts


def test_the_summary_has_a_row_for_each_prompt(three_epochs):
    _, _, summary, _ = three_epochs
    assert [row["name"] for row in summary["prompts"]] == FOUR
    assert summary["finished"] is True
    for row in summary["prompts"]:
        assert row["n"] == 12
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
        assert 1 <= row["epoch"] <= 3
        assert row["folder"] == f"prompts/{row['name']}"
        assert row["lr"] == 0.03


def test_a_prompt_says_how_it_came_about_and_what_it_is_worth(three_epochs, place):
    _, _, summary, _ = three_epochs
    for row in summary["prompts"]:
        file = read_prompt(f"run/{row['folder']}/prompt.safetensors")
        assert file.prompt.vectors.shape == (row["prompt_tokens"], 10)
        assert len(file.init_ids) == row["prompt_tokens"]
        assert file.base == open_checkpoint("m").base
        assert file.base.base_revision == "abc"
        assert file.scores.accuracy == row["accuracy"]
        assert file.scores.selected == row["selection"]["accuracy"]
        assert file.scores.untrained == row["untrained"]
        assert file.scores.majority == summary["baselines"]["majority"]
        assert file.scores.n == 12
        recipe = vars(file.recipe)
        assert recipe == {
            "data": str(place / "d"),
            "text_column": None,
            "label_column": None,
            "max_examples": None,
            "batch_size": 8,
            "epochs": 3,
            "steps": None,
            "patience": None,
            "train": "prompt+head",
            "select_on": "hold-out",
            "select_by": "accuracy",
            "dtype": "float32",
            "lr": 0.03,
            "head_lr": 0.005,
            "seed": row["seed"],
            "epoch": row["epoch"],
        }


def test_the_log_has_a_line_every_ten_steps_and_at_an_epochs_end(three_epochs):
    _, lines, _, _ = three_epochs
    logged = []
    for line in lines:
        if line["split"] == "train":
            logged.append((line["step"], line["prompt"]))
    assert logged == [(step, name) for step in (7, 10, 14, 20, 21) for name in FOUR]


def test_every_line_of_the_log_has_the_same_keys(three_epochs):
    _, lines, _, _ = three_epochs
    keys = list(LogLine.__dataclass_fields__)
    assert set(keys) == {
        "step",
        "epoch",
        "prompt",
        "split",
        "loss",
        "accuracy",
        "lr",
        "examples_per_second",
        "norm",
    }
    assert all(list(line) == keys for line in lines)


def test_the_table_at_the_end_shows_every_prompt(three_epochs):
    _, _, summary, printed = three_epochs
    for row in summary["prompts"]:
        cells = [row["name"], "0.03", row["epoch"]]
        cells += [f"{row['selection']['accuracy']:.4f}", f"{row['accuracy']:.4f}"]
        pattern = "^" + " +".join(str(cell) for cell in cells) + " .* to "
        assert re.search(pattern, printed, flags=re.MULTILINE)
    assert re.search("^majority +0", printed, flags=re.MULTILINE)
    assert "95 % interval" in printed


# ---- overwriting ----------------------------------------------------------------------------


def test_overwrite_leaves_only_the_new_run(place):
    run("--steps", 1, "--prompt-tokens", 2)
    run("--steps", 1, "--prompt-tokens", 3, "--overwrite")
    assert os.listdir("run/prompts") == ["p3-s0"]
    assert read_facts("run").prompts == ["p3-s0"]


def test_what_a_kill_before_the_start_left_is_no_obstacle(place):
    os.mkdir("run")
    (place / "run" / TEMPORARY).write_text("{")
    (place / "run" / LOCK).write_text("")
    run("--steps", 1)
    assert not (place / "run" / TEMPORARY).exists()
    assert not (place / "run" / LOCK).exists()


def test_overwrite_first_takes_the_old_run_away_and_writes_the_summary_last(place, monkeypatch):
    """So no kill leaves a mixture of two runs."""
    run("--steps", 1, "--prompt-tokens", 2)
    replaced = []
    replace = os.replace

    def watch_replace(old, new):
        names = set(files_in(place / "run"))
        replaced.append((Path(new).name, names))
        replace(old, new)

    monkeypatch.setattr(os, "replace", watch_replace)
    run("--steps", 1, "--prompt-tokens", 3, "--overwrite")
    first, there = replaced[0]
    assert first == "run.json"
    assert there == {"run.json", LOCK, TEMPORARY}
    names = [name for name, _ in replaced]
    assert names.count("summary.json") == 1
    assert names[-1] == "summary.json"


def test_a_run_that_is_there_is_refused_with_every_way_on(here, capsys):
    before = contents(here)
    sentence = refused(capsys, *SHORT, "--out", "run", naming="run holds a run")
    assert "--overwrite" in sentence
    assert "--resume run" in sentence
    assert "--out" in sentence
    assert contents(here) == before


@pytest.mark.parametrize("init", ["run", "run/prompts/p2-s0", f"run/{PROMPT}"])
def test_a_prompt_in_the_run_that_would_be_replaced_is_no_beginning(here, capsys, init):
    before = contents(here)
    flags = ["--out", "run", "--overwrite", "--init", init]
    refused(capsys, *SHORT, *flags, naming="lies in the run")
    assert contents(here) == before


# ---- what the project did not write stays as it is ------------------------------------------

OURS = re.compile(
    r"\.prompt-training\.(tmp|lock)|run\.json|summary\.json|metrics\.jsonl"
    r"|checkpoint(/state\.safetensors)?|prompts(/p\d+-s\d+(/prompt\.safetensors)?)?"
)
PLACES = ["run.json", "summary.json", "metrics.jsonl", "checkpoint", CHECKPOINT, "prompts"]
PLACES += ["prompts/p2-s0", PROMPT, TEMPORARY, LOCK]
NAMES = [*PLACES, "thesis.txt", "notes.tmp", ".notes.0123456789abcdef.tmp", "o.tsv.tmp", "sub"]
NAMES += ["text-cache", "prompts/mine.txt", "prompts/p2-s0/notes.txt", "prompts/p3-s0"]
NAMES += ["prompts/p3-s0/prompt.safetensors"]
FORCED = list(itertools.product(PLACES, ["link", "file", "hard", "fifo"]))
KINDS = ["file", "file", "file", "folder", "link", "link", "hard", "fifo", "device"]
REGULAR = stat.S_IFREG >> 12
FOLDER = stat.S_IFDIR >> 12


def foreign_text(draw, name):
    """The content of a file that another program, or a person, has written"""
    if name == "run.json":  # another program's, but alike
        return Path("run/run.json").read_bytes().replace(b"-run/1", b"-run/9")
    return draw.choice([b"{}", b"notes\nindex\tprediction\nmore", b"x"])


def put(draw, name, kind, out, outside):
    """A file, a folder, a link, another name of a file, a FIFO or, where that may be, a device."""
    path = out / name
    target = draw.choice(["a.txt", "full", "no", f"run/{name}", f"run/{name}", f"run/{name}"])
    text = foreign_text(draw, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        path.mkdir()
        (path / "thesis.txt").write_bytes(text)
    elif kind == "link":
        path.symlink_to(outside / target)
    elif kind == "hard":
        os.link(outside / "a.txt", path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        os.mknod(path, 0o20666, os.makedev(1, 3))
    else:
        with path.open("xb") as file:
            file.write(text)


def build(draw, case, outside, out):
    """A folder outside, to which links lead, and out with anything in it, often a run of ours."""
    for folder in (outside, out):
        forget(folder)
        (folder / "full").mkdir(parents=True)
        (folder / "full" / "a.txt").write_text("mine")
    shutil.copytree("run", outside / "run")
    (outside / "a.txt").write_text("mine")
    if draw.random() < 0.3:
        forget(out / "full")
    names = draw.sample(NAMES, draw.randrange(5))
    spots = [(name, draw.choice(KINDS)) for name in names]
    if case < len(FORCED) or draw.random() < 0.5:
        copy_tree("run", out)
        spots = FORCED[case : case + 1] + spots
        for name, _ in spots[:2]:
            remove(out / name)
    for name, kind in spots:
        with contextlib.suppress(OSError):  # where something is there already
            put(draw, name, kind, out, outside)


def remove(path):
    """Take away a file or a folder, where there is one."""
    if path.is_dir() and not path.is_symlink():
        forget(path)
    else:
        path.unlink(missing_ok=True)


def commands(draw):
    """Train afresh, --overwrite and --resume, in any order; a part of the inputs lies in out."""
    inputs = {"--model": "m", "--data": "d", "--init": "sample"}
    sources = [("--model", "m"), ("--data", "d"), ("--init", f"run/{PROMPT}")]
    for flag, source in draw.sample(sources, draw.randrange(3)):
        inputs[flag] = f"out/my{flag}"  # as a user keeps all in one place
        if flag == "--init":
            shutil.copy(source, inputs[flag])
        else:
            shutil.copytree(source, inputs[flag])
    fresh = [*SHORT, "--out", "out"]
    for flag, value in inputs.items():
        fresh += [flag, value]
    ways = {"fresh": fresh, "overwrite": [*fresh, "--overwrite"], "resume": ["--resume", "out"]}
    return draw.sample(list(ways.items()), 3)


def check_untouched(way, before, after):
    """Nothing but files and folders of our names has changed, and these in a run of ours alone."""
    kind, content = before.get("run.json", (0, b""))
    is_run = kind == REGULAR and b'"prompt-training-run/1"' in content and way != "fresh"
    may_write = is_run or not before
    for name in before.keys() | after.keys():
        was = before.get(name, (REGULAR, None))[0]
        own = may_write and OURS.fullmatch(name) and was in (REGULAR, FOLDER)
        assert own or before.get(name) == after.get(name), (way, name)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_of_a_user_is_touched(here, capsys, seed):
    """Fifteen folders, in each of which a run is trained afresh, replaced and resumed."""
    draw = random.Random(seed)
    outside = here / "outside"
    out = here / "out"
    ended = set()
    for case in range(seed, 60, 4):
        build(draw, case, outside, out)
        for way, argv in commands(draw):
            before = entries(out)
            others = entries(outside)
            code, _, err = ask(capsys, train, *argv)
            assert code in (0, 2), (argv, err)
            assert code == 0 or re.search("(?m)^error: .+$", err), (argv, err)
            assert entries(outside) == others, (case, way, err)
            check_untouched(way, before, entries(out))
            ended.add((way, code))
    assert len(ended) >= 4  # most were refused, and went through


MAKERS = {
    "another's run": lambda: shutil.copytree("run", "new"),
    "another's log": lambda: write_foreign_log("new"),
}


def write_foreign_log(folder):
    """A folder with a file that has a name of ours"""
    os.mkdir(folder)
    Path(folder, "metrics.jsonl").write_text("index\tsentence\n0\tfine film\n")


@pytest.mark.parametrize("case", MAKERS)
def test_what_appears_after_the_first_look_is_not_touched_either(here, monkeypatch, capsys, case):
    """It is made while the model is loaded."""
    seen = {}
    start = train.start_trials

    def appear(*args):
        MAKERS[case]()
        seen.update(entries(here / "new"))
        return start(*args)

    monkeypatch.setattr(train, "start_trials", appear)
    refused(capsys, *SHORT, "--out", "new", naming="new")
    assert entries(here / "new") == seen


@pytest.mark.parametrize("kind", ["link", "hard", "fifo", "folder"])
def test_a_lock_that_is_not_ours_is_refused_and_stays(here, capsys, kind):
    """A link could lead to a file of the user's, which locking might cut."""
    Path("thesis.txt").write_text("mine")
    lock = Path("run", LOCK)
    if kind == "link":
        lock.symlink_to("../thesis.txt")
    elif kind == "hard":
        os.link("thesis.txt", lock)
    elif kind == "fifo":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    before = entries(here)
    refused(capsys, "--resume", "run", naming=LOCK)
    refused(capsys, *SHORT, "--out", "run", "--overwrite", naming=LOCK)
    assert entries(here) == before


# ---- one writer -----------------------------------------------------------------------------


def test_a_run_at_work_is_in_use_and_a_killed_one_is_not(place, capsys):
    fresh = [*BASE, "--prompt-tokens", "2", "--epochs", "15", "--out", "run"]
    process = begin(*fresh)
    try:
        wait_for_steps([process])
        os.kill(process.pid, signal.SIGSTOP)  # it is still there when the others come
        before = contents(place / "run")
        for argv in (["--resume", "run"], [*fresh, "--overwrite"]):
            refused(capsys, *argv, naming="in use")
        assert contents(place / "run") == before
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert end_of(process) == 0
    whole = timeless(place / "run")
    assert end_of(begin(*fresh, "--overwrite", die=(20, 0))) == -signal.SIGKILL
    assert end("--resume", "run") == 0
    # These say how it was begun.
    begun = {"run.json": None, CHECKPOINT: None}
    assert timeless(place / "run") | begun == whole | begun


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_serves_as_well(place, monkeypatch, capsys, number):
    """Lustre, NFS without its daemon and others refuse to lock."""

    def no_lock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    fresh = [*SHORT, "--out", "run"]
    for argv in (fresh, [*fresh, "--overwrite"], ["--resume", "run"]):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # one of a library would be told in its own words
            code, _, err = ask(capsys, train, *argv)
        assert code == 0, (argv, err)
    assert Path("run/summary.json").exists()
    assert not Path("run", LOCK).exists()


# ---- a folder that changes while the run is at work -----------------------------------------


def move(place):
    """The folder gets another name."""
    os.rename("run", "archive")


def move_and_begin_another(place):
    """The folder gets another name, and its own name goes to another run, whole."""
    os.rename("run", "archive")
    shutil.copytree(place / "other", "run")


def fill(place):
    """The folder gets another name, and its own name goes to a folder of the user's."""
    os.rename("run", "archive")
    os.mkdir("run")
    Path("run/thesis.txt").write_text("mine")
    Path("run/summary.json").write_text("mine, too")
    Path("run", LOCK).write_text("")


def delete(place):
    """The folder is deleted."""
    shutil.rmtree("run")


def become_a_file(place):
    """The folder gets another name, and its own name goes to a file."""
    os.rename("run", "archive")
    Path("run").write_text("mine")


def become_a_link(place):
    """The folder gets another name, and its own name goes to a link to a folder of the user's."""
    os.rename("run", "archive")
    os.symlink("d", "run")


CHANGES = [move, move_and_begin_another, fill, delete, become_a_file, become_a_link]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_run_whose_folder_is_another_one_writes_nothing_there(place, monkeypatch, capsys, change):
    """It ends in one sentence, which does not send anybody to a run that is not there."""
    assert end(*SHORT, "--out", "other") == 0
    seen = {}

    def disturb(step, prompts):
        if step == 9:
            change(place)
            seen.update(entries(place))

    watch(monkeypatch, disturb)
    fresh = [*BASE, "--prompt-tokens", "2", "--epochs", "3", "--out", "run"]
    sentence = refused(capsys, *fresh, naming="run")
    assert "moved or replaced" in sentence
    assert "--resume" not in sentence
    after = entries(place)
    log = "archive/metrics.jsonl"  # which was open
    seen.pop(log, None)
    after.pop(log, None)
    for name in (f"archive/{LOCK}",):
        seen.pop(name, None)
        after.pop(name, None)
    assert after == seen


def test_a_run_that_was_moved_goes_on_where_it_lies_now(place, monkeypatch, capsys):
    fresh = [*BASE, "--prompt-tokens", "2", "--epochs", "3", "--out"]
    assert end(*fresh, "whole") == 0

    def disturb(step, prompts):
        if step == 9:
            move(place)

    with monkeypatch.context() as patch:
        watch(patch, disturb)
        assert end(*fresh, "run") == 2
    assert end("--resume", "archive") == 0
    moved = timeless(place / "archive")
    whole = timeless(place / "whole")
    assert moved["metrics.jsonl"] == whole["metrics.jsonl"]
    assert moved["summary.json"] == whole["summary.json"]
    assert moved[PROMPT] == whole[PROMPT]


@pytest.mark.parametrize("change", [move, fill, delete], ids=lambda change: change.__name__)
def test_a_signal_after_the_folder_has_gone_sends_nobody_there(place, monkeypatch, capsys, change):
    def disturb(step, prompts):
        if step == 3:
            change(place)
            os.kill(os.getpid(), signal.SIGINT)

    watch(monkeypatch, disturb)
    code, _, err = ask(capsys, train, *BASE, "--epochs", "3", "--out", "run")
    assert code in (2, 130)
    assert "--resume" not in err


def test_a_folder_that_is_filled_keeps_what_a_user_puts_in(place, monkeypatch):
    def disturb(step, prompts):
        if step == 2:
            Path("run/thesis.txt").write_text("mine")
            Path("run/prompts/p2-s0").mkdir(parents=True)
            Path("run/prompts/p2-s0/notes.txt").write_text("mine")

    watch(monkeypatch, disturb)
    run("--prompt-tokens", 2, "--epochs", 2)
    run("--prompt-tokens", 3, "--epochs", 1, "--overwrite")
    assert Path("run/thesis.txt").read_text() == "mine"
    assert Path("run/prompts/p2-s0/notes.txt").read_text() == "mine"
    assert not Path("run", PROMPT).exists()


# ---- names of folders -----------------------------------------------------------------------

NAMES_OF_RUNS = [
    "my run",
    "it's",
    'the "best"',
    "a$HOME",
    "-x",
    "--out",
    "`ls`",
    "naïve 日本",
    "two\nlines",
    "tab\tin",
    "~",
    "a*?[b]",
    "x" * 200,
    "semi;colon & more | less",
    "back\\slash",
    "#hash",
]


def printed_command(text):
    """The words of the command that a sentence tells"""
    found = re.search(r"(?:python|torchrun) .*?train\.py --resume .*", text)
    command = found.group()
    return shlex.split(command.split(", or name another")[0])


@pytest.mark.parametrize("name", NAMES_OF_RUNS)
def test_a_command_that_is_printed_goes_on_with_any_folder(place, monkeypatch, capsys, name):
    """What stands after the name of the program is given to it as a shell would give it."""
    with monkeypatch.context() as patch:
        watch(patch, signal_at(3))
        code, _, err = ask(capsys, train, *SHORT, "--steps", "6", f"--out={name}")
    assert code == 130
    if not name.isprintable():
        pytest.skip("a terminal shows such a name escaped; no shell would take it back")
    words = printed_command(err)
    assert words[:2] == ["python", "train.py"]
    assert end(*words[2:]) == 0
    assert Path(f"./{name}", "summary.json").exists()


def random_names(number):
    """Names of folders out of signs that shells and programs take for something else"""
    draw = random.Random(0)
    signs = list(" '\"$`\\!*?[]{}()<>|;&~#%=-ab.é日")
    names = []
    while len(names) < number:
        name = "".join(draw.choice(signs) for _ in range(draw.randrange(1, 9)))
        if name.strip(".") and not name.isspace():
            names.append(name)
    return names


def test_a_command_for_any_of_two_hundred_names_is_one_that_is_taken_back():
    for name in random_names(200):
        words = shlex.split(run_folder.go_on_command(name))
        assert words[-2] == "--resume", name
        assert os.path.normpath(words[-1]) == os.path.normpath(name), name
        assert not words[-1].startswith("-"), name


def test_a_way_on_under_torchrun_is_torchruns(monkeypatch):
    monkeypatch.setattr("support.terminal.rank_and_world", lambda: (0, 3))
    words = shlex.split(run_folder.go_on_command("run"))
    assert words[:3] == ["torchrun", "--nproc-per-node", "3"]
    assert words[-2:] == ["--resume", "run"]


def test_nothing_speaks_to_the_terminal(here, capsys):
    """Whatever the names of folders hold."""
    name = "\x1b[2J\x07\x9b\r\x85"
    for old in ("run", "m", "d"):
        os.rename(old, old + name)
    inputs = ["--model", f"m{name}", "--data", f"d{name}"]
    fresh = [*SHORT, *inputs, "--out", f"new{name}"]
    wrong = [[flag, name] for flag in ("--lr", "--cache-text", "--model", "--device")]
    text = [*fresh, "--init", name, "--overwrite"]
    for argv in (fresh, fresh, text, ["--resume", name], [name], *wrong):
        code, out, err = ask(capsys, train, *argv)
        assert code in (0, 2)
        for line in (out + err).splitlines():
            assert line.isprintable(), (argv, line)


# ---- a checkpoint is whole, or refused ------------------------------------------------------


def test_a_tree_comes_back_as_it_was():
    tensor = torch.arange(6.0).view(2, 3)
    tree = {"a": [1, 2.5, None, "x"], "state": {0: {"m": tensor}, 1: {"m": tensor.half()}}}
    again = state_of(state_bytes(tree))
    assert again["a"] == tree["a"]
    assert list(again["state"]) == [0, 1]
    for key in (0, 1):
        assert torch.equal(again["state"][key]["m"], tree["state"][key]["m"])
        assert again["state"][key]["m"].dtype == tree["state"][key]["m"].dtype


def damage(draw, case, whole, header):
    """A checkpoint with something else in it, in the header or anywhere"""
    data = bytearray(whole)
    i = draw.randrange((header, len(whole))[case % 2])
    if case % 10 == 0:  # cut out, or put in
        data[i:i] = draw.randbytes(case % 9 + 1)
    elif case % 10 == 1:
        size = draw.choice([1, 8, len(whole)])
        put_in = draw.randbytes(case % 9 + 1) if case % 20 < 11 else b""
        data[i : i + size] = put_in
    else:
        data[i] ^= 1 << draw.randrange(8)
    return bytes(data)


def test_no_flip_and_no_cut_of_a_checkpoint_passes(here, capsys):
    """2,000 of them; what is read nevertheless has to be the same to the bit, which none is."""
    path = Path("run", CHECKPOINT)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(0)
    for case in range(2000):
        data = damage(draw, case, whole, header)
        assert data != whole
        with pytest.raises(ODD_CONTENT):
            state_of(data)
        if case % 250 < 2:
            path.write_bytes(data)
            refused(capsys, "--resume", "run", naming="state.safetensors")


def another_run():
    """A run that differs in its rate alone"""
    assert end(*SHORT, "--seeds", 0, 1, "--lr", 0.02, "--out", "other") == 0


def anothers_checkpoint():
    another_run()
    shutil.copy(f"other/{CHECKPOINT}", f"run/{CHECKPOINT}")


def anothers_log():
    another_run()
    shutil.copy("other/metrics.jsonl", "run/metrics.jsonl")


def no_log():
    os.remove("run/metrics.jsonl")


def a_byte_less():
    rewrite("run/metrics.jsonl", lambda data: data[:-1])


def the_first_line_gone():
    rewrite("run/metrics.jsonl", lambda data: data[data.index(b"\n") + 1 :])


def a_bit_of_the_log():
    rewrite("run/metrics.jsonl", lambda data: bytes([data[0] ^ 1]) + data[1:])


def another_rate():
    rewrite("run/run.json", lambda data: data.replace(b"0.03", b"0.04"))


def another_argv():
    rewrite("run/run.json", lambda data: data.replace(b'"--steps"', b'"--step"'))


def another_form():
    rewrite("run/run.json", lambda data: json.dumps(json.loads(data)).encode())


UNBOUND = [anothers_checkpoint, anothers_log, no_log, a_byte_less, the_first_line_gone]
UNBOUND += [a_bit_of_the_log, another_rate, another_argv, another_form]


@pytest.mark.parametrize("change", UNBOUND, ids=lambda change: change.__name__)
def test_a_checkpoint_is_bound_to_its_run_and_its_log(here, monkeypatch, capsys, change):
    """Else nothing is trained, and no prompt and no summary is written."""
    change()
    steps = watch(monkeypatch)
    before = contents(here / "run")
    refused(capsys, "--resume", "run", naming="run")
    after = contents(here / "run")
    for log in (before, after):
        log.pop(here / "run" / "metrics.jsonl", None)
    assert not steps
    assert after == before


# ---- JSON of ours ---------------------------------------------------------------------------

ODD = ["null", "true", "0", "1", "-1", "3.5", "1e300", "-1e999", "NaN", "16777215", "2147483648"]
ODD += ["[]", "{}", "[1]", "[[1]]", "9" * 400, "9" * 5000, "[" * 10**5, "[" * 2000 + "]" * 2000]
ODD += ['{"a": 1}', '"\\ud800"', '""', '"x"', '"$$"', '"\\u001b[2J"', '"\\u0000"', '"a\\nb"']
ODD += ['"../x"', '"a/b"', '"%s"', '["\\u001b"]', json.dumps("x" * 9999), '"p2-s0"', '"head"']
EXTRA = ["run", "path", "majority", "model", "prompt_tokens", "max_examples", "name", "help"]


def holes(value):
    """value with a hole, "@@", in the place of each of its parts, and at keys that it has not"""
    yield "@@"
    if isinstance(value, dict):
        for key, item in value.items():
            for hole in holes(item):
                yield value | {key: hole}
        for key in EXTRA:
            if "lr" in value and key not in value:
                yield value | {key: "@@"}
    elif isinstance(value, list):
        for i, item in enumerate(value):
            for hole in holes(item):
                yield [*value[:i], hole, *value[i + 1 :]]


def answer_of(reader):
    """What a reader of ours gives, or the sentence of its refusal; nothing else may happen"""
    try:
        return reader()
    except (ValueError, OSError) as error:
        return str(error)


READERS = {
    "run.json": lambda: read_facts("run"),
    "summary.json": lambda: find_prompts("run", every=True),
}


@pytest.mark.parametrize("name", READERS)
def test_odd_values_in_our_json_get_an_answer_or_a_sentence(here, capsys, name):
    """And now and then the whole program, which does the rest."""
    path = Path("run", name)
    value = json.loads(path.read_bytes())
    draw = random.Random(0)
    tried = 0
    for hole in holes(value):
        for odd in ["0", *draw.sample(ODD, 12)]:
            tried += 1
            path.write_text(json.dumps(hole).replace('"@@"', odd))
            answer = answer_of(READERS[name])
            assert not isinstance(answer, str) or name in answer, (name, hole, odd)
            if tried % 100 == 0:
                code, _, err = ask(capsys, train, "--resume", "run")
                assert code == 0 or err.startswith("error: "), err
    assert tried >= 500


# ---- what is old is still read --------------------------------------------------------------

OLD_SETTINGS = {  # as the first version wrote them
    "model": "tiny",
    "data": "reviews",
    "text_column": None,
    "label_column": None,
    "num_labels": 2,
    "max_examples": None,
    "select_on": "hold-out",
    "prompt_tokens": [2],
    "seeds": [0],
    "init": "sample",
    "train": "prompt+head",
    "lr": [0.03],
    "head_lr": 0.005,
    "epochs": 6,
    "steps": None,
    "patience": None,
    "cache_text": "auto",
    "out": "/somewhere/runs/tiny-reviews",
    "device": "cpu",
    "dtype": "float32",
    "batch_size": 16,
    "total_steps": 666,
    "processes": 1,
}
OLD_FACTS = {
    "format": "prompt-training-run/1",
    "argv": ["--model", "tiny"],
    "settings": OLD_SETTINGS,
    "data": {"train": "0" * 64, "dev": "1" * 64},
    "versions": {"python": "3.11.7", "torch": "2.6.0"},
    "base": {"base_model": "tiny", "base_revision": "", "base_sha256": "2" * 64},
    "texts": {"train": 1775, "hold-out": 157, "dev": 399},
    "labels": ["negative", "positive"],
    "prompts": ["p2-s0"],
}


def old_row(name, accuracy, loss):
    """What the first version's summary.json says of a prompt"""
    return {
        "name": name,
        "folder": f"prompts/{name}",
        "prompt_tokens": 2,
        "seed": 0,
        "lr": 0.03,
        "epoch": 3,
        "broke": 0,
        "selection": {"split": "hold-out", "accuracy": accuracy, "loss": loss, "n": 157},
        "untrained": 0.51,
        "accuracy": 0.8,
        "ci95": [0.76, 0.84],
        "loss": 0.45,
        "n": 399,
        "collapsed": False,
        "alarm": None,
    }


def old_summary(rows):
    """summary.json as the first version wrote it"""
    baselines = {"majority": 0.51, "untrained": 0.5}
    return {"prompts": rows, "baselines": baselines, "finished": True}


def test_run_json_of_the_first_version_is_read(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(OLD_FACTS, indent=2))
    facts = read_facts(tmp_path)
    assert facts.settings.total_steps == 666
    assert facts.settings.select_by == "accuracy"
    assert facts.labels == ["negative", "positive"]


def test_the_best_prompt_of_a_run_of_the_first_version_is_found(tmp_path):
    """Equal accuracies go by the loss."""
    rows = [old_row("p1-s0", 0.7, 0.5), old_row("p2-s0", 0.8, 0.6), old_row("p2-s1", 0.8, 0.5)]
    (tmp_path / "summary.json").write_text(json.dumps(old_summary(rows)))
    found = [path.parent.name for path in find_prompts(tmp_path, every=True)]
    assert found == ["p2-s1", "p2-s0", "p1-s0"]
    assert find_prompts(tmp_path) == [tmp_path / "prompts/p2-s1/prompt.safetensors"]


OLD_RESULT = {  # of an epoch, as the first version kept it
    "accuracy": 0.5,
    "loss": 0.69,
    "n": 4,
    "ci95": [0.15, 0.85],
    "confusion": [[1, 1], [1, 1]],
    "precision": [0.5, 0.5],
    "recall": [0.5, None],
    "majority": 0.5,
    "collapsed": False,
    "alarm": None,
}


def make_old(folder):
    """Rewrite a stopped run into the form that the first version gave it."""
    facts = read_json(f"{folder}/run.json")
    del facts["settings"]["select_by"]
    del facts["versions"]["threads"]
    Path(folder, "run.json").write_text(json.dumps(facts, indent=2) + "\n")
    tree = state_of(Path(folder, CHECKPOINT).read_bytes())
    tree["run"] = digest(f"{folder}/run.json")
    for name in facts["prompts"]:
        state = tree[name]
        epoch = state.pop("epoch")
        best = {key: state["best"][key] for key in ("accuracy", "loss", "n")}
        state["best"] = OLD_RESULT | best | {"epoch": epoch}
    Path(folder, CHECKPOINT).write_bytes(state_bytes(tree))


def test_a_stopped_run_of_the_first_version_goes_on(place, monkeypatch):
    """And comes to what it would have come to."""
    flags = [*BASE, "--prompt-tokens", 2, "--seeds", 0, 1, "--epochs", 4, "--lr", 0.2, "--out"]
    assert end(*flags, "whole") == 0
    stop_at(monkeypatch, 17, *flags, "run")
    make_old("run")
    assert end("--resume", "run") == 0
    whole = timeless(place / "whole")
    resumed = timeless(place / "run")
    assert resumed["metrics.jsonl"] == whole["metrics.jsonl"]
    for row in whole_rows("whole", "run"):
        assert row[0] == row[1]
    expected = read_prompt(f"whole/{PROMPT}")
    found = read_prompt(f"run/{PROMPT}")
    assert torch.equal(found.prompt.vectors, expected.prompt.vectors)
    assert torch.equal(found.prompt.head, expected.prompt.head)
    assert found.recipe == expected.recipe


def whole_rows(*folders):
    """The rows of summaries, side by side, without what the first version did not keep"""
    every = []
    for folder in folders:
        rows = read_json(f"{folder}/summary.json")["prompts"]
        for row in rows:
            del row["selection"]["macro_f1"]
        every.append(rows)
    return list(zip(*every, strict=True))


# ---- what is written can be read again ------------------------------------------------------

PERSIAN = "خوب\u200cتر"  # a joiner between letters
FAMILY = "👨\u200d👩\u200d👧"
LABELS = {
    "joiners": [PERSIAN, FAMILY],
    "a tab and a line break": ["very good", "bad\tor\nworse"],
    "U+2028": ["go\u2028od", "bad"],
    "quotes": ['"good"', "it's"],
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_of_any_letters_are_read_again(place, capsys, case):
    """Or they are refused before the training; a run that cannot be used is worth nothing."""
    for split, rows in (("train", 40), ("dev", 8)):
        lines = []
        for i in range(rows):
            row = {"text": f"{split} {i}", "label": LABELS[case][i % 2]}
            lines.append(json.dumps(row) + "\n")
        os.remove(f"d/{split}.tsv")
        Path(f"d/{split}.jsonl").write_text("".join(lines))
    code, _, err = ask(capsys, train, *SHORT, "--out", "run")
    if code == 2:
        assert "label" in err
        assert not os.path.exists("run")
        return
    assert code == 0, err
    assert read_facts("run").labels == LABELS[case]
    assert read_prompt(f"run/{PROMPT}").labels == LABELS[case]
    for argv in (["--resume", "run"], [*SHORT, "--out", "run", "--overwrite"]):
        assert end(*argv) == 0
    assert ask(capsys, evaluate, "predict", "run", "a film", "--device", "cpu")[0] == 0


def test_three_thousand_labels_and_four_seeds_work(place):
    """No table of labels by labels is kept for --resume."""
    names = [f"class {i}" for i in range(3000)]
    lines = [f"text {i}\t{names[i]}\n" for i in range(3000)]
    Path("d/train.tsv").write_text("text\tlabel\n" + "".join(lines))
    Path("d/dev.tsv").write_text("text\tlabel\n" + "".join(lines[:40]))
    flags = ["--select-on", "dev", "--max-examples", 8, "--seeds", 0, 1, 2, 3]
    _, _, summary = run("--prompt-tokens", 2, "--steps", 1, *flags)
    assert len(summary["prompts"]) == 4
    assert len(read_prompt(f"run/{PROMPT}").labels) == 3000
    size = Path("run", CHECKPOINT).stat().st_size
    tensors = 4 * 4 * (3000 + 2) * 10 * 4  # now, best and two moments of four prompts
    assert size < 2 * tensors
    assert end("--resume", "run") == 0


def test_the_first_checkpoint_is_written_and_read_before_the_first_step(place, monkeypatch):
    seen = []

    def look(step, prompts):
        if step == 1:
            seen.append(stored("run")["step"])

    watch(monkeypatch, look)
    run("--steps", 2)
    assert seen == [0]


def test_a_checkpoint_that_cannot_be_read_ends_the_run_before_the_first_step(
    place, monkeypatch, capsys
):
    def unreadable(data, device="cpu"):
        raise ValueError("header too large")

    monkeypatch.setattr(run_folder, "state_of", unreadable)
    steps = watch(monkeypatch)
    refused(capsys, *SHORT, "--out", "run", naming="header too large")
    assert not steps


def test_a_prompt_that_cannot_be_read_again_is_not_written(place, monkeypatch, capsys):
    """What stands at its name is the last good one, or nothing."""

    def unreadable(data, path):
        if str(path).startswith("p"):
            raise ValueError("it is no prompt")

    monkeypatch.setattr(run_folder, "parse_prompt", unreadable)
    refused(capsys, *SHORT, "--out", "run", naming="it is no prompt")
    assert not prompt_path("p2-s0").exists()
