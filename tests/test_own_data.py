"""Users' own images: the three forms of `folder`, their messages, and the splits that `split_dataset` draws."""

import csv
import os
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.check import quick_check
from datasets.folder import folder, read_splits
from datasets.identity_folders import read_identities
from datasets.labels import camera_of, natural
from datasets.market1501 import market1501
from datasets.several import combine
from tools import split_dataset
from tools.check_dataset.report import text
from utils.errors import DataError, UserError
from utils.metrics import ignore_nothing, same_camera
from utils.records import Benchmark

HEADER = "path,pid,camid,viewid,split\n"
FORMS = ("folders", "csv")
BATCH = {"instances": 1, "identities": 2}
RIGHT = ("train/1/c1_1.jpg", "query/2/c1_1.jpg", "gallery/2/c2_1.jpg")


def write(root: Path, *names: str) -> Path:
    """Files that are only listed, never decoded."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def table(root: Path, text: str | bytes, name: str = "pictures.csv") -> Path:
    """A CSV file, and the images it may name."""
    write(root, *(f"{letter}.jpg" for letter in "abcdef"))
    (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return root


def rows(*lines: str) -> str:
    """A table with an image in every split, and then `lines`."""
    return HEADER + "a.jpg,1,1,,train\nb.jpg,2,1,,query\nc.jpg,2,2,,gallery\n" + "".join(f"{line}\n" for line in lines)


def seen(samples) -> list[tuple[str, int, int, int]]:
    return [(os.path.basename(sample.path), sample.pid, sample.camid, sample.viewid) for sample in samples]


def labels(benchmark: Benchmark) -> list[list[tuple[int, int, int]]]:
    """Everything but names, in order."""
    (trial,) = benchmark.trials
    return [[tuple(sample[1:4]) for sample in samples] for samples in (benchmark.train, *trial)]


def refuses(root: Path, *words: str, **options) -> str:
    """The message of the reader, which has all these words."""
    with pytest.raises(DataError) as error:
        folder(root, **options)
    said = str(error.value)
    assert all(word in said for word in words), said
    return said


# ----------------------------------------------------------------------------------------------- labels and their order


def test_natural_order():
    wanted = ["", "1", "2", "10", "a", "a01", "a1", "a2", "a2b", "a10", "b", "é"]
    assert sorted(sorted(wanted, reverse=True), key=natural) == wanted
    assert sorted(["9" * 5000, "1" + "0" * 5000, "2"], key=natural)[1] == "9" * 5000  # int() refuses so many digits


def test_camera_of_a_name():
    cameras = {
        **{"c3_0001.jpg": "3", "0002_c1s1_000451_03.jpg": "1", "img_c12.png": "12", "c3.jpg": "3"},
        **{"0002_c001_7.jpg": "1", "a_c2.jpg.jpg": "2", "a_c1_c2.jpg": "1", "c0_a.jpg": "0"},
        **dict.fromkeys(("abc3_1.jpg", "c3a_1.jpg", "1-c3-1.jpg", "C3_1.jpg", "c_3.jpg", "7.jpg", "c1sx_1.jpg"), ""),
        "0aa7bdd0-c123-4000.jpg": "",  # a random identifier is no camera
    }
    assert {name: camera_of(name) for name in cameras} == cameras


# ------------------------------------------------------------------------------------------------ a folder per identity


@pytest.fixture
def people(tmp_path) -> Path:
    return write(
        tmp_path / "x_c9" / "data",  # the folders above an image say nothing about it
        *("train/10/c1_1.jpg", "train/2/c10_b.jpg", "train/2/c2_10.jpg", "train/2/c2_2.JPG", "train/anna/c2_1.png"),
        *("query/20/c1_1.jpg", "query/3/c2_1.jpg", "gallery/3/c1_1.webp", "gallery/100/c3_1.tif"),
        *("gallery/20/c2_1.bmp", "gallery/20/Thumbs.db", "gallery/20/._c2_1.jpg", "gallery/.git/c1_1.jpg"),
        *("gallery/-1/c1_1.jpg", "train/-1/c1_1.jpg", "notes.txt", "gallery/desktop.ini"),
    )


def test_a_folder_per_identity(people):
    """Natural order of identity, camera and name; training from 0, query and gallery together from 0, cameras, too."""
    benchmark = folder(people)
    (trial,) = benchmark.trials
    assert seen(benchmark.train) == [
        *(("c2_2.JPG", 0, 1, 0), ("c2_10.jpg", 0, 1, 0), ("c10_b.jpg", 0, 3, 0)),  # identity 2
        ("c1_1.jpg", 1, 0, 0),  # 10
        ("c2_1.png", 2, 1, 0),  # anna
    ]
    assert seen(trial.query) == [("c2_1.jpg", 0, 1, 0), ("c1_1.jpg", 1, 0, 0)]
    assert seen(trial.gallery) == [("c1_1.webp", 0, 0, 0), ("c2_1.bmp", 1, 1, 0), ("c3_1.tif", 2, 2, 0)]
    assert (benchmark.num_pids, benchmark.num_cams, benchmark.num_views) == (3, 4, 1)
    assert (benchmark.name, benchmark.template) == ("folder", "A photo of a {} person.")
    assert benchmark.ignored is same_camera and benchmark.seen == ()
    assert all(os.path.isfile(sample.path) for sample in (*benchmark.train, *trial.query, *trial.gallery))
    assert folder(people, noun="vehicle").template == "A photo of a {} vehicle."
    assert folder(people, protocol="all").ignored is ignore_nothing
    assert labels(folder(people, protocol="all")) == labels(benchmark)  # cameras that are there are kept
    write(people, "query/2/c1_9.jpg", "gallery/anna/c1_9.jpg", "gallery/2/c2_9.jpg")
    assert folder(people).seen == ("2", "anna") and folder(people, train=False).seen == ()


def test_unknown_cameras(tmp_path):
    """The protocol is chosen explicitly; an unknown camera is -1 beside known ones, and comes first; what is not asked
    for need not have one."""
    root = write(tmp_path / "none", "train/a/1.jpg", "query/b/1.jpg", "gallery/b/10.jpg", "gallery/b/2.jpg")
    refuses(root, f"{root}: 4 of 4 images", f"{root}/gallery/b/2.jpg", "TEST.PROTOCOL all")
    benchmark = folder(root, protocol="all")
    assert labels(benchmark) == [[(0, 0, 0)], [(0, 0, 0)], [(0, 0, 0)] * 2]
    assert (benchmark.num_cams, benchmark.ignored) == (1, ignore_nothing)
    root = write(tmp_path / "some", "train/a/x.jpg", "train/a/c7_1.jpg", "query/b/c5_1.jpg", "gallery/b/c6_1.jpg")
    refuses(root, "1 of 4 images", f"{root}/train/a/x.jpg")
    assert labels(folder(root, protocol="all")) == [[(0, -1, 0), (0, 2, 0)], [(0, 0, 0)], [(0, 1, 0)]]
    assert labels(folder(root, train=False)) == [[], [(0, 0, 0)], [(0, 1, 0)]]


def test_testing_needs_no_training_part_but_numbers_its_cameras_where_it_is_there(people):
    assert labels(folder(people, train=False)) == [[], *labels(folder(people))[1:]]
    write(people, "train/9/c0_1.jpg")
    assert folder(people, train=False).trials == folder(people).trials
    assert folder(people, train=False).trials[0].query[0].camid == 2
    shutil.rmtree(people / "train")
    assert folder(people, train=False).trials[0].query[0].camid == 1
    (people / "train").mkdir()
    assert folder(people, train=False).train == ()
    refuses(people, f"{people / 'train'}: holds no image")


@pytest.mark.parametrize("split", ["train", "query", "gallery"])
def test_a_split_missing_or_empty(people, split):
    shutil.rmtree(people / split)
    for fault in (f"DATASETS.ROOT_DIR {people}: there is no folder {split}", f"{people / split}: "):
        assert refuses(people).startswith(fault)
        if split != "train":
            assert refuses(people, train=False) == refuses(people)
        write(people / split, "-1/c1_1.jpg", "5/notes.txt")  # junk and texts do not count


WRONG = {  # what there is -> words of the message, {root} for its place
    "two folders of one split": ((*RIGHT, "bounding_box_test/2_c1.jpg"), ("gallery and bounding_box_test",)),
    "images beside identities": ((*RIGHT, "query/c1_5.jpg"), ("{root}/query: ", "c1_5.jpg")),
    "a folder in an identity": ((*RIGHT, "query/2/old/c1_5.jpg"), ("{root}/query/2/old: ",)),
    "two spellings": ((*RIGHT, "gallery/02/c1_1.jpg"), ("'02' ({root}/gallery/02/c1_1.jpg)", "'2' (")),
    "a blank name": ((*RIGHT, "train/  /c1_1.jpg"), ("{root}/train: ", "'  '")),
    "an identity that is none": ((*RIGHT, "gallery/NaN/c2_1.jpg"), ("{root}/gallery/NaN: ", "'NaN'")),
    "not split": (("anna/1.jpg", "bob/2.jpg"), ("anna", "tools.split_dataset {root}")),
    "something else": (("docs/readme.txt", "1.jpg"), ("DATASETS.ROOT_DIR {root}: ",)),
    "a capital letter": (("train/1/c1.jpg", "Query/2/c1.jpg", "gallery/2/c2.jpg"), ("found Query, expected query",)),
    "one folder above": (tuple(f"mine/{name}" for name in RIGHT), ("expected {root}/mine",)),
}


@pytest.mark.parametrize(("names", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_folders(tmp_path, names, words):
    refuses(write(tmp_path, *names), *(word.format(root=tmp_path) for word in words))


def test_roots_that_are_neither_folder_nor_table(tmp_path):
    for place in (tmp_path / "x", write(tmp_path, "1.jpg") / "1.jpg"):
        refuses(place, f"DATASETS.ROOT_DIR {place}: ")


def test_blanks_around_labels_are_no_part_of_them(tmp_path):
    """As in a CSV file."""
    root = write(tmp_path / "a", "train/ anna/c1_1.jpg", "train/bob/c1_1.jpg", "query/x /c1_1.jpg", "gallery/x/c2.jpg")
    write(root, "train/anna/c2_1.jpg")
    assert labels(folder(root)) == [[(0, 0, 0), (0, 1, 0), (1, 0, 0)], [(0, 0, 0)], [(0, 1, 0)]]
    root = write(tmp_path / "b", "train/ 1 _c1_1.jpg", "query/2_c1_1.jpg", "gallery/2 _c2_1.jpg")
    assert [p.identity for rows in read_splits(root).splits.values() for p in rows] == ["1", "2", "2"]


def test_what_is_skipped_is_remembered(people):
    """Files without the suffix of an image, identities without images, other folders; not what systems leave behind."""
    write(people, "train/2/a.heic", "train/new/a.HEIC", "train/none/.hidden", "train/-1/x.txt", "gallery/__MACOSX/3/1")
    write(people, "gallery/3/c5_1.JFIF", "query/list.txt", "val/9/c1_1.jpg", "distractors/c1_1.jpg")
    benchmark = folder(people)
    assert {Path(path).relative_to(people).as_posix() for path in benchmark.omitted.files} == {
        *("train/2/a.heic", "train/new/a.HEIC", "train/-1/x.txt", "query/list.txt"),
    }
    assert benchmark.omitted.identities == (f"{people}/train/new", f"{people}/train/none")
    assert [Path(s.path).name for s in benchmark.trials[0].gallery if "/3/" in s.path] == ["c1_1.webp", "c5_1.JFIF"]
    assert folder(people, train=False).omitted.files == (f"{people}/query/list.txt",)
    assert benchmark.unused == ("folder distractors", "folder val")
    assert "not used" in [note.kind for note in quick_check(benchmark, **BATCH).notes]


def test_names_of_any_language(tmp_path):
    """Spaces, other scripts, and ü as one character or as two: one identity."""
    one, two = "J\u00fcrgen M", "Ju\u0308rgen M"
    root = write(tmp_path, f"train/{one}/c1_1.jpg", f"query/{one}/c1_ 1.jpg", f"gallery/{two}/c2_ü.jpg")
    write(root, "gallery/李 明/c3_照片 1.jpg")
    (query,), gallery = folder(root).trials[0]
    assert [sample.pid for sample in gallery] == [query.pid, query.pid + 1]
    assert gallery[1].path == str(root / "gallery" / "李 明" / "c3_照片 1.jpg")


def test_links(people, tmp_path):
    """To images, to identities and to the whole; a link to nothing is named, never skipped."""
    linked = tmp_path / "linked"
    for place in ("query", "gallery", "train/2", "train/anna", "train/10/c1_1.jpg"):
        (linked / place).parent.mkdir(parents=True, exist_ok=True)
        (linked / place).symlink_to(people / place)
    (tmp_path / "again").symlink_to(linked)
    assert labels(folder(tmp_path / "again")) == labels(folder(people))
    (people / "train" / "10" / "c1_1.jpg").unlink()
    refuses(linked, f"{linked}/train/10/c1_1.jpg: is a link to nothing")


def test_what_may_not_be_read(people, tmp_path, monkeypatch):
    root = table(tmp_path / "csv", rows())
    folder(root)
    scandir, denied = os.scandir, PermissionError(13, "Permission denied")
    monkeypatch.setattr(os, "scandir", lambda path: raising(denied) if path.name == "gallery" else scandir(path))
    monkeypatch.setattr(Path, "read_bytes", lambda self: raising(denied))
    refuses(people, f"{people}/gallery: ", "Permission denied")
    refuses(root, f"{root}/pictures.csv: ", "Permission denied")


def raising(error: Exception, *_, **__):
    raise error


# -------------------------------------------------------------------------------------------------- Market-1501's names


def test_market_names(tmp_path):
    """The identity is what stands before the camera; its own reader finds the same images in the same places."""
    root = write(
        tmp_path,
        *("bounding_box_train/0010_c1s1_000451_03.jpg", "bounding_box_train/0002_c6s1_000451_03.jpg"),
        *("query/0007_c2s1_1.jpg", "bounding_box_test/0007_c1s1_1.jpg", "bounding_box_test/-1_c1s1_1.jpg"),
        *("bounding_box_test/0000_c1s1_1.jpg", "bounding_box_test/Thumbs.db", "bounding_box_train/-1_c3s1_1.jpg"),
    )
    mine, markets = folder(root), market1501(root)
    assert seen(mine.train) == [("0002_c6s1_000451_03.jpg", 0, 2, 0), ("0010_c1s1_000451_03.jpg", 1, 0, 0)]
    assert seen(mine.trials[0].query) == [("0007_c2s1_1.jpg", 1, 1, 0)]
    assert seen(mine.trials[0].gallery) == [("0000_c1s1_1.jpg", 0, 0, 0), ("0007_c1s1_1.jpg", 1, 0, 0)]
    for own, theirs in zip((mine.train, *mine.trials[0]), (markets.train, *markets.trials[0]), strict=True):
        assert [sample.path for sample in own] == [sample.path for sample in theirs]
    for old, new in (("bounding_box_train", "train"), ("bounding_box_test", "gallery")):
        (root / old).rename(root / new)
    assert labels(folder(root)) == labels(mine)


def test_market_names_of_other_labels_and_without_cameras(tmp_path):
    root = write(tmp_path / "one", "train/anna_b_c1_1.jpg", "query/2_c1_x_c2.jpg", "gallery/10_c2s1.jpg")
    assert [row.identity for split in read_splits(root).splits.values() for row in split] == ["anna_b", "2", "10"]
    root = write(tmp_path / "two", "train/0001_a.jpg", "query/0002_b.jpg", "gallery/0002_c.jpg", "gallery/-1_c.jpg")
    assert labels(folder(root, protocol="all")) == [[(0, 0, 0)]] * 3
    refuses(root, "3 of 3 images have no camera")


@pytest.mark.parametrize("name", ["IMG_0001.jpg", "c1_0001.jpg", "0001.jpg", "_c1_1.jpg", "null_c2_1.jpg"])
def test_a_name_without_an_identity(tmp_path, name):
    root = write(tmp_path, "train/0001_c1_1.jpg", "query/0002_c1_1.jpg", "gallery/0002_c1_1.jpg", f"query/{name}")
    refuses(root, f"{root}/query/{name}: ", "identity")


@pytest.mark.parametrize(
    ("one", "other", "third"),
    [
        ("001_0", "001_1", "002_0"),  # clothes, a track, a part
        ("0001-0", "0001-2023-01-02", "2"),
        ("07 1", "07 2", "08 1"),
        ("7", "7_b", "8"),
        ("p07_0", "p07_1", "p08_0"),
        ("person_3_a", "person_3_b", "x"),
        ("-1", "-1_0", "2"),
    ],
)
@pytest.mark.parametrize("place", ["train/{}_c2_2.jpg", "gallery/{}_c2_1.jpg"])
def test_names_that_can_be_read_in_two_ways(tmp_path, one, other, third, place):
    """What stands before the camera may be more than the identity, in one split or between training and test."""
    root = write(tmp_path, f"train/{one}_c1_1.jpg", f"train/{third}_c1_1.jpg", "query/9_c1_1.jpg", "gallery/9_c2_1.jpg")
    write(root, place.format(other))
    assert refuses(root, f"{one} and {other} ").startswith(f"{root}: ")


@pytest.mark.parametrize("one, other", [("anna_b", "anna_c"), ("12-AB", "12-CD"), ("12AB", "12CD"), ("a_1", "a_2")])
def test_names_that_are_read_as_they_stand(tmp_path, one, other):
    root = write(tmp_path, f"train/{one}_c1_1.jpg", f"train/{other}_c1_1.jpg", "query/9_c1_1.jpg", "gallery/9_c2_1.jpg")
    assert folder(root).num_pids == 2


@pytest.mark.parametrize(("one", "other"), [("cam_a", "cam_b"), ("c1", "c2"), ("Camera 1", "Camera 2"), ("cam1", "-1")])
def test_folders_of_cameras_are_no_identities(tmp_path, one, other):
    """Unless the names in them say the camera."""
    names = [f"{folder}/{number:04}.jpg" for folder in (one, other, "c3") for number in range(4)]
    for side in ("train", "query", "gallery"):
        write(tmp_path / "own" / side, *names)
    refuses(tmp_path / "own", f"{tmp_path}/own/train: ", protocol="all")
    source = write(tmp_path / "source", *names)
    assert str(source) in refused(source, tmp_path / "x")
    for number, name in enumerate(names):
        (source / name).rename((source / name).with_name(f"c{number % 2}_{number}.jpg"))
    split(source, tmp_path / "x")
    write(tmp_path / "names", "cama/1.jpg", "camilla/1.jpg", "camilla/2.jpg", "c3/1.jpg", "c4/1.jpg", "c4/2.jpg")
    split(tmp_path / "names", tmp_path / "y", "--train", "0.7")


# ------------------------------------------------------------------------------------------------------------------ CSV


def test_csv(tmp_path):
    """Labels of any type, quoted fields, a byte order mark, Windows' line ends, blank lines, own columns."""
    text = (
        "\ufeffSplit,path,pid,camid,viewid,weather,,age\r\n"
        'query,"images, 1/q ""1"".jpg",2,hall,rear,sun,,\r\n'
        "\r\n"
        ",,,,,,,\r\n"
        "gallery,b.jpg, 2 ,gate 10,front,,,\r\n"
        "Gallery,./c.jpg,Jürgen,gate 2,,rain,,\r\n"
        "gallery,d.jpg,-1,gate 1,,,,\r\n"
        "train,a.jpg,10,hall,rear,,,\r\n"
        "train,e.jpg,9,gate 2,front,,,\r\n"
    )
    root = write(table(tmp_path, text), 'images, 1/q "1".jpg')
    benchmark = folder(root)
    (trial,) = benchmark.trials
    assert seen(benchmark.train) == [("e.jpg", 0, 0, 0), ("a.jpg", 1, 2, 1)]
    assert seen(trial.query) == [('q "1".jpg', 0, 2, 1)]
    assert seen(trial.gallery) == [("b.jpg", 0, 1, 0), ("c.jpg", 1, 0, -1)]
    assert all(os.path.isfile(sample.path) for sample in (*benchmark.train, *trial.query, *trial.gallery))
    assert folder(root / "pictures.csv") == benchmark
    assert benchmark.unused == ("column weather", "column age")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "to").symlink_to(root)
    for place in (tmp_path / "link" / "to", tmp_path / "link" / "to" / "pictures.csv"):
        assert labels(folder(place)) == labels(benchmark)


