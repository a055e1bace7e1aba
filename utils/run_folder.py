"""A run's folder: one process writes to it, what it needs to go on is kept, and no other run's files get into it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import yaml

from utils.checkpoint import read_checkpoint, save_checkpoint, write_tensors
from utils.distributed import collective
from utils.errors import UserError, WeightsError, one_line
from utils.files import plain_file, replace_text
from utils.schema import RESULTS_FILE, SETTINGS, STATE, check, fault
from utils.workers import dead_worker

CONFIG, LOG, METRICS, RESULTS = "config.yaml", "train_log.txt", "metrics.jsonl", "results.json"
VERSIONS, TENSORBOARD, STATES, LOCK = "versions.json", "tensorboard", "resume", ".lock"
NON_FINITE = "non_finite.pt"  # no checkpoint, and not called like one
START, END, EARLIER_END = "start", "end", "earlier end"  # evaluations of a training, by `when`
STATE_NAME = re.compile(r"(\d+)_\w+\.pth")
KEPT = 2  # states: should the newest turn out to be damaged, there is the one before
WRITTEN = (METRICS, RESULTS, LOG, VERSIONS)
logger = logging.getLogger(__name__)


def check_writable(path: Path) -> None:
    """Raise UserError if nothing could be written to `path`; nothing is left there."""
    existing = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not existing.exists():
        raise UserError(f"OUTPUT_DIR {path}: {existing} is a link to nothing")
    if not existing.is_dir():
        raise UserError(f"OUTPUT_DIR {path}: {existing} is a file; a folder is needed")
    try:
        for name in (CONFIG, *WRITTEN):
            plain_file(path / name)
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {path}: {error.filename}: {error.strerror}") from error
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {path}: {existing} cannot be written to ({error.strerror})") from error


def check_unused(path: Path) -> None:
    """Raise UserError if `path` holds a run already, or any file that a run would write."""
    taken = [name for name in (CONFIG, *WRITTEN, TENSORBOARD, STATES, NON_FINITE) if (path / name).exists()]
    taken += sorted(file.name for file in path.glob("*.pth"))
    if taken:
        raise UserError(
            f"OUTPUT_DIR {path}: holds a run already ({taken[0]}); give another OUTPUT_DIR, or move that one away"
        )


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keep other processes from writing a run to `path`; folders made for this are removed again if they stay empty.

    The lock is the operating system's: it ends with the process, however that ends.

    Raises:
        UserError: another process holds it, or the folder cannot be made.
    """
    file = path / LOCK
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(file)
    except BlockingIOError as error:
        raise UserError(f"OUTPUT_DIR {path}: another run is writing there at this moment") from error
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {path}: cannot be written to ({error.strerror})") from error
    _held.add(descriptor)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
        _held.discard(descriptor)
        os.close(descriptor)
        with contextlib.suppress(OSError):  # it holds something
            for folder in made:
                folder.rmdir()


_held: set[int] = set()  # descriptors of locks


def _let_go() -> None:
    """In a process that reads images: its parent's lock is not to outlive the parent."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _locked(file: Path) -> int:
    """The descriptor of `file`, which nobody else has locked."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock_now(descriptor, file)
        except BaseException:
            os.close(descriptor)
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        os.close(descriptor)  # its last holder removed it while we waited


