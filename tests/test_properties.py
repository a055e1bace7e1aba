"""What must hold for any input, tried on inputs that Hypothesis makes up.

The same few are tried every time. To explore, let it try many times as many, and others every time:

    PROPERTIES=100 python -m pytest tests/test_properties.py
"""

import math
import os
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, assume, event, example, given, settings
from hypothesis import strategies as st
from reference import rerank_dense

from configs import ConfigError, from_dict, load, to_dict
from configs.published import DROPPED, FLAT, ONE_VALUE, OTHER_PROGRAMS, SWITCHES
from datasets.folder import folder
from datasets.sampler import IdentitySampler, OrderedSampler
from utils import metrics
from utils.errors import DataError
from utils.metrics import rank, rank_features
from utils.records import Labels
from utils.reranking import rerank

TIMES = int(os.environ.get("PROPERTIES", "1"))


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


# ------------------------------------------------------------------------------------------------------- configuration


def leaves(tree: dict, prefix: str = "") -> dict:
    found = {}
    for name, value in tree.items():
        found.update(leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return found


DEFAULTS = leaves(to_dict(load()))
KEYS = st.sampled_from(sorted(DEFAULTS))
ATOMS = (
    st.none() | st.booleans() | st.integers() | st.integers(-3, 70) | st.floats() | st.text() | st.binary(max_size=4)
)
LITERALS = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
).map(repr)
WORDS = st.sampled_from(
    [
        *("yes", "No", "off", "True", "false", "none", "None", "null", "~", "1e3", "1e-400", "1e400", "-0.0", "nan"),
        *("inf", "0x10", "1_000", "٣", "3j", "()", "(,)", "[", "{}", "{1}", "...", "lambda:0", "image", "('image',)"),
        *("[30,50]", "(16,16)", "market1501", "('veri','folder')", "market1501+veri", "cpu", "cuda:1", "auto", "bf16"),
        *("SIMSIAM", "('prompt','image')", "folder", "A=1", "__import__('os')", "!!python/name:os.system"),
    ]
)
OVERRIDES = WORDS | LITERALS | st.text() | st.integers().map(str) | st.floats().map(str)
# Texts that mean something for the key whose default is of that type.
FITTING = {
    bool: st.sampled_from(["True", "False"]),
    int: st.integers(0, 64).map(str),
    float: st.floats(0, 1).map(repr),
    str: st.sampled_from(["auto", "cpu", "none", "x", "all", "mask", "same"]),
    list: st.sampled_from(["(16, 16)", "(0.5, 0.5, 0.5)", "('image',)", "[30, 50]", "(0.1, 0.2)"]),
}


def plain(value: object) -> list:
    """Types of a value and of what is in it."""
    return (
        [type(value), *(kind for element in value for kind in plain(element))] if type(value) is list else [type(value)]
    )


@bounded(200)
@given(KEYS.flatmap(lambda key: st.tuples(st.just(key), OVERRIDES | FITTING[type(DEFAULTS[key])])))
@example(("MODEL.STRIDE_SIZE", "(12, 12)"))
@example(("INPUT.PIXEL_MEAN", "(1, 0, 0)"))
@example(("SOLVER.MARGIN", "1"))
@example(("SOLVER.MARGIN", "1e400"))
@example(("INPUT.PIXEL_STD", "(1, inf, 1)"))
@example(("SOLVER.MARGIN", "1" + "0" * 400))  # more than Python itself can hold
@example(("INPUT.PIXEL_MEAN", "(" + "9" * 400 + ", 0, 0)"))
@example(("SOLVER.SEED", "0x" + "f" * 5000))
@example(("SOLVER.SEED", "{[]}"))
def test_an_override_is_a_value_of_the_right_type_or_a_message_with_its_key(override):
    key, text = override
    default = DEFAULTS[key]
    try:
        cfg = load(None, [key, text])
    except ConfigError as error:
        event("refused")
        assert key in str(error)
        return
    event("taken")
    value = leaves(to_dict(cfg))[key]
    if isinstance(default, list):
        assert type(value) is list
        assert not default or {type(element) for element in value} <= {type(element) for element in default}
    else:
        assert type(value) is type(default)
    numbers = [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, float)]
    assert all(map(math.isfinite, numbers))
    assert {name for name, other in leaves(to_dict(cfg)).items() if other != DEFAULTS[name]} <= {key}
    again = from_dict(yaml.safe_load(yaml.safe_dump(to_dict(cfg))), where="x.yaml")
    assert again == cfg and plain(leaves(to_dict(again))[key]) == plain(value)