def test_csv_without_optional_columns(tmp_path):
    """Names of images do not count there, so the column is named."""
    root = write(table(tmp_path, "path,pid,split\nc1_x.jpg,1,train\nb.jpg,1,query\nc.jpg,1,gallery"), "c1_x.jpg")
    refuses(root, f"{root}/pictures.csv: 3 of 3 images", f"{root}/b.jpg", "column camid", "TEST.PROTOCOL all")
    assert labels(folder(root, protocol="all")) == [[(0, 0, 0)]] * 3


def test_csv_and_folders(tmp_path):
    """One CSV file decides, whatever folders there are; of two, one must be given itself; hidden ones do not count."""
    root = write(table(tmp_path / "a", rows()), "train/1/c1_1.jpg", "._pictures.csv")
    assert seen(folder(root).train) == [("a.jpg", 0, 0, 0)] and folder(root).unused == ()
    table(root, rows("d.jpg,9,5,,train"), "more.CSV")
    refuses(root, f"DATASETS.ROOT_DIR {root}: ", "2 CSV files (more.CSV, pictures.csv)")
    assert len(folder(root / "more.CSV").train) == 2
    # One that may not be meant: what is wrong with it is reported together with who decides.
    root = write(tmp_path / "b", *RIGHT)
    (root / "metadata.csv").write_text("name,weather\n")
    refuses(root, f"{root}/metadata.csv line 1: ", "(train, query, gallery are there, too)", "move it away")
    (root / "more.csv").write_text("name,weather\n")
    refuses(root, "2 CSV files", "move it away")


