"""What was measured, as a table of Markdown and as plain types."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from tools.benchmark.measure import Measured
from utils.report import markdown

TITLES = ("", "wall, s", "CPU, s", "speed-up", "TFLOP", "share", "calls", "memory, MB")


def table(found: Sequence[Measured], device: torch.device) -> str:
    """A row for each way: medians, with the least and the most.

    Speed-ups are over the first way (medians of the rounds), shares of what the last way, the machine's product, does
    in a second.
    """
    times = [spent(one, device) for one in found]
    fastest = found[-1].way.flops / median(times[-1])
    rows = [TITLES]
    for one, seconds in zip(found, times, strict=True):
        memory = [run.memory for run in one.runs if run.memory is not None]
        flops = one.way.flops
        cells = (
            _spread([run.wall for run in one.runs]),
            _spread([run.cpu for run in one.runs]),
            f"{median(first / own for first, own in zip(times[0], seconds, strict=True)):.2f}",
            f"{flops / 1e12:.3g}" if flops else "",
            f"{flops / median(seconds) / fastest:.0%}" if flops else "",
            str(one.way.calls or ""),
            f"{max(memory) / 1e6:.0f}" if memory else "",
        )
        rows.append((one.way.name, *cells))
    return markdown(rows, range(1, len(TITLES)))


def spent(one: Measured, device: torch.device) -> list[float]:
    """Seconds of its runs: on a CPU of CPU time, which other work hardly changes, else of wall time."""
    return [run.cpu if device.type == "cpu" else run.wall for run in one.runs]


def _spread(seconds: Sequence[float]) -> str:
    """Median, with the least and the most."""
    return f"{median(seconds):.3g} ({min(seconds):.3g}–{max(seconds):.3g})"


def as_json(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """Every run of every way."""
    facts = ("name", "flops", "size", "calls")
    return [
        {fact: getattr(one.way, fact) for fact in facts} | {"runs": [run._asdict() for run in one.runs]}
        for one in found
    ]
