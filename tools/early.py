"""What is wrong with settings, as far as it can be said before torch is loaded and a checkpoint is read."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from yacs.config import CfgNode

from configs import check_overrides, load, load_for_test
from datasets.names import check_known, names_of, names_together
from utils.command import check_there, check_weight
from utils.run.places import check_unused, check_writable, results_folder

ADVICE = "; expected the folder that holds the data sets (docs/data.md); none is ever downloaded"


def check_training(cfg: CfgNode, folder: Path) -> None:
    """Raise UserError if no training could begin with these settings in this folder, or go on there."""
    names = names_together(cfg.DATASETS.NAMES, cfg.DATASETS.NOUN)
    check_writable(folder)
    if not cfg.RESUME:
        check_unused(folder)
    if os.path.lexists(folder):  # a run that goes on needs no weights and one that has ended no data
        return
    check_root(cfg, names)
    if cfg.MODEL.INIT_FROM:
        check_weight(cfg.MODEL.INIT_FROM, "MODEL.INIT_FROM")
    elif "/" in cfg.MODEL.PRETRAIN:  # no tag
        check_there(cfg.MODEL.PRETRAIN, "MODEL.PRETRAIN")


def check_root(cfg: CfgNode, names: Sequence[str]) -> None:
    """Raise UserError if there is no DATASETS.ROOT_DIR, unless all data sets are rendered, which makes it."""
    if not all(name.startswith("synthetic") for name in names):
        check_there(cfg.DATASETS.ROOT_DIR, "DATASETS.ROOT_DIR", ADVICE)


def read_test(arguments: argparse.Namespace) -> CfgNode:
    """The settings of a test of TEST.WEIGHT, as `load_for_test` says.

    Raises:
        ConfigError, UserError: it could not be tested with them, whatever the checkpoint holds.
    """
    cfg = load_for_test(arguments.config_file, arguments.overrides)
    check_weight(cfg.TEST.WEIGHT, "TEST.WEIGHT")
    given = cfg if arguments.config_file else check_overrides(arguments.overrides)
    check_data(given, None if arguments.config_file else arguments.overrides[::2])
    results_folder(cfg.TEST.WEIGHT, given.OUTPUT_DIR)
    return cfg


def given_settings(config_file: str | None, overrides: Sequence[str]) -> CfgNode:
    """The settings of a file, else the defaults, with `overrides` on top; what is to be logged, who uses them logs.

    Raises:
        ConfigError: as `load`, or `check_overrides`.
    """
    before = logging.root.manager.disable
    logging.disable()
    try:
        return load(config_file, overrides) if config_file else check_overrides(overrides)
    finally:
        logging.disable(before)


def check_data(given: CfgNode, keys: Collection[str] | None = None) -> None:
    """Raise UserError if no test on the data sets could begin.

    Args:
        keys: those of `given` that the command line has, and that no checkpoint replaces; None: all.
    """
    names = names_of(given.DATASETS.NAMES)
    for name in names:
        check_known(name)
    if keys is None or {"DATASETS.NAMES", "DATASETS.ROOT_DIR"} <= set(keys):
        check_root(given, names)
