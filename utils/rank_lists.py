"""How every query of a test fares, and its rank list, without a matrix of all pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from utils.errors import DataError
from utils.feature_file import FeatureFile
from utils.match_ranks import Identities, retrieve
from utils.metrics import PAIRS_AT_ONCE, Ignored, check_finite, distances_to, order_gallery
from utils.progress import progress
from utils.records import Hit, Labels
from utils.verification import Images


class Outcomes(NamedTuple):
    """How the queries that have a match fared."""

    places: Tensor  # int64 [V], among the queries
    precision: Tensor  # float64 [V], average precision
    first: Tensor  # int64 [V], rank of the first match, from 1

    def worst_first(self) -> Tensor:
        """Places among these [V], by average precision, then by the rank of the first match, then as they come."""
        order = self.first.sort(descending=True, stable=True).indices
        return order[self.precision[order].sort(stable=True).indices]


class RankLists:
    """The rank lists of a test, each computed when it is asked for.

    Ranks are those of `rank_features`; pairs that are ignored, and an image in its own list, are left out.

    Args:
        features: of all images.
        query, gallery: the images and their labels.
        ignored: which pairs do not count, as in `Benchmark`.

    Raises:
        DataError: features that are not finite; no queries or no gallery.
    """

    def __init__(self, features: FeatureFile, query: Images, gallery: Images, ignored: Ignored):
        if not len(query.rows) or not len(gallery.rows):
            raise DataError(f"nothing to rank: {len(query.rows)} queries, {len(gallery.rows)} gallery images")
        self.names, self.features, _ = features
        check_finite(self.features, self.features[:0])
        self.query, self.gallery, self.ignored = query, gallery, ignored
        self.distances = distances_to(self.features[query.rows], self.features[gallery.rows])

    def outcomes(self) -> Outcomes:
        """How all queries fare; DataError if none has a match."""
        parts = []
        size = max(1, PAIRS_AT_ONCE // len(self.gallery.rows))
        identities = Identities.of(self.gallery.labels.pids)
        for places in progress(torch.arange(len(self.query.rows)).split(size), "ranks"):
            pids, dropped = self._rules(places)
            found = retrieve(self.distances(places), dropped, pids, identities)
            parts.append(tuple(field[found.valid] for field in (places, found.precision, found.first)))
        outcomes = Outcomes(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
        if not len(outcomes.places):
            raise DataError(f"none of {len(self.query.rows)} queries has a match that the protocol counts")
        return outcomes

    def best(self, place: int, top: int) -> list[Hit]:
        """The first `top` of a query's list and, if it comes later, its first match; cameras are left unknown."""
        order, hits, counted = (rows[0] for rows in self._ranked(torch.tensor([place])))
        shown = list(range(min(top, int(counted))))
        if hits.any() and not hits[:top].any():
            shown.append(int(hits.int().argmax()))
        rows = self.gallery.rows[order[shown]]
        scores = self.features[rows] @ self.features[self.query.rows[place]]
        found = zip(shown, rows.tolist(), scores.tolist(), hits[shown].tolist(), strict=True)
        return [Hit(rank + 1, self.names[row], score, correct=correct) for rank, row, score, correct in found]

    def _ranked(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Places in the gallery, best first [Q, G], whether they match [Q, G], and how many of them count [Q]."""
        pids, dropped = self._rules(places)
        order = order_gallery(self.distances(places), dropped)
        hits = (self.gallery.labels.pids[order] == pids[:, None]) & ~dropped.gather(1, order)
        return order, hits, (~dropped).sum(dim=1)

    def _rules(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Identities of queries [Q], and which of the gallery leave their lists [Q, G]."""
        labels = Labels(*(field[places] for field in self.query.labels))
        dropped = self.ignored(labels, self.gallery.labels)
        return labels.pids, dropped | (self.query.rows[places, None] == self.gallery.rows)
