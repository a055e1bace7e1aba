"""Imported by every script and tool, with `utils.command`, before torch starts its threads.

By default OpenMP's threads spin while they wait for each other. Where a core is busy (a worker, a browser) all of them
then wait for the one that does not run: on two cores with another program on one of them, stage 2 of the demo runs
at 22 images/s instead of 155. Sleeping while waiting costs next to nothing on a free machine.

By default the C library gives large blocks back to the system as soon as they are free. Every step of a training, and
every batch of a test, then gets them anew, page by page: a sixth of its time on a CPU.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

LARGEST = 2**30  # bytes of a block that is kept when it is free; larger ones (matrices of distances) are given back
LARGEST_BEFORE = 2**25  # the most that older versions of glibc accept
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
with suppress(AttributeError, OSError, TypeError):  # other C libraries than glibc keep what is free, or cannot be told
    mallopt = ctypes.CDLL(None).mallopt
    # Without it, the other would make blocks of 128 kB be given back, which by default are kept once there were some.
    if mallopt(M_MMAP_THRESHOLD, LARGEST) or mallopt(M_MMAP_THRESHOLD, LARGEST_BEFORE):
        mallopt(M_TRIM_THRESHOLD, -1)  # never
