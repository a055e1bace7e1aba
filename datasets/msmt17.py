"""MSMT17 (Wei et al., 2018): lists, the folders of its versions, protocol.

ROOT_DIR/MSMT17/             or MSMT17_V1/; MSMT17_V2/ has mask_train_v2 and mask_test_v2: the same images with
    train/                   blurred faces, which score lower
    test/
    list_train.txt           0000/0000_000_01_0303morning_0008_0.jpg 0     camera 1, identity 0 of this split
    list_val.txt             in train/, too
    list_query.txt, list_gallery.txt
"""

from __future__ import annotations

import os
import re
from itertools import product
from pathlib import Path

from datasets.names import PERSON
from datasets.naming import Origin, dense_labels, not_found, places, read_list, require_folder
from utils.errors import DataError
from utils.metrics import same_camera
from utils.records import Benchmark, Sample, Trial

ORIGIN = Origin(
    "MSMT17",
    tuple(f"{parent}{name}" for parent in ("", "msmt17/") for name in ("MSMT17", "MSMT17_V1", "MSMT17_V2", "msmt17")),
    "0000/0000_000_01_0303morning_0008_0.jpg",
)
SPLITS = {"train": "test", "mask_train_v2": "mask_test_v2"}  # training folder -> test folder
LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")
NAME = re.compile(r"[^_]+_[^_]+_(\d+)_")  # the third field of the base name is the camera
UNKNOWN = "unknown version"


def msmt17(root: Path, *, train: bool = True, val: bool = True) -> Benchmark:
    """Read the data set below `root`, whichever version is there; `msmt17_version` says which.

    Args:
        train: without it, the training images and their lists need not be there.
        val: train on the validation list, too, as is usual; its identities are those of the training list.

    Raises:
        DataError: naming the folder or list that is missing, the line that is wrong, the images that are listed but not
            there, or the versions if there are several.
    """
    folder, train_folder, test_folder = _find(root)
    samples: list[Sample] = []
    if train:
        samples = _read(folder, LISTS[: 1 + val], folder / train_folder)
    query, gallery = (_read(folder, (name,), folder / test_folder) for name in LISTS[2:])
    trial = Trial(tuple(query), tuple(gallery))
    variant = "" if val else "without val"
    return Benchmark("msmt17", PERSON, dense_labels(samples), (trial,), same_camera, variant=variant)


def msmt17_version(root: Path) -> str:
    """Which version is there, by the names of the folders: V1, V2, or unknown version. Image names are the same.

    Raises:
        DataError: the data set is not there, or in several versions.
    """
    folder, _, test_folder = _find(root)
    return _version(folder / test_folder)


def _version(test_folder: Path) -> str:
    # Links are followed: MSMT17/test is often a link to MSMT17_V2/mask_test_v2.
    test_folder = test_folder.resolve()
    if test_folder.name == SPLITS["mask_train_v2"]:
        return "V2"
    match = re.fullmatch(r"msmt17[_-]?(v[12])", test_folder.parent.name.lower())
    return match[1].upper() if match else UNKNOWN


def _find(root: Path) -> tuple[Path, str, str]:
    """The folder of the lists, and the names of its training and its test folder."""
    found: dict[Path, tuple[Path, str, str]] = {}  # by their images: one version may be there under two names
    for folders in places(root, ORIGIN):
        for folder, (train_folder, test_folder) in product(folders, SPLITS.items()):
            if folder == root and not any((root / name).is_file() for name in LISTS):
                continue  # a folder "test" is not yet MSMT17
            if (folder / test_folder).is_dir():
                found.setdefault((folder / test_folder).resolve(), (folder, train_folder, test_folder))
        if found:
            break
    if not found:
        raise DataError(not_found(root, ORIGIN, "test"))
    if len(found) > 1:
        versions = ", ".join(f"{folder / test} ({_version(folder / test)})" for folder, _, test in found.values())
        raise DataError(
            f"DATASETS.ROOT_DIR {root}: several versions of MSMT17 are there: {versions}; expected the folder of one "
            "of them, or only one of them"
        )
    return next(iter(found.values()))


def _read(folder: Path, lists: tuple[str, ...], images: Path) -> list[Sample]:
    """The images of some lists, sorted by their paths; cameras from 0."""
    require_folder(images, f"MSMT17 has {images.name} beside {lists[0]}")
    samples, inside = [], str(images)
    for name in lists:
        path = folder / name
        missing = f"MSMT17 has {', '.join(LISTS)}"
        for line in read_list(path, images, example=f"{ORIGIN.example} 0", missing=missing):
            match = NAME.match(line.image.rpartition("/")[2])
            if match is None or int(match[1]) == 0:
                raise DataError(f"{path}: line {line.number} names {line.image}, which {ORIGIN.misfit(match)}")
            samples.append(Sample(os.path.join(inside, line.image), line.pid, int(match[1]) - 1))
    return sorted(samples)
