"""Contact sheet: training identities in their cameras."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from skimage.util import montage

from datasets.images import read_image
from utils.errors import DataError, writing
from utils.records import Benchmark, Sample

ROWS, COLUMNS = 10, 12
HEIGHT, GAP, MARGIN, LINE, TITLE = 128, 2, 170, 14, 800  # pixels
WHITE, GREY, BLACK = (255, 255, 255), (128, 128, 128), (0, 0, 0)


def write_sheet(benchmark: Benchmark, path: Path, *, size: Sequence[int]) -> None:
    """Write a contact sheet: training identities in rows, one image from each of their cameras in columns.

    Identities are spread evenly over all; where there is only one camera, its images stand side by side. Images keep
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
    with writing(path):
        sheet.save(path)


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
