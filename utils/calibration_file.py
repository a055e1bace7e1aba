"""Files of calibrations: thresholds of a network, what they do, and what that was measured on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from utils.errors import DataError, UserError
from utils.files import write_json
from utils.release_folder import CALIBRATION, is_release, locate
from utils.schema import Count, Fraction, Optional, Rule, fault, number
from utils.verification import LEVEL, REPLICATES, Estimate, Point, Verification

EQUAL = "eer"  # the threshold where both rates are equal; the others are called by their FPR
Cosine = Annotated[float, number(-1.01, 1.01, "a cosine")]


class Rate(TypedDict):
    value: Fraction
    low: Optional  # None: no interval
    high: Optional


class Threshold(TypedDict):
    threshold: Cosine
    fpr: Rate
    fnr: Rate


class Pairs(TypedDict):
    same: Count
    different: Count


class Calibration(TypedDict):
    """What is read of such a file."""

    digest: str
    data_set: str
    protocol: str
    pairs: Pairs
    eer: Threshold
    at_fpr: Annotated[
        dict[str, Any],
        Rule(
            lambda points: all(
                _is_fpr(name) and (one is None or not fault(one, Threshold)) for name, one in points.items()
            ),
            "thresholds by their FPR",
        ),
    ]
    notes: NotRequired[list[str]]
    modality: NotRequired[str]  # of the pairs, of a network with a stem for each: one, or two with a comma


def beside(weight: str | Path) -> Path:
    """Where the calibration of a checkpoint is: beside it or, of a released network, in its folder."""
    path = locate(weight)
    return path / CALIBRATION if is_release(path) else path.with_suffix(".calibration.json")


def write_calibration(path: Path, found: Verification, facts: Mapping[str, Any]) -> None:
    """Write thresholds and rates, after the `facts` on what they were measured with and on.

    Raises:
        UserError: the file cannot be written.
    """
    contents = {
        **facts,
        "pairs": {"same": int(found.same.sum()), "different": int(found.different.sum())},
        "intervals": {"level": LEVEL, "bootstrap_over": "identities", "replicates": REPLICATES},
        EQUAL: _entry(found.eer, EQUAL),
        "at_fpr": {f"{target:g}": point and _entry(point, "tpr") for target, point in found.at_fpr.items()},
    }
    write_json(path, contents)


def read_calibration(path: Path, digest: str) -> Calibration:
    """Read what `write_calibration` wrote.

    Args:
        digest: of the network, with its settings, that it must be of.

    Raises:
        DataError: no such file, no calibration, or of another network.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as a calibration ({error})") from error
    if wrong := fault(contents, Calibration):
        raise DataError(f"{path}: is no calibration ({wrong})")
    if contents["digest"] != digest:
        raise DataError(
            f"{path}: was measured with another network or other settings ({contents['digest']}, here {digest}); "
            "python -m tools.calibrate measures this one"
        )
    return contents


def threshold_at(calibration: Calibration, fpr: str, source: Path) -> Threshold:
    """The threshold for an FPR, e.g. 1e-3, or `eer`.

    Raises:
        UserError: it was not measured.
    """
    if fpr == EQUAL:
        return calibration["eer"]
    known = {name: one for name, one in calibration["at_fpr"].items() if one}
    found = [one for name, one in known.items() if float(name) == float(fpr)]
    if not found:
        expected = ", ".join((EQUAL, *known))
        raise UserError(f"--fpr {fpr}: {source} has no threshold for it; expected one of {expected}")
    return found[0]


def _is_fpr(name: str) -> bool:
    try:
        return 0 < float(name) < 1
    except ValueError:
        return False


def _entry(point: Point, reached: str) -> dict[str, Any]:
    """`reached` names what replicates reach that choose their own thresholds."""
    rates = {"fpr": point.fpr, "fnr": point.fnr, reached: point.reached}
    return {"threshold": point.threshold, **{name: _rate(rate) for name, rate in rates.items()}}


def _rate(rate: Estimate) -> dict[str, float | None]:
    return {name: None if value != value else value for name, value in rate._asdict().items()}
