"""Distances between identities against distances within them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loss.precision import in_fp32


class BatchHardTriplet(nn.Module):
    """Hardest positive against hardest negative of every anchor (Hermans et al., 2017, eq. 5).

    Plain Euclidean distance between features as they are (not of length 1), as in CLIP-ReID eq. 7. Masked maxima and
    minima take any number of images of an identity; published code needs equal numbers and mixes rows up silently
    where their squares happen to sum to a multiple of the batch.

    Args:
        margin: mean of max(0, positive - negative + margin); None for the soft form, log(1 + exp(positive - negative)).
    """

    def __init__(self, margin: float | None = 0.3):
        super().__init__()
        self.margin = margin

    @in_fp32
    def forward(self, features: Tensor, pids: Tensor) -> Tensor:
        """[B, D] and [B] -> []; anchors without a negative do not count (with none that has one: 0)."""
        squared = features.square().sum(dim=1)
        squared = squared[:, None] + squared[None] - 2 * features @ features.T
        distances = squared.clamp(min=1e-12).sqrt()  # the gradient of sqrt at 0 is infinite
        same = pids[:, None] == pids[None]
        positive = distances.masked_fill(~same, -torch.inf).amax(dim=1)
        negative = distances.masked_fill(same, torch.inf).amin(dim=1)
        counts = ~same.all(dim=1)
        gap = torch.where(counts, positive - negative, 0.0)
        terms = F.softplus(gap) if self.margin is None else F.relu(gap + self.margin)
        return torch.where(counts, terms, 0.0).sum() / counts.sum().clamp(min=1)