def test_csv_with_absolute_paths_and_paths_above(tmp_path):
    elsewhere = write(tmp_path / "elsewhere", "x.jpg", "y.jpg")
    root = table(tmp_path / "root", rows(f"{elsewhere}/x.jpg,1,1,,train", "../elsewhere/y.jpg,1,1,,train"))
    found = [Path(s.path).resolve() for s in folder(root).train]
    assert found == [root / "a.jpg", elsewhere / "x.jpg", elsewhere / "y.jpg"]
    table(root, rows(f"{elsewhere}/x.jpg,1,1,,train", "../elsewhere/x.jpg,1,1,,train"))
    refuses(root, f"{root}/pictures.csv line 6: ../elsewhere/x.jpg is in line 5")


@pytest.mark.parametrize(
    ("line", "word"),
    [
        *(("d.jpg,2,1,,test", "split 'test'"), ("d.jpg,2,1,,", "split ''"), ("d.jpg,,1,,query", "pid")),
        *((",2,1,,query", "path"), ("a.jpg,2,1,,query", "line 2"), ("./b.jpg,2,1,,query", "line 3")),
        *(("x\\z.jpg,2,1,,query", "{root}/x\\z.jpg"), (".,2,1,,query", "{root}/.")),
        ("/no/x.jpg,2,1,,query", "/no/x.jpg"),
        *(("d.jpg,2,1,query", "4 fields"), ("d.jpg,2,1,,query,", "6 fields"), ('"d.jpg,2,1,,query', "CSV")),
    ],
)
def test_csv_line_that_is_wrong(tmp_path, line, word):
    root = table(tmp_path, rows(line))
    refuses(root, f"{root}/pictures.csv line 5: ", word.replace("{root}", str(root)))


