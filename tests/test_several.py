"""Several data sets: trained on together, tested one by one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from builders import benchmark

import test_svllreid
import train_svllreid
from configs import load
from datasets.build import make_benchmark
from datasets.several import together
from utils.errors import DataError
from utils.records import Sample, Trial

DEMO = "configs/demo/vit_svllreid.yml"


def test_identities_and_cameras_are_numbered_on():
    first, second = benchmark(pids=3, cams=2, name="a"), benchmark(pids=2, cams=4, name="b")
    far = Sample("far.jpg", 900, 6, viewid=3)  # a camera that training lacks
    first = replace(first, trials=(Trial(first.trials[0].query, (*first.trials[0].gallery, far)),))
    both = together([first, second])
    assert both.name == "a+b" and both.num_pids == 5 and both.num_cams == 7 + 4 and both.num_views == 4
    a, b = both.evaluated()
    assert (a.name, b.name) == ("a", "b") and a == first
    assert both.train == (*a.train, *b.train)
    assert {sample.pid for sample in b.train} == {3, 4}
    assert {sample.camid for sample in b.train} == {7, 8, 9, 10}
    for moved, before in zip(b.trials[0].gallery, second.trials[0].gallery, strict=True):
        assert moved == before._replace(camid=before.camid + 7)  # identities of tests stay the data set's own
    assert first.evaluated() == (first,)


def test_an_unknown_camera_stays_unknown():
    second = benchmark(pids=2, cams=2, name="b")
    second = replace(second, train=(second.train[0]._replace(camid=-1), *second.train[1:]))
    both = together([benchmark(pids=3, cams=2, name="a"), second])
    assert [sample.camid for sample in both.evaluated()[1].train] == [-1, 3, 2, 3]


def test_what_cannot_be_trained_on_together():
    one = benchmark(name="a")
    with pytest.raises(DataError, match="a is there twice"):
        together([one, benchmark(name="b"), one])
    with pytest.raises(DataError, match=r"a says 'A photo of a \{\} person.' and b 'A photo of a \{\} vehicle.'"):
        together([one, benchmark(name="b", template="A photo of a {} vehicle.")])


def test_names_may_be_a_tuple():
    assert load(None, ["DATASETS.NAMES", "('market1501', 'msmt17')"]).DATASETS.NAMES == "market1501+msmt17"
    assert load(None, ["DATASETS.NAMES", "('market1501')"]).DATASETS.NAMES == "market1501"
    assert load(None, ["DATASETS.NAMES", "('market1501',)"]).DATASETS.NAMES == "market1501"


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> list[str]:
    """A root with two data sets: the rendered one, and another one in Market-1501's layout."""
    root = tmp_path_factory.mktemp("data")
    rendered = [
        *("DATASETS.ROOT_DIR", str(root), "DATASETS.SYNTHETIC.TRAIN_IDENTITIES", "8"),
        *("DATASETS.SYNTHETIC.TRAIN_IMAGES", "4", "DATASETS.SYNTHETIC.TEST_IDENTITIES", "4"),
        *("DATASETS.SYNTHETIC.TEST_IMAGES", "6"),
    ]
    other = load(DEMO, [*rendered, "DATASETS.SYNTHETIC.SEED", "5"])
    folder = Path(make_benchmark(other).train[0].path).parents[1]
    shutil.copytree(folder, root / "Market-1501")
    return [
        *("--config_file", DEMO, *rendered, "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"),
        *("SOLVER.STAGE1.MAX_EPOCHS", "1", "SOLVER.STAGE2.MAX_EPOCHS", "1", "SOLVER.STAGE2.IMS_PER_BATCH", "16"),
    ]


def results(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["evaluations"]


def test_training_on_two_and_testing_on_each(settings, tmp_path, capsys):
    both = ["DATASETS.NAMES", "('synthetic', 'market1501')"]
    train_svllreid.main([*settings, *both, "OUTPUT_DIR", str(tmp_path / "run")])
    entries = results(tmp_path / "run")
    assert [(entry["when"], entry["data_set"]) for entry in entries] == [
        *(("start", "synthetic"), ("start", "market1501"), ("end", "synthetic"), ("end", "market1501")),
    ]
    weight = tmp_path / "run" / "ViT-Tiny-8_1.pth"
    capsys.readouterr()
    test_svllreid.main(["TEST.WEIGHT", str(weight), "OUTPUT_DIR", str(tmp_path / "test")])
    again = results(tmp_path / "test")
    assert [entry["mAP"] for entry in again] == [entry["mAP"] for entry in entries[2:]]
    assert [entry["side_information"] for entry in again] == ["same", "same"]
    said = capsys.readouterr().out
    assert "synthetic test" in said and "market1501 test" in said
    one = ["DATASETS.NAMES", "market1501", "OUTPUT_DIR", str(tmp_path / "one")]
    test_svllreid.main(["TEST.WEIGHT", str(weight), *one])
    (entry,) = results(tmp_path / "one")
    assert (entry["data_set"], entry["side_information"]) == ("market1501", "mean")  # alone, its cameras are others


def test_a_network_on_another_data_set(settings, tmp_path, capsys):
    one = ["DATASETS.NAMES", "synthetic", "PROCESSOR.STAGES", "prompt", "SOLVER.STAGE1.MAX_EPOCHS", "1"]
    train_svllreid.main([*settings, *one, "OUTPUT_DIR", str(tmp_path / "run")])
    weight = str(tmp_path / "run" / "ViT-Tiny-8_stage1_1.pth")
    used = {}
    for name, words in {
        "home": [],
        "market1501": ["DATASETS.NAMES", "market1501"],
        "another one of the same name": ["DATASETS.SYNTHETIC.SEED", "6"],
        "on request": ["DATASETS.NAMES", "market1501", "TEST.SIE", "same"],
    }.items():
        test_svllreid.main(["TEST.WEIGHT", weight, *words, "OUTPUT_DIR", str(tmp_path / name)])
        used[name] = results(tmp_path / name)[0]["side_information"]
    assert used == {"home": "same", "market1501": "mean", "another one of the same name": "mean", "on request": "same"}
    assert "side information: TEST.SIE auto: the mean over all that training knew" in capsys.readouterr().out
