"""A stage of a run, of whichever kind, from its first epoch to its last."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from yacs.config import CfgNode

from configs.stages import CLUSTER, IMAGE, PROMPT
from model.svllreid import SvllReid
from processor.build.cluster import cluster_parts
from processor.build.data import Data
from processor.build.evaluation import refinement_of
from processor.build.image import image_parts
from processor.build.prompt import prompt_parts
from processor.compiled import compile_tower
from processor.loop import fit
from processor.run import Run
from processor.stage_run import Periods, SavedStageRun, StageParts, Training
from processor.turn import Turn
from solver.average import WeightAverage
from solver.build import make_optimizer, make_schedule
from utils.devices import pick_precision, tf32
from utils.distributed import check_identical
from utils.seeds import derive

logger = logging.getLogger(__name__)
MAKE_STAGE = {CLUSTER.name: cluster_parts, PROMPT.name: prompt_parts, IMAGE.name: image_parts}


def run_stage(run: Run, number: int, model: SvllReid, data: Data) -> Path:
    """Train the stage at place `number` of PROCESSOR.STAGES -> its last checkpoint."""
    cfg, turn = run.cfg, Turn(run.cfg.PROCESSOR.STAGES, number)
    block = turn.stage.settings(cfg)
    with run.clock(turn.title):
        # A repetition draws other batches than the first time.
        seed = derive(cfg.SOLVER.SEED, turn.again) if turn.again else cfg.SOLVER.SEED
        parts = MAKE_STAGE[turn.stage.name](run, turn, model, data, seed)
        optimizer = make_optimizer(block, parts.module, getattr(parts.module, "layer_of", None))
        precision = pick_precision(cfg.SOLVER.PRECISION, run.device)
        scaler = torch.amp.GradScaler(run.device.type) if precision is torch.float16 else None
        average = WeightAverage(parts.module, block.EMA, optimizer) if block.get("EMA") else None
        logger.info("%s: %s", turn.title, "\n  ".join(_what_trains(parts, precision, cfg.SOLVER.COMPILE)))
        prompts = model.prompts
        stage_run = SavedStageRun(
            run,
            turn,
            parts,
            Training(optimizer, precision, scaler, average),
            _periods(cfg, block),
            file=turn.file(cfg.MODEL.NAME),
            facts={
                "architecture": model.architecture,
                "prompts_trained": prompts is not None and (prompts.trained or prompts.context.requires_grad),
            },
        )
        _warn_of_precision(stage_run, cfg.SOLVER.PRECISION, precision)
        if cfg.SOLVER.COMPILE:
            for tower in filter(None, (model.image, model.text)):
                compile_tower(tower)
        with tf32(cfg.SOLVER.TF32):
            fit(
                *(parts.module, parts.batches, optimizer, make_schedule(block), block.MAX_EPOCHS),
                run=stage_run,
                precision=precision,
                scaler=scaler,
                clip_norm=cfg.SOLVER.CLIP_GRAD_NORM,
            )
        if average:
            average.swap()
        check_identical(model)
        if parts.ended is not None:
            parts.ended()
    how = f" ({refinement})" if (refinement := str(refinement_of(cfg))) else ""
    for name, best in stage_run.best.items():
        figure = f"{name} mAP {100 * best['mAP']:.1f}{how} in epoch {best['epoch']}"
        logger.info("%s  best before the end: %s", turn.title, figure)
    return stage_run.checkpoint


def _warn_of_precision(stage_run: SavedStageRun, asked: str, precision: torch.dtype) -> None:
    """The setting is the same as when the run was begun; the device may be another."""
    begun_in = (stage_run.saved.get("precision") if stage_run.saved else None) or str(precision)
    if begun_in != str(precision):
        logger.warning(
            "SOLVER.PRECISION %s is %s on this device; the run was begun in %s",
            *(each.removeprefix("torch.") for each in (asked, str(precision), begun_in)),
        )


def _periods(cfg: CfgNode, block: CfgNode) -> Periods:
    return Periods(
        block.MAX_EPOCHS,
        log=block.LOG_PERIOD,
        checkpoint=block.CHECKPOINT_PERIOD,
        evaluation=block.get("EVAL_PERIOD", 0),
        minutes=cfg.SOLVER.CHECKPOINT_MINUTES,
    )


def _what_trains(stage: StageParts, precision: torch.dtype, compiled: bool) -> list[str]:
    """Lines for the log: what trains, what is frozen, and the loss with its weights."""
    model, weights = stage.module.model, stage.module.weights
    parts = {name.replace("_", " "): list(part.parameters()) for name, part in model.named_children()}
    training = {name: sum(p.numel() for p in ps if p.requires_grad) for name, ps in parts.items()}
    total = sum(p.numel() for p in model.parameters())
    trains = ", ".join(f"{name} {count:,}" for name, count in training.items() if count)
    frozen = ", ".join(name for name, count in training.items() if not count)
    summed = {term: f" ({words})" for term, words in stage.summed.items()}
    on = ((term, weight) for term, weight in weights.items() if weight > 0)
    terms = (f"{weight:g} {term}{summed.get(term, '')}".removeprefix("1 ") for term, weight in on)
    how = str(precision).removeprefix("torch.") + (", compiled, which the first steps wait for" if compiled else "")
    return [
        f"{sum(training.values()):,} of {total:,} parameters train; towers in {how}",
        f"training: {trains}",
        f"frozen: {frozen or 'nothing'}",
        f"loss = {' + '.join(terms)}",
        *stage.notes,
    ]
