"""Alpha query expansion against its formula, with plain loops."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from utils import k_reciprocal
from utils.errors import DataError
from utils.query_expansion import expand_queries


def crowd(queries: int = 7, gallery: int = 23, dim: int = 5) -> tuple[Tensor, Tensor]:
    features = torch.randn(queries + gallery, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = F.normalize(features)
    return features[:queries], features[queries:]


def by_loops(query: Tensor, gallery: Tensor, k: int, alpha: float) -> list[list[float]]:
    expanded = []
    for q in query.tolist():
        similarities = [sum(a * b for a, b in zip(q, g, strict=True)) for g in gallery.tolist()]
        order = sorted(range(len(similarities)), key=lambda each: -similarities[each])
        total = list(q)
        for each in order[:k]:
            weight = max(similarities[each], 0.0) ** alpha
            total = [a + weight * b for a, b in zip(total, gallery[each].tolist(), strict=True)]
        length = math.sqrt(sum(a * a for a in total))
        expanded.append([a / length for a in total])
    return expanded


@pytest.mark.parametrize(("k", "alpha"), [(1, 3.0), (5, 3.0), (5, 0.5), (5, 0.0), (23, 1.0), (99, 2.0)])
def test_as_the_formula_says(k, alpha):
    """k = 23 takes in images of negative similarity; there are no more than 23."""
    query, gallery = crowd()
    before = query.clone(), gallery.clone()
    found = expand_queries(query, gallery, k, alpha)
    expected = torch.tensor(by_loops(query, gallery, k, alpha), dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert torch.equal(query, before[0]) and torch.equal(gallery, before[1])


def test_by_hand():
    """Neighbours at cosine 0.8 and 0.6 of [1, 0]: [1, 0] + 0.64 [0.8, 0.6] + 0.36 [0.6, -0.8]."""
    gallery = torch.tensor([[0.6, -0.8], [-1.0, 0.0], [0.8, 0.6]])
    found = expand_queries(torch.tensor([[1.0, 0.0]]), gallery, 2, 2.0)
    assert torch.allclose(found, F.normalize(torch.tensor([[1.728, 0.096]])))


@pytest.mark.parametrize("pairs", [1, 50, 10_000])
def test_chunks_change_nothing(pairs, monkeypatch):
    query, gallery = crowd()
    whole = expand_queries(query, gallery, 4, 3.0)
    monkeypatch.setattr(k_reciprocal, "PAIRS_AT_ONCE", pairs)
    assert torch.allclose(expand_queries(query, gallery, 4, 3.0), whole, rtol=0, atol=1e-12)


def test_of_equally_similar_images_the_first_join():
    gallery = torch.tensor([[0.0, 1.0, 0.0], [0.6, 0.8, 0.0], [0.6, 0.0, 0.8], [0.6, 0.0, -0.8]])
    found = expand_queries(torch.tensor([[1.0, 0.0, 0.0]]), gallery, 1, 0.0)
    assert torch.allclose(found, F.normalize(torch.tensor([[1.6, 0.8, 0.0]])))


def test_nothing_to_expand_with():
    with pytest.raises(DataError):
        expand_queries(torch.eye(2), torch.empty(0, 2), 1, 1.0)
    with pytest.raises(DataError, match="1 gallery features"):
        expand_queries(torch.eye(2), torch.tensor([[1.0, torch.nan]]), 1, 1.0)
