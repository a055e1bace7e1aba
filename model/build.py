"""From the config, or from a checkpoint's own description, to the network."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from pathlib import Path

from open_clip import CLIP
from yacs.config import CfgNode

from configs import replaced
from configs.defaults import KEYS
from configs.stages import CLUSTER, IMAGE, PROMPT, STAGES
from model.clip import AUTO, QUICK_GELU
from model.pretrained import build_clip, load_clip
from model.published_network import describe, template_of
from model.shapes import shapes_only
from model.svllreid import SvllReid, build_network
from model.towers import find_tower
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
# Settings that only some towers are made with: name in `architecture` -> configuration key.
OPTIONS = {
    "pooling": "MODEL.POOLING",
    "embed_dim": "MODEL.EMBED_DIM",
    "drop_path": "MODEL.DROP_PATH_RATE",
    "semantic_weight": "MODEL.SEMANTIC_WEIGHT",
}
# What decides on the position table; a command line that names one of them has the table resized.
RESIZING = {"INPUT.SIZE_TRAIN", "MODEL.STRIDE_SIZE"}
SIDE = {"MODEL.SIE_CAMERA", "MODEL.SIE_VIEW"}
# Parts that only training needs.
FOR_TRAINING = ("identity classifiers", "text tower", "prompts", "image projector", "text projector")


def make_model(
    cfg: CfgNode, benchmark: Benchmark, start: Weights | None = None, *, requested: Collection[str] = ()
) -> SvllReid:
    """The network that `cfg` describes, sized for `benchmark`, with the weights of CLIP or of MODEL.INIT_FROM.

    Args:
        start: what MODEL.INIT_FROM holds; None: it is read here.
        requested: keys given on the command line; a position table is resized only for them.

    Raises:
        WeightsError: sizes, strides, side information or text that the image tower does not take; weights that are
            missing or do not fit.
    """
    stages = cfg.PROCESSOR.STAGES
    compared = cfg.MODEL.I2T_LOSS_WEIGHT > 0 and IMAGE.name in stages
    text = any(STAGES[name].needs_text for name in stages) or compared
    _check_tower(cfg, text)
    cfg = settle_pixels(cfg)
    name, tower = cfg.MODEL.NAME, find_tower(cfg.MODEL.NAME)
    architecture = _describe_new(cfg, benchmark, text)
    for key, count, noun in (
        ("SIE_CAMERA", benchmark.num_cams, "camera"),
        ("SIE_VIEW", benchmark.num_views, "viewpoint"),
    ):
        if cfg.MODEL[key] and count <= 1:
            message = "MODEL.%s True: %s tells no %ss apart; all images get one and the same vector"
            logger.warning(message, key, benchmark.name, noun)
    if tower.stride and tuple(cfg.MODEL.STRIDE_SIZE) != tower.stride:
        logger.warning(
            "MODEL.STRIDE_SIZE %s: not used, the stride of %s is %s", cfg.MODEL.STRIDE_SIZE, name, tower.stride
        )
        architecture["stride"] = list(tower.stride)
    if cfg.MODEL.INIT_FROM:
        start = start or read_weights(cfg.MODEL.INIT_FROM, name)
        model = _make_from_file(cfg, start, architecture, benchmark, resize=bool(RESIZING & set(requested)))
    elif tower.is_clip:
        clip, architecture["activation"] = load_clip(name, cfg.MODEL.PRETRAIN, cfg.MODEL.ACTIVATION)
        model = build_network(architecture, clip)
    else:
        model = build_network({**architecture, "activation": AUTO}, None)
        _fill(cfg, model)
    if grid := getattr(model.image, "grid", None):
        how = "overlapping " if min(architecture["stride"]) < tower.patch else ""
        facts = (name, *grid, how, tower.patch, architecture["stride"])
        logger.info("%s: %d x %d %spatches of %d pixels at stride %s", *facts)
    return model


def _describe_new(cfg: CfgNode, benchmark: Benchmark, text: bool) -> dict:
    """The architecture that the settings ask for; `text`: with text tower and prompts."""
    return {
        **{field: _plain(attrgetter(key)(cfg)) for field, key in SETTLED.items()},
        # Who learns from clusters is not told of identities.
        "num_pids": 0 if CLUSTER.name in cfg.PROCESSOR.STAGES else benchmark.num_pids,
        "num_cams": benchmark.num_cams,
        "num_views": benchmark.num_views,
        "first_cameras": [part.first_camera for part in benchmark.evaluated()],  # of each of DATASETS.NAMES
        "modalities": len(benchmark.templates) or 1,
        **_pseudo_prompts(cfg, benchmark, text),
        "template": benchmark.template,
        "sentences": text,
        "language_ssl": text and cfg.SOLVER.STAGE1.SSL_LOSS_WEIGHT > 0,
        "vision_ssl": cfg.SOLVER.STAGE2.SSL_LOSS_WEIGHT > 0,
        "heads": cfg.MODEL.HEADS,
        "ssl_type": cfg.MODEL.SSL_TYPE,
        "ssl_hidden": cfg.MODEL.SSL_HIDDEN,
        "ssl_out": cfg.MODEL.SSL_OUT,
        **_options(cfg),
    }


def settle_pixels(cfg: CfgNode) -> CfgNode:
    """The configuration with the tower's own INPUT.PIXEL_MEAN and INPUT.PIXEL_STD, where it leaves them to the tower.

    Raises:
        WeightsError: there is no tower of this name.
    """
    mean, std = find_tower(cfg.MODEL.NAME).pixels(cfg.MODEL.PRETRAIN)
    given = cfg.INPUT
    return replaced(cfg, {"INPUT.PIXEL_MEAN": given.PIXEL_MEAN or mean, "INPUT.PIXEL_STD": given.PIXEL_STD or std})


def _pseudo_prompts(cfg: CfgNode, benchmark: Benchmark, text: bool) -> dict:
    """Where prompts are of clusters: their templates, one for each modality, and their numbers, before any is found."""
    if not text or CLUSTER.name not in cfg.PROCESSOR.STAGES:
        return {}
    templates = benchmark.templates or (benchmark.template,)
    return {"prompt_templates": list(templates), "prompt_counts": [0] * len(templates)}


def _options(cfg: CfgNode) -> dict:
    """The values of those of OPTIONS that the tower is made with."""
    options = find_tower(cfg.MODEL.NAME).options
    return {field: attrgetter(key)(cfg) for field, key in OPTIONS.items() if field in options}


def _fill(cfg: CfgNode, model: SvllReid) -> None:
    """Load MODEL.PRETRAIN into an image tower that is no CLIP's."""
    if load := find_tower(cfg.MODEL.NAME).fill:
        for line in load(model.image, cfg.MODEL.PRETRAIN):
            logger.info("%s", line)


