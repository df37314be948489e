"""processes.py: ranks, sums over all processes, devices and number types."""

import json
from pathlib import Path

import pytest
import torch

from helpers import team
from support import processes
from support.processes import (
    all_reduce,
    body_dtype,
    default_device,
    device_of,
    part_of,
    rank_0_decides,
    rank_and_world,
    together,
)

# ---- alone ----------------------------------------------------------------------------------


def test_alone_a_process_is_the_first_of_one():
    assert rank_and_world() == (0, 1)
    with processes.joined(torch.device("cpu")):
        assert rank_and_world() == (0, 1)


def test_alone_a_sum_is_what_it_is():
    tensor = torch.tensor([1.0, 2.0])
    all_reduce([tensor])
    assert tensor.tolist() == [1, 2]


def test_alone_a_process_decides():
    done = []
    rank_0_decides(lambda: done.append(1))
    assert done == [1]

    def refuse():
        raise ValueError("why")

    with pytest.raises(ValueError, match="^why$"):
        rank_0_decides(refuse)


# ---- parts of a batch -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_each_text_of_a_batch_counts_once(monkeypatch, size, world):
    """And every process has something to do."""
    batch = list(range(100, 100 + size))
    counted = []
    for rank in range(world):
        monkeypatch.setattr(processes, "rank_and_world", lambda rank=rank: (rank, world))
        mine, n = part_of(batch)
        assert len(mine) == max(n, 1)
        assert mine[0] in batch
        counted += mine[:n]
    assert sorted(counted) == batch


# ---- several processes ----------------------------------------------------------------------

SUMS = """
import json, torch
from support import processes
with processes.joined(torch.device("cpu")):
    rank, world = processes.rank_and_world()
    tensors = [torch.full((2, 3), rank + 1.0), torch.tensor([10.0 ** rank])]
    processes.all_reduce(tensors)
    done = []
    processes.rank_0_decides(lambda: done.append(rank))
    refusals = []
    for kind in (OSError(13, "Permission denied", "a/b"), ValueError("why")):
        def refuse():
            raise kind
        try:
            processes.rank_0_decides(refuse)
        except (OSError, ValueError) as error:
            refusals.append(str(error))
    print(json.dumps([rank, world, [t.tolist() for t in tensors], done, refusals]))
print(json.dumps(processes.rank_and_world()))
"""


def test_a_team_has_the_same_sums_and_the_same_refusals():
    for rank, (code, out, err) in enumerate(team(3, SUMS)):
        assert code == 0, err
        lines = [json.loads(line) for line in out.splitlines()]
        sums = [[[6.0] * 3] * 2, [111.0]]
        done = [0] if rank == 0 else []
        refusals = ["[Errno 13] Permission denied: 'a/b'", "why"]
        assert lines == [[rank, 3, sums, done, refusals], [0, 1]]


LOST = """
import os, sys, torch
from support import processes
with processes.joined(torch.device("cpu")):
    rank, _ = processes.rank_and_world()
    processes.all_reduce([torch.ones(1)])
    if rank == 1:
        os._exit(9)
    try:
        while True:
            processes.all_reduce([torch.ones(1)])
    except OSError as error:
        print(error)
        sys.stdout.flush()
        os._exit(7)
"""


def test_a_process_that_is_lost_ends_the_others_in_a_sentence():
    first, second = team(2, LOST)
    assert second[0] == 9
    assert first[0] == 7, first[2]
    assert first[1].startswith("the processes lost each other; has another one ended? (")
    assert first[1].count("\n") == 1


def test_an_error_of_one_process_is_not_waited_for():
    """Whoever meets an error leaves at once: the others might wait for it for ever."""
    script = "import torch\nfrom support import processes\n"
    script += "with processes.joined(torch.device('cpu')):\n    raise ValueError('why')\n"
    for code, _, err in team(2, script):
        assert code == 1
        assert "ValueError: why" in err


def test_what_processes_do_together_fails_in_one_sentence():
    with pytest.raises(OSError, match=r"lost each other.*\(one line\)$"), together():
        raise RuntimeError("one line\nand another")


def test_too_little_memory_is_no_loss_of_a_process():
    with pytest.raises(torch.OutOfMemoryError), together():
        raise torch.OutOfMemoryError("x")


# ---- devices --------------------------------------------------------------------------------


def test_the_default_device_is_what_accelerates(monkeypatch):
    assert default_device() == "cpu"  # conftest hides a GPU
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    assert default_device() == "xpu"


TAKEN = [
    ("3", "cuda", "cuda:3"),
    ("3", "cuda:1", "cuda:1"),
    (None, "cuda", "cuda:0"),
    ("3", "cpu", "cpu"),
]


@pytest.mark.parametrize("rank,name,taken", TAKEN)
def test_each_process_of_a_team_opens_its_own_gpu_and_no_other(monkeypatch, rank, name, taken):
    opened = []

    def zeros(n, device):
        opened.append(device)
        return torch.ones(n)

    monkeypatch.setattr(torch, "zeros", zeros)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert device_of(name) == torch.device(taken)
    assert opened == [torch.device(taken)]


ABSENT = ["warp", "cuda:9", "cuda", "", "cpu:x", "meta", "xpu", None, 1.5, -1, 99]


@pytest.mark.parametrize("name", ABSENT)
def test_a_device_that_is_not_there_is_refused_by_its_name(name):
    with pytest.raises(ValueError, match="^this machine has no device .*; try cpu$"):
        device_of(name)


# ---- number types ---------------------------------------------------------------------------

FAST = [("x avx512_bf16", (8, 0), True), ("amx_bf16", (9, 0), True), ("avx512f", (7, 5), False)]


@pytest.mark.parametrize("flags,capability,fast", FAST)
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_auto_is_bfloat16_where_the_hardware_is_fast(monkeypatch, kind, flags, capability, fast):
    monkeypatch.setattr(processes, "cpu_flags", lambda: flags)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    wanted = torch.bfloat16 if fast else torch.float32
    assert body_dtype("auto", torch.device(kind)) == wanted


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_flags_of_the_cpu_say_nothing_of_another_device(monkeypatch, kind):
    monkeypatch.setattr(processes, "cpu_flags", lambda: "avx512_bf16 amx_bf16")
    assert body_dtype("auto", torch.device(kind)) == torch.float32


def test_what_is_asked_for_is_taken_whatever_the_hardware(monkeypatch):
    for flags in ("avx512_bf16", ""):
        monkeypatch.setattr(processes, "cpu_flags", lambda flags=flags: flags)
        for name in ("float32", "bfloat16"):
            assert body_dtype(name, torch.device("cpu")) == getattr(torch, name)


def test_a_system_that_says_nothing_of_its_cpu_has_no_flags(monkeypatch, request):
    if request.config.getoption("--body-dtype"):
        pytest.skip("--body-dtype is the answer")
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert processes.cpu_flags() == ""


def test_linux_says_what_its_cpu_can_do(monkeypatch, request):
    if request.config.getoption("--body-dtype"):
        pytest.skip("--body-dtype is the answer")
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: f"{path} amx_bf16")
    assert processes.cpu_flags().endswith("cpuinfo amx_bf16")
    assert body_dtype("auto", torch.device("cpu")) == torch.bfloat16
