"""From the config, or from a checkpoint's own description, to the network."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import open_clip
import torch
from yacs.config import CfgNode

from model.clip import AUTO, QUICK_GELU, ResNetTower, TextTower, ViTTower
from model.heads import Predictor, Projector, SideEmbedding
from model.pretrained import build_clip, is_resnet, load_clip, patch_size
from model.prompts import PromptLearner
from model.published import describe
from model.svllreid import SvllReid
from model.weights import Weights, load_weights, plan_reuse, read_weights, side_rows, weights_in
from utils.errors import WeightsError, one_line
from utils.fingerprint import data_fingerprint
from utils.records import Benchmark

logger = logging.getLogger(__name__)

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
# What decides on the position table; a command line that names one of them has the table resized.
RESIZING = {"INPUT.SIZE_TRAIN", "MODEL.STRIDE_SIZE"}
SIDE = {"MODEL.SIE_CAMERA", "MODEL.SIE_VIEW"}
# Parts that only training needs.
FOR_TRAINING = ("identity classifiers", "text tower", "prompts", "image projector", "text projector")
VEHICLES = ("veri", "VehicleID")  # data sets of the published files whose sentence speaks of a vehicle


def make_model(cfg: CfgNode, benchmark: Benchmark, *, requested: Collection[str] = ()) -> SvllReid:
    """The network that `cfg` describes, sized for `benchmark`, with the weights of CLIP or of MODEL.INIT_FROM.

    Args:
        requested: keys given on the command line; a position table is resized only for them.

    Raises:
        WeightsError: sizes, strides or side information that the architecture does not take; weights that are missing
            or do not fit.
    """
    _check_sizes(cfg)
    sentences = "prompt" in cfg.PROCESSOR.STAGES or cfg.MODEL.I2T_LOSS_WEIGHT > 0
    architecture = {
        **{name: _plain(_get(cfg, key)) for name, key in SETTLED.items()},
        "num_pids": benchmark.num_pids,
        "num_cams": benchmark.num_cams,
        "num_views": benchmark.num_views,
        "first_cameras": [part.first_camera for part in benchmark.evaluated()],  # of each of DATASETS.NAMES
        "template": benchmark.template,
        "sentences": sentences,
        "language_ssl": sentences and cfg.SOLVER.STAGE1.SSL_LOSS_WEIGHT > 0,
        "vision_ssl": cfg.SOLVER.STAGE2.SSL_LOSS_WEIGHT > 0,
        "ssl_type": cfg.MODEL.SSL_TYPE,
        "ssl_hidden": cfg.MODEL.SSL_HIDDEN,
        "ssl_out": cfg.MODEL.SSL_OUT,
    }
    for key, count, noun in (
        ("SIE_CAMERA", benchmark.num_cams, "camera"),
        ("SIE_VIEW", benchmark.num_views, "viewpoint"),
    ):
        if cfg.MODEL[key] and count <= 1:
            logger.warning(
                "MODEL.%s True: %s tells no %ss apart; all images get one and the same vector",
                key,
                benchmark.name,
                noun,
            )
    if is_resnet(cfg.MODEL.NAME) and tuple(cfg.MODEL.STRIDE_SIZE) != ResNetTower.STRIDE:
        logger.warning("MODEL.STRIDE_SIZE %s: not used, a ResNet's stride is 16", cfg.MODEL.STRIDE_SIZE)
        architecture["stride"] = list(ResNetTower.STRIDE)
    if cfg.MODEL.INIT_FROM:
        model = _make_from_file(cfg, architecture, benchmark, resize=bool(RESIZING & set(requested)))
    else:
        clip, architecture["activation"] = load_clip(cfg.MODEL.NAME, cfg.MODEL.PRETRAIN, cfg.MODEL.ACTIVATION)
        model = _assemble(architecture, clip)
    patch, stride = patch_size(cfg.MODEL.NAME), architecture["stride"]
    how = "overlapping " if min(stride) < patch else ""
    rows, columns = model.image.grid
    logger.info("%s: %d x %d %spatches of %d pixels at stride %s", cfg.MODEL.NAME, rows, columns, how, patch, stride)
    return model


def _check_sizes(cfg: CfgNode) -> None:
    name = cfg.MODEL.NAME
    patch, resnet = patch_size(name), is_resnet(name)
    _check_covers(name, {f"INPUT.{key}": cfg.INPUT[key] for key in ("SIZE_TRAIN", "SIZE_TEST")})
    if not resnet and max(cfg.MODEL.STRIDE_SIZE) > patch:
        raise WeightsError(
            f"MODEL.STRIDE_SIZE {cfg.MODEL.STRIDE_SIZE}: passes over pixels between patches of {name}, which have "
            f"{patch}; right is at most ({patch}, {patch})"
        )
    for key in ("SIE_CAMERA", "SIE_VIEW"):
        if resnet and cfg.MODEL[key]:
            raise WeightsError(
                f"MODEL.{key} True: side information is added to the class token, which {name} has not; set it to False"
            )


def _check_covers(name: str, sizes: Mapping[str, Sequence[int]]) -> None:
    patch = patch_size(name)
    for key, size in sizes.items():
        if min(size) < patch:
            raise WeightsError(f"{key} {size}: is smaller than a patch of {name}, {patch} pixels")


def _make_from_file(cfg: CfgNode, architecture: dict, benchmark: Benchmark, *, resize: bool) -> SvllReid:
    """A network for training that starts from MODEL.INIT_FROM, and from CLIP where that file lacks CLIP's part."""
    weights = read_weights(cfg.MODEL.INIT_FROM)
    there = weights.architecture or {"activation": QUICK_GELU}
    if architecture["activation"] not in (AUTO, there["activation"]):
        raise WeightsError(
            f"MODEL.ACTIVATION {architecture['activation']}: {weights.source} was trained with {there['activation']}; "
            "auto knows it"
        )
    architecture["activation"] = there["activation"]
    for name in ("name", "sie_scale", "pixel_mean", "pixel_std"):
        if there.get(name, architecture[name]) != architecture[name]:
            logger.warning(
                "MODEL.INIT_FROM: trained with %s %s, here %s", SETTLED[name], there[name], architecture[name]
            )
    reuse = plan_reuse(weights, architecture, data_fingerprint(benchmark)["train"] if weights.trained_on else None)
    if reuse.prompts_anew and "prompt" not in cfg.PROCESSOR.STAGES and not cfg.PROCESSOR.UNTRAINED_PROMPTS:
        raise WeightsError(
            f"MODEL.INIT_FROM {weights.source}: has no prompts for these {architecture['num_pids']} identities "
            f"({reuse.spare.get('prompts') or 'none at all'}), and the image stage compares images with them; train "
            "them first (PROCESSOR.STAGES \"('prompt', 'image')\") or set MODEL.I2T_LOSS_WEIGHT 0.0"
        )
    if architecture["sentences"] and (reuse.prompts_anew or not weights.part("text tower")):
        # The words around the learnt tokens, or the text tower, are in no part of the file.
        clip, _ = load_clip(cfg.MODEL.NAME, cfg.MODEL.PRETRAIN, architecture["activation"])
    else:
        clip = build_clip(cfg.MODEL.NAME, architecture["activation"])
    model = _assemble(architecture, clip)
    verdict = load_weights(
        model,
        weights,
        spare=reuse.spare,
        fresh={**reuse.fresh, "text tower": f"taken from MODEL.PRETRAIN {cfg.MODEL.PRETRAIN}"},
        resize=resize,
    )
    if model.prompts is not None:
        model.prompts.trained = not reuse.prompts_anew
    for line in verdict:
        logger.info("MODEL.INIT_FROM: %s", line)
    if weights.trained_on is None and not {"identity classifiers", "prompts"} <= reuse.spare.keys():
        logger.warning("MODEL.INIT_FROM: does not say what it was trained on; its identities are taken for those here")
    return model


