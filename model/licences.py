"""Licences of the weights that a training starts from."""

from __future__ import annotations

import timm
from open_clip import pretrained as hub

from model import tiny_clip
from model.families import FAMILIES
from model.pretrained import NONE, address
from model.timm_tower import tags_of
from model.towers import TIMM

OURS = "MIT, as the code"


def licence_of(name: str, pretrain: str) -> str | None:
    """The licence of the weights that MODEL.PRETRAIN names for MODEL.NAME, or where it is to be found.

    None: there are no such weights, or nothing is known of them (a file of one's own).
    """
    if pretrain == NONE:
        return None
    if name in FAMILIES:
        return FAMILIES[name].licence
    if name.startswith(TIMM):
        bare = name.removeprefix(TIMM)
        return timm.get_pretrained_cfg(f"{bare}.{pretrain}").license if pretrain in tags_of(bare) else None
    if (name, pretrain) == (tiny_clip.NAME, tiny_clip.TAG):
        return OURS
    if tag := hub.get_pretrained_cfg(name, pretrain):
        return "MIT (github.com/openai/CLIP)" if pretrain == "openai" else f"see {address(tag)}"
    return None
