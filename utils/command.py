"""What both scripts' command lines have in common."""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from utils.errors import UserError, one_line
from utils.paths import expanded
from utils.processes import told_elsewhere

FAILED, SIGNALLED = 2, 128  # and the number of the signal: 130 for Ctrl-C, 143 for SIGTERM


def parse(description: str, argv: Sequence[str] | None = None, *, files: Sequence[str] = ()) -> argparse.Namespace:
    """`config_file` (a path or None), the required `files` by name, and `overrides` (KEY VALUE KEY VALUE ...)."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--config_file", "--config-file", metavar="FILE", help="a YAML file, e.g. configs/person/vit_svllreid.yml"
    )
    parser.add_argument("--local-rank", "--local_rank", type=_local_rank, help=argparse.SUPPRESS)
    for file in files:
        parser.add_argument(file, metavar=file.upper())
    parser.add_argument(
        "overrides",
        nargs="*",
        action=Pairs,
        metavar="KEY VALUE",
        help="settings that come last, e.g. SOLVER.SEED 1 MODEL.STRIDE_SIZE '[12, 12]' (all keys: configs/defaults.py)",
    )
    return parser.parse_intermixed_args(argv)


class Pairs(argparse.Action):
    """The argparse action of settings: KEY VALUE KEY VALUE ... of words, of which KEY=VALUE is two.

    cmd.exe knows no single quotes: it cuts '[12, 12]' at the blank. What it cut is joined.
    """

    def __call__(self, _parser, namespace: argparse.Namespace, words: Sequence[str], _option=None) -> None:
        words, pairs = list(words), []
        while words:
            key, equals, value = words.pop(0).partition("=")
            pairs.append(key)
            if not equals and not words:
                break
            value = value if equals else words.pop(0)
            if value.startswith("'") and not value.endswith("'"):
                count = next((number for number, word in enumerate(words, 1) if word.endswith("'")), 0)
                value = " ".join([value, *words[:count]])
                del words[:count]
            pairs.append(value)
        setattr(namespace, self.dest, pairs)


def _local_rank(text: str) -> str:
    """What torch.distributed.launch passes on; the environment says the same."""
    if "LOCAL_RANK" not in os.environ:
        raise argparse.ArgumentTypeError("several processes are torchrun's: torchrun --nproc_per_node 4 ...")
    return text


def answer_early(read: Callable[[], object], *mendable: type[Exception]) -> None:
    """Leave if the command line, which `main` reads again, asks for help or is wrong; `mendable` is that of `run`."""
    logging.disable()  # what is said in passing is said by `main`
    code = run(read, *mendable)
    logging.disable(logging.NOTSET)
    if code:
        sys.exit(code)


def check_there(path: str, what: str, advice: str = "") -> None:
    """UserError if there is nothing at `path`; `advice` ends the message."""
    if not os.path.exists(expanded(path, what)):
        raise UserError(f"{what} {path}: there is no such file or folder{advice}")


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