def _check_tower(cfg: CfgNode, text: bool) -> None:
    name, tower = cfg.MODEL.NAME, find_tower(cfg.MODEL.NAME)
    for field, key in OPTIONS.items():
        if field not in tower.options and attrgetter(key)(cfg) != KEYS[key].default:
            raise WeightsError(f"{key}: invalid value {attrgetter(key)(cfg)}, which {name} has no use for")
    _check_covers(name, {f"INPUT.{key}": cfg.INPUT[key] for key in ("SIZE_TRAIN", "SIZE_TEST")})
    if not tower.stride and max(cfg.MODEL.STRIDE_SIZE) > tower.patch:
        raise WeightsError(
            f"MODEL.STRIDE_SIZE: invalid value {cfg.MODEL.STRIDE_SIZE}, which skips pixels between the patches of "
            f"{name}; expected at most ({tower.patch}, {tower.patch})"
        )
    for key in ("SIE_CAMERA", "SIE_VIEW"):
        if not tower.side_width and cfg.MODEL[key]:
            raise WeightsError(f"MODEL.{key}: invalid value True, {name} takes no side information; expected False")
    if text and not tower.is_clip and (PROMPT.name in cfg.PROCESSOR.STAGES or not cfg.MODEL.INIT_FROM):
        raise WeightsError(
            f"MODEL.NAME {name}: has no text tower, which prompts and the image-to-text loss need; expected "
            "PROCESSOR.STAGES \"('image',)\" with MODEL.I2T_LOSS_WEIGHT 0.0 or with a checkpoint of stage 1 (prompt "
            "learning) of a CLIP as MODEL.INIT_FROM, or a CLIP, e.g. ViT-B-16"
        )


def _check_covers(name: str, sizes: Mapping[str, Sequence[int]]) -> None:
    patch = find_tower(name).patch
    for key, size in sizes.items():
        if min(size) < patch:
            raise WeightsError(f"{key} {size}: is smaller than a patch of {name}, {patch} pixels")


