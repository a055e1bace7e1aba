"""The readers of the benchmarks over fake folders: what they find, in which order, and what they say is wrong."""

import logging
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from datasets.check import quick_check
from datasets.dukemtmc import dukemtmc, occ_duke
from datasets.market1501 import market1501
from datasets.msmt17 import msmt17, msmt17_version
from datasets.published_counts import PUBLISHED, published_counts
from datasets.regdb import regdb
from datasets.sysu import same_place, sysu_mm01
from datasets.vehicleid import vehicleid
from datasets.veri import read_viewpoints, veri
from utils.errors import DataError, one_line
from utils.metrics import ignore_nothing, same_camera
from utils.records import Labels, Sample

PERSON, VEHICLE = "A photo of a {} person.", "A photo of a {} vehicle."


def touch(folder: Path, *names: str) -> None:
    """Empty files below `folder`, written in an order that is not that of their names: no reader opens an image."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in random.Random(0).sample(names, len(names)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def seen(samples) -> list[tuple[str, int, int, int]]:
    return [(Path(sample.path).name, *sample[1:4]) for sample in samples]


def message_of(read, *arguments, **named) -> str:
    with pytest.raises(DataError) as error:
        read(*arguments, **named)
    message = one_line(error.value)
    assert "\n" not in str(error.value)
    return message


@pytest.fixture
def root(tmp_path) -> Path:
    """ROOT_DIR, below a folder that looks like an image of identity 12 in camera 3."""
    folder = tmp_path / "x12_c3_s1" / "0012_c003_data"
    folder.mkdir(parents=True)
    return folder


# --------------------------------------------------------------------------------- three folders of images with names


class Form(NamedTuple):
    """A data set of three folders: training, queries, gallery."""

    read: Callable
    title: str
    template: str
    places: str  # below ROOT_DIR
    folders: tuple[str, ...]
    images: tuple[str, ...]  # name, label and camera of each that counts, in the order in which they are read
    facts: tuple[int, int, int]  # identities, cameras, viewpoints


MARKET, VERI = ("bounding_box_train", "query", "bounding_box_test"), ("image_train", "image_query", "image_test")
DUKE = (
    "0002_c8_f0046302.jpg 0 7  0007_c1_f0000001.jpg 1 0  0007_c2_f0046182.jpg 1 1  5388_c6_f0100000.JPG 2 5",
    "0001_c2_f0046985.jpg 1 1  0005_c5_f0000010.jpg 5 4",
    "0000_c3_f0000001.jpg 0 2  0001_c1_f0044158.jpg 1 0  0005_c1_f0000020.jpg 5 0",
)
MARKETS = (
    "0002_c1s1_000451_03.jpg 0 0  0007_c1s3_000001_01.jpg 1 0  0007_c2s1_000451_03.jpg 1 1  1501_c6s4_0_01.jpg 2 5",
    "0001_c1s1_001051_00.png 1 0  0003_c20s1_000001_00.jpeg 3 19",
    "0000_c3s1_000001_00.jpg 0 2  0001_c2s1_000001_01.jpg 1 1  0003_c1s1_000001_00.jpg 3 0",
)
CARS = (
    "0002_c002_00030600_0.jpg 0 1  0004_c001_1_0.jpg 1 0  0004_c020_00016450_0.jpg 1 19",
    "0001_c010_00016470_0.jpg 1 9  0003_c003_00085300_0.jpg 3 2",
    "0001_c011_00016475_0.jpg 1 10  0003_c003_00085300_0.jpg 3 2",
)
DUKES = "dukemtmcreid/DukeMTMC-reID DukeMTMC-reID dukemtmc-reid/DukeMTMC-reID dukemtmcreid"
OCCLUDED = "dukemtmcreid/Occluded_Duke Occluded_Duke Occluded-DukeMTMC Occluded-Duke"
THREE = {
    "market1501": Form(
        *(market1501, "Market-1501", PERSON, "Market-1501-v15.09.15 Market-1501", MARKET, MARKETS, (3, 20, 1))
    ),
    "dukemtmc": Form(dukemtmc, "DukeMTMC-reID", PERSON, DUKES, MARKET, DUKE, (3, 8, 1)),
    "occ_duke": Form(occ_duke, "Occluded-Duke", PERSON, OCCLUDED, MARKET, DUKE, (3, 8, 1)),
    "veri": Form(veri, "VeRi", VEHICLE, "VeRi", VERI, CARS, (2, 20, 1)),
}


def fake(root: Path, name: str, place: str | None = None) -> Path:
    """The data set in its usual place or another one, with junk, distractors and litter."""
    form = THREE[name]
    folder = root / (place or form.places.split()[0])
    for split, images in zip(form.folders, form.images, strict=True):
        touch(folder / split, *images.split()[::3], "-1_c1_00001_0.jpg", "Thumbs.db", "readme.txt", "._0001_c1_f1.jpg")
    return folder


@pytest.mark.parametrize("name", THREE)
def test_three_folders(root, name):
    """Sorted, labels in ascending order of identity, cameras from 0, the largest counts; junk left out."""
    form, folder = THREE[name], fake(root, name)
    benchmark = form.read(root)
    (trial,) = benchmark.trials
    for samples, images in zip((benchmark.train, *trial), form.images, strict=True):
        assert [str(word) for sample in seen(samples) for word in sample[:3]] == images.split()
        assert {sample.viewid for sample in samples} == {0}
    assert (benchmark.name, benchmark.template, benchmark.ignored) == (name, form.template, same_camera)
    assert (benchmark.num_pids, benchmark.num_cams, benchmark.num_views) == form.facts
    assert all(Path(sample.path).is_file() for sample in (*benchmark.train, *trial.query, *trial.gallery))
    assert benchmark.omitted.files == tuple(f"{folder}/{split}/readme.txt" for split in form.folders)


@pytest.mark.parametrize(("name", "place"), [(name, place) for name in THREE for place in THREE[name].places.split()])
def test_three_folders_in_their_usual_places_or_given_themselves(root, name, place):
    read, folder = THREE[name].read, fake(root, name, place)
    assert read(root).train[0].path.startswith(f"{folder}/")
    assert read(folder) == read(root)


@pytest.mark.parametrize("name", THREE)
def test_three_folders_missing_empty_or_misnamed(root, name):
    form, folder = THREE[name], fake(root, name)
    whole = form.read(root)
    for split in form.folders:
        for image in ("person7.jpg", "0002_s1_000451.jpg", "0002_c000_1_0.jpg", "-2_c1_1_0.jpg"):
            touch(folder / split, image)
            message = message_of(form.read, root)
            assert message.startswith(f"{folder}/{split}/{image}: ") and form.title in message
            (folder / split / image).unlink()
        (folder / split).rename(root / "aside")
        for _ in ("missing", "of junk"):
            assert message_of(form.read, root).startswith(f"{folder}/{split}: ")
            if split == form.folders[0]:
                tested = form.read(root, train=False)
                assert tested.train == () and tested.trials == whole.trials
            touch(folder / split, "-1_c1_1_0.jpg")
        shutil.rmtree(folder / split)
        (root / "aside").rename(folder / split)


def test_duke_and_occluded_duke_are_told_apart(root):
    """They stand beside each other, and neither is taken for the other when it is alone."""
    occluded = fake(root, "occ_duke")
    assert "dukemtmcreid/DukeMTMC-reID/" in message_of(dukemtmc, root)
    duke = fake(root, "dukemtmc")
    for read, folder in ((dukemtmc, duke), (occ_duke, occluded)):
        assert read(root).train[0].path.startswith(f"{folder}/")
    shutil.rmtree(occluded)
    assert "dukemtmcreid/Occluded_Duke/" in message_of(occ_duke, root)


@pytest.mark.parametrize("name", ["market1501", "veri"])
def test_what_is_skipped_is_remembered(root, name):
    folder = fake(root, name) / THREE[name].folders[1]
    touch(folder, "0001_c1s1.gif", "more/0001_c1s1_000001_00.jpg", "__MACOSX/a.jpg")
    files, folders, identities = THREE[name].read(root).omitted
    here = [path for path in files if path.startswith(f"{folder}/")]
    assert here == [f"{folder}/0001_c1s1.gif", f"{folder}/readme.txt"]
    assert folders == (f"{folder}/more",) and identities == ()


# --------------------------------------------------------------------------------------------------------------- MSMT17


LISTS = {
    "train": ["0001/0001_003_15_0303morning_0008_0.jpg 1", "0000/0000_001_01_0303morning_0008_0.jpg 0"],
    "val": ["0001/0001_001_02_0303morning_0001_0.jpg 1", "0003/0003_000_07_0303noon_0001_2.jpg 3"],
    "query": ["0001/0001_000_04_0303morning_0001_0_ex.jpg 1", "0000/0000_000_01_0303morning_0001_0.jpg 0"],
    "gallery": ["0000/0000_001_14_0303morning_0001_1.jpg 0", "0001/0001_001_05_0303morning_0001_1.jpg 1"],
}


def fake_msmt17(root: Path, name: str = "MSMT17", train: str = "train", test: str = "test") -> Path:
    folder = root / name
    for split, lines in LISTS.items():
        images = folder / (train if split in ("train", "val") else test)
        touch(images, *(line.split()[0] for line in lines), "Thumbs.db")
        (folder / f"list_{split}.txt").write_text("\n".join([*lines, "", " "]))
    return folder


@pytest.fixture
def msmt(root) -> Path:
    return fake_msmt17(root)


def test_msmt17(root, msmt):
    """Sorted; the validation list is trained on; the camera is the third field of the name; blank lines are none."""
    benchmark = msmt17(root)
    assert seen(benchmark.train) == [
        ("0000_001_01_0303morning_0008_0.jpg", 0, 0, 0),
        ("0001_001_02_0303morning_0001_0.jpg", 1, 1, 0),
        ("0001_003_15_0303morning_0008_0.jpg", 1, 14, 0),
        ("0003_000_07_0303noon_0001_2.jpg", 2, 6, 0),
    ]
    (trial,) = benchmark.trials
    assert seen(trial.query) == [
        ("0000_000_01_0303morning_0001_0.jpg", 0, 0, 0),
        ("0001_000_04_0303morning_0001_0_ex.jpg", 1, 3, 0),
    ]
    assert [sample.camid for sample in trial.gallery] == [13, 4]
    assert (benchmark.name, benchmark.template, benchmark.ignored) == ("msmt17", PERSON, same_camera)
    assert (benchmark.num_pids, benchmark.num_cams, benchmark.num_views) == (3, 15, 1)
    assert all(Path(sample.path).is_file() for sample in (*benchmark.train, *trial.query, *trial.gallery))


def test_msmt17_without_its_validation_list(root, msmt):
    whole = msmt17(root)
    (msmt / "list_val.txt").unlink()
    benchmark = msmt17(root, val=False)
    assert [sample[1:3] for sample in benchmark.train] == [(0, 0), (1, 14)]
    assert benchmark.trials == whole.trials


@pytest.mark.parametrize(
    ("name", "train", "test", "version"),
    [
        ("MSMT17", "train", "test", "unknown version"),
        ("MSMT17_V1", "train", "test", "V1"),
        ("MSMT17_V2", "mask_train_v2", "mask_test_v2", "V2"),
        ("MSMT17", "mask_train_v2", "mask_test_v2", "V2"),
        ("MSMT17_V2", "train", "test", "V2"),
        ("msmt17/MSMT17_V1", "train", "test", "V1"),
    ],
)
def test_msmt17_versions(root, name, train, test, version):
    folder = fake_msmt17(root, name, train, test)
    benchmark = msmt17(root)
    assert (len(benchmark.train), benchmark.name) == (4, "msmt17")
    assert benchmark.train[0].path.startswith(str(folder / train))
    assert benchmark.trials[0].query[0].path.startswith(str(folder / test))
    assert msmt17_version(root) == msmt17_version(folder) == version
    assert msmt17(folder) == benchmark  # the data set's own folder


def test_msmt17_in_several_versions(root):
    """None is chosen silently; giving the folder of one is a choice."""
    one = fake_msmt17(root, "MSMT17_V1")
    two = fake_msmt17(root, "MSMT17_V2", "mask_train_v2", "mask_test_v2")
    for read in (msmt17, msmt17_version):
        message = message_of(read, root)
        assert message.startswith(f"DATASETS.ROOT_DIR {root}: several versions of MSMT17")
        assert f"{one}/test (V1), {two}/mask_test_v2 (V2)" in message
    assert (msmt17_version(one), msmt17_version(two)) == ("V1", "V2")
    assert msmt17(two).train[0].path.startswith(str(two))


def test_msmt17_under_a_second_name(root):
    """A link is no second version, and its version is that of what it shows to."""
    two = fake_msmt17(root, "MSMT17_V2", "mask_train_v2", "mask_test_v2")
    plain = root / "MSMT17"
    plain.mkdir()
    for path in two.glob("*.txt"):
        shutil.copy(path, plain)
    (plain / "train").symlink_to(two / "mask_train_v2")
    (plain / "test").symlink_to(two / "mask_test_v2")
    assert msmt17_version(root) == msmt17_version(plain) == "V2"
    assert len(msmt17(root).train) == 4


@pytest.mark.parametrize("split", LISTS)
def test_msmt17_list_missing_or_empty(root, msmt, split):
    path = msmt / f"list_{split}.txt"
    path.write_text("\n\n")
    assert message_of(msmt17, root).startswith(f"{path}: ")
    path.unlink()
    assert message_of(msmt17, root).startswith(f"{path}: there is no such file")


@pytest.mark.parametrize(
    "line",
    [
        *(f"0000/0000_001_14_0303morning_0001_1.jpg{label}" for label in ("", " zero", " -1")),
        *("0000/0000_morning.jpg 0", "0000/0000_001_00_a.jpg 0", "0001/0001_001_05_gone.jpg 1"),
    ],
)
def test_msmt17_wrong_lines(root, msmt, line):
    if "gone" not in line:
        touch(msmt / "test", line.split()[0])
    path = msmt / "list_query.txt"
    path.write_text(f"{LISTS['query'][0]}\n{line}\n")
    message = message_of(msmt17, root)
    assert message.startswith(f"{path}: ") and "line 2" in message


def test_msmt17_image_in_two_lines(root, msmt):
    """The same line twice is one image; two identities are a mistake."""
    whole = msmt17(root)
    lines, path = LISTS["query"], msmt / "list_query.txt"
    path.write_text("\n".join([*lines, lines[0]]))
    assert msmt17(root) == whole
    path.write_text("\n".join([*lines, lines[0][:-1] + "7"]))
    assert message_of(msmt17, root).endswith("_0_ex.jpg has identity 1 in line 1 and 7 in line 3")


def test_lists_of_other_systems(root, msmt):
    """A byte order mark, line ends of Windows, and tabs; the camera is in the image's name, not in its folder's."""
    whole = msmt17(root)
    for split, lines in LISTS.items():
        text = "\r\n".join(line.replace(" ", "\t") for line in lines)
        (msmt / f"list_{split}.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert msmt17(root) == whole
    touch(msmt / "test", "a_b_09_c/0000_000_04_0303morning_0001_0.jpg")
    (msmt / "list_query.txt").write_text("a_b_09_c/0000_000_04_0303morning_0001_0.jpg 0")
    assert [sample.camid for sample in msmt17(root).trials[0].query] == [3]


# ----------------------------------------------------------------------------------------------------------------- VeRi


@pytest.fixture
def cars(root) -> Path:
    return fake(root, "veri")


def annotation(name: str, viewpoint: int, folder: str = "/home/someone/0099_c099/image_train/") -> str:
    return f"{folder}{name} {' '.join(str(number - 1) for number in range(40))} {viewpoint}\n"


def test_veri_viewpoints(root, cars, tmp_path, caplog):
    """The first file that knows an image counts; a query has that of its copy in the gallery; unknown is -1."""
    first, second = tmp_path / "keypoint_train.txt", tmp_path / "keypoint_test.txt"
    first.write_text(
        annotation("0002_c002_00030600_0.jpg", 3)
        + "\n"
        + annotation("0002_c002_00030600_0.jpg", 6)
        + annotation("0004_c020_00016450_0.jpg", 7)
    )
    second.write_text(
        annotation("0004_c020_00016450_0.jpg", 1)
        + annotation("0003_c003_00085300_0.jpg", 5, "C:\\VeRi\\image_test\\")
        + annotation("0001_c011_00016475_0.jpg", 0, "")
    )
    plain = veri(root)
    with caplog.at_level(logging.WARNING):
        benchmark = veri(root, viewpoints=(first, second))
    (trial,) = benchmark.trials
    assert [sample.viewid for sample in benchmark.train] == [3, -1, 7]
    assert [sample.viewid for sample in trial.query] == [-1, 5]
    assert [sample.viewid for sample in trial.gallery] == [0, 5]
    assert (benchmark.num_pids, benchmark.num_views) == (2, 8)
    for some, others in ((benchmark.train, plain.train), *zip(trial, plain.trials[0], strict=True)):
        assert [sample[:3] for sample in some] == [sample[:3] for sample in others]
    assert f"{cars}/image_train: 1 of 3 images have no viewpoint: unknown" in caplog.text
    assert "image_test" not in caplog.text
    assert veri(root, viewpoints=(second, first)).train[2].viewid == 1
    assert {sample.viewid for sample in veri(root, viewpoints=(first,)).trials[0].gallery} == {-1}


LINE = annotation("0003_c003_00085300_0.jpg", 3)[:-1]


@pytest.mark.parametrize(
    "line",
    [
        *("0003_c003_00085300_0.jpg 3", LINE[:-2]),
        *(LINE.replace(" 17 ", by) for by in (" ", " 17 17 ", " x ")),
        *(f"{LINE[:-1]}{viewpoint}" for viewpoint in ("9", "front", "-2")),
    ],
)
def test_veri_damaged_annotation(root, cars, tmp_path, line):
    path = tmp_path / "keypoint_train.txt"
    path.write_text(annotation("0002_c002_00030600_0.jpg", 3) + "\n" + line)
    message = message_of(veri, root, viewpoints=(path,))
    assert message.startswith(f"{path}: line 3 ") and "0 to 7" in message


def test_veri_annotation_missing_empty_or_of_other_images(root, cars, tmp_path):
    path = tmp_path / "keypoint_train.txt"
    assert message_of(veri, root, viewpoints=[path]).startswith(f"{path}: there is no such file")
    path.touch()
    assert message_of(veri, root, viewpoints=[path]).startswith(f"{path}: ")
    path.write_text(annotation("0003_c003_00085300_0.jpg", 4))  # a query's: none of training
    assert f"{cars}/image_train" in message_of(veri, root, viewpoints=[path])
    assert [sample.viewid for sample in veri(root, train=False, viewpoints=[path]).trials[0].query] == [-1, 4]
    assert read_viewpoints([path]) == {"0003_c003_00085300_0.jpg": 4}


# ------------------------------------------------------------------------------------------------------------ VehicleID


TRAIN_CARS = ("0000009 30", "0000001 4", "0000005 30", "0000003 7")
SMALL = (*(f"{200 + number:07} {(9, 2, 5)[number % 3]}" for number in range(18)), "0000999 6")
CAR_LISTS = {
    "train_list.txt": TRAIN_CARS,
    "test_list_800.txt": SMALL,
    "test_list_1600.txt": (*SMALL, "0000300 11", "0000301 11"),
    "test_list_2400.txt": (*SMALL, "0000300 11", "0000301 11", "0000302 12"),
}


def fake_cars(root: Path) -> Path:
    folder = root / "VehicleID_V1.0"
    images = {line.split()[0] for lines in CAR_LISTS.values() for line in lines}
    touch(folder / "image", *(f"{image}.jpg" for image in images), "Thumbs.db")
    (folder / "train_test_split").mkdir()
    for name, lines in CAR_LISTS.items():
        (folder / "train_test_split" / name).write_text("\n".join(["", *lines, ""]))
    return folder


@pytest.fixture
def listed(root) -> Path:
    return fake_cars(root)


def test_vehicleid(root, listed):
    benchmark = vehicleid(root)
    assert seen(benchmark.train) == [
        ("0000001.jpg", 0, 0, 0),
        ("0000003.jpg", 1, 0, 0),
        ("0000005.jpg", 2, 0, 0),
        ("0000009.jpg", 2, 0, 0),
    ]
    assert (benchmark.name, benchmark.template, benchmark.ignored) == ("VehicleID", VEHICLE, ignore_nothing)
    assert (benchmark.num_pids, benchmark.num_cams, benchmark.num_views) == (3, 1, 1)
    assert len(benchmark.trials) == 10
    assert all(Path(sample.path).is_file() for trial in benchmark.trials for side in trial for sample in side)


def test_vehicleid_trials(root, listed):
    """Of each test identity one image is the gallery and all others are queries; all trials are of the same images."""
    benchmark = vehicleid(root)
    everything = {int(line.split()[0]): int(line.split()[1]) for line in SMALL}
    objects: dict[Sample, int] = {}
    for query, gallery in benchmark.trials:
        assert not set(query) & set(gallery)
        assert {int(Path(sample.path).stem): sample.pid for sample in (*query, *gallery)} == everything
        assert sorted(sample.pid for sample in gallery) == [2, 5, 6, 9]
        assert all(list(side) == sorted(side) for side in (query, gallery))
        assert {sample[2:] for sample in (*query, *gallery)} == {(0, 0, 0)}
        for sample in (*query, *gallery):
            assert objects.setdefault(sample, id(sample)) == id(sample)
    assert len(objects) == 19
    galleries = {trial.gallery for trial in benchmark.trials}
    assert len(galleries) > 5  # of 216
    for pid in (2, 5, 9):  # each image may be drawn, the first as well as the last
        assert len({sample for gallery in galleries for sample in gallery if sample.pid == pid}) > 2


def test_vehicleid_draws_depend_on_seed_and_trial_alone(root, listed):
    benchmark = vehicleid(root)
    assert vehicleid(root, trials=3).trials == benchmark.trials[:3]
    assert vehicleid(root, train=False).trials == benchmark.trials
    assert vehicleid(root, seed=7).trials == vehicleid(root, seed=7).trials != benchmark.trials
    torch.manual_seed(3)
    random.seed(3)
    path = listed / "train_test_split" / "test_list_800.txt"
    path.write_text("\n".join(reversed(SMALL)))
    assert vehicleid(root).trials == benchmark.trials


@pytest.mark.parametrize(("size", "identities", "images"), [("small", 4, 19), ("medium", 5, 21), ("large", 6, 22)])
def test_vehicleid_sizes(root, listed, size, identities, images):
    for name in CAR_LISTS:
        if name not in ("train_list.txt", {"small": "test_list_800.txt", "medium": "test_list_1600.txt"}.get(size)):
            (listed / "train_test_split" / name).rename(listed / name)
    if size == "large":
        (listed / "test_list_2400.txt").rename(listed / "train_test_split" / "test_list_2400.txt")
    for query, gallery in vehicleid(root, size=size).trials:
        assert (len(gallery), len(query)) == (identities, images - identities)


def test_vehicleid_missing_or_wrong(root, listed):
    lists = listed / "train_test_split"
    (listed / "image" / "0000001.jpg").unlink()
    message = message_of(vehicleid, root)
    assert message.startswith(f"{lists}/train_list.txt: ") and "0000001.jpg (line 3)" in message
    path = lists / "test_list_800.txt"
    for contents in (b"0000200\n", b"\xff\xd8\xff\xe0"):
        path.write_bytes(contents)
        assert message_of(vehicleid, root, train=False).startswith(f"{path}: line 1 is ")
    path.unlink()
    assert message_of(vehicleid, root, train=False).startswith(f"{path}: ")
    shutil.rmtree(listed / "image")
    assert message_of(vehicleid, root).startswith(f"{listed}/image: ")


def test_ignore_nothing():
    """No pair leaves the gallery, not even the same identity in the same camera."""
    query, gallery = Labels(torch.tensor([1, 2]), torch.tensor([0, 0])), Labels(torch.tensor([2, 1, 1]), torch.zeros(3))
    ignored = ignore_nothing(query, gallery)
    assert (ignored.shape, ignored.dtype, ignored.any().item()) == ((2, 3), torch.bool, False)


# ------------------------------------------------------------------------------------------------- visible and infrared


PEOPLE = {"train_id.txt": "11,3\n", "val_id.txt": "7\n", "test_id.txt": " 20, 5,100\r\n"}
SEEN_BY = {3: (1, 2, 3), 7: (4, 6), 11: (3, 5), 5: (1, 2, 3, 6), 20: (2, 4, 5, 6), 100: (3, 4)}  # cameras
MODALITY = {1: 0, 2: 0, 3: 1, 4: 0, 5: 0, 6: 1}


def number_of_images(pid: int, camera: int) -> int:
    return 2 + (pid + camera) % 4


def fake_sysu(root: Path) -> Path:
    folder = root / "SYSU-MM01"
    for camera in MODALITY:
        (folder / f"cam{camera}").mkdir(parents=True)
    for pid, cameras in SEEN_BY.items():
        for camera in cameras:
            names = [f"{number:04}.jpg" for number in range(1, 1 + number_of_images(pid, camera))]
            touch(folder / f"cam{camera}" / f"{pid:04}", *names, "Thumbs.db")
    (folder / "cam1" / "0020").mkdir()  # which is empty
    (folder / "exp").mkdir()
    for name, text in PEOPLE.items():
        (folder / "exp" / name).write_text(text)
    return folder


@pytest.fixture
def sysu(root) -> Path:
    return fake_sysu(root)


@pytest.mark.parametrize("mode", ["all", "indoor"])
@pytest.mark.parametrize("train", [True, False])
def test_no_camera_of_a_whole_copy_is_missed(root, sysu, mode, train):
    report = quick_check(sysu_mm01(root, train=train, mode=mode), instances=None, identities=None)
    (counts,) = (finding.message for finding in report.warnings if "published" in finding.message)
    assert "query images" in counts and "cameras" not in counts


def sysu_images(folder: Path, labels: dict[int, int]) -> list[tuple]:
    """All that these identities have, in the order of identities, cameras and names, as samples with these labels."""
    return [
        (str(folder / f"cam{camera}/{pid:04}/{number:04}.jpg"), label, camera - 1, 0, MODALITY[camera])
        for pid, label in labels.items()
        for camera in SEEN_BY[pid]
        for number in range(1, 1 + number_of_images(pid, camera))
    ]


def test_sysu(root, sysu):
    """Training and validation together; all infrared images of the test are queries."""
    benchmark, indoor = (sysu_mm01(root, mode=mode) for mode in ("all", "indoor"))
    assert list(benchmark.train) == sorted(sysu_images(sysu, {3: 0, 7: 1, 11: 2}))
    query = [image for image in sysu_images(sysu, {5: 5, 20: 20, 100: 100}) if image[4]]
    galleries = {"all": [(5, 1), (5, 2), (20, 2), (20, 4), (20, 5), (100, 4)], "indoor": [(5, 1), (5, 2), (20, 2)]}
    for one, (mode, gallery) in zip((benchmark, indoor), galleries.items(), strict=True):
        assert (one.name, one.variant, one.train) == ("sysu_mm01", f"{mode}-search", benchmark.train)
        assert len(one.trials) == 10
        for trial in one.trials:
            assert list(trial.query) == query
            assert [(s.pid, s.camid + 1) for s in trial.gallery] == gallery
            assert all(Path(sample.path).is_file() and not sample.modality for sample in trial.gallery)
    assert (benchmark.num_pids, benchmark.num_cams, benchmark.num_views) == (3, 6, 1)
    assert (benchmark.template, benchmark.ignored) == (PERSON, same_place)
    assert benchmark.templates == ("A visible photo of a {} person.", "An infrared photo of a {} person.")
    assert (benchmark.unique_identities, benchmark.ranks) == (True, (1, 5, 10, 20))
    assert (benchmark.seen, benchmark.omitted.identities) == ((), ())


@pytest.mark.parametrize(("mode", "cameras"), [("all", (1, 2, 4, 5)), ("indoor", (1, 2))])
def test_sysu_galleries_are_those_of_published_programs(root, sysu, mode, cameras):
    """They seed Python's own generator, which we leave as it is."""
    random.seed(99)
    torch.manual_seed(99)
    before = random.getstate(), torch.get_rng_state()
    benchmark = sysu_mm01(root, mode=mode)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    shutil.rmtree(sysu / "cam1" / "0020")  # they fail at an empty folder
    assert sysu_mm01(root, mode=mode, trials=3).trials == benchmark.trials[:3]
    for number, trial in enumerate(benchmark.trials):
        random.seed(number)
        folders = [sysu / f"cam{camera}" / pid for pid in ("0005", "0020", "0100") for camera in cameras]
        drawn = [random.choice(sorted(folder.glob("*.jpg"))) for folder in folders if folder.is_dir()]
        assert [sample.path for sample in trial.gallery] == list(map(str, drawn))
    assert len({trial.gallery for trial in benchmark.trials}) > 5


