"""What checkpoints, resume states and results.json hold, and the one function that checks it.

A typed dictionary names the fields, with their types for the type checker. What is read from a file is checked by the
same types, and by the rules in them: Annotated[type, rule]. A field that is NotRequired may be missing or None, because
earlier versions did not write it or there is none. Fields without a name here are not read, and not checked.
"""

import re
import reprlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    NamedTuple,
    NotRequired,
    TypedDict,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from torch import Tensor

from configs.stages import STAGES
from utils.errors import WeightsError


class Rule(NamedTuple):
    """Which values are valid."""

    holds: Callable[[Any], bool]
    expected: str  # in words


def whole(low: int, high: int = 10**9) -> Rule:
    return Rule(lambda value: type(value) is int and low <= value <= high, f"an integer from {low} to {high}")


def number(low: float = -1e18, high: float = 1e18, expected: str = "a finite number") -> Rule:
    return Rule(lambda value: type(value) in (int, float) and low <= value <= high, expected)


def text(pattern: str = "(?s).*", expected: str = "a string") -> Rule:
    return Rule(lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None, expected)


def one_of(*choices: str) -> Rule:
    return text("|".join(choices), " or ".join(choices))


OF_TYPE: dict[Any, Rule] = {
    str: text(),
    float: number(),
    bool: Rule(lambda value: isinstance(value, bool), "True or False"),
    Tensor: Rule(lambda value: isinstance(value, Tensor), "a tensor"),
}
Count = Annotated[int, whole(0)]
Positive = Annotated[int, whole(1)]
Seed = Annotated[int, whole(0, 2**32 - 1)]
Fraction = Annotated[float, number(-1e-6, 1 + 1e-6, "a fraction from 0 to 1")]  # a mean may be off in its last digit
Deviation = Annotated[float, number(1e-9, expected="a number above 0")]
Pixels = Annotated[int, whole(1, 4096)]
Size = tuple[Pixels, Pixels]  # height, width
Optional = Annotated[float | None, Rule(lambda value: value is None or OF_TYPE[float].holds(value), "a number or None")]
StageName = Annotated[str, one_of(*STAGES)]


class Names(TypedDict):
    NAMES: Annotated[str, text(r"[^+]+(\+[^+]+)*", "names of data sets joined by +")]


class Seeds(TypedDict):
    SEED: Seed


class Settings(TypedDict):
    """What is read of a configuration without `configs`, which knows all keys."""

    DATASETS: Names
    SOLVER: Seeds


class Architecture(TypedDict):
    """What builds a network."""

    name: Annotated[str, text(r"[\w./-]+", "the name of an architecture, e.g. ViT-B-16")]
    activation: Annotated[str, one_of("quick_gelu", "gelu", "auto")]  # auto: the tower is no CLIP's
    image_size: Size  # in training
    test_size: Size
    stride: Size
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[Deviation, Deviation, Deviation]
    sie_camera: bool
    sie_view: bool
    sie_scale: Annotated[float, number(0, expected="a number of at least 0")]
    num_pids: Count
    num_cams: Count
    num_views: Count
    first_cameras: NotRequired[list[Count]]  # of each data set
    template: Annotated[str, text(r"[^{}]*\{\}[^{}]*", "a prompt with {} once, where the learned tokens go")]
    sentences: bool
    language_ssl: bool
    vision_ssl: bool
    ssl_type: NotRequired[Annotated[str, one_of("SIMCLR", "SIMSIAM")]]
    ssl_hidden: Positive
    ssl_out: Positive
    pooling: NotRequired[Annotated[str, one_of("auto", "token", "avg", r"token\+avg", "gem")]]
    heads: NotRequired[Annotated[str, one_of("all", "last")]]
    modalities: NotRequired[Positive]
    prompt_counts: NotRequired[list[Count]]  # of each template; where pseudo-labels are prompted, not identities
    prompt_templates: NotRequired[list[Annotated[str, text(r"[^{}]*\{\}[^{}]*", "a prompt with {} once")]]]
    embed_dim: NotRequired[Count]
    drop_path: NotRequired[Fraction]
    text_tower: NotRequired[Annotated[str, text(r"[\w./-]+", "the name of a CLIP, e.g. ViT-B-16")]]


class Images(TypedDict):
    """Fingerprints of a data set's images."""

    train: NotRequired[str]
    test: NotRequired[str]
    parts: NotRequired[list[str]]


class Fingerprint(TypedDict):
    data_fingerprint: NotRequired[Images]
    versions: NotRequired[dict[str, str]]


PRINTS = Rule(lambda value: isinstance(value, str) or not fault(value, Images), "strings for train, test and parts")


class EarlyFingerprint(TypedDict):
    """The first versions wrote one string for all images."""

    data_fingerprint: NotRequired[Annotated[str | Images, PRINTS]]
    versions: NotRequired[dict[str, str]]


class Common(TypedDict):
    """What checkpoints and resume states share; `utils.checkpoint` checks the tensors of the model."""

    prompts_trained: NotRequired[bool]
    config: Settings
    architecture: Architecture


