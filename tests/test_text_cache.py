"""support/text_cache.py: kept or read again, the bits are the same; and how many are kept."""

from types import SimpleNamespace

import psutil
import pytest
import torch

import train
from helpers import ask
from model import GPT2, GPT2Config
from run_helpers import BASE, end, prompt_path, run, stop_at, timeless
from support import text_cache
from support.text_cache import TextCache, memory_of

SAID = "keys and values of some texts are not kept"


@pytest.fixture
def reads(monkeypatch):
    """A list that grows by the bytes of the keys and values that are read"""
    sizes = []
    text_pass = GPT2.text_pass

    def count(self, ids):
        kv = text_pass(self, ids)
        sizes.append(kv.nbytes)
        return kv

    monkeypatch.setattr(GPT2, "text_pass", count)
    return sizes


def have_memory(monkeypatch, free):
    """The machine has so much memory that auto may take `free` bytes."""
    memory = SimpleNamespace(total=free * 4)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(text_cache, "LIMITS", ())


def written(*flags):
    """The bytes of what a run of three epochs comes to"""
    run("--epochs", 3, "--overwrite", *flags)
    with open("run/summary.json", "rb") as file:
        return file.read(), prompt_path("p10-s0").read_bytes()


def kept_and_read(sizes, budget):
    """How many of these fit into a budget one after the other, and how many do not"""
    kept = 0
    for size in sizes:
        if size <= budget:
            budget -= size
            kept += 1
    return kept, len(sizes) - kept


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_texts_change_no_bit(place, monkeypatch, capsys, reads, dtype):
    """Without a cache, with one, and partly; auto takes a quarter of the memory, to the byte."""
    have_memory(monkeypatch, 0)
    nothing_kept = written("--dtype", dtype)
    total = len(reads)
    batches = reads[:7]
    assert SAID not in capsys.readouterr().out  # without memory nothing can be kept
    for free in (sum(batches), sum(batches) - 1, sum(batches[:3]), sum(batches[:3]) - 1):
        have_memory(monkeypatch, free)
        reads.clear()
        assert written("--dtype", dtype) == nothing_kept
        kept, again = kept_and_read(batches, free)
        assert len(reads) == total - 2 * kept
        assert capsys.readouterr().out.count(SAID) == (again > 0)  # once, if at all


@pytest.mark.parametrize("budget", ["off", "0", "1", "2K", "1G", "auto"])
def test_any_budget_gives_the_same_bytes(place, budget):
    expected = written("--cache-text", "off")
    assert written("--cache-text", budget) == expected


def test_in_one_epoch_nothing_is_kept(place, monkeypatch):
    budgets = []

    def watch_cache(budget, gpt2):
        budgets.append(budget)
        return TextCache(budget, gpt2)

    monkeypatch.setattr(train, "TextCache", watch_cache)
    for epochs in (1, 2):
        run("--epochs", epochs, "--overwrite")
    assert budgets == [0, "auto"]


def test_a_container_that_may_take_less_than_the_machine_has_counts(monkeypatch, tmp_path):
    have_memory(monkeypatch, 1000)
    (tmp_path / "limit").write_text("1000\n")
    (tmp_path / "none").write_text("max\n")
    limits = [tmp_path / "none", tmp_path / "limit", tmp_path / "missing"]
    monkeypatch.setattr(text_cache, "LIMITS", limits)
    assert memory_of(torch.device("cpu")) == 1000


def small_gpt2():
    return GPT2(GPT2Config(50, 12, 8, 2, 2))


def test_processes_on_a_cpu_share_the_budget(monkeypatch):
    monkeypatch.setattr(text_cache, "rank_and_world", lambda: (0, 3))
    assert TextCache(900, small_gpt2()).free == 300


def test_a_batch_is_known_by_its_number():
    cache = TextCache(10**6, small_gpt2())
    first = cache.text_pass(0, torch.tensor([[1, 2]]))
    second = cache.text_pass(1, torch.tensor([[1, 2]]))
    assert cache.text_pass(0, torch.tensor([[1, 2]])) is first
    assert second is not first


def test_that_texts_are_read_anew_is_told_once(capsys):
    cache = TextCache(1, small_gpt2())
    for number in range(3):
        cache.text_pass(number, torch.tensor([[1, 2]]))
    assert capsys.readouterr().out.count(SAID) == 1


