"""Galleries that are searched by cosine: the interface, and exact search in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from utils.records import Hit

PAIRS_AT_ONCE = 2**24  # scores in memory
ROWS_AT_ONCE = 2**13  # features in float64
MARGIN = 1e-5  # that products in float32 may be wrong by, at the very most


class GalleryIndex:
    """Features of a gallery by name."""

    names: list[str]

    def add(self, names: Sequence[str], features: Tensor) -> None:
        """Add features, float32 [N, D] of length 1; one whose name is there already replaces it."""
        raise NotImplementedError

    def search(self, queries: Tensor, k: int) -> list[list[Hit]]:
        """The `k` most similar, or all there are, to each of the queries, float32 [Q, D] of length 1."""
        raise NotImplementedError

    def count(self) -> int:
        """How many there are."""
        return len(self.names)

    def save(self) -> None:
        """Keep what was added, where it is kept at all."""

    def close(self) -> None:
        """Let go of files and connections."""


def hits(names: Iterable[str], scores: Iterable[float]) -> list[Hit]:
    """Images by name with their scores, best first."""
    return [Hit(rank, name, score) for rank, (name, score) in enumerate(zip(names, scores, strict=True), 1)]


class ExactIndex(GalleryIndex):
    """A gallery in memory, compared with all of it; equal cosines keep the gallery's order.

    Products in float32, whose last digits depend on the place in a matrix, only choose who may be among the first `k`.
    Those are ordered by their cosines in float64, so that neither order nor scores depend on other queries.
    """

    def __init__(self) -> None:
        self.places: dict[str, int] = {}  # of names, in the gallery's order
        self.names: list[str] = []
        self._parts: list[Tensor] = []

    def add(self, names: Sequence[str], features: Tensor) -> None:
        rows = {name: row for row, name in enumerate(names)}  # of a name that is there twice, the last
        known = [name for name in rows if name in self.places]
        new = [name for name in rows if name not in self.places]
        if known:
            changed = self.features.clone()
            changed[[self.places[name] for name in known]] = features[[rows[name] for name in known]]
            self._parts = [changed]
        self._parts.append(features if len(new) == len(names) else features[[rows[name] for name in new]])
        self.places |= {name: place for place, name in enumerate(new, len(self.names))}
        self.names += new

    @property
    def features(self) -> Tensor:
        """All of them, [N, D]."""
        if len(self._parts) != 1:
            self._parts = [torch.cat(self._parts)]
        return self._parts[0]

    def search(self, queries: Tensor, k: int) -> list[list[Hit]]:
        k = min(k, len(self.names))
        if not k:
            return [[] for _ in queries]
        return [
            self._best(query, products, k)
            for chunk in queries.split(max(1, PAIRS_AT_ONCE // len(self.names)))
            for query, products in zip(chunk, chunk @ self.features.T, strict=True)
        ]

    def _best(self, query: Tensor, products: Tensor, k: int) -> list[Hit]:
        near = (products >= products.topk(k).values[-1] - MARGIN).nonzero().flatten()
        parts = near.split(ROWS_AT_ONCE)
        scores = torch.cat([(self.features[part].double() * query.double()).sum(dim=1) for part in parts])
        scores, order = scores.sort(descending=True, stable=True)
        return hits([self.names[place] for place in near[order[:k]].tolist()], scores[:k].float().tolist())
