"""From the config to stages that run, and to evaluations with all that changes their numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from configs import to_dict
from datasets.build import make_loader
from model.build import SETTLED
from model.prompts import AUGMENTATIONS, words_only
from model.svllreid import SvllReid
from processor.evaluate import evaluate
from processor.image_stage import ImageStage, sentence_features
from processor.loop import fit
from processor.prompt_stage import FeatureBatches, PromptStage, cache_features, matching_accuracy
from solver.build import make_optimizer, make_schedule
from utils.devices import pick_precision
from utils.errors import WeightsError
from utils.records import Batch, Benchmark, Evaluation, FeatureBatch, Reranking
from utils.report import figures
from utils.run_folder import RunFolder

logger = logging.getLogger(__name__)


def run_prompt_stage(
    cfg: CfgNode, model: SvllReid, benchmark: Benchmark, folder: RunFolder, device: torch.device
) -> Path:
    """Stage 1; the last checkpoint."""
    block, seed = cfg.SOLVER.STAGE1, cfg.SOLVER.SEED
    loader = make_loader(cfg, benchmark.train, train=False, pin_memory=device.type == "cuda")
    cache = cache_features(model, loader, device)
    generator = torch.Generator(device).manual_seed(seed)
    augment = partial(AUGMENTATIONS[block.PROMPT_AUG_METHOD], strength=block.PROMPT_AUG_SCALE, generator=generator)
    stage = PromptStage(
        model,
        weights={"image_text": 1.0, "language_ssl": block.SSL_LOSS_WEIGHT},
        augment=words_only(augment, model.prompts.end) if block.PROMPT_AUG_TOKENS == "words" else augment,
        train_projector=block.TRAIN_PROJECTOR,
    )
    examples = {sample.pid: sample.path for sample in reversed(benchmark.train)}

    def paths(batch: FeatureBatch) -> list[str]:
        return [examples[pid] for pid in batch.pids.unique().tolist()]

    last = _fit(
        cfg,
        block,
        stage,
        "prompt",
        folder,
        device,
        batches=lambda epoch: FeatureBatches(cache, block.IMS_PER_BATCH, seed=seed, epoch=epoch),
        paths=paths,
        file=f"{cfg.MODEL.NAME}_stage1_{{epoch}}.pth",
    )
    model.prompts.trained = True
    accuracy = matching_accuracy(cache, sentence_features(model, device))
    logger.info(
        "prompt stage  on its own training features (this is no test): %.1f %% of the images are nearest to their "
        "identity's sentence, %.1f %% of the sentences to an image of their identity",
        100 * accuracy["image_to_text"],
        100 * accuracy["text_to_image"],
    )
    folder.record("training_features", step=block.MAX_EPOCHS, stage="prompt", epoch=block.MAX_EPOCHS, **accuracy)
    return last


def run_image_stage(
    cfg: CfgNode, model: SvllReid, benchmark: Benchmark, folder: RunFolder, device: torch.device
) -> Path:
    """Stage 2; the last checkpoint.

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
        if not cfg.PROCESSOR.UNTRAINED_PROMPTS:
            raise WeightsError(
                "the image stage compares images with sentences that nobody trained: run the prompt stage before it, "
                "load them with MODEL.INIT_FROM, or say PROCESSOR.UNTRAINED_PROMPTS True"
            )
        logger.warning(
            "image stage: the %d sentences are untrained, as PROCESSOR.UNTRAINED_PROMPTS allows", model.num_pids
        )
    loader = make_loader(
        cfg,
        benchmark.train,
        train=True,
        twins=weights["vision_ssl"] > 0,
        pin_memory=device.type == "cuda",
    )
    stage = ImageStage(
        model,
        weights=weights,
        text_features=sentence_features(model, device) if weights["image_text"] > 0 else None,
        margin=None if cfg.MODEL.NO_MARGIN else cfg.SOLVER.MARGIN,
        smoothing=0.1 if cfg.MODEL.IF_LABELSMOOTH else 0.0,
        self_supervision=cfg.MODEL.SSL_TYPE,
        side_on_twins=cfg.MODEL.SIE_TWINS,
        ignore_same_identity=block.SSL_IGNORE_SAME_IDENTITY,
    )

    def batches(epoch: int) -> DataLoader[Batch]:
        loader.dataset.set_epoch(epoch)
        loader.batch_sampler.set_epoch(epoch)
        return loader

    def evaluate_now(epoch: int) -> None:
        if epoch % block.EVAL_PERIOD == 0 and epoch < block.MAX_EPOCHS:  # the end has an evaluation of its own
            for one in benchmark.evaluated():
                evaluation = evaluate_model(cfg, model, one, device)
                name = f"{one.name}  " if benchmark.parts else ""
                logger.info("image stage  epoch %d/%d  %s%s", epoch, block.MAX_EPOCHS, name, figures(evaluation))
                facts = {"data_set": one.name, "re_ranking": reranking_settings(evaluation)}
                folder.record("evaluation", step=epoch, stage="image", epoch=epoch, **facts, **evaluation.mean)

    return _fit(
        cfg,
        block,
        stage,
        "image",
        folder,
        device,
        batches=batches,
        paths=lambda batch: [benchmark.train[index].path for index in batch.indices.tolist()],
        file=f"{cfg.MODEL.NAME}_{{epoch}}.pth",
        after_epoch=evaluate_now,
    )