def test_another_budget_after_a_stop_gives_the_same_bytes(place, monkeypatch, capsys):
    """It is the one setting of training that may change, for it changes no bit."""
    flags = [*BASE, "--prompt-tokens", "2", "--epochs", "3", "--out"]
    assert end(*flags, "whole", "--cache-text", "off") == 0
    stop_at(monkeypatch, 9, *flags, "run", "--cache-text", "off")
    code, _, err = ask(capsys, train, "--resume", "run", "--cache-text", "1G")
    assert code == 0, err
    whole = timeless(place / "whole")
    resumed = timeless(place / "run")
    for name in ("metrics.jsonl", "summary.json", "prompts/p2-s0/prompt.safetensors"):
        assert resumed[name] == whole[name]


# ---- how many are kept ----------------------------------------------------------------------


class Body:
    """Stands for a GPT-2 on a device: it counts its readings."""

    def __init__(self, device="cpu"):
        self.wte = SimpleNamespace(weight=torch.zeros(1, device=device))
        self.read = []

    def text_pass(self, ids):
        self.read.append(ids)
        return ids.float() * 2  # 4 bytes a token


BATCHES = list(torch.arange(30).view(3, 2, 5))  # 40 bytes each of keys and values


def epoch(cache):
    """One pass over all batches, whose keys and values have to be right."""
    for number, ids in enumerate(BATCHES):
        assert torch.equal(cache.text_pass(number, ids), ids.float() * 2)


ROOMS = [(120, 1, 3), (119, 1, 4), (80, 1, 4), (40, 1, 5), (39, 1, 6), (0, 1, 6), (160, 2, 4)]


@pytest.mark.parametrize("room,world,readings", ROOMS)
def test_what_is_kept_is_read_once(monkeypatch, room, world, readings):
    """To the byte; and of several processes each has its share."""
    monkeypatch.setattr(text_cache, "rank_and_world", lambda: (0, world))
    body = Body()
    cache = TextCache(room, body)
    epoch(cache)
    epoch(cache)
    assert len(body.read) == readings


@pytest.mark.parametrize("room,told", [(120, 0), (119, 1), (1, 1), (0, 0)])
def test_whoever_asked_that_nothing_be_kept_is_not_told_so(capsys, room, told):
    epoch(TextCache(room, Body()))
    out, err = capsys.readouterr()
    assert out.count(SAID) == told
    assert err == ""


def test_a_small_batch_is_kept_where_a_large_one_found_no_room():
    body = Body()
    cache = TextCache(20, body)
    for _ in range(2):
        cache.text_pass(0, BATCHES[0])
        cache.text_pass(1, BATCHES[0][:1])
    assert [len(ids) for ids in body.read] == [2, 1, 2]


def test_auto_is_a_quarter_of_the_memory(monkeypatch):
    """Of a CPU the processes share it; each has its own GPU."""
    monkeypatch.setattr(text_cache, "memory_of", lambda device: 480)
    assert TextCache("auto", Body()).free == 120
    monkeypatch.setattr(text_cache, "rank_and_world", lambda: (0, 3))
    assert TextCache("auto", Body()).free == 40
    assert TextCache("auto", Body("meta")).free == 120


LIMITS = [
    ([], 8000),
    (["max\n"], 8000),
    (["3000\n"], 3000),
    (["max\n", "9223372036854771712\n"], 8000),
    (["\n", "400"], 400),
]


@pytest.mark.parametrize("texts,found", LIMITS)
def test_limits_of_containers_are_read_in_each_of_their_forms(monkeypatch, tmp_path, texts, found):
    """Files of cgroup 2 and 1, with a number or none, or not there."""
    have_memory(monkeypatch, 2000)
    paths = [tmp_path / "no such file"]
    for i, text in enumerate(texts):
        (tmp_path / str(i)).write_text(text)
        paths.append(tmp_path / str(i))
    monkeypatch.setattr(text_cache, "LIMITS", paths)
    assert memory_of(torch.device("cpu")) == found


def test_a_gpu_says_what_is_free(monkeypatch):
    """Whatever its kind, and of the one that is asked for."""
    module = SimpleNamespace(mem_get_info=lambda device: (100 + device.index, 10**12))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert memory_of(torch.device("xpu", 3)) == 103


def test_this_machine_has_memory():
    assert 10**8 < memory_of(torch.device("cpu")) <= psutil.virtual_memory().total
