"""Changed queries: the changes pixel by pixel, and the tool on a small rendered set."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import test_svllreid
from configs import load, to_dict
from datasets.changes import CHANGES, Corruption
from datasets.images import Images, read_image
from datasets.transforms import TestTransform
from model.build import load_model, make_model
from processor.build.evaluation import evaluate_changes, evaluate_model
from tools import robustness
from tools.demo.render import rendered_benchmark
from utils.checkpoint import save_checkpoint
from utils.errors import UserError
from utils.metrics import ignore_nothing
from utils.records import Sample, Trial

CPU = torch.device("cpu")


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8))


def clipped(value: float) -> int:
    return min(255, max(0, int(value)))


def by_loops(image: Image.Image, change) -> list[list[list[int]]]:
    """`change`: value, channel -> value, before it is cut to 0 to 255 and to a whole number."""
    rows = np.asarray(image).tolist()
    return [[[clipped(change(v, channel)) for channel, v in enumerate(pixel)] for pixel in row] for row in rows]


def test_light_contrast_and_colour_pixel_by_pixel(image):
    grey = np.asarray(image.convert("L")).mean()
    middle = int(grey + 0.5)
    warm, cool = (1.15, 1.0, 0.85), (0.85, 1.0, 1.15)
    formulas = {
        "brightness -30 %": lambda v, c: 0.7 * v,
        "brightness +30 %": lambda v, c: 1.3 * v,
        "contrast -40 %": lambda v, c: middle + 0.6 * (v - middle),
        "contrast +40 %": lambda v, c: middle + 1.4 * (v - middle),
        "warm": lambda v, c: v * warm[c] + 0.5,
        "cool": lambda v, c: v * cool[c] + 0.5,
        "gamma 0.6": lambda v, c: 255 * (v / 255) ** 0.6 + 0.5,
        "gamma 1.6": lambda v, c: 255 * (v / 255) ** 1.6 + 0.5,
    }
    for name, formula in formulas.items():
        found = np.asarray(CHANGES[name](image), dtype=int)
        assert np.abs(found - by_loops(image, formula)).max() <= 1, name  # Pillow cuts or rounds
        assert np.abs(found - np.asarray(image, dtype=int)).max() > 20, name


def test_jpeg_loses_more_at_a_lower_quality(image):
    smooth = image.resize((4, 8)).resize((40, 80), Image.Resampling.BICUBIC)
    losses = []
    for name in ("JPEG quality 40", "JPEG quality 20"):
        first, second = (np.asarray(CHANGES[name](smooth), dtype=int) for _ in range(2))
        assert np.array_equal(first, second) and first.shape == (80, 40, 3)
        losses.append(np.abs(first - np.asarray(smooth)).mean())
    assert 0 < losses[0] < losses[1]


# ------------------------------------------------------------------------------------------------------------- the tool


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    words = [
        *("DATASETS.ROOT_DIR", str(tmp_path_factory.mktemp("data")), "DATALOADER.NUM_WORKERS", "0"),
        *("DATASETS.SYNTHETIC.TRAIN_IDENTITIES", "4", "DATASETS.SYNTHETIC.TRAIN_IMAGES", "4"),
        *("DATASETS.SYNTHETIC.TEST_IDENTITIES", "6", "DATASETS.SYNTHETIC.TEST_IMAGES", "6"),
    ]
    return load("configs/demo/vit_svllreid.yml", words)


@pytest.fixture(scope="module")
def checkpoint(cfg, tmp_path_factory) -> Path:
    """The tiny CLIP before any training."""
    model = make_model(cfg, rendered_benchmark(cfg))
    facts = {"stage": "image", "epoch": 1, "config": to_dict(cfg), "prompts_trained": True, "fingerprint": {}}
    path = tmp_path_factory.mktemp("run") / "x.pth"
    save_checkpoint(path, {**facts, "model": model.state_dict(), "architecture": model.architecture})
    return path


def figures(entry: dict) -> dict:
    return {name: entry[name] for name in ("mAP", "mINP", "rank1", "rank5", "rank10")}


def run(checkpoint: Path, folder: Path, *words: str) -> list[dict]:
    file = robustness.main([*words, "TEST.WEIGHT", str(checkpoint), "OUTPUT_DIR", str(folder)])
    return json.loads(file.read_text())["evaluations"]


def test_queries_are_changed_and_the_gallery_is_not(cfg, checkpoint, tmp_path):
    """As if the queries had been changed on disk; clean ones are what test_svllreid.py finds."""
    entries = run(checkpoint, tmp_path)
    assert [entry["query_change"] for entry in entries] == ["clean", *CHANGES]
    clean = entries[0]
    tested = test_svllreid.main(["TEST.WEIGHT", str(checkpoint), "OUTPUT_DIR", str(tmp_path)])
    (plain,) = json.loads(tested.read_text())["evaluations"]
    assert figures(clean) == pytest.approx(figures(plain), abs=1e-6) and clean["drop"] == {"mAP": 0, "rank1": 0}
    shared = plain.keys() - figures(plain).keys()
    assert all({name: entry[name] for name in shared} == {name: plain[name] for name in shared} for entry in entries)

    whole = rendered_benchmark(cfg)
    (trial,) = whole.trials
    model = load_model(checkpoint)
    changed = dict(zip(CHANGES, entries[1:], strict=True))
    for name in ("brightness -30 %", "cool", "JPEG quality 20"):
        queries = []
        for number, sample in enumerate(trial.query):
            path = tmp_path / f"{number}.png"
            CHANGES[name](read_image(sample.path)).save(path)
            queries.append(sample._replace(path=str(path)))
        saved = replace(whole, trials=(Trial(tuple(queries), trial.gallery),))
        found = evaluate_model(cfg, model, saved, CPU, at_home=False)  # the checkpoint does not say its home
        assert figures(changed[name]) == pytest.approx(found.mean, abs=1e-6)
        for figure, drop in changed[name]["drop"].items():
            assert drop == pytest.approx(clean[figure] - found.mean[figure], abs=1e-6)
    assert len({json.dumps(figures(entry)) for entry in entries}) > 5

    mean = 100 * sum(entry["mAP"] for entry in entries[1:]) / len(CHANGES)
    lines = robustness.table(entries).splitlines()
    assert lines[0].split() == ["queries", "mAP", "drop", "rank-1", "drop"] and len(lines) == 2 + 11 + 1
    drop = 100 * clean["mAP"] - mean
    assert lines[-1].split()[-4:-2] == [f"{mean:.1f}", f"{drop:.1f}"]


def test_flip_and_query_expansion_are_said_in_file_and_table(checkpoint, tmp_path):
    entries = run(checkpoint, tmp_path, "TEST.FLIP", "True", "TEST.AQE", "True", "TEST.AQE_K", "2")
    assert all(entry["flip"] and entry["query_expansion"] == {"k": 2, "alpha": 3.0} for entry in entries)
    head, _, *lines = robustness.table(entries).splitlines()
    assert head.split()[-3:] == ["flip", "query", "expansion"] and len(lines) == 12
    assert all(re.search(r" yes +k 2, alpha 3$", line) for line in lines)


def test_a_query_in_the_gallery_is_changed_as_a_query_only(cfg):
    """Where identities are held out, queries are gallery images, too."""
    whole = rendered_benchmark(cfg)
    (trial,) = whole.trials
    both = replace(whole, trials=(Trial(trial.query, (*trial.query, *trial.gallery)),), ignored=ignore_nothing)
    changes = {"clean": None, "black": lambda image: Image.new("RGB", image.size)}
    found = dict(evaluate_changes(cfg, make_model(cfg, whole), both, CPU, changes))
    assert found["clean"].mean["rank1"] == 1.0 > 0.5 > found["black"].mean["rank1"]


# ---------------------------------------------------------------------------------------------------------- corruptions


def noise(image, severity):
    return np.asarray(image) + np.random.normal(size=np.asarray(image).shape) * severity


def salt(image, severity, seed=None):
    return np.asarray(image) * np.random.default_rng(seed).integers(0, 2, np.asarray(image).shape) + severity


@pytest.fixture
def package(monkeypatch) -> None:
    """Stands for imagecorruptions: one that draws from NumPy's global generator, one from its own."""
    functions = {"noise": noise, "salt": salt}
    monkeypatch.setitem(sys.modules, "imagecorruptions", SimpleNamespace(corruption_dict=functions))