def test_sysu_a_query_of_camera_3_does_not_see_camera_2():
    """Whatever the identity; all other cameras are seen, its own, too."""
    pids, cameras = torch.tensor([1, 2]), torch.arange(6)
    every = Labels(pids.repeat_interleave(6), cameras.repeat(2))
    of = [(pid, camera) for pid in (1, 2) for camera in range(1, 7)]
    hidden = {(of[query], of[gallery]) for query, gallery in same_place(every, every).nonzero().tolist()}
    assert hidden == {((pid, 3), (other, 2)) for pid in (1, 2) for other in (1, 2)}


def test_sysu_missing_or_wrong(root, sysu):
    for camera in SEEN_BY[7]:
        shutil.rmtree(sysu / f"cam{camera}" / "0007")
    assert sysu_mm01(root).omitted.identities == ("0007",)
    path = sysu / "exp" / "val_id.txt"
    for text in ("", "3,x", "3;4"):
        path.write_text(text)
        assert message_of(sysu_mm01, root).startswith(f"{path}: ")
    path.write_text("5")
    assert sysu_mm01(root).seen == ("5",)
    path.unlink()
    (sysu / "cam4").rename(sysu / "cam7")
    assert message_of(sysu_mm01, root, train=False).startswith(f"{sysu}/cam4: there is no such folder")


