"""Re-ranking with k-reciprocal neighbours (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal
Encoding", CVPR 2017), exactly and in memory that grows with the result only.

Queries and gallery together are N images. Distances are squared Euclidean ones, divided by the image's largest. The
published form holds several dense [N, N] matrices, and its weights in half precision. Here all of it is sparse
(`utils/k_reciprocal.py`). Distances have the features' precision, float32 or more; where they leave open who is among
the neighbours, they are computed again in float64. So the neighbours are those of a dense float64 form.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from utils.errors import DataError
from utils.k_reciprocal import (
    CACHED,
    PAIRS_AT_ONCE,
    Distances,
    NearestSoFar,
    chunks,
    expanded_weights,
    in_units,
    jaccard,
    mean_of_rows,
    nearest,
    nearest_images,
    sums_of_minima,
)
from utils.metrics import check_finite

SPARE = 16  # images that are found beyond the nearest, in case rounding has put some in the wrong order
SAMPLE = 256  # images, whose nearest among all tell how fast the device is
EACH = 25_000  # what an image takes besides its distances to all, in distances
TIMES = 0.9  # what a distance takes, since each pair is multiplied once
MIDDLE = 1000  # images, the median of which is about that of all
ENTRIES = 250  # weights of an image, about


class Cost(NamedTuple):
    """What it takes, roughly."""

    memory: float  # bytes, besides the features
    seconds: float


@torch.no_grad()
def expected_cost(query: Tensor, gallery: Tensor) -> Cost:
    """What `rerank` of features [Q, D] and [G, D] will take, by doing a little of it."""
    total, few = len(query) + len(gallery), gallery[:SAMPLE].float()

    def seconds() -> float:
        began = time.perf_counter()
        for images in (query, gallery):
            found = (few @ images.T.to(few.dtype)).topk(min(4 * SPARE, len(images)))
            found.values.sum().item()  # which waits for the device
        return time.perf_counter() - began

    weights = 3 * 12 * ENTRIES * total  # averaged, transposed and what sorts them
    memory = 4 * len(query) * len(gallery) + 8 * total * query.shape[1] + weights + 3 * 4 * min(PAIRS_AT_ONCE, total**2)
    return Cost(memory, TIMES * (total + EACH) / max(1, len(few)) * min(seconds(), seconds()))


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
        Distances in [0, 1], float32 [Q, G] on the features' device, less than 1e-6 from those of a dense float64 form.
        The result is much the largest tensor here.

    Raises:
        DataError: there is nothing to rank, or features are not finite.
    """
    if not len(query) or not len(gallery):
        raise DataError(f"nothing to rank: {len(query)} queries, {len(gallery)} gallery images")
    check_finite(query, gallery)
    num_queries = len(query)
    features = torch.cat([query, gallery])
    features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    features = features.ldexp(-features.abs().max().frexp().exponent)  # no unit is too small or too large
    low, high = features.aminmax(dim=0)  # nor are differences beside a common offset; 2^127 and more is too large
    features = features.ldexp(-(high - low).max().frexp().exponent.clamp(min=-126))
    result = query.new_empty(num_queries, len(gallery), dtype=torch.float32)
    neighbours, farthest = _neighbours(features, (k2, round(k1 / 2) + 1, k1 + 1), result)
    result *= (lambda_value / farthest[:num_queries, None]).float()
    weights = expanded_weights(features, farthest, neighbours[:, : k1 + 1], k1)
    del features
    if k2 > 1:
        weights = mean_of_rows(weights, neighbours[:, :k2])
    whole, sums = in_units(weights)
    for rows, minima in sums_of_minima(whole, num_queries, num_queries):
        for some in chunks(len(minima), CACHED * len(gallery)):
            distances = jaccard(minima[some], sums[rows][some, None], sums[num_queries:])
            result[rows][some].add_(distances, alpha=1 - lambda_value)
    return result


def _neighbours(features: Tensor, sizes: tuple[int, ...], distances: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest images of each, itself first -> int64 [N, largest size]; its largest distance -> float64 [N].

    Args:
        features: [N, D].
        sizes: how many of the nearest are ever looked at together: those sets are exact, not the order within.
        distances: [Q, G], receives the queries' squared distances to the gallery.
    """
    total, num_queries = len(features), len(distances)
    # Distances do not feel a shift. The median is one of the values, so the subtraction is exact wherever the features
    # lie on a grid, and equal distances stay equal. That of some images will do.
    known = Distances(features, features[:: max(1, total // MIDDLE)].median(dim=0).values)
    met = NearestSoFar(known, max(sizes) + SPARE)
    largest, farthest = features.new_full((total,), -1), known.images.clone()
    for rows, columns, block in known.blocks():
        if rows.start < num_queries < columns.stop:
            images = slice(max(columns.start, num_queries), columns.stop)
            ours = block[: num_queries - rows.start, images.start - columns.start :]
            distances[rows, images.start - num_queries : images.stop - num_queries] = ours
        longest = block.amax(dim=1)
        more = (longest > largest[rows]).nonzero()[:, 0]
        largest[more + rows.start] = longest[more]
        farthest[more + rows.start] = block[more].argmax(dim=1) + columns.start
        met.meet(rows, columns, block)
    scale = known.of_candidates(known.images, farthest[:, None])[:, 0]
    scale[scale == 0] = 1  # all images are the same
    return _settled(known, met, sizes), scale


def _settled(known: Distances, met: NearestSoFar, sizes: tuple[int, ...]) -> Tensor:
    """The nearest images of each, among those that were met where rounding cannot have changed the sets."""
    total = len(met.columns)
    count = min(max(sizes), total)
    edges = torch.tensor([size for size in sizes if size < total], dtype=torch.int64, device=met.columns.device)
    neighbours = met.columns[:, :count].clone()
    doubt = 2 * known.error()[:, None]
    close = (met.values[:, edges] - met.values[:, edges - 1] <= doubt).any(dim=1)
    # No image but those found can be among the nearest, unless the last of them, too, is close.
    among = close & (met.values[:, -1:] - met.values[:, count - 1 : count] > doubt).squeeze(1)
    candidates = met.columns[among].sort(dim=1).values
    exact = known.of_candidates(known.images[among], candidates)
    exact[candidates == known.images[among, None]] = -torch.inf
    neighbours[among] = candidates.gather(1, nearest(exact, count))
    rest = known.images[close & ~among]
    for some in rest.split(max(1, PAIRS_AT_ONCE // total)) if len(rest) else ():
        neighbours[some] = nearest_images(known.in_double(some), some, count)
    return neighbours
