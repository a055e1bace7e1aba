"""A stage at its place in PROCESSOR.STAGES."""

from __future__ import annotations

from collections.abc import Sequence

from configs.stages import STAGES, Stage
from processor.run import Run


def times_before(run: Run, number: int, stage: Stage) -> int:
    """How often a stage has occurred before the place `number` of PROCESSOR.STAGES."""
    return run.cfg.PROCESSOR.STAGES[:number].count(stage.name)


def title(stage: Stage, again: int) -> str:
    """What the log calls a stage that has occurred so often before."""
    return f"{stage.title}, again" if again else stage.title


def prefix(again: int) -> str:
    """How files of a stage that has occurred before begin."""
    return f"again{again}_" if again else ""


def checkpoint_name(stages: Sequence[str], number: int, tower: str) -> str:
    """What checkpoints of the stage at place `number` of PROCESSOR.STAGES are called, with {epoch}."""
    name = stages[number]
    return prefix(stages[:number].count(name)) + STAGES[name].file.replace("{model}", tower.rpartition("/")[2])


def resumed(run: Run, number: int) -> bool:
    """Whether a stage goes on where it was saved, with the network as it was then."""
    return run.state is not None and number == run.first_stage
