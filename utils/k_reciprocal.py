"""Neighbourhoods by k-reciprocal neighbours (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal
Encoding", CVPR 2017) and how much two of them overlap: what re-ranking and clustering have in common.

An image keeps only its nearest neighbours and its few weights (compressed rows); whatever has a column for every image
lives for a chunk of rows at a time. All is computed in the features' own precision. On a CPU, scipy and numpy handle
compressed rows, several times faster than tensors, and to the same bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import isqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

PAIRS_AT_ONCE = 2**24  # elements of the largest temporary tensor (float64: 128 MB); about five exist at a time
UNIT = 2.0**-29  # of weights as whole numbers
CACHED = 128  # PAIRS_AT_ONCE divided by this stay in a core's cache: 1 MB in float64
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

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Images, others and their distances [R, C]: an image meets the others in ascending order, all of them once.

        Where multiplying is what takes time, on a CPU, each pair is multiplied once, in tiles; copies need whole rows.
        """
        total, others = len(self.features), slice(0, len(self.features))
        if self.copied or self.features.device.type != "cpu":
            for rows in chunks(total, total):
                yield rows, others, self._alike(self._product(rows, others), rows)
            return
        tiles = list(chunks(total, 2 * isqrt(PAIRS_AT_ONCE)))
        for number, rows in enumerate(tiles):
            for columns in tiles[number:]:
                block = self._product(rows, columns)
                yield rows, columns, block
                if columns != rows:
                    yield columns, rows, block.T.contiguous()

    def _product(self, rows: slice, columns: slice) -> Tensor:
        block = torch.addmm(self.lengths[columns], self.features[rows], self.features[columns].T, alpha=-2)
        return block.add_(self.lengths[rows, None]).clamp_(min=0)

    def in_double(self, rows: Tensor) -> Tensor:
        """The same of some images, computed in float64. -> [R, N]"""
        own = self.given[rows].double() - self.centre
        block = own.new_empty(len(rows), len(self.features))
        for columns in chunks(len(self.features), self.features.shape[1]):
            others = self.given[columns].double() - self.centre
            torch.addmm(others.square().sum(dim=1), own, others.T, alpha=-2, out=block[:, columns])
        return self._alike(block.add_(own.square().sum(dim=1, keepdim=True)).clamp_(min=0), rows)

    def _alike(self, block: Tensor, rows: Tensor | slice) -> Tensor:
        """Distances of images to all [R, N], those to copies made the same."""
        block[self.images[: len(block)], self.copy_of[rows]] = 0
        return block[:, self.copy_of] if self.copied else block

    def of_candidates(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Distances of the images `rows` [R] to those in `columns` [R, C], computed in float64. -> [R, C]"""
        pairs = rows.repeat_interleave(columns.shape[1]), columns.flatten()
        return _pair_distances(self.given, *pairs, torch.float64).view_as(columns)

    def error(self) -> Tensor:
        """What rounding adds to or takes from a distance at the most, for each image. -> [N]

        Sums of D products are off by less than 6 · sqrt(D) units with overwhelming probability (Higham and Mary, 2019).
        """
        unit = torch.finfo(self.features.dtype).eps / 2
        return (6 * self.features.shape[1] ** 0.5 + 4) * unit * (self.lengths + self.lengths.max())


class NearestSoFar:
    """The nearest of the images that each has met, itself first; of equally near ones the first.

    Args:
        known: the distances.
        count: how many, of all images at the most.
    """

    def __init__(self, known: Distances, count: int):
        total = len(known.features)
        self.count, self.images = min(count, total), known.images
        self.values = known.features.new_full((total, self.count), torch.inf)  # ascending
        self.columns = known.images.new_zeros(total, self.count)

    def meet(self, rows: slice, columns: slice, block: Tensor) -> None:
        """Add a block of `Distances.blocks`; distances of images to themselves are overwritten."""
        if columns.start <= rows.start < columns.stop:
            block[self.images[: len(block)], self.images[rows] - columns.start] = -torch.inf
        if columns.start == 0:  # the first
            found = nearest(block, min(self.count, block.shape[1]))
            self.values[rows, : found.shape[1]] = block.gather(1, found)
            self.columns[rows, : found.shape[1]] = found
            return
        places = torch.from_numpy(np.flatnonzero(block.numpy() < self.values[rows, -1:].numpy()))
        row = places // block.shape[1]
        counts = row.bincount(minlength=len(block))
        nth = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        values = block.new_full((len(block), int(counts.max())), torch.inf)
        found = places.new_zeros(values.shape)
        values[row, nth] = block.view(-1)[places]
        found[row, nth] = places % block.shape[1] + columns.start
        # Equally near images that were met before are earlier ones: they stay in front.
        values, order = torch.cat([self.values[rows], values], dim=1).sort(dim=1, stable=True)
        self.values[rows] = values[:, : self.count]
        self.columns[rows] = torch.cat([self.columns[rows], found], dim=1).gather(1, order[:, : self.count])


def nearest_of_all(known: Distances, count: int) -> Tensor:
    """The `count` nearest of all images to each, itself first. -> int64 [N, count]"""
    found = NearestSoFar(known, count)
    for rows, columns, block in known.blocks():
        found.meet(rows, columns, block)
    return found.columns


def flat_places(chosen: Tensor) -> Tensor:
    """Where a matrix is true, as if its rows were one. -> int64"""
    if chosen.device.type != "cpu":
        return chosen.view(-1).nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(chosen.numpy()))  # several times faster


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
    places = []
    for rows in chunks(total, max(total, nearest.shape[1] * sets.shape[1])):
        candidates, is_candidate = nearest[rows], reciprocal[rows]
        chosen = is_candidate.new_zeros(len(candidates), total).scatter_(1, candidates, is_candidate)
        theirs, is_theirs = sets[candidates], in_set[candidates]  # [R, K, half]
        shared = chosen.gather(1, theirs.flatten(1)).view_as(theirs) & is_theirs
        # More than two thirds of a candidate's set are in the image's own: it joins. In whole numbers, hence exact.
        joins = is_candidate & (3 * shared.sum(dim=2) > 2 * is_theirs.sum(dim=2))
        place = torch.arange(len(candidates), device=theirs.device)[:, None, None] * total + theirs
        chosen.view(-1)[place[is_theirs & joins[:, :, None]]] = True
        places.append(flat_places(chosen) + rows.start * total)
    return _softened(features, scale, torch.cat(places))


def _softened(features: Tensor, scale: Tensor, pairs: Tensor) -> SparseRows:
    """Weights exp(-distance), of sum 1 in a row, of pairs of images: number · N + number, ascending. -> [N, N]"""
    total = len(features)
    row, column = pairs // total, pairs % total
    # Two images are equally far both ways, to the bit: most pairs are there the other way round, too.
    place, known = _lookup(pairs, column * total + row)
    known &= column < row
    distances = features.new_empty(len(pairs))
    distances[~known] = _pair_distances(features, row[~known], column[~known])
    distances[known] = distances[place[known]]
    values = torch.exp(-distances / scale[row])
    counts = row.bincount(minlength=total)
    sums = torch.segment_reduce(values, "sum", lengths=counts)
    return _compressed([counts], [column], [values.div_(sums[row])])


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


def in_units(weights: SparseRows) -> tuple[SparseRows, Tensor]:
    """Weights as whole numbers of UNITs, which add up exactly in any order, and the sums of rows, int32 [N]."""
    whole = weights._replace(values=(weights.values / UNIT).round().int())
    ends = torch.cat([whole.starts.new_zeros(1), whole.values.cumsum(0)])[whole.starts]
    return whole, ends.diff().int()


def jaccard(minima: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Jaccard distances (eq. 10), float64, of two rows' sum of minima and own sums, in UNITs."""
    return 1 - minima.double() / (one + other - minima)


def sums_of_minima(weights: SparseRows, num_queries: int, gallery: int) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of the first `num_queries` images and their sums of minima with those from `gallery` on, int32 [R, G].

    For each image in a query's row, only those of the gallery are visited that have it in theirs.

    Args:
        weights: [N, N], in UNITs.
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
    from scipy.sparse import csr_matrix

    matrix = holders.matrix(num_gallery)
    work = holders.starts.diff()[weights.columns[weights.starts[rows.start] : weights.starts[rows.stop]].long()]
    size = max(1, SUMMANDS_AT_ONCE * (rows.stop - rows.start) // max(1, int(work.sum())))
    minima = weights.values.new_empty(rows.stop - rows.start, num_gallery)

    def some(start: int) -> None:
        stop = min(start + size, rows.stop)
        starts = weights.starts[start : stop + 1]
        own = slice(int(starts[0]), int(starts[-1]))
        held = matrix[weights.columns[own].numpy()]
        counts = held.indptr[1:] - held.indptr[:-1]
        summands = np.minimum(held.data, np.repeat(weights.values[own].numpy(), counts))
        sums = minima[start - rows.start : stop - rows.start].numpy()
        entries = summands, held.indices, held.indptr[(starts - starts[0]).numpy()]
        csr_matrix(entries, shape=sums.shape).toarray(out=sums)  # adds those of the same column

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
    total = len(neighbours)
    images = torch.arange(total, device=neighbours.device)[:, None]
    return _lookup((images * total + neighbours).flatten().sort().values, neighbours * total + images)[1]


def _lookup(keys: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where `wanted` are among `keys`, which ascend, and whether they are."""
    place = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    return place, keys[place] == wanted


def _pair_distances(features: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Squared distances of the pairs of images `left` and `right`, int64 [P] each. -> [P]

    Args:
        dtype: to compute in; None for that of the features.
    """
    distances = features.new_empty(len(left), dtype=dtype)
    for pairs in chunks(len(left), CACHED * features.shape[1]):
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