@bounded(200)
@given(st.text() | st.tuples(KEYS, st.integers(0, 40), st.text(max_size=2)), WORDS)
def test_an_unknown_key_is_refused_by_its_name(changed, text):
    if isinstance(changed, tuple):  # a known key, misspelt
        key, place, letters = changed
        changed = key[:place] + letters + key[place + 1 :]
    assume(not {changed} & {*DEFAULTS, *DROPPED, *ONE_VALUE, *FLAT, *SWITCHES})
    assume(not f"{changed} {text}".startswith(tuple(sign for signs in OTHER_PROGRAMS.values() for sign in signs)))
    with pytest.raises(ConfigError) as error:
        load(None, [changed, text])
    assert f"there is no key {changed}" in str(error.value)


@bounded(100)
@given(st.data())
def test_the_order_of_different_keys_does_not_matter(data):
    keys = data.draw(st.lists(KEYS, min_size=2, max_size=5, unique=True))
    pairs = [(key, data.draw(FITTING[type(DEFAULTS[key])])) for key in keys]

    def outcome(pairs):
        try:
            return to_dict(load(None, [*chain(*pairs)]))
        except ConfigError:
            return None

    first = outcome(pairs)
    event("refused" if first is None else "taken")
    assert outcome(data.draw(st.permutations(pairs))) == first


# ------------------------------------------------------------------------------------------------- tables of own data


IMAGES = 8
SPLITS = ("train", "query", "gallery")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("own")
    for number in range(IMAGES):
        (root / f"{number}.jpg").write_bytes(b"never decoded")
    return root


FRAGMENTS = st.sampled_from(
    ["path", "pid", "split", "camid", "viewid", "train", "query", "gallery", "-1", "7", "07", "path,pid,split\n"]
    + [f"{number}.jpg,7,{split}\n" for number, split in enumerate(SPLITS)]
    + ["0.jpg", "./0.jpg", "../0.jpg", "9" * 5000, *'/\\.,,,";', '""', *"\n\n\r\t ", "\r\n"]
    + [*"\0\ufeffü\u2028\x85\x1c"]
)


@bounded(300)
@given(content=st.lists(FRAGMENTS, max_size=25).map(lambda parts: "".join(parts).encode()) | st.binary(max_size=60))
@example(content=b"path,pid,split\n0.jpg,7,train\n1.jpg,7,query\n2.jpg,7,gallery\n")
def test_any_bytes_as_a_table_are_read_or_refused_with_the_name_of_the_file(images, content):
    file = images / "any.csv"
    file.write_bytes(content)
    try:
        benchmark = folder(file, protocol="all")
    except DataError as error:
        event("refused")
        assert "any.csv" in str(error) or "leading zeros" in str(error)
    else:
        event("read")
        assert benchmark.train and all(benchmark.trials[0])


# ------------------------------------------------------------------------------------------------------------- metrics


