"""Re-ranking with k-reciprocal neighbours, from features to distances.

The published way works on dense matrices of all images, in numpy: it sorts all images for each, and goes from image to
image. The textbook way is kinder: it only looks for as many images as there are neighbours, and finds the sets of an
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
        Way("published, dense", lambda: dense(*arrays, K1, K2, LAMBDA, published_weights)),
        Way("textbook, dense", lambda: dense(*arrays, K1, K2, LAMBDA, textbook_weights)),
        Way("ours", lambda: rerank(query, gallery, K1, K2, LAMBDA)),
    )


def dense(
    query: np.ndarray,
    gallery: np.ndarray,
    k1: int,
    k2: int,
    lambda_value: float,
    weigh: Callable[[np.ndarray, int, int], np.ndarray],
) -> np.ndarray:
    """Features [Q, D] and [G, D] -> distances [Q, G]; no two images are equally far from a third."""
    distances = squared_distances(np.concatenate([query, gallery]))
    distances /= distances.max(1, keepdims=True)
    weights = weigh(distances, k1, k2)
    jaccard = dense_jaccard(weights, len(query))[:, len(query) :]
    return (1 - lambda_value) * jaccard + lambda_value * distances[: len(query), len(query) :]


def published_weights(distances: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """Weights on expanded k-reciprocal sets, averaged over the k2 nearest images. -> [N, N]"""
    order = distances.argsort(1).astype(np.int32)

    def reciprocal(image: int, count: int) -> np.ndarray:
        near = order[image, :count]
        return near[(order[near, :count] == image).any(1)]

    weights = np.zeros_like(distances)
    for image in range(len(distances)):
        core = members = reciprocal(image, k1 + 1)
        for other in core:
            some = reciprocal(other, round(k1 / 2) + 1)
            if len(np.intersect1d(some, core)) > 2 / 3 * len(some):
                members = np.append(members, some)
        members = np.unique(members)
        own = np.exp(-distances[image, members])
        weights[image, members] = own / own.sum()
    return means(weights, order[:, :k2])


def textbook_weights(distances: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """The same. -> [N, N]"""
    nearest = nearest_images(distances, max(k1 + 1, k2))
    return means(dense_weights(distances, nearest[:, : k1 + 1], k1), nearest[:, :k2])


def squared_distances(features: np.ndarray) -> np.ndarray:
    """Of all images [N, D] to each other, [N, N]."""
    lengths = (features**2).sum(1)
    distances = features @ features.T
    distances *= -2
    distances += lengths
    distances += lengths[:, None]
    np.fill_diagonal(distances, 0)
    return distances


def nearest_images(distances: np.ndarray, count: int) -> np.ndarray:
    """The `count` nearest of each image [N, N], nearest first."""
    count = min(count, len(distances))
    found = np.argpartition(distances, count - 1, axis=1)[:, :count]
    order = np.take_along_axis(distances, found, 1).argsort(1)
    return np.take_along_axis(found, order, 1)


def dense_weights(distances: np.ndarray, nearest: np.ndarray, k1: int) -> np.ndarray:
    """Weights on expanded k-reciprocal sets. -> [N, N]

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
    return weights


def means(weights: np.ndarray, averaged: np.ndarray) -> np.ndarray:
    """For each image the mean of the rows `averaged` [N, k2]. -> [N, N]"""
    found = np.empty_like(weights)
    for own, some in zip(found, averaged, strict=True):
        own[:] = weights[some].mean(0)
    return found


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
