"""Error rates of verification: by hand, against loops over pairs and thresholds, and their bootstrap."""

import math

import pytest
import torch

from utils import verification
from utils.errors import DataError
from utils.metrics import ignore_nothing, same_camera
from utils.records import Labels
from utils.verification import BINS, SCALE, Images, PairScores, curve_of, equal_error, measure, place_at_fpr


def curve(same: list[float], different: list[float]):
    """Of single scores, each with its own threshold."""
    values = torch.tensor(sorted({*same, *different}), dtype=torch.float64)
    counts = ([scores.count(value) for value in values.tolist()] for scores in (same, different))
    return curve_of(values, *map(torch.tensor, counts))


@pytest.mark.parametrize(
    ("same", "different", "eer", "threshold", "reached"),
    [
        # From .6 to .5, FNR stays 1/4 and FPR goes from 1/5 to 2/5; .6 is nearer to where they meet.
        ([0.9, 0.8, 0.6, 0.4], [0.7, 0.5, 0.3, 0.2, 0.1], 1 / 4, 0.6, {0: 2 / 4, 0.1: 2 / 4, 0.2: 3 / 4, 0.4: 1}),
        # Equal scores change sides together: one straight line from (0, 0) to (1/2, 1).
        ([0.5, 0.5], [0.5, 0.1], 1 / 3, 0.5, {0: 0, 0.49: 0, 0.5: 1}),
        ([0.9, 0.8], [0.3, 0.2], 0, 0.8, {0: 1}),
        ([0.1, 0.2], [0.8, 0.9], 1, 0.8, {0: 0, 0.5: 0, 1: 1}),
    ],
    ids=["overlapping", "ties", "apart", "the wrong way round"],
)
def test_by_hand(same, different, eer, threshold, reached):
    found = curve(same, different)
    rate, place = equal_error(found)
    assert rate.item() == pytest.approx(eer, abs=1e-12) and found.thresholds[place].item() == threshold
    assert {target: found.tpr[place_at_fpr(found, target)].item() for target in reached} == reached


def test_the_curve_is_that_of_loops_over_thresholds():
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        same = (torch.randn(30, generator=generator) + 1).mul(5).round().div(10).tolist()  # many are equal
        different = torch.randn(50, generator=generator).mul(5).round().div(10).tolist()
        points = [(math.inf, 0.0, 0.0)]
        for threshold in sorted({*same, *different}, reverse=True):
            fpr, tpr = (sum(score >= threshold for score in scores) / len(scores) for scores in (different, same))
            points.append((threshold, fpr, tpr))
        found = curve(same, different)
        expected = torch.tensor(points, dtype=torch.float64)
        torch.testing.assert_close(torch.stack(found, dim=1), expected)
        k = next(k for k, (_, fpr, tpr) in enumerate(points) if fpr >= 1 - tpr)
        (_, f0, t0), (_, f1, t1) = points[k - 1], points[k]
        crossing = f0 + (f1 - f0) * (1 - t0 - f0) / (f1 - f0 + t1 - t0)  # of FPR and FNR on this piece
        assert equal_error(found)[0].item() == pytest.approx(crossing, abs=1e-12)
        for target in (0.0, 0.01, 0.1, 0.5):
            best = max(tpr for _, fpr, tpr in points if fpr <= target)
            assert found.tpr[place_at_fpr(found, target)].item() == pytest.approx(best, abs=1e-12)


def problem(identities: int = 8, each: int = 6, spread: float = 0.7, seed: int = 0):
    """Features, and two trials on their images; some are both queries and in the gallery."""
    generator = torch.Generator().manual_seed(seed)
    pids = torch.arange(identities).repeat_interleave(each)
    features = torch.randn(identities, 16, generator=generator).double()[pids]  # of which no sum rounds to another bin
    features += spread * torch.randn(features.shape, generator=generator)
    features = torch.nn.functional.normalize(features, dim=1)
    camids = torch.randint(3, pids.shape, generator=generator)

    def images(rows: torch.Tensor) -> Images:
        return Images(rows, Labels(10 * pids[rows] + 5, camids[rows]))  # identities with gaps

    rows = torch.randperm(len(pids), generator=generator)
    return features, [(images(rows[:20]), images(rows[12:])), (images(rows[30:]), images(rows[:36]))]


def by_loops(features, trials, ignored, weights: dict[int, int] | None = None):
    """Histograms of all pairs that count, pair by pair."""
    same, different = torch.zeros(2, BINS, dtype=torch.float64)
    for query, gallery in trials:
        queries, others = query.rows.tolist(), gallery.rows.tolist()
        dropped = ignored(query.labels, gallery.labels)
        for row, number in enumerate(queries):
            for column, other in enumerate(others):
                twice = other in queries and queries.index(other) < row and number in others
                if number == other or dropped[row, column]:
                    continue
                pid, pid2 = int(query.labels.pids[row]), int(gallery.labels.pids[column])
                score = float(features[number] @ features[other])
                weight = 1 if weights is None else weights[pid] * (weights[pid2] if pid != pid2 else 1)
                if not twice:
                    (same if pid == pid2 else different)[math.floor(score * SCALE) + SCALE] += weight
    return same, different


