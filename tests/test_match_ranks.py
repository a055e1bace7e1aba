"""Ranks found by counting are those of the whole gallery in order, to the bit: ties, what is dropped, devices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor

from tests import reference as ref
from tests.test_properties import bounded
from utils import match_ranks
from utils.errors import DataError
from utils.match_ranks import Identities, retrieve
from utils.metrics import rank, rank_features, same_camera
from utils.records import Labels


def problem(seed: int, queries: int, images: int, values: int, identities: int, dropped: float):
    """Distances of so many different values, labels, and a share of pairs that are dropped."""
    generator = torch.Generator().manual_seed(seed)
    distances = torch.randint(values, (queries, images), generator=generator) / values
    distances[torch.rand(queries, images, generator=generator) < 0.05] = torch.inf
    pids = [torch.randint(identities, (count,), generator=generator) for count in (queries, images)]
    return distances, torch.rand(queries, images, generator=generator) < dropped, *pids


def assert_same(found: match_ranks.Retrieval, expected: tuple[Tensor, ...], top: int) -> None:
    precision, inverse, cmc = expected
    event(f"{'some' if len(precision) else 'no'} valid queries")
    assert torch.equal(found.precision[found.valid], precision)
    assert torch.equal(found.inverse[found.valid], inverse)
    assert torch.equal((found.first[found.valid, None] <= torch.arange(1, top + 1)).double(), cmc)


@bounded(300)
@given(
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(1, 40),
    st.sampled_from([1, 3, 1000, 10**6]),
    st.sampled_from([1, 2, 7, 50]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.booleans(),
    st.sampled_from([1, 50, 2**20]),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_as_with_the_whole_gallery_in_order(seed, queries, images, values, identities, share, unique, block, dtype):
    distances, dropped, query_pids, gallery_pids = problem(seed, queries, images, values, identities, share)
    distances = distances.to(dtype)
    before = distances.clone()
    options = {"unique_identities": unique}
    expected = ref.cmc_map_by_sorting(distances, dropped, query_pids, gallery_pids, **options, top=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(match_ranks, "IN_CACHE", block)
        found = retrieve(distances, dropped, query_pids, Identities.of(gallery_pids), **options)
    assert_same(found, expected, 9)
    assert torch.equal(distances, before)


@pytest.mark.parametrize("values", [2, 40, 10**6])
def test_comparing_all_is_the_same_as_searching(values):
    """The way of a GPU, on a CPU."""
    distances, dropped, query_pids, gallery_pids = problem(3, 20, 90, values, 5, 0.2)
    gallery = Identities.of(gallery_pids)
    with match_ranks._Space(distances, 20) as space:
        kept = space.keep(distances, dropped)
        places, matches = match_ranks._matches(dropped, query_pids, gallery)
        searched = space.ranks(kept, places, matches)[matches]
        assert torch.equal(match_ranks._count_all(kept, kept.gather(1, places), places)[matches], searched)
    assert matches.any() and not matches.all()


@pytest.mark.parametrize("grid", [False, True], ids=["few ties", "many ties"])
def test_features_are_ranked_as_with_the_whole_gallery_in_order(grid, monkeypatch):
    """Chunks of queries, the last one smaller, and blocks in these."""
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(330, 16, generator=generator)
    features = features.round() if grid else features
    pids, camids = (torch.randint(high, (330,), generator=generator) for high in (12, 3))
    query, gallery = (Labels(pids[rows], camids[rows]) for rows in (slice(30), slice(30, None)))
    monkeypatch.setattr("utils.metrics.PAIRS_AT_ONCE", 300 * 7)
    monkeypatch.setattr(match_ranks, "IN_CACHE", 300 * 3)
    found = rank_features(features[:30], features[30:], query, gallery, top=8)
    parts = []
    lengths = features[30:].square().sum(dim=1)
    for start in range(0, 30, 7):
        rows = slice(start, min(start + 7, 30))
        chunk, labels = features[rows], Labels(pids[rows], camids[rows])
        distances = chunk.square().sum(dim=1, keepdim=True) + lengths - 2 * chunk @ features[30:].T
        parts.append(ref.cmc_map_by_sorting(distances, same_camera(labels, gallery), labels.pids, gallery.pids, top=8))
    precision, inverse, cmc = (torch.cat(fields) for fields in zip(*parts, strict=True))
    assert torch.equal(found.precision, precision) and torch.equal(found.cmc, cmc.mean(dim=0))
    assert (found.mAP, found.mINP) == (precision.mean().item(), inverse.mean().item())


def test_a_match_at_a_distance_that_is_no_number():
    """Finite features of which the squares are infinite."""
    features = torch.full((3, 2), 1e20)
    labels = Labels(torch.tensor([1, 1, 2]), torch.arange(3))
    query, gallery = (Labels(*(field[rows] for field in labels)) for rows in (slice(1), slice(1, None)))
    with pytest.raises(DataError, match="NaN"):
        rank_features(features[:1], features[1:], query, gallery)


def test_given_distances_stay_as_they_are():
    distances, _, *pids = problem(5, 6, 30, 10, 4, 0.0)
    before = distances.clone()
    rank(distances, *(Labels(some, torch.arange(len(some))) for some in pids))
    assert torch.equal(distances, before)
