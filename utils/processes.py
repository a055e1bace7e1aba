"""Which of several processes this is, as torchrun's environment says it; without torch, which takes seconds to load."""

from __future__ import annotations

import os
from typing import NamedTuple

from utils.errors import UserError

met = False  # whether the processes know of each other (`utils.distributed.start`)


class Place(NamedTuple):
    """What torchrun says of a process."""

    rank: int  # among all, from 0
    world_size: int
    local_rank: int  # among those of this machine
    local_world_size: int


def place() -> Place | None:
    """Which of several processes this is, before and after `start`; None without torchrun, or for its only one."""
    environment = os.environ
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= environment.keys() or int(environment["WORLD_SIZE"]) == 1:
        return None
    local = int(environment["LOCAL_RANK"])
    # Whoever sets the first three by hand, on a machine each, may not know the fourth.
    count = int(environment.get("LOCAL_WORLD_SIZE", local + 1))
    return Place(int(environment["RANK"]), int(environment["WORLD_SIZE"]), local, count)


def told_elsewhere(error: BaseException) -> bool:
    """Whether another process tells the user of `error`: one is enough for what all have found out alike.

    Until they meet, all of them read the same command line and the same files.
    """
    here = place()
    alike = not met or not isinstance(error, UserError)  # the latter: settings, and signals, which reach all
    return getattr(error, "told", False) or (alike and here is not None and here.local_rank > 0)
