"""A batch that is too large for the memory goes through the tower in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from utils.records import ImageFeatures, SideInfo


def encode_in_chunks(tower: nn.Module, images: Tensor, side: SideInfo | None, size: int) -> ImageFeatures:
    """What `tower(images, side)` returns, and its gradients, with the memory of `size` images (GradCache: Gao et al.,
    2021).

    Losses see the features of all images. When their gradient comes back, the tower runs once more, chunk by chunk,
    with the same random draws. Only batch norm, which sees a chunk at a time, makes a difference; its running
    statistics are updated in the first pass alone.

    Args:
        size: images in a chunk; 0 is all.
    """
    if not 0 < size < len(images):
        return tower(images, side)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _statistics_kept(tower)

    sides = [SideInfo(*fields) for fields in zip(*(field.split(size) for field in side), strict=True)] if side else None
    parts = [
        checkpoint(tower, chunk, sides[number] if sides else None, use_reentrant=False, context_fn=contexts)
        for number, chunk in enumerate(images.split(size))
    ]
    return ImageFeatures._make(None if depth[0] is None else torch.cat(depth) for depth in zip(*parts, strict=True))


@contextmanager
def _statistics_kept(tower: nn.Module) -> Iterator[None]:
    """Within it, batch norm leaves its running statistics as they are."""
    norms = [norm for norm in tower.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
