"""Errors that a user can fix: the scripts print them in one line and exit with code 2."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class UserError(Exception):
    """Says in one line where something is wrong (key or file), what it is, and what is expected."""

    reported = False  # by another of several processes


class DataError(UserError):
    """A data set that is missing, misnamed or unreadable, or that cannot be trained or tested on."""


class WeightsError(UserError):
    """Weights or checkpoints that are missing, damaged, or of another network."""


def check_installed(what: str, *libraries: str) -> None:
    """Raise UserError if an optional library is missing that `what` needs."""
    if missing := [name for name in libraries if importlib.util.find_spec(name) is None]:
        raise UserError(f"{what} needs {' and '.join(missing)}: pip install -r requirements-extra.txt")


@contextmanager
def writing(what: object) -> Iterator[None]:
    """Within it, what the operating system refuses is a UserError: `what` cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: cannot be written ({error.strerror or error})") from error


def some(names: Sequence[str], most: int = 3, separator: str = ", ") -> str:
    """The first names of many, for a message."""
    return separator.join([*names[:most], *(["..."] if len(names) > most else [])])


def one_line(error: BaseException) -> str:
    """The message of `error` on one line.

    A `DataLoader` worker passes its exception on as the text of a traceback, whose last line is the message.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if len(lines) > 1 and lines[0].startswith("Caught "):
        return lines[-1].partition("Error: ")[2] or lines[-1]
    return " ".join(lines)
