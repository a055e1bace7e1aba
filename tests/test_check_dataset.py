"""What the check of a data set finds: every finding by its message, and none in data that is right."""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import TEMPLATE
from PIL import Image

import datasets.check
from datasets.check import Finding, Report, full_check, quick_check
from datasets.published_counts import PublishedCounts
from tools import check_dataset
from utils.command import run_script
from utils.errors import UserError
from utils.metrics import same_camera
from utils.records import Benchmark, Labels, Omitted, Sample, Trial

BATCH = {"instances": 2, "identities": 2}
BOTH = pytest.mark.parametrize("check", [quick_check, full_check], ids=["quick", "full"])


def ignore_nothing(query: Labels, gallery: Labels) -> torch.Tensor:
    return torch.zeros(len(query.pids), len(gallery.pids), dtype=torch.bool)


def picture(path: Path, seed: int, size: tuple[int, int] = (20, 24), mode: str = "RGB", **how) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **how)
    return str(path)


@pytest.fixture
def ideal(tmp_path) -> Benchmark:
    """4 identities to train on and 3 others to test, an image each in 2 cameras; all pictures differ."""
    seeds = iter(range(100))

    def images(folder: str, pids: range, cameras: range) -> tuple[Sample, ...]:
        return tuple(
            Sample(picture(tmp_path / folder / f"{folder}_{pid}_{camera}.png", next(seeds)), pid, camera)
            for pid in pids
            for camera in cameras
        )

    trial = Trial(images("query", range(10, 13), range(1)), images("gallery", range(10, 13), range(1, 2)))
    return Benchmark("toy", TEMPLATE, images("train", range(4), range(2)), (trial,), same_camera)


def with_test(benchmark: Benchmark, **changes) -> Benchmark:
    """Another query or gallery in the only trial."""
    return replace(benchmark, trials=(benchmark.trials[0]._replace(**changes),))


def only(report: Report, level: str) -> Finding:
    """The only finding, which is of this level."""
    findings = {"problem": report.problems, "warning": report.warnings, "note": report.notes}
    assert {name: len(of_level) for name, of_level in findings.items() if of_level} == {level: 1}, report.text()
    (finding,) = findings[level]
    assert finding.message in report.text() and finding.remedy in report.text()
    assert all(example in report.text() for example in finding.examples)
    assert bool(report.failure()) == (level == "problem")
    return finding


def kinds(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.kind for finding in findings]


@BOTH
def test_nothing_is_found_where_all_is_right(ideal, check):
    report = check(ideal, **BATCH)
    assert (report.problems, report.warnings, report.notes) == ((), (), ()), report.text()
    assert report.failure() == ""
    assert [tuple(split) for split in report.splits] == [
        ("training", 8, 4, 2, 1, 0, 0),
        ("query", 3, 3, 1, 1, 0, 0),
        ("gallery", 3, 3, 1, 1, 0, 0),
    ]
    lines = report.text().splitlines()
    assert lines[0] == "toy" and lines[-1] == "toy: training and evaluation can work (0 problems, 0 warnings)"
    assert lines[1].split() == ["images", "identities", "cameras", "viewpoints"]
    assert lines[2].split() == ["training", "8", "4", "2", "1"]


def test_queries_that_the_gallery_holds_where_the_rule_ignores_them(ideal):
    """As a validation split of training identities has them."""
    trial = ideal.trials[0]
    report = quick_check(with_test(ideal, gallery=(*trial.gallery, *trial.query)), **BATCH)
    assert (report.problems, report.warnings) == ((), ())


# --------------------------------------------------------------------------------------------------------------- labels


def test_no_training_images(ideal):
    finding = only(quick_check(replace(ideal, train=()), **BATCH), "problem")
    assert finding.message == "there are no training images"


def test_one_training_identity(ideal):
    finding = only(quick_check(replace(ideal, train=ideal.train[:2]), **BATCH), "problem")
    assert finding.message == "all training images are of one identity"


def test_too_few_identities_for_a_batch(ideal):
    report = quick_check(ideal, instances=2, identities=5)
    finding = only(report, "problem")
    assert finding.message == "a batch takes 5 identities, and the training set has 4"
    assert "IMS_PER_BATCH to at most 8" in finding.remedy and "NUM_INSTANCE to more than 2" in finding.remedy
    assert report.text().endswith("toy: training or evaluation could not work (1 problems, 0 warnings)")
    assert not quick_check(ideal, instances=2, identities=4).problems
    assert not quick_check(ideal, instances=2, identities=None).problems


def test_training_labels_with_a_gap(ideal):
    train = tuple(s._replace(pid=7) if s.pid == 3 else s for s in ideal.train)
    finding = only(quick_check(replace(ideal, train=train), **BATCH), "problem")
    assert finding.message == "training labels are not 0 to 3 (they go from 0 to 7)"


