"""What every test may rely on, whatever machine, shell or user it runs for.

pytest --body-dtype float32     as on hardware without fast bfloat16, whatever this one has
pytest --body-dtype bfloat16    as on hardware with it
"""

import os
import shutil
import signal

# What a user may have set must not reach the tests, nor the programs that these start.
FOREIGN = (
    "HF_",
    "HUGGING",
    "TRANSFORMERS_",
    "XLA_",
    "JAX_",
    "TORCHELASTIC_",
    "PYTHONIOENCODING",
    "PYTHONUTF8",
    "PYTHONUNBUFFERED",
    "NO_COLOR",
)
for name in list(os.environ):
    if name.startswith(FOREIGN):
        del os.environ[name]
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nor does a GPU
os.environ["OMP_NUM_THREADS"] = "1"  # threads that wait for one another are slow beside others

# A background job begins with SIGINT ignored, and under nohup SIGHUP is.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
if hasattr(signal, "SIGHUP"):  # not on Windows
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import pytest  # noqa: E402
import torch  # noqa: E402

from desk import desk, drawn, runs  # noqa: E402, F401
from helpers import ask, random_weights, sizes, write_checkpoint, write_data  # noqa: E402, F401
from support import processes  # noqa: E402

# What Linux says of a CPU on which `--dtype auto` means the one or the other.
FLAGS_OF_CPU = {"float32": "avx2", "bfloat16": "avx2 avx512_bf16"}


def pytest_addoption(parser):
    parser.addoption(
        "--body-dtype", choices=list(FLAGS_OF_CPU), help="what --dtype auto means in this run"
    )


def let_auto_mean(monkeypatch, dtype):
    """From now on `--dtype auto` means dtype, in every program that runs in this process."""
    monkeypatch.setattr(processes, "cpu_flags", lambda: FLAGS_OF_CPU[dtype])


@pytest.fixture(autouse=True)
def answer_of_auto(request, monkeypatch):
    """With --body-dtype, `--dtype auto` means that one."""
    asked = request.config.getoption("--body-dtype")
    if asked:
        let_auto_mean(monkeypatch, asked)


@pytest.fixture(params=["float32", "bfloat16"])
def either_dtype(request, monkeypatch, answer_of_auto):
    """For tests that go by the answer of `--dtype auto`: both answers, one after the other."""
    let_auto_mean(monkeypatch, request.param)
    return getattr(torch, request.param)


def pytest_terminal_summary(terminalreporter):
    """One line that names what was skipped, and why.

    A plain clone has neither SST-2 nor the official tokenizer.
    """
    names = []
    for report in terminalreporter.stats.get("skipped", []):
        why = report.longrepr
        if isinstance(why, tuple):
            why = why[2].removeprefix("Skipped: ")
        names.append(f"{report.nodeid.split('::')[-1]} ({why})")
    if names:
        terminalreporter.write_line(f"not run here: {', '.join(names)}")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A small random checkpoint folder: (folder, config, weights)."""
    config = sizes()
    weights = random_weights(config)
    folder = write_checkpoint(tmp_path_factory.mktemp("random"), config, weights)
    return folder, config, weights


@pytest.fixture
def place(tmp_path, checkpoint, monkeypatch):
    """A working folder with a random model m and a small data set d; no other is written to."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint[0], "m")
    write_data("d")
    return tmp_path
