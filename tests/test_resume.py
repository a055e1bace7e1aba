"""A run that was interrupted anywhere and resumed ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from builders import GONE, STRANGE, places, with_strange
from test_end_to_end import ROOT, arguments, results
from torch import Tensor

import train_svllreid
from configs import ConfigError
from configs.stages import IMAGE, PROMPT
from processor import loop, stage_run
from processor import run as run_module
from processor.build import evaluation as build_evaluation
from processor.build import stage as build_stage
from utils import files as files_module
from utils.checkpoint import read_checkpoint, read_tensors, write_tensors
from utils.errors import DataError, UserError, WeightsError
from utils.report import table
from utils.run import folder as folder_module
from utils.run.folder import RunFolder
from utils.run.lock import lock
from utils.run.results import append_result, count_ends, read_results
from utils.run.state import newest_state
from utils.schema import ResumeState, check, fault
from utils.stopping import Interrupted, Stopping

pytestmark = pytest.mark.slow

EVERY_STEP, EVERY_EPOCH = "1e-9", "0"  # minutes between two states
STEPS = 5  # of an epoch, of which each of the two stages has two
TOTAL = 4 * STEPS
SHORT = {
    "SOLVER__STAGE1__IMS_PER_BATCH": "16",
    "SOLVER__STAGE1__LOG_PERIOD": "3",
    "SOLVER__STAGE2__IMS_PER_BATCH": "16",
    "SOLVER__STAGE2__LOG_PERIOD": "3",
    "DATALOADER__NUM_INSTANCE": "4",
    "SOLVER__CHECKPOINT_MINUTES": EVERY_STEP,
}
ONLY_IMAGE = {"PROCESSOR__STAGES": "image", "MODEL__I2T_LOSS_WEIGHT": "0.0"}
MORE = {"SOLVER__STAGE2__MAX_EPOCHS": "3"}
LAST = "ViT-Tiny-8_2.pth"
NESTED = "a: " + "[" * 5000


class Crash(BaseException):
    """Something that no program catches."""


def words(folder: Path, data: Path, **changes: str) -> list[str]:
    settings = {**SHORT, "DATASETS__ROOT_DIR": str(data), **changes}
    return arguments("configs/demo/vit_svllreid.yml", folder, **settings)


@contextlib.contextmanager
def updates(*, crash: int | None = None) -> Iterator[list[int]]:
    """One element for each update; before number `crash`, counted from 1, the program crashes."""
    real, made = loop._update, []

    def update(*rest):
        if len(made) + 1 == crash:
            raise Crash
        made.append(1)
        return real(*rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash) if crash else contextlib.nullcontext():
        patch.setattr(loop, "_update", update)
        yield made


def train(folder: Path, data: Path, *, crash: int | None = None, **changes: str) -> int:
    """Run the script in the folder -> how many updates it made."""
    with updates(crash=crash) as made:
        train_svllreid.main(words(folder, data, **changes))
    return len(made)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """data/ and run/, trained without a break."""
    folder = tmp_path_factory.mktemp("straight")
    assert train(folder, folder / "data") == TOTAL
    return folder


@pytest.fixture(scope="module")
def data(straight) -> Path:
    return straight / "data"


@pytest.fixture(scope="module")
def broken(straight, data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    train(folder, data, crash=17)
    return folder


@pytest.fixture
def interrupted(broken, tmp_path) -> Path:
    """run/ with states of steps 15 and 16 of 20: the last of an epoch, and the first of the image stage's second."""
    shutil.copytree(broken / "run", tmp_path / "run")
    return tmp_path


@pytest.fixture
def finished(straight, tmp_path) -> Path:
    """run/ that has ended."""
    shutil.copytree(straight / "run", tmp_path / "run")
    return tmp_path


def tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted((folder / "run").glob("*.pth"))
    assert files
    return {f"{file.name} {name}": value for file in files for name, value in read_checkpoint(file)["model"].items()}


def figures(folder: Path) -> list[dict]:
    return [{**entry, "checkpoint": None} for entry in results(folder / "run")]


def evaluated(folder: Path) -> list[str]:
    return [entry["when"] for entry in results(folder / "run")]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def assert_same_weights(folder: Path, straight: Path) -> None:
    ours, theirs = tensors(folder), tensors(straight)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def assert_same(folder: Path, straight: Path) -> None:
    assert_same_weights(folder, straight)
    assert figures(folder) == figures(straight)
    assert metrics(folder) == metrics(straight)
    assert cards(folder) == cards(straight)


def cards(folder: Path) -> dict[str, str]:
    """Model cards by their files' names."""
    return {path.name: path.read_text() for path in (folder / "run").glob("*.md")}


