"""Classification of identities."""

from __future__ import annotations

from functools import reduce
from operator import add

from torch import Tensor, nn
from torch.nn import functional as F

from loss.precision import in_fp32


class IdentityLoss(nn.Module):
    """Cross-entropy with label smoothing (Szegedy et al., 2016, §7): mean of -(1-e) log p(y) - e/P sum_c log p(c)."""

    def __init__(self, smoothing: float = 0.1):
        super().__init__()
        self.smoothing = smoothing

    @in_fp32
    def forward(self, scores: Tensor | tuple[Tensor, ...], pids: Tensor) -> Tensor:
        """Scores [B, P], or several of them (summed), and identities [B] -> []."""
        several = scores if isinstance(scores, (list, tuple)) else (scores,)
        return reduce(add, (F.cross_entropy(one, pids, label_smoothing=self.smoothing) for one in several))
