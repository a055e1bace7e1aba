"""Ranks of the gallery images that match a query, without the order of all the others.

The rank of a match is one more than the number of images before it. On a CPU a binary search counts them in the sorted
distances up to the farthest match: those are few, and to sort numbers alone is many times faster than to sort places
along. Elsewhere all are compared with each match.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.errors import DataError

IN_CACHE = 2**20  # pairs that a CPU works on at a time: 4 MB


class Identities(NamedTuple):
    """A gallery by identity."""

    pids: Tensor  # int64 [G], ascending
    places: Tensor  # int64 [G], where in the gallery these are; those of an identity ascend
    numbers: Tensor  # int64 [G], identities of the gallery in its own order, as 0..P-1

    @staticmethod
    def of(pids: Tensor) -> Identities:
        """Identities [G] of a gallery."""
        return Identities(*pids.sort(stable=True), pids.unique(return_inverse=True)[1])


class Retrieval(NamedTuple):
    """How queries fared; what is not `valid` has no match, and no figures that mean anything."""

    valid: Tensor  # bool [Q]
    precision: Tensor  # float64 [Q], average precision
    inverse: Tensor  # float64 [Q], matches over the rank of the last of them (Ye et al., 2021, eq. 5)
    first: Tensor  # int64 [Q], rank of the first match, from 1


def row_blocks(pairs: Tensor) -> list[slice]:
    """Slices of the rows of `pairs` [Q, G] that are worked on together: all but on a CPU, where they stay in cache."""
    rows, columns = pairs.shape
    size = max(1, IN_CACHE // max(1, columns)) if pairs.device.type == "cpu" else max(1, rows)
    return [slice(start, min(start + size, rows)) for start in range(0, max(1, rows), size)]


def retrieve(
    distances: Tensor, dropped: Tensor, pids: Tensor, gallery: Identities, *, unique_identities: bool = False
) -> Retrieval:
    """How queries with the identities `pids` [Q] fare. Equal distances keep the gallery's order.

    Args:
        distances: [Q, G], at least one of each; what is infinitely far comes last.
        dropped: bool [Q, G], images that leave the gallery of a query.
        unique_identities: of each identity only the nearest image counts for the rank of the first match.

    Raises:
        DataError: distances are not numbers.
    """
    parts = []
    blocks = row_blocks(distances)
    with _Space(distances, blocks[0].stop) as space:
        for rows in blocks:
            counted = space.keep(distances[rows], dropped[rows])
            places, matches = _matches(dropped[rows], pids[rows], gallery)
            ranks = space.ranks(counted, places, matches).masked_fill(~matches, distances.shape[1] + 1)
            ranks, order = ranks.sort(dim=1)  # what does not match comes last
            count, first = matches.sum(dim=1), ranks[:, 0]
            if unique_identities:
                first = 1 + _identities_before(counted, places.gather(1, order[:, :1]), gallery.numbers)
            last = ranks.gather(1, (count[:, None] - 1).clamp(min=0))[:, 0]
            parts.append((count > 0, space.average_precision(ranks, count), count / last.double(), first))
    return Retrieval(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def _matches(dropped: Tensor, pids: Tensor, gallery: Identities) -> tuple[Tensor, Tensor]:
    """Places [Q, K] of the images that have the query's identity, ascending, and which of them count."""
    start = torch.searchsorted(gallery.pids, pids)[:, None]
    stop = torch.searchsorted(gallery.pids, pids, right=True)[:, None]
    most = max(1, int((stop - start).max()))
    found = start + torch.arange(most, device=pids.device)
    places = gallery.places[found.clamp(max=len(gallery.places) - 1)]
    return places, (found < stop) & ~dropped.gather(1, places)


def _identities_before(distances: Tensor, place: Tensor, numbers: Tensor) -> Tensor:
    """How many identities come before the image at `place` [Q, 1]. -> int64 [Q]"""
    before = _before(distances, distances.gather(1, place), place)
    seen = torch.zeros(len(distances), int(numbers.max()) + 1, dtype=torch.int32, device=distances.device)
    return (seen.scatter_add_(1, numbers.expand_as(before), before.int()) > 0).sum(dim=1)


