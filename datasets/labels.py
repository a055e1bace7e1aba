"""Labels of own images: identities, cameras and viewpoints as text, compared and numbered."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from utils.errors import DataError
from utils.records import NOTHING, Omitted

TRAIN, QUERY, GALLERY = "train", "query", "gallery"
FOLDERS = {TRAIN: (TRAIN, "bounding_box_train"), QUERY: (QUERY,), GALLERY: (GALLERY, "bounding_box_test")}
JUNK = "-1"
CAMERA = re.compile(r"(?:^|_)c([0-9]+)(?:s[0-9]+)?(?=[_.]|$)")  # Market-1501 has a sequence after the camera: c1s1
DIGITS = re.compile(r"([0-9]+)")
DECIMAL = re.compile(r"(?<![0-9.])([0-9]+)\.0+\Z")  # a whole number, as spreadsheets and pandas write it
NO_LABEL = frozenset(("", "nan", "none", "null", "na", "n/a", "#n/a", "<na>", "unknown", "?", "-", JUNK))
WORDS = {  # before a number: c3 is 3
    "cameras": re.compile(r"\A((c|cam|camera)[^\w\s]*_*)?(?=[0-9])"),
    "viewpoints": re.compile(r"\A((v|view|viewpoint)[^\w\s]*_*)?(?=[0-9])"),
}


class LabelledImage(NamedTuple):
    """An image and its labels as they were found."""

    path: str
    identity: str
    camera: str = ""  # unknown
    view: str = ""  # unknown


class Found(NamedTuple):
    """The images of a data set and what was skipped."""

    splits: dict[str, list[LabelledImage]]  # train, query, gallery
    table: Path | None = None  # the CSV file that lists them
    omitted: Omitted = NOTHING
    unused: tuple[str, ...] = ()  # columns of that file, or folders beside the splits


def camera_of(name: str) -> str:
    """The camera that a file's name tells, as a number without leading zeros; empty if it tells none."""
    match = CAMERA.search(os.path.splitext(name)[0])
    return str(int(match[1])) if match else ""


def normal(label: str) -> str:
    """A label as it is compared: ü is one character, whichever system wrote it; blanks around it are no part of it."""
    return unicodedata.normalize("NFC", label.strip())


@lru_cache(2**12)  # tables repeat their labels
def known(label: str) -> str:
    """A label as it is compared; empty if it is a word for none, such as NaN."""
    label = normal(label)
    return "" if DECIMAL.sub(r"\1", label).lower() in NO_LABEL else label


def identity_of(label: str, place: object) -> str:
    """An identity as it is compared; JUNK in every spelling (-1.0) is JUNK.

    Raises:
        DataError: a word for no label; the message names its `place`.
    """
    identity = known(label)
    if not identity and DECIMAL.sub(r"\1", normal(label)) != JUNK:
        raise DataError(
            f"{place}: the identity is {normal(label)!r}; expected a label of its own for every identity, "
            f"or {JUNK} for images to leave out"
        )
    return identity or JUNK


def natural(text: str) -> tuple:
    """A key to sort by: runs of digits as numbers, 2 before 10; equal numbers (01, 1) by their text."""
    # Texts and numbers take turns. Numbers go by length first, not through int(), which refuses thousands of digits.
    parts: list = DIGITS.split(text)
    for place in range(1, len(parts), 2):
        digits = parts[place].lstrip("0")
        parts[place] = (len(digits), digits)
    return tuple(parts), text


def numbering(what: str, labels: Mapping[str, str]) -> dict[str, int]:
    """Label -> number from 0, in natural order; no label (an empty text) has none.

    Args:
        what: the labels are of, in the plural.
        labels: label -> an image that has it, for the message.

    Raises:
        DataError: two spellings of one label. With or without a word before the number (c3, 3) is one difference, but
            not where other words are there, too: beside a3, c3 is not 3.
    """
    ordered = sorted(labels.keys() - {""}, key=natural)
    plain = {label: _plain(label) for label in ordered}
    word = WORDS.get(what)
    if word and all(word.match(text) for text in plain.values() if DIGITS.search(text)):
        plain = {label: word.sub("", text, count=1) for label, text in plain.items()}
    first: dict[str, str] = {}
    for label, text in plain.items():
        one = first.setdefault(text, label)
        if one != label:
            raise DataError(
                f"{what} {one!r} ({labels[one]}) and {label!r} ({labels[label]}) may be two spellings of one label; "
                "expected one spelling"
            )
    return {label: number for number, label in enumerate(ordered)}


def _plain(label: str) -> str:
    """What all spellings of a label have in common."""
    label = " ".join(unicodedata.normalize("NFKC", label).lower().split())
    label = re.sub("(?<![0-9]) | (?![0-9])", "", label)  # 1 2 is not 12
    return re.sub("(?<![0-9])0+(?=[0-9])", "", DECIMAL.sub(r"\1", label))
