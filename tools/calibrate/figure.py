"""The picture of a calibration: scores of both kinds of pairs, and the ROC curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.pages import BLACK, BLUE, VERMILION, write_pages
from utils.verification import BINS, SCALE, Verification

SAME, DIFFERENT = BLUE, VERMILION
STYLES = ("-", "--")  # of the networks
GROUP = 512  # of the fine bins are one bar: 1/64


def draw(path: Path, networks: Sequence[tuple[str, Verification]], *, title: str) -> None:
    """Write a picture of the kind that the suffix of `path` says.

    Args:
        networks: one or two, with their names, on the same pairs; thresholds are the first's.

    Raises:
        UserError: the file cannot be written.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    scores, roc = figure.subplots(1, 2)
    for (name, found), style in zip(networks, STYLES, strict=False):
        several = len(networks) > 1
        _draw_scores(scores, found, f"{name}: " if several else "", style)
        _draw_curve(roc, found, f"{name}: EER {100 * found.eer.reached.value:.1f} %" if several else None, style)
    _draw_thresholds(scores, networks[0][1])
    _draw_points(roc, networks[0][1])
    filled = np.flatnonzero(sum(found.same + found.different for _, found in networks).numpy()) / SCALE - 1
    scores.set(xlim=(filled[0] - 0.02, 1), xlabel="cosine", ylabel="density")
    figure.suptitle(title, fontsize=10)
    write_pages(path, [figure])


def _draw_scores(axes: Axes, found: Verification, before: str, style: str) -> None:
    kinds = (("two identities", found.different, DIFFERENT), ("one identity", found.same, SAME))
    edges = np.arange(0, BINS, GROUP) / SCALE - 1
    for name, counts, colour in kinds:
        bars = np.add.reduceat(counts.numpy(), np.arange(0, BINS - 1, GROUP))
        density = bars / bars.sum() * SCALE / GROUP
        label = f"{before}{f'{bars.sum():,}'.replace(',', ' ')} pairs of {name}"
        if style == STYLES[0]:
            axes.stairs(density, edges, fill=True, color=colour, alpha=0.3)
        axes.stairs(density, edges, color=colour, linestyle=style, label=label)


def _draw_thresholds(axes: Axes, found: Verification) -> None:
    points = ((name, point) for name, point in found.points().items() if point)
    for (name, point), style in zip(points, ("-", "--", "-.", ":"), strict=False):
        axes.axvline(point.threshold, color=BLACK, linestyle=style, linewidth=1, label=f"{point.threshold:.3f}: {name}")
    axes.legend(fontsize=7, loc="upper left")


def _lowest(found: Verification) -> float:
    return max(1 / float(found.different.sum()), 1e-6)


def _draw_curve(axes: Axes, found: Verification, label: str | None, style: str) -> None:
    fpr, tpr = found.curve.fpr.numpy(), found.curve.tpr.numpy()
    shown = np.flatnonzero(fpr >= _lowest(found))[::-1]  # of one FPR, the highest TPR is what is reached
    _, some = np.unique(np.round(np.log10(fpr[shown]), 3), return_index=True)  # finer than a pixel
    axes.step(fpr[shown[some]], 100 * tpr[shown[some]], where="post", color=SAME, linestyle=style, label=label)


def _draw_points(axes: Axes, found: Verification) -> None:
    lowest = _lowest(found)
    points = ((name, point) for name, point in found.points().items() if point)
    for (name, point), marker in zip(points, "osD^", strict=False):
        value, low, high = (
            point.reached if point.target else (1 - point.fnr.value, 1 - point.fnr.high, 1 - point.fnr.low)
        )
        at = point.target or point.fpr.value
        label = f"{'TPR at ' if point.target else ''}{name}: {100 * point.reached.value:.1f} %"
        bars = [[100 * (value - low)], [100 * (high - value)]] if low == low else None
        axes.errorbar(
            *(max(at, lowest), 100 * value, bars),
            label=label,
            color=BLACK,
            marker=marker,
            markersize=4,
            capsize=3,
            linestyle="none",
            zorder=3,
        )
    axes.set(xscale="log", xlim=(lowest, 1), ylim=(None, 101), xlabel="false accepts (FPR)", ylabel="TPR, per cent")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="best", title="with 95 % intervals", title_fontsize=7)
