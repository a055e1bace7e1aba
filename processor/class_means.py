"""Identity classifiers that start from the class means of the training images' features."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch.nn import functional as F

from model.svllreid import SvllReid
from processor.features import compute_features
from utils.records import Batch

logger = logging.getLogger(__name__)


@torch.no_grad()
def start_from_means(model: SvllReid, batches: Iterable[Batch], device: torch.device) -> None:
    """Make each identity's row of each classifier the mean of its features, of length 1 (imprinted weights: Qi et al.,
    2018).

    The features are those behind the batch-norm neck, with the statistics of all images in place of a batch's.

    Args:
        model: on `device`; left in eval mode.
        batches: with every training image once; of several processes, each has a share.
    """
    model.eval()
    what = "features for the identity classifiers"
    found = compute_features(batches, lambda b: model.embed(b.images, b.side), device=device, what=what)
    features, pids = found.features, found.pids
    widths = [head.neck.num_features for head in model.heads]
    for head, part in zip(model.heads, features.split(widths, dim=1), strict=True):
        necked = F.batch_norm(part, None, None, head.neck.weight, head.neck.bias, training=True, eps=head.neck.eps)
        weight = head.classifier.weight
        means = torch.zeros_like(weight).index_add(0, pids, necked)
        weight.copy_(F.normalize(means, dim=1))
        right = (necked @ weight.T).argmax(dim=1) == pids
        message = (
            "identity classifier of %d features: starts from class means, right for %.0f %% of the training images"
        )
        logger.info(message, part.shape[1], 100 * right.float().mean().item())
