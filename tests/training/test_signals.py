from __future__ import annotations

import os
import signal
import threading

import pytest

from peftkit.training.signals import HANGUP, Deferred


def test_first_signal_waits_and_handlers_come_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with Deferred() as deferred:
        assert deferred.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert deferred.received == signal.SIGTERM
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.skipif(HANGUP is None, reason="the system has no SIGHUP")
def test_the_end_of_a_terminal_waits_unless_it_is_ignored():
    earlier = signal.signal(HANGUP, signal.SIG_IGN)
    try:
        with Deferred() as deferred:
            os.kill(os.getpid(), HANGUP)
            assert deferred.received is None
        signal.signal(HANGUP, signal.SIG_DFL)
        with Deferred() as deferred:
            os.kill(os.getpid(), HANGUP)
            assert deferred.received == HANGUP
        assert signal.getsignal(HANGUP) == signal.SIG_DFL
    finally:
        signal.signal(HANGUP, earlier)


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