def everything(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """All files of the run."""
    files = (file for file in (folder / "run").rglob("*") if file.is_file())
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@contextlib.contextmanager
def refused(folder: Path, error: type[Exception], match: str) -> Iterator[None]:
    """Nothing is changed."""
    before = everything(folder)
    with pytest.raises(error, match=match):
        yield
    assert everything(folder) == before


def log(folder: Path) -> str:
    return (folder / "run" / "train_log.txt").read_text()


def states(folder: Path) -> list[Path]:
    return sorted((folder / "run" / "resume").glob("*.pth"))


def an_image(data: Path, split: str) -> Path:
    return min(data.glob(f"*/{split}/*.jpg"))


def append(path: Path, text: bytes = b"x") -> bytes:
    """Add to a file -> what was in it."""
    whole = path.read_bytes()
    path.write_bytes(whole + text)
    return whole


# ----------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    ("minutes", "saved", "crashes"),
    [
        # In the first, a middle, and the last step of an epoch, of both stages; the 11th is the image stage's first.
        (EVERY_STEP, range(TOTAL + 1), (1, 2, 5, 6, 10, 11, 12, 15, 16, 20)),
        (EVERY_EPOCH, (0, 10, 15, 20), (8, 9, 13, 18)),
    ],
)
def test_a_run_that_is_interrupted_again_and_again_ends_the_same(straight, data, tmp_path, minutes, saved, crashes):
    kept, expected = 0, []
    for step in (*crashes, None):
        made = train(tmp_path, data, crash=step and step - kept, SOLVER__CHECKPOINT_MINUTES=minutes)
        assert kept + made == (step - 1 if step else TOTAL)  # what is saved is not made again
        if kept:
            stage, before = (PROMPT, kept) if kept <= 2 * STEPS else (IMAGE, kept - 2 * STEPS)
            epoch, within = (before - 1) // STEPS + 1, (before - 1) % STEPS + 1
            expected.append(f"{stage.title}, epoch {epoch}, after step {within}")
        kept = max(number for number in saved if number <= kept + made)
    resumed = [line for line in log(tmp_path).splitlines() if "resumed from" in line]
    assert len(resumed) == len(expected) > 1
    assert all(line.endswith(message) for line, message in zip(resumed, expected, strict=True))
    assert_same(tmp_path, straight)


def test_a_run_that_stops_at_its_card_writes_it_when_it_is_resumed(straight, data, tmp_path, monkeypatch):
    card, real = LAST.replace(".pth", ".md"), files_module.replace_text

    def full(path, text):
        if path.name == card:
            raise OSError(28, "No space left on device")
        real(path, text)

    with monkeypatch.context() as patched:
        patched.setattr(files_module, "replace_text", full)
        with pytest.raises(UserError, match=rf"{card}: cannot be written \(No space"):
            train(tmp_path, data)
    assert not cards(tmp_path) and evaluated(tmp_path) == ["start"]
    assert train(tmp_path, data) == 0
    assert cards(tmp_path) == cards(straight) != {} and evaluated(tmp_path) == ["start", "end"]
    (tmp_path / "run" / card).unlink()  # as after earlier versions
    assert train(tmp_path, data) == 0 and not cards(tmp_path)


def test_a_stage_may_occur_twice(data, tmp_path):
    """Each has files of its own, and is resumed as itself."""
    stages = {"PROCESSOR__STAGES": "('prompt', 'image', 'prompt')", "SOLVER__STAGE2__MAX_EPOCHS": "1"}
    stages["SOLVER__STAGE1__MAX_EPOCHS"] = "1"
    train(tmp_path / "straight", data, **stages)
    train(tmp_path, data, crash=7, **stages)
    train(tmp_path, data, crash=7, **stages)  # in the second prompt stage
    assert train(tmp_path, data, **stages) == 3
    names = {"ViT-Tiny-8_stage1_1.pth", "ViT-Tiny-8_1.pth", "again1_ViT-Tiny-8_stage1_1.pth"}
    assert {file.name for file in (tmp_path / "run").glob("*.pth")} == names
    assert_same(tmp_path, tmp_path / "straight")


