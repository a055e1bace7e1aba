"""Rendered queries behind something, and rendered vehicles: layouts, viewpoints, what is hidden, and a training."""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import test_svllreid
import train_svllreid
from configs import load
from datasets import synthetic
from datasets.build import ONE_NAME_MANY_SETS, RENDERED, make_benchmark
from datasets.dukemtmc import occ_duke
from tools.demo.rendering import occluder, scene
from tools.demo.rendering.camera import BACKGROUNDS, sample_camera
from tools.demo.rendering.person import Person, sample_person
from tools.demo.rendering.scene import photograph
from tools.demo.rendering.vehicle import TYPE_WEIGHTS, VIEWPOINTS, Decal, Vehicle, sample_vehicle, viewpoint
from datasets.synthetic import OCCLUDED, PEOPLE, VEHICLES, VIEWPOINT_FILES, Kind, write_synthetic
from datasets.veri import veri
from tools import demo
from utils.checkpoint import read_checkpoint
from utils.errors import UserError

SMALL = {"train_identities": 3, "train_images": 4, "test_identities": 2, "test_images": 6, "progress": False}
# Going round a vehicle: sectors of 45 degrees from yaw 0 on.
ROUND = ("front", "right front", "right", "right rear", "rear", "left rear", "left", "left front")
KINDS = pytest.mark.parametrize("kind", [OCCLUDED, VEHICLES], ids=lambda kind: kind.prefix)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    return {kind.prefix: write_synthetic(root, kind=kind, **SMALL) for kind in (PEOPLE, OCCLUDED, VEHICLES)}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != synthetic.MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(files)}


def pictures(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)), float)


# ----------------------------------------------------------------------------------------------------------- folders


@KINDS
def test_same_seed_gives_same_bytes_and_another_seed_does_not(made, tmp_path, kind: Kind) -> None:
    again = contents(write_synthetic(tmp_path, kind=kind, **SMALL))
    assert again == contents(made[kind.prefix])
    other = contents(write_synthetic(tmp_path, kind=kind, **SMALL, seed=1))
    jpegs = [{data for name, data in files.items() if name.endswith(".jpg")} for files in (again, other)]
    assert not jpegs[0] & jpegs[1]


@KINDS
def test_what_is_whole_is_reused_and_what_is_not_is_replaced(tmp_path, kind: Kind) -> None:
    folder = write_synthetic(tmp_path, kind=kind, **SMALL)
    assert folder.name == f"{kind.prefix}-3x4-2x6-d1.7-s0"
    whole, written = contents(folder), (folder / synthetic.MANIFEST).stat().st_mtime_ns
    assert write_synthetic(tmp_path, kind=kind, **SMALL) == folder
    assert (folder / synthetic.MANIFEST).stat().st_mtime_ns == written
    for lost in {Path(name).parent: name for name in whole}.values():  # of each folder one file
        (folder / lost).unlink()
        write_synthetic(tmp_path, kind=kind, **SMALL)
        assert contents(folder) == whole, lost
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_lost_viewpoints_are_rendered_anew(tmp_path) -> None:
    folder = write_synthetic(tmp_path, kind=VEHICLES, **SMALL)
    for name in VIEWPOINT_FILES:
        before = (folder / name).read_text()
        (folder / name).unlink()
        write_synthetic(tmp_path, kind=VEHICLES, **SMALL)
        assert (folder / name).read_text() == before


@KINDS
def test_a_folder_of_another_kind_is_never_deleted(made, tmp_path, kind: Kind) -> None:
    foreign = tmp_path / f"{kind.prefix}-3x4-2x6-d1.7-s0"
    foreign.mkdir()
    (foreign / synthetic.MANIFEST).write_text((made[PEOPLE.prefix] / synthetic.MANIFEST).read_text())
    with pytest.raises(UserError, match="in the way"):
        write_synthetic(tmp_path, kind=kind, **SMALL)
    assert [path.name for path in foreign.iterdir()] == [synthetic.MANIFEST]


