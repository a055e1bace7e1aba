"""Which of several processes this is, as torchrun's environment says it; without torch, which takes seconds to load."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from utils.errors import UserError

met = False  # whether the processes know of each other (`utils.distributed.start`)
_GONE = re.compile(r"gloo/transport|remote process|by peer")  # in errors of gloo and nccl if another process is gone


class ProcessFailed(RuntimeError):
    """Raised here because another process failed; the reason stands there."""

    told = True  # by that process


class Place(NamedTuple):
    """What torchrun says of a process."""

    rank: int  # among all, from 0
    world_size: int
    local_rank: int  # among those of this machine
    local_world_size: int


def place() -> Place | None:
    """Which of several processes this is, before and after `start`; None without torchrun, or for its only one.

    Raises:
        UserError: one of torchrun's variables means nothing.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return None
    world = _variable("WORLD_SIZE", 1, 10**6)
    if world == 1:
        return None
    local = _variable("LOCAL_RANK", 0, world - 1)
    # Whoever sets the first three by hand, on a machine each, may not know the fourth.
    count = _variable("LOCAL_WORLD_SIZE", local + 1, world) if "LOCAL_WORLD_SIZE" in os.environ else local + 1
    return Place(_variable("RANK", 0, world - 1), world, local, count)


def _variable(name: str, low: int, high: int) -> int:
    text = os.environ[name].strip()
    if not (re.fullmatch(r"\d{1,7}", text) and low <= int(text) <= high):
        right = f"a whole number from {low} to {high}"
        raise UserError(f"{name} {text!r} in the environment: right is {right}; torchrun sets it")
    return int(text)


def told_elsewhere(error: BaseException) -> bool:
    """Whether another process tells the user of `error`: one is enough for what all have found out alike.

    Until they meet, all of them read the same command line and the same files.
    """
    try:
        here = place()
    except UserError:  # this one is yet to be told, if it is not `error` itself
        return False
    # After that, only settings and signals concern all alike.
    alike = not met or not isinstance(error, (UserError, RuntimeError, OSError))
    return getattr(error, "reported", False) or (alike and here is not None and here.local_rank > 0)


def lost_process(error: BaseException) -> str | None:
    """The message if a collective failed because another process ended without one; else None."""
    if not isinstance(error, RuntimeError) or not _GONE.search(str(error)) or place() is None:
        return None
    return (
        "another process of this run does not answer any more: torchrun says which one, and by which signal it ended "
        "(SIGKILL: usually memory was full); the same command goes on"
    )
