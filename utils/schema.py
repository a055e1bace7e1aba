"""The schemas of checkpoints, resume states and results.json, and the one function that checks them.

A schema is one of:

    (test, right)            a rule: whether a value is right, and in words what would be
    {"name": schema}         a dictionary that has this field
    {"name?": schema}        a dictionary that may have it; earlier versions did not write it, or there is none
    {...: schema}            a dictionary whose fields may have any name
    [schema]                 a list of any length
    [schema, schema]         a list of exactly these elements

Fields that no schema names are not read by anything, and not checked.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from configs.stages import STAGES
from utils.errors import WeightsError

Rule = tuple[Callable[[Any], bool], str]


def whole(low: int, high: int = 10**9) -> Rule:
    return lambda value: type(value) is int and low <= value <= high, f"an integer from {low} to {high}"


def number(low: float = -1e18, high: float = 1e18, right: str = "a finite number") -> Rule:
    return lambda value: type(value) in (int, float) and low <= value <= high, right


def text(pattern: str = "(?s).*", right: str = "a string") -> Rule:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None, right


def one_of(*choices: str) -> Rule:
    return text("|".join(choices), " or ".join(choices))


def _is_setting(value: Any, depth: int = 5) -> bool:
    """Whether this is a configuration's value or block; `depth` limits lists in lists, which may hold themselves."""
    if isinstance(value, dict):
        return all(isinstance(name, str) for name in value) and _is_setting(list(value.values()), depth)
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(_is_setting(one, depth - 1) for one in value)
    return value is None or isinstance(value, (str, bool, float)) or NUMBER[0](value)


TEXT, NUMBER, COUNT, POSITIVE = text(), number(), whole(0), whole(1)
FRACTION = number(-1e-6, 1 + 1e-6, "a fraction from 0 to 1")  # a mean may be off in its last digit
SWITCH: Rule = (lambda value: isinstance(value, bool), "True or False")
TENSOR: Rule = (lambda value: isinstance(value, Tensor), "a tensor")
SIZE = [whole(1, 4096), whole(1, 4096)]  # pixels: height, width
STAGE = one_of(*STAGES)

# A configuration; `configs` knows its keys.
SETTINGS = {...: (_is_setting, "a setting or a block of them, as in config.yaml")}
PICTURES = {"train?": TEXT, "test?": TEXT, "parts?": [TEXT]}
FINGERPRINT = {"data_fingerprint?": PICTURES, "versions?": {...: TEXT}}
CHECKPOINT = {
    "stage?": STAGE,  # a converted file has neither stage nor epoch
    "epoch?": COUNT,
    "prompts_trained?": SWITCH,
    "config": {
        **SETTINGS,
        "DATASETS": {"NAMES": text(r"[^+]+(\+[^+]+)*", "names of data sets joined by +")},
        "SOLVER": {"SEED": whole(0, 2**32 - 1)},
    },
    "architecture": {
        "name": text(r"[\w./-]+", "the name of an architecture, e.g. ViT-B-16"),
        "activation": one_of("quick_gelu", "gelu"),
        "image_size": SIZE,  # in training
        "test_size": SIZE,
        "stride": SIZE,
        "pixel_mean": [NUMBER] * 3,
        "pixel_std": [number(1e-9, right="a number above 0")] * 3,
        "sie_camera": SWITCH,
        "sie_view": SWITCH,
        "sie_scale": number(0, right="a number of at least 0"),
        **dict.fromkeys(("num_pids", "num_cams", "num_views"), COUNT),
        "first_cameras?": [COUNT],  # of each data set
        "template": text(r"[^{}]*\{\}[^{}]*", "a prompt with {} once, where the learned tokens go"),
        **dict.fromkeys(("sentences", "language_ssl", "vision_ssl"), SWITCH),
        "ssl_type?": one_of("SIMCLR", "SIMSIAM"),
        "ssl_hidden": POSITIVE,
        "ssl_out": POSITIVE,
    },
    "fingerprint?": {
        **FINGERPRINT,
        # The first versions wrote one string for all images.
        "data_fingerprint?": (
            lambda value: isinstance(value, str) or not fault(value, PICTURES),
            "strings for train, test and parts",
        ),
    },
}
STATE = {
    **CHECKPOINT,
    "stage": STAGE,
    "fingerprint": FINGERPRINT,
    "run": {
        "position": {
            "epoch": POSITIVE,
            **dict.fromkeys(("step", "steps", "skipped"), COUNT),
            "sums": {...: [NUMBER, POSITIVE]},  # of each term since the last line of the log: the sum, the steps
        },
        "optimizer": {"state": {...: {...: TENSOR}}},
        "scaler?": {...: NUMBER},
        "random": {
            "python": [COUNT, [whole(0, 2**32 - 1)], (lambda v: v is None or NUMBER[0](v), "a number or nothing")],
            "numpy": [TEXT, TENSOR, whole(0, 624), COUNT, NUMBER],
            "torch": TENSOR,
            "devices": [TENSOR],
            "own": {...: TENSOR},
        },
        "stage_number?": COUNT,  # in PROCESSOR.STAGES; earlier versions knew no stage that occurs twice
        "best": {...: {"epoch": COUNT, "mAP": FRACTION}},  # by data set
        "device": TEXT,
        "precision?": TEXT,
        "metrics_bytes": whole(0, 2**63 - 1),
    },
}
FIGURES = dict.fromkeys(("mAP", "mINP", "rank1", "rank5", "rank10"), FRACTION)
ENTRY = {
    "when": TEXT,
    **FIGURES,
    "std?": FIGURES,  # over several trials
    "valid_queries": COUNT,
    "queries": COUNT,
    "data_set": TEXT,
    "protocol?": TEXT,
    "re_ranking?": {"k1": POSITIVE, "k2": POSITIVE, "lambda_value": FRACTION},
}
RESULTS_FILE = {"evaluations": [ENTRY]}


def check(contents: Any, schema: Any, source: str | Path) -> None:
    """Raise WeightsError if the contents of the file `source` do not fit the schema."""
    if wrong := fault(contents, schema):
        raise WeightsError(f"{source}: {wrong}")


def fault(value: Any, schema: Any, where: str = "") -> str | None:
    """The first field that is wrong, its value, and what would be right; None if the value fits the schema."""
    if isinstance(schema, dict):
        holds, right = isinstance(value, dict), "a dictionary"
    elif isinstance(schema, list):
        holds = isinstance(value, (list, tuple)) and len(schema) in (1, len(value))
        right = "a list" if len(schema) == 1 else f"a list of {len(schema)}"
    else:
        holds, right = schema[0](value), schema[1]
    if not holds:
        return f"{where.removeprefix('.') or 'it'} is {_shown(value)}; expected {right}"
    return next(filter(None, (fault(*part) for part in _parts(value, schema, where))), None)


def _parts(value: Any, schema: Any, where: str) -> Iterator[tuple[Any, Any, str]]:
    """Each element or field of a value, with its schema and its place."""
    if isinstance(schema, list):
        yield from ((one, schema[place % len(schema)], f"{where}[{place}]") for place, one in enumerate(value))
    for name, inner in schema.items() if isinstance(schema, dict) else ():
        if name is ...:
            yield from ((one, inner, f"{where}[{_shown(key)}]") for key, one in value.items())
        elif not name.endswith("?") or value.get(name[:-1]) is not None:
            yield value.get(name.removesuffix("?")), inner, f"{where}.{name.removesuffix('?')}"


def _shown(value: Any) -> str:
    return "missing" if value is None else " ".join(reprlib.repr(value).split())
