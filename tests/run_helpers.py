"""What the tests of runs share: train.py in this process or in others, and what a run leaves.

Nothing here is a test.  BASE is the start of a command line in the folder that `place` makes.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import train
from helpers import ROOT, ask, contents

MACHINE = ["--dtype", "float32", "--batch-size", "8", "--device", "cpu"]
BASE = ["--model", "m", "--data", "d", *MACHINE]
SHORT = [*BASE, "--prompt-tokens", "2", "--steps", "2"]
CHECKPOINT = "checkpoint/state.safetensors"
LOCK = ".prompt-training.lock"
TEMPORARY = ".prompt-training.tmp"
TRAIN_STEP = train.train_step
IMPORTED_BY = os.getpid()

# ---- a run in this process ------------------------------------------------------------------


def end(*argv):
    """Run train.py in this process -> its exit code"""
    try:
        train.main([str(word) for word in argv])
    except SystemExit as stop:
        return stop.code
    return 0


def run(*flags, out="run"):
    """A whole run in the folder m, d and out -> (run.json, the lines of its log, summary.json)"""
    train.main([*BASE, "--out", out, *[str(flag) for flag in flags]])
    return read_json(f"{out}/run.json"), read_log(out), read_json(f"{out}/summary.json")


def read_json(path):
    """A JSON file, in which no number may be NaN or infinite."""
    return json.loads(Path(path).read_bytes(), parse_constant=pytest.fail)


def read_log(folder):
    """The lines of a metrics.jsonl"""
    text = Path(folder, "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def refused(capsys, *argv, naming=""):
    """train.py ends in exit code 2 and one printable sentence -> the sentence"""
    code, _, err = ask(capsys, train, *argv)
    last = err.strip().split("\n")[-1]
    assert code == 2, (argv, code, err)
    assert last.startswith("error: "), (argv, err)
    assert last.isprintable(), (argv, err)
    assert naming in last, (argv, err)
    return last


def nothing(step, prompts):
    """What disturbs no step."""


@dataclass
class Step:
    """What went into a training step: [(ids, label)], and of each prompt (rate, head's rate)."""

    texts: list
    rates: list


def watch(monkeypatch, before=nothing):
    """A list that grows by a Step at every training step of this process.

    before(step, prompts): called before each; it may disturb them.
    """
    steps = []

    def step(gpt2, prompts, optimizer, ids, lengths, labels, *rest, **more):
        steps.append(step_of(prompts, optimizer, ids, lengths, labels))
        before(len(steps), prompts)
        return TRAIN_STEP(gpt2, prompts, optimizer, ids, lengths, labels, *rest, **more)

    monkeypatch.setattr(train, "train_step", step)
    return steps


def step_of(prompts, optimizer, ids, lengths, labels):
    """The Step of what train_step is given"""
    texts = []
    for row, length, label in zip(ids, lengths, labels.tolist(), strict=True):
        texts.append((row[:length].tolist(), label))
    rate_of = {}
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            rate_of[id(tensor)] = group["lr"]
    rates = [(rate_of.get(id(p.vectors)), rate_of[id(p.head)]) for p in prompts]
    return Step(texts, rates)


def signal_at(step, number=signal.SIGINT):
    """What sends this process a signal before one step"""

    def before(now, prompts):
        if now == step:
            os.kill(os.getpid(), number)

    return before


def stop_at(monkeypatch, step, *argv):
    """A run that is stopped by Ctrl-C in a step"""
    with monkeypatch.context() as patch:
        watch(patch, signal_at(step))
        assert end(*argv) == 128 + signal.SIGINT


# ---- what a run leaves ----------------------------------------------------------------------


def digest(path):
    """The sha256 of a file"""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def prompt_path(name, folder="run"):
    """Where a prompt lies in a run folder"""
    return Path(folder, "prompts", name, "prompt.safetensors")


def files_in(folder):
    """{name: bytes} of every file below a folder"""
    found = {}
    for path, data in contents(folder).items():
        found[path.relative_to(folder).as_posix()] = data
    return found


def timeless(folder):
    """{name: content} of a run, its times taken out, and what follows from their length"""
    files = files_in(Path(folder))
    files[CHECKPOINT] = timeless_state(files[CHECKPOINT])
    files["metrics.jsonl"] = timeless_log(files["metrics.jsonl"])
    return files


def timeless_state(data):
    """A checkpoint without the length and the hashes that its times give it"""
    end_of_header = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end_of_header])
    assert header["__metadata__"].pop("sha256")
    tree = json.loads(header["__metadata__"].pop("tree"))
    assert tree.pop("log") > 0
    assert tree.pop("log_sha256")
    return header, tree, data[end_of_header:]


def timeless_log(data):
    """The lines of a log without their speeds"""
    lines = [json.loads(line) for line in data.splitlines()]
    for line in lines:
        speed = line.pop("examples_per_second")
        assert speed is None or speed > 0
    return lines


def stored(folder):
    """What a checkpoint says beside its tensors: step, bytes of the log, trials"""
    with safe_open(f"{folder}/{CHECKPOINT}", "pt") as file:
        return json.loads(file.metadata()["tree"])


# ---- runs in other processes ----------------------------------------------------------------


def begin(*argv, target=None, **more):
    """Start train.py in a process of its own -> the process

    It is forked from one that has imported all of this.  more: as `child` takes it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["run_helpers", "torch._dynamo"])
    words = [str(word) for word in argv]
    process = context.Process(target=target or child, args=(words,), kwargs=more, daemon=True)
    with pytest.MonkeyPatch.context() as patch:  # for the first, which starts the one that forks
        paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        process.start()
    return process


def child(argv, said=os.devnull, die=None, environment=None):
    """train.py on one thread, in the process that `begin` starts.

    said: the file for all that it says.  die: (n, seconds): it is killed so long after its n-th
    step began, at most 4 steps later.
    """
    assert os.getppid() == IMPORTED_BY, "the imports were not there when this process was forked"
    torch.set_num_threads(1)
    os.environ.update(environment or {})
    sys.stdout = open(said, "w")  # noqa: SIM115
    sys.stderr = sys.stdout
    kill = killer(*die) if die else nothing
    watch(pytest.MonkeyPatch(), kill)
    kill(0, None)
    train.main(argv)


def killer(step, seconds):
    """What kills this process so long after a step began, and at the latest four steps later"""

    def before(now, prompts):
        if now == step + 4 * (seconds > 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if now == step:
            # The system ends the process, as by SIGKILL.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)

    return before


def end_of(process):
    """Its exit code; None if it hangs"""
    process.join(200)
    return process.exitcode


def team(number, *argv, target=None):
    """As many processes as torchrun would start; what each says is in a file saidRANK"""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(number):
        environment = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "one",
            "WORLD_SIZE": str(number),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }
        more = {"said": f"said{rank}", "environment": environment}
        processes.append(begin(*argv, target=target, **more))
    return processes


def wait_for_steps(processes, folder="run"):
    """Wait for a new checkpoint of a run that has made steps, while all processes run"""
    before = stored(folder)["step"] if Path(folder, CHECKPOINT).exists() else 0
    while True:
        assert all(process.is_alive() for process in processes)
        if Path(folder, CHECKPOINT).exists() and stored(folder)["step"] > before:
            return
        time.sleep(0.01)


def forget(folder):
    """Delete a run folder of these tests"""
    shutil.rmtree(folder, ignore_errors=True)
