"""bench/gpu.sh runs on a CPU, whole and small, so that on a GPU it is not what fails."""

import json
import os
import re
import subprocess
import sys

import pytest

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


def test_every_part_runs_and_says_its_line(tmp_path):
    done = gpu_script(tmp_path)
    said = re.findall(r"^(ok|FAILED) +(\w+) \(\d+ s\): (.+)$", done.stdout, re.MULTILINE)
    assert [(how, name) for how, name, _ in said] == [("ok", name) for name in PARTS], done.stdout
    *_, last = done.stdout.splitlines()
    assert f"{len(PARTS)} parts in " in last
    assert "failed: none; left out: none" in last
    assert done.returncode == 0

    # What the parts are for, in their own words.
    found = {name: text for _, name, text in said}
    assert "differ from the CPU's by 0.0e+00" in found["float64"]
    assert "the same" in found["equal"]
    assert "the same" in found["resumes"]
    assert found["nccl"].startswith("gloo")
    log = (tmp_path / "log").read_text()
    assert all(f"==== {name}\n" in log for name in PARTS)
    for path in tmp_path.glob("*.json"):
        assert json.loads(path.read_text())["ratios"]
    assert len(list(tmp_path.iterdir())) <= 8  # more do not come back from where it is run


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