def expected_ranking(distances, query_pids, gallery_pids, dropped, top, unique=False):
    """(mAP, mINP, CMC, valid queries) by loops; None without a valid query."""
    precisions, inverses, curve = [], [], [0] * top
    for q, pid in enumerate(query_pids):
        left = [g for g in range(len(gallery_pids)) if not dropped[q][g]]
        left.sort(key=lambda g, q=q: (distances[q][g], g))
        ranks = [place for place, g in enumerate(left, 1) if gallery_pids[g] == pid]
        if not ranks:
            continue
        precisions.append(sum(found / place for found, place in enumerate(ranks, 1)) / len(ranks))
        inverses.append(len(ranks) / ranks[-1])
        others = {gallery_pids[g] for g in left[: ranks[0] - 1]}  # all of other identities
        for k in range(len(others) if unique else ranks[0] - 1, top):
            curve[k] += 1
    valid = len(precisions)
    return (sum(precisions) / valid, sum(inverses) / valid, [hits / valid for hits in curve], valid) if valid else None


def labelled(pids: list[int]) -> Labels:
    """The camera is the image's own number, so that a rule can name any pair."""
    return Labels(torch.tensor(pids), torch.arange(len(pids)))


def rule(dropped) -> metrics.Ignored:
    table = torch.tensor(dropped)
    return lambda query, gallery: table[query.camids][:, gallery.camids]


@st.composite
def problems(draw, ties: bool = True):
    """(Distances, identities of queries and gallery, pairs that are ignored)."""
    query = draw(st.lists(st.integers(0, 2), min_size=1, max_size=5))
    gallery = draw(st.lists(st.integers(0, 3), min_size=1, max_size=9))
    size = len(query) * len(gallery)
    flat = draw(
        st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, 3e38, float("inf")]), min_size=size, max_size=size)
        if ties
        else st.permutations([float(value) for value in range(size)])
    )
    drawn = draw(st.lists(st.sampled_from([False, False, True]), min_size=size, max_size=size))
    by_row = [slice(start, start + len(gallery)) for start in range(0, size, len(gallery))]
    return [flat[row] for row in by_row], query, gallery, [drawn[row] for row in by_row]


def found_ranking(distances, query, gallery, dropped, top, unique=False):
    rules = {"ignored": rule(dropped), "unique_identities": unique, "top": top}
    try:
        ranking = rank(torch.tensor(distances), labelled(query), labelled(gallery), **rules)
    except DataError as error:
        assert "valid match" in str(error)
        return None
    assert ranking.num_queries == len(query)
    return ranking.mAP, ranking.mINP, ranking.cmc.tolist(), ranking.num_valid


def assert_close(found, expected) -> None:
    event("no valid query" if expected is None else "ranked")
    assert (found is None) == (expected is None)
    if found is not None:
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-12)


@bounded(150)
@given(problems(), st.integers(1, 12), st.sampled_from([1, 7, 2**24]), st.booleans())
def test_ranking_is_that_of_plain_loops(problem, top, pairs, unique):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "PAIRS_AT_ONCE", pairs)
        found = found_ranking(*problem, top, unique)
    assert_close(found, expected_ranking(*problem, top, unique))


GRID = st.lists(st.integers(-8, 8), min_size=2, max_size=2)


@bounded(100)
@given(problems(), st.data())
def test_features_are_ranked_by_distance_with_ties_in_the_gallery_s_order(problem, data):
    """Whole numbers, of which distances are exact; few, so that images repeat."""
    _, query, gallery, dropped = problem
    points, others = ([data.draw(GRID) for _ in pids] for pids in (query, gallery))
    distances = [[sum((a - b) ** 2 for a, b in zip(p, o, strict=True)) for o in others] for p in points]
    try:
        ranking = rank_features(
            *(torch.tensor(features, dtype=torch.float32) for features in (points, others)),
            labelled(query),
            labelled(gallery),
            ignored=rule(dropped),
            top=5,
        )
        found = ranking.mAP, ranking.mINP, ranking.cmc.tolist(), ranking.num_valid
    except DataError:
        found = None
    assert_close(found, expected_ranking(distances, query, gallery, dropped, 5))


# ---------------------------------------------------------------------------------------------------------- re-ranking


