"""Data sets by name: every reader behind its configuration, with the keys that are its own."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from configs import ConfigError, load
from datasets.build import BENCHMARKS, RENDERED, make_benchmark
from datasets.sysu import same_place
from model.weights import Weights
from processor.resume import has_ended
from processor.transfer import check_held_out
from utils.errors import DataError, UserError
from utils.fingerprint import Watch, data_fingerprint
from utils.metrics import ignore_nothing, same_camera
from utils.records import Benchmark, Labels, Sample, Trial
from utils.run.folder import EarlierRun


def images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16), (number, 0, 0)).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """All benchmarks and images of one's own, a handful of images each."""
    root = tmp_path_factory.mktemp("data")
    named = {
        "bounding_box_train": ("0002_c1s1_0_0.jpg", "0002_c2s1_0_0.jpg", "0007_c1s1_0_0.jpg", "0007_c3s1_0_0.jpg"),
        "query": ("0001_c1s1_0_0.jpg",),
        "bounding_box_test": ("0001_c2s1_0_0.jpg", "0003_c1s1_0_0.jpg"),
    }
    for place in ("Market-1501-v15.09.15", "dukemtmcreid/DukeMTMC-reID", "dukemtmcreid/Occluded_Duke"):
        for split, names in named.items():
            images(root / place / split, *names)
    cars = {
        "image_train": ("0001_c001_00016450_0.jpg", "0005_c020_00016455_0.jpg"),
        "image_query": ("0002_c002_00030600_0.jpg",),
        "image_test": ("0002_c002_00030600_0.jpg", "0002_c003_00030605_0.jpg"),
    }
    for split, names in cars.items():
        images(root / "VeRi" / split, *names)
    for split in ("train", "test"):
        names = [name for folder in cars if (split in folder) or split == "test" for name in cars[folder]]
        lines = [f"x/{name} {' '.join(['-1'] * 40)} {3 if split == 'train' else 5}" for name in names]
        (root / f"keypoint_{split}.txt").write_text("\n".join(lines) + "\n")
    lists = {"train": ("0000/0_0_01_a.jpg 0",), "val": ("0001/0_1_02_a.jpg 1",)}
    tests = {"query": ("0000/9_0_01_a.jpg 0",), "gallery": ("0000/9_0_03_a.jpg 0", "0001/9_1_02_a.jpg 1")}
    for folder, splits in (("train", lists), ("test", tests)):
        for split, lines in splits.items():
            images(root / "MSMT17" / folder, *(line.split()[0] for line in lines))
            (root / "MSMT17" / f"list_{split}.txt").write_text("\n".join(lines) + "\n")
    vehicles = {"train_list": (10, 11), "test_list_800": (1, 2), "test_list_1600": (1, 2, 3), "test_list_2400": (4, 5)}
    for name, pids in vehicles.items():
        listed_images = [(f"{pid:03}{copy}", pid) for pid in pids for copy in range(3)]
        images(root / "VehicleID_V1.0" / "image", *(f"{image}.jpg" for image, _ in listed_images))
        file = root / "VehicleID_V1.0" / "train_test_split" / f"{name}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(f"{image} {pid}\n" for image, pid in listed_images))
    (root / "SYSU-MM01" / "exp").mkdir(parents=True)
    for number, use in enumerate(("train", "val", "test")):
        pids = range(10 * number + 1, 10 * number + 5)
        for camera in range(1, 7):
            images(root / "SYSU-MM01" / f"cam{camera}", *(f"{pid:04}/{name:04}.jpg" for pid in pids for name in (1, 2)))
        (root / "SYSU-MM01" / "exp" / f"{use}_id.txt").write_text(",".join(map(str, pids)))
    for kind in ("Visible", "Thermal"):
        images(root / "RegDB" / kind, *(f"{pid}/{name}.bmp" for pid in range(8) for name in range(2)))
        for split in range(1, 11):
            for use in ("train", "test"):
                pids = [pid for pid in range(8) if ((pid + split) % 8 < 4) == (use == "train")]
                lines = [f"{kind}/{pid}/{name}.bmp {label}" for label, pid in enumerate(pids) for name in range(2)]
                file = root / "RegDB" / "idx" / f"{use}_{kind.lower()}_{split}.txt"
                file.parent.mkdir(exist_ok=True)
                file.write_text("\n".join(lines))
    for split, cameras in (("train", (1, 2)), ("query", (1,)), ("gallery", (2, 3))):
        images(root / "mine" / split, *(f"{dog}/c{camera}_x.jpg" for dog in ("rex", "bello") for camera in cameras))
    return root


