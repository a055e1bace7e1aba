"""Figures in per cent, as a line and as a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from utils.metrics import CROSS_CAMERA
from utils.records import Evaluation, Refinement

REFINED = {"flip": "flip", "query_expansion": "query expansion", "re_ranking": "re-ranking"}
COLUMNS = {"mAP": "mAP", "mINP": "mINP", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10"}


def figures(evaluation: Evaluation) -> str:
    """One line: mAP 63.9  rank-1 71.1 ..."""
    numbers = "  ".join(f"{title} {100 * evaluation.mean[name]:.1f}" for name, title in COLUMNS.items())
    return f"{numbers}  {evaluation.refinement}".rstrip()


def table(entries: Sequence[Mapping]) -> str:
    """A table of entries of results.json in per cent.

    It has the data set if there are several, and protocol, flip, query expansion and re-ranking if any is not the
    default.
    """
    refined = [Refinement.of(entry) for entry in entries]
    protocols = [entry.get("protocol") or CROSS_CAMERA for entry in entries]  # which earlier versions did not write
    unusual = any(protocol != CROSS_CAMERA for protocol in protocols)
    several = len({entry["data_set"] for entry in entries}) > 1
    used = [name for name in REFINED if any(getattr(each, name) for each in refined)]
    more = [*(["protocol"] if unusual else []), *(REFINED[name] for name in used)]
    rows = [["", *COLUMNS.values(), "valid queries", *more]]
    for entry, protocol, refinement in zip(entries, protocols, refined, strict=True):
        spread = entry.get("std")  # over trials
        numbers = [f"{100 * entry[name]:.1f}" + (f" ± {100 * spread[name]:.1f}" if spread else "") for name in COLUMNS]
        how = [protocol] if unusual else []
        how += [_cell(getattr(refinement, name)) for name in used]
        name = f"{entry['data_set']} {entry['when']}" if several else entry["when"]
        rows.append([name, *numbers, f"{entry['valid_queries']} of {entry['queries']}", *how])
    return aligned(rows)


def markdown(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """Rows of cells as a table of Markdown, the first of them its head; `numbers` are columns to align at the right."""
    rule = ["---:" if column in numbers else "---" for column in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, the first of them underlined."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(done: object) -> str:
    return {True: "yes", False: "none", None: "none"}.get(done) or str(done)  # type: ignore[call-overload]
