"""Pseudo-labels for training images: DBSCAN on the Jaccard distances of k-reciprocal neighbourhoods.

The textbook way computes all distances, densely, as re-ranking's does, and hands them to scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn.cluster import DBSCAN
from torch import Tensor

from tools.benchmark.data import labelled_features
from tools.benchmark.measure import Case, Setting, Way
from tools.benchmark.reranking import dense_jaccard, dense_weights, means, nearest_images, squared_distances
from utils.clustering import cluster, near_pairs

IMAGES, WIDTH, IDENTITIES = 12936, 768, 751  # Market-1501's training images
K1, K2, EPS, CORE = 30, 6, 0.6, 4  # as CLUSTER.K1, K2, EPS and MIN_SAMPLES


def cases(setting: Setting) -> Iterator[Case]:
    """The size of Market-1501's training images."""
    count = setting.of(IMAGES)
    features, _ = labelled_features(count, WIDTH, setting.of(IDENTITIES), 1, setting.device)
    yield Case(f"the size of Market-1501's training images, {count} × {WIDTH}", ways(features))


def ways(features: Tensor) -> tuple[Way, ...]:
    """Both of them."""
    array = features.cpu().numpy()
    return (
        Way("textbook, dense", lambda: textbook(array, EPS, CORE, K1, K2)),
        Way("ours", lambda: cluster(near_pairs(features, EPS, K1, K2), EPS, CORE)),
    )


def textbook(features: np.ndarray, eps: float, core: int, k1: int, k2: int) -> np.ndarray:
    """Features [N, D] of length 1 -> the cluster of each image [N]; no two images are equally far from a third."""
    distances = squared_distances(features)
    nearest = nearest_images(distances, max(k1, k2))
    weights = means(dense_weights(distances, nearest[:, :k1], k1), nearest[:, :k2])
    jaccard = dense_jaccard(weights, len(features)).clip(min=0)
    return DBSCAN(eps=eps, min_samples=core, metric="precomputed").fit(jaccard).labels_
