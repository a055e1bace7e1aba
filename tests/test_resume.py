"""A run that was stopped anywhere and started again ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from builders import GONE, LOOP, STRANGE, places, with_strange
from test_end_to_end import ENVIRONMENT, ROOT, arguments, results
from torch import Tensor

import train_svllreid
from configs import ConfigError
from configs.stages import IMAGE, PROMPT
from processor import build, loop, stage_run
from processor import run as run_module
from utils.checkpoint import read_checkpoint, read_tensors, write_tensors
from utils.command import run_script
from utils.errors import DataError, UserError
from utils.report import table
from utils.run import folder as folder_module
from utils.run.folder import RunFolder
from utils.run.lock import lock
from utils.run.metrics import Metrics
from utils.run.results import append_result, count_ends, read_results
from utils.run.state import newest_state
from utils.schema import ResumeState, fault
from utils.stopping import Interrupted, Stopping

pytestmark = pytest.mark.slow

EVERY_STEP = "1e-9"  # minutes between two states
STEPS = 5  # of an epoch, of which each of the two stages has two
SHORT = {
    "SOLVER__STAGE1__IMS_PER_BATCH": "16",
    "SOLVER__STAGE1__LOG_PERIOD": "3",
    "SOLVER__STAGE2__IMS_PER_BATCH": "16",
    "SOLVER__STAGE2__LOG_PERIOD": "3",
    "DATALOADER__NUM_INSTANCE": "4",
    "SOLVER__CHECKPOINT_MINUTES": EVERY_STEP,
}
LAST = "ViT-Tiny-8_2.pth"


class Crash(BaseException):
    """Something that no program catches."""


def words(folder: Path, data: Path, **changes: str) -> list[str]:
    settings = {**SHORT, "DATASETS__ROOT_DIR": str(data), **changes}
    return arguments("configs/demo/vit_svllreid.yml", folder, **settings)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """data/ and run/, trained without a break."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train_svllreid.main(words(folder, folder / "data"))
    return folder


@pytest.fixture
def crash(monkeypatch):
    """crash(n): the n-th update from now on is not made, and nothing after it."""
    real = loop._update

    def arm(count: int | None) -> list[int]:
        done: list[int] = []

        def update(*rest):
            if count is not None and len(done) + 1 == count:
                raise Crash
            done.append(1)
            return real(*rest)

        monkeypatch.setattr(loop, "_update", update)
        return done

    return arm


def crash_at_an_end(monkeypatch, number: int) -> list[str]:
    """The number-th evaluation of an end is made, but not written -> what evaluations were of."""
    real, calls = run_module.append_result, []

    def append(folder, entry):
        calls.append(entry["when"])
        if entry["when"] == "end" and calls.count("end") == number:
            raise Crash
        return real(folder, entry)

    monkeypatch.setattr(run_module, "append_result", append)
    return calls


def tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted((folder / "run").glob("*.pth"))
    assert files
    return {f"{file.name} {name}": value for file in files for name, value in read_checkpoint(file)["model"].items()}


def figures(folder: Path) -> list[dict]:
    return [{**entry, "checkpoint": None} for entry in results(folder / "run")]


def assert_the_same(folder: Path, undisturbed: Path) -> None:
    ours, theirs = tensors(folder), tensors(undisturbed)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert figures(folder) == figures(undisturbed)
    metrics = [(each / "run" / "metrics.jsonl").read_text() for each in (folder, undisturbed)]
    assert metrics[0] == metrics[1]


def everything(folder: Path) -> dict[Path, bytes]:
    """All files of the run."""
    return {file: file.read_bytes() for file in (folder / "run").rglob("*") if file.is_file()}


def log(folder: Path) -> str:
    return (folder / "run" / "train_log.txt").read_text()


def states(folder: Path) -> list[Path]:
    return sorted((folder / "run" / "resume").glob("*.pth"))


# ------------------------------------------------------------------------------------------------------------ go on


# In the first, a middle, and the last step of an epoch, of both stages; the 11th is the first of the image stage.
@pytest.mark.parametrize("step", [1, 2, 5, 6, 10, 11, 12, 15, 16, 20])
def test_a_run_that_broke_off_anywhere_ends_the_same(undisturbed, tmp_path, crash, step):
    command = words(tmp_path, undisturbed / "data")
    crash(step)
    with pytest.raises(Crash):
        train_svllreid.main(command)
    done = crash(None)
    train_svllreid.main(command)
    assert len(done) == 4 * STEPS - (step - 1)  # what was done is not done again
    resumed = [line for line in log(tmp_path).splitlines() if "resumed from" in line]
    if step == 1:  # no state was kept yet; and since nothing was trained either, the folder was given free
        assert resumed == []
    else:
        (message,) = resumed
        stage, before = (PROMPT, step - 1) if step <= 11 else (IMAGE, step - 1 - 2 * STEPS)
        epoch, within = (before - 1) // STEPS + 1, (before - 1) % STEPS + 1
        assert message.endswith(f"{stage.title}, epoch {epoch}, after step {within}")
    assert_the_same(tmp_path, undisturbed)