def test_csv_lines_are_counted_as_an_editor_does(tmp_path):
    root = write(table(tmp_path, rows("", '"new\nline.jpg",2,1,,query', "d.jpg,2,1,,tset")), "new\nline.jpg")
    refuses(root, "pictures.csv line 8: ", "'tset'")
    table(root, rows('"new\nline.jpg",2,1,,query'))
    assert len(folder(root).trials[0].query) == 2  # a name is what it is


@pytest.mark.parametrize(
    ("header", "word"),
    [
        *(("pid,camid", "no path, split"), ("", "no path, pid, split"), ("path;pid;split", "path;pid;split")),
        *(("path,pid,split,pid", "pid"), ("Filename,Identity,camera,set", "path by filename, pid by identity")),
        *((f"path,pid,split,{name}", "camid") for name in ("cam", "camera_id", "cameraid")),
        *((f"path,pid,split,camid,{name}", "viewid") for name in ("view", "viewpoint")),
    ],
)
def test_csv_header_that_is_wrong(tmp_path, header, word):
    root = table(tmp_path, f"{header}\n")
    refuses(root, f"{root}/pictures.csv line 1: ", word)


@pytest.mark.parametrize(
    "columns", ["cam_label,camid", "patch,video_id", "timestamp,pose", "camera,camid", "id,label", ","]
)
def test_csv_columns_of_ones_own(tmp_path, columns):
    """A spreadsheet writes those without a name, too, that were ever touched."""
    lines = (f"{name}.jpg,1,{split},x,y" for name, split in zip("abc", ("train", "query", "gallery"), strict=True))
    root = table(tmp_path, f"path,pid,split,{columns}\n" + "\n".join(lines))
    assert len(folder(root, protocol="all").train) == 1


