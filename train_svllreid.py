"""Train: both stages of SVLL-ReID, CLIP-ReID or a baseline, as the configuration says.

python train_svllreid.py --config_file configs/person/vit_svllreid.yml DATASETS.ROOT_DIR /data OUTPUT_DIR runs/market
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Collection
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from yacs.config import CfgNode

import utils.threads  # noqa: F401
from configs import EPOCHS, ConfigError, check_changes, epochs_of, from_dict, load, to_dict
from utils.command import answer_early, check_there, parse, run_script
from utils.paths import expanded


def read_command_line(argv: list[str] | None = None) -> tuple[CfgNode, Path, list[str]]:
    """The settings, the run's folder, and the keys that the command line has."""
    arguments = parse(__doc__, argv)
    cfg = load(arguments.config_file, arguments.overrides)
    folder = expanded(cfg.OUTPUT_DIR or default_folder(cfg, arguments.config_file), "OUTPUT_DIR")
    if not os.path.lexists(folder) and "synthetic" not in cfg.DATASETS.NAMES:  # which is rendered
        advice = "; right is the folder that holds the data sets, as the README has it; none is ever downloaded"
        check_there(cfg.DATASETS.ROOT_DIR, "DATASETS.ROOT_DIR", advice)
    return cfg, folder, arguments.overrides[::2]


def default_folder(cfg: CfgNode, config_file: str | None) -> str:
    """runs/DATASET_CONFIGFILE_seedSEED"""
    return f"runs/{cfg.DATASETS.NAMES}_{Path(config_file or 'defaults').stem}_seed{cfg.SOLVER.SEED}"


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line, ConfigError)

from datasets.build import identities_per_batch, make_benchmark
from datasets.check import quick_check
from datasets.several import names_of
from model.build import make_model, resume_model
from processor.build import RUN_STAGE, evaluate_model, result_entry
from tools.demo.render import render_missing
from utils.clock import Clock, peak_memory
from utils.devices import describe, make_deterministic, pick_device
from utils.distributed import (
    collective,
    copy_from_main,
    is_main,
    join_processes,
    leave_processes,
    main_first,
    on_main,
)
from utils.errors import DataError, UserError, WeightsError
from utils.fingerprint import Watch, data_fingerprint, versions
from utils.logs import log_to_file, log_to_screen
from utils.report import table
from utils.run_folder import (
    CONFIG,
    END,
    LOG,
    RESULTS,
    START,
    EarlierRun,
    Onlooker,
    RunFolder,
    State,
    append_result,
    check_unused,
    check_writable,
    count_ends,
    earlier_run,
    lock,
    read_state,
)
from utils.seeds import seed_everything
from utils.stopping import Interrupted, Stopping

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("train")


def main(argv: list[str] | None = None) -> Path:
    """Train as the command line says; the run's folder."""
    log_to_screen()
    cfg, folder, requested = read_command_line(argv)
    return train(cfg, folder, requested=requested)


def train(cfg: CfgNode, path: Path, *, requested: Collection[str] = ()) -> Path:
    """The whole way: data, network, evaluation of the start, every stage, evaluation of the end.

    A run that `path` holds is gone on with where its last state was kept, or, where it has ended, left as it is.

    Args:
        requested: keys of the command line.
    """
    if cfg.SOLVER.DETERMINISTIC:
        make_deterministic()
    device = join_processes(pick_device(cfg.MODEL.DEVICE))
    with ExitStack() as stack, Stopping() as stopping:
        stack.callback(leave_processes)
        earlier = on_main(lambda: claim(cfg, path, stack))
        with collective():
            state = read_state(earlier.state) if earlier and earlier.state else None
            left = earlier is None or to_go_on(cfg, path, earlier, state, device)
        if left:
            _train(cfg, path, device, stopping, requested=requested, earlier=earlier, state=state)
    return path


