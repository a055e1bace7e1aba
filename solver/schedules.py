"""Learning rates as functions of the epoch, which counts from 1: nothing to save, nothing to resume."""

from __future__ import annotations

import math
from collections.abc import Sequence


def warmup_cosine(
    epoch: int, lr: float, *, epochs: int, floor: float, warmup_epochs: int, warmup_start: float
) -> float:
    """A line from `warmup_start` to `lr`, then a cosine from there to `floor`: the rates of CLIP-ReID's prompt stage
    and of TransReID.

    It is timm's CosineLRScheduler, of which `step(epoch)` was called at the start of each epoch, from 1. As published,
    the cosine counts from epoch 0, not from the end of the warm-up, so it starts a little below `lr`.
    """
    if epoch < warmup_epochs:
        return warmup_start + epoch * (lr - warmup_start) / warmup_epochs
    if epoch >= epochs:
        return floor
    return floor + 0.5 * (lr - floor) * (1 + math.cos(math.pi * epoch / epochs))


def warmup_steps(
    epoch: int, lr: float, *, steps: Sequence[int], gamma: float, warmup_epochs: int, warmup_factor: float
) -> float:
    """CLIP-ReID's image stage: a line from `warmup_factor` * `lr` to `lr`, times `gamma` for every step reached."""
    warm = min(epoch / warmup_epochs, 1.0) if warmup_epochs else 1.0
    return lr * (warmup_factor * (1 - warm) + warm) * gamma ** sum(step <= epoch for step in steps)
