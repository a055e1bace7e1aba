"""What values mean something, one by one and together."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from yacs.config import CfgNode

from configs.stages import IMAGE, PROMPT, STAGES


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type, out of range, or at odds with another one."""


Rule = tuple[Callable[[Any], bool], str]  # what holds, and how to say it


def one_of(*choices: str) -> Rule:
    return lambda value: value in choices, "one of " + ", ".join(choices)


def at_least(low: float) -> Rule:
    return lambda value: value >= low, f"at least {low}"


def above(low: float) -> Rule:
    return lambda value: value > low, f"above {low}"


def within(low: float, high: float) -> Rule:
    return lambda value: low <= value <= high, f"from {low} to {high}"


SIZE: Rule = (lambda value: len(value) == 2 and min(value) >= 1, "two positive numbers (height, width)")

# Every number must be finite; these say more. `*` stands for both stages.
RULES: dict[str, Rule] = {
    "MODEL.DEVICE": (
        lambda value: re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value) is not None,
        "auto, cpu, cuda, cuda:N or mps",
    ),
    "MODEL.NAME": (bool, "the name of an architecture, e.g. ViT-B-16"),
    "MODEL.PRETRAIN": (bool, "a tag, a file, or none for a random start"),
    "MODEL.ACTIVATION": one_of("auto", "quick_gelu", "gelu"),
    "MODEL.STRIDE_SIZE": SIZE,
    "MODEL.SIE_COE": at_least(0),
    "MODEL.ID_LOSS_WEIGHT": at_least(0),
    "MODEL.TRIPLET_LOSS_WEIGHT": at_least(0),
    "MODEL.I2T_LOSS_WEIGHT": at_least(0),
    "MODEL.SSL_TYPE": (
        lambda value: value in ("SIMCLR", "SIMSIAM"),
        "SIMCLR or SIMSIAM (a weight of 0.0 switches self-supervision off: SOLVER.STAGE2.SSL_LOSS_WEIGHT 0.0)",
    ),
    "MODEL.SSL_HIDDEN": at_least(1),
    "MODEL.SSL_OUT": at_least(1),
    "INPUT.SIZE_TRAIN": SIZE,
    "INPUT.SIZE_TEST": SIZE,
    "INPUT.PROB": within(0, 1),
    "INPUT.RE_PROB": within(0, 1),
    "INPUT.TWIN_ERASED_AREA": (
        lambda value: len(value) == 2 and 0 < value[0] <= value[1] < 1,
        "two shares above 0 and below 1, the smaller first",
    ),
    "INPUT.PADDING": at_least(0),
    "INPUT.PIXEL_MEAN": (lambda value: len(value) == 3, "three numbers"),
    "INPUT.PIXEL_STD": (lambda value: len(value) == 3 and min(value) > 0, "three positive numbers"),
    "DATASETS.NAMES": (bool, "the name of a data set, e.g. market1501"),
    "DATASETS.VEHICLEID_SIZE": one_of("small", "medium", "large"),
    "DATASETS.NOUN": (
        lambda value: re.fullmatch(r"[A-Za-z][A-Za-z -]*", value) is not None,
        "an English word, e.g. person, vehicle or dog",
    ),
    "DATASETS.HOLD_OUT": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "DATASETS.SYNTHETIC.TRAIN_IDENTITIES": at_least(2),
    "DATASETS.SYNTHETIC.TRAIN_IMAGES": at_least(1),
    "DATASETS.SYNTHETIC.TEST_IDENTITIES": at_least(1),
    "DATASETS.SYNTHETIC.TEST_IMAGES": at_least(6),
    "DATASETS.SYNTHETIC.DIFFICULTY": at_least(0),
    "DATASETS.SYNTHETIC.SEED": within(0, 2**32 - 1),
    "DATALOADER.NUM_WORKERS": at_least(0),
    "DATALOADER.NUM_INSTANCE": at_least(1),
    "SOLVER.SEED": within(0, 2**32 - 1),
    "SOLVER.MARGIN": at_least(0),
    "SOLVER.PRECISION": one_of("auto", "fp32", "bf16", "fp16"),
    "SOLVER.CLIP_GRAD_NORM": at_least(0),
    "SOLVER.CHECKPOINT_MINUTES": at_least(0),
    "SOLVER.STAGE1.IMS_PER_BATCH": at_least(1),
    "SOLVER.STAGE2.IMS_PER_BATCH": at_least(2),  # of a single image, batch norm has no statistics
    "SOLVER.*.OPTIMIZER_NAME": one_of("Adam", "AdamW", "SGD"),
    "SOLVER.*.MOMENTUM": within(0, 1),
    "SOLVER.*.MAX_EPOCHS": at_least(1),
    "SOLVER.*.BASE_LR": above(0),
    "SOLVER.*.WEIGHT_DECAY": at_least(0),
    "SOLVER.*.CHECKPOINT_PERIOD": at_least(1),
    "SOLVER.*.LOG_PERIOD": at_least(1),
    "SOLVER.*.SSL_LOSS_WEIGHT": at_least(0),
    "SOLVER.STAGE1.WARMUP_EPOCHS": at_least(0),
    "SOLVER.STAGE1.WARMUP_LR_INIT": at_least(0),
    "SOLVER.STAGE1.LR_MIN": at_least(0),
    "SOLVER.STAGE1.PROMPT_AUG_METHOD": one_of("mask", "swap", "mix"),
    "SOLVER.STAGE1.PROMPT_AUG_SCALE": within(0, 1),
    "SOLVER.STAGE1.PROMPT_AUG_TOKENS": one_of("all", "words"),
    "SOLVER.STAGE2.BIAS_LR_FACTOR": at_least(0),
    "SOLVER.STAGE2.WEIGHT_DECAY_BIAS": at_least(0),
    "SOLVER.STAGE2.STEPS": (
        lambda value: list(value) == sorted(set(value)) and min(value, default=1) >= 1,
        "ascending epochs, e.g. (30, 50)",
    ),
    "SOLVER.STAGE2.GAMMA": above(0),
    "SOLVER.STAGE2.WARMUP_FACTOR": within(0, 1),
    "SOLVER.STAGE2.WARMUP_ITERS": at_least(0),
    "SOLVER.STAGE2.EVAL_PERIOD": at_least(1),
    "TEST.IMS_PER_BATCH": at_least(1),
    "TEST.PROTOCOL": one_of("cross-camera", "all"),
    "TEST.SIE": one_of("auto", "same", "mean", "none"),
    "TEST.NECK_FEAT": one_of("before", "after"),
    "TEST.RE_RANKING_K1": at_least(1),
    "TEST.RE_RANKING_K2": at_least(1),
    "TEST.RE_RANKING_LAMBDA": within(0, 1),
    "PROCESSOR.STAGES": (
        lambda value: value and list(dict.fromkeys(value)) == [name for name in STAGES if name in value],
        f"names of stages in this order: {', '.join(STAGES)}",
    ),
}


