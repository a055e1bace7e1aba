"""Two views of one thing must recognise each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loss.precision import in_fp32


class NTXent(nn.Module):
    """SimCLR's loss (Chen et al., 2020, eq. 1): each of 2N views finds its positive among the other 2N - 1.

    Cosine similarity over a temperature. Other images of the same identity count as negatives, as published, unless
    identities are given.
    """

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        self.temperature = temperature

    @in_fp32
    def forward(self, a: Tensor, b: Tensor, pids: Tensor | None = None) -> Tensor:
        """Views [N, D] and [N, D], row i of one being the positive of row i of the other -> []; 0 for N = 1.

        With identities [N], other images of an image's own identity are neither positives nor negatives.
        """
        views = F.normalize(torch.cat([a, b]), dim=1)  # [2N, D]
        scores = views @ views.T / self.temperature
        rows = torch.arange(len(scores), device=scores.device)
        positive = rows.roll(len(a))
        left_out = rows[:, None] == rows  # a view itself
        if pids is not None:
            owners = pids.repeat(2)
            left_out = (owners[:, None] == owners) & (positive[:, None] != rows)
        return F.cross_entropy(scores.masked_fill(left_out, -torch.inf), positive)


class NegativeCosine(nn.Module):
    """SimSiam's loss (Chen and He, 2021, eq. 4): what is predicted from one view against the other view, both ways."""

    @in_fp32
    def forward(self, p1: Tensor, z2: Tensor, p2: Tensor, z1: Tensor) -> Tensor:
        """Predictions p and views z, each [N, D] -> [], from -1 to 1; no gradient goes through the views."""
        return -0.5 * (F.cosine_similarity(p1, z2.detach()).mean() + F.cosine_similarity(p2, z1.detach()).mean())
