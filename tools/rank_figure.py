"""Pictures of rank lists: a query and what was found for it, best first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from processor.inference import as_rgb
from tools.pages import BLACK, DOTS, GREEN, VERMILION, write_pages
from utils.errors import DataError
from utils.records import Hit, RankList

ROWS = 10  # lists on a page
HEIGHT, GAP, LINE, MARGIN = 1.28, 0.14, 0.17, 0.12  # of an image, between images, of a line of text; inches
GREY = (221, 221, 221)


class Frame(NamedTuple):
    """Of an image."""

    colour: str
    style: Any  # of its line
    width: float
    mark: str  # in the words above it


QUERY = Frame(BLACK, "solid", 1, "")
FRAMES = {
    True: Frame(GREEN, "solid", 2.5, "✓ "),
    False: Frame(VERMILION, (0, (3, 1.5)), 2.5, "✗ "),
    None: Frame("#999999", "solid", 1, ""),
}


def draw_rank_lists(path: Path, lists: Sequence[RankList], *, size: Sequence[int]) -> tuple[list[Path], list[str]]:
    """Write pictures, of ROWS lists each, of the kind that the suffix of `path` says.

    Args:
        path: of the first picture; the others are NAME_2.png, NAME_3.png ...; a PDF file has pages instead.
        size: height and width of the network's input, which the fields for images are shaped after.

    Returns:
        The files, and what is wrong with images that cannot be read, which are grey in the picture.

    Raises:
        UserError: a file cannot be written.
    """
    pages = [lists[start : start + ROWS] for start in range(0, len(lists), ROWS)]
    unreadable: list[str] = []
    figures = (rank_figure(page, size=size, unreadable=unreadable) for page in pages)
    return write_pages(path, figures), unreadable


def rank_figure(lists: Sequence[RankList], *, size: Sequence[int], unreadable: list[str] | None = None) -> Figure:
    """One figure with a row for each list; arguments as in `draw_rank_lists`, `unreadable` is added to.

    A match has a solid green frame and ✓, another identity a dashed orange one and ✗, an unknown one a thin grey one.
    """
    width = HEIGHT * min(2.0, max(0.4, size[1] / size[0]))
    step, row = width + GAP, 2 * LINE + HEIGHT + GAP
    places = [list(_places(one.found)) for one in lists]
    columns = 1.3 + max((place[-1] + 1 if place else 0 for place in places), default=0)
    shape = (max(2 * MARGIN + columns * step, 4.0), 2 * MARGIN + row * max(len(lists), 1))
    figure = Figure(figsize=shape)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, shape[0]), ylim=(shape[1], 0))
    axes.axis("off")
    for number, (one, place) in enumerate(zip(lists, places, strict=True)):
        top = MARGIN + number * row
        _write(axes, MARGIN, top + LINE, one.note, weight="bold")
        cells = [(0.0, one.query, "query" + _camera(one.camera), QUERY)]
        for column, hit in zip(place, one.found, strict=True):
            frame = FRAMES[hit.correct]
            words = f"{hit.rank} {frame.mark}{hit.score:.3f}{_camera(hit.camera)}"
            cells.append((1.3 + column, hit.name, words, frame))
        for column, image, words, frame in cells:
            left = MARGIN + column * step
            _write(axes, left, top + 2 * LINE, words)
            picture = _read(image, width, unreadable)
            box = _draw(axes, picture, left, top + 2 * LINE + 0.05, width)
            line = {"edgecolor": frame.colour, "linestyle": frame.style, "linewidth": frame.width}
            axes.add_patch(Rectangle(*box, fill=False, **line))
    return figure


def _places(found: Sequence[Hit]) -> Iterator[float]:
    """The columns of images, from 0, with some space where ranks are left out."""
    at, before = -1.0, 0
    for one in found:
        at += 1 if one.rank == before + 1 else 1.3
        before = one.rank
        yield at


def _camera(camera: str | None) -> str:
    return f"  {'c' if camera.isdecimal() else ''}{camera}" if camera else ""


def _write(axes: Axes, left: float, bottom: float, words: str, **style: str) -> None:
    axes.text(left, bottom, words, fontsize=7, va="bottom", parse_math=False, **style)


def _read(image: str, width: float, unreadable: list[str] | None) -> np.ndarray:
    """At most as many pixels as are shown, [h, w, 3]."""
    limits = round(width * DOTS), round(HEIGHT * DOTS)
    try:
        picture = as_rgb(image)
    except DataError as error:
        if unreadable is not None:
            unreadable.append(str(error))
        return np.full((limits[1], limits[0], 3), GREY, np.uint8)
    factor = min(limits[0] / picture.width, limits[1] / picture.height, 1.0)
    shape = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return np.asarray(picture.resize(shape, Image.Resampling.LANCZOS))


def _draw(axes: Axes, picture: np.ndarray, left: float, top: float, width: float) -> tuple:
    """Draw a picture as large as the field allows, in its shape; -> corner, width and height."""
    factor = min(width / picture.shape[1], HEIGHT / picture.shape[0])
    wide, high = picture.shape[1] * factor, picture.shape[0] * factor
    left, top = left + (width - wide) / 2, top + (HEIGHT - high) / 2
    axes.imshow(picture, extent=(left, left + wide, top + high, top), aspect="auto")
    return (left, top), wide, high
