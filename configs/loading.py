"""Defaults, then the YAML file's BASE, then the file, then the command line; frozen."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from configs.checks import ConfigError, check_together, check_value
from configs.defaults import BLOCKS, KEYS, defaults
from configs.published import PUBLISHED, STAGES, SWITCHES, Switches, refuse_other_programs, tells_method, translate
from configs.values import convert

COMMAND_LINE = "command line"  # in messages
CLOSE = 0.75  # similarity from which a known key is suggested for an unknown one


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """The frozen configuration.

    Files and overrides may have the keys of the published programs (`configs.published`). A value that a later layer
    replaces is not checked.

    Args:
        path: a YAML file, whose `BASE:` (a path relative to it) is read before it; None for the defaults.
        overrides: KEY, VALUE, KEY, VALUE, ... as on the command line; they come last.

    Raises:
        ConfigError: a file that is missing or no YAML; unknown keys, each with the nearest one if one is
            near, and values of the wrong type or out of range, all at once; settings that contradict each other.
    """
    settings = _Settings()
    undecided = True  # which method it is
    for file, tree in _layers(Path(path), ()) if path else []:
        values = dict(flatten(tree))
        settings.add(values, where=str(file), root=undecided)
        undecided = undecided and not tells_method(values)
    return settings.finish(overrides)


def load_for_test(path: str | Path | None, overrides: Sequence[str]) -> CfgNode:
    """The same for a test of TEST.WEIGHT; without a file TEST.WEIGHT alone, for the others stand on the checkpoint's.

    Raises:
        ConfigError: as `load` or `check_overrides`, and without TEST.WEIGHT.
    """
    if not path:
        check_overrides(overrides)
        given = dict(zip(overrides[::2], overrides[1::2], strict=False)).get("TEST.WEIGHT", "")
        overrides = ["TEST.WEIGHT", given]
    cfg = load(path, overrides)
    if not cfg.TEST.WEIGHT:
        raise ConfigError("TEST.WEIGHT: which checkpoint? e.g. TEST.WEIGHT runs/market/ViT-B-16_60.pth")
    return cfg


def check_overrides(overrides: Sequence[str]) -> CfgNode:
    """Say what is wrong with overrides before the checkpoint is read whose settings they stand on.

    Returns:
        The defaults with `overrides` on top, but for published keys, whose meaning the checkpoint's settings decide.

    Raises:
        ConfigError: no pairs, unknown keys, or a value that its key never takes.
    """
    settings = _Settings()
    for key, text in _pairs(overrides):
        if key not in PUBLISHED:
            with settings.judged(key, COMMAND_LINE):
                refuse_other_programs({key: text})
                settings.set(key, text)
    settings.check()
    return settings.cfg


def replaced(cfg: CfgNode, settings: Mapping[str, object]) -> CfgNode:
    """A frozen copy of `cfg` with other values of these keys."""
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in settings.items():
        *blocks, leaf = key.split(".")
        reduce(getitem, blocks, cfg)[leaf] = value
    cfg.freeze()
    return cfg


def to_dict(cfg: CfgNode) -> dict:
    """The configuration as nested dictionaries of plain types, for checkpoints and files."""
    return {
        key: to_dict(value) if isinstance(value, CfgNode) else list(value) if isinstance(value, tuple) else value
        for key, value in cfg.items()
    }


def from_dict(tree: Mapping, overrides: Sequence[str] = (), *, where: str) -> CfgNode:
    """The frozen configuration that `to_dict` made `tree` from, with `overrides` on top."""
    settings = _Settings()
    for key, value in flatten(tree):
        with settings.judged(key, where):
            settings.set(key, value)
    settings.switches.follow({}, settings.cfg, where=where)
    return settings.finish(overrides)


class _Settings:
    """The configuration while layers are added. An error counts only if no later layer sets its key."""

    def __init__(self) -> None:
        self.cfg = defaults()
        self.switches = Switches(self.cfg)
        self.faults: dict[str, tuple[str, str]] = {}  # key -> layer, what is wrong with what it says

    @contextmanager
    def judged(self, key: str, where: str) -> Iterator[None]:
        """Around the use of one layer's value: a ConfigError becomes this key's fault, in place of an earlier one."""
        self.faults.pop(key, None)
        try:
            yield
        except ConfigError as error:
            self.faults[key] = (where, str(error))

    def set(self, key: str, value: Any) -> Any:
        """Set one key -> its value, converted to the type of the default."""
        if key not in KEYS:
            raise ConfigError(f"there is no key {key}{_nearest(key)}")
        value = convert(key, value, KEYS[key].default)
        check_value(key, value)
        *blocks, name = key.split(".")
        reduce(getitem, blocks, self.cfg)[name] = value
        return value

    def add(self, values: Mapping[str, Any], *, where: str, root: bool = False) -> None:
        """Add one layer, in our keys or in published ones."""
        try:
            values = translate(values, self.cfg, partial(self.judged, where=where), where=where, root=root)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        taken = {}
        for key, value in values.items():
            with self.judged(key, where):
                taken[key] = value if key in SWITCHES else self.set(key, value)
        self.switches.follow(taken, self.cfg, where=where)

    def check(self) -> None:
        """Raise ConfigError, which names all faults, if there are any."""
        if self.faults:
            layers = itertools.groupby(self.faults.values(), key=lambda fault: fault[0])
            raise ConfigError("; ".join(f"{where}: {'; '.join(what for _, what in of)}" for where, of in layers))

    def finish(self, overrides: Sequence[str]) -> CfgNode:
        """Add the command line -> the frozen configuration; ConfigError names all faults."""
        # What flat keys mean depends on the stages, wherever on the command line these stand.
        for key, text in sorted(_pairs(overrides), key=lambda pair: pair[0] != STAGES):
            self.add({key: text}, where=COMMAND_LINE)
        self.check()
        check_together(self.cfg)
        self.cfg.freeze()
        return self.cfg


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """KEY, VALUE, KEY, VALUE, ... in pairs."""
    if len(overrides) % 2:
        raise ConfigError(f"expected pairs KEY VALUE; {overrides[-1]!r} is left over")
    return list(zip(overrides[::2], overrides[1::2], strict=True))


def _layers(path: Path, above: tuple[Path, ...]) -> list[tuple[Path, dict]]:
    """A YAML file and the files below it by BASE, lowest first."""
    try:
        if path.resolve() in above:
            raise ConfigError("is its own BASE")
        tree = _read(path)
        dict(flatten(tree))
    except (OSError, ConfigError) as error:
        raise ConfigError(f"config file {path}: {getattr(error, 'strerror', None) or error}") from error
    except RuntimeError as error:
        raise ConfigError(f"config file {path}: is nested too deeply, or contains itself") from error
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError) as error:  # the reader's own, too
        raise ConfigError(f"config file {path}: is not YAML: {' '.join(str(error).split())}") from error
    base = tree.pop("BASE", None)
    below = _layers(path.parent / str(base), (*above, path.resolve())) if base else []
    return [*below, (path, tree)]


class _Loader(yaml.SafeLoader):
    """Refuses a key that a block has twice: of PyYAML's two values, the last would count."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise ConfigError(f"has {name} in line {lines[name]} and again in line {line}")
            lines[name] = line
        return node


