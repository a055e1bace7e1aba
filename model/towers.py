"""Image towers: what they promise, and a row for each.

A tower is any `nn.Module` with

    dims: (Dp, D, E)                                widths of the three features; Dp and E may be 0
    forward(images, side=None) -> ImageFeatures     [B, 3, H, W] -> a feature is None where its width is 0

A tower with a position table has three names more, by which files of another image size are resized:

    positions: its name in the state dict
    grid: its rows and columns
    grid_for(image_size, stride) -> rows and columns for images [H, W]

And, where it can:

    layer_of(name) -> the layer of a parameter, for SOLVER.STAGE2.LAYER_DECAY: 0 for what comes before the blocks,
        i + 1 for block i from 0 and, with the last, the norm after it; None for what comes after those

To add one: its file, and a row of TOWERS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.clip import ResNetTower, ViTTower
from model.heads import SideEmbedding
from model.pretrained import clip_config

VIT, RESNET = "vision transformer", "ResNet"  # CLIP's; MODEL.NAME is open_clip's name of the architecture


class Tower(NamedTuple):
    """What is known of a tower before it is made."""

    make: Callable[..., nn.Module]  # (CLIP's visual tower or None, image_size, stride, side) -> the tower
    patch: int = 1  # side in pixels of what a feature stands for: the smallest image, the largest stride
    stride: tuple[int, int] | None = None  # the only one; None: as MODEL.STRIDE_SIZE says
    side_width: Callable[[Any], int] | None = None  # of the side information's vectors; None: it takes none
    is_clip: bool = False  # it is filled with MODEL.PRETRAIN, and there is a text tower


TOWERS = {
    VIT: Tower(ViTTower, side_width=lambda visual: visual.conv1.out_channels, is_clip=True),
    RESNET: Tower(ResNetTower, patch=16, stride=ResNetTower.STRIDE, is_clip=True),
}


def find_tower(name: str) -> Tower:
    """The row of MODEL.NAME: its own, or that of a CLIP of this name.

    Raises:
        WeightsError: there is no tower of this name.
    """
    if name in TOWERS:
        return TOWERS[name]
    vision = clip_config(name)["vision_cfg"]
    if isinstance(vision["layers"], int):
        return TOWERS[VIT]._replace(patch=vision["patch_size"])
    return TOWERS[RESNET]


def make_tower(
    name: str,
    image_size: tuple[int, int],
    stride: tuple[int, int],
    *,
    side: Callable[[int], SideEmbedding] | None = None,
    visual: nn.Module | None = None,
) -> nn.Module:
    """The image tower called `name`.

    Args:
        image_size: (H, W) in pixels.
        stride: (vertical, horizontal) patch stride in pixels.
        side: makes the side information's table for vectors of a width; None for a network without it.
        visual: CLIP's tower, for those that are CLIP's; changed in place.
    """
    row = find_tower(name)
    table = side(row.side_width(visual)) if side and row.side_width else None
    return row.make(visual, image_size, stride, table)


def has_batch_norm(tower: nn.Module) -> bool:
    """Whether images of a batch change each other's features in training."""
    return any(isinstance(module, _BatchNorm) for module in tower.modules())
