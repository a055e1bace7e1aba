"""The log of a stage: means of its terms, speed and time left; and what in it was not finite."""

from __future__ import annotations

import logging
import math
import time
from itertools import chain
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from processor.stage_run import Position, StageRun
from utils.clock import duration
from utils.distributed import collective, gather_objects
from utils.errors import UserError, some
from utils.records import Batch, FeatureBatch, Losses

logger = logging.getLogger(__name__)
ACCURACY = "_accuracy"  # suffix of a term's name, for its accuracy in records
SMALLEST_SCALE = 1.0  # of the fp16 scaler, which starts at 65536 and is halved whenever an update overflows


class NonFiniteLoss(UserError):
    """A loss or gradient that is infinite or no number; training on would ruin every weight."""


class _Step(NamedTuple):
    """A step whose numbers may still be on their way."""

    at: Position
    ids: Tensor  # [B] indices of the images, or identities
    terms: tuple[str, ...]  # the loss, its terms and their accuracies
    numbers: Tensor  # [1 + terms]: 1 for finite, then the terms


class Progress:
    """Sums the terms since the last line of the log; what is on the device is fetched when a line is due.

    Args:
        epochs: of the stage.
        scaler: of the loss, for torch.float16.
    """

    def __init__(self, run: StageRun, epochs: int, scaler: torch.amp.GradScaler | None):
        self.run, self.epochs, self.scaler = run, epochs, scaler
        self.began, self.done = time.perf_counter(), 0
        self.sums: dict[str, list] = {}
        self.pending: list[_Step] = []

    def start_epoch(self, at: Position, total: int, lr: float) -> None:
        """`total` steps, of which `at` has done some, with the learning rate `lr`."""
        self.sums = {term: list(pair) for term, pair in at.sums.items()}
        self.total, self.lr, self.first, self.images = total, lr, at.step, 0
        self.epoch_began = self.since = time.perf_counter()

    def add(self, at: Position, batch: Batch | FeatureBatch, losses: Losses, finite: Tensor) -> None:
        """One step; nothing waits for the device."""
        loss = losses.total.detach()
        accuracy = {f"{term}{ACCURACY}": share.to(loss.dtype) for term, share in losses.accuracy.items()}
        terms = {"loss": loss, **losses.terms, **accuracy}
        numbers = torch.stack([finite.to(loss.dtype), *terms.values()])
        self.pending.append(_Step(at, getattr(batch, "indices", batch.pids), tuple(terms), numbers))
        self.images, self.done = self.images + len(batch.pids), self.done + 1

    def settle(self, at: Position) -> Position:
        """Fetch all numbers in one copy and add them up -> the position, with the updates that were skipped.

        Raises:
            NonFiniteLoss: a loss or gradient was not finite, other than an update that overflowed in fp16 while the
                loss and the scale last.
        """
        steps, self.pending, skipped = self.pending, [], 0
        numbers = iter(torch.cat([step.numbers for step in steps]).tolist() if steps else ())
        for step in steps:
            finite = next(numbers)
            terms = {term: next(numbers) for term in step.terms}
            readable = all(map(math.isfinite, terms.values()))
            if not finite:
                if self.scaler is None or not readable or self.scaler.get_scale() < SMALLEST_SCALE:
                    self._fail(step, terms, "gradient" if readable else "loss")
                skipped += 1
            if readable:
                for term, value in terms.items():
                    total, count = self.sums.get(term, (0.0, 0))
                    self.sums[term] = [total + value, count + 1]
        return at._replace(skipped=at.skipped + skipped)

    def log(self, at: Position) -> None:
        """A line in the log, and a record."""
        means = {term: total / count for term, (total, count) in self.sums.items()}
        self.sums = {}
        now = time.perf_counter()
        left = self.total - at.step + (self.epochs - at.epoch) * self.total  # steps
        took = f" in {duration(now - self.epoch_began)}" if at.step == self.total and not self.first else ""
        rest = f"  {duration((now - self.began) / self.done * left)} left" if left else ""
        skipped = f"  {at.skipped} updates skipped" if at.skipped else ""
        speed = f"{self.run.shares * self.images / (now - self.since):.0f} images/s"
        logger.info(
            f"{self.run.title}  epoch {at.epoch}/{self.epochs}  step {at.step}/{self.total}{took}  "
            f"loss {means['loss']:.3f}  lr {self.lr:.3g}{rest}\n  {_shown(means)}  {speed}{skipped}"
        )
        counted = {"skipped": at.skipped} if self.scaler else {}
        self.run.record("train", step=at.steps, stage=self.run.name, epoch=at.epoch, lr=self.lr, **counted, **means)
        self.images, self.since = 0, now

    def _fail(self, step: _Step, terms: dict[str, float], what: str) -> NoReturn:
        # Any process's images may be the cause; those of the prompt stage are the same everywhere.
        shares = gather_objects((step.ids.tolist(), list(self.run.image_paths(step.ids))))
        indices, images = (list(dict.fromkeys(chain(*part))) for part in zip(*shares, strict=True))
        facts = {
            **{"stage": self.run.name, "epoch": step.at.epoch, "lr": self.lr},
            "terms": {term: str(value) for term, value in terms.items()},  # JSON has no word for what is not finite
            **{"indices": indices, "paths": images},
        }
        self.run.record("non_finite", step=step.at.steps, **facts)
        self.run.failed(step.at, facts)
        values = ", ".join(f"{term} {value:g}" for term, value in terms.items())
        with collective():
            raise NonFiniteLoss(
                f"{self.run.title}, epoch {step.at.epoch}, step {step.at.step}: the {what} is not finite ({values}; "
                f"learning rate {self.lr:.3g}); that update was not made; images: {some(images) or 'unknown'}"
            )


def _shown(means: dict[str, float]) -> str:
    """The unweighted terms, each with its accuracy in per cent if there is one."""
    terms = [term for term in means if term != "loss" and not term.endswith(ACCURACY)]
    right = {term: f" ({100 * means[term + ACCURACY]:.0f} %)" for term in terms if term + ACCURACY in means}
    return "  ".join(f"{term} {means[term]:.3f}{right.get(term, '')}" for term in terms)