def test_identities_with_few_images(ideal):
    one = ideal.train[-1].path
    report = quick_check(replace(ideal, train=ideal.train[:-1]), **BATCH)
    finding = only(report, "warning")
    assert finding.message == "1 of 4 training identities have fewer than 2 images, 1 of them a single one"
    assert finding.examples == (f"{ideal.train[-2].path} (1 of its identity)",) and one not in report.text()
    finding = only(quick_check(ideal, instances=3, identities=2), "warning")
    assert finding.message == "4 of 4 training identities have fewer than 3 images"
    assert len(finding.examples) == 3
    assert not quick_check(ideal, instances=3, identities=None).warnings  # no stage takes such batches


@pytest.mark.parametrize("name", ["query", "gallery"])
def test_an_empty_side_of_the_test(ideal, name):
    finding = only(quick_check(with_test(ideal, **{name: ()}), **BATCH), "problem")
    assert finding.message == f"there are no {name} images"


def test_no_trial(ideal):
    finding = only(quick_check(replace(ideal, trials=()), **BATCH), "problem")
    assert finding.message == "there are no queries and no gallery"


def test_a_test_of_one_identity(ideal):
    query, gallery = ideal.trials[0]
    finding = only(quick_check(with_test(ideal, query=query[:1], gallery=gallery[:1]), **BATCH), "problem")
    assert finding.message == "all query and gallery images are of one identity"
    assert not quick_check(with_test(ideal, query=query[:1]), **BATCH).problems


# -------------------------------------------------------------------------------------------------------------- matches


def test_a_query_that_the_gallery_lacks(ideal):
    query, gallery = ideal.trials[0]
    finding = only(quick_check(with_test(ideal, gallery=gallery[1:]), **BATCH), "warning")
    assert finding.message == "1 of 3 queries have no valid match: they have an identity that the gallery lacks"
    assert finding.examples == (f"{query[0].path} (identity 10, camera 1)",)


def test_a_query_with_matches_in_its_own_camera_only(ideal):
    query, gallery = ideal.trials[0]
    moved = (gallery[0]._replace(camid=0), *gallery[1:])
    finding = only(quick_check(with_test(ideal, gallery=moved), **BATCH), "warning")
    assert finding.message == (
        "1 of 3 queries have no valid match: they have their identity in the gallery only in their own camera, which "
        "the protocol ignores"
    )
    assert finding.examples == (f"{query[0].path} (identity 10, camera 1)",)
    nothing_ignored = replace(with_test(ideal, gallery=moved), ignored=ignore_nothing)
    assert not quick_check(nothing_ignored, **BATCH).warnings


def test_another_rule_is_not_called_the_camera_rule(ideal):
    def first_ignored(query: Labels, gallery: Labels) -> torch.Tensor:
        return (query.pids[:, None] == gallery.pids) & (query.pids[:, None] == 10)

    finding = only(quick_check(replace(ideal, ignored=first_ignored), **BATCH), "warning")
    assert finding.message.endswith("they have their identity in the gallery only where the protocol ignores it")


def test_no_query_has_a_match(ideal):
    query, gallery = ideal.trials[0]
    moved = tuple(s._replace(camid=0, pid=99 if s.pid == 10 else s.pid) for s in gallery)
    finding = only(quick_check(with_test(ideal, gallery=moved), **BATCH), "problem")
    assert finding.message == (
        "none of 3 queries has a valid match: 1 have an identity that the gallery lacks, 2 have their identity in the "
        "gallery only in their own camera, which the protocol ignores"
    )
    assert finding.examples == tuple(f"{s.path} (identity {s.pid}, camera 1)" for s in query[:2])
    assert "TEST.PROTOCOL all" in finding.remedy  # all images of the test are in camera 0


def test_no_query_has_a_match_though_there_are_cameras(ideal):
    gallery = ideal.trials[0].gallery
    other = tuple(s._replace(pid=s.pid + 50) for s in gallery)
    finding = only(quick_check(with_test(ideal, gallery=other), **BATCH), "problem")
    assert "PROTOCOL" not in finding.remedy and "belong together" in finding.remedy
    two = tuple(s._replace(camid=s.pid % 2) for s in ideal.trials[0].query)
    finding = only(quick_check(with_test(ideal, query=two, gallery=two), **BATCH), "problem")
    assert "only in their own camera" in finding.message and "PROTOCOL" not in finding.remedy


@pytest.mark.parametrize("at_once", [1, 7, 10**6])
@pytest.mark.parametrize("seed", range(3))
def test_matches_equal_a_dense_mask(monkeypatch, seed, at_once):
    """Whatever the size of the blocks; identities are neither dense nor sorted, and some are in one side only."""
    monkeypatch.setattr(datasets.check, "LABELS_AT_ONCE", at_once)
    rng = np.random.default_rng(seed)

    def draw(n: int) -> tuple[Sample, ...]:
        pids, cameras = rng.permutation(40)[rng.integers(0, 30, n)] * 5 - 3, rng.integers(-1, 3, n)
        return tuple(Sample(str(k), int(pids[k]), int(cameras[k])) for k in range(n))

    trial = Trial(draw(60), draw(50))
    query, gallery = (Labels.of(samples) for samples in trial)
    dense = ((query.pids[:, None] == gallery.pids) & ~same_camera(query, gallery)).any(dim=1).tolist()
    matched = datasets.check._matched(trial, same_camera)
    assert [(s.pid, s.camid) in matched for s in trial.query] == dense
    assert 0 < sum(dense) < 60
    pairs = {(q.pid, q.camid, g.pid, g.camid) for q in trial.query for g in trial.gallery}
    expected = {pair for pair in pairs if pair[:2] == pair[2:]}
    assert datasets.check._ignored_labels(pairs, same_camera) == expected and expected


