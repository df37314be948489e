"""Nothing is lost: signals, kills, full disks, losses that are not finite, and several processes."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from checkpoints import TINY
from test_train import BASE, run, timeless

import train
from model import load_prompt

ROOT = TINY.parent.parent
FLAGS = ["--prompt-tokens", 2, 3, "--seeds", 0, 1, "--epochs", 4, "--lr", 0.1, "--patience", 2]
STEP = train.train_step


def end(*argv):
    """Run train.py in this process -> its exit code"""
    try:
        train.main([*map(str, argv)])
    except SystemExit as stop:
        return stop.code
    return 0


def disturb(monkeypatch, action):
    """Let action(step number, prompts) be called before every training step of this process."""
    steps = []

    def step(gpt2, prompts, *rest):
        steps.append(1)
        action(len(steps), prompts)
        return STEP(gpt2, prompts, *rest)

    monkeypatch.setattr(train, "train_step", step)
    return steps


@pytest.mark.parametrize("at", [1, 7, 10, 16, None])  # the first, an epoch's last, a logged one, another, the very last
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_resuming_changes_no_byte(place, monkeypatch, capsys, at, number):
    run(*FLAGS)
    whole = timeless(place / "run")
    shutil.rmtree("run")
    at = at or whole["metrics"][-1]["step"]
    steps = disturb(monkeypatch, lambda step, _: step == at and os.kill(os.getpid(), number))
    code, told = end(*BASE, "--out", "run", *FLAGS), capsys.readouterr().err
    assert code == 128 + number and len(steps) == at and "python train.py --resume run" in told
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and not os.path.exists("run/summary.json")
    assert end("--resume", "run") == 0 and timeless(place / "run") == whole
    assert len(steps) == whole["metrics"][-1]["step"]  # none was done twice


def test_a_run_that_is_whole_is_left_as_it_is(place, capsys):
    run(*FLAGS)
    before = timeless(place / "run")
    assert end("--resume", "run") == 0 and timeless(place / "run") == before
    assert "p2-s1" in capsys.readouterr().out


def test_thirty_kills_at_random_moments(place):
    """A run that is killed again and again, whatever it was writing, ends as one that never was."""
    fresh = [*BASE, "--out", "run", *map(str, FLAGS[:-2]), "--epochs", "25"]
    context, draw, kills = multiprocessing.get_context("forkserver"), random.Random(0), 0
    context.set_forkserver_preload(["train"])
    process = context.Process(target=quietly, args=(fresh,))  # in as many threads as those to be killed
    process.start()
    process.join()
    whole = timeless(place / "run")
    shutil.rmtree("run")
    while not os.path.exists("run/summary.json"):
        began = os.path.exists("run/run.json")
        argv = ["--resume", "run"] if began else fresh
        process = context.Process(target=quietly, args=(argv,))
        process.start()
        process.join(draw.uniform(0.05, 1.0) if kills < 30 else 100)
        kills += process.is_alive()
        process.kill()
        process.join()
        for path in [path for path in place.glob("run/**/*") if path.suffix in (".json", ".jsonl")]:
            for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
                json.loads(line)
        for path in place.glob("run/**/prompt.safetensors"):
            load_prompt(path)
    assert kills == 30 and timeless(place / "run") == whole


def quietly(argv):
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")
    train.main(argv)


def change(place, path, old, new):
    text = (place / path).read_text()
    assert old in text
    (place / path).write_text(text.replace(old, new))


CHANGED = {
    "a flag": (lambda place: None, ["--lr", "0.5"], "lr (settings)"),
    "train": (lambda place: change(place, "d/train.tsv", "t0\t0", "t0\t1"), [], "train (data)"),
    "dev": (lambda place: change(place, "d/dev.tsv", "d0\t0", "d0\t1"), [], "dev (data)"),
    "config": (lambda place: change(place, "m/config.json", "1e-05", "2e-05"), [], "config.json (files)"),
    "merges": (lambda place: change(place, "m/merges.txt", "#version: 0.2\n", ""), [], "merges.txt (files)"),
    "weights": (lambda place: flip(place / "m/model.safetensors"), [], "base_sha256 (base)"),
    "no run": (lambda place: shutil.rmtree("run"), [], "run/run.json"),
    "run.json": (lambda place: (place / "run/run.json").write_text("[]"), [], "does not describe a run"),
    "its settings": (lambda place: change(place, "run/run.json", '"settings": {', '"settings": 1, "was": {'), [], "model (settings)"),
    "checkpoint": (lambda place: (place / "run/checkpoint/state.safetensors").write_text("x" * 99), [], "state.safetensors"),
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("case", CHANGED)
def test_what_changed_since_is_named_and_refused(place, monkeypatch, capsys, case):
    disturb(monkeypatch, lambda step, _: step == 3 and os.kill(os.getpid(), signal.SIGINT))
    assert end(*BASE, "--out", "run") == 130
    action, flags, named = CHANGED[case]
    action(place)
    capsys.readouterr()
    assert end("--resume", "run", *flags) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error


def test_one_prompt_that_breaks_does_not_touch_the_others(place, monkeypatch, capsys):
    def poison(step, prompts):
        if step == 12 and len(prompts) == 4:
            prompts[1].vectors.data.fill_(float("nan"))

    run(*FLAGS[:-2])
    whole = timeless(place / "run")
    disturb(monkeypatch, poison)
    run(*FLAGS[:-2], out="poisoned")
    assert "p2-s1 stopped: no finite gradient in step 12; try a lower --lr" in capsys.readouterr().err
    summary = json.load(open("poisoned/summary.json"))
    assert [p["broke"] for p in summary["prompts"]] == [0, 12, 0, 0] and summary["prompts"][1]["epoch"] == 1
    assert load_prompt("poisoned/prompts/p2-s1/prompt.safetensors")
    for a, b in zip(json.loads(whole["summary.json"])["prompts"], summary["prompts"]):
        assert b["name"] == "p2-s1" or a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_all_prompts_broken_is_said_in_one_sentence(place, monkeypatch, capsys):
    disturb(monkeypatch, lambda step, prompts: prompts[0].vectors.data.fill_(float("inf")))
    assert end(*BASE, "--out", "run") == 2 and "lower --lr" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize("kilobytes", [20, 100])
def test_a_full_disk_ends_in_one_sentence_and_the_last_good_state_stays(place, kilobytes):
    """On a disk too small for the start, or for the log.  With more room it goes on."""
    flags = ["--prompt-tokens", 2, 3, 20, "--seeds", 0, 1, 2, 3, "--epochs", 15, "--cache-text", "off"]
    os.mkdir("small")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", "small"]).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        argv = [sys.executable, str(ROOT / "train.py"), *BASE, *map(str, flags), "--out", "small/run"]
        done = subprocess.run(argv, capture_output=True, text=True)
        error = done.stderr.strip().split("\n")[-1]
        assert done.returncode == 2 and re.search("small/run.*No space left on device.*--resume small/run", error)
        assert not list(place.glob("small/**/*.tmp")) and not os.path.exists("small/run/summary.json")
        for path in place.glob("small/**/prompt.safetensors"):
            load_prompt(path)
        subprocess.run(["mount", "-o", "remount,size=10m", "small"], check=True)
        again = ["--resume", "small/run"] if os.path.exists("small/run/run.json") else argv[2:]
        assert end(*again) == 0
        resumed = timeless(place / "small/run")
    finally:
        subprocess.run(["umount", "small"], check=True)
    run(*flags)
    alone = timeless(place / "run")
    assert resumed["metrics"] == alone["metrics"] and resumed["summary.json"] == alone["summary.json"]


def test_no_pickle_anywhere():
    forbidden = r"import pickle|pickle\.\w+\(|(?<!safetensors\.)torch\.(load|save)\(|allow_pickle=" + "True"
    paths = [*ROOT.glob("*.py"), *ROOT.glob("tests/**/*.py")]
    assert len(paths) > 10 and [path.name for path in paths if re.search(forbidden, path.read_text())] == ["test_resume.py"]


# ---- several processes ----------------------------------------------------------------------------


def torchrun(n, *argv, **more):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", n]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*map(str, [*command, ROOT / "train.py", *BASE, *argv])]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def test_one_two_and_three_processes_reach_the_same(place):
    """54 texts in batches of 8: the last has 6, and with --batch-size 53 only one, fewer than processes."""
    for size in (8, 53):
        flags = ["--prompt-tokens", 2, 3, "--epochs", 3, "--batch-size", size, "--out"]
        started = {n: torchrun(n, *flags, f"run{n}-{size}") for n in ((2, 3) if size == 8 else (3,))}
        assert end(*BASE, *flags, f"run1-{size}") == 0
        for n, process in started.items():
            out, err = process.communicate()
            assert process.returncode == 0 and out.count("95 % interval") == 1, err
        one = timeless(place / f"run1-{size}")
        for n in started:
            many = timeless(place / f"run{n}-{size}")
            assert many.keys() == one.keys() and len(many["metrics"]) == len(one["metrics"])
            for a, b in zip(one["metrics"], many["metrics"]):
                assert a | {"loss": 0} == b | {"loss": 0} and abs(a["loss"] - b["loss"]) < 1e-6
            for name in ("p2-s0", "p3-s0"):
                (a, _), (b, _) = (load_prompt(f"run{m}-{size}/prompts/{name}/prompt.safetensors") for m in (1, n))
                assert (a.vectors - b.vectors).abs().max() < 1e-5 and (a.head - b.head).abs().max() < 1e-5


def test_a_process_that_dies_ends_the_others_with_its_cause(place):
    """And a signal to all of them saves; two processes resume as two, not as one."""
    process = torchrun(2, "--epochs", "4000", "--out", "run")
    while not os.path.exists("run/checkpoint/state.safetensors"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode and "SIGKILL" in err.upper()
    before = os.stat("run/checkpoint/state.safetensors").st_mtime_ns
    process = torchrun(2, "--resume", "run")
    while os.stat("run/checkpoint/state.safetensors").st_mtime_ns == before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert "go on with: python train.py --resume run" in err
    assert end("--resume", "run") == 2
