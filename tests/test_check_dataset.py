"""What the check of a data set finds, by level, kind, counts and examples; and nothing in data that is right."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import TEMPLATE
from PIL import Image

from datasets import check, check_labels
from datasets.check import quick_check
from datasets.findings import Finding, Report
from datasets.published_counts import PublishedCounts
from tools.check_dataset import __main__ as tool
from tools.check_dataset import full, sheet
from tools.check_dataset.full import full_check
from tools.check_dataset.report import splits, text
from utils.errors import UserError
from utils.metrics import ignore_nothing, same_camera
from utils.records import Benchmark, Labels, Omitted, Sample, Trial

BATCH = {"instances": 2, "identities": 2}
ALONE = {"instances": None, "identities": None}
BOTH = pytest.mark.parametrize("look", [quick_check, full_check], ids=["quick", "full"])


def image(path: Path, seed: int, size: tuple[int, int] = (20, 24), mode: str = "RGB") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return str(path)


@pytest.fixture
def ideal(tmp_path) -> Benchmark:
    """4 identities to train on and 3 others to test, an image each in 2 cameras; all images differ."""
    seeds = iter(range(100))

    def images(folder: str, pids: range, cameras: range) -> tuple[Sample, ...]:
        return tuple(
            Sample(image(tmp_path / folder / f"{folder}_{pid}_{camera}.png", next(seeds)), pid, camera)
            for pid in pids
            for camera in cameras
        )

    trial = Trial(images("query", range(10, 13), range(1)), images("gallery", range(10, 13), range(1, 2)))
    return Benchmark("toy", TEMPLATE, images("train", range(4), range(2)), (trial,), same_camera)


def with_test(benchmark: Benchmark, **changes) -> Benchmark:
    """Another query or gallery in the only trial."""
    return replace(benchmark, trials=(benchmark.trials[0]._replace(**changes),))


def only(report: Report, level: str, kind: str = "", message: str = "") -> Finding:
    """The only finding, which is of this level and kind; `message` begins its message."""
    levels = {"problem": report.problems, "warning": report.warnings, "note": report.notes}
    assert {name: len(of_level) for name, of_level in levels.items() if of_level} == {level: 1}, report
    (finding,) = levels[level]
    assert finding.kind == (kind or finding.kind) and finding.message.startswith(message), finding
    assert bool(report.failure()) == (level == "problem")
    return finding


def kinds(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.kind for finding in findings]


@BOTH
def test_nothing_is_found_where_all_is_right(ideal, look):
    report = look(ideal, **BATCH)
    assert report == Report("toy", (), (), ()) and report.failure() == ""
    assert [tuple(split) for split in splits(ideal)] == [
        ("training", 8, 4, 2, 1, 0, 0, 8, 0),
        ("query", 3, 3, 1, 1, 0, 0, 3, 0),
        ("gallery", 3, 3, 1, 1, 0, 0, 3, 0),
    ]
    lines = text(ideal, report).splitlines()
    assert lines[0] == "toy" and lines[-1] == "toy: training and evaluation can work (0 problems, 0 warnings)"
    assert lines[1].split() == ["images", "identities", "cameras", "viewpoints"]
    assert lines[2].split() == ["training", "8", "4", "2", "1"]


def test_the_text_has_every_finding_with_remedy_and_examples(ideal):
    os.remove(ideal.train[0].path)
    ideal = replace(ideal, seen=("anna",), omitted=Omitted(("q/notes.txt",)))
    report = quick_check(ideal, **BATCH)
    assert [kinds(level) for level in (report.problems, report.warnings, report.notes)] == [
        *(["missing"], ["shared identities"], ["files skipped"])
    ]
    shown = text(ideal, report)
    for finding in (*report.problems, *report.warnings, *report.notes):
        assert finding.message in shown and finding.remedy in shown
        assert all(f"    {example}\n" in shown for example in finding.examples)
    assert shown.endswith("toy: training or evaluation could not work (1 problems, 1 warnings)")


# --------------------------------------------------------------------------------------------------------------- labels


def fewer(benchmark: Benchmark, query: int | None = None, gallery: slice = slice(None)) -> Benchmark:
    """With the first queries and a part of the gallery only."""
    (trial,) = benchmark.trials
    return with_test(benchmark, query=trial.query[:query], gallery=trial.gallery[gallery])


def in_cameras(samples: tuple[Sample, ...], camera: Callable[[Sample], int]) -> tuple[Sample, ...]:
    return tuple(sample._replace(camid=camera(sample)) for sample in samples)


# Kind, level, how the message begins, what is changed, instances and identities in a batch, the first example.
LABELS = [
    ("no training", "problem", "", lambda b: replace(b, train=()), 2, 2, None),
    ("one identity", "problem", "", lambda b: replace(b, train=b.train[:2]), 2, 2, None),
    ("few identities", "problem", "a batch takes 5 ", lambda b: b, 2, 5, None),
    *(
        ("few images", "warning", f"{count} of 4 training identities", change, instances, 2, example)
        for count, change, instances, example in (
            (1, lambda b: replace(b, train=b.train[:-1]), 2, "train_3_0.png (1 of its identity)"),
            (4, lambda b: b, 3, "train_0_0.png (2 of its identity)"),
        )
    ),
    ("no query", "problem", "", lambda b: fewer(b, query=0), 2, 2, None),
    ("no gallery", "problem", "", lambda b: fewer(b, gallery=slice(0)), 2, 2, None),
    ("one answer", "problem", "", lambda b: fewer(b, 1, slice(1)), 2, 2, None),
    (
        *("not in the gallery", "warning", "1 of 3 queries", lambda b: fewer(b, gallery=slice(1, None)), 2, 2),
        "query_10_0.png (identity 10, camera 1)",
    ),
    (
        *("only ignored", "warning", "1 of 3 queries"),
        lambda b: with_test(b, gallery=in_cameras(b.trials[0].gallery, lambda s: int(s.pid > 10))),
        *(2, 2, "query_10_0.png (identity 10, camera 1)"),
    ),
    (
        *("shared identities", "warning", "2 of 3 test identities", lambda b: replace(b, seen=("11", "anna")), 2, 2),
        "identity 11",
    ),
]


@pytest.mark.parametrize(("kind", "level", "message", "change", "instances", "identities", "example"), LABELS)
def test_labels(ideal, kind, level, message, change, instances, identities, example):
    finding = only(quick_check(change(ideal), instances=instances, identities=identities), level, kind, message)
    assert os.path.basename((*finding.examples, "")[0]) == (example or "")


def test_labels_that_are_right(ideal):
    """At the edge of what is wrong."""
    query, gallery = ideal.trials[0]
    own_camera = with_test(ideal, gallery=in_cameras(gallery, lambda s: int(s.pid > 10)))
    for benchmark, batch in (
        (ideal, {"instances": 2, "identities": 4}),
        (ideal, {"instances": 3, "identities": None}),  # no stage takes such batches
        (fewer(ideal, query=1), BATCH),
        (replace(own_camera, ignored=ignore_nothing), BATCH),
        (with_test(ideal, gallery=(*gallery, *query)), BATCH),  # held-out identities: the rule ignores the pairs
        (replace(ideal, train=()), ALONE),
    ):
        assert quick_check(benchmark, **batch) == Report("toy", (), (), ())


def test_no_query_has_a_match(ideal):
    """The protocol is named where all images of the test are in one camera, and only there."""
    query, gallery = ideal.trials[0]
    moved = tuple(s._replace(camid=0, pid=99 if s.pid == 10 else s.pid) for s in gallery)
    finding = only(quick_check(with_test(ideal, gallery=moved), **BATCH), "problem", "no match", "none of 3 queries")
    assert finding.examples == tuple(f"{s.path} (identity {s.pid}, camera 1)" for s in query[:2])  # of either reason
    assert "TEST.PROTOCOL all" in finding.remedy
    two = in_cameras(query, lambda s: s.pid % 2)
    for changes in ({"gallery": tuple(s._replace(pid=s.pid + 50) for s in gallery)}, {"query": two, "gallery": two}):
        assert "PROTOCOL" not in only(quick_check(with_test(ideal, **changes), **BATCH), "problem", "no match").remedy


@pytest.mark.parametrize("seed", range(3))
def test_matches_equal_a_dense_mask(seed):
    """Identities are neither dense nor sorted, and some are in one side only."""
    rng = np.random.default_rng(seed)

    def draw(n: int) -> tuple[Sample, ...]:
        pids, cameras = rng.permutation(40)[rng.integers(0, 30, n)] * 5 - 3, rng.integers(-1, 3, n)
        return tuple(Sample(str(k), int(pids[k]), int(cameras[k])) for k in range(n))

    trial = Trial(draw(60), draw(50))
    query, gallery = (Labels.of(samples) for samples in trial)
    dense = ((query.pids[:, None] == gallery.pids) & ~same_camera(query, gallery)).any(dim=1).tolist()
    matched = check_labels._matched(trial, same_camera)
    assert [(s.pid, s.camid) in matched for s in trial.query] == dense
    assert 0 < sum(dense) < 60


# ---------------------------------------------------------------------------------------------------------------- files


@BOTH
def test_missing_and_empty_files(ideal, look):
    gone, folder, empty = (Path(s.path) for s in (ideal.train[0], ideal.train[1], ideal.trials[0].gallery[0]))
    gone.unlink()
    folder.unlink()
    folder.mkdir()
    finding = only(look(ideal, **BATCH), "problem", "missing", "2 of 14 images are not there")
    assert finding.examples == (str(gone), f"{folder} (a folder)")
    failure = look(ideal, **BATCH).failure()
    assert failure.startswith("toy cannot be trained on or evaluated: ") and f"(e.g. {gone}, {folder} " in failure
    image(gone, 50)
    folder.rmdir()
    image(folder, 51)
    empty.write_bytes(b"")
    finding = only(look(ideal, **BATCH), "problem", "empty", "1 of 14 image files are empty (0 bytes)")
    assert finding.examples == (str(empty),)


# -------------------------------------------------------------------------------------------------------------- repeats


def test_the_same_file_twice_in_a_list(ideal, tmp_path):
    """Also through a link, and under two identities."""
    query, gallery = ideal.trials[0]
    link = tmp_path / "link.png"
    link.symlink_to(gallery[0].path)
    linked = gallery[0]._replace(path=str(link))
    for changed, kind, message, example in (
        (replace(ideal, train=(*ideal.train, ideal.train[0])), "training repeats", "1 of 9", "(there twice)"),
        (with_test(ideal, query=(*query, query[0])), "query repeats", "1 of 4", "(there twice)"),
        (with_test(ideal, gallery=(*gallery, gallery[0])), "gallery repeats", "1 of 4", "(there twice)"),
        (with_test(ideal, gallery=(*gallery, linked)), "gallery repeats", "1 of 4", f" and {link}"),
    ):
        assert only(quick_check(changed, **BATCH), "warning", kind, message).examples[0].endswith(example)
    report = quick_check(replace(ideal, train=(*ideal.train, ideal.train[0]._replace(pid=2))), **BATCH)
    assert kinds(report.warnings) == ["training repeats", "training contradictions"] and not report.problems
    path = ideal.train[0].path
    assert report.warnings[1].examples == (f"{path} (identity 0) and {path} (identity 2)",)
    report = quick_check(with_test(ideal, gallery=(*gallery, query[0]._replace(pid=11))), **BATCH)
    finding = only(report, "warning", "contradictions", "1 of 3 queries")
    assert finding.examples == (f"{query[0].path} (identity 10) and {query[0].path} (identity 11)",)


def test_queries_that_find_themselves(ideal):
    query, gallery = ideal.trials[0]
    one, all_of_them = (
        replace(with_test(ideal, gallery=(*gallery, *query[:count])), ignored=ignore_nothing) for count in (1, 3)
    )
    finding = only(quick_check(one, **BATCH), "warning", "overlap", "1 of 3 queries")
    assert finding.examples == (f"{query[0].path} (there twice)",)
    only(quick_check(all_of_them, **BATCH), "problem", "overlap", "3 of 3 queries")


# ---------------------------------------------------------------------------------------------------- training and test


@BOTH
def test_test_images_that_are_training_images(ideal, look):
    """Most of the queries are a problem, some are a warning, as are gallery images."""
    query, gallery = ideal.trials[0]
    same = "file" if look is quick_check else "image"
    finding = only(
        look(replace(ideal, train=(*ideal.train, query[0]._replace(pid=0), gallery[0]._replace(pid=0))), **BATCH),
        *("warning", "leak", f"1 of 3 queries and 1 of 3 gallery images are training images (the same {same})"),
    )
    assert finding.examples == (query[0].path, gallery[0].path)
    trained = replace(ideal, train=(*ideal.train, *(s._replace(pid=0) for s in query)))
    only(look(trained, **BATCH), "problem", "leak", "3 of 3 queries and 0 of 3 gallery images are training images")
    gallery_too = with_test(ideal, gallery=(*gallery, *(s._replace(pid=500) for s in ideal.train)))
    only(look(gallery_too, **BATCH), "warning", "leak", "0 of 3 queries and 8 of 11 gallery")


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
    ignored = with_test(ideal, gallery=(*gallery, other._replace(pid=10, camid=0)))
    copy.write_bytes(original.read_bytes())
    assert only(quick_check(in_training, **BATCH), "warning", "leak").examples == (query[0].path,)
    finding = only(quick_check(in_gallery, **BATCH), "warning", "overlap", "1 of 3 queries")
    assert finding.examples == (f"{original} and {copy}",)
    assert not quick_check(ignored, **BATCH).warnings
    copy.write_bytes(original.read_bytes()[:-1] + b"x")
    for benchmark in (in_training, in_gallery):
        assert not quick_check(benchmark, **BATCH).warnings


def test_no_more_files_are_read_than_a_disk_can_serve(ideal, tmp_path, monkeypatch):
    """Files of one name come first; of what was not compared nothing is known, and a note says so."""
    query, gallery = ideal.trials[0]
    for number, sample in enumerate((*query, *gallery)):  # a size each
        Path(sample.path).write_bytes(bytes([number]) * (1000 + number))
    copies = []
    for name, sample in zip(("a.png", Path(query[1].path).name, "c.png"), query, strict=True):
        copies.append(Sample(str(tmp_path / "elsewhere" / name), 0, 0))
        Path(copies[-1].path).parent.mkdir(exist_ok=True)
        Path(copies[-1].path).write_bytes(Path(sample.path).read_bytes())
    copied = replace(ideal, train=(*ideal.train, *copies))
    only(quick_check(copied, **BATCH), "problem", "leak", "3 of 3 queries and 0 of 3 gallery")
    read = []
    digest = check._digest_file
    monkeypatch.setattr(check, "_digest_file", lambda path: read.append(path) or digest(path))
    monkeypatch.setattr(check, "MOST_READ", 2)
    report = quick_check(copied, **BATCH)
    assert sorted(read) == sorted([query[1].path, copies[1].path])
    (problem,), (note,) = report.problems, report.notes
    assert problem.message.startswith("1 of 1 compared queries and 0 of 3 gallery images are training images")
    assert note.message.startswith("2 of 6 files") and "tools.check_dataset" in note.remedy
    Path(copies[1].path).write_bytes(b"x" * 1001)  # of the size that it had
    assert quick_check(copied, **BATCH) == Report("toy", (), (), (note,))


def test_a_test_is_checked_without_training_images(ideal):
    """What is wrong with the test is found all the same, and nothing is asked of training."""
    tested, query = replace(ideal, train=()), ideal.trials[0].query
    linked = replace(with_test(tested, gallery=query), ignored=ignore_nothing)
    held_out = replace(ideal, train=(*ideal.train[:1], query[0]._replace(pid=0)))  # trained on, and not asked for here
    only(quick_check(linked, **ALONE), "problem", "overlap", "3 of 3 queries")
    only(quick_check(fewer(tested, 1, slice(1)), **ALONE), "problem", "one answer")
    only(quick_check(held_out, **ALONE), "warning", "leak", "1 of 3 queries and 0 of 3 gallery")


# --------------------------------------------------------------------------------------- unknown labels, known counts


@pytest.mark.parametrize(
    ("what", "name", "key"), [("camid", "camera", "SIE_CAMERA"), ("viewid", "viewpoint", "SIE_VIEW")]
)
def test_unknown_labels_beside_known_ones(ideal, what, name, key):
    train = (ideal.train[0]._replace(**{what: -1}), *ideal.train[1:])
    unknown = replace(ideal, train=train)
    report = quick_check(unknown, **BATCH)
    finding = only(report, "warning", f"unknown {name}", "1 of 14 images")
    assert finding.examples == (train[0].path,) and f"MODEL.{key}" in finding.remedy
    assert f"unknown {name}s" in text(unknown, report).splitlines()[1]
    assert [getattr(split, f"unknown_{name}s") for split in splits(unknown)] == [1, 0, 0]
    blind = [tuple(s._replace(**{what: -1}) for s in samples) for samples in (ideal.train, *ideal.trials[0])]
    blind = replace(ideal, train=blind[0], trials=(Trial(*blind[1:]),))
    assert f"unknown {name}" not in kinds(quick_check(blind, **BATCH).warnings)
    assert next(iter(splits(blind)))._asdict()[f"{name}s"] == 0


@pytest.fixture
def published(monkeypatch) -> dict:
    table = {("toy", "small"): PublishedCounts(8, 4, 3, 3, 2)}
    monkeypatch.setattr("datasets.published_counts.PUBLISHED", table)
    return table


@pytest.mark.parametrize(
    ("field", "count"),
    [
        *(("training_images", 8), ("training_identities", 4), ("query_images", 3), ("gallery_images", 3)),
        *(("cameras", 2), ("training_visible_images", 8), ("training_infrared_images", 0)),
    ],
)
def test_counts_that_differ_from_the_published(ideal, published, field, count):
    """Of the variant that it is, though another one is nearer."""
    ideal = replace(ideal, variant="small")
    published["toy", "large"] = PublishedCounts(1, 1, 1, 1, 1)
    assert not quick_check(ideal, **BATCH).warnings and not quick_check(replace(ideal, name="mine"), **BATCH).warnings
    for right, message in (
        (count + 1000, f"(small): {count} {field.replace('_', ' ')} (published {count + 1000:,})"),
        (None, ""),
    ):
        published["toy", "small"] = PublishedCounts(8, 4, 3, 3, 2)._replace(**{field: right})
        assert "".join(w.message for w in quick_check(ideal, **BATCH).warnings).endswith(message)
        assert bool(quick_check(ideal, **BATCH).warnings) == bool(message)


# ------------------------------------------------------------------------------------------------------ two modalities


@pytest.fixture
def infrared(ideal) -> Benchmark:
    """Camera 1 is infrared, and so are the queries, which are of camera 2: none is shared with the gallery."""
    (query, gallery), train = ideal.trials[0], ideal.train
    query = tuple(sample._replace(camid=2 + place % 2, modality=1) for place, sample in enumerate(query))
    gallery = tuple(sample._replace(camid=place % 2) for place, sample in enumerate(gallery))
    train = tuple(sample._replace(modality=sample.camid) for sample in train)
    return replace(ideal, train=train, trials=(Trial(query, gallery),), variant="small")


def test_images_of_two_modalities_are_counted(infrared, published):
    published["toy", "small"] = PublishedCounts(8, 4, 3, 3, 4, 4, 4)
    report = quick_check(infrared, **BATCH)
    assert not (report.warnings or report.problems)  # modalities have no camera in common
    header, training, query, *_ = (line.split() for line in text(infrared, report).splitlines()[1:])
    assert header[-2:] == ["visible", "infrared"] and training[-2:] == ["4", "4"] and query[-2:] == ["0", "3"]


@pytest.mark.parametrize(("modality", "absent"), [(0, "infrared"), (1, "visible")])
def test_training_images_of_one_modality_are_a_problem_where_there_should_be_two(infrared, modality, absent):
    """Lists of another version, or cameras' folders that were not unpacked, of training identities alone."""
    both = replace(infrared, templates=("A visible {} person.", "An infrared {} person."))
    alone = {"train": tuple(sample._replace(modality=modality) for sample in infrared.train)}
    assert absent in only(quick_check(replace(both, **alone), **BATCH), "problem", "one modality").message
    for right, batch in ((both, BATCH), (replace(both, **alone), ALONE), (replace(infrared, **alone), BATCH)):
        assert not quick_check(right, **batch).problems