# ---------------------------------------------------------------------------------------------------------------- files


@BOTH
def test_a_missing_file(ideal, check):
    gone = [ideal.train[0].path, ideal.trials[0].query[1].path]
    for path in gone:
        os.remove(path)
    report = check(ideal, **BATCH)
    finding = only(report, "problem")
    assert finding.message == "2 of 14 images are not there" and list(finding.examples) == gone
    assert report.failure() == (
        f"toy cannot be trained on or evaluated: 2 of 14 images are not there (e.g. {gone[0]}, {gone[1]}); is the data "
        "set unpacked as a whole, and do its lists belong to this version of it?"
    )


def test_a_folder_is_no_image(ideal):
    path = Path(ideal.train[0].path)
    path.unlink()
    path.mkdir()
    assert only(quick_check(ideal, **BATCH), "problem").message == "1 of 14 images are not there"


@BOTH
def test_an_empty_file(ideal, check):
    path = Path(ideal.trials[0].gallery[0].path)
    path.write_bytes(b"")
    finding = only(check(ideal, **BATCH), "problem")
    assert finding.message == "1 of 14 image files are empty (0 bytes)" and finding.examples == (str(path),)


# -------------------------------------------------------------------------------------------------------------- repeats


@pytest.mark.parametrize("name", ["training", "query", "gallery"])
def test_the_same_file_twice_in_a_list(ideal, name):
    query, gallery = ideal.trials[0]
    changed = {
        "training": replace(ideal, train=(*ideal.train, ideal.train[0])),
        "query": with_test(ideal, query=(*query, query[0])),
        "gallery": with_test(ideal, gallery=(*gallery, gallery[0])),
    }[name]
    finding = only(quick_check(changed, **BATCH), "warning")
    images = {"training": 9, "query": 4, "gallery": 4}[name]
    assert finding.message == f"1 of {images} {name} images repeat another (the same file)"
    assert finding.examples[0].endswith(" (there twice)")


def test_a_link_to_a_file_is_the_same_file(ideal, tmp_path):
    gallery = ideal.trials[0].gallery
    link = tmp_path / "link.png"
    link.symlink_to(gallery[0].path)
    report = quick_check(with_test(ideal, gallery=(*gallery, gallery[0]._replace(path=str(link)))), **BATCH)
    assert only(report, "warning").examples == (f"{gallery[0].path} and {link}",)


def test_one_file_under_two_identities(ideal):
    report = quick_check(replace(ideal, train=(*ideal.train, ideal.train[0]._replace(pid=2))), **BATCH)
    assert kinds(report.warnings) == ["training repeats", "training contradictions"] and not report.problems
    finding = report.warnings[1]
    assert finding.message == "1 training images are there under two identities (the same file)"
    path = ideal.train[0].path
    assert finding.examples == (f"{path} (identity 0) and {path} (identity 2)",)


def test_queries_that_find_themselves(ideal):
    query, gallery = ideal.trials[0]
    one, all_of_them = (
        replace(with_test(ideal, gallery=(*gallery, *query[:count])), ignored=ignore_nothing) for count in (1, 3)
    )
    finding = only(quick_check(one, **BATCH), "warning")
    assert finding.message == "1 of 3 queries find themselves in the gallery (the same file)"
    assert finding.examples == (f"{query[0].path} (there twice)",)
    finding = only(quick_check(all_of_them, **BATCH), "problem")
    assert finding.message == "3 of 3 queries find themselves in the gallery (the same file)"


def test_a_query_in_the_gallery_under_another_identity(ideal):
    query, gallery = ideal.trials[0]
    report = quick_check(with_test(ideal, gallery=(*gallery, query[0]._replace(pid=11))), **BATCH)
    finding = only(report, "warning")
    assert finding.message == "1 of 3 queries are in the gallery under another identity (the same file)"
    assert finding.examples == (f"{query[0].path} (identity 10) and {query[0].path} (identity 11)",)


# ---------------------------------------------------------------------------------------------------- training and test


@BOTH
def test_test_images_that_are_training_images(ideal, check):
    query, gallery = ideal.trials[0]
    same = "file" if check is quick_check else "picture"
    report = check(replace(ideal, train=(*ideal.train, query[0]._replace(pid=0), gallery[0]._replace(pid=0))), **BATCH)
    finding = only(report, "warning")
    assert finding.message == (
        f"1 of 3 queries and 1 of 3 gallery images are training images (the same {same}), so that training and test "
        "share identities"
    )
    assert finding.examples == (query[0].path, gallery[0].path)
    assert "separate the splits by identity" in finding.remedy


@BOTH
def test_identities_that_are_in_training_and_test(ideal, check):
    finding = only(check(replace(ideal, seen=("11", "anna")), **BATCH), "warning")
    assert finding.message == "2 of 3 test identities are training identities, too"
    assert finding.examples == ("identity 11", "identity anna")
    assert "separate the splits by identity" in finding.remedy


