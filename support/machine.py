"""The machine and the terminal: processes, signals, dtype, one sentence at the end, tables."""

import contextlib
import functools
import json
import os
import signal
import sys
import threading
from pathlib import Path

import torch
import torch.distributed as dist

# ---- processes ------------------------------------------------------------------------------


def rank_and_world():
    """(rank, world size) of this process under torchrun; (0, 1) without it."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def join_processes(device):
    """Join what torchrun started -> the device of this process; only rank 0 speaks."""
    if not dist.is_torchelastic_launched():
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if dist.get_rank():
        sys.stdout.stream = open(os.devnull, "w")
    return device


def all_reduce(tensors):
    """Replace each tensor by its sum over all processes: one message, however many tensors."""
    if rank_and_world()[1] == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    try:
        dist.all_reduce(flat)
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise OSError(f"another process ended, so this one does too ({reason})") from None
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))


def rank_0_decides(act, device):
    """Let rank 0 act; where it is refused, all processes end in its sentence."""
    rank, world = rank_and_world()
    if world == 1:
        return act()
    box = torch.zeros(4000, device=device)  # the bytes of a sentence; those of the others are zero
    if rank == 0:
        try:
            act()
        except (OSError, ValueError) as error:
            sentence = torch.tensor([*sentence_of(error).encode()])
            box[: len(sentence)] = sentence
    all_reduce([box])
    if box.any():
        raise ValueError(bytes(box.int().tolist()).rstrip(b"\0").decode())


# ---- signals --------------------------------------------------------------------------------


class Stopped(BaseException):
    """A signal asked for the end: its number, and how to go on."""


class Signals:
    """In a `with`, SIGINT, SIGTERM and SIGHUP raise Stopped; while `held` they are noted instead.

    What was ignored when the program began stays ignored; a thread that is not the main one gets
    no signals, so nothing is changed there.
    """

    held, noted = False, 0

    def __enter__(self):
        self.before = {}
        numbers = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
        if threading.current_thread() is threading.main_thread():
            for number in filter(None, numbers):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number, frame):
        self.noted = self.noted or number
        if not self.held:
            raise Stopped(number, "nothing was written: give the same command again")

    def __exit__(self, kind, error, trace):
        for number, handler in self.before.items():
            signal.signal(number, handler)


CURRENT = [Signals()]


def signals():
    """The Signals of the program that runs."""
    return CURRENT[-1]


def stoppable(main):
    """Let signals end main in Stopped, from its beginning to its end, and streams end nothing."""

    @functools.wraps(main)
    def wrapped(argv):
        sys.stdout.patient = True
        with Signals() as CURRENT[-1]:
            return main(argv)

    return wrapped


# ---- numbers --------------------------------------------------------------------------------


def default_device():
    return "cuda" if torch.cuda.is_available() else "cpu"


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
    return " ".join(shown(" ".join(message.split())).split())[:1000]


class Plain:
    """A stream on which nothing speaks to the terminal; what it cannot say is escaped.

    One that is not there swallows all.  patient: what cannot be written is let go, because a
    training is worth more than what is said of it.
    """

    patient = False

    def __init__(self, stream):
        self.stream = stream or open(os.devnull, "w")
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        inner = text.strip("\r")  # with which a bar begins, and may end
        plain = "".join(c if c in "\n\t" else shown(c) for c in inner)
        with contextlib.suppress(*[OSError, ValueError] if self.patient else []):
            self.stream.write(text.replace(inner, plain) if inner else text)

    def flush(self):
        with contextlib.suppress(*[OSError, ValueError] if self.patient else []):
            self.stream.flush()


def one_sentence(main):
    """Let main end in exit code 2 and one sentence on stderr when the user can mend the cause."""

    @functools.wraps(main)
    def wrapped(argv=None):
        out, err = Plain(sys.stdout), Plain(sys.stderr)
        err.patient = True
        sys.stdin = sys.stdin or open(os.devnull)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return ending(main, argv)

    return wrapped


def ending(main, argv):
    """main(argv), and how it ends."""
    try:
        result = main(argv)
        sys.stdout.stream.flush()
        return result
    except BrokenPipeError:  # whoever reads has read enough, as with `| head`
        message, code = "stopped; ", 128 + 13
    except (Stopped, KeyboardInterrupt) as stop:
        number, how = stop.args or (signal.SIGINT, "")
        message, code = f"stopped; {how}", 128 + number
    except (OSError, ValueError) as error:
        message, code = f"error: {sentence_of(error)}", 2
    except torch.OutOfMemoryError:
        message = "error: the device has too little memory; try a smaller --batch-size or, in "
        message, code = message + "training, --cache-text", 2
    if message != "stopped; " and rank_and_world()[0] == 0 or code == 2:
        print(message, file=sys.stderr)
    try:
        sys.stdout.stream.flush()
    except OSError:  # no more to say at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def cell(value, form=".4f"):
    """A value of a table: a dash where it is not known, a float in a form."""
    if value is None:
        return "-"
    return format(value, form) if isinstance(value, float) else shown(value)


def print_table(header, rows, markdown=False):
    """Print columns, all but the first to the right; markdown: as a table that README can hold."""
    rows = [[cell(value) for value in row] for row in (header, *rows)]
    first, *widths = [max(map(len, column)) for column in zip(*rows)]
    left, between, right = ("| ", " | ", " |") if markdown else ("", "  ", "")
    for i, (name, *cells) in enumerate(rows):
        line = between.join([name.ljust(first), *map(str.rjust, cells, widths)])
        print((left + line + right).rstrip())
        if markdown and i == 0:
            print("|---|" + "--:|" * len(widths))