def test_what_was_written_long_ago_on_another_machine_is_removed_but_not_what_is_being_written(tmp_path) -> None:
    """A kind's pictures are several folders deep: what counts is the youngest of all."""
    draft = tmp_path / ".synthetic-vehicle-1x1-1x6-d1-s0.partial.elsewhere.1.abc"
    deep = draft / "data" / VEHICLES.train
    deep.mkdir(parents=True)
    for folder in (deep.parent, deep.parent.parent, draft):
        os.utime(folder, (0, 0))
    write_synthetic(tmp_path, kind=VEHICLES, **SMALL)
    assert draft.exists()
    os.utime(deep, (0, 0))
    write_synthetic(tmp_path, kind=VEHICLES, **SMALL)
    assert not draft.exists()


def test_streams_are_disjoint() -> None:
    named = [value for name, value in vars(synthetic).items() if name.endswith("_STREAM")]
    assert len(named) == 6
    assert len({*named, 999, 31337}) == len(named) + 2
    assert VEHICLES.stream == synthetic.VEHICLE_STREAM != PEOPLE.stream == OCCLUDED.stream


# --------------------------------------------------------------------------------------------------- hidden queries


def test_only_the_queries_differ_from_the_usual_pictures(made) -> None:
    usual, hidden = made[PEOPLE.prefix], made[OCCLUDED.prefix] / "dukemtmcreid" / "Occluded_Duke"
    for name in ("bounding_box_train", "bounding_box_test"):
        assert pictures(usual / name) == pictures(hidden / name)
    pairs = list(zip(pictures(usual / "query"), pictures(hidden / "query"), strict=True))
    assert len(pairs) == 8
    assert all(one != other for one, other in pairs)


def test_the_real_reader_takes_the_hidden_set_for_occluded_duke(made) -> None:
    usual = make_benchmark(settings(made, "synthetic"))
    hidden = make_benchmark(settings(made, "synthetic_occluded"))
    read = occ_duke(made[OCCLUDED.prefix])
    assert (hidden.name, hidden.template) == ("synthetic_occluded", "A photo of a {} person.")
    assert (hidden.train, hidden.trials) == (read.train, read.trials)
    for ours, theirs in (
        (hidden.train, usual.train),
        (hidden.trials[0].query, usual.trials[0].query),
        (hidden.trials[0].gallery, usual.trials[0].gallery),
    ):
        assert [sample[1:] for sample in ours] == [sample[1:] for sample in theirs]
    for sample in (*hidden.train, *hidden.trials[0].query):
        assert re.fullmatch(rf"000[1-5]_c{sample.camid + 1}_f000000[1-6]\.jpg", Path(sample.path).name)


def settings(made: dict[str, Path], name: str, *more: str):
    words = [f"DATASETS.SYNTHETIC.{key.upper()}={value}" for key, value in SMALL.items() if key != "progress"]
    pairs = [part for word in words for part in word.split("=")]
    root = str(made[PEOPLE.prefix].parent)
    return load(None, ["DATASETS.NAMES", name, "DATASETS.ROOT_DIR", root, *pairs, *more])


