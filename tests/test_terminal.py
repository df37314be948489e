"""terminal.py: what a person reads while a program runs, and the one sentence at its end."""

import contextlib
import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import strategies as st

from helpers import python
from hostile import cases
from support import terminal
from support.stopping import Stopped
from support.terminal import (
    cell,
    command,
    emit,
    ending,
    path_word,
    progress,
    say,
    shown,
    table_text,
    warn,
)

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such devices and shells")
has_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk is always full here")


def be_rank(monkeypatch, rank, world):
    """From now on this process is one of several."""
    monkeypatch.setattr(terminal, "rank_and_world", lambda: (rank, world))


# ---- what is shown --------------------------------------------------------------------------

ZWNJ = "\u200c"
ZWJ = "\u200d"
SPELLED = [
    "می\u200cخواهم",  # Persian
    "क्\u200dष",  # Hindi: after a mark
    "\U0001f469\u200d\U0001f4bb",  # a woman with a computer
    "\U0001f468\U0001f3fd\u200d\U0001f9b1",  # after a tone of skin
    "\u2764\ufe0f\u200d\U0001f525",  # after a selector
    "\U0001f642\u200d\u2194\ufe0f",  # before an arrow: a head that shakes
]
ESCAPED = {
    "a\x1b[2Jb": r"a\x1b[2Jb",
    "a\nb\tc\rd": r"a\nb\tc\rd",
    "\x00\x07\x9b": r"\x00\x07\x9b",
    "\u2028\u2029\u202e\ufeff": r"\u2028\u2029\u202e\ufeff",
    "\udce9": r"\udce9",
    ZWJ: r"\u200d",
    f"a{ZWJ}": r"a\u200d",
    f"{ZWJ}a": r"\u200da",
    f"a{ZWJ}{ZWNJ}b": r"a\u200d\u200cb",
    f"1{ZWJ}2": r"1\u200d2",
    f"a {ZWNJ}b": r"a \u200cb",
    f"a{ZWJ}\x1b": r"a\u200d\x1b",
}


@pytest.mark.parametrize("text", SPELLED)
def test_a_joiner_that_spells_is_shown_as_it_is(text):
    assert shown(text) == text
    assert shown(f"\x1b{text}\n") == f"\\x1b{text}\\n"


@pytest.mark.parametrize("text", ESCAPED)
def test_what_speaks_to_a_terminal_is_escaped(text):
    assert shown(text) == ESCAPED[text]


@pytest.mark.parametrize("text", ["", "plain", "naïve 日本 🙂", "a\\b", "a  b"])
def test_ordinary_text_is_shown_as_it_is(text):
    assert shown(text) == text


def test_what_is_no_text_is_shown_as_one():
    assert shown(Path("a\nb")) == r"a\nb"
    assert shown(3) == "3"


ANY_TEXT = st.text(st.characters() | st.sampled_from("\u200c\u200d\n\t\x1b\ud800a\u2764"))


@cases(500, text=ANY_TEXT)
def test_whatever_is_shown_is_one_printable_line(text):
    """But for joiners between letters, or the parts of an emoji."""
    line = shown(text)
    assert len(line.splitlines()) <= 1
    for i, character in enumerate(line):
        if not character.isprintable():
            assert character in (ZWJ, ZWNJ)
            for beside in (line[i - 1], line[i + 1]):
                assert unicodedata.category(beside)[0] in "LMS"


@cases(200, text=ANY_TEXT)
def test_what_is_shown_can_be_told_apart_from_nothing(text):
    """All that is printable stays, in its order."""
    kept = [character for character in text if character.isprintable()]
    rest = iter(shown(text))
    assert all(character in rest for character in kept)


@cases(200, text=ANY_TEXT)
def test_lines_and_cells_stay_lines_and_cells(text):
    lines = terminal.plain_lines(text)
    assert lines.count("\n") == text.count("\n")
    assert lines.count("\t") == text.count("\t")
    for part in re.split("[\n\t]", lines):
        assert part == shown(part)


