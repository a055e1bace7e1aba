"""Ctrl-C, SIGTERM, SIGHUP: a training step is completed and its state saved; elsewhere they act at once."""

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
_NOTICE = b"\nstopping after this step, whose state is saved; once more stops at once\n"


class Interrupted(KeyboardInterrupt):
    """The program was stopped by the signal `number`. Its exit code is 128 + number."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number


class Stopping:
    """Catches Ctrl-C, SIGTERM (which clusters send before they take a machine back) and SIGHUP (the terminal is closed)
    inside its `with`.

    Inside `waiting()`, the first signal is only kept in `requested`, which the caller checks. A later one, and any
    signal elsewhere, raises Interrupted at once. Only the main thread catches signals.
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
        """The caller checks `requested` regularly."""
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
            with suppress(OSError):  # the terminal may be gone
                os.write(2, _NOTICE)  # the log may be in the middle of a line


def leave_signals_to_the_parent(_worker: int = 0) -> None:
    """In a worker: signals reach it, too, but its parent decides when to stop."""
    for number in Stopping.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_children() -> None:
    """Python itself sends SIGTERM, which workers ignore, and would wait for ever."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch would raise an error that a worker died
    for child in multiprocessing.active_children():
        child.kill()
