"""Published configuration files: the names of their keys here, and the method that they mean.

The published programs have two trees of keys. The single-stage one, of the baselines, has flat keys
(SOLVER.MAX_EPOCHS); the two-stage one has SOLVER.STAGE1 and SOLVER.STAGE2. No key of theirs names the method: it
follows from which keys a file has. `translate` applies the tables below to one layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from yacs.config import CfgNode

from configs.checks import ConfigError
from configs.stages import IMAGE, PROMPT
from configs.values import convert, literal

logger = logging.getLogger(__name__)

UNREAD = "published programs never read it"
NO_CENTRES = "published programs never compute the centre loss"

# Keys that are gone, and what holds instead. No result depends on their values.
DROPPED = {
    "MODEL.DEVICE_ID": "choose with CUDA_VISIBLE_DEVICES or MODEL.DEVICE cuda:N",
    "MODEL.DIST_TRAIN": "torchrun starts several processes: torchrun --nproc_per_node 4 ...",
    "MODEL.PRETRAIN_PATH": f"{UNREAD}; MODEL.PRETRAIN names CLIP's weights",
    "MODEL.PRETRAIN_CHOICE": f"{UNREAD}; MODEL.PRETRAIN names CLIP's weights",
    "MODEL.LAST_STRIDE": f"{UNREAD}; a ResNet's last stage has stride 1",
    "MODEL.NECK": "published programs never use it; the batch-norm necks are always there",
    "MODEL.COS_LAYER": "published programs never use it",
    "MODEL.IF_WITH_CENTER": NO_CENTRES,
    "MODEL.ID_LOSS_TYPE": f"{UNREAD}; MODEL.IF_LABELSMOOTH is the only choice",
    "MODEL.DROP_PATH": f"{UNREAD}; nothing is dropped out",
    "MODEL.DROP_OUT": f"{UNREAD}; nothing is dropped out",
    "MODEL.ATT_DROP_RATE": f"{UNREAD}; nothing is dropped out",
    "MODEL.TRANSFORMER_TYPE": f"{UNREAD}; MODEL.NAME is the architecture",
    "SOLVER.STAGE1.WEIGHT_DECAY_BIAS": f"{UNREAD}; the prompts have no biases",
    "SOLVER.STAGE1.WARMUP_FACTOR": f"{UNREAD}; warm-up starts at WARMUP_LR_INIT",
    "SOLVER.STAGE1.WARMUP_ITERS": f"{UNREAD}; warm-up lasts WARMUP_EPOCHS",
    "SOLVER.STAGE1.WARMUP_METHOD": f"{UNREAD}; warm-up is linear",
    "SOLVER.STAGE1.COSINE_MARGIN": UNREAD,
    "SOLVER.STAGE1.COSINE_SCALE": UNREAD,
    "SOLVER.STAGE1.EVAL_PERIOD": f"{UNREAD}; prompts change no features",
    "SOLVER.STAGE2.CENTER_LR": NO_CENTRES,
    "SOLVER.STAGE2.CENTER_LOSS_WEIGHT": NO_CENTRES,
    "SOLVER.STAGE2.WARMUP_EPOCHS": f"{UNREAD}; warm-up lasts WARMUP_ITERS epochs",
    "SOLVER.STAGE2.WARMUP_LR_INIT": f"{UNREAD}; warm-up starts at WARMUP_FACTOR of the rate",
    "SOLVER.STAGE2.LR_MIN": f"{UNREAD}; SCHEDULE cosine ends at LR_MIN_FACTOR of the rate",
    "SOLVER.STAGE2.COSINE_MARGIN": UNREAD,
    "SOLVER.STAGE2.COSINE_SCALE": UNREAD,
    "TEST.DIST_MAT": UNREAD,
    "TEST.EVAL": UNREAD,
}

# Keys that are gone but had an effect: the only value left, and why.
ONE_VALUE = {
    "MODEL.METRIC_LOSS_TYPE": ("triplet", "published programs have no loss at all with any other and crash"),
    "DATALOADER.SAMPLER": ("softmax_triplet", "published programs crash with any other"),
    "SOLVER.STAGE2.WARMUP_METHOD": ("linear", "there is no other warm-up here"),
}

# What to use in place of a file of another program, where there is something.
INSTEAD = {
    "SOLIDER": "configs/person/solider_swin_{tiny,small,base}.yml, its recipe in our keys",
    "TransReID": (
        "configs/person/personvit_base.yml, its recipe in our keys, with MODEL.NAME transreid_base, "
        "transreid_ssl_base, transreid_ssl_small, personvit_base or personvit_small; its jigsaw patch module (JPM) is "
        "not here"
    ),
}

# Other programs with similar files: beginnings of "KEY VALUE" that only they have.
OTHER_PROGRAMS = {
    "SOLIDER": ("MODEL.PRETRAIN_HW_RATIO ", "MODEL.TRANSFORMER_TYPE swin_"),
    "TransReID": (
        *("MODEL.JPM ", "MODEL.SHIFT_NUM ", "MODEL.SHUFFLE_GROUP ", "MODEL.DEVIDE_LENGTH ", "MODEL.RE_ARRANGE "),
        *("MODEL.TRANSFORMER_TYPE vit_", "MODEL.TRANSFORMER_TYPE deit_"),
    ),
    "fast-reid": ("_BASE_ ", "MODEL.META_ARCHITECTURE ", "MODEL.BACKBONE.", "MODEL.HEADS.", "MODEL.LOSSES."),
}

# Switches of self-supervision, and the stage whose weight they set to 0.0.
SWITCHES = {"MODEL.USE_SSL": "STAGE2", "MODEL.USE_SSL_STAGE1": "STAGE1"}

# SOLVER.X of the single-stage tree is SOLVER.STAGE2.X. (SEED and MARGIN are SOLVER.X in both trees.)
FLAT = {
    f"SOLVER.{name}": f"SOLVER.STAGE2.{name}"
    for name in (
        *("OPTIMIZER_NAME", "MAX_EPOCHS", "BASE_LR", "LARGE_FC_LR", "BIAS_LR_FACTOR", "MOMENTUM"),
        *("CENTER_LR", "CENTER_LOSS_WEIGHT", "WEIGHT_DECAY", "WEIGHT_DECAY_BIAS", "GAMMA", "STEPS"),
        *("WARMUP_FACTOR", "WARMUP_ITERS", "WARMUP_METHOD", "WARMUP_EPOCHS", "WARMUP_LR_INIT", "LR_MIN"),
        *("COSINE_MARGIN", "COSINE_SCALE", "CHECKPOINT_PERIOD", "LOG_PERIOD", "EVAL_PERIOD", "IMS_PER_BATCH"),
    )
}

PUBLISHED = {*DROPPED, *ONE_VALUE, *SWITCHES, *FLAT}

# A two-stage file without any of these is CLIP-ReID's.
SELF_SUPERVISION = {
    *("MODEL.SSL_TYPE", "MODEL.SSL_HIDDEN", "MODEL.SSL_OUT", "MODEL.SIE_TWINS", "INPUT.TWIN_ERASED_AREA"),
    *("SOLVER.STAGE1.PROMPT_AUG_METHOD", "SOLVER.STAGE1.PROMPT_AUG_SCALE", "SOLVER.STAGE1.PROMPT_AUG_TOKENS"),
    *("SOLVER.STAGE1.SSL_LOSS_WEIGHT", "SOLVER.STAGE1.TRAIN_PROJECTOR"),
    *("SOLVER.STAGE2.SSL_LOSS_WEIGHT", "SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY", "SOLVER.STAGE2.SSL_POSITIVES"),
    *SWITCHES,
}
CLIPREID = {"SOLVER.STAGE1.SSL_LOSS_WEIGHT": 0.0, "SOLVER.STAGE2.SSL_LOSS_WEIGHT": 0.0}
STAGES = "PROCESSOR.STAGES"
IMAGE_ONLY = (IMAGE.name,)
# Published baselines set MODEL.I2T_LOSS_WEIGHT 1.0, too, and have no text.
BASELINE = {STAGES: IMAGE_ONLY, "MODEL.I2T_LOSS_WEIGHT": 0.0, **CLIPREID}


def tells_method(values: Mapping[str, Any]) -> bool:
    """Whether a layer has keys that show its method."""
    return any(key in FLAT or key.startswith(("SOLVER.STAGE1.", "SOLVER.STAGE2.")) for key in values)


def translate(
    values: Mapping[str, Any], cfg: CfgNode, judged: Callable[[str], AbstractContextManager], *, where: str, root: bool
) -> dict[str, Any]:
    """One layer of settings in our keys, with a line in the log for everything that is dropped or read as another key.

    Args:
        values: dotted keys and their values. Our keys and unknown ones are passed on, `SWITCHES` as True or False.
        cfg: the configuration that the layer comes on top of.
        judged: `with judged(key):` keeps a ConfigError about this key's value, until a later layer sets the key.
        where: the layer's name, for the log.
        root: a file that stands on none whose keys tell the method. Its own keys say which method it means.

    Raises:
        ConfigError: another program's file; keys of both published trees; flat keys where two stages run.
    """
    refuse_other_programs(values)
    flat = [key for key in values if key in FLAT]
    staged = [key for key in values if key.startswith(("SOLVER.STAGE1.", "SOLVER.STAGE2."))]
    if flat and staged:
        raise ConfigError(
            f"{flat[0]} is of one stage, {staged[0]} of two: expected either SOLVER.KEY or SOLVER.STAGE1.KEY and "
            "SOLVER.STAGE2.KEY throughout"
        )
    method = _method(flat, staged, values, where) if root else {}
    one_stage = cfg.PROCESSOR.STAGES == IMAGE_ONLY or bool(root and flat)
    ours = {}
    for key, value in values.items():
        name = FLAT.get(key, key)
        if key in FLAT and not one_stage:
            _refuse_if_ambiguous(key, cfg)
        if name in DROPPED:
            logger.warning("%s: %s is dropped: %s", where, key, DROPPED[name])
        elif name in ONE_VALUE:
            right, why = ONE_VALUE[name]
            with judged(name):
                if literal(value) != right:
                    raise ConfigError(f"{key}: invalid value {value!r}, expected {right}: {why}")
                logger.warning("%s: %s is dropped: it is always %s", where, key, right)
        elif key in SWITCHES:
            with judged(key):
                ours[key] = convert(key, value, True)
        else:
            if name != key:
                logger.warning("%s: %s is read as %s", where, key, name)
            ours[name] = value
    return {**ours, **method}


def refuse_other_programs(values: Mapping[str, Any]) -> None:
    """Raise ConfigError if settings are those of another program."""
    settings = {key: " ".join((key, str(value).lstrip("('\""))) for key, value in values.items()}
    for program, signs in OTHER_PROGRAMS.items():
        if theirs := [key for key, setting in settings.items() if setting.startswith(signs)]:
            instead = f"; instead: {INSTEAD[program]}" if program in INSTEAD else ""
            raise ConfigError(f"has keys of {program} ({', '.join(theirs)}), whose files are not supported{instead}")


def _method(flat: list[str], staged: list[str], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The method that a root file means, by its keys."""
    if flat:
        stages = convert(STAGES, values.get(STAGES, IMAGE_ONLY), IMAGE_ONLY)
        if stages != IMAGE_ONLY:
            raise ConfigError(f"{flat[0]} is for {IMAGE.title} alone, {STAGES} is {stages}")
        settings = ", ".join(f"{key} {value}" for key, value in BASELINE.items())
        logger.warning("%s: has keys of one stage (%s): read as a baseline, %s", where, flat[0], settings)
        return BASELINE
    if staged and not SELF_SUPERVISION & values.keys():
        settings = ", ".join(f"{key} {value}" for key, value in CLIPREID.items())
        logger.warning("%s: has no keys of self-supervision: read as CLIP-ReID, %s", where, settings)
        return CLIPREID
    return {}


