"""A stop signal is remembered, and handled only as long as somebody listens."""

from __future__ import annotations

import os
import signal

import pytest

from flgen.federation.interruption import StopRequest, die_with_parent


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_remembered_and_ends_nothing(number: signal.Signals) -> None:
    stop = StopRequest()
    assert not stop
    with stop.listening():
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal_number == number


def test_the_first_signal_counts() -> None:
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal_number == signal.SIGINT


def test_handlers_are_given_back_even_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def fail_while_listening() -> None:
        with StopRequest().listening():
            assert signal.getsignal(signal.SIGINT) != before[0]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_listening()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_listeners_may_be_nested() -> None:
    outer, inner = StopRequest(), StopRequest()
    with outer.listening():
        with inner.listening():
            os.kill(os.getpid(), signal.SIGTERM)
        assert (bool(outer), bool(inner)) == (False, True)
        os.kill(os.getpid(), signal.SIGTERM)
    assert outer


@pytest.mark.parametrize("parent_lives", [True, False])
def test_who_finds_its_parent_dead_already_dies_too(parent_lives: bool) -> None:
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        die_with_parent(parent if parent_lives else parent + 1)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (7 if parent_lives else -signal.SIGKILL)
