"""The rendered data sets: reproducible, laid out as their benchmarks, read as those, careful with what is on disk."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import write_synthetic
from PIL import Image

import test_svllreid
import train_svllreid
from configs import load
from datasets.build import make_benchmark
from datasets.dukemtmc import occ_duke
from datasets.market1501 import read_market_folders
from datasets.synthetic import MANIFEST, VIEWPOINT_FILES
from datasets.veri import veri
from tools.demo import infrared_sets, render, sets
from tools.demo.rendering.vehicle import Vehicle, viewpoint
from tools.demo.sets import OCCLUDED, PEOPLE, VEHICLES, Kind, RenderedSet
from utils.checkpoint import read_checkpoint
from utils.errors import DataError, UserError

SMALL = {"train_identities": 3, "train_images": 4, "test_identities": 2, "test_images": 6, "progress": False}
FOLDER = "-3x4-2x6-d1.7-s0"
ALL = pytest.mark.parametrize("kind", [PEOPLE, OCCLUDED, VEHICLES], ids=lambda kind: kind.name)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    return {kind.name: write_synthetic(root, kind=kind, **SMALL) for kind in (PEOPLE, OCCLUDED, VEHICLES)}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(files)}


def images(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


def settings(root: Path, name: str, *more: str):
    words = [(f"DATASETS.SYNTHETIC.{key.upper()}", str(value)) for key, value in SMALL.items() if key != "progress"]
    pairs = [part for word in words for part in word]
    return load(None, ["DATASETS.NAMES", name, "DATASETS.ROOT_DIR", str(root), *pairs, *more])


# ------------------------------------------------------------------------------------------------------------ images


@ALL
def test_same_seed_gives_same_bytes_in_any_order_and_another_seed_does_not(made, tmp_path, monkeypatch, kind) -> None:
    in_order = RenderedSet.tasks
    monkeypatch.setattr(RenderedSet, "tasks", lambda data: reversed(list(in_order(data))))
    again = contents(write_synthetic(tmp_path, kind=kind, **SMALL))
    same = contents(made[kind.name])
    jpegs = [{data for name, data in files.items() if name.endswith(".jpg")} for files in (again, same)]
    assert again.keys() == same.keys() and all(again[name] == same[name] for name in again if name.endswith(".jpg"))
    other = contents(write_synthetic(tmp_path, kind=kind, **SMALL, seed=1))
    assert not jpegs[0] & set(other.values())


def test_test_images_do_not_depend_on_the_number_of_training_people(made, tmp_path) -> None:
    larger = write_synthetic(tmp_path, **{**SMALL, "train_identities": 4})
    for name in ("query", "bounding_box_test"):
        assert set(images(made["synthetic"] / name)) == set(images(larger / name))


def test_streams_are_disjoint_from_each_other_and_from_pretraining() -> None:
    named = [value for each in (sets, infrared_sets) for name, value in vars(each).items() if name.endswith("_STREAM")]
    assert len(named) == 10
    assert len({*named, 999, 31337}) == len(named) + 2
    assert VEHICLES.stream == sets.VEHICLE_STREAM != PEOPLE.stream == OCCLUDED.stream


def test_only_the_queries_differ_from_the_usual_images(made) -> None:
    usual, hidden = made["synthetic"], made["synthetic_occluded"] / "dukemtmcreid" / "Occluded_Duke"
    for name in ("bounding_box_train", "bounding_box_test"):
        assert images(usual / name) == images(hidden / name)
    pairs = list(zip(images(usual / "query"), images(hidden / "query"), strict=True))
    assert len(pairs) == 8 and all(one != other for one, other in pairs)


@pytest.mark.parametrize(
    ("named", "value"),
    [
        *(("train_identities", 0), ("test_images", 5), ("cameras_per_identity", 7), ("cameras_per_identity", 1)),
        *(("difficulty", -1), ("difficulty", float("nan")), ("seed", -1)),
    ],
)
def test_parameters_out_of_range_are_refused(tmp_path, named, value) -> None:
    with pytest.raises(UserError, match=named):
        write_synthetic(tmp_path, **{**SMALL, named: value})
    assert list(tmp_path.iterdir()) == []


def test_the_viewpoint_in_the_file_is_the_side_that_was_painted(tmp_path, monkeypatch) -> None:
    painted: list[tuple[Vehicle, float]] = []
    expected: dict[tuple[str, int, int], int] = {}
    paint, draw = Vehicle.paint, RenderedSet.draw

    def watch(vehicle: Vehicle, image: Image.Image, **pose: float) -> None:
        painted.append((vehicle, pose["yaw"]))
        paint(vehicle, image, **pose)

    def record(data, task, subjects, cameras):
        painted.clear()
        image = draw(data, task, subjects, cameras)
        (yaw,) = (yaw for vehicle, yaw in painted if vehicle == subjects[task.identity])
        expected[task.split, task.identity, task.image] = viewpoint(yaw)
        return image

    monkeypatch.setattr(Vehicle, "paint", watch)
    monkeypatch.setattr(RenderedSet, "draw", record)
    folder = write_synthetic(tmp_path, kind=VEHICLES, **SMALL)
    for split, name, first in (("train", VIEWPOINT_FILES[0], 1), ("test", VIEWPOINT_FILES[1], 4)):
        lines = (folder / name).read_text().splitlines()
        assert len(lines) == sum(key[0] == split for key in expected)
        for line in lines:
            identity, _, image, _ = Path(line.split()[0]).name.split("_")
            assert int(line.split()[-1]) == expected[split, int(identity) - first, int(image) - 1]
    assert len(set(expected.values())) > 3


# ----------------------------------------------------------------------------------------------------------- folders


@ALL
def test_what_is_whole_is_reused_and_what_is_not_is_replaced(made, tmp_path, kind: Kind) -> None:
    folder = write_synthetic(tmp_path, kind=kind, **SMALL)
    assert folder.name == f"{kind.name.replace('_', '-')}{FOLDER}"
    whole, manifest = contents(folder), folder / MANIFEST
    written, text = manifest.stat().st_mtime_ns, manifest.read_text()
    assert whole == contents(made[kind.name])
    assert write_synthetic(tmp_path, kind=kind, **SMALL) == folder
    assert manifest.stat().st_mtime_ns == written
    lost = {Path(name).parent: name for name in whole}.values()  # of each folder one file
    for name in VIEWPOINT_FILES[:1] if kind.has_viewpoints else lost:
        (folder / name).unlink()
        write_synthetic(tmp_path, kind=kind, **SMALL)
        assert contents(folder) == whole, name
    manifest.write_text(json.dumps({**json.loads(text), "renderer_version": -1}))
    write_synthetic(tmp_path, kind=kind, **SMALL)
    assert manifest.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]  # nothing temporary is left


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RenderedSet, "draw", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_another_process_finishing_first_wins(tmp_path, monkeypatch) -> None:
    write, theirs = render._write, tmp_path / f"synthetic{FOLDER}"

    def write_after_somebody_else(folder: Path, data: RenderedSet, progress: bool) -> None:
        write(theirs, data, progress)
        (theirs / "mark").touch()
        write(folder, data, progress)

    monkeypatch.setattr(render, "_write", write_after_somebody_else)
    assert (write_synthetic(tmp_path, **SMALL) / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == [theirs.name]


@pytest.mark.parametrize("manifest", [False, True])
def test_a_foreign_folder_is_never_deleted(made, tmp_path, manifest) -> None:
    foreign = tmp_path / f"synthetic-vehicle{FOLDER}"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    if manifest:  # of another kind
        (foreign / MANIFEST).write_text((made["synthetic"] / MANIFEST).read_text())
    with pytest.raises(UserError, match=re.escape(str(foreign))):
        write_synthetic(tmp_path, kind=VEHICLES, **SMALL)
    assert (foreign / "thesis.tex").read_text() == "years of work"


# ----------------------------------------------------------------------------------------------------------- readers


@ALL
def test_what_is_not_rendered_is_not_read_and_the_command_renders_it(made, tmp_path, capsys, kind) -> None:
    cfg = settings(tmp_path, kind.name)
    with pytest.raises(DataError, match=rf"python -m tools\.demo\.render DATASETS\.NAMES {kind.name} DATASETS"):
        make_benchmark(cfg)
    small = [part for key, value in SMALL.items() for part in (f"DATASETS.SYNTHETIC.{key.upper()}", str(value))][:8]
    render.main(["DATASETS.NAMES", kind.name, "DATASETS.ROOT_DIR", str(tmp_path), *small])
    folder = tmp_path / made[kind.name].name
    assert capsys.readouterr().out.endswith(f"{folder}\n")
    assert contents(folder) == contents(made[kind.name])
    assert make_benchmark(cfg).name == kind.name


def test_only_rendered_sets_are_rendered(tmp_path) -> None:
    assert render.render_missing(settings(tmp_path, "market1501")) == []
    with pytest.raises(UserError, match=r"DATASETS\.NAMES"):
        render.main(["DATASETS.NAMES", "market1501", "DATASETS.ROOT_DIR", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_people_are_read_as_market1501(made) -> None:
    read = make_benchmark(settings(made["synthetic"].parent, "synthetic"))
    same = read_market_folders("synthetic", made["synthetic"])
    assert (read.name, read.train, read.trials) == ("synthetic", same.train, same.trials)
    query, gallery = read.trials[0]
    assert [len(samples) for samples in (read.train, query, gallery)] == [12, 8, 4]
    assert len({(sample.pid, sample.camid) for sample in query}) == 8  # one query per person and camera
    for sample in query:
        assert any(other.pid == sample.pid and other.camid != sample.camid for other in gallery)
    for sample in (*read.train, *query, *gallery):
        assert re.fullmatch(rf"000[1-5]_c{sample.camid + 1}s1_00000[1-6]_00\.jpg", Path(sample.path).name)
        with Image.open(sample.path) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 128))


def test_the_hidden_set_is_read_as_occluded_duke(made) -> None:
    usual, hidden = (make_benchmark(settings(made["synthetic"].parent, f"synthetic{end}")) for end in ("", "_occluded"))
    read = occ_duke(made["synthetic_occluded"])
    assert (hidden.name, hidden.template) == ("synthetic_occluded", "A photo of a {} person.")
    assert (hidden.train, hidden.trials) == (read.train, read.trials)
    for ours, theirs in ((hidden.train, usual.train), *zip(hidden.trials[0], usual.trials[0], strict=True)):
        assert [sample[1:] for sample in ours] == [sample[1:] for sample in theirs]
    for sample in (*hidden.train, *hidden.trials[0].query):
        assert re.fullmatch(rf"000[1-5]_c{sample.camid + 1}_f000000[1-6]\.jpg", Path(sample.path).name)


def test_the_vehicles_are_read_as_veri(made) -> None:
    folder = made["synthetic_vehicle"]
    read = make_benchmark(settings(folder.parent, "synthetic_vehicle", "MODEL.SIE_VIEW", "True"))
    same = veri(folder, viewpoints=[folder / name for name in VIEWPOINT_FILES])
    assert (read.name, read.template) == ("synthetic_vehicle", "A photo of a {} vehicle.")
    assert (read.train, read.trials) == (same.train, same.trials)
    query, gallery = read.trials[0]
    assert [len(samples) for samples in (read.train, query, gallery)] == [12, 8, 12]
    for sample in (*read.train, *gallery):
        assert re.fullmatch(rf"000[1-5]_c00{sample.camid + 1}_0000000[1-6]_0\.jpg", Path(sample.path).name)
    in_gallery = {Path(sample.path).name: Path(sample.path).read_bytes() for sample in gallery}
    assert all(in_gallery[Path(sample.path).name] == Path(sample.path).read_bytes() for sample in query)
    for pid in {sample.pid for sample in gallery}:
        assert len({sample.viewid for sample in gallery if sample.pid == pid}) > 1
        assert len({sample.camid for sample in gallery if sample.pid == pid}) == 4
    assert np.asarray(Image.open(read.train[0].path)).shape == (96, 96, 3)


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
    test_svllreid.main(["TEST.WEIGHT", str(file), "MODEL.DEVICE", "cpu", "DATASETS.ROOT_DIR", str(tmp_path / "anew")])
    evaluations = json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"]
    assert [entry["when"] for entry in evaluations] == ["start", "end", "test"]
    assert evaluations[2]["data_set"] == "synthetic_vehicle"
    assert evaluations[2]["mAP"] == pytest.approx(evaluations[1]["mAP"], abs=1e-9)
