"""The only training loop; it knows neither model nor loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from processor.progress import Progress
from processor.stage_run import Batches, Position, StageRun
from utils.devices import autocast
from utils.distributed import average_gradients, collective
from utils.progress import progress as bar
from utils.records import to_device


def fit(
    stage: nn.Module,
    batches: Callable[[int, int], Batches],
    optimizer: torch.optim.Optimizer,
    lr_at: Callable[[int, float], float],
    epochs: int,
    *,
    run: StageRun,
    precision: torch.dtype = torch.float32,
    scaler: torch.amp.GradScaler | None = None,
    clip_norm: float = 0.0,
) -> None:
    """Train `stage`, a module that turns a batch into Losses.

    A loss or gradient that is not finite suppresses its update; NonFiniteLoss is raised with the next line of the log.

    Args:
        batches: (epoch from 1, how many of its batches were done earlier) -> the others, with a length.
        optimizer: each of its groups has its own first rate in `initial_lr`, and may have a factor in `lr_scale`.
        lr_at: (epoch, initial rate) -> rate.
        run: where to resume; what is recorded and saved, and when; raises Interrupted when somebody wants to stop.
        precision: torch.float32, or the dtype of autocast.
        scaler: of the loss, for torch.float16: an update that overflows is skipped, and counted.
        clip_norm: the gradient of all parameters as one vector is shortened to this length; 0.0 is off.
    """
    at, progress = run.position, Progress(run, epochs, scaler)
    for epoch in range(at.epoch, epochs + 1):
        at = at._replace(epoch_state=run.before_epoch(epoch, at.epoch_state))
        stage.train()
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for group in optimizer.param_groups:
            group["lr"] = lr_at(epoch, group["initial_lr"]) * group.get("lr_scale", 1.0)
        loader = batches(epoch, at.step)
        total = at.step + len(loader)
        progress.start_epoch(at, total, lr_at(epoch, optimizer.defaults["lr"]))
        with run.finishing_steps():
            for batch in _fetch(bar(loader, f"{run.title} {epoch}/{epochs}"), len(loader), run.device):
                with autocast(run.device, precision):
                    losses = stage(batch)
                optimizer.zero_grad(set_to_none=True)
                (scaler.scale(losses.total) if scaler else losses.total).backward()
                average_gradients(trained)
                finite = _update(optimizer, trained, losses.total.detach(), scaler, clip_norm)
                run.after_step(finite)
                at = at._replace(step=at.step + 1, steps=at.steps + 1)
                progress.add(at, batch, losses, finite)
                stop, ended = run.stop_requested(), at.step == total
                line, save = ended or at.step % run.log_period == 0, run.due(epoch, ended) or stop
                at = progress.settle(at) if line or save else at
                if line:
                    progress.log(at)
                if stop:
                    break
                if save:
                    run.save(at._replace(sums=progress.sums))
            if run.stop_requested():  # maybe after the last step only
                run.save(at._replace(sums=progress.sums))
                run.stop()
        run.after_epoch(epoch)
        at = Position(epoch + 1, steps=at.steps, skipped=at.skipped)


def _fetch(batches: Iterable, count: int, device: torch.device) -> Iterator:
    """All batches, on `device`; one that a single process cannot read ends all of them, with its error."""
    batches = iter(batches)
    for _ in range(count):
        with collective():
            batch = next(batches)
        yield to_device(batch, device)


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
        # As GradScaler tells a fused optimiser: it changes nothing then.
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif finite:  # waits for the device
        optimizer.step()
    return finite
