"""What the path of an image tells: its identity and its camera."""

from __future__ import annotations

import os
from typing import NamedTuple

from datasets.labels import JUNK, camera_of, normal
from datasets.naming import NAME

NAMES, FOLDERS, NONE = "names", "folders", "none"
KINDS = (NAMES, FOLDERS, NONE)


class PathLabel(NamedTuple):
    """Labels as they are compared; empty: unknown."""

    identity: str
    camera: str


def path_label(path: str, identities: str) -> PathLabel:
    """What a path tells.

    Args:
        identities: where they stand: `names` (0002_c1s1_000451.jpg is of identity 2), `folders` (anna/1.jpg is of
            anna) or `none`. Junk (-1) has none.
    """
    folder, name = os.path.split(path)
    identity = ""
    if identities == FOLDERS:
        identity = normal(os.path.basename(os.path.abspath(folder)))
    elif identities == NAMES and (match := NAME.match(name)):
        identity = str(int(match[1]))
    return PathLabel("" if identity == JUNK else identity, camera_of(name))


def same_identity(one: PathLabel, other: PathLabel) -> bool | None:
    """Whether both are of one identity; None: unknown."""
    return one.identity == other.identity if one.identity and other.identity else None