def settle_architecture(
    cfg: CfgNode, weights: Weights, *, requested: Collection[str] = ()
) -> tuple[CfgNode, dict, list[str]]:
    """What to build for a file: the configuration with the file's own values wherever they decide on the network, the
    description of the network, and a line for every difference.

    What `requested` (keys of the command line) names wins over the file where the file can follow: sizes and stride,
    and leaving side information out. MODEL.ACTIVATION "auto" says nothing and differs from nothing. A published file
    has no values of its own: there the configuration holds.

    Raises:
        WeightsError: a published file that the configuration does not fit.
    """
    architecture = dict(weights.architecture or _published_architecture(weights, cfg, requested))
    obeyed = {"INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST", "MODEL.STRIDE_SIZE"} & set(requested)
    if is_resnet(architecture["name"]):
        obeyed.discard("MODEL.STRIDE_SIZE")  # it has only one
    if not (cfg.MODEL.SIE_CAMERA or cfg.MODEL.SIE_VIEW) and SIDE & set(requested):
        obeyed |= SIDE  # a table can be left out, but not halved
    cfg, differences = cfg.clone(), []
    cfg.defrost()
    for name, key in SETTLED.items():
        asked, settled = _plain(_get(cfg, key)), architecture[name]
        if key in obeyed and asked != settled:
            differences.append(f"{key}: {asked} as asked for, trained with {settled}")
            architecture[name] = settled = asked
        elif asked not in (settled, AUTO):
            differences.append(f"{key}: the checkpoint has {settled}, the configuration {asked}, which is not used")
        *blocks, leaf = key.split(".")
        _get(cfg, ".".join(blocks))[leaf] = tuple(settled) if isinstance(settled, list) else settled
    cfg.freeze()
    return cfg, architecture, differences


