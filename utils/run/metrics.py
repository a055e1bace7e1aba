"""metrics.jsonl: every logged number of a run, a JSON object a line; and the same for TensorBoard, if installed."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from utils.errors import writing
from utils.run import METRICS, TENSORBOARD

logger = logging.getLogger(__name__)


class Metrics:
    """The numbers of a run.

    Args:
        folder: of the run.
        size: bytes of an earlier run's metrics.jsonl when its state was saved; what came later is taken back, as it
            comes once more. None: there was no earlier run.
    """

    def __init__(self, folder: Path, *, size: int | None):
        self.path = folder / METRICS
        self.kinds: set[str] = set()  # of what was recorded
        whole = size is not None and self._take_back(size)
        self._board = _tensorboard(folder / TENSORBOARD, anew=whole)
        if whole and self._board is not None:
            self._show_again()

    def record(self, kind: str, *, step: int, **values: Any) -> None:
        """Append numbers; `step` counts over the whole stage."""
        self.kinds.add(kind)
        with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._board is not None:
            self._show(kind, step, **values)
            self._board.flush()

    def put_on_disk(self) -> int:
        """Have the operating system write what the file has so far -> its size in bytes; 0 if there is none."""
        if not self.path.exists():
            return 0
        with open(self.path, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _take_back(self, size: int) -> bool:
        """Cut metrics.jsonl to `size` bytes -> whether it has them all."""
        there = self.path.stat().st_size if self.path.exists() else 0
        if there > size:
            os.truncate(self.path, size)
        elif there < size:
            logger.warning("%s: %d of %d bytes are gone since the state was saved", self.path, size - there, size)
            if there:
                os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)  # half a line is none
        return there >= size

    def _show(self, kind: str, step: int, **values: Any) -> None:
        stage = values.get("stage", kind)
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{stage}/{name}", value, step)

    def _show_again(self) -> None:
        """What metrics.jsonl has of an earlier run."""
        if not self.path.exists():  # it was stopped before it recorded anything
            return
        with open(self.path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    self._show(**json.loads(line))
                except (ValueError, TypeError, RecursionError):
                    logger.warning("%s: %.40s... is no line of this program", self.path, line)
        self._board.flush()


def _tensorboard(folder: Path, *, anew: bool):
    """A writer, where TensorBoard is installed.

    Args:
        anew: delete events that are there: some may be of steps that come once more.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    if anew:
        shutil.rmtree(folder, ignore_errors=True)
    return SummaryWriter(str(folder))
