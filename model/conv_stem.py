"""A convolutional stem in place of the patches' one linear layer (ICS, "IBN-based convolution stem": TransReID-SSL)."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

WIDTH = 64


class IBN(nn.Module):
    """Instance norm of the first half of the channels, batch norm of the other (IBN-a: Pan et al., 2018)."""

    def __init__(self, width: int):
        super().__init__()
        self.IN = nn.InstanceNorm2d(width // 2, affine=True)
        self.BN = nn.BatchNorm2d(width - width // 2)

    def forward(self, maps: Tensor) -> Tensor:
        first, second = maps.split([self.IN.num_features, self.BN.num_features], dim=1)
        return torch.cat([self.IN(first), self.BN(second)], dim=1)


class ConvStem(PatchEmbed):
    """Three convolutions at half the resolution, as VOLO's, then a linear layer for every 8 x 8 of their cells.

    The arguments are those of timm's `PatchEmbed`, whose patches are still of 16 pixels, for `dynamic_img_size`.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.conv = nn.Sequential(
            *(nn.Conv2d(3, WIDTH, 7, stride=2, padding=3, bias=False), IBN(WIDTH), nn.ReLU(inplace=True)),
            *(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), IBN(WIDTH), nn.ReLU(inplace=True)),
            *(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True)),
        )
        side = self.patch_size[0] // 2
        self.proj = nn.Conv2d(WIDTH, self.proj.out_channels, side, stride=side)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> tokens [B, rows, columns, D].

        Raises:
            ValueError: the size is no multiple of the patches'.
        """
        for pixels, patch in zip(images.shape[2:], self.patch_size, strict=True):
            if pixels % patch:
                raise ValueError(f"{pixels} pixels are no multiple of {patch}")
        return self.norm(self.proj(self.conv(images)).permute(0, 2, 3, 1))
