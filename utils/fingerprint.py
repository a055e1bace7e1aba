"""What a number depends on besides the config: data, code and libraries."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from utils.distributed import is_main
from utils.errors import DataError
from utils.files import look_at_all, state_of
from utils.records import Benchmark, Sample, Trial

LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "pillow", "yacs")
logger = logging.getLogger(__name__)


def data_fingerprint(benchmark: Benchmark) -> dict[str, str | list[str] | None]:
    """Sixteen hexadecimal digits for the training images (`train`), and sixteen for all queries and galleries (`test`).

    Over every image's split, file name, size in bytes, identity, camera, viewpoint and modality. File names without
    folders: the same data set elsewhere has the same fingerprint. None for training images that were not read. Several
    data sets have `parts`, too: what `test` would be of each of them alone.

    Raises:
        DataError: an image that is not there.
    """
    whole: dict[str, str | list[str] | None] = {
        "train": _digest([("train", benchmark.train)]) if benchmark.train else None,
        "test": _digest_trials(benchmark.trials),
    }
    parts = [_digest_trials(part.trials) for part in benchmark.parts]
    return whole | ({"parts": parts} if parts else {})


def _digest_trials(trials: tuple[Trial, ...]) -> str:
    splits = []
    for number, trial in enumerate(trials):
        splits += [(f"query{number}", trial.query), (f"gallery{number}", trial.gallery)]
    return _digest(splits)


def _digest(splits: list[tuple[str, tuple[Sample, ...]]]) -> str:
    digest = hashlib.sha256()
    for split, samples in splits:
        for path, *labels, modality in samples:
            labels += [modality] if modality else []  # which earlier versions did not know
            digest.update(f"{split}|{os.path.basename(path)}|{_size(path)}|{labels}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError as error:
        why = "is a link to nothing" if os.path.islink(path) else f"cannot be read ({error.strerror})"
        raise DataError(f"{path}: {why}") from error


class Watch:
    """Warns of images that are replaced while a run uses them. Only the main process checks.

    Args:
        what: "training images" or the like, for the warning.
        lists: the images.
    """

    def __init__(self, what: str, *lists: Sequence[Sample]):
        paths = list(dict.fromkeys(sample.path for samples in lists for sample in samples)) if is_main() else []
        self.what = what
        self.reported: list[str] = []
        self.before = dict(zip(paths, look_at_all(paths, state_of), strict=True))

    def look(self) -> list[str]:
        """Notes for results.json: none, or the warning, which is logged once."""
        if not self.reported:
            now = look_at_all(list(self.before), state_of)
            states = zip(self.before.items(), now, strict=True)
            replaced = [path for (path, old), new in states if new not in (None, old)]
            if replaced:
                self.reported.append(
                    f"{len(replaced)} of {len(now)} {self.what} were replaced since the start, judging by size and "
                    f"modification time (e.g. {replaced[0]}): results computed from both cannot be reproduced"
                )
                logger.warning("%s", self.reported[0])
        return self.reported


def versions() -> dict[str, str]:
    """Python, the libraries that change results, and this program's revision."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "revision": _revision(),
    }


def _revision() -> str:
    """The checkout's commit, with "+" if files differ from it; "unknown" outside a git checkout."""
    folder = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
