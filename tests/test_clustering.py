"""Clustering: the sparse Jaccard distance against a dense one, and what becomes of its clusters."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN
from torch import Tensor
from torch.nn import functional as F

from tests import reference as ref
from tests.builders import TensorSizes
from utils import k_reciprocal
from utils.clustering import cluster, majorities, near_pairs, purity
from utils.errors import DataError

EPS = 0.6


def people(noise: float = 0.5, images: int = 60, clusters: int = 6, seed: int = 0) -> Tensor:
    """Images around a few centres, in no order; four that are like nothing else; three copies of other images."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, 16, generator=generator)
    which = torch.randint(clusters, (images,), generator=generator)
    features = centres[which] + noise * torch.randn(images, 16, generator=generator)
    features[10:14] = torch.randn(4, 16, generator=generator)
    features[[3, 30, 59]] = features[[40, 41, 5]]
    return F.normalize(features, dim=1)


@pytest.mark.parametrize("noise", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("k1", "k2"), [(30, 6), (10, 6), (7, 1), (5, 9), (1, 2), (200, 100)])
def test_near_pairs_are_those_of_the_dense_form(noise, dtype, k1, k2):
    features = people(noise).to(dtype)
    dense = ref.jaccard_dense(features, k1, k2)
    found = near_pairs(features, EPS, k1, k2)
    near = dense <= EPS
    assert abs(dense - EPS).min() > 1e-6  # no pair is on the edge
    assert found.nnz == near.sum()
    assert np.abs(found.toarray() - np.where(near, dense, 0)).max() < 1e-6
    labels = DBSCAN(eps=EPS, min_samples=4, metric="precomputed").fit(dense.clip(min=0)).labels_
    assert cluster(found, EPS).tolist() == labels.tolist()


def test_some_of_those_are_outliers_and_some_clusters():
    labels = cluster(near_pairs(people(), EPS, 10), EPS)
    assert labels.max() >= 3 and (labels < 0).any() and labels[3] == labels[40] and labels.dtype == torch.int64


def test_many_copies():
    """More copies of an image than it has neighbours: each of them has itself and the first of the others."""
    features = F.normalize(people(images=60)[:9], dim=1).repeat(10, 1)
    for k1, k2 in ((6, 3), (20, 4)):
        dense = ref.jaccard_dense(features, k1, k2)
        found = near_pairs(features, EPS, k1, k2)
        assert np.abs(found.toarray() - np.where(dense <= EPS, dense, 0)).max() < 1e-6


def test_pairs_at_distance_0_are_kept():
    features = people()[:1].repeat(5, 1)
    found = near_pairs(features, EPS, 5, 3)
    assert found.nnz == 25 and (found.data == 1e-7).all()
    assert cluster(found, EPS).tolist() == [0] * 5


def test_features_that_have_much_in_common():
    """Cosines of a network that has learnt nothing are all near 1: their differences are what counts."""
    features = F.normalize(people().double() + 100, dim=1)
    dense = ref.jaccard_dense(features, 10)
    found = near_pairs(features.float(), EPS, 10).toarray()
    agree = (found > 0) == (dense <= EPS)
    assert agree.mean() > 0.99


@pytest.mark.parametrize("pairs", [1, 200, 1111])
def test_any_chunks_give_the_same(pairs: int, monkeypatch: pytest.MonkeyPatch):
    features = people().double()
    whole = near_pairs(features, EPS, 10)
    monkeypatch.setattr(k_reciprocal, "PAIRS_AT_ONCE", pairs)
    found = near_pairs(features, EPS, 10)
    assert (found.indices == whole.indices).all() and np.abs(found.data - whole.data).max() < 1e-12


@pytest.mark.parametrize("count", [1, 7, 40])
@pytest.mark.parametrize("copies", [False, True])
def test_the_nearest_of_many_that_are_equally_near_are_the_first(count: int, copies: bool, monkeypatch):
    """Distances of whole numbers are exact, and most images have several others at the same one."""
    grid = torch.randint(0, 3, (60, 5), generator=torch.Generator().manual_seed(0)).float()
    features = grid if copies else grid[sorted({tuple(row): place for place, row in enumerate(grid.tolist())}.values())]
    known = k_reciprocal.Distances(features, torch.zeros(5))
    assert known.copied == copies
    distances = torch.cdist(features.double(), features.double()).square().round().fill_diagonal_(-1)
    expected = distances.sort(dim=1, stable=True).indices[:, :count]
    for pairs in (2**24, 500, 1):
        monkeypatch.setattr(k_reciprocal, "PAIRS_AT_ONCE", pairs)
        assert torch.equal(k_reciprocal.nearest_of_all(known, count), expected)


def test_copies_are_equally_far_to_the_last_bit(monkeypatch):
    """A product rounds differently from one column to the next, and from one block to another."""
    features = F.normalize(torch.randn(67, 200, generator=torch.Generator().manual_seed(0)))
    features[20:40] = features[47:]
    known = k_reciprocal.Distances(features, features.mean(dim=0))
    for pairs in (2**24, 500, 67):
        monkeypatch.setattr(k_reciprocal, "PAIRS_AT_ONCE", pairs)
        for rows, columns, block in known.blocks():
            assert columns == slice(0, 67) and torch.equal(block, block[:, known.copy_of])
            assert (block[known.copy_of[rows, None] == known.copy_of] == 0).all()


def test_distances_are_left_alone():
    found = near_pairs(people(), EPS, 10)
    before = found.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cluster(found, 0.3)
    assert (found.data == before.data).all() and (found.indices == before.indices).all()


def test_both_ways_are_equally_far():
    found = near_pairs(people(noise=0.8), EPS, 10)
    assert (found != found.T).nnz == 0


def test_nothing_as_large_as_all_pairs(monkeypatch: pytest.MonkeyPatch):
    features, sizes = people(images=400, clusters=40), TensorSizes()
    monkeypatch.setattr(k_reciprocal, "PAIRS_AT_ONCE", 4000)
    with sizes:
        near_pairs(features, EPS, 8, 3)
    assert sizes.largest < 400 * 400 / 4


@pytest.mark.parametrize(("images", "labels"), [(1, [-1]), (3, [-1] * 3), (4, [0] * 4)])
def test_few_images(images: int, labels: list[int]):
    features = F.normalize(torch.ones(images, 4) + 0.01 * torch.randn(images, 4, generator=torch.Generator()), dim=1)
    assert cluster(near_pairs(features, EPS), EPS).tolist() == labels


def test_features_that_are_not_finite_and_none():
    features = people()
    features[[7, 9], 2] = math.nan
    with pytest.raises(DataError, match=r"2 features .*row 7"):
        near_pairs(features, EPS)
    with pytest.raises(DataError, match="no image"):
        near_pairs(features[:0], EPS)


# ---------------------------------------------------------------------------------------------------------- diagnostics


def test_diagnostics_by_hand():
    labels = torch.tensor([0, 0, 0, 1, 1, -1, 2, 2])
    pids = torch.tensor([9, 9, 4, 9, 4, 4, 7, 7])
    assert majorities(labels, pids).tolist() == [9, 4, 7]
    assert purity(labels, pids) == 5 / 7


def test_diagnostics_without_clusters():
    labels, pids = torch.tensor([-1, -1]), torch.tensor([3, 4])
    assert majorities(labels, pids).tolist() == []
    assert purity(labels, pids) is None
