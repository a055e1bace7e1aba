"""Neighbourhoods by k-reciprocal neighbours (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal
Encoding", CVPR 2017) and how much two of them overlap: what re-ranking and clustering have in common.

An image keeps only its nearest neighbours and its few weights (compressed rows); whatever has a column for every image
lives for a chunk of rows at a time. All is computed in the features' own precision. On a CPU, scipy and numpy handle
compressed rows, several times faster than tensors, and to the same bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

PAIRS_AT_ONCE = 2**24  # elements of the largest temporary tensor (float64: 128 MB); about five exist at a time
SUMMANDS_AT_ONCE = 2**20  # that a thread adds up: 30 MB


class SparseRows(NamedTuple):
    """A matrix in compressed rows: row i holds the entries `starts[i]` to `starts[i + 1]`, by ascending column."""

    starts: Tensor  # int64 [rows + 1]
    columns: Tensor  # int64 [entries]
    values: Tensor  # float [entries]

    def matrix(self, columns: int) -> csr_matrix:
        """The same in scipy, on the CPU, of so many columns."""
        from scipy.sparse import csr_matrix  # takes a while, which most runs can do without

        parts = self.values.numpy(), self.columns.numpy(), self.starts.numpy()
        return csr_matrix(parts, shape=(len(self.starts) - 1, columns))

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All entries of `rows` [R], one row after the other: their position in `rows`, their index. -> int64 [E]"""
        first = self.starts[rows]
        counts = self.starts[rows + 1] - first
        position = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
        skipped = counts.cumsum(0) - counts
        return position, torch.arange(len(position), device=rows.device) + (first - skipped)[position]


