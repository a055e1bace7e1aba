"""Test a checkpoint: rank-k and mAP. What builds the network is in the file.

    python test_svllreid.py TEST.WEIGHT runs/market/ViT-B-16_60.pth
    python test_svllreid.py --config_file configs/person/vit_svllreid.yml TEST.WEIGHT runs/market/ViT-B-16_60.pth

Without --config_file, settings are those that the checkpoint was trained with; on other data sets than in training, all
but TEST.PROTOCOL and DATASETS.HOLD_OUT, which say something of the data. Published files (of
CLIP-ReID, SVLL-ReID, person towers) hold no settings: they need --config_file. Training images are not needed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from yacs.config import CfgNode

from configs import load_for_test
from utils.command import answer_early, check_weight, parse, run_script
from utils.paths import expanded


def read_command_line(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, CfgNode]:
    """The words of the command line, and the settings; without a configuration file, TEST.WEIGHT alone."""
    arguments = parse(__doc__, argv)
    cfg = load_for_test(arguments.config_file, arguments.overrides)
    check_weight(cfg.TEST.WEIGHT, "TEST.WEIGHT")
    return arguments, cfg


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

import torch

from datasets.build import RENDERED
from datasets.check import quick_check
from datasets.several import names_of
from model.build import RESIZING, rebuild, settle_architecture
from model.svllreid import SvllReid
from model.weights import Weights, read_weights
from processor.build.evaluation import evaluate_model
from processor.result import result_entry
from processor.transfer import OF_THE_DATA, Prepared, check_held_out, homes_of, prepare, settings_of
from tools.demo.render import render_missing
from utils.devices import describe, pick_device
from utils.distributed import join_processes, leave_processes, main_first, on_main
from utils.errors import UserError
from utils.fingerprint import Watch
from utils.hub import on_hub
from utils.logs import log_to_screen
from utils.records import Benchmark, Evaluation
from utils.release_folder import locate
from utils.report import table
from utils.run import RESULTS
from utils.run.folder import check_writable
from utils.run.results import append_result, read_results

logger = logging.getLogger("test")


class Test(NamedTuple):
    """A network that is tested, and where its results go."""

    __test__ = False  # not a test case, whatever its name looks like to pytest

    cfg: CfgNode
    requested: list[str]  # keys of the command line
    configured: bool  # by a file, not by the checkpoint
    weights: Weights
    model: SvllReid
    architecture: dict
    differences: list[str]  # of the settings from the checkpoint's
    verdict: list[str]  # on the checkpoint's tensors
    folder: Path | None


class Ready(NamedTuple):
    """A data set that can be tested on."""

    prepared: Prepared
    warnings: list[str]
    watch: Watch


def open_test(arguments: argparse.Namespace, cfg: CfgNode, results: str = RESULTS) -> Test:
    """Read the checkpoint; `results` is the file that is to be added to."""
    test = open_network(cfg, arguments.overrides, configured=bool(arguments.config_file))
    folder = expanded(test.cfg.OUTPUT_DIR, "OUTPUT_DIR") if test.cfg.OUTPUT_DIR else results_folder(cfg.TEST.WEIGHT)
    check_writable(folder)
    read_results(folder / results)  # refused now if nothing can be added to it
    return test._replace(folder=folder)


def open_network(cfg: CfgNode, overrides: Sequence[str], *, configured: bool | None) -> Test:
    """Read TEST.WEIGHT, for a test without a folder.

    Args:
        overrides: KEY VALUE KEY VALUE ... of the command line.
        configured: whether settings are those of `cfg`, or the checkpoint's with `overrides` on top; None: the former
            where the checkpoint has none.
    """
    requested, weights = overrides[::2], read_weights(cfg.TEST.WEIGHT, cfg.MODEL.NAME)
    configured = weights.config is None if configured is None else configured
    if not configured:
        cfg = settings_of(weights, overrides)
    check_held_out(cfg, weights, names_of(cfg.DATASETS.NAMES))
    cfg, architecture, differences = settle_architecture(cfg, weights, requested=requested)
    model, verdict = rebuild(weights, architecture, testing=True, resize=not RESIZING.isdisjoint(requested))
    return Test(cfg, list(requested), configured, weights, model, architecture, differences, verdict, None)


def results_folder(weight: str) -> Path:
    """Where results go without OUTPUT_DIR: beside a checkpoint, or into the folder of a released network.

    Raises:
        UserError: it is on the Hub.
    """
    if on_hub(weight):
        raise UserError(f"OUTPUT_DIR: where to with the results? {weight} is no folder of this machine")
    path = locate(weight)
    return path if path.is_dir() else path.parent


def data_sets(test: Test, device: torch.device) -> Iterator[Ready]:
    """The data sets to test on, each announced; all that can be wrong with any of them is found before the first."""
    for line in (*test.differences, *(f"TEST.WEIGHT: {line}" for line in test.verdict)):
        logger.info("%s", line)
    names, homes = names_of(test.cfg.DATASETS.NAMES), homes_of(test.weights)
    inherited = set() if test.configured else OF_THE_DATA.keys() - set(test.requested)
    ready = partial(prepare, test.cfg, test.architecture, test.weights, inherited)
    found = {}
    for name in sorted(names, key=RENDERED.__contains__):  # what cannot be read is said before any is rendered
        on_main(partial(render_missing, test.cfg, name))
        found[name] = main_first(partial(ready, name, homes.get(name)))
    tests = [found[name] for name in names]
    warnings = [on_main(partial(check, one.benchmark)) for one in tests]
    watches = [Watch("test images", *chain(*one.benchmark.trials)) for one in tests]
    ready_to_test = [
        Ready(one._replace(benchmark=part), *rest)
        for one, *rest in zip(tests, warnings, watches, strict=True)
        for part in one.benchmark.evaluated()
    ]
    for one in ready_to_test:
        benchmark = one.prepared.benchmark
        logger.info("%s on %s: %s: %s", test.weights.source, describe(device), benchmark.name, benchmark.counts())
        for line in (*one.prepared.said, *one.prepared.notes):
            logger.info("%s", line)
        yield one


def entry_of(test: Test, one: Ready, evaluation: Evaluation) -> dict:
    """An evaluation as an entry of results.json."""
    return result_entry(
        "test",
        one.prepared.cfg,
        one.prepared.benchmark,
        evaluation,
        architecture=test.architecture,
        seed=test.weights.config["SOLVER"]["SEED"] if test.weights.config else None,
        fingerprint=one.prepared.fingerprint,
        checkpoint=test.cfg.TEST.WEIGHT,
        notes=[*test.differences, *one.prepared.notes, *one.warnings, *one.watch.look()],
    )


def main(argv: list[str] | None = None) -> Path:
    """Test as the command line says; the results file."""
    log_to_screen()
    test = open_test(*read_command_line(argv))
    entries: list[dict] = []
    device = join_processes(pick_device(test.cfg.MODEL.DEVICE))
    try:
        model = test.model.to(device)
        for one in data_sets(test, device):
            cfg, benchmark, at_home = one.prepared.cfg, one.prepared.benchmark, one.prepared.at_home
            entry = entry_of(test, one, evaluate_model(cfg, model, benchmark, device, at_home=at_home))
            entries.append(entry)
            written = on_main(partial(append_result, test.folder, entry))
    finally:  # what was measured is shown, whatever comes after
        if entries:
            logger.info("%s\n%s", ", ".join(entry["data_set"] for entry in entries), table(entries))
        leave_processes()
    logger.info("added to %s", written)
    return test.folder / RESULTS


def check(benchmark: Benchmark) -> list[str]:
    """Check a data set before a test, log the findings -> the warnings; DataError if it cannot be tested on."""
    return quick_check(benchmark, instances=None, identities=None).heed(logger)


if __name__ == "__main__":
    sys.exit(run_script(main))
