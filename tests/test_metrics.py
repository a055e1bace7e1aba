"""CMC, mAP and mINP of rankings worked out by hand; those of any ranking are in test_properties.py."""

import pytest
import torch

from utils import metrics
from utils.errors import DataError
from utils.metrics import rank, rank_features, same_camera
from utils.records import Labels


def labels(*pairs: tuple[int, int]) -> Labels:
    """(identity, camera) pairs as labels."""
    pids, camids = zip(*pairs, strict=True)
    return Labels(torch.tensor(pids), torch.tensor(camids))


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


def test_a_cmc_of_unique_identities_by_hand():
    """
    Query 1 sees 2, 2, 3, 2, 1, 1: two other identities come first, so it is found from rank 3 on.
    Query 4, which ignores the two nearest of 2, sees 3, 2, 1, 1, then 4: from rank 4 on.
    Query 9 has no match and does not count. With fewer than twenty identities the CMC has twenty ranks all the same.
    Average precision counts images: (1/5 + 2/6) / 2 and 1/5; so does the inverse penalty: 2/6 and 1/5.
    """
    query, gallery = labels((1, 0), (4, 0), (9, 0)), labels((2, 1), (2, 2), (3, 1), (2, 3), (1, 1), (1, 2), (4, 1))
    ignored = torch.zeros(3, 7, dtype=torch.bool)
    ignored[0, 6] = ignored[1, 0] = ignored[1, 1] = True
    distances = torch.tensor([[1, 1, 2, 2, 3, 4, 0], [0, 0, 1, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]], dtype=torch.float32)
    ranking = rank(distances, query, gallery, ignored=lambda *_: ignored, unique_identities=True, top=20)
    assert ranking.cmc.tolist() == [0, 0, 1 / 2, *[1] * 17]
    assert ranking.mAP == pytest.approx(((1 / 5 + 2 / 6) / 2 + 1 / 5) / 2, abs=1e-12)
    assert ranking.mINP == pytest.approx((2 / 6 + 1 / 5) / 2, abs=1e-12)
    assert (ranking.num_valid, ranking.num_queries) == (2, 3)


def test_the_same_identity_in_the_same_camera_is_ignored_and_nothing_else():
    query, gallery = labels((1, 0), (2, 1)), labels((1, 0), (1, 1), (2, 0), (2, 1), (0, 0))
    ignored = [[True, False, False, False, False], [False, False, False, True, False]]
    assert same_camera(query, gallery).tolist() == ignored


def test_features_are_compared_as_they_are():
    """The match has the same direction but is far away: second, though first by angle."""
    gallery = torch.tensor([[10.0, 0.0], [1.0, 0.5]])
    assert rank_features(torch.tensor([[1.0, 0.0]]), gallery, labels((1, 0)), labels((1, 1), (2, 1))).mAP == 1 / 2


def random_problem(queries: int = 20, size: int = 60, dim: int = 5):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(queries + size, dim, generator=generator)
    pids, camids = (torch.randint(high, (queries + size,), generator=generator) for high in (8, 3))
    pids[:2] = 99  # two queries without a match
    query, gallery = (Labels(pids[rows], camids[rows]) for rows in (slice(queries), slice(queries, None)))
    return features[:queries], features[queries:], query, gallery


@pytest.mark.parametrize("pairs", [1, 200, 1199, 1200], ids=lambda pairs: f"{pairs} pairs")
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


def test_cmc_of_a_small_gallery_goes_on_with_its_last_value():
    """Three gallery images, of which one query ignores two and the other none."""
    gallery = labels((1, 0), (1, 0), (1, 1))
    ranking = rank(torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), labels((1, 0), (1, 2)), gallery)
    assert ranking.cmc.tolist() == [1] * 50
    gallery = labels((2, 0), (2, 0), (1, 1))
    assert rank(torch.arange(3.0)[None], labels((1, 0)), gallery, top=6).cmc.tolist() == [0, 0, 1, 1, 1, 1]


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("query", "gallery", "says"),
    [
        (
            [(1, 0), (2, 1)],
            [(1, 0), (1, 0), (2, 1)],
            ["none of 2", "2 have their identity", "identity 1: query in camera 0, gallery in cameras [0]"],
        ),
        ([(7, 0), (5, 0), (7, 1)], [(1, 0), (2, 1)], ["none of 3", "3 have an identity", "5, 7"]),
        (
            [(7, 0), (1, 0), (8, 1)],
            [(1, 0), (2, 1)],
            ["none of 3", "1 have their identity", "identity 1: query in camera 0", "2 have an identity", "7, 8"],
        ),
    ],
    ids=["the camera", "the identity", "both"],
)
def test_no_match_because_of(query, gallery, says):
    with pytest.raises(DataError) as error:
        rank(torch.zeros(len(query), len(gallery)), labels(*query), labels(*gallery))
    assert [words for words in says if words not in str(error.value)] == []


@pytest.mark.parametrize("queries, size", [(0, 2), (2, 0), (0, 0)])
def test_nothing_to_rank(queries, size):
    def empty(count: int) -> Labels:
        return Labels(torch.zeros(count, dtype=torch.int64), torch.arange(count))

    with pytest.raises(DataError, match=f"{queries} queries, {size} gallery images"):
        rank_features(torch.zeros(queries, 3), torch.zeros(size, 3), empty(queries), empty(size))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", ["query", "gallery"])
def test_features_that_are_not_finite(part, value):
    query, gallery, *ids = random_problem()
    features = query if part == "query" else gallery
    features[3, 1] = features[5, 0] = features[5, 4] = value
    with pytest.raises(DataError, match=rf"2 {part} features .*row 3$"):
        rank_features(query, gallery, *ids)


def test_distances_that_are_not_numbers():
    with pytest.raises(DataError, match="NaN"):
        rank(torch.tensor([[0.0, torch.nan]]), labels((1, 0)), labels((1, 1), (2, 1)))
