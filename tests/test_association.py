"""Association of clusters across modalities: matching, exchange, mixing."""

from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.association import associate, association_accuracy, mix_pairs, swap_pairs


def draw(rows: int, dim: int = 6, seed: int = 0) -> Tensor:
    return F.normalize(
        torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )


def listed(pairs) -> list[tuple[int, int]]:
    return list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


@pytest.mark.parametrize(("n", "m"), [(4, 4), (3, 5), (5, 3), (1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_the_sum_of_similarities_is_the_largest(n, m, seed):
    first, second = draw(n, seed=seed), draw(m, seed=seed + 10)
    s = (first @ second.T).tolist()
    few, many = min(n, m), range(max(n, m))
    ways = [
        list(zip(range(n), p, strict=False) if n <= m else zip(p, range(m), strict=False))
        for p in permutations(many, few)
    ]
    best = max(ways, key=lambda way: sum(s[i][j] for i, j in way))
    pairs = associate(first, second)
    assert listed(pairs) == sorted((i, j) for i, j in best if s[i][j] >= 0)
    for i, j, similarity, margin in zip(*(part.tolist() for part in pairs), strict=True):
        others = [s[i][k] for k in range(m) if k != j] + [s[k][j] for k in range(n) if k != i]
        assert similarity == pytest.approx(s[i][j])
        assert margin == pytest.approx(s[i][j] - max(others)) if others else margin == float("inf")


def test_a_permutation_is_recovered_though_some_have_no_partner():
    first = draw(7, 16)
    order = torch.tensor([5, 2, 6, 0, 3])
    pairs = associate(first, F.normalize(first[order] + 0.05 * draw(5, 16, seed=1), dim=1))
    assert listed(pairs) == [(0, 3), (2, 1), (3, 4), (5, 0), (6, 2)]
    assert pairs.similarity > 0.99 and pairs.margin > 0.3
    pids = torch.arange(7)
    assert association_accuracy(pairs, pids, pids[order]) == 1
    assert association_accuracy(pairs, pids, torch.tensor([5, 2, 6, 1, 4])) == 3 / 5


def test_pairs_without_anything_in_common_have_no_margin():
    """Prototypes of two modalities that know nothing of each other: each has a pair, but hardly by a margin."""
    pairs = associate(draw(40, 64), draw(40, 64, seed=1))
    matched = associate(draw(40, 64), draw(40, 64))
    assert pairs.margin < 0.05 < 0.5 < matched.margin


def test_a_negative_similarity_is_skipped():
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    pairs = associate(first, torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    assert listed(pairs) == [(0, 0)]
    swapped = swap_pairs(first, torch.tensor([[0.6, 0.8], [0.0, -1.0]]), pairs)
    assert torch.equal(swapped[0], torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert torch.equal(swapped[1], torch.tensor([[1.0, 0.0], [0.0, -1.0]]))


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_a_modality_without_clusters(n, m):
    first, second = draw(n), draw(m)
    pairs = associate(first, second)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert listed(pairs) == [] and pairs.similarity is None and pairs.margin is None
    assert association_accuracy(pairs, nothing, nothing) is None
    for result in (swap_pairs(first, second, pairs), mix_pairs(first, second, pairs, (nothing, nothing))):
        assert torch.equal(result[0], first) and torch.equal(result[1], second)


def test_a_true_swap_exchanges_pairs_and_leaves_the_others():
    first, second = draw(5), draw(3, seed=1)
    pairs = associate(first, second)
    a, b = swap_pairs(first, second, pairs)
    assert len(listed(pairs)) >= 2
    partner, back = dict(listed(pairs)), {j: i for i, j in listed(pairs)}
    for i in range(5):
        assert torch.equal(a[i], second[partner[i]] if i in partner else first[i])
    for j in range(3):
        assert torch.equal(b[j], first[back[j]] if j in back else second[j])


def mixed_by_loops(first, second, pairs, seen, ratio):
    first, second = list(first), list(second)
    for i, j in pairs:
        if i in seen[0]:
            first[i] = F.normalize(ratio * first[i] + (1 - ratio) * second[j], dim=0)
        if j in seen[1]:
            second[j] = F.normalize(ratio * second[j] + (1 - ratio) * first[i], dim=0)
    return torch.stack(first), torch.stack(second)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (4, 7), (7, 4)])
def test_mixing_is_that_of_the_published_loop(n, m):
    first, second = draw(n), draw(m, seed=1)
    seen = torch.tensor([0, 2, 2, 3, -1]), torch.tensor([1, 3, 0, 0, 2])
    pairs = associate(first, second)
    before = first.clone(), second.clone()
    found = mix_pairs(first, second, pairs, seen, ratio=0.2)
    expected = mixed_by_loops(first, second, listed(pairs), tuple(s.tolist() for s in seen), 0.2)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(first, before[0]) and torch.equal(second, before[1])


def test_mixing_a_pair_that_is_in_the_batch_merges_it():
    """cos(a, b) = 0.71 before, 1 after; both are the second's."""
    first = torch.tensor([[1.0, 0.0]])
    second = F.normalize(torch.tensor([[1.0, 1.0]]), dim=1)
    both = torch.tensor([0])
    a, b = mix_pairs(first, second, associate(first, second), (both, both))
    assert (a @ b.T).item() == pytest.approx(1.0, abs=1e-4)
    assert (a @ second.T).item() == pytest.approx(0.997, abs=1e-3)
    assert (b @ second.T).item() == pytest.approx(0.998, abs=2e-3)