@pytest.mark.parametrize("ignored", [same_camera, ignore_nothing])
@pytest.mark.parametrize("pairs", [1, 100, 2**22])
def test_all_pairs_that_count_do_so_once(monkeypatch, ignored, pairs):
    monkeypatch.setattr(verification, "PAIRS_AT_ONCE", pairs)
    data = problem()
    found, expected = PairScores(*data, ignored).histograms(), by_loops(*data, ignored)
    assert all(torch.equal(mine.double(), theirs) for mine, theirs in zip(found, expected, strict=True))


def test_replicates_weigh_pairs_by_their_identities():
    scores = PairScores(*problem(), same_camera)
    edges = torch.tensor([0, SCALE, SCALE + SCALE // 3, BINS - 1])
    drawn = torch.tensor([[1] * 8, [2, 0, 1, 3, 0, 1, 0, 1]])
    found = scores.resampled(edges, drawn)
    for row, weights in enumerate(drawn.tolist()):
        expected = by_loops(*problem(), same_camera, dict(zip(scores.pids.tolist(), weights, strict=True)))
        for mine, theirs in zip(found, expected, strict=True):
            bins = torch.searchsorted(edges, torch.arange(BINS), right=True) - 1
            assert torch.equal(mine[row], torch.zeros(4).double().scatter_add_(0, bins, theirs))


def measured(identities: int = 30, seed: int = 0, targets=(1e-1, 1e-2, 1e-9), **shape):
    generator = torch.Generator().manual_seed(seed)
    return measure(PairScores(*problem(identities, **shape), ignore_nothing), targets, generator=generator)


def test_what_is_measured():
    found = measured()
    assert found.at_fpr[1e-9] is None  # it would take a billion pairs
    for target in (1e-1, 1e-2):
        point = found.at_fpr[target]
        accepted = torch.arange(BINS) >= round((point.threshold + 1) * SCALE)
        fpr, tpr = ((counts[accepted].sum() / counts.sum().double()).item() for counts in (found.different, found.same))
        assert point.fpr.value == pytest.approx(fpr) and fpr <= target
        assert point.fnr.value == pytest.approx(1 - tpr) and point.reached.value == pytest.approx(tpr)
        for rate in (point.fpr, point.fnr, point.reached):
            assert rate.low <= rate.value <= rate.high and rate.low < rate.high
    assert found.eer.reached.low < found.eer.reached.value < found.eer.reached.high
    assert abs(found.eer.fpr.value - found.eer.fnr.value) < 0.01
    assert measured().eer == found.eer != measured(seed=1).eer


def test_intervals_are_as_wide_as_other_identities_make_them():
    """The standard deviation of the EER over other people, and what one data set says of it."""
    found = [measured(40, seed, targets=()).eer.reached if seed < 8 else None for seed in range(8)]
    apart = []
    for seed in range(40):
        scores = PairScores(*problem(40, seed=seed), ignore_nothing)
        apart.append(equal_error(curve_of(torch.arange(BINS).double(), *scores.histograms()))[0].item())
    width = sum(one.high - one.low for one in found) / len(found)
    assert 0.6 < width / (2 * 1.96 * torch.tensor(apart).std().item()) < 1.5


@pytest.mark.parametrize(("identities", "spread"), [(2, 1.0), (12, 0.0)], ids=["two identities", "no errors"])
def test_replicates_that_agree_are_no_interval(identities, spread):
    pids = torch.arange(identities).repeat_interleave(6)
    features = torch.eye(16)[pids] + spread * torch.randn(len(pids), 16, generator=torch.Generator().manual_seed(0))
    images = Images(torch.arange(len(pids)), Labels(pids, pids))
    scores = PairScores(torch.nn.functional.normalize(features, dim=1), [(images, images)], ignore_nothing)
    found = measure(scores, [0.1], generator=torch.Generator().manual_seed(0))
    for rate in (found.eer.fpr, found.eer.fnr, found.eer.reached, found.at_fpr[0.1].fpr):
        assert (rate.value > 0) == (spread > 0) and math.isnan(rate.low) and math.isnan(rate.high)


@pytest.mark.parametrize("each", [1, 48], ids=["no pairs of one identity", "one identity"])
def test_nothing_to_measure(each):
    with pytest.raises(DataError, match="identit"):
        measured(48 // each, each=each)


def test_features_that_are_not_finite():
    features, trials = problem()
    features[3] = torch.nan
    with pytest.raises(DataError, match="row 3"):
        PairScores(features, trials, same_camera)
