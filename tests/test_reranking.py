"""Re-ranking: against the published algorithm written down densely in reference.py."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests import reference as ref
from tests.builders import TensorSizes
from utils import k_reciprocal
from utils.errors import DataError
from utils.reranking import expected_cost, rerank

EXACT = 1e-6


def clustered(num_images: int = 90, dim: int = 8, noise: float = 0.6, clusters: int = 9, seed: int = 0) -> Tensor:
    """Images around a few centres, in no order: their neighbourhoods overlap in every possible way."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, dim, generator=generator)
    which = torch.randint(clusters, (num_images,), generator=generator)
    return centres[which] + noise * torch.randn(num_images, dim, generator=generator)


def split(features: Tensor, num_queries: int = 20) -> tuple[Tensor, Tensor]:
    return features[:num_queries], features[num_queries:]


def dense(query: Tensor, gallery: Tensor, k1: int, k2: int, lambda_value: float) -> Tensor:
    """The published form in float64."""
    return torch.from_numpy(ref.rerank_dense(query.double(), gallery.double(), k1, k2, lambda_value))


@pytest.fixture
def itself_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference with every image ahead of its copies, where a mere sort takes the first of them."""

    def joint(queries, gallery):
        points = torch.cat([queries, gallery]).numpy()
        squared = ref.squared_distances(points, points)
        distances = (squared / np.where(squared.max(0) > 0, squared.max(0), 1)).T
        return distances, np.argsort(distances - np.eye(len(points)), axis=1, kind="stable")

    monkeypatch.setattr(ref, "_joint", joint)


def largest_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return (found - expected).abs().max().item()


# ----------------------------------------------------------------------------------------------- against the dense form


@pytest.mark.parametrize("unit", [True, False], ids=["normalised", "as they are"])
@pytest.mark.parametrize(
    ("k1", "k2", "lambda_value"),
    [(50, 15, 0.3), (4, 1, 0.0), (5, 2, 0.0), (7, 3, 0.5), (9, 4, 0.1), (3, 8, 0.2)],
)
def test_as_the_dense_form(k1: int, k2: int, lambda_value: float, unit: bool):
    """Even and odd k1, whose halves round up (7: 3.5) and down (5: 2.5, 9: 4.5); k2 below and beyond k1 + 1."""
    features = F.normalize(clustered()) if unit else 30 * clustered()
    query, gallery = split(features)
    found = rerank(query, gallery, k1, k2, lambda_value)
    assert found.dtype == torch.float32
    assert largest_error(found, dense(query, gallery, k1, k2, lambda_value)) < EXACT


def test_a_common_offset_costs_no_digits():
    """|a|² + |b|² - 2ab would be off by 1e-4 at an offset of 1000 in float32, and at one of 1e7 in float64, too."""
    query, gallery = split(clustered() + 1000)
    assert largest_error(rerank(query, gallery, 8, 3, 0.3), dense(query, gallery, 8, 3, 0.3)) < EXACT
    query, gallery = split(clustered().double() + 1e7)
    assert largest_error(rerank(query, gallery, 8, 3, 1.0), dense(query, gallery, 8, 3, 1.0)) < EXACT


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_no_unit_is_too_small_or_too_large(unit: float):
    """Squared distances of these are beyond float32."""
    query, gallery = split(unit * clustered())
    assert largest_error(rerank(query, gallery, 8, 3, 0.3), dense(query, gallery, 8, 3, 0.3)) < EXACT


@pytest.mark.parametrize("unit", [1e-3, 1e-19, 1e-22, 1e-37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_difference_is_too_small_beside_what_all_features_have(unit: float, dtype: torch.dtype):
    """Distances divided by squares of 1e-22 would be NaN."""
    query, gallery = split(clustered())
    one = torch.ones(len(query) + len(gallery), 1, dtype=dtype)
    common = split(torch.cat([unit * clustered().to(dtype), one], dim=1))
    assert largest_error(rerank(*common, 8, 3, 0.3), dense(query, gallery, 8, 3, 0.3)) < EXACT


def test_no_distance_is_negative():
    """|a|² + |b|² - 2ab is, for images that are far from the others and all but the same: here by about 1."""
    features = 1e8 * clustered().double()
    features[20:] = features[:70] * (1 + 1e-12)
    assert rerank(*split(features), 8, 3, 1.0).min() >= 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_precision(dtype: torch.dtype):
    """Half-precision features are compared in float64, too."""
    query, gallery = split(clustered().to(dtype))
    expected = dense(query.double(), gallery.double(), 8, 3, 0.3)
    assert largest_error(rerank(query, gallery, 8, 3, 0.3), expected) < EXACT


# ------------------------------------------------------------------------------------------------ copies and other ties


@pytest.mark.usefixtures("itself_first")
@pytest.mark.parametrize(("k1", "k2"), [(6, 3), (9, 1), (3, 5)])
def test_equal_distances_keep_their_order(k1: int, k2: int):
    """On a grid nearly all distances have their equals, and many images their copies."""
    features = torch.randint(3, (70, 4), generator=torch.Generator().manual_seed(5)).float()
    query, gallery = split(features)
    assert largest_error(rerank(query, gallery, k1, k2, 0.3), dense(query, gallery, k1, k2, 0.3)) < EXACT


@pytest.mark.usefixtures("itself_first")
def test_copies_keep_their_order():
    """Ten copies of nine images, more than there are neighbours: each has itself and the first of the others."""
    features = F.normalize(clustered(num_images=9, dim=61)).repeat(10, 1)
    query, gallery = split(features)
    for k1, k2 in ((6, 3), (3, 2), (20, 4)):
        assert largest_error(rerank(query, gallery, k1, k2, 0.0), dense(query, gallery, k1, k2, 0.0)) < EXACT


def test_few_copies_are_as_after_a_mere_sort():
    features = clustered()
    features[[3, 40, 77]] = features[[25, 41, 5]]
    query, gallery = split(features)
    expected = dense(query, gallery, 12, 4, 0.3)
    assert largest_error(rerank(query, gallery, 12, 4, 0.3), expected) < EXACT


@pytest.mark.usefixtures("itself_first")
def test_images_that_are_all_the_same_are_at_distance_0():
    same = torch.tensor([[0.1, 0.7, -0.3]])
    assert rerank(same, same.repeat(3, 1), 5, 2, 0.3).tolist() == [[0, 0, 0]]
    # Of seven such images, k1 = 2 chooses two for each: the first ones, so that not all are one another's neighbours.
    found = rerank(same.repeat(2, 1), same.repeat(5, 1), 2, 1, 0.3)
    torch.testing.assert_close(found.double(), dense(same.repeat(2, 1), same.repeat(5, 1), 2, 1, 0.3))


def sparse_rows(dtype: torch.dtype) -> tuple[k_reciprocal.SparseRows, Tensor]:
    """Weights of sixty images, and their nine neighbours."""
    features = F.normalize(clustered(60)).to(dtype)
    neighbours = torch.cdist(features, features).argsort(dim=1)[:, :9]
    return k_reciprocal.expanded_weights(features, torch.ones_like(features[:, 0]), neighbours, 8), neighbours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cpu_adds_as_other_devices_do(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """Means of rows and sums of minima, to the bit."""
    weights, neighbours = sparse_rows(dtype)
    means = k_reciprocal._means(weights, neighbours)
    for one, other in zip(means, k_reciprocal._means_on_cpu(weights, neighbours), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    monkeypatch.setattr(k_reciprocal, "SUMMANDS_AT_ONCE", 500)
    means, sums = k_reciprocal.in_units(means)
    assert (sums * k_reciprocal.UNIT - 1).abs().max() < 1e-6
    holders = k_reciprocal._transposed(means, 20)
    for rows in (slice(0, 20), slice(7, 8), slice(20, 60)):
        expected = k_reciprocal._minima(means, holders, rows, 40)
        assert expected.max() > 0 and torch.equal(k_reciprocal._minima_on_cpu(means, holders, rows, 40), expected)


@pytest.mark.parametrize("near", [5, 40])
def test_neighbours_that_float32_cannot_tell_apart(near: int):
    """Images around a few others, nearer to each other's distance than float32 rounds."""
    features = F.normalize(clustered(20, dim=64)).repeat_interleave(near, dim=0)
    features += 3e-7 * torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    query, gallery = split(features)
    for k1, k2 in ((11, 3), (7, 8), (16, 12)):
        assert largest_error(rerank(query, gallery, k1, k2, 0.0), dense(query, gallery, k1, k2, 0.0)) < EXACT


