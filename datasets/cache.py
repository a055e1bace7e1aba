"""Resized images that were read before, in a file that processes share as memory."""

from __future__ import annotations

import atexit
import functools
import hashlib
import logging
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from utils.distributed import is_main
from utils.errors import UserError
from utils.files import state_of
from utils.memory import available_memory

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
SHARED_MEMORY = Path("/dev/shm")
NAME = "svllreid-{}.images"
ENTRY = 3  # numbers of 64 bits: size and modification time of the image's file, checksum of the pixels
SHARE = 0.5  # of the available memory that "auto" takes at most


class PixelCache:
    """Pixels uint8 [C, H, W] of N images.

    Nothing in its file is trusted: pixels count if the image's file still has the size and the modification time that
    are noted with them, and if they have the checksum that is noted, too. So whatever is half written, damaged or
    stale is read anew from the image; that several processes write the same image does no harm.

    Args:
        path: of the file, which may be there already.
        count: N.
        shape: (C, H, W).

    Raises:
        OSError: there is no room for it, or it cannot be written.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, int, int]):
        self.arguments = path, count, shape
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        _lock(self.file)
        # All at once: a process that writes to memory for which the disk has no room is killed.
        size = size_of(count, shape)
        os.posix_fallocate(self.file, 0, size) if hasattr(os, "posix_fallocate") else os.ftruncate(self.file, size)
        memory = mmap.mmap(self.file, size)
        self.entries = np.frombuffer(memory, np.int64, count * ENTRY).reshape(count, ENTRY)
        self.pixels = np.frombuffer(memory, np.uint8, offset=self.entries.nbytes).reshape(count, *shape)

    def __reduce__(self) -> tuple:
        return open_cache, self.arguments  # in a process that does not inherit its parent's memory

    def read(self, number: int, path: str, make: Callable[[], Tensor]) -> Tensor:
        """The pixels of image `number`, which is at `path`: those that are kept or, for the first time, what `make`
        returns."""
        state = state_of(path)  # before it is read
        pixels = self.pixels[number].copy()  # which nobody changes any more
        if state and tuple(self.entries[number]) == (*state, zlib.crc32(pixels.data)):
            return torch.from_numpy(pixels)
        made = make()
        if state:
            self.pixels[number] = made.numpy()
            self.entries[number] = (*state, zlib.crc32(made.numpy().data))
        return made


@functools.cache
def open_cache(path: Path, count: int, shape: tuple[int, int, int]) -> PixelCache:
    """A cache that stays open as long as the program: later loaders of the same images share it."""
    return PixelCache(path, count, shape)


def size_of(count: int, shape: tuple[int, int, int]) -> int:
    """Bytes of a cache of so many images."""
    return count * (8 * ENTRY + int(np.prod(shape)))


def make_cache(mode: str, folder: Path, paths: Sequence[str], size: tuple[int, int], how: str) -> PixelCache | None:
    """A cache of images [3, H, W] as DATALOADER.CACHE says; None if there is to be none.

    Args:
        mode: auto, ram, disk or off.
        folder: where "disk" keeps its files.
        paths: of the images.
        size: H and W.
        how: the filter that resizes them.

    Raises:
        UserError: there is no room for "ram" or "disk".
    """
    if mode == "off" or not paths:
        return None
    shape, place = (3, *size), folder if mode == "disk" else _memory_folder()
    file = place / NAME.format(_key(paths, shape, how))
    needed = size_of(len(paths), shape)
    what = f"{_shown(needed)} for {len(paths):,} images of {size[0]} x {size[1]}"
    if mode != "disk":
        _sweep(place, file)
    there = file.exists() and file.stat().st_size == needed  # of another process, or of an earlier run
    if mode == "auto" and not there and needed > _room(place):
        _say("DATALOADER.CACHE auto: off, %s are more than %d %% of what is free", what, 100 * SHARE)
        return None
    try:
        place.mkdir(parents=True, exist_ok=True)
        cache = open_cache(file, len(paths), shape)
    except OSError as error:
        if mode == "auto":
            _say("DATALOADER.CACHE auto: off, no %s in %s (%s)", what, place, error.strerror)
            return None
        raise UserError(f"DATALOADER.CACHE {mode}: no {what} in {place} ({error.strerror}); expected off") from error
    if mode == "disk":
        _say("DATALOADER.CACHE disk: %s in\n  %s", what, file)
    else:
        _remove_at_exit(file)
        _say("DATALOADER.CACHE %s: %s", mode if mode != "auto" else "auto, ram", what)
    return cache


def _key(paths: Sequence[str], shape: tuple[int, ...], how: str) -> str:
    """Of all that pixels depend on but for the contents of the images' files."""
    digest = hashlib.sha256(f"{shape} {how} {PIL.__version__}\n".encode())
    for module in ("images.py", "transforms.py"):  # that decode and resize
        digest.update(Path(__file__).with_name(module).read_bytes())
    for path in paths:
        digest.update(f"{os.path.abspath(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _room(folder: Path) -> int:
    """Bytes of memory that "auto" may take."""
    return min(shutil.disk_usage(folder).free, int(SHARE * available_memory()))


def _memory_folder() -> Path:
    return SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())


def _lock(file: int) -> None:
    """Show that the file is in use; that ends with the process, however it ends."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _sweep(folder: Path, ours: Path) -> None:
    """Remove what programs that were killed left in memory."""
    for path in folder.glob(NAME.format("*")):
        with suppress(OSError):
            if fcntl is None or path == ours or path.stat().st_uid != os.getuid():
                continue
            file = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if it is in use
                path.unlink()
            finally:
                os.close(file)


@functools.cache
def _remove_at_exit(path: Path) -> None:
    process = os.getpid()

    def remove() -> None:
        if os.getpid() == process:  # not in children that were forked
            with suppress(OSError):  # Windows keeps a file that is open
                path.unlink()  # other processes keep what they have open

    atexit.register(remove)


def _say(message: str, *values: object) -> None:
    if is_main():
        logger.info(message, *values)


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
