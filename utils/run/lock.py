"""The lock that keeps two runs out of one folder."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import UserError
from utils.run import LOCK

UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}  # of network file systems without locks
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
    held = FileLock(path / LOCK, timeout=0, fallback_to_soft=False)
    try:
        path.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout as error:
        raise UserError(f"OUTPUT_DIR {path}: another run is writing there at this moment") from error
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise UserError(f"OUTPUT_DIR {path}: cannot be written to ({error.strerror})") from error
        logger.warning("%s: its file system has no locks (%s): nothing keeps two runs apart", path, error.strerror)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            (path / LOCK).unlink()
        held.release()
        with contextlib.suppress(OSError):  # it holds something
            for folder in made:
                folder.rmdir()
