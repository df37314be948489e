"""Statistics: how sure a share is, whether two prompts differ, how numbers follow one another."""

import math
from dataclasses import dataclass

import torch


def wilson(correct, n, z=1.96):
    """Wilson's 95 % interval of a share, [low, high]: honest also near 0 and 1."""
    p = correct / n
    spread = z * z / n
    middle = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return [max(0.0, middle - half), min(1.0, middle + half)]


@dataclass(frozen=True)
class McNemar:
    """Whether two prompts differ, of n texts that both answered."""

    n: int
    only_right: list[int]  # texts that only the first, only the second gets right
    p: float  # of a split as uneven as this, or more so, if both were equally good


def mcnemar(first, second):
    """McNemar's test, exact and two-sided; first, second: bool (n,), where each is right.

    Where both are right, or both wrong, says nothing; if they were equally good, each would win
    half of the rest.
    """
    wins = [int((first & ~second).sum()), int((second & ~first).sum())]
    rest = sum(wins)
    fewer = min(wins)
    # The tail of the binomial distribution, from its largest term down, each from the one before.
    term = math.comb(rest, fewer) / 2**rest
    tail = 0.0
    for k in range(fewer, -1, -1):
        tail += term
        term *= k / (rest - k + 1)
        if term < tail * 1e-17:
            break
    return McNemar(len(first), wins, min(1.0, 2 * tail))


def correlation(x, y):
    """Pearson's, of x and y (n,); None where one of them does not vary, or is not finite"""
    if x.min() == x.max() or y.min() == y.max() or not (x + y).isfinite().all():
        return None
    both = torch.corrcoef(torch.stack([x, y]))  # (2, 2)
    return both[0, 1].item()


def ranks(x):
    """Ranks of x (n,) from 1 on, float64 (n,); equal numbers share the mean of theirs"""
    _, place, many = x.unique(return_inverse=True, return_counts=True)
    last = many.cumsum(dim=0)
    return (last - (many - 1) / 2).double()[place]
