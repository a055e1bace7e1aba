"""One CSV file that lists images: path,pid,camid,viewid,split."""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets.labels import FOLDERS, JUNK, TRAIN, Found, LabelledImage, identity_of, known
from utils.errors import DataError

REQUIRED, OPTIONAL = ("path", "pid", "split"), ("camid", "viewid")  # columns
ALIASES = {  # what other programs call these columns
    "path": ("file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "img_path"),
    "pid": ("identity", "id", "label", "person", "person_id", "personid", "identity_id", "person_identity"),
    "split": ("set", "subset", "part", "partition", "fold"),
    "camid": ("cam", "camera", "camera_id", "cameraid", "cam_id"),
    "viewid": ("view", "viewpoint", "view_id", "viewpoint_id", "viewpointid"),
}


def is_table(name: str) -> bool:
    return name.lower().endswith(".csv")


def read_table(file: Path, train: bool) -> Found:
    splits: dict[str, list[LabelledImage]] = {split: [] for split in FOLDERS}
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
            raise DataError(f"{file} line {line}: invalid split {row['split']!r}; expected {', '.join(splits)}")
        for name in ("path", "pid"):
            if not row[name]:
                raise DataError(f"{file} line {line}: {name} is empty")
        path = os.path.join(file.parent, row["path"])  # an absolute one stays what it is
        first = lines.setdefault(os.path.normpath(path), line)
        if first != line:
            raise DataError(f"{file} line {line}: {row['path']} is in line {first} already")
        if (train or split != TRAIN) and not os.path.isfile(path):
            hint = " (expected / between folders, not \\)" if "\\" in path else ""
            raise DataError(f"{file} line {line}: there is no file {path}{hint}")
        identity = identity_of(row["pid"], f"{file} line {line}")
        if identity != JUNK:
            splits[split].append(
                LabelledImage(path, identity, known(row.get("camid", "")), known(row.get("viewid", "")))
            )
    for split, images in splits.items():
        if not images and (train or split != TRAIN):
            raise DataError(f"{file}: has no image of split {split} (of an identity other than -1)")
    unused = tuple(f"column {name}" for name in header if name not in (*REQUIRED, *OPTIONAL, ""))
    return Found(splits, file, unused=unused)


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1  # the object is without a byte order mark
        raise DataError(f"{file} line {line}: is not UTF-8 text; save it as CSV UTF-8") from error


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
        hint = "; expected commas between columns" if len(header) == 1 and re.search("[;\t]", header[0]) else ""
        meant = [f"{name} by {alias}" for name in missing for alias in ALIASES[name] if alias in header]
        if meant:
            hint = f"; did you mean {', '.join(meant)}?"
        raise DataError(
            f"{file} line {line}: the header has no {', '.join(missing)} (found: {found}); "
            f"expected path,pid,camid,viewid,split{hint}"
        )
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"{file} line {line}: the header has {twice[0]} twice")
    # Other columns are the user's own; a misspelt camera would be lost silently.
    absent = [name for name in OPTIONAL if name not in header]
    for name in header:
        near = [column for column in absent if name in ALIASES[column]]
        near = near or difflib.get_close_matches(name, absent, n=1, cutoff=0.8)
        if near:
            raise DataError(f"{file} line {line}: the header has {name}; did you mean {near[0]}?")
