"""A run's folder: claimed once, never mixed with another run's files."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from utils.checkpoint import save_checkpoint
from utils.errors import UserError

CONFIG, LOG, METRICS, RESULTS = "config.yaml", "train_log.txt", "metrics.jsonl", "results.json"
logger = logging.getLogger(__name__)


def check_writable(path: Path) -> None:
    """Raise UserError if a run could not be written to `path`: found before anything costly, and nothing is left there.

    A run that is there already counts.
    """
    if (path / CONFIG).exists():
        raise UserError(
            f"OUTPUT_DIR {path}: holds a run already ({CONFIG}); give another OUTPUT_DIR, or move that one away"
        )
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"OUTPUT_DIR {path}: {existing} is a file; a folder is needed")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {path}: {existing} cannot be written to ({error.strerror})") from error


class RunFolder:
    """OUTPUT_DIR of a training.

        config.yaml      resolved configuration
        train_log.txt    what the screen shows
        metrics.jsonl    every logged number, a JSON object a line
        results.json     evaluations at start and end, and of later tests
        versions.json    revision, libraries, data fingerprint
        *.pth            checkpoints
        tensorboard/     where TensorBoard is installed

    Raises:
        UserError: the folder cannot be written to, or it holds a run already.
    """

    def __init__(self, path: Path, *, config: dict, fingerprint: dict):
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Opened exclusively: of two runs that start at once in one folder, one is refused.
            with open(path / CONFIG, "x", encoding="utf-8") as file:
                yaml.safe_dump(config, file, sort_keys=False)
        except FileExistsError as error:
            raise UserError(f"OUTPUT_DIR {path}: another run was started there at the same time") from error
        except OSError as error:
            raise UserError(f"OUTPUT_DIR {path}: cannot be written to ({error.strerror})") from error
        (path / "versions.json").write_text(json.dumps(fingerprint, indent=2) + "\n", encoding="utf-8")
        self._tensorboard = _tensorboard(path / "tensorboard")

    def record(self, kind: str, *, step: int, **values: Any) -> None:
        """Append numbers to metrics.jsonl, and to TensorBoard; `step` counts over the whole stage."""
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._tensorboard is not None:
            stage = values.get("stage", kind)
            for name, value in values.items():
                if isinstance(value, float):
                    self._tensorboard.add_scalar(f"{stage}/{name}", value, step)
            self._tensorboard.flush()

    def save(self, name: str, contents: dict) -> Path:
        """Write a checkpoint and return its path."""
        path = self.path / name
        try:
            save_checkpoint(path, contents)
        except OSError as error:
            raise UserError(f"{path}: the checkpoint cannot be written ({error.strerror})") from error
        logger.info("saved %s", path)
        return path


def append_result(folder: Path, entry: dict) -> Path:
    """Add an evaluation to a folder's results.json; the file is replaced as a whole.

    Raises:
        UserError: the file is there but is no results file, or the folder cannot be written to.
    """
    path = folder / RESULTS
    results: dict = {"evaluations": []}
    try:
        if path.exists():
            results = json.loads(path.read_text(encoding="utf-8"))
            results["evaluations"].append(entry)
        else:
            results["evaluations"].append(entry)
        folder.mkdir(parents=True, exist_ok=True)
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
