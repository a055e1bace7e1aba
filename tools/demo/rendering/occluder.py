"""Something in front of a figure that hides a good part of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from tools.demo.rendering.colours import shade
from tools.demo.rendering.person import sample_person
from tools.demo.rendering.vehicle import sample_vehicle

# Raise it whenever the same arguments give another occluder: data sets on disk are then rendered anew.
OCCLUDER_VERSION = 1

HIDDEN = (0.35, 0.65)  # between which shares of the figure is hidden

# Paints onto an image; from 0 to 1 it hides more and more.
_Painter = Callable[[Image.Image, float], None]


def paint_occluder(sheet: Image.Image, figure: np.ndarray, rng: np.random.Generator) -> None:
    """Paint one occluder onto an RGB image, in place: a wall, a parked car, a corner, a trunk or a passer-by.

    Args:
        sheet: the image.
        figure: bool (H, W), where the subject is; at least one pixel.
        rng: which occluder, how it looks, and how much it hides (evenly between the shares HIDDEN).
    """
    goal = rng.uniform(*HIDDEN)
    painter = _PAINTERS[rng.integers(len(_PAINTERS))](sheet.size, figure, rng)
    nearest, best = math.inf, 1.0
    low, high = 0.0, 1.0
    for _ in range(8):  # a passer-by's outline is not quite monotonic: keep the best that was seen
        middle = (low + high) / 2
        share = _hidden(painter, middle, figure)
        if abs(share - goal) < nearest:
            nearest, best = abs(share - goal), middle
        low, high = (middle, high) if share < goal else (low, middle)
    painter(sheet, best)


def _hidden(painter: _Painter, amount: float, figure: np.ndarray) -> float:
    """Which share of the figure is hidden."""
    height, width = figure.shape
    blank = Image.new("RGB", (width, height), _BLANK)
    painter(blank, amount)
    return float((np.asarray(blank) != _BLANK).any(axis=2)[figure].mean())


_BLANK = (255, 0, 255)  # nothing is painted in it


def _colour(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(30, 215, 3)


def _wall(size: tuple[int, int], figure: np.ndarray, rng: np.random.Generator) -> _Painter:
    """A low wall with a coping, from below."""
    width, height = size
    rgb, joint = _colour(rng), rng.uniform(0.08, 0.16) * height

    def paint(image: Image.Image, amount: float) -> None:
        draw, top = ImageDraw.Draw(image), (1 - amount) * height
        draw.rectangle((0, top, width, height), fill=shade(rgb))
        y = top + joint
        while y < height:
            draw.line((0, y, width, y), fill=shade(rgb, 0.8), width=3)
            y += joint
        draw.rectangle((0, top, width, top + 0.03 * height), fill=shade(rgb, 1.2))

    return paint


def _parked_car(size: tuple[int, int], figure: np.ndarray, rng: np.random.Generator) -> _Painter:
    """A vehicle's side, larger than the figure because it is nearer, from below."""
    width, height = size
    vehicle, yaw = sample_vehicle(rng), (90.0, 270.0)[rng.integers(2)]
    centre, tall = width * rng.uniform(0.2, 0.8), height * rng.uniform(0.9, 1.1)

    def paint(image: Image.Image, amount: float) -> None:
        vehicle.paint(image, centre_x=centre, top=(1 - amount) * height, height=tall, yaw=yaw, phase=0.0)

    return paint


def _corner(size: tuple[int, int], figure: np.ndarray, rng: np.random.Generator) -> _Painter:
    """A house's or a lorry's corner, from one side; it may end below the head."""
    width, height = size
    rgb, from_left = _colour(rng), rng.random() < 0.5
    top = height * rng.choice([0.0, rng.uniform(0.05, 0.25)])

    def paint(image: Image.Image, amount: float) -> None:
        left, right = (0, amount * width) if from_left else ((1 - amount) * width, width)
        edge = right if from_left else left
        draw = ImageDraw.Draw(image)
        draw.rectangle((left, top, right, height), fill=shade(rgb))
        draw.rectangle((edge - 3, top, edge + 3, height), fill=shade(rgb, 0.7))

    return paint


def _trunk(size: tuple[int, int], figure: np.ndarray, rng: np.random.Generator) -> _Painter:
    """A tree or a pillar, wider at its foot, about where the figure's middle is."""
    width, height = size
    rgb, across = _colour(rng) * 0.8, np.flatnonzero(figure.any(axis=0))
    centre = across[0] + (across[-1] - across[0]) * rng.uniform(0.3, 0.7)
    flare = rng.uniform(1.0, 1.2)

    def paint(image: Image.Image, amount: float) -> None:
        half = amount * width / 2
        outline = [(centre - half, 0), (centre + half, 0), (centre + flare * half, height),
                   (centre - flare * half, height)]  # fmt: skip
        draw = ImageDraw.Draw(image)
        draw.polygon(outline, fill=shade(rgb))
        draw.line((centre + 0.5 * half, 0, centre + 0.5 * half * flare, height), fill=shade(rgb, 0.75), width=4)

    return paint


def _passer_by(size: tuple[int, int], figure: np.ndarray, rng: np.random.Generator) -> _Painter:
    """Somebody nearer to the camera, from one side."""
    width, height = size
    person, yaw, phase = sample_person(rng), rng.uniform(0, 360), rng.uniform(0, 2 * math.pi)
    down, across = (np.flatnonzero(figure.any(axis=axis)) for axis in (1, 0))
    middle, side = (across[0] + across[-1]) / 2, 1 if rng.random() < 0.5 else -1
    tall = (down[-1] - down[0]) * rng.uniform(1.25, 1.45)
    top = down[0] + 0.02 * height

    def paint(image: Image.Image, amount: float) -> None:
        centre = middle + side * (1 - amount) * width
        person.paint(image, centre_x=centre, top=top, height=tall, yaw=yaw, phase=phase)

    return paint


_PAINTERS = (_wall, _parked_car, _corner, _trunk, _passer_by)