def test_prototypes_are_resumed(data, tmp_path):
    """In the first, a middle and the last step of an epoch, and in the first of the next."""
    both = {**ONLY_IMAGE, "MODEL__PROTOTYPE_LOSS_WEIGHT": "1.0", "MODEL__CAMERA_PROXY_LOSS_WEIGHT": "0.5"}
    train(tmp_path / "straight", data, **both)
    kept = 0
    for step in (2, 4, STEPS + 1, STEPS + 2, None):
        train(tmp_path, data, crash=step and step - kept, **both)
        kept = (step or 0) - 1
    assert_same(tmp_path, tmp_path / "straight")
    ours, theirs = (
        read_checkpoint(states(folder)[-1])["run"]["position"] for folder in (tmp_path, tmp_path / "straight")
    )
    assert ours["steps"] == theirs["steps"] == 2 * STEPS and len(ours["epoch_state"]) == 6
    assert all(torch.equal(value, theirs["epoch_state"][name]) for name, value in ours["epoch_state"].items())


def test_the_scaler_of_fp16_is_resumed(data, tmp_path):
    half = {"SOLVER__PRECISION": "fp16", "PROCESSOR__STAGES": "prompt"}
    train(tmp_path / "straight", data, **half)
    train(tmp_path, data, crash=7, **half)
    train(tmp_path, data, **half)
    ours, theirs = (read_tensors(states(each)[-1])["run"]["scaler"] for each in (tmp_path, tmp_path / "straight"))
    assert ours == theirs and ours["_growth_tracker"] > 0
    assert_same(tmp_path, tmp_path / "straight")


