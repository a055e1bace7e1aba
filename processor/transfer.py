"""Testing on a data set, as it was in training if the network was trained on it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import NamedTuple

from yacs.config import CfgNode

from configs import ConfigError, from_dict, load, replaced
from datasets.build import ONE_NAME_MANY_SETS, make_benchmark
from datasets.names import TWO_WAYS, names_of
from datasets.several import shifted
from model.weights import Weights
from processor.build.evaluation import settle_side
from utils.errors import WeightsError
from utils.fingerprint import data_fingerprint, versions
from utils.metrics import CROSS_CAMERA, ignore_nothing, protocol_of
from utils.records import Benchmark

# What is said of the training's data set alone -> what holds for another one.
OF_THE_DATA = {"TEST.PROTOCOL": CROSS_CAMERA, "DATASETS.HOLD_OUT": 0.0}


class Home(NamedTuple):
    """A data set that the network was trained on."""

    first_camera: int | None  # the number of its first camera there; None: an earlier version's file does not say
    tested_on: str | None  # fingerprint of its queries and galleries there, where the file says it


class Prepared(NamedTuple):
    """A data set to test on."""

    cfg: CfgNode
    benchmark: Benchmark
    fingerprint: dict
    at_home: bool | None  # whether the network knows its cameras; None: the file does not say what it was trained on
    said: list[str]  # for the log
    notes: list[str]  # what is not as it was in training, for the report, too


def settings_of(weights: Weights, overrides: Sequence[str], config_file: str | None = None) -> CfgNode:
    """The settings of a file or those that a checkpoint was trained with, with `overrides` on top.

    Raises:
        WeightsError: a published file, which has none.
    """
    if config_file:
        return load(config_file, overrides)
    if weights.config is None:
        raise WeightsError(f"{weights.source}: is a published file, which holds no settings; give its --config_file")
    return from_dict({**weights.config, "OUTPUT_DIR": ""}, overrides, where=weights.source)


def check_held_out(cfg: CfgNode, weights: Weights, names: Sequence[str]) -> None:
    """Raise ConfigError if identities would be tested that the network was trained on."""
    held_out, trained = cfg.DATASETS.HOLD_OUT, (weights.config or {}).get("DATASETS", {}).get("HOLD_OUT")
    if held_out > 0 and not homes_of(weights).keys().isdisjoint(names) and trained != held_out:
        raise ConfigError(
            f"DATASETS.HOLD_OUT {held_out}: {weights.source} was trained with {trained}, so on identities that would "
            "be tested"
        )
    trained_split, split = ((weights.config or {}).get("DATASETS", {}).get("REGDB_SPLIT"), cfg.DATASETS.REGDB_SPLIT)
    again = homes_of(weights).keys() & set(names) & set(TWO_WAYS)
    if again and trained_split != split and not cfg.TEST.OTHER_SPLIT:
        raise ConfigError(
            f"DATASETS.REGDB_SPLIT {split}: {weights.source} was trained on split {trained_split}, so on identities "
            "that would be tested; TEST.OTHER_SPLIT True allows it"
        )


def homes_of(weights: Weights) -> dict[str, Home]:
    """The data sets that the network was trained on, by name; none for a published file, which does not say."""
    if weights.config is None:
        return {}
    names = names_of(weights.config["DATASETS"]["NAMES"])
    first_cameras = (weights.architecture or {}).get("first_cameras") or [0]
    prints = weights.tested_on
    return {
        name: Home(
            first_cameras[number] if number < len(first_cameras) else None,
            prints[number] if len(prints) == len(names) else None,
        )
        for number, name in enumerate(names)
    }


def prepare(
    cfg: CfgNode, architecture: dict, weights: Weights, inherited: Collection[str], name: str, home: Home | None
) -> Prepared:
    """Read a data set to test on, as it was in training if the network was trained on it.

    Args:
        architecture: of the network that is tested.
        inherited: keys of OF_THE_DATA that `cfg` has from the training.
        home: what is known of it from the training; None: the network was not trained on a data set of this name.

    Raises:
        DataError: what is wrong with the data set.
        WeightsError: it has cameras or viewpoints that the network's side information does not know.
    """
    benchmark, fingerprint, own = None, {}, cfg
    said, notes = [], []
    if home is not None:
        benchmark = shifted(make_benchmark(cfg, name, train=False), cams=home.first_camera or 0)
        fingerprint = data_fingerprint(benchmark)
        if name in ONE_NAME_MANY_SETS and fingerprint["test"] != home.tested_on:
            home = None
    if home is None:
        left = {key for key in inherited if attrgetter(key)(cfg) != OF_THE_DATA[key]} if weights.config else set()
        if left or benchmark is None or benchmark.first_camera:
            own = replaced(cfg, {key: OF_THE_DATA[key] for key in left})
            benchmark = make_benchmark(own, name, train=False)
            fingerprint = data_fingerprint(benchmark)
        notes += [
            f"{key} {attrgetter(key)(cfg)} is of the training's data set; {benchmark.name} is another one: "
            f"{OF_THE_DATA[key]} ({key} on the command line is obeyed)"
            for key in sorted(left)
        ]
    at_home = None if weights.config is None else home is not None and home.first_camera is not None
    protocol = protocol_of(benchmark.ignored)
    if benchmark.ignored is ignore_nothing:
        said.append(f"protocol {protocol}: every pair counts, no gallery image is left out of a query's ranking")
    if architecture["sie_camera"] or architecture["sie_view"]:
        side = settle_side(own.TEST.SIE, architecture, benchmark, at_home=at_home)
        if side != "none" and home is not None and home.first_camera is None:
            notes.append(f"the file does not say which rows of its side information are {benchmark.name}'s")
        words = f"side information: TEST.SIE {own.TEST.SIE}: {_in_words(side, at_home, benchmark.name)}"
        (said if side == "same" and at_home else notes).append(words)
    return Prepared(own, benchmark, {"data_fingerprint": fingerprint, "versions": versions()}, at_home, said, notes)


def _in_words(side: str, at_home: bool | None, name: str) -> str:
    if side == "mean":
        return "the mean over all that training knew"
    if side == "none":
        return "left out"
    if at_home:
        return "cameras and viewpoints as in training"
    if at_home is None:
        return f"rows by their numbers; whether they were learned for {name}, the file does not say"
    return f"rows by their numbers, which were learned on other data sets than {name}: its cameras may be others"
