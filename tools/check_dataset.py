"""Check a data set before hours are spent on it: what there is, and whether it can be trained on and evaluated.

    python -m tools.check_dataset --config_file configs/person/vit_svllreid.yml DATASETS.ROOT_DIR /data
    python -m tools.check_dataset --quick DATASETS.NAMES msmt17 DATASETS.ROOT_DIR /data

    --quick          labels and files only, a few seconds; else every image is decoded, with all cores
    --sheet FILE.png where to write a picture of training identities (rows) in their cameras (columns);
                     without --quick, runs/check_NAME.png if it is not given

Exit code 1 if training or evaluation could not work, 2 if there is nothing to check (a wrong folder or setting).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

import utils.threads  # noqa: F401
from configs import ConfigError, load
from utils.command import answer_early, parse, run_script


def read_command_line(argv: Sequence[str] | None = None) -> tuple[CfgNode, argparse.Namespace]:
    """The settings, and this tool's own options."""
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--quick", action="store_true")
    flags.add_argument("--sheet", type=Path)
    options, others = flags.parse_known_args(argv)
    arguments = parse(__doc__, others)
    return load(arguments.config_file, arguments.overrides), options


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line, ConfigError)

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from skimage.util import montage

from datasets.check import full_check, quick_check
from datasets.images import read_image
from tools.demo.render import rendered_benchmark
from utils.errors import DataError, UserError
from utils.paths import expanded
from utils.records import Benchmark, Sample

SHEETS = Path("runs")
ROWS, COLUMNS = 10, 12
HEIGHT, GAP, MARGIN, LINE, TITLE = 128, 2, 170, 14, 800  # pixels
WHITE, GREY, BLACK = (255, 255, 255), (128, 128, 128), (0, 0, 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Check what the command line names; 0 if it can be used, 1 if not."""
    cfg, options = read_command_line(argv)
    sheet = options.sheet
    if sheet is not None:
        sheet = expanded(sheet, "--sheet")
        check_sheet(sheet)

    benchmark = rendered_benchmark(cfg)
    if sheet is None and not options.quick:
        name = "".join(letter if letter.isalnum() or letter in "-+" else "_" for letter in benchmark.name)
        sheet = SHEETS / f"check_{name}.png"
        check_place(sheet)
    instances = cfg.DATALOADER.NUM_INSTANCE
    identities = cfg.SOLVER.STAGE2.IMS_PER_BATCH // instances if "image" in cfg.PROCESSOR.STAGES else None
    check = quick_check if options.quick else full_check
    report = check(benchmark, instances=instances, identities=identities)
    sys.stdout.write(report.text() + "\n")

    if sheet is not None and benchmark.train:
        write_sheet(benchmark, sheet, size=cfg.INPUT.SIZE_TRAIN)
        sys.stdout.write(f"{sheet}: training identities (rows) in their cameras (columns)\n")
    return 1 if report.problems else 0


def check_sheet(path: Path) -> None:
    """Say at once, not after all images are decoded, that the picture could not be written."""
    if path.suffix.lower() != ".png":
        raise UserError(f"--sheet {path}: is no name of a picture; right is one that ends in .png")
    try:
        if not path.absolute().parent.is_dir():
            raise UserError(f"--sheet {path}: there is no folder {path.absolute().parent}")
        if path.is_dir():
            raise UserError(f"--sheet {path}: is a folder")
    except OSError as error:
        raise UserError(f"--sheet {path}: {error.strerror}") from error
    check_place(path)


def check_place(path: Path) -> None:
    """UserError if the folder that `path` is to be in is none, or cannot be made or written to."""
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UserError(f"{path}: {parent} cannot be written to ({error.strerror}); see --sheet") from error


def write_sheet(benchmark: Benchmark, path: Path, *, size: Sequence[int]) -> None:
    """A picture of what is trained on: identities in rows, one image from each of their cameras in columns.

    Identities are spread evenly over all; where there is only one camera, its images stand side by side. Pictures keep
    their shape; a grey one cannot be read.

    Args:
        size: height and width of the network's input, which the fields of the sheet are shaped after.
    """
    heads, rows = choose(benchmark.train)
    width = round(HEIGHT * min(1.0, max(0.5, size[1] / size[0])))
    blank = np.full((HEIGHT, width, 3), WHITE, np.uint8)
    tiles = [blank if sample is None else _tile(sample.path, width) for row in rows for sample in row]
    grid = montage(tiles, grid_shape=(len(rows), len(heads)), padding_width=GAP, fill=WHITE, channel_axis=-1)
    sheet = Image.new("RGB", (max(TITLE, MARGIN + grid.shape[1]), 2 * LINE + grid.shape[0]), WHITE)
    sheet.paste(Image.fromarray(grid), (MARGIN, 2 * LINE))
    draw = ImageDraw.Draw(sheet)
    title = f"{benchmark.name}: {len(benchmark.train)} training images of {benchmark.num_pids} identities"
    draw.text((GAP, GAP), title.encode("ascii", "replace").decode(), fill=BLACK)
    for column, head in enumerate(heads):
        draw.text((MARGIN + GAP + column * (width + GAP), LINE + GAP), head, fill=BLACK)
    for row, line in enumerate(rows):
        first = next(sample for sample in line if sample is not None)
        name = Path(first.path).name.encode("ascii", "replace").decode()[:26]
        top = 2 * LINE + GAP + row * (HEIGHT + GAP)
        draw.text((GAP, top), f"label {first.pid}", fill=BLACK)
        draw.text((GAP, top + LINE), name, fill=BLACK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def choose(samples: Sequence[Sample]) -> tuple[list[str], list[list[Sample | None]]]:
    """What is on the sheet: the columns' heads, and for every row a sample or None in each column."""
    pids = sorted({sample.pid for sample in samples})
    chosen = [pids[round(place)] for place in np.linspace(0, len(pids) - 1, min(ROWS, len(pids)))]
    by_identity: dict[int, list[Sample]] = {pid: [] for pid in chosen}
    for sample in samples:
        if sample.pid in by_identity:
            by_identity[sample.pid].append(sample)
    cameras = sorted({sample.camid for sample in samples})
    if len(cameras) == 1:
        columns = min(COLUMNS, max(map(len, by_identity.values())))
        padded = [[*of_one[:columns], *[None] * (columns - len(of_one))] for of_one in by_identity.values()]
        return [f"image {number}" for number in range(columns)], padded
    # With more cameras than columns, the ones that saw most of the chosen.
    seen = {
        camera: sum(any(s.camid == camera for s in of_one) for of_one in by_identity.values()) for camera in cameras
    }
    cameras = sorted(sorted(cameras, key=lambda camera: -seen[camera])[:COLUMNS])
    rows = [
        [next((s for s in of_one if s.camid == camera), None) for camera in cameras] for of_one in by_identity.values()
    ]
    return [f"camera {camera}" if camera >= 0 else "unknown" for camera in cameras], [row for row in rows if any(row)]


def _tile(path: str, width: int) -> np.ndarray:
    """[HEIGHT, width, 3]"""
    try:
        return np.asarray(ImageOps.pad(read_image(path), (width, HEIGHT), color=WHITE))
    except DataError:
        return np.full((HEIGHT, width, 3), GREY, np.uint8)


if __name__ == "__main__":
    sys.exit(run_script(main, ConfigError))
