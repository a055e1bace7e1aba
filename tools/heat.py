"""Maps over images, for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from processor.inference import Input


class Heat(NamedTuple):
    """A map over an image."""

    grid: Tensor  # [h, w]; what is below 0 is shown as 0
    words: str  # below it


class Row(NamedTuple):
    """An image and its maps."""

    image: Input
    name: str
    heats: Sequence[Heat]  # of each network
