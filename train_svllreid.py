"""Train: both stages of SVLL-ReID, CLIP-ReID or a baseline, as the configuration says.

python train_svllreid.py --config_file configs/person/vit_svllreid.yml DATASETS.ROOT_DIR /data OUTPUT_DIR runs/market
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection
from pathlib import Path

from yacs.config import CfgNode

from configs import load
from tools.early import check_training
from utils.command import answer_early, parse, run_script
from utils.paths import expanded


def read_command_line(argv: list[str] | None = None) -> tuple[CfgNode, Path, list[str]]:
    """The settings, the run's folder, and the keys that the command line has."""
    arguments = parse(__doc__, argv)
    cfg = load(arguments.config_file, arguments.overrides)
    folder = expanded(cfg.OUTPUT_DIR or default_folder(cfg, arguments.config_file), "OUTPUT_DIR")
    check_training(cfg, folder)
    return cfg, folder, arguments.overrides[::2]


def default_folder(cfg: CfgNode, config_file: str | None) -> str:
    """runs/DATASET_CONFIGFILE_seedSEED"""
    return f"runs/{cfg.DATASETS.NAMES}_{Path(config_file or 'defaults').stem}_seed{cfg.SOLVER.SEED}"


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from processor.build.data import read_data
from processor.build.evaluation import evaluate_run
from processor.build.network import make_network
from processor.build.stage import run_stage
from processor.run import open_run
from tools.demo.render import render_missing
from utils.clock import peak_memory
from utils.devices import describe
from utils.logs import log_to_screen
from utils.report import table
from utils.run.results import END, START

logger = logging.getLogger("train")


def main(argv: list[str] | None = None) -> Path:
    """Train as the command line says; the run's folder."""
    log_to_screen()
    cfg, folder, requested = read_command_line(argv)
    return train(cfg, folder, requested=requested)


def train(cfg: CfgNode, path: Path, *, requested: Collection[str] = ()) -> Path:
    """Data, network, evaluation of the start, every stage, evaluation of the end.

    A run that `path` holds is resumed where its last state was saved or, where it has ended, left as it is.

    Args:
        requested: keys of the command line.
    """
    with open_run(cfg, path) as run:
        if run.finished:
            logger.info("%s: this run is finished; another one needs another OUTPUT_DIR", path)
            return path
        data = read_data(run, render_missing)
        model = make_network(run, data, requested=requested)
        run.begin()
        benchmark, device = data.benchmark, describe(run.device)
        logger.info("%s: %s", benchmark.name, benchmark.counts())
        logger.info("%s on %s, seed %d, into %s", cfg.MODEL.NAME, device, cfg.SOLVER.SEED, path)
        if not run.state:
            with run.clock("evaluation of the start"):  # also shows, before hours are spent, that evaluation works
                evaluate_run(run, model, data, START)
            logger.info("before training:\n%s", table(run.entries))
        for number in range(run.first_stage, len(cfg.PROCESSOR.STAGES)):
            checkpoint = run_stage(run, number, model, data)
        with run.clock("evaluation of the end"):
            evaluate_run(run, model, data, END, checkpoint)
        logger.info("peak memory %s; time %s", peak_memory(), run.clock)
        logger.info("%s\n%s", benchmark.name, table(run.entries))
        logger.info("test it again: python test_svllreid.py TEST.WEIGHT %s", checkpoint)
    return path


if __name__ == "__main__":
    sys.exit(run_script(main))