def test_directions_of_a_test_share_their_training_images(infrared, published):
    (trial,) = infrared.trials
    there, back = replace(infrared, name="toy (there)", train=()), replace(infrared, name="toy (back)", train=())
    back = replace(back, trials=(Trial(trial.gallery, trial.query),))
    whole = replace(infrared, trials=there.trials + back.trials, parts=(there, back))
    published["toy", "small"] = PublishedCounts(8, 5, 3, 3, 4, 4, 4)
    report = quick_check(whole, **BATCH)
    assert only(report, "warning", "counts").message.endswith("(small): 4 training identities (published 5)")
    sides = [f"toy ({way}) {side}" for way in ("there", "back") for side in ("query", "gallery")]
    assert [split.name for split in splits(whole)] == [*sides, "training"]


# --------------------------------------------------------------------------------------------- several trials and sets


def test_the_same_finding_in_several_trials_is_reported_once(ideal):
    query, gallery = ideal.trials[0]
    worse, bad, good = Trial(query, gallery[2:]), Trial(query, gallery[1:]), Trial(query, gallery)
    several = replace(ideal, trials=(good, bad, worse, good))
    finding = only(quick_check(several, **BATCH), "warning", "not in the gallery", "1 of 3 queries")
    assert "1 more trials" in finding.message
    assert [split.name for split in splits(several)][1:] == ["query (trial 1 of 4)", "gallery (trial 1 of 4)"]


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
    assert [split.name for split in splits(both)] == [
        *("toy training", "toy query", "toy gallery", "second training", "second query", "second gallery"),
        "training together",
    ]
    published["second", ""] = PublishedCounts(9, 4, 3, 2, 2)
    published["toy", ""] = PublishedCounts(10, 4, 3, 3, 2)
    counts = [finding.message for finding in quick_check(both, **BATCH).warnings if finding.kind == "counts"]
    for message, name, count in zip(counts, ("toy", "second"), (10, 9), strict=True):  # each by itself
        assert message.startswith(f"{name}: ") and message.endswith(f": 8 training images (published {count})")


