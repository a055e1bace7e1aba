"""Errors that a user can fix: the scripts print them in one line and exit with code 2."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Says in one line where something is wrong (key or file), what it is, and what is expected."""

    reported = False  # by another of several processes


class DataError(UserError):
    """A data set that is missing, misnamed or unreadable, or that cannot be trained or tested on."""


class WeightsError(UserError):
    """Weights or checkpoints that are missing, damaged, or of another network."""


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names of many, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


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
