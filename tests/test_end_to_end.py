"""The whole way as a user goes it: train, test the checkpoint in a new process, and everything that can go wrong."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import yaml
from builders import write_synthetic

import test_svllreid
import train_svllreid
from configs import ConfigError
from configs.stages import IMAGE, PROMPT
from datasets.market1501 import FOLDERS
from model import tiny_clip
from processor.build import evaluation as build_evaluation
from tools.demo import __main__ as demo
from utils.checkpoint import read_checkpoint, read_tensors
from utils.command import run_script
from utils.errors import DataError, UserError
from utils.logs import log_to_file

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
SMALL = {
    "DATASETS.SYNTHETIC.TRAIN_IDENTITIES": "20",
    "DATASETS.SYNTHETIC.TRAIN_IMAGES": "4",
    "DATASETS.SYNTHETIC.TEST_IDENTITIES": "6",
    "DATASETS.SYNTHETIC.TEST_IMAGES": "6",
    "SOLVER.STAGE1.MAX_EPOCHS": "2",
    "SOLVER.STAGE1.IMS_PER_BATCH": "32",
    "SOLVER.STAGE2.MAX_EPOCHS": "2",
    "SOLVER.STAGE2.IMS_PER_BATCH": "32",
    "SOLVER.STAGE2.EVAL_PERIOD": "1",
    "DATALOADER.NUM_WORKERS": "0",
}


def arguments(config: str, folder: Path, **changes: str) -> list[str]:
    """A training's command line; `changes` have __ for the dots of a key."""
    settings = {**SMALL, "DATASETS.ROOT_DIR": str(folder / "data"), "OUTPUT_DIR": str(folder / "run")}
    settings.update({key.replace("__", "."): value for key, value in changes.items()})
    return ["--config_file", str(ROOT / config), *(word for pair in settings.items() for word in pair)]


def script(name: str, *words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / name), *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=300)