@pytest.mark.parametrize("split", ["train", "query", "gallery"])
def test_csv_with_an_empty_split(tmp_path, split):
    lines = [line for line in rows().splitlines() if not line.endswith(f",{split}")]
    root = table(tmp_path, "\n".join([*lines, f"d.jpg,-1,1,,{split}"]))
    said = refuses(root, f"{root}/pictures.csv: ", split)
    assert split == "train" or refuses(root, train=False) == said


def test_csv_for_testing_needs_no_training_images(tmp_path):
    root = table(tmp_path, rows("d.jpg,5,0,,train"))
    expected = folder(root).trials
    for name in "ad":
        (root / f"{name}.jpg").unlink()
    assert folder(root, train=False).trials == expected  # cameras numbered alike
    refuses(root, f"line 2: there is no file {root / 'a.jpg'}")


def test_csv_of_another_encoding(tmp_path):
    for mark in ("", "\ufeff"):
        root = table(tmp_path, mark.encode() + rows().encode() + "ü.jpg,2,1,,query\n".encode("latin-1"))
        refuses(root, f"{root}/pictures.csv line 5: is not UTF-8")
    refuses(table(tmp_path, rows().encode("utf-16")), "line 1: is not UTF-8")


LABEL = {"identities": "d.jpg,{},9,,train\ne.jpg,{},9,,train", "cameras": "d.jpg,1,{},,train\ne.jpg,1,{},,train"}
LABEL["viewpoints"] = "d.jpg,1,1,{},train\ne.jpg,1,1,{},train"
SPELLINGS = [  # two of one label, of any kind
    *(("08", "8"), ("8", "8.0"), ("8", "08.00"), ("Hall", "hall"), ("gate a", "gatea"), ("ＡＢ", "AB")),
    *(("West 08", "west8"), ("gate 8", "gate  8")),
]
ALIKE = [
    *(("cameras", "c8", "8", True), ("cameras", "Cam 08", "camera_8", True), ("cameras", "cam-8", "8.0", True)),
    *(("viewpoints", "v8", "8", True), ("viewpoints", "View8", "viewpoint 8", True)),
    *(("cameras", "a8", "8", False), ("cameras", "c8", "a8", False), ("cameras", "-8", "8", False)),
    *(("identities", "c8", "8", False), ("viewpoints", "c8", "8", False), ("cameras", "v8", "8", False)),
    *(("cameras", "8 1", "81", False), ("cameras", "1.8.0", "1.8", False), ("cameras", "8.1", "8", False)),
    *(("identities", "Strauß", "Strauss", False), ("identities", "8a", "8", False), ("cameras", "cam", "c", False)),
]


