"""The request to stop: a signal, and what becomes of it while a run is at work."""

import contextlib
import signal
import threading

import torch

from support.processes import all_reduce, rank_and_world

ASKED_BY = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Stopped(BaseException):
    """A signal asked for the end.  number: which; sentence: what a person is told."""

    def __init__(self, number, sentence="stopped; nothing was written"):
        super().__init__(number, sentence)
        self.number = number
        self.sentence = sentence


class StopRequest:
    """In a `with`, a signal that asks for the end raises Stopped; while it is held, it is noted.

    What was ignored when the program began stays ignored.  A thread that is not the main one gets
    no signals, so nothing is changed there.
    """

    def __init__(self):
        self.number = 0  # of the first signal that came
        self.held = False
        self.before = {}  # {signal: what answered it before}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for name in ASKED_BY:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number, frame):
        """A signal has come."""
        self.number = self.number or number
        if not self.held:
            raise Stopped(number)

    @contextlib.contextmanager
    def hold(self):
        """Inside, nothing is interrupted; what came and was not answered raises at the end."""
        self.held = True
        try:
            yield
        finally:
            self.held = False
        if self.number:
            raise Stopped(self.number)

    def told(self, together, device):
        """The number of a signal that came to any of the processes; 0 where none did.

        Alone a process knows at once.  Several ask each other where all of them are `together`.
        """
        _, world = rank_and_world()
        if world == 1:
            return self.number
        if not together:
            return 0
        came = torch.tensor(float(self.number), device=device)
        all_reduce([came])
        if came == 0:
            return 0
        return self.number or int(signal.SIGTERM)
