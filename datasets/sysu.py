"""SYSU-MM01 (Wu et al., 2017): folders, lists and protocol of people seen by visible and by infrared cameras.

ROOT_DIR/SYSU-MM01/
    cam1/ ... cam6/     0001/0001.jpg ...                          a folder per identity; cameras 3 and 6 are infrared
    exp/                train_id.txt, val_id.txt, test_id.txt      1,2,5: identities

Infrared images are the queries. One visible image of each test identity in each camera, drawn at random, is the gallery
(single-shot); results are means over ten such draws. They are those of Python's generator seeded with the number of the
draw, as published programs draw them, not those of the permutations that come with the data set.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from datasets.names import PERSON, TEMPLATES
from datasets.naming import (
    Origin,
    all_omitted,
    dense_labels,
    image_names,
    require_folder,
    seen_in_training,
    text_lines,
    usual_folder,
)
from utils.errors import DataError
from utils.records import INFRARED, VISIBLE, Benchmark, Labels, Omitted, Sample, Trial

ORIGIN = Origin("SYSU-MM01", ("SYSU-MM01", "sysu_mm01", "SYSU_MM01", "sysu", "SYSU"))
LISTS = "exp"
TRAIN, TEST = ("train_id.txt", "val_id.txt"), ("test_id.txt",)
MODALITIES = {1: VISIBLE, 2: VISIBLE, 3: INFRARED, 4: VISIBLE, 5: VISIBLE, 6: INFRARED}  # by the number of the camera
MODES = {"all": (1, 2, 4, 5), "indoor": (1, 2)}  # cameras of the gallery; 3, an infrared one, is indoor, too
TRIALS = 10
RANKS = (1, 5, 10, 20)

Folders = dict[tuple[int, int], tuple[Sample, ...]]  # by identity and number of the camera, of those that have images


def sysu_mm01(root: Path, *, train: bool = True, mode: str = "all", trials: int = TRIALS) -> Benchmark:
    """Read the data set below `root`.

    Args:
        train: without it, images of the training identities need not be there.
        mode: of the search: all, or indoor, which leaves the outdoor cameras out of the gallery.
        trials: how many galleries are drawn; trial t depends on t and the folders alone.

    Raises:
        DataError: naming the folder or list that is missing, or the list that is no list of identities.
    """
    folder = usual_folder(root, ORIGIN, ("cam1",))
    images, skipped = _read(folder, _identities(folder, TRAIN)) if train else ({}, Omitted())
    samples = [sample for some in images.values() for sample in some]
    tested, skipped_too = _read(folder, _identities(folder, TEST))
    query = tuple(s for (_, camera), some in tested.items() if MODALITIES[camera] == INFRARED for s in some)
    draws = tuple(Trial(query, draw_gallery(tested, MODES[mode], trial)) for trial in range(trials))
    return Benchmark(
        "sysu_mm01",
        PERSON,
        dense_labels(sorted(samples)),
        draws,
        same_place,
        seen=seen_in_training(samples, draws[0]),
        variant=f"{mode}-search",
        omitted=all_omitted((skipped, skipped_too)),
        templates=TEMPLATES,
        unique_identities=True,
        ranks=RANKS,
    )


def same_place(query: Labels, gallery: Labels) -> Tensor:
    """The protocol: a query of camera 3 does not see camera 2, which is at the same place. -> bool [Q, G]"""
    return (query.camids[:, None] == 2) & (gallery.camids == 1)  # from 0


def draw_gallery(images: Mapping[tuple[int, int], tuple[Sample, ...]], cameras: Iterable[int], trial: int):
    """One image of each identity in each of the cameras that saw it: identities ascending, then `cameras` in order."""
    generator = random.Random(trial)
    pids = sorted({pid for pid, _ in images})
    return tuple(generator.choice(images[pid, camera]) for pid in pids for camera in cameras if (pid, camera) in images)


def _identities(folder: Path, names: Iterable[str]) -> list[int]:
    """The identities of some lists together, ascending."""
    pids: set[int] = set()
    for name in names:
        path = folder / LISTS / name
        lines = text_lines(path, missing=f"SYSU-MM01 has {', '.join((*TRAIN, *TEST))} in {LISTS}")
        words = " ".join(text for _, text in lines).replace(",", " ").split()
        if wrong := next((word for word in words if not (word.isascii() and word.isdigit())), None):
            raise DataError(f"{path}: {wrong[:80]!r} is no identity; expected numbers with commas: 1,2,5")
        if not words:
            raise DataError(f"{path}: names no identity")
        pids.update(map(int, words))
    return sorted(pids)


def _read(folder: Path, pids: Iterable[int]) -> tuple[Folders, Omitted]:
    """The images of some identities, in the order of identities, cameras and names; and what was skipped."""
    images: Folders = {}
    skipped, without = [], []
    there = {camera: _folders(folder / f"cam{camera}") for camera in MODALITIES}
    for pid in pids:
        name = f"{pid:04d}"
        for camera, modality in MODALITIES.items():
            if name in there[camera]:
                inside = folder / f"cam{camera}" / name
                names, omitted = image_names(inside)
                skipped.append(omitted)
                if names:
                    paths = (os.path.join(inside, one) for one in names)
                    images[pid, camera] = tuple(Sample(path, pid, camera - 1, 0, modality) for path in paths)
        if not any((pid, camera) in images for camera in MODALITIES):
            without.append(name)
    return images, all_omitted((*skipped, Omitted(identities=tuple(without))))


def _folders(camera: Path) -> set[str]:
    """The names in a camera's folder."""
    require_folder(camera, f"SYSU-MM01 has cam1 to cam{len(MODALITIES)}")
    return set(os.listdir(camera))
