"""Figures in per cent, as a line and as a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from utils.metrics import CROSS_CAMERA
from utils.records import Evaluation, Refinement

REFINED = {"flip": "flip", "query_expansion": "query expansion", "re_ranking": "re-ranking", "precision": "precision"}
USUAL = Refinement()
COLUMNS = {"mAP": "mAP", "mINP": "mINP", **{f"rank{k}": f"rank-{k}" for k in (1, 5, 10, 20)}}


def figures(evaluation: Evaluation) -> str:
    """One line: mAP 63.9  rank-1 71.1 ..."""
    numbers = "  ".join(f"{COLUMNS[name]} {100 * value:.1f}" for name, value in evaluation.mean.items())
    return f"{numbers}  {evaluation.refinement}".rstrip()


def table(entries: Sequence[Mapping]) -> str:
    """A table of entries of results.json in per cent.

    It has the data set if there are several, and rank-20, protocol, flip, query expansion, re-ranking and precision if
    any entry has them, or not the default.
    """
    several = len({entry["data_set"] for entry in entries}) > 1
    titles, *how = conditions(entries)
    columns = columns_of(entries)
    rows = [["", *columns.values(), "valid queries", *titles]]
    for entry, cells in zip(entries, how, strict=True):
        name = f"{entry['data_set']} {entry['when']}" if several else entry["when"]
        numbers = [percent(entry, column) for column in columns]
        rows.append([name, *numbers, f"{entry['valid_queries']} of {entry['queries']}", *cells])
    return aligned(rows)


def columns_of(entries: Sequence[Mapping]) -> dict[str, str]:
    """Those of COLUMNS that any entry has."""
    return {name: title for name, title in COLUMNS.items() if any(name in entry for entry in entries)}


def conditions(entries: Sequence[Mapping]) -> list[list[str]]:
    """Columns of protocol, flip, query expansion, re-ranking and precision, as far as any entry has not the default:
    their titles, then a row for each entry."""
    refined = [Refinement.of(entry) for entry in entries]
    protocols = [entry.get("protocol") or CROSS_CAMERA for entry in entries]  # which earlier versions did not write
    unusual = any(protocol != CROSS_CAMERA for protocol in protocols)
    used = [name for name in REFINED if any(getattr(each, name) != getattr(USUAL, name) for each in refined)]
    rows = [[*(["protocol"] if unusual else []), *(REFINED[name] for name in used)]]
    for protocol, refinement in zip(protocols, refined, strict=True):
        rows.append([*([protocol] if unusual else []), *(_cell(getattr(refinement, name)) for name in used)])
    return rows


def markdown(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """Rows of cells as a table of Markdown, the first of them its head; `numbers` are columns to align at the right."""
    rule = ["---:" if column in numbers else "---" for column in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(row).lstrip()} |" for row in (rows[0], rule, *rows[1:]))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, the first of them underlined."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def percent(entry: Mapping, name: str) -> str:
    """A figure of an entry in per cent, with its deviation over several trials; empty where it has none."""
    deviation = (entry.get("std") or {}).get(name)
    if entry.get(name) is None:
        return ""
    return f"{100 * entry[name]:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def _cell(done: object) -> str:
    return {True: "yes", False: "none", None: "none"}.get(done) or str(done)  # type: ignore[call-overload]
