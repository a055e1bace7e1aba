"""Defaults, then the YAML file's BASE, then the file, then the command line; frozen."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from configs.checks import ConfigError, check_together, check_value
from configs.defaults import defaults
from configs.published import STAGES, SWITCHES, Switches, tells_method, translate
from configs.values import convert


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """The frozen configuration.

    Files and overrides may have the keys of the published programs (`configs.published`).

    Args:
        path: a YAML file, whose `BASE:` (a path relative to it) is read before it; None for the defaults.
        overrides: KEY, VALUE, KEY, VALUE, ... as on the command line; they come last.

    Raises:
        ConfigError: a file that is missing or no YAML; an unknown key (the message names the nearest); a value of the
            wrong type or out of range; settings that contradict each other.
    """
    cfg = defaults()
    switches = Switches(cfg)
    untold = True  # which method it is
    for file, tree in _layers(Path(path), ()) if path else []:
        values = dict(flatten(tree))
        _add(cfg, values, switches, where=str(file), root=untold)
        untold = untold and not tells_method(values)
    return _finish(cfg, overrides, switches)


def to_dict(cfg: CfgNode) -> dict:
    """The configuration as nested dictionaries of plain types, for checkpoints and files."""
    return {
        key: to_dict(value) if isinstance(value, CfgNode) else list(value) if isinstance(value, tuple) else value
        for key, value in cfg.items()
    }


def from_dict(tree: Mapping, overrides: Sequence[str] = (), *, where: str) -> CfgNode:
    """The frozen configuration that `to_dict` made `tree` from, with `overrides` on top."""
    cfg = defaults()
    switches = Switches(cfg)
    for key, value in flatten(tree):
        _set(cfg, key, value, where=where)
    switches.follow({}, cfg, where=where)
    return _finish(cfg, overrides, switches)


def _finish(cfg: CfgNode, overrides: Sequence[str], switches: Switches) -> CfgNode:
    overrides = list(overrides)
    if len(overrides) % 2:
        raise ConfigError(f"overrides come in pairs KEY VALUE; {overrides[-1]!r} is left over")
    pairs = list(zip(overrides[::2], overrides[1::2], strict=True))
    # What flat keys mean depends on the stages, wherever on the command line these stand.
    for key, text in sorted(pairs, key=lambda pair: pair[0] != STAGES):
        _add(cfg, {key: text}, switches, where="command line")
    check_together(cfg)
    cfg.freeze()
    return cfg


def _add(cfg: CfgNode, values: Mapping[str, Any], switches: Switches, *, where: str, root: bool = False) -> None:
    """Change `cfg` to what one layer says, be it in our keys or in published ones."""
    values = translate(values, cfg, where=where, root=root)
    for key, value in values.items():
        if key not in SWITCHES:
            _set(cfg, key, value, where=where)
    switches.follow(values, cfg, where=where)


def _layers(path: Path, above: tuple[Path, ...]) -> list[tuple[Path, dict]]:
    """A YAML file and the files that it stands on, lowest first."""
    try:
        if path.resolve() in above:
            raise ConfigError(f"{path}: stands on itself through BASE")
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        dict(flatten(tree if isinstance(tree, dict) else {}))
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror or error}") from error
    except ConfigError:
        raise
    except RecursionError as error:
        raise ConfigError(f"config file {path}: is nested too deeply, or holds itself") from error
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError) as error:  # the reader's own, too
        raise ConfigError(f"config file {path}: is not YAML: {' '.join(str(error).split())}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"config file {path}: holds a {type(tree).__name__}, not keys and values")
    base = tree.pop("BASE", None)
    below = _layers(path.parent / str(base), (*above, path.resolve())) if base else []
    return [*below, (path, tree)]


def flatten(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; an empty block has none."""
    known = defaults()
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, dotted + ".")
        elif value is not None or not _is_block(known, dotted):
            yield dotted, value


def _is_block(cfg: CfgNode, key: str) -> bool:
    for part in key.split("."):
        cfg = cfg.get(part) if isinstance(cfg, CfgNode) else None
    return isinstance(cfg, CfgNode)


def _set(cfg: CfgNode, key: str, value: Any, *, where: str) -> None:
    """Change one value of `cfg`, converted to the type of its default."""
    *blocks, name = key.split(".")
    node = cfg
    for block in blocks:
        node = node.get(block) if isinstance(node, CfgNode) else None
    if not isinstance(node, CfgNode) or name not in node or isinstance(node[name], CfgNode):
        raise ConfigError(f"{where}: there is no key {key}{_nearest(key, cfg)}")
    node[name] = convert(key, value, node[name], where=where)
    try:
        check_value(key, node[name])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _nearest(key: str, cfg: CfgNode) -> str:
    keys = [dotted for dotted, _ in flatten(cfg)]
    by_end = {dotted.rpartition(".")[2].lower(): dotted for dotted in keys}
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    near = near or [by_end[m] for m in difflib.get_close_matches(key.rpartition(".")[2].lower(), by_end, n=1)]
    return f"; did you mean {near[0]}?" if near else ""
