"""The picture of how time and memory grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure

from tools.benchmark.measure import Measured
from tools.benchmark.report import spent
from tools.pages import BLUE, VERMILION, write_pages

WIDE = 20  # from here on axes are logarithmic


def draw(path: Path, cases: Mapping[str, Sequence[Measured]], device: torch.device) -> None:
    """Write a picture of the kind that the suffix of `path` says, of cases by title whose ways have sizes.

    Raises:
        UserError: the file cannot be written.
    """
    figure = Figure(figsize=(4 * len(cases), 3.4), layout="constrained")
    for axes, (title, found) in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases.items(), strict=True):
        some = [one for one in found if one.way.size is not None]
        sizes = [one.way.size or 0 for one in some]
        seconds = [median(spent(one, device)) for one in some]
        megabytes = [max(run.memory or 0 for run in one.runs) / 1e6 for one in some]
        memory = axes.twinx()
        for side, values, style, colour in ((axes, seconds, "o-", BLUE), (memory, megabytes, "s--", VERMILION)):
            side.plot(sizes, values, style, color=colour)
            if max(sizes) > WIDE * min(sizes):
                side.set(xscale="log", yscale="log")
            else:
                side.set(ylim=(0, max(1, *values) * (1.2 if side is axes else 1.4)))
        axes.set(xlabel=some[0].way.name.split()[-1], title=title)
        axes.set_ylabel("seconds", color=BLUE)
        memory.set_ylabel("memory, MB", color=VERMILION)
        axes.title.set_fontsize(8)
        axes.grid(alpha=0.3)
    write_pages(path, [figure])
