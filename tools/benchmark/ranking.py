"""Ranking a test's gallery for its queries: CMC, mAP and mINP from features.

The published way sorts the whole matrix of distances and then goes from query to query, in numpy. The textbook way is
vectorised over the queries of a chunk: all distances, the order of every row, whether each place in it counts and
matches, cumulative sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from tools.benchmark.data import labelled_features
from tools.benchmark.measure import Case, Setting, Way
from utils.memory import available_memory
from utils.metrics import rank_features
from utils.records import Labels

SIZES = {  # queries, gallery, width, identities, cameras
    "Market-1501's size": (3368, 15913, 1280, 751, 6),
    "MSMT17's size": (11659, 82161, 256, 3060, 15),
}
PAIRS = 2**24  # of a chunk of queries, of all ways but the published
BYTES = 24  # of a pair, of the published way: distance, place, identity, match


class Arrays(NamedTuple):
    """A test, as numpy has it."""

    query: np.ndarray  # [Q, D]
    gallery: np.ndarray  # [G, D]
    query_pids: np.ndarray  # [Q]
    query_camids: np.ndarray
    gallery_pids: np.ndarray  # [G]
    gallery_camids: np.ndarray


def cases(setting: Setting) -> Iterator[Case]:
    """A case for each of SIZES."""
    for name, (queries, images, width, identities, cameras) in SIZES.items():
        counts = setting.of(queries), setting.of(images)
        features, labels = labelled_features(sum(counts), width, setting.of(identities), cameras, setting.device)
        query, gallery = features.split(counts)
        ids = [Labels(*some) for some in zip(*(field.split(counts) for field in labels), strict=True)]
        title, needed = f"{name}, {counts[0]} × {counts[1]} × {width}", BYTES * counts[0] * counts[1]
        if needed < available_memory():
            yield Case(title, ways(query, gallery, *ids))
        else:
            left_out = f"{title}; the published way, which needs {needed / 1e9:.0f} GB, is left out"
            yield Case(left_out, ways(query, gallery, *ids)[1:])


def ways(query: Tensor, gallery: Tensor, query_labels: Labels, gallery_labels: Labels) -> tuple[Way, ...]:
    """All of them, and the matrix product alone, below which none can be."""
    test = Arrays(*(array.cpu().numpy() for array in (query, gallery, *query_labels, *gallery_labels)))
    flops = 2.0 * len(query) * gallery.numel()
    size = max(1, PAIRS // len(gallery))

    def product() -> None:
        for rows in query.split(size):
            rows @ gallery.T

    return (
        Way("published, numpy", lambda: published(test), flops),
        Way("textbook, numpy", lambda: textbook(test, size), flops),
        Way("ours", lambda: rank_features(query, gallery, query_labels, gallery_labels), flops),
        Way("product alone", product, flops),
    )


def published(test: Arrays, top: int = 50) -> tuple[float, float, np.ndarray]:
    """mAP, mINP and CMC [top]; at most one image is at any distance from a query."""
    query, gallery, query_pids, query_camids, gallery_pids, gallery_camids = test
    precisions, inverses, cmc = [], [], []
    distances = (query**2).sum(1, keepdims=True) + (gallery**2).sum(1) - 2 * query @ gallery.T
    order = distances.argsort(1)
    matches = gallery_pids[order] == query_pids[:, None]
    for row, pid, camid in zip(range(len(query)), query_pids, query_camids, strict=True):
        own = order[row]
        hits = matches[row][~((gallery_pids[own] == pid) & (gallery_camids[own] == camid))]
        if not hits.any():
            continue
        found = hits.cumsum()
        precisions.append((found / np.arange(1, len(hits) + 1) * hits).sum() / found[-1])
        inverses.append(found[-1] / (hits.nonzero()[0].max() + 1))
        cmc.append(hits.argmax() < np.arange(1, top + 1))
    return float(np.mean(precisions)), float(np.mean(inverses)), np.mean(cmc, 0)


def textbook(test: Arrays, size: int, top: int = 50) -> tuple[float, float, np.ndarray]:
    """mAP, mINP and CMC [top], `size` queries at a time; at most one image is at any distance from a query."""
    query, gallery, query_pids, query_camids, gallery_pids, gallery_camids = test
    precisions, inverses, firsts = [], [], []
    lengths = (gallery**2).sum(1)
    for start in range(0, len(query), size):
        rows = slice(start, start + size)
        distances = (query[rows] ** 2).sum(1, keepdims=True) + lengths - 2 * query[rows] @ gallery.T
        order = distances.argsort(1)
        hits = gallery_pids[order] == query_pids[rows, None]
        kept = ~(hits & (gallery_camids[order] == query_camids[rows, None]))
        hits &= kept
        hits = hits[valid := hits.any(1)]
        ranks = kept[valid].cumsum(1)
        found = hits.cumsum(1)
        counts = found[:, -1]
        precisions.append(np.where(hits, found / np.maximum(ranks, 1), 0).sum(1) / counts)
        inverses.append(counts / np.where(hits, ranks, 0).max(1))
        firsts.append(ranks[np.arange(len(hits)), hits.argmax(1)])
    first = np.concatenate(firsts)
    cmc = (first[:, None] <= np.arange(1, top + 1)).mean(0)
    return np.concatenate(precisions).mean(), np.concatenate(inverses).mean(), cmc