def test_compiled_towers_are_resumed(data, tmp_path, monkeypatch):
    """Every part compiles anew, as a new process does, for the shapes that it sees first."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # which needs no C++ compiler
    train(tmp_path / "straight", data, SOLVER__COMPILE="True")
    kept = 0
    for step in (3, 2 * STEPS + 3, None):  # within an epoch of either stage
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        train(tmp_path, data, crash=step and step - kept, SOLVER__COMPILE="True")
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
        kept = (step or 0) - 1
    assert_same(tmp_path, tmp_path / "straight")


# Keys of other recipes, all together.
RECIPE = {
    "MODEL__INIT_CLASSIFIER": "means",
    "MODEL__TRIPLET_FEATURES": "last",
    "INPUT__JPEG_PROB": "0.5",
    "SOLVER__STAGE2__SCHEDULE": "cosine",
    "SOLVER__STAGE2__LAYER_DECAY": "0.8",
    "SOLVER__STAGE2__MINI_BATCH": "6",
    "SOLVER__STAGE2__GRAD_CHECKPOINTING": "True",
    "SOLVER__STAGE2__EMA": "0.6",
}


def test_the_average_of_the_weights_is_resumed_saved_and_evaluated(data, tmp_path, monkeypatch):
    changes = {**ONLY_IMAGE, **RECIPE, "SOLVER__STAGE2__EVAL_PERIOD": "1", "SOLVER__STAGE2__CHECKPOINT_PERIOD": "1"}
    train(tmp_path, data, crash=7, **changes)
    train(tmp_path, data, **changes)

    real, evaluated = build_evaluation.evaluate_model, []

    def evaluate_model(cfg, model, *rest):
        evaluated.append({name: value.clone() for name, value in model.state_dict().items()})
        return real(cfg, model, *rest)

    monkeypatch.setattr(build_evaluation, "evaluate_model", evaluate_model)
    straight = tmp_path / "straight"
    train(straight, data, **changes)
    assert_same(tmp_path, straight)
    saved = [read_checkpoint(straight / "run" / f"ViT-Tiny-8_{epoch}.pth")["model"] for epoch in (1, 2)]
    for seen, expected in zip(evaluated[1:], saved, strict=True):
        assert all(torch.equal(seen[name], value) for name, value in expected.items())
    last = read_tensors(states(straight)[-1])
    averages = {name.removeprefix("model."): value for name, value in last["run"]["average"].items()}
    assert averages and all(torch.equal(saved[1][name], value) for name, value in averages.items())
    assert not any(torch.equal(last["model"][name], value) for name, value in averages.items())
    assert "moving average of the weights" in log(straight)


def test_the_evaluations_of_several_data_sets_are_there_once(data, tmp_path, monkeypatch):
    """Those that were made and not written are made anew; the run has ended with the last of them."""
    changes = {**ONLY_IMAGE, "DATASETS__NAMES": "('synthetic', 'synthetic_occluded')"}
    real, calls = run_module.append_result, []

    def crashing(folder, entry):
        calls.append(entry["when"])
        if entry["when"] == "end" and calls.count("end") in (1, 3):  # the first; the second one of the next start
            raise Crash
        return real(folder, entry)

    monkeypatch.setattr(run_module, "append_result", crashing)
    for _ in range(2):
        with pytest.raises(Crash):
            train(tmp_path, data, **changes)
    assert train(tmp_path, data, **changes) == 0
    assert calls == ["start", "start", *["end"] * 5] and evaluated(tmp_path) == ["start", "start", "end", "end"]
    lines = [(line["stage"], line["step"], line["data_set"]) for line in metrics(tmp_path) if "data_set" in line]
    assert len(set(lines)) == len(lines)

    for file in states(tmp_path):
        file.write_bytes(b"")
    train(tmp_path, data, **changes)  # it is finished
    with refused(tmp_path, ConfigError, r"DATASETS\.NAMES"):
        train(tmp_path, data, **{**changes, "DATASETS__NAMES": "synthetic"})
    path = tmp_path / "run" / "results.json"
    path.write_text(json.dumps({"evaluations": results(tmp_path / "run")[:-1]}))
    with refused(tmp_path, UserError, str(tmp_path / "run")):
        train(tmp_path, data, **changes)


def test_the_best_evaluation_on_the_way_is_kept(data, tmp_path, monkeypatch):
    """It was made before the break; the log names it at the end all the same."""
    changes, real = {**ONLY_IMAGE, **MORE}, build_evaluation.evaluate_model

    def worst(*rest):
        evaluation = real(*rest)
        return evaluation._replace(trials=tuple(trial._replace(mAP=0.0) for trial in evaluation.trials))

    train(tmp_path, data, crash=STEPS * 2, **changes)  # in the second epoch
    (made,) = [line["mAP"] for line in metrics(tmp_path) if line["kind"] == "evaluation" and line["stage"] == "image"]
    assert read_tensors(states(tmp_path)[-1])["run"]["best"] == {"synthetic": {"epoch": 1, "mAP": made}}
    monkeypatch.setattr(build_evaluation, "evaluate_model", worst)
    train(tmp_path, data, **changes)
    assert f"stage 2 (fine-tuning)  best before the end: synthetic mAP {100 * made:.1f} in epoch 1\n" in log(tmp_path)


def test_running_statistics_are_averaged_before_anything_is_saved(data, tmp_path, monkeypatch):
    """Those of a ResNet in several processes."""
    done = []
    for name in ("save", "save_state"):
        real = getattr(RunFolder, name)

        def saved(*rest, name=name, real=real):
            done.append(name)
            return real(*rest)

        monkeypatch.setattr(RunFolder, name, saved)
    monkeypatch.setattr(stage_run, "average_statistics", lambda model: done.append("average"))
    train(tmp_path, data, SOLVER__CHECKPOINT_MINUTES=EVERY_EPOCH, **ONLY_IMAGE)
    assert done == ["average", "save_state", "average", "average", "save_state", "average", "save"]


def test_tensorboard_shows_every_step_once(straight, data, interrupted, monkeypatch):
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

    def events():
        files = (interrupted / "run" / "tensorboard").iterdir()
        return sorted(tuple(json.loads(line)) for file in files for line in file.read_text().splitlines())

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    train(interrupted, data, crash=4)
    states(interrupted)[1].write_bytes(b"")  # so that a step that was logged is made once more
    train(interrupted, data)
    expected = sorted(
        (f"{line.get('stage', line['kind'])}/{name}", value, line["step"])
        for line in metrics(straight)
        for name, value in line.items()
        if isinstance(value, float)
    )
    assert events() == expected
    assert {name for name, _, _ in expected} >= {"prompt/language_ssl", "image/vision_ssl", "end/mAP"}
    (interrupted / "run" / "metrics.jsonl").unlink()  # what it would be shown again from
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # not installed any more
    train(interrupted, data, **MORE)
    assert set(expected) <= set(events())


# ------------------------------------------------------------------------------------------------------------- signals


def test_a_signal_ends_the_step_and_saves(straight, data, interrupted, monkeypatch):
    """The step that is being made is made, and its state saved, whatever the clock says."""
    real = loop._update

    def update(*rest):
        monkeypatch.setattr(loop, "_update", real)
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*rest)

    monkeypatch.setattr(loop, "_update", update)
    with pytest.raises(Interrupted) as caught:
        train_svllreid.main(words(interrupted, data, SOLVER__CHECKPOINT_MINUTES=EVERY_EPOCH))
    newest, said = states(interrupted)[-1], str(caught.value)
    assert newest.name.endswith("_image_epoch2_step2.pth")
    assert caught.value.number == signal.SIGTERM and str(newest) in said and IMAGE.title in said
    assert train(interrupted, data) == 3
    assert_same(interrupted, straight)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_elsewhere_act_at_once_and_earlier_handlers_come_back(monkeypatch, number):
    before = signal.getsignal(number)
    with Stopping() as stopping:
        with stopping.waiting():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGINT)  # at the same time: an echo of the first
            assert stopping.requested == number
            monkeypatch.setattr("utils.stopping._ECHO", -1.0)
            with pytest.raises(Interrupted) as caught:  # the second time
                os.kill(os.getpid(), signal.SIGINT)
            assert caught.value.number == signal.SIGINT
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_a_signal_at_the_very_end_of_an_epoch_is_not_forgotten(data, tmp_path, monkeypatch):
    """After the last step has looked for one, in an epoch that is not saved by itself."""
    real, asked = stage_run.any_rank, []
    with updates() as made:

        def any_rank(flag):
            answer = real(flag)
            if len(made) == STEPS:
                asked.append(answer)
                if len(asked) == 2:  # whether to stop, whether to save; next: whether somebody asked since
                    os.kill(os.getpid(), signal.SIGTERM)
            return answer

        monkeypatch.setattr(stage_run, "any_rank", any_rank)
        with pytest.raises(Interrupted):
            train_svllreid.main(words(tmp_path, data, SOLVER__CHECKPOINT_MINUTES=EVERY_EPOCH))
    assert asked == [False, False, True]
    assert [file.name for file in states(tmp_path)] == ["00001_prompt_epoch1_step5.pth"]


def test_a_signal_while_the_last_state_is_saved_is_not_swallowed(straight, data, interrupted, monkeypatch):
    real = RunFolder.save_state

    def save_state(self, name, *rest):
        real(self, name, *rest)
        if name == "image_epoch2_step5":
            monkeypatch.setattr(RunFolder, "save_state", real)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "save_state", save_state)
    with pytest.raises(Interrupted):
        train(interrupted, data)
    assert evaluated(interrupted) == ["start"]
    assert train(interrupted, data) == 0
    assert_same(interrupted, straight)


def test_a_signal_while_a_checkpoint_is_written_is_no_full_disk(tmp_path, monkeypatch):
    """It is raised within torch's writer, which says that something was wrong with the file."""
    real = torch.save

    class Signalled(io.BytesIO):
        def write(self, data):
            if self.tell() > 1000:
                raise Interrupted(signal.SIGTERM)
            return super().write(data)

    monkeypatch.setattr(torch, "save", lambda contents, file: real(contents, Signalled()))
    folder = RunFolder(tmp_path / "run", config={}, fingerprint={})
    with pytest.raises(Interrupted) as caught:
        folder.save("x.pth", {"model": {"a": torch.zeros(10000)}})
    assert caught.value.number == signal.SIGTERM
    assert not list((tmp_path / "run").glob("*.pth")) and not list((tmp_path / "run").glob(".*"))