def chunks(total: int, per_row: int) -> Iterator[slice]:
    """Slices of `total` rows, so that a tensor with `per_row` elements in each row keeps to PAIRS_AT_ONCE."""
    size = max(1, PAIRS_AT_ONCE // per_row)
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


class Distances:
    """Squared distances of images to all; copies are at distance 0, and as far as each other from the others.

    Args:
        features: [N, D].
        centre: [D], their mean or median, which is taken off: |a|² + |b|² - 2ab loses digits to a common offset.
    """

    def __init__(self, features: Tensor, centre: Tensor):
        self.given, self.centre = features, centre
        self.features = features - centre
        self.lengths = self.features.square().sum(dim=1)
        self.images = torch.arange(len(features), device=features.device)
        # The product rounds differently from one column to the next: only if copies share a column are they ties.
        self.copy_of = _first_copies(features)
        self.copied = bool((self.copy_of != self.images).any())

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Chunks of images and their distances to all, [R, N]."""
        for rows in chunks(len(self.features), len(self.features)):
            block = torch.addmm(self.lengths, self.features[rows], self.features.T, alpha=-2)
            yield rows, self._finished(block.add_(self.lengths[rows, None]), self.copy_of[rows])

    def halves(self) -> Iterator[tuple[slice, Tensor]]:
        """Chunks of images and their distances to those from the chunk's first on, [R, N - start]; without copies."""
        for rows in chunks(len(self.features), len(self.features)):
            others = slice(rows.start, None)
            block = torch.addmm(self.lengths[others], self.features[rows], self.features[others].T, alpha=-2)
            yield rows, block.add_(self.lengths[rows, None]).clamp_(min=0)

    def in_double(self, rows: Tensor) -> Tensor:
        """The same of some images, computed in float64. -> [R, N]"""
        own = self.given[rows].double() - self.centre
        block = own.new_empty(len(rows), len(self.features))
        for columns in chunks(len(self.features), self.features.shape[1]):
            others = self.given[columns].double() - self.centre
            torch.addmm(others.square().sum(dim=1), own, others.T, alpha=-2, out=block[:, columns])
        return self._finished(block.add_(own.square().sum(dim=1, keepdim=True)), self.copy_of[rows])

    def of_candidates(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Distances of the images `rows` [R] to those in `columns` [R, C], computed in float64. -> [R, C]"""
        pairs = rows.repeat_interleave(columns.shape[1]), columns.flatten()
        return _pair_distances(self.given, *pairs, torch.float64).view_as(columns)

    def _finished(self, block: Tensor, copies: Tensor) -> Tensor:
        block.clamp_(min=0)[self.images[: len(block)], copies] = 0
        return block[:, self.copy_of] if self.copied else block

    def error(self) -> Tensor:
        """What rounding adds to or takes from a distance at the most, for each image. -> [N]

        Sums of D products are off by less than 6 · sqrt(D) units with overwhelming probability (Higham and Mary, 2019).
        """
        unit = torch.finfo(self.features.dtype).eps / 2
        return (6 * self.features.shape[1] ** 0.5 + 4) * unit * (self.lengths + self.lengths.max())


def nearest_of_all(known: Distances, count: int) -> Tensor:
    """The `count` nearest of all images to each, itself first. -> int64 [N, count]

    Where multiplying is what takes time, on a CPU, each pair is multiplied once.
    """
    total = len(known.features)
    if known.copied or known.features.device.type != "cpu":
        return torch.cat([nearest_images(block, known.images[rows], count) for rows, block in known.chunks()])
    values, columns = known.features.new_full((total, count), torch.inf), known.images.new_zeros(total, count)
    for rows, block in known.halves():
        block.diagonal().fill_(-torch.inf)
        later = slice(rows.stop, total)
        for mine, distances in ((rows, block), (later, block[:, rows.stop - rows.start :].T.contiguous())):
            found = nearest(distances, min(count, distances.shape[1]))
            # Images that were found before are earlier ones: equally near, they stay in front.
            candidates = torch.cat([values[mine], distances.gather(1, found)], dim=1)
            values[mine], order = (part[:, :count] for part in candidates.sort(dim=1, stable=True))
            columns[mine] = torch.cat([columns[mine], found + rows.start], dim=1).gather(1, order)
    return columns


def nearest_images(block: Tensor, images: Tensor, count: int) -> Tensor:
    """The `count` nearest of all images to each of `images` [R], itself first. -> int64 [R, count]

    Args:
        block: their distances [R, N]; those to themselves are overwritten.
    """
    block.scatter_(1, images[:, None], -torch.inf)
    return nearest(block, count)


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


def expanded_weights(features: Tensor, scale: Tensor, nearest: Tensor, k1: int) -> SparseRows:
    """An image's weights exp(-distance), of sum 1, on its expanded k-reciprocal set (eq. 4 and 7). -> [N, N]

    Args:
        features: [N, D].
        scale: [N], what to divide an image's squared distances by.
        nearest: int64 [N, K], the neighbours that may be reciprocal, the image itself first.
        k1: of which half, and the image itself, are the sets that a neighbour may bring along.
    """
    total = len(features)
    half = round(k1 / 2) + 1  # halves go to the even number, as in the published form
    sets = nearest[:, :half]
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
        value = torch.exp(-_pair_distances(features, image, column) / scale[image])
        counts.append(position.bincount(minlength=len(candidates)))
        sums = torch.segment_reduce(value, "sum", lengths=counts[-1])
        columns.append(column)
        values.append(value / sums[position])
    return _compressed(counts, columns, values)


def mean_of_rows(weights: SparseRows, neighbours: Tensor) -> SparseRows:
    """Local query expansion (eq. 11): row i becomes the mean of the rows `neighbours[i]`, int64 [N, k2]. -> [N, N]"""
    return (_means_on_cpu if neighbours.device.type == "cpu" else _means)(weights, neighbours)


def _means_on_cpu(weights: SparseRows, neighbours: Tensor) -> SparseRows:
    total, k2 = neighbours.shape
    chosen = SparseRows(torch.arange(0, total * k2 + 1, k2), neighbours.flatten(), weights.values.new_ones(total * k2))
    sums = chosen.matrix(total) @ weights.matrix(total)
    sums.sort_indices()
    starts, columns = (torch.from_numpy(part.astype(np.int64)) for part in (sums.indptr, sums.indices))
    return SparseRows(starts, columns, torch.from_numpy(sums.data / k2))


def _means(weights: SparseRows, neighbours: Tensor) -> SparseRows:
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


def jaccard_distances(weights: SparseRows, num_queries: int, gallery: int) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of the first `num_queries` images, and Jaccard distances to those from `gallery` on (eq. 10), [R, G]."""
    for rows, minima in sums_of_minima(weights, num_queries, gallery):
        yield rows, jaccard(minima)


def jaccard(minima: Tensor) -> Tensor:
    """Sums of minima of rows of sum 1 -> Jaccard distances, in place: the sum of maxima is 2 less that of minima."""
    return minima.div_(2 - minima).neg_().add_(1)


def sums_of_minima(weights: SparseRows, num_queries: int, gallery: int) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of the first `num_queries` images and their sums of minima with those from `gallery` on, [R, G].

    For each image in a query's row, only those of the gallery are visited that have it in theirs. Summands are added by
    ascending image, so that two images are as far from each other one way as the other, to the last bit.
    """
    num_gallery = len(weights.starts) - 1 - gallery
    holders = _transposed(weights, gallery)
    sums = _minima_on_cpu if weights.values.device.type == "cpu" else _minima
    for rows in chunks(num_queries, num_gallery):
        yield rows, sums(weights, holders, rows, num_gallery)


def _minima(weights: SparseRows, holders: SparseRows, rows: slice, num_gallery: int) -> Tensor:
    """Sums of minima of the images `rows` and the gallery, [R, G]."""
    starts = weights.starts
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
    return minima


def _minima_on_cpu(weights: SparseRows, holders: SparseRows, rows: slice, num_gallery: int) -> Tensor:
    """The same, some images at a time in each thread, and of these all entries at once, by ascending column."""
    matrix = holders.matrix(num_gallery)
    work = holders.starts.diff()[weights.columns[weights.starts[rows.start] : weights.starts[rows.stop]].long()]
    size = max(1, SUMMANDS_AT_ONCE * (rows.stop - rows.start) // max(1, int(work.sum())))
    minima = weights.values.new_zeros(rows.stop - rows.start, num_gallery)

    def some(start: int) -> None:
        stop = min(start + size, rows.stop)
        first, last = int(weights.starts[start]), int(weights.starts[stop])
        held = matrix[weights.columns[first:last].numpy()]
        counts = held.indptr[1:] - held.indptr[:-1]
        owner = np.repeat(np.arange(stop - start), weights.starts[start : stop + 1].diff().numpy())
        summands = np.minimum(held.data, np.repeat(weights.values[first:last].numpy(), counts))
        places = torch.from_numpy(np.repeat(owner * num_gallery, counts) + held.indices)
        minima[start - rows.start : stop - rows.start].view(-1).index_add_(0, places, torch.from_numpy(summands))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(some, range(rows.start, rows.stop, size)))
    return minima


def _first_copies(features: Tensor) -> Tensor:
    """For each image the first one with exactly its features, mostly itself. -> int64 [N]"""
    images = torch.arange(len(features), device=features.device)
    groups = features.unique(dim=0, return_inverse=True)[1]
    return images.scatter_reduce(0, groups, images, "amin", include_self=False)[groups]


def _reciprocal(neighbours: Tensor) -> Tensor:
    """Which of an image's neighbours [N, K] have it among theirs. -> bool [N, K]"""
    total, count = neighbours.shape
    images = torch.arange(total, device=neighbours.device)
    parts = [
        (neighbours[neighbours[rows]] == images[rows, None, None]).any(dim=2) for rows in chunks(total, count * count)
    ]
    return torch.cat(parts)


def _pair_distances(features: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Squared distances of the pairs of images `left` and `right`, int64 [P] each. -> [P]

    Args:
        dtype: to compute in; None for that of the features.
    """
    distances = features.new_empty(len(left), dtype=dtype)
    for pairs in chunks(len(left), 128 * features.shape[1]):  # pieces of 1 MB in float64 stay in a core's cache
        one, other = (features.index_select(0, images[pairs]).to(distances.dtype) for images in (left, right))
        difference = one.sub_(other)
        distances[pairs] = difference.square_().sum(dim=1)
    return distances


def _compressed(counts: list[Tensor], columns: list[Tensor], values: list[Tensor]) -> SparseRows:
    """Compressed rows from chunks of them: entries in each row, and the entries' columns and values."""
    ends = torch.cat(counts).cumsum(0)
    return SparseRows(torch.cat([ends.new_zeros(1), ends]), torch.cat(columns), torch.cat(values))


def _transposed(weights: SparseRows, first: int) -> SparseRows:
    """The rows from `first` on, transposed: an inverted index. -> [N, N - first]"""
    total = len(weights.starts) - 1
    begin = weights.starts[first]
    counts = weights.starts.diff()[first:]
    images = torch.arange(total - first, device=counts.device).repeat_interleave(counts)
    columns, order = weights.columns[begin:].sort(stable=True)
    ends = torch.bincount(columns, minlength=total).cumsum(0)
    return SparseRows(torch.cat([ends.new_zeros(1), ends]), images[order], weights.values[begin:][order])
