"""Features of many images, by all processes together."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from utils import distributed
from utils.progress import progress
from utils.records import Batch, FeatureBatch, to_device


@torch.no_grad()
def compute_features(
    batches: Iterable[Batch], compute: Callable[[Batch], Tensor], *, device: torch.device, what: str
) -> FeatureBatch:
    """Features [N, D], in fp32, and identities [N] of all images, in the order of the list of samples.

    Args:
        batches: of this process; those of all processes together hold every image once. A single process has them all,
            and its order is theirs.
        compute: a batch on `device` -> [B, D].
        what: is being done, for the progress bar.

    Raises:
        UserError: on all processes, what went wrong on one of them, e.g. DataError for an image that cannot be read.
    """
    features, pids, indices = [], [], []
    with distributed.collective():  # nobody waits for features that do not come
        for batch in progress(batches, what):
            batch = to_device(batch, device)
            features.append(compute(batch).float())
            pids.append(batch.pids)
            indices.append(batch.indices)
    if distributed.world_size() == 1:
        return FeatureBatch(torch.cat(features), torch.cat(pids))
    all_features, all_pids, all_indices = (
        distributed.gather_rows(torch.cat(parts) if parts else None, device) for parts in (features, pids, indices)
    )
    order = all_indices.argsort()
    if not torch.equal(all_indices[order], torch.arange(len(order), device=order.device)):
        raise RuntimeError("the processes' batches together must hold every image once")
    return FeatureBatch(all_features[order], all_pids[order])