# ------------------------------------------------------------------------------------------------------ damaged files


def test_what_a_state_holds(straight):
    assert [file.name.partition("_")[2] for file in states(straight)] == [
        f"image_epoch2_step{step}.pth" for step in (4, 5)
    ]
    assert newest_state(straight / "run").path == states(straight)[1]
    needed = {"optimizer", "scaler", "random", "position", "best", "metrics_bytes", "device", "precision"}
    assert read_tensors(states(straight)[1])["run"].keys() == {*needed, "stage_number"}
    assert "run" not in read_tensors(straight / "run" / LAST)  # what is passed on is small


def test_a_damaged_state_is_named_and_the_one_before_it_taken(straight, data, interrupted):
    """And it is not one of the two that are kept."""
    before, newest = states(interrupted)
    whole = bytearray(newest.read_bytes())
    whole[len(whole) // 2] ^= 1
    newest.write_bytes(whole)
    (newest.parent / f".{newest.name}.7.tmp").write_bytes(b"of a process that was killed")
    train(interrupted, data, crash=2)
    first, second = states(interrupted)
    assert first == before and second != newest and not list(newest.parent.glob(".*.tmp"))
    write_tensors(second, {"a": torch.zeros(2)})
    assert train(interrupted, data) == STEPS
    reported = [line for line in log(interrupted).splitlines() if "resuming from the state before it" in line]
    assert [str(newest) in reported[0], str(second) in reported[1]] == [True, True]
    assert_same(interrupted, straight)


def test_without_any_whole_state_nothing_is_begun_anew_in_silence(data, interrupted):
    for file in states(interrupted):
        file.write_bytes(b"")
    with refused(interrupted, UserError, str(interrupted)):
        train(interrupted, data)


@pytest.mark.parametrize("damage", ["gone", "cut off", "nested"])
def test_a_state_needs_no_other_file(straight, data, interrupted, damage):
    """Of the records, what is gone is gone, and reported."""
    for name in ("config.yaml", "versions.json", "metrics.jsonl"):
        file = interrupted / "run" / name
        if damage == "gone":
            file.unlink()
        else:
            file.write_text(file.read_text()[:400] if damage == "cut off" else NESTED)
    assert train(interrupted, data) == TOTAL - 16
    assert_same_weights(interrupted, straight)
    assert figures(interrupted) == figures(straight)
    assert ("bytes are gone since the state was saved" in log(interrupted)) == (damage != "nested")
    if damage != "nested":
        assert metrics(interrupted)[-1] == metrics(straight)[-1]


def test_results_that_cannot_be_read_are_not_written_over(data, interrupted):
    file = interrupted / "run" / "results.json"
    (start,) = json.loads(file.read_text())["evaluations"]
    missing = {"evaluations": [{name: start[name] for name in start if name != "mAP"}]}
    for text in ("", "[]", "[" * 5000, json.dumps(missing)):
        file.write_text(text)
        with refused(interrupted, UserError, rf"{file}: .*" + (r"evaluations\[0\]\.mAP" if "mINP" in text else "")):
            train(interrupted, data)
    # Earlier versions wrote neither protocol nor settings of re-ranking.
    older = {name: start[name] for name in start if name not in ("protocol", "re_ranking", "std", "network")}
    file.write_text(json.dumps({"evaluations": [older]}))
    train(interrupted, data)
    assert evaluated(interrupted) == ["start", "end"] and "rank-1" in log(interrupted)


def test_without_results_the_start_is_gone(data, interrupted):
    (interrupted / "run" / "results.json").unlink()
    train(interrupted, data)
    assert "the evaluation of the start is gone" in log(interrupted) and evaluated(interrupted) == ["end"]


def test_whatever_is_done_to_results_they_are_shown_or_refused(straight, tmp_path):
    whole, rng = json.loads((straight / "run" / "results.json").read_text()), random.Random(0)
    path, entry = tmp_path / "results.json", whole["evaluations"][1]
    cases = [(place, value) for place in places(whole) for value in STRANGE]
    refusals = 0
    for case in rng.sample(cases, 400):
        path.write_text(json.dumps(with_strange(whole, *case)))
        try:
            entries = read_results(path)["evaluations"]
        except UserError as error:
            refusals += 1
            assert str(error).startswith(f"{path}: ") and "(evaluations" in str(error)
            continue
        append_result(tmp_path, entry)
        count_ends(entries)
        assert len(table([*entries, entry]).splitlines()) == 3 + len(entries)
    assert refusals > 40


def unfinished(folder: Path, straight: Path, contents: dict) -> Path:
    """A run that resumes from a state with these contents, a step before its end -> the state."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    (run / "resume").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "versions.json"):
        shutil.copy(straight / "run" / name, run)
    (run / "results.json").write_text(json.dumps({"evaluations": results(straight / "run")[:1]}))
    write_tensors(run / "resume" / states(straight)[0].name, contents)
    return run / "resume" / states(straight)[0].name


def test_whatever_is_done_to_a_state_it_is_resumed_from_or_refused(straight, data, tmp_path):
    whole, rng = read_tensors(states(straight)[0]), random.Random(0)
    parts = {"run": whole["run"], **{name: whole[name] for name in ("stage", "epoch", "fingerprint")}}
    cases = [(place, value) for place in places(parts) for value in STRANGE]
    left = [case for case in cases if fault(with_strange(whole, *case), ResumeState) is None]
    assert len(left) < len(cases) / 2
    passed = [case for case in left if case[0][:2] != ("run", "optimizer")]
    for case in (*rng.sample(passed, 1), *rng.sample(left, 1)):  # the door lets them pass
        unfinished(tmp_path, straight, with_strange(whole, *case))
        with contextlib.suppress(UserError, ConfigError):
            train(tmp_path, data)


@pytest.mark.parametrize(
    ("place", "value", "field"),
    [
        ("run.position.sums", {"loss": [1.0, 0]}, r"sums\['loss'\]\[1\]"),
        ("run.best", {"synthetic": {"epoch": 1}}, r"run\.best\['synthetic'\]\.mAP"),
        ("run.metrics_bytes", None, r"run\.metrics_bytes"),
        ("run", GONE, "run"),
    ],
)
def test_the_field_of_a_state_is_named(straight, place, value, field):
    whole = read_tensors(states(straight)[0])
    check(whole, ResumeState, Path("x.pth"))
    with pytest.raises(WeightsError, match=rf"x\.pth: .*{field}"):
        check(with_strange(whole, tuple(place.split(".")), value), ResumeState, Path("x.pth"))


@pytest.mark.parametrize(
    ("place", "value", "field"),
    [
        ("run.position.epoch", 3, "epoch 3"),
        ("run.random.torch", torch.zeros(9), "random"),
        ("run.optimizer.state", {0: {"exp_avg": torch.zeros(9)}}, r"state\[0\]"),
        ("stage", "prompt", "stage 1"),
        ("run.stage_number", 0, "stage 2"),
    ],
)
def test_a_state_that_does_not_fit_the_run_is_refused(straight, data, tmp_path, place, value, field):
    whole = read_tensors(states(straight)[0])
    path = unfinished(tmp_path, straight, with_strange(whole, tuple(place.split(".")), value))
    with pytest.raises((UserError, ConfigError), match=field) as caught:
        train(tmp_path, data)
    assert str(path) in str(caught.value)


def test_what_earlier_versions_did_not_write_into_a_state_may_be_missing(straight, data, tmp_path):
    contents = read_tensors(states(straight)[0])
    for name in ("precision", "stage_number"):
        del contents["run"][name]
    contents["run"]["random"]["own"] = {}  # the image stage has no generators of its own
    unfinished(tmp_path, straight, contents)
    assert train(tmp_path, data) == 1


# ------------------------------------------------------------------------------------------------- what is the same run


def test_a_finished_run_is_left_alone(straight, data, finished):
    """Also where its states are damaged or gone: only more epochs need them."""
    before = everything(straight)
    assert train(straight, data, DATALOADER__NUM_WORKERS="1") == 0
    assert everything(straight) == before
    with refused(straight, UserError, r"OUTPUT_DIR .*config\.yaml"):
        train(straight, data, RESUME="False")
    for file in states(finished):
        file.write_bytes(b"")
    for _ in ("damaged", "gone"):
        before = everything(finished)
        assert train(finished, data) == 0
        assert everything(finished) == before
        with refused(finished, UserError, str(finished)):
            train(finished, data, **MORE)
        for key, epochs in (("STAGE1", "5"), ("STAGE2", "1")):  # what is over is over all the same
            with refused(finished, ConfigError, rf"SOLVER\.{key}\.MAX_EPOCHS"):
                train(finished, data, **{f"SOLVER__{key}__MAX_EPOCHS": epochs})
        shutil.rmtree(finished / "run" / "resume", ignore_errors=True)


def test_a_finished_run_may_be_given_more_epochs(straight, data, finished):
    file = finished / "run" / "results.json"
    file.write_text(file.read_text().replace(str(straight), str(finished)))  # where the checkpoint is
    more = {**MORE, "SOLVER__CHECKPOINT_MINUTES": EVERY_EPOCH}
    train(finished, data, crash=1, **more)
    assert train(finished, data) == 0  # those that were not begun leave nothing
    assert evaluated(finished) == ["start", "end"]
    assert train(finished, data, **more) == STEPS
    train(finished / "straight", data, **MORE)
    ours, theirs = (
        read_checkpoint(each / "run" / "ViT-Tiny-8_3.pth")["model"] for each in (finished, finished / "straight")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert evaluated(finished) == ["start", "earlier end", "end"]
    assert figures(finished)[-1]["mAP"] == figures(finished / "straight")[-1]["mAP"]

    assert [file.name[6:18] for file in states(finished)] == ["image_epoch2", "image_epoch3"]
    for file in reversed(states(finished)):  # it has ended with them also where only a state from before is whole
        file.write_bytes(b"")
        before = everything(finished)
        assert train(finished, data, **more) == 0
        assert everything(finished) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("SOLVER.STAGE2.BASE_LR", "0.01"), ("SOLVER.SEED", "5"), ("TEST.NECK_FEAT", "after")),
        ("SOLVER.STAGE1.MAX_EPOCHS", "3"),  # that stage is over
        ("SOLVER.STAGE2.MAX_EPOCHS", "1"),  # the second is begun
    ],
)
def test_other_settings_are_refused(data, interrupted, key, value):
    with refused(interrupted, ConfigError, re.escape(key)):
        train(interrupted, data, **{key.replace(".", "__"): value})


def test_settings_of_places_and_of_the_log_may_change(straight, data, interrupted):
    shutil.copytree(data, interrupted / "elsewhere")
    changes = {"SOLVER__STAGE2__LOG_PERIOD": "1", "DATALOADER__NUM_WORKERS": "1", "SOLVER__CHECKPOINT_MINUTES": "0"}
    train(interrupted, interrupted / "elsewhere", **changes)
    assert "SOLVER.STAGE2.LOG_PERIOD: 3 before, 1 now" in log(interrupted)
    assert_same_weights(interrupted, straight)


def test_another_precision_of_another_device_is_reported(data, interrupted, monkeypatch):
    monkeypatch.setattr(build_stage, "pick_precision", lambda name, device: torch.bfloat16)
    train(interrupted, data, crash=1)
    (line,) = [line for line in log(interrupted).splitlines() if "SOLVER.PRECISION" in line]
    assert "bfloat16" in line and "float32" in line


def test_other_images_are_refused(data, interrupted):
    """A state knows them, though the folder forgot them."""
    copy = shutil.copytree(data, interrupted / "data")
    for split, word in (("bounding_box_train", "training"), ("query", "queries")):
        whole = append(an_image(copy, split))
        with refused(interrupted, DataError, word):
            train(interrupted, copy)
        an_image(copy, split).write_bytes(whole)
        (interrupted / "run" / "versions.json").unlink(missing_ok=True)


def test_without_a_state_images_may_be_mended_and_the_configuration_is_needed(straight, data, tmp_path):
    """All begins anew; an image that could not be read is a common reason to stop."""
    copy = shutil.copytree(data, tmp_path / "data")
    whole = append(an_image(copy, "bounding_box_train"))
    train(tmp_path, copy, crash=5, SOLVER__CHECKPOINT_MINUTES=EVERY_EPOCH)
    assert not states(tmp_path) and (tmp_path / "run" / "versions.json").exists()
    with refused(tmp_path, ConfigError, r"SOLVER\.SEED: 1234 before, 5 now.*or delete this one"):
        train(tmp_path, copy, SOLVER__SEED="5")
    config = tmp_path / "run" / "config.yaml"
    settings = config.read_text()
    config.write_text(NESTED)
    with refused(tmp_path, UserError, rf"{config}: "):
        train(tmp_path, copy)
    config.write_text(settings)
    an_image(copy, "bounding_box_train").write_bytes(whole)
    assert train(tmp_path, copy) == TOTAL
    assert "an earlier run in" in log(tmp_path)
    assert_same(tmp_path, straight)


# -------------------------------------------------------------------------------------------------------- the folder


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((LAST, "precious"), ("results.json", "{}"), ("config.yaml", "- a list")),
        *((name, "old") for name in ("metrics.jsonl", "train_log.txt", "versions.json")),
    ],
)
def test_a_folder_with_something_else_is_refused(data, tmp_path, name, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text(text)
    with refused(tmp_path, UserError, rf"{tmp_path}/run.*{name}"):
        train(tmp_path, data)


@pytest.mark.parametrize("path", ["~nobody_of_this_name/x", "link", "file/run"])
def test_a_folder_that_cannot_be(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    os.symlink("nothing", "link")
    Path("file").write_text("in the way")
    with pytest.raises(UserError, match=rf"OUTPUT_DIR {path}: "):
        train_svllreid.main(["OUTPUT_DIR", path, "DATASETS.ROOT_DIR", "."])


@pytest.mark.parametrize(
    ("owner", "name", "file"),
    [(run_module, "log_to_file", "train_log.txt"), (folder_module, "replace_text", "versions.json")],
)
def test_a_run_that_cannot_write_its_first_files_leaves_nothing(data, tmp_path, monkeypatch, owner, name, file):
    def full(path, *rest):
        if path.name == file:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, name, full)
    with pytest.raises((UserError, OSError), match="No space left"):
        train(tmp_path, data)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_stay_and_others_are_not_left(tmp_path):
    (tmp_path / "run").mkdir()
    for path in ("run", "a/b/run"):
        with pytest.raises(DataError):
            train(tmp_path, tmp_path, DATASETS__NAMES="market1501", OUTPUT_DIR=str(tmp_path / path))
    assert list(tmp_path.rglob("*")) == [tmp_path / "run"]


def test_of_two_runs_in_one_folder_the_second_is_refused(data, tmp_path):
    with lock(tmp_path / "run"):
        with pytest.raises(UserError, match=rf"{tmp_path}/run.*another run"):
            train(tmp_path, data)
        assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_lock_does_not_live_on_in_a_process_that_reads_images(tmp_path):
    code = (
        "import os, sys, time, signal, pathlib\n"
        "from utils.run.lock import lock\n"
        "with lock(pathlib.Path(sys.argv[1])):\n"
        "    parent = os.getpid()\n"
        "    if os.fork(): time.sleep(60)\n"
        "    print(os.getpid(), flush=True)\n"  # of the child, once it runs
        "    os.kill(parent, signal.SIGKILL)\n"
        "    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        assert process.wait() == -signal.SIGKILL
        with lock(tmp_path):
            os.kill(child, 0)  # it is there
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()
