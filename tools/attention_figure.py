"""Pictures of where in images features come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image

from processor.inference import as_rgb
from tools.heat import Heat, Row
from tools.pages import DOTS

ROWS = 6  # images on a page
HEIGHT = 2.0  # of an image, inches
COLOURS = "inferno"  # equal steps look equal, to the colour-blind, too


def figures(rows: Iterable[Row], columns: Sequence[str], *, size: Sequence[int]) -> Iterator[Figure]:
    """Figures of ROWS rows each: input | first network | second.

    Args:
        columns: what the networks are called.
        size: height and width of their input, in which images are shown.
    """
    rows = iter(rows)
    while page := list(islice(rows, ROWS)):
        yield _page(page, columns, size)


def _page(rows: Sequence[Row], columns: Sequence[str], size: Sequence[int]) -> Figure:
    wide = max(HEIGHT * size[1] / size[0], 1.5)
    figure = Figure(
        figsize=((1 + len(columns)) * (wide + 0.15) + 0.9, len(rows) * (HEIGHT + 0.4) + 0.4), layout="constrained"
    )
    grid = figure.subplots(len(rows), 1 + len(columns), squeeze=False)
    for line, row in zip(grid, rows, strict=True):
        picture = _stretched(as_rgb(row.image), size)
        line[0].imshow(picture)
        line[0].set_xlabel(row.name, fontsize=7, parse_math=False)
        for axes, heat in zip(line[1:], row.heats, strict=True):
            _draw(axes, picture, heat)
    for axes, name in zip(grid[0], ("input", *columns), strict=True):
        axes.set_title(name, fontsize=8, parse_math=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    bar = figure.colorbar(ScalarMappable(cmap=COLOURS), ax=grid, shrink=0.4, aspect=30, ticks=[0, 1])
    bar.ax.set_yticklabels(["0", "most in\nthe image"], fontsize=7)
    return figure


def _stretched(picture: Image.Image, size: Sequence[int]) -> np.ndarray:
    """In the shape of the network's input, with as many pixels as are drawn."""
    height = round(HEIGHT * DOTS)
    return np.asarray(picture.resize((round(height * size[1] / size[0]), height), Image.Resampling.BICUBIC))


def _draw(axes: Axes, picture: np.ndarray, heat: Heat) -> None:
    values = heat.grid.clamp(min=0).numpy()
    extent = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
    axes.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    high = values.max() or 1.0
    axes.imshow(values, cmap=COLOURS, alpha=0.6, vmin=0, vmax=high, interpolation="bilinear", extent=extent)
    axes.set_xlabel(heat.words, fontsize=7)
