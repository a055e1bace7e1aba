"""Where a run or a test may write, which is known before torch is loaded."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from utils.errors import UserError
from utils.hub import on_hub
from utils.paths import expanded
from utils.run import CONFIG, NON_FINITE, STATES, TENSORBOARD, WRITTEN


def check_writable(path: Path, key: str = "OUTPUT_DIR") -> None:
    """Raise UserError if nothing could be written to `path`; nothing is left there."""
    existing = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not existing.exists():
        raise UserError(f"{key} {path}: {existing} is a link to nothing")
    if not existing.is_dir():
        raise UserError(f"{key} {path}: {existing} is a file; a folder is needed")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"{key} {path}: {existing} cannot be written to ({error.strerror})") from error


def check_unused(path: Path) -> None:
    """Raise UserError if `path` holds a run already, or any file that a run would write."""
    taken = [name for name in (CONFIG, *WRITTEN, TENSORBOARD, STATES, NON_FINITE) if (path / name).exists()]
    taken += sorted(file.name for file in path.glob("*.pth"))
    if taken:
        raise UserError(
            f"OUTPUT_DIR {path}: holds a run already ({taken[0]}); give another OUTPUT_DIR, or move that one away"
        )


def results_folder(weight: str, output: str) -> Path:
    """Where results of a test go: OUTPUT_DIR, else beside the checkpoint, or into the folder of a released network.

    Raises:
        UserError: there is no OUTPUT_DIR, and the network is on the Hub; or nothing could be written there.
    """
    if not output and on_hub(weight):
        raise UserError(f"OUTPUT_DIR: expected a folder for the results, as {weight} is not on this machine")
    path = expanded(output, "OUTPUT_DIR") if output else expanded(weight)
    path = path if output or path.is_dir() else path.parent
    check_writable(path)
    return path
