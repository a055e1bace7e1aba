"""Error rates of 1:1 verification, where two images are said to be of one identity if `score >= threshold`.

Scores are cosines. Of many pairs only a histogram is kept, whose bins are 2^-15 wide: thresholds are multiples of that,
and the rates at them are counted exactly. Pairs of equal score are decided alike, so they change sides together, as in
scikit-learn's `roc_curve`.

    FPR    share of the pairs of two identities that are accepted (false accepts)
    FNR    share of the pairs of one identity that are rejected (false rejects); TPR = 1 - FNR
    EER    where FPR = FNR, on straight lines between the points of the curve
    TPR at FPR x    at the lowest threshold with FPR <= x; nothing is interpolated, so that the threshold can be used
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from utils.errors import DataError
from utils.metrics import Ignored, check_finite
from utils.progress import progress
from utils.records import Labels

SCALE = 2**15  # bins per unit of score; a power of two, so that no bin has a rounded edge
BINS = 2 * SCALE + 1  # from -1 to 1; the last one holds 1 itself
PAIRS_AT_ONCE = 2**22  # some 100 MB
REPLICATES, LEVEL = 500, 0.95  # of the bootstrap, and the share of them that an interval holds
STEPS = 240  # thresholds that a replicate chooses from: FPR differs by a twentieth from one to the next


class Images(NamedTuple):
    """Queries, or a gallery."""

    rows: Tensor  # int64 [N], of their features
    labels: Labels


class Curve(NamedTuple):
    """Rates from the strictest threshold to the most lenient; of one set of pairs, or of many ([..., K + 1])."""

    thresholds: Tensor  # float64 [K + 1], falling; the first is infinite and accepts nothing
    fpr: Tensor  # float64 [..., K + 1]
    tpr: Tensor


class Estimate(NamedTuple):
    """A rate, as a fraction, and the interval that holds LEVEL of the bootstrap's replicates."""

    value: float
    low: float  # NaN, as `high`: there is no interval
    high: float


class Point(NamedTuple):
    """What a threshold does."""

    threshold: float
    fpr: Estimate  # at this threshold
    fnr: Estimate
    target: float | None  # the FPR that it was chosen for; None: where both rates are equal
    reached: Estimate  # what replicates that choose their own thresholds reach: TPR at the target, or EER


class Verification(NamedTuple):
    """Everything that was measured on a labelled set."""

    same: Tensor  # int64 [BINS] pairs of one identity, by score
    different: Tensor
    curve: Curve
    eer: Point
    at_fpr: dict[float, Point | None]  # by the target; None: too few pairs to measure it

    def points(self) -> dict[str, Point | None]:
        """All of them, by what they are called."""
        return {"EER": self.eer, **{f"FPR {target:g}": point for target, point in self.at_fpr.items()}}


def curve_of(values: Tensor, same: Tensor, different: Tensor) -> Curve:
    """The curve of pairs with these scores.

    Args:
        values: [K] scores, or lower edges of bins, rising.
        same, different: [..., K] how many pairs, of one identity and of two, have them; above 0 in all.
    """
    fpr, tpr = (
        torch.nn.functional.pad(counts.double().flip(-1).cumsum(-1), (1, 0)) / counts.double().sum(-1, keepdim=True)
        for counts in (different, same)
    )
    return Curve(torch.cat([torch.tensor([torch.inf]).to(values), values.flip(0)]).double(), fpr, tpr)


def equal_error(curve: Curve) -> tuple[Tensor, Tensor]:
    """EER [...], and the place [...] of the threshold whose two rates differ least (of two, the stricter)."""
    gap = curve.fpr + curve.tpr - 1  # FPR - FNR, from -1 to 1
    after = (gap < 0).sum(-1, keepdim=True)
    before = after - 1
    under, over = -gap.gather(-1, before), gap.gather(-1, after)
    first, second = curve.fpr.gather(-1, before), curve.fpr.gather(-1, after)
    rate = first + (second - first) * under / (under + over)
    return rate.squeeze(-1), torch.where(under <= over, before, after).squeeze(-1)


