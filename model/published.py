"""Published CLIP-ReID and SVLL-ReID files: bare state dicts, under names and in an order of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from model.clip import AUTO, GELU, QUICK_GELU, patch_grid
from utils.errors import WeightsError

if TYPE_CHECKING:
    from model.towers import Tower

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
# VeRi, the only data set whose files have viewpoints: 8 of them, and 20 cameras.
VIEWPOINTS, PAIRS = 8, 160
VEHICLES = ("veri", "VehicleID")  # data sets of files whose prompt is of a vehicle
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


def template_of(data_set: str) -> str:
    """The prompt of a data set's files, which do not say it."""
    return f"A photo of a {{}} {'vehicle' if data_set in VEHICLES else 'person'}."


def describe(
    tensors: Mapping[str, Tensor], architecture: dict, *, tower: Tower, side_refused: bool, source: str
) -> dict:
    """The network of a published file: what its tensors tell on top of `architecture`, which has what they do not.

    Args:
        tensors: under this program's names.
        architecture: from the configuration: name, sizes, stride, switches and scale of side information, template.
        tower: the row of that name.
        side_refused: whether a table of side information in the file may be left out.

    Raises:
        WeightsError: naming the key that contradicts the file.
    """
    name = architecture["name"]
    clip = any(key.startswith("image.visual.") for key in tensors)
    resnet = "image.visual.layer1.0.conv1.weight" in tensors
    if clip and (not tower.is_clip or resnet != (tower.side_width is None)):
        holds, expected = ("ResNet", "RN50") if resnet else ("vision transformer", "ViT-B-16")
        raise WeightsError(f"{source}: holds a {holds} of CLIP; MODEL.NAME {name} is none; expected e.g. {expected}")
    rows = len(tensors.get("image.side.table", ()))
    table = f"{source}: {'cv_embed' if tower.is_clip else 'base.sie_embed'}"
    camera, view = _side(architecture, rows, table, used=tower.side_width is not None, refused=side_refused)
    views = VIEWPOINTS if camera and view else rows
    image = [tensors.get(f"image_projector.{layer}.weight") for layer in (0, 6)]
    text = [tensors.get(f"text_projector.{layer}.weight") for layer in (0, 6)]
    hidden, out = image if image[1] is not None else text  # SimSiam's head has another hidden layer
    simsiam = image[0] is not None and image[1] is None
    if clip and architecture["activation"] == GELU:
        raise WeightsError(f"{source}: MODEL.ACTIVATION gelu: published files mean quick_gelu, which auto knows")
    return {
        **architecture,
        "activation": QUICK_GELU if clip else AUTO,
        "stride": list(tower.stride or architecture["stride"]),
        "sie_camera": camera,
        "sie_view": view,
        "num_pids": len(tensors.get("heads.0.classifier.weight", tensors.get("prompts.context", ()))),
        "num_cams": rows // views if camera and view else rows if camera else 1,
        "num_views": views if view else 1,
        "first_cameras": [0],
        "modalities": 1,
        "heads": "all",
        "sentences": "prompts.context" in tensors,
        "language_ssl": text[0] is not None,
        "vision_ssl": image[0] is not None,
        "ssl_type": "SIMSIAM" if simsiam else "SIMCLR",
        "ssl_hidden": architecture["ssl_hidden"] if hidden is None else len(hidden),
        "ssl_out": architecture["ssl_out"] if out is None else len(out),
    }


def _side(architecture: dict, rows: int, table: str, *, used: bool, refused: bool) -> tuple[bool, bool]:
    """Whether a table of side information of so many rows is of cameras, and of viewpoints."""
    camera, view = architecture["sie_camera"], architecture["sie_view"]
    if not used:  # published ResNets make room for a table and never use it
        return False, False
    if rows and not (camera or view or refused):
        raise WeightsError(
            f"{table}, of {rows} rows, is a table of side information: set MODEL.SIE_CAMERA or "
            "MODEL.SIE_VIEW True and MODEL.SIE_COE as in its training, or MODEL.SIE_CAMERA False on the command line "
            "to do without"
        )
    if not rows and (camera or view):
        raise WeightsError(
            f"{table} is missing, so it was trained without side information; MODEL.SIE_CAMERA and MODEL.SIE_VIEW "
            "must be False"
        )
    views = VIEWPOINTS if camera and view else rows
    fits = rows % views == 0 if camera and view else rows != PAIRS if camera else rows <= VIEWPOINTS
    if (camera or view) and not fits:
        raise WeightsError(
            f"{table} has {rows} rows; with viewpoints alone there are at most {VIEWPOINTS}, with cameras "
            f"and viewpoints a multiple of that (VeRi: {PAIRS}). Set MODEL.SIE_CAMERA and MODEL.SIE_VIEW as in its "
            "training, or both False on the command line to do without"
        )
    return camera, view


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