def settings(root: Path, name: str, *overrides: str):
    where = root / "mine" if name == "folder" else root
    return load(None, ["DATASETS.NAMES", name, "DATASETS.ROOT_DIR", str(where), *overrides])


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name not in RENDERED])
def test_every_data_set_by_its_name(root, name):
    benchmark = make_benchmark(settings(root, name))
    assert benchmark.name == name
    assert len(benchmark.train) > 0 and all(trial.query and trial.gallery for trial in benchmark.trials)
    assert sorted({sample.pid for sample in benchmark.train}) == list(range(benchmark.num_pids))
    without = make_benchmark(settings(root, name), train=False)
    assert without.train == () and without.trials == benchmark.trials
    noun = "vehicle" if name in ("veri", "VehicleID") else "person"
    assert benchmark.template == f"A photo of a {{}} {noun}."
    assert len(benchmark.trials) == {"VehicleID": 10, "sysu_mm01": 10, "regdb": 2}.get(name, 1)
    assert benchmark.variant == {"VehicleID": "small", "sysu_mm01": "all-search", "regdb": "split 1"}.get(name, "")
    rules = {"VehicleID": ignore_nothing, "sysu_mm01": same_place, "regdb": ignore_nothing}
    assert benchmark.ignored is rules.get(name, same_camera)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("market1501", "Market-1501-v15.09.15/query/0007_c1s1_9_0.jpg"),
        ("dukemtmc", "dukemtmcreid/DukeMTMC-reID/bounding_box_test/0007_c1s1_9_0.jpg"),
        ("veri", "VeRi/image_test/0005_c020_00016455_0.jpg"),
        ("VehicleID", "VehicleID_V1.0/image/0111.jpg"),
        ("folder", None),
    ],
)
def test_training_identities_that_come_back_in_the_test_are_named(root, tmp_path, name, file):
    """By the data set's own labels; those of training are numbered anew."""
    root = shutil.copytree(root, tmp_path / "data")
    if file is None:
        assert make_benchmark(settings(root, name)).seen == ("bello", "rex")
        shutil.rmtree(root / "mine" / "train" / "rex")
        assert make_benchmark(settings(root, name)).seen == ("bello",)
    else:
        assert make_benchmark(settings(root, name)).seen == ()
        images(root, file)
        if name == "VehicleID":
            with open(root / "VehicleID_V1.0" / "train_test_split" / "test_list_800.txt", "a") as listed:
                listed.write("0111 11\n")
        label = {"veri": "5", "VehicleID": "11"}.get(name, "7")
        assert make_benchmark(settings(root, name)).seen == (label,)
    assert make_benchmark(settings(root, name), train=False).seen == ()


BOTH = [
    "DATASETS.VIEWPOINTS_TRAIN",
    "{root}/keypoint_train.txt",
    "DATASETS.VIEWPOINTS_TEST",
    "{root}/keypoint_test.txt",
]
CHANGES = [
    ("DATASETS.MSMT17_VAL", "False", "msmt17", []),
    ("DATASETS.VEHICLEID_SIZE", "medium", "VehicleID", []),
    ("DATASETS.SYSU_MODE", "indoor", "sysu_mm01", []),
    ("DATASETS.REGDB_SPLIT", "10", "regdb", []),
    ("DATASETS.VIEWPOINTS_TRAIN", "{root}/keypoint_train.txt", "veri", BOTH[2:]),
    ("DATASETS.VIEWPOINTS_TEST", "{root}/keypoint_test.txt", "veri", BOTH[:2]),
    ("DATASETS.NOUN", "dog", "folder", []),
    ("TEST.PROTOCOL", "all", "market1501", []),
    ("TEST.PROTOCOL", "all", "folder", []),
]


