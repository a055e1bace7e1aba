"""Published CLIP-ReID and SVLL-ReID files: bare state dicts, under names and in an order of their own.

`model.published_network` tells the network that such a file is of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from model.clip import patch_grid
from utils.errors import WeightsError

# Ours -> theirs, by the longest prefix, in the order of their files.
PREFIXES = {
    "image.side.table": "cv_embed",
    "heads.0.classifier.": "classifier.",
    "heads.1.classifier.": "classifier_proj.",
    "heads.0.neck.": "bottleneck.",
    "heads.1.neck.": "bottleneck_proj.",
    "image.visual.": "image_encoder.",
    "image_projector.": "image_mlp.",
    "text_projector.": "text_mlp.",
    "prompts.context": "prompt_learner.cls_ctx",
    "prompts.prefix": "prompt_learner.token_prefix",
    "prompts.suffix": "prompt_learner.token_suffix",
    "text.": "text_encoder.",
}
# Layers of the two kinds of projection heads: place in ours -> name in theirs.
SIMCLR_LAYERS = {"0": "layer1", "1": "bn1", "3": "layer2", "4": "bn2", "6": "layer3"}
SIMSIAM_LAYERS = {"0": "linear1", "1": "bn1", "3": "layer2"}
# The order within a tower, where it is not open_clip's.
IN_TOWER = ("class_embedding", "positional_embedding", "text_projection", "proj", "conv", "ln_pre", "transformer")
IN_BLOCK = ("attn", "ln_1", "mlp", "ln_2")


def is_published(state: Mapping) -> bool:
    """Whether these names, without wrappers' prefixes, are those of one of these files."""
    return any(key.startswith("image_encoder.") for key in state)


# Rows and columns of position tables by their number, and where they come from: the sizes that are trained at.
GRIDS = {
    grid[0] * grid[1]: (grid, f"INPUT.SIZE_TRAIN {size} and MODEL.STRIDE_SIZE {(stride, stride)}")
    for size in ((256, 128), (256, 256), (384, 128), (224, 224))
    for stride in (16, 12)
    for grid in [patch_grid(size, (16, 16), (stride, stride))]
}


def from_published(state: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """The same tensors under this program's names.

    Raises:
        WeightsError: a name that these files do not have.
    """
    simsiam = "image_mlp.linear1.weight" in state
    ours = {}
    for key, value in state.items():
        name = _ours(key, simsiam=simsiam)
        if name is None:
            raise WeightsError(f"{source}: {key} is no tensor of a CLIP-ReID or SVLL-ReID file")
        ours[name] = value
    return ours


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state dict under the published names, in the published order."""
    resnet = "image.visual.layer1.0.conv1.weight" in state
    names = sorted(state, key=lambda name: _rank(name, resnet=resnet))
    return {published_name(name, state): state[name] for name in names}


def published_name(name: str, state: Mapping[str, Tensor]) -> str:
    """What a tensor is called in their files; `state`, ours, tells which kind of projector there is."""
    simsiam = "image_projector.0.weight" in state and "image_projector.6.weight" not in state
    if name.startswith("image_projector.") and name.split(".")[1] not in _layers("image_projector.", simsiam):
        return name  # of the other kind
    return _theirs(name, simsiam=simsiam)


def _ours(key: str, *, simsiam: bool) -> str | None:
    for ours, theirs in PREFIXES.items():
        if not key.startswith(theirs) or (theirs[-1] != "." and key != theirs):
            continue
        rest = key[len(theirs) :]
        if theirs.endswith("_mlp."):
            layers = {name: place for place, name in _layers(ours, simsiam).items()}
            layer, dot, leaf = rest.partition(".")
            if layer not in layers:
                return None
            rest = layers[layer] + dot + leaf
        return ours + rest
    return None


def _theirs(name: str, *, simsiam: bool) -> str:
    ours = _prefix(name)
    rest = name[len(ours) :]
    if ours.endswith("_projector."):
        place, dot, leaf = rest.partition(".")
        rest = _layers(ours, simsiam)[place] + dot + leaf
    return PREFIXES[ours] + rest


def _layers(ours: str, simsiam: bool) -> dict[str, str]:
    return SIMSIAM_LAYERS if simsiam and ours == "image_projector." else SIMCLR_LAYERS


def _prefix(name: str) -> str:
    return next(ours for ours in PREFIXES if name.startswith(ours))


def _rank(name: str, *, resnet: bool) -> tuple[int, ...]:
    """Where a tensor stands in their files; a stable sort keeps open_clip's order where ranks are equal."""
    ours = _prefix(name)
    part, rest = list(PREFIXES).index(ours), name[len(ours) :]
    if ours not in ("image.visual.", "text.") or (resnet and ours == "image.visual."):
        return (part,)
    place = next((place for place, start in enumerate(IN_TOWER) if rest.startswith(start)), len(IN_TOWER))
    block = re.match(r"transformer\.resblocks\.(\d+)\.(attn|ln_1|mlp|ln_2)", rest)
    return (part, place, int(block[1]), IN_BLOCK.index(block[2])) if block else (part, place)
