"""Nothing is lost: signals, kills, full disks, losses that are not finite, and several processes."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from checkpoints import TINY
from safetensors import safe_open
from test_train import BASE, corrupt, run, timeless, watch

import train
from model import load_prompt

ROOT = TINY.parent.parent
FLAGS = ["--prompt-tokens", 2, 3, "--seeds", 0, 1, "--steps", 25, "--lr", 0.1, "--patience", 3]
IMPORTED_BY = os.getpid()


def end(*argv):
    """Run train.py in this process -> its exit code"""
    try:
        train.main([*map(str, argv)])
    except SystemExit as stop:
        return stop.code
    return 0


def begin(*argv, **more):
    """Start train.py in a process of its own, forked from one that has imported all of this -> the process"""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_resume", "torch._dynamo"])
    process = context.Process(target=child, args=([*map(str, argv)],), kwargs=more, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))  # for the first, which starts it
        process.start()
    return process


def child(argv, said=os.devnull, die=None, environment={}):
    """train.py on one thread.  die: (n, seconds): be killed so long after the n-th step began, at most 4 steps later."""
    assert os.getppid() == IMPORTED_BY, "the imports were not there when this process was forked"
    torch.set_num_threads(1)
    os.environ.update(environment)
    sys.stdout = sys.stderr = open(said, "w")

    def kill(step, prompts=None):
        if die and step == die[0] + 4 * (die[1] > 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if die and step == die[0]:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the system ends the process, as by SIGKILL
            signal.setitimer(signal.ITIMER_REAL, die[1])

    watch(pytest.MonkeyPatch(), kill)
    kill(0)
    train.main(argv)


def end_of(process):
    """Its exit code, none if it hangs"""
    process.join(200)
    return process.exitcode


def stored(folder):
    """What a checkpoint says beside its tensors: step, bytes of the log, trials"""
    with safe_open(f"{folder}/checkpoint/state.safetensors", "pt") as file:
        return json.loads(file.metadata()["tree"])


@pytest.mark.parametrize("number,at", [  # the first, an epoch's last, a logged one, another, one with two to go, the very last
    *((signal.SIGINT, at) for at in (1, 7, 10, 16, 23, 25)), (signal.SIGTERM, 16),
])  # fmt: skip
def test_a_signal_finishes_the_step_and_resuming_changes_no_byte(place, monkeypatch, capsys, at, number):
    """Neither do lines that a killed run logged beyond the checkpoint, the last of them cut."""
    run(*FLAGS)
    whole = timeless(place / "run")
    shutil.rmtree("run")
    steps = watch(monkeypatch, lambda step, _: step == at and os.kill(os.getpid(), number))
    code, told = end(*BASE, "--out", "run", *FLAGS), capsys.readouterr().err
    assert code == 128 + number and len(steps) == stored("run")["step"] == at and "python train.py --resume run" in told
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and not os.path.exists("run/summary.json")
    with open("run/metrics.jsonl", "a") as file:
        file.write(json.dumps(whole["metrics"][0]) + '\n{"step": 1')
    assert end("--resume", "run") == 0 and timeless(place / "run") == whole
    assert len(steps) == whole["metrics"][-1]["step"] == 25  # none was done twice, none left out
    assert end("--resume", "run") == 0 and timeless(place / "run") == whole and len(steps) == 25  # it is whole and stays so


def test_a_checkpoint_comes_every_200_steps_within_an_epoch_too(place, monkeypatch):
    """The folder as a kill leaves it in step 214, moved elsewhere, goes on from step 200."""
    rows = "".join(f"film {i}\t{i % 2}\n" for i in range(250))
    (place / "d" / "train.tsv").write_text("text\tlabel\n" + rows)
    steps = watch(monkeypatch, lambda step, _: step == 214 and shutil.copytree("run", "killed"))
    run("--batch-size", 1, "--epochs", 1, "--prompt-tokens", 2)
    at = stored("killed")
    assert at["step"] == 200 and at["log"] < os.path.getsize("killed/metrics.jsonl")
    assert end("--resume", "killed") == 0 and timeless(place / "killed") == timeless(place / "run")
    assert len(steps) == 225 + 25


def test_thirty_kills_at_random_moments(place):
    """A run that is killed again and again, whatever it was writing, ends as one that never was."""
    fresh = [*BASE, "--out", "run", "--prompt-tokens", 2, "--seeds", 0, 1, "--lr", 0.1, "--epochs", 52]
    assert end_of(begin(*fresh)) == 0
    whole = timeless(place / "run")
    shutil.rmtree("run")
    draw, at, found, longer = random.Random(0), {"step": 0}, 0, 0
    for kill in range(30):
        if kill < 3:  # while it starts
            die = 0, draw.uniform(0.001, 0.05)
        elif kill % 3 == 0:  # when the second line from here was logged, and the checkpoint is older
            die = 21 - at["step"] % 10, 0
        else:  # in an epoch, or around its end, where all is written
            die = draw.randint(1, 5) if kill % 3 == 1 else 7, draw.uniform(0.001, 0.03)
        argv = ["--resume", "run"] if os.path.exists("run/run.json") else fresh
        assert end_of(begin(*argv, die=die)) in (-signal.SIGALRM, -signal.SIGKILL)
        if os.path.exists("run/checkpoint/state.safetensors"):
            at, found = stored("run"), found + 1
            longer += os.path.getsize("run/metrics.jsonl") > at["log"]
        logged = [line for path in place.glob("run/metrics.jsonl") for line in path.read_text().splitlines()]
        for text in [path.read_text() for path in place.glob("run/*.json")] + logged:
            json.loads(text)
        for path in place.glob("run/**/prompt.safetensors"):
            load_prompt(path)
    assert found >= 20 and longer >= 5 and not os.path.exists("run/summary.json")
    assert end_of(begin("--resume", "run")) == 0 and timeless(place / "run") == whole


CHANGED = {
    "a flag": (lambda place: None, ["--lr", "0.5"], "lr (settings)"),
    "train": (corrupt("d/train.tsv", lambda data: data.replace(b"t0\t0", b"t0\t1")), [], "train (data)"),
    "dev": (corrupt("d/dev.tsv", lambda data: data.replace(b"d0\t0", b"d0\t1")), [], "dev (data)"),
    "config": (corrupt("m/config.json", lambda data: data.replace(b"1e-05", b"2e-05")), [], "base_sha256 (base)"),
    "merges": (corrupt("m/merges.txt", lambda data: data.replace(b"#version: 0.2\n", b"")), [], "base_sha256 (base)"),
    "weights": (corrupt("m/model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])), [], "base_sha256 (base)"),
    "no run": (lambda place: shutil.rmtree("run"), [], "run/run.json"),
    "run.json": (corrupt("run/run.json", lambda data: b"[]"), [], "run/run.json is damaged"),
    "its settings": (corrupt("run/run.json", lambda data: data.replace(b'"settings": {', b'"settings": 1, "was": {')), [],
                     "run/run.json is damaged"),
    "checkpoint": (corrupt("run/checkpoint/state.safetensors", lambda data: b"x" * 99), [], "state.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_what_changed_since_is_named_and_refused(place, monkeypatch, capsys, case):
    watch(monkeypatch, lambda step, _: step == 3 and os.kill(os.getpid(), signal.SIGINT))
    assert end(*BASE, "--out", "run", "--lr", "0.1") == 130
    action, flags, named = CHANGED[case]
    action(place)
    capsys.readouterr()
    assert end("--resume", "run", *flags) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error


@pytest.mark.parametrize("at,told", [(12, 14), (16, 20)])  # at the end of an epoch, and at a line of the log
def test_one_prompt_that_breaks_does_not_touch_the_others(place, monkeypatch, capsys, at, told):
    """Neither by a gradient whose norm is infinite, though the loss is not, nor by vectors that are no numbers.

    The run is stopped in step 18 and goes on, and has not forgotten what broke.
    """

    def poison(step, prompts):
        if step == at == 12:
            prompts[1].head.data[:] = torch.tensor([[1e25], [-1e25]])
        elif step == at:
            prompts[1].vectors.data.fill_(float("nan"))
        elif step == 18:
            os.kill(os.getpid(), signal.SIGINT)

    flags = ["--prompt-tokens", 2, 3, "--seeds", 0, 1, "--epochs", 4, "--lr", 0.1]
    _, lines, _ = run(*flags)
    watch(monkeypatch, poison)
    assert end(*BASE, "--out", "poisoned", *flags) == 130 and end("--resume", "poisoned") == 0
    summary = json.load(open("poisoned/summary.json"))
    poisoned = [json.loads(line, parse_constant=pytest.fail) for line in open("poisoned/metrics.jsonl")]
    assert f"p2-s1 stopped: no finite gradient by step {told}; try a lower --lr" in capsys.readouterr().err
    assert [p["broke"] for p in summary["prompts"]] == [0, told, 0, 0] and summary["prompts"][1]["epoch"] <= at // 7
    before = [line["loss"] for line in lines if line["prompt"] == "p2-s1" and line["step"] < at]
    *whole, last = [line["loss"] for line in poisoned if line["prompt"] == "p2-s1"]
    assert whole == before and (last is None or last > 1e20)  # the line that tells of it, and no more
    others, same = ([line["loss"] for line in log if line["prompt"] != "p2-s1"] for log in (poisoned, lines))
    assert others == pytest.approx(same, abs=1e-5)


def test_all_prompts_broken_is_said_in_one_sentence(place, monkeypatch, capsys):
    watch(monkeypatch, lambda step, prompts: prompts[0].vectors.data.fill_(float("inf")))
    assert end(*BASE, "--out", "run") == 2 and "lower --lr" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize("kilobytes", [20, 125])
def test_a_full_disk_ends_in_one_sentence_and_the_last_good_state_stays(place, kilobytes):
    """On a disk too small for the prompts, or for the second checkpoint.  With more room it goes on."""
    flags = [*BASE, "--prompt-tokens", 2, 3, 20, "--seeds", 0, 1, 2, 3, "--epochs", 3, "--cache-text", "off", "--out"]
    os.mkdir("small")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", "small"]).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        assert end_of(begin(*flags, "small/run", said="said")) == 2
        error = (place / "said").read_text().strip().split("\n")[-1]
        assert re.search("small/run.*No space left on device.*--resume small/run", error)
        assert not list(place.glob("small/**/*.tmp")) and not os.path.exists("small/run/summary.json")
        for path in place.glob("small/**/prompt.safetensors"):
            load_prompt(path)
        subprocess.run(["mount", "-o", "remount,size=10m", "small"], check=True)
        assert os.path.exists("small/run/checkpoint/state.safetensors") == (kilobytes == 125)
        assert end_of(begin("--resume", "small/run")) == 0
        resumed = timeless(place / "small/run")
    finally:
        subprocess.run(["umount", "small"], check=True)
    assert end(*flags, "run") == 0
    alone = timeless(place / "run")
    assert resumed["metrics"] == alone["metrics"] and resumed["summary.json"] == alone["summary.json"]


def test_no_pickle_anywhere():
    forbidden = r"import pickle|pickle\.\w+\(|(?<!safetensors\.)torch\.(load|save)\(|allow_pickle=" + "True"
    paths = [*ROOT.glob("*.py"), *ROOT.glob("tests/**/*.py")]
    assert len(paths) > 10 and [path.name for path in paths if re.search(forbidden, path.read_text())] == ["test_resume.py"]


def team(n, *argv):
    """As many processes as torchrun would start, and what each says, in a file"""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "TORCHELASTIC_RUN_ID": "one"}
    ranks = [where | {"WORLD_SIZE": str(n), "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(n)]
    return [begin(*argv, said=f"said{i}", environment=rank) for i, rank in enumerate(ranks)]


def wait_for_a_checkpoint(processes):
    """A new one, while all of them run"""
    path = "run/checkpoint/state.safetensors"
    before = os.path.exists(path) and os.stat(path).st_mtime_ns
    while not os.path.exists(path) or os.stat(path).st_mtime_ns == before:
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)


@pytest.mark.parametrize("n,flags", [
    (2, ["--prompt-tokens", 2, 3, "--epochs", 2]),
    (3, ["--epochs", 10, "--batch-size", 53, "--head-lr", 0.1, "--train", "head"]),
])  # fmt: skip
def test_one_two_and_three_processes_reach_the_same(place, n, flags):
    """54 texts in batches of 8: the last has 6, and in batches of 53 only one, fewer than processes.  Two are torchrun's."""
    argv = [*BASE, *map(str, flags), "--out"]
    if n == 2:
        torchrun = "-m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node 2".split()
        more = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True}
        done = subprocess.run([sys.executable, *torchrun, str(ROOT / "train.py"), *argv, "many"], **more)
        assert done.returncode == 0 and done.stdout.count("95 % interval") == 1, done.stderr
    else:
        for i, process in enumerate(team(n, *argv, "many")):
            assert end_of(process) == 0 and (place / f"said{i}").read_text().count("95 % interval") == (i == 0)
    assert end(*argv, "one") == 0
    one, many = timeless(place / "one"), timeless(place / "many")
    assert many.keys() == one.keys() and any(line["split"] == "train" for line in one["metrics"])
    for a, b in zip(one["metrics"], many["metrics"], strict=True):
        assert a | {"loss": 0} == b | {"loss": 0} and abs(a["loss"] - b["loss"]) < 1e-6
    for path in place.glob("one/prompts/*/prompt.safetensors"):
        (a, _), (b, _) = load_prompt(path), load_prompt(place / "many/prompts" / path.parent.name / path.name)
        assert (a.vectors - b.vectors).abs().max() < 1e-5 and (a.head - b.head).abs().max() < 1e-5


def test_a_process_that_dies_ends_the_others_with_its_cause(place):
    """And a signal to one saves and ends all; two processes resume as two, not as one."""
    processes = team(2, *BASE, "--epochs", 1000, "--out", "run")
    wait_for_a_checkpoint(processes)
    processes[1].kill()
    assert end_of(processes[0]) == 2 and re.search("another process ended.*--resume run", (place / "said0").read_text())
    processes = team(2, "--resume", "run")
    wait_for_a_checkpoint(processes)
    processes[1].terminate()
    for i, process in enumerate(processes):
        assert end_of(process) == 128 + signal.SIGTERM
        assert ("go on with: python train.py --resume run" in (place / f"said{i}").read_text()) == (i == 0)
    assert stored("run")["step"] % 10 == 0  # where all of them look for signals, or at an epoch's end
    assert end("--resume", "run") == 2