def _make_from_file(
    cfg: CfgNode, weights: Weights, architecture: dict, benchmark: Benchmark, *, resize: bool
) -> SvllReid:
    """A network for training that starts from MODEL.INIT_FROM, and from CLIP where that file lacks CLIP's part."""
    there = weights.architecture or {"activation": QUICK_GELU if find_tower(cfg.MODEL.NAME).is_clip else AUTO}
    if architecture["activation"] not in (AUTO, there["activation"]):
        raise WeightsError(
            f"MODEL.ACTIVATION {architecture['activation']}: {weights.source} was trained with {there['activation']}; "
            "auto knows it"
        )
    architecture["activation"] = there["activation"]
    foreign = _take_text(architecture, weights) if architecture["sentences"] else {}
    if not foreign:
        _compare(there, architecture, weights.source)
    reuse = plan_reuse(weights, architecture, str(data_fingerprint(benchmark)["train"]) if weights.trained_on else None)
    if reuse.prompts_anew and PROMPT.name not in cfg.PROCESSOR.STAGES:
        _refuse_untrained(cfg, architecture, reuse.spare.get("prompts", "").removesuffix("; new"), weights.source)
    if architecture["sentences"] and (reuse.prompts_anew or not weights.part("text tower")):
        # The words around the learned tokens, or the text tower, are in no part of the file.
        clip, _ = load_clip(cfg.MODEL.NAME, cfg.MODEL.PRETRAIN, architecture["activation"])
    else:
        clip = _empty_clip(architecture)
    model = build_network(architecture, clip)
    if foreign:
        _fill(cfg, model)
        _check_joint(model, weights.source)
    spare = reuse.spare | foreign
    verdict = load_weights(
        model,
        weights,
        spare=spare,
        fresh={**reuse.fresh, "text tower": f"taken from MODEL.PRETRAIN {cfg.MODEL.PRETRAIN}"},
        resize=resize,
    )
    model.new_classifiers = "identity classifiers" in spare or not weights.part("identity classifiers")
    if model.prompts is not None:
        model.prompts.trained = not reuse.prompts_anew
    for line in verdict:
        logger.info("MODEL.INIT_FROM: %s", line)
    if weights.trained_on is None and not {"identity classifiers", "prompts"} <= reuse.spare.keys():
        logger.warning("MODEL.INIT_FROM: does not say what it was trained on; its identities are taken for those here")
    return model


def _take_text(architecture: dict, weights: Weights) -> dict[str, str]:
    """Name the text tower that an image tower of another kind borrows -> parts of the file that it leaves, and why.

    Raises:
        WeightsError: the file is no checkpoint of this program that has one.
    """
    if find_tower(architecture["name"]).is_clip:
        return {}
    there = weights.architecture
    if there is None or not there["sentences"]:
        raise WeightsError(
            f"MODEL.INIT_FROM {weights.source}: {architecture['name']} needs its text tower and prompts; expected a "
            "checkpoint of this program that has them, e.g. of stage 1 (prompt learning)"
        )
    architecture["text_tower"] = there.get("text_tower") or there["name"]
    image_parts = ("image tower", "side information", "batch-norm necks", "identity classifiers", "image projector")
    return dict.fromkeys(image_parts, f"of {there['name']}") if there["name"] != architecture["name"] else {}


def _compare(there: dict, architecture: dict, source: str) -> None:
    """Warn of what a file's image tower was trained with otherwise than here.

    Raises:
        WeightsError: its features are of another width.
    """
    for name in ("name", "sie_scale", "pixel_mean", "pixel_std", "pooling", "semantic_weight"):
        here = architecture.get(name)
        if there.get(name, here) != here:
            key = (SETTLED | OPTIONS)[name]
            logger.warning("MODEL.INIT_FROM: trained with %s %s, here %s", key, there[name], here)
    width, wanted = there.get("embed_dim", 0), architecture.get("embed_dim", 0)
    if width != wanted and there.get("name", architecture["name"]) == architecture["name"]:
        raise WeightsError(f"MODEL.EMBED_DIM: invalid value {wanted}, {source} has {width}; expected {width}")


def _refuse_untrained(cfg: CfgNode, architecture: dict, reason: str, source: str) -> None:
    """Raise WeightsError unless new prompts, which no stage trains, are allowed and can be made."""
    clip = architecture.get("text_tower")  # borrowed: the words around the learned tokens are not in the file
    if cfg.PROCESSOR.UNTRAINED_PROMPTS and not clip:
        return
    first = (
        f"MODEL.NAME {clip}, PROCESSOR.STAGES \"('prompt',)\"" if clip else "PROCESSOR.STAGES \"('prompt', 'image')\""
    )
    raise WeightsError(
        f"MODEL.INIT_FROM {source}: has no prompts for these {architecture['num_pids']} identities "
        f"({reason or 'none at all'}), and stage 2 (fine-tuning) compares images with them; train them first ({first}) "
        "or set MODEL.I2T_LOSS_WEIGHT 0.0"
    )