class Checkpoint(Common):
    stage: NotRequired[StageName]  # a converted file has neither stage nor epoch
    epoch: NotRequired[Count]
    fingerprint: NotRequired[EarlyFingerprint]


class Position(TypedDict):
    epoch: Positive
    step: Count
    steps: Count
    skipped: Count
    sums: dict[str, tuple[float, Positive]]  # of each term since the last line of the log: the sum, the steps


class OptimizerState(TypedDict):
    state: dict[Any, dict[str, Tensor]]


class RandomStates(TypedDict):
    python: tuple[Count, list[Seed], Optional]
    numpy: tuple[str, Tensor, Annotated[int, whole(0, 624)], Count, float]
    torch: Tensor
    devices: list[Tensor]
    own: dict[str, Tensor]


class Best(TypedDict):
    epoch: Count
    mAP: Fraction


class RunState(TypedDict):
    position: Position
    optimizer: OptimizerState
    scaler: NotRequired[dict[str, float]]
    average: NotRequired[dict[str, Tensor]]  # of the weights
    random: RandomStates
    stage_number: NotRequired[Count]  # in PROCESSOR.STAGES
    best: dict[str, Best]  # by data set
    device: str
    precision: NotRequired[str]
    metrics_bytes: Annotated[int, whole(0, 2**63 - 1)]


class ResumeState(Common):
    stage: StageName
    epoch: NotRequired[Count]
    fingerprint: Fingerprint
    run: RunState


class Figures(TypedDict):
    mAP: Fraction
    mINP: Fraction
    rank1: Fraction
    rank5: Fraction
    rank10: Fraction
    rank20: NotRequired[Fraction]


class Reranking(TypedDict):
    k1: Positive
    k2: Positive
    lambda_value: Fraction


class QueryExpansion(TypedDict):
    k: Positive
    alpha: Annotated[float, number(0, expected="a number of at least 0")]


class Refinement(TypedDict):
    """What was done at test besides comparing features."""

    flip: NotRequired[bool]
    query_expansion: NotRequired[QueryExpansion]
    re_ranking: NotRequired[Reranking]
    precision: NotRequired[str]


class Network(TypedDict):
    """Of the description of the network that was evaluated."""

    test_size: NotRequired[Size]


class Entry(Figures, Refinement):
    """One evaluation in results.json."""

    when: str
    checkpoint: NotRequired[str]
    network: NotRequired[Network]
    notes: NotRequired[list[str]]
    data_fingerprint: NotRequired[Annotated[str | Images, PRINTS]]
    std: NotRequired[Figures]  # over several trials
    valid_queries: Count
    queries: Count
    data_set: str
    variant: NotRequired[str]  # of the data set or its protocol
    protocol: NotRequired[str]


class Results(TypedDict):
    evaluations: list[Entry]


def check(contents: Any, kind: Any, source: str | Path) -> None:
    """Raise WeightsError if the contents of the file `source` are not of this kind."""
    if wrong := fault(contents, kind):
        raise WeightsError(f"{source}: {wrong}")


def fault(value: Any, kind: Any, where: str = "") -> str | None:
    """The first field that is wrong, its value, and what is expected; None if the value is of this kind."""
    for one in kind.__metadata__ if get_origin(kind) is Annotated else (kind,):
        rule = _rule(one)
        if not rule.holds(value):
            return f"{where.removeprefix('.') or 'it'} is {_shown(value)}; expected {rule.expected}"
        if wrong := next(filter(None, (fault(*part) for part in _parts(value, one, where))), None):
            return wrong
    return None


def _rule(kind: Any) -> Rule:
    """The rule for a value without its parts."""
    origin, count = get_origin(kind), len(get_args(kind))
    if isinstance(kind, Rule):
        return kind
    if origin is dict or is_typeddict(kind):
        return Rule(lambda value: isinstance(value, dict), "a dictionary")
    if origin is list:
        return Rule(lambda value: isinstance(value, (list, tuple)), "a list")
    if origin is tuple:
        return Rule(lambda value: isinstance(value, (list, tuple)) and len(value) == count, f"a list of {count}")
    return OF_TYPE[kind]


def _parts(value: Any, kind: Any, where: str) -> Iterator[tuple[Any, Any, str]]:
    """Each element or field of a value, with its kind and its place."""
    origin, kinds = get_origin(kind), get_args(kind)
    if origin is dict:
        yield from ((one, kinds[1], f"{where}[{_shown(key)}]") for key, one in value.items())
    elif origin in (list, tuple):
        kinds = kinds if origin is tuple else kinds * len(value)
        yield from ((one, kinds[place], f"{where}[{place}]") for place, one in enumerate(value))
    elif is_typeddict(kind):
        for name, inner in _fields(kind).items():
            optional = get_origin(inner) is NotRequired
            if not optional or value.get(name) is not None:
                yield value.get(name), get_args(inner)[0] if optional else inner, f"{where}.{name}"


@cache
def _fields(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _shown(value: Any) -> str:
    return "missing" if value is None else " ".join(reprlib.repr(value).split())
