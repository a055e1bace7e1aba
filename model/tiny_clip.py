"""A CLIP for laptops: 0.7 million parameters, trained on rendered people (see tools/demo/pretrain_tiny_clip.py).

Built of the same parts as the large ones (open_clip's vision transformer, overlapping patches, causal text
transformer, the real BPE vocabulary), so that everything that works with it works with them.
"""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.clip import patch_grid

NAME = "ViT-Tiny-8"
RESNET = "RN-Tiny"
TAG = "rendered"
FILE = Path(__file__).parent / "weights" / "vit_tiny_8_rendered.safetensors"
STRIDE = (6, 6)  # of the pre-training, in pixels
IMAGE_SIZE = (64, 32)  # of the pre-training, height and width in pixels
VOCABULARY = 49408  # CLIP's
TOKENS, TABLE = "token_ids", "token_embedding.weight"


def config(vocabulary: int = VOCABULARY) -> dict:
    """The architecture, as open_clip.CLIP takes it."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": IMAGE_SIZE, "patch_size": 8, "width": 96, "layers": 4, "head_width": 32},
        "text_cfg": {"context_length": 77, "vocab_size": vocabulary, "width": 96, "heads": 3, "layers": 2},
    }


def resnet_config() -> dict:
    """The same with a ResNet of CLIP's form, of one block a stage. There are no trained weights of it."""
    vision = {"image_size": 64, "layers": (1, 1, 1, 1), "width": 16, "head_width": 64, "patch_size": None}
    return {**config(), "vision_cfg": vision}


CONFIGS = {NAME: config, RESNET: resnet_config}


def build(vocabulary: int = VOCABULARY) -> open_clip.CLIP:
    """The network without trained weights; its patches overlap already, unlike those of open_clip's own towers."""
    clip = open_clip.CLIP(**config(vocabulary), quick_gelu=True)
    visual = clip.visual
    visual.conv1.stride = STRIDE
    visual.grid_size = patch_grid(IMAGE_SIZE, visual.patch_size, STRIDE)
    width = visual.conv1.out_channels
    visual.positional_embedding = nn.Parameter(torch.empty(1 + visual.grid_size[0] * visual.grid_size[1], width))
    nn.init.normal_(visual.positional_embedding, std=width**-0.5)
    return clip


def save(path: Path, state: dict[str, Tensor], token_ids: Tensor, facts: dict) -> None:
    """Write weights in half precision; `state` has one row of the token table for each of `token_ids`."""
    state = {name: value.detach().half().contiguous() for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({**state, TOKENS: token_ids}, path, metadata={"facts": json.dumps(facts)})


def load(path: Path = FILE) -> dict[str, Tensor]:
    """A state dict for the full vocabulary; rows of words never seen are NaN, so that none passes silently."""
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    rows = state.pop(TABLE)
    table = torch.full((VOCABULARY, rows.shape[1]), torch.nan)
    table[state.pop(TOKENS)] = rows
    return {**state, TABLE: table}


def facts(path: Path = FILE) -> dict:
    """What the pre-training wrote down: trained logit scale, held-out score, steps, data."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["facts"])


def fold_logit_scale(state: dict[str, Tensor], norm_product: float) -> dict[str, Tensor]:
    """Lengthen or shorten both projections so that plain inner products are what CLIP was trained with.

    CLIP learns with cosine * scale; the published re-identification losses take un-normalised inner products at
    temperature 1. Both agree where mean |image| * |text| (`norm_product`) equals the scale, as OpenAI's features do.
    """
    factor = (state["logit_scale"].exp() / norm_product) ** 0.5
    folded = {name: state[name] * factor for name in ("visual.proj", "text_projection")}
    return {**state, **folded}