REGDB = {1: ((1, 2, 3), (4, 5, 6)), 10: ((2, 4, 6), (1, 3, 5))}  # split -> identities of training and test
KINDS = {"Visible": 0, "Thermal": 1}


def regdb_lines(kind: str, pids: tuple[int, ...]) -> list[str]:
    return [f"{kind}/{pid}/front_{number}.bmp {label}" for label, pid in enumerate(pids) for number in range(2)]


def regdb_images(folder: Path, kind: str, pids: tuple[int, ...]) -> list[tuple]:
    lines = (line.split() for line in regdb_lines(kind, pids))
    return [(str(folder / name), int(label), KINDS[kind], 0, KINDS[kind]) for name, label in lines]


def fake_regdb(root: Path) -> Path:
    folder = root / "RegDB"
    (folder / "idx").mkdir(parents=True)
    for kind in KINDS:
        touch(folder / kind, *(f"{pid}/front_{number}.bmp" for pid in range(1, 7) for number in range(2)))
        for split, uses in REGDB.items():
            for use, pids in zip(("train", "test"), uses, strict=True):
                path = folder / "idx" / f"{use}_{kind.lower()}_{split}.txt"
                path.write_text("\n".join(reversed(regdb_lines(kind, pids))))
    return folder


@pytest.mark.parametrize("split", REGDB)
def test_regdb(root, split):
    """The two directions are parts, which are tested one by one; a split is a benchmark of its own."""
    folder = fake_regdb(root)
    benchmark = regdb(root, split=split)
    trained, tested = REGDB[split]
    assert list(benchmark.train) == [
        *regdb_images(folder, "Thermal", trained),
        *regdb_images(folder, "Visible", trained),
    ]
    visible, infrared = (regdb_images(folder, kind, tested) for kind in KINDS)
    there, back = benchmark.evaluated()
    assert [list(side) for trial in there.trials for side in trial] == [visible, infrared]
    assert [list(side) for trial in back.trials for side in trial] == [infrared, visible]
    assert [part.name for part in (there, back)] == ["regdb (visible to infrared)", "regdb (infrared to visible)"]
    for one in (benchmark, there, back):
        assert (one.variant, one.ignored, one.unique_identities) == (f"split {split}", ignore_nothing, False)
        assert (len(one.templates), one.ranks, one.num_cams) == (2, (1, 5, 10, 20), 2)
    assert benchmark.trials == there.trials + back.trials


