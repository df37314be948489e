"""What every test may rely on, whatever machine, shell or user it runs for.

    pytest --body-dtype float32     as on hardware without fast bfloat16, whatever this one has
    pytest --body-dtype bfloat16    as on hardware with it
"""

import os
import shutil
import signal

# What a user may have set must not reach the tests, nor the programs that these start; and no GPU does.
for name in [*os.environ]:
    if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "XLA_", "JAX_", "TORCHELASTIC_", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONUNBUFFERED", "NO_COLOR")):
        del os.environ[name]
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["OMP_NUM_THREADS"] = "1"  # threads that wait for one another are slow where others work, too
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job begins with it ignored
signal.signal(signal.SIGTERM, signal.SIG_DFL)
if hasattr(signal, "SIGHUP"):  # not on Windows; under nohup it is ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import pytest
import torch
from checkpoints import random_weights, sizes, write_checkpoint

from support import machine


def pytest_addoption(parser):
    parser.addoption("--body-dtype", choices=["float32", "bfloat16"], help="what --dtype auto means in this run")


@pytest.fixture(autouse=True)
def answer_of_auto(request, monkeypatch):
    """With --body-dtype, `--dtype auto` means that one in every program that runs in this process."""
    if asked := request.config.getoption("--body-dtype"):
        explicit = machine.body_dtype
        monkeypatch.setattr(machine, "body_dtype", lambda name, device: explicit(asked if name == "auto" else name, device))


@pytest.fixture(params=["float32", "bfloat16"])
def either_dtype(request, monkeypatch, answer_of_auto):
    """For tests that go by the answer of `--dtype auto`: both answers, one after the other."""
    explicit = machine.body_dtype
    monkeypatch.setattr(machine, "body_dtype", lambda name, device: explicit(request.param if name == "auto" else name, device))
    return getattr(torch, request.param)


def pytest_terminal_summary(terminalreporter):
    """One line that names what was skipped, and why: a plain clone has neither SST-2 nor the official tokenizer."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        why = lambda report: report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else report.longrepr
        names = ", ".join(f"{report.nodeid.split('::')[-1]} ({why(report)})" for report in skipped)
        terminalreporter.write_line(f"not run here: {names}")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A small random checkpoint folder: (folder, config, weights)."""
    config = sizes()
    weights = random_weights(config)
    return write_checkpoint(tmp_path_factory.mktemp("random"), config, weights), config, weights


def ask(capsys, program, *argv):
    """Run train.py or evaluate.py in this process -> (exit code, stdout, stderr)"""
    code = 0
    try:
        program.main([*map(str, argv)])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


GOOD, BAD = "fine lovely great warm witty".split(), "dull awful cold flat stale".split()


@pytest.fixture
def place(tmp_path, checkpoint, monkeypatch):
    """A working folder with a random model m and a small data set d; nothing is written elsewhere."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint[0], "m")
    os.mkdir("d")
    for split, rows in (("train", 60), ("dev", 12)):
        lines = [f"{(BAD, GOOD)[i % 2][i // 2 % 5]} {split[0]}{i}\t{i % 2}" for i in range(rows)]
        (tmp_path / "d" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]))
    return tmp_path
