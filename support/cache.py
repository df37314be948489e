"""Keys and values of texts, kept from the first epoch: texts never change."""

import os

import torch

from support.machine import rank_and_world


def memory_of(device):
    """Bytes: the free ones of a GPU, all of the machine otherwise."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class TextCache:
    """As many batches as the budget holds; the others are read again in every epoch.

    Kept or read again, the bits are the same.
    """

    def __init__(self, budget, gpt2, padded, epochs):
        """Say what will be kept, and why not more.

        budget: bytes, or "auto"; padded: tokens of all batches, pads included.  Processes share it.
        """
        config, weight, reason = gpt2.config, gpt2.wte.weight, "--cache-text allows no more"
        if budget == "auto":
            budget, reason = memory_of(weight.device) // 4, "this is a quarter of the memory"
        if epochs <= 1:
            budget, reason = 0, "in one epoch no text is read twice"
        need = padded * config.n_layer * 2 * config.n_embd * weight.element_size()
        kept = f"{need / 1e9:.2f} GB, of which {min(need, budget) / 1e9:.2f} are kept in memory"
        print(f"keys and values of the texts: {kept}{f'; {reason}' if budget < need else ''}")
        self.gpt2, self.kept, self.room = gpt2, {}, budget // rank_and_world()[1]

    def read(self, indices, ids):
        """Keys and values (L, 2, B, H, T, D) of the batch with these indices and ids (B, T)."""
        key = indices[0]  # the same batches come in every epoch: no other one holds this index
        if key in self.kept:
            return self.kept[key]
        text = self.gpt2.read(ids)
        if text.nbytes <= self.room:
            self.room -= text.nbytes
            self.kept[key] = text
        return text
