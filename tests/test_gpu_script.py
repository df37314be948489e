"""bench/gpu.sh and each of its parts run on a CPU, so that on a GPU they are not what fails."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")

import gpu
from helpers import ROOT

PARTS = (
    "learns",
    "float64",
    "equal",
    "resumes",
    "stalls",
    "benchmark",
    "launches",
    "packs",
    "epoch",
    "nccl",
    "tests",
)


def gpu_script(folder, **settings):
    """Run bench/gpu.sh with these settings -> what subprocess.run gives; its files go to folder"""
    own = {"PYTHON": sys.executable, "OUT": str(folder), "BUDGET": "900", "LIMIT": "300"}
    own |= {"DEVICE": "cpu", "SCALE": "small"}
    done = subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu.sh")],
        env=os.environ | own | settings,
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert done.stderr == ""
    assert (folder / "results").read_text() == done.stdout
    return done


@pytest.fixture
def this_process(monkeypatch):
    """This process as it was, when a part has been run in it."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    with torch.random.fork_rng():
        yield
    torch.backends.cuda.enable_cudnn_sdp(cudnn)


def test_every_part_ends_by_its_finding(tmp_path, capsys, this_process):
    """In one process, for the imports of a process take longer than most parts."""
    out = tmp_path / "out"
    out.mkdir()
    for name in PARTS:
        folders = ["--work", str(tmp_path), "--out", str(out)]
        gpu.main([name, "--device", "cpu", "--small", *folders])
    found = re.findall(r"^= (.+)$", capsys.readouterr().out, re.MULTILINE)

    # What the parts are for, in their own words.
    said = dict(zip(PARTS, found, strict=True))
    assert "differ from the CPU's by 0.0e+00" in said["float64"]
    assert "the same" in said["equal"]
    assert "the same" in said["resumes"]
    assert said["nccl"].startswith("gloo")
    figures = list(out.iterdir())
    # With the log and the results eight at most: more do not come back from where it is run.
    assert 1 <= len(figures) <= 6
    for path in figures:
        assert json.loads(path.read_text())["ratios"]


def test_the_script_knows_every_part():
    text = (ROOT / "bench" / "gpu.sh").read_text()
    [listed] = re.findall(r'^parts="(.+?)"', text, re.MULTILINE | re.DOTALL)
    assert tuple(re.findall(r"(\w+):\d+", listed)) == PARTS == tuple(gpu.PARTS)


def test_each_part_says_its_line(tmp_path):
    done = gpu_script(tmp_path, PARTS="tests float64")
    *parts, last = done.stdout.splitlines()
    assert re.fullmatch(r"ok +float64 \(\d+ s\): logits and gradients differ .+", parts[0])
    assert re.fullmatch(r"ok +tests \(\d+ s\): skipped: .+", parts[1])
    assert "2 parts in " in last
    assert "failed: none; left out: none" in last
    assert done.returncode == 0
    log = (tmp_path / "log").read_text()
    assert re.findall("^==== (.+)$", log, re.MULTILINE) == ["float64", "tests"]
    assert {path.name for path in tmp_path.iterdir()} == {"log", "results"}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"DEVICE": "warp"}, "error: this machine has no device warp"),
        ({"LIMIT": "1"}, "ran past its 1 s"),
        ({"PYTHON": "no-such-python"}, "no-such-python"),
    ],
    ids=str,
)
def test_a_part_that_fails_is_told_and_stops_no_other(tmp_path, settings, reason):
    done = gpu_script(tmp_path, PARTS="float64 tests", **settings)
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert [line.split()[:2] for line in lines[:2]] == [["FAILED", "float64"], ["FAILED", "tests"]]
    assert reason in lines[0]
    assert "2 parts in " in lines[2]
    assert "failed: float64 tests; left out: none" in lines[2]


def test_what_no_time_is_left_for_is_told(tmp_path):
    done = gpu_script(tmp_path, PARTS="float64", BUDGET="4")
    assert done.stdout.startswith("left    float64: no time is left of 4 s\n")
    assert "0 parts in " in done.stdout
    assert done.returncode == 1