def results(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["evaluations"]


def end_of(trained: Path) -> dict:
    return next(entry for entry in results(trained / "run") if entry["when"] == "end")


def new_entry(trained: Path, folder: Path, *words: str) -> dict:
    """What a test of the trained network adds to results.json."""
    weight = ["TEST.WEIGHT", str(trained / "run" / "ViT-Tiny-8_2.pth")]
    options, pairs = (words[:2], words[2:]) if "--config_file" in words else ((), words)
    test_svllreid.main([*options, *weight, *pairs, "OUTPUT_DIR", str(folder)])
    return results(folder)[-1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with data/ and run/, trained by the script in its own process, with a worker, from another folder."""
    folder = tmp_path_factory.mktemp("trained")
    words = arguments("configs/demo/vit_svllreid.yml", folder, DATALOADER__NUM_WORKERS="1")
    done = script("train_svllreid.py", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "rank-1" in done.stdout
    return folder


def test_training_writes_a_whole_run(trained):
    run_folder = trained / "run"
    names = {path.name for path in run_folder.iterdir()} - {"tensorboard", "resume"}
    assert names == {
        *("config.yaml", "metrics.jsonl", "results.json", "train_log.txt", "versions.json"),
        *("ViT-Tiny-8_stage1_2.pth", "ViT-Tiny-8_2.pth", "ViT-Tiny-8_2.md"),
    }
    card, end = (run_folder / "ViT-Tiny-8_2.md").read_text(), end_of(trained)
    figures = " | ".join(f"{100 * end[name]:.1f}" for name in ("mAP", "mINP", "rank1", "rank5", "rank10"))
    assert figures in card and "after epoch 2 of stage 2" in card
    assert str(trained) not in card
    assert yaml.safe_load((run_folder / "config.yaml").read_text())["SOLVER"]["STAGE2"]["MAX_EPOCHS"] == 2
    versions = json.loads((run_folder / "versions.json").read_text())
    assert {split: len(digits) for split, digits in versions["data_fingerprint"].items()} == {"train": 16, "test": 16}
    assert {"torch", "torchvision", "revision", "python"} <= versions["versions"].keys()
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    by_stage = {line["stage"]: line for line in lines if line["kind"] == "train"}
    assert {"image_text", "language_ssl", "loss", "lr"} <= by_stage["prompt"].keys()
    assert {"identity", "triplet", "image_text", "vision_ssl"} <= by_stage["image"].keys()
    assert [line["stage"] for line in lines if line["kind"] == "evaluation"] == ["start", "image", "end"]
    log = (run_folder / "train_log.txt").read_text()
    assert f"{IMAGE.title}  best before the end: synthetic mAP" in log


def test_the_log_adds_up(trained):
    """Terms as shown, times the weights that are said once, are the loss; lines fit into a hundred columns."""
    log = (trained / "run" / "train_log.txt").read_text()
    assert [line for line in log.splitlines() if len(line) > 100 and str(trained) not in line] == []
    for stage, steps in ((PROMPT, 3), (IMAGE, 2)):
        of_stage = log[log.index(f"{stage.title}: ") :]
        formula = re.search(r"loss = (.*)", of_stage)[1].split(" + ")
        weights = [re.fullmatch(r"([\d.]*) ?(\w+)(?: \(\d \w+\))?", part).groups() for part in formula]
        shown = re.findall(
            rf"{re.escape(stage.title)}  epoch \d/2  step {steps}/{steps} in .* s  loss ([\d.]+) .*\n(.*)", of_stage
        )
        assert len(shown) == 2 and {term for _, term in weights} >= {"image_text"}
        for loss, terms in shown:
            values = [float(weight or 1) * float(re.search(rf"{term} ([\d.]+)", terms)[1]) for weight, term in weights]
            assert sum(values) == pytest.approx(float(loss), abs=0.005)
    assert re.search(r" s left\n", log) and re.search(r"image_text [\d.]+ \(\d+ %\)", log)


def test_a_new_process_gets_the_same_numbers_from_the_checkpoint(trained):
    end = end_of(trained)
    done = script(
        "test_svllreid.py",
        "TEST.WEIGHT",
        trained / "run" / "ViT-Tiny-8_2.pth",
        cwd=trained,
        PYTHONPROFILEIMPORTTIME="1",
    )
    assert done.returncode == 0, done.stderr
    imported = done.stderr.split()
    assert "open_clip" in imported and "torch._dynamo" not in imported  # the compiler
    test = results(trained / "run")[-1]
    assert test["when"] == "test"
    for name in ("mAP", "mINP", "rank1", "rank5", "rank10"):
        assert test[name] == pytest.approx(end[name], abs=1e-9)
    assert test["data_fingerprint"] == {"train": None, "test": end["data_fingerprint"]["test"]}


def test_a_yaml_that_contradicts_the_checkpoint_is_reported_and_not_used(trained, tmp_path, capsys):
    other = tmp_path / "other.yml"
    other.write_text(
        f"BASE: {ROOT / 'configs/demo/vit_svllreid.yml'}\n"
        "MODEL: {STRIDE_SIZE: [8, 8]}\nINPUT: {SIZE_TEST: [32, 32]}\n"
    )
    entry = new_entry(trained, tmp_path, *arguments(str(other), trained))
    out = capsys.readouterr().out
    assert "MODEL.STRIDE_SIZE" in out and "INPUT.SIZE_TEST" in out
    assert entry["mAP"] == pytest.approx(end_of(trained)["mAP"], abs=1e-9)


def test_what_the_command_line_asks_for_is_resized(trained, tmp_path, capsys):
    entry = new_entry(trained, tmp_path, "MODEL.STRIDE_SIZE", "[8, 8]", "INPUT.SIZE_TEST", "[80, 32]")
    out, note = capsys.readouterr().out, "MODEL.STRIDE_SIZE: [8, 8] as asked for, trained with [6, 6]"
    assert note in out and "resized from 10 x 5 to 8 x 4: position table" in out
    assert (entry["network"]["stride"], entry["network"]["test_size"]) == ([8, 8], [80, 32])
    assert entry["notes"][0] == note
    assert entry["mAP"] > 0.2 and entry["mAP"] != end_of(trained)["mAP"]


def test_checkpoints_hold_plain_things_only(trained):
    checkpoint = read_checkpoint(trained / "run" / "ViT-Tiny-8_2.pth")
    assert (checkpoint["stage"], checkpoint["epoch"]) == ("image", 2)
    assert checkpoint["architecture"]["num_pids"] == 20
    assert checkpoint["config"]["MODEL"]["NAME"] == tiny_clip.NAME
    assert not any("token_embedding" in name for name in checkpoint["model"])


@pytest.mark.parametrize(
    ("config", "stages", "terms"),
    [
        ("configs/demo/vit_base.yml", {"image"}, {"identity", "triplet"}),
        ("configs/demo/vit_clipreid.yml", {"prompt", "image"}, {"identity", "triplet", "image_text"}),
    ],
)
def test_other_methods_are_the_same_code_with_terms_off(trained, tmp_path, config, stages, terms):
    words = arguments(config, tmp_path, DATASETS__ROOT_DIR=str(trained / "data"), SOLVER__STAGE1__MAX_EPOCHS="1")
    train_svllreid.main([*words, "SOLVER.STAGE2.MAX_EPOCHS", "1"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert {line["stage"] for line in train} == stages
    last = train[-1].keys() - {"kind", "step", "stage", "epoch", "lr", "loss"}
    assert last == terms | {f"{term}_accuracy" for term in terms - {"triplet"}}
    model = read_checkpoint(tmp_path / "run" / "ViT-Tiny-8_1.pth")["model"]
    assert not any("projector" in name for name in model)
    assert any(name.startswith("prompts") for name in model) == ("prompt" in stages)


# ------------------------------------------------------------------------------------------------------ what goes wrong


def test_images_that_are_replaced_during_a_run_are_reported(trained, tmp_path, monkeypatch, capsys):
    """By other valid ones, after the first epoch: with a warning, once, and with the figures of the end."""
    shutil.copytree(trained / "data", tmp_path / "data")
    evaluated, replaced = build_evaluation.evaluate_model, {}

    def evaluate(*all):
        if (tmp_path / "run" / "results.json").exists():  # after the start; the first of two epochs has one
            for what, split in (("training images", "bounding_box_train"), ("test images", "query")):
                files = sorted(path for path in (tmp_path / "data").rglob("*.jpg") if path.parent.name == split)
                files[0].write_bytes(files[-1].read_bytes())
                replaced[what] = str(files[0])
        return evaluated(*all)

    monkeypatch.setattr(build_evaluation, "evaluate_model", evaluate)
    train_svllreid.main(arguments("configs/demo/vit_svllreid.yml", tmp_path))
    start, end = results(tmp_path / "run")
    out = capsys.readouterr().out
    assert start["notes"] == [] and len(end["notes"]) == 2
    for what, file in replaced.items():
        (note,) = [note for note in end["notes"] if f"{what} were replaced since the start" in note]
        assert file in note and out.count(note) == 1
        assert (out.index(note) < out.index("stage 2 (fine-tuning)  epoch 2/2")) == (what == "training images")


def market(folder: Path) -> Path:
    """A small data set in Market-1501's own place below `folder`."""
    written = write_synthetic(
        folder / "made", train_identities=8, train_images=4, test_identities=2, test_images=6, difficulty=0.5, seed=1
    )
    shutil.copytree(written, folder / FOLDERS[0])
    return folder


def market_arguments(folder: Path, *more: str) -> list[str]:
    words = arguments("configs/demo/vit_base.yml", folder, DATASETS__NAMES="market1501", DATASETS__ROOT_DIR=str(folder))
    return [*words, "SOLVER.STAGE2.IMS_PER_BATCH", "16", *more]


def error_line(capsys, words: list[str]) -> str:
    """What a training ends with."""
    assert run_script(lambda: train_svllreid.main(words)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_missing_data_ends_with_one_line_and_leaves_nothing(tmp_path, capsys):
    line = error_line(capsys, market_arguments(tmp_path))
    assert "DATASETS.ROOT_DIR" in line and "Market-1501-v15.09.15" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("split", "workers"), [("query", "0"), ("bounding_box_train", "1")])
def test_a_truncated_image_is_named_in_one_line(tmp_path, capsys, split, workers):
    """A run that fails before its first step gives its folder free."""
    folder = market(tmp_path)
    broken = sorted((folder / FOLDERS[0] / split).glob("*.jpg"))[3]
    broken.write_bytes(broken.read_bytes()[:300])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert str(broken) in error_line(capsys, market_arguments(folder, "DATALOADER.NUM_WORKERS", workers))
    if split == "query":  # it is read for the evaluation of the start
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_too_few_identities_are_found_before_the_prompt_stage(trained, tmp_path):
    words = arguments("configs/demo/vit_svllreid.yml", tmp_path, DATASETS__ROOT_DIR=str(trained / "data"))
    with pytest.raises(DataError, match="32 identities"):
        train_svllreid.main([*words, "SOLVER.STAGE2.IMS_PER_BATCH", "128"])
    assert not (tmp_path / "run").exists()


def test_a_result_that_cannot_be_written_is_reported_before_it_is_computed(trained, tmp_path, capsys):
    (tmp_path / "results.json").write_text("[")
    (tmp_path / "file").write_text("in the way")
    for folder, named in ((tmp_path, r"results\.json"), (tmp_path / "file", "file")):
        with pytest.raises(UserError, match=named):
            new_entry(trained, folder)
    assert (tmp_path / "results.json").read_text() == "["
    assert "rank-1" not in capsys.readouterr().out


@pytest.mark.slow  # starts a process
def test_ctrl_c_ends_with_one_line(trained, tmp_path):
    words = arguments(
        "configs/demo/vit_base.yml",
        tmp_path,
        DATASETS__ROOT_DIR=str(trained / "data"),
        SOLVER__STAGE2__MAX_EPOCHS="10000",
        SOLVER__STAGE2__EVAL_PERIOD="10000",
        DATALOADER__NUM_WORKERS="1",
    )
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train_svllreid.py"), *words],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where a job runs in the background
    )
    deadline = time.monotonic() + 120
    for line in process.stdout:
        if "stage 2 (fine-tuning)  epoch 2/" in line:
            break
        assert time.monotonic() < deadline, "training did not begin"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader's workers, too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    notice, line = errors.strip().splitlines()
    assert notice.startswith("stopping") and line.startswith("interrupted") and str(tmp_path / "run") in line
    assert line in (tmp_path / "run" / "train_log.txt").read_text()


@pytest.mark.slow  # starts a process
@pytest.mark.parametrize("streams", [">&- 2>/dev/full", "2>&- | head -n 1"])
def test_a_screen_that_is_not_there_or_of_few_letters_ends_no_training(trained, tmp_path, streams):
    folder = os.fsencode(tmp_path) + "/nächst".encode() + b"\xff"
    words = arguments("configs/demo/vit_base.yml", tmp_path, DATASETS__ROOT_DIR=str(trained / "data"))
    words += ["SOLVER.STAGE2.MAX_EPOCHS", "1", "SOLVER.STAGE2.EVAL_PERIOD", "9", "OUTPUT_DIR", os.fsdecode(folder)]
    command = shlex.join([sys.executable, str(ROOT / "train_svllreid.py"), *words])
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} {streams}"], env=environment, capture_output=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, b"")
    log = Path(os.fsdecode(folder), "train_log.txt").read_text()
    assert f"into {tmp_path}/nächst\\udcff\n" in log and "test it again" in log


