"""What both scripts' command lines have in common."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from utils.distributed import told_elsewhere
from utils.errors import UserError, one_line

FAILED, SIGNALLED = 2, 128  # and the number of the signal: 130 for Ctrl-C, 143 for SIGTERM


def parse(description: str, argv: Sequence[str] | None = None, *, files: Sequence[str] = ()) -> argparse.Namespace:
    """`config_file` (a path or None), the required `files` by name, and `overrides` (KEY VALUE KEY VALUE ...)."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--config_file", "--config-file", metavar="FILE", help="a YAML file, e.g. configs/person/vit_svllreid.yml"
    )
    for file in files:
        parser.add_argument(file, metavar=file.upper())
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY VALUE",
        help="settings that come last, e.g. SOLVER.SEED 1 MODEL.STRIDE_SIZE '[12, 12]' (all keys: configs/defaults.py)",
    )
    return parser.parse_intermixed_args(argv)


def run(main: Callable[[], object], *mendable: type[Exception]) -> int:
    """Run a script -> exit code: what `main` returns if that is a number, else 0.

    What a user can mend, UserError and `mendable` (faults of the command line and the configuration), becomes one line
    on stderr, which only one of several processes writes.
    """
    try:
        returned = main()
        sys.stdout.flush()
    except BrokenPipeError:
        if not _unread():
            raise
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when Python ends
        return SIGNALLED + getattr(signal, "SIGPIPE", 0)
    except (UserError, *mendable) as error:
        if not told_elsewhere(error):
            sys.stderr.write(f"error: {one_line(error)}\n")
        return FAILED
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        hint = "is its memory or /dev/shm full? (docker run --shm-size 4g, or DATALOADER.NUM_WORKERS 0)"
        sys.stderr.write(f"error: a process that reads images died; {hint}\n")
        return FAILED
    except KeyboardInterrupt as interrupt:
        if not told_elsewhere(interrupt):
            sys.stderr.write(f"interrupted{f' {interrupt}' if str(interrupt) else ''}\n")
        return SIGNALLED + getattr(interrupt, "number", signal.SIGINT)
    return returned if isinstance(returned, int) else 0


def _unread() -> bool:
    """Whether nobody reads standard output any more, as of `... | head -1`, which is no error."""
    try:
        sys.stdout.flush()
        pipe = select.poll()
        pipe.register(sys.stdout.fileno(), 0)  # says when it is broken, and nothing else
        return bool(pipe.poll(0))
    except BrokenPipeError:
        return True
    except (AttributeError, OSError):  # no system that knows poll, or no pipe
        return False
