"""Images against texts."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from loss.precision import in_fp32


class ImageTextContrast(nn.Module):
    """Supervised contrast of image and text features, both ways, summed (CLIP-ReID eqs. 3, 4; Khosla et al., 2020).

    Inner products of features as they are, at temperature 1: CLIP's logit scale is in the features' length.
    """

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        self.temperature = temperature

    @in_fp32
    def forward(self, images: Tensor, texts: Tensor, pids: Tensor) -> Tensor:
        """Images [B, E], the text feature of each image's identity [B, E], identities [B] -> []."""
        scores = images @ texts.T / self.temperature
        same = (pids[:, None] == pids[None]).to(scores.dtype)
        target = same / same.sum(dim=1, keepdim=True)
        return F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)


class ImageToText(nn.Module):
    """Cross-entropy of an image against the texts of all identities (CLIP-ReID eq. 8).

    Un-normalised at temperature 1, with the same label smoothing as the identity loss.
    """

    def __init__(self, smoothing: float = 0.1):
        super().__init__()
        self.smoothing = smoothing

    @in_fp32
    def forward(self, images: Tensor, texts: Tensor, pids: Tensor) -> Tensor:
        """Images [B, E], text features of all identities [P, E], identities [B] -> []."""
        return F.cross_entropy(images @ texts.T, pids, label_smoothing=self.smoothing)