def check_value(key: str, value: Any) -> None:
    """Raise ConfigError if `value` means nothing for `key`."""
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(number, float) and not abs(number) < float("inf") for number in numbers):
        raise ConfigError(f"{key}: {value} is not a finite number")
    rule = RULES.get(key) or RULES.get(re.sub(r"^SOLVER\.STAGE[12]\.", "SOLVER.*.", key))
    if rule is not None and not rule[0](value):
        raise ConfigError(f"{key}: {value!r} will not do; right is {rule[1]}")


def check_together(cfg: CfgNode) -> None:
    """Raise one ConfigError naming all settings that are each valid but not together."""
    faults = []
    images, k = cfg.SOLVER.STAGE2.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE
    if IMAGE.name in cfg.PROCESSOR.STAGES:
        if images % k:
            faults.append(f"SOLVER.STAGE2.IMS_PER_BATCH {images} is no multiple of DATALOADER.NUM_INSTANCE {k}")
        if cfg.MODEL.TRIPLET_LOSS_WEIGHT > 0 and k < 2:
            faults.append("MODEL.TRIPLET_LOSS_WEIGHT above 0 needs two images an identity: DATALOADER.NUM_INSTANCE 1")
        if cfg.MODEL.TRIPLET_LOSS_WEIGHT > 0 and images < 2 * k:
            faults.append(
                "MODEL.TRIPLET_LOSS_WEIGHT above 0 needs two identities in a batch: SOLVER.STAGE2.IMS_PER_BATCH "
                f"{images}, DATALOADER.NUM_INSTANCE {k}"
            )
        trained = PROMPT.name in cfg.PROCESSOR.STAGES or cfg.MODEL.INIT_FROM
        if cfg.MODEL.I2T_LOSS_WEIGHT > 0 and not (trained or cfg.PROCESSOR.UNTRAINED_PROMPTS):
            faults.append(
                f"MODEL.I2T_LOSS_WEIGHT {cfg.MODEL.I2T_LOSS_WEIGHT} compares images with sentences that only the "
                "prompt stage trains, and PROCESSOR.STAGES lacks it: name a checkpoint that has them "
                "(MODEL.INIT_FROM), set MODEL.I2T_LOSS_WEIGHT 0.0 (a baseline), or allow sentences that nobody "
                "trained (PROCESSOR.UNTRAINED_PROMPTS True)"
            )
        ignoring = cfg.SOLVER.STAGE2.SSL_LOSS_WEIGHT > 0 and cfg.SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY
        if ignoring and cfg.MODEL.SSL_TYPE == "SIMSIAM":
            faults.append(
                "SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY True leaves images out of negatives, of which MODEL.SSL_TYPE "
                "SIMSIAM has none"
            )
        weights = (cfg.MODEL.ID_LOSS_WEIGHT, cfg.MODEL.TRIPLET_LOSS_WEIGHT, cfg.MODEL.I2T_LOSS_WEIGHT)
        if not any((*weights, cfg.SOLVER.STAGE2.SSL_LOSS_WEIGHT)):
            faults.append("all loss weights of the image stage are 0: nothing to train")
    if PROMPT.name in cfg.PROCESSOR.STAGES and cfg.SOLVER.STAGE1.LR_MIN > cfg.SOLVER.STAGE1.BASE_LR:
        faults.append("SOLVER.STAGE1.LR_MIN is above SOLVER.STAGE1.BASE_LR")
    if faults:
        raise ConfigError("settings that do not go together: " + "; ".join(faults))
