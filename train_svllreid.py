"""Train: both stages of SVLL-ReID, CLIP-ReID or a baseline, as the configuration says.

python train_svllreid.py --config_file configs/person/vit_svllreid.yml DATASETS.ROOT_DIR /data OUTPUT_DIR runs/market
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection
from pathlib import Path

from yacs.config import CfgNode

import utils.threads  # noqa: F401
from configs import ConfigError, load, to_dict
from datasets.build import make_benchmark
from datasets.check import quick_check
from model.build import make_model
from processor.build import RUN_STAGE, evaluate_model, result_entry
from utils.clock import Clock, peak_memory
from utils.command import parse, run
from utils.devices import describe, pick_device
from utils.errors import DataError
from utils.fingerprint import data_fingerprint, versions
from utils.logs import log_to_file, log_to_screen
from utils.records import Benchmark
from utils.report import table
from utils.run_folder import LOG, RunFolder, append_result, check_unused, check_writable
from utils.seeds import seed_everything

logger = logging.getLogger("train")


def main(argv: list[str] | None = None) -> Path:
    """Train as the command line says; the run's folder."""
    arguments = parse(__doc__, argv)
    log_to_screen()
    cfg = load(arguments.config_file, arguments.overrides)
    folder = Path(cfg.OUTPUT_DIR or default_folder(cfg, arguments.config_file)).expanduser()
    return train(cfg, folder, requested=arguments.overrides[::2])


def train(cfg: CfgNode, path: Path, *, requested: Collection[str] = ()) -> Path:
    """The whole way: data, network, evaluation of the start, every stage, evaluation of the end.

    `requested` are the keys of the command line.
    """
    clock = Clock()
    check_unused(path)
    check_writable(path)
    device = pick_device(cfg.MODEL.DEVICE)
    seed_everything(cfg.SOLVER.SEED)
    with clock("data"):
        benchmark = make_benchmark(cfg)
        check(cfg, benchmark)
    with clock("network"):
        model = make_model(cfg, benchmark, requested=requested).to(device)
    fingerprint = {"data_fingerprint": data_fingerprint(benchmark), "versions": versions()}
    folder = RunFolder(path, config=to_dict(cfg), fingerprint=fingerprint)
    log_to_file(path / LOG)
    logger.info("%s: %s", benchmark.name, benchmark.counts())
    logger.info("%s on %s, seed %d, into %s", cfg.MODEL.NAME, describe(device), cfg.SOLVER.SEED, path)

    entries: list[dict] = []

    def evaluate(when: str, checkpoint: Path | None) -> None:
        for one in benchmark.evaluated():
            evaluation = evaluate_model(cfg, model, one, device)
            entry = result_entry(
                when,
                cfg,
                one,
                evaluation,
                architecture=model.architecture,
                seed=cfg.SOLVER.SEED,
                fingerprint=fingerprint,
                checkpoint=checkpoint,
            )
            entries.append(entry)
            append_result(path, entry)
            facts = {"data_set": one.name, "re_ranking": entry["re_ranking"]}
            folder.record("evaluation", step=len(entries), stage=when, **facts, **evaluation.mean)

    try:
        with clock("evaluation of the start"):  # also shows, before hours are spent, that evaluation works
            evaluate("start", None)
        logger.info("before training:\n%s", table(entries))
        for stage in cfg.PROCESSOR.STAGES:
            with clock(f"{stage} stage"):
                checkpoint = RUN_STAGE[stage](cfg, model, benchmark, folder, device)
        with clock("evaluation of the end"):
            evaluate("end", checkpoint)
    except BaseException as error:  # out of memory, too
        outcome = "nothing was saved" if folder.discard() else f"what was saved is in {path}"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"during the {clock.current}; {outcome}") from None
        raise

    logger.info("%s, peak memory %s", clock, peak_memory())
    logger.info("%s\n%s", benchmark.name, table(entries))
    logger.info("test it again: python test_svllreid.py TEST.WEIGHT %s", checkpoint)
    return path


def check(cfg: CfgNode, benchmark: Benchmark) -> None:
    """Log what should be known of the data; DataError, before hours are spent, if it cannot be trained or tested on."""
    instances = cfg.DATALOADER.NUM_INSTANCE
    identities = cfg.SOLVER.STAGE2.IMS_PER_BATCH // instances if "image" in cfg.PROCESSOR.STAGES else None
    report = quick_check(benchmark, instances=instances, identities=identities)
    for warning in report.warnings:
        logger.warning("%s", warning)
    if report.problems:
        raise DataError(report.failure())


def default_folder(cfg: CfgNode, config_file: str | None) -> str:
    """runs/DATASET_CONFIGFILE_seedSEED"""
    return f"runs/{cfg.DATASETS.NAMES}_{Path(config_file or 'defaults').stem}_seed{cfg.SOLVER.SEED}"


if __name__ == "__main__":
    sys.exit(run(main, ConfigError))