@pytest.mark.parametrize(("key", "value", "name", "beside"), CHANGES)
def test_keys_of_a_reader_change_what_is_read(root, key, value, name, beside):
    beside, value = [word.format(root=root) for word in beside], value.format(root=root)
    assert make_benchmark(settings(root, name, *beside)) != make_benchmark(settings(root, name, *beside, key, value))


def test_what_keys_of_a_reader_mean(root):
    pair = Labels(torch.tensor([1, 1]), torch.tensor([0, 1]))
    assert make_benchmark(settings(root, "market1501")).ignored(pair, pair).any()
    assert not make_benchmark(settings(root, "market1501", "TEST.PROTOCOL", "all")).ignored(pair, pair).any()
    assert make_benchmark(settings(root, "VehicleID", "DATASETS.VEHICLEID_SIZE", "large")).variant == "large"
    assert make_benchmark(settings(root, "msmt17", "DATASETS.MSMT17_VAL", "False")).variant == "without val"
    both = make_benchmark(settings(root, "('market1501', 'dukemtmc')"))
    assert both.num_pids == 4 and len(both.parts) == 2
    files = [word.format(root=root) for word in BOTH]
    cars = make_benchmark(settings(root, "veri", *files, "MODEL.SIE_VIEW", "True"))
    assert {sample.viewid for sample in cars.train} == {3}
    assert {sample.viewid for sample in cars.trials[0].gallery} == {5}
    with pytest.raises(DataError, match=r"MODEL\.SIE_VIEW True: .*DATASETS\.VIEWPOINTS_TRAIN"):
        make_benchmark(settings(root, "veri", "MODEL.SIE_VIEW", "True"))


def test_a_fingerprint_of_images_that_are_not_there(root, tmp_path):
    shutil.copytree(root / "mine", tmp_path / "mine")
    cfg = load(None, ["DATASETS.NAMES", "folder", "DATASETS.ROOT_DIR", str(tmp_path / "mine")])
    benchmark = make_benchmark(cfg)
    path = tmp_path / "mine" / "query" / "rex" / "c1_x.jpg"
    path.unlink()
    with pytest.raises(DataError, match=rf"^{path}: cannot be read \(No such file or directory\)$"):
        data_fingerprint(benchmark)
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=rf"^{path}: is a link to nothing$"):
        data_fingerprint(benchmark)


def test_a_fingerprint_is_what_it_was_before_there_were_modalities(tmp_path):
    paths = [tmp_path / f"{number}.jpg" for number in range(4)]
    for number, path in enumerate(paths):
        path.write_bytes(b"x" * number)
    samples = [Sample(str(path), number, number % 2, number % 3) for number, path in enumerate(paths)]
    trial = Trial((samples[2],), (samples[3],))
    benchmark = Benchmark("toy", "A {}.", tuple(samples[:2]), (trial,), same_camera)
    assert data_fingerprint(benchmark) == {
        "train": "90d401bdb1298ed3",
        "test": "852d098f79183284",
    }
    infrared = replace(benchmark, train=(samples[0], samples[1]._replace(modality=1)))
    assert data_fingerprint(infrared)["train"] != data_fingerprint(benchmark)["train"]


def test_images_that_are_replaced_are_reported_once(root, tmp_path, caplog):
    """By size, or by time where the size is the same; one that is gone is for its reader to report."""
    shutil.copytree(root / "mine", tmp_path / "mine")
    train = make_benchmark(settings(tmp_path, "folder")).train
    watch, other = (Watch("training images", train) for _ in range(2))
    first, second, third, *_ = (Path(sample.path) for sample in train)
    third.unlink()
    assert watch.look() == [] and not caplog.records
    first.write_bytes(first.read_bytes() + b"x")
    (warning,) = watch.look()
    assert warning.startswith("1 of 4 training images were replaced since the start") and f"(e.g. {first})" in warning
    os.utime(second, (0, 0))
    assert watch.look() == [warning] and caplog.messages == [warning]
    assert other.look()[0].startswith("2 of 4 training images were replaced")


