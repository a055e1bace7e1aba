"""A run: one training, from the folder that it claims to the last line of its log."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from yacs.config import CfgNode

from configs import to_dict
from configs.stages import STAGES
from model.build import settle_pixels
from model.svllreid import SvllReid
from processor.card import facts_of, model_card
from processor.resume import check_fingerprint, check_resume, has_ended, stage_number
from utils.clock import Clock
from utils.devices import make_deterministic, pick_device
from utils.distributed import collective, is_main, join_processes, leave_processes, main_first, on_main
from utils.files import write_text
from utils.logs import log_to_file
from utils.run import LOG, RESULTS
from utils.run.folder import EarlierRun, RunFolder, earlier_run
from utils.run.lock import lock
from utils.run.places import check_unused, check_writable
from utils.run.results import START, append_result
from utils.seeds import seed_everything
from utils.stopping import Interrupted, Stopping

T = TypeVar("T")
logger = logging.getLogger(__name__)


@contextmanager
def open_run(cfg: CfgNode, path: Path) -> Iterator[Run]:
    """The run of these settings in the folder `path`, which no other process writes to meanwhile.

    Raises:
        UserError: the folder cannot be used, or holds a run that cannot be resumed with these settings.
        Interrupted: somebody stopped it; the message says what was saved.
    """
    cfg = settle_pixels(cfg)
    if cfg.SOLVER.DETERMINISTIC:
        make_deterministic()
    device = join_processes(pick_device(cfg.MODEL.DEVICE))
    with ExitStack() as stack, Stopping() as stopping:
        stack.callback(leave_processes)
        # The main process claims the folder; then all read what is in it, and nobody has written yet.
        earlier = main_first(lambda: _claim(cfg, path, stack))
        with collective():
            finished = earlier is not None and not check_resume(cfg, path, earlier, device)
        run = Run(cfg, path, device, stopping, earlier, finished=finished)
        try:
            if not finished:
                seed_everything(cfg.SOLVER.SEED)
            yield run
        except BaseException as error:  # out of memory, too
            emptied = run.discard()
            if isinstance(error, KeyboardInterrupt):
                number = error.number if isinstance(error, Interrupted) else signal.SIGINT
                outcome = "nothing was saved" if emptied else run.outcome()
                raise Interrupted(number, f"during {run.clock.current}; {outcome}") from None
            raise


def _claim(cfg: CfgNode, path: Path, stack: ExitStack) -> EarlierRun | None:
    """Keep other runs out of the folder -> the run in it, if there is one."""
    if is_main():
        check_writable(path)
        stack.enter_context(lock(path))
        if not cfg.RESUME:
            check_unused(path)
    return earlier_run(path) if cfg.RESUME else None


class Run:
    """Device, processes, folder, log, clock, requests to stop, and the state that is resumed from.

    Of several processes the main one writes. Whatever writes is a collective: what fails there fails on all.

    Args:
        cfg: all settings.
        path: OUTPUT_DIR.
        earlier: the run that the folder holds.
        finished: whether that one left nothing to do.
    """

    def __init__(
        self,
        cfg: CfgNode,
        path: Path,
        device: torch.device,
        stopping: Stopping,
        earlier: EarlierRun | None = None,
        *,
        finished: bool = False,
    ):
        self.cfg, self.path, self.device, self.stopping = cfg, path, device, stopping
        self.earlier, self.finished = earlier, finished
        self.state = earlier.state if earlier else None
        self.first_stage = stage_number(self.state, cfg.PROCESSOR.STAGES) if self.state else 0
        self.clock = Clock()
        self.folder: RunFolder | None = None  # the main process's, from `begin` on
        self.fingerprint: dict = {}
        self.entries: list[dict] = []  # of results.json, for the table at the end

    def resumes(self, number: int) -> bool:
        """Whether the stage at this place of PROCESSOR.STAGES goes on where it was saved, with the network of then."""
        return self.state is not None and number == self.first_stage

    # ------------------------------------------------------------------------------------------------------- the start

    def set_fingerprint(self, fingerprint: dict) -> None:
        """Keep the fingerprint of data and libraries; DataError if a run is resumed with other images."""
        self.fingerprint = fingerprint
        with collective():
            if self.state and is_main():
                check_fingerprint(self.state.contents["fingerprint"], fingerprint, self.path)

    def begin(self) -> None:
        """Write the folder's first files, and the log there from now on; UserError if it cannot be written to."""
        with self.clock("the run's folder"), collective():
            if is_main():
                self.folder = RunFolder(
                    self.path,
                    config=to_dict(self.cfg),
                    fingerprint=self.fingerprint,
                    earlier=self.earlier,
                    ended=self.earlier is not None and has_ended(self.cfg, self.earlier),
                )
        self._write(lambda folder: log_to_file(folder.path / LOG))
        if self.state:
            self.entries = [entry for entry in self.earlier.evaluations if entry["when"] == START]
            if not self.entries:
                logger.warning("%s: the evaluation of the start is gone", self.path / RESULTS)
            position = self.state.run["position"]
            title = STAGES[self.state.contents["stage"]].title
            logger.info(
                "resumed from %s: %s, epoch %d, after step %d",
                *(self.state.path, title, position["epoch"], position["step"]),
            )
        elif self.earlier:
            logger.info("an earlier run in %s left no state to resume from: from the beginning", self.path)

    # ------------------------------------------------------------------------------------------------- what it writes

    def _write(self, what: Callable[[RunFolder], T]) -> T:
        """What the main process writes to the folder, or why it cannot, for all processes."""
        return on_main(lambda: what(self.folder))

    def record(self, kind: str, *, step: int, **values: Any) -> None:
        """Append numbers to metrics.jsonl; `step` counts over the whole stage."""
        self._write(lambda folder: folder.metrics.record(kind, step=step, **values))

    def save(self, name: str, contents: dict) -> Path:
        """Write a checkpoint, with the configuration and the run's fingerprint -> its path."""
        return self._write(lambda folder: folder.save(name, contents))

    def save_state(self, name: str, contents: dict, run: dict) -> None:
        """Write a state to resume from; `run` is what training needs besides a checkpoint's contents."""
        self._write(lambda folder: folder.save_state(name, contents, run))

    def save_failure(self, contents: dict) -> None:
        """Write what there is to look into after a loss that was not finite."""
        self._write(lambda folder: folder.save_failure(contents))

    def write_card(self, checkpoint: Path, model: SvllReid, results: Sequence[dict]) -> None:
        """Write the model card of the last checkpoint beside it.

        Args:
            results: its entries of results.json.
        """
        stage = STAGES[self.cfg.PROCESSOR.STAGES[-1]]
        facts = facts_of(
            model,
            to_dict(self.cfg),
            name=checkpoint.stem,
            place=checkpoint.name,
            stage=stage.name,
            epoch=stage.epochs(self.cfg),
            results=results,
        )
        self._write(lambda _: write_text(checkpoint.with_suffix(".md"), model_card(facts)))

    def add_result(self, entry: dict) -> None:
        """Add an evaluation to results.json."""
        self.entries.append(entry)
        self._write(lambda folder: append_result(folder.path, entry))

    def discard(self) -> bool:
        """Empty the folder, if nothing was trained and no run was here before -> whether nothing is left."""
        return self.folder.discard() if self.folder else self.earlier is None

    def outcome(self) -> str:
        """What is left, in words."""
        state = self.folder.states[-1] if self.folder and self.folder.states else self.state and self.state.path
        return f"the same command resumes from {state}" if state else f"see {self.path}"
