"""The only training loop; it knows neither model nor loss."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.clock import duration
from utils.devices import autocast
from utils.distributed import any_rank, average_gradients, collective, gather_objects
from utils.errors import UserError
from utils.progress import progress
from utils.records import Losses, to_device
from utils.stopping import Interrupted, Stopping

logger = logging.getLogger(__name__)
EXAMPLES = 4  # image paths in a message; metrics.jsonl has them all
ACCURACY = "_accuracy"  # suffix of a term's name, for its accuracy in records
SMALLEST_SCALE = 1.0  # of the fp16 scaler, which starts at 65536 and is halved whenever an update overflows


class NonFiniteLoss(UserError):
    """A loss or gradient that is infinite or no number; training on would ruin every weight."""


class Position(NamedTuple):
    """How far a stage has come: with weights, optimiser and scaler, all it takes to go on as if it had not stopped."""

    epoch: int = 1  # the current one
    step: int = 0  # steps done in it
    steps: int = 0  # steps done in the whole stage
    skipped: int = 0  # updates that overflowed in fp16
    sums: dict[str, list] = {}  # noqa: RUF012 (never changed) terms since the last line of the log: [sum, count]
    epoch_state: dict | None = None  # what `before_epoch` returned


def fit(
    stage: nn.Module,
    batches: Callable[[int, int], Iterable],
    optimizer: torch.optim.Optimizer,
    lr_at: Callable[[int, float], float],
    epochs: int,
    *,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    scaler: torch.amp.GradScaler | None = None,
    clip_norm: float = 0.0,
    name: str = "stage",
    log_period: int = 50,
    start: Position | None = None,
    before_epoch: Callable[[int, dict | None], dict | None] | None = None,
    after_epoch: Callable[[int], None] | None = None,
    record: Callable[..., None] | None = None,
    paths: Callable[[Tensor], Sequence[str]] | None = None,
    due: Callable[[int, bool], bool] | None = None,
    save: Callable[[Position], None] | None = None,
    failed: Callable[[Position, dict], None] | None = None,
    stopping: Stopping | None = None,
    shares: int = 1,
) -> None:
    """Train `stage`.

    Between two lines of the log nothing waits for the device: a loss or gradient that is not finite suppresses its
    update on the device itself, and is found out when the next line is written.

    Args:
        stage: a module that turns a batch into Losses.
        batches: (epoch from 1, how many of its batches were done earlier) -> the others, an iterable with a length.
        optimizer: each of its groups has its own first rate in `initial_lr`.
        lr_at: (epoch, initial rate) -> rate.
        epochs: how many.
        device: where batches are moved; the stage is there already.
        precision: torch.float32, or the dtype of autocast.
        scaler: of the loss, for torch.float16: an update that overflows is skipped, and counted.
        clip_norm: the gradient of all parameters together is shortened to this length; 0.0 is off.
        name: of the stage, for messages.
        log_period: a line in the log every so many steps, and at the end of every epoch.
        start: where an earlier run was; stage, optimiser and scaler are as they were then.
        before_epoch: called first in an epoch, before learning rates and batches are taken; gets None or, in an epoch
            that an earlier run began, what it returned there.
        after_epoch: called last in an epoch, for checkpoints and evaluation.
        record: takes every logged number: record("train", step=..., stage=..., epoch=..., loss=..., ...).
        paths: a batch's indices (its identities, where it has none) -> the images it was made from, for messages.
        due: (epoch, whether all its steps are done) -> whether to `save` now.
        save: keeps the position, and stage, optimiser and scaler with it.
        failed: keeps what there is to look into, before NonFiniteLoss is raised.
        stopping: says whether somebody wants to stop; then the position is saved, too.
        shares: processes that each have a share of every batch, for the speed that is logged.

    Raises:
        NonFiniteLoss: when the next line of the log is due, naming stage, epoch, step, terms and images.
        Interrupted: somebody wanted to stop.
    """
    at, began, done = start or Position(), time.perf_counter(), 0
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for epoch in range(at.epoch, epochs + 1):
        stage.train()
        if before_epoch is not None:
            at = at._replace(epoch_state=before_epoch(epoch, at.epoch_state))
        for group in optimizer.param_groups:
            group["lr"] = lr_at(epoch, group["initial_lr"])
        loader = batches(epoch, at.step)
        total, lr = at.step + len(loader), lr_at(epoch, optimizer.defaults["lr"])
        fail = partial(_stop, name=name, lr=lr, paths=paths, record=record, failed=failed)
        window, images, since = _Window(at.sums), 0, (epoch_began := time.perf_counter())
        with stopping.waiting() if stopping else nullcontext():
            for batch in _fetch(progress(loader, f"{name} stage {epoch}/{epochs}"), len(loader)):
                batch = to_device(batch, device)
                with autocast(device, precision):
                    losses = stage(batch)
                optimizer.zero_grad(set_to_none=True)
                (scaler.scale(losses.total) if scaler else losses.total).backward()
                average_gradients(trained)
                finite = _update(optimizer, trained, losses.total.detach(), scaler, clip_norm)
                at = at._replace(step=at.step + 1, steps=at.steps + 1)
                window.add(at, getattr(batch, "indices", batch.pids), losses, finite)
                images, done = images + len(batch.pids), done + 1

                stop = any_rank(stopping is not None and stopping.requested is not None)
                line = at.step % log_period == 0 or at.step == total
                keep = save is not None and any_rank(stop or (due is not None and due(epoch, at.step == total)))
                if line or keep:
                    at = at._replace(skipped=at.skipped + _skipped(window.settle(), scaler, fail))
                if line:
                    means = window.take()
                    now, left = time.perf_counter(), total - at.step + (epochs - epoch) * total  # steps
                    took = f" in {duration(now - epoch_began)}" if at.step == total == len(loader) else ""
                    rest = f"  {duration((now - began) / done * left)} left" if left else ""
                    skipped = f"  {at.skipped} updates skipped" if at.skipped else ""
                    speed = f"{shares * images / (now - since):.0f} images/s"
                    logger.info(
                        f"{name} stage  epoch {epoch}/{epochs}  step {at.step}/{total}{took}  "
                        f"loss {means['loss']:.3f}  lr {lr:.3g}{rest}\n  {_shown(means)}  {speed}{skipped}"
                    )
                    if record is not None:
                        counted = {"skipped": at.skipped} if scaler else {}
                        record("train", step=at.steps, stage=name, epoch=epoch, lr=lr, **counted, **means)
                    images, since = 0, now
                if keep:
                    save(at._replace(sums=window.sums))
                if stop:
                    raise Interrupted(stopping.requested or signal.SIGTERM)  # another process was asked
        if any_rank(stopping is not None and stopping.requested is not None):  # after the last step
            if save is not None:
                save(at._replace(sums=window.sums))
            raise Interrupted(stopping.requested or signal.SIGTERM)
        if after_epoch is not None:
            after_epoch(epoch)
        at = Position(epoch + 1, steps=at.steps, skipped=at.skipped)


def _fetch(batches: Iterable, count: int) -> Iterator:
    """All batches; one that a single process cannot read ends all of them, with its error."""
    batches = iter(batches)
    for _ in range(count):
        with collective():
            batch = next(batches)
        yield batch


def _update(
    optimizer: torch.optim.Optimizer,
    trained: Sequence[nn.Parameter],
    loss: Tensor,
    scaler: torch.amp.GradScaler | None,
    clip_norm: float,
) -> Tensor:
    """One step of the optimiser, unless loss or gradient is not finite -> [] bool, whether both are."""
    if scaler:
        scaler.unscale_(optimizer)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    largest = torch.nn.utils.get_total_norm(gradients, math.inf)  # unlike a sum of squares, it cannot overflow
    if clip_norm > 0:
        torch.nn.utils.clip_grad_norm_(trained, clip_norm)
    finite = torch.isfinite(loss) & torch.isfinite(largest)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    elif optimizer.defaults.get("fused"):
        optimizer.found_inf = (~finite).float()  # as GradScaler tells a fused optimiser: it changes nothing then
        optimizer.step()
    elif finite:  # waits for the device
        optimizer.step()
    return finite


def _shown(means: dict[str, float]) -> str:
    """The unweighted terms, each with its accuracy in per cent if there is one."""
    terms = [term for term in means if term != "loss" and not term.endswith(ACCURACY)]
    right = {term: f" ({100 * means[term + ACCURACY]:.0f} %)" for term in terms if term + ACCURACY in means}
    return "  ".join(f"{term} {means[term]:.3f}{right.get(term, '')}" for term in terms)


class _Step(NamedTuple):
    """A step whose numbers may still be on their way."""

    at: Position
    images: Tensor  # [B] indices, or identities
    terms: tuple[str, ...]  # the loss, its terms and their accuracies
    numbers: Tensor  # [1 + terms]: 1 for finite, then the terms


class _Window:
    """The steps since the last line of the log: sums of their terms, and what is still on the device."""

    def __init__(self, sums: dict[str, list]):
        self.sums = {term: list(pair) for term, pair in sums.items()}
        self.pending: list[_Step] = []

    def add(self, at: Position, images: Tensor, losses: Losses, finite: Tensor) -> None:
        loss = losses.total.detach()
        accuracy = {f"{term}{ACCURACY}": share.to(loss.dtype) for term, share in losses.accuracy.items()}
        terms = {"loss": loss, **losses.terms, **accuracy}
        numbers = torch.stack([finite.to(loss.dtype), *terms.values()])
        self.pending.append(_Step(at, images, tuple(terms), numbers))

    def settle(self) -> list[tuple[_Step, dict[str, float]]]:
        """Fetch everything in one copy and add it up -> the steps that were not finite, with their terms."""
        steps, self.pending, spoilt = self.pending, [], []
        numbers = iter(torch.cat([step.numbers for step in steps]).tolist() if steps else ())
        for step in steps:
            finite = next(numbers)
            terms = {term: next(numbers) for term in step.terms}
            if not finite:
                spoilt.append((step, terms))
            if all(map(math.isfinite, terms.values())):
                for term, value in terms.items():
                    total, count = self.sums.get(term, (0.0, 0))
                    self.sums[term] = [total + value, count + 1]
        return spoilt

    def take(self) -> dict[str, float]:
        means = {term: total / count for term, (total, count) in self.sums.items()}
        self.sums = {}
        return means


def _skipped(
    spoilt: Sequence[tuple[_Step, dict[str, float]]],
    scaler: torch.amp.GradScaler | None,
    stop: Callable[[_Step, dict[str, float]], None],
) -> int:
    """How many updates overflowed in fp16, which is nothing to `stop` for while the loss and the scale last."""
    for step, terms in spoilt:
        if scaler is None or not all(map(math.isfinite, terms.values())) or scaler.get_scale() < SMALLEST_SCALE:
            stop(step, terms)
    return len(spoilt)


def _stop(step: _Step, terms: dict[str, float], *, name, lr, paths, record, failed) -> None:
    # Any process's images may be the cause; those of the prompt stage are the same everywhere.
    shares = gather_objects((step.images.tolist(), list(paths(step.images)) if paths else []))
    indices, images = (list(dict.fromkeys(chain(*part))) for part in zip(*shares, strict=True))
    facts = {
        **{"stage": name, "epoch": step.at.epoch, "lr": lr},
        "terms": {term: str(value) for term, value in terms.items()},  # JSON has no word for what is not finite
        **{"indices": indices, "paths": images},
    }
    if record is not None:
        record("non_finite", step=step.at.steps, **facts)
    if failed is not None:
        failed(step.at, facts)
    what = "gradient" if all(map(math.isfinite, terms.values())) else "loss"
    told = ", ".join(f"{term} {value:g}" for term, value in terms.items())
    shown = ", ".join(images[:EXAMPLES]) + (f" and {len(images) - EXAMPLES} more" if len(images) > EXAMPLES else "")
    with collective():
        raise NonFiniteLoss(
            f"{name} stage, epoch {step.at.epoch}, step {step.at.step}: the {what} is not finite ({told}; learning "
            f"rate {lr:.3g}); that update was not made; images: {shown or 'unknown'}"
        )