@pytest.mark.parametrize(("name", "words"), [("VehicleID", []), ("market1501", ["TEST.PROTOCOL", "all"])])
def test_holding_out_needs_cameras(root, name, words):
    with pytest.raises(DataError, match=r"DATASETS\.HOLD_OUT 0\.5: needs cameras"):
        make_benchmark(settings(root, name, *words, "DATASETS.HOLD_OUT", "0.5"))


def test_held_out_identities_are_training_identities_in_any_case(root):
    """Without training, too: what is tested on is read from the training images."""
    words = ("DATASETS.HOLD_OUT", "0.5")
    shutil.copytree(root, root / "more", ignore=shutil.ignore_patterns("more"))
    images(root / "more" / "Market-1501-v15.09.15" / "bounding_box_train", "0008_c1s1_0_0.jpg", "0009_c1s1_0_0.jpg")
    whole = make_benchmark(settings(root / "more", "market1501", *words))
    tested = make_benchmark(settings(root / "more", "market1501", *words), train=False)
    assert tested.trials == whole.trials and tested.name == "market1501 (held-out training identities)"
    assert all("bounding_box_train" in sample.path for side in tested.trials[0] for sample in side)
    shutil.rmtree(root / "more")


@pytest.mark.parametrize("name", ["sysu_mm01", "regdb"])
def test_held_out_identities_of_two_modalities(root, name):
    """Queries are of the modality that they have in the test, the gallery of the other one, in both directions."""
    whole = make_benchmark(settings(root, name))
    held = make_benchmark(settings(root, name, "DATASETS.HOLD_OUT", "0.5"), train=False)
    paths = {sample.path for sample in whole.train} - {sample.path for sample in held.train}
    for before, after in zip(whole.evaluated(), held.evaluated(), strict=True):
        (trial,) = after.trials
        assert {sample.path for side in trial for sample in side} == paths and after.ranks == before.ranks
        for side, of_test in zip(trial, before.trials[0], strict=True):
            assert {sample.modality for sample in side} == {of_test[0].modality}
            assert len({sample.pid for sample in side}) == round(whole.num_pids / 2)
        assert after.name == f"{before.name} (held-out training identities)" and after.ignored is before.ignored
    assert held.trials == tuple(trial for one in held.evaluated() for trial in one.trials)


@pytest.mark.parametrize("names", ["('market1501', 'sysu_mm01')", "('regdb', 'sysu_mm01')"])
def test_two_modalities_are_not_trained_on_with_another_set(root, names):
    with pytest.raises(DataError, match=r"DATASETS\.NAMES: (sysu_mm01|regdb) has two modalities"):
        make_benchmark(settings(root, names))


def test_a_network_is_not_tested_on_another_split_unless_that_is_asked_for(root):
    weights = Weights("x.pth", {}, None, {"DATASETS": {"NAMES": "regdb", "HOLD_OUT": 0.0, "REGDB_SPLIT": 3}})
    check_held_out(settings(root, "regdb", "DATASETS.REGDB_SPLIT", "3"), weights, ["regdb"])
    other = ["DATASETS.REGDB_SPLIT", "4"]
    with pytest.raises(ConfigError, match=r"DATASETS\.REGDB_SPLIT 4: x\.pth was trained on split 3.*TEST\.OTHER_SPLIT"):
        check_held_out(settings(root, "regdb", *other), weights, ["market1501", "regdb"])
    check_held_out(settings(root, "regdb", *other, "TEST.OTHER_SPLIT", "True"), weights, ["regdb"])
    check_held_out(settings(root, "market1501", *other), weights, ["market1501"])
    elsewhere = {"DATASETS": {"NAMES": "market1501", "HOLD_OUT": 0.0}}  # as earlier versions wrote it
    check_held_out(settings(root, "regdb", *other), weights._replace(config=elsewhere), ["regdb"])


@pytest.mark.parametrize("ends", [1, 2, 3])
def test_a_training_on_regdb_has_ended_when_both_directions_are_tested(root, ends):
    earlier = EarlierRun({}, [{"when": "start"}] * 2 + [{"when": "end"}] * ends, None)
    assert has_ended(settings(root, "regdb"), earlier) == (ends == 2)


