"""Captions about a person, for pre-training an image-text model."""

from __future__ import annotations

import numpy as np

from tools.demo.rendering.person import Person


def caption(person: Person, rng: np.random.Generator) -> str:
    """A caption with a random subset of the person's attributes; the colour of the top is always in it.

    Never in it: skin, body shape, and the fine details (inner shirt, scarf, belt, side stripe, cuffs, the logo's shape
    and place, glasses).
    """
    parts = [_top(person, rng)]
    if person.bottom_kind != "dress":
        parts.append(f"{person.bottom.name} {person.bottom_kind}")
    who = person.sex if rng.random() < 0.5 else "person"
    if rng.random() < 0.7:
        parts.insert(0, _head(person))
    if person.bag != "none" and rng.random() < 0.8:
        parts.append(f"{person.bag_colour.name} {person.bag}")
    if rng.random() < 0.5:
        parts.append(f"{person.shoes.name} shoes")
    if rng.random() < 0.3:
        parts = [parts[index] for index in rng.permutation(len(parts))]
    template = rng.random()
    if template < 0.4:
        return f"A photo of a {' '.join(parts)} {who}."
    if template < 0.8:
        return f"A photo of a {who} with {', '.join(parts)}."
    return f"a {who} wearing {' and '.join(parts)}"


def _top(person: Person, rng: np.random.Generator) -> str:
    """The upper garment, usually with its pattern and second colour."""
    if person.bottom_kind == "dress":
        garment = "dress"
    elif person.sleeves == "long":
        garment = "jacket" if person.open_jacket else "sweater"
    else:
        garment = "shirt" if person.sleeves == "short" else "sleeveless top"
    tells_pattern = rng.random() < 0.8
    if person.pattern == "plain" or not tells_pattern:
        return f"{person.top.name} {garment}"
    return f"{person.top.name} and {person.second.name} {person.pattern} {garment}"


def _head(person: Person) -> str:
    """Hair, its absence, or a cap."""
    style = person.hair_style
    if style == "cap":
        return f"{person.cap.name} cap"
    if style == "bald":
        return "bald head"
    if style in ("short", "long"):
        return f"{style} {person.hair.name} hair"
    return f"{person.hair.name} {style}"
