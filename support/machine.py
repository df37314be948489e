"""The machine and the terminal: processes, signals, dtype, one sentence at the end, tables."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from tabulate import tabulate
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm import tqdm

# ---- processes ------------------------------------------------------------------------------


def rank_and_world():
    """(rank, world size) of this process under torchrun; (0, 1) without it."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def join_processes(device):
    """Join what torchrun started, if it did; only rank 0 speaks."""
    if not dist.is_torchelastic_launched():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if dist.get_rank():
        sys.stdout.stream = open(os.devnull, "w")


@contextlib.contextmanager
def together():
    """What all processes do at once ends in a sentence where one of them has ended."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise OSError(f"another process ended, so this one does too ({reason})") from None


def all_reduce(tensors):
    """Replace each tensor by its sum over all processes: one message, however many tensors."""
    if rank_and_world()[1] == 1:
        return
    flat = parameters_to_vector(tensors)
    with together():
        dist.all_reduce(flat)
    vector_to_parameters(flat, tensors)


def rank_0_decides(act):
    """Let rank 0 act; where it is refused, all processes end in its sentence."""
    rank, world = rank_and_world()
    if world == 1:
        return act()
    refusal = [None]
    if rank == 0:
        try:
            act()
        except (OSError, ValueError) as error:
            refusal = [sentence_of(error)]
    with together():
        dist.broadcast_object_list(refusal)
    if refusal[0] is not None:
        raise ValueError(refusal[0])


# ---- signals --------------------------------------------------------------------------------


class Stopped(BaseException):
    """A signal asked for the end: its number, and a sentence on how to go on."""


class Signals(threading.local, contextlib.ContextDecorator):
    """In a `with`, SIGINT, SIGTERM and SIGHUP raise Stopped; while `held` they are noted instead.

    What was ignored when the program began stays ignored; a thread that is not the main one gets
    no signals, so nothing is changed there.
    """

    held, noted = False, 0

    def __enter__(self):
        self.noted, self.before = 0, {}
        if threading.current_thread() is threading.main_thread():
            for name in {"SIGINT", "SIGTERM", "SIGHUP"} & vars(signal).keys():
                number = getattr(signal, name)
                if signal.getsignal(number) != signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self.note)

    def note(self, number, frame):
        self.noted = self.noted or number
        if not self.held:
            raise Stopped(number, "stopped; nothing was written: give the same command again")

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


signals = Signals()  # those of the program that runs


# ---- numbers --------------------------------------------------------------------------------


def default_device():
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator().type
    return "cpu"


def body_dtype(name, device):
    """The frozen body's dtype.  Prompts, heads, losses and Adam's state are always float32."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        flags = cpuinfo.read_text() if device.type == "cpu" and cpuinfo.exists() else ""
        fast = "avx512_bf16" in flags or "amx_bf16" in flags
    return torch.bfloat16 if fast else torch.float32


def to_json(value, **more):
    """JSON, which has no number that is not finite: None stands for it."""
    plain = json.loads(json.dumps(value, default=str), parse_constant=lambda constant: None)
    return json.dumps(plain, **more)


# ---- what a person reads --------------------------------------------------------------------


def shown(text):
    """Text on one line, in which nothing speaks to the terminal: all else is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def sentence_of(error):
    """What a person is told of an error: one line, not without end."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename or 'standard output'}: {error.strerror}"
    return shown(" ".join(message.split()))[:1000]


class Plain:
    """A stream on which nothing speaks to the terminal; what it cannot say is escaped.

    One that is not there swallows all.  patient: what cannot be written is let go, because a
    training is worth more than what is said of it.
    """

    def __init__(self, stream, patient):
        self.stream = stream or open(os.devnull, "w")
        self.refusals = (OSError, ValueError) if patient else ()
        if hasattr(self.stream, "reconfigure"):
            # A file or a pipe gets UTF-8, whatever the system's code page is.
            told = self.stream.isatty() or "PYTHONIOENCODING" in os.environ
            encoding = None if told else "utf-8"  # None: as it is
            self.stream.reconfigure(encoding=encoding, errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        inner = text.strip("\r")  # with which a bar begins, and may end
        plain = "".join(c if c in "\n\t" else shown(c) for c in inner)
        with contextlib.suppress(*self.refusals):
            self.stream.write(text.replace(inner, plain) if inner else text)

    def flush(self):
        with contextlib.suppress(*self.refusals):
            self.stream.flush()


def progress(items, unit, first=0):
    """items one by one, with a bar on a terminal, and a line a minute where there is none."""
    last, total, hidden = time.monotonic(), first + len(items), rank_and_world()[0] > 0
    bar = tqdm(
        items,
        unit=unit,
        initial=first,
        total=total,
        leave=False,
        position=0,  # one bar inside another takes its line
        disable=hidden or None,  # None: where stderr is no terminal
    )
    for done, item in enumerate(bar, first + 1):
        yield item
        if bar.disable and not hidden and time.monotonic() > last + 60:
            last = time.monotonic()
            print(f"{done} of {total} {unit}", file=sys.stderr)


@contextlib.contextmanager
def ending(patient=False):
    """Around a main: exit code 2 and one sentence on stderr when the user can mend the cause."""
    out, err = Plain(sys.stdout, patient), Plain(sys.stderr, True)
    sys.stdin = sys.stdin or open(os.devnull)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
            return out.stream.flush()
        except BrokenPipeError:  # whoever reads has read enough, as with `| head`
            message, code = "", 128 + 13
        except (Stopped, KeyboardInterrupt) as stop:
            number, message = stop.args or (signal.SIGINT, "stopped")
            code = 128 + number
        except (OSError, ValueError) as error:
            message, code = f"error: {sentence_of(error)}", 2
        except torch.OutOfMemoryError:
            message = (
                "error: the device has too little memory; try a smaller --batch-size or, in "
                "training, --cache-text"
            )
            code = 2
        if message and (code == 2 or rank_and_world()[0] == 0):
            print(message, file=sys.stderr)
        try:
            out.stream.flush()
        except OSError:  # no more to say at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        sys.exit(code)


one_sentence = ending()


def cell(value, form=".4f"):
    """A value of a table: a dash where it is not known, a float in a form."""
    if value is None:
        return "-"
    return format(value, form) if isinstance(value, float) else shown(value)


def print_table(header, rows, kind="plain"):
    """Print columns, all but the first to the right; kind: of tabulate, "pipe" for Markdown."""
    rows = [[cell(value) for value in row] for row in rows]
    how = {"colglobalalign": "right", "colalign": ["left"], "disable_numparse": True}
    print(tabulate(rows, header, kind, **how))