def test_a_test_on_training_images_is_none(ideal):
    query, _ = ideal.trials[0]
    report = quick_check(replace(ideal, train=(*ideal.train, *(s._replace(pid=0) for s in query))), **BATCH)
    assert only(report, "problem").message.startswith("3 of 3 queries and 0 of 3 gallery images are training images")
    gallery_too = with_test(ideal, gallery=(*ideal.trials[0].gallery, *(s._replace(pid=500) for s in ideal.train)))
    assert only(quick_check(gallery_too, **BATCH), "warning").message.startswith("0 of 3 queries and 8 of 11 gallery")


@pytest.mark.parametrize("name", ["{name}", "another.png"])
@pytest.mark.parametrize("size", [0, 200_000], ids=["small", "large"])
def test_copies_in_other_files(ideal, tmp_path, name, size):
    """Whatever their names: the size makes them suspect, the content decides, to its last byte."""
    query, gallery = ideal.trials[0]
    original = Path(query[0].path)
    original.write_bytes(original.read_bytes() + bytes(size))
    copy = tmp_path / "elsewhere" / name.format(name=original.name)
    copy.parent.mkdir()
    other = Sample(str(copy), 0, 0)
    in_training = replace(ideal, train=(*ideal.train, other))
    in_gallery = with_test(ideal, gallery=(*gallery, other._replace(pid=10, camid=1)))
    copy.write_bytes(original.read_bytes())
    assert only(quick_check(in_training, **BATCH), "warning").examples == (query[0].path,)
    finding = only(quick_check(in_gallery, **BATCH), "warning")
    assert finding.message == "1 of 3 queries find themselves in the gallery (the same file)"
    assert finding.examples == (f"{original} and {copy}",)
    copy.write_bytes(original.read_bytes()[:-1] + b"x")
    for benchmark in (in_training, in_gallery):
        assert not quick_check(benchmark, **BATCH).warnings


def test_a_gallery_that_is_a_copy_of_the_queries(ideal, tmp_path):
    copies = []
    for number, sample in enumerate(ideal.trials[0].query):
        copies.append(sample._replace(path=str(tmp_path / f"{number}.png"), camid=1))
        Path(copies[-1].path).write_bytes(Path(sample.path).read_bytes())
    finding = only(quick_check(with_test(ideal, gallery=tuple(copies)), **BATCH), "problem")
    assert finding.message == "3 of 3 queries find themselves in the gallery (the same file)"
    ignored = with_test(ideal, gallery=(*ideal.trials[0].gallery, *(copy._replace(camid=0) for copy in copies)))
    assert not quick_check(ignored, **BATCH).warnings


def test_no_more_files_are_read_than_a_disk_can_serve(ideal, tmp_path, monkeypatch):
    """Files of one name come first; of what was not compared nothing is known, and that is told."""
    query, gallery = ideal.trials[0]
    for number, sample in enumerate((*query, *gallery)):  # a size each
        Path(sample.path).write_bytes(bytes([number]) * (1000 + number))
    copies = []
    for name, sample in zip(("a.png", Path(query[1].path).name, "c.png"), query, strict=True):
        copies.append(Sample(str(tmp_path / "elsewhere" / name), 0, 0))
        Path(copies[-1].path).parent.mkdir(exist_ok=True)
        Path(copies[-1].path).write_bytes(Path(sample.path).read_bytes())
    copied = replace(ideal, train=(*ideal.train, *copies))
    assert only(quick_check(copied, **BATCH), "problem").message.startswith("3 of 3 queries and 0 of 3 gallery")
    read = []
    digest = datasets.check._digest_file
    monkeypatch.setattr(datasets.check, "_digest_file", lambda path: read.append(path) or digest(path))
    monkeypatch.setattr(datasets.check, "MOST_READ", 2)
    report = quick_check(copied, **BATCH)
    assert sorted(read) == sorted([query[1].path, copies[1].path])
    (problem,), (note,) = report.problems, report.notes
    assert problem.message.startswith("1 of 1 compared queries and 0 of 3 gallery images are training images")
    assert note.message == "2 of 6 files that by their sizes may be copies were compared"
    assert "tools.check_dataset" in note.remedy
    Path(copies[1].path).write_bytes(b"x" * 1001)  # of the size that it had
    report = quick_check(copied, **BATCH)
    assert not report.problems and not report.warnings and report.notes == (note,)


def test_a_test_is_checked_without_training_images(ideal):
    """What is wrong with the test is found all the same, and nothing is asked of training."""
    alone = {"instances": None, "identities": None}
    tested = replace(ideal, train=())
    assert quick_check(tested, **alone).text().endswith("(0 problems, 0 warnings)")
    query, gallery = ideal.trials[0]
    linked = replace(with_test(tested, gallery=query), ignored=ignore_nothing)
    assert only(quick_check(linked, **alone), "problem").message.startswith("3 of 3 queries find themselves")
    one = with_test(tested, query=query[:1], gallery=gallery[:1])
    assert only(quick_check(one, **alone), "problem").kind == "one answer"
    held_out = replace(ideal, train=(*ideal.train[:1], query[0]._replace(pid=0)))  # trained on, and not asked for here
    assert only(quick_check(held_out, **alone), "warning").message.startswith("1 of 3 queries and 0 of 3 gallery")


