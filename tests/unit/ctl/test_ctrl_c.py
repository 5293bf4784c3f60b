"""Ctrl-C is raised where it is waited for, cancels a call, and is kept at any other moment."""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from llmos.clients.ctl.ctrl_c import CtrlC


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_raised_once_where_it_is_waited_for() -> None:
    with CtrlC() as ctrl_c:
        with pytest.raises(KeyboardInterrupt), ctrl_c.raising():
            try:
                press()
            finally:
                press()  # the second press of one who is impatient
        assert ctrl_c.taken() and not ctrl_c.taken()
        with ctrl_c.raising():
            pass


def test_kept_until_it_is_waited_for() -> None:
    with CtrlC() as ctrl_c:
        press()
        with pytest.raises(KeyboardInterrupt), ctrl_c.raising():
            pytest.fail("it was kept, so nothing is begun")
        press()
        cancelled = threading.Event()
        with ctrl_c.cancelling(cancelled.set):
            assert cancelled.wait(10)
        assert ctrl_c.taken()


def test_cancels_once_and_leaves_no_thread() -> None:
    before = threading.active_count()
    calls: list[int] = []
    cancelled = threading.Event()

    def cancel() -> None:
        calls.append(1)
        cancelled.set()

    with CtrlC() as ctrl_c:
        with ctrl_c.cancelling(cancel):
            press()
            press()
            assert cancelled.wait(10)
        assert ctrl_c.taken()
        with ctrl_c.cancelling(cancel):  # what was pressed before does not count
            pass
    assert calls == [1] and threading.active_count() == before


def test_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with CtrlC():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_escapes_whenever_it_is_pressed() -> None:
    """A key at some moment of each round, which ends the round's wait and nothing else."""
    turns = 0
    beginning = threading.Semaphore(0)
    main = threading.main_thread().ident
    assert main is not None

    def presses() -> None:
        for _ in range(rounds):
            beginning.acquire()
            signal.pthread_kill(main, signal.SIGINT)

    rounds = 300
    pressing = threading.Thread(target=presses)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that the moment differs from round to round
    try:
        with CtrlC() as ctrl_c:
            pressing.start()
            for _ in range(rounds):
                beginning.release()
                cancelled = threading.Event()
                with ctrl_c.cancelling(cancelled.set):
                    cancelled.wait(0.0001)
                try:
                    with ctrl_c.raising():
                        turns += 1
                except KeyboardInterrupt:
                    turns += 1
            pressing.join()
    finally:
        sys.setswitchinterval(switch)
    assert turns >= rounds
