"""Does a training survive what happens to trainings? A run of a second or two meets one fault after another.

One run without faults is the reference. Each fault then hits a run of its own, in a fresh OUTPUT_DIR; after that
happens what a user does anyway: put the image back, make room on the disk, repeat the command. The verdict:

    survived    the run ends, with the reference's checkpoints, results and metrics, bit by bit; what was damaged,
                missing or not finite was named; no step was repeated that an intact state holds
    lost        it did not end, hung, or repeated steps although an intact state had them
    wrong       it ended with other numbers, or ignored the fault silently

    kill            SIGKILL in the middle of a write, between two changes of files or in a step, up to four times in a
                    row, of all processes, of the main one alone, or of the one that reads images
    truncation      a kill, then the newest state, or every one, is cut off somewhere
    corruption      a kill, then 1 to 16 bytes of the newest state, or of every one, are others
    full-disk       some write fails halfway (ENOSPC), and those after it for a while
    vanished-image  an image of the training or of the test is gone from some moment on
    nan             a loss or a gradient is not finite, once

Faults are made from outside: the program is the one that users start, in a process of its own, forked from this one so
that nothing is imported twice. What is drawn follows from seed, kind and number. Needs Linux: it forks, and looks into
/proc.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from builders import write_synthetic

import train_svllreid
from datasets.market1501 import FOLDERS, GALLERY, QUERY, TRAIN
from processor.image_stage import ImageStage
from processor.prompt_stage import PromptStage
from utils.command import FAILED, run_script

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 120.0  # seconds after which a process hangs
DATA = {"train_identities": 12, "train_images": 4, "test_identities": 4, "test_images": 6, "seed": 1}
EPOCHS, STEPS, LOG_PERIOD = 2, 3, 2  # of each stage, of an epoch, between two lines of the log
SETTINGS = f"""
MODEL.DEVICE cpu  DATASETS.NAMES market1501  DATALOADER.NUM_INSTANCE 4
SOLVER.STAGE1.IMS_PER_BATCH 16  SOLVER.STAGE1.MAX_EPOCHS {EPOCHS}  SOLVER.STAGE1.LOG_PERIOD {LOG_PERIOD}
SOLVER.STAGE2.IMS_PER_BATCH 16  SOLVER.STAGE2.MAX_EPOCHS {EPOCHS}  SOLVER.STAGE2.LOG_PERIOD {LOG_PERIOD}
SOLVER.STAGE2.EVAL_PERIOD 1
""".split()
# A run's files, by their published names.
CONFIG, METRICS, RESULTS, NON_FINITE = "config.yaml", "metrics.jsonl", "results.json", "non_finite.pt"
STATES, LOCK = "resume", ".lock"
EVERY_STEP, EVERY_EPOCH = "1e-9", "0"  # SOLVER.CHECKPOINT_MINUTES
FULL = os.strerror(errno.ENOSPC)
TOTAL = 2 * EPOCHS * STEPS
STAGES = {"prompt": PromptStage, "image": ImageStage}
SURVIVED, LOST, WRONG = "survived", "lost", "wrong"
NEED_ROOM = ("open", "write", "fsync", "replace", "mkdir")  # the other verbs: unlink, truncate, and step of a training
STEP = "step"


class Bad(Exception):
    """A verdict: its word, and why."""


def lost(reason: str) -> Bad:
    """The run did not come to its end, or work that was kept was done again."""
    return Bad(LOST, reason)


def wrong(reason: str) -> Bad:
    """The run ended otherwise than it should, or said nothing of the fault."""
    return Bad(WRONG, reason)


# ------------------------------------------------------------------------------------------------- in a run's process


class Operation(NamedTuple):
    """A change of a file in the run's folder, or a training step."""

    verb: str
    what: str  # state, checkpoint, or the file's name; of a step, its stage


