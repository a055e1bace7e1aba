"""What a command line can ask of the configuration: its keys, and its resolved values."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from configs.checks import ConfigError
from configs.defaults import BLOCKS, KEYS, ROWS
from configs.keys import NEVER, Key
from configs.loading import load, to_dict

WIDTH = 100  # characters of a line


def help_keys(prefix: str = "") -> str:
    """Every key that begins with `prefix`: default, meaning, valid values, and whether it may change on resume.

    Raises:
        ConfigError: no key begins with it; names keys that are near.
    """
    wanted = prefix.upper()
    rows = [row for row in ROWS if row.name.startswith(wanted)]
    if not rows:
        names = {name.rpartition(".")[2]: name for name in KEYS} | {name: name for name in (*BLOCKS, *KEYS)}
        alike = (names[name] for name in difflib.get_close_matches(wanted, names))
        near = [name for name in KEYS if wanted in name] or list(dict.fromkeys(alike))
        raise ConfigError(f"no key begins with {prefix}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    return "\n".join(line for row in rows for line in _explained(row))


def _explained(row: Key) -> Iterator[str]:
    valid = f" Valid: {row.rule.expected}." if row.rule else ""
    resume = f" May change on resume: {row.on_resume}." if row.on_resume != NEVER else ""
    yield f"{row.name} = {row.default!r}"
    yield textwrap.indent(textwrap.fill(row.meaning + valid + resume, WIDTH, break_on_hyphens=False), "    ")


def resolved(path: str | Path | None, overrides: Sequence[str]) -> str:
    """The text of config.yaml for a configuration file and overrides.

    Raises:
        ConfigError: as `load`, or it is a test whose settings are in its checkpoint.
    """
    if path is None and "TEST.WEIGHT" in overrides[::2]:
        raise ConfigError(
            "--print_config: a test without --config_file takes its settings from the checkpoint; config.yaml beside "
            "it has them"
        )
    return yaml.safe_dump(to_dict(load(path, overrides)), sort_keys=False).rstrip()
