"""The text cache: keys and values of texts, kept from the first epoch on."""

import contextlib
from pathlib import Path

import psutil
import torch

from support.processes import rank_and_world
from support.terminal import say

# Where Linux says what a container may take; the second is of older systems.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_of(device):
    """Bytes: the free ones of a GPU; else what the machine has, or what a container may take."""
    module = torch.get_device_module(device)
    if hasattr(module, "mem_get_info"):
        free, _ = module.mem_get_info(device)
        return free
    found = [psutil.virtual_memory().total]
    for path in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
            found.append(int(Path(path).read_text()))
    return min(found)


class TextCache:
    """As many batches as the budget holds; the others are read again in every epoch.

    Kept or read again, the bits are the same.
    """

    def __init__(self, budget, gpt2):
        """budget: bytes, which the processes of a CPU share, or "auto", a quarter of the memory"""
        device = gpt2.wte.weight.device
        if budget == "auto":
            budget = memory_of(device) // 4
        if device.type == "cpu":
            _, world = rank_and_world()
            budget //= world
        self.gpt2 = gpt2
        self.kept = {}  # {number of a batch: its kv}
        self.free = budget  # bytes
        self.told = budget == 0  # whether a person knows that not all is kept

    def text_pass(self, number, ids):
        """The kv (L, 2, B, H, T, D) of the batch of this number, whose ids are (B, T)."""
        if number in self.kept:
            return self.kept[number]
        kv = self.gpt2.text_pass(ids)
        if kv.nbytes <= self.free:
            self.free -= kv.nbytes
            self.kept[number] = kv
        elif not self.told:
            self.told = True
            say("keys and values of some texts are not kept: these are read anew (--cache-text)")
        return kv
