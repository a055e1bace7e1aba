"""The training script in several processes, started as a user starts it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_end_to_end import ENVIRONMENT, ROOT, arguments
from test_resume import (
    EVERY_STEP,
    ONLY_IMAGE,
    an_image,
    append,
    assert_same,
    figures,
    log,
    metrics,
    states,
    train,
    words,
)

import test_svllreid

pytestmark = pytest.mark.slow

MINUTE = 60.0


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """data/ and run/ of one process."""
    folder = tmp_path_factory.mktemp("alone")
    train(folder, folder / "data")
    return folder


def torchrun(command: list[str], script: str = "train_svllreid.py") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / script, *command],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def output(process: subprocess.Popen) -> str:
    """Of two processes that ended as they should."""
    text, _ = process.communicate(timeout=5 * MINUTE)
    assert process.returncode == 0, text
    return text


def error_line(process: subprocess.Popen) -> str:
    """What is reported once, whichever process found it out."""
    text, _ = process.communicate(timeout=2 * MINUTE)
    assert process.returncode != 0
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return line


def assert_nearly_the_same(folder: Path, alone: Path) -> None:
    """Sums are made in another order. Weights are not compared: Adam makes whole steps of gradients that are noise."""
    ours, theirs = metrics(folder), metrics(alone)
    assert [(line["kind"], line["step"]) for line in ours] == [(line["kind"], line["step"]) for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        if one["kind"] == "train":
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert [entry["when"] for entry in figures(folder)] == ["start", "end"]
    for one, other in zip(figures(folder), figures(alone), strict=True):
        assert one["mAP"] == pytest.approx(other["mAP"], abs=1e-2)


def test_two_processes_train_and_test_as_one_and_write_once(alone, tmp_path):
    text = output(torchrun(words(tmp_path, alone / "data", DATALOADER__NUM_WORKERS="1")))
    assert text.count("test it again: python test_svllreid.py") == 1
    assert_nearly_the_same(tmp_path, alone)
    names = [{path.name for path in (folder / "run").iterdir()} for folder in (tmp_path, alone)]
    assert names[0] == names[1]

    weight = ["TEST.WEIGHT", str(alone / "run" / "ViT-Tiny-8_2.pth"), "DATASETS.ROOT_DIR", str(alone / "data")]
    test_svllreid.main([*weight, "OUTPUT_DIR", str(tmp_path / "one")])
    text = output(torchrun([*weight, "OUTPUT_DIR", str(tmp_path / "two")], script="test_svllreid.py"))
    assert text.count("added to") == 1
    one, two = (json.loads((tmp_path / name / "results.json").read_text())["evaluations"] for name in ("one", "two"))
    assert one == two and len(two) == 1


def kill_one(process: subprocess.Popen, folder: Path, state: str = "") -> None:
    """Kill a process of the training once it has saved a state of such a name; all of them end."""
    deadline = time.monotonic() + 2 * MINUTE
    while not any(state in path.name for path in states(folder)):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    text, _ = process.communicate(timeout=MINUTE)
    assert process.returncode != 0 and "-9" in text
    assert "[rank0]:" not in text  # of a traceback; torchrun itself says which process it was, and the signal


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_a_process_that_dies_ends_all_and_the_run_is_resumed_by_one(alone, tmp_path):
    kill_one(torchrun(words(tmp_path, alone / "data")), tmp_path)
    train(tmp_path, alone / "data")
    assert "resumed from" in log(tmp_path)
    assert_nearly_the_same(tmp_path, alone)


CLUSTERED = {
    "DATASETS__SYNTHETIC__TRAIN_IMAGES": "14",
    "DATASETS__SYNTHETIC__TEST_IMAGES": "7",
    "CLUSTER__K1": "6",
    "MEMORY__SWAP_MODE": "reference",
    "MEMORY__SWAP_START": "2",
    "SOLVER__CLUSTER__MAX_EPOCHS": "2",
    "SOLVER__CHECKPOINT_MINUTES": EVERY_STEP,
}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_clusters_of_two_modalities_killed_within_an_epoch_and_resumed_are_as_uninterrupted(tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    commands = [
        arguments("configs/demo/vi_cclnet.yml", folder, **CLUSTERED, DATASETS__ROOT_DIR=str(tmp_path / "data"))
        for folder in (straight, broken)
    ]
    output(torchrun(commands[0]))
    kill_one(torchrun(commands[1]), broken, "cluster_epoch2_step2")
    output(torchrun(commands[1]))
    assert "resumed from" in log(broken) and log(broken).count("process 0 of 2") == 2
    assert_same(broken, straight)
    labels = [np.load(folder / "run" / "again1_pseudo_labels.npz")["labels"] for folder in (straight, broken)]
    assert labels[0].max() > 1 and labels[0].tolist() == labels[1].tolist()


def test_what_keeps_processes_from_training_is_reported_once(alone, tmp_path):
    """Settings are found out by all processes, images of another training by one, a broken image by its reader."""
    data = tmp_path / "data"
    for key, value in (("SOLVER__SEDE", "1"), ("SOLVER__STAGE2__IMS_PER_BATCH", "12")):
        assert key.replace("__", ".") in error_line(torchrun(words(tmp_path, data, **{key: value})))
    assert list(tmp_path.iterdir()) == []  # nothing was read yet

    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    broken = an_image(data, "bounding_box_train")
    whole = append(broken)
    evaluations = tmp_path / "run" / "results.json"
    evaluations.write_text(json.dumps({"evaluations": figures(tmp_path)[:1]}))
    assert "training images" in error_line(torchrun(words(tmp_path, data)))

    broken.write_bytes(whole[:300])
    changes = {"DATALOADER__NUM_WORKERS": "1", "OUTPUT_DIR": str(tmp_path / "new"), **ONLY_IMAGE}
    assert str(broken) in error_line(torchrun(words(tmp_path, data, **changes)))
