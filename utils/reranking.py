"""Re-ranking with k-reciprocal neighbours (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal
Encoding", CVPR 2017), exactly and in memory that grows with the result only.

Queries and gallery together are N images. Distances are squared Euclidean ones, divided by the image's largest. The
published form holds several dense [N, N] matrices, and its weights in half precision. Here distances live for a chunk
of rows at a time, an image keeps only its nearest neighbours and its few weights (compressed rows), and all of it is
float64: the values are those of a dense float64 form.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from utils.errors import DataError
from utils.metrics import check_finite

PAIRS_AT_ONCE = 2**24  # elements of the largest temporary tensor (float64: 128 MB); about five exist at a time


class SparseRows(NamedTuple):
    """A matrix in compressed rows: row i holds the entries `starts[i]` to `starts[i + 1]`, by ascending column."""

    starts: Tensor  # int64 [rows + 1]
    columns: Tensor  # int64 [entries]
    values: Tensor  # float64 [entries]

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All entries of `rows` [R], one row after the other: their position in `rows`, their index. -> int64 [E]"""
        first = self.starts[rows]
        counts = self.starts[rows + 1] - first
        position = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
        skipped = counts.cumsum(0) - counts
        return position, torch.arange(len(position), device=rows.device) + (first - skipped)[position]


@torch.no_grad()
def rerank(query: Tensor, gallery: Tensor, k1: int, k2: int, lambda_value: float) -> Tensor:
    """Distances after re-ranking: (1 - lambda) · Jaccard distance + lambda · original distance.

    Equal distances keep the order of the images, queries first. An image is the first of its own neighbours even where
    it has exact copies, which a mere sort could put in front of it. The result is that of the sort unless an image has
    so many copies that they do not all fit among the nearest k2, or the nearest round(k1 / 2) + 1. There the sort may
    push images out of their own neighbourhoods, which can then be empty. Images that are all the same are at distance
    0, where the published form divides 0 by 0.

    Args:
        query, gallery: features [Q, D] and [G, D] on one device that has float64 (MPS has not: move them to the CPU).
            They are compared as they are: normalise them before, or not.
        k1: neighbours, besides the image itself, that may be reciprocal; more than there are images means all of them.
        k2: neighbours, the image itself included, whose weights are averaged; 1 leaves the weights as they are.
        lambda_value: share of the original distance, 0 to 1.

    Returns:
        Distances in [0, 1] as float32 [Q, G] on the features' device. They are computed in float64; rounding adds less
        than 2e-7, and the result is much the largest tensor here.

    Raises:
        DataError: there is nothing to rank, or features are not finite.
    """
    if not len(query) or not len(gallery):
        raise DataError(f"nothing to rank: {len(query)} queries, {len(gallery)} gallery images")
    check_finite(query, gallery)
    num_queries = len(query)
    features = torch.cat([query.double(), gallery.double()])
    # Distances do not feel a shift, but |a|² + |b|² - 2ab loses digits to a common offset. The median is one of the
    # values, so the subtraction is exact wherever the features lie on a grid, and equal distances stay equal.
    features -= features.median(dim=0).values

    result = query.new_empty(num_queries, len(gallery), dtype=torch.float32)
    neighbours, farthest = _neighbours(features, max(k1 + 1, k2), result)
    result *= lambda_value
    weights = _weights(features, farthest, neighbours, k1)
    del features
    if k2 > 1:
        weights = _mean_of_rows(weights, neighbours[:, :k2])
    for rows, jaccard in _jaccard(weights, num_queries):
        result[rows] += (1 - lambda_value) * jaccard
    return result