def _lock_now(descriptor: int, file: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:  # some network file systems have none
        logger.warning("%s: no locks there (%s): nothing keeps two runs apart", file.parent, error.strerror)


class State(NamedTuple):
    """What an unfinished run goes on from."""

    path: Path
    contents: dict  # as of a checkpoint, and "run": what `RunFolder.save_state` was given besides


def read_state(file: Path) -> State:
    """A state to go on from.

    Raises:
        WeightsError: no such file, damaged, or a field of it is wrong, which is named.
    """
    contents = read_checkpoint(file)
    check(contents, STATE, file)
    return State(file, contents)


def newest_state(path: Path) -> State | None:
    """The newest state in a run's folder that is whole; None if there is none at all.

    Raises:
        UserError: there are some, and none is whole.
    """
    files = _states(path)
    for file in reversed(files):
        try:
            return read_state(file)
        except WeightsError as error:
            logger.warning("%s%s", one_line(error), "" if file == files[0] else "; the state before it is taken")
    if files:
        raise UserError(
            f"OUTPUT_DIR {path}: none of the {len(files)} states to go on from can be read; start anew in another "
            "OUTPUT_DIR (from the weights of a checkpoint: MODEL.INIT_FROM)"
        )
    return None


class EarlierRun(NamedTuple):
    """What a folder holds of a run."""

    config: dict
    evaluations: list[dict]  # the entries of results.json
    state: Path | None  # to go on from
    damaged: str | None = None  # why none of the states that are there can be gone on from


def earlier_run(path: Path) -> EarlierRun | None:
    """The run in a folder; None if there is none.

    Its newest state holds the configuration, too: where that is whole, the small files beside it are not needed.

    Raises:
        UserError: something is there, but no whole run of this program.
    """
    if not (path / CONFIG).exists() and not _states(path):
        check_unused(path)
        return None
    evaluations = read_results(path / RESULTS)["evaluations"]
    state, damaged = None, None
    try:
        state = newest_state(path)
    except UserError as error:
        damaged = str(error)
    if state is not None and (state.path == _states(path)[-1] or not (path / CONFIG).exists()):
        return EarlierRun(state.contents["config"], evaluations, state.path)
    try:  # an older state may be from before the run was given more epochs
        config = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path / CONFIG}: cannot be read ({one_line(error)}); move the run there away") from error
    if wrong := fault(config, SETTINGS):
        raise UserError(f"{path / CONFIG}: is not a run's ({wrong}); give another OUTPUT_DIR")
    return EarlierRun(config, evaluations, state and state.path, damaged)


def count_ends(evaluations: list[dict]) -> int:
    """How many data sets were evaluated after all training."""
    return sum(entry["when"] == END for entry in evaluations)


def _states(path: Path) -> list[Path]:
    """The files of states, oldest first."""
    found = {file: STATE_NAME.fullmatch(file.name) for file in (path / STATES).glob("*.pth")}
    return sorted((file for file, match in found.items() if match), key=_number)


def _number(file: Path) -> int:
    return int(STATE_NAME.fullmatch(file.name)[1])


P, T = ParamSpec("P"), TypeVar("T")


def _waited_for(method: Callable[P, T]) -> Callable[P, T]:
    """What goes wrong here goes wrong in all processes: the others wait in `Onlooker`."""

    @wraps(method)
    def waited_for(*args: P.args, **kwargs: P.kwargs) -> T:
        with collective():
            return method(*args, **kwargs)

    return waited_for


