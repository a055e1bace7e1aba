"""Run the demo: render a data set, train all stages, evaluate before and after, check that training helped.

    python -m tools.demo                                     # what `make demo` does
    python -m tools.demo --config_file configs/demo/vit_clipreid.yml SOLVER.SEED 1
    python -m tools.demo --config_file configs/demo/vehicle_svllreid.yml
    python -m tools.demo --config_file configs/demo/vi_cclnet.yml    # what `make demo-vi` does

Writes to runs/demo or, with another file, to e.g. runs/demo_vi_cclnet, which is emptied first (another OUTPUT_DIR is
not). Exit code 1 if the end is not 5 mAP points above the frozen start.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from pathlib import Path

import yaml

from configs import differences, load
from datasets.names import names_together
from utils.command import answer_early, parse, run_script
from utils.paths import expanded
from utils.run.places import check_writable

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DEMO, PUBLISHED = CONFIGS / "demo/vit_svllreid.yml", CONFIGS / "person/vit_svllreid.yml"
PUBLISHED_CCLNET = CONFIGS / "sysu/cclnet.yml"
FOLDER = Path("runs/demo")


def read_command_line(argv: list[str] | None = None) -> argparse.Namespace:
    """The settings, as `cfg`, and the `folder` of their demo."""
    arguments = parse(__doc__, argv, config_file=str(DEMO))
    arguments.cfg = load(arguments.config_file, arguments.overrides)
    name = Path(arguments.config_file).stem
    arguments.folder = FOLDER if name == DEMO.stem else FOLDER.with_name(f"{FOLDER.name}_{name}")
    names_together(arguments.cfg.DATASETS.NAMES, arguments.cfg.DATASETS.NOUN)
    check_writable(expanded(arguments.cfg.OUTPUT_DIR or arguments.folder, "OUTPUT_DIR"))
    return arguments


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from datasets.build import RENDERED, make_benchmark
from tools.check_dataset.sheet import write_sheet
from tools.demo.figures import draw
from train_svllreid import train
from utils.devices import pick_device
from utils.errors import UserError
from utils.logs import log_to_screen
from utils.run import CONFIG, RESULTS
from utils.run.results import END, START, read_results

logger = logging.getLogger("demo")

GAIN = 0.05  # of mAP, below which the demo has failed
SHEET = "pictures.png"
# Settings that say where and on what, not how.
NO_DEPARTURE = ("DATASETS.", "OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "TEST.IMS_PER_BATCH", "_PERIOD")


def main(argv: list[str] | None = None) -> int:
    """Run the demo; 0 if training helped, 1 if not."""
    arguments = read_command_line(argv)
    cfg = arguments.cfg
    log_to_screen()
    folder = expanded(cfg.OUTPUT_DIR or arguments.folder, "OUTPUT_DIR")
    pick_device(cfg.MODEL.DEVICE)
    if not cfg.OUTPUT_DIR:  # a folder that was named is treated as any training's
        empty(folder)
    train(cfg, folder)

    by_moment = {entry["when"]: entry for entry in read_results(folder / RESULTS)["evaluations"]}
    benchmark = make_benchmark(cfg)
    write_sheet(benchmark, folder / SHEET, size=cfg.INPUT.SIZE_TRAIN)
    two_modalities = bool(benchmark.templates)
    if not two_modalities:  # tools.attention takes all images as of one modality
        draw(Path(by_moment[END]["checkpoint"]), benchmark, folder, cfg.MODEL.DEVICE)
    recipe = PUBLISHED_CCLNET if two_modalities else PUBLISHED
    departures = differences(cfg, load(recipe), besides=NO_DEPARTURE)
    lines = (f"  {key}: {ours} (published {published})" for key, (ours, published) in departures.items())
    name = recipe.relative_to(CONFIGS)
    logger.info("differences from configs/%s, the published recipe:\n%s", name, "\n".join(lines))
    files = sorted(path for path in folder.iterdir() if path.is_file())
    logger.info("files:\n%s", "\n".join(f"  {path}  {path.stat().st_size / 1e3:,.0f} kB" for path in files))
    return judge(by_moment)


def empty(folder: Path) -> None:
    """Remove an earlier demo; what is anything else is left alone."""
    if not folder.exists() and not folder.is_symlink():
        return
    try:
        earlier = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))["DATASETS"]["NAMES"] in RENDERED
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError):
        earlier = folder.is_dir() and not any(folder.iterdir())
    if folder.is_symlink() or not earlier:
        raise UserError(f"{folder}: is in the way and is no earlier demo; move it away, or set OUTPUT_DIR")
    shutil.rmtree(folder)


def judge(by_moment: dict[str, dict]) -> int:
    """Compare the frozen start with the end, by a run's entries of results.json."""
    start, end = (by_moment[when]["mAP"] for when in (START, END))
    logger.info("mAP %.1f before training, %.1f after: %+.1f", 100 * start, 100 * end, 100 * (end - start))
    if end < start + GAIN:
        sys.stderr.write(f"error: training did not gain {100 * GAIN:.0f} mAP points; something is broken\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
