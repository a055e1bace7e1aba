"""Ctrl-C, SIGTERM, SIGHUP: while a stage trains, its step ends and its state is saved; elsewhere they act at once."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_ECHO = 3.0  # seconds in which a second signal is the same request: a terminal and torchrun both tell every process
_NOTICE = b"\nstopping: this step ends and is saved; once more leaves at once\n"


class Interrupted(KeyboardInterrupt):
    """Somebody stopped the program: `number` says by which signal. Exit codes are 128 + number, as shells have it."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number


class Stopping:
    """Catches Ctrl-C, SIGTERM (by which clusters announce that they take the machine back) and SIGHUP (the terminal is
    closed) inside its `with`.

    Inside `waiting()`, the first signal is only remembered in `requested`; whoever waits looks at it. Another one later
    on, and any signal elsewhere, raises Interrupted on the spot. Signals are the main thread's business: in other
    threads nothing is caught.
    """

    SIGNALS: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
        SIGNALS = (*SIGNALS, signal.SIGHUP)

    def __init__(self) -> None:
        self.requested: int | None = None
        self._waiting, self._since = False, 0.0
        self._earlier: dict = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Somebody looks at `requested` from time to time."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def _handle(self, number: int, _frame) -> None:
        if not self._waiting or (self.requested is not None and time.monotonic() - self._since > _ECHO):
            raise Interrupted(number)
        if self.requested is None:
            self.requested, self._since = number, time.monotonic()
            with suppress(OSError):  # nobody may be there to read it
                os.write(2, _NOTICE)  # the log may be in the middle of a line


def leave_signals_to_the_parent(_worker: int = 0) -> None:
    """In a process that reads images: signals reach it, too, but its parent decides when to stop."""
    for number in Stopping.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_children() -> None:
    """Python itself asks them by SIGTERM, which the above has them ignore, and would wait for ever."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch would raise an error that a worker died
    for child in multiprocessing.active_children():
        child.kill()