@pytest.mark.parametrize("step", [7, 13])
def test_a_stage_may_occur_twice(undisturbed, tmp_path, crash, step):
    """Each has files of its own, and is resumed as itself."""
    stages = {"PROCESSOR__STAGES": "('prompt', 'image', 'prompt')", "SOLVER__STAGE2__MAX_EPOCHS": "1"}
    stages["SOLVER__STAGE1__MAX_EPOCHS"] = "1"
    for folder, at in ((tmp_path / "straight", None), (tmp_path / "broken", step)):
        command = words(folder, undisturbed / "data", **stages)
        crash(at)
        with pytest.raises(Crash) if at else contextlib.nullcontext():
            train_svllreid.main(command)
    crash(None)
    train_svllreid.main(command)
    names = {"ViT-Tiny-8_stage1_1.pth", "ViT-Tiny-8_1.pth", "again1_ViT-Tiny-8_stage1_1.pth"}
    assert {file.name for file in (tmp_path / "broken" / "run").glob("*.pth")} == names
    assert_the_same(tmp_path / "broken", tmp_path / "straight")


def test_what_an_epoch_begins_with_is_saved_and_handed_back(undisturbed, tmp_path, crash, monkeypatch):
    """As clusters, which decide on the stage's parameters: the optimiser is restored after them."""
    seen, real = [], build.MAKE_STAGE["image"]

    def parts_of(run, model, data):
        parts = real(run, model, data)

        def before_epoch(epoch, epoch_state):
            if epoch_state is None:
                parts.module.model.heads[0].classifier.weight.data.mul_(0.5)
            seen.append((epoch, epoch_state))
            return {"drawn": torch.full((2,), float(epoch))}

        return parts._replace(before_epoch=before_epoch)

    monkeypatch.setitem(build.MAKE_STAGE, "image", parts_of)
    for folder, at in ((tmp_path / "straight", None), (tmp_path / "broken", 13)):
        command = words(folder, undisturbed / "data")
        crash(at)
        with pytest.raises(Crash) if at else contextlib.nullcontext():
            train_svllreid.main(command)
    crash(None)
    train_svllreid.main(command)
    epochs = [(epoch, state and state["drawn"].tolist()) for epoch, state in seen]
    assert epochs == [(1, None), (2, None), (1, None), (1, [1.0, 1.0]), (2, None)]
    assert_the_same(tmp_path / "broken", tmp_path / "straight")


def test_the_scaler_of_fp16_goes_on_where_it_was(undisturbed, tmp_path, crash):
    ends = []
    for name, step in (("straight", None), ("broken", 7)):
        command = words(tmp_path / name, undisturbed / "data", SOLVER__PRECISION="fp16", PROCESSOR__STAGES="prompt")
        if step:
            crash(step)
            with pytest.raises(Crash):
                train_svllreid.main(command)
        crash(None)
        train_svllreid.main(command)
        ends.append(read_tensors(states(tmp_path / name)[-1])["run"]["scaler"])
    assert ends[0] == ends[1] and ends[0]["_growth_tracker"] > 0
    assert_the_same(tmp_path / "broken", tmp_path / "straight")


def test_a_run_that_breaks_off_again_and_again(undisturbed, tmp_path, crash):
    """Only at ends of epochs are states kept, so that much is done twice."""
    command = words(tmp_path, undisturbed / "data", SOLVER__CHECKPOINT_MINUTES="0")
    for count in (8, 4, 3, 3):
        crash(count)
        with pytest.raises(Crash):
            train_svllreid.main(command)
    crash(None)
    train_svllreid.main(command)
    assert_the_same(tmp_path, undisturbed)


def test_a_run_that_broke_off_while_it_was_evaluated(undisturbed, tmp_path, monkeypatch):
    """Evaluations belong to the run, and are there once: those on the way and the last one."""
    command = words(tmp_path, undisturbed / "data")
    calls = crash_at_an_end(monkeypatch, 1)
    with pytest.raises(Crash):
        train_svllreid.main(command)
    train_svllreid.main(command)
    assert calls == ["start", "end", "end"]
    assert_the_same(tmp_path, undisturbed)


def test_killed_at_random_moments_with_workers(undisturbed, tmp_path):
    """SIGKILL: nothing of the program runs afterwards. Each time only once there is a newer state than before."""
    longer = {
        "DATALOADER__NUM_WORKERS": "1",
        "SOLVER__STAGE2__MAX_EPOCHS": "8",
        "SOLVER__STAGE2__CHECKPOINT_PERIOD": "9",
    }
    straight = tmp_path / "straight"
    train_svllreid.main(words(straight, undisturbed / "data", **longer))
    command = words(tmp_path, undisturbed / "data", **longer)
    draw, logs, kills = random.Random(0), [], 0
    while True:
        known = states(tmp_path)
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train_svllreid.py"), *command],
            env={**ENVIRONMENT, "OMP_NUM_THREADS": str(torch.get_num_threads())},  # sums depend on it
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        while kills < 3 and process.poll() is None and states(tmp_path)[-1:] == known[-1:]:
            time.sleep(0.002)
        if kills < 3:
            time.sleep(draw.uniform(0, 0.1))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        logs.append(process.communicate(timeout=120)[0])
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, logs[-1]
        kills += 1
    assert kills >= 2  # on a slow machine, the run may end before the third
    assert ["resumed from" in log for log in logs] == [False] + [True] * kills
    assert not list((tmp_path / "run").rglob(".*.tmp"))
    assert_the_same(tmp_path, straight)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_saves(undisturbed, tmp_path, monkeypatch, capsys, number):
    """The step that is being made is made, and its state kept, whatever the clock says."""
    command, real, made = words(tmp_path, undisturbed / "data", SOLVER__CHECKPOINT_MINUTES="0"), loop._update, []

    def update(*rest):
        made.append(1)
        if len(made) == 13:
            os.kill(os.getpid(), number)
        return real(*rest)

    monkeypatch.setattr(loop, "_update", update)
    assert run_script(lambda: train_svllreid.main(command)) == 128 + number
    newest = states(tmp_path)[-1]
    assert newest.name.endswith("_image_epoch1_step3.pth")
    error = capsys.readouterr().err
    assert f"interrupted during stage 2 (fine-tuning); the same command resumes from {newest}" in error
    train_svllreid.main(command)
    assert len(made) == 4 * STEPS
    assert_the_same(tmp_path, undisturbed)