def claim(cfg: CfgNode, path: Path, stack: ExitStack) -> EarlierRun | None:
    """Keep other runs out of the folder -> the run in it, if there is one."""
    check_writable(path)
    stack.enter_context(lock(path))
    if not cfg.RESUME:
        check_unused(path)
        return None
    return earlier_run(path)


def to_go_on(cfg: CfgNode, path: Path, earlier: EarlierRun, state: State | None, device: torch.device) -> bool:
    """Whether anything is left to do of the run that the folder holds.

    Raises:
        ConfigError: settings that may not change have.
        UserError: it was trained on another kind of device, or its states are gone or damaged.
    """
    before = from_dict(earlier.config, where=str(earlier.state or path / CONFIG))
    ended = has_ended(before, earlier)
    stage, epoch = before.PROCESSOR.STAGES[0], 0
    if state:
        stage, epoch = state.contents["stage"], state.contents["run"]["position"]["epoch"]
        if stage not in before.PROCESSOR.STAGES or epoch > epochs_of(before, stage):
            raise WeightsError(f"{state.path}: is of epoch {epoch} of the {stage} stage, which this run has not")
    if ended:
        stage = before.PROCESSOR.STAGES[-1]
        epoch = epochs_of(before, stage)
    weights = state is not None or any(path.glob("*.pth"))
    changes = check_changes(before, cfg, stage=stage, epoch=epoch, where=str(path), weights=weights)
    last = EPOCHS[before.PROCESSOR.STAGES[-1]]
    if ended and not any(change.startswith(last) for change in changes):
        logger.info("%s: this run is finished; another one needs another OUTPUT_DIR", path)
        return False
    if earlier.damaged:
        raise UserError(earlier.damaged)
    if state is None and (weights or count_ends(earlier.evaluations)):
        raise UserError(
            f"OUTPUT_DIR {path}: holds a run with checkpoints, but no state to go on from (resume/); start another run "
            "from a checkpoint's weights in another OUTPUT_DIR (MODEL.INIT_FROM)"
        )
    for change in changes:
        logger.info("changed since the run was started: %s", change)
    if state and state.contents["run"]["device"] != device.type:
        raise UserError(
            f"MODEL.DEVICE {cfg.MODEL.DEVICE}: the run in {path} is on {state.contents['run']['device']}, here is "
            f"{device.type}; its weights can start a new run there (MODEL.INIT_FROM, another OUTPUT_DIR)"
        )
    return True


def has_ended(cfg: CfgNode, earlier: EarlierRun) -> bool:
    """Whether all data sets were evaluated after all training."""
    return count_ends(earlier.evaluations) == len(names_of(cfg.DATASETS.NAMES))


