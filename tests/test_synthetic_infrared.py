"""Rendered visible and infrared images: the real readers read them, and the modalities share what they should."""

from __future__ import annotations

import json
import logging
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import test_svllreid
import train_svllreid
from configs import ConfigError, load
from datasets.build import make_benchmark, make_loader
from datasets.check import quick_check
from datasets.regdb import regdb
from datasets.synthetic import READERS
from datasets.sysu import same_place, sysu_mm01
from processor.evaluate import evaluate
from tools.demo.infrared_sets import INFRARED_KINDS
from tools.demo.render import rendered_benchmark
from utils.errors import UserError
from utils.metrics import rank_features
from utils.records import Benchmark, Labels, Sample

SIZES = {"TRAIN_IDENTITIES": 6, "TRAIN_IMAGES": 28, "TEST_IDENTITIES": 8, "TEST_IMAGES": 14, "DIFFICULTY": 1.0}


def settings(root: Path, name: str, *words: str, **sizes: float):
    sizes = {f"DATASETS.SYNTHETIC.{key}": str(value) for key, value in {**SIZES, **sizes}.items()}
    pairs = [word for pair in sizes.items() for word in pair]
    return load(None, ["DATASETS.NAMES", name, "DATASETS.ROOT_DIR", str(root), *pairs, *words])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("rendered")
    for name in INFRARED_KINDS:
        rendered_benchmark(settings(root, name))
    return root


def greys(samples: tuple[Sample, ...]) -> torch.Tensor:
    """Brightness around its mean, of length 1, so that inner products are correlations."""
    rows = [np.asarray(Image.open(sample.path).convert("L"), np.float32).ravel() for sample in samples]
    pixels = torch.from_numpy(np.stack(rows))
    return F.normalize(pixels - pixels.mean(dim=1, keepdim=True), dim=1)


def rank1(benchmark: Benchmark) -> float:
    trial = benchmark.trials[0]
    rules = {"ignored": benchmark.ignored, "unique_identities": benchmark.unique_identities}
    return rank_features(*map(greys, trial), *map(Labels.of, trial), **rules).cmc[0].item()


def test_the_sets_are_read_as_sysu_and_regdb(root):
    assert INFRARED_KINDS.keys() <= READERS.keys()
    for name in ("synthetic_sysu", "synthetic_sysu_inverted"):
        benchmark = make_benchmark(settings(root, name))
        (folder,) = root.glob(f"{name.replace('_', '-')}-6x28-*")
        same = sysu_mm01(folder)
        assert (benchmark.name, benchmark.train, benchmark.trials) == (name, same.train, same.trials)
        assert (benchmark.ignored, benchmark.unique_identities) == (same_place, True)
        counts = {(sample.camid + 1, sample.modality): 0 for sample in benchmark.train}
        for sample in benchmark.train:
            counts[sample.camid + 1, sample.modality] += 1
        assert counts == {(1, 0): 24, (2, 0): 24, (4, 0): 24, (5, 0): 24, (3, 1): 36, (6, 1): 36}
        assert [len(side) for side in benchmark.trials[0]] == [8 * 6, 8 * 4] and len(benchmark.trials) == 10
        indoor = make_benchmark(settings(root, name, "DATASETS.SYSU_MODE", "indoor"))
        assert [len(side) for side in indoor.trials[0]] == [8 * 6, 8 * 2]
    two = [make_benchmark(settings(root, "synthetic_regdb", "DATASETS.REGDB_SPLIT", split)) for split in ("1", "2")]
    (folder,) = root.glob("synthetic-regdb-*")
    for split, benchmark in enumerate(two, start=1):
        same = regdb(folder, split=split)
        assert (benchmark.train, benchmark.trials) == (same.train, same.trials)
        assert [part.name for part in benchmark.parts] == [
            f"synthetic_regdb ({way})" for way in ("visible to infrared", "infrared to visible")
        ]
        assert (benchmark.num_pids, len(benchmark.train)) == (6, 6 * 28)
        assert {len(side) for trial in benchmark.trials for side in trial} == {8 * 7}
    folders = [{Path(sample.path).parent for sample in benchmark.train} for benchmark in two]
    assert folders[0] != folders[1]
    for benchmark in two:
        trained, tested = (
            {Path(sample.path).parent.name for sample in some}
            for some in (benchmark.train, [sample for side in benchmark.trials[0] for sample in side])
        )
        assert not trained & tested and len(trained | tested) == 14


