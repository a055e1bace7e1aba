"""Paths with ~."""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError


def expanded(path: str | Path, what: str = "") -> Path:
    """`path` with ~ and ~user replaced by a home folder.

    Args:
        what: the key or option that names it, for the message.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        key = f"{what} " if what else ""
        raise UserError(f"{key}{path}: ~ stands for a home folder, and there is no such user (or no HOME)") from error
