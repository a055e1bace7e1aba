"""The program's log: lines on the screen (above a progress bar, if there is one) and in a file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm

from utils.errors import UserError

FORMAT = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")


class _AboveTheBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


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
        file = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    file.setFormatter(FORMAT)
    for old in root.handlers[:]:
        if isinstance(old, _Early):
            for record in old.records:
                file.handle(record)
        if isinstance(old, (_Early, logging.FileHandler)):
            root.removeHandler(old)
            old.close()
    root.addHandler(file)