@pytest.mark.parametrize("number", range(40))
def test_a_good_part_of_the_figure_is_hidden_and_nothing_else_changes(monkeypatch, number: int) -> None:
    sheets, poses = [], []
    hide, paint = occluder.paint_occluder, Person.paint

    def watch_hiding(sheet: Image.Image, figure: np.ndarray, rng: np.random.Generator) -> None:
        sheets.append(sheet.copy())
        hide(sheet, figure, rng)
        sheets.append(sheet.copy())

    def watch_painting(person: Person, image: Image.Image, **pose: float) -> None:
        if person is subject:
            poses.append(pose)
        paint(person, image, **pose)

    subject = sample_person(np.random.default_rng([71, number]))
    camera = replace(
        sample_camera(np.random.default_rng([72, number]), difficulty=0.0, background=BACKGROUNDS[number % 6]),
        occlusion=0.0,
    )
    monkeypatch.setattr(scene, "paint_occluder", watch_hiding)
    monkeypatch.setattr(Person, "paint", watch_painting)
    usual = photograph(subject, camera, np.random.default_rng(number)).jpeg
    hidden = photograph(
        subject, camera, np.random.default_rng(number), occluder=np.random.default_rng([73, number])
    ).jpeg

    flat = [Image.new("RGB", sheets[0].size, colour) for colour in ("black", "white")]
    for sheet in flat:
        paint(subject, sheet, **poses[0])
    figure = (np.asarray(flat[0]) == np.asarray(flat[1])).all(axis=2)
    covered = (np.asarray(sheets[0]) != np.asarray(sheets[1])).any(axis=2)
    assert 0.3 < covered[figure].mean() < 0.7
    # A block of JPEG is 16 x 16 pixels, and colours spill a little into the next one.
    change = np.abs(pixels(usual) - pixels(hidden)).max(axis=2)
    rows, columns = (covered.any(axis=axis).nonzero()[0] // 3 for axis in (1, 0))
    untouched = np.ones(change.shape, bool)
    untouched[max(0, rows[0] - 20) : rows[-1] + 20, max(0, columns[0] - 20) : columns[-1] + 20] = False
    assert change[untouched].max(initial=0) == 0
    assert change.max() > 20


def test_there_are_five_ways_to_hide_and_each_its_own_share() -> None:
    figure = np.zeros((384, 192), bool)
    figure[40:360, 60:130] = True
    shares = []
    for number in range(60):
        sheet = Image.new("RGB", (192, 384), "white")
        occluder.paint_occluder(sheet, figure, np.random.default_rng(number))
        shares.append((np.asarray(sheet) != 255).any(axis=2)[figure].mean())
    assert 0.3 < min(shares) < 0.42 and 0.58 < max(shares) < 0.7


# --------------------------------------------------------------------------------------------------------- vehicles


def test_the_real_reader_takes_the_vehicles_for_veri(made) -> None:
    read = make_benchmark(settings(made, "synthetic_vehicle", "MODEL.SIE_VIEW", "True"))
    files = [made[VEHICLES.prefix] / name for name in VIEWPOINT_FILES]
    same = veri(made[VEHICLES.prefix], viewpoints=files)
    assert (read.name, read.template) == ("synthetic_vehicle", "A photo of a {} vehicle.")
    assert (read.train, read.trials) == (same.train, same.trials)
    query, gallery = read.trials[0]
    assert [len(samples) for samples in (read.train, query, gallery)] == [12, 8, 12]
    assert {sample.pid for sample in read.train} == {0, 1, 2}
    assert {sample.pid for sample in query} == {sample.pid for sample in gallery} == {4, 5}
    assert {sample.camid for sample in query} <= set(range(6))
    for sample in (*read.train, *gallery):
        assert re.fullmatch(rf"000[1-5]_c00{sample.camid + 1}_0000000[1-6]_0\.jpg", Path(sample.path).name)
    in_gallery = {Path(sample.path).name: Path(sample.path).read_bytes() for sample in gallery}
    assert all(in_gallery[Path(sample.path).name] == Path(sample.path).read_bytes() for sample in query)
    for pid in (4, 5):
        assert len({sample.viewid for sample in gallery if sample.pid == pid}) > 1
        assert len({sample.camid for sample in gallery if sample.pid == pid}) == 4
    for file, count in zip(files, (12, 12), strict=True):
        lines = file.read_text().splitlines()
        assert len(lines) == count and {len(line.split()) for line in lines} == {42}
    jpeg = Image.open(read.train[0].path)
    assert (jpeg.format, jpeg.mode, jpeg.size) == ("JPEG", "RGB", (96, 96))


def test_the_viewpoint_in_the_file_is_the_side_that_was_painted(tmp_path, monkeypatch) -> None:
    painted: list[tuple[Vehicle, float]] = []
    paint = Vehicle.paint

    def watch(vehicle: Vehicle, image: Image.Image, **pose: float) -> None:
        painted.append((vehicle, pose["yaw"]))
        paint(vehicle, image, **pose)

    monkeypatch.setattr(Vehicle, "paint", watch)
    whole = synthetic._render_image
    expected: dict[tuple[str, int, int], int] = {}

    def record(plan, subjects, cameras, split, identity, image):
        painted.clear()
        picture = whole(plan, subjects, cameras, split, identity, image)
        stream = [synthetic.VEHICLE_STREAM, 0, ("train", "test").index(split), identity]
        subject = sample_vehicle(np.random.default_rng(stream))
        (yaw,) = (yaw for vehicle, yaw in painted if vehicle == subject)
        name = ROUND[int((yaw % 360 + 22.5) // 45) % 8]
        expected[split, identity, image] = VIEWPOINTS.index(name)
        return picture

    monkeypatch.setattr(synthetic, "_render_image", record)
    folder = write_synthetic(tmp_path, kind=VEHICLES, **SMALL)
    for split, name, first in (("train", VIEWPOINT_FILES[0], 1), ("test", VIEWPOINT_FILES[1], 4)):
        lines = (folder / name).read_text().splitlines()
        assert len(lines) == sum(key[0] == split for key in expected)
        for line in lines:
            identity, _, image, _ = Path(line.split()[0]).name.split("_")
            assert int(line.split()[-1]) == expected[split, int(identity) - first, int(image) - 1]
    assert len(set(expected.values())) > 3


def test_viewpoints_are_numbered_as_veri_does() -> None:
    assert VIEWPOINTS == ("front", "rear", "left", "left front", "left rear", "right", "right front", "right rear")
    for sector, name in enumerate(ROUND):
        for turn in (-720, 0, 360):
            for offset in (-22, 0, 22):
                assert VIEWPOINTS[viewpoint(45 * sector + turn + offset)] == name


PLAIN = replace(
    sample_vehicle(np.random.default_rng(0)),
    **{"type": "sedan", "decal": None, "sticker": None, "taxi_sign": None, "lamps": "wide", "cabin_shift": 0.0},
    **{name: (128, 130, 134) for name in ("roof", "lower", "bumpers", "rims", "glass", "grille", "plate")},
    **{"body": replace(sample_vehicle(np.random.default_rng(0)).body, rgb=(128, 130, 134))},
    **{"side_stripe": None, "top_stripe": None, "roof_rack": False, "spoiler": False, "sunroof": False},
)
MARK = (40, 200, 60)


def view(vehicle: Vehicle, yaw: float) -> np.ndarray:
    """The vehicle on white, (160, 160, 3)."""
    image, height = Image.new("RGB", (160, 160), "white"), 140 * vehicle.share(yaw)
    vehicle.paint(image, centre_x=80, top=80 - height / 2, height=height, yaw=yaw, phase=0.0)
    return np.asarray(image, float)


def marked(image: np.ndarray) -> int:
    return int((np.abs(image - np.array(MARK)).max(axis=2) < 60).sum())


def test_a_print_on_one_side_is_seen_from_that_side_alone() -> None:
    for sides, seen in (((1,), (True, False)), ((-1,), (False, True)), ((1, -1), (True, True))):
        vehicle = replace(PLAIN, decal=Decal(0.0, 0.5, 0.4, "box", MARK, sides))
        for right, left in ((90, 270), (50, 310), (130, 230)):
            assert (marked(view(vehicle, right)) > 20, marked(view(vehicle, left)) > 20) == seen
        assert marked(view(vehicle, 0)) == marked(view(vehicle, 180)) == 0


def test_left_and_right_mirror_each_other_but_for_the_print() -> None:
    for yaw in (90, 60, 120):
        plain = np.abs(view(PLAIN, yaw) - view(PLAIN, -yaw)[:, ::-1]).mean()
        vehicle = replace(PLAIN, decal=Decal(0.0, 0.5, 0.4, "box", MARK, (1,)))
        one_sided = np.abs(view(vehicle, yaw) - view(vehicle, -yaw)[:, ::-1]).mean()
        assert one_sided > plain + 0.5


def test_lamps_are_white_in_front_and_red_behind() -> None:
    def red(image: np.ndarray) -> int:
        return int(((image[..., 0] > 150) & (image[..., 1] < 80)).sum())

    def yellowish(image: np.ndarray) -> int:
        return int(((image[..., 0] > 225) & (image[..., 0] - image[..., 2] > 20)).sum())

    front, rear = view(PLAIN, 0), view(PLAIN, 180)
    assert yellowish(front) > 40 > red(front) == 0
    assert red(rear) > 40 > yellowish(rear) == 0


@pytest.mark.parametrize("kind", TYPE_WEIGHTS)
def test_eight_sides_fill_the_picture_and_look_different(kind: str) -> None:
    views = [view(replace(PLAIN, type=kind), 45 * sector) for sector in range(8)]
    for number, image in enumerate(views):
        rows, columns = ((image != 255).any(axis=2).any(axis=axis).nonzero()[0] for axis in (1, 0))
        assert 116 < max(np.ptp(rows), np.ptp(columns)) < 156
        assert abs(columns[0] + columns[-1] - 159) < 24 and abs(rows[0] + rows[-1] - 159) < 24
        assert all(np.abs(image - other).mean() > 1 for other in views[:number])


def test_every_vehicle_is_its_own_and_most_are_grey() -> None:
    vehicles = [sample_vehicle(np.random.default_rng([74, number])) for number in range(400)]
    assert vehicles[:5] == [sample_vehicle(np.random.default_rng([74, number])) for number in range(5)]
    assert len(set(vehicles)) == 400
    assert {vehicle.type for vehicle in vehicles} == TYPE_WEIGHTS.keys()
    grey = sum(vehicle.body.name in ("white", "black", "grey") for vehicle in vehicles)
    assert 0.55 < grey / 400 < 0.85
    sides = {vehicle.decal.sides for vehicle in vehicles if vehicle.decal}
    assert sides == {(-1, 1), (1,), (-1,)}


def test_strangers_stand_on_the_same_road_at_their_own_size(monkeypatch) -> None:
    """A small car beside a bus is smaller than the bus, whichever sides are seen."""
    poses: dict[str, dict[str, float]] = {}
    monkeypatch.setattr(Vehicle, "paint", lambda vehicle, image, **pose: poses.setdefault(vehicle.type, pose))
    bus, car = replace(PLAIN, type="bus"), replace(PLAIN, type="hatchback")
    camera = replace(sample_camera(np.random.default_rng(1), difficulty=0.0), occlusion=1.25)  # somebody, always
    for number in range(20):
        poses.clear()
        photograph(bus, camera, np.random.default_rng(number), size=(96, 96), passers_by=[car])
        assert poses["hatchback"]["height"] < 0.85 * poses["bus"]["height"]
        feet = [pose["top"] + pose["height"] for pose in (poses["hatchback"], poses["bus"])]
        assert abs(feet[0] - feet[1]) < 0.25 * 384


# --------------------------------------------------------------------------------------------------------- training


def test_both_stages_learn_vehicles_with_cameras_and_viewpoints(tmp_path) -> None:
    words = {
        **{f"DATASETS.SYNTHETIC.{name}": value for name, value in (("TRAIN_IDENTITIES", "8"), ("TRAIN_IMAGES", "4"))},
        **{f"DATASETS.SYNTHETIC.{name}": value for name, value in (("TEST_IDENTITIES", "4"), ("TEST_IMAGES", "6"))},
        **{f"SOLVER.STAGE{stage}.MAX_EPOCHS": "1" for stage in (1, 2)},
        **{f"SOLVER.STAGE{stage}.IMS_PER_BATCH": "16" for stage in (1, 2)},
        **{"DATASETS.ROOT_DIR": str(tmp_path / "data"), "OUTPUT_DIR": str(tmp_path / "run"), "MODEL.DEVICE": "cpu"},
    }
    config = str(Path(__file__).resolve().parent.parent / "configs/demo/vehicle_svllreid.yml")
    train_svllreid.main(["--config_file", config, *(word for pair in words.items() for word in pair)])
    file = tmp_path / "run" / "ViT-Tiny-8_1.pth"
    contents = read_checkpoint(file)
    assert contents["architecture"]["template"] == "A photo of a {} vehicle."
    files = [tmp_path / "data" / "synthetic-vehicle-8x4-4x6-d0.5-s1" / name for name in VIEWPOINT_FILES]
    views = 1 + max(int(line.split()[-1]) for file in files for line in file.read_text().splitlines())
    (table,) = (value for name, value in contents["model"].items() if name.endswith("side.table"))
    assert views > 4 and table.shape[0] == 6 * views
    assert not torch.equal(table[0], table[1])
    test_svllreid.main(["TEST.WEIGHT", str(file), "MODEL.DEVICE", "cpu"])
    evaluations = json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"]
    assert [entry["when"] for entry in evaluations] == ["start", "end", "test"]
    assert evaluations[2]["data_set"] == "synthetic_vehicle"
    assert evaluations[2]["mAP"] == pytest.approx(evaluations[1]["mAP"], abs=1e-9)


@pytest.mark.parametrize("name", RENDERED)
def test_the_demo_replaces_its_own_runs(tmp_path, name: str) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"DATASETS: {{NAMES: {name}}}")
    demo.empty(folder)
    assert not folder.exists()
    assert name in ONE_NAME_MANY_SETS
