"""Command lines: parsing, early answers, exit codes and one-line errors."""

from __future__ import annotations

import argparse
import errno
import gc
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import utils.runtime  # noqa: F401
from configs.help import ConfigError, help_keys, resolved
from utils.errors import UserError, one_line
from utils.hub import on_hub, repository_of
from utils.logs import drop, screen, tell
from utils.paths import expanded
from utils.processes import ProcessFailed, lost_process, reported_elsewhere
from utils.workers import REMEDY, dead_worker

REFUSED = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EIO}
DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.EISDIR, errno.ENOTDIR}  # to do with one file
SPELLINGS = str.maketrans("-_", "_-")  # of options
ENDS = {"'": "'", "[": "]", "(": ")"}  # of values with blanks in them
FAILED, SIGNALLED = 2, 128  # and the number of the signal: 130 for Ctrl-C, 143 for SIGTERM


def parse(
    description: str,
    argv: Sequence[str] | None = None,
    *,
    files: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    config_file: str | None = None,
) -> argparse.Namespace:
    """Read a command line, and answer what it asks of the configuration.

    Args:
        files: names of required paths.
        options: the script's own, with what argparse's `add_argument` takes.
        config_file: where the command line names none.

    Returns:
        `config_file` (a path or None), `files` and `options` by name, and `overrides` (KEY VALUE KEY VALUE ...).

    Raises:
        ConfigError: --help-keys or --print_config cannot be answered.
    """
    parser = new_parser(description)
    for option, settings in (options or {}).items():
        parser.add_argument(option, **settings)
    parser.add_argument(
        "--config_file",
        metavar="FILE",
        default=config_file,
        help="a YAML file, e.g. configs/person/vit_svllreid.yml",
    )
    parser.add_argument("--print_config", action="store_true", help="print all settings as YAML")
    parser.add_argument(
        "--help-keys",
        metavar="PREFIX",
        nargs="?",
        const="",
        help="print the keys that begin with PREFIX, with defaults, meanings and valid values",
    )
    parser.add_argument("--local-rank", type=_local_rank, help=argparse.SUPPRESS)
    for file in files:
        parser.add_argument(file, metavar=file.upper())
    add_settings(
        parser, "settings that come last, e.g. SOLVER.SEED 1 MODEL.STRIDE_SIZE '[12, 12]' (all keys: --help-keys)"
    )
    arguments = parser.parse_intermixed_args(argv)
    answer = None
    if arguments.help_keys is not None:
        answer = help_keys(arguments.help_keys)
    elif arguments.print_config:
        answer = resolved(arguments.config_file, arguments.overrides)
    if answer is not None:
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()  # `... | head` is noticed here
        sys.exit()
    return arguments


class _Parser(argparse.ArgumentParser):
    """Takes options of several words with - and with _ between them, whichever they are declared with."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:  # type: ignore[override]
        others = (name[:2] + name[2:].translate(SPELLINGS) for name in names if name.startswith("--"))
        return super().add_argument(*dict.fromkeys([*names, *others]), **settings)


def new_parser(description: str) -> argparse.ArgumentParser:
    """A parser of a script or tool, whose docstring is `description`."""
    module = sys.modules["__main__"].__spec__  # None for a script
    return _Parser(
        prog=f"python -m {module.name.removesuffix('.__main__')}" if module else None,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_settings(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Let a parser take KEY VALUE KEY VALUE ..., as `overrides`."""
    parser.add_argument("overrides", nargs="*", default=[], action=Pairs, metavar="KEY VALUE", help=meaning)


