"""What the readers of benchmarks share: finding a folder, reading names and lists, checking that images are there.

A benchmark has up to 220 000 files, often on a slow disk: folders are listed once, and no file is asked for by itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from utils.errors import DataError, some
from utils.records import NOTHING, Omitted, Sample, Trial

JUNK = -1
NAME = re.compile(r"(-1|\d+)_c(\d+)")  # identity and camera, at the start of the base name; never on the folders above
MARKET_FORM = ("bounding_box_train", "query", "bounding_box_test")
SUFFIXES = (".jpg", ".jpeg", ".png")  # of any case; the benchmarks have .jpg
LITTER = ("thumbs.db", "desktop.ini", "__macosx")  # what systems and archives leave behind


class Origin(NamedTuple):
    """A data set's name and places, and how its images are named, for messages."""

    title: str  # as its authors call it
    folders: tuple[str, ...]  # usual places below ROOT_DIR; messages recommend the first
    example: str = ""  # an image's name
    terms: str = "ask its authors for it; it is never downloaded here"  # how to come by it

    def misfit(self, match: re.Match | None) -> str:
        """What is wrong with a name, for a message: with a `match`, only its camera, which is 0."""
        camera = "" if match is None else "; their cameras count from 1: where there is a camera 0, add 1 to all"
        return f"is not named as {self.title}'s images are, e.g. {self.example}{camera}"


class Line(NamedTuple):
    """A line of a list: an image and its identity."""

    number: int  # from 1
    image: str
    pid: int


def places(root: Path, origin: Origin) -> tuple[list[Path], list[Path]]:
    """Where a data set may be: the usual folders below `root`, and `root`; then, usual names inside usual folders.

    The second list is for archives that were unpacked into a folder of their name.
    """
    usual = [root / name for name in origin.folders]
    names = dict.fromkeys(folder.name for folder in usual)
    return [*usual, root], [folder / name for folder in usual for name in names]


def usual_folder(root: Path, origin: Origin, holding: Sequence[str]) -> Path:
    """The first of the `places` that has one of the folders `holding`.

    Raises:
        DataError: `root` is not there, or the data set is not.
    """
    for folder in chain(*places(root, origin)):
        if any((folder / name).is_dir() for name in holding):
            return folder
    raise DataError(not_found(root, origin, holding[0]))


def not_found(root: Path, origin: Origin, holding: str) -> str:
    """The message about a data set that is not below `root`."""
    if not root.is_dir():
        what, where = "there is no such folder", origin.folders[0]
    else:
        what, where = f"no {origin.title} here", f"{origin.folders[0]}/{holding}"
        for folder in chain(*places(root, origin)):
            if all((folder / name).is_dir() for name in MARKET_FORM):
                what += f" (DATASETS.NAMES folder DATASETS.ROOT_DIR {folder} reads what is in Market-1501's form)"
                break
    return f"DATASETS.ROOT_DIR {root}: {what}; expected the folder that holds {where}; {origin.terms}"


def too_deep(folder: Path) -> str:
    """The end of a message about what `folder` lacks: that it may be in a folder of the same name inside."""
    inner = folder / folder.name
    return f"; is it in {inner}? Then move it up" if inner.is_dir() else ""


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or left by a system or an archive: not worth reporting."""
    return name.startswith(".") or name.lower() in LITTER


def image_names(folder: Path) -> tuple[list[str], Omitted]:
    """The names of the images of a folder, sorted, whatever order the file system has them in, and what else it holds.

    Only what is no image by its name is asked whether it is a folder.
    """
    names = sorted(name for name in os.listdir(folder) if not is_litter(name))
    others = [os.path.join(folder, name) for name in names if not name.lower().endswith(SUFFIXES)]
    folders = tuple(filter(os.path.isdir, others))
    files = tuple(path for path in others if path not in folders)
    return [name for name in names if name.lower().endswith(SUFFIXES)], Omitted(files, folders)


def require_folder(folder: Path, missing: str) -> None:
    """Raise DataError, which ends in `missing`, if there is no such folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; {missing}")


