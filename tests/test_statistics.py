"""support/statistics.py: intervals and tests, against scipy."""

import math

import pytest
import torch

from support.statistics import mcnemar, wilson


def interval(correct, n):
    """Wilson's, by scipy; with 1.96 standard deviations to the digit"""
    stats = pytest.importorskip("scipy.stats")
    level = math.erf(1.96 / math.sqrt(2))
    return list(stats.binomtest(correct, n).proportion_ci(level, method="wilson"))


def test_intervals_equal_those_of_scipy():
    for correct, n in ((0, 10), (7, 10), (759, 872), (5, 5), (1, 400)):
        assert wilson(correct, n) == pytest.approx(interval(correct, n), abs=1e-12)
    for n in range(1, 500):
        assert wilson(0, n)[0] >= 0
        assert wilson(n, n)[1] <= 1


CASES = [(0, 5, 3, 1), (2, 6, 0, 0), (4, 4, 2, 2), (0, 0, 3, 0), (7, 3, 1, 5), (800, 750, 10, 0)]


@pytest.mark.parametrize("b,c,both,neither", [*CASES, (300, 20, 0, 0), (3, 1200, 0, 0)])
def test_mcnemars_test_equals_that_of_scipy(b, c, both, neither):
    """The exact two-sided test of who is right where the other is wrong."""
    stats = pytest.importorskip("scipy.stats")
    first = torch.tensor([True] * b + [False] * c + [True] * both + [False] * neither)
    second = torch.tensor([False] * b + [True] * c + [True] * both + [False] * neither)
    p = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1
    found = mcnemar(first, second)
    assert found.n == b + c + both + neither
    assert found.only_right == [b, c]
    assert found.p == pytest.approx(p, rel=1e-9)


def test_mcnemars_test_takes_very_many_texts():
    """Its binomials would be numbers that no float can hold."""
    first = torch.arange(60_000) % 2 == 0
    assert mcnemar(first, ~first).p == pytest.approx(1)
