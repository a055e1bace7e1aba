"""Folders of released networks, in the layout of the Hugging Face Hub; nothing in them is unpickled.

model.safetensors           what retrieval needs of the network
config.json                 what rebuilds it: architecture, settings, checksum of the tensors; FORMAT is its version
preprocessor_config.json    how to prepare images, for programs that do not read the former
model.calibration.json      thresholds for tools.verify, where they were measured
README.md                   the model card
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from utils import checkpoint, hub
from utils.errors import WeightsError, writing
from utils.files import check_new_folder, replacing_folder
from utils.paths import expanded

FORMAT = "svllreid-release-1"
TENSORS, CONFIG, PREPROCESSING = "model.safetensors", "config.json", "preprocessor_config.json"
CALIBRATION, CARD = "model.calibration.json", "README.md"
NEEDED = (TENSORS, CONFIG)
FILES = (*NEEDED, PREPROCESSING, CALIBRATION, CARD)


def locate(weight: str | Path) -> Path:
    """Where weights are on this machine: a file, or the folder of a released network, which the Hub may hold.

    Raises:
        WeightsError: they cannot be fetched from the Hub.
    """
    return hub.fetch(weight, FILES, NEEDED) if hub.on_hub(weight) else expanded(weight)


def is_release(path: Path) -> bool:
    """Whether a path is a folder of a released network, even one that lacks a file."""
    return os.path.isdir(path) and any(os.path.exists(path / name) for name in NEEDED)


def read_release(folder: Path) -> dict:
    """What is in a folder, as a checkpoint holds it.

    Raises:
        WeightsError: a file is missing, damaged, or of another release; it is no folder of this program.
    """
    if lacking := [name for name in NEEDED if not (folder / name).is_file()]:
        raise WeightsError(f"{folder}: is not a whole released network, it has no {lacking[0]}")
    try:
        contents = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{folder / CONFIG}: cannot be read ({error})") from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise WeightsError(f"{folder / CONFIG}: is not of a released network of this program (no format {FORMAT!r})")
    path = folder / TENSORS
    if _checksum(path) != contents.get("sha256"):
        raise WeightsError(
            f"{path}: is not the file that {CONFIG} was written with: damaged, of another release, or a pointer of "
            "Git LFS; not loaded"
        )
    if not checkpoint.is_safetensors(path):
        raise WeightsError(f"{path}: is no safetensors file; not loaded")
    return {**contents, "format": checkpoint.FORMAT, "model": checkpoint.read_tensors(path)}


def write_release(folder: Path, tensors: Mapping[str, Tensor], contents: Mapping, texts: Mapping[str, str]) -> None:
    """Write a folder, all or nothing.

    Args:
        contents: of config.json.
        texts: further files, by name.

    Raises:
        UserError: it is there and not empty, or cannot be written.
    """
    check_new_folder(folder, "--output")
    with writing(folder), replacing_folder(folder) as new:
        save_file({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, new / TENSORS)
        facts = {"format": FORMAT, "sha256": _checksum(new / TENSORS), **contents}
        for name, text in {**texts, CONFIG: json.dumps(facts, indent=2) + "\n"}.items():
            (new / name).write_text(text, encoding="utf-8")
        for path in new.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
