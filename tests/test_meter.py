"""support/meter.py: means over texts, and a speed that leaves out what is warm-up."""

import math
import time

import pytest
import torch

from support import meter as meter_room
from support.meter import Meter


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand: clock[0] seconds"""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def add(meter, loss, correct, norm=1.0, n=4, whole=4):
    """One step of one prompt"""
    rows = [torch.tensor([float(number)]) for number in (loss, correct, norm)]
    meter.add(*rows, n, whole)


def test_the_mean_is_over_texts_not_over_steps():
    meter = Meter()
    add(meter, loss=1.0, correct=4, n=4)
    add(meter, loss=4.0, correct=0, n=2)
    [(loss, accuracy, _)], _ = meter.read()
    assert loss == pytest.approx((1.0 * 4 + 4.0 * 2) / 6)
    assert accuracy == pytest.approx(4 / 6)


def test_after_a_reading_it_starts_anew():
    meter = Meter()
    add(meter, loss=9.0, correct=0)
    meter.read()
    add(meter, loss=1.0, correct=4)
    [(loss, accuracy, _)], _ = meter.read()
    assert (loss, accuracy) == (1.0, 1.0)


def test_a_text_that_counts_as_none_is_not_counted():
    """Of several processes one may have had nothing left to read."""
    meter = Meter()
    add(meter, loss=1.0, correct=2, n=2)
    add(meter, loss=7.0, correct=1, n=0, whole=1)
    [(loss, accuracy, _)], _ = meter.read()
    assert (loss, accuracy) == (1.0, 1.0)


def test_the_norm_is_that_of_the_last_step():
    meter = Meter()
    for norm in (5.0, 0.5, 3.0):
        add(meter, loss=1.0, correct=2, norm=norm)
    [(_, _, norm)], _ = meter.read()
    assert norm == 3.0


@pytest.mark.parametrize("odd", [math.inf, math.nan])
def test_one_norm_that_is_not_finite_is_noticed(odd):
    meter = Meter()
    add(meter, loss=1.0, correct=2)
    add(meter, loss=1.0, correct=2, norm=odd)
    add(meter, loss=1.0, correct=2)
    [(_, _, norm)], _ = meter.read()
    assert not math.isfinite(norm)


def test_the_first_step_of_an_epoch_is_no_part_of_the_speed(clock):
    meter = Meter()
    meter.start_epoch()
    clock[0] = 100.0  # the warm-up
    add(meter, loss=1.0, correct=2, whole=8)
    for second in (101.0, 102.0):
        clock[0] = second
        add(meter, loss=1.0, correct=2, whole=8)
    _, speed = meter.read()
    assert speed == 16 / 2


def test_of_one_step_there_is_no_speed(clock):
    meter = Meter()
    add(meter, loss=1.0, correct=2)
    _, speed = meter.read()
    assert speed is None


def test_a_meter_that_is_put_back_goes_on_with_its_sums():
    meter = Meter()
    add(meter, loss=1.0, correct=4)
    other = Meter()
    other.load_state_dict(meter.state_dict())
    add(other, loss=3.0, correct=0, norm=2.0)
    [(loss, accuracy, norm)], _ = other.read()
    assert (loss, accuracy, norm) == (2.0, 0.5, 2.0)


def test_a_meter_that_is_put_back_remembers_what_was_not_finite():
    meter = Meter()
    add(meter, loss=1.0, correct=4, norm=math.inf)
    other = Meter()
    other.load_state_dict(meter.state_dict())
    add(other, loss=3.0, correct=0)
    [(_, _, norm)], _ = other.read()
    assert not math.isfinite(norm)


def test_the_next_window_begins_where_this_one_ends(clock):
    meter = Meter()
    add(meter, loss=1.0, correct=2, whole=8)
    clock[0] = 5.0
    add(meter, loss=1.0, correct=2, whole=8)
    _, speed = meter.read()
    assert speed == 8 / 5
    clock[0] = 7.0
    add(meter, loss=1.0, correct=2, whole=6)
    _, speed = meter.read()
    assert speed == 6 / 2


def test_what_is_odd_about_one_prompt_shows_in_no_other():
    meter = Meter()
    norms = torch.tensor([math.inf, 1.0])
    meter.add(torch.tensor([math.nan, 3.0]), torch.tensor([0, 2]), norms, 4, 4)
    (_, (loss, accuracy, norm)), _ = meter.read()
    assert (loss, accuracy, norm) == (3.0, 0.5, 1.0)


def test_all_processes_are_counted_together(monkeypatch):
    """Here the others had twice as wrong answers to as many texts; all have one gradient."""
    sums = []

    def all_reduce(tensors):
        sums.extend(tensors)
        tensors[0].mul_(torch.tensor([[3.0], [1.0], [2.0], [2.0]]))

    monkeypatch.setattr(meter_room, "all_reduce", all_reduce)
    meter = Meter()
    add(meter, loss=1.0, correct=4)
    [(loss, accuracy, norm)], _ = meter.read()
    assert (loss, accuracy, norm) == (1.5, 0.5, 1.0)
    assert len(sums) == 1
