"""The log: lines on the screen, above a progress bar if there is one, and in a file."""

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

from utils.errors import writing

FORMAT = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
ESCAPE = "backslashreplace"  # for characters that an encoding lacks, and file names that are not UTF-8


@contextmanager
def screen() -> Iterator[None]:
    """For a script: stdout and stderr exist and accept every text; their failure does not change the exit code."""
    # Closed streams are opened on the null device: otherwise the next file would take their descriptor.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", errors=ESCAPE))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPE)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                drop(stream)


END = "end"  # of a script: the name of its last words, after which nothing else may be said


def drop(stream: TextIO) -> None:
    """Discard everything written to `stream`, which is broken, without an error."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell(words: str, *, shown: bool = True) -> None:
    """Write a script's last message to the log file, if there is one, and to stderr if `shown`."""
    if shown:
        with suppress(OSError):
            sys.stderr.write(f"{words}\n")
    record = logging.LogRecord(END, logging.ERROR, "", 0, words, None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _File):
            handler.handle(record)


class _AboveTheBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # the terminal or the reader is gone, or the disk is full: the file has it
            drop(sys.stdout)


class _File(logging.FileHandler):
    told = False  # that lines are lost

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.told and record.name != END:  # the disk is full, for example: the screen has the lines
            self.told = True
            with suppress(OSError):
                sys.stderr.write(f"{self.baseFilename}: lines of the log are lost ({error.strerror})\n")


class _Early(logging.Handler):
    """Keeps lines that are logged before there is a file."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def log_to_screen() -> None:
    """Start logging to the screen; once, at the start of a script."""
    handler = _AboveTheBar()
    handler.setFormatter(FORMAT)
    root = logging.getLogger()
    root.handlers[:] = [handler, _Early()]
    root.setLevel(logging.INFO)
    for chatty in ("httpx", "huggingface_hub", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def log_to_file(path: Path) -> None:
    """Log to `path`, too, with all earlier lines of the script, and no longer to an earlier run's file.

    Raises:
        UserError: the file cannot be made.
    """
    root = logging.getLogger()
    with writing(path):
        file = _File(path, encoding="utf-8", errors=ESCAPE)
    file.setFormatter(FORMAT)
    for old in root.handlers[:]:
        if isinstance(old, _Early):
            for record in old.records:
                file.handle(record)
        if isinstance(old, (_Early, _File)):
            root.removeHandler(old)
            old.close()
    root.addHandler(file)
