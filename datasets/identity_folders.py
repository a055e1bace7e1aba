"""Folders of images: a folder per identity, or names that begin with the identity, as Market-1501's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from datasets.labels import CAMERA, FOLDERS, JUNK, TRAIN, Found, LabelledImage, camera_of, identity_of, natural, normal
from datasets.naming import all_omitted, is_litter, too_deep
from datasets.table import is_table
from utils.errors import DataError
from utils.metrics import ALL, CROSS_CAMERA
from utils.records import NOTHING, Omitted

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".jfif")  # of any case
CAMERA_FOLDER = re.compile(r"(c|cam|camera)[\W_]*[0-9]+|(cam|camera)[\W_]+[a-z]", re.IGNORECASE)
NUMBER = re.compile(r"(-1|[0-9]+)_")
# Plates are no such numbers: what follows a hyphen, a blank or a dot is no letter (12-34, but not 12-AB).
LEADING = re.compile(r"(-1|((p|id|pid|person|v|vid|vehicle|car)[_-]?)?[0-9]+)(?=_|(\W[0-9]+)*\Z)", re.IGNORECASE)


def read_folders(root: Path, there: Sequence[str], train: bool) -> Found:
    splits, omitted = {}, []
    known = {split: [name for name in names if name in there] for split, names in FOLDERS.items()}
    if not any(known.values()):
        raise DataError(_why_no_splits(root, there))
    for split, found in known.items():
        if len(found) > 1:
            raise DataError(f"DATASETS.ROOT_DIR {root}: holds both {' and '.join(found)}; expected one of them")
        if not found and (train or split != TRAIN):
            missing = " (or ".join(FOLDERS[split]) + ")" * (len(FOLDERS[split]) - 1)
            beside = ", ".join(name for names in known.values() for name in names)
            raise DataError(
                f"DATASETS.ROOT_DIR {root}: there is no folder {missing} beside {beside}{_other_case(split, there)}"
            )
        splits[split], passed_over = _read_split(root / found[0]) if found else ([], NOTHING)
        if train or split != TRAIN:
            omitted.append(passed_over)
        if found and not splits[split] and (train or split != TRAIN):
            raise DataError(f"{root / found[0]}: holds no image ({', '.join(SUFFIXES)}; identity other than -1)")
    places = {os.path.join(root, name) for names in known.values() for name in names}
    images = [image for split in splits.values() for image in split]
    _check_readings(root, {p.identity: p.path for p in images if os.path.dirname(p.path) in places})
    unused = tuple(f"folder {name}" for name in there if os.path.join(root, name) not in places)
    return Found(splits, omitted=all_omitted(omitted), unused=unused)


def _read_split(split: Path) -> tuple[list[LabelledImage], Omitted]:
    folders, files = list_folder(split)
    images = [name for name in files if is_image(name)]
    if folders == [split.name] and not images:
        raise DataError(f"{split}: holds neither images nor identities{too_deep(split)}")
    if not images or folders:
        return read_identities(split)
    named = ((file, _market_identity(split, file)) for file in images)
    found = [LabelledImage(os.path.join(split, file), pid, camera_of(file)) for file, pid in named if pid != JUNK]
    return found, Omitted(tuple(_others(split, files)))


def read_identities(root: Path) -> tuple[list[LabelledImage], Omitted]:
    """The images of a folder that holds a folder per identity; and what was skipped.

    Raises:
        DataError: images beside identities' folders; folders in them; folders whose name is blank, a word for no
            label, or a camera's; links to nothing.
    """
    folders, files = list_folder(root)
    if bare := [name for name in files if is_image(name)]:
        beside = f", beside such folders ({folders[0]})" if folders else ""
        raise DataError(f"{root}: holds images ({min(bare)}) that are in no folder of their identity{beside}")
    _check_not_cameras(root, [name for name in folders if normal(name) != JUNK])
    images, others, empty = [], _others(root, files), []
    for name in folders:
        inner, files = list_folder(root / name)
        others += _others(root / name, files)
        files = [file for file in files if is_image(file)]
        if inner:
            raise DataError(
                f"{root / name / min(inner)}: is a folder in an identity's folder; the images of an identity lie in "
                "its own folder, and their camera is in their names (c3_0001.jpg)"
            )
        if not normal(name):
            raise DataError(f"{root}: holds a folder whose name is blank ({name!r}); expected an identity")
        if normal(name) == JUNK:
            continue
        if not files:
            empty.append(os.path.join(root, name))
        elif (label := identity_of(name, root / name)) != JUNK:
            images += [LabelledImage(os.path.join(root, name, file), label, camera_of(file)) for file in files]
    return images, Omitted(tuple(others), identities=tuple(empty))


def usual_protocol(images: Sequence[LabelledImage]) -> str:
    """By cameras where all images have one and some identity was seen by two, else all pairs."""
    identities, places = {p.identity for p in images}, {(p.identity, p.camera) for p in images}
    return CROSS_CAMERA if all(p.camera for p in images) and len(places) > len(identities) else ALL


def _check_not_cameras(root: Path, folders: Sequence[str]) -> None:
    """Refuse folders named c1, c2 ..., unless the names of the images in them tell the camera."""
    by_name = len(folders) > 1 and all(map(CAMERA_FOLDER.fullmatch, folders))
    if by_name and not any(camera_of(file) for name in folders for file in list_folder(root / name)[1]):
        raise DataError(
            f"{root}: holds folders of cameras, by their names ({', '.join(folders[:3])}); expected a folder per "
            "identity, with the camera in the names of its images (0001/c1_a.jpg), or a CSV file "
            "(path,pid,camid,viewid,split)"
        )


def _market_identity(split: Path, name: str) -> str:
    """What stands before the camera; a number, and nothing else, may also stand without one."""
    stem = os.path.splitext(name)[0]
    camera = CAMERA.search(stem)
    number = NUMBER.match(stem)
    identity = normal(stem[: camera.start()] if camera else number[1] if number else "")
    if not identity:
        raise DataError(
            f"{split / name}: does not begin with its identity, as 0002_c1s1_000451.jpg does, and is in no folder of "
            "its identity either"
        )
    return identity_of(identity, split / name)


def _check_readings(root: Path, named: Mapping[str, str]) -> None:
    """Refuse names that can be read in two ways: 0001_1_c2.jpg is of identity 0001_1, or of 0001 in other clothes.

    Args:
        named: identity, as read from file names -> an image of it.
    """
    numbers = {label: match[1] if (match := LEADING.match(label)) else label for label in named}
    first = {JUNK: JUNK}
    for label in sorted(named, key=natural):
        number = numbers[label]
        one = first.setdefault(number, label)
        if one != label:
            raise DataError(
                f"{root}: names do not say who is who: {named.get(one, 'junk')} and {named[label]} are of two "
                f"identities, {one} and {label} (there are {len(named)}), or both of {number} (there are "
                f"{len(set(numbers.values()))}), where what follows is no part of it (clothes, a date, a track). "
                "Expected a folder per identity in train, query and gallery, or a CSV file with column pid"
            )


def _other_case(split: str, there: Sequence[str]) -> str:
    """Names the folder that would be right but for its capital letters."""
    near = next((name for name in there if name.lower() in FOLDERS[split]), None)
    return f"; found {near}, expected {near.lower()}, in small letters" if near else ""


def _why_no_splits(root: Path, folders: Sequence[str]) -> str:
    if hint := next(filter(None, (_other_case(split, folders) for split in FOLDERS)), ""):
        return f"DATASETS.ROOT_DIR {root}: there is no folder train, query or gallery{hint}"
    for name in folders:
        inner, files = list_folder(root / name)
        if any(split in inner for names in FOLDERS.values() for split in names) or any(map(is_table, files)):
            return f"DATASETS.ROOT_DIR {root}: expected {root / name}, which holds the splits"
        if any(is_image(file) for file in files):
            return (
                f"DATASETS.ROOT_DIR {root}: is not split into train, query and gallery. If it holds a folder per "
                f"identity (such as {name}), `python -m tools.split_dataset {root} TARGET` makes the splits"
            )
    return (
        f"DATASETS.ROOT_DIR {root}: holds neither the folders train, query and gallery (or bounding_box_train, query "
        "and bounding_box_test) nor a CSV file"
    )


def is_image(name: str) -> bool:
    """Whether a file is an image by its suffix."""
    return name.lower().endswith(SUFFIXES)


def _others(folder: Path, files: Iterable[str]) -> list[str]:
    return sorted(os.path.join(folder, name) for name in files if not is_image(name))


def list_folder(path: Path) -> tuple[list[str], list[str]]:
    """Folders and files in a folder, without hidden ones and litter."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if is_litter(entry.name):
                    continue
                if entry.is_symlink() and not os.path.exists(entry.path):
                    raise DataError(f"{entry.path}: is a link to nothing")
                (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise DataError(f"{path}: cannot be listed ({error.strerror})") from error
    return sorted(folders, key=natural), files
