"""Ctrl-C: within ten seconds a command has ended, with exit code 130 and one line that says how to resume."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of what Ctrl-C has ended, as shells give it."""

GRACE = 5.0
"""Seconds that a training has to come to the end of a step and save."""

LIMIT = 8.0
"""Seconds after which a process ends that a loop of C or C++ keeps from it."""


@contextlib.contextmanager
def interruptible(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Let Ctrl-C end the process with `INTERRUPTED` and one line on standard error.

    Args:
        how_to_go_on: function that returns the text after "interrupted; ".
    """
    said = threading.Lock()

    def say() -> None:
        if said.acquire(blocking=False):
            sys.stderr.write(f"interrupted; {how_to_go_on()}\n")
            sys.stderr.flush()

    def give_up() -> None:
        say()
        os._exit(INTERRUPTED)

    def stop(*_: object) -> NoReturn:
        after(LIMIT, give_up)
        raise KeyboardInterrupt

    with handled(signal.SIGINT, stop):
        try:
            yield
        except KeyboardInterrupt:
            say()
            sys.exit(INTERRUPTED)


@contextlib.contextmanager
def handled(number: signal.Signals, handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Install a handler for a signal meanwhile, if signals are handled here and this one is not ignored, as under `nohup`."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(number) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def after(seconds: float, call: Callable[[], None]) -> threading.Timer:
    """Call a function later, in a daemon thread."""
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
    return timer