def test_signals_elsewhere_act_at_once_and_earlier_handlers_come_back(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    with Stopping() as stopping:
        with stopping.waiting():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)  # at the same time: an echo of the first
            assert stopping.requested == signal.SIGTERM
            monkeypatch.setattr("utils.stopping._ECHO", -1.0)
            with pytest.raises(Interrupted) as caught:  # the second time
                os.kill(os.getpid(), signal.SIGINT)
            assert caught.value.number == signal.SIGINT
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


# ----------------------------------------------------------------------------------------------------- damaged states


def broken_off(folder: Path, data: Path, crash, step: int = 14) -> list[str]:
    """A run with states from steps 12 and 13 of 20; its command."""
    command = words(folder, data)
    crash(step)
    with pytest.raises(Crash):
        train_svllreid.main(command)
    crash(None)
    return command


@pytest.mark.parametrize("damage", ["cut off", "a byte", "empty", "something else"])
def test_a_damaged_state_is_named_and_the_one_before_it_taken(undisturbed, tmp_path, crash, damage):
    command = broken_off(tmp_path, undisturbed / "data", crash)
    _, newest = states(tmp_path)
    whole = newest.read_bytes()
    if damage == "cut off":
        newest.write_bytes(whole[: len(whole) // 2])
    elif damage == "a byte":
        place = len(whole) // 2
        newest.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif damage == "empty":
        newest.write_bytes(b"")
    else:
        write_tensors(newest, {"a": torch.zeros(2)})
    done = crash(None)
    train_svllreid.main(command)
    (told,) = [line for line in log(tmp_path).splitlines() if "resuming from the state before it" in line]
    assert str(newest) in told
    assert len(done) == 8
    assert_the_same(tmp_path, undisturbed)


def test_a_damaged_state_is_not_one_of_the_two_that_are_kept(undisturbed, tmp_path, crash):
    command = broken_off(tmp_path, undisturbed / "data", crash)
    before, newest = states(tmp_path)
    newest.write_bytes(b"")
    crash(2)
    with pytest.raises(Crash):
        train_svllreid.main(command)
    first, second = states(tmp_path)
    assert first == before and second != newest


def test_a_finished_run_needs_no_state(undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    for file in states(tmp_path):
        file.write_bytes(b"")
    train_svllreid.main(words(tmp_path, undisturbed / "data"))
    assert "this run is finished" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"none of its 2 states"):
        train_svllreid.main(words(tmp_path, undisturbed / "data", SOLVER__STAGE2__MAX_EPOCHS="3"))
    for key, value in (("STAGE1", "5"), ("STAGE2", "1")):  # what is over is over all the same
        with pytest.raises(ConfigError, match=rf"SOLVER\.{key}\.MAX_EPOCHS: 2 before, {value} now"):
            train_svllreid.main([*words(tmp_path, undisturbed / "data"), f"SOLVER.{key}.MAX_EPOCHS", value])


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_run_that_was_given_more_epochs_has_ended_with_them(undisturbed, tmp_path, capsys, damaged):
    """Also where only a state from before is whole."""
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    command = words(tmp_path, undisturbed / "data", SOLVER__CHECKPOINT_MINUTES="0", SOLVER__STAGE2__MAX_EPOCHS="3")
    train_svllreid.main(command)
    assert [file.name[6:18] for file in states(tmp_path)] == ["image_epoch2", "image_epoch3"]
    for file in states(tmp_path)[-damaged:]:
        file.write_bytes(b"")
    before = everything(tmp_path)
    train_svllreid.main(command)
    assert capsys.readouterr().out.endswith("this run is finished; another one needs another OUTPUT_DIR\n")
    for key, value in (("STAGE1", "5"), ("STAGE2", "2")):
        with pytest.raises(ConfigError, match=rf"SOLVER\.{key}\.MAX_EPOCHS: . before, {value} now"):
            train_svllreid.main([*command, f"SOLVER.{key}.MAX_EPOCHS", value])
    assert everything(tmp_path) == before


def test_a_run_of_several_data_sets_has_ended_with_the_last(undisturbed, tmp_path):
    names = {"DATASETS__NAMES": "('synthetic', 'synthetic_occluded')", "PROCESSOR__STAGES": "image"}
    command = words(tmp_path, undisturbed / "data", MODEL__I2T_LOSS_WEIGHT="0.0", **names)
    train_svllreid.main(command)
    for file in states(tmp_path):
        file.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"DATASETS\.NAMES: 'synthetic\+synthetic_occluded' before, 'synthetic' now"):
        train_svllreid.main([*command, "DATASETS.NAMES", "synthetic"])
    train_svllreid.main(command)  # it is finished
    path = tmp_path / "run" / "results.json"
    path.write_text(json.dumps({"evaluations": json.loads(path.read_text())["evaluations"][:-1]}))
    with pytest.raises(UserError, match=r"none of its 2 states"):
        train_svllreid.main(command)
    shutil.rmtree(tmp_path / "run" / "resume")
    for file in (tmp_path / "run").glob("*.pth"):
        file.unlink()
    with pytest.raises(UserError, match=r"no state to resume from"):
        train_svllreid.main(command)


def test_more_epochs_that_were_not_begun_leave_nothing(undisturbed, tmp_path, crash):
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    file = tmp_path / "run" / "results.json"
    file.write_text(file.read_text().replace(str(undisturbed), str(tmp_path)))  # where the checkpoint is
    command = words(tmp_path, undisturbed / "data")
    more = [*command, "SOLVER.STAGE2.MAX_EPOCHS", "3"]
    for _ in range(2):
        crash(1)
        with pytest.raises(Crash):
            train_svllreid.main(more)
        crash(None)
        train_svllreid.main(command)
        assert [entry["when"] for entry in results(tmp_path / "run")] == ["start", "end"]
    train_svllreid.main(more)
    assert [entry["when"] for entry in results(tmp_path / "run")] == ["start", "earlier end", "end"]


@pytest.mark.parametrize("text", ["", "[]", "[" * 5000, '{"evaluations": [{"mAP": 1.0}]}'])
def test_evaluations_that_cannot_be_read_are_not_written_over(undisturbed, tmp_path, crash, text):
    command = broken_off(tmp_path, undisturbed / "data", crash)
    file = tmp_path / "run" / "results.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"results\.json: is not a results file of this program; move it away"):
        train_svllreid.main(command)
    assert file.read_text() == text
    file.unlink()
    train_svllreid.main(command)
    assert "the evaluation of the start is gone" in log(tmp_path)
    assert [entry["when"] for entry in results(tmp_path / "run")] == ["end"]


def test_a_first_state_that_cannot_be_written_leaves_nothing(undisturbed, tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Metrics, "put_on_disk", full)
    with pytest.raises(UserError, match=r"00001_prompt_epoch1_step1\.pth: the checkpoint cannot be written \(No space"):
        train_svllreid.main(words(tmp_path, undisturbed / "data"))
    assert list(tmp_path.iterdir()) == []


def test_a_signal_at_the_very_end_of_an_epoch_is_not_forgotten(undisturbed, tmp_path, monkeypatch):
    """After the last step has looked for one, in an epoch that is not kept by itself."""
    real, made, asked = stage_run.any_rank, [], []

    def any_rank(flag):
        answer = real(flag)
        if len(made) == STEPS:
            asked.append(answer)
            if len(asked) == 2:  # whether to stop, whether to keep; next: whether somebody asked since
                os.kill(os.getpid(), signal.SIGTERM)
        return answer

    update = loop._update
    monkeypatch.setattr(loop, "_update", lambda *rest: (made.append(1), update(*rest))[1])
    monkeypatch.setattr(stage_run, "any_rank", any_rank)
    command = words(tmp_path, undisturbed / "data", SOLVER__CHECKPOINT_MINUTES="0")
    with pytest.raises(Interrupted):
        train_svllreid.main(command)
    assert asked == [False, False, True]
    assert [file.name for file in states(tmp_path)] == ["00001_prompt_epoch1_step5.pth"]
    monkeypatch.undo()
    train_svllreid.main(command)
    assert_the_same(tmp_path, undisturbed)


def test_folders_above_are_not_left_either(undisturbed, tmp_path):
    deep = tmp_path / "a" / "b" / "run"
    with pytest.raises(DataError):
        train_svllreid.main([*words(tmp_path, tmp_path, DATASETS__NAMES="market1501"), "OUTPUT_DIR", str(deep)])
    assert list(tmp_path.iterdir()) == []


def test_another_precision_of_another_device_is_told(undisturbed, tmp_path, crash, monkeypatch):
    command = broken_off(tmp_path, undisturbed / "data", crash)
    monkeypatch.setattr(build, "pick_precision", lambda name, device: torch.bfloat16)
    train_svllreid.main(command)
    assert "SOLVER.PRECISION auto is bfloat16 on this device; the run was begun in float32" in log(tmp_path)


def test_running_statistics_are_averaged_before_anything_is_saved(undisturbed, tmp_path, monkeypatch):
    """Those of a ResNet in several processes."""
    done = []
    for name in ("save", "save_state"):
        real = getattr(RunFolder, name)

        def saved(*rest, name=name, real=real):
            done.append(name)
            return real(*rest)

        monkeypatch.setattr(RunFolder, name, saved)
    monkeypatch.setattr(stage_run, "average_statistics", lambda model: done.append("average"))
    train_svllreid.main(words(tmp_path, undisturbed / "data", SOLVER__CHECKPOINT_MINUTES="0"))
    both = ["average", "save_state", "average", "save"]
    assert done == ["average", *both, "average", "save_state", "average", *both]  # epochs 1 and 2 of both stages


def test_without_any_whole_state_nothing_is_begun_anew_in_silence(undisturbed, tmp_path, crash):
    command = broken_off(tmp_path, undisturbed / "data", crash)
    for file in states(tmp_path):
        file.write_bytes(b"")
    before = everything(tmp_path)
    with pytest.raises(UserError, match=r"none of its 2 states can be read; .*MODEL\.INIT_FROM"):
        train_svllreid.main(command)
    assert everything(tmp_path) == before


def test_the_newest_two_states_are_kept_and_periods_have_files_of_their_own(undisturbed):
    assert [file.name.partition("_")[2] for file in states(undisturbed)] == [
        "image_epoch2_step4.pth",
        "image_epoch2_step5.pth",
    ]
    assert newest_state(undisturbed / "run").path == states(undisturbed)[1]
    contents = read_tensors(states(undisturbed)[1])
    needed = {
        "optimizer",
        "scaler",
        "random",
        "position",
        "best",
        "metrics_bytes",
        "device",
        "precision",
        "stage_number",
    }
    assert needed == contents["run"].keys()
    assert "run" not in read_tensors(undisturbed / "run" / LAST)  # what is passed on is small


def test_a_full_disk_loses_nothing(undisturbed, tmp_path, crash, monkeypatch):
    """The state that cannot be written is not there; the run ends with one line and goes on where there is room."""
    real, calls = torch.save, []

    def save(contents, file):
        calls.append(1)
        if len(calls) == 9:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        real(contents, file)

    monkeypatch.setattr(torch, "save", save)
    command = words(tmp_path, undisturbed / "data")
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); earlier ones are intact"):
        train_svllreid.main(command)
    assert len(states(tmp_path)) == 2 and not list((tmp_path / "run").rglob(".*.tmp"))
    train_svllreid.main(command)
    assert_the_same(tmp_path, undisturbed)


