"""The rendered data set: reproducible, laid out as Market-1501, and careful with what it finds on disk."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import synthetic
from tools.demo.rendering.camera import BACKGROUNDS, sample_camera
from tools.demo.rendering.caption import caption
from tools.demo.rendering.person import Colour, Logo, sample_person
from tools.demo.rendering.scene import photograph
from datasets.synthetic import MANIFEST, write_synthetic
from utils.errors import UserError

SMALL = {
    "train_identities": 3,
    "train_images": 4,
    "test_identities": 2,
    "test_images": 6,
    "progress": False,
}
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
MARKET_NAME = re.compile(r"(\d{4})_c([1-6])s1_(\d{6})_00\.jpg")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}


def labels(folder: Path) -> list[tuple[int, int]]:
    """(person, camera) of every picture in a folder; fails on any other name."""
    matches = [MARKET_NAME.fullmatch(path.name) for path in folder.iterdir()]
    assert all(matches)
    return [(int(match[1]), int(match[2])) for match in matches]


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("data"), **SMALL)


def test_same_seed_gives_same_bytes_and_another_seed_does_not(data_set: Path, tmp_path: Path) -> None:
    again = contents(write_synthetic(tmp_path, **SMALL))
    assert again == contents(data_set)
    other = contents(write_synthetic(tmp_path, **SMALL, seed=1))
    assert not set(other.values()) & set(again.values())


def test_a_picture_depends_on_nothing_drawn_before(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_order = synthetic._tasks
    monkeypatch.setattr(synthetic, "_tasks", lambda parameters: reversed(list(in_order(parameters))))
    assert contents(write_synthetic(tmp_path, **SMALL)) == contents(data_set)


def test_test_pictures_do_not_depend_on_the_number_of_training_people(data_set: Path, tmp_path: Path) -> None:
    larger = write_synthetic(tmp_path, **{**SMALL, "train_identities": 4})
    for name in ("query", "bounding_box_test"):
        pictures = {path.read_bytes() for path in (data_set / name).iterdir()}
        assert pictures == {path.read_bytes() for path in (larger / name).iterdir()}


def test_streams_are_disjoint_from_each_other_and_from_pretraining() -> None:
    streams = [
        synthetic.CAMERA_STREAM,
        synthetic.IDENTITY_STREAM,
        synthetic.IMAGE_STREAM,
        synthetic.ASSIGNMENT_STREAM,
        999,
        31337,
    ]
    assert len(set(streams)) == len(streams)


def test_layout_is_markets(data_set: Path) -> None:
    assert data_set.name == "synthetic-3x4-2x6-d1.7-s0"
    counts = {name: len(labels(data_set / name)) for name in FOLDERS}
    assert counts == {"bounding_box_train": 12, "query": 8, "bounding_box_test": 4}
    assert json.loads((data_set / MANIFEST).read_text())["files"] == counts
    train, query, gallery = ({person for person, _ in labels(data_set / name)} for name in FOLDERS)
    assert train == {1, 2, 3}
    assert query == gallery == {4, 5}


def test_every_query_has_a_match_in_another_camera(data_set: Path) -> None:
    gallery = labels(data_set / "bounding_box_test")
    queries = labels(data_set / "query")
    assert len(set(queries)) == len(queries), "one query per person and camera"
    for person, camera in queries:
        assert any(other == person and where != camera for other, where in gallery)


def test_pictures_are_rgb_jpegs_of_the_right_size(data_set: Path) -> None:
    for path in data_set.rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 128))


def test_a_complete_data_set_is_reused(data_set: Path) -> None:
    manifest = data_set / MANIFEST
    before = manifest.stat().st_mtime_ns
    assert write_synthetic(data_set.parent, **SMALL) == data_set
    assert manifest.stat().st_mtime_ns == before
    assert [path.name for path in data_set.parent.iterdir()] == [data_set.name], "nothing temporary is left"


def test_an_incomplete_or_outdated_data_set_is_rendered_anew(data_set: Path, tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path, **SMALL)
    next((folder / "query").iterdir()).unlink()
    assert contents(write_synthetic(tmp_path, **SMALL)) == contents(data_set)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "renderer_version": -1}))
    write_synthetic(tmp_path, **SMALL)
    assert json.loads((folder / MANIFEST).read_text()) == manifest
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.skipif(os.name != "posix", reason="cannot ask whether a process runs")
def test_what_a_killed_run_left_is_removed_but_not_what_a_running_one_writes(tmp_path: Path) -> None:
    name = "synthetic-3x4-2x6-d1.7-s0"
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    abandoned = synthetic._make_workshop(tmp_path, name)
    abandoned = abandoned.rename(str(abandoned).replace(f".{os.getpid()}.", f".{finished.pid}."))
    (abandoned / "data" / "query").mkdir(parents=True)
    running = synthetic._make_workshop(tmp_path, name)
    write_synthetic(tmp_path, **SMALL)
    assert not abandoned.exists()
    assert running.exists()


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_render_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_another_process_finishing_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = synthetic._write

    def write_after_somebody_else(folder: Path, parameters: object, progress: bool) -> None:
        write(tmp_path / "synthetic-3x4-2x6-d1.7-s0", parameters, progress)
        (tmp_path / "synthetic-3x4-2x6-d1.7-s0" / "mark").touch()
        write(folder, parameters, progress)

    monkeypatch.setattr(synthetic, "_write", write_after_somebody_else)
    folder = write_synthetic(tmp_path, **SMALL)
    assert (folder / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_foreign_folder_is_never_deleted(tmp_path: Path) -> None:
    foreign = tmp_path / "synthetic-3x4-2x6-d1.7-s0"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="in the way"):
        write_synthetic(tmp_path, **SMALL)
    assert (foreign / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    "change",
    [
        {"train_identities": 0},
        {"test_images": 5},
        {"cameras_per_identity": 7},
        {"cameras_per_identity": 1},
        {"difficulty": -1},
        {"difficulty": float("nan")},
        {"seed": -1},
    ],
)
def test_parameters_out_of_range_are_refused(tmp_path: Path, change: dict[str, float]) -> None:
    with pytest.raises(UserError, match="synthetic data"):
        write_synthetic(tmp_path, **{**SMALL, **change})
    assert list(tmp_path.iterdir()) == []


def test_caption_names_the_top_and_never_the_fine_details() -> None:
    for number in range(100):
        person = sample_person(np.random.default_rng([7, number]))
        sentence = caption(person, np.random.default_rng(number))
        assert person.top.name in sentence
        bare = replace(
            person,
            inner_shirt=(1, 2, 3),
            scarf=None if person.scarf else (1, 2, 3),
            belt=None if person.belt else (1, 2, 3),
            side_stripe=None if person.side_stripe else (1, 2, 3),
            cuffs=None if person.cuffs else (1, 2, 3),
            logo=Logo(0, 0.3, 0.2, "disc"),
            glasses=not person.glasses,
        )
        assert caption(bare, np.random.default_rng(number)) == sentence
        words = set(re.findall(r"[a-z]+", sentence.lower()))
        assert not words & {"scarf", "belt", "stripe", "cuff", "cuffs", "glasses", "inner"}


def test_a_red_top_is_redder_than_a_blue_one() -> None:
    camera = sample_camera(np.random.default_rng(3), difficulty=0.5, background="tiles")
    person = replace(
        sample_person(np.random.default_rng(1)), pattern="plain", open_jacket=False, sleeves="long", bag="none"
    )
    means = {}
    for name, rgb in (("red", (190, 36, 40)), ("blue", (40, 70, 170))):
        dressed = replace(person, top=Colour(name, rgb), bottom_kind="trousers")
        picture = Image.open(io.BytesIO(photograph(dressed, camera, np.random.default_rng(2)).jpeg))
        means[name] = np.asarray(picture, float).mean(axis=(0, 1))
    assert means["red"][0] > means["blue"][0] + 3
    assert means["blue"][2] > means["red"][2] + 3


def test_every_background_and_other_sizes() -> None:
    person = sample_person(np.random.default_rng(0))
    for background in BACKGROUNDS:
        camera = sample_camera(np.random.default_rng(0), background=background)
        picture = Image.open(io.BytesIO(photograph(person, camera, np.random.default_rng(0), size=(256, 128)).jpeg))
        assert picture.size == (128, 256)
    with pytest.raises(ValueError, match="too wide"):
        photograph(person, camera, np.random.default_rng(0), size=(64, 128))
    with pytest.raises(ValueError, match="unknown background"):
        sample_camera(np.random.default_rng(0), background="moon")
