"""Which cluster of one modality is which of the other: one-to-one matching of prototypes, and their exchange.

As in CCLNet (Chen et al., "Unveiling the Power of CLIP in Unsupervised Visible-Infrared Person Re-Identification", ACM
MM 2023). Clusters are matched by their features only. Where features do not agree across modalities at first, pairs
are wrong and training confirms them, while clusters and losses look perfect: watch the margin of the pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Association(NamedTuple):
    """Pairs of prototypes, by ascending `first`; no prototype is in two of them. On the prototypes' device."""

    first: Tensor  # int64 [M], rows of one set
    second: Tensor  # int64 [M], rows of the other
    similarities: Tensor  # [M], cosines, none of them negative
    margins: Tensor  # [M], a pair's similarity less the best that one of the two has elsewhere; infinite if none

    @property
    def similarity(self) -> float | None:
        """Mean cosine of the pairs; None without pairs."""
        return self.similarities.mean().item() if len(self.similarities) else None

    @property
    def margin(self) -> float | None:
        """Mean margin of the pairs that have one; None without such pairs."""
        known = self.margins[self.margins.isfinite()]
        return known.mean().item() if len(known) else None


@torch.no_grad()
def associate(first: Tensor, second: Tensor) -> Association:
    """Pairs of the largest sum of similarities; of n and m prototypes, the surplus of one set stays single.

    A pair of negative similarity is dropped afterwards: it takes part in the sum, as published.

    Args:
        first, second: prototypes [n, D] and [m, D] of length 1; n and m may be 0.
    """
    from scipy.optimize import linear_sum_assignment  # takes half a second, which most runs can do without

    similarities = first @ second.T
    rows, columns = (
        torch.from_numpy(found).to(first.device)
        for found in linear_sum_assignment(similarities.cpu().double().numpy(), maximize=True)
    )
    found = similarities[rows, columns]
    others = similarities.index_put((rows, columns), similarities.new_tensor(-torch.inf))
    margins = found
    if len(found):
        margins = found - torch.maximum(others.amax(dim=1)[rows], others.amax(dim=0)[columns])
    kept = found >= 0
    return Association(rows[kept], columns[kept], found[kept], margins[kept])


@torch.no_grad()
def swap_pairs(first: Tensor, second: Tensor, pairs: Association) -> tuple[Tensor, Tensor]:
    """Prototypes with those of each pair exchanged ("true"): what the paper describes. -> [n, D], [m, D]

    Once after clustering, for the whole epoch.
    """
    return (
        first.index_copy(0, pairs.first, second[pairs.second]),
        second.index_copy(0, pairs.second, first[pairs.first]),
    )


@torch.no_grad()
def mix_pairs(
    first: Tensor, second: Tensor, pairs: Association, seen: tuple[Tensor, Tensor], ratio: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Prototypes mixed with their partner's, as the published program does ("reference"). -> [n, D], [m, D]

    After every step, with pairs of the prototypes as they then are. For each pair, one after the other:

        a <- ratio · a + (1 - ratio) · b, at length 1, if a's cluster is in the batch
        b <- ratio · b + (1 - ratio) · a, at length 1, if b's cluster is in the batch

    The second line sees what the first made of a, since the program keeps no copy. Hence no exchange: both come to
    share b's content if both are in the batch; otherwise that of the one whose turn came later, as over an epoch nearly
    all do.

    Args:
        first, second: prototypes [n, D], [m, D].
        pairs: of `associate`.
        seen: labels of the batch in each modality, int64 [B] each; -1 is no cluster.
        ratio: what is kept.
    """
    pairs_of_first, pairs_of_second = (
        torch.isin(rows, labels) for rows, labels in zip((pairs.first, pairs.second), seen, strict=True)
    )

    def mixed(one: Tensor, rows: Tensor, other: Tensor, partners: Tensor, now: Tensor) -> Tensor:
        rows, partners = rows[now], partners[now]
        return one.index_copy(0, rows, F.normalize(ratio * one[rows] + (1 - ratio) * other[partners], dim=1))

    first = mixed(first, pairs.first, second, pairs.second, pairs_of_first)
    return first, mixed(second, pairs.second, first, pairs.first, pairs_of_second)


def association_accuracy(pairs: Association, first_pids: Tensor, second_pids: Tensor) -> float | None:
    """Diagnostic, by true identities, never for training: share of the pairs of one identity; None without pairs.

    Args:
        first_pids, second_pids: identity of each prototype, [n] and [m] (`utils.clustering.majorities`).
    """
    device = first_pids.device
    right = first_pids[pairs.first.to(device)] == second_pids[pairs.second.to(device)]
    return right.double().mean().item() if len(right) else None