def unfinished(folder: Path, undisturbed: Path, contents: dict) -> Path:
    """A run that goes on from a state with these contents; the state."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    (run / "resume").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "versions.json"):
        shutil.copy(undisturbed / "run" / name, run)
    start = json.loads((undisturbed / "run" / "results.json").read_text())["evaluations"][:1]
    (run / "results.json").write_text(json.dumps({"evaluations": start}))
    write_tensors(run / "resume" / states(undisturbed)[0].name, contents)
    return run / "resume" / states(undisturbed)[0].name


def test_whatever_is_done_to_a_state_training_goes_on_or_refuses_it(undisturbed, tmp_path):
    whole, rng = read_tensors(states(undisturbed)[0]), random.Random(0)
    parts = {"run": whole["run"], **{name: whole[name] for name in ("stage", "epoch", "fingerprint")}}
    cases = [(place, value) for place in places(parts) for value in STRANGE]
    left = [case for case in cases if fault(with_strange(whole, *case), ResumeState) is None]
    assert len(left) < len(cases) / 2
    taken = [case for case in left if case[0][:2] != ("run", "optimizer")]
    for case in (*rng.sample(taken, 8), *rng.sample(left, 4)):  # the door lets them pass
        unfinished(tmp_path, undisturbed, with_strange(whole, *case))
        with contextlib.suppress(UserError, ConfigError):
            train_svllreid.main(words(tmp_path, undisturbed / "data"))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("run.position.epoch", 3, r"is of epoch 3 of stage 2 .*, which has 2"),
        ("run.position.sums", {"loss": [1.0, 0]}, r"sums\['loss'\]\[1\] is 0; expected an integer from 1"),
        ("run.best", {"synthetic": {"epoch": 1}}, r"run\.best\['synthetic'\]\.mAP is missing; expected a fraction"),
        ("run.random.numpy", ["MT19937", torch.zeros(624), 625, 0, 0.0], r"\[2\] is 625; expected .* from 0 to 624"),
        ("run.random.torch", torch.zeros(9), r"does not fit its optimizer, scaler or random"),
        ("run.random.own", {}, None),  # the image stage has no generators of its own
        ("run.optimizer.state", {0: {"exp_avg": torch.zeros(9)}}, r"state\[0\] is not what Adam gathers here"),
        ("run.metrics_bytes", None, r"run\.metrics_bytes is missing; expected an integer"),
        ("run.precision", GONE, None),  # earlier versions did not write it
        ("run", GONE, r"run is missing; expected a dictionary"),
        ("stage", "prompt", r"is of the prompt stage, which this run has not"),
        ("run.stage_number", 0, r"is of the image stage, which this run has not"),
        ("run.stage_number", GONE, None),  # earlier versions did not write it
    ],
)
def test_the_field_of_a_state_is_named(undisturbed, tmp_path, capsys, place, value, message):
    whole = read_tensors(states(undisturbed)[0])
    unfinished(tmp_path, undisturbed, with_strange(whole, tuple(place.split(".")), value))
    code = run_script(lambda: train_svllreid.main(words(tmp_path, undisturbed / "data")), ConfigError)
    told = "".join(capsys.readouterr())
    assert code == (2 if message else 0) and "Traceback" not in told
    assert message is None or (re.search(message, told) and str(tmp_path / "run" / "resume") in told)


def test_whatever_is_done_to_results_they_are_shown_or_refused(undisturbed, tmp_path):
    whole, rng = json.loads((undisturbed / "run" / "results.json").read_text()), random.Random(0)
    path, entry = tmp_path / "results.json", whole["evaluations"][1]
    cases = [(place, value) for place in places(whole) for value in STRANGE if value is not LOOP]
    refused = 0
    for case in rng.sample(cases, 400):
        path.write_text(json.dumps(with_strange(whole, *case)))
        try:
            entries = read_results(path)["evaluations"]
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{path}: is not a results file of this program; move it away (evaluations")
            continue
        append_result(tmp_path, entry)
        count_ends(entries)
        assert len(table([*entries, entry]).splitlines()) == 3 + len(entries)
    assert refused > 40


def test_the_field_of_results_is_named_before_anything_is_trained(undisturbed, tmp_path, crash):
    whole = read_tensors(states(undisturbed)[0])
    unfinished(tmp_path, undisturbed, whole)
    file = tmp_path / "run" / "results.json"
    (start,) = json.loads(file.read_text())["evaluations"]
    file.write_text(json.dumps({"evaluations": [{name: start[name] for name in start if name != "mAP"}]}))
    message = r"results\.json: .*evaluations\[0\]\.mAP is missing; expected a fraction from 0 to 1"
    done = crash(None)
    with pytest.raises(UserError, match=message):
        train_svllreid.main(words(tmp_path, undisturbed / "data"))
    assert done == []
    # Earlier versions wrote neither protocol nor settings of re-ranking.
    older = {name: start[name] for name in start if name not in ("protocol", "re_ranking", "std", "network")}
    file.write_text(json.dumps({"evaluations": [older]}))
    train_svllreid.main(words(tmp_path, undisturbed / "data"))
    assert [entry["when"] for entry in results(tmp_path / "run")] == ["start", "end"]
    assert "rank-1" in log(tmp_path)


# ------------------------------------------------------------------------------------------- what is the same run


def test_a_finished_run_says_so_and_is_left_alone(undisturbed, capsys):
    before = {file: file.stat().st_mtime_ns for file in (undisturbed / "run").rglob("*") if file.is_file()}
    train_svllreid.main(words(undisturbed, undisturbed / "data", DATALOADER__NUM_WORKERS="1"))
    out = capsys.readouterr().out
    assert out.endswith(f"{undisturbed}/run: this run is finished; another one needs another OUTPUT_DIR\n")
    assert {file: file.stat().st_mtime_ns for file in (undisturbed / "run").rglob("*") if file.is_file()} == before


def test_more_epochs_go_on_with_a_finished_run(undisturbed, tmp_path, crash):
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    done = crash(None)
    train_svllreid.main(words(tmp_path, undisturbed / "data", SOLVER__STAGE2__MAX_EPOCHS="3"))
    assert len(done) == STEPS
    straight = tmp_path / "straight"
    train_svllreid.main(words(straight, undisturbed / "data", SOLVER__STAGE2__MAX_EPOCHS="3"))
    ours, theirs = (read_checkpoint(each / "run" / "ViT-Tiny-8_3.pth")["model"] for each in (tmp_path, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [entry["when"] for entry in figures(tmp_path)] == ["start", "earlier end", "end"]
    assert figures(tmp_path)[-1]["mAP"] == figures(straight)[-1]["mAP"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SOLVER__STAGE2__BASE_LR": "0.01"}, r"SOLVER\.STAGE2\.BASE_LR: 0\.001 before, 0\.01 now"),
        ({"SOLVER__SEED": "5"}, r"SOLVER\.SEED: 1234 before, 5 now"),
        ({"TEST__NECK_FEAT": "after"}, r"TEST\.NECK_FEAT: 'before' before, 'after' now"),
        ({"SOLVER__STAGE1__MAX_EPOCHS": "3"}, r"SOLVER\.STAGE1\.MAX_EPOCHS: 2 before, 3 now \(that stage is over\)"),
    ],
)
def test_other_settings_are_refused(undisturbed, tmp_path, crash, changes, message):
    broken_off(tmp_path, undisturbed / "data", crash)
    before = everything(tmp_path)
    with pytest.raises(ConfigError, match=message):
        train_svllreid.main(words(tmp_path, undisturbed / "data", **changes))
    assert everything(tmp_path) == before


def test_fewer_epochs_than_are_begun_are_refused(undisturbed, tmp_path, crash):
    broken_off(tmp_path, undisturbed / "data", crash, step=17)
    with pytest.raises(ConfigError, match=r"SOLVER\.STAGE2\.MAX_EPOCHS: 2 before, 1 now"):
        train_svllreid.main(words(tmp_path, undisturbed / "data", SOLVER__STAGE2__MAX_EPOCHS="1"))


def test_settings_of_places_and_of_the_log_may_change(undisturbed, tmp_path, crash):
    broken_off(tmp_path, undisturbed / "data", crash)
    shutil.copytree(undisturbed / "data", tmp_path / "elsewhere")
    changes = {"SOLVER__STAGE2__LOG_PERIOD": "1", "DATALOADER__NUM_WORKERS": "1", "SOLVER__CHECKPOINT_MINUTES": "0"}
    train_svllreid.main(words(tmp_path, tmp_path / "elsewhere", **changes))
    assert "changed since the run was started: SOLVER.STAGE2.LOG_PERIOD: 3 before, 1 now" in log(tmp_path)
    ours, theirs = tensors(tmp_path), tensors(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_other_pictures_are_refused(undisturbed, tmp_path, crash):
    shutil.copytree(undisturbed / "data", tmp_path / "data")
    command = broken_off(tmp_path, tmp_path / "data", crash)
    picture = next(iter(sorted((tmp_path / "data").glob("*/bounding_box_train/*.jpg"))))
    picture.write_bytes(picture.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"the training images are not those that this run was started with"):
        train_svllreid.main(command)


def test_resume_false_refuses_every_run(undisturbed):
    with pytest.raises(UserError, match=r"holds a run already \(config\.yaml\); give another OUTPUT_DIR"):
        train_svllreid.main(words(undisturbed, undisturbed / "data", RESUME="False"))


def test_of_two_runs_in_one_folder_the_second_is_refused(undisturbed, tmp_path):
    command = words(tmp_path, undisturbed / "data")
    with lock(tmp_path / "run"):
        with pytest.raises(UserError, match=r"another run is writing there at this moment"):
            train_svllreid.main(command)
        assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]
    assert not (tmp_path / "run").exists()


def test_checkpoints_without_a_state_are_not_trained_over(undisturbed, tmp_path):
    """Of a run whose states were deleted; it has ended, so that the same command leaves it alone, too."""
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "resume")
    before = everything(tmp_path)
    train_svllreid.main(words(tmp_path, undisturbed / "data"))
    with pytest.raises(UserError, match=r"checkpoints, but no state to resume from \(resume/\); .*MODEL\.INIT_FROM"):
        train_svllreid.main(words(tmp_path, undisturbed / "data", SOLVER__STAGE2__MAX_EPOCHS="3"))
    assert everything(tmp_path) == before


def test_checkpoints_of_something_else_are_not_trained_over(undisturbed, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LAST).write_text("precious")
    with pytest.raises(UserError, match=rf"holds a run already \({LAST}\)"):
        train_svllreid.main(words(tmp_path, undisturbed / "data"))
    assert (tmp_path / "run" / LAST).read_text() == "precious"


def test_pictures_may_be_mended_while_there_is_no_state(undisturbed, tmp_path, crash):
    """Everything begins anew then; a picture that could not be read is a common reason to stop."""
    shutil.copytree(undisturbed / "data", tmp_path / "data")
    command = words(tmp_path, tmp_path / "data", SOLVER__CHECKPOINT_MINUTES="0")
    picture = min((tmp_path / "data").glob("*/bounding_box_train/*.jpg"))
    whole = picture.read_bytes()
    picture.write_bytes(whole + b"x")
    crash(5)
    with pytest.raises(Crash):
        train_svllreid.main(command)
    assert not states(tmp_path) and (tmp_path / "run" / "versions.json").exists()
    picture.write_bytes(whole)
    crash(None)
    train_svllreid.main(command)
    assert "an earlier run in" in log(tmp_path)
    assert_the_same(tmp_path, undisturbed)


@pytest.mark.parametrize("name", ["config.yaml", "versions.json", "metrics.jsonl"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut off", "nested"])
def test_a_state_needs_no_other_file(undisturbed, tmp_path, crash, name, damage):
    """Of the records, what is gone is gone, and said."""
    command = broken_off(tmp_path, undisturbed / "data", crash)
    file = tmp_path / "run" / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_text({"empty": "", "cut off": file.read_text()[:400], "nested": "a: " + "[" * 5000}[damage])
    train_svllreid.main(command)
    ours, theirs = tensors(tmp_path), tensors(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert figures(tmp_path) == figures(undisturbed)
    assert f"{tmp_path / 'run' / 'resume'}" in log(tmp_path)
    if damage != "nested":
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
            json.loads(line)
    assert ("bytes are gone since the state was saved" in log(tmp_path)) == (
        name == "metrics.jsonl" and damage != "nested"
    )


def test_tensorboard_shows_every_step_once(undisturbed, tmp_path, crash, monkeypatch):
    """Events of steps that come once more are not there twice; a stand-in keeps events as a writer does, in files."""

    class SummaryWriter:
        def __init__(self, folder):
            self.file = Path(folder) / f"events.{len(list(Path(folder).glob('*')))}"
            self.file.parent.mkdir(exist_ok=True)

        def add_scalar(self, *event):
            with open(self.file, "a") as file:
                file.write(json.dumps(event) + "\n")

        def flush(self):
            pass

        close = flush

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))

    def events(folder):
        lines = [line for file in (folder / "run" / "tensorboard").iterdir() for line in file.read_text().splitlines()]
        return sorted(map(tuple, map(json.loads, lines)))

    straight = tmp_path / "straight"
    train_svllreid.main(words(straight, undisturbed / "data"))
    command = broken_off(tmp_path, undisturbed / "data", crash, step=19)
    states(tmp_path)[1].write_bytes(b"")  # so that a step that was logged is made once more
    train_svllreid.main(command)
    assert events(tmp_path) == events(straight)
    whole = events(tmp_path)
    (tmp_path / "run" / "metrics.jsonl").unlink()  # what it would be shown again from
    train_svllreid.main([*command, "SOLVER.STAGE2.MAX_EPOCHS", "3"])
    assert set(whole) < set(events(tmp_path))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # not installed any more
    train_svllreid.main([*command, "SOLVER.STAGE2.MAX_EPOCHS", "4"])
    assert set(whole) < set(events(tmp_path))
    assert {name for name, _, _ in events(straight)} >= {"prompt/language_ssl", "image/vision_ssl", "end/mAP"}


def test_without_a_state_the_configuration_is_needed(undisturbed, tmp_path, crash):
    command = words(tmp_path, undisturbed / "data", SOLVER__CHECKPOINT_MINUTES="0")
    crash(5)
    with pytest.raises(Crash):
        train_svllreid.main(command)
    with pytest.raises(
        ConfigError, match=r"SOLVER\.SEED: 1234 before, 5 now.*or delete this one, which holds no weights"
    ):
        train_svllreid.main([*command, "SOLVER.SEED", "5"])
    (tmp_path / "run" / "config.yaml").write_text("a: " + "[" * 5000)
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read .*; move the run there away"):
        train_svllreid.main(command)


def test_settings_of_a_stage_that_the_run_has_not_are_free(undisturbed, tmp_path, crash):
    stages = {"PROCESSOR__STAGES": "image", "MODEL__I2T_LOSS_WEIGHT": "0.0"}
    crash(4)
    with pytest.raises(Crash):
        train_svllreid.main(words(tmp_path, undisturbed / "data", **stages))
    crash(None)
    more = {"SOLVER__STAGE1__MAX_EPOCHS": "7", "TEST__IMS_PER_BATCH": "7"}
    train_svllreid.main(words(tmp_path, undisturbed / "data", **stages, **more))
    assert "SOLVER.STAGE1.MAX_EPOCHS: 2 before, 7 now" in log(tmp_path) and "resumed from" in log(tmp_path)


def test_nothing_is_left_of_a_run_whose_log_cannot_be_made(undisturbed, tmp_path, monkeypatch):
    def refuse(path):
        raise UserError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(run_module, "log_to_file", refuse)
    with pytest.raises(UserError, match="No space left"):
        train_svllreid.main(words(tmp_path, undisturbed / "data"))
    assert not (tmp_path / "run").exists()


def test_nothing_is_left_of_a_run_whose_first_files_cannot_be_written(tmp_path, monkeypatch):
    def half(path, text):
        if path.name == "versions.json":
            raise OSError(28, "No space left on device")
        path.write_text(text)

    monkeypatch.setattr(folder_module, "replace_text", half)
    with pytest.raises(UserError, match="No space left"):
        RunFolder(tmp_path / "run", config={}, fingerprint={})
    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_there_stays(undisturbed, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError):
        train_svllreid.main(words(tmp_path, tmp_path, DATASETS__NAMES="market1501"))
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(("name", "message"), [("~nobody_of_this_name/x", "no such user"), ("link", "a link to")])
def test_a_folder_that_cannot_be(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    os.symlink("nothing", "link")
    with pytest.raises(UserError, match=rf"OUTPUT_DIR {name}: .*{message}"):
        train_svllreid.main(["OUTPUT_DIR", name])


def test_a_signal_while_a_checkpoint_is_written_is_no_full_disk(tmp_path, monkeypatch):
    """It is raised within torch's writer, which says that something was wrong with the file."""
    real = torch.save

    class Signalled:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            if self.file.tell() > 1000:
                raise Interrupted(signal.SIGTERM)
            return self.file.write(data)

        def flush(self):
            self.file.flush()

    monkeypatch.setattr(torch, "save", lambda contents, file: real(contents, Signalled(file)))
    folder = RunFolder(tmp_path / "run", config={}, fingerprint={})
    with pytest.raises(Interrupted) as caught:
        folder.save("x.pth", {"model": {"a": torch.zeros(10000)}})
    assert caught.value.number == signal.SIGTERM
    assert not list((tmp_path / "run").glob("*.pth")) and not list((tmp_path / "run").glob(".*"))


