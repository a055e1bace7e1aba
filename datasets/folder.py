"""Your own pictures, without code: a folder per identity, names as Market-1501's, or one CSV file.

    ROOT/train/anna/*.jpg              a folder per identity; any names
    ROOT/query/7/*.jpg
    ROOT/gallery/7/*.jpg

    ROOT/train/0002_c1s1_000451.jpg    names that begin with the identity, as Market-1501's; the folders may have its
    ROOT/query/0007_c2_a.jpg           names, too: bounding_box_train, query, bounding_box_test
    ROOT/gallery/0007_c3_b.jpg

    ROOT/any.csv, or ROOT itself:      path,pid,camid,viewid,split      header; camid and viewid may be empty or absent
                                       pictures/1.jpg,anna,hall,,train  paths are relative to the file

A picture's camera is the first cN that stands between underscores, or at either end, of its file name: c3_0001.jpg,
0002_c3s1_000451.jpg, img_c3.jpg are all of camera 3, whatever the folder. In a CSV file it is any label.
What stands before it is the identity, unless that can be read in two ways: 0001_0 beside 0001_1 is refused.

Labels of identities, cameras and viewpoints are text (in Unicode's normal form, so that ü is ü, and without blanks
around it), put in natural order: 2 before 10. Two spellings of one label (3 and 3.0, cam3 and Cam 03) are refused. A
camera or viewpoint NaN, None, NULL, ? or -1 is unknown. The identity -1 is junk, as in Market-1501, and left out. Files
that are no pictures by their suffix are passed over, which the data check tells, as are names that begin with a dot.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from datasets.naming import all_omitted, is_litter, too_deep
from utils.errors import DataError
from utils.files import plain_file
from utils.metrics import CROSS_CAMERA, PROTOCOLS
from utils.records import NOTHING, Benchmark, Omitted, Sample, Trial

TRAIN, QUERY, GALLERY = "train", "query", "gallery"
FOLDERS = {TRAIN: (TRAIN, "bounding_box_train"), QUERY: (QUERY,), GALLERY: (GALLERY, "bounding_box_test")}
REQUIRED, OPTIONAL = ("path", "pid", "split"), ("camid", "viewid")  # columns
ALIASES = {  # what other programs call these columns
    "path": ("file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "img_path"),
    "pid": ("identity", "id", "label", "person", "person_id", "personid", "identity_id", "person_identity"),
    "split": ("set", "subset", "part", "partition", "fold"),
    "camid": ("cam", "camera", "camera_id", "cameraid", "cam_id"),
    "viewid": ("view", "viewpoint", "view_id", "viewpoint_id", "viewpointid"),
}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".jfif")  # of any case
JUNK = "-1"
# Columns (by their letters and digits alone) that change what a row means -> what they are about, what to do.
MEANINGS = {
    re.compile(r"(b?box|boundingbox|rect|roi|crop).{0,6}|[xy][0-9]?|[xy](min|max)|left|top|right|bottom"): (
        "about parts of pictures, which are read whole; right is to cut them out, list these, and drop the column"
    ),
    re.compile(
        r"(is)?(train|training|test|query|gallery|junk|distractor|ignored?|excluded?|included?|skip(ped)?|valid|used?|"
        r"keep|drop(ped)?|deleted?|removed?|discard(ed)?)"
    ): (
        f"about which rows count, or where; right is to say so in column split ({TRAIN}, {QUERY}, {GALLERY}), to leave "
        f"out what is not meant (pid {JUNK}), and to drop the column"
    ),
}
CAMERA_FOLDER = re.compile(r"(c|cam|camera)[\W_]*[0-9]+|(cam|camera)[\W_]+[a-z]", re.IGNORECASE)
CAMERA = re.compile(r"(?:^|_)c([0-9]+)(?:s[0-9]+)?(?=[_.]|$)")  # Market-1501 has a sequence after the camera: c1s1
NUMBER = re.compile(r"(-1|[0-9]+)_")
# Plates are no such numbers: what follows a hyphen, a blank or a dot is no letter (12-34, but not 12-AB).
LEADING = re.compile(r"(-1|((p|id|pid|person|v|vid|vehicle|car)[_-]?)?[0-9]+)(?=_|(\W[0-9]+)*\Z)", re.IGNORECASE)
DIGITS = re.compile(r"([0-9]+)")
DECIMAL = re.compile(r"(?<![0-9.])([0-9]+)\.0+\Z")  # a whole number, as spreadsheets and pandas write it
NO_LABEL = frozenset(("", "nan", "none", "null", "na", "n/a", "#n/a", "<na>", "unknown", "?", "-", JUNK))
# In what two spellings of one label may differ -> what removes the difference.
SPELLINGS: dict[str, Callable[[str], str]] = {
    "wide letters": lambda label: unicodedata.normalize("NFKC", label),
    "capital letters": str.lower,
    "blanks": lambda label: re.sub("(?<![0-9]) | (?![0-9])", "", " ".join(label.split())),  # 1 2 is not 12
    "a decimal .0": lambda label: DECIMAL.sub(r"\1", label),
    "leading zeros": lambda label: re.sub("(?<![0-9])0+(?=[0-9])", "", label),
}
WORDS = {  # before a number: c3 is 3
    "cameras": re.compile(r"\A((c|cam|camera)[^\w\s]*_*)?(?=[0-9])"),
    "viewpoints": re.compile(r"\A((v|view|viewpoint)[^\w\s]*_*)?(?=[0-9])"),
}


class Picture(NamedTuple):
    """A picture and its labels as they were found."""

    path: str
    identity: str
    camera: str = ""  # unknown
    view: str = ""  # unknown


class Found(NamedTuple):
    """The pictures of a data set, as they were found."""

    splits: dict[str, list[Picture]]  # train, query, gallery
    table: Path | None = None  # the CSV file that lists them
    omitted: Omitted = NOTHING
    unused: tuple[str, ...] = ()  # columns of that file, or folders beside the splits


def folder(root: Path, *, noun: str = "person", protocol: str = CROSS_CAMERA, train: bool = True) -> Benchmark:
    """Read the pictures at `root`; without `train`, the training part need not be there.

    Training identities are numbered from 0 in natural order; so are those of query and gallery together; so are cameras
    and viewpoints over all splits, over the training part also where it is not asked for but there. An unknown camera
    is -1 beside known ones; where none is known, all pictures are of camera 0. The same for viewpoints. Samples are in
    natural order of identity, camera and file name, so that the three forms of the same pictures are the same.

    Args:
        root: a folder in one of the three forms, or a CSV file.
        noun: of the sentence, e.g. person or vehicle.
        protocol: "cross-camera" (a query's own identity in its own camera does not count) or "all".
        train: whether the training part is asked for.

    Raises:
        DataError: saying what is missing, empty or ambiguous, and where; a camera that is unknown though the protocol
            goes by cameras; or a protocol that there is not.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"TEST.PROTOCOL: there is no protocol {protocol!r}; there are: {', '.join(PROTOCOLS)}")
    splits, table, omitted, unused = read_splits(root, train=train)
    if protocol == CROSS_CAMERA:
        asked = [picture for split in splits if train or split != TRAIN for picture in splits[split]]
        _check_cameras(table or root, asked, listed=table is not None)
    pictures = [picture for split in splits.values() for picture in split]
    identities = numbering("identities", {p.identity: p.path for p in pictures})
    cameras = numbering("cameras", {p.camera: p.path for p in pictures})
    views = numbering("viewpoints", {p.view: p.path for p in pictures})

    def dense(pictures: Iterable[Picture]) -> dict[str, int]:
        labels = sorted({p.identity for p in pictures}, key=identities.__getitem__)
        return {label: number for number, label in enumerate(labels)}

    def samples(pictures: Sequence[Picture], pids: dict[str, int]) -> tuple[Sample, ...]:
        keyed = sorted(
            (pids[p.identity], _number(cameras, p.camera), natural(os.path.basename(p.path)), p.path, p.view)
            for p in pictures
        )
        return tuple(Sample(path, pid, camid, _number(views, view)) for pid, camid, _, path, view in keyed)

    learnt = splits[TRAIN] if train else []
    query, gallery = splits[QUERY], splits[GALLERY]
    shared = dense((*query, *gallery))
    learnt_labels = {picture.identity for picture in learnt}
    return Benchmark(
        name="folder",
        template=f"A photo of a {{}} {noun}.",  # {} is for the learnt tokens
        train=samples(learnt, dense(learnt)),
        trials=(Trial(samples(query, shared), samples(gallery, shared)),),
        ignored=PROTOCOLS[protocol],
        seen=tuple(label for label in shared if label in learnt_labels),
        omitted=omitted,
        unused=unused,
        as_written={p.path: (p.identity, p.camera) for p in pictures},
    )


