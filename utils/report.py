"""Figures for people: per cent, in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils.records import Evaluation

COLUMNS = {"mAP": "mAP", "mINP": "mINP", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10"}


def figures(evaluation: Evaluation) -> str:
    """One line: mAP 63.9  rank-1 71.1 ..."""
    return "  ".join(f"{title} {100 * evaluation.mean[name]:.1f}" for name, title in COLUMNS.items())


def table(entries: Sequence[Mapping]) -> str:
    """Entries of results.json, a line each, in per cent."""
    rows = [["", *COLUMNS.values(), "valid queries"]]
    for entry in entries:
        numbers = [f"{100 * entry[name]:.1f}" for name in COLUMNS]
        rows.append([entry["when"], *numbers, f"{entry['valid_queries']} of {entry['queries']}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
