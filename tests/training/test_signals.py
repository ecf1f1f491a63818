from __future__ import annotations

import os
import signal
import threading

from peftkit.training.signals import Deferred


def test_first_signal_waits_and_handlers_come_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with Deferred() as deferred:
        assert deferred.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert deferred.received == signal.SIGTERM
    assert {number: signal.getsignal(number) for number in before} == before


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    try:
        with Deferred():
            raise RuntimeError
    except RuntimeError:
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_is_held_back_outside_the_main_thread():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def enter() -> None:
        with Deferred() as deferred:
            seen.append((signal.getsignal(signal.SIGINT), deferred.received))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(before, None)]