# ---- say, warn, emit ------------------------------------------------------------------------


def test_information_goes_to_standard_output_and_warnings_beside_it(capsys):
    say("a\x1b[2J\nb")
    say()
    warn("mind\x07")
    out, err = capsys.readouterr()
    assert out == "a\\x1b[2J\nb\n\n"
    assert err == "warning: mind\\x07\n"


def test_only_the_first_process_speaks(capsys, monkeypatch):
    be_rank(monkeypatch, 1, 2)
    say("a")
    warn("b")
    assert capsys.readouterr() == ("", "")


class Refusing(io.StringIO):
    """A stream that cannot be written."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


CANNOT = [
    OSError(errno.ENOSPC, "No space left on device"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    ValueError("I/O operation on closed file"),
    UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range"),
]


@pytest.mark.parametrize("error", CANNOT, ids=type)
def test_what_can_not_be_said_is_let_go(monkeypatch, error):
    monkeypatch.setattr(sys, "stdout", Refusing(error))
    monkeypatch.setattr(sys, "stderr", Refusing(error))
    say("a")
    warn("b")


def test_nothing_is_said_where_there_is_no_stream(monkeypatch, capsys):
    """As in a window program; and a warning does not go to standard output instead."""
    monkeypatch.setattr(sys, "stderr", None)
    warn("a")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "stdout", None)
    say("b")
    assert list(progress([1, 2], "steps")) == [1, 2]


def test_an_answer_is_escaped_and_written_at_once(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "utf-8"))
    emit("naïve\t1\n\x1b[2J")
    assert raw.getvalue().decode() == "naïve\t1\n\\x1b[2J\n"


@pytest.mark.parametrize("error", CANNOT[:2], ids=type)
def test_an_answer_that_can_not_be_written_is_an_error(monkeypatch, error):
    monkeypatch.setattr(sys, "stdout", Refusing(error))
    with pytest.raises(type(error)):
        emit("a")


SAYS = "from support.terminal import say, warn; say('a' * 9999); warn('b'); say('c'); print('end')"
EMITS = "from support.terminal import emit, ending\nwith ending(): emit('a'); emit('b')"


@has_full
def test_a_full_device_ends_no_training_but_an_answer():
    done = python(f"{SAYS}; raise SystemExit(3)", shell='"$@" >/dev/full 2>/dev/full')
    assert done.returncode == 3
    done = python(EMITS, shell='"$@" >/dev/full')
    assert done.returncode == 2
    assert done.stderr == "error: standard output: No space left on device\n"


@posix
def test_a_closed_pipe_ends_no_training_and_an_answer_quietly():
    done = python(SAYS, shell='("$@"; echo $? >&2) | true')
    assert done.stderr.split() == ["warning:", "b", "0"]
    late = "import time; time.sleep(1)\n"
    done = python(late + EMITS, shell='("$@"; echo $? >&2) | true')
    assert done.stderr == "141\n"


@posix
def test_closed_streams_change_nothing():
    script = "from support.terminal import *\nwith ending():\n  say('a'); warn('b'); emit('c')\n"
    script += "  import sys; assert sys.stdin.read() == ''\n"
    done = python(script, shell='"$@" <&- >&- 2>&-')
    assert done.returncode == 0


# ---- streams that cannot say every character ------------------------------------------------


class Screen(io.TextIOWrapper):
    """A stream that says of itself whether it is a terminal."""

    def __init__(self, is_terminal):
        super().__init__(io.BytesIO(), encoding="ascii")
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.mark.parametrize(
    "asked,is_terminal,said",
    [
        (None, False, "é\\ud83d\n"),
        (None, True, "\\xe9\\ud83d\n"),
        ("ascii", False, "\\xe9\\ud83d\n"),
    ],
)
def test_files_and_pipes_get_utf_8(monkeypatch, asked, is_terminal, said):
    """Whatever the code page of the system is; a terminal, and what a person asked for, do not."""
    if asked:
        monkeypatch.setenv("PYTHONIOENCODING", asked)
    screen = Screen(is_terminal)
    monkeypatch.setattr(sys, "stdout", screen)
    with ending():
        emit("é\ud83d")
    assert screen.buffer.getvalue().decode() == said


def test_a_stream_may_be_of_any_kind(monkeypatch):
    """As a notebook's, which cannot be told how to write."""
    told = []
    stream = SimpleNamespace(write=told.append, flush=lambda: None)
    monkeypatch.setattr(sys, "stdout", stream)
    with ending():
        emit("é")
    assert "".join(told) == "é\n"