RUN_STAGE = {"prompt": run_prompt_stage, "image": run_image_stage}


def _fit(
    cfg: CfgNode,
    block: CfgNode,
    stage: nn.Module,
    name: str,
    folder: RunFolder,
    device: torch.device,
    *,
    batches: Callable[[int], Iterable],
    paths: Callable[[Any], Sequence[str]],
    file: str,
    after_epoch: Callable[[int], None] | None = None,
) -> Path:
    """What both stages have in common: optimiser, precision, the log, checkpoints."""
    precision = pick_precision(cfg.SOLVER.PRECISION, device)
    for line in _what_trains(stage.model):
        logger.info("%s stage: %s", name, line)
    logger.info("%s stage: towers in %s", name, str(precision).removeprefix("torch."))

    saved: list[Path] = []

    def save_and(epoch: int) -> None:
        if epoch % block.CHECKPOINT_PERIOD == 0 or epoch == block.MAX_EPOCHS:
            contents = {
                "model": stage.model.state_dict(),
                "stage": name,
                "epoch": epoch,
                "config": to_dict(cfg),
                "architecture": stage.model.architecture,
                "prompts_trained": name == "prompt" or bool(stage.model.prompts and stage.model.prompts.trained),
            }
            saved.append(folder.save(file.format(epoch=epoch), contents))
        if after_epoch is not None:
            after_epoch(epoch)

    fit(
        stage,
        batches,
        make_optimizer(block, stage),
        make_schedule(block),
        block.MAX_EPOCHS,
        device=device,
        precision=precision,
        name=name,
        log_period=block.LOG_PERIOD,
        after_epoch=save_and,
        record=folder.record,
        paths=paths,
    )
    return saved[-1]


def _what_trains(model: SvllReid) -> list[str]:
    """Two lines: what trains with how many parameters, and what is frozen."""
    parts = {name.replace("_", " "): list(part.parameters()) for name, part in model.named_children()}
    training = {name: sum(p.numel() for p in ps if p.requires_grad) for name, ps in parts.items()}
    total = sum(p.numel() for p in model.parameters())
    trains = ", ".join(f"{name} {count:,}" for name, count in training.items() if count)
    frozen = ", ".join(name for name, count in training.items() if not count)
    return [f"{sum(training.values()):,} of {total:,} parameters train ({trains})", f"frozen: {frozen or 'nothing'}"]


def settle_side(asked: str, architecture: dict, benchmark: Benchmark, *, at_home: bool | None) -> str:
    """TEST.SIE for one data set: "same", "mean" or "none", which is all there is without a table.

    Args:
        asked: what the configuration says; "auto" is "same" at home, else "mean": the rows that were learnt for other
            cameras mean nothing here, their mean is what the tower is used to.
        at_home: whether the network was trained on this data set; None where nobody knows: then "auto" goes by the
            numbers of cameras and viewpoints.
    """
    used = [name for name in ("camera", "view") if architecture[f"sie_{name}"]]
    if not used:
        return "none"
    if asked != "auto":
        return asked
    if at_home is None:
        present = {"camera": benchmark.num_cams, "view": benchmark.num_views}
        rows = {"camera": architecture["num_cams"], "view": architecture["num_views"]}
        at_home = all(present[name] == rows[name] for name in used)
    return "same" if at_home else "mean"


def evaluate_model(
    cfg: CfgNode, model: SvllReid, benchmark: Benchmark, device: torch.device, *, at_home: bool | None = True
) -> Evaluation:
    """Evaluate as TEST says.

    Args:
        at_home: whether the network was trained on this data set; None where nobody knows. See `settle_side`.

    Raises:
        WeightsError: the benchmark has cameras or viewpoints that the side-information table was not made for.
    """
    architecture = model.architecture
    side = settle_side(cfg.TEST.SIE, architecture, benchmark, at_home=at_home)
    for used, rows, present, noun in (
        (architecture["sie_camera"], architecture["num_cams"], benchmark.num_cams, "cameras"),
        (architecture["sie_view"], architecture["num_views"], benchmark.num_views, "viewpoints"),
    ):
        if used and side == "same" and present > rows:
            raise WeightsError(
                f"the network's side information knows {rows} {noun}, {benchmark.name} has {present}: are "
                "MODEL.SIE_CAMERA and MODEL.SIE_VIEW as in its training? TEST.SIE mean or none tests all the same"
            )
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
        notes: what is not as it was in training.
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
        "protocol": cfg.TEST.PROTOCOL,
        "side_information": evaluation.side,
        "network": {name: architecture[name] for name in SETTLED},
        "notes": list(notes),
        "re_ranking": reranking_settings(evaluation),
        "precision": "fp32",
        "seed": seed,
        "checkpoint": str(checkpoint) if checkpoint else None,
        **fingerprint,
    }