def _published_architecture(weights: Weights, cfg: CfgNode, requested: Collection[str]) -> dict:
    settled = {name: _plain(_get(cfg, key)) for name, key in SETTLED.items()}
    noun = "vehicle" if cfg.DATASETS.NAMES in VEHICLES else "person"
    return describe(
        weights.tensors,
        {
            **settled,
            "template": f"A photo of a {{}} {noun}.",
            "ssl_hidden": cfg.MODEL.SSL_HIDDEN,
            "ssl_out": cfg.MODEL.SSL_OUT,
        },
        resnet=is_resnet(cfg.MODEL.NAME),
        side_refused=not SIDE.isdisjoint(requested),
        source=weights.source,
    )


def load_model(path: str | Path, cfg: CfgNode | None = None) -> SvllReid:
    """The network that a checkpoint describes, with its weights; needs no training data.

    Args:
        cfg: for published files, which do not say their architecture, image size, stride and side information.

    Raises:
        WeightsError: not a checkpoint, its tensors do not fit its description or `cfg`, or a published file without
            `cfg`.
    """
    weights = read_weights(path)
    if weights.architecture is None and cfg is None:
        raise WeightsError(f"{path}: is a published file, which does not say its image size and stride; give cfg, too")
    architecture = weights.architecture or settle_architecture(cfg, weights)[1]
    return model_from(weights, architecture)[0]


def resume_model(contents: dict, source: str) -> SvllReid:
    """The network of a checkpoint of this program that was read, with all that training needs.

    Raises:
        WeightsError: the tensors are not what its description says.
    """
    weights = weights_in(contents, source)
    return model_from(weights, weights.architecture)[0]


def model_from(
    weights: Weights, architecture: dict, *, testing: bool = False, resize: bool = False
) -> tuple[SvllReid, list[str]]:
    """The network of `architecture` with a file's weights, and what became of each part of the file.

    Args:
        testing: leave out what only training needs.
        resize: whether a position table of another grid is resized, or refused.
    """
    spare = {}
    if testing:
        spare = dict.fromkeys(FOR_TRAINING, "at test")
        unused = dict.fromkeys(("sentences", "language_ssl", "vision_ssl"), False)
        architecture = {**architecture, **unused, "num_pids": 0}
    if side_rows(architecture) is None and weights.part("side information"):
        spare["side information"] = "off, or the tower has no use for it"
    name, activation, source = architecture["name"], architecture["activation"], f"{weights.source}: "
    _check_covers(name, {source + SETTLED[size]: architecture[size] for size in ("image_size", "test_size")})
    try:
        with torch.device("meta"):  # first without memory: a damaged description may be of a network of any size
            skeleton = _assemble({**architecture, "sentences": False}, build_clip(name, activation))
            sentences = dict.fromkeys(("text tower", "prompts"), "compared below")
            load_weights(skeleton, weights, spare={**spare, **sentences}, resize=resize)
        model = _assemble(architecture, build_clip(name, activation))
        verdict = load_weights(model, weights, spare=spare, resize=resize)
    except (WeightsError, ValueError) as error:
        if weights.architecture is None:
            raise
        told = one_line(error).removeprefix(source)
        raise WeightsError(f"{source}{told}; the file contradicts its own description") from error
    if model.prompts is not None:
        model.prompts.trained = weights.prompts_trained
    return model, verdict


def _assemble(architecture: dict, clip: open_clip.CLIP) -> SvllReid:
    """The one place where the parts of the network meet."""
    a = architecture
    side = None
    if a["sie_camera"] or a["sie_view"]:
        width = clip.visual.conv1.out_channels
        side = SideEmbedding(
            a["num_cams"], a["num_views"], width, camera=a["sie_camera"], view=a["sie_view"], scale=a["sie_scale"]
        )
    if is_resnet(a["name"]):
        image = ResNetTower(clip.visual, tuple(a["image_size"]))
    else:
        image = ViTTower(clip.visual, tuple(a["image_size"]), tuple(a["stride"]), side)
    _, width, joint = image.dims
    text = prompts = image_projector = text_projector = None
    if a["sentences"]:
        text = TextTower(clip)
        prompts = PromptLearner(a["num_pids"], a["template"], clip.token_embedding, open_clip.tokenize)
    if a["vision_ssl"]:
        simsiam = a.get("ssl_type") == "SIMSIAM"  # older descriptions know one type
        image_projector = (
            Predictor(width) if simsiam else Projector(width, a["ssl_hidden"], a["ssl_out"]).reset_as_published()
        )
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


def _get(cfg: CfgNode, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