# ---- tables ---------------------------------------------------------------------------------


def test_a_cell_is_a_dash_a_number_in_a_form_or_a_shown_text():
    assert cell(None) == "-"
    assert cell(0.5) == "0.5000"
    assert cell(0.5, ".1f") == "0.5"
    assert cell(7) == "7"
    assert cell("a\nb") == r"a\nb"
    assert cell(0.0) == "0.0000"
    assert cell(0) == "0"


def test_a_table_has_its_first_column_to_the_left_and_the_others_to_the_right():
    text = table_text(["name", "n"], [["a", 1], ["longer", 100], ["1e5", 0.25], [None, "x"]])
    lines = text.split("\n")
    assert lines[0].split() == ["name", "n"]
    assert [line.split() for line in lines[1:]] == [
        ["a", "1"],
        ["longer", "100"],
        ["1e5", "0.2500"],
        ["-", "x"],
    ]
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("a ")
    assert lines[1].endswith(" 1")


def test_a_table_for_markdown_has_pipes():
    text = table_text(["name", "n"], [["a", 1]], "pipe")
    assert re.fullmatch(r"\| name +\| +n \|\n\|:-+\|-+:\|\n\| a +\| +1 \|", text)


# ---- progress -------------------------------------------------------------------------------


def slow_clock(monkeypatch, seconds=25):
    """Each look at the clock is so much later than the last."""
    times = iter(range(0, 10**6, seconds))
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: next(times)))


def test_long_work_without_a_terminal_says_where_it_is_once_a_minute(monkeypatch, capsys):
    slow_clock(monkeypatch)
    assert list(progress("abcdefgh", "batches", 10)) == list("abcdefgh")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert 0 < len(lines) < 5
    for line in lines:
        assert re.fullmatch(r"1\d of 18 batches", line)


def test_short_work_says_nothing(monkeypatch, capsys):
    assert list(progress(range(1000), "batches")) == list(range(1000))
    assert capsys.readouterr() == ("", "")


def test_of_several_processes_one_tells_how_far_it_is(monkeypatch, capsys):
    slow_clock(monkeypatch)
    be_rank(monkeypatch, 1, 2)
    assert list(progress("abcdefgh", "batches")) == list("abcdefgh")
    assert capsys.readouterr() == ("", "")


def test_large_numbers_can_be_read(monkeypatch, capsys):
    slow_clock(monkeypatch, 100)
    list(progress("ab", "steps", 1234567))
    assert "1,234,568 of 1,234,569 steps" in capsys.readouterr().err


def terminal_as_stderr(monkeypatch):
    """From now on stderr is a terminal -> what remembers all that is written there"""
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "80")
    return stream


def test_on_a_terminal_a_bar_shows_where_it_is_and_goes_away(monkeypatch):
    screen = terminal_as_stderr(monkeypatch)
    assert list(progress(range(3), "steps", 5)) == [0, 1, 2]
    said = screen.getvalue()
    assert "8/8" in said or "5/8" in said
    assert said.split("\r")[-1].strip() == ""
    assert "\n" not in said


