"""Pseudo-labels for images without labels: DBSCAN on the Jaccard distances of their k-reciprocal neighbourhoods.

Of all pairs of images only those that DBSCAN may join are kept, as a sparse matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from utils.errors import DataError
from utils.k_reciprocal import (
    UNIT,
    Distances,
    expanded_weights,
    flat_places,
    in_units,
    jaccard,
    mean_of_rows,
    nearest_of_all,
    sums_of_minima,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

NEARLY_0 = 1e-7  # a sparse matrix takes an entry of 0 for one that is missing


@torch.no_grad()
def near_pairs(features: Tensor, eps: float, k1: int = 30, k2: int = 6) -> csr_matrix:
    """Pairs of images at a Jaccard distance of at most eps, in both orders, each image with itself among them.

    The distance is that of re-ranking (Zhong et al., 2017, eq. 10), of squared Euclidean distances as they are, in
    place of shares of the largest. Equal distances keep the order of the images, an image comes before its copies.

    Args:
        features: [N, D] of length 1, N from 1 on, compared in their own precision (float32 or more).
        eps: radius of DBSCAN, below 1.
        k1: neighbours that may be reciprocal. The image itself is one of them, as in the published programs that train
            on clusters: they look up k1 neighbours and then take "the first k1 + 1". Sets that are brought along have
            round(k1 / 2) + 1, the image itself included, in those programs as in re-ranking.
        k2: neighbours, the image itself included, whose weights are averaged; 1 leaves the weights as they are.

    Returns:
        Distances [N, N], at least 1e-7, each row by ascending distance.

    Raises:
        DataError: there is no image, or features are not finite.
    """
    from scipy.sparse import csr_matrix
    from sklearn.neighbors import sort_graph_by_row_values  # takes a second, which most runs can do without

    if not len(features):
        raise DataError("no image to cluster")
    broken = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise DataError(f"{len(broken)} features to cluster are not finite, the first at row {broken[0]}")
    features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    count = min(max(k1, k2), len(features))
    known = Distances(features, features.mean(dim=0))  # of a network that tells images hardly apart, all are near it
    features = known.features
    neighbours = nearest_of_all(known, count)
    weights = expanded_weights(features, torch.ones_like(features[:, 0]), neighbours[:, :k1], k1)
    if k2 > 1:
        weights = mean_of_rows(weights, neighbours[:, :k2])
    whole, sums = in_units(weights)
    counts, columns, values = [], [], []
    least = max(0.0, 2 * (1 - eps) / (2 - eps) - 1e-5)  # that images within eps have in common, less what rounding does
    for rows, minima in sums_of_minima(whole, len(features), 0):
        places = flat_places(minima > least / UNIT)
        one, other = places // len(features), places % len(features)
        distances = jaccard(minima.view(-1)[places], sums[rows][one], sums[other])
        near = distances <= eps
        counts.append(one[near].bincount(minlength=len(minima)))
        columns.append(other[near].int())
        values.append(distances[near].clamp(min=NEARLY_0).to(features.dtype))
    ends = torch.cat(counts).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends])
    entries = (part.cpu().numpy() for part in (torch.cat(values), torch.cat(columns), starts.int()))
    graph = csr_matrix(tuple(entries), shape=(len(features), len(features)))
    return sort_graph_by_row_values(graph, warn_when_not_sorted=False)


def cluster(distances: csr_matrix, eps: float, min_samples: int = 4) -> Tensor:
    """DBSCAN (Ester et al., 1996) -> the cluster of each image, int64 [N] on the CPU; -1 is an outlier.

    An image with at least `min_samples` images within eps, itself included, is a core. Clusters are numbered 0..n-1 by
    their first core; an image near cores of several is in the first of these. There may be none, or only one.

    Args:
        distances: [N, N] of `near_pairs`, with all pairs within eps.
    """
    from sklearn.cluster import DBSCAN  # takes a second

    labels = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(distances).labels_
    return torch.from_numpy(labels.astype(np.int64))


# ------------------------------------------------------------------ diagnostics, by true identities: never for training


def majorities(labels: Tensor, pids: Tensor) -> Tensor:
    """Diagnostic: the identity that most images of each cluster have, of equally many the lowest. -> int64 [n]

    Args:
        labels: [N], clusters 0..n-1, none of them empty; -1 is left out.
        pids: [N], identities.
    """
    known, counts = _counts(labels, pids)
    return known[counts.argmax(dim=1)]


def purity(labels: Tensor, pids: Tensor) -> float | None:
    """Diagnostic: share of the images in clusters that are of their cluster's majority; None without clusters."""
    _, counts = _counts(labels, pids)
    return int(counts.amax(dim=1).sum()) / int(counts.sum()) if len(counts) else None


def _counts(labels: Tensor, pids: Tensor) -> tuple[Tensor, Tensor]:
    """The identities [P], ascending, and how many images of each are in each cluster [n, P]."""
    known, owners = pids.unique(return_inverse=True)
    clustered = labels >= 0
    clusters = int(labels[clustered].max()) + 1 if clustered.any() else 0
    places = labels[clustered] * len(known) + owners[clustered]
    return known, places.bincount(minlength=clusters * len(known)).view(clusters, len(known))
