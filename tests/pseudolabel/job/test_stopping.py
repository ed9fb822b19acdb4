"""Stops that come while workers are begun."""

import os
import signal
import threading

import pytest

from pseudolabel.job.stopping import SIGNALS, stop_held_back


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def hold(stop) -> None:
    with stop_held_back():
        stop()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stop_waits_for_the_end_of_the_block(number):
    finished = []

    def stop():
        signal.pthread_kill(threading.get_ident(), number)
        finished.append(True)

    with pytest.raises(KeyboardInterrupt):
        hold(stop)
    assert finished


@pytest.mark.parametrize("number", SIGNALS)
def test_so_does_one_that_another_thread_takes(number):
    go, finished = threading.Event(), []

    def take():
        go.wait()
        signal.pthread_kill(threading.get_ident(), number)

    def stop():
        go.set()
        thread.join()
        finished.append(True)

    # Begun before the block, as a library's is, it blocks nothing.
    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        hold(stop)
    assert finished


def test_nothing_is_left_behind():
    with stop_held_back():
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.default_int_handler] * 2
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {*SIGNALS}


def test_a_stop_that_is_ignored_stays_so():
    # As it is in a shell's background command.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_held_back():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