def test_what_the_reader_skipped(ideal):
    """Images of formats that are not read are missed by nobody, unless the check reports them."""
    for omitted, level, kind, message, examples in (
        (Omitted(("q/a.jfif", "q/b.JFIF", "q/c.heic")), "warning", "images skipped", "3 files", None),
        (Omitted(("q/notes.txt", "q/README")), "note", "files skipped", "2 files", None),
        (Omitted((), ("query/more",)), "warning", "folders skipped", "1 folders", ("query/more",)),
        (Omitted(identities=("t/10", "t/9")), "warning", "empty identities", "2 identities", ("t/9", "t/10")),
    ):
        finding = only(quick_check(replace(ideal, omitted=omitted), **BATCH), level, kind, message)
        assert finding.examples == (examples or omitted.files)


# --------------------------------------------------------------------------------------------------------------- images


def test_an_image_that_cannot_be_read(ideal, monkeypatch):
    """Cut off, no image at all, a decoder's own fault; the quick form does not look."""
    cut, none = Path(ideal.train[0].path), Path(ideal.trials[0].gallery[2].path)
    cut.write_bytes(cut.read_bytes()[:-400])
    none.write_bytes(b"<html>not found</html>")
    assert not quick_check(ideal, **BATCH).problems
    finding = only(full_check(ideal, **BATCH), "problem", "unreadable", "2 of 14 images")
    assert [example.partition(":")[0] for example in finding.examples] == [str(cut), str(none)]

    def broken(path: str) -> Image.Image:
        raise IndexError("past the end")

    monkeypatch.setattr(full, "read_image", broken)
    finding = only(full_check(ideal, **BATCH), "problem", "unreadable", "14 of 14 images")
    assert finding.examples[0].endswith("(IndexError: past the end)")


