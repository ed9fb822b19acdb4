"""Ctrl-C and SIGTERM: at once before the work begins, by an exception that is cleared up in it."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STATUS = 130
MESSAGE = "stopped; nothing is lost. Repeat the same command to go on."


def quit_when_stopped() -> None:
    """From now on the process ends at once; for imports and the loading of a model.

    An exception would be printed with its traceback wherever it falls, or swallowed by a library.
    """
    _handle(_quit)


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in SIGNALS:
        # A shell's background command is begun with Ctrl-C ignored; it is not meant.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _quit(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(1, f"{MESSAGE}\n".encode())
    os._exit(STATUS)


def raise_when_stopped() -> None:
    """From now on a stop is a KeyboardInterrupt."""
    _handle(signal.default_int_handler)


def end_undisturbed() -> None:
    """From now on a stop has no effect: the work is done, and the process ends anyway."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_held_back() -> Iterator[None]:
    """A stop inside the block comes at its end; processes begun in it do not know of Ctrl-C.

    A terminal sends SIGINT to all processes of a command, and one whose Python is only starting
    would print a traceback. A blocked signal stays so in a new process, which calls
    `obey_the_launcher` when it is ready. SIGTERM is not blocked: by it the launcher ends them.

    The block is that of this thread alone. Another one, of a library for sums say, may take SIGINT
    for the process, and Python then calls the handler here; so the handlers wait, too.
    """
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _handle(lambda number, frame: held.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        raise KeyboardInterrupt


def obey_the_launcher() -> None:
    """For a worker: only SIGTERM ends it, quietly."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
