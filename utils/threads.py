"""Imported by every script and tool, with `utils.command`, before torch starts its threads.

By default OpenMP's threads spin while they wait for each other. Where a core is busy (a worker, a browser) all of them
then wait for the one that does not run: on two cores with another program on one of them, stage 2 of the demo runs
at 22 images/s instead of 155. Sleeping while waiting costs next to nothing on a free machine.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