@pytest.mark.parametrize("what", LABEL)
@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_csv_two_spellings_of_one_label(tmp_path, what, one, other):
    """Each would be a label of its own: a query's own camera would not be left out, an identity would not be found."""
    root = table(tmp_path, rows(LABEL[what].format(one, other)))
    refuses(root, what, f"{one!r} ({root}/d.jpg)", f"{other!r} ({root}/e.jpg)")


@pytest.mark.parametrize(("what", "one", "other", "alike"), ALIKE)
def test_csv_words_before_a_number(tmp_path, what, one, other, alike):
    """c8 is 8 where it can mean nothing else; nothing is refused that may be right."""
    root = table(tmp_path, rows(LABEL[what].format(one, other)))
    if alike:  # but beside a8, c8 is not 8
        refuses(root, repr(one), repr(other))
        third = LABEL[what].partition("\n")[0].format("a8").replace("d.jpg", "f.jpg")
        table(root, rows(LABEL[what].format(one, other), third))
    assert len(folder(root).train) == 3 + alike


@pytest.mark.parametrize("word", ["NaN", "None", "NULL", "N/A", "-1", "-1.0", "?", "-", "unknown"])
def test_csv_words_for_no_label(tmp_path, word):
    """A camera or viewpoint is unknown, as an empty one; an identity is refused, and junk is junk."""
    lines = ("d.jpg,1,{0},{0},train", "e.jpg,1,1,rear,train")
    empty, named = ([line.format(label) for line in lines] for label in ("", word))
    expected = labels(folder(table(tmp_path, rows(*empty)), protocol="all"))
    root = table(tmp_path, rows(*named))
    assert labels(folder(root, protocol="all")) == expected and expected[0][0] == (0, -1, -1)
    refuses(root, "1 of 5 images", f"{root}/d.jpg")
    table(root, rows(f"d.jpg,{word},1,,gallery"))
    if word.startswith("-1"):
        assert len(folder(root).trials[0].gallery) == 1
    else:
        refuses(root, f"{root}/pictures.csv line 5: ", repr(word))


# --------------------------------------------------------------------------------------------- labels in the data check


def halls(root: Path, query: tuple[str, str], gallery: tuple[str, str]) -> Path:
    """Two queries and two gallery images, each in another camera; training in two."""
    cameras = [("train", "anna", "hall"), ("train", "bob", "yard")]
    cameras += [("query", f"q{n}", camera) for n, camera in enumerate(query)]
    cameras += [("gallery", f"q{n}", camera) for n, camera in enumerate(gallery)]
    lines = [f"{name}.jpg,{who},{camera},,{side}" for name, (side, who, camera) in zip("abcdef", cameras, strict=True)]
    return table(root, HEADER + "\n".join(lines) + "\n")


def test_labels_are_shown_as_they_were_written(tmp_path):
    """Not by the numbers that stand for them; of one's own images trained on with others, too."""
    root = halls(tmp_path / "own", ("hall", "yard"), ("hall", "hall"))
    for benchmark in (folder(root), combine([folder(root), replace(folder(root), name="other")])):
        report = quick_check(benchmark, **BATCH)
        examples = [example for finding in report.warnings for example in finding.examples]
        assert f"{root}/c.jpg (identity q0, camera hall)" in examples
        shown = text(benchmark, report)
        assert "2 (hall, yard)" in shown and "anna (a.jpg), bob (b.jpg), q0 (c.jpg)" in shown


@pytest.mark.parametrize(
    ("query", "gallery", "protocol", "warned"),
    [
        (("north", "south"), ("N", "S"), "cross-camera", True),
        (("north", "south"), ("N", "S"), "all", False),
        (("north", "south"), ("south", "S"), "cross-camera", False),
        (("north", "north"), ("N", "S"), "cross-camera", False),
    ],
)
def test_queries_and_gallery_without_a_common_camera(tmp_path, query, gallery, protocol, warned):
    report = quick_check(folder(halls(tmp_path, query, gallery), protocol=protocol), **BATCH)
    warnings = [finding for finding in report.warnings if finding.kind == "no common camera"]
    assert [finding.message for finding in warnings] == [
        "queries (north, south) and gallery (N, S) have no camera in common"
    ] * warned


# -------------------------------------------------------------------------------------------------------- split_dataset


CROWD = ("2", "10", "001", "anna", "Jürgen M", "李明", "x_c2", "bob 3", "b-4", "z")


def crowd(root: Path, *, cameras: bool = True) -> Path:
    """Ten people of four to six images, each its own colour, in two or three cameras."""
    rng = np.random.default_rng(0)
    for number, identity in enumerate(CROWD):
        (root / identity).mkdir(parents=True)
        for image in range(4 + number % 3):
            camera = f"c{(number + image) % 3 + 9}_" if number % 2 or image % 3 else "c1s2_"
            pixels = rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / identity / f"{camera * cameras}{image + 8} ü.png")
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def split(source: Path, target: Path, *words: str) -> Path:
    split_dataset.main([str(source), str(target), *words])
    return target


