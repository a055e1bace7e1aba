"""Seconds of each part of a run, and peak memory."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager


def duration(seconds: float) -> str:
    """Seconds in a fitting unit: 0.4 s, 95 s, 42 min, 3.2 h."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Clock:
    """Seconds by name; `with clock("stage 1"): ...` adds to them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.current = "preparation"

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started, self.current = time.perf_counter(), name
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.seconds.items())
        return f"{duration(sum(self.seconds.values()))}, of which\n{textwrap.indent(textwrap.fill(parts, 96), '  ')}"


def peak_memory() -> str:
    """Peak memory of this process, without its workers, if the system reports it."""
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"
