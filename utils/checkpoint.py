"""Files of tensors: written atomically, read without executing code, loaded strictly."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from utils.errors import WeightsError, some
from utils.files import instead_of_file, replacing
from utils.paths import expanded
from utils.unreadable import why_unreadable

FORMAT = "svllreid-1"
PARTS = ("model", "architecture", "config")
SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt"}  # of files of weights
HARMLESS: list = [argparse.Namespace]  # classes without code that files may hold besides tensors and plain types
LONGEST_HEADER = 100_000_000  # bytes of safetensors' JSON header, its own limit
ARCHIVE_START = b"PK\x03\x04"  # by which torch, too, tells its archives from its older form, a bare pickle
FOLDER = 0x10  # mark of a record that is a folder
STORAGES = {
    **{"FloatStorage": torch.float32, "HalfStorage": torch.float16, "DoubleStorage": torch.float64},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
}


def save_checkpoint(path: Path, contents: dict) -> None:
    """Write a dictionary of tensors and plain types atomically.

    Raises:
        WeightsError: a tensor of contents["model"] is not finite; nothing is written.
        OSError: the disk is full or read-only.
    """
    for name, value in contents["model"].items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError(f"{path}: not written: {name} has values that are not finite")
    write_tensors(path, {"format": FORMAT, **contents})


def write_tensors(path: Path, contents: dict) -> None:
    """Write a dictionary atomically and durably.

    Raises:
        OSError: the disk is read-only or full ...
        RuntimeError: ... which torch may say in its own way.
    """
    with replacing(path) as file:
        torch.save(contents, file)


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint of this program, on the CPU.

    Raises:
        WeightsError: no such file, damaged, would execute code, or not a checkpoint of this program.
    """
    contents = read_tensors(path)
    check_checkpoint(contents, path)
    return contents


def check_checkpoint(contents: dict, path: str | Path) -> None:
    """Raise WeightsError if what was read from `path` is not a complete checkpoint of this program."""
    if contents.get("format") != FORMAT:
        raise WeightsError(f"{path}: is not a checkpoint of this program (no format {FORMAT!r} in it)")
    lacking = [part for part in PARTS if not isinstance(contents.get(part), dict)]
    if lacking:
        raise WeightsError(f"{path}: is not a complete checkpoint, {', '.join(lacking)} missing")


def read_tensors(path: str | Path) -> dict:
    """Read a dictionary of tensors and plain types, pickled or safetensors, whatever the file's name ends in.

    Archives, the form of every pickled file since torch 1.6, are compared with their checksums. The older form has
    none.

    Raises:
        WeightsError: no such file, damaged, not readable as such, or it would execute code.
    """
    path = weights_file(path)
    try:
        if is_safetensors(path):
            return load_file(path)
        if _is_archive(path):
            check_archive(path)
            if is_torchscript(path):
                raise WeightsError(f"{path}: is TorchScript, not a dictionary of tensors")
        # Opened, because torch takes a name that ends in .safetensors at its word.
        with open(path, "rb") as file, torch.serialization.safe_globals(HARMLESS):
            contents = torch.load(file, map_location="cpu", weights_only=True)
    except (WeightsError, MemoryError):
        raise
    except Exception as error:  # of any type: the older form is unpickled as far as it goes
        raise WeightsError(f"{path}: {why_unreadable(path, error)}") from error
    if not isinstance(contents, dict):
        raise WeightsError(f"{path}: holds a {type(contents).__name__}, not a dictionary of tensors")
    return contents


def weights_file(path: str | Path) -> Path:
    """`path`, with ~ replaced by a home folder.

    Raises:
        WeightsError: there is no such file, or it is a folder or a pipe.
        UserError: there is no such home folder.
    """
    path = expanded(path)
    if os.path.isdir(path):  # os.path's, because Path's raises for a name that is too long
        weights = sorted(file.name for file in path.glob("*") if file.suffix in SUFFIXES)
        raise WeightsError(f"{path}: is a folder; name the file in it ({some(weights) or 'it has no weights'})")
    if not os.path.exists(path):
        raise WeightsError(f"{path}: there is no such file")
    if instead := instead_of_file(os.stat(path).st_mode):
        raise WeightsError(f"{path}: is {instead}; expected a file")
    return path


def is_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a JSON header and the header."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= LONGEST_HEADER


def _is_archive(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(ARCHIVE_START)) == ARCHIVE_START


