"""What a row of the table of keys says, and the rules for its value."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

# Whether a key may change when a run is resumed.
NEVER, ALWAYS, UNTIL_OVER = "never", "always", "while its stage is not over"


class Rule(NamedTuple):
    """Which values are valid."""

    holds: Callable[[Any], object]
    expected: str  # in words, after "expected"


class Key(NamedTuple):
    """One key of the configuration. A YAML file or the command line may change its value, never its type."""

    name: str
    default: Any
    meaning: str
    rule: Rule | None = None  # besides the type, and that numbers are finite
    on_resume: str = NEVER


def one_of(*choices: str) -> Rule:
    return Rule(lambda value: value in choices, "one of " + ", ".join(choices))


def at_least(low: float) -> Rule:
    return Rule(lambda value: value >= low, f"at least {low}")


def above(low: float) -> Rule:
    return Rule(lambda value: value > low, f"above {low}")


def within(low: float, high: float) -> Rule:
    return Rule(lambda value: low <= value <= high, f"from {low} to {high}")


def matching(pattern: str, expected: str) -> Rule:
    return Rule(lambda value: re.fullmatch(pattern, value), expected)


def given(expected: str) -> Rule:
    return Rule(bool, expected)
