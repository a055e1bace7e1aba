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
    PAIRS_AT_ONCE,
    Distances,
    expanded_weights,
    jaccard_distances,
    mean_of_rows,
    nearest,
    nearest_images,
)
from utils.metrics import check_finite

SPARE = 16  # images that are found beyond the nearest, in case rounding has put some in the wrong order
SAMPLE = 64  # images, the product of which with all tells how fast the device is
TIMES = 2.5  # what all takes, in such products of all images
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
            (few @ images.T.to(few.dtype)).amax().item()  # which waits for the device
        return time.perf_counter() - began

    weights = 3 * 12 * ENTRIES * total  # averaged, transposed and what sorts them
    memory = 4 * len(query) * len(gallery) + 8 * total * query.shape[1] + weights + 6 * 4 * min(PAIRS_AT_ONCE, total**2)
    return Cost(memory, TIMES * total / max(1, len(few)) * min(seconds(), seconds()))


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
    result = query.new_empty(num_queries, len(gallery), dtype=torch.float32)
    neighbours, farthest = _neighbours(features, (k2, round(k1 / 2) + 1, k1 + 1), result)
    result *= lambda_value
    weights = expanded_weights(features, farthest, neighbours[:, : k1 + 1], k1)
    del features
    if k2 > 1:
        weights = mean_of_rows(weights, neighbours[:, :k2])
    for rows, jaccard in jaccard_distances(weights, num_queries, num_queries):
        result[rows] += jaccard.mul_(1 - lambda_value)
    return result


def _neighbours(features: Tensor, sizes: tuple[int, ...], distances: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest images of each, itself first -> int64 [N, largest size]; its largest distance -> float64 [N].

    Args:
        features: [N, D].
        sizes: how many of the nearest are ever looked at together: those sets are exact, not the order within.
        distances: [Q, G], receives the queries' normalised distances to the gallery.
    """
    total, num_queries = len(features), len(distances)
    count = min(max(sizes), total)
    edges = torch.tensor([size for size in sizes if size < total], dtype=torch.int64, device=features.device)
    neighbours = torch.empty(total, count, dtype=torch.int64, device=features.device)
    farthest = features.new_empty(total, dtype=torch.float64)
    # Distances do not feel a shift. The median is one of the values, so the subtraction is exact wherever the features
    # lie on a grid, and equal distances stay equal.
    known = Distances(features, features.median(dim=0).values)
    error, open_ = known.error(), []
    for rows, block in known.chunks():
        images = known.images[rows]
        last = block.argmax(dim=1)
        largest = (features[rows].double() - features[last].double()).square().sum(dim=1)
        farthest[rows] = torch.where(largest > 0, largest, 1)  # 0: all images are the same
        if rows.start < num_queries:
            queries = slice(rows.start, min(rows.stop, num_queries))
            ours = slice(0, queries.stop - queries.start)
            distances[queries] = (block[ours, num_queries:] / farthest[queries, None]).float()
        found = nearest_images(block, images, min(count + SPARE, total))
        neighbours[rows] = found[:, :count]
        values, doubt = block.gather(1, found), 2 * error[rows, None]
        close = (values[:, edges] - values[:, edges - 1] <= doubt).any(dim=1)
        # No image but those found can be among the nearest, unless the last of them, too, is close.
        among = close & (values[:, -1:] - values[:, count - 1 : count] > doubt).squeeze(1)
        open_.append(images[close & ~among])
        candidates = found[among].sort(dim=1).values
        exact = known.of_candidates(images[among], candidates)
        exact[candidates == images[among, None]] = -torch.inf
        neighbours[images[among]] = candidates.gather(1, nearest(exact, count))
    for some in torch.cat(open_).split(max(1, PAIRS_AT_ONCE // total)):
        neighbours[some] = nearest_images(known.in_double(some), some, count)
    return neighbours, farthest
