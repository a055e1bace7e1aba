"""VeRi-776 (Liu et al., 2016): folders, file names, viewpoints and protocol.

ROOT_DIR/VeRi/
    image_train/   0001_c001_00016450_0.jpg ...     identity 1, camera 1 of 20; -1_... is left out
    image_query/
    image_test/    the query images are here, too: a query ignores its own identity in its own camera

Viewpoints are not part of the data set. They come with the key points of Wang et al. (2017), in files that are called
keypoint_train.txt and keypoint_test.txt; a line is an image's path, x and y of 20 key points, and the viewpoint.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from datasets.names import VEHICLE
from datasets.naming import (
    Origin,
    dense_labels,
    read_three_folders,
    seen_in_training,
    text_lines,
    usual_folder,
)
from utils.errors import DataError
from utils.metrics import same_camera
from utils.records import Benchmark, Sample, Trial

TRAIN, QUERY, GALLERY = "image_train", "image_query", "image_test"
ORIGIN = Origin("VeRi", ("VeRi", "VeRi-776", "VeRi776", "VeRi_with_plate", "veri"), "0001_c001_00016450_0.jpg")
UNKNOWN = -1
# The base name, 40 coordinates (-1: the key point is not to be seen), the viewpoint.
ANNOTATION = re.compile(r"(?:\S*[/\\])?([^\s/\\]+)(?: -?\d+(?:\.\d+)?){40} (-1|[0-7])")
SOURCE = (
    "VeRi's viewpoints are in keypoint_train.txt and keypoint_test.txt of the key points by Wang et al. (2017), "
    "github.com/Zhongdao/VehicleReIDKeyPointData"
)

_log = logging.getLogger(__name__)


def veri(root: Path, *, train: bool = True, viewpoints: Sequence[Path] = ()) -> Benchmark:
    """Read the data set below `root`; without `train`, its training images need not be there.

    Args:
        viewpoints: annotation files; the first that knows an image says its viewpoint, an image that none knows has -1
            (unknown). Without files, all viewpoints are 0.

    Raises:
        DataError: naming the folder or file that is missing or empty, the file whose name does not fit, or the line of
            an annotation file that is damaged.
    """
    folder = usual_folder(root, ORIGIN, (GALLERY, QUERY, TRAIN))
    missing = f"VeRi has {TRAIN}, {QUERY}, {GALLERY}"
    splits, omitted = read_three_folders(folder, (TRAIN, QUERY, GALLERY), ORIGIN, train=train, missing=missing)
    if viewpoints:
        known = read_viewpoints(viewpoints)
        splits = [_with_viewpoints(samples, known) for samples in splits]
        for split, samples in zip((TRAIN, QUERY, GALLERY), splits, strict=True):
            unknown = sum(sample.viewid == UNKNOWN for sample in samples)
            if split == TRAIN and samples and unknown == len(samples):
                names = ", ".join(map(str, viewpoints))
                raise DataError(f"{names}: no viewpoint of any image in {folder / TRAIN}; {SOURCE}")
            if unknown:
                _log.warning("%s: %d of %d images have no viewpoint: unknown", folder / split, unknown, len(samples))
    training, *test = splits
    trial = Trial(*test)
    seen = seen_in_training(training, trial)
    return Benchmark("veri", VEHICLE, dense_labels(training), (trial,), same_camera, seen=seen, omitted=omitted)


def read_viewpoints(paths: Sequence[Path]) -> dict[str, int]:
    """Base name of an image -> viewpoint, from annotation files; the first entry counts.

    Raises:
        DataError: naming the file that is missing or empty, or its line that is damaged.
    """
    known: dict[str, int] = {}
    for path in paths:
        lines = text_lines(path, missing=SOURCE)
        if not lines:
            raise DataError(f"{path}: holds no line; {SOURCE}")
        for number, text in lines:
            match = ANNOTATION.fullmatch(text)
            if match is None:
                raise DataError(
                    f"{path}: line {number} is {text[:60]!r} ({text.count(' ') + 1} fields); expected 42: an image, "
                    f"40 coordinates, a viewpoint from 0 to 7, or {UNKNOWN} where it is not known"
                )
            known.setdefault(match[1], int(match[2]))
    return known


def _with_viewpoints(samples: Sequence[Sample], known: dict[str, int]) -> tuple[Sample, ...]:
    return tuple(sample._replace(viewid=known.get(os.path.basename(sample.path), UNKNOWN)) for sample in samples)
