"""CMC, mAP and mINP of ideal, worst, hand-made and random rankings."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import metrics
from utils.errors import DataError
from utils.metrics import rank, rank_features, same_camera
from utils.records import Labels


def labels(*pairs: tuple[int, int]) -> Labels:
    """(identity, camera) pairs as labels."""
    pids, camids = zip(*pairs, strict=True)
    return Labels(torch.tensor(pids), torch.tensor(camids))


def never(query: Labels, gallery: Labels) -> torch.Tensor:
    return torch.zeros(len(query.pids), len(gallery.pids), dtype=torch.bool)


# ------------------------------------------------------------------------------------------ rankings worked out by hand


def test_by_hand():
    """
    Query 1 in camera 0 sees, from near to far: 2, (1 in camera 0: ignored), 1, 3, 1: hits at ranks 2 and 4 of 4.
        average precision (1/2 + 2/4) / 2 = 1/2, inverse penalty 2/4, found from rank 2 on
    Query 2 in camera 0 sees: 1, 1, 3, 1, 2: a hit at rank 5 of 5.
        average precision 1/5, inverse penalty 1/5, found from rank 5 on
    Query 3 in camera 1 sees: 3, 1, 1, 2, 1: a hit at rank 1.
        1, 1, found from rank 1 on
    Query 9 has no match and does not count.
    """
    query = labels((1, 0), (2, 0), (3, 1), (9, 0))
    gallery = labels((2, 1), (1, 0), (1, 1), (3, 0), (1, 2))
    distances = torch.tensor([[1, 2, 3, 4, 5], [5, 1, 2, 3, 4], [4, 5, 3, 1, 2], [1, 2, 3, 4, 5]], dtype=torch.float32)
    ranking = rank(distances, query, gallery, top=5)
    assert ranking.mAP == pytest.approx((1 / 2 + 1 / 5 + 1) / 3, abs=1e-12)
    assert ranking.mINP == pytest.approx((1 / 2 + 1 / 5 + 1) / 3, abs=1e-12)
    assert ranking.cmc.tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3, 1], abs=1e-12)
    assert (ranking.num_valid, ranking.num_queries) == (3, 4)


def test_by_hand_where_precision_and_penalty_differ():
    """Hits at ranks 1, 2 and 6 of 6: (1/1 + 2/2 + 3/6) / 3 = 5/6, and 3/6 since the last one is that far down."""
    gallery = labels((1, 1), (1, 2), (0, 1), (2, 1), (0, 2), (1, 3))
    ranking = rank(torch.arange(6.0)[None], labels((1, 0)), gallery, top=3)
    assert ranking.mAP == pytest.approx(5 / 6, abs=1e-12)
    assert ranking.mINP == pytest.approx(1 / 2, abs=1e-12)
    assert ranking.cmc.tolist() == [1, 1, 1]


def test_equal_distances_keep_the_gallery_in_order():
    """All five as near: hits at the gallery's places 2 and 5: (1/2 + 2/5) / 2 = 0.45."""
    gallery = labels((0, 1), (1, 1), (0, 1), (2, 1), (1, 2))
    ranking = rank(torch.ones(1, 5), labels((1, 0)), gallery, top=2)
    assert ranking.mAP == pytest.approx(0.45, abs=1e-12)
    assert ranking.cmc.tolist() == [0, 1]


def test_the_same_identity_in_the_same_camera_is_ignored_and_nothing_else():
    query, gallery = labels((1, 0), (2, 1)), labels((1, 0), (1, 1), (2, 0), (2, 1), (0, 0))
    assert same_camera(query, gallery).tolist() == [
        [True, False, False, False, False],
        [False, False, False, True, False],
    ]