def refused(*words) -> str:
    with pytest.raises(UserError) as error:
        split_dataset.main([str(word) for word in words])
    return str(error.value)


@pytest.mark.parametrize("cameras", [True, False], ids=["cameras", "no cameras"])
@pytest.mark.parametrize("link", [False, True], ids=["copies", "links"])
def test_both_forms_are_one(tmp_path, cameras, link):
    """The same images with the same labels in the same order, hence the same batches."""
    source = crowd(tmp_path / "source", cameras=cameras)
    before = contents(source)
    found = []
    for form in FORMS:
        words = ("--seed", "3", "--form", form, *(["--link"] if link and form != "csv" else []))
        benchmark = folder(split(source, tmp_path / form, *words), protocol="cross-camera" if cameras else "all")
        assert benchmark.num_cams == (4 if cameras else 1)
        assert form == "csv" or all(os.path.islink(sample.path) == link for sample in benchmark.train)
        every = (benchmark.train, *benchmark.trials[0])
        found.append([(Path(s.path).read_bytes(), *s[1:]) for samples in every for s in samples])
    assert found[0] == found[1] and contents(source) == before


@pytest.mark.parametrize(("seed", "queries"), [(0, 1), (1, 2)])
@pytest.mark.parametrize("cameras", [True, False], ids=["cameras", "no cameras"])
def test_no_image_is_lost_or_in_two_splits(tmp_path, seed, cameras, queries):
    source = crowd(tmp_path / "source", cameras=cameras)
    write(source, "lone/c1_1.jpg" if cameras else "lone/1.jpg", "still/c1_1.jpg", "still/c1_2.jpg")
    words = ("--seed", str(seed), "--train", "0.3", "--query-per-camera", str(queries))
    splits = read_splits(split(source, tmp_path / "target", *words)).splits
    names = {split: {"/".join(p.path.split("/")[-2:]) for p in rows} for split, rows in splits.items()}
    assert sum(map(len, names.values())) == len(contents(source))
    assert set().union(*names.values()) == set(contents(source))
    owners = {split: {name.split("/")[0] for name in names[split]} for split in names}
    assert not owners["train"] & owners["gallery"]
    assert owners["query"] == owners["gallery"]  # every query has its identity in the gallery
    assert len(owners["train"]) + len(owners["gallery"]) == len(CROWD) + 2
    # Every camera keeps an image and gives what was asked for, if it can.
    asked, kept = (Counter((p.identity, p.camera) for p in splits[split]) for split in ("query", "gallery"))
    for place in asked | kept:
        total = asked[place] + kept[place]
        assert asked[place] in (min(queries, total - 1), total)
        assert asked[place] < total or total == 1
    for identity, camera in asked if cameras else ():  # every query has a match in another camera
        assert any(one == identity and other != camera for one, other in kept)
    assert "lone" in owners["train"]  # neither can be tested, whatever is drawn
    assert not cameras or "still" in owners["train"]


def where(root: Path) -> dict[str, str]:
    return {"/".join(p.path.split("/")[-2:]): name for name, rows in read_splits(root).splits.items() for p in rows}


def test_the_split_depends_on_the_seed_alone(tmp_path):
    """And on what is there, not on the order in which it is listed."""
    source = crowd(tmp_path / "one")
    expected, other = where(split(source, tmp_path / "a")), where(split(source, tmp_path / "b", "--seed", "1"))
    trained, others = ({name.split("/")[0] for name in split if split[name] == "train"} for split in (expected, other))
    assert other.keys() == expected.keys() and trained != others  # other people, not only other images of them
    assert where(split(source, tmp_path / "csv", "--form", "csv")) == expected
    images, _ = read_identities(source)
    settings = {"share": 0.5, "queries": 1, "seed": 0}
    assert split_dataset.split(images[::-1], **settings) == split_dataset.split(images, **settings)


def test_the_share_of_training_identities(tmp_path):
    source = crowd(tmp_path / "source")
    for share, count in (("0.2", 2), ("0.75", 8)):
        benchmark = folder(split(source, tmp_path / share, "--train", share))
        assert benchmark.num_pids == count
        assert len({sample.pid for sample in benchmark.trials[0].gallery}) == 10 - count
    for share, side in (("0.01", "training"), ("0.99", "testing")):
        said = refused(source, tmp_path / "x", "--train", share)
        assert f"--train {share} of 10 identities" in said and side in said
    assert not (tmp_path / "x").exists()


def test_queries_are_drawn(tmp_path):
    """Not always the first image of a camera, and as many as asked for."""
    source = write(tmp_path / "source", *(f"{i}/c{c}_{n}.jpg" for i in range(20) for c in (1, 2) for n in range(6)))
    drawn = Counter()
    for queries in (1, 4):
        root = split(source, tmp_path / f"{queries}", "--query-per-camera", str(queries))
        counts = Counter((p.identity, p.camera) for p in read_splits(root).splits["query"])
        assert set(counts.values()) == {queries} and len(counts) == 20
        drawn.update(os.path.basename(p.path) for p in read_splits(root).splits["query"])
    assert len(drawn) == 12 and max(drawn.values()) < 20