def test_images_that_are_tiny_or_not_rgb(ideal):
    for size, tiny in (((15, 40), True), ((40, 15), True), ((16, 16), False)):
        path = image(Path(ideal.train[0].path), 50, size)
        report = full_check(ideal, **BATCH)
        examples = [finding.examples for finding in report.warnings if finding.kind == "tiny"]
        assert examples == [(f"{path} ({size[0]} x {size[1]})",)] * tiny
    for sample, seed, mode in zip(ideal.train, (50, 51, 52), ("L", "RGBA", "L"), strict=False):
        image(Path(sample.path), seed, mode=mode)
    finding = only(full_check(ideal, **BATCH), "note", "not RGB", "3 of 14 images are not RGB (L: 2, RGBA: 1)")
    assert finding.examples[1] == f"{ideal.train[1].path} (RGBA)"


def test_the_same_image_in_another_file(ideal, tmp_path):
    """Saved anew and named otherwise: only pixels tell."""
    query, gallery = ideal.trials[0]
    again, reshaped = str(tmp_path / "again.bmp"), str(tmp_path / "reshaped.png")
    with Image.open(query[0].path) as original:
        original.save(again)
        Image.fromarray(np.asarray(original).reshape(20, 24, 3)).save(reshaped)
    in_gallery = with_test(ideal, gallery=(*gallery, Sample(again, 10, 5)))
    assert not quick_check(in_gallery, **BATCH).warnings
    finding = only(full_check(in_gallery, **BATCH), "warning", "overlap", "1 of 3 queries")
    assert finding.examples == (f"{query[0].path} and {again}",)
    for other in (Sample(again, 10, 0), Sample(reshaped, 10, 5)):  # ignored by the protocol; of another shape
        assert not full_check(with_test(ideal, gallery=(*gallery, other)), **BATCH).warnings