def _read(path: Path) -> dict:
    """The contents of a YAML file."""
    tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    if not isinstance(tree, dict | None):
        raise ConfigError(f"holds a {type(tree).__name__}, not keys and values")
    return tree or {}


def flatten(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; an empty block has none."""
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, dotted + ".")
        elif value is not None or dotted not in BLOCKS:
            yield dotted, value


def differences(ours: CfgNode, theirs: CfgNode, *, besides: Sequence[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Key -> both values, where two configurations differ, besides keys that begin or end with one of these words."""
    words, other = tuple(besides), dict(flatten(theirs))
    return {
        key: (value, other[key])
        for key, value in flatten(ours)
        if value != other[key] and not key.startswith(words) and not key.endswith(words)
    }


def _nearest(key: str) -> str:
    """A suggestion, by the key's name without its blocks; among blocks with the same name, by the whole key."""
    if key in BLOCKS:
        return f": it is a block of keys ({next(name for name in KEYS if name.startswith(f'{key}.'))}, …)"
    keys: dict[str, list[str]] = {}
    for dotted in KEYS:
        keys.setdefault(dotted.rpartition(".")[2].lower(), []).append(dotted)
    names = difflib.get_close_matches(key.rpartition(".")[2].lower(), keys, n=1, cutoff=CLOSE)
    near = difflib.get_close_matches(key, keys[names[0]], n=1, cutoff=0.0) if names else []
    return f"; did you mean {near[0]}?" if near else ""