def place_at_fpr(curve: Curve, target: float) -> Tensor:
    """The place [...] of the lowest threshold with FPR <= target."""
    return (curve.fpr <= target).sum(-1) - 1


class PairScores:
    """Scores of all pairs of query and gallery that count, computed anew when needed, chunk by chunk.

    An image is not compared with itself, and two images that are both queries and in the gallery count once.

    Args:
        features: float32 [M, D] of all images, each of length 1.
        trials: (queries, gallery) of each.
        ignored: which pairs do not count, as in `Benchmark`.

    Raises:
        DataError: features that are not finite.
    """

    def __init__(self, features: Tensor, trials: Sequence[tuple[Images, Images]], ignored: Ignored):
        check_finite(features, features[:0])
        self.features, self.trials, self.ignored = features, trials, ignored
        self.pids = torch.cat([side.labels.pids for trial in trials for side in trial]).unique()

    def histograms(self) -> tuple[Tensor, Tensor]:
        """How many pairs of one identity and of two have a score, int64 [BINS] each."""
        counts = torch.zeros(3 * BINS, dtype=torch.int64)
        for own, pids, bins, dropped in self._chunks("scores"):
            kinds = (own[:, None] == pids).long().masked_fill_(dropped, 2)
            counts += torch.bincount((bins + BINS * kinds).flatten(), minlength=3 * BINS)
        different, same, _ = counts.view(3, BINS)
        return same, different

    def resampled(self, edges: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Histograms float64 [B, K] of replicates in which identities count as often as `weights` [B, P] says.

        A pair of two identities counts as often as the product of both weights, a pair of one identity as often as its
        weight.

        Args:
            edges: [K] first bins of the replicates' bins; rising, from 0.
        """
        weights, count, size = weights.float(), len(self.pids), len(edges)
        coarse = torch.searchsorted(edges, torch.arange(BINS), right=True) - 1
        same, different = torch.zeros(2, len(weights), size, dtype=torch.float64)
        for own, pids, bins, dropped in self._chunks("intervals"):
            codes = (coarse[bins] + size * pids).masked_fill_(dropped, size * count)
            there, lengths = own.unique(return_counts=True)
            for pid, rows in zip(there.tolist(), codes.split(lengths.tolist()), strict=True):
                table = torch.bincount(rows.flatten(), minlength=size * count + 1)[:-1].view(count, size).float()
                alone, weight = table[pid].clone(), weights[:, pid, None]
                table[pid] = 0
                same += weight * alone
                different += weight * (weights @ table)
        return same, different

    def _chunks(self, what: str) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Identities of queries [Q], rising, and gallery [G] as places in `pids`; bins [Q, G]; what is left out [Q, G].

        Products of many queries at once are several times as fast as those of one identity's.
        """
        for query, gallery in self.trials:
            others = self.features[gallery.rows]
            queried, there = torch.isin(gallery.rows, query.rows), torch.isin(query.rows, gallery.rows)
            pids, own = (torch.searchsorted(self.pids, side.labels.pids) for side in (gallery, query))
            size = max(1, PAIRS_AT_ONCE // max(1, len(pids)))
            for some in progress(own.argsort().split(size), what):
                rows = query.rows[some]
                bins = (self.features[rows] @ others.T).mul_(SCALE).floor_().long().add_(SCALE).clamp_(0, BINS - 1)
                twice = queried & there[some, None] & (gallery.rows <= rows[:, None])  # or an image with itself
                dropped = self.ignored(Labels(*(field[some] for field in query.labels)), gallery.labels)
                yield own[some], pids, bins, dropped | twice


def measure(
    scores: PairScores, targets: Sequence[float], *, replicates: int = REPLICATES, generator: torch.Generator
) -> Verification:
    """Error rates with intervals: EER, and TPR at the FPRs `targets`.

    Intervals are percentiles of a bootstrap over identities: a replicate draws as many identities as there are, with
    replacement; pairs are not independent, as each shares its identities with many others. It is the vertex bootstrap
    of Snijders and Borgatti (Connections 22, 1999), without pairs of an identity's copies; Fogliato, Patil and Perona
    (IJCV 2024) compare it with others for 1:1 matching.

    Raises:
        DataError: no pairs of one identity, or of two, count.
    """
    same, different = scores.histograms()
    for counts, which in ((same, "one identity"), (different, "two identities")):
        if not counts.any():
            raise DataError(f"no pairs of {which} count, of {len(scores.pids)} identities: there is nothing to measure")
    values = torch.arange(-SCALE, SCALE + 1) / SCALE
    curve = curve_of(values, same, different)
    eer, place = equal_error(curve)
    place = place.clamp(min=1)  # where all is the wrong way round: a threshold that can be written down
    places = {target: int(place_at_fpr(curve, target)) for target in targets}
    # Less than one pair would have to be accepted: whatever is accepted is too much.
    places = {target: at for target, at in places.items() if at and target * int(different.sum()) >= 1}

    edges = _edges(curve, [int(place), *places.values()])
    count = len(scores.pids)
    drawn = torch.randint(count, (replicates, count), generator=generator)
    weights = torch.zeros(replicates, count).scatter_add_(1, drawn, torch.ones(replicates, count))
    histograms = scores.resampled(edges, weights)
    whole = torch.stack([counts.sum(dim=1) > 0 for counts in histograms]).all(dim=0)
    again = curve_of(values[edges], *(counts[whole] for counts in histograms))

    def point(at: int, target: float | None, value: Tensor, reached: Tensor) -> Point:
        threshold = curve.thresholds[at]
        column = int((again.thresholds == threshold).nonzero())
        fpr = _rate(curve.fpr[at], again.fpr[:, column])
        fnr = _rate(1 - curve.tpr[at], 1 - again.tpr[:, column])
        return Point(float(threshold), fpr, fnr, target, _rate(value, reached))

    found: dict[float, Point | None] = dict.fromkeys(targets)
    for target, at in places.items():
        reached = again.tpr.gather(1, place_at_fpr(again, target)[:, None]).squeeze(1)
        found[target] = point(at, target, curve.tpr[at], reached)
    return Verification(same, different, curve, point(int(place), None, eer, equal_error(again)[0]), found)


def _rate(value: Tensor, replicates: Tensor) -> Estimate:
    """As `estimate`, but no interval where replicates agree.

    Those of two identities do, and those without an error: neither makes a rate certain.
    """
    found = estimate(value, replicates)
    return found if found.low < found.high else found._replace(low=float("nan"), high=float("nan"))


def _edges(curve: Curve, places: Sequence[int]) -> Tensor:
    """The bins at which a replicate's bins begin: thresholds of all orders of FPR and all TPRs, and those at `places`.

    The curve's thresholds fall, bins rise: place k is bin BINS - k.
    """
    fpr, tpr = torch.logspace(-5, 0, STEPS).double(), torch.linspace(0, 1, STEPS // 4).double()
    chosen = [
        torch.searchsorted(curve.fpr, fpr),
        torch.searchsorted(curve.tpr, tpr),
        torch.tensor([*places, BINS]),
    ]
    return (BINS - torch.cat(chosen).clamp(1, BINS)).unique()


def estimate(value: Tensor, replicates: Tensor) -> Estimate:
    """A value with the interval that holds LEVEL of its replicates [R]; NaN without any."""
    if not len(replicates):
        return Estimate(float(value), float("nan"), float("nan"))
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2]).to(replicates)
    return Estimate(float(value), *replicates.quantile(ends).tolist())