def read_splits(root: Path, *, train: bool = True) -> Found:
    """The pictures of train, query and gallery, with their labels; without `train`, the first may be empty.

    Raises:
        DataError: see `folder`.
    """
    if root.is_file():
        if not _is_table(root.name):
            raise DataError(f"DATASETS.ROOT_DIR {root}: is neither a folder nor a CSV file")
        return _read_csv(root, train)
    if not root.is_dir():
        raise DataError(f"DATASETS.ROOT_DIR {root}: there is no such folder or file")
    folders, files = _list(root)
    tables = [name for name in files if _is_table(name)]
    if not tables:
        return _read_folders(root, folders, train)
    try:
        if len(tables) > 1:
            raise DataError(
                f"DATASETS.ROOT_DIR {root}: holds {len(tables)} CSV files "
                f"({', '.join(sorted(tables, key=natural)[:3])}); right is one, or the one that is meant as "
                "DATASETS.ROOT_DIR"
            )
        return _read_csv(root / tables[0], train)
    except DataError as error:
        beside = [name for names in FOLDERS.values() for name in names if name in folders]
        if not beside:
            raise
        raise DataError(
            f"{error}. A CSV file decides over folders ({', '.join(beside)} are there, too); if these are meant, move "
            "it away"
        ) from error


def read_identities(root: Path) -> tuple[list[Picture], Omitted]:
    """The pictures of a folder that holds a folder per identity; and what was passed over.

    Raises:
        DataError: pictures beside identities' folders; folders in them; folders whose name is blank, a word for no
            label, or a camera's; links to nothing.
    """
    folders, files = _list(root)
    if bare := [name for name in files if _is_picture(name)]:
        beside = f", beside such folders ({folders[0]})" if folders else ""
        raise DataError(f"{root}: holds pictures ({min(bare)}) that are in no folder of their identity{beside}")
    _check_not_cameras(root, [name for name in folders if normal(name) != JUNK])
    pictures, others, empty = [], _others(root, files), []
    for name in folders:
        inner, files = _list(root / name)
        others += _others(root / name, files)
        files = [file for file in files if _is_picture(file)]
        if inner:
            raise DataError(
                f"{root / name / min(inner)}: is a folder in an identity's folder; the pictures of an identity lie in "
                "its own folder, and their camera is in their names (c3_0001.jpg)"
            )
        if not normal(name):
            raise DataError(f"{root}: holds a folder whose name is blank ({name!r}); right is an identity")
        if normal(name) == JUNK:
            continue
        if not files:
            empty.append(os.path.join(root, name))
        elif (label := identity_of(name, root / name)) != JUNK:
            pictures += [Picture(os.path.join(root, name, file), label, camera_of(file)) for file in files]
    return pictures, Omitted(tuple(others), identities=tuple(empty))


