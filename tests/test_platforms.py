"""Other systems, devices, terminals: each by taking away what they lack, or by pretending to what they have."""

import io
import json
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ask

import evaluate
import train
from model import Prompt
from support import cache as caching
from support import flags, machine, run

NEW = "--model m --data d --prompt-tokens 2 --batch-size 8 --device cpu --dtype float32 --epochs".split()


def test_what_other_systems_lack_is_not_needed(place, monkeypatch, capsys):
    """Windows has no fcntl, no SIGHUP, no sysconf; macOS no /proc: train, resume, replace and ask all the same."""
    monkeypatch.setattr(run, "fcntl", None)
    for owner, name in ((os, "sysconf"), (os, "O_NOFOLLOW"), (signal, "SIGHUP")):
        monkeypatch.delattr(owner, name, raising=False)
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path, **how: not str(path).startswith(("/proc", "/sys")) and exists(path, **how))
    monkeypatch.setattr(caching, "LIMITS", ("/no/such/file",))
    for more in (["--out", "run"], ["--out", "run", "--overwrite"], ["--resume", "run"]):
        argv = more if more[0] == "--resume" else [*NEW, 2, *more]
        code, _, err = ask(capsys, train, *argv)
        assert code == 0, err
    assert ask(capsys, evaluate, "score", "run")[0] == 0


def test_flags_of_the_cpu_say_nothing_of_another_device(monkeypatch, request):
    if request.config.getoption("--body-dtype"):
        pytest.skip("--body-dtype is the answer")
    monkeypatch.setattr(Path, "read_text", lambda self: "avx512_bf16 amx_bf16")
    found = {kind: machine.body_dtype("auto", torch.device(kind)) for kind in ("cpu", "xpu", "mps")}
    assert found["xpu"] == found["mps"] == torch.float32


def test_fused_adamw_where_there_is_one_and_a_group_a_rate():
    """torch has fused kernels for CPUs and CUDA; elsewhere its own default does."""
    for device, fused in (("cpu", True), ("meta", False)):
        prompts = [Prompt(torch.zeros(2, 4, device=device), torch.zeros(3, 4, device=device)) for _ in range(4)]
        trials = [train.Trial("p", 0, lr, prompt, []) for lr, prompt in zip((0.1, 0.2, 0.1, 0.005), prompts)]
        optimizer = train.make_optimizer(trials, 0.005)
        assert optimizer.defaults["fused"] is fused
        rates = {id(tensor): group["peak"] for group in optimizer.param_groups for tensor in group["params"]}
        assert len(optimizer.param_groups) == 3 and len(rates) == 8
        assert all(rates[id(trial.prompt.vectors)] == trial.lr and rates[id(trial.prompt.head)] == 0.005 for trial in trials)


def test_the_default_device_is_what_accelerates(monkeypatch):
    assert machine.default_device() == "cpu"  # conftest hides a GPU
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    assert machine.default_device() == "xpu"


def test_each_process_of_a_team_opens_its_own_gpu_and_no_other(monkeypatch):
    opened = []
    monkeypatch.setattr(torch, "zeros", lambda n, device: opened.append(device) or torch.ones(n))
    for rank, text, taken in (("3", "cuda", "cuda:3"), ("3", "cuda:1", "cuda:1"), (None, "cuda", "cuda:0"), ("3", "cpu", "cpu")):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if rank:
            monkeypatch.setenv("LOCAL_RANK", rank)
        assert flags.device_of(text) == opened.pop() == torch.device(taken) and not opened


def test_no_cudnn_plan_is_made_for_each_length(place):
    torch.backends.cuda.enable_cudnn_sdp(True)
    evaluate.open_model("m", SimpleNamespace(dtype="float32", device=torch.device("cpu")), True)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_batches_are_made_once_and_stay_where_they_are_needed(place, monkeypatch, capsys):
    made, collate = [], train.collate
    monkeypatch.setattr(train, "collate", lambda examples, device: made.append(device) or collate(examples, device))
    assert ask(capsys, train, *NEW, 5, "--out", "run")[0] == 0
    steps = json.loads(Path("run/run.json").read_bytes())["settings"]["total_steps"]
    assert len(made) == steps / 5 > 1 and set(made) == {torch.device("cpu")}


@pytest.mark.parametrize("asked,terminal,said", [(None, False, "é\\ud83d"), (None, True, "\\xe9\\ud83d"), ("ascii", False, "\\xe9\\ud83d")])
def test_files_and_pipes_get_utf_8(monkeypatch, asked, terminal, said):
    """Whatever the code page of the system is; what a person asked for, and a terminal, keep their own."""
    if asked:
        monkeypatch.setenv("PYTHONIOENCODING", asked)

    class Screen(io.TextIOWrapper):
        def isatty(self):
            return terminal

    plain = machine.Plain(Screen(io.BytesIO(), encoding="ascii"), False)
    plain.write("é\ud83d")
    plain.flush()
    assert plain.buffer.getvalue().decode() == said


def test_long_work_says_where_it_is(place, monkeypatch, capsys):
    """Without a terminal by a line a minute; and of several processes one speaks."""
    clock = iter(range(0, 10**6, 25))  # each look at it is 25 seconds later
    monkeypatch.setattr(machine, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert [*machine.progress("abcdefgh", "batches", 10)] == [*"abcdefgh"]
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(re.fullmatch(r"1\d of 18 batches", line) for line in lines) and len(lines) < 5
    _, _, err = ask(capsys, train, *NEW, 2, "--out", "run")
    assert re.search(r"^\d+ of 14 steps$", err, flags=re.M)
    _, _, err = ask(capsys, evaluate, "score", "run", "--batch-size", "1")
    assert re.search(r"^\d+ of 12 batches$", err, flags=re.M)
    monkeypatch.setattr(machine, "rank_and_world", lambda: (1, 2))
    assert [*machine.progress("abcdefgh", "batches")] == [*"abcdefgh"] and not capsys.readouterr().err


def test_one_bar_inside_another_moves_no_cursor(monkeypatch):
    """A terminal gets no control sequence from us: the inner bar takes the outer one's line, and gives it back."""
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    with machine.ending():
        for _ in machine.progress(range(3), "steps"):
            assert [*machine.progress("ab", "batches")] == ["a", "b"]
    said = screen.getvalue()
    assert "steps" in said and "batches" in said and "x1b" not in said and "\x1b" not in said and "\n" not in said