def test_an_ignored_image_is_no_hit_and_takes_no_rank():
    """The two nearest are the query's own identity in its own camera; then a match, then a stranger."""
    query, gallery = labels((1, 0)), labels((1, 0), (1, 0), (1, 1), (2, 0))
    distances = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert rank(distances, query, gallery).mAP == 1
    assert rank(distances.flip(1), query, Labels(*(field.flip(0) for field in gallery))).mAP == 1
    assert rank(distances, query, gallery, ignored=never).mINP == 1  # without the rule three matches, still in front
    swapped = torch.tensor([[0.0, 1.0, 3.0, 2.0]])
    assert rank(swapped, query, gallery).mAP == 1 / 2
    assert rank(swapped, query, gallery, ignored=never).mAP == pytest.approx((1 + 1 + 3 / 4) / 3, abs=1e-12)


def test_the_rule_is_the_callers():
    """Only pairs across cameras 0 and 1 count here: the match in camera 2 is ignored, the one in camera 1 is second."""

    def across(query: Labels, gallery: Labels) -> torch.Tensor:
        return query.camids[:, None] + gallery.camids != 1

    ranking = rank(torch.arange(3.0)[None], labels((1, 0)), labels((1, 2), (2, 1), (1, 1)), ignored=across)
    assert ranking.mAP == 1 / 2


def test_infinitely_far_is_a_rank_too():
    """A stranger nowhere near, then a match nowhere near: rank 2, with the ignored image behind them."""
    far = torch.full((1, 3), torch.inf)
    assert rank(far, labels((1, 0)), labels((1, 0), (2, 0), (1, 1))).mAP == 1 / 2


# --------------------------------------------------------------------------------------------------- ideal, worst model


def test_ideal_model():
    pids = torch.arange(4).repeat_interleave(3)
    gallery = Labels(pids, torch.tensor([0, 1, 2]).repeat(4))
    query = Labels(torch.arange(4), torch.zeros(4, dtype=torch.int64))
    features = torch.eye(4)
    ranking = rank_features(features, features[pids], query, gallery, top=10)
    assert (ranking.mAP, ranking.mINP, ranking.num_valid) == (1, 1, 4)
    assert ranking.cmc.tolist() == [1] * 10


def test_worst_model():
    """Every match behind every stranger: without the rule at ranks 9 and 10 of 10, (1/9 + 2/10) / 2 and 2/10."""
    gallery = Labels(torch.arange(5).repeat_interleave(2), torch.tensor([1, 2]).repeat(5))
    query = Labels(torch.arange(5), torch.full((5,), 1))
    distances = (query.pids[:, None] == gallery.pids).float()
    # With it, the match in the query's own camera is ignored: the other one is at rank 9 of 9.
    ranking = rank(distances, query, gallery, top=10)
    assert (ranking.mAP, ranking.mINP) == pytest.approx((1 / 9, 1 / 9), abs=1e-12)
    assert ranking.cmc.tolist() == [0] * 8 + [1] * 2
    ranking = rank(distances, query, gallery, ignored=never, top=10)
    assert ranking.mAP == pytest.approx((1 / 9 + 2 / 10) / 2, abs=1e-12)
    assert ranking.mINP == pytest.approx(2 / 10, abs=1e-12)


# -------------------------------------------------------------------------------------------------- against plain loops


def oracle(distances: list[list[float]], query, gallery, top: int):
    """mAP, mINP, CMC, valid queries of (identity, camera) pairs; None without a valid query."""
    precisions, inverses, curves = [], [], []
    for row, (pid, camera) in zip(distances, query, strict=True):
        order = sorted(range(len(gallery)), key=lambda j, row=row: row[j])  # equal distances: the gallery's order
        kept = [gallery[j] for j in order if gallery[j] != (pid, camera)]
        hits = [place for place, (other, _) in enumerate(kept, start=1) if other == pid]
        if hits:
            precisions.append(sum(number / place for number, place in enumerate(hits, start=1)) / len(hits))
            inverses.append(len(hits) / hits[-1])
            curves.append([float(place >= hits[0]) for place in range(1, top + 1)])
    if not precisions:
        return None
    valid = len(precisions)
    cmc = [sum(curve[k] for curve in curves) / valid for k in range(top)]
    return sum(precisions) / valid, sum(inverses) / valid, cmc, valid


