"""Files: replace them atomically, stat many at once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from utils.errors import UserError, writing

THREADS = 8  # network file systems answer slowly, but many requests at a time
T = TypeVar("T")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """`with replacing(path) as file:` replaces `path` by what is written to `file`, atomically and durably.

    If anything is raised, `path` keeps its contents. A process that is killed leaves `.NAME.NUMBER.tmp` beside it.

    Raises:
        OSError: the disk is read-only or full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """`with replacing_folder(folder) as new:` makes a folder, absent or empty, of what is written to `new`, or none.

    A process that is killed leaves `.NAME.NUMBER.tmp` beside it.

    Raises:
        OSError: the folder has contents; the disk is read-only or full.
    """
    folder = folder.absolute()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # in containers, numbers of processes come again
    temporary.mkdir(parents=True)
    try:
        yield temporary
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()  # an empty one
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new_folder(folder: Path, what: str) -> None:
    """Raise UserError unless a folder is absent or empty, as `replacing_folder` makes it; `what` names it."""
    if os.path.lexists(folder) and (not os.path.isdir(folder) or any(folder.iterdir())):
        raise UserError(f"{what} {folder}: exists already and is not overwritten")


def replace_text(path: Path, text: str) -> None:
    """Replace the contents of a file by `text` in UTF-8; names of files that are in no encoding keep their bytes.

    Raises:
        OSError: the disk is read-only or full.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def write_text(path: Path, text: str) -> None:
    """The same, but UserError if the file cannot be written."""
    with writing(path):
        replace_text(path, text)


def write_json(path: Path, contents: Any) -> None:
    """Plain types as JSON; errors as above."""
    write_text(path, json.dumps(contents, indent=2) + "\n")


def look_at_all(paths: Sequence[str], look: Callable[[str], T]) -> list[T]:
    """The result of `look`, which must not raise, for every path, in order."""
    found: list[Any] = [None] * len(paths)
    parts = [slice(start, None, THREADS) for start in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as threads:
        for part, some in zip(parts, threads.map(lambda part: list(map(look, paths[part])), parts), strict=True):
            found[part] = some
    return found


def instead_of_file(mode: int) -> str:
    """What there is in place of a plain file, by `os.stat(path).st_mode`; empty if it is one."""
    if stat.S_ISREG(mode):
        return ""
    return "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"


def state_of(path: str) -> tuple[int, int] | None:
    """Size and modification time of a file, which tell whether it was replaced; None if it cannot be read."""
    try:
        entry = os.stat(path)
    except OSError:  # whoever reads it says what is wrong
        return None
    return entry.st_size, entry.st_mtime_ns


def _sync_folder(folder: Path) -> None:
    """Flush a rename to the disk; without it, a power cut may undo it."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):  # some network file systems cannot; the file is complete anyway
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