@pytest.mark.slow  # starts a process
def test_what_a_tool_cannot_print_is_an_error_not_a_traceback(trained):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "tools.check_dataset", "--quick", "DATASETS.NAMES", "synthetic"]
        command += [word for key in SMALL if "SYNTHETIC" in key for word in (key, SMALL[key])]
        command += ["DATASETS.ROOT_DIR", str(trained / "data"), "SOLVER.STAGE2.IMS_PER_BATCH", "32"]
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "No space left on device" in line


KILLED = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
LOST = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")


@pytest.mark.parametrize(
    ("error", "cause", "word"),
    [
        (LOST, KILLED, "killed by signal: Killed"),
        (UserError("a.pth: cannot be written (is the disk full?)"), KILLED, "killed by signal: Killed"),
        *((error, None, "ended") for error in (ConnectionResetError("reset"), BrokenProcessPool("terminated"))),
        (OSError(errno.EMFILE, "Too many open files"), None, "Too many open files"),
        (UserError("no shared memory: DATALOADER.NUM_WORKERS 0"), None, "no shared memory"),
    ],
)
def test_what_ended_a_process_is_reported_in_one_line(capsys, error, cause, word):
    def fail() -> None:
        raise error from cause

    assert run_script(fail) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and word in line and "disk full?)" not in line
    assert line.count("DATALOADER.NUM_WORKERS") == 1


