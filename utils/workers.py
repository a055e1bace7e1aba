"""Worker processes that read images: batches that they cannot pass on, and their deaths, become errors."""

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
    """Numbered batches from a worker, as names of shared memory.

    A thread sends them. If that fails, Python prints a traceback there, and the reader would wait for ever.
    """

    def _on_queue_feeder_error(self, error: Exception, numbered: tuple[int, Any]) -> None:
        from torch._utils import ExceptionWrapper  # not above: torch takes seconds to load, and a worker has it

        failure = UserError(f"a process that reads images cannot pass them on ({one_line(error)}): {REMEDY}")
        self.put((numbered[0], ExceptionWrapper((UserError, failure, None), "in a process that reads images")))


def begin_worker(_number: int) -> None:
    """A DataLoader's worker_init_fn."""
    leave_signals_to_the_parent()
    sys.excepthook = _not_served  # for the thread that serves shared memory, which would never end


def _not_served(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, (ConnectionError, EOFError)):  # the reader has left
        sys.__excepthook__(kind, error, trace)
        os._exit(1)


def worker_context() -> BaseContext:
    """A DataLoader's multiprocessing_context: the default one, with queues that report what cannot be passed on."""
    context: Any = copy.copy(multiprocessing.get_context())
    context.Queue = partial(_Batches, ctx=context)
    return context


def dead_worker(error: BaseException | None) -> str | None:
    """The message about a worker's death, if `error` or one of its causes is one; else None.

    PyTorch raises such an error wherever the program is at that moment, so that it may look like another one.
    """
    how, explained = None, False
    while error is not None:  # the first cause is the most precise
        unanswered = isinstance(error, (ConnectionError, EOFError)) and not explained  # EOFError: also an empty file's
        if unanswered or isinstance(error, BrokenProcessPool):
            how = how or "was ended"
        elif isinstance(error, RuntimeError) and DIED in str(error):
            how = str(error).partition("DataLoader worker ")[2].partition(". ")[0].rstrip(".")
        explained = explained or isinstance(error, UserError)
        error = error.__cause__ or error.__context__
    return how and (
        f"a process that reads images {how}; usually out of memory: fewer of them need less (DATALOADER.NUM_WORKERS); "
        "after a Bus error, enlarge /dev/shm (docker run --shm-size 4g); the same command resumes the run"
    )