def chunks(total: int, per_row: int) -> Iterator[slice]:
    """Slices of `total` rows, so that a tensor with `per_row` elements in each row keeps to PAIRS_AT_ONCE."""
    size = max(1, PAIRS_AT_ONCE // per_row)
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _neighbours(features: Tensor, count: int, distances: Tensor) -> tuple[Tensor, Tensor]:
    """The `count` nearest images of each, itself first -> int64 [N, count]; its largest distance -> [N].

    Args:
        features: [N, D], float64.
        count: is cut to N.
        distances: [Q, G], receives the queries' normalised distances to the gallery.
    """
    total, num_queries = len(features), len(distances)
    count = min(count, total)
    lengths = features.square().sum(dim=1)
    images = torch.arange(total, device=features.device)
    # The product rounds differently from one column to the next: only if copies share a column are they ties.
    copy_of = _first_copies(features)
    copied = bool((copy_of != images).any())
    neighbours = images.new_empty(total, count)
    farthest = torch.empty_like(lengths)
    for rows in chunks(total, total):
        block = torch.addmm(lengths, features[rows], features.T, alpha=-2)
        block = block.add_(lengths[rows, None]).clamp_(min=0)
        in_block = images[: len(block)]
        block[in_block, copy_of[rows]] = 0
        if copied:
            block = block[:, copy_of]
        largest = block.amax(dim=1)
        farthest[rows] = torch.where(largest > 0, largest, 1)  # 0: all images are the same
        if rows.start < num_queries:
            queries = slice(rows.start, min(rows.stop, num_queries))
            ours = slice(0, queries.stop - queries.start)
            distances[queries] = (block[ours, num_queries:] / farthest[queries, None]).float()
        block[in_block, images[rows]] = -torch.inf
        neighbours[rows] = nearest(block, count)
    return neighbours, farthest


def _first_copies(features: Tensor) -> Tensor:
    """For each image the first one with exactly its features, mostly itself. -> int64 [N]"""
    images = torch.arange(len(features), device=features.device)
    groups = features.unique(dim=0, return_inverse=True)[1]
    return images.scatter_reduce(0, groups, images, "amin", include_self=False)[groups]


def nearest(distances: Tensor, count: int) -> Tensor:
    """Columns of the `count` smallest of each row [R, N], ascending; equal ones keep order. -> int64 [R, count]"""
    values, columns = distances.topk(min(count + 1, distances.shape[1]), dim=1, largest=False)
    # topk orders ties as it likes, and chooses freely among those for which there is no room.
    crowded = values[:, count - 1] == values[:, -1] if values.shape[1] > count else None
    columns, order = columns[:, :count].sort(dim=1)
    values = values[:, :count].gather(1, order)
    columns = columns.gather(1, values.sort(dim=1, stable=True).indices)
    if crowded is not None and crowded.any():
        columns[crowded] = distances[crowded].sort(dim=1, stable=True).indices[:, :count]
    return columns


def _reciprocal(neighbours: Tensor) -> Tensor:
    """Which of an image's neighbours [N, K] have it among theirs. -> bool [N, K]"""
    total, count = neighbours.shape
    images = torch.arange(total, device=neighbours.device)
    parts = [
        (neighbours[neighbours[rows]] == images[rows, None, None]).any(dim=2) for rows in chunks(total, count * count)
    ]
    return torch.cat(parts)


def _weights(features: Tensor, farthest: Tensor, neighbours: Tensor, k1: int) -> SparseRows:
    """An image's weights exp(-distance), of sum 1, on its expanded k-reciprocal set (eq. 4 and 7). -> [N, N]

    Args:
        features: [N, D]; farthest: [N], what to divide an image's distances by; neighbours: int64 [N, >= k1 + 1].
    """
    total = len(features)
    half = round(k1 / 2) + 1  # halves go to the even number, as in the published form
    nearest, sets = neighbours[:, : k1 + 1], neighbours[:, :half]
    reciprocal, in_set = _reciprocal(nearest), _reciprocal(sets)
    counts, columns, values = [], [], []
    for rows in chunks(total, max(total, nearest.shape[1] * sets.shape[1])):
        candidates, is_candidate = nearest[rows], reciprocal[rows]
        chosen = is_candidate.new_zeros(len(candidates), total).scatter_(1, candidates, is_candidate)
        theirs, is_theirs = sets[candidates], in_set[candidates]  # [R, K, half]
        shared = chosen.gather(1, theirs.flatten(1)).view_as(theirs) & is_theirs
        # More than two thirds of a candidate's set are in the image's own: it joins. In whole numbers, hence exact.
        joins = is_candidate & (3 * shared.sum(dim=2) > 2 * is_theirs.sum(dim=2))
        place = torch.arange(len(candidates), device=theirs.device)[:, None, None] * total + theirs
        chosen.view(-1)[place[is_theirs & joins[:, :, None]]] = True

        position, column = chosen.nonzero(as_tuple=True)
        image = position + rows.start
        value = torch.exp(-_pair_distances(features, image, column) / farthest[image])
        counts.append(chosen.sum(dim=1))
        sums = torch.segment_reduce(value, "sum", lengths=counts[-1])
        columns.append(column)
        values.append(value / sums[position])
    return _compressed(counts, columns, values)


def _pair_distances(features: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Squared distances of the pairs of images `left` and `right`, int64 [P] each. -> [P]"""
    distances = features.new_empty(len(left))
    for pairs in chunks(len(left), 16 * features.shape[1]):  # small pieces stay in the processor's cache
        difference = features.index_select(0, left[pairs]).sub_(features.index_select(0, right[pairs]))
        distances[pairs] = difference.square_().sum(dim=1)
    return distances


def _compressed(counts: list[Tensor], columns: list[Tensor], values: list[Tensor]) -> SparseRows:
    """Compressed rows from chunks of them: entries in each row, and the entries' columns and values."""
    ends = torch.cat(counts).cumsum(0)
    return SparseRows(torch.cat([ends.new_zeros(1), ends]), torch.cat(columns), torch.cat(values))


def _mean_of_rows(weights: SparseRows, neighbours: Tensor) -> SparseRows:
    """Local query expansion (eq. 11): row i becomes the mean of the rows `neighbours[i]`, int64 [N, k2]. -> [N, N]"""
    total, k2 = neighbours.shape
    counts, columns, values = [], [], []
    for rows in chunks(total, k2 * int(weights.starts.diff().max())):
        position, entries = weights.entries(neighbours[rows].flatten())
        place, order = (position // k2 * total + weights.columns[entries]).sort(stable=True)
        place, summands = place.unique_consecutive(return_counts=True)
        counts.append(torch.bincount(place // total, minlength=len(neighbours[rows])))
        columns.append(place % total)
        values.append(torch.segment_reduce(weights.values[entries[order]], "sum", lengths=summands) / k2)
    return _compressed(counts, columns, values)


def _jaccard(weights: SparseRows, num_queries: int) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of queries and their Jaccard distances to the gallery (eq. 10), float64 [R, G].

    Rows have sum 1, so the sum of maxima is 2 - m, where m is the sum of minima. That one visits, for each image in a
    query's row, only those of the gallery that have it in theirs.
    """
    starts = weights.starts
    num_gallery = len(starts) - 1 - num_queries
    holders = _transposed(weights, num_queries)
    for rows in chunks(num_queries, num_gallery):
        first = starts[:-1][rows]
        counts = starts[1:][rows] - first
        minima = weights.values.new_zeros(len(first), num_gallery)
        # One entry of each query after the other: no two summands of a step meet, so a GPU adds in a fixed order, too.
        for nth in range(int(counts.max())):
            queries = (counts > nth).nonzero().flatten()
            own = first[queries] + nth
            position, entries = holders.entries(weights.columns[own])
            summands = torch.minimum(weights.values[own][position], holders.values[entries])
            minima.view(-1).index_add_(0, (queries * num_gallery)[position] + holders.columns[entries], summands)
        yield rows, 1 - minima / (2 - minima)


def _transposed(weights: SparseRows, first: int) -> SparseRows:
    """The rows from `first` on, transposed: an inverted index. -> [N, N - first]"""
    total = len(weights.starts) - 1
    begin = weights.starts[first]
    counts = weights.starts.diff()[first:]
    images = torch.arange(total - first, device=counts.device).repeat_interleave(counts)
    columns, order = weights.columns[begin:].sort(stable=True)
    ends = torch.bincount(columns, minlength=total).cumsum(0)
    return SparseRows(torch.cat([ends.new_zeros(1), ends]), images[order], weights.values[begin:][order])
