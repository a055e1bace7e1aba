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
        sizes, memory = [one.way.size for one in some], axes.twinx()
        axes.plot(sizes, [median(spent(one, device)) for one in some], "o-", color=BLUE)
        memory.plot(sizes, [max(run.memory or 0 for run in one.runs) / 1e6 for one in some], "s--", color=VERMILION)
        if max(sizes) > WIDE * min(sizes):
            axes.set(xscale="log", yscale="log")
            memory.set(yscale="log")
        else:
            axes.set(ylim=(0, None))
            memory.set(ylim=(0, None))
        axes.set(xlabel=some[0].way.name.split()[-1], title=title)
        axes.set_ylabel("seconds", color=BLUE)
        memory.set_ylabel("memory, MB", color=VERMILION)
        axes.title.set_fontsize(8)
        axes.grid(alpha=0.3)
    write_pages(path, [figure])