def test_the_report(tmp_path, capsys):
    """Counts, what is left out, and a command that works."""
    source = crowd(tmp_path / "source")
    write(source, "lone/c1_1.jpg", "-1/c1_junk.jpg", "anna/a.gif", "nobody/1.heic")
    target = split(source, tmp_path / "my target")
    junk, files, folders, *said = capsys.readouterr().out.splitlines()
    assert f"{source}/-1" in junk and f"{source}/anna/a.gif, {source}/nobody/1.heic" in files
    assert f"{source}/nobody" in folders
    for line, name, samples in zip(said, ("train", "query", "gallery"), labels(folder(target)), strict=False):
        words = line.split()
        assert words[:2] == [name, str(len(samples))] and words[3] == str(len({pid for pid, *_ in samples}))
    command = shlex.split(said[-1])
    assert command[0] == "python" and command[-4:] == ["DATASETS.NAMES", "folder", "DATASETS.ROOT_DIR", str(target)]


def test_the_report_without_cameras(tmp_path, capsys):
    """Or where the camera of no two images of anybody differs: the protocol is set."""
    still = write(tmp_path / "still", *(f"{i}/c{i}_{n}.jpg" for i in range(4) for n in range(2)))
    for number, source in enumerate((crowd(tmp_path / "none", cameras=False), still)):
        split(source, tmp_path / f"{number}")
        command = shlex.split(capsys.readouterr().out.splitlines()[-1])
        assert command[-4:] == ["DATASETS.ROOT_DIR", str(tmp_path / f"{number}"), "TEST.PROTOCOL", "all"]


def test_csv_form(tmp_path):
    """A file in a folder that is there, or in a new one; paths from where it is, whatever links lead there."""
    source = crowd(tmp_path / "a" / "source")
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "b" / "c")
    expected = labels(folder(split(source, tmp_path / "folders")))
    with pytest.raises(UserError, match="there is no folder"):
        split(source, tmp_path / "new" / "x.csv", "--form", "csv")
    for name in ("b/x.csv", "new/folder/x", "link/y.csv", "link/y"):
        target = tmp_path / name
        assert labels(folder(split(source, target, "--form", "csv"))) == expected
        file = target if target.suffix else target / "pictures.csv"
        with file.open(encoding="utf-8", newline="") as opened:
            assert all(not os.path.isabs(row["path"]) for row in csv.DictReader(opened))


def test_links_lead_to_the_images(tmp_path, monkeypatch):
    """Absolute, so that a relative SOURCE and a moved TARGET do not break them; a copy may be written to."""
    source = crowd(tmp_path / "source")
    for path in source.rglob("*.png"):
        path.chmod(0o444)
    (tmp_path / "of links").mkdir()
    for identity in source.iterdir():
        (tmp_path / "of links" / identity.name).symlink_to(identity)
    monkeypatch.chdir(tmp_path)
    split(Path("source"), Path("linked"), "--link")
    split(Path("of links"), Path("copied"))
    (tmp_path / "linked").rename(tmp_path / "elsewhere")
    assert labels(folder(tmp_path / "elsewhere")) == labels(folder(tmp_path / "copied"))
    sample = folder(tmp_path / "elsewhere").train[0]
    assert Path(sample.path).is_symlink() and Path(sample.path).resolve().is_relative_to(source)
    copies = list((tmp_path / "copied").rglob("*.png"))
    assert all(path.stat().st_mode & 0o200 and not path.is_symlink() for path in copies)
    assert sorted(path.read_bytes() for path in copies) == sorted(contents(source).values())


def test_refuses(tmp_path):
    """Nothing is overwritten, nothing written into SOURCE."""
    source = crowd(tmp_path / "source")
    write(tmp_path / "flat", "1.jpg")
    write(tmp_path / "empty", "a/notes.txt")
    write(tmp_path / "zeros", "01/c1_1.jpg", "1/c1_1.jpg")
    split(source, tmp_path / "done")
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "nowhere")
    before = contents(tmp_path)
    new = tmp_path / "new"
    for word, *arguments in (
        (f"{tmp_path}/x: ", tmp_path / "x", new),
        (f"{source}/2: ", source, source / "2"),
        (f"{tmp_path}/dangling.csv: ", source, tmp_path / "dangling.csv", "--form", "csv"),
        (f"{source}/new: ", source, source / "new"),
        (f"{source}/new.csv: ", source, source / "new.csv", "--form", "csv"),
        (f"{tmp_path}/flat: ", tmp_path / "flat", new),
        (f"{tmp_path}/empty: ", tmp_path / "empty", new),
        ("identities '01' (", tmp_path / "zeros", new),
        (f"{tmp_path}/done: ", tmp_path / "done", new),
        *(("SOURCE ~nouser/x: ", "~nouser/x", new), ("TARGET ~nouser/x: ", source, "~nouser/x")),
    ):
        assert word in refused(*arguments)
    assert contents(tmp_path) == before and not new.exists()


@pytest.mark.parametrize(
    "words",
    [
        *(("--train", "1"), ("--train", "nan"), ("--query-per-camera", "0"), ("--seed", "-1"), ("--form", "voc")),
        ("--form", "csv", "--link"),  # a CSV file names the images where they are
    ],
)
def test_a_command_line_that_is_wrong(tmp_path, capsys, words):
    with pytest.raises(SystemExit) as error:
        split_dataset.main([str(crowd(tmp_path / "source")), str(tmp_path / "x"), *words])
    said = capsys.readouterr().err.splitlines()[-1]
    assert error.value.code == 2 and any(word in said for word in words if word.startswith("--"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_that_fills_leaves_nothing_behind(tmp_path, monkeypatch, form):
    source, target = crowd(tmp_path / "source"), tmp_path / ("x.csv" if form == "csv" else "x")
    full = partial(raising, OSError(28, "No space left on device"))
    monkeypatch.setattr(split_dataset.shutil, "copyfile", full)
    monkeypatch.setattr(split_dataset.csv, "writer", full)
    assert refused(source, target, "--form", form).startswith(f"TARGET {target}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