def test_of_a_workers_traceback_the_end_is_reported(capsys):
    def fail() -> None:
        raise DataError("Caught DataError in worker 0.\nTraceback\n  x\nutils.errors.DataError: a.jpg")

    assert run_script(fail) == 2 and capsys.readouterr().err == "error: a.jpg\n"


def test_an_empty_checkpoint_is_not_taken_for_a_dead_worker(tmp_path, capsys):
    file = tmp_path / "empty.pth"
    file.touch()
    assert run_script(lambda: read_tensors(file)) == 2
    assert capsys.readouterr().err.startswith(f"error: {file}: is empty")


def test_what_the_system_denies_names_the_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run_script((tmp_path / "file" / "folder").mkdir) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/file/folder: Not a directory\n"


def test_a_fault_of_the_program_is_in_the_log_file(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_to_file(tmp_path / "log")

    def fail() -> None:
        raise ZeroDivisionError("a fault")

    with pytest.raises(ZeroDivisionError):
        run_script(fail)
    assert (tmp_path / "log").read_text().endswith("ZeroDivisionError: a fault\n\n")


def test_lost_lines_of_the_log_are_said_once(tmp_path, monkeypatch, capsys):
    def full(text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    log_to_file(tmp_path / "log")
    root.warning("written")
    monkeypatch.setattr(root.handlers[0].stream, "write", full)
    root.warning("lost")
    root.warning("lost, too")
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path / 'log'}: lines of the log are lost ({os.strerror(28)})"
    ]


