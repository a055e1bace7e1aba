"""Figures in per cent, as a line and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils.metrics import CROSS_CAMERA
from utils.records import Evaluation, Reranking

COLUMNS = {"mAP": "mAP", "mINP": "mINP", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10"}


def figures(evaluation: Evaluation) -> str:
    """One line: mAP 63.9  rank-1 71.1 ..."""
    numbers = "  ".join(f"{title} {100 * evaluation.mean[name]:.1f}" for name, title in COLUMNS.items())
    return f"{numbers}  re-ranked ({evaluation.reranking})" if evaluation.reranking else numbers


def table(entries: Sequence[Mapping]) -> str:
    """A table of entries of results.json in per cent.

    It has the data set if there are several, and protocol and re-ranking if any is not the default.
    """
    reranked = any(entry.get("re_ranking") for entry in entries)
    protocols = [entry.get("protocol") or CROSS_CAMERA for entry in entries]  # which earlier versions did not write
    unusual = any(protocol != CROSS_CAMERA for protocol in protocols)
    several = len({entry["data_set"] for entry in entries}) > 1
    more = [*(["protocol"] if unusual else []), *(["re-ranking"] if reranked else [])]
    rows = [["", *COLUMNS.values(), "valid queries", *more]]
    for entry, protocol in zip(entries, protocols, strict=True):
        spread, settings = entry.get("std"), entry.get("re_ranking")  # the former over trials
        numbers = [f"{100 * entry[name]:.1f}" + (f" ± {100 * spread[name]:.1f}" if spread else "") for name in COLUMNS]
        how = [protocol] if unusual else []
        how += [str(Reranking(*map(settings.get, Reranking._fields))) if settings else "none"] if reranked else []
        name = f"{entry['data_set']} {entry['when']}" if several else entry["when"]
        rows.append([name, *numbers, f"{entry['valid_queries']} of {entry['queries']}", *how])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
