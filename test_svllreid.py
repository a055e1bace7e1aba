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
from functools import partial
from itertools import chain
from pathlib import Path

from yacs.config import CfgNode

import utils.threads  # noqa: F401
from configs import ConfigError, load
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

from datasets.build import RENDERED
from datasets.check import quick_check
from datasets.several import names_of
from model.build import RESIZING, rebuild, settle_architecture
from model.weights import read_weights
from processor.build import evaluate_model
from processor.result import result_entry
from processor.transfer import OF_THE_DATA, check_held_out, homes_of, prepare, settings_of
from tools.demo.render import render_missing
from utils.devices import describe, pick_device
from utils.distributed import join_processes, leave_processes, main_first, on_main
from utils.fingerprint import Watch
from utils.logs import log_to_screen
from utils.records import Benchmark
from utils.report import table
from utils.run import RESULTS
from utils.run.folder import check_writable
from utils.run.results import append_result, read_results

logger = logging.getLogger("test")


def main(argv: list[str] | None = None) -> Path:
    """Test as the command line says; the results file."""
    log_to_screen()
    arguments, cfg = read_command_line(argv)
    requested, weight = arguments.overrides[::2], cfg.TEST.WEIGHT
    weights = read_weights(weight, cfg.MODEL.NAME)
    if not arguments.config_file:
        cfg = settings_of(weights, arguments.overrides)
    names, homes = names_of(cfg.DATASETS.NAMES), homes_of(weights)
    check_held_out(cfg, weights, names)
    folder = expanded(cfg.OUTPUT_DIR or Path(weight).parent, "OUTPUT_DIR")
    check_writable(folder)
    read_results(folder / RESULTS)  # refused now if nothing can be added to it
    cfg, architecture, differences = settle_architecture(cfg, weights, requested=requested)
    model, verdict = rebuild(weights, architecture, testing=True, resize=not RESIZING.isdisjoint(requested))

    entries: list[dict] = []
    device = join_processes(pick_device(cfg.MODEL.DEVICE))
    try:
        for line in (*differences, *(f"TEST.WEIGHT: {line}" for line in verdict)):
            logger.info("%s", line)
        model = model.to(device)
        inherited = set() if arguments.config_file else OF_THE_DATA.keys() - set(requested)
        # All that can be wrong with any of them is found before the first is tested.
        ready = partial(prepare, cfg, architecture, weights, inherited)
        found = {}
        for name in sorted(names, key=RENDERED.__contains__):  # what cannot be read is said before any is rendered
            on_main(partial(render_missing, cfg, name))
            found[name] = main_first(partial(ready, name, homes.get(name)))
        tests = [found[name] for name in names]
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
                seed=weights.config["SOLVER"]["SEED"] if weights.config else None,
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


def check(benchmark: Benchmark) -> list[str]:
    """Check a data set before a test, log the findings -> the warnings; DataError if it cannot be tested on."""
    return quick_check(benchmark, instances=None, identities=None).heed(logger)


if __name__ == "__main__":
    sys.exit(run_script(main, ConfigError))