@st.composite
def problems(draw):
    """Distances with and without ties, between queries and gallery of few identities and cameras."""
    pairs = st.tuples(st.integers(0, 3), st.integers(0, 2))
    query = draw(st.lists(pairs, min_size=1, max_size=6))
    gallery = draw(st.lists(pairs, min_size=1, max_size=12))
    size = len(query) * len(gallery)
    if draw(st.booleans()):
        flat = draw(st.permutations(range(size)))
    else:
        flat = draw(st.lists(st.integers(-2, 3), min_size=size, max_size=size))
    rows = [[float(d) for d in flat[i : i + len(gallery)]] for i in range(0, size, len(gallery))]
    return rows, query, gallery


@settings(max_examples=50, deadline=None)
@given(problems(), st.integers(1, 15), st.sampled_from([1, 5, 2**24]))
def test_plain_loops_agree(problem, top, pairs_at_once):
    distances, query, gallery = problem
    expected = oracle(distances, query, gallery, top)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "PAIRS_AT_ONCE", pairs_at_once)
        if expected is None:
            with pytest.raises(DataError, match="valid match"):
                rank(torch.tensor(distances), labels(*query), labels(*gallery), top=top)
            return
        got = rank(torch.tensor(distances), labels(*query), labels(*gallery), top=top)
    assert (got.mAP, got.mINP) == pytest.approx(expected[:2], abs=1e-12)
    assert got.cmc.tolist() == pytest.approx(expected[2], abs=1e-12)
    assert (got.num_valid, got.num_queries) == (expected[3], len(query))


def random_problem(queries: int = 20, size: int = 60, dim: int = 5):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(queries + size, dim, generator=generator)
    pids, camids = (torch.randint(high, (queries + size,), generator=generator) for high in (8, 3))
    pids[:2] = 99  # two queries without a match
    query, gallery = (Labels(pids[rows], camids[rows]) for rows in (slice(queries), slice(queries, None)))
    return features[:queries], features[queries:], query, gallery


def test_features_are_compared_by_squared_euclidean_distance():
    query, gallery, *ids = random_problem()
    rows = [[sum((a - b) ** 2 for a, b in zip(q, g, strict=True)) for g in gallery.tolist()] for q in query.tolist()]
    pairs = [list(zip(side.pids.tolist(), side.camids.tolist(), strict=True)) for side in ids]
    expected = oracle(rows, *pairs, top=50)
    got = rank_features(query, gallery, *ids)
    assert (got.mAP, got.mINP) == pytest.approx(expected[:2], abs=1e-12)
    assert got.cmc.tolist() == pytest.approx(expected[2], abs=1e-12)
    assert (got.num_valid, got.num_queries) == (18, 20)


def test_features_are_compared_as_they_are():
    """The match has the same direction but is far away: second, though first by angle."""
    gallery = torch.tensor([[10.0, 0.0], [1.0, 0.5]])
    assert rank_features(torch.tensor([[1.0, 0.0]]), gallery, labels((1, 0)), labels((1, 1), (2, 1))).mAP == 1 / 2


