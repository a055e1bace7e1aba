"""The lock that keeps two runs out of one folder."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from utils.errors import UserError
from utils.run import LOCK

logger = logging.getLogger(__name__)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keep other processes from writing a run to `path`; folders made for this are removed again if they stay empty.

    The lock is the operating system's: it ends with the process, however that ends, and child processes have no part
    in it.

    Raises:
        UserError: another process holds it, or the folder cannot be made.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    held, ours = FileLock(path / LOCK, timeout=0, fallback_to_soft=False), False
    try:
        _acquire(held, path)
        ours = True
        yield
    finally:
        if ours:
            with contextlib.suppress(OSError):  # Windows keeps a file that is open
                (path / LOCK).unlink()
        held.release()
        with contextlib.suppress(OSError):  # it holds something
            for folder in made:
                folder.rmdir()


def _acquire(held: BaseFileLock, path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / LOCK).touch()
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {path}: cannot be written to ({error.strerror})") from error
    try:
        held.acquire()
    except Timeout as error:
        raise UserError(f"OUTPUT_DIR {path}: another run is writing there at this moment") from error
    except OSError as error:  # as of network file systems that have no locks
        logger.warning("%s: cannot be locked (%s): nothing keeps two runs apart", path, error.strerror)
