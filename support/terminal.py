"""The terminal: what a person reads while a program runs, and the one sentence at its end."""

import contextlib
import os
import shlex
import signal
import sys
import time
import unicodedata
from pathlib import Path

import torch
import torch.distributed as dist
from tabulate import tabulate
from tqdm import tqdm

from support.processes import rank_and_world
from support.stopping import Stopped

JOINERS = "\u200c\u200d"
OUT_OF_MEMORY = "can't allocate memory"  # in what torch raises on a CPU

# ---- what is shown --------------------------------------------------------------------------


def shown(text):
    """Text on one line, in which nothing speaks to the terminal: all else is escaped.

    A joiner between letters, as Persian and Hindi are spelled, or within an emoji, is a letter.
    """
    text = str(text)
    if text.isprintable():
        return text
    characters = []
    for i, character in enumerate(text):
        joins = (
            character in JOINERS and is_letter(text[i - 1 : i]) and is_letter(text[i + 1 : i + 2])
        )
        if not joins and not character.isprintable():
            character = character.encode("unicode_escape").decode()
        characters.append(character)
    return "".join(characters)


def is_letter(character):
    """Whether a joiner may stand beside it: letters, their marks, and the parts of emoji."""
    return character != "" and unicodedata.category(character) in (
        ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "So", "Sk", "Sm")
    )


def plain_lines(text):
    """Text whose line breaks and tabs are ours, and whose other characters are shown."""
    lines = []
    for line in str(text).split("\n"):
        cells = [shown(part) for part in line.split("\t")]
        lines.append("\t".join(cells))
    return "\n".join(lines)


def few(words, most):
    """Words in a sentence; of more than `most` the first ones."""
    rest = len(words) - most
    more = f" and {rest} more" if rest > 0 else ""
    return ", ".join(words[:most]) + more


def say(text="", file=None):
    """Tell a person something beside the work.

    What cannot be written is let go: a training is worth more than what is said of it.
    """
    rank, _ = rank_and_world()
    stream = file or sys.stdout
    if rank > 0 or stream is None:
        return
    try:
        tqdm.write(plain_lines(text), file=stream)  # above a bar, where one is drawn
        stream.flush()
    except OSError:
        silence(stream)
    except ValueError:  # closed, or it cannot say a character
        return


def silence(stream):
    """A stream that can no longer be written goes nowhere from now on."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def warn(text):
    """Say on stderr what may be wrong."""
    if sys.stderr is not None:
        say(f"warning: {text}", sys.stderr)


def emit(text):
    """Print an answer that was asked for; OSError where it cannot be written."""
    print(plain_lines(text), flush=True)


def cell(value, form=".4f"):
    """A value of a table: a dash where it is not known, a float in a form."""
    if value is None:
        return "-"
    return format(value, form) if isinstance(value, float) else shown(value)


def table_text(header, rows, kind="plain"):
    """Columns as lines, all but the first to the right; kind: of tabulate, "pipe" for Markdown."""
    cells = []
    for row in rows:
        cells.append([cell(value) for value in row])
    return tabulate(
        cells, header, kind, colglobalalign="right", colalign=["left"], disable_numparse=True
    )


def progress(items, unit, first=0):
    """items one by one, with a bar on a terminal, and a line a minute where there is none."""
    rank, _ = rank_and_world()
    total = first + len(items)
    on_terminal = rank == 0 and sys.stderr is not None and sys.stderr.isatty()
    last = time.monotonic()
    bar = tqdm(
        items,
        unit=unit,
        initial=first,
        total=total,
        leave=False,
        position=0,  # one bar inside another takes its line
        disable=not on_terminal,
    )
    for done, item in enumerate(bar, first + 1):
        yield item
        if not on_terminal and time.monotonic() > last + 60:
            last = time.monotonic()
            say(f"{done:,} of {total:,} {unit}", sys.stderr)


def command(program, *words):
    """A command line of ours that can be pasted in the checkout, where README says to work.

    Under torchrun it is torchrun's, with as many processes.
    """
    _, world = rank_and_world()
    start = ["python"] if world == 1 else ["torchrun", "--nproc-per-node", str(world)]
    return shlex.join([*start, program, *map(str, words)])


def path_word(path):
    """A path as a word of a command, from here where it lies below; none is taken for a flag."""
    near = Path(path)
    if near.is_absolute() and near.is_relative_to(Path.cwd()):
        near = near.relative_to(Path.cwd())
    return f"./{near}" if str(near).startswith("-") else str(near)


# ---- how a program ends ---------------------------------------------------------------------


def sentence_of(error):
    """What a person is told of an error: one line, not without end."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename or 'standard output'}: {error.strerror}"
    return shown(" ".join(message.split()))[:1000]


def prepare_streams():
    """Standard streams that are there, and that can say every character."""
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # a window program, or closed by whoever started this one
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            # A file or a pipe gets UTF-8, whatever the system's code page is.
            as_it_is = stream.isatty() or "PYTHONIOENCODING" in os.environ
            encoding = None if as_it_is else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


@contextlib.contextmanager
def ending():
    """Around a main: exit code 2 and one sentence on stderr when the user can mend the cause."""
    prepare_streams()
    try:
        yield
        sys.stdout.flush()
        return
    except BrokenPipeError:  # whoever reads has read enough, as with `| head`
        code = 128 + 13
        message = ""
    except (Stopped, KeyboardInterrupt) as stop:
        code = 128 + getattr(stop, "number", signal.SIGINT)
        message = getattr(stop, "sentence", "stopped")
    except (OSError, ValueError) as error:
        code = 2
        message = f"error: {sentence_of(error)}"
    except (MemoryError, RuntimeError) as error:
        code = 2
        message = f"error: {memory_sentence(error)}"
    if message and (code == 2 or not dist.is_initialized() or dist.get_rank() == 0):
        with contextlib.suppress(OSError, ValueError):
            print(message, file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:
        silence(sys.stdout)  # or Python would complain at exit
    sys.exit(code)


def memory_sentence(error):
    """What a lack of memory is told as; any other error goes on."""
    lacks = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or OUT_OF_MEMORY in str(error)
    if not lacks:
        raise error
    return (
        "too little memory; try a smaller --batch-size, or --cache-text off in training (a run "
        "that is resumed takes --cache-text, but keeps its batch size)"
    )