def test_regdb_missing_or_wrong(root):
    folder = fake_regdb(root)
    path = folder / "idx" / "train_thermal_1.txt"
    path.write_text("Thermal/1/front_0.bmp\n")
    assert message_of(regdb, root).startswith(f"{path}: line 1 is ")
    path.write_text("Thermal/1/front_7.bmp 0\n")
    assert "front_7.bmp (line 1)" in message_of(regdb, root)
    path.write_text("Thermal/1/front_0.bmp 0\nVisible/1/front_0.bmp 0\n")
    assert message_of(regdb, root).startswith(f"{path}: line 2 is Visible/1/front_0.bmp")
    assert message_of(regdb, root, split=2).startswith(f"{folder}/idx/train_visible_2.txt: ")


# ------------------------------------------------------------------------------------------------------- all of them


# name -> what reads it, its title, what makes one below a folder, and what of it only training needs
READERS = {
    **{name: (form.read, form.title, partial(fake, name=name), form.folders[:1]) for name, form in THREE.items()},
    "msmt17": (msmt17, "MSMT17", fake_msmt17, ("train", "list_train.txt", "list_val.txt")),
    "VehicleID": (vehicleid, "VehicleID", fake_cars, ("train_test_split/train_list.txt",)),
    "sysu_mm01": (sysu_mm01, "SYSU-MM01", fake_sysu, ("exp/train_id.txt", "exp/val_id.txt")),
    "regdb": (regdb, "RegDB", fake_regdb, ("idx/train_visible_1.txt", "idx/train_thermal_1.txt")),
}


