"""CMC, mAP and mINP, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from utils.errors import DataError, some
from utils.match_ranks import Identities, retrieve, row_blocks
from utils.records import Labels, Ranking, to_device

Ignored = Callable[[Labels, Labels], Tensor]
PAIRS_AT_ONCE = 2**24  # of a chunk of the distance matrix: 64 MB, and twice as much for what it is made into


def same_camera(query: Labels, gallery: Labels) -> Tensor:
    """Market-1501's protocol: a query ignores its own identity in its own camera. -> bool [Q, G]"""
    return (query.pids[:, None] == gallery.pids) & (query.camids[:, None] == gallery.camids)


def ignore_nothing(query: Labels, gallery: Labels) -> Tensor:
    """The protocol without cameras: every pair counts. -> bool [Q, G]"""
    return torch.zeros(len(query.pids), len(gallery.pids), dtype=torch.bool, device=query.pids.device)


CROSS_CAMERA, ALL = "cross-camera", "all"
PROTOCOLS = {CROSS_CAMERA: same_camera, ALL: ignore_nothing}  # by their names in TEST.PROTOCOL


def protocol_of(ignored: Ignored) -> str:
    """The name of a rule in PROTOCOLS, or its own."""
    return next((name for name, rule in PROTOCOLS.items() if rule is ignored), getattr(ignored, "__name__", "own"))


def check_finite(query: Tensor, gallery: Tensor) -> None:
    """Raise DataError if features [Q, D] or [G, D] are not finite."""
    for name, features in (("query", query), ("gallery", gallery)):
        if torch.linalg.vector_norm(features, dim=1).isfinite().all():
            continue  # a finite length has finite parts; an infinite one may have
        finite = torch.isfinite(features).all(dim=1)
        if not finite.all():
            rows = (~finite).nonzero().flatten().tolist()
            raise DataError(f"{len(rows)} {name} features are not finite, the first at row {rows[0]}")


def rank_features(
    query: Tensor,
    gallery: Tensor,
    query_labels: Labels,
    gallery_labels: Labels,
    *,
    ignored: Ignored = same_camera,
    unique_identities: bool = False,
    top: int = 50,
) -> Ranking:
    """Rank the gallery for every query by squared Euclidean distance; features are compared as they are.

    Args:
        query, gallery: [Q, D] and [G, D].
        query_labels, gallery_labels: their identities and cameras.
        ignored: which pairs leave the gallery.
        unique_identities: the CMC counts identities: of each, the nearest image alone (SYSU-MM01: Wu et al., 2017).
            mAP and mINP count images in any case.
        top: how many ranks the CMC has.

    Raises:
        DataError: features that are not finite; or no query has a match (the message says why, with examples).
    """
    check_finite(query, gallery)
    rules = _Rules(ignored, unique_identities, top)
    return _rank(distances_to(query, gallery), query_labels, gallery_labels, rules)


def distances_to(query: Tensor, gallery: Tensor) -> Callable[[slice | Tensor], Tensor]:
    """A function: some rows of the queries -> their squared Euclidean distances [Q, G]."""
    lengths = torch.cat([gallery[block].square().sum(dim=1) for block in row_blocks(gallery)])

    @torch.no_grad()
    def distances(rows: slice | Tensor) -> Tensor:
        # |q|² is the same for all of a query's pairs, but keeps the values distances.
        chunk = query[rows]
        own = chunk.square().sum(dim=1, keepdim=True)
        found = 2 * chunk @ gallery.T
        for block in row_blocks(found):
            torch.sub(own[block] + lengths, found[block], out=found[block])
        return found

    return distances


def rank(
    distances: Tensor,
    query_labels: Labels,
    gallery_labels: Labels,
    *,
    ignored: Ignored = same_camera,
    unique_identities: bool = False,
    top: int = 50,
) -> Ranking:
    """The same for distances [Q, G] of any kind, e.g. re-ranked ones."""
    if torch.isnan(distances).any():
        raise DataError("some distances are NaN")
    rules = _Rules(ignored, unique_identities, top)
    return _rank(lambda rows: distances[rows], query_labels, gallery_labels, rules)


class _Rules(NamedTuple):
    """What counts; see `rank_features`."""

    ignored: Ignored
    unique_identities: bool
    top: int


def _rank(distances: Callable[[slice], Tensor], query_labels: Labels, gallery_labels: Labels, rules: _Rules) -> Ranking:
    num_queries, num_gallery = len(query_labels.pids), len(gallery_labels.pids)
    if not num_queries or not num_gallery:
        raise DataError(f"nothing to rank: {num_queries} queries, {num_gallery} gallery images")
    size = max(1, PAIRS_AT_ONCE // num_gallery)
    identities = Identities.of(gallery_labels.pids)
    chunks = [
        _rank_chunk(
            distances(rows), Labels(*(field[rows] for field in query_labels)), gallery_labels, identities, rules
        )
        for rows in (slice(start, start + size) for start in range(0, num_queries, size))
    ]
    precision, inverse, found = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    if not len(precision):
        raise DataError(_why_none(query_labels, gallery_labels))
    means = precision.mean().item(), inverse.mean().item(), found.mean(dim=0).cpu()
    return Ranking(*means, len(precision), num_queries, precision.cpu(), found[:, 0].cpu())


def _rank_chunk(
    distances: Tensor, query: Labels, gallery: Labels, identities: Identities, rules: _Rules
) -> tuple[Tensor, ...]:
    """Average precision [V], inverse negative penalty [V] and CMC [V, top] of the valid queries, in float64."""
    device = distances.device
    query, gallery, identities = (to_device(labels, device) for labels in (query, gallery, identities))
    dropped = rules.ignored(query, gallery)
    found = retrieve(distances, dropped, query.pids, identities, unique_identities=rules.unique_identities)
    cmc = (found.first[:, None] <= torch.arange(1, rules.top + 1, device=device)).double()
    return found.precision[found.valid], found.inverse[found.valid], cmc[found.valid]


def order_gallery(distances: Tensor, dropped: Tensor) -> Tensor:
    """Places of the gallery [Q, G], nearest first, of distances [Q, G].

    Equal distances keep the gallery's order; what is `dropped` goes to the end, behind what is infinitely far.
    """
    distances = distances.clamp(max=torch.finfo(distances.dtype).max).masked_fill(dropped, torch.inf)
    return distances.sort(dim=1, stable=True).indices


def _why_none(query: Labels, gallery: Labels) -> str:
    present = torch.isin(query.pids, gallery.pids)
    absent = query.pids[~present].unique().tolist()
    reasons = []
    if present.any():
        pid = query.pids[present][0]
        camera = query.camids[present][0].item()
        cameras = gallery.camids[gallery.pids == pid].unique().tolist()
        reasons.append(
            f"{int(present.sum())} have their identity in the gallery only where the protocol ignores it "
            f"(e.g. identity {pid.item()}: query in camera {camera}, gallery in cameras {cameras})"
        )
    if absent:
        reasons.append(
            f"{int((~present).sum())} have an identity that the gallery lacks (e.g. {some(list(map(str, absent)))})"
        )
    return f"none of {len(query.pids)} queries has a valid match: {'; '.join(reasons)}"