# --------------------------------------------------------------------------------------- unknown labels, known counts


@pytest.mark.parametrize("what, name, key", [("camid", "camera", "SIE_CAMERA"), ("viewid", "viewpoint", "SIE_VIEW")])
def test_unknown_labels_beside_known_ones(ideal, what, name, key):
    train = (ideal.train[0]._replace(**{what: -1}), *ideal.train[1:])
    report = quick_check(replace(ideal, train=train), **BATCH)
    finding = only(report, "warning")
    assert finding.message == f"1 of 14 images have no known {name}" and finding.examples == (train[0].path,)
    assert f"MODEL.{key}" in finding.remedy
    assert f"unknown {name}s" in report.text().splitlines()[1]
    assert getattr(report.splits[0], f"unknown_{name}s") == 1 and getattr(report.splits[1], f"unknown_{name}s") == 0
    assert report.splits[0].viewpoints == 1 and report.splits[0].cameras == 2


def test_a_data_set_without_viewpoints(ideal):
    def blind(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        return tuple(sample._replace(viewid=-1) for sample in samples)

    trial = Trial(*map(blind, ideal.trials[0]))
    report = quick_check(replace(ideal, train=blind(ideal.train), trials=(trial,)), **BATCH)
    assert not report.warnings and report.splits[0].viewpoints == 0


@pytest.fixture
def published(monkeypatch) -> dict:
    table = {
        ("toy", "small"): PublishedCounts(8, 4, 3, 3, 2),
        ("toy", "large"): PublishedCounts(8, 4, None, 1300, None),
        ("other", ""): PublishedCounts(1, 1, 1, 1, 1),
    }
    monkeypatch.setattr("datasets.published_counts.PUBLISHED", table)
    return table


def test_counts_as_published(ideal, published):
    ideal = replace(ideal, variant="small")
    assert not quick_check(ideal, **BATCH).warnings
    assert not quick_check(replace(ideal, name="mine"), **BATCH).warnings


@pytest.mark.parametrize(
    "field, message",
    [
        ("train_images", "8 training images (published 1,008)"),
        ("train_identities", "4 training identities (published 1,004)"),
        ("query_images", "3 query images (published 1,003)"),
        ("gallery_images", "3 gallery images (published 1,003)"),
        ("cameras", "2 cameras (published 1,002)"),
    ],
)
def test_counts_that_differ_from_the_published(ideal, published, field, message):
    counts = published["toy", "small"]
    published["toy", "small"] = counts._replace(**{field: getattr(counts, field) + 1000})
    ideal = replace(ideal, variant="small")
    finding = only(quick_check(ideal, **BATCH), "warning")
    assert finding.message == f"toy differs from what is published (small): {message}"
    published["toy", "small"] = counts._replace(**{field: None})
    assert not quick_check(ideal, **BATCH).warnings


def test_counts_are_compared_with_the_variant_that_it_is(ideal, published):
    """Though another one is nearer."""
    fewer = replace(with_test(ideal, query=ideal.trials[0].query[:2]), variant="large")
    finding = only(quick_check(fewer, **BATCH), "warning")
    assert finding.message == "toy differs from what is published (large): 3 gallery images (published 1,300)"
    finding = only(quick_check(replace(fewer, variant="small"), **BATCH), "warning")
    assert finding.message == "toy differs from what is published (small): 2 query images (published 3)"
    published["toy", "large"] = published["toy", "large"]._replace(gallery_images=3)
    assert not quick_check(fewer, **BATCH).warnings


# --------------------------------------------------------------------------------------------- several trials and sets


def test_trials_that_say_the_same_are_told_once(ideal):
    query, gallery = ideal.trials[0]
    worse, bad, good = Trial(query, gallery[2:]), Trial(query, gallery[1:]), Trial(query, gallery)
    report = quick_check(replace(ideal, trials=(good, bad, worse, good)), **BATCH)
    finding = only(report, "warning")
    assert finding.message == (
        "1 of 3 queries have no valid match: they have an identity that the gallery lacks, and the like in 1 more "
        "trials"
    )
    assert [split.name for split in report.splits][1:] == ["query (trial 1 of 4)", "gallery (trial 1 of 4)"]


def test_data_sets_trained_on_together(ideal, published):
    """Each part's test is looked at by its own rule and counts; training as a whole."""
    gallery = ideal.trials[0].gallery
    second = replace(
        with_test(ideal, gallery=gallery[1:]),
        name="second",
        train=tuple(s._replace(pid=s.pid + 4) for s in ideal.train),
    )
    train = (*ideal.train, *second.train)
    both = Benchmark("toy+second", TEMPLATE, train, (*ideal.trials, *second.trials), same_camera, (ideal, second))
    report = quick_check(both, **BATCH)
    assert kinds(report.warnings) == ["training repeats", "training contradictions", "not in the gallery"]
    assert report.warnings[-1].message.startswith("second: 1 of 3 queries have no valid match")
    assert [split.name for split in report.splits] == [
        *("toy training", "toy query", "toy gallery", "second training", "second query", "second gallery"),
        "training together",
    ]
    published["second", ""] = PublishedCounts(9, 4, 3, 2, 2)
    published["toy", ""] = PublishedCounts(10, 4, 3, 3, 2)
    told = [finding.message for finding in quick_check(both, **BATCH).warnings if finding.kind == "counts"]
    assert told == [  # each by itself
        "toy: differs from what is published: 8 training images (published 10)",
        "second: differs from what is published: 8 training images (published 9)",
    ]


# ---------------------------------------------------------------------------------------------- what was passed over


def test_files_that_the_reader_passed_over(ideal):
    """Pictures of formats that are not read are missed by nobody, unless it is told."""
    files = ("q/a.jfif", "q/b.JFIF", "q/c.heic", "q/notes.txt", "q/README")
    report = quick_check(replace(ideal, omitted=Omitted(files)), **BATCH)
    (warning,), (note,) = report.warnings, report.notes
    assert warning.message == "3 files passed over (.jfif: 2, .heic: 1)" and warning.examples == files[:3]
    assert "save them as .jpg or .png" in warning.remedy
    assert note.message == "2 files passed over (.txt: 1, no suffix: 1)" and note.examples == files[3:]


def test_folders_that_the_reader_passed_over(ideal):
    report = quick_check(replace(ideal, omitted=Omitted((), ("query/more",))), **BATCH)
    finding = only(report, "warning")
    assert finding.message == "1 folders passed over where only pictures belong" and finding.examples == ("query/more",)


def test_identities_without_a_picture(ideal):
    report = quick_check(replace(ideal, omitted=Omitted(identities=("t/10", "t/9"))), **BATCH)
    finding = only(report, "warning")
    assert finding.message == "2 identities without a picture" and finding.examples == ("t/9", "t/10")


# ------------------------------------------------------------------------------------------------------------- pictures


def test_a_picture_that_cannot_be_read(ideal):
    """Cut off, and no picture at all; the quick form does not look."""
    cut, none = Path(ideal.train[0].path), Path(ideal.trials[0].gallery[2].path)
    cut.write_bytes(cut.read_bytes()[:-400])
    none.write_bytes(b"<html>not found</html>")
    assert not quick_check(ideal, **BATCH).problems
    finding = only(full_check(ideal, **BATCH), "problem")
    assert finding.message == "2 of 14 images cannot be read"
    assert [example.partition(":")[0] for example in finding.examples] == [str(cut), str(none)]
    assert "cannot be read as an image" in finding.examples[1] and "DataError" not in finding.examples[1]


def test_a_decoder_with_a_fault_of_its_own(ideal, monkeypatch):
    def broken(path: str) -> Image.Image:
        raise IndexError("past the end")

    monkeypatch.setattr(datasets.check, "read_image", broken)
    finding = only(full_check(ideal, **BATCH), "problem")
    assert finding.message == "14 of 14 images cannot be read"
    assert finding.examples[0].endswith("cannot be read as an image (IndexError: past the end)")


@pytest.mark.parametrize("size", [(15, 40), (40, 15)])
def test_a_tiny_picture(ideal, size):
    path = Path(ideal.train[0].path)
    picture(path, 50, size)
    finding = only(full_check(ideal, **BATCH), "warning")
    assert finding.message == "1 of 14 images have a side below 16 pixels"
    assert finding.examples == (f"{path} ({size[0]} x {size[1]})",)
    picture(path, 50, (16, 16))
    assert not full_check(ideal, **BATCH).warnings


def test_pictures_that_are_not_rgb(ideal):
    picture(Path(ideal.train[0].path), 50, mode="L")
    picture(Path(ideal.train[1].path), 51, mode="RGBA")
    picture(Path(ideal.train[2].path), 52, mode="L")
    finding = only(full_check(ideal, **BATCH), "note")
    assert finding.message == "3 of 14 images are not RGB (L: 2, RGBA: 1)"
    assert finding.examples[1] == f"{ideal.train[1].path} (RGBA)" and "converted" in finding.remedy


def test_the_same_picture_in_another_file(ideal, tmp_path):
    """Saved anew and named otherwise: only pixels tell; of query and gallery, of training and test, of one list."""
    query, gallery = ideal.trials[0]
    with Image.open(query[0].path) as original:
        original.save(tmp_path / "again.bmp")
    again = str(tmp_path / "again.bmp")
    in_gallery = with_test(ideal, gallery=(*gallery, Sample(again, 10, 5)))
    assert not quick_check(in_gallery, **BATCH).warnings
    finding = only(full_check(in_gallery, **BATCH), "warning")
    assert finding.message == "1 of 3 queries find themselves in the gallery (the same picture)"
    assert finding.examples == (f"{query[0].path} and {again}",)
    ignored = with_test(ideal, gallery=(*gallery, Sample(again, 10, 0)))
    assert not full_check(ignored, **BATCH).warnings
    finding = only(full_check(replace(ideal, train=(*ideal.train, Sample(again, 0, 0))), **BATCH), "warning")
    assert finding.message.startswith("1 of 3 queries and 0 of 3 gallery images are training images (the same picture)")
    finding = only(full_check(with_test(ideal, query=(*query, Sample(again, 10, 0))), **BATCH), "warning")
    assert finding.message == "1 of 4 query images repeat another (the same picture)"


def test_pictures_of_the_same_bytes_in_another_shape_differ(ideal, tmp_path):
    query, gallery = ideal.trials[0]
    pixels = np.asarray(Image.open(query[0].path)).reshape(20, 24, 3)
    Image.fromarray(pixels).save(tmp_path / "lying.png")
    changed = with_test(ideal, gallery=(*gallery, Sample(str(tmp_path / "lying.png"), 10, 5)))
    assert not full_check(changed, **BATCH).warnings


def test_processes_see_what_one_sees(ideal, monkeypatch):
    """In the same order; and every image once, however many trials it is in."""
    Path(ideal.train[5].path).write_bytes(b"no picture")
    picture(Path(ideal.train[1].path), 51, mode="L")
    expected = full_check(ideal, **BATCH)
    assert kinds(expected.problems) == ["unreadable"] and kinds(expected.notes) == ["not RGB"]
    monkeypatch.setattr(datasets.check, "FEW", 0)
    monkeypatch.setattr(datasets.check, "PATHS_AT_ONCE", 3)
    assert full_check(ideal, **BATCH, workers=2) == expected
    asked = []
    decode = datasets.check._decode
    monkeypatch.setattr(datasets.check, "_decode", lambda paths, workers: asked.extend(paths) or decode(paths, workers))
    full_check(replace(ideal, trials=ideal.trials * 3), **BATCH, workers=1)
    assert len(asked) == len(set(asked)) == 14


# ----------------------------------------------------------------------------------------------------------------- tool


@pytest.fixture
def market(tmp_path) -> Path:
    """ROOT_DIR of a small Market-1501, as its published counts say it is not."""
    folder = tmp_path / "data" / "Market-1501-v15.09.15"
    seeds = iter(range(100))
    for split, pids, cameras in (("bounding_box_train", (2, 7), (1, 2)), ("query", (1, 3), (1,))):
        for pid in pids:
            for camera in cameras:
                picture(folder / split / f"{pid:04}_c{camera}s1_000001_00.jpg", next(seeds))
    for pid in (0, 1, 3):
        picture(folder / "bounding_box_test" / f"{pid:04}_c3s1_000001_00.jpg", next(seeds))
    return tmp_path / "data"


def tool(market: Path, *words: str) -> int:
    small = ["DATALOADER.NUM_INSTANCE", "2", "SOLVER.STAGE2.IMS_PER_BATCH", "4"]
    return check_dataset.main([*words, "DATASETS.ROOT_DIR", str(market), *small])


def test_the_tool_reports_and_says_that_all_is_well(market, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tool(market) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^training +4 +2 +2 +1$", shown, re.MULTILINE)
    assert "warning: market1501 differs from what is published: 4 training images (published 12,936)" in shown
    assert "market1501: training and evaluation can work (0 problems, 1 warnings)" in shown
    assert shown.endswith("runs/check_market1501.png: training identities (rows) in their cameras (columns)\n")
    assert (tmp_path / "runs" / "check_market1501.png").is_file()


def test_the_tool_in_its_quick_form(market, tmp_path, capsys, monkeypatch):
    """Decodes nothing, and draws only if it is told to."""
    monkeypatch.chdir(tmp_path)
    bad = next((market / "Market-1501-v15.09.15" / "query").iterdir())
    bad.write_bytes(b"no picture")
    assert tool(market, "--quick") == 0
    assert not (tmp_path / "runs").exists()
    assert tool(market, "--quick", "--sheet", str(tmp_path / "sheet.png")) == 0
    assert (tmp_path / "sheet.png").is_file()
    capsys.readouterr()
    assert tool(market, "--sheet", str(tmp_path / "sheet.png")) == 1
    shown = capsys.readouterr().out
    assert f"problem: 1 of 9 images cannot be read\n    {bad}: " in shown
    assert "market1501: training or evaluation could not work (1 problems, 1 warnings)" in shown


def test_the_tool_takes_the_batch_from_the_configuration(market, capsys):
    """K and P are the image stage's; without it nothing is asked of them."""
    words = ["--quick", "DATASETS.ROOT_DIR", str(market), "DATALOADER.NUM_INSTANCE", "4"]
    assert check_dataset.main([*words, "SOLVER.STAGE2.IMS_PER_BATCH", "12"]) == 1
    shown = capsys.readouterr().out
    assert "a batch takes 3 identities, and the training set has 2" in shown
    assert "2 of 2 training identities have fewer than 4 images" in shown
    assert check_dataset.main([*words, "SOLVER.STAGE2.IMS_PER_BATCH", "12", "PROCESSOR.STAGES", "('prompt',)"]) == 0


@pytest.mark.parametrize(
    "name, message",
    [
        ("sheet.jpg", "is no name of a picture; right is one that ends in .png"),
        ("nowhere/sheet.png", "there is no folder"),
        ("folder.png", "is a folder"),
    ],
)
def test_a_sheet_that_cannot_be_written_is_told_before_anything_is_read(tmp_path, name, message):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=re.escape(message)):
        tool(tmp_path / "no data here", "--sheet", str(tmp_path / name))


def test_a_folder_of_sheets_that_cannot_be_written_to_is_told_before_anything_is_decoded(market, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_dataset, "full_check", lambda *_, **named: pytest.fail("decodes"))
    (tmp_path / "runs").write_text("in the way")
    place = f"runs/check_market1501.png: {tmp_path}/runs cannot be written to (Not a directory); see --sheet"
    with pytest.raises(UserError, match=re.escape(place)):
        tool(market)

    def refuse(**named):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "runs").unlink()
    monkeypatch.setattr(check_dataset.tempfile, "TemporaryFile", refuse)
    for words, name in (((), "runs/check_market1501.png"), (("--sheet", "x.png"), "x.png")):
        with pytest.raises(UserError, match=re.escape(f"{name}: {tmp_path} cannot be written to (Permission denied)")):
            tool(market, *words)
    with pytest.raises(UserError, match=re.escape("--sheet ~nouser/x.png: ~NAME is a user's home folder")):
        tool(market, "--sheet", "~nouser/x.png")
    with pytest.raises(UserError, match=re.escape("xxx.png: File name too long")):
        tool(market, "--sheet", f"{'x' * 300}.png")


