"""The meter: how training goes since the last line of the log."""

import time

import torch

from support.processes import all_reduce


class Meter:
    """Loss, accuracy, gradient norm and speed of the active prompts."""

    def __init__(self):
        self.sums = 0.0  # then (4, K)
        self.norm = None  # then (K,)
        self.seen = 0  # texts
        self.since = None  # the time from which on these were seen

    def start_epoch(self):
        """The first step of an epoch is warm-up: the clock starts after it."""
        self.since = None

    def add(self, loss, correct, norm, n, whole):
        """loss, correct and norm (K,) of a step; n of its `whole` texts were read here."""
        parts = [loss * n, correct * (n > 0), norm, torch.full_like(loss, n)]  # each (K,)
        self.sums = self.sums + torch.stack(parts)  # (4, K)
        self.norm = norm
        if self.since is None:
            self.since = time.perf_counter()
        else:
            self.seen += whole

    def read(self):
        """[(loss, accuracy, norm)] of each prompt, and texts a second; then it starts anew.

        Loss and accuracy are means.  The norm is the last step's; it is not finite where one of
        any step was not.
        """
        all_reduce([self.sums])
        loss, correct, norms, seen = self.sums  # each (K,)
        norm = torch.where(norms.isfinite(), self.norm, norms)  # (K,)
        rows = torch.stack([loss / seen, correct / seen, norm], dim=1).tolist()  # waits for a GPU
        now = time.perf_counter()
        speed = self.seen / (now - self.since) if self.seen else None
        self.sums = 0.0
        self.seen = 0
        self.since = now
        return rows, speed

    def state_dict(self):
        """The sums alone: before anything is read, a step brings the next norm."""
        return {"sums": self.sums}

    def load_state_dict(self, state):
        self.sums = state["sums"]