def test_corruptions_are_drawn_by_image_and_run_and_always_the_same(package, tmp_path):
    Image.new("RGB", (40, 60), "grey").save(tmp_path / "a.png")
    samples = [Sample(str(tmp_path / "a.png"), 0, 0)] * 12

    def read(run: int) -> list[torch.Tensor]:
        transform = TestTransform((60, 40), mean=(0.5,) * 3, std=(0.5,) * 3, change=Corruption(run))
        images = Images(samples, transform, seed=0)
        return [item.pixels for item in images.__getitems__([2, 0, 1, *range(3, 12)])]

    first = read(0)
    np.random.seed(5)
    before = np.random.get_state()[1].tolist()
    again, other = read(0), read(1)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1]) and np.random.get_state()[1].tolist() == before


def test_corruptions_are_runs_of_the_tool(package, checkpoint, tmp_path):
    entries = run(checkpoint, tmp_path / "a", "--corruptions", "2")
    assert [entry["query_change"] for entry in entries] == ["clean", "corruptions, run 1", "corruptions, run 2"]
    again = run(checkpoint, tmp_path / "b", "--corruptions", "2", "TEST.IMS_PER_BATCH", "5")
    assert [figures(entry) for entry in again] == [pytest.approx(figures(entry), abs=1e-6) for entry in entries]
    assert figures(entries[1]) != figures(entries[2])


def test_without_the_package_one_line_says_what_to_install(monkeypatch, checkpoint):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(UserError, match=r"^imagecorruptions .*requirements-extra\.txt$"):
        robustness.main(["--corruptions", "1", "TEST.WEIGHT", str(checkpoint)])


def test_all_of_the_package_work(image):
    """Where it is installed."""
    pytest.importorskip("imagecorruptions")
    small = image.resize((20, 50))
    for seed in range(60):
        with torch.random.fork_rng(devices=[]):
            results = []
            for _ in range(2):
                torch.manual_seed(seed)
                results.append(Corruption(0)(small))
        assert results[0].size == (32, 80) and np.array_equal(*map(np.asarray, results))