def check_archive(path: Path) -> None:
    """Raise WeightsError if a record of a zip archive is not what was written; torch does not compare checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            # Of a record that is marked as a folder, torch reads nothing, and returns what happens to be in memory.
            folders = [record.filename for record in records if record.external_attr & FOLDER and record.file_size]
            # Who switches checksums off (torch.serialization.set_crc32_options) writes 0 for all of them.
            wrong = archive.testzip() if any(record.CRC for record in records) else None
    except Exception as error:  # zipfile's, zlib's, struct's ...: whatever the broken field is for
        raise WeightsError(
            f"{path}: damaged or truncated (the archive's structure: {type(error).__name__}); not loaded"
        ) from error
    if wrong is not None:
        raise WeightsError(f"{path}: damaged (checksum of {wrong}); not loaded")
    if folders:
        raise WeightsError(f"{path}: damaged (attributes of {folders[0]}); not loaded")


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is TorchScript, the form in which OpenAI publishes CLIP; a missing or damaged file is not."""
    try:
        path = weights_file(path)
        if not _is_archive(path):
            return False
        with zipfile.ZipFile(path) as file:
            return any(entry.endswith("/constants.pkl") for entry in file.namelist())
    except Exception:  # read_tensors reports what is wrong with it
        return False


def read_torchscript(path: str | Path) -> dict[str, Tensor]:
    """Parameters and buffers of a TorchScript archive, as the `state_dict` of the module in it would name them.

    `torch.jit.load` would give the same, but runs code of the archive's (__setstate__, defaults of arguments), which
    can write files. Here its code is only looked up for which tensors are parameters and buffers.

    Raises:
        WeightsError: no such file, damaged, or not readable as such.
    """
    path = weights_file(path)
    check_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _TorchScript(archive).state()
    except Exception as error:  # whatever an archive of another kind makes of it
        raise WeightsError(f"{path}: cannot be read as TorchScript ({type(error).__name__}: {error})") from error


class _Scripted:
    """An object of a TorchScript class, without its methods."""


class _TorchScript(pickle.Unpickler):
    """Reads an archive's objects; of Python's own, only ordered dictionaries are ever made."""

    def __init__(self, archive: zipfile.ZipFile):
        (pickled,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name))
        super().__init__(archive.open(pickled))
        self.archive, self.folder = archive, pickled.removesuffix("data.pkl")
        self.storages: dict[str, Tensor] = {}

    def state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        self._add(self.load(), "", state)
        return state

    def _add(self, module: _Scripted, prefix: str, state: dict[str, Tensor]) -> None:
        kept = self._registered(type(module).__qualname__)
        for name, value in vars(module).items():
            if isinstance(value, _Scripted):
                self._add(value, f"{prefix}{name}.", state)
            elif isinstance(value, Tensor) and (kept is None or name in kept):
                state[f"{prefix}{name}"] = value

    def _registered(self, name: str) -> set[str] | None:
        """Names of a class's parameters and buffers; None where the code, of an old version, does not tell them."""
        module, _, leaf = name.rpartition(".")
        code = self.archive.read(f"{self.folder}code/{module.replace('.', '/')}.py").decode()
        head = rf"^class {re.escape(leaf)}\(Module\):\n +__parameters__ = \[(.*)\]\n +__buffers__ = \[(.*)\]\n"
        lists = re.search(head, code, re.MULTILINE)
        return set(re.findall(r'"([^"]+)"', lists[1] + lists[2])) if lists else None

    def find_class(self, module: str, name: str):
        if module == "__torch__" or module.startswith("__torch__."):
            return type(f"{module}.{name}", (_Scripted,), {})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: storage.as_strided(size, stride, offset)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch.jit._pickle":
            return lambda value, *_: value  # lists of one type, which are pickled with a word on it
        raise pickle.UnpicklingError(f"{module}.{name} does not belong in it")

    def persistent_load(self, pid) -> Tensor:
        _, dtype, key, *_ = pid
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.folder}data/{key}"))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def load_strictly(
    module: nn.Module, state: dict[str, Tensor], *, source: str, name: str, shown: Callable[[str], str] = str
) -> None:
    """Copy `state` into `module`, which must have exactly these tensors in exactly these shapes, and kinds of numbers.

    Args:
        name: MODEL.NAME, for the message.
        shown: what a tensor is called in the file.

    Raises:
        WeightsError: naming the first missing, unexpected and mis-shaped tensors, with `source` and `name`.
    """
    if faults := misfits(state, module.state_dict(), shown):
        what = some(faults, separator="; ")
        raise WeightsError(f"{source}: the tensors do not fit the network: {what}; is it a {name} (MODEL.NAME)?")
    module.load_state_dict(state)


def misfits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], shown: Callable[[str], str] = str) -> list[str]:
    """How a file's tensors differ from a network's: those missing, those unexpected, and each of another shape or kind
    of number; with names as `shown` has them."""
    faults = [
        f"{len(keys)} {word} ({some([shown(key) for key in sorted(keys)])})"
        for word, keys in (("missing", wanted.keys() - state.keys()), ("unexpected", state.keys() - wanted.keys()))
        if keys
    ]
    for key in sorted(wanted.keys() & state.keys()):
        value, place = state[key], wanted[key]
        if value.shape != place.shape:
            faults.append(f"{shown(key)} is {list(value.shape)}, not {list(place.shape)}")
        elif value.is_floating_point() != place.is_floating_point():
            faults.append(f"{shown(key)} is of {value.dtype}, not {place.dtype}")
    return faults
