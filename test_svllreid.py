"""Test a checkpoint: rank-k and mAP. What builds the network is in the file.

    python test_svllreid.py TEST.WEIGHT runs/market/ViT-B-16_60.pth
    python test_svllreid.py --config_file configs/person/vit_svllreid.yml TEST.WEIGHT runs/market/ViT-B-16_60.pth

Without --config_file, settings are those that the checkpoint was trained with; on other data sets than in training, all
but TEST.PROTOCOL and DATASETS.HOLD_OUT, which say something of the data. Published CLIP-ReID and SVLL-ReID files hold
no settings: they need --config_file. Training images are not needed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Collection
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from yacs.config import CfgNode

import utils.threads  # noqa: F401
from configs import ConfigError, from_dict, load
from utils.command import answer_early, check_there, parse, run_script
from utils.paths import expanded


def read_command_line(argv: list[str] | None = None) -> tuple[argparse.Namespace, CfgNode]:
    """The words of the command line, and the settings; without a configuration file, TEST.WEIGHT alone."""
    arguments = parse(__doc__, argv)
    overrides = arguments.overrides
    if not arguments.config_file:  # the others stand on the checkpoint's
        given = dict(zip(overrides[::2], overrides[1::2], strict=False)).get("TEST.WEIGHT", "")
        overrides = ["TEST.WEIGHT", given]
    cfg = load(arguments.config_file, overrides)
    if not cfg.TEST.WEIGHT:
        raise ConfigError("TEST.WEIGHT: which checkpoint? e.g. TEST.WEIGHT runs/market/ViT-B-16_60.pth")
    check_there(cfg.TEST.WEIGHT, "TEST.WEIGHT")
    return arguments, cfg


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line, ConfigError)

from datasets.build import ONE_NAME_MANY_SETS, make_benchmark
from datasets.check import quick_check
from datasets.several import names_of, shifted
from model.build import RESIZING, model_from, settle_architecture
from model.weights import Weights, read_weights
from processor.build import evaluate_model, result_entry, settle_side
from tools.demo.render import render_missing
from utils.devices import describe, pick_device
from utils.distributed import join_processes, leave_processes, main_first, on_main
from utils.errors import WeightsError
from utils.fingerprint import Watch, data_fingerprint, versions
from utils.logs import log_to_screen
from utils.metrics import CROSS_CAMERA, protocol_of
from utils.records import Benchmark
from utils.report import table
from utils.run_folder import RESULTS, append_result, check_writable, read_results

logger = logging.getLogger("test")
# What is said of the training's data set alone -> what holds for another one.
OF_THE_DATA = {"TEST.PROTOCOL": CROSS_CAMERA, "DATASETS.HOLD_OUT": 0.0}


class Home(NamedTuple):
    """A data set that the network was trained on."""

    first_camera: int | None  # the number of its first camera there; None: an earlier version's file does not say
    tested_on: str | None  # fingerprint of its queries and galleries there, where the file says it


class Prepared(NamedTuple):
    """A data set to test on."""

    cfg: CfgNode
    benchmark: Benchmark
    fingerprint: dict
    at_home: bool | None  # whether the network knows its cameras; None: the file does not say what it was trained on
    said: list[str]  # for the log
    notes: list[str]  # what is not as it was in training, for the report, too


def main(argv: list[str] | None = None) -> Path:
    """Test as the command line says; the results file."""
    log_to_screen()
    arguments, cfg = read_command_line(argv)
    requested, weight = arguments.overrides[::2], cfg.TEST.WEIGHT
    weights = read_weights(weight)
    trained = weights.config
    if not arguments.config_file:
        if trained is None:
            raise WeightsError(f"{weight}: is a published file, which holds no settings; give its --config_file")
        cfg = from_dict({**trained, "OUTPUT_DIR": ""}, arguments.overrides, where=weight)
    names, homes = names_of(cfg.DATASETS.NAMES), homes_of(weights)
    held_out = cfg.DATASETS.HOLD_OUT
    if held_out > 0 and not homes.keys().isdisjoint(names) and trained["DATASETS"].get("HOLD_OUT") != held_out:
        raise ConfigError(
            f"DATASETS.HOLD_OUT {held_out}: {weight} was trained with {trained['DATASETS'].get('HOLD_OUT')}, so on "
            "identities that would be tested"
        )
    folder = expanded(cfg.OUTPUT_DIR or Path(weight).parent, "OUTPUT_DIR")
    check_writable(folder)
    read_results(folder / RESULTS)  # refused now if nothing can be added to it
    cfg, architecture, differences = settle_architecture(cfg, weights, requested=requested)
    model, verdict = model_from(weights, architecture, testing=True, resize=not RESIZING.isdisjoint(requested))

    entries: list[dict] = []
    device = join_processes(pick_device(cfg.MODEL.DEVICE))
    try:
        for line in (*differences, *(f"TEST.WEIGHT: {line}" for line in verdict)):
            logger.info("%s", line)
        model = model.to(device)
        inherited = set() if arguments.config_file else OF_THE_DATA.keys() - set(requested)
        # All that can be wrong with any of them is found before the first is tested.
        ready = partial(prepare, cfg, architecture, weights, inherited)
        on_main(partial(render_missing, cfg))
        tests = [main_first(partial(ready, name, homes.get(name))) for name in names]
        warnings = [on_main(partial(check, one.benchmark)) for one in tests]
        watches = [Watch("test images", *chain(*one.benchmark.trials)) for one in tests]
        for one, warned, watch in zip(tests, warnings, watches, strict=True):
            logger.info("%s on %s: %s: %s", weight, describe(device), one.benchmark.name, one.benchmark.counts())
            for line in (*one.said, *one.notes):
                logger.info("%s", line)
            evaluation = evaluate_model(one.cfg, model, one.benchmark, device, at_home=one.at_home)
            entry = result_entry(
                "test",
                one.cfg,
                one.benchmark,
                evaluation,
                architecture=architecture,
                seed=trained["SOLVER"]["SEED"] if trained else None,
                fingerprint=one.fingerprint,
                checkpoint=weight,
                notes=[*differences, *one.notes, *warned, *watch.look()],
            )
            entries.append(entry)
            written = on_main(partial(append_result, folder, entry))
    finally:  # what was measured is shown, whatever comes after
        if entries:
            logger.info("%s\n%s", ", ".join(entry["data_set"] for entry in entries), table(entries))
        leave_processes()
    logger.info("added to %s", written)
    return folder / RESULTS


def homes_of(weights: Weights) -> dict[str, Home]:
    """The data sets that the network was trained on, by name; none for a published file, which does not say."""
    if weights.config is None:
        return {}
    names = names_of(weights.config["DATASETS"]["NAMES"])
    first_cameras = (weights.architecture or {}).get("first_cameras") or [0]
    prints = weights.tested_on
    return {
        name: Home(
            first_cameras[number] if number < len(first_cameras) else None,
            prints[number] if len(prints) == len(names) else None,
        )
        for number, name in enumerate(names)
    }


def prepare(
    cfg: CfgNode, architecture: dict, weights: Weights, inherited: Collection[str], name: str, home: Home | None
) -> Prepared:
    """Read a data set to test on, as it was in training if the network was trained on it.

    Args:
        architecture: of the network that is tested.
        inherited: keys of OF_THE_DATA that `cfg` has from the training.
        home: what is known of it from the training; None: the network was not trained on a data set of this name.

    Raises:
        DataError: what is wrong with the data set.
        WeightsError: it has cameras or viewpoints that the network's side information does not know.
    """
    benchmark, fingerprint, own = None, {}, cfg
    said, notes = [], []
    if home is not None:
        benchmark = shifted(make_benchmark(cfg, name, train=False), cams=home.first_camera or 0)
        fingerprint = data_fingerprint(benchmark)
        if name in ONE_NAME_MANY_SETS and fingerprint["test"] != home.tested_on:
            home = None
    if home is None:
        left = {key for key in inherited if _value(cfg, key) != OF_THE_DATA[key]} if weights.config else set()
        if left or benchmark is None or benchmark.first_camera:
            own = _without(cfg, left)
            benchmark = make_benchmark(own, name, train=False)
            fingerprint = data_fingerprint(benchmark)
        notes += [
            f"{key} {_value(cfg, key)} is of the training's data set; {benchmark.name} is another one: "
            f"{OF_THE_DATA[key]} ({key} on the command line is obeyed)"
            for key in sorted(left)
        ]
    at_home = None if weights.config is None else home is not None and home.first_camera is not None
    protocol = protocol_of(benchmark.ignored)
    if protocol != CROSS_CAMERA:
        said.append(f"protocol {protocol}: every pair counts, no gallery image is left out of a query's ranking")
    if architecture["sie_camera"] or architecture["sie_view"]:
        side = settle_side(own.TEST.SIE, architecture, benchmark, at_home=at_home)
        if side != "none" and home is not None and home.first_camera is None:
            notes.append(f"the file does not say which rows of its side information are {benchmark.name}'s")
        words = f"side information: TEST.SIE {own.TEST.SIE}: {_in_words(side, at_home, benchmark.name)}"
        (said if side == "same" and at_home else notes).append(words)
    return Prepared(own, benchmark, {"data_fingerprint": fingerprint, "versions": versions()}, at_home, said, notes)


def check(benchmark: Benchmark) -> list[str]:
    """Check a data set before a test, log the findings -> the warnings; DataError if it cannot be tested on."""
    return quick_check(benchmark, instances=None, identities=None).heed(logger)


def _in_words(side: str, at_home: bool | None, name: str) -> str:
    if side == "mean":
        return "the mean over all that training knew"
    if side == "none":
        return "left out"
    if at_home:
        return "cameras and viewpoints as in training"
    if at_home is None:
        return f"rows by their numbers; whether they were learnt for {name}, the file does not say"
    return f"rows by their numbers, which were learnt on other data sets than {name}: its cameras may be others"


def _value(cfg: CfgNode, key: str) -> object:
    block, leaf = key.split(".")
    return cfg[block][leaf]


def _without(cfg: CfgNode, keys: Collection[str]) -> CfgNode:
    """`cfg` with what holds for other data sets than the training's."""
    cfg = cfg.clone()
    cfg.defrost()
    for key in keys:
        block, leaf = key.split(".")
        cfg[block][leaf] = OF_THE_DATA[key]
    cfg.freeze()
    return cfg


if __name__ == "__main__":
    sys.exit(run_script(main, ConfigError))