def test_processes_see_what_one_sees(ideal, monkeypatch):
    """In the same order; and every image once, however many trials it is in."""
    Path(ideal.train[5].path).write_bytes(b"no image")
    image(Path(ideal.train[1].path), 51, mode="L")
    expected = full_check(ideal, **BATCH)
    assert kinds(expected.problems) == ["unreadable"] and kinds(expected.notes) == ["not RGB"]
    monkeypatch.setattr(full, "FEW", 0)
    monkeypatch.setattr(full, "PATHS_AT_ONCE", 3)
    assert full_check(ideal, **BATCH, workers=2) == expected
    asked = []
    decode = full._decode
    monkeypatch.setattr(full, "_decode", lambda paths, workers: asked.extend(paths) or decode(paths, workers))
    full_check(replace(ideal, trials=ideal.trials * 3), **BATCH, workers=1)
    assert len(asked) == len(set(asked)) == 14


# ----------------------------------------------------------------------------------------------------------------- tool


@pytest.fixture
def market(tmp_path) -> Path:
    """ROOT_DIR of a small Market-1501, as its published counts say it is not."""
    folder = tmp_path / "data" / "Market-1501-v15.09.15"
    seeds = iter(range(100))
    for split, pids, cameras in (
        *(("bounding_box_train", (2, 7), (1, 2)), ("query", (1, 3), (1,)), ("bounding_box_test", (0, 1, 3), (3,))),
    ):
        for pid in pids:
            for camera in cameras:
                image(folder / split / f"{pid:04}_c{camera}s1_000001_00.jpg", next(seeds))
    return tmp_path / "data"


