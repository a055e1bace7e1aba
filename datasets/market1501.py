"""Market-1501 (Zheng et al., 2015): folders, file names and protocol.

ROOT_DIR/Market-1501-v15.09.15/
    bounding_box_train/   0002_c1s1_000451_03.jpg ...     identity 2, camera 1
    query/
    bounding_box_test/    -1_... is junk (left out), 0000_... a distractor (kept as a wrong answer)
"""

from __future__ import annotations

from pathlib import Path

from datasets.names import PERSON
from datasets.naming import (
    MARKET_FORM,
    Origin,
    dense_labels,
    read_three_folders,
    seen_in_training,
    usual_folder,
)
from utils.metrics import same_camera
from utils.records import Benchmark, Trial

FOLDERS = ("Market-1501-v15.09.15", "Market-1501", "market1501", "market1501/Market-1501-v15.09.15")
TRAIN, QUERY, GALLERY = MARKET_FORM
ORIGIN = Origin("Market-1501", FOLDERS, "0002_c1s1_000451_03.jpg")


def market1501(root: Path, *, train: bool = True) -> Benchmark:
    """Read the data set below `root`; without `train`, its training images need not be there.

    Raises:
        DataError: naming the folder that is missing or empty, or the file whose name does not fit.
    """
    return read_market_folders("market1501", usual_folder(root, ORIGIN, (GALLERY, QUERY, TRAIN)), train=train)


def read_market_folders(name: str, folder: Path, *, train: bool = True, origin: Origin = ORIGIN) -> Benchmark:
    """A benchmark from three folders of images named as Market-1501's."""
    own = "" if origin is ORIGIN else f"{origin.title}, "
    missing = f"{own}a data set in Market-1501's form has {TRAIN}, {QUERY}, {GALLERY}"
    (training, *test), omitted = read_three_folders(folder, MARKET_FORM, origin, train=train, missing=missing)
    trial = Trial(*test)
    seen = seen_in_training(training, trial)
    return Benchmark(name, PERSON, dense_labels(training), (trial,), same_camera, seen=seen, omitted=omitted)
