"""The program's log: lines on the screen (above a progress bar, if there is one) and in a file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm

FORMAT = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")


class _AboveTheBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def log_to_screen() -> None:
    """Once, at the start of a script."""
    handler = _AboveTheBar()
    handler.setFormatter(FORMAT)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for chatty in ("httpx", "huggingface_hub", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def log_to_file(path: Path) -> None:
    """From now on, also there, and no longer in an earlier run's file."""
    for old in [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]:
        logging.getLogger().removeHandler(old)
        old.close()
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(FORMAT)
    logging.getLogger().addHandler(handler)