@pytest.mark.parametrize("name", INFRARED_KINDS)
def test_nothing_is_wrong_with_the_sets(root, name):
    report = quick_check(make_benchmark(settings(root, name)), instances=4, identities=4)
    assert not (report.problems or report.warnings)
    assert not report.heed(logging.getLogger())


def test_modalities_agree_unless_infrared_is_inverted(root):
    """Both sets show the same people to the visible cameras, and are as easy within infrared."""
    usual, inverted = (make_benchmark(settings(root, f"synthetic_sysu{end}")) for end in ("", "_inverted"))
    assert rank1(usual) > 0.9 and rank1(inverted) < 0.05
    for benchmark in (usual, inverted):
        query = benchmark.trials[0].query
        nearest = (greys(query) @ greys(query).T).fill_diagonal_(-1).argmax(dim=1).tolist()
        assert all(query[place].pid == query[other].pid for place, other in enumerate(nearest))
    for one, other in zip(usual.train, inverted.train, strict=True):
        assert (Path(one.path).read_bytes() == Path(other.path).read_bytes()) == (one.modality == 0)
    for sample in usual.train:
        with Image.open(sample.path) as image:
            assert (image.format, image.size) == ("JPEG", (32, 64))
            grey = np.ptp(np.asarray(image.convert("RGB"), int), axis=2).max() == 0
        assert grey == bool(sample.modality)
    there, back = make_benchmark(settings(root, "synthetic_regdb")).parts
    assert min(rank1(there), rank1(back)) > 0.9


def test_ten_galleries_take_one_pass_over_the_images_which_come_with_their_modality(root):
    pixels = [word for key in ("MEAN", "STD") for word in (f"INPUT.PIXEL_{key}", "(0.5, 0.5, 0.5)")]
    size = ["INPUT.SIZE_TEST", "(64, 32)", "DATALOADER.NUM_WORKERS", "0"]
    cfg = settings(root, "synthetic_sysu", *size, *pixels)
    benchmark = make_benchmark(cfg)
    seen = []

    class Greys(torch.nn.Module):
        image = None

        def embed(self, images, side=None, *, neck=False):
            seen.extend(zip(side.camids.tolist(), side.modalities.tolist(), strict=True))
            grey = images.mean(dim=1).flatten(1)
            return grey - grey.mean(dim=1, keepdim=True)

    loader = partial(make_loader, cfg, train=False)
    evaluation = evaluate(Greys(), benchmark, loader, device=torch.device("cpu"), side="none")
    samples = {sample for trial in benchmark.trials for side in trial for sample in side}
    assert Counter(seen) == Counter((sample.camid, sample.modality) for sample in samples)
    assert len(evaluation.trials) == 10 and evaluation.std["mAP"] > 0
    assert list(evaluation.mean) == ["mAP", "mINP", "rank1", "rank5", "rank10", "rank20"]
    assert evaluation.mean["rank20"] == 1.0 >= evaluation.mean["rank1"] > 0.9


def test_seeds_give_other_people_and_difficulty_0_gives_no_nuisance(tmp_path):
    few = {"TRAIN_IDENTITIES": 2, "TEST_IDENTITIES": 2}
    images = {}
    for seed in (0, 1):
        cfg = settings(tmp_path, "synthetic_sysu", "DATASETS.SYNTHETIC.SEED", str(seed), **{**few, "DIFFICULTY": 0.0})
        train = rendered_benchmark(cfg).train
        images[seed] = {(sample.pid, sample.modality): set() for sample in train}
        for sample in train:
            images[seed][sample.pid, sample.modality].add(Path(sample.path).read_bytes())
    assert {len(some) for of_seed in images.values() for some in of_seed.values()} == {1}
    assert len({next(iter(some)) for of_seed in images.values() for some in of_seed.values()}) == 8


