"""Data sets by name, before any is read."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from utils.errors import DataError

SEVERAL = "+"  # between the names of data sets that are trained on together
TWO_WAYS = ("regdb", "synthetic_regdb")  # data sets of DATASETS.REGDB_SPLIT, whose tests have two directions
PERSON, VEHICLE = "A photo of a {} person.", "A photo of a {} vehicle."  # {}: the learned tokens
TEMPLATES = ("A visible photo of a {} person.", "An infrared photo of a {} person.")
PROMPTS: dict[str, tuple[str, ...]] = {  # two for two modalities; none for `folder`, whose noun is a setting
    **{"market1501": (PERSON,), "dukemtmc": (PERSON,), "msmt17": (PERSON,), "occ_duke": (PERSON,)},
    **{"veri": (VEHICLE,), "VehicleID": (VEHICLE,), "sysu_mm01": TEMPLATES, "regdb": TEMPLATES, "folder": ()},
    **{"synthetic": (PERSON,), "synthetic_occluded": (PERSON,), "synthetic_vehicle": (VEHICLE,)},
    **{"synthetic_sysu": TEMPLATES, "synthetic_sysu_inverted": TEMPLATES, "synthetic_regdb": TEMPLATES},
}


def count_evaluations(names: str) -> int:
    """How many results an evaluation of all data sets has."""
    return sum(2 if name in TWO_WAYS else 1 for name in names_of(names))


def names_of(names: str) -> list[str]:
    """The data sets that DATASETS.NAMES names.

    Raises:
        DataError: an empty name, or one that is there twice.
    """
    several = names.split(SEVERAL)
    if not all(several):
        raise DataError(
            f"DATASETS.NAMES {names!r}: one of the names is empty; expected, e.g., market1501 or "
            "\"('market1501', 'msmt17')\""
        )
    twice = sorted({name for name in several if several.count(name) > 1})
    if twice:
        raise DataError(f"DATASETS.NAMES {names!r}: {twice[0]} is there twice")
    return several


def check_known(name: str, known: Collection[str] = PROMPTS) -> None:
    """Raise DataError if there is no data set of this name; the message has the right ones."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise DataError(f"DATASETS.NAMES: invalid value {name!r}; {meant}expected one of {', '.join(known)}")


def names_together(names: str, noun: str) -> list[str]:
    """The data sets that DATASETS.NAMES names, which can be trained on together.

    Args:
        noun: what the images of `folder` show.

    Raises:
        DataError: as `names_of` and `check_known`; sets of people and of vehicles, which have no prompt in common; a
            set of two modalities, whose protocol is about its own cameras.
    """
    several = names_of(names)
    who_says: dict[str, str] = {}  # prompt -> the first that has it
    for name in several:
        check_known(name)
        prompt, *of_the_other = PROMPTS[name] or (own_prompt(noun),)
        if of_the_other and len(several) > 1:
            raise DataError(f"DATASETS.NAMES: {name} has two modalities; expected that it is trained on alone")
        who_says.setdefault(prompt, name)
    if len(who_says) > 1:
        (one, first), (other, second), *_ = who_says.items()
        raise DataError(
            f"DATASETS.NAMES: {first} says {one!r} and {second} {other!r}; one training has one prompt for all"
        )
    return several


def own_prompt(noun: str) -> str:
    """The prompt of `folder`."""
    return f"A photo of a {{}} {noun}."