def run(market: Path, *words: str) -> int:
    small = ["DATALOADER.NUM_INSTANCE", "2", "SOLVER.STAGE2.IMS_PER_BATCH", "4"]
    return tool.main([*words, "DATASETS.ROOT_DIR", str(market), *small])


def test_the_tool(market, tmp_path, capsys, monkeypatch):
    """Its quick form decodes nothing, and draws only on request."""
    monkeypatch.chdir(tmp_path)
    assert run(market) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^training +4 +2 +2 +1$", shown, re.MULTILINE) and "(0 problems, 1 warnings)" in shown
    (tmp_path / "runs" / "check_market1501.png").rename(tmp_path / "runs" / "moved.png")
    bad = next((market / "Market-1501-v15.09.15" / "query").iterdir())
    bad.write_bytes(b"no image")
    assert run(market, "--quick") == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["moved.png"]
    assert run(market, "--quick", "--sheet", "sheet.png") == 0 and (tmp_path / "sheet.png").is_file()
    assert run(market, "--sheet", "sheet.png") == 1
    assert str(bad) in capsys.readouterr().out


def test_the_tool_takes_the_batch_from_the_configuration(market):
    """K and P are the image stage's; without it nothing is asked of them."""
    words = ["--quick", "DATASETS.ROOT_DIR", str(market), "SOLVER.STAGE2.IMS_PER_BATCH", "12"]
    words += ["DATALOADER.NUM_INSTANCE", "4"]
    assert tool.main(words) == 1
    assert tool.main([*words, "PROCESSOR.STAGES", "('prompt',)"]) == 0


