"""How the P x K sampler draws; what every batch has is in test_properties.py."""

from collections import Counter
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.sampler import ClusterSampler, IdentitySampler


@st.composite
def problems(draw):
    """(identity of every image, P, K, seed): 2 to 9 identities with 1 to 12 images, names and order arbitrary."""
    names = draw(st.lists(st.integers(-3, 2000), min_size=2, max_size=9, unique=True))
    pids = draw(st.permutations([pid for pid in names for _ in range(draw(st.integers(1, 12)))]))
    return pids, draw(st.integers(1, len(names))), draw(st.integers(1, 5)), draw(st.integers(0, 2**31))


bounded = settings(max_examples=50, deadline=None)


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


def test_an_epoch_of_a_given_number_of_batches_is_made_of_whole_passes():
    """Four identities of four images: a pass has eight batches of an identity and two images."""
    pids = [pid for pid in range(4) for _ in range(4)]
    one = IdentitySampler(pids, 1, 2, seed=0)
    one.set_epoch(3)
    for count in (1, 8, 11, 20):
        sampler = IdentitySampler(pids, 1, 2, seed=0, count=count)
        sampler.set_epoch(3)
        drawn = list(sampler)
        assert len(sampler) == len(drawn) == count and drawn[:8] == list(one)[:count]
        seen = Counter(row for batch in drawn for row in batch)
        assert {seen[row] for row in range(16)} <= {count // 8, -(-count // 8)}
        sampler.set_epoch(3, done=1)
        assert list(sampler) == drawn[1:]


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


# ------------------------------------------------------------------------------------------ clusters of two modalities

counts = st.lists(st.integers(1, 12), max_size=7)


@bounded
@given(
    sizes=st.tuples(counts, counts),
    outliers=st.integers(0, 3),
    clusters=st.integers(1, 5),
    instances=st.integers(1, 5),
    world_size=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_batches_of_clusters_of_two_modalities(sizes, outliers, clusters, instances, world_size, seed, data):
    images = [(label, modality) for modality in (0, 1) for label, n in enumerate(sizes[modality]) for _ in range(n)]
    images = data.draw(st.permutations(images + [(-1, 0), (-1, 1)] * outliers))
    labels, modalities = ([image[part] for image in images] for part in (0, 1))

    def sampler(**how) -> ClusterSampler:
        made = ClusterSampler(labels, modalities, clusters, instances, seed=seed, **how)
        made.set_epoch(3)
        return made

    whole = sampler()
    batches = list(whole)
    largest = max(map(sum, sizes))
    assert len(whole) == len(batches) == (largest // (clusters * instances) + 1 if largest else 0)
    for batch in batches:
        expected = [min(clusters, len(sizes[modality])) for modality in (0, 1)]
        assert [modalities[row] for row in batch] == sorted(modalities[row] for row in batch)
        for modality, number in enumerate(expected):
            half = [row for row in batch if modalities[row] == modality]
            groups = [half[start : start + instances] for start in range(0, len(half), instances)]
            owners = [{labels[row] for row in group} for group in groups]
            assert len(groups) == number == len(set().union(*owners)) and all(
                len(group) == instances for group in groups
            )
            for group, (owner,) in zip(groups, owners, strict=True):
                assert owner >= 0
                if sizes[modality][owner] >= instances:
                    assert len(set(group)) == instances
    whole.set_epoch(3, 1)
    assert list(whole) == batches[1:]
    whole.set_epoch(4)
    whole.set_epoch(3)
    assert list(whole) == batches

    parts = [sampler(rank=rank, world_size=world_size) for rank in range(world_size)]
    shared_images = max((sum(half) for half in sizes if len(half) >= world_size), default=0)
    assert {len(part) for part in parts} == {shared_images // (clusters * instances) + 1 if shared_images else 0}
    for *pieces, batch in zip(*parts, batches):  # noqa: B905 (a modality that takes no part may be the larger one)
        assert all(pieces) or clusters < world_size
        assert len({tuple(modalities[row] for row in piece) for piece in pieces}) == 1
        for modality in (0, 1):
            shared = [row for piece in pieces for row in piece if modalities[row] == modality]
            number = min(clusters, len(sizes[modality])) // world_size * world_size
            assert len({labels[row] for row in shared}) == number and len(shared) == number * instances
            if number == min(clusters, len(sizes[modality])):
                assert Counter(shared) == Counter(row for row in batch if modalities[row] == modality)


def test_clusters_are_drawn_uniformly_and_modalities_independently():
    """Four clusters of each, one in a batch: each of the 16 combinations in a sixteenth of 1600 batches or so."""
    labels, modalities = [0, 1, 2, 3] * 2, [0] * 4 + [1] * 4
    sampler = ClusterSampler(labels, modalities, 1, 1, seed=0)
    pairs = Counter()
    for epoch in range(320):
        sampler.set_epoch(epoch)
        assert len(sampler) == 5
        pairs.update(map(tuple, sampler))
    deviation = (1600 / 16 * 15 / 16) ** 0.5
    assert len(pairs) == 16 and all(abs(count - 100) < 5 * deviation for count in pairs.values())


def test_as_many_batches_as_the_published_program_has():
    """SYSU-MM01: 22,258 visible and 11,909 infrared images, 4 clusters x 16 images of each."""
    labels = [row % 395 for row in range(22258)] + [row % 390 for row in range(11909)]
    assert len(ClusterSampler(labels, [0] * 22258 + [1] * 11909, 4, 16, seed=1)) == 348
