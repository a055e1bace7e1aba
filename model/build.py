"""From the config, or from a checkpoint's own description, to the network."""

from __future__ import annotations

from pathlib import Path

import open_clip
from yacs.config import CfgNode

from model.clip import TextTower, ViTTower
from model.heads import Projector, SideEmbedding
from model.pretrained import build_clip, clip_config, load_clip
from model.prompts import PromptLearner
from model.svllreid import SvllReid
from utils.checkpoint import load_strictly, read_checkpoint
from utils.errors import WeightsError
from utils.records import Benchmark

# What a checkpoint's network was built for and fed with: name in `architecture` -> configuration key.
SETTLED = {
    "name": "MODEL.NAME",
    "activation": "MODEL.ACTIVATION",
    "stride": "MODEL.STRIDE_SIZE",
    "sie_camera": "MODEL.SIE_CAMERA",
    "sie_view": "MODEL.SIE_VIEW",
    "sie_scale": "MODEL.SIE_COE",
    "image_size": "INPUT.SIZE_TRAIN",
    "test_size": "INPUT.SIZE_TEST",
    "pixel_mean": "INPUT.PIXEL_MEAN",
    "pixel_std": "INPUT.PIXEL_STD",
}


def make_model(cfg: CfgNode, benchmark: Benchmark) -> SvllReid:
    """The network that `cfg` describes, with CLIP's weights, sized for `benchmark`."""
    for key in ("SIZE_TRAIN", "SIZE_TEST"):
        patch = clip_config(cfg.MODEL.NAME)["vision_cfg"]["patch_size"]
        if min(cfg.INPUT[key]) < patch:
            raise WeightsError(
                f"INPUT.{key} {cfg.INPUT[key]}: is smaller than a patch of {cfg.MODEL.NAME}, {patch} pixels"
            )
    clip, activation = load_clip(cfg.MODEL.NAME, cfg.MODEL.PRETRAIN, cfg.MODEL.ACTIVATION)
    sentences = "prompt" in cfg.PROCESSOR.STAGES
    architecture = {
        "name": cfg.MODEL.NAME,
        "activation": activation,
        **{name: _plain(_get(cfg, key)) for name, key in SETTLED.items() if name not in ("name", "activation")},
        "num_pids": benchmark.num_pids,
        "num_cams": benchmark.num_cams,
        "num_views": benchmark.num_views,
        "template": benchmark.template,
        "sentences": sentences,
        "language_ssl": sentences and cfg.SOLVER.STAGE1.SSL_LOSS_WEIGHT > 0,
        "vision_ssl": "image" in cfg.PROCESSOR.STAGES and cfg.SOLVER.STAGE2.SSL_LOSS_WEIGHT > 0,
        "ssl_hidden": cfg.MODEL.SSL_HIDDEN,
        "ssl_out": cfg.MODEL.SSL_OUT,
    }
    return _assemble(architecture, clip)


def settle_architecture(cfg: CfgNode, architecture: dict) -> tuple[CfgNode, list[str]]:
    """The configuration with a checkpoint's own values wherever they decide on the network, and a line a difference.

    MODEL.ACTIVATION "auto" says nothing and differs from nothing.
    """
    lacking = SETTLED.keys() - architecture.keys()
    if lacking:
        raise WeightsError(f"TEST.WEIGHT: its description of the network lacks {', '.join(sorted(lacking))}")
    cfg, differences = cfg.clone(), []
    cfg.defrost()
    for name, key in SETTLED.items():
        asked, settled = _plain(_get(cfg, key)), architecture[name]
        if asked not in (settled, "auto"):
            differences.append(f"{key}: the checkpoint has {settled}, the configuration {asked}, which is not used")
        *blocks, leaf = key.split(".")
        _get(cfg, ".".join(blocks))[leaf] = tuple(settled) if isinstance(settled, list) else settled
    cfg.freeze()
    return cfg, differences


def _get(cfg: CfgNode, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def load_model(path: str | Path) -> SvllReid:
    """The network that a checkpoint describes, with its weights; needs no config and no training data.

    Raises:
        WeightsError: not a checkpoint of this program, or its tensors do not fit its own description.
    """
    return model_from(read_checkpoint(path), source=str(path))


def model_from(checkpoint: dict, *, source: str) -> SvllReid:
    """The same for a checkpoint that was read already; `source` is its name in messages."""
    architecture = checkpoint["architecture"]
    try:
        model = _assemble(architecture, build_clip(architecture["name"], architecture["activation"]))
    except KeyError as error:
        raise WeightsError(f"{source}: its description of the network lacks {error}") from error
    load_strictly(model, checkpoint["model"], source=source, hint="the file contradicts its own description")
    return model


def _assemble(architecture: dict, clip: open_clip.CLIP) -> SvllReid:
    """The one place where the parts of the network meet."""
    a = architecture
    side = None
    if a["sie_camera"] or a["sie_view"]:
        width = clip.visual.conv1.out_channels
        side = SideEmbedding(
            a["num_cams"], a["num_views"], width, camera=a["sie_camera"], view=a["sie_view"], scale=a["sie_scale"]
        )
    image = ViTTower(clip.visual, tuple(a["image_size"]), tuple(a["stride"]), side)
    _, width, joint = image.dims
    text = prompts = image_projector = text_projector = None
    if a["sentences"]:
        text = TextTower(clip)
        prompts = PromptLearner(a["num_pids"], a["template"], clip.token_embedding, open_clip.tokenize)
    if a["vision_ssl"]:
        image_projector = Projector(width, a["ssl_hidden"], a["ssl_out"]).reset_as_published()
    if a["language_ssl"]:
        text_projector = Projector(joint, a["ssl_hidden"], a["ssl_out"])
    return SvllReid(
        image,
        a["num_pids"],
        text=text,
        prompts=prompts,
        image_projector=image_projector,
        text_projector=text_projector,
        architecture=a,
    )
