"""What both scripts' command lines have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from utils.errors import UserError, one_line

FAILED, INTERRUPTED = 2, 130


def parse(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """`config_file` (a path or None) and `overrides` (KEY VALUE KEY VALUE ...)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config_file", metavar="FILE", help="a YAML file, e.g. configs/person/vit_svllreid.yml")
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="settings that come last, e.g. SOLVER.SEED 1 MODEL.STRIDE_SIZE '[12, 12]' (all keys: configs/defaults.py)",
    )
    return parser.parse_args(argv)


def run(main: Callable[[], None], *mendable: type[Exception]) -> int:
    """Run a script; what a user can mend becomes one line on stderr. -> exit code"""
    try:
        main()
    except (UserError, *mendable) as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return FAILED
    except KeyboardInterrupt as interrupt:
        where = f" {interrupt}" if str(interrupt) else ""
        sys.stderr.write(f"interrupted{where}: what was saved before is intact\n")
        return INTERRUPTED
    return 0