class RunFolder:
    """OUTPUT_DIR of a training.

        config.yaml      resolved configuration
        train_log.txt    what the screen shows
        metrics.jsonl    every logged number, a JSON object a line
        results.json     evaluations at start and end, and of later tests
        versions.json    revision, libraries, data fingerprint
        *.pth            checkpoints
        resume/          the newest states to go on from
        tensorboard/     where TensorBoard is installed

    Args:
        path: the folder; made if absent.
        config: written to config.yaml.
        fingerprint: what the run depends on besides; written to versions.json and into checkpoints.
        state: where an earlier run in this folder goes on from; what it wrote later is taken back.
        again: whether there was an earlier run; without a state, it begins anew.
        ended: whether that had all its last evaluations, which are then kept under another name.

    Raises:
        UserError: the folder cannot be written to, or it holds a run already.
    """

    def __init__(
        self,
        path: Path,
        *,
        config: dict,
        fingerprint: dict,
        state: State | None = None,
        again: bool = False,
        ended: bool = False,
    ):
        self.path, self.fingerprint, self._tensorboard = path, fingerprint, None
        self.kinds: set[str] = set()  # of what was recorded
        self.whole = [state.path] if state else []  # states that can be gone on from
        if not again and (path / CONFIG).exists():
            raise UserError(f"OUTPUT_DIR {path}: another run was started there at the same time")
        try:
            path.mkdir(parents=True, exist_ok=True)
            written = (NON_FINITE, CONFIG, VERSIONS, RESULTS)
            for name in (f"{STATES}/.*.pth", ".*.pth", *(f".{each}" for each in written)):
                for left in path.glob(f"{name}.*.tmp"):
                    left.unlink()  # of a process that was killed while it wrote
            complete = again and self._take_back(
                state.contents["run"]["metrics_bytes"] if state else 0, state is None, ended
            )
            replace_text(path / CONFIG, yaml.safe_dump(config, sort_keys=False))
            if state is None or not (path / VERSIONS).exists():
                replace_text(path / VERSIONS, json.dumps(fingerprint, indent=2) + "\n")
        except OSError as error:
            if not again:
                self.discard()
            raise UserError(f"OUTPUT_DIR {path}: cannot be written to ({error.strerror})") from error
        self._tensorboard = _tensorboard(path / TENSORBOARD, anew=complete)
        if complete and self._tensorboard is not None:
            self._show_again()

    def _take_back(self, metrics_bytes: int, all_of_it: bool, ended: bool) -> bool:
        """Leave of an earlier run's records what was there when its state was kept: the rest comes once more.

        Returns:
            Whether metrics.jsonl has all that it had then.
        """
        metrics = self.path / METRICS
        size = metrics.stat().st_size if metrics.exists() else 0
        if size > metrics_bytes:
            os.truncate(metrics, metrics_bytes)
        elif size < metrics_bytes:
            gone = metrics_bytes - size
            logger.warning("%s: %d of %d bytes are gone since the state was kept", metrics, gone, metrics_bytes)
            if size:
                os.truncate(metrics, metrics.read_bytes().rfind(b"\n") + 1)  # half a line is none
        results = read_results(self.path / RESULTS)
        dropped = ({START} if all_of_it else set()) | (set() if ended else {END})
        kept = [entry for entry in results["evaluations"] if entry["when"] not in dropped]
        kept = [{**entry, "when": EARLIER_END} if entry["when"] == END else entry for entry in kept]
        if kept != results["evaluations"]:
            _write_results(self.path / RESULTS, {**results, "evaluations": kept})
        return size >= metrics_bytes

    @_waited_for
    def record(self, kind: str, *, step: int, **values: Any) -> None:
        """Append numbers to metrics.jsonl, and to TensorBoard; `step` counts over the whole stage."""
        self.kinds.add(kind)
        try:
            with open(self.path / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        except OSError as error:
            raise UserError(f"{self.path / METRICS}: cannot be written ({error.strerror})") from error
        if self._tensorboard is not None:
            self._show(kind, step, **values)
            self._tensorboard.flush()

    def _show(self, kind: str, step: int, **values: Any) -> None:
        stage = values.get("stage", kind)
        for name, value in values.items():
            if isinstance(value, float):
                self._tensorboard.add_scalar(f"{stage}/{name}", value, step)

    def _show_again(self) -> None:
        """What metrics.jsonl has of an earlier run."""
        if not (self.path / METRICS).exists():  # it was stopped before it had anything to tell
            return
        with open(self.path / METRICS, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    self._show(**json.loads(line))
                except (ValueError, TypeError, RecursionError):
                    logger.warning("%s: %.40s... is no line of this program", self.path / METRICS, line)
        self._tensorboard.flush()

    @_waited_for
    def save(self, name: str, contents: dict) -> Path:
        """Write a checkpoint, with the run's fingerprint, and return its path."""
        path = self.path / name
        with _telling(path):
            save_checkpoint(path, {**contents, "fingerprint": self.fingerprint})
        logger.info("saved %s", path)
        return path

    @_waited_for
    def save_state(self, name: str, contents: dict, run: dict) -> Path:
        """Write a checkpoint with all that training needs to go on from it, and leave only the newest ones.

        Args:
            name: what the file is called after its number.
            contents: of a checkpoint.
            run: what training needs besides.
        """
        number = 1 + max(map(_number, _states(self.path)), default=0)
        path = self.path / STATES / f"{number:05d}_{name}.pth"
        with _telling(path):
            run = {**run, "metrics_bytes": _put_on_disk(self.path / METRICS)}
            path.parent.mkdir(exist_ok=True)
            save_checkpoint(path, {**contents, "fingerprint": self.fingerprint, "run": run})
        self.whole = [*self.whole, path][-KEPT:]
        for file in _states(self.path):
            if file not in self.whole:
                with contextlib.suppress(OSError):
                    file.unlink()
        return path

    @_waited_for
    def save_failure(self, contents: dict) -> Path:
        """Write what there is to look into after a loss that was not finite."""
        path = self.path / NON_FINITE
        with _telling(path):
            write_tensors(path, contents)
        logger.info("what there is to look into: %s", path)
        return path

    def discard(self) -> bool:
        """Give the folder free again, if no training step was logged and no checkpoint saved -> whether it was."""
        if any(self.path.glob("*.pth")) or _states(self.path) or self.kinds - {"evaluation"}:
            return False
        if self._tensorboard is not None:
            self._tensorboard.close()
            shutil.rmtree(self.path / TENSORBOARD, ignore_errors=True)
        for name in (*WRITTEN, CONFIG):
            with contextlib.suppress(OSError):  # Windows keeps a log file that is open
                (self.path / name).unlink(missing_ok=True)
        for folder in (self.path / STATES, self.path):  # the former is there, and empty, if no state could be written
            with contextlib.suppress(OSError):  # it holds something else
                folder.rmdir()
        return True


class Onlooker:
    """Stands in for a run's folder in the processes that write nothing, and wait for the one that does."""

    def __init__(self, path: Path):
        self.path = path
        self.whole: list[Path] = []

    @_waited_for
    def record(self, kind: str, *, step: int, **values: Any) -> None:
        """The main process does."""

    @_waited_for
    def save(self, name: str, contents: dict) -> Path:
        """Where the main process writes it."""
        return self.path / name

    @_waited_for
    def save_state(self, name: str, contents: dict, run: dict) -> None:
        """The main process does."""

    @_waited_for
    def save_failure(self, contents: dict) -> None:
        """The main process does."""

    def discard(self) -> bool:
        """The main process does."""
        return False


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Say which file could not be written, and why."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch says in a RuntimeError that a disk is full
        cause = error
        while cause := cause.__context__:
            if isinstance(cause, KeyboardInterrupt):  # a signal; torch took it for a write that failed
                raise cause from None
        if dead_worker(error):
            raise
        reason = getattr(error, "strerror", None) or f"is the disk full? {one_line(error)[:80]}"
        raise UserError(f"{path}: the checkpoint cannot be written ({reason}); earlier ones are intact") from error


def append_result(folder: Path, entry: dict) -> Path:
    """Add an evaluation to a folder's results.json; the file is replaced as a whole.

    Raises:
        UserError: the file is there but is no results file, or the folder cannot be written to.
    """
    path = folder / RESULTS
    results = read_results(path)
    # A run that was to get more epochs, but came to none, ends once more as it did before.
    others = [each for each in results["evaluations"] if {**each, "when": END} != entry or each["when"] != EARLIER_END]
    _write_results(path, {**results, "evaluations": [*others, entry]})
    return path


def read_results(path: Path) -> dict:
    """The contents of a results.json; no evaluations if there is no such file.

    Raises:
        UserError: it cannot be read, or a field of it is wrong, which is named.
    """
    if not path.exists():
        return {"evaluations": []}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError):
        results = None
    if wrong := fault(results, RESULTS_FILE):
        raise UserError(f"{path}: is not a results file of this program; move it away ({wrong})")
    return results


def _write_results(path: Path, results: dict) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(results, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def _put_on_disk(path: Path) -> int:
    """Have the operating system write what a file has so far -> its size in bytes; 0 if there is none."""
    if not path.exists():
        return 0
    with open(path, "ab") as file:
        os.fsync(file.fileno())
        return file.tell()


def _tensorboard(folder: Path, *, anew: bool):
    """A writer, where TensorBoard is installed.

    Args:
        anew: delete events that are there: some may be of steps that come once more.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    if anew:
        shutil.rmtree(folder, ignore_errors=True)
    return SummaryWriter(str(folder))
