"""Errors that a user can mend: the scripts print them as one line and leave with exit code 2."""

from __future__ import annotations


class UserError(Exception):
    """Says in one sentence what is wrong, where (config key or file), and what would be right."""

    told = False  # whether another of several processes says it


class DataError(UserError):
    """A data set that is missing, misnamed, unreadable, or cannot be trained or evaluated on."""


class WeightsError(UserError):
    """Weights or checkpoints that are missing, of another network, or damaged."""


def one_line(error: BaseException) -> str:
    """The message of `error` on one line.

    A `DataLoader` worker hands its exception over as the text of a whole traceback; its last line is the message.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if len(lines) > 1 and lines[0].startswith("Caught "):
        return lines[-1].partition("Error: ")[2] or lines[-1]
    return " ".join(lines)