def _train(
    cfg: CfgNode,
    path: Path,
    device: torch.device,
    stopping: Stopping,
    *,
    requested: Collection[str],
    earlier: EarlierRun | None,
    state: State | None,
) -> None:
    clock = Clock()
    seed_everything(cfg.SOLVER.SEED)
    identities = on_main(lambda: identities_per_batch(cfg)) if "image" in cfg.PROCESSOR.STAGES else None
    with clock("data"):
        on_main(lambda: render_missing(cfg))
        benchmark = main_first(lambda: make_benchmark(cfg))
        facts = {"instances": cfg.DATALOADER.NUM_INSTANCE, "identities": identities}
        warnings = on_main(lambda: quick_check(benchmark, **facts).heed(logger))
    fingerprint = on_main(lambda: {"data_fingerprint": data_fingerprint(benchmark), "versions": versions()})
    watches = [Watch("training images", benchmark.train), Watch("test images", *chain(*benchmark.trials))]
    if state:
        on_main(lambda: check_same(state.contents["fingerprint"], fingerprint, path))
    with clock("network"):
        if state:
            with collective():
                model = resume_model(state.contents, str(state.path)).to(device)
        else:  # weights are downloaded by one
            model = main_first(lambda: make_model(cfg, benchmark, requested=requested)).to(device)
            copy_from_main(model)
    folder = Onlooker(path)
    with collective():
        if is_main():
            again = {"again": earlier is not None, "ended": earlier is not None and has_ended(cfg, earlier)}
            folder = RunFolder(path, config=to_dict(cfg), fingerprint=fingerprint, state=state, **again)
    entries: list[dict] = [entry for entry in earlier.evaluations if entry["when"] == START] if state else []
    if state and not entries:
        logger.warning("%s: the evaluation of the start is gone", path / RESULTS)

    def evaluate(when: str, checkpoint: Path | None) -> None:
        for one in benchmark.evaluated():
            evaluation = evaluate_model(cfg, model, one, device)
            entry = result_entry(
                when,
                cfg,
                one,
                evaluation,
                architecture=model.architecture,
                seed=cfg.SOLVER.SEED,
                fingerprint=fingerprint,
                checkpoint=checkpoint,
                notes=[*warnings, *(note for watch in watches for note in watch.look())],
            )
            entries.append(entry)
            facts = {"data_set": one.name, "re_ranking": entry["re_ranking"]}
            folder.record("evaluation", step=len(entries), stage=when, **facts, **evaluation.mean)
            on_main(partial(append_result, path, entry))  # last: a run whose last entry is there is finished

    stages = list(cfg.PROCESSOR.STAGES)
    try:
        on_main(lambda: log_to_file(path / LOG))
        logger.info("%s: %s", benchmark.name, benchmark.counts())
        logger.info("%s on %s, seed %d, into %s", cfg.MODEL.NAME, describe(device), cfg.SOLVER.SEED, path)
        if state:
            position = state.contents["run"]["position"]
            stages = stages[stages.index(state.contents["stage"]) :]
            logger.info(
                "resumed from %s: %s stage, epoch %d, after step %d",
                *(state.path, stages[0], position["epoch"], position["step"]),
            )
        else:
            if earlier:
                logger.info("an earlier run in %s left no state to go on from: from the beginning", path)
            with clock("evaluation of the start"):  # also shows, before hours are spent, that evaluation works
                evaluate(START, None)
            logger.info("before training:\n%s", table(entries))
        for stage in stages:
            run = state.contents["run"] if state and stage == state.contents["stage"] else None
            with clock(f"{stage} stage"):
                going = {"run": run, "stopping": stopping, "images_read": watches[0].look}
                checkpoint = RUN_STAGE[stage](cfg, model, benchmark, folder, device, **going)
        with clock("evaluation of the end"):
            evaluate(END, checkpoint)
    except BaseException as error:  # out of memory, too
        free = not earlier and folder.discard()
        if isinstance(error, KeyboardInterrupt):
            number = error.number if isinstance(error, Interrupted) else signal.SIGINT
            kept = f"the same command goes on from {folder.whole[-1]}" if folder.whole else f"see {path}"
            outcome = "nothing was saved" if free else kept
            raise Interrupted(number, f"during the {clock.current}; {outcome}") from None
        raise

    logger.info("peak memory %s; time %s", peak_memory(), clock)
    logger.info("%s\n%s", benchmark.name, table(entries))
    logger.info("test it again: python test_svllreid.py TEST.WEIGHT %s", checkpoint)


def check_same(before: dict, now: dict, path: Path) -> None:
    """Refuse to go on with other pictures; say that a library is another one.

    Raises:
        DataError: the training images, or those of the test, are not those that the run was started with.
    """
    for split, what in (("train", "training images"), ("test", "queries or gallery images")):
        old, new = ((each.get("data_fingerprint") or {}).get(split) for each in (before, now))
        if old != new:
            raise DataError(
                f"OUTPUT_DIR {path}: the {what} are not those that this run was started with (fingerprint {old}, now "
                f"{new}): their files, sizes or labels have changed since; put them back, or start another run (from a "
                "checkpoint's weights: MODEL.INIT_FROM)"
            )
    for name, old in (before.get("versions") or {}).items():
        if now["versions"].get(name) != old:
            logger.warning("%s is %s now, the run was started with %s", name, now["versions"].get(name), old)


if __name__ == "__main__":
    sys.exit(run_script(main, ConfigError))
