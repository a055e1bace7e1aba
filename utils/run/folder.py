"""A run's folder: one process writes to it, what it resumes from is kept, and no other run's files get into it."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml

from utils.checkpoint import save_checkpoint, write_tensors
from utils.errors import UserError, one_line
from utils.files import replace_text
from utils.run import CONFIG, NON_FINITE, RESULTS, STATES, TENSORBOARD, VERSIONS, WRITTEN
from utils.run.metrics import Metrics
from utils.run.places import check_unused
from utils.run.results import read_results, take_back_results
from utils.run.state import KEPT, State, drop_states, newest_state, next_state, state_files
from utils.schema import Settings, fault
from utils.workers import dead_worker

logger = logging.getLogger(__name__)


class EarlierRun(NamedTuple):
    """What a folder holds of a run."""

    config: dict
    evaluations: list[dict]  # the entries of results.json
    state: State | None  # to resume from
    damaged: str | None = None  # why none of the states that are there can be resumed from


def earlier_run(path: Path) -> EarlierRun | None:
    """The run in a folder; None if there is none.

    Its newest state holds the configuration, too: where that is whole, the small files beside it are not needed.

    Raises:
        UserError: something is there, but no whole run of this program.
    """
    if not (path / CONFIG).exists() and not state_files(path):
        check_unused(path)
        return None
    evaluations = read_results(path / RESULTS)["evaluations"]
    state, damaged = None, None
    try:
        state = newest_state(path)
    except UserError as error:
        damaged = str(error)
    if state is not None and (state.path == state_files(path)[-1] or not (path / CONFIG).exists()):
        return EarlierRun(state.contents["config"], evaluations, state)
    # An older state may be from before the run was given more epochs.
    return EarlierRun(read_config(path), evaluations, state, damaged)


def read_config(path: Path) -> dict:
    """The settings in a run's folder; UserError if they cannot be read."""
    try:
        config = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path / CONFIG}: cannot be read ({one_line(error)}); move the run there away") from error
    if wrong := fault(config, Settings):
        raise UserError(f"{path / CONFIG}: is not a run's ({wrong}); give another OUTPUT_DIR")
    return config


class RunFolder:
    """OUTPUT_DIR of a training; docs/runs.md says what is in it.

    Args:
        path: the folder; made if absent.
        config: written to config.yaml.
        fingerprint: what the run depends on besides; written to versions.json and into checkpoints.
        earlier: the run that the folder holds; what it wrote after its state was saved is taken back. Without a state,
            it begins anew.
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
        earlier: EarlierRun | None = None,
        ended: bool = False,
    ):
        self.path, self.earlier = path, earlier
        self.facts = {"config": config, "fingerprint": fingerprint}  # of every checkpoint
        state = earlier.state if earlier else None
        self.states = [state.path] if state else []  # whole ones, oldest first
        if not earlier and (path / CONFIG).exists():
            raise UserError(f"OUTPUT_DIR {path}: another run was started there at the same time")
        try:
            path.mkdir(parents=True, exist_ok=True)
            written = (NON_FINITE, CONFIG, VERSIONS, RESULTS)
            for name in (f"{STATES}/.*.pth", ".*.pth", ".*.md", *(f".{each}" for each in written)):
                for left in path.glob(f"{name}.*.tmp"):
                    left.unlink()  # of a process that was killed while it wrote
            if earlier:
                take_back_results(path / RESULTS, start=state is None, end=not ended)
            replace_text(path / CONFIG, yaml.safe_dump(config, sort_keys=False))
            if state is None or not (path / VERSIONS).exists():
                replace_text(path / VERSIONS, json.dumps(fingerprint, indent=2) + "\n")
            size = None if earlier is None else state.run["metrics_bytes"] if state else 0
            self.metrics = Metrics(path, size=size)
        except BaseException as error:  # a signal, too
            self.discard()
            if not isinstance(error, OSError):
                raise
            raise UserError(f"OUTPUT_DIR {path}: cannot be written to ({error.strerror})") from error

    def save(self, name: str, contents: dict) -> Path:
        """Write a checkpoint, with the configuration and the run's fingerprint -> its path."""
        path = self.path / name
        with _reporting(path):
            save_checkpoint(path, {**contents, **self.facts})
        logger.info("saved %s", path)
        return path

    def save_state(self, name: str, contents: dict, run: dict) -> None:
        """Write a checkpoint with all that training resumes from, and leave only the newest ones.

        Args:
            name: what the file is called after its number.
            contents: of a checkpoint.
            run: what training needs besides.
        """
        path = next_state(self.path, name)
        with _reporting(path):
            run = {**run, "metrics_bytes": self.metrics.put_on_disk()}
            path.parent.mkdir(exist_ok=True)
            save_checkpoint(path, {**contents, **self.facts, "run": run})
        self.states = [*self.states, path][-KEPT:]
        drop_states(self.path, keep=self.states)

    def save_failure(self, contents: dict) -> None:
        """Write what there is to look into after a loss that was not finite."""
        path = self.path / NON_FINITE
        with _reporting(path):
            write_tensors(path, {**contents, "config": self.facts["config"]})
        logger.info("what there is to look into: %s", path)

    def discard(self) -> bool:
        """Empty the folder, if no training step was logged, no checkpoint saved and no run was here before -> whether
        it was."""
        metrics = getattr(self, "metrics", None)  # it may be half made
        logged = metrics.kinds - {"evaluation"} if metrics else set()
        if self.earlier or any(self.path.glob("*.pth")) or state_files(self.path) or logged:
            return False
        if metrics:
            metrics.close()
        shutil.rmtree(self.path / TENSORBOARD, ignore_errors=True)
        for name in (*WRITTEN, CONFIG):
            with contextlib.suppress(OSError):  # Windows keeps a log file that is open
                (self.path / name).unlink(missing_ok=True)
        for folder in (self.path / STATES, self.path):  # the former is there, and empty, if no state could be written
            with contextlib.suppress(OSError):  # it holds something else
                folder.rmdir()
        return True


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Say which file could not be written, and why."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch says in a RuntimeError that a disk is full
        cause = error.__context__
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):  # a signal; torch took it for a write that failed
                raise cause from None
            cause = cause.__context__
        if dead_worker(error):
            raise
        reason = getattr(error, "strerror", None) or f"is the disk full? {one_line(error)[:80]}"
        raise UserError(f"{path}: the checkpoint cannot be written ({reason}); earlier ones are intact") from error
