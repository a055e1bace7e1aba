"""A stage of a run, as the training loop sees it: where it stands, what it records and saves, and when."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from processor.turn import Turn
from solver.average import WeightAverage
from solver.build import load_optimizer
from utils.distributed import any_rank, average_statistics, collective
from utils.errors import WeightsError, one_line
from utils.schema import Best, RunState
from utils.seeds import random_states, restore_random_states
from utils.stopping import Interrupted, Stopping

if TYPE_CHECKING:
    from processor.run import Run


class Batches(Protocol):
    """What an epoch trains on: a DataLoader, or anything that iterates over Batch or FeatureBatch records."""

    def __iter__(self) -> Iterator: ...

    def __len__(self) -> int: ...


class Position(NamedTuple):
    """How far a stage has come: with weights, optimiser and scaler, all it takes to resume exactly."""

    epoch: int = 1  # the current one
    step: int = 0  # steps done in it
    steps: int = 0  # steps done in the whole stage
    skipped: int = 0  # updates that overflowed in fp16
    sums: dict[str, list] = {}  # noqa: RUF012 (never changed) terms since the last line of the log: [sum, count]
    epoch_state: dict | None = None  # what `before_epoch` returned


class StageRun:
    """What `fit` needs of its surroundings. This one records and saves nothing: for tests and notebooks.

    Args:
        device: where batches are moved; the stage is there already.
        name: of the stage, in records.
        title: of the stage, in the log.
        log_period: a line in the log every so many steps, and at the end of every epoch.
        position: where the stage resumes.
        shares: processes that each have a share of every batch, for the speed that is logged.
        stopping: knows whether somebody wants to stop.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        name: str = "stage",
        title: str = "",
        log_period: int = 50,
        position: Position | None = None,
        shares: int = 1,
        stopping: Stopping | None = None,
    ):
        self.device, self.name, self.title, self.log_period = device, name, title or name, log_period
        self.position, self.shares, self.stopping = position or Position(), shares, stopping or Stopping()

    def before_epoch(self, epoch: int, epoch_state: dict | None) -> dict | None:
        """Called first in an epoch, before learning rates and batches are taken.

        Args:
            epoch_state: None or, in an epoch that is resumed, what was returned there.
        """
        return None

    def after_step(self, finite: Tensor) -> None:
        """Called after every update; `finite` [] bool, whether it was made."""

    def after_epoch(self, epoch: int) -> None:
        """Called last in an epoch, for checkpoints and evaluation."""

    def record(self, kind: str, *, step: int, **values: Any) -> None:
        """Keep numbers; `step` counts over the whole stage."""

    def image_paths(self, ids: Tensor) -> Sequence[str]:
        """The images of a batch, for messages, by its indices (its identities, where it has none)."""
        return []

    def due(self, epoch: int, ended: bool) -> bool:
        """Whether to save a state now; `ended`: all steps of the epoch are done. A collective."""
        return False

    def save(self, position: Position) -> None:
        """Save a state."""

    def failed(self, position: Position, facts: dict) -> None:
        """Keep what there is to look into, before NonFiniteLoss is raised."""

    def finishing_steps(self) -> AbstractContextManager[None]:
        """Within it, a request to stop waits for `stop_requested`."""
        return self.stopping.waiting()

    def stop_requested(self) -> bool:
        """Whether somebody wants to stop, on any process; a collective."""
        return any_rank(self.stopping.requested is not None)

    def stop(self) -> None:
        """Raise Interrupted."""
        raise Interrupted(self.stopping.requested or signal.SIGTERM)  # another process was asked


class Periods(NamedTuple):
    """How often things happen; epochs, but for `log` (steps) and `minutes`."""

    epochs: int  # of the stage
    log: int
    checkpoint: int
    evaluation: int = 0  # 0: never; the end has an evaluation of its own
    minutes: float = 0.0  # between states within an epoch; 0.0: none

    def saves(self, epoch: int) -> bool:
        """Whether a checkpoint is due after this epoch."""
        return epoch % self.checkpoint == 0 or epoch == self.epochs

    def evaluates(self, epoch: int) -> bool:
        """Whether an evaluation is due after this epoch."""
        return self.evaluation > 0 and epoch % self.evaluation == 0 and epoch < self.epochs


class StageParts(NamedTuple):
    """What one kind of stage is made of."""

    module: Any  # Batch or FeatureBatch -> Losses; holds the `model`, and the `weights` of its losses
    batches: Callable[[int, int], Batches]  # as in `fit`
    image_paths: Callable[[Tensor], Sequence[str]]
    summed: Mapping[str, str] = {}  # of how many parts a loss is the sum, in words
    notes: Sequence[str] = ()  # more lines for the log
    generators: Mapping[str, torch.Generator] = {}
    shares: int = 1
    # (epoch, what it returned in an epoch that is resumed, the optimizer) -> what is saved
    before_epoch: Callable[[int, dict | None, torch.optim.Optimizer], dict | None] | None = None
    after_step: Callable[[Tensor], None] | None = None  # whether loss and gradient were finite, [] bool
    evaluate: Callable[[int], dict[str, float]] | None = None  # epoch -> mAP by data set
    epoch_ended: Callable[[], object] | None = None  # after all epochs but the last
    ended: Callable[[], None] | None = None  # after the last


