"""The only training loop; it knows neither model nor loss."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from utils.devices import autocast
from utils.errors import UserError
from utils.progress import progress
from utils.records import to_device

logger = logging.getLogger(__name__)
EXAMPLES = 4  # image paths in a message; metrics.jsonl has them all


class NonFiniteLoss(UserError):
    """A loss that is infinite or no number; training on would ruin every weight."""


def fit(
    stage: nn.Module,
    batches: Callable[[int], Iterable],
    optimizer: torch.optim.Optimizer,
    lr_at: Callable[[int, float], float],
    epochs: int,
    *,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    name: str = "stage",
    log_period: int = 50,
    before_epoch: Callable[[int], Any] | None = None,
    after_epoch: Callable[[int], None] | None = None,
    record: Callable[..., None] | None = None,
    paths: Callable[[Any], Sequence[str]] | None = None,
) -> None:
    """Train `stage`.

    Args:
        stage: a module that turns a batch into Losses.
        batches: epoch (from 1) -> its batches, an iterable with a length.
        optimizer: each of its groups has its own first rate in `initial_lr`.
        lr_at: (epoch, initial rate) -> rate.
        epochs: how many.
        device: where batches are moved; the stage is there already.
        precision: torch.float32, or the dtype of autocast.
        name: of the stage, for messages.
        log_period: a line in the log every so many steps, and at the end of every epoch.
        before_epoch: called first in an epoch, before learning rates and batches are taken.
        after_epoch: called last in an epoch, for checkpoints and evaluation.
        record: takes every logged number: record("train", step=..., stage=..., epoch=..., loss=..., ...).
        paths: batch -> the images it was made from, for the message when something goes wrong.

    Raises:
        NonFiniteLoss: naming stage, epoch, step, terms and images, before the weights are touched.
    """
    total_steps = 0
    for epoch in range(1, epochs + 1):
        stage.train()
        if before_epoch is not None:
            before_epoch(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(epoch, group["initial_lr"])
        loader = batches(epoch)
        window, images, since = _Mean(), 0, time.perf_counter()
        for step, batch in enumerate(progress(loader, f"{name} stage {epoch}/{epochs}"), start=1):
            batch = to_device(batch, device)
            with autocast(device, precision):
                losses = stage(batch)
            # One copy to the host a step: it tells at once that a loss is not finite, before the update.
            numbers = torch.stack([losses.total.detach(), *losses.terms.values()]).tolist()
            values = dict(zip(("loss", *losses.terms), numbers, strict=True))
            if not math.isfinite(values["loss"]):
                _stop(name, epoch, step, total_steps + step, values, paths(batch) if paths else (), record)
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            optimizer.step()
            window.add(values)
            images += len(batch.pids)
            if step % log_period == 0 or step == len(loader):
                now = time.perf_counter()
                lr, means = lr_at(epoch, optimizer.defaults["lr"]), window.take()
                logger.info(
                    "%s stage  epoch %d/%d  step %d/%d  %s  lr %.3g  %.0f images/s",
                    name,
                    epoch,
                    epochs,
                    step,
                    len(loader),
                    "  ".join(f"{term} {value:.3f}" for term, value in means.items()),
                    lr,
                    images / (now - since),
                )
                if record is not None:
                    record("train", step=total_steps + step, stage=name, epoch=epoch, lr=lr, **means)
                images, since = 0, now
        total_steps += len(loader)
        if after_epoch is not None:
            after_epoch(epoch)


class _Mean:
    """The mean of every term over the steps since it was last taken."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)

    def take(self) -> dict[str, float]:
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums.clear()
        return means


def _stop(name, epoch, step, total_step, values, paths: Sequence[str], record) -> None:
    terms = ", ".join(f"{term} {value:g}" for term, value in values.items())
    if record is not None:
        text = {term: str(value) for term, value in values.items()}  # JSON has no word for what is not finite
        record("non_finite", step=total_step, stage=name, epoch=epoch, terms=text, paths=list(paths))
    images = ", ".join(paths[:EXAMPLES]) + (f" and {len(paths) - EXAMPLES} more" if len(paths) > EXAMPLES else "")
    raise NonFiniteLoss(
        f"{name} stage, epoch {epoch}, step {step}: the loss is not finite ({terms}); nothing was updated or saved; "
        f"images: {images or 'unknown'}"
    )