def test_one_bar_inside_another_moves_no_cursor(monkeypatch):
    """The inner bar takes the outer one's line, and gives it back."""
    screen = terminal_as_stderr(monkeypatch)
    with ending():
        for _ in progress(range(3), "steps"):
            assert list(progress("ab", "batches")) == ["a", "b"]
    said = screen.getvalue()
    assert "steps" in said
    assert "batches" in said
    assert "\x1b" not in said
    assert "x1b" not in said
    assert "\n" not in said


def test_what_is_said_stands_above_a_bar(monkeypatch):
    screen = terminal_as_stderr(monkeypatch)
    for _ in progress(range(2), "steps"):
        warn("mind")
    lines = screen.getvalue().split("\n")
    assert len(lines) == 3
    for line in lines[:2]:
        assert line.split("\r")[-1] == "warning: mind"


# ---- commands -------------------------------------------------------------------------------

WORDS_OF_COMMANDS = ["my run", "a$b", "it's", "-x", "*", "~", "", "a;b", "é", '"', "\\", "a\nb"]


def test_a_command_is_as_readme_writes_it():
    assert command("train.py", "--resume", "run") == "python train.py --resume run"


@pytest.mark.parametrize("word", WORDS_OF_COMMANDS)
def test_a_command_can_be_pasted_whatever_its_words(word):
    assert shlex.split(command("evaluate.py", "predict", word))[-1] == word


@posix
@pytest.mark.parametrize("word", WORDS_OF_COMMANDS)
def test_a_shell_takes_a_command_as_it_was_meant(tmp_path, word):
    (tmp_path / "p.py").write_text("import json, sys; print(json.dumps(sys.argv[1:]))")
    line = command("p.py", "predict", word)
    line = line.replace("python", shlex.quote(sys.executable), 1)
    call = ["bash", "-c", line]
    done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout) == ["predict", word]


@cases(200, words=st.lists(st.text(), max_size=4))
def test_any_words_are_what_a_shell_gives_back(words):
    assert shlex.split(command("train.py", *words))[2:] == words


def test_numbers_and_paths_are_words():
    assert shlex.split(command("train.py", 3, Path("a b")))[2:] == ["3", "a b"]


def test_under_torchrun_a_command_is_one_of_torchrun(monkeypatch):
    be_rank(monkeypatch, 0, 3)
    wanted = "torchrun --nproc-per-node 3 train.py --resume run"
    assert command("train.py", "--resume", "run") == wanted


def test_a_path_is_told_from_here_where_it_lies_below(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert path_word(tmp_path / "runs/a") == os.path.join("runs", "a")
    assert path_word("runs/a") == os.path.join("runs", "a")
    assert path_word(tmp_path.parent / "b") == str(tmp_path.parent / "b")
    assert path_word(tmp_path) == "."


@pytest.mark.parametrize("name", ["-x", "--resume", "-", "-x/y"])
def test_a_path_that_begins_like_a_flag_is_taken_for_none(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    for path in (name, Path(name), tmp_path / name):
        assert path_word(path) == f"./{name}"


SEGMENTS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)


@cases(150, parts=st.lists(SEGMENTS, min_size=1, max_size=3))
def test_a_path_word_leads_to_the_path_and_is_no_flag(parts):
    path = Path.cwd().joinpath(*parts)
    word = path_word(path)
    assert Path(word).absolute() == path.absolute()
    assert not word.startswith("-")


# ---- how a program ends ---------------------------------------------------------------------


def ended(capsys, error):
    """What ending() makes of an error -> (exit code, stdout, stderr)"""
    with pytest.raises(SystemExit) as stop, ending():
        raise error
    out, err = capsys.readouterr()
    return stop.value.code, out, err


SENTENCES = [
    (OSError(28, "No space left", "a\x1b[31m\nb"), r"a\x1b[31m b: No space left"),
    (OSError(28, "No space left"), "standard output: No space left"),
    (OSError("could not fetch"), "could not fetch"),
    (FileNotFoundError(2, "No such file or directory", "x"), "x: No such file or directory"),
    (ValueError("a\n b\tc \x07"), r"a b c \x07"),
    (UnicodeDecodeError("utf-8", b"x", 0, 1, "why"), "'utf-8' codec can't decode byte 0x78"),
]


@pytest.mark.parametrize("error,sentence", SENTENCES, ids=range(len(SENTENCES)))
def test_what_a_user_can_mend_ends_in_one_sentence(capsys, error, sentence):
    code, out, err = ended(capsys, error)
    assert code == 2
    assert out == ""
    assert err.startswith(f"error: {sentence}")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()


def test_a_sentence_has_an_end(capsys):
    _, _, err = ended(capsys, ValueError("x" * 10**6))
    assert len(err) < 1100


MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1 bytes. Error code 12 (Cannot allocate memory)"
    ),
]


