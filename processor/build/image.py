"""The parts of stage 2 (images)."""

from __future__ import annotations

import logging
from functools import partial
from operator import attrgetter

from yacs.config import CfgNode

from configs.stages import IMAGE, PROMPT
from datasets.build import make_loader
from model.svllreid import SvllReid
from model.towers import has_batch_norm
from processor.build.data import Data, draw
from processor.build.evaluation import evaluate_epoch
from processor.build.prototypes import keep_prototypes
from processor.image_stage import TERMS, ImageStage, all_text_features
from processor.run import Run
from processor.stage_run import StageParts
from processor.turn import Turn
from utils.distributed import collective, sync_batch_norm, world_size
from utils.errors import WeightsError

logger = logging.getLogger(__name__)


def image_parts(run: Run, turn: Turn, model: SvllReid, data: Data, seed: int) -> StageParts:
    cfg, device, benchmark = run.cfg, run.device, data.benchmark
    block = IMAGE.settings(cfg)
    weights = {name: attrgetter(term.weight)(cfg) for name, term in TERMS.items()}
    if weights["image_text"] > 0:
        _check_prompts(model, allowed=cfg.PROCESSOR.UNTRAINED_PROMPTS)
    if cfg.SOLVER.SYNC_BN:
        model.image = sync_batch_norm(model.image, device)
    views = weights["vision_ssl"] > 0
    loader = make_loader(cfg, benchmark.train, train=True, views=views, device=device, seed=seed)
    stage = ImageStage(
        model,
        weights=weights,
        text_features=all_text_features(model, device) if weights["image_text"] > 0 else None,
        margin=None if cfg.MODEL.NO_MARGIN else cfg.SOLVER.MARGIN,
        smoothing=0.1 if cfg.MODEL.IF_LABELSMOOTH else 0.0,
        self_supervision=cfg.MODEL.SSL_TYPE,
        side_on_views=cfg.MODEL.SIE_TWINS,
        ignore_same_identity=block.SSL_IGNORE_SAME_IDENTITY,
        positives=block.SSL_POSITIVES,
        triplet_features=cfg.MODEL.TRIPLET_FEATURES,
    )
    before_epoch = keep_prototypes(run, stage, data)
    notes = save_memory(stage, block)
    if block.EMA:
        notes.append(f"checkpoints and evaluations have the moving average of the weights, of decay {block.EMA:g}")

    depths = sum(map(bool, model.image.dims)) if cfg.MODEL.TRIPLET_FEATURES == "all" else 1
    summed = {"identity": (len(model.heads), "heads"), "triplet": (depths, "depths")}
    return StageParts(
        stage,
        partial(draw, loader),
        summed={term: f"{count} {parts}" for term, (count, parts) in summed.items() if count > 1},
        notes=notes,
        image_paths=data.paths,
        shares=world_size(),
        before_epoch=before_epoch,
        after_step=stage.update if stage.memories else None,
        evaluate=partial(evaluate_epoch, run, model, benchmark, turn),
        epoch_ended=data.train_watch.look,
    )


def save_memory(stage: ImageStage, block: CfgNode) -> list[str]:
    """Lines for the log: by which means the image tower takes less memory."""
    tower, size, notes = stage.model.image, block.MINI_BATCH, []
    if block.GRAD_CHECKPOINTING:
        tower.set_grad_checkpointing(True)
        notes.append("gradient checkpointing: the blocks of the image tower are computed again for the gradient")
    if size:
        stage.mini_batch = size
        notes.append(f"{size} images at a time go through the image tower, and again for the gradient")
        if has_batch_norm(tower):
            message = "%s %d: the image tower has batch norm, which sees that many images instead of the batch"
            logger.warning(message, IMAGE.key("MINI_BATCH"), size)
    return notes


def _check_prompts(model: SvllReid, *, allowed: bool) -> None:
    """Raise WeightsError if images are to be compared with untrained prompts, unless that is `allowed`."""
    if model.prompts.trained:
        return
    with collective():
        if not allowed:
            raise WeightsError(
                f"{IMAGE.title} compares images with prompts that nobody trained: run {PROMPT.title} before it, load "
                "them with MODEL.INIT_FROM, or set PROCESSOR.UNTRAINED_PROMPTS True"
            )
    logger.warning(
        "%s: the %d prompts are untrained, as PROCESSOR.UNTRAINED_PROMPTS allows", IMAGE.title, model.num_pids
    )