def read_named_images(folder: Path, origin: Origin, *, missing: str) -> tuple[tuple[Sample, ...], Omitted]:
    """The images of one folder in the order of their names, without junk, cameras from 0; and what was skipped.

    Args:
        missing: ends the message if there is no such folder.

    Raises:
        DataError: naming the folder that is missing or empty, or the image whose name does not fit.
    """
    require_folder(folder, missing)
    samples, inside = [], str(folder)
    names, omitted = image_names(folder)
    for name in names:
        match = NAME.match(name)
        if match is None or int(match[2]) == 0:
            raise DataError(f"{folder / name}: {origin.misfit(match)}")
        pid = int(match[1])
        if pid != JUNK:
            samples.append(Sample(os.path.join(inside, name), pid, int(match[2]) - 1))
    if not samples:
        kinds = f"{', '.join(SUFFIXES)}; identity other than {JUNK}"
        raise DataError(f"{folder}: holds no image that counts ({kinds}){too_deep(folder)}")
    return tuple(samples), omitted


def read_three_folders(
    folder: Path, names: Sequence[str], origin: Origin, *, train: bool, missing: str
) -> tuple[list[tuple[Sample, ...]], Omitted]:
    """The images of the folders for training (none without `train`), queries and gallery; and what was skipped."""
    asked = [bool(train), True, True]
    found = [
        read_named_images(folder / name, origin, missing=missing) if there else ((), NOTHING)
        for name, there in zip(names, asked, strict=True)
    ]
    return [samples for samples, _ in found], all_omitted(omitted for _, omitted in found)


def all_omitted(parts: Iterable[Omitted]) -> Omitted:
    """What was skipped in several folders."""
    return Omitted(*(tuple(path for paths in kind for path in paths) for kind in zip(*parts, strict=True)))


def read_list(path: Path, folder: Path, *, suffix: str = "", example: str, missing: str) -> list[Line]:
    """The lines "image identity" of a list of images in `folder`; blank ones, and repeated ones, are skipped.

    An image may be written with \\ for /, and with the path down to `folder` before it.

    Args:
        suffix: of the images' names, which the list may leave out.
        example: a valid line, for the message about an invalid one.
        missing: ends the message if there is no such file.

    Raises:
        DataError: naming the file that is missing or empty, the line that is neither right nor blank, the two that
            give one image to two identities, or how many images are not there, and the first of them.
    """
    lines: dict[str, Line] = {}
    for number, text in text_lines(path, missing=missing):
        image, _, pid = text.rpartition(" ")
        if not image or not (pid.isascii() and pid.isdigit()):
            raise DataError(f"{path}: line {number} is {text[:80]!r}; expected an image and its identity: {example}")
        image = f"/{image}".replace("\\", "/").rpartition(f"/{folder.name}/")[2].removeprefix("/")
        image = image.removesuffix(suffix) + suffix
        line = lines.setdefault(image, Line(number, image, int(pid)))
        if line.pid != int(pid):
            raise DataError(f"{path}: {image} has identity {line.pid} in line {line.number} and {pid} in line {number}")
    if not lines:
        raise DataError(f"{path}: names no image")
    _require_images(path, lines.values(), folder)
    return list(lines.values())


def text_lines(path: Path, *, missing: str) -> list[tuple[int, str]]:
    """Numbers and texts of a file's lines that are not blank; runs of blanks and tabs become one blank.

    Raises:
        DataError: there is no such file.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; {missing}")
    # What is no text fails with its line number, where it is used.
    lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    return [(number, " ".join(line.split())) for number, line in enumerate(lines, start=1) if line.strip()]


def _require_images(path: Path, lines: Iterable[Line], folder: Path) -> None:
    there: dict[str, set[str]] = {}
    absent = []
    for line in lines:
        inside, _, name = line.image.rpartition("/")
        if inside not in there:
            there[inside] = set(os.listdir(folder / inside)) if (folder / inside).is_dir() else set()
        if name not in there[inside]:
            absent.append(f"{line.image} (line {line.number})")
    if absent:
        raise DataError(
            f"{path}: names {len(absent)} images that are not in {folder}: {some(absent)}{too_deep(folder)}"
        )


def dense_labels(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """The same images with labels 0..P-1 in ascending order of identity."""
    samples = tuple(samples)
    labels = {pid: label for label, pid in enumerate(sorted({sample.pid for sample in samples}))}
    return tuple(sample._replace(pid=labels[sample.pid]) for sample in samples)


def seen_in_training(train: Iterable[Sample], trial: Trial) -> tuple[str, ...]:
    """The identities of `trial` that are in `train`, too, which still has the data set's own labels."""
    test = {sample.pid for side in trial for sample in side}
    return tuple(map(str, sorted(test & {sample.pid for sample in train})))
