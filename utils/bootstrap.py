"""How sure a difference between two networks is that were tested on the same queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from utils.verification import Estimate, estimate

REPLICATES = 1000
DRAWS_AT_ONCE = 2**22


def paired_difference(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], *, replicates: int = REPLICATES, generator: torch.Generator
) -> Estimate:
    """The mean of `ours` less that of `theirs`, with the percentile interval of a bootstrap over queries.

    A replicate draws as many queries as there are, with replacement, and takes both networks' figures of each: what is
    easy or hard for both cancels out. Queries of one identity are not independent, so that the interval is rather too
    narrow than too wide.

    Args:
        ours, theirs: [V] a figure of every valid query, for each trial; trials are drawn from one by one and averaged.
    """
    means, drawn = [], []
    for one, other in zip(ours, theirs, strict=True):
        difference = one.double() - other.double()
        count = len(difference)
        sizes = torch.full((replicates,), count).split(max(1, DRAWS_AT_ONCE // count))
        parts = [
            difference[torch.randint(count, (len(some), count), generator=generator)].mean(dim=1) for some in sizes
        ]
        means.append(difference.mean())
        drawn.append(torch.cat(parts))
    return estimate(torch.stack(means).mean(), torch.stack(drawn).mean(dim=0))