def test_a_state_knows_its_pictures_though_the_folder_forgot_them(undisturbed, tmp_path, crash):
    shutil.copytree(undisturbed / "data", tmp_path / "data")
    command = broken_off(tmp_path, tmp_path / "data", crash)
    (tmp_path / "run" / "versions.json").unlink()
    picture = min((tmp_path / "data").glob("*/query/*.jpg"))
    picture.write_bytes(picture.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"the queries or gallery images are not those"):
        train_svllreid.main(command)


def test_a_signal_while_the_last_state_is_kept_is_not_swallowed(undisturbed, tmp_path, monkeypatch):
    real = RunFolder.save_state

    def save_state(self, name, *rest):
        real(self, name, *rest)
        if name == "image_epoch2_step5":
            monkeypatch.setattr(RunFolder, "save_state", real)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "save_state", save_state)
    command = words(tmp_path, undisturbed / "data")
    with pytest.raises(Interrupted):
        train_svllreid.main(command)
    assert [entry["when"] for entry in results(tmp_path / "run")] == ["start"]
    train_svllreid.main(command)
    assert_the_same(tmp_path, undisturbed)


def test_half_of_the_last_evaluations_are_made_anew(undisturbed, tmp_path, monkeypatch):
    """Of several data sets; they are no end of an earlier run."""
    names = {"DATASETS__NAMES": "('synthetic', 'synthetic_occluded')", "PROCESSOR__STAGES": "image"}
    command = words(tmp_path, undisturbed / "data", MODEL__I2T_LOSS_WEIGHT="0.0", **names)
    crash_at_an_end(monkeypatch, 2)
    with pytest.raises(Crash):
        train_svllreid.main(command)
    train_svllreid.main(command)
    assert [entry["when"] for entry in results(tmp_path / "run")] == ["start", "start", "end", "end"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_lock_does_not_live_on_in_a_process_that_reads_images(tmp_path):
    code = (
        "import os, sys, time, signal, pathlib\n"
        "from utils.run.lock import lock\n"
        "with lock(pathlib.Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if child: print(child, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "    time.sleep(60)"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    os.kill(int(killed.stdout), 0)  # the child is there
    try:
        with lock(tmp_path):
            pass
    finally:
        os.kill(int(killed.stdout), signal.SIGKILL)


def test_a_folder_with_something_else_is_no_run(undisturbed, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds a run already \(results\.json\)"):
        train_svllreid.main(words(tmp_path, undisturbed / "data"))
    (tmp_path / "run" / "results.json").unlink()
    (tmp_path / "run" / "config.yaml").write_text("- a list")
    with pytest.raises(UserError, match=r"is not a run's"):
        train_svllreid.main(words(tmp_path, undisturbed / "data"))


def test_the_best_evaluation_on_the_way_is_kept(undisturbed, tmp_path, crash, monkeypatch):
    """It was made before the break; the log names it at the end all the same."""
    changes = {"SOLVER__STAGE2__MAX_EPOCHS": "3", "SOLVER__STAGE2__EVAL_PERIOD": "1"}
    real = build.evaluate_model

    def worst(evaluation):
        return evaluation._replace(trials=tuple(trial._replace(mAP=0.0) for trial in evaluation.trials))

    command = words(tmp_path, undisturbed / "data", **changes)
    crash(17)  # in the second epoch
    with pytest.raises(Crash):
        train_svllreid.main(command)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (made,) = [line["mAP"] for line in lines if line["kind"] == "evaluation" and line["stage"] == "image"]
    assert read_tensors(states(tmp_path)[-1])["run"]["best"] == {"synthetic": {"epoch": 1, "mAP": made}}
    monkeypatch.setattr(build, "evaluate_model", lambda *rest: worst(real(*rest)))
    crash(None)
    train_svllreid.main(command)
    assert f"stage 2 (fine-tuning)  best before the end: synthetic mAP {100 * made:.1f} in epoch 1\n" in log(tmp_path)