def _check_not_cameras(root: Path, folders: Sequence[str]) -> None:
    """Refuse folders named c1, c2 ..., unless the names of the pictures in them tell the camera."""
    by_name = len(folders) > 1 and all(map(CAMERA_FOLDER.fullmatch, folders))
    if by_name and not any(camera_of(file) for name in folders for file in _list(root / name)[1]):
        raise DataError(
            f"{root}: holds folders of cameras, by their names ({', '.join(folders[:3])}); right is a folder per "
            "identity, with the camera in the names of its pictures (0001/c1_a.jpg), or a CSV file "
            "(path,pid,camid,viewid,split)"
        )


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
            f"{place}: the identity is {normal(label)!r}, which is nobody's; right is a label of its own for every "
            f"identity, and {JUNK} for pictures that are to be left out"
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
        labels: label -> a picture that has it, for the message.

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
                f"{what} {one!r} ({labels[one]}) and {label!r} ({labels[label]}) differ in {_difference(one, label)} "
                "alone; right is one way to write it"
            )
    return {label: number for number, label in enumerate(ordered)}


def _plain(label: str, *, keep: str = "") -> str:
    """What all spellings of a label have in common; one of the SPELLINGS may be kept apart."""
    for name, take_away in SPELLINGS.items():
        label = label if name == keep else take_away(label)
    return label