@pytest.mark.parametrize("pairs", [1, 60, 200, 1199, 1200], ids=lambda pairs: f"{pairs} pairs")
def test_chunks_change_nothing(monkeypatch, pairs):
    query, gallery, *ids = random_problem()
    whole = rank_features(query, gallery, *ids)
    asked = []

    def rule(some: Labels, others: Labels) -> torch.Tensor:
        asked.append((len(some.pids), len(others.pids)))
        return same_camera(some, others)

    monkeypatch.setattr(metrics, "PAIRS_AT_ONCE", pairs)
    cut = rank_features(query, gallery, *ids, ignored=rule)
    assert (cut.mAP, cut.mINP) == pytest.approx((whole.mAP, whole.mINP), abs=1e-12)
    assert torch.allclose(cut.cmc, whole.cmc, rtol=0, atol=1e-12)
    assert (cut.num_valid, cut.num_queries) == (18, 20)
    size = max(1, pairs // 60)
    assert asked == [(min(size, 20 - start), 60) for start in range(0, 20, size)]


# --------------------------------------------------------------------------------------------------------------- extent


def test_cmc_of_a_small_gallery_goes_on_with_its_last_value():
    """Three gallery images, of which one query ignores two and the other none."""
    gallery = labels((1, 0), (1, 0), (1, 1))
    ranking = rank(torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), labels((1, 0), (1, 2)), gallery)
    assert ranking.cmc.shape == (50,)
    assert ranking.cmc.tolist() == [1] * 50
    gallery = labels((2, 0), (2, 0), (1, 1))
    assert rank(torch.arange(3.0)[None], labels((1, 0)), gallery, top=6).cmc.tolist() == [0, 0, 1, 1, 1, 1]


def test_cmc_has_as_many_ranks_as_asked_for():
    query, gallery, *ids = random_problem()
    assert rank_features(query, gallery, *ids).cmc.shape == (50,)
    long = rank_features(query, gallery, *ids, top=60).cmc
    assert torch.equal(rank_features(query, gallery, *ids, top=7).cmc, long[:7])
    assert long[0] < long[6]
    assert (long.diff() >= 0).all()
    assert long[-1] == 1


# --------------------------------------------------------------------------------------------------------------- errors


def test_no_match_because_of_the_camera():
    with pytest.raises(DataError) as error:
        rank(torch.zeros(2, 3), labels((1, 0), (2, 1)), labels((1, 0), (1, 0), (2, 1)))
    assert str(error.value) == (
        "none of 2 queries has a valid match: 2 have their identity in the gallery only where the protocol ignores it "
        "(e.g. identity 1: query in camera 0, gallery in cameras [0])"
    )


def test_no_match_because_the_identity_is_absent():
    with pytest.raises(DataError) as error:
        rank(torch.zeros(3, 2), labels((7, 0), (5, 0), (7, 1)), labels((1, 0), (2, 1)))
    assert str(error.value) == (
        "none of 3 queries has a valid match: 3 have an identity that the gallery lacks (e.g. 5, 7)"
    )


def test_no_match_for_both_reasons():
    with pytest.raises(DataError) as error:
        rank(torch.zeros(3, 2), labels((7, 0), (1, 0), (8, 1)), labels((1, 0), (2, 1)))
    message = str(error.value)
    assert "none of 3 queries" in message
    assert "1 have their identity in the gallery only where" in message and "identity 1: query in camera 0" in message
    assert "2 have an identity that the gallery lacks (e.g. 7, 8)" in message


@pytest.mark.parametrize("queries, size", [(0, 2), (2, 0), (0, 0)])
def test_nothing_to_rank(queries, size):
    def empty(count: int) -> Labels:
        return Labels(torch.zeros(count, dtype=torch.int64), torch.arange(count))

    with pytest.raises(DataError, match=f"nothing to rank: {queries} queries, {size} gallery images"):
        rank_features(torch.zeros(queries, 3), torch.zeros(size, 3), empty(queries), empty(size))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_not_finite(value):
    query, gallery, *ids = random_problem()
    for name, features in (("query", query), ("gallery", gallery)):
        kept = features.clone()
        features[3, 1] = features[5, 0] = features[5, 4] = value
        with pytest.raises(DataError, match=f"^2 {name} features are not finite, the first at row 3$"):
            rank_features(query, gallery, *ids)
        features.copy_(kept)


def test_distances_that_are_not_numbers():
    with pytest.raises(DataError, match="NaN"):
        rank(torch.tensor([[0.0, torch.nan]]), labels((1, 0)), labels((1, 1), (2, 1)))
