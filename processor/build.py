"""From the config to stages that run, and to evaluations with all that changes their numbers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from configs import to_dict
from datasets.build import make_loader
from model.build import SETTLED
from model.prompts import AUGMENTATIONS, words_only
from model.svllreid import SvllReid
from processor.evaluate import evaluate
from processor.image_stage import ImageStage, sentence_features
from processor.loop import Position, fit
from processor.prompt_stage import FeatureBatches, PromptStage, cache_features, matching_accuracy
from solver.build import load_optimizer, make_optimizer, make_schedule
from utils.devices import pick_precision
from utils.distributed import average_statistics, check_identical, collective, sync_batch_norm, world_size
from utils.errors import WeightsError, one_line
from utils.metrics import protocol_of
from utils.records import Batch, Benchmark, Evaluation, Reranking
from utils.report import figures
from utils.run_folder import STATES, RunFolder
from utils.seeds import random_states, restore_random_states
from utils.stopping import Stopping

logger = logging.getLogger(__name__)
SUMMED = {"identity": " (2 heads)", "triplet": " (3 depths)"}  # terms that are sums, for the log


def run_prompt_stage(
    cfg: CfgNode,
    model: SvllReid,
    benchmark: Benchmark,
    folder: RunFolder,
    device: torch.device,
    *,
    run: dict | None = None,
    stopping: Stopping | None = None,
    images_read: Callable[[], object] = lambda: None,
) -> Path:
    """Stage 1; the last checkpoint.

    Args:
        run: what `RunFolder.save_state` was given in this stage, to go on from; `model` has the weights of then.
        stopping: says whether somebody wants to stop.
        images_read: called between two passes over the training images.
    """
    block, seed = cfg.SOLVER.STAGE1, cfg.SOLVER.SEED
    loader = make_loader(cfg, benchmark.train, train=False, pin_memory=device.type == "cuda")
    cache = cache_features(model, loader, device)
    images_read()
    generator = torch.Generator(device).manual_seed(seed)
    augment = partial(AUGMENTATIONS[block.PROMPT_AUG_METHOD], strength=block.PROMPT_AUG_SCALE, generator=generator)
    stage = PromptStage(
        model,
        weights={"image_text": 1.0, "language_ssl": block.SSL_LOSS_WEIGHT},
        augment=words_only(augment, model.prompts.end) if block.PROMPT_AUG_TOKENS == "words" else augment,
        train_projector=block.TRAIN_PROJECTOR,
    )
    examples = {sample.pid: sample.path for sample in reversed(benchmark.train)}
    last = _fit(
        cfg,
        block,
        stage,
        "prompt",
        folder,
        device,
        batches=lambda epoch, done: FeatureBatches(cache, block.IMS_PER_BATCH, seed=seed, epoch=epoch, done=done),
        paths=lambda pids: [examples[pid] for pid in pids.unique().tolist()],
        file=f"{cfg.MODEL.NAME}_stage1_{{epoch}}.pth",
        generators={"prompts": generator},
        run=run,
        stopping=stopping,
    )
    model.prompts.trained = True
    accuracy = matching_accuracy(cache, sentence_features(model, device))
    logger.info(
        "prompt stage  on its own training features (this is no test):\n"
        "  %.1f %% of the images are nearest to their identity's sentence,\n"
        "  %.1f %% of the sentences to an image of their identity",
        100 * accuracy["image_to_text"],
        100 * accuracy["text_to_image"],
    )
    folder.record("training_features", step=block.MAX_EPOCHS, stage="prompt", epoch=block.MAX_EPOCHS, **accuracy)
    return last


def run_image_stage(
    cfg: CfgNode,
    model: SvllReid,
    benchmark: Benchmark,
    folder: RunFolder,
    device: torch.device,
    *,
    run: dict | None = None,
    stopping: Stopping | None = None,
    images_read: Callable[[], object] = lambda: None,
) -> Path:
    """Stage 2; the last checkpoint. `run`, `stopping` and `images_read` as in stage 1.

    Raises:
        WeightsError: images are to be compared with sentences that nobody trained.
    """
    block = cfg.SOLVER.STAGE2
    weights = {
        "identity": cfg.MODEL.ID_LOSS_WEIGHT,
        "triplet": cfg.MODEL.TRIPLET_LOSS_WEIGHT,
        "image_text": cfg.MODEL.I2T_LOSS_WEIGHT,
        "vision_ssl": block.SSL_LOSS_WEIGHT,
    }
    if weights["image_text"] > 0 and not model.prompts.trained:
        with collective():
            if not cfg.PROCESSOR.UNTRAINED_PROMPTS:
                raise WeightsError(
                    "the image stage compares images with sentences that nobody trained: run the prompt stage before "
                    "it, load them with MODEL.INIT_FROM, or say PROCESSOR.UNTRAINED_PROMPTS True"
                )
        logger.warning(
            "image stage: the %d sentences are untrained, as PROCESSOR.UNTRAINED_PROMPTS allows", model.num_pids
        )
    if cfg.SOLVER.SYNC_BN:
        model.image = sync_batch_norm(model.image, device)
    loader = make_loader(
        cfg,
        benchmark.train,
        train=True,
        views=weights["vision_ssl"] > 0,
        pin_memory=device.type == "cuda",
    )
    stage = ImageStage(
        model,
        weights=weights,
        text_features=sentence_features(model, device) if weights["image_text"] > 0 else None,
        margin=None if cfg.MODEL.NO_MARGIN else cfg.SOLVER.MARGIN,
        smoothing=0.1 if cfg.MODEL.IF_LABELSMOOTH else 0.0,
        self_supervision=cfg.MODEL.SSL_TYPE,
        side_on_views=cfg.MODEL.SIE_TWINS,
        ignore_same_identity=block.SSL_IGNORE_SAME_IDENTITY,
    )

    def batches(epoch: int, done: int) -> DataLoader[Batch]:
        loader.dataset.set_epoch(epoch)
        loader.batch_sampler.set_epoch(epoch, done)
        return loader

    def evaluates(epoch: int) -> bool:
        return epoch % block.EVAL_PERIOD == 0 and epoch < block.MAX_EPOCHS  # the end has an evaluation of its own

    best: dict[str, dict] = run["best"] if run else {}

    def after_epoch(epoch: int) -> None:
        if evaluates(epoch):
            for one in benchmark.evaluated():
                evaluation = evaluate_model(cfg, model, one, device)
                name = f"{one.name}  " if benchmark.parts else ""
                logger.info("image stage  epoch %d/%d  %s%s", epoch, block.MAX_EPOCHS, name, figures(evaluation))
                facts = {"data_set": one.name, "re_ranking": reranking_settings(evaluation)}
                folder.record("evaluation", step=epoch, stage="image", epoch=epoch, **facts, **evaluation.mean)
                if evaluation.mean["mAP"] > best.get(one.name, {"mAP": -1.0})["mAP"]:
                    best[one.name] = {"epoch": epoch, "mAP": evaluation.mean["mAP"]}
        if epoch < block.MAX_EPOCHS:  # a signal is heeded at the next epoch's first step
            with stopping.waiting() if stopping else nullcontext():
                images_read()

    last = _fit(
        cfg,
        block,
        stage,
        "image",
        folder,
        device,
        batches=batches,
        paths=lambda indices: [benchmark.train[index].path for index in indices.tolist()],
        file=f"{cfg.MODEL.NAME}_{{epoch}}.pth",
        shares=world_size(),
        evaluates=evaluates,
        after_epoch=after_epoch,
        best=best,
        run=run,
        stopping=stopping,
    )
    for name, one in best.items():
        logger.info("image stage  best before the end: %s mAP %.1f in epoch %d", name, 100 * one["mAP"], one["epoch"])
    return last


RUN_STAGE = {"prompt": run_prompt_stage, "image": run_image_stage}


def _fit(
    cfg: CfgNode,
    block: CfgNode,
    stage: nn.Module,
    name: str,
    folder: RunFolder,
    device: torch.device,
    *,
    batches: Callable[[int, int], Iterable],
    paths: Callable[[Tensor], Sequence[str]],
    file: str,
    shares: int = 1,
    generators: dict[str, torch.Generator] = {},  # noqa: B006 (never changed)
    evaluates: Callable[[int], bool] = lambda epoch: False,
    after_epoch: Callable[[int], None] | None = None,
    best: dict | None = None,
    run: dict | None = None,
    stopping: Stopping | None = None,
) -> Path:
    """What both stages have in common: optimiser, precision, the log, checkpoints, states to go on from."""
    precision = pick_precision(cfg.SOLVER.PRECISION, device)
    logger.info("%s stage: %s", name, "\n  ".join(_what_trains(stage, precision)))

    optimizer = make_optimizer(block, stage)
    scaler = torch.amp.GradScaler(device.type) if precision is torch.float16 else None
    saved: list[Path] = []
    kept_at = time.monotonic()

    def contents(epoch: int) -> dict:
        return {
            "model": stage.model.state_dict(),
            "stage": name,
            "epoch": epoch,
            "config": to_dict(cfg),
            "architecture": stage.model.architecture,
            "prompts_trained": name == "prompt" or bool(stage.model.prompts and stage.model.prompts.trained),
        }

    def to_go_on(position: Position) -> dict:
        return {
            "position": position._asdict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "random": random_states(generators),
            "best": best or {},
            "device": device.type,
            "precision": str(precision),
        }

    def due(epoch: int, ended: bool) -> bool:
        by_period = epoch % block.CHECKPOINT_PERIOD == 0 or epoch == block.MAX_EPOCHS or evaluates(epoch)
        minutes = cfg.SOLVER.CHECKPOINT_MINUTES
        return (ended and by_period) or (minutes > 0 and time.monotonic() - kept_at >= 60 * minutes)

    def keep(position: Position) -> None:
        nonlocal kept_at
        average_statistics(stage.model)
        where = f"{name}_epoch{position.epoch}_step{position.step}"
        folder.save_state(where, contents(position.epoch), to_go_on(position))
        kept_at = time.monotonic()

    def save_and(epoch: int) -> None:
        average_statistics(stage.model)
        if epoch % block.CHECKPOINT_PERIOD == 0 or epoch == block.MAX_EPOCHS:
            saved.append(folder.save(file.format(epoch=epoch), contents(epoch)))
        if after_epoch is not None:
            after_epoch(epoch)

    start = None
    if run is not None:
        start = Position._make(map(run["position"].get, Position._fields))
        begun_in = run.get("precision") or str(precision)
        if begun_in != str(precision):  # the setting is the same: the device is another
            logger.warning(
                "SOLVER.PRECISION %s is %s on this device; the run was begun in %s",
                *(each.removeprefix("torch.") for each in (cfg.SOLVER.PRECISION, str(precision), begun_in)),
            )
        with collective():
            try:
                load_optimizer(optimizer, run["optimizer"]["state"])
                if scaler:
                    scaler.load_state_dict(run["scaler"])
                restore_random_states(run["random"], generators)
            except Exception as error:  # of any type: these parts are PyTorch's, NumPy's and Python's own
                told = f"does not fit its optimizer, scaler or random ({type(error).__name__}: {one_line(error)})"
                raise WeightsError(f"{folder.path / STATES}: the state {told}") from error
    fit(
        stage,
        batches,
        optimizer,
        make_schedule(block),
        block.MAX_EPOCHS,
        device=device,
        precision=precision,
        scaler=scaler,
        clip_norm=cfg.SOLVER.CLIP_GRAD_NORM,
        name=name,
        log_period=block.LOG_PERIOD,
        start=start,
        after_epoch=save_and,
        record=folder.record,
        paths=paths,
        due=due,
        save=keep,
        failed=lambda position, facts: folder.save_failure({**contents(position.epoch), **to_go_on(position), **facts}),
        stopping=stopping,
        shares=shares,
    )
    check_identical(stage.model)
    return saved[-1]


def _what_trains(stage: nn.Module, precision: torch.dtype) -> list[str]:
    """Lines for the log: what trains, what is frozen, and the loss with its weights."""
    parts = {name.replace("_", " "): list(part.parameters()) for name, part in stage.model.named_children()}
    training = {name: sum(p.numel() for p in ps if p.requires_grad) for name, ps in parts.items()}
    total = sum(p.numel() for p in stage.model.parameters())
    trains = ", ".join(f"{name} {count:,}" for name, count in training.items() if count)
    frozen = ", ".join(name for name, count in training.items() if not count)
    weights = {term: weight for term, weight in stage.weights.items() if weight > 0}
    terms = (f"{weight:g} {term}{SUMMED.get(term, '')}".removeprefix("1 ") for term, weight in weights.items())
    return [
        f"{sum(training.values()):,} of {total:,} parameters train; towers in {str(precision).removeprefix('torch.')}",
        f"training: {trains}",
        f"frozen: {frozen or 'nothing'}",
        f"loss = {' + '.join(terms)}",
    ]


def settle_side(asked: str, architecture: dict, benchmark: Benchmark, *, at_home: bool | None) -> str:
    """TEST.SIE for one data set: "same", "mean" or "none", which is all there is without a table.

    Args:
        asked: what the configuration says; "auto" is "same" at home, else "mean": the rows that were learnt for other
            cameras mean nothing here, their mean is what the tower is used to.
        at_home: whether the network was trained on this data set; None where nobody knows: then "auto" goes by the
            numbers of cameras and viewpoints.

    Raises:
        WeightsError: with "same", the benchmark has cameras or viewpoints that the table was not made for.
    """
    nouns = {"camera": "cameras", "view": "viewpoints"}
    used = [name for name in nouns if architecture[f"sie_{name}"]]
    if not used:
        return "none"
    present = {"camera": benchmark.num_cams, "view": benchmark.num_views}
    rows = {"camera": architecture["num_cams"], "view": architecture["num_views"]}
    if asked == "auto":
        if at_home is None:
            at_home = all(present[name] == rows[name] for name in used)
        asked = "same" if at_home else "mean"
    for name in used:
        if asked == "same" and present[name] > rows[name]:
            raise WeightsError(
                f"the network's side information knows {rows[name]} {nouns[name]}, {benchmark.name} has "
                f"{present[name]}: are MODEL.SIE_CAMERA and MODEL.SIE_VIEW as in its training? TEST.SIE mean or none "
                "tests all the same"
            )
    return asked


def evaluate_model(
    cfg: CfgNode, model: SvllReid, benchmark: Benchmark, device: torch.device, *, at_home: bool | None = True
) -> Evaluation:
    """Evaluate as TEST says.

    Args:
        at_home: whether the network was trained on this data set; None where nobody knows. See `settle_side`.

    Raises:
        WeightsError: the benchmark has cameras or viewpoints that the side-information table was not made for.
    """
    side = settle_side(cfg.TEST.SIE, model.architecture, benchmark, at_home=at_home)
    return evaluate(
        model,
        benchmark,
        partial(make_loader, cfg, train=False, pin_memory=device.type == "cuda"),
        device=device,
        neck=cfg.TEST.NECK_FEAT == "after",
        normalise=cfg.TEST.FEAT_NORM,
        reranking=_reranking(cfg),
        side=side,
    )


def _reranking(cfg: CfgNode) -> Reranking | None:
    if not cfg.TEST.RE_RANKING:
        return None
    return Reranking(cfg.TEST.RE_RANKING_K1, cfg.TEST.RE_RANKING_K2, cfg.TEST.RE_RANKING_LAMBDA)


def reranking_settings(evaluation: Evaluation) -> dict | None:
    """How an evaluation was re-ranked, as plain types."""
    return evaluation.reranking._asdict() if evaluation.reranking else None


def result_entry(
    when: str,
    cfg: CfgNode,
    benchmark: Benchmark,
    evaluation: Evaluation,
    *,
    architecture: dict,
    seed: int | None,
    fingerprint: dict,
    checkpoint: Path | str | None,
    notes: Sequence[str] = (),
) -> dict:
    """An entry of results.json: the figures as fractions, and everything that changes them.

    Args:
        when: start, end or test.
        architecture: the network's description.
        seed: of the training, where it is known.
        notes: what is not as it was in training, and what makes the figures doubtful.
    """
    first, trial = evaluation.trials[0], benchmark.trials[0]
    return {
        "when": when,
        **evaluation.mean,
        "valid_queries": first.num_valid,
        "queries": first.num_queries,
        "gallery_images": len(trial.gallery),
        "trials": len(evaluation.trials),
        "std": evaluation.std if len(evaluation.trials) > 1 else None,
        "data_set": benchmark.name,
        "feat_norm": cfg.TEST.FEAT_NORM,
        "neck_feat": cfg.TEST.NECK_FEAT,
        "protocol": protocol_of(benchmark.ignored),
        "side_information": evaluation.side,
        "network": {name: architecture[name] for name in SETTLED},
        "notes": list(notes),
        "re_ranking": reranking_settings(evaluation),
        "precision": "fp32",
        "seed": seed,
        "checkpoint": str(checkpoint) if checkpoint else None,
        **fingerprint,
    }
