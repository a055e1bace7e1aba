"""Where the time goes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


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
        parts = [f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items()]
        return f"time: {', '.join(parts)}; in all {sum(self.seconds.values()):.0f} s"


def peak_memory() -> str:
    """The most memory that this process, without a loader's workers, had at once, as far as the system tells."""
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"