@pytest.mark.parametrize("name", [*READERS, "version"])
def test_a_data_set_that_is_not_there(root, name):
    read, title, *_ = READERS.get(name, (msmt17_version, "MSMT17"))
    (root / "test").mkdir()  # of something else
    for place in (root / "nowhere", root):
        assert message_of(read, place).startswith(f"DATASETS.ROOT_DIR {place}: ")
    assert title in message_of(read, root) and not (root / "nowhere").exists()


@pytest.mark.parametrize("name", READERS)
def test_the_folder_itself_and_without_what_is_for_training(root, name):
    read, _, make, training = READERS[name]
    folder = make(root)
    whole = read(root)
    assert read(folder) == whole
    for part in training:
        shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink()
        assert message_of(read, root).startswith(f"{folder}/{training[0]}: there is no such f")
    tested = read(root, train=False)
    assert tested.train == () and tested.trials == whole.trials


@pytest.mark.parametrize("name", ["market1501", "dukemtmc", "msmt17", "veri", "VehicleID"])
def test_the_order_of_a_folder_does_not_matter(root, monkeypatch, name):
    """And no image is asked for by itself: a benchmark has up to 220 000 of them."""
    read, _, make, _ = READERS[name]
    folder = make(root)
    if name == "market1501":
        touch(folder / "bounding_box_train", *(f"0008_c1s1_{number:06}_00.jpg" for number in range(1000)))
    elif name == "VehicleID":
        touch(folder / "image", *(f"1{number:06}.jpg" for number in range(1000)))
        lines = "".join(f"1{number:06} {100 + number % 100}\n" for number in range(1000))
        (folder / "train_test_split" / "train_list.txt").write_text(lines)
    listdir, stat, asked = os.listdir, os.stat, []
    reference = read(root)
    for order in (
        lambda names: sorted(names, reverse=True),
        lambda names: random.Random(1).sample(names, len(names)),
    ):
        monkeypatch.setattr(os, "listdir", lambda folder, order=order: order(listdir(folder)))
        assert read(root) == reference
    monkeypatch.setattr(os, "stat", lambda path, **named: (asked.append(path), stat(path, **named))[1])
    assert read(root) == reference
    assert not [path for path in asked if str(path).lower().endswith(".jpg")]
    assert 0 < len(asked) < 100


def test_published_counts():
    one_modality = {"market1501", "dukemtmc", "occ_duke", "msmt17", "veri", "VehicleID"}
    assert {name for name, _ in PUBLISHED} == one_modality | {"sysu_mm01", "regdb"}
    for (name, _), counts in PUBLISHED.items():
        assert counts[5:] == (None, None) if name in one_modality else sum(counts[5:]) == counts.training_images
    for name, counts in {
        "market1501": (12936, 751, 3368, 19732 - 3819, 6),
        "dukemtmc": (16522, 702, 2228, 17661, 8),
        "occ_duke": (15618, 702, 2210, 17661, 8),
        "veri": (37778, 576, 1678, 11579, 20),
    }.items():
        assert published_counts(name)[:5] == counts
    assert published_counts("msmt17").training_images == 30248 + 2373
    assert published_counts("msmt17", "without val") == published_counts("msmt17")._replace(training_images=30248)
    small = published_counts("VehicleID", "small")
    assert small.query_images + small.gallery_images == 6532
    assert [published_counts("VehicleID", size).gallery_images for size in ("medium", "large")] == [1600, 2400]
    assert published_counts("folder") is None and published_counts("synthetic") is None
