"""The network of a published CLIP-ReID or SVLL-ReID file, which does not describe it: what its tensors tell."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from model.clip import AUTO, GELU, QUICK_GELU
from model.towers import Tower
from utils.errors import WeightsError

# VeRi, the only data set whose files have viewpoints: 8 of them, and 20 cameras.
VIEWPOINTS, PAIRS = 8, 160
VEHICLES = ("veri", "VehicleID")  # data sets of files whose prompt is of a vehicle


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