def _refuse_if_ambiguous(key: str, cfg: CfgNode) -> None:
    name = key.removeprefix("SOLVER.")
    meant = [f"SOLVER.{stage}.{name}" for stage in ("STAGE1", "STAGE2") if name in cfg.SOLVER[stage]]
    if meant:
        raise ConfigError(
            f"{key} is a key of single-stage configurations, {STAGES} is {cfg.PROCESSOR.STAGES}; "
            f"expected {' or '.join(meant)}"
        )


class Switches:
    """MODEL.USE_SSL and MODEL.USE_SSL_STAGE1, layer after layer.

    False sets the weight of its stage to 0.0, whatever the same layer says of it. True takes an earlier False back:
    the weight is the last one above 0 that any layer gave. A weight that a later layer gives counts as any other.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.weights = {stage: cfg.SOLVER[stage].SSL_LOSS_WEIGHT for stage in SWITCHES.values()}
        self.off: set[str] = set()

    def follow(self, values: Mapping[str, Any], cfg: CfgNode, *, where: str) -> None:
        """Change the weights in `cfg`, which has the other `values` of the layer already."""
        for switch, stage in SWITCHES.items():
            block, key = cfg.SOLVER[stage], f"SOLVER.{stage}.SSL_LOSS_WEIGHT"
            if key in values:
                self.off.discard(stage)
            self.weights[stage] = block.SSL_LOSS_WEIGHT or self.weights[stage]
            if switch not in values:
                continue
            on = values[switch]
            if not on:
                block.SSL_LOSS_WEIGHT = 0.0
                self.off.add(stage)
                self._warn_of_the_other(switch, values, cfg, where)
            elif stage in self.off:
                block.SSL_LOSS_WEIGHT = self.weights[stage]
                self.off.discard(stage)
            if on and not block.SSL_LOSS_WEIGHT:
                logger.warning("%s: %s True changes nothing: %s is 0.0, set that instead", where, switch, key)
            else:
                logger.warning("%s: %s %s is read as %s %s", where, switch, on, key, block.SSL_LOSS_WEIGHT)

    def _warn_of_the_other(self, switch: str, values: Mapping[str, Any], cfg: CfgNode, where: str) -> None:
        """Published programs leave the self-supervision of stage 1 on, and nothing in their files shows it."""
        left = cfg.SOLVER.STAGE1.SSL_LOSS_WEIGHT
        silent = switch == "MODEL.USE_SSL" and "MODEL.USE_SSL_STAGE1" not in values
        if silent and left and PROMPT.name in cfg.PROCESSOR.STAGES:
            logger.warning(
                "%s: SOLVER.STAGE1.SSL_LOSS_WEIGHT stays %s; MODEL.USE_SSL_STAGE1 False switches it off", where, left
            )
