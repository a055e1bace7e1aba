"""From terms to what is differentiated."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import add

from torch import Tensor

from utils.records import Losses


def weigh(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Losses:
    """The weighted sum of `terms`, and the terms themselves for the log.

    Raises:
        KeyError: a term without a weight.
        ValueError: no term at all.
    """
    if not terms:
        raise ValueError("no loss term has a weight above 0")
    total = reduce(add, (weights[name] * value for name, value in terms.items()))
    return Losses(total, {name: value.detach() for name, value in terms.items()})
