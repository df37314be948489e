"""support/statistics.py: intervals and tests, against scipy."""

import math

import pytest
import torch

from support.statistics import mcnemar, wilson

# ---- intervals ------------------------------------------------------------------------------


def interval(correct, n):
    """Wilson's, by scipy; with 1.96 standard deviations to the digit"""
    stats = pytest.importorskip("scipy.stats")
    level = math.erf(1.96 / math.sqrt(2))
    test = stats.binomtest(correct, n)
    return list(test.proportion_ci(level, method="wilson"))


@pytest.mark.parametrize(
    "correct,n",
    [
        (0, 10),
        (7, 10),
        (759, 872),
        (5, 5),
        (1, 400),
    ],
)
def test_an_interval_equals_that_of_scipy(correct, n):
    truth = interval(correct, n)
    assert wilson(correct, n) == pytest.approx(truth, abs=1e-12)


def test_no_interval_goes_beyond_0_and_1():
    for n in range(1, 500):
        low, _ = wilson(0, n)
        _, high = wilson(n, n)
        assert low >= 0, n
        assert high <= 1, n


# ---- McNemar's test -------------------------------------------------------------------------


def answers(only_first, only_second, both, neither):
    """Where each of two prompts is right, of so many texts: bool (n,) and bool (n,)"""
    counts = torch.tensor([only_first, only_second, both, neither])
    first = torch.tensor([True, False, True, False])
    second = torch.tensor([False, True, True, False])
    return first.repeat_interleave(counts), second.repeat_interleave(counts)


@pytest.mark.parametrize(
    "only_first,only_second,both,neither",
    [
        (0, 5, 3, 1),
        (2, 6, 0, 0),
        (4, 4, 2, 2),
        (0, 0, 3, 0),
        (7, 3, 1, 5),
        (800, 750, 10, 0),
        (300, 20, 0, 0),
        (3, 1200, 0, 0),
    ],
)
def test_mcnemars_test_equals_that_of_scipy(only_first, only_second, both, neither):
    """The exact two-sided test of who is right where the other is wrong."""
    stats = pytest.importorskip("scipy.stats")
    differ = only_first + only_second
    p = 1
    if differ > 0:
        p = stats.binomtest(only_first, differ, 0.5).pvalue
    first, second = answers(only_first, only_second, both, neither)
    found = mcnemar(first, second)
    assert found.n == differ + both + neither
    assert found.only_right == [only_first, only_second]
    assert found.p == pytest.approx(p, rel=1e-9)


def test_mcnemars_test_takes_very_many_texts():
    """Its binomials would be numbers that no float can hold."""
    first = torch.arange(60_000) % 2 == 0
    second = ~first
    assert mcnemar(first, second).p == pytest.approx(1)
