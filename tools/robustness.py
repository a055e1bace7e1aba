"""Test a checkpoint on queries whose light, colours or quality are changed, against the gallery as it is.

    python -m tools.robustness TEST.WEIGHT runs/demo/ViT-Tiny-8_12.pth
    python -m tools.robustness --corruptions 10 TEST.WEIGHT runs/market/ViT-B-16_60.pth

Changes are brightness and contrast (less and more), warm and cool light, gamma, and JPEG compression; nothing is drawn.
With --corruptions: instead, in each run, one of the 19 corruptions of imagecorruptions with severity 1 to 5, drawn for
every query: the benchmark of Chen et al. (NeurIPS 2021; 10 runs, with rain as a twentieth) where only queries are
corrupted; needs pip install -r requirements-extra.txt

Settings are those of test_svllreid.py. The table has mAP and rank-1, and what the changes cost. robustness.json gets
entries like those of results.json, with `query_change` and `drop` (clean minus changed, as fractions).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from yacs.config import CfgNode

from configs import ConfigError
from tools.early import read_test
from utils.command import answer_early, parse, run_script

OPTIONS = {
    "--corruptions": {"type": int, "default": 0, "metavar": "RUNS", "help": "corruptions in place of the changes"}
}


def read_command_line(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, CfgNode, int]:
    """The words of the command line, the settings as for a test, and how many runs of corruptions."""
    arguments = parse(__doc__, argv, options=OPTIONS)
    if arguments.corruptions < 0:
        raise ConfigError(f"--corruptions: invalid value {arguments.corruptions}, expected a number of runs from 1 on")
    return arguments, read_test(arguments), arguments.corruptions


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from datasets.changes import CHANGES, Change, Corruption
from processor.build.evaluation import evaluate_changes
from processor.build.testing import data_sets, entry_of, open_test
from tools.demo.render import render_missing
from utils.devices import pick_device
from utils.distributed import join_processes, leave_processes, on_main
from utils.logs import log_to_screen
from utils.report import aligned, conditions
from utils.run.results import append_result

logger = logging.getLogger("robustness")
FILE = "robustness.json"
CLEAN = "clean"
SHOWN = {"mAP": "mAP", "rank1": "rank-1"}


def main(argv: Sequence[str] | None = None) -> Path:
    """Test as the command line says; the file with the results."""
    log_to_screen()
    arguments, cfg, runs = read_command_line(argv)
    corruptions: dict[str, Change] = {f"corruptions, run {run + 1}": Corruption(run) for run in range(runs)}
    changes = {CLEAN: None, **(corruptions or CHANGES)}
    test = open_test(cfg, arguments.overrides, configured=bool(arguments.config_file), results=FILE)
    device = join_processes(pick_device(test.cfg.MODEL.DEVICE))
    try:
        model = test.model.to(device)
        for one in data_sets(test, device, render_missing):
            prepared, entries = one.prepared, []
            facts = (prepared.cfg, model, prepared.benchmark, device, changes)
            try:
                for name, evaluation in evaluate_changes(*facts, at_home=prepared.at_home):
                    entry = entry_of(test, one, evaluation)
                    clean = entries[0] if entries else entry
                    drop = {figure: clean[figure] - entry[figure] for figure in SHOWN}
                    entries.append({**entry, "query_change": name, "drop": drop})
                    written = on_main(partial(append_result, test.folder, entries[-1], FILE))
            finally:  # what was measured is shown, whatever comes after
                if entries:
                    logger.info("%s\n%s", prepared.benchmark.name, table(entries))
    finally:
        leave_processes()
    logger.info("added to %s", written)
    return test.folder / FILE


def table(entries: Sequence[dict]) -> str:
    """Clean queries, which come first; changed ones with what they lose; and the mean of these, in per cent.

    Protocol, flip, query expansion and re-ranking are columns where they are not the default.
    """
    titles, cells, *_ = conditions(entries)  # the same for all
    lines = [(entry["query_change"], [entry], entry is not entries[0]) for entry in entries]
    lines += [("mean of the changes", entries[1:], True)] if len(entries) > 2 else []
    rows = [["queries", *(word for title in SHOWN.values() for word in (title, "drop")), *titles]]
    for name, averaged, changed in lines:
        row = [name]
        for figure in SHOWN:
            row.append(f"{100 * fmean(entry[figure] for entry in averaged):.1f}")
            row.append(f"{100 * fmean(entry['drop'][figure] for entry in averaged):.1f}" if changed else "")
        rows.append([*row, *cells])
    return aligned(rows)


if __name__ == "__main__":
    sys.exit(run_script(main))