def refuses(failing: Path, function):
    """`function`, but for one place that nobody may read."""

    def stand_in(path, *rest, **named):
        if Path(path) == failing:
            raise PermissionError(13, "Permission denied", str(path))
        return function(path, *rest, **named)

    return stand_in


@pytest.mark.parametrize(
    ("name", "module", "function", "place"),
    [
        ("market1501", os, "stat", "Market-1501-v15.09.15/bounding_box_test"),
        ("market1501", os, "listdir", "Market-1501-v15.09.15/query"),
        ("veri", os, "stat", "VeRi/image_train"),
        ("msmt17", os, "listdir", "MSMT17/train/0000"),
        ("msmt17", os, "stat", "MSMT17/list_train.txt"),
        ("msmt17", io, "open", "MSMT17/list_val.txt"),  # of Path.read_text
        ("VehicleID", os, "listdir", "VehicleID_V1.0/image"),
        ("sysu_mm01", os, "listdir", "SYSU-MM01/cam3/0021"),
        ("sysu_mm01", io, "open", "SYSU-MM01/exp/test_id.txt"),
        ("regdb", os, "listdir", "RegDB/Thermal/1"),
    ],
)
def test_what_cannot_be_read_is_named(root, monkeypatch, name, module, function, place):
    monkeypatch.setattr(module, function, refuses(root / place, getattr(module, function)))
    with pytest.raises(DataError) as error:
        make_benchmark(settings(root, name))
    assert str(error.value) == f"{name}: {root / place}: Permission denied"


PLACES = {
    "market1501": "Market-1501-v15.09.15",
    "dukemtmc": "dukemtmcreid/DukeMTMC-reID",
    "occ_duke": "dukemtmcreid/Occluded_Duke",
    "msmt17": "MSMT17",
    "veri": "VeRi",
    "VehicleID": "VehicleID_V1.0",
    "sysu_mm01": "SYSU-MM01",
    "regdb": "RegDB",
}


def labels(benchmark) -> list[list[tuple]]:
    lists = [benchmark.train, *(side for trial in benchmark.trials for side in trial)]
    return [[(Path(sample.path).name, *sample[1:]) for sample in samples] for samples in lists]


def one_deeper(folder: Path) -> Path:
    """What is in `folder` is in a folder of its name in it."""
    (folder / folder.name).mkdir()
    for entry in list(folder.iterdir()):
        if entry.name != folder.name:
            entry.rename(folder / folder.name / entry.name)
    return folder / folder.name


@pytest.mark.parametrize("name", PLACES)
def test_a_data_set_that_was_unpacked_into_a_folder_of_its_name(root, tmp_path, name):
    whole = make_benchmark(settings(root, name))
    copy = shutil.copytree(root, tmp_path / "data")
    inner = one_deeper(copy / PLACES[name])
    found = make_benchmark(settings(copy, name))
    assert labels(found) == labels(whole)
    assert found.train[0].path.startswith(f"{inner}/")
    images(copy / PLACES[name], *(f"{split}/0001_c1.jpg" for split in ("query", "bounding_box_test", "image_test")))
    if name in ("market1501", "dukemtmc", "occ_duke", "veri"):  # the usual place comes first, though it is not whole
        with pytest.raises(DataError, match=rf"^{copy / PLACES[name]}/\w+: there is no such folder"):
            make_benchmark(settings(copy, name))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("market1501", "Market-1501-v15.09.15/query"),
        ("veri", "VeRi/image_test"),
        ("msmt17", "MSMT17/test"),
        ("VehicleID", "VehicleID_V1.0/image"),
        ("folder", "mine/query"),
    ],
)
def test_images_that_were_unpacked_into_a_folder_of_its_name(root, tmp_path, name, place):
    copy = shutil.copytree(root, tmp_path / "data")
    inner = one_deeper(copy / place)
    with pytest.raises(DataError, match=rf"{copy / place}.*; is it in {inner}\? Then move it up$"):
        make_benchmark(settings(copy, name))


