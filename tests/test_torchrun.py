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

import pytest
from test_end_to_end import ENVIRONMENT, ROOT
from test_resume import figures, states, words

import test_svllreid
import train_svllreid

pytestmark = pytest.mark.slow

MINUTE = 60.0


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """data/ and run/ of one process."""
    folder = tmp_path_factory.mktemp("alone")
    train_svllreid.main(words(folder, folder / "data"))
    return folder


def torchrun(command: list[str], processes: int = 2, script: str = "train_svllreid.py") -> subprocess.Popen:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.Popen(
        [*launch, str(ROOT / script), *command],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def children(process: int) -> list[int]:
    """The processes that torchrun started, as Linux tells."""
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def nearly_the_same(folder: Path, alone: Path) -> None:
    """Sums are made in another order. Weights are not compared: Adam makes whole steps of gradients that are noise."""
    ours, theirs = metrics(folder), metrics(alone)
    assert [(line["kind"], line["step"]) for line in ours] == [(line["kind"], line["step"]) for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        if one["kind"] == "train":
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert [entry["when"] for entry in figures(folder)] == ["start", "end"]
    for one, other in zip(figures(folder), figures(alone), strict=True):
        assert one["mAP"] == pytest.approx(other["mAP"], abs=1e-2)


def test_two_processes_train_as_one_and_write_once(alone, tmp_path):
    process = torchrun(words(tmp_path, alone / "data", DATALOADER__NUM_WORKERS="1"))
    output, _ = process.communicate(timeout=5 * MINUTE)
    assert process.returncode == 0, output
    assert output.count("test it again: python test_svllreid.py") == 1
    nearly_the_same(tmp_path, alone)
    names = [{path.name for path in (folder / "run").iterdir()} for folder in (tmp_path, alone)]
    assert names[0] == names[1]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_a_process_that_dies_ends_all_and_the_run_goes_on_in_one(alone, tmp_path):
    process = torchrun(words(tmp_path, alone / "data"))
    deadline = time.monotonic() + 2 * MINUTE
    while not states(tmp_path):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    died = time.monotonic()
    output, _ = process.communicate(timeout=MINUTE)
    assert process.returncode != 0 and "-9" in output and time.monotonic() - died < MINUTE
    assert "[rank0]:" not in output  # of a traceback; torchrun itself says which process it was, and the signal
    train_svllreid.main(words(tmp_path, alone / "data"))
    assert "resumed from" in (tmp_path / "run" / "train_log.txt").read_text()
    nearly_the_same(tmp_path, alone)


def test_a_picture_that_one_process_cannot_read_ends_all_with_its_name(alone, tmp_path):
    train_svllreid.main(words(tmp_path / "other", tmp_path / "data", SOLVER__STAGE1__MAX_EPOCHS="1"))  # renders
    broken = sorted(tmp_path.glob("data/*/bounding_box_train/*.jpg"))[7]
    broken.write_bytes(broken.read_bytes()[:300])
    changes = {"DATALOADER__NUM_WORKERS": "1", "PROCESSOR__STAGES": "image", "MODEL__I2T_LOSS_WEIGHT": "0.0"}
    process = torchrun(words(tmp_path, tmp_path / "data", **changes))
    output, _ = process.communicate(timeout=2 * MINUTE)
    assert process.returncode != 0
    told = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and str(broken) in told[0]


def test_two_processes_test_as_one_and_write_once(alone, tmp_path):
    weight = ["TEST.WEIGHT", str(alone / "run" / "ViT-Tiny-8_2.pth"), "DATASETS.ROOT_DIR", str(alone / "data")]
    test_svllreid.main([*weight, "OUTPUT_DIR", str(tmp_path / "one")])
    process = torchrun([*weight, "OUTPUT_DIR", str(tmp_path / "two")], script="test_svllreid.py")
    output, _ = process.communicate(timeout=2 * MINUTE)
    assert process.returncode == 0, output
    assert output.count("added to") == 1
    one, two = (json.loads((tmp_path / name / "results.json").read_text())["evaluations"] for name in ("one", "two"))
    assert one == two and len(two) == 1


def test_a_wrong_setting_is_told_once(alone, tmp_path):
    wrong = {"train_svllreid.py": ["SOLVER.SEDE", "1"], "test_svllreid.py": ["TEST.WEIGHT", "none.pth"]}
    for script, command in wrong.items():
        process = torchrun(command, script=script)
        output, _ = process.communicate(timeout=MINUTE)
        assert process.returncode != 0
        (told,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert command[0] in told or command[1] in told


def test_what_keeps_a_run_from_going_on_is_told_once(alone, tmp_path):
    """All processes find it out."""
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    results = tmp_path / "run" / "results.json"
    results.write_text(json.dumps({"evaluations": json.loads(results.read_text())["evaluations"][:1]}))
    picture = min(tmp_path.glob("data/*/bounding_box_train/*.jpg"))
    picture.write_bytes(picture.read_bytes() + b"x")
    for message in ("the training images are not those", "no state to resume from"):
        output, _ = torchrun(words(tmp_path, tmp_path / "data")).communicate(timeout=MINUTE)
        (told,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert message in told
        shutil.rmtree(tmp_path / "run" / "resume", ignore_errors=True)  # for the second time


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_read(alone, tmp_path):
    process = torchrun(words(tmp_path, alone / "data"), processes=3)
    output, _ = process.communicate(timeout=2 * MINUTE)
    assert process.returncode != 0
    (told,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "SOLVER.STAGE2.IMS_PER_BATCH 16" in told
    assert not (tmp_path / "run").exists()
