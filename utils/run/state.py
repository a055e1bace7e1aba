"""States: checkpoints with all that training resumes from, in a run's folder `resume`."""

from __future__ import annotations

import contextlib
import logging
import re
from pathlib import Path
from typing import NamedTuple

from utils.checkpoint import read_checkpoint
from utils.errors import UserError, WeightsError, one_line
from utils.run import STATES
from utils.schema import ResumeState, RunState, check

STATE_NAME = re.compile(r"(\d+)_\w+\.pth")
KEPT = 2  # states: should the newest turn out to be damaged, there is the one before
logger = logging.getLogger(__name__)


class State(NamedTuple):
    """What an unfinished run resumes from."""

    path: Path
    contents: dict  # of a checkpoint, and "run": position, optimiser, scaler, random generators ...

    @property
    def run(self) -> RunState:
        """What training needs besides a checkpoint."""
        return self.contents["run"]


def state_files(folder: Path) -> list[Path]:
    """The states in a run's folder, oldest first."""
    found = {file: STATE_NAME.fullmatch(file.name) for file in (folder / STATES).glob("*.pth")}
    return sorted((file for file, match in found.items() if match), key=_number)


def _number(file: Path) -> int:
    return int(file.name.partition("_")[0])


def newest_state(folder: Path) -> State | None:
    """The newest state in a run's folder that is whole; None if there is none at all.

    Raises:
        UserError: there are some, and none is whole.
    """
    files = state_files(folder)
    for file in reversed(files):
        try:
            contents = read_checkpoint(file)
            check(contents, ResumeState, file)
            return State(file, contents)
        except WeightsError as error:
            logger.warning("%s%s", one_line(error), "" if file == files[0] else "; resuming from the state before it")
    if files:
        raise UserError(
            f"OUTPUT_DIR {folder}: none of its {len(files)} states can be read; start a new run in another OUTPUT_DIR "
            "(from the weights of a checkpoint: MODEL.INIT_FROM)"
        )
    return None


def next_state(folder: Path, name: str) -> Path:
    """The file of the next state; `name` stands after its number."""
    number = 1 + max(map(_number, state_files(folder)), default=0)
    return folder / STATES / f"{number:05d}_{name}.pth"


def drop_states(folder: Path, keep: list[Path]) -> None:
    """Delete all states but those in `keep`."""
    for file in state_files(folder):
        if file not in keep:
            with contextlib.suppress(OSError):
                file.unlink()
