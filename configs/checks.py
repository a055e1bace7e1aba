"""Which values are valid, one by one and together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from yacs.config import CfgNode

from configs.defaults import KEYS
from configs.stages import CLUSTER, IMAGE, PROMPT


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type, out of range, or contradicts another one."""


def check_value(key: str, value: Any) -> None:
    """Raise ConfigError if `value` is not valid for `key`."""
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(number, float) and not abs(number) < float("inf") for number in numbers):
        raise ConfigError(f"{key}: invalid value {value}, expected finite numbers")
    rule = KEYS[key].rule
    if rule and not rule.holds(value):
        raise ConfigError(f"{key}: invalid value {value!r}, expected {rule.expected}")


def check_together(cfg: CfgNode) -> None:
    """Raise one ConfigError that names all settings that contradict each other, of the stages that run."""
    stages = cfg.PROCESSOR.STAGES
    faults = [*(_contradictions(cfg) if IMAGE.name in stages else ())]
    if CLUSTER.name in stages:
        faults += _of_clusters(cfg)
    if PROMPT.name in stages and cfg.SOLVER.STAGE1.LR_MIN > cfg.SOLVER.STAGE1.BASE_LR:
        faults.append("SOLVER.STAGE1.LR_MIN is above SOLVER.STAGE1.BASE_LR")
    if cfg.TEST.AQE and not cfg.TEST.FEAT_NORM:
        faults.append("TEST.AQE True weighs by cosine similarities, TEST.FEAT_NORM False does not normalise features")
    if faults:
        raise ConfigError("contradicting settings: " + "; ".join(faults))


def _of_clusters(cfg: CfgNode) -> Iterator[str]:
    """Of the settings of the clustering stage."""
    images, k = cfg.SOLVER.CLUSTER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE
    if images % k:
        yield f"SOLVER.CLUSTER.IMS_PER_BATCH {images} is not a multiple of DATALOADER.NUM_INSTANCE {k}"
    if IMAGE.name in cfg.PROCESSOR.STAGES:
        yield (
            f"PROCESSOR.STAGES {cfg.PROCESSOR.STAGES}: {CLUSTER.name} is for images without identities, {IMAGE.name} "
            "needs them"
        )


def _contradictions(cfg: CfgNode) -> Iterator[str]:
    """Of the settings of stage 2."""
    images, k = cfg.SOLVER.STAGE2.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE
    triplets, texts = cfg.MODEL.TRIPLET_LOSS_WEIGHT > 0, cfg.MODEL.I2T_LOSS_WEIGHT > 0
    ssl = cfg.SOLVER.STAGE2.SSL_LOSS_WEIGHT > 0
    if images % k:
        yield f"SOLVER.STAGE2.IMS_PER_BATCH {images} is not a multiple of DATALOADER.NUM_INSTANCE {k}"
    if triplets and k < 2:
        yield "MODEL.TRIPLET_LOSS_WEIGHT above 0 needs two images per identity: DATALOADER.NUM_INSTANCE 1"
    if triplets and images < 2 * k:
        yield (
            "MODEL.TRIPLET_LOSS_WEIGHT above 0 needs two identities in a batch: "
            f"SOLVER.STAGE2.IMS_PER_BATCH {images}, DATALOADER.NUM_INSTANCE {k}"
        )
    trained = PROMPT.name in cfg.PROCESSOR.STAGES or cfg.MODEL.INIT_FROM or cfg.PROCESSOR.UNTRAINED_PROMPTS
    if texts and not trained:
        yield (
            f"MODEL.I2T_LOSS_WEIGHT {cfg.MODEL.I2T_LOSS_WEIGHT} needs trained prompts, and PROCESSOR.STAGES has no "
            f"{PROMPT.title}: name a checkpoint that has them (MODEL.INIT_FROM), set MODEL.I2T_LOSS_WEIGHT 0.0 (a "
            "baseline), or allow untrained prompts (PROCESSOR.UNTRAINED_PROMPTS True)"
        )
    if ssl and cfg.SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY and cfg.MODEL.SSL_TYPE == "SIMSIAM":
        yield "SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY True leaves out negatives; MODEL.SSL_TYPE SIMSIAM has none"
    prototypes = cfg.MODEL.PROTOTYPE_LOSS_WEIGHT or cfg.MODEL.CAMERA_PROXY_LOSS_WEIGHT
    if not (triplets or texts or ssl or prototypes or cfg.MODEL.ID_LOSS_WEIGHT):
        yield f"all loss weights of {IMAGE.title} are 0: nothing to train"