def _check_joint(model: SvllReid, source: str) -> None:
    """Raise WeightsError unless images and texts have features of one width."""
    width = model.text.text_projection.shape[1]
    if model.image.dims[2] != width:
        raise WeightsError(
            f"MODEL.EMBED_DIM: invalid value {model.image.dims[2]}, the text features of {source} have width {width}; "
            f"expected {width}"
        )


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
    architecture = dict(weights.architecture or {})
    if weights.architecture is None:
        cfg = settle_pixels(cfg)
        facts = {field: _plain(attrgetter(key)(cfg)) for field, key in SETTLED.items()} | _options(cfg)
        facts |= {"template": template_of(cfg.DATASETS.NAMES), "ssl_hidden": cfg.MODEL.SSL_HIDDEN}
        architecture = describe(
            weights.tensors,
            {**facts, "ssl_out": cfg.MODEL.SSL_OUT},
            tower=find_tower(cfg.MODEL.NAME),
            side_refused=not SIDE.isdisjoint(requested),
            source=weights.source,
        )
    obeyed = {"INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST", "MODEL.STRIDE_SIZE"} & set(requested)
    if find_tower(architecture["name"]).stride:
        obeyed.discard("MODEL.STRIDE_SIZE")  # there is only one
    if not (cfg.MODEL.SIE_CAMERA or cfg.MODEL.SIE_VIEW) and SIDE & set(requested):
        obeyed |= SIDE  # a table can be left out, but not halved
    differences, settings = [], {}
    for name, key in SETTLED.items():
        asked, settled = _plain(attrgetter(key)(cfg)), architecture[name]
        if key in obeyed and asked != settled:
            differences.append(f"{key}: {asked} as asked for, trained with {settled}")
            architecture[name] = settled = asked
        elif asked not in (settled, AUTO, []):
            differences.append(f"{key}: the checkpoint has {settled}, the configuration {asked}, which is not used")
        settings[key] = tuple(settled) if isinstance(settled, list) else settled
    return replaced(cfg, settings), architecture, differences


def load_model(path: str | Path, cfg: CfgNode | None = None) -> SvllReid:
    """The network that a checkpoint describes, with its weights; needs no training data.

    Args:
        cfg: for published files, which do not say their architecture, image size, stride and side information.

    Raises:
        WeightsError: not a checkpoint, its tensors do not fit its description or `cfg`, or a published file without
            `cfg`.
    """
    weights = read_weights(path, cfg.MODEL.NAME if cfg else "")
    if weights.architecture is None and cfg is None:
        raise WeightsError(f"{path}: is a published file, which does not say its image size and stride; give cfg, too")
    architecture = weights.architecture or settle_architecture(cfg, weights)[1]
    return rebuild(weights, architecture)[0]


def resume_model(contents: dict, source: str) -> SvllReid:
    """The network of a checkpoint of this program that was read, with all that training needs.

    Raises:
        WeightsError: the tensors are not what its description says.
    """
    weights = weights_in(contents, source)
    assert weights.architecture is not None
    return rebuild(weights, weights.architecture)[0]


def rebuild(
    weights: Weights, architecture: dict, *, testing: bool = False, resize: bool = False
) -> tuple[SvllReid, list[str]]:
    """The network of `architecture` with a file's weights, and what became of each part of the file.

    Args:
        testing: leave out what only training needs.
        resize: whether a position table of another grid is resized, or refused.
    """
    spare, fresh = {}, dict.fromkeys(weights.lacking, "new, which changes no distance")
    if testing:
        spare = dict.fromkeys(FOR_TRAINING, "at test")
        unused = dict.fromkeys(("sentences", "language_ssl", "vision_ssl"), False)
        architecture = {**architecture, **unused, "num_pids": 0}
    if side_rows(architecture) is None and weights.part("side information"):
        spare["side information"] = "off, or the tower has no use for it"
    source = f"{weights.source}: "
    _check_covers(
        architecture["name"], {source + SETTLED[size]: architecture[size] for size in ("image_size", "test_size")}
    )
    try:
        with shapes_only():  # first without memory: a damaged description may be of a network of any size
            skeleton = build_network({**architecture, "sentences": False}, _empty_clip(architecture))
            text = dict.fromkeys(("text tower", "prompts"), "compared below")
            load_weights(skeleton, weights, spare={**spare, **text}, fresh=fresh, resize=resize)
        model = build_network(architecture, _empty_clip(architecture))
        verdict = load_weights(model, weights, spare=spare, fresh=fresh, resize=resize)
    except (WeightsError, ValueError) as error:
        if weights.architecture is None:
            raise
        fault = one_line(error).removeprefix(source)
        raise WeightsError(f"{source}{fault}; the file contradicts its own description") from error
    if model.prompts is not None:
        model.prompts.trained = weights.prompts_trained
    return model, verdict


def _empty_clip(architecture: dict) -> CLIP | None:
    """A CLIP to be filled from a file; None for an image tower that is no CLIP's and borrows no text tower."""
    name = architecture["name"]
    if not find_tower(name).is_clip:
        name = architecture.get("text_tower") if architecture["sentences"] else None
    return build_clip(name, architecture["activation"]) if name else None


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