def test_a_sheet_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name in (*(str(tmp_path / name) for name in ("sheet.jpg", "folder.png")), "~nouser/x.png"):
        with pytest.raises(UserError, match=f"^--sheet {re.escape(name)}: "):
            run(tmp_path / "no data here", "--sheet", name)


# ---------------------------------------------------------------------------------------------------------------- sheet


def test_the_sheet_has_a_row_for_an_identity_and_a_column_for_a_camera(tmp_path):
    """Each in its place: images of one colour an identity, darker in camera 1; one is missing, one is unreadable, and
    one is wide, and keeps its shape."""
    colours = {0: (255, 0, 0), 1: (0, 255, 0), 2: (0, 0, 255)}
    train = []
    for pid, colour in colours.items():
        for camera in (0, 1):
            path = tmp_path / f"{pid}_{camera}.png"
            size = (64, 128) if (pid, camera) != (1, 1) else (200, 100)
            Image.new("RGB", size, tuple(value // (1 + camera) for value in colour)).save(path)
            train.append(Sample(str(path), pid, camera))
    Path(train[1].path).write_bytes(b"no image")
    del train[4]  # identity 2 in camera 0
    benchmark = Benchmark("toy", TEMPLATE, tuple(train), (Trial((), ()),), same_camera)
    sheet.write_sheet(benchmark, tmp_path / "sheet.png", size=(384, 128))
    written = Image.open(tmp_path / "sheet.png").convert("RGB")
    margin, line, gap = sheet.MARGIN, sheet.LINE, sheet.GAP

    def seen(row: int, column: int) -> tuple[int, int, int]:
        return written.getpixel((margin + gap + 32 + column * (64 + gap), 2 * line + gap + 64 + row * (128 + gap)))

    assert [[seen(row, column) for column in range(2)] for row in range(3)] == [
        [(255, 0, 0), (128, 128, 128)],
        [(0, 255, 0), (0, 127, 0)],
        [(255, 255, 255), (0, 0, 127)],
    ]
    dark_green = (np.asarray(written) == (0, 127, 0)).all(axis=2)
    assert (dark_green.any(axis=1).sum(), dark_green.any(axis=0).sum()) == (32, 64)
    ink = (np.asarray(written)[2 * line :, :margin] < 128).any(axis=(1, 2))
    assert ink[: line + gap].any() and ink[line + 2 * gap : 2 * line + gap].sum() > 4  # label, and a file's name


def test_what_is_on_the_sheet():
    many = [Sample(f"{pid}_{camera}", pid, camera) for pid in range(100) for camera in range(30) if camera >= pid // 10]
    heads, rows = sheet.choose(many)
    assert [row[-1].pid for row in rows] == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]  # spread over all
    assert heads == [f"camera {camera}" for camera in range(9, 21)]  # those that saw all of them, of 30
    heads, rows = sheet.choose([Sample("a", 0, 0), Sample("b", 1, 0), Sample("c", 1, 0), Sample("d", 1, 0)])
    assert heads == ["image 0", "image 1", "image 2"]
    assert [[sample and sample.path for sample in row] for row in rows] == [["a", None, None], ["b", "c", "d"]]
    assert sheet.choose([Sample("a", 0, -1), Sample("b", 0, 2)])[0] == ["unknown", "camera 2"]
