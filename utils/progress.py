"""Progress bars, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm import tqdm

from utils.distributed import is_main


def progress(items: Iterable, what: str) -> Iterable:
    """`items`, with a progress bar named `what` on a terminal."""
    return tqdm(items, desc=what, leave=False, dynamic_ncols=True, disable=not (sys.stderr.isatty() and is_main()))
