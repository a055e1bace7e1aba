"""Progress bars on a terminal; elsewhere the log's lines are enough."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm import tqdm

from utils.distributed import is_main


def progress(items: Iterable, what: str) -> Iterable:
    """`items`, with a bar named `what` if somebody watches."""
    return tqdm(items, desc=what, leave=False, dynamic_ncols=True, disable=not (sys.stderr.isatty() and is_main()))