def test_what_the_reader_says_is_shown_as_such(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check_dataset", "--quick", "DATASETS.ROOT_DIR", str(tmp_path / "nowhere")])
    assert run_script(check_dataset.main) == 2
    assert capsys.readouterr().err.startswith(f"error: DATASETS.ROOT_DIR {tmp_path}/nowhere: there is no such folder")


def test_the_sheet_has_a_row_for_an_identity_and_a_column_for_a_camera(tmp_path):
    """Each in its place: pictures of one colour an identity, darker in camera 1; one is missing, one is unreadable."""
    colours = {0: (255, 0, 0), 1: (0, 255, 0), 2: (0, 0, 255)}
    train = []
    for pid, colour in colours.items():
        for camera in (0, 1):
            path = tmp_path / f"{pid}_{camera}.png"
            Image.new("RGB", (64, 128), tuple(value // (1 + camera) for value in colour)).save(path)
            train.append(Sample(str(path), pid, camera))
    Path(train[1].path).write_bytes(b"no picture")
    del train[4]  # identity 2 in camera 0
    benchmark = Benchmark("toy", TEMPLATE, tuple(train), (Trial((), ()),), same_camera)
    check_dataset.write_sheet(benchmark, tmp_path / "sheet.png", size=(384, 128))
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    margin, top, gap = check_dataset.MARGIN, 2 * check_dataset.LINE, check_dataset.GAP

    def seen(row: int, column: int) -> tuple[int, int, int]:
        return sheet.getpixel((margin + gap + 32 + column * (64 + gap), top + gap + 64 + row * (128 + gap)))

    assert [[seen(row, column) for column in range(2)] for row in range(3)] == [
        [(255, 0, 0), (128, 128, 128)],
        [(0, 255, 0), (0, 127, 0)],
        [(255, 255, 255), (0, 0, 127)],
    ]
    written = (np.asarray(sheet)[top:, :margin] < 128).any(axis=(1, 2))
    line = check_dataset.LINE
    assert (
        written[: line + gap].any() and written[line + 2 * gap : 2 * line + gap].sum() > 4
    )  # label, and a file's name


def test_pictures_on_the_sheet_keep_their_shape(tmp_path):
    Image.new("RGB", (200, 100), (255, 0, 0)).save(tmp_path / "car.png")
    train = (Sample(str(tmp_path / "car.png"), 0, 0),)
    benchmark = Benchmark("toy", TEMPLATE, train, (Trial((), ()),), same_camera)
    check_dataset.write_sheet(benchmark, tmp_path / "sheet.png", size=(256, 256))
    red = (np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")) == (255, 0, 0)).all(axis=2)
    assert (red.any(axis=1).sum(), red.any(axis=0).sum()) == (64, 128)


def test_what_is_on_the_sheet():
    many = [Sample(f"{pid}_{camera}", pid, camera) for pid in range(100) for camera in range(30) if camera >= pid // 10]
    heads, rows = check_dataset.choose(many)
    assert [row[-1].pid for row in rows] == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]  # spread over all
    assert heads == [f"camera {camera}" for camera in range(9, 21)]  # those that saw all of them, of 30
    heads, rows = check_dataset.choose([Sample("a", 0, 0), Sample("b", 1, 0), Sample("c", 1, 0), Sample("d", 1, 0)])
    assert heads == ["image 0", "image 1", "image 2"]
    assert [[sample and sample.path for sample in row] for row in rows] == [["a", None, None], ["b", "c", "d"]]
    assert check_dataset.choose([Sample("a", 0, -1), Sample("b", 0, 2)])[0] == ["unknown", "camera 2"]
