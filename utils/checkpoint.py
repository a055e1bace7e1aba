"""Files of tensors: written under a temporary name and renamed, read without executing anything, loaded strictly."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import WeightsError

FORMAT = "svllreid-1"
PARTS = ("model", "architecture", "config")


def save_checkpoint(path: Path, contents: dict) -> None:
    """Write a dictionary of tensors and plain types; `path` holds either all of it or what it held before.

    Raises:
        WeightsError: a tensor of contents["model"] is not finite; nothing is written.
        OSError: the disk is full or read-only.
    """
    for name, value in contents["model"].items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError(f"{path}: not written, because {name} holds values that are not finite")
    write_tensors(path, {"format": FORMAT, **contents})


def write_tensors(path: Path, contents: dict) -> None:
    """Write a dictionary; `path` holds either all of it or what it held before.

    Raises:
        OSError: the disk is full or read-only.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint of this program as it was saved, on the CPU.

    Raises:
        WeightsError: no such file, damaged, would execute code, or not a checkpoint of this program.
    """
    contents = read_tensors(path)
    check_checkpoint(contents, path)
    return contents


def check_checkpoint(contents: dict, path: str | Path) -> None:
    """Raise WeightsError if what was read from `path` is no whole checkpoint of this program."""
    if contents.get("format") != FORMAT:
        raise WeightsError(f"{path}: is not a checkpoint of this program (no format {FORMAT!r} in it)")
    lacking = [part for part in PARTS if not isinstance(contents.get(part), dict)]
    if lacking:
        raise WeightsError(f"{path}: is no whole checkpoint, it lacks {', '.join(lacking)}")


def read_tensors(path: str | Path) -> dict:
    """A pickled dictionary of tensors and plain types.

    Raises:
        WeightsError: no such file, not readable as such, or it would execute code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path}: damaged, or holds more than tensors and plain types; not loaded") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path}: cannot be read, the file is damaged or cut off ({type(error).__name__})"
        ) from error
    if not isinstance(contents, dict):
        raise WeightsError(f"{path}: holds a {type(contents).__name__}, not a dictionary of tensors")
    return contents


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is TorchScript, the form in which OpenAI publishes CLIP; a missing file is not."""
    path = Path(path).expanduser()
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(entry.endswith("/constants.pkl") for entry in file.namelist())


def load_strictly(module: nn.Module, state: dict[str, Tensor], *, source: str, hint: str) -> None:
    """Copy `state` into `module`, which must have just these tensors in just these shapes.

    Raises:
        WeightsError: naming the first missing, unexpected and mis-shaped tensors, with `source` and `hint`.
    """
    wanted = module.state_dict()
    faults = []
    for word, names in (("missing", wanted.keys() - state.keys()), ("unexpected", state.keys() - wanted.keys())):
        if names:
            faults.append(f"{len(names)} {word} ({', '.join(sorted(names)[:3])}{', …' if len(names) > 3 else ''})")
    shapes = [
        f"{name} is {list(state[name].shape)}, not {list(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if state[name].shape != wanted[name].shape
    ]
    if shapes:
        faults.append("; ".join(sorted(shapes)[:3]))
    if faults:
        raise WeightsError(f"{source}: the tensors do not fit the network: {'; '.join(faults)}; {hint}")
    module.load_state_dict(state)
