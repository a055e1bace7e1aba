"""A run's folder: claimed once, never mixed with another run's files."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from utils.checkpoint import save_checkpoint
from utils.errors import UserError, one_line

CONFIG, LOG, METRICS, RESULTS = "config.yaml", "train_log.txt", "metrics.jsonl", "results.json"
VERSIONS, TENSORBOARD = "versions.json", "tensorboard"
WRITTEN = (METRICS, RESULTS, LOG, VERSIONS)
logger = logging.getLogger(__name__)


def check_writable(path: Path) -> None:
    """Raise UserError if nothing could be written to `path`; nothing is left there."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"OUTPUT_DIR {path}: {existing} is a file; a folder is needed")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {path}: {existing} cannot be written to ({error.strerror})") from error


def check_unused(path: Path) -> None:
    """Raise UserError if `path` holds a run already, or any file that a run would write."""
    taken = [name for name in (CONFIG, *WRITTEN, TENSORBOARD) if (path / name).exists()]
    if taken:
        raise UserError(
            f"OUTPUT_DIR {path}: holds a run already ({taken[0]}); give another OUTPUT_DIR, or move that one away"
        )


class RunFolder:
    """OUTPUT_DIR of a training.

        config.yaml      resolved configuration
        train_log.txt    what the screen shows
        metrics.jsonl    every logged number, a JSON object a line
        results.json     evaluations at start and end, and of later tests
        versions.json    revision, libraries, data fingerprint
        *.pth            checkpoints
        tensorboard/     where TensorBoard is installed

    Args:
        path: the folder; made if absent.
        config: written to config.yaml.
        fingerprint: what the run depends on besides; written to versions.json and into checkpoints.

    Raises:
        UserError: the folder cannot be written to, or it holds a run already.
    """

    def __init__(self, path: Path, *, config: dict, fingerprint: dict):
        self.path, self.fingerprint = path, fingerprint
        self.kinds: set[str] = set()  # of what was recorded
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Opened exclusively: of two runs that start at once in one folder, one is refused.
            with open(path / CONFIG, "x", encoding="utf-8") as file:
                yaml.safe_dump(config, file, sort_keys=False)
            (path / VERSIONS).write_text(json.dumps(fingerprint, indent=2) + "\n", encoding="utf-8")
        except FileExistsError as error:
            raise UserError(f"OUTPUT_DIR {path}: another run was started there at the same time") from error
        except OSError as error:
            raise UserError(f"OUTPUT_DIR {path}: cannot be written to ({error.strerror})") from error
        self._tensorboard = _tensorboard(path / TENSORBOARD)

    def record(self, kind: str, *, step: int, **values: Any) -> None:
        """Append numbers to metrics.jsonl, and to TensorBoard; `step` counts over the whole stage."""
        self.kinds.add(kind)
        try:
            with open(self.path / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        except OSError as error:
            raise UserError(f"{self.path / METRICS}: cannot be written ({error.strerror})") from error
        if self._tensorboard is not None:
            stage = values.get("stage", kind)
            for name, value in values.items():
                if isinstance(value, float):
                    self._tensorboard.add_scalar(f"{stage}/{name}", value, step)
            self._tensorboard.flush()

    def save(self, name: str, contents: dict) -> Path:
        """Write a checkpoint, with the run's fingerprint, and return its path."""
        path = self.path / name
        try:
            save_checkpoint(path, {**contents, "fingerprint": self.fingerprint})
        except (OSError, RuntimeError) as error:  # torch says in a RuntimeError that a disk is full
            reason = getattr(error, "strerror", None) or f"is the disk full? {one_line(error)[:80]}"
            raise UserError(f"{path}: the checkpoint cannot be written ({reason}); earlier ones are intact") from error
        logger.info("saved %s", path)
        return path

    def discard(self) -> bool:
        """Give the folder free again, if no training step was logged and no checkpoint saved -> whether it was."""
        if any(self.path.glob("*.pth")) or self.kinds - {"evaluation"}:
            return False
        if self._tensorboard is not None:
            self._tensorboard.close()
            shutil.rmtree(self.path / TENSORBOARD, ignore_errors=True)
        for name in (*WRITTEN, CONFIG):
            with contextlib.suppress(OSError):  # Windows keeps a log file that is open
                (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something else
            self.path.rmdir()
        return True


def append_result(folder: Path, entry: dict) -> Path:
    """Add an evaluation to a folder's results.json; the file is replaced as a whole.

    Raises:
        UserError: the file is there but is no results file, or the folder cannot be written to.
    """
    path = folder / RESULTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"evaluations": []}
        results["evaluations"].append(entry)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not a results file of this program; move it away") from error
    return path


def _tensorboard(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
