"""Swin as detection code has it, which person towers follow: padded before it is rolled; and SOLIDER's semantic weight.

timm, as the first code for classification, rolls before it pads. Both agree where the window divides the map.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F


class PadFirstBlock(SwinTransformerBlock):
    """A block that pads its map to whole windows, then rolls, and crops after it has rolled back."""

    def _attn(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[1:3]
        below, right = (-pixels % side for pixels, side in zip((rows, columns), self.window_size, strict=True))
        return super()._attn(F.pad(x, (0, 0, 0, right, 0, below)))[:, :rows, :columns]


class SemanticMerging(PatchMerging):
    """Patch merging, then a scale and a shift of each channel that follow from the semantic weight (SOLIDER, 2023).

    They are x * softplus(A w + a) + (B w + b) with w = (weight, 1 - weight). A, a, B and b come with the weights and
    are not trained further.

    Args:
        merging: whose layers it takes over.
        weight: from 0, features of appearance, to 1, semantic ones.
    """

    shares: Tensor
    scale_weight: Tensor
    scale_bias: Tensor
    shift_weight: Tensor
    shift_bias: Tensor

    def __init__(self, merging: PatchMerging, weight: float):
        nn.Module.__init__(self)
        self.dim, self.out_dim = merging.dim, merging.out_dim
        self.norm, self.reduction = merging.norm, merging.reduction
        self.register_buffer("shares", torch.tensor([weight, 1 - weight]), persistent=False)
        for name in ("scale", "shift"):
            self.register_buffer(f"{name}_weight", 0.02 * torch.randn(self.out_dim, 2))
            self.register_buffer(f"{name}_bias", torch.zeros(self.out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H/2, W/2, out_dim]."""
        scale = F.softplus((self.scale_weight * self.shares).sum(dim=1) + self.scale_bias)
        return super().forward(x) * scale + (self.shift_weight * self.shares).sum(dim=1) + self.shift_bias


def pad_first(net: Any) -> None:
    """Let all blocks of timm's Swin pad before they roll."""
    for module in net.modules():
        if isinstance(module, SwinTransformerBlock):
            module.__class__ = PadFirstBlock


def add_semantics(net: Any, weight: float) -> None:
    """Give timm's Swin SOLIDER's scale and shift after each merging."""
    for stage in net.layers[1:]:
        stage.downsample = SemanticMerging(stage.downsample, weight)
