"""stopping.py: a signal that asks for the end, and what becomes of it."""

import os
import signal
import threading

import pytest
import torch

from support import stopping
from support.stopping import Stopped, StopRequest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows cannot send itself such signals")
CPU = torch.device("cpu")
NUMBERS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):
    NUMBERS.append(signal.SIGHUP)


def send(number):
    os.kill(os.getpid(), number)


def nobody_answers(number, frame):
    pytest.fail("nobody answers it")


@pytest.fixture(autouse=True)
def handlers():
    """What answers each signal before a test, and after it again."""
    before = {}
    for number in NUMBERS:
        before[number] = signal.signal(number, nobody_answers)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_stops_at_once_what_is_not_held(number):
    with pytest.raises(Stopped) as stop, StopRequest():
        send(number)
        pytest.fail("it goes on")
    assert stop.value.number == number
    assert stop.value.sentence == "stopped; nothing was written"


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_held_ends_before_it_stops(number):
    ended = []
    with pytest.raises(Stopped) as stop, StopRequest() as request, request.hold():
        send(number)
        assert request.number == number
        ended.append("the step")
    assert ended == ["the step"]
    assert stop.value.number == number


def test_the_first_of_several_signals_counts():
    with pytest.raises(Stopped) as stop, StopRequest() as request, request.hold():
        send(signal.SIGTERM)
        send(signal.SIGINT)
    assert stop.value.number == signal.SIGTERM


def test_an_error_in_what_is_held_goes_before_a_signal():
    with pytest.raises(OSError, match="full"), StopRequest() as request, request.hold():
        send(signal.SIGTERM)
        raise OSError("full")


def test_what_is_no_longer_held_is_stopped_at_once():
    with pytest.raises(Stopped), StopRequest() as request:
        with request.hold():
            pass
        send(signal.SIGTERM)
        pytest.fail("it goes on")


def test_no_except_of_errors_swallows_it():
    assert not issubclass(Stopped, Exception)


def test_without_a_signal_nothing_happens():
    with StopRequest() as request, request.hold():
        assert request.number == 0
    assert request.told(True, CPU) == 0


@pytest.mark.parametrize("number", NUMBERS)
def test_who_answered_before_answers_again_afterwards(number):
    answered = []
    signal.signal(number, lambda *_: answered.append(number))
    with StopRequest():
        pass
    with pytest.raises(Stopped), StopRequest():
        send(number)
    send(number)
    assert answered == [number]


@pytest.mark.parametrize("number", NUMBERS)
def test_what_was_ignored_stays_ignored(number):
    """As under nohup."""
    signal.signal(number, signal.SIG_IGN)
    with StopRequest() as request:
        send(number)
        assert request.number == 0
        assert signal.getsignal(number) == signal.SIG_IGN
    assert signal.getsignal(number) == signal.SIG_IGN


def test_a_system_without_hangups_needs_none(monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    with pytest.raises(Stopped), StopRequest():
        send(signal.SIGTERM)


def test_in_another_thread_nothing_is_changed():
    """It gets no signals, and may set no handlers."""
    seen = []

    def work():
        with StopRequest() as request, request.hold():
            seen.append([signal.getsignal(number) for number in NUMBERS])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[nobody_answers] * len(NUMBERS)]


# ---- several processes ----------------------------------------------------------------------


def be_one_of_two(monkeypatch, came_to_the_other=0):
    """A team of two; the other process tells this signal."""

    def all_reduce(tensors):
        tensors[0].add_(came_to_the_other)

    monkeypatch.setattr(stopping, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(stopping, "all_reduce", all_reduce)


def test_alone_a_process_knows_at_once():
    request = StopRequest()
    request.held = True
    request.note(signal.SIGTERM, None)
    assert request.told(False, CPU) == signal.SIGTERM
    assert request.told(True, CPU) == signal.SIGTERM


def test_a_team_hears_of_a_signal_where_all_of_it_are_together(monkeypatch):
    be_one_of_two(monkeypatch)
    request = StopRequest()
    assert request.told(True, CPU) == 0
    request.number = int(signal.SIGINT)
    assert request.told(False, CPU) == 0
    assert request.told(True, CPU) == signal.SIGINT


def test_a_process_stops_for_a_signal_that_came_to_another(monkeypatch):
    be_one_of_two(monkeypatch, came_to_the_other=2)
    request = StopRequest()
    assert request.told(False, CPU) == 0
    assert request.told(True, CPU) == signal.SIGTERM
