"""How much memory there is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
GROUPS = (  # limit and use of the control group that a container is: version 2, version 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def available_memory() -> int:
    """Bytes that may still be used, by what Linux says; 0 where nobody says it."""
    found = []
    with suppress(OSError, StopIteration):
        lines = MEMINFO.read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    for limit, used in GROUPS:
        with suppress(OSError, ValueError):  # "max" is no number
            found.append(int(limit.read_text()) - int(used.read_text()))
    return max(0, min(found, default=0))
