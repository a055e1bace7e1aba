"""Properties of the P x K sampler over random numbers of images an identity."""

from collections import Counter
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.sampler import IdentitySampler
from utils.errors import DataError


@st.composite
def problems(draw):
    """(identity of every image, P, K, seed): 2 to 9 identities with 1 to 12 images, names and order arbitrary."""
    names = draw(st.lists(st.integers(-3, 2000), min_size=2, max_size=9, unique=True))
    pids = draw(st.permutations([pid for pid in names for _ in range(draw(st.integers(1, 12)))]))
    return pids, draw(st.integers(1, len(names))), draw(st.integers(1, 5)), draw(st.integers(0, 2**31))


bounded = settings(max_examples=50, deadline=None)


@bounded
@given(problems())
def test_batches_are_full_and_identities_in_them_distinct(problem):
    pids, identities, instances, seed = problem
    sampler = IdentitySampler(pids, identities, instances, seed=seed)
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(sampler) == len(batches) >= 1
        for batch in batches:
            assert len(batch) == identities * instances
            groups = [[pids[row] for row in batch[k : k + instances]] for k in range(0, len(batch), instances)]
            assert all(len(set(group)) == 1 for group in groups)
            assert len({group[0] for group in groups}) == identities


@bounded
@given(problems())
def test_no_image_twice_in_an_epoch_unless_its_identity_has_too_few(problem):
    pids, identities, instances, seed = problem
    images = Counter(pids)
    used = Counter(row for batch in IdentitySampler(pids, identities, instances, seed=seed) for row in batch)
    assert all(count == 1 for row, count in used.items() if images[pids[row]] >= instances)


@bounded
@given(problems())
def test_the_epoch_ends_when_fewer_than_p_identities_have_groups_left(problem):
    pids, identities, instances, seed = problem
    left = {pid: max(1, count // instances) for pid, count in Counter(pids).items()}
    for batch in IdentitySampler(pids, identities, instances, seed=seed):
        assert sum(groups > 0 for groups in left.values()) >= identities
        for pid in {pids[row] for row in batch}:
            left[pid] -= 1
    assert min(left.values()) >= 0
    assert sum(groups > 0 for groups in left.values()) < identities


@bounded
@given(problems())
def test_the_draw_depends_on_seed_and_epoch_alone(problem):
    pids, identities, instances, seed = problem
    one, other = (IdentitySampler(pids, identities, instances, seed=seed) for _ in range(2))
    for epoch in (3, 1, 2):
        other.set_epoch(epoch)
        list(other)
    one.set_epoch(2)
    assert list(one) == list(other) == list(one)


def test_other_epochs_and_seeds_draw_anew():
    pids = [pid for pid in range(8) for _ in range(8)]
    draws = []
    for seed in (0, 1):
        sampler = IdentitySampler(pids, 4, 4, seed=seed)
        for epoch in (1, 2):
            sampler.set_epoch(epoch)
            draws.append(list(sampler))
    assert all(a != b for a, b in combinations(draws, 2))


@bounded
@given(problems(), st.integers(1, 3))
def test_processes_share_every_batch(problem, world_size):
    pids, identities, instances, seed = problem
    if identities % world_size:
        with pytest.raises(ValueError, match=f"{identities} identities .* {world_size} processes"):
            IdentitySampler(pids, identities, instances, seed=seed, world_size=world_size)
        return
    whole = IdentitySampler(pids, identities, instances, seed=seed)
    shares = [
        IdentitySampler(pids, identities, instances, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for sampler in (whole, *shares):
        sampler.set_epoch(5)
    assert all(len(share) == len(whole) for share in shares)
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(len(part) == len(batch) // world_size for part in parts)
        assert sorted(chain(*parts)) == sorted(batch)
        owners = [{pids[row] for row in part} for part in parts]
        assert sum(map(len, owners)) == identities  # each identity has one owner


def test_identities_are_drawn_uniformly():
    """One batch of two out of four identities: each of the six pairs in a sixth of 600 epochs (100 ± 5 deviations)."""
    sampler = IdentitySampler([0, 0, 1, 1, 2, 2, 3, 3], 2, 2, seed=0)
    pairs = Counter()
    for epoch in range(600):
        sampler.set_epoch(epoch)
        first = next(iter(sampler))
        pairs[frozenset(row // 2 for row in first)] += 1
    assert len(pairs) == 6
    deviation = (600 * 1 / 6 * 5 / 6) ** 0.5
    assert all(abs(count - 100) < 5 * deviation for count in pairs.values())


def test_an_identity_with_few_images_fills_its_places_from_them():
    sampler = IdentitySampler([7, 5, 5, 5, 5], 2, 4, seed=0)
    (batch,) = sampler
    assert sorted(batch) == [0, 0, 0, 0, 1, 2, 3, 4]


def test_too_few_images_are_drawn_with_replacement():
    """Three images for four places, 100 times: each of the 15 ways to fill them is possible, (4, 0, 0) included."""
    sampler = IdentitySampler([7, 7, 7, 5, 5, 5, 5], 2, 4, seed=0)
    ways = set()
    for epoch in range(100):
        sampler.set_epoch(epoch)
        (batch,) = sampler
        ways.add(tuple(sorted(row for row in batch if row < 3)))
    assert {len(way) for way in ways} == {4}
    assert len(ways) > 10
    assert max(way.count(0) for way in ways) == 4


def test_an_identity_s_images_meet_in_every_constellation():
    """Four images in two groups of two, in 60 epochs: 0 with 1, with 2 and with 3, each in a third of them or so."""
    sampler = IdentitySampler([7, 7, 7, 7, 5, 5, 5, 5], 2, 2, seed=0)
    partners = Counter()
    for epoch in range(60):
        sampler.set_epoch(epoch)
        groups = [{*batch[start : start + 2]} for batch in sampler for start in (0, 2)]
        (group,) = (group for group in groups if 0 in group)
        partners.update(group - {0})
    assert set(partners) == {1, 2, 3}
    assert min(partners.values()) >= 8


def test_fewer_than_p_identities():
    with pytest.raises(DataError, match=r"IMS_PER_BATCH 12 .*NUM_INSTANCE 4 takes 3 identities .* has 2"):
        IdentitySampler([0, 0, 1, 1, 1], 3, 4, seed=0)


@pytest.mark.parametrize("identities, instances", [(0, 4), (4, 0)])
def test_an_empty_batch_is_refused(identities, instances):
    with pytest.raises(ValueError, match="no batch"):
        IdentitySampler([0, 1, 2, 3], identities, instances, seed=0)
