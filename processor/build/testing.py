"""A network of a file that is tested, the data sets that it is tested on, and what is written down."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from yacs.config import CfgNode

from datasets.build import RENDERED
from datasets.check import quick_check
from datasets.names import names_of
from model.build import RESIZING, rebuild, settle_architecture
from model.svllreid import SvllReid
from model.weights import Weights, read_weights
from processor.result import result_entry
from processor.transfer import OF_THE_DATA, Prepared, check_held_out, homes_of, prepare, settings_of
from utils.devices import describe
from utils.distributed import main_first, on_main
from utils.fingerprint import Watch
from utils.records import Benchmark, Evaluation
from utils.run import RESULTS
from utils.run.places import results_folder
from utils.run.results import read_results

logger = logging.getLogger(__name__)


class NetworkTest(NamedTuple):
    """A network that is tested, and where its results go."""

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


def open_network(cfg: CfgNode, overrides: Sequence[str], *, configured: bool | None) -> NetworkTest:
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
    return NetworkTest(cfg, list(requested), configured, weights, model, architecture, differences, verdict, None)


def open_test(cfg: CfgNode, overrides: Sequence[str], *, configured: bool, results: str = RESULTS) -> NetworkTest:
    """The same with a folder, which has or gets the file `results` that is to be added to."""
    test = open_network(cfg, overrides, configured=configured)
    folder = results_folder(cfg.TEST.WEIGHT, test.cfg.OUTPUT_DIR)
    read_results(folder / results)  # refused now if nothing can be added to it
    return test._replace(folder=folder)


def data_sets(test: NetworkTest, device: torch.device, render: Callable[[CfgNode, str], object]) -> Iterator[Ready]:
    """The data sets to test on, each announced; all that can be wrong with any of them is found before the first.

    Args:
        render: renders the data set of this name if that is to be.
    """
    for line in (*test.differences, *(f"TEST.WEIGHT: {line}" for line in test.verdict)):
        logger.info("%s", line)
    names, homes = names_of(test.cfg.DATASETS.NAMES), homes_of(test.weights)
    inherited = set() if test.configured else OF_THE_DATA.keys() - set(test.requested)
    ready = partial(prepare, test.cfg, test.architecture, test.weights, inherited)
    found = {}
    for name in sorted(names, key=RENDERED.__contains__):  # what cannot be read is said before any is rendered
        on_main(partial(render, test.cfg, name))
        found[name] = main_first(partial(ready, name, homes.get(name)))
    ready_to_test: list[Ready] = []
    for name in names:
        one = found[name]
        warnings = on_main(partial(_check, one.benchmark))
        watch = Watch("test images", *chain(*one.benchmark.trials))
        ready_to_test += [Ready(one._replace(benchmark=part), warnings, watch) for part in one.benchmark.evaluated()]
    for each in ready_to_test:
        benchmark = each.prepared.benchmark
        logger.info("%s on %s: %s: %s", test.weights.source, describe(device), benchmark.name, benchmark.counts())
        for line in (*each.prepared.said, *each.prepared.notes):
            logger.info("%s", line)
        yield each


def entry_of(test: NetworkTest, one: Ready, evaluation: Evaluation) -> dict:
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


def _check(benchmark: Benchmark) -> list[str]:
    """Check a data set before a test, log the findings -> the warnings; DataError if it cannot be tested on."""
    return quick_check(benchmark, instances=None, identities=None).heed(logger)
