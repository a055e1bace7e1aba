"""The screen, and the program's log: lines on it (above a progress bar, if there is one) and in a file."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from utils.errors import UserError

FORMAT = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
ESCAPE = "backslashreplace"  # for what an encoding lacks: letters of other countries, names of files that are no UTF-8


@contextmanager
def screen() -> Iterator[None]:
    """For a script: stdout and stderr exist and take every text, and their failure changes no exit code."""
    # Streams that were closed are opened as nothing: else the next file would be opened in their place.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", errors=ESCAPE))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPE)
    hook, sys.unraisablehook = sys.unraisablehook, _ignored
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                drop(stream)


def _ignored(what) -> None:
    """What an object raises that is thrown away half made, as of a loader: it follows from an error that is told."""
    tell(f"ignored in {what.object!r}: {what.exc_value!r}", shown=False)


def drop(stream: TextIO) -> None:
    """Discard what is and will be written to `stream`, which cannot show it any more, without an error."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell(words: str, *, shown: bool = True) -> None:
    """Write a script's last message to the log file, if there is one, and to stderr if it is to be `shown` there."""
    if shown:
        with suppress(OSError):
            sys.stderr.write(f"{words}\n")
    record = logging.LogRecord("end", logging.ERROR, "", 0, words, None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _File):
            handler.handle(record)


class _AboveTheBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # the terminal is gone, the disk full, the reader too: the file has it
            drop(sys.stdout)


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # the disk is full: the screen has it
            super().handleError(record)


class _Early(logging.Handler):
    """Keeps what is said before there is a file."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def log_to_screen() -> None:
    """Once, at the start of a script."""
    handler = _AboveTheBar()
    handler.setFormatter(FORMAT)
    root = logging.getLogger()
    root.handlers[:] = [handler, _Early()]
    root.setLevel(logging.INFO)
    for chatty in ("httpx", "huggingface_hub", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def log_to_file(path: Path) -> None:
    """Also there, from the first line of the script on, and no longer in an earlier run's file.

    Raises:
        UserError: the file cannot be made.
    """
    root = logging.getLogger()
    try:
        file = _File(path, encoding="utf-8", errors=ESCAPE)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    file.setFormatter(FORMAT)
    for old in root.handlers[:]:
        if isinstance(old, _Early):
            for record in old.records:
                file.handle(record)
        if isinstance(old, (_Early, _File)):
            root.removeHandler(old)
            old.close()
    root.addHandler(file)
