"""Worker processes that read images: what they cannot hand over becomes an error, and how one of them ended is told."""

from __future__ import annotations

import copy
import multiprocessing
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.context import BaseContext
from multiprocessing.queues import Queue
from types import TracebackType
from typing import Any

from utils.errors import UserError, one_line
from utils.stopping import leave_signals_to_the_parent

DIED = "DataLoader worker (pid"  # in PyTorch's error about one that is gone
REMEDY = "`docker run --shm-size 4g`, a higher `ulimit -n`, a shorter TMPDIR or DATALOADER.NUM_WORKERS 0 may help"


class _Batches(Queue):
    """Numbered batches on their way from a worker, as names of shared memory that the reader asks for.

    A thread sends them. If that fails, Python would print a traceback there, and the reader would wait for ever.
    """

    def _on_queue_feeder_error(self, error: Exception, numbered: tuple[int, Any]) -> None:
        from torch._utils import ExceptionWrapper  # not above: torch takes seconds to load, and a worker has it

        told = UserError(f"a process that reads images cannot hand them over ({one_line(error)}): {REMEDY}")
        self.put((numbered[0], ExceptionWrapper((UserError, told, None), "in a process that reads images")))


def begin_worker(_number: int) -> None:
    """A DataLoader's worker_init_fn."""
    leave_signals_to_the_parent()
    sys.excepthook = _not_served  # for the thread that hands out shared memory, which would go on for ever


def _not_served(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, (ConnectionError, EOFError)):  # these only mean that the reader has left
        sys.__excepthook__(kind, error, trace)
        os._exit(1)


def worker_context() -> BaseContext:
    """A DataLoader's multiprocessing_context: the default one, with queues that report what cannot be handed over."""
    context: Any = copy.copy(multiprocessing.get_context())
    context.Queue = partial(_Batches, ctx=context)
    return context


def dead_worker(error: BaseException | None) -> str | None:
    """The message about a worker's end, if `error` or one of its causes is about that; else None.

    PyTorch raises such an error wherever the program is at that moment, where it may be taken for another fault.
    """
    how = None
    while error is not None:  # the first cause knows most
        if isinstance(error, (BrokenProcessPool, ConnectionError, EOFError)):  # the latter two: it did not answer
            how = how or "was ended"
        elif isinstance(error, RuntimeError) and DIED in str(error):
            how = str(error).partition("DataLoader worker ")[2].partition(". ")[0].rstrip(".")
        error = error.__cause__ or error.__context__
    return how and (
        f"a process that reads images {how}; usually memory was full, and fewer processes need less "
        "(DATALOADER.NUM_WORKERS), or, for Bus error, /dev/shm (docker run --shm-size 4g); the same command goes on"
    )
