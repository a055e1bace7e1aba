"""What is checked before a run is resumed."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from yacs.config import CfgNode

from configs import check_changes, from_dict
from configs.stages import STAGES
from datasets.names import count_evaluations
from utils.errors import DataError, UserError, WeightsError
from utils.run import CONFIG
from utils.run.folder import EarlierRun
from utils.run.results import count_ends
from utils.run.state import State

logger = logging.getLogger(__name__)


def check_resume(cfg: CfgNode, path: Path, earlier: EarlierRun, device: torch.device) -> bool:
    """Whether anything is left to do of the run that the folder `path` holds.

    Raises:
        ConfigError: settings that may not change have.
        UserError: it was trained on another kind of device, or its states are gone or damaged.
    """
    state = earlier.state
    before = from_dict(earlier.config, where=str(state.path if state else path / CONFIG))
    stages, ended = before.PROCESSOR.STAGES, has_ended(before, earlier)
    number, epoch = 0, 0
    if state:
        number, epoch = stage_number(state, stages), state.run["position"]["epoch"]
        stage = STAGES[stages[number]]
        if epoch > (epochs := stage.epochs(before)):
            raise WeightsError(f"{state.path}: is of epoch {epoch} of {stage.title}, which has {epochs}")
    if ended:
        number = len(stages) - 1
        epoch = STAGES[stages[number]].epochs(before)
    weights = state is not None or any(path.glob("*.pth"))
    changes = check_changes(before, cfg, number=number, epoch=epoch, where=str(path), weights=weights)
    if ended and not any(change.startswith(STAGES[stages[-1]].key("MAX_EPOCHS")) for change in changes):
        return False
    if earlier.damaged:
        raise UserError(earlier.damaged)
    if state is None and (weights or count_ends(earlier.evaluations)):
        raise UserError(
            f"OUTPUT_DIR {path}: holds a run with checkpoints, but no state to resume from (resume/); start another "
            "run from a checkpoint's weights in another OUTPUT_DIR (MODEL.INIT_FROM)"
        )
    for change in changes:
        logger.info("changed since the run was started: %s", change)
    if state and state.run["device"] != device.type:
        raise UserError(
            f"MODEL.DEVICE {cfg.MODEL.DEVICE}: the run in {path} is on {state.run['device']}, here is {device.type}; "
            "its weights can start a new run there (MODEL.INIT_FROM, another OUTPUT_DIR)"
        )
    return True


def has_ended(cfg: CfgNode, earlier: EarlierRun) -> bool:
    """Whether all data sets were evaluated after all training."""
    return count_ends(earlier.evaluations) == count_evaluations(cfg.DATASETS.NAMES)


def stage_number(state: State, stages: tuple[str, ...]) -> int:
    """The place in `stages` of the stage that a state is of; earlier versions, where none occurred twice, wrote its
    name alone."""
    name, number = state.contents["stage"], state.run.get("stage_number")
    if number is None and name in stages:
        number = stages.index(name)
    if number is None or number >= len(stages) or stages[number] != name:
        raise WeightsError(f"{state.path}: is of {STAGES[name].title}, which this run has not there")
    return number


def check_fingerprint(before: dict, now: dict, path: Path) -> None:
    """Refuse to resume with other images; log that a library is another one.

    Raises:
        DataError: the training images, or those of the test, are not those that the run was started with.
    """
    for split, what in (("train", "training images"), ("test", "queries or gallery images")):
        old, new = ((each.get("data_fingerprint") or {}).get(split) for each in (before, now))
        if old != new:
            raise DataError(
                f"OUTPUT_DIR {path}: the {what} are not those that this run was started with (fingerprint {old}, now "
                f"{new}): their files, sizes or labels have changed since; put them back, or start another run (from a "
                "checkpoint's weights: MODEL.INIT_FROM)"
            )
    for name, old in (before.get("versions") or {}).items():
        if now["versions"].get(name) != old:
            logger.warning("%s is %s now, the run was started with %s", name, now["versions"].get(name), old)
