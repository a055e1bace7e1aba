"""What may change in the configuration of a run that is gone on with."""

from __future__ import annotations

from collections.abc import Iterator

from yacs.config import CfgNode

from configs.checks import ConfigError
from configs.loading import flatten
from configs.stages import STAGES

# Where things are, on what they run, and how often something is told or saved: no number of the result follows from it.
FREE = (
    "DATALOADER.NUM_WORKERS",
    "DATASETS.ROOT_DIR",
    "DATASETS.VIEWPOINTS_TEST",
    "DATASETS.VIEWPOINTS_TRAIN",
    "MODEL.DEVICE",
    "OUTPUT_DIR",
    "RESUME",
    "SOLVER.CHECKPOINT_MINUTES",
    "SOLVER.STAGE1.CHECKPOINT_PERIOD",
    "SOLVER.STAGE1.LOG_PERIOD",
    "SOLVER.STAGE2.CHECKPOINT_PERIOD",
    "SOLVER.STAGE2.EVAL_PERIOD",
    "SOLVER.STAGE2.LOG_PERIOD",
    "TEST.IMS_PER_BATCH",
    "TEST.WEIGHT",
)
# A stage may still get more epochs, or fewer, while it is not over.
EPOCHS = {stage.name: stage.key("MAX_EPOCHS") for stage in STAGES.values()}


def check_changes(earlier: CfgNode, now: CfgNode, *, number: int, epoch: int, where: str, weights: bool) -> list[str]:
    """Lines for what has changed since a run was started, if it may.

    Args:
        earlier, now: the run's settings as they are written in its folder, and those that are asked for.
        number, epoch: where the run is; the stage's place in PROCESSOR.STAGES, from 0.
        where: the run's folder.
        weights: whether the run left any, for the advice.

    Raises:
        ConfigError: naming every setting that may not change, with both values.
    """
    lines, faults = [], []
    stages = earlier.PROCESSOR.STAGES
    over = [EPOCHS[stage] for stage in stages[:number]]
    for key, old, new in _differences(earlier, now):
        line = f"{key}: {old!r} before, {new!r} now"
        if key in FREE:
            lines.append(line)
        elif key not in EPOCHS.values():
            faults.append(line)
        elif key in over:
            faults.append(f"{line} (that stage is over)")
        elif key == EPOCHS[stages[number]] and new < epoch:
            faults.append(f"{line} ({epoch} are begun)")
        else:
            lines.append(line)
    if faults:
        another = "in another OUTPUT_DIR (from its weights: MODEL.INIT_FROM)"
        advice = another if weights else "in another OUTPUT_DIR, or delete this one, which holds no weights"
        raise ConfigError(
            f"OUTPUT_DIR {where}: holds a run with other settings: {'; '.join(faults)}. Go on with its own, or "
            f"start a new run {advice}"
        )
    return lines


def epochs_of(cfg: CfgNode, stage: str) -> int:
    """How many epochs a stage has."""
    return STAGES[stage].settings(cfg).MAX_EPOCHS


def _differences(earlier: CfgNode, now: CfgNode) -> Iterator[tuple[str, object, object]]:
    before = dict(flatten(earlier))
    return ((key, before[key], value) for key, value in flatten(now) if before[key] != value)