class Plan(NamedTuple):
    """What is to happen in a process."""

    at: int | None = None  # which operation, from 0, something happens at
    strike: Callable[[], object] | None = None  # what; None: it fails halfway because the disk is full
    lasting: int = 0  # for how many operations the disk then stays full
    share: float = 0.5  # of a write that is made before it fails, or before `strike`; if the process lives on, 0
    spoilt: int | None = None  # step, from 1, whose ...
    spoilt_gradient: bool = False  # ... gradient, or else loss, is not finite
    broken: Callable[[], object] | None = None  # what a test breaks in the program, to see whether it is noticed


NOTHING = Plan()


class Disk:
    """Sees every operation of this process, and fails as planned.

    `seen` takes every operation, `failed` those that fail.
    """

    def __init__(self, folder: Path, plan: Plan, *, failed: Callable, seen: Callable = lambda operation: None):
        self.folder, self.plan, self.seen, self.failed = str(folder), plan, seen, failed
        self.count, self.main = 0, os.getpid()

    def install(self) -> None:
        """For the rest of this process."""
        builtins.open = io.open = self._opener(io.open)
        for verb in ("replace", "unlink", "mkdir", "fsync", "truncate"):
            setattr(os, verb, self._watched(getattr(os, verb), verb))

    def _inside(self, path: object) -> bool:
        if not isinstance(path, (str, os.PathLike)) or os.getpid() != self.main:
            return False
        path = os.fspath(path)
        return isinstance(path, str) and path.startswith(self.folder) and not path.endswith(LOCK)

    def _watched(self, real: Callable, verb: str) -> Callable:
        def watched(*arguments, **named):
            path = arguments[verb == "replace"]
            if verb == "fsync":
                path = os.readlink(f"/proc/self/fd/{path}")
            there = verb == "mkdir" and os.path.isdir(path)
            if self._inside(path) and self.happens(verb, path) and not there:
                self.fail(verb, path)
            return real(*arguments, **named)

        return watched

    def _opener(self, real: Callable) -> Callable:
        disk = self

        class File(io.FileIO):
            def write(self, data) -> int:
                def part() -> None:
                    io.FileIO.write(self, memoryview(data)[: int(disk.plan.share * len(data))])

                if disk.happens("write", self.name, part):
                    disk.fail("write", self.name)
                return super().write(data)

        def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *rest, **named):
            unnamed = "opener" in named  # of tempfile: a file without a name
            if unnamed or not self._inside(file) or not set(mode) & set("wax+"):
                return real(file, mode, buffering, encoding, errors, newline, *rest, **named)
            if self.happens("open", file) and not os.path.exists(file):
                self.fail("open", file)
            binary = io.BufferedWriter(File(os.fspath(file), mode.replace("b", "").replace("t", "")))
            return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

        return opened

    def happens(self, verb: str, path: object, part: Callable[[], object] = lambda: None) -> bool:
        """Count an operation -> whether it fails because the disk is full."""
        number, self.count = self.count, self.count + 1
        self.seen(Operation(verb, path if verb == STEP else label(Path(os.fspath(path)))))
        at, strike = self.plan.at, self.plan.strike
        if at is None or not at <= number <= at + (0 if strike else self.plan.lasting):
            return False
        part()
        if strike:
            strike()
        return not strike and verb in NEED_ROOM

    def fail(self, verb: str, path: object) -> None:
        """As the operating system does where there is no room."""
        self.failed(Operation(verb, label(Path(os.fspath(path)))))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def label(path: Path) -> str:
    """What a file of a run is, whatever its number: state, checkpoint, or its name."""
    name = path.name
    if name.endswith(".tmp"):
        name = name.removeprefix(".").rpartition(".tmp")[0].rpartition(".")[0]
    if not name.endswith(".pth"):
        return name
    return "state" if path.parent.name == STATES else "checkpoint"


FOLDERS_SYNCED = (Operation("fsync", "run"), Operation("fsync", STATES))


