"""Values of YAML files and of the command line, converted to the type of their default."""

from __future__ import annotations

import ast
from typing import Any

from configs.checks import ConfigError

WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
LONGEST = 200  # characters of a value in a message
LARGEST = 2**63  # integers from here on fit into no tensor
NAMES = "DATASETS.NAMES"  # a string or a tuple, in published files, too


def convert(key: str, value: Any, default: Any) -> Any:
    """`value` as the type of `default`; ConfigError says what is expected."""
    try:
        return _convert(value, default, single=key == NAMES)
    except ValueError as error:
        shown = value if isinstance(value, str) else str(value)
        shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"
        raise ConfigError(f"{key}: invalid value {shown!r}, expected {error}") from None


def literal(value: Any) -> Any:
    """The Python literal that a string of the command line or of a YAML file is, or the string.

    Backslashes, as in paths of Windows, are kept.
    """
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.strip().replace("\\", r"\\"))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return value


def _convert(value: Any, default: Any, *, single: bool = False) -> Any:
    """ValueError says what is expected."""
    if value is None or (isinstance(value, str) and value.strip() in ("None", "null", "~")):
        raise ValueError("a value, which None is not (off is a weight of 0.0, False or '')")
    if isinstance(default, str):
        text = literal(value)
        if single and isinstance(text, (tuple, list)) and text and all(isinstance(name, str) for name in text):
            text = "+".join(text)  # several data sets
        if isinstance(text, (tuple, list, dict)):
            raise ValueError("a name, or several in a tuple" if single else "a string")
        if isinstance(text, str):
            return text
        if isinstance(value, bool):
            raise ValueError("a string")
        return str(value)
    value = literal(literal(value))  # once more: cmd.exe passes quotes on
    if isinstance(default, tuple):
        values = value if isinstance(value, (tuple, list)) else (value,)
        kind = default[0] if default else 0.0
        return tuple(_convert(element, kind) for element in values)
    if isinstance(default, bool):
        word = WORDS.get(value.strip().lower()) if isinstance(value, str) else value
        if not isinstance(word, bool):
            raise ValueError("True or False")
        return word
    if isinstance(value, (bool, tuple, list, dict)):
        raise ValueError(f"one {'integer' if isinstance(default, int) else 'number'}")
    if isinstance(default, int):
        if not isinstance(value, int) or abs(value) >= LARGEST:
            raise ValueError("an integer" + " of at most 64 bits" * isinstance(value, int))
        return value
    try:
        return float(value)  # YAML reads 5e-6 as a text
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a number") from None
