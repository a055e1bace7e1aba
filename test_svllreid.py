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
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from yacs.config import CfgNode

from tools.early import read_test
from utils.command import answer_early, parse, run_script


def read_command_line(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, CfgNode]:
    """The words of the command line, and the settings; without a configuration file, TEST.WEIGHT alone."""
    arguments = parse(__doc__, argv)
    return arguments, read_test(arguments)


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from processor.build.evaluation import evaluate_model
from processor.build.testing import data_sets, entry_of, open_test
from tools.demo.render import render_missing
from utils.devices import pick_device
from utils.distributed import join_processes, leave_processes, on_main
from utils.logs import log_to_screen
from utils.report import table
from utils.run import RESULTS
from utils.run.results import append_result

logger = logging.getLogger("test")


def main(argv: list[str] | None = None) -> Path:
    """Test as the command line says; the results file."""
    log_to_screen()
    arguments, cfg = read_command_line(argv)
    test = open_test(cfg, arguments.overrides, configured=bool(arguments.config_file))
    entries: list[dict] = []
    device = join_processes(pick_device(test.cfg.MODEL.DEVICE))
    try:
        model = test.model.to(device)
        for one in data_sets(test, device, render_missing):
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


if __name__ == "__main__":
    sys.exit(run_script(main))
