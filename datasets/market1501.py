"""Market-1501 (Zheng et al., 2015): folders, file names and protocol.

ROOT_DIR/Market-1501-v15.09.15/
    bounding_box_train/   0002_c1s1_000451_03.jpg ...     identity 2, camera 1
    query/
    bounding_box_test/    -1_... is junk (left out), 0000_... a distractor (kept as a wrong answer)
"""

from __future__ import annotations

import re
from pathlib import Path

from utils.errors import DataError
from utils.metrics import same_camera
from utils.records import Benchmark, Sample, Trial

TEMPLATE = "A photo of a {} person."
FOLDERS = ("Market-1501-v15.09.15", "Market-1501", "market1501")
TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
JUNK = -1
SUFFIXES = (".jpg", ".jpeg", ".png")  # of any case; Market-1501 itself has .jpg, and a Thumbs.db to pass over
NAME = re.compile(r"(-1|\d+)_c([1-9]\d*)")  # matched at the start of the base name, never on the folders above


def market1501(root: Path, *, train: bool = True) -> Benchmark:
    """Read the data set below `root`; without `train`, its training images need not be there.

    Raises:
        DataError: naming the folder that is missing or empty, or the file whose name does not fit.
    """
    folder = next((root / name for name in FOLDERS if (root / name).is_dir()), None)
    if folder is None and (root / GALLERY).is_dir():
        folder = root  # the data set's own folder was given
    if folder is None:
        raise DataError(
            f"DATASETS.ROOT_DIR {root}: no Market-1501 here; right is the folder that holds {FOLDERS[0]}/{GALLERY}"
            if root.is_dir()
            else f"DATASETS.ROOT_DIR {root}: there is no such folder; right is the folder that holds {FOLDERS[0]}"
        )
    return read_market_folders("market1501", folder, train=train)


def read_market_folders(name: str, folder: Path, *, train: bool = True) -> Benchmark:
    """A benchmark from three folders of images named as Market-1501's."""
    samples = _read(folder / TRAIN) if train else ()
    labels = {pid: label for label, pid in enumerate(sorted({sample.pid for sample in samples}))}
    samples = tuple(sample._replace(pid=labels[sample.pid]) for sample in samples)
    return Benchmark(name, TEMPLATE, samples, (Trial(_read(folder / QUERY), _read(folder / GALLERY)),), same_camera)


def _read(folder: Path) -> tuple[Sample, ...]:
    """The images of one folder in the order of their names, without junk; cameras from 0."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: there is no such folder; a data set in Market-1501's form has {TRAIN}, {QUERY}, {GALLERY}"
        )
    samples = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."):
        match = NAME.match(path.name)
        if match is None:
            raise DataError(f"{path}: is not named as Market-1501's images are, e.g. 0002_c1s1_000451_03.jpg")
        pid, camera = int(match[1]), int(match[2])
        if pid != JUNK:
            samples.append(Sample(str(path), pid, camera - 1))
    if not samples:
        raise DataError(f"{folder}: holds no image that counts ({', '.join(SUFFIXES)}; identity other than -1)")
    return tuple(samples)