def _before(distances: Tensor, own: Tensor, place: Tensor) -> Tensor:
    """Which images come before the one at `place` [Q, 1], whose distance is `own`. -> bool [Q, G]"""
    images = torch.arange(distances.shape[1], device=distances.device)
    return (distances < own) | ((distances == own) & (images < place))


def _count_all(distances: Tensor, own: Tensor, places: Tensor) -> Tensor:
    """Ranks [R, K] of the images at `places` [R, K], whose distances are `own` [R, K]."""
    columns = zip(own.split(1, dim=1), places.split(1, dim=1), strict=True)
    return 1 + torch.stack([_before(distances, *column).sum(dim=1) for column in columns], dim=1)


def _search_rows(*tables: np.ndarray) -> None:
    """The same on a CPU, of tables of distances, own, places, `matches` and ranks, which are filled in at matches."""
    for distances, own, places, matches, ranks in zip(*tables, strict=True):
        if not matches.any():
            continue
        own, places = own[matches], places[matches]
        near = distances[distances <= own.max()]
        near.sort()
        found = near.searchsorted(own)
        for tied in np.flatnonzero(near.searchsorted(own, side="right") - found > 1):
            found[tied] += np.count_nonzero(distances[: places[tied]] == own[tied])
        ranks[matches] = found + 1


class _Space:
    """Memory that is used again for every block of rows, since to get it anew takes as long as the work; and threads.

    Args:
        distances: [Q, G].
        rows: of the largest block.
    """

    def __init__(self, distances: Tensor, rows: int):
        half = distances.dtype in (torch.float16, torch.bfloat16)  # which numpy does not sort, or does not know
        shape = rows, distances.shape[1]
        self.kept = distances.new_empty(shape, dtype=torch.float32 if half else None)
        # A single row would be summed by several threads, and so in another order: hence one more.
        self.spread = distances.new_zeros(rows + 1, distances.shape[1], dtype=torch.float64)
        self.threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(self.threads)

    def __enter__(self) -> _Space:
        return self

    def __exit__(self, *_error: object) -> None:
        self.pool.shutdown()

    def keep(self, distances: Tensor, dropped: Tensor) -> Tensor:
        """A copy [R, G] in which infinity is what is dropped alone."""
        kept, most = self.kept[: len(distances)], torch.finfo(distances.dtype).max
        torch.clamp(distances.to(kept.dtype), max=most, out=kept)
        return kept.masked_fill_(dropped, torch.inf)

    def ranks(self, distances: Tensor, places: Tensor, matches: Tensor) -> Tensor:
        """Ranks, from 1, of the images at `places` [R, K]; only those of `matches` [R, K] are right.

        Raises:
            DataError: distances are not numbers.
        """
        own = distances.gather(1, places)
        if own[matches].isnan().any():
            raise DataError("some distances are NaN")
        if distances.device.type != "cpu":
            return _count_all(distances, own, places)
        ranks = torch.empty_like(places)
        tables = [tensor.numpy() for tensor in (distances, own, places, matches, ranks)]
        parts = (np.array_split(table, self.threads) for table in tables)
        list(self.pool.map(_search_rows, *parts))
        return ranks

    def average_precision(self, ranks: Tensor, count: Tensor) -> Tensor:
        """Average precision, float64 [R], of the first `count` [R] of the ascending `ranks` [R, K].

        It is summed over all ranks, with zeros between, so that its last digit does not depend on other queries.
        """
        found = torch.arange(1, ranks.shape[1] + 1, device=ranks.device)
        real = found <= count[:, None]
        place = (ranks - 1).where(real, 0)
        spread = self.spread[: len(ranks) + 1]
        spread[:-1].scatter_add_(1, place, torch.where(real, found / ranks.double(), 0.0))
        sums = spread.sum(dim=1)[:-1]
        spread[:-1].scatter_(1, place, 0.0)
        return sums / count