def test_a_list_that_is_gone_is_written_anew(tmp_path):
    cfg = settings(tmp_path, "synthetic_sysu", TRAIN_IDENTITIES=2, TEST_IDENTITIES=2)
    whole = rendered_benchmark(cfg)
    (path,) = tmp_path.glob("*/SYSU-MM01/exp/val_id.txt")
    path.unlink()
    assert rendered_benchmark(cfg) == whole and path.is_file()


def test_one_training_image_has_one_modality_and_is_refused(tmp_path):
    with pytest.raises(UserError, match="train_images: expected at least 2, got 1"):
        rendered_benchmark(settings(tmp_path, "synthetic_sysu", TRAIN_IMAGES=1))


def test_a_training_on_regdb_s_form_is_tested_both_ways_and_on_its_own_split(tmp_path, capsys):
    sizes = {"TRAIN_IDENTITIES": 8, "TRAIN_IMAGES": 4, "TEST_IDENTITIES": 4, "TEST_IMAGES": 6}
    words = {
        **{"DATASETS.NAMES": "synthetic_regdb", "DATASETS.ROOT_DIR": str(tmp_path / "data"), "MODEL.DEVICE": "cpu"},
        **{f"DATASETS.SYNTHETIC.{key}": str(value) for key, value in sizes.items()},
        **{"PROCESSOR.STAGES": "image", "MODEL.I2T_LOSS_WEIGHT": "0.0", "SOLVER.STAGE2.SSL_LOSS_WEIGHT": "0.0"},
        **{"SOLVER.STAGE2.MAX_EPOCHS": "1", "SOLVER.STAGE2.EVAL_PERIOD": "1", "SOLVER.STAGE2.IMS_PER_BATCH": "16"},
        **{"OUTPUT_DIR": str(tmp_path / "run"), "DATASETS.REGDB_SPLIT": "3", "DATALOADER.NUM_WORKERS": "0"},
    }
    config = str(Path(__file__).resolve().parent.parent / "configs/demo/vehicle_svllreid.yml")
    command = ["--config_file", config, *(word for pair in words.items() for word in pair), "MODEL.SIE_VIEW", "False"]
    train_svllreid.main(command)
    ways = [f"synthetic_regdb ({way})" for way in ("visible to infrared", "infrared to visible")]
    file, results = tmp_path / "run" / "ViT-Tiny-8_1.pth", tmp_path / "run" / "results.json"
    entries = json.loads(results.read_text())["evaluations"]
    assert [(entry["when"], entry["data_set"]) for entry in entries] == [
        (when, way) for when in ("start", "end") for way in ways
    ]
    assert all(entry["variant"] == "split 3" and 0 <= entry["rank20"] <= 1 for entry in entries)
    train_svllreid.main(command)  # which has ended, with both directions
    assert json.loads(results.read_text())["evaluations"] == entries
    test_svllreid.main(["TEST.WEIGHT", str(file), "MODEL.DEVICE", "cpu"])
    tests = json.loads(results.read_text())["evaluations"][4:]
    for test, end in zip(tests, entries[2:], strict=True):
        assert (test["when"], test["data_set"], test["variant"]) == ("test", end["data_set"], "split 3")
        assert test["mAP"] == pytest.approx(end["mAP"], abs=1e-9) and test["data_fingerprint"]["train"] is None
    assert "rank-20" in capsys.readouterr().out
    other = ["TEST.WEIGHT", str(file), "MODEL.DEVICE", "cpu", "DATASETS.REGDB_SPLIT", "4"]
    with pytest.raises(ConfigError, match=r"DATASETS\.REGDB_SPLIT 4: .* was trained on split 3"):
        test_svllreid.main(other)
    further = [*command, "DATASETS.REGDB_SPLIT", "4", "MODEL.INIT_FROM", str(file), "OUTPUT_DIR", str(tmp_path / "4")]
    with pytest.raises(ConfigError, match=r"DATASETS\.REGDB_SPLIT 4: .* was trained on split 3"):
        train_svllreid.main(further)
    test_svllreid.main([*other, "TEST.OTHER_SPLIT", "True"])
    assert [entry["variant"] for entry in json.loads(results.read_text())["evaluations"][6:]] == ["split 4"] * 2
