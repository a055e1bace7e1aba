"""Which of several processes this is, by torchrun's environment; without torch, which takes seconds to import."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from utils.errors import UserError

met = False  # whether the processes have joined (`utils.distributed.join_processes`)
_GONE = re.compile(r"gloo/transport|remote process|by peer")  # in errors of gloo and nccl if another process is gone


class ProcessFailed(RuntimeError):
    """Another process failed, and reports why."""

    reported = True


class Place(NamedTuple):
    """A process's place among all, by torchrun."""

    rank: int  # among all, from 0
    world_size: int
    local_rank: int  # among those of this machine
    local_world_size: int


def place() -> Place | None:
    """Which of several processes this is, before and after `join_processes`; None if there is only one."""
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return None
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    # Whoever sets the first three by hand, on a machine each, may not know the fourth.
    return Place(rank, world, local, int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))) if world > 1 else None


def reported_elsewhere(error: BaseException) -> bool:
    """Whether another process reports `error`: one report is enough for an error that all of them have.

    Until they join, all of them read the same command line and the same files.
    """
    here = place()
    # After that, only settings and signals concern all alike.
    alike = not met or not isinstance(error, (UserError, RuntimeError, OSError))
    return getattr(error, "reported", False) or (alike and here is not None and here.local_rank > 0)


def lost_process(error: BaseException) -> str | None:
    """The message if a collective failed because another process ended without one; else None."""
    if not isinstance(error, RuntimeError) or not _GONE.search(str(error)) or place() is None:
        return None
    return (
        "another process of this run has ended: torchrun reports which one, and by which signal (SIGKILL: usually out "
        "of memory); the same command resumes the run"
    )