class Training(NamedTuple):
    """What a state holds besides the network."""

    optimizer: torch.optim.Optimizer
    precision: torch.dtype
    scaler: torch.amp.GradScaler | None
    average: WeightAverage | None = None


class SavedStageRun(StageRun):
    """A stage that records and saves in its run's folder, and resumes from there.

    Args:
        file: what its checkpoints are called, with {epoch}.
        facts: what a checkpoint holds besides weights and epoch.
    """

    def __init__(
        self,
        run: Run,
        turn: Turn,
        parts: StageParts,
        training: Training,
        periods: Periods,
        *,
        file: str,
        facts: dict,
    ):
        saved = run.state.run if run.state and run.resumes(turn.number) else None
        super().__init__(
            run.device,
            name=turn.stage.name,
            title=turn.title,
            log_period=periods.log,
            position=Position._make(map(saved["position"].get, Position._fields)) if saved else None,
            shares=parts.shares,
            stopping=run.stopping,
        )
        self.run, self.turn, self.parts, self.training, self.periods = run, turn, parts, training, periods
        self.model, self.file, self.facts = parts.module.model, file, facts
        self.saved, self.saved_at = saved, time.monotonic()
        self.best: dict[str, Best] = saved["best"] if saved else {}
        self.checkpoint: Path | None = None  # the last one

    def before_epoch(self, epoch: int, epoch_state: dict | None) -> dict | None:
        if self.parts.before_epoch is not None:
            with self.finishing_steps():  # a signal is heeded at the epoch's first step, and nothing is lost
                epoch_state = self.parts.before_epoch(epoch, epoch_state, self.training.optimizer)
        if self.saved is not None:  # only now: parameters and their groups may have been replaced
            self._restore(self.saved)
            self.saved = None
            self.run.state.contents.clear()  # weights and moments, which the network and the optimizer have now
        return epoch_state

    def _restore(self, saved: RunState) -> None:
        optimizer, _, scaler, average = self.training
        with collective():
            try:
                load_optimizer(optimizer, saved["optimizer"]["state"])
                if scaler:
                    scaler.load_state_dict(saved["scaler"])
                if average:
                    average.load(saved["average"])
                restore_random_states(saved["random"], self.parts.generators)
            except Exception as error:  # of any type: these parts are PyTorch's, NumPy's and Python's own
                what = f"{type(error).__name__}: {one_line(error)}"
                raise WeightsError(
                    f"{self.run.state.path}: does not fit its optimizer, scaler, average or random generators ({what})"
                ) from error

    def record(self, kind: str, *, step: int, **values: Any) -> None:
        self.run.record(kind, step=step, **values, **self.turn.mark)

    def image_paths(self, ids: Tensor) -> Sequence[str]:
        return self.parts.image_paths(ids)

    def after_step(self, finite: Tensor) -> None:
        if self.parts.after_step is not None:
            self.parts.after_step(finite)

    def after_epoch(self, epoch: int) -> None:
        average_statistics(self.model)
        average = self.training.average
        with average.applied() if average else nullcontext():
            if self.periods.saves(epoch):
                self.checkpoint = self.run.save(self.file.format(epoch=epoch), self._checkpoint(epoch))
            if self.periods.evaluates(epoch):
                for name, mAP in self.parts.evaluate(epoch).items():
                    if mAP > self.best.get(name, {"mAP": -1.0})["mAP"]:
                        self.best[name] = {"epoch": epoch, "mAP": mAP}
        if epoch < self.periods.epochs and self.parts.epoch_ended is not None:
            with self.finishing_steps():  # a signal is heeded at the next epoch's first step
                self.parts.epoch_ended()

    def due(self, epoch: int, ended: bool) -> bool:
        minutes = self.periods.minutes
        by_period = ended and (self.periods.saves(epoch) or self.periods.evaluates(epoch))
        return any_rank(by_period or (minutes > 0 and time.monotonic() - self.saved_at >= 60 * minutes))

    def save(self, position: Position) -> None:
        average_statistics(self.model)
        where = f"{self.name}_epoch{position.epoch}_step{position.step}"
        self.run.save_state(where, self._checkpoint(position.epoch), self._resumable(position))
        self.saved_at = time.monotonic()

    def failed(self, position: Position, facts: dict) -> None:
        self.run.save_failure({**self._checkpoint(position.epoch), **self._resumable(position), **facts})

    def _checkpoint(self, epoch: int) -> dict:
        return {"model": self.model.state_dict(), "stage": self.name, "epoch": epoch, **self.facts}

    def _resumable(self, position: Position) -> dict:
        optimizer, precision, scaler, average = self.training
        return {
            "stage_number": self.turn.number,
            "position": position._asdict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            **({"average": average.averages} if average else {}),
            "random": random_states(self.parts.generators),
            "best": self.best,
            "device": self.device.type,
            "precision": str(precision),
        }
