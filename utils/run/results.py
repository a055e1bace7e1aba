"""results.json: the evaluations of a run, and of later tests."""

from __future__ import annotations

import json
from pathlib import Path

from utils.errors import UserError, writing
from utils.files import replace_text
from utils.run import RESULTS
from utils.schema import Results, fault

START, END, EARLIER_END = "start", "end", "earlier end"  # evaluations of a training, by `when`


def read_results(path: Path) -> dict:
    """The contents of a results.json; no evaluations if there is no such file.

    Raises:
        UserError: it cannot be read, or a field of it is wrong, which is named.
    """
    if not path.exists():
        return {"evaluations": []}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not a results file of this program; move it away (it is not JSON)") from error
    if wrong := fault(results, Results):
        raise UserError(f"{path}: is not a results file of this program; move it away ({wrong})")
    return results


def write_results(path: Path, results: dict) -> None:
    """Replace the file as a whole; UserError if it cannot be written."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(results, indent=2) + "\n")


def append_result(folder: Path, entry: dict, name: str = RESULTS) -> Path:
    """Add an evaluation to a folder's results.json, or to a file like it -> its path.

    Raises:
        UserError: the file is there but is no results file, or the folder cannot be written to.
    """
    path = folder / name
    results = read_results(path)
    # A run that was to get more epochs, but came to none, ends once more as it did before.
    others = [each for each in results["evaluations"] if {**each, "when": END} != entry or each["when"] != EARLIER_END]
    write_results(path, {**results, "evaluations": [*others, entry]})
    return path


def take_back_results(path: Path, *, start: bool, end: bool) -> None:
    """Drop the evaluations of `start` and `end`, which come once more; an end that stays is called an earlier one."""
    results = read_results(path)
    dropped = ({START} if start else set()) | ({END} if end else set())
    kept = [entry for entry in results["evaluations"] if entry["when"] not in dropped]
    kept = [{**entry, "when": EARLIER_END} if entry["when"] == END else entry for entry in kept]
    if kept != results["evaluations"]:
        write_results(path, {**results, "evaluations": kept})


def count_ends(evaluations: list[dict]) -> int:
    """How many data sets were evaluated after all training."""
    return sum(entry["when"] == END for entry in evaluations)