@pytest.mark.parametrize("error", MEMORY, ids=type)
def test_too_little_memory_is_told_with_a_way_out(capsys, error):
    code, _, err = ended(capsys, error)
    assert code == 2
    assert re.fullmatch("error: too little memory.* --batch-size.* --cache-text .*\n", err)


def test_the_allocator_of_this_torch_says_what_is_looked_for():
    """Nobody has 2**62 bytes."""
    with pytest.raises(RuntimeError) as refusal:
        torch.empty(2**60, dtype=torch.float32)
    assert terminal.OUT_OF_MEMORY in str(refusal.value)


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, RecursionError, KeyError])
def test_a_fault_of_ours_goes_on_as_a_traceback(kind):
    with pytest.raises(kind, match="a bug"), ending():
        raise kind("a bug")


SIGNALS = [
    (Stopped(signal.SIGTERM), 143, "stopped; nothing was written\n"),
    (Stopped(signal.SIGINT, "stopped; go on with: x"), 130, "stopped; go on with: x\n"),
    (KeyboardInterrupt(), 130, "stopped\n"),
]


@pytest.mark.parametrize("error,code,said", SIGNALS, ids=range(len(SIGNALS)))
def test_a_signal_ends_a_program_by_its_number(capsys, error, code, said):
    assert ended(capsys, error) == (code, "", said)


def test_a_broken_pipe_ends_quietly(capsys):
    assert ended(capsys, BrokenPipeError(errno.EPIPE, "Broken pipe")) == (141, "", "")


def test_what_is_right_ends_without_a_word(capsys):
    with ending():
        pass
    assert capsys.readouterr() == ("", "")


def test_an_exit_code_is_kept(capsys):
    assert ended(capsys, SystemExit(7)) == (7, "", "")


def test_what_was_written_before_an_error_is_written(capsys):
    with pytest.raises(SystemExit), ending():
        print("first", end="")
        raise ValueError("second")
    assert capsys.readouterr() == ("first", "error: second\n")


def test_it_decorates_a_main_more_than_once(capsys):
    @ending()
    def main(number):
        if number:
            raise ValueError(f"not {number}")

    main(0)
    for number in (1, 2):
        with contextlib.suppress(SystemExit):
            main(number)
    assert capsys.readouterr().err == "error: not 1\nerror: not 2\n"


@pytest.mark.parametrize("rank,said", [(0, "stopped; nothing was written\n"), (1, "")])
def test_of_several_processes_one_says_that_it_was_stopped(capsys, monkeypatch, rank, said):
    monkeypatch.setattr(terminal.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(terminal.dist, "get_rank", lambda: rank)
    assert ended(capsys, Stopped(signal.SIGTERM)) == (143, "", said)


def test_an_error_is_told_by_every_process_that_meets_it(capsys, monkeypatch):
    monkeypatch.setattr(terminal.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(terminal.dist, "get_rank", lambda: 1)
    assert ended(capsys, ValueError("why"))[2] == "error: why\n"
