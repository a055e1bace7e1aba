"""Check a data set before hours are spent on it: what there is, and whether it can be trained on and evaluated.

    python -m tools.check_dataset --config_file configs/person/vit_svllreid.yml DATASETS.ROOT_DIR /data
    python -m tools.check_dataset --quick DATASETS.NAMES msmt17 DATASETS.ROOT_DIR /data

Exit code 1 if training or evaluation could not work, 2 if there is no data set to check (a wrong folder or setting).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from configs import load
from configs.stages import STAGES
from datasets.names import names_together
from tools.early import check_root
from tools.inference import check_output
from utils.command import answer_early, parse, run_script

OPTIONS = {
    "--quick": {
        "action": "store_true",
        "help": "check labels and files only, in a few seconds; otherwise every image is decoded, on all cores",
    },
    "--sheet": {
        "metavar": "FILE.png",
        "help": "where to draw the contact sheet: training identities (rows) in their cameras (columns); "
        "default: runs/check_NAME.png, with --quick none",
    },
}


def read_command_line(argv: Sequence[str] | None = None) -> tuple[CfgNode, argparse.Namespace]:
    """The settings, and this tool's own options."""
    arguments = parse(__doc__, argv, options=OPTIONS)
    cfg = load(arguments.config_file, arguments.overrides)
    if arguments.sheet:
        check_output(arguments.sheet, "--sheet", ".png")
    check_root(cfg, names_together(cfg.DATASETS.NAMES, cfg.DATASETS.NOUN))
    return cfg, arguments


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from datasets.check import quick_check
from tools.check_dataset.full import full_check
from tools.check_dataset.report import text
from tools.check_dataset.sheet import write_sheet
from tools.demo.render import rendered_benchmark
from utils.paths import expanded

SHEETS = Path("runs")


def main(argv: Sequence[str] | None = None) -> int:
    """Check what the command line names; 0 if it can be used, 1 if not."""
    cfg, options = read_command_line(argv)
    sheet = expanded(options.sheet) if options.sheet else None
    benchmark = rendered_benchmark(cfg)
    if sheet is None and not options.quick:
        name = "".join(letter if letter.isalnum() or letter in "-+" else "_" for letter in benchmark.name)
        SHEETS.mkdir(exist_ok=True)
        sheet = SHEETS / f"check_{name}.png"
        check_output(str(sheet), "--sheet", ".png")
    instances = cfg.DATALOADER.NUM_INSTANCE
    drawn = any(STAGES[name].draws_identities for name in cfg.PROCESSOR.STAGES)
    identities = cfg.SOLVER.STAGE2.IMS_PER_BATCH // instances if drawn else None
    check = quick_check if options.quick else full_check
    report = check(benchmark, instances=instances, identities=identities)
    sys.stdout.write(text(benchmark, report) + "\n")

    if sheet is not None and benchmark.train:
        write_sheet(benchmark, sheet, size=cfg.INPUT.SIZE_TRAIN)
        sys.stdout.write(f"{sheet}: training identities (rows) in their cameras (columns)\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(run_script(main))