# -------------------------------------------------------------------------------------------------------- sizes, chunks


@pytest.mark.parametrize(("num_queries", "num_gallery"), [(1, 1), (1, 2), (1, 30), (30, 1), (2, 2)])
@pytest.mark.parametrize("k1", [1, 5, 50, 1000])
def test_few_images(num_queries: int, num_gallery: int, k1: int):
    """With more neighbours than images all of them are neighbours."""
    query, gallery = split(clustered(num_queries + num_gallery), num_queries)
    for k2 in (1, 2, 200):
        assert largest_error(rerank(query, gallery, k1, k2, 0.3), dense(query, gallery, k1, k2, 0.3)) < EXACT


@pytest.mark.parametrize("pairs", [1, 200, 1111, 5000])
def test_any_chunks_give_the_same(pairs: int, monkeypatch: pytest.MonkeyPatch):
    """Chunks of one image, of some that divide neither queries nor images, and across the border between them."""
    query, gallery = split(clustered())
    whole = rerank(query, gallery, 8, 3, 0.3)
    monkeypatch.setattr(k_reciprocal, "PAIRS_AT_ONCE", pairs)
    torch.testing.assert_close(rerank(query, gallery, 8, 3, 0.3), whole, rtol=0, atol=2e-7)


def test_chunks_bound_the_memory(monkeypatch: pytest.MonkeyPatch):
    """Nothing comes near a matrix of all images, not even where the budget is a fortieth of one."""
    query, gallery = split(clustered(num_images=400), 10)
    sizes = TensorSizes()
    monkeypatch.setattr(k_reciprocal, "PAIRS_AT_ONCE", 4000)
    with sizes:
        rerank(query, gallery, 8, 3, 0.3)
    assert sizes.largest < 400 * 400 / 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_what_it_will_take_grows_with_the_result(dtype: torch.dtype):
    small, large = (expected_cost(*split(torch.randn(number, 8).to(dtype), 50)) for number in (100, 40_000))
    assert small.seconds > 0 and large.seconds > small.seconds
    assert large.memory - small.memory > 50 * 39_900 * 4


def test_features_are_left_alone():
    query, gallery = split(clustered().double().requires_grad_())
    before = query.clone(), gallery.clone()
    assert not rerank(query, gallery, 8, 3, 0.3).requires_grad
    assert torch.equal(query, before[0]) and torch.equal(gallery, before[1])


# ----------------------------------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite(value: float):
    query, gallery = split(clustered())
    broken = gallery.clone()
    broken[[7, 9], 2] = value
    with pytest.raises(DataError, match=r"2 gallery .*row 7"):
        rerank(query, broken, 8, 3, 0.3)
    with pytest.raises(DataError, match="2 query"):
        rerank(broken, gallery, 8, 3, 0.3)


@pytest.mark.parametrize(("queries", "images"), [(0, 70), (20, 0)])
def test_nothing_to_rank(queries: int, images: int):
    query, gallery = split(clustered())
    with pytest.raises(DataError, match=f"{queries} queries, {images} gallery"):
        rerank(query[:queries], gallery[:images], 8, 3, 0.3)
