"""Imported first by everything that is run, before torch starts its threads.

By default OpenMP's threads spin while they wait for each other. Where a core is not free (a loader's worker, a browser)
everything then waits for the one that does not run: measured on two cores with another program on one of them, 22
images/s in the image stage of the demo instead of 155. Waiting asleep costs next to nothing on a free machine.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