def _difference(one: str, other: str) -> str:
    if _plain(one) != _plain(other):
        return "the word in front"
    return " and ".join(name for name in SPELLINGS if _plain(one, keep=name) != _plain(other, keep=name)) or "blanks"


def _number(numbers: dict[str, int], label: str) -> int:
    return numbers[label] if label else -1 if numbers else 0


def _check_cameras(place: Path, pictures: Sequence[Picture], *, listed: bool) -> None:
    lacking = [picture.path for picture in pictures if not picture.camera]
    if lacking:
        remedy = (
            "Write it into column camid (in a CSV file, names of pictures do not say it)"
            if listed
            else "Name it in the file's name (c3_0001.jpg)"
        )
        raise DataError(
            f"{place}: {len(lacking)} of {len(pictures)} pictures have no camera (e.g. {min(lacking, key=natural)}). "
            f"{remedy}; or choose TEST.PROTOCOL all, by which every query is compared with the whole gallery"
        )


# ------------------------------------------------------------------------------------------------------------- folders


def _read_folders(root: Path, there: Sequence[str], train: bool) -> Found:
    splits, omitted = {}, []
    known = {split: [name for name in names if name in there] for split, names in FOLDERS.items()}
    if not any(known.values()):
        raise DataError(_why_no_splits(root, there))
    for split, found in known.items():
        if len(found) > 1:
            raise DataError(f"DATASETS.ROOT_DIR {root}: holds both {' and '.join(found)}; right is one of them")
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
            raise DataError(f"{root / found[0]}: holds no picture ({', '.join(SUFFIXES)}; identity other than -1)")
    places = {os.path.join(root, name) for names in known.values() for name in names}
    pictures = [picture for split in splits.values() for picture in split]
    _check_readings(root, {p.identity: p.path for p in pictures if os.path.dirname(p.path) in places})
    unused = tuple(f"folder {name}" for name in there if os.path.join(root, name) not in places)
    return Found(splits, omitted=all_omitted(omitted), unused=unused)


