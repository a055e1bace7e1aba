"""Named colours, how to draw one, and how light or dark to paint it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RGB = tuple[float, float, float]

NAMED_COLOURS: dict[str, RGB] = {
    "black": (28, 28, 32),
    "white": (232, 232, 228),
    "grey": (128, 130, 134),
    "red": (190, 36, 40),
    "blue": (40, 70, 170),
    "navy": (30, 36, 84),
    "green": (40, 120, 60),
    "yellow": (225, 195, 50),
    "orange": (225, 120, 40),
    "purple": (110, 55, 140),
    "pink": (230, 140, 170),
    "brown": (110, 72, 44),
    "beige": (205, 182, 146),
    "teal": (30, 130, 135),
    "cyan": (120, 190, 225),
    "olive": (98, 100, 48),
}


@dataclass(frozen=True)
class Colour:
    """A colour: the name that captions use, and this very shade of it (0..255 per channel)."""

    name: str
    rgb: RGB


def choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """One key, with probability proportional to its weight."""
    names = list(weights)
    cumulative = np.cumsum(list(weights.values()))
    return names[int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))]


def jitter(rng: np.random.Generator, rgb: RGB, deviation: float = 10.0) -> RGB:
    """The colour with normal noise on each channel, kept off the ends of the range."""
    red, green, blue = (min(247.0, max(8.0, channel + rng.normal(0, deviation))) for channel in rgb)
    return red, green, blue


def dye(rng: np.random.Generator, weights: dict[str, float] | None = None) -> Colour:
    """A named colour (any of the sixteen alike without weights) and its shade."""
    name = choose(rng, weights or dict.fromkeys(NAMED_COLOURS, 1))
    return Colour(name, jitter(rng, NAMED_COLOURS[name]))


def contrasting_dye(rng: np.random.Generator, other: Colour) -> Colour:
    """A named colour that can be told from `other` in a pattern."""
    reference = np.array(NAMED_COLOURS[other.name])
    while True:
        candidate = dye(rng)
        if np.abs(np.array(NAMED_COLOURS[candidate.name]) - reference).sum() > 150:
            return candidate


def maybe_dye(rng: np.random.Generator, probability: float) -> RGB | None:
    """A shade with the given probability, else None."""
    return dye(rng).rgb if rng.random() < probability else None


def shade(rgb: Sequence[float], factor: float = 1.0) -> tuple[int, int, int]:
    """The colour times `factor`, as the integers 0..255 that PIL wants."""
    red, green, blue = (int(min(255, max(0, channel * factor))) for channel in rgb)
    return red, green, blue
