"""CCLNet on rendered visible and infrared images: what it finds, and that the log says where it is misled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

import train_svllreid
from configs import load
from tools.demo.render import rendered_benchmark
from utils.records import INFRARED, VISIBLE

DEMO = str(Path(__file__).resolve().parent.parent / "configs/demo/vi_cclnet.yml")
DOUBT = "no more alike than others"
pytestmark = pytest.mark.slow


# Fewer people and epochs than the demo has.
LESS = ["DATASETS.SYNTHETIC.TRAIN_IDENTITIES", "24", "SOLVER.CLUSTER.MAX_EPOCHS", "7"]


def run(folder: Path, *words: str) -> Path:
    """A training with the demo's settings -> its folder."""
    settings = ["DATASETS.ROOT_DIR", str(folder / "data"), "OUTPUT_DIR", str(folder / "run"), *LESS, *words]
    rendered_benchmark(load(DEMO, settings))
    return train_svllreid.main(["--config_file", DEMO, *settings])


def last_clusters(folder: Path) -> dict:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "clusters"][-1]


def test_people_are_found_across_modalities_without_identities(tmp_path):
    folder = run(tmp_path)
    start, end = json.loads((folder / "results.json").read_text())["evaluations"]
    assert start["rank1"] <= 0.2 and end["rank1"] > 0.8
    with np.load(folder / "again1_pseudo_labels.npz") as file:
        paths, modalities, labels = (file[name] for name in ("paths", "modalities", "labels"))
    pids = np.array([Path(path).parent.name for path in paths.tolist()])
    for modality in (VISIBLE, INFRARED):
        assert adjusted_rand_score(pids[modalities == modality], labels[modalities == modality]) > 0.9
    assert last_clusters(folder)["true_association"] > 0.9
    assert DOUBT not in (folder / "train_log.txt").read_text()


def test_where_infrared_misleads_clusters_are_right_and_matches_wrong_and_the_log_says_so(tmp_path):
    stage = ["PROCESSOR.STAGES", "('cluster',)", "DATASETS.NAMES", "synthetic_sysu_inverted"]
    folder = run(tmp_path, *stage)
    found = last_clusters(folder)
    assert min(found["true_visible_purity"], found["true_infrared_purity"]) > 0.95
    assert found["true_association"] < 0.2
    assert DOUBT in (folder / "train_log.txt").read_text()