def at_least(low: int) -> Callable[[str], int]:
    """An argparse type: integers from `low`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"invalid value {text!r}, expected an integer from {low}")
        return int(text)

    return read


class Once(argparse.Action):
    """The argparse action of an option that may not come twice, as the first would be forgotten."""

    def __call__(self, _parser, namespace: argparse.Namespace, word: Any, option: str | None = None) -> None:
        if getattr(namespace, self.dest) is not None:
            raise argparse.ArgumentError(self, "expected once")
        setattr(namespace, self.dest, word)


class Pairs(argparse.Action):
    """The argparse action of settings: makes KEY VALUE KEY VALUE ... of words that may also be KEY=VALUE.

    cmd.exe, which knows no single quotes, splits '[12, 12]' at the blank, as every shell does without quotes; the parts
    are joined again.
    """

    def __call__(self, _parser, namespace: argparse.Namespace, words: Any, _option=None) -> None:
        words, pairs = list(words), []
        while words:
            key, equals, value = words.pop(0).partition("=")
            pairs.append(key)
            if not equals and not words:
                break
            value = value if equals else words.pop(0)
            end = ENDS.get(value[:1])
            if end and not value.endswith(end):
                count = next((number for number, word in enumerate(words, 1) if word.endswith(end)), 0)
                value = " ".join([value, *words[:count]])
                del words[:count]
            pairs.append(value)
        setattr(namespace, self.dest, pairs)


def _local_rank(text: str) -> str:
    """The type of --local-rank, which torch.distributed.launch passes on beside the environment variable."""
    if "LOCAL_RANK" not in os.environ:
        raise argparse.ArgumentTypeError(
            "is torchrun's option: start several processes with torchrun --nproc_per_node 4 ..."
        )
    return text


def answer_early(read: Callable[[], object]) -> None:
    """Exit if the command line asks for help or is wrong; `main` reads it again.

    What is imported until `main` stays: Python's search for garbage would go through it again and again, a seventh of
    the time that a test of the demo takes.
    """
    logging.disable()  # `main` logs it
    code = run_script(read)
    logging.disable(logging.NOTSET)
    if code:
        sys.exit(code)
    gc.disable()


def check_there(path: str, what: str, advice: str = "") -> None:
    """Raise UserError if `path` does not exist; `advice` ends the message."""
    if not os.path.exists(expanded(path, what)):
        raise UserError(f"{what} {path}: there is no such file or folder{advice}")


def check_weight(weight: str, what: str) -> None:
    """The same for weights, which may also be on the Hub: then only the name is looked at."""
    if on_hub(weight):
        repository_of(weight)
    else:
        check_there(weight, what)


def run_script(main: Callable[[], object]) -> int:
    """Run a script and return its exit code: what `main` returns if that is an integer, else 0.

    Errors that a user can fix become one line on stderr and in the log file, of one process only: UserError,
    ConfigError, and what the operating system refuses.
    """
    if not gc.isenabled():  # since answer_early
        gc.freeze()
        gc.enable()
    with screen():
        try:
            returned = main()
            sys.stdout.flush()
            return returned if isinstance(returned, int) else 0
        except KeyboardInterrupt as interrupt:
            words, code = f"interrupted {interrupt}".rstrip(), SIGNALLED + getattr(interrupt, "number", signal.SIGINT)
            quiet = reported_elsewhere(interrupt)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _unread():
                drop(sys.stdout)
                return SIGNALLED + getattr(signal, "SIGPIPE", 0)
            message = _in_one_line(error)
            if message is None:
                tell("".join(traceback.format_exception(error)), shown=False)
                raise
            words, code, quiet = f"error: {message}", FAILED, reported_elsewhere(error)
        if not quiet:
            tell(words)
        return code


def _in_one_line(error: Exception) -> str | None:
    """The message of an error that a user can fix; None for a bug."""
    expected = isinstance(error, (UserError, ConfigError, ProcessFailed))
    refused = (isinstance(error, OSError) and error.errno in REFUSED) or "shared memory" in str(error)  # torch's words
    if refused and not expected:
        return f"refused by the operating system ({one_line(error)}): out of disk space or memory? {REMEDY}"
    if isinstance(error, OSError) and error.errno in DENIED and error.filename and not expected:
        return f"{error.filename2 or error.filename}: {error.strerror}"
    return dead_worker(error) or lost_process(error) or (one_line(error) if expected else None)


def _unread() -> bool:
    """Whether the reader of standard output has gone, as after `... | head -1`, which is not an error."""
    try:
        sys.stdout.flush()
        pipe = select.poll()
        pipe.register(sys.stdout.fileno(), 0)  # says when it is broken, and nothing else
        return bool(pipe.poll(0))
    except BrokenPipeError:
        return True
    except (AttributeError, OSError):  # no system that knows poll, or no pipe
        return False