def _check_readings(root: Path, named: Mapping[str, str]) -> None:
    """Refuse names that can be read in two ways: 0001_1_c2.jpg is of identity 0001_1, or of 0001 in other clothes.

    Args:
        named: identity, as read from file names -> a picture of it.
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
                f"{len(set(numbers.values()))}), where what follows is no part of it (clothes, a date, a track). Right "
                "is a folder per identity in train, query and gallery, or a CSV file with the identity in column pid"
            )


def _other_case(split: str, there: Sequence[str]) -> str:
    """Names the folder that would be right but for its capital letters."""
    near = next((name for name in there if name.lower() in FOLDERS[split]), None)
    return f"; {near} is there, and right is {near.lower()}, in small letters" if near else ""


def _why_no_splits(root: Path, folders: Sequence[str]) -> str:
    if hint := next(filter(None, (_other_case(split, folders) for split in FOLDERS)), ""):
        return f"DATASETS.ROOT_DIR {root}: there is no folder train, query or gallery{hint}"
    for name in folders:
        inner, files = _list(root / name)
        if any(split in inner for names in FOLDERS.values() for split in names) or any(map(_is_table, files)):
            return f"DATASETS.ROOT_DIR {root}: right is {root / name}, which holds the splits"
        if any(_is_picture(file) for file in files):
            return (
                f"DATASETS.ROOT_DIR {root}: is not split into train, query and gallery. If it holds a folder per "
                f"identity (such as {name}), `python -m tools.split_dataset {root} TARGET` makes the splits"
            )
    return (
        f"DATASETS.ROOT_DIR {root}: holds neither the folders train, query and gallery (or bounding_box_train, query "
        "and bounding_box_test) nor a CSV file"
    )


def _read_split(split: Path) -> tuple[list[Picture], Omitted]:
    folders, files = _list(split)
    pictures = [name for name in files if _is_picture(name)]
    if folders == [split.name] and not pictures:
        raise DataError(f"{split}: holds neither pictures nor identities{too_deep(split)}")
    if not pictures or folders:
        return read_identities(split)
    named = ((file, _market_identity(split, file)) for file in pictures)
    found = [Picture(os.path.join(split, file), pid, camera_of(file)) for file, pid in named if pid != JUNK]
    return found, Omitted(tuple(_others(split, files)))


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


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _others(folder: Path, files: Iterable[str]) -> list[str]:
    return sorted(os.path.join(folder, name) for name in files if not _is_picture(name))


def _is_table(name: str) -> bool:
    return name.lower().endswith(".csv")


def _list(path: Path) -> tuple[list[str], list[str]]:
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


# ----------------------------------------------------------------------------------------------------------------- CSV


def _read_csv(file: Path, train: bool) -> Found:
    splits: dict[str, list[Picture]] = {split: [] for split in FOLDERS}
    rows = _rows(file, _text(file))
    line, header = next(rows, (1, []))
    header = [name.strip().casefold() for name in header]
    _check_header(file, line, header)
    lines: dict[str, int] = {}  # where a path stands
    for line, values in rows:
        if len(values) != len(header):
            raise DataError(f"{file} line {line}: has {len(values)} fields, the header {len(header)}")
        # A path is what it is; spaces around labels are only there to be read more easily.
        row = {name: value if name == "path" else value.strip() for name, value in zip(header, values, strict=True)}
        split = row["split"].casefold()
        if split not in splits:
            raise DataError(f"{file} line {line}: there is no split {row['split']!r}; right is {', '.join(splits)}")
        for name in ("path", "pid"):
            if not row[name]:
                raise DataError(f"{file} line {line}: {name} is empty")
        path = os.path.join(file.parent, row["path"])  # an absolute one stays what it is
        first = lines.setdefault(os.path.normpath(path), line)
        if first != line:
            raise DataError(f"{file} line {line}: {row['path']} is in line {first} already")
        if (train or split != TRAIN) and not os.path.isfile(path):
            hint = " (folders are parted by /, not by \\)" if "\\" in path else ""
            raise DataError(f"{file} line {line}: there is no file {path}{hint}")
        identity = identity_of(row["pid"], f"{file} line {line}")
        if identity != JUNK:
            splits[split].append(Picture(path, identity, known(row.get("camid", "")), known(row.get("viewid", ""))))
    for split, pictures in splits.items():
        if not pictures and (train or split != TRAIN):
            raise DataError(f"{file}: has no picture of split {split} (of an identity other than -1)")
    unused = tuple(f"column {name}" for name in header if name not in (*REQUIRED, *OPTIONAL, ""))
    return Found(splits, file, unused=unused)


def _text(file: Path) -> str:
    try:
        return plain_file(file).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1  # the object is without a byte order mark
        raise DataError(f"{file} line {line}: is not UTF-8 text; right is to save it as CSV UTF-8") from error


def _rows(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Line number (of the first line, where quoted line breaks make several) and fields, without blank lines."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 0
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{file} line {line}: cannot be read as CSV ({error})") from error
        if any(field.strip() for field in fields):
            yield line, fields


def _check_header(file: Path, line: int, header: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        found = ", ".join(header) if header else "nothing"
        hint = "; columns are parted by commas" if len(header) == 1 and re.search("[;\t]", header[0]) else ""
        meant = [f"{name} by {alias}" for name in missing for alias in ALIASES[name] if alias in header]
        if meant:
            hint = f"; did you mean {', '.join(meant)}?"
        raise DataError(
            f"{file} line {line}: the header has no {', '.join(missing)} (found: {found}); "
            f"right is path,pid,camid,viewid,split{hint}"
        )
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"{file} line {line}: the header has {twice[0]} twice")
    for name in header:
        for columns, meaning in MEANINGS.items():
            if columns.fullmatch("".join(filter(str.isalnum, name))):
                raise DataError(f"{file} line {line}: column {name} is {meaning}")
    # Other columns are the user's own; a misspelt camera would be one that is lost without a word.
    absent = [name for name in OPTIONAL if name not in header]
    for name in header:
        near = [column for column in absent if name in ALIASES[column]]
        near = near or difflib.get_close_matches(name, absent, n=1, cutoff=0.8)
        if near:
            raise DataError(f"{file} line {line}: the header has {name}; did you mean {near[0]}?")