def test_the_demo_fails_when_training_does_not_help(capsys):
    def outcome(start: float, end: float) -> int:
        return demo.judge({"start": {"mAP": start}, "end": {"mAP": end}})

    assert outcome(0.40, 0.46) == 0
    assert outcome(0.40, 0.44) == 1
    assert "did not gain" in capsys.readouterr().err


def test_a_demo_leaves_another_one_alone():
    configs = [[], *(["--config_file", f"configs/demo/{name}.yml"] for name in ("vi_cclnet", "vehicle_svllreid"))]
    folders = [demo.read_command_line(words).folder for words in configs]
    assert folders[0] == Path("runs/demo") and len(set(folders)) == 3
    assert all(folder.parent == Path("runs") for folder in folders)


def test_the_demo_removes_nothing_but_a_demo(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    config, link = tmp_path / "config.yaml", tmp_path / "link"
    link.symlink_to(tmp_path)
    for settings, folder in ((None, tmp_path), ("market1501", tmp_path), ("synthetic", link)):
        if settings:
            config.write_text(f"DATASETS: {{NAMES: {settings}}}")
        with pytest.raises(UserError, match=f"{folder}.*no earlier demo"):
            demo.empty(folder)
    assert (tmp_path / "thesis.txt").exists()
    demo.empty(tmp_path)
    assert not tmp_path.exists()


def test_a_demo_into_a_named_folder_is_refused_like_any_training(trained):
    before = {path: path.stat().st_mtime_ns for path in (trained / "run").iterdir()}
    with pytest.raises(ConfigError, match=f"{trained / 'run'}"):
        demo.main(["OUTPUT_DIR", str(trained / "run"), "DATASETS.ROOT_DIR", str(trained / "data")])
    assert {path: path.stat().st_mtime_ns for path in (trained / "run").iterdir()} == before
