"""The turn of a stage, which may have several in a run."""

from __future__ import annotations

from typing import NamedTuple

from configs.stages import STAGES, Stage


class Turn(NamedTuple):
    """The stage at place `number`, from 0, of PROCESSOR.STAGES."""

    stages: tuple[str, ...]
    number: int

    @property
    def stage(self) -> Stage:
        """Its row in the table of stages."""
        return STAGES[self.stages[self.number]]

    @property
    def before(self) -> tuple[str, ...]:
        """The stages before it."""
        return self.stages[: self.number]

    @property
    def again(self) -> int:
        """How often the stage has occurred before."""
        return self.before.count(self.stage.name)

    @property
    def title(self) -> str:
        """What the log calls it."""
        return f"{self.stage.title}, again" if self.again else self.stage.title

    @property
    def mark(self) -> dict[str, int]:
        """What tells the records of a repetition."""
        return {"again": self.again} if self.again else {}

    def file(self, tower: str) -> str:
        """What its checkpoints are called, with {epoch}."""
        return prefix(self.again) + self.stage.file.replace("{model}", tower.rpartition("/")[2])


def prefix(again: int) -> str:
    """How files of a stage that has occurred before begin."""
    return f"again{again}_" if again else ""
