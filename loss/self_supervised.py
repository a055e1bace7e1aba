"""Two views of one thing must recognise each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loss.precision import in_fp32


class NTXent(nn.Module):
    """SimCLR's loss (Chen et al., 2020, eq. 1): each of 2N views finds its partner among the other 2N - 1.

    Cosine similarity over a temperature. Other images of the same identity count as strangers, as published.
    """

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        self.temperature = temperature

    @in_fp32
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Views [N, D] and [N, D], row i of one being the partner of row i of the other -> []; 0 for N = 1."""
        views = F.normalize(torch.cat([a, b]), dim=1)  # [2N, D]
        scores = views @ views.T / self.temperature
        itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        partner = torch.arange(len(scores), device=scores.device).roll(len(a))
        return F.cross_entropy(scores.masked_fill(itself, -torch.inf), partner)
