"""Keys and values of texts, kept from the first epoch: texts never change."""

import contextlib
from pathlib import Path

import psutil
import torch
from tqdm import tqdm

from support.machine import rank_and_world

LIMITS = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"


def memory_of(device):
    """Bytes: the free ones of a GPU; else what the machine has, or what a container may take."""
    module = torch.get_device_module(device)
    if hasattr(module, "mem_get_info"):
        return module.mem_get_info(device)[0]
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
        """budget: bytes, which the processes of a CPU share, or "auto", a quarter of the memory."""
        device = gpt2.wte.weight.device
        if budget == "auto":
            budget = memory_of(device) // 4
        if device.type == "cpu":
            budget //= rank_and_world()[1]
        self.gpt2, self.kept, self.room, self.told = gpt2, {}, budget, budget == 0

    def read(self, indices, ids):
        """Keys and values (L, 2, B, H, T, D) of the batch with these indices and ids (B, T)."""
        key = indices[0]  # the same batches come in every epoch: no other one holds this index
        if key in self.kept:
            return self.kept[key]
        text = self.gpt2.read(ids)
        if text.nbytes <= self.room:
            self.room -= text.nbytes
            self.kept[key] = text
        elif not self.told:
            self.told = True
            tqdm.write(
                "keys and values of some texts are not kept: these are read anew (--cache-text)"
            )
        return text