def live(words: Sequence[str], folder: Path, journal: Path, plan: Plan) -> None:
    """The program, in a forked process; does not return."""
    code = 1
    try:
        os.setsid()
        for number, stream in ((1, "out"), (2, "err")):
            os.dup2(os.open(journal / stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
        torch.set_num_threads(1)
        if plan.broken is not None:
            plan.broken()
        seen, failed = (note(journal / name) for name in ("operations", "failed"))
        disk = Disk(folder, plan, seen=seen, failed=failed)
        disk.install()
        watch_steps(disk, plan)
        code = run_script(lambda: train_svllreid.main(list(words)))
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def note(file: Path) -> Callable[[Operation], object]:
    """What appends to a file at once, so that a kill loses nothing."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    return lambda operation: os.write(descriptor, f"{' '.join(operation)}\n".encode())


def watch_steps(disk: Disk, plan: Plan) -> None:
    """Note every training step of this process, and spoil the one that was drawn."""
    made = 0
    for name, stage in STAGES.items():

        def forward(self, batch, *, real=stage.forward, name=name):
            nonlocal made
            made += 1
            disk.happens(STEP, name)
            losses = real(self, batch)
            if made != plan.spoilt:
                return losses
            if plan.spoilt_gradient:
                losses.total.register_hook(lambda gradient: gradient * torch.nan)
                return losses
            return losses._replace(total=losses.total * torch.nan)

        stage.forward = forward


def kill_all() -> None:
    os.killpg(0, signal.SIGKILL)


def kill_main() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_worker() -> None:
    """The process that reads images."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    worker = next(each for each in children if "python" in Path(f"/proc/{each}/exe").resolve().name)
    os.kill(int(worker), signal.SIGKILL)


VICTIMS = {"all": kill_all, "main": kill_main, "worker": kill_worker}


# --------------------------------------------------------------------------------------------------------- one fault


class Outcome(NamedTuple):
    """How a process ended."""

    code: int  # negative: the signal
    out: str
    err: str
    operations: list[Operation]  # that it made
    failed: list[Operation]  # what it could not do because the disk was full

    @property
    def steps(self) -> int:
        return sum(operation.verb == STEP for operation in self.operations)

    @property
    def last(self) -> str:
        lines = self.err.strip().splitlines()
        return lines[-1] if lines else f"exit code {self.code}, nothing said"


class Reference(NamedTuple):
    """The run without faults."""

    folder: Path
    data: Path
    operations: list[Operation]


class Trial:
    """One run with all that happens to it.

    Args:
        timeout: seconds after which a process hangs.
        broken: see Plan.
    """

    def __init__(
        self, folder: Path, draw: random.Random, *, timeout: float, broken: Callable[[], object] | None = None
    ):
        self.folder, self.run, self.draw = folder, folder / "run", draw
        self.timeout, self.broken = timeout, broken
        self.data = folder / "data"
        self.minutes, self.workers = EVERY_STEP, 0
        self.groups: list[int] = []
        self.notes: list[str] = []
        self.starts = 0

    # ---- processes

    def start(self, plan: Plan = NOTHING) -> Outcome:
        """The same command, until its process ends.

        Raises:
            Bad: it hangs.
        """
        journal = self.folder / f"start{self.starts}"
        journal.mkdir(parents=True)
        self.starts += 1
        words = [
            *("--config_file", str(ROOT / "configs/demo/vit_svllreid.yml"), *SETTINGS),
            *("DATASETS.ROOT_DIR", str(self.data), "OUTPUT_DIR", str(self.run)),
            *("SOLVER.CHECKPOINT_MINUTES", self.minutes, "DATALOADER.NUM_WORKERS", str(self.workers)),
        ]
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if process == 0:
            live(words, self.run, journal, plan._replace(broken=self.broken))
        self.groups.append(process)
        since = time.monotonic()
        while not (ended := os.waitpid(process, os.WNOHANG))[0]:
            if time.monotonic() - since > self.timeout:
                self.end_all()
                os.waitpid(process, 0)
                raise lost(f"hangs: no end after {self.timeout:.0f} s")
            time.sleep(0.003)
        out, err = (text(journal / name) for name in ("out", "err"))
        operations, failed = (operations_in(journal / name) for name in ("operations", "failed"))
        return Outcome(os.waitstatus_to_exitcode(ended[1]), out, err, operations, failed)

    def end_all(self) -> None:
        """Kill what is left of all processes, those that read images among them."""
        for group in self.groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    # ---- what is there

    def states(self) -> list[Path]:
        """Files of states, newest first."""
        return sorted((self.run / STATES).glob("*.pth"), reverse=True)

    def kept(self) -> int:
        """How many steps the newest state holds, by this module's own reading; 0 without one."""
        files = self.states()
        if not files:
            return 0
        contents = whole(files[0])
        if contents is None:
            raise wrong(f"{files[0].name} is not whole, though nobody damaged it")
        return steps_of(contents)

    # ---- the end

    def finish(self) -> None:
        """Resume, to the end."""
        kept = self.kept()
        outcome = self.start()
        if outcome.code != 0:
            raise lost(f"does not resume: {outcome.last}")
        if outcome.steps != TOTAL - kept:
            word = LOST if outcome.steps > TOTAL - kept else WRONG
            raise Bad(word, f"{outcome.steps} steps were made, though an intact state left {TOTAL - kept}")

    def compare(self, reference: Reference) -> None:
        """Raise Bad if the run's end is not the reference's."""
        ours, theirs = (sorted(path.name for path in each.glob("*.pth")) for each in (self.run, reference.folder))
        if ours != theirs:
            raise wrong(f"checkpoints {ours} instead of {theirs}")
        for name in theirs:
            one, other = (whole(each / name) for each in (self.run, reference.folder))
            if one is None:
                raise wrong(f"{name} is damaged")
            for tensor in one["model"].keys() | other["model"].keys():
                if not same(one["model"].get(tensor), other["model"].get(tensor)):
                    raise wrong(f"{name}: {tensor} is another")
        if results(self.run) != results(reference.folder):
            raise wrong(f"{RESULTS} is another")
        if (self.run / METRICS).read_bytes() != (reference.folder / METRICS).read_bytes():
            raise wrong(f"{METRICS} is another")
        left = [path.name for path in self.run.rglob(".*") if path.name.endswith(".tmp")]
        if left:
            self.notes.append(f"left behind: {', '.join(sorted({label(Path(name)) for name in left}))}")


def operations_in(file: Path) -> list[Operation]:
    """What a process has noted; nothing where it was killed before it could."""
    return [Operation(*line.split(" ", 1)) for line in text(file).splitlines()]


def text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def whole(file: Path) -> dict | None:
    """The contents of a file of tensors; None if any byte of them is another than was written."""
    with contextlib.suppress(Exception), zipfile.ZipFile(file) as archive:
        return read(file) if archive.testzip() is None else None
    return None


def read(file: Path) -> dict | None:
    """What can be read of a file of tensors, if anything."""
    with contextlib.suppress(Exception):
        return torch.load(file, map_location="cpu", weights_only=True)
    return None


def same(one: object, other: object) -> bool:
    """Whether two contents of files are the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def steps_of(contents: dict) -> int:
    """How many steps of the whole run a state holds."""
    before = EPOCHS * STEPS if contents["stage"] == "image" else 0
    return before + contents["run"]["position"]["steps"]


def results(folder: Path) -> list[dict]:
    """What results.json says, without the folder's name and the libraries' versions, which no fault changes."""
    entries = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["evaluations"]
    return [{name: entry[name] for name in entry if name not in ("checkpoint", "versions")} for entry in entries]


def an_operation(
    draw: random.Random, operations: Sequence[Operation], suits: Callable[[Operation], bool] = lambda operation: True
) -> int:
    """The number of one that suits: any of them, or, so that rare ones have their turn, any of a kind."""
    numbers = [number for number, operation in enumerate(operations) if suits(operation)]
    if draw.random() < 0.5:
        return draw.choice(numbers)
    kind = draw.choice(sorted({operations[number] for number in numbers}))
    return draw.choice([number for number in numbers if operations[number] == kind])


def described(operations: Sequence[Operation], number: int) -> str:
    return f"{number}: {' '.join(operations[number])}"


# ------------------------------------------------------------------------------------------------------- the six kinds


def refused(what: str, outcome: Outcome, *named: str) -> None:
    """Raise Bad unless the run has ended with one line that names all of these."""
    if outcome.code != FAILED or not outcome.last.startswith("error: ") or any(n not in outcome.last for n in named):
        raise wrong(f"{what}; exit code {outcome.code}, and the message is: {outcome.last}")


def killed(trial: Trial, reference: Reference, *, with_state: bool = False) -> None:
    """Start the run and kill it.

    Args:
        with_state: only after it has kept a state.
    """
    draw, operations = trial.draw, reference.operations
    victim = draw.choice([*VICTIMS]) if trial.workers else "all"
    first = operations.index(Operation("replace", "state")) + 1 if with_state else 0
    rest = operations[first:]
    # Only in the image stage is there certainly a process that reads images.
    at = first + an_operation(draw, rest, lambda each: victim != "worker" or each == Operation(STEP, "image"))
    share = draw.random()
    while True:
        outcome = trial.start(Plan(at=at, strike=VICTIMS[victim], share=share))
        if len(outcome.operations) > at and (victim != "worker" or outcome.operations[at].verb == STEP):
            break
        shutil.rmtree(trial.run)  # with fewer states there are fewer operations, and others
        at = at // 2 if victim != "worker" else outcome.operations.index(Operation(STEP, "image"))
    trial.notes.append(f"{victim} killed at operation {described(outcome.operations, at)}")
    if victim != "worker" and outcome.code != -signal.SIGKILL:
        raise wrong(f"was killed, and ended with {outcome.last}")
    if victim == "worker" and outcome.code != 0:  # 0: it was not needed any more
        refused("a process that reads images was killed", outcome)


def a_kill(trial: Trial, reference: Reference) -> None:
    """Once, or again and again: of a run that resumes, any operation, in as many steps as are left."""
    draw = trial.draw
    trial.workers = int(draw.random() < 0.3)
    trial.minutes = EVERY_STEP if draw.random() < 0.8 else EVERY_EPOCH
    killed(trial, reference)
    for _ in range(draw.choice([0, 0, 1, 3])):
        before = trial.kept()
        trial.workers = 0
        at, share = draw.randrange(len(reference.operations) // 2), draw.random()
        outcome = trial.start(Plan(at=at, strike=kill_all, share=share))
        struck = len(outcome.operations) > at
        trial.notes.append(f"again at its operation {at}" + ("" if struck else ", which it did not come to"))
        if outcome.code != -signal.SIGKILL and (outcome.code != 0 or struck):
            raise lost(f"does not resume: {outcome.last}")
        if trial.kept() < before:
            raise lost(f"states are gone: {trial.kept()} steps are kept, {before} were")
    trial.finish()


def damage(trial: Trial, reference: Reference, harm: Callable[[bytes], bytes]) -> None:
    """Kill the run, harm the newest state or all of them, and resume."""
    killed(trial, reference, with_state=True)
    files = trial.states()
    if len(files) == 1 and not files[0].name.startswith("00001_"):
        raise lost(f"{files[0].name} is the only state: damaged, it leaves nothing to resume from")
    finished = (trial.run / RESULTS).exists() and results(trial.run) == results(reference.folder)
    damaged = files[: len(files) if trial.draw.random() < 0.2 else 1]
    trial.notes.append(f"{len(damaged)} of {len(files)} states damaged")
    for file in damaged:
        contents, intact = whole(file), file.read_bytes()
        while same(read(file), contents):  # what was hit may be a filling or a date
            file.write_bytes(harm(intact))
    kept = [steps_of(whole(file)) for file in files[len(damaged) :]]
    again = trial.start()
    for file in damaged:
        if str(file) not in again.out + again.err:
            raise wrong(f"{file.name} is damaged, and no message names it")
    if finished:
        if again.steps or again.code:
            raise wrong(f"{again.steps} steps of a run that is finished, exit code {again.code}")
    elif kept:
        if again.code != 0:
            raise lost(f"does not resume, though a state is intact: {again.last}")
        if again.steps != TOTAL - kept[0]:
            raise lost(f"{again.steps} steps were made, though an intact state left {TOTAL - kept[0]}")
    else:
        refused("no state is intact", again, str(trial.run))
        if trial.states() != files:
            raise wrong("what was refused was touched")
        shutil.rmtree(trial.run)  # all that there is to do
        trial.finish()


def a_truncation(trial: Trial, reference: Reference) -> None:
    """Anywhere, or near an end."""
    draw = trial.draw

    def harm(data: bytes) -> bytes:
        most = len(data) - 1
        return data[: draw.choice([draw.randint(0, most), most - draw.randint(0, 64), draw.randint(0, 64)])]

    damage(trial, reference, harm)


def a_corruption(trial: Trial, reference: Reference) -> None:
    """Single bytes, or neighbours; anywhere, or in the archive's index at the end."""
    draw = trial.draw

    def harm(data: bytes) -> bytes:
        harmed = bytearray(data)
        first, count = draw.choice([0, 0, 0, len(data) - 4096]), draw.randint(1, 16)
        start, neighbours = draw.randrange(first, len(data) - count), draw.random() < 0.3
        for number in range(count):
            harmed[start + number if neighbours else draw.randrange(first, len(data))] ^= draw.randint(1, 255)
        return bytes(harmed)

    damage(trial, reference, harm)


def a_full_disk(trial: Trial, reference: Reference) -> None:
    """For one operation, some, or until there is room; a start while it is full must leave everything as it is."""
    draw, operations = trial.draw, reference.operations
    trial.workers = int(draw.random() < 0.15)
    # The others fail only where a file is new.
    at = an_operation(draw, operations, lambda each: each.verb in ("write", "fsync", "replace"))
    lasting = draw.choice([0, 2, 50, 10**9])
    trial.notes.append(
        f"full from operation {described(operations, at)}, {'on' if lasting > 50 else f'for {lasting + 1}'}"
    )
    outcome = trial.start(Plan(at=at, lasting=lasting, share=draw.random()))
    said(trial, outcome)
    if outcome.code == 0:
        trial.notes.append("ended all the same")
        return
    if lasting > 100 and draw.random() < 0.5:
        before = trial.kept()
        said(trial, trial.start(Plan(at=0, lasting=10**9, share=0.0)))
        if trial.kept() != before:
            raise lost(f"started on a full disk: {trial.kept()} steps are kept, {before} were")
    trial.finish()


def said(trial: Trial, outcome: Outcome) -> None:
    """Raise Bad if a run on a full disk does not say so as it should.

    It may continue where only a line of the log, or the order to write a folder's names at once, was lost; the former
    is said on the screen.
    """
    if not outcome.failed:
        raise wrong(f"the disk was not full: {outcome.last}")
    if outcome.code == 0:
        lost = {operation for operation in outcome.failed if operation not in FOLDERS_SYNCED}
        if lost and FULL not in outcome.out + outcome.err:
            raise wrong(f"nothing is said of what could not be written: {'; '.join(map(' '.join, sorted(lost)))}")
        return
    refused("the disk was full", outcome, str(trial.run), FULL if FULL in outcome.last else "disk")


def a_vanished_image(trial: Trial, reference: Reference) -> None:
    """It must be named where it is needed; without it, the run is refused; with it, it resumes."""
    draw, operations = trial.draw, reference.operations
    shutil.copytree(reference.data, trial.data)
    trial.workers = int(draw.random() < 0.3)
    images = sorted((trial.data / FOLDERS[0] / draw.choice([TRAIN, TRAIN, QUERY, GALLERY])).glob("*.jpg"))
    image, aside = draw.choice(images), trial.folder / "aside.jpg"
    at = min(an_operation(draw, operations), len(operations) * 3 // 4)
    trial.notes.append(f"{image.name} gone at operation {described(operations, at)}")
    outcome = trial.start(Plan(at=at, strike=lambda: os.rename(image, aside), share=0.0))
    if not aside.exists():
        raise wrong(f"the image was not moved: {outcome.last}")
    if outcome.code == 0:
        trial.notes.append("was not needed any more")
        aside.rename(image)
        return
    refused(f"{image.name} is gone", outcome, str(image))
    if (trial.run / CONFIG).exists() and draw.random() < 0.5:
        refused(f"started without {image.name}", trial.start(), str(trial.run))
        trial.notes.append("refused without it")
    aside.rename(image)
    trial.finish()


def a_nan(trial: Trial, reference: Reference) -> None:
    """It must stop the run at the next line of the log and name the step."""
    draw = trial.draw
    trial.minutes = draw.choice([EVERY_STEP, EVERY_EPOCH])
    number, gradient = draw.randint(1, TOTAL), draw.random() < 0.5
    what = "gradient" if gradient else "loss"
    trial.notes.append(f"{what} of step {number}, a state every {'step' if trial.minutes == EVERY_STEP else 'epoch'}")
    outcome = trial.start(Plan(spoilt=number, spoilt_gradient=gradient))
    epoch, step = (each + 1 for each in divmod((number - 1) % (EPOCHS * STEPS), STEPS))
    refused(f"a {what} was not finite", outcome, f"epoch {epoch}, step {step}: ", "not finite")
    if whole(trial.run / NON_FINITE) is None:
        raise wrong(f"{NON_FINITE} cannot be read")
    line = step if trial.minutes == EVERY_STEP else min(-(-step // LOG_PERIOD) * LOG_PERIOD, STEPS)
    if outcome.steps != number - step + line:
        raise wrong(f"stopped after {outcome.steps} steps, not at the line of the log after step {number}")
    trial.finish()


FAULTS: dict[str, Callable[[Trial, Reference], None]] = {
    "kill": a_kill,
    "truncation": a_truncation,
    "corruption": a_corruption,
    "full-disk": a_full_disk,
    "vanished-image": a_vanished_image,
    "nan": a_nan,
}


# -------------------------------------------------------------------------------------------------------- the campaign


class Verdict(NamedTuple):
    """What became of one fault."""

    word: str  # survived, lost, wrong
    reason: str
    notes: tuple[str, ...]


def make_reference(folder: Path) -> Reference:
    """Render images in Market-1501's form, so that those that are gone are not rendered anew, and train on them."""
    data = folder / "data"
    data.mkdir()
    write_synthetic(data, progress=False, **DATA).rename(data / FOLDERS[0])
    trial = Trial(folder / "reference", random.Random(0), timeout=TIMEOUT)
    trial.data = data
    try:
        outcome = trial.start()
    finally:
        trial.end_all()
    assert outcome.code == 0 and outcome.steps == TOTAL, outcome.last
    return Reference(trial.run, data, outcome.operations)


def judge(
    number: int,
    kind: str,
    reference: Reference,
    folder: Path,
    *,
    seed: int,
    timeout: float = TIMEOUT,
    broken: Callable[[], object] | None = None,
) -> Verdict:
    """One fault; its folder is kept if it was not survived."""
    shutil.rmtree(folder, ignore_errors=True)
    trial = Trial(folder, random.Random(f"{seed} {kind} {number}"), timeout=timeout, broken=broken)
    if kind != "vanished-image":
        trial.data = reference.data
    word, reason = SURVIVED, ""
    try:
        FAULTS[kind](trial, reference)
        trial.compare(reference)
    except Bad as error:
        word, reason = error.args
    except Exception as error:  # e.g. a file that should be there is not
        word, reason = WRONG, f"{type(error).__name__}: {error}"
    finally:
        trial.end_all()
    if word == SURVIVED:
        shutil.rmtree(folder)
    return Verdict(word, reason, tuple(trial.notes))
