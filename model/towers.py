"""Image towers: what they promise, and a row for each.

A tower is any `nn.Module` with

    dims: (Dp, D, E)                                widths of the three features; Dp and E may be 0
    forward(images, side=None) -> ImageFeatures     [B, 3, H, W] -> a feature is None where its width is 0

A tower with a position table has three names more, by which files of another image size are resized:

    positions: its name in the state dict
    grid: its rows and columns
    grid_for(image_size, stride) -> rows and columns for images [H, W]
    prefix: its rows before those of the patches; without this name, 1

And, where it can:

    layer_of(name) -> the layer of a parameter, for SOLVER.STAGE2.LAYER_DECAY: 0 for what comes before the blocks,
        i + 1 for block i from 0 and, with the last, the norm after it; None for what comes after those
    set_grad_checkpointing(enable=True), for SOLVER.STAGE2.GRAD_CHECKPOINTING, as timm's and open_clip's towers;
        AssertionError if it cannot

To add one: its file, and a row of TOWERS; a published tower that timm can build is a row of `model.families`.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import timm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from model import families
from model.clip import ResNetTower, ViTTower
from model.families import FAMILIES, IMAGENET
from model.heads import SideEmbedding
from model.pretrained import clip_config, clip_names, taken_clips
from model.timm_tower import Facts, fill, make_timm, pixels, read_facts, tags_of
from utils.errors import WeightsError
from utils.records import SideInfo

TIMM = "timm/"  # how names of timm's towers begin
VIT, RESNET = "vision transformer", "ResNet"  # CLIP's; MODEL.NAME is open_clip's name of the architecture


class Tower(NamedTuple):
    """What is known of a tower before it is made."""

    make: Callable[..., nn.Module]  # (CLIP's visual tower or None, image_size, stride, side, **options) -> the tower
    patch: int = 1  # side in pixels of what a feature stands for: the smallest image, the largest stride
    stride: tuple[int, int] | None = None  # the only one; None: as MODEL.STRIDE_SIZE says
    side_width: Callable[[Any], int] | None = None  # of the side information's vectors; None: it takes none
    is_clip: bool = False  # there is a text tower, and MODEL.PRETRAIN is of both
    options: tuple[str, ...] = ()  # further settings that it is made with, as they are called in `architecture`
    fill: Callable[[Any, str], list[str]] | None = None  # (tower, MODEL.PRETRAIN) -> lines for the log; not of CLIP's
    # MODEL.PRETRAIN -> mean and deviation of the channels that it was trained with
    pixels: Callable[[str], tuple[tuple[float, ...], tuple[float, ...]]] = lambda pretrain: IMAGENET


TOWERS = {
    VIT: Tower(ViTTower, side_width=lambda visual: visual.conv1.out_channels, is_clip=True),
    RESNET: Tower(ResNetTower, patch=16, stride=ResNetTower.STRIDE, is_clip=True, options=("pooling", "modalities")),
}


def find_tower(name: str) -> Tower:
    """The row of MODEL.NAME: its own, or that of a CLIP of this name.

    Raises:
        WeightsError: there is no tower of this name.
    """
    if name in TOWERS:
        return TOWERS[name]
    if name in FAMILIES:
        return _family_row(name)
    if name.startswith(TIMM) and timm.is_model(name.removeprefix(TIMM)) and "." not in name:
        return _timm_row(name.removeprefix(TIMM))
    if name not in clip_names() or timm.is_model(name):  # open_clip has CLIPs with towers of timm under their names
        raise WeightsError(f"MODEL.NAME: there is no architecture {name!r}; {_meant(name)}")
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
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The image tower called `name`.

    Args:
        image_size: (H, W) in pixels.
        stride: (vertical, horizontal) patch stride in pixels.
        side: makes the side information's table for vectors of a width; None for a network without it.
        visual: CLIP's tower, for those that are CLIP's; changed in place.
        options: further settings by name; those that it has no use for are passed over.
    """
    row = find_tower(name)
    table = side(row.side_width(visual)) if side and row.side_width else None
    taken = {key: value for key, value in (options or {}).items() if key in row.options}
    return row.make(visual, image_size, stride, table, **taken)


def _meant(name: str) -> str:
    """What to write instead of a MODEL.NAME that there is not: one that differs in case, signs or timm's prefix, else
    the shortest that hold it, or similar ones."""

    def bare(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", re.sub(f"^(hf-hub:)?{TIMM}", "", name.strip().lower()))

    names = defaultdict(list)
    others = (each for each, row in TOWERS.items() if not row.is_clip)
    for each in (*taken_clips(), *others, *FAMILIES, *(TIMM + each for each in timm.list_models())):
        names[bare(each)].append(each)
    stem, _, tag = name.strip().rpartition(".")
    for each in names.get(bare(stem), ()):
        if each.startswith(TIMM) and tag in tags_of(each.removeprefix(TIMM)):
            return f"expected MODEL.NAME {each} MODEL.PRETRAIN {tag}"
    if alike := [each for each in names.get(bare(name), ()) if each != name]:
        return f"near it: {', '.join(alike)}"
    holding = sorted((key for key in names if len(bare(name)) > 2 and bare(name) in key), key=len)
    near = holding[:3] or difflib.get_close_matches(bare(name), names, n=3)
    hint = f"near it: {', '.join(each for key in near for each in names[key]) or 'ViT-B-16'}; see docs/towers.md"
    if name.startswith(TIMM) or not {":", "/"} & set(name):
        return hint
    return (
        f"{hint}; weights of a folder or repository: MODEL.NAME ViT-B-16 MODEL.PRETRAIN "
        "/path/open_clip_model.safetensors"
    )


def _timm_row(name: str) -> Tower:
    # A tower that has no choice of pooling says so itself.
    return _row(name, make_timm, fill, read_facts(name), ("pooling",), pixels=partial(pixels, name))


def _family_row(name: str) -> Tower:
    family = FAMILIES[name]
    facts = read_facts(family.timm)
    facts = facts._replace(width=family.arguments.get("embed_dim", facts.width))
    options = [*(["pooling"] if facts.has_token else []), *(["semantic_weight"] if family.semantic else [])]
    return _row(name, families.make, families.fill, facts, options, pixels=lambda pretrain: family.pixels)


def _row(name: str, make: Callable, fill: Callable, facts: Facts, options: Iterable[str], *, pixels: Callable) -> Tower:
    return Tower(
        lambda visual, *settings, **options: make(name, *settings, **options),
        facts.patch,
        facts.stride,
        side_width=(lambda visual: facts.width) if facts.has_token else None,
        options=("test_size", "embed_dim", "drop_path", *options),
        fill=lambda tower, pretrain: fill(tower, name, pretrain),
        pixels=pixels,
    )


def stem_only(tower: nn.Module, side: SideInfo) -> SideInfo | None:
    """Side information for a network that is to do without it: None, but for what picks one of several stems (towers
    that have them take nothing else)."""
    return side if len(getattr(tower, "stems", ())) else None


def has_batch_norm(tower: nn.Module) -> bool:
    """Whether images of a batch change each other's features in training."""
    return any(isinstance(module, _BatchNorm) for module in tower.modules())
