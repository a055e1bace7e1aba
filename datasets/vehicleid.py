"""VehicleID (Liu et al., 2016): lists and protocol.

ROOT_DIR/VehicleID_V1.0/
    image/                0000001.jpg ...
    train_test_split/     train_list.txt, test_list_800.txt (small), test_list_1600.txt (medium), test_list_2400.txt
                          (large): 0000001 1401     image 0000001.jpg, identity 1401

There are no labels of cameras, and so no pairs to ignore. One image of each test identity, drawn at random, is the
gallery, all others are queries; results are means over ten such draws.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.names import VEHICLE
from datasets.naming import Origin, dense_labels, read_list, require_folder, seen_in_training, usual_folder
from utils.metrics import ignore_nothing
from utils.records import Benchmark, Sample, Trial

IMAGES, LISTS = "image", "train_test_split"
TRAIN = "train_list.txt"
SIZES = {"small": "test_list_800.txt", "medium": "test_list_1600.txt", "large": "test_list_2400.txt"}
TRIALS = 10
SEED = 1234
EXAMPLE = "0000001 1401"
ORIGIN = Origin("VehicleID", ("VehicleID_V1.0", "VehicleID", "PKU-VehicleID", "vehicleid", "VehicleID/VehicleID_V1.0"))


def vehicleid(
    root: Path, *, train: bool = True, size: str = "small", trials: int = TRIALS, seed: int = SEED
) -> Benchmark:
    """Read the data set below `root`; without `train`, its training list and images need not be there.

    Args:
        size: which test list: small, medium or large.
        trials: how many galleries are drawn; all trials share their samples, so that one pass over the images serves.
        seed: of the draws, which depend on it, on the number of the trial and on what is listed, not on its order.

    Raises:
        DataError: naming the folder or list that is missing, the line that is wrong, or the images that are listed but
            not there.
    """
    folder = usual_folder(root, ORIGIN, (LISTS, IMAGES))
    samples = _read(folder, TRAIN) if train else ()
    test = _read(folder, SIZES[size])
    draws = tuple(_trial(test, seed, trial) for trial in range(trials))
    seen = seen_in_training(samples, draws[0])  # all draws are of the same images
    return Benchmark("VehicleID", VEHICLE, dense_labels(samples), draws, ignore_nothing, seen=seen, variant=size)


def _trial(samples: Sequence[Sample], seed: int, trial: int) -> Trial:
    """One image of each identity becomes the gallery; the order of both sides stays that of `samples`."""
    rows: dict[int, list[int]] = {}
    for row, sample in enumerate(samples):
        rows.setdefault(sample.pid, []).append(row)
    pids = sorted(rows)
    picks = np.random.default_rng([seed, trial]).integers(0, [len(rows[pid]) for pid in pids])
    drawn = {rows[pid][pick] for pid, pick in zip(pids, picks.tolist(), strict=True)}
    query, gallery = (tuple(s for row, s in enumerate(samples) if (row in drawn) == side) for side in (False, True))
    return Trial(query, gallery)


def _read(folder: Path, name: str) -> tuple[Sample, ...]:
    """The images of a list, sorted by their paths."""
    images, path = folder / IMAGES, folder / LISTS / name
    require_folder(images, f"VehicleID has {IMAGES} and {LISTS}")
    missing = f"VehicleID has {', '.join((TRAIN, *SIZES.values()))} in {LISTS}"
    lines = read_list(path, images, suffix=".jpg", example=EXAMPLE, missing=missing)
    inside = str(images)
    return tuple(sorted(Sample(os.path.join(inside, line.image), line.pid, 0) for line in lines))