@st.composite
def crowds(draw):
    """(Queries, gallery) of whole numbers, so that many are equally far; no two images are the same."""
    width = draw(st.integers(1, 3))
    points = st.tuples(*[st.integers(-4, 4)] * width)
    rows = draw(st.lists(points, min_size=2, max_size=min(14, 9**width), unique=True))
    queries = draw(st.integers(1, len(rows) - 1))
    features = torch.tensor(rows, dtype=torch.float32)
    return features[:queries], features[queries:]


@bounded(150)
@given(crowds(), st.integers(1, 20), st.integers(1, 9), st.sampled_from([0.0, 0.3, 0.77, 1.0]))
def test_reranking_is_that_of_the_dense_form(crowd, k1, k2, lambda_value):
    found = rerank(*crowd, k1, k2, lambda_value)
    expected = torch.from_numpy(rerank_dense(*(part.numpy() for part in crowd), k1, k2, lambda_value))
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-6
    assert found.isfinite().all() and found.min() > -2e-7 and found.max() < 1 + 2e-7


@bounded(40)
@given(crowds(), st.integers(1, 20), st.integers(1, 9))
def test_with_lambda_1_the_ranking_is_the_original_one(crowd, k1, k2):
    query, gallery = crowd
    distances = (query[:, None] - gallery[None]).square().sum(dim=2)
    found = rerank(query, gallery, k1, k2, 1.0)
    assert torch.equal(found.sort(dim=1, stable=True).indices, distances.sort(dim=1, stable=True).indices)


# ------------------------------------------------------------------------------------------------------------- samplers


@bounded(100)
@given(
    counts=st.dictionaries(st.integers(-2, 50), st.integers(1, 13), min_size=1, max_size=9),
    shares=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    instances=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 9),
    done=st.integers(0, 3),
    data=st.data(),
)
def test_batches_of_identities(counts, shares, instances, seed, epoch, done, data):
    """Full, of distinct identities, as many as are announced; processes share each batch; what is done is left out."""
    share, world_size = shares
    identities = share * world_size
    pids = data.draw(st.permutations([pid for pid, count in counts.items() for _ in range(count)]))

    def sampler(**how) -> IdentitySampler:
        made = IdentitySampler(pids, identities, instances, seed=seed, **how)
        made.set_epoch(epoch)
        return made

    if len(counts) < identities:
        with pytest.raises(DataError, match=f"takes {identities} identities"):
            sampler()
        return
    whole = sampler()
    batches = list(whole)
    assert len(whole) == len(batches) >= 1
    left = {pid: max(1, count // instances) for pid, count in counts.items()}
    for batch in batches:
        owners = Counter(pids[row] for row in batch)
        assert len(owners) == identities and set(owners.values()) == {instances}
        assert all(len({pids[row] for row in batch[k : k + instances]}) == 1 for k in range(0, len(batch), instances))
        for pid in owners:
            left[pid] -= 1
    assert min(left.values()) >= 0 and sum(groups > 0 for groups in left.values()) < identities
    used = Counter(chain(*batches))
    assert all(used[row] <= 1 or counts[pids[row]] < instances for row in used)
    parts = [sampler(rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(part) for part in parts} == {len(whole)}
    for batch, *pieces in zip(whole, *parts, strict=True):
        assert Counter(chain(*pieces)) == Counter(batch)
        assert all(len({pids[row] for row in piece}) == share for piece in pieces)
    whole.set_epoch(epoch, done)
    assert list(whole) == batches[done:] and len(whole) == max(0, len(batches) - done)


@bounded(100)
@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 5))
def test_batches_in_order(count, size, world_size):
    """Those of a single process, each of which one process has."""
    whole = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    assert list(OrderedSampler(count, size)) == whole
    parts = [OrderedSampler(count, size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert all(len(part) == len(list(part)) for part in parts)
    assert sorted(chain(*parts)) == whole
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