@pytest.mark.parametrize(
    ("name", "lists", "folder"),
    [("msmt17", "MSMT17", "test"), ("VehicleID", "VehicleID_V1.0/train_test_split", "image")],
)
@pytest.mark.parametrize("prefix", ["", "{folder}/", "/home/somebody/data/{folder}/"])
@pytest.mark.parametrize(("slash", "suffix"), [("/", ""), ("\\", ".jpg")])
def test_lists_with_folders_and_suffixes_and_of_windows(root, tmp_path, name, lists, folder, prefix, slash, suffix):
    whole = make_benchmark(settings(root, name))
    copy = shutil.copytree(root, tmp_path / "data")
    for path in (copy / lists).glob("*.txt"):
        inside = "train" if path.name in ("list_train.txt", "list_val.txt") else folder
        lines = [f"{prefix.format(folder=inside)}{line}" for line in path.read_text().splitlines()]
        lines = [line.replace(" ", f"{suffix if name == 'VehicleID' else ''} ") for line in lines]
        path.write_text("".join(f"{line}\n".replace("/", slash) for line in lines))
    assert labels(make_benchmark(settings(copy, name))) == labels(whole)


CAMERAS = {
    "market1501": ("query", "0001_c{}s1_0_0.jpg"),
    "dukemtmc": ("query", "0001_c{}_f1.jpg"),
    "occ_duke": ("query", "0001_c{}_f1.jpg"),
    "msmt17": ("test/0000", "9_0_{}_b.jpg"),
    "veri": ("image_query", "0002_c{}_2_0.jpg"),
}


@pytest.mark.parametrize("name", CAMERAS)
def test_published_names_count_cameras_from_1(root, tmp_path, name):
    """Leading zeros mean nothing; a camera 0 could be any, and the message says so."""
    copy = shutil.copytree(root, tmp_path / "data")
    split, image = CAMERAS[name]
    folder = copy / PLACES[name] / split

    def add(camera: str) -> str:
        images(folder, image.format(camera))
        if name == "msmt17":
            with open(copy / "MSMT17" / "list_query.txt", "a") as listed:
                listed.write(f"0000/{image.format(camera)} 0\n")
        return image.format(camera)

    added = add("04")
    assert [s.camid for s in make_benchmark(settings(copy, name)).trials[0].query if s.path.endswith(added)] == [3]
    added = add("00")
    with pytest.raises(DataError, match=rf"{added}.* is not named as .*count from 1: where there is a camera 0, add 1"):
        make_benchmark(settings(copy, name))


@pytest.mark.parametrize("name", ["msmt17", "veri", "VehicleID"])
def test_another_data_set_in_the_form_of_market1501(root, tmp_path, name):
    """As MSMT17 is often handed on: the message has the words that read it."""
    place = shutil.copytree(root / PLACES["market1501"], tmp_path / PLACES[name])
    (place / "bounding_box_test" / "0003_c1s1_0_0.jpg").rename(place / "bounding_box_test" / "0001_c3_0.jpg")
    for where in (tmp_path, place):
        with pytest.raises(DataError, match=rf"DATASETS\.NAMES folder DATASETS\.ROOT_DIR {place} reads what is in"):
            make_benchmark(settings(where, name))
    words = ["DATASETS.NAMES", "folder", "DATASETS.ROOT_DIR", str(place)]
    assert len(make_benchmark(load(None, words)).train) == 4


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name not in RENDERED])
def test_roots_that_are_no_paths(name):
    with pytest.raises(UserError, match=r"^DATASETS\.ROOT_DIR ~nouser/x: "):
        make_benchmark(load(None, ["DATASETS.NAMES", name, "DATASETS.ROOT_DIR", "~nouser/x"]))
    with pytest.raises(DataError, match=rf"^{name}: .*{'x' * 300}.*: File name too long$"):
        make_benchmark(load(None, ["DATASETS.NAMES", name, "DATASETS.ROOT_DIR", "x" * 300]))


def test_a_noun_is_a_word():
    with pytest.raises(ConfigError, match=r"DATASETS\.NOUN: invalid value '\{\} dog'"):
        load(None, ["DATASETS.NOUN", "{} dog"])
