"""Re-ranking with k-reciprocal neighbours, from features to distances.

The textbook way is the published one: dense matrices of all images, in numpy, and loops over the images. It sorts all
images for each; a second one is kinder, and only looks for as many as there are neighbours. Both find the sets of an
image once, not for each that has it among its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from tools.benchmark.data import labelled_features
from tools.benchmark.measure import Case, Setting, Way
from utils.reranking import rerank

QUERIES, GALLERY, WIDTH, IDENTITIES = 3368, 15913, 1280, 751  # Market-1501
K1, K2, LAMBDA = 50, 15, 0.3  # as TEST.RE_RANKING_K1, ..._K2 and ..._LAMBDA


def cases(setting: Setting) -> Iterator[Case]:
    """Market-1501's size."""
    counts = setting.of(QUERIES), setting.of(GALLERY)
    features, _ = labelled_features(sum(counts), WIDTH, setting.of(IDENTITIES), 1, setting.device)
    yield Case(f"Market-1501's size, {counts[0]} + {counts[1]} × {WIDTH}", ways(*features.split(counts)))


def ways(query: Tensor, gallery: Tensor) -> tuple[Way, ...]:
    """All of them."""
    arrays = query.cpu().numpy(), gallery.cpu().numpy()
    return (
        Way("textbook, dense", lambda: textbook(*arrays, K1, K2, LAMBDA, in_full)),
        Way("textbook, dense, no sort", lambda: textbook(*arrays, K1, K2, LAMBDA, nearest_images)),
        Way("ours", lambda: rerank(query, gallery, K1, K2, LAMBDA)),
    )


def textbook(
    query: np.ndarray,
    gallery: np.ndarray,
    k1: int,
    k2: int,
    lambda_value: float,
    neighbours: Callable[[np.ndarray, int], np.ndarray],
) -> np.ndarray:
    """Features [Q, D] and [G, D] -> distances [Q, G]; no two images are equally far from a third."""
    distances = squared_distances(np.concatenate([query, gallery]))
    distances /= distances.max(1, keepdims=True)
    nearest = neighbours(distances, max(k1 + 1, k2))
    weights = dense_weights(distances, nearest[:, : k1 + 1], nearest[:, :k2], k1)
    jaccard = dense_jaccard(weights, len(query))[:, len(query) :]
    return (1 - lambda_value) * jaccard + lambda_value * distances[: len(query), len(query) :]


def squared_distances(features: np.ndarray) -> np.ndarray:
    """Of all images [N, D] to each other, [N, N]."""
    lengths = (features**2).sum(1)
    distances = features @ features.T
    distances *= -2
    distances += lengths
    distances += lengths[:, None]
    np.fill_diagonal(distances, 0)
    return distances


def in_full(distances: np.ndarray, count: int) -> np.ndarray:
    """The same as `nearest_images`, by a sort of all."""
    return distances.argsort(1)[:, :count]


def nearest_images(distances: np.ndarray, count: int) -> np.ndarray:
    """The `count` nearest of each image [N, N], nearest first."""
    count = min(count, len(distances))
    found = np.argpartition(distances, count - 1, axis=1)[:, :count]
    order = np.take_along_axis(distances, found, 1).argsort(1)
    return np.take_along_axis(found, order, 1)


def dense_weights(distances: np.ndarray, nearest: np.ndarray, averaged: np.ndarray, k1: int) -> np.ndarray:
    """Weights on expanded k-reciprocal sets, averaged over the images `averaged` [N, k2] of each. -> [N, N]

    Args:
        nearest: [N, K], the image itself first.
        k1: of which half are the sets that a neighbour may bring along.
    """
    half = nearest[:, : round(k1 / 2) + 1]
    wide, narrow = ([row[(near[row] == i).any(1)] for i, row in enumerate(near)] for near in (nearest, half))
    weights = np.zeros_like(distances)
    for image, core in enumerate(wide):
        sets = [narrow[other] for other in core]
        joining = [some for some in sets if len(np.intersect1d(some, core, assume_unique=True)) > 2 / 3 * len(some)]
        members = np.unique(np.concatenate([core, *joining]))
        own = np.exp(-distances[image, members])
        weights[image, members] = own / own.sum()
    return np.stack([weights[some].mean(0) for some in averaged]) if averaged.shape[1] > 1 else weights


def dense_jaccard(weights: np.ndarray, rows: int) -> np.ndarray:
    """Jaccard distances of the first `rows` images to all, from weights [N, N]."""
    holders = [column.nonzero()[0] for column in weights.T]
    found = np.empty_like(weights[:rows])
    for own, result in zip(weights, found, strict=False):
        shared = np.zeros_like(own)
        for column in own.nonzero()[0]:
            some = holders[column]
            shared[some] += np.minimum(own[column], weights[some, column])
        result[:] = 1 - shared / (2 - shared)
    return found
