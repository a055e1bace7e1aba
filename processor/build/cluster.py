"""The parts of stage 0 (clustering)."""

from __future__ import annotations

import logging
from functools import partial

import torch
from torch import Tensor
from yacs.config import CfgNode

from configs.stages import CLUSTER, PROMPT
from datasets.build import clusters_per_batch, make_loader
from datasets.images import Loader
from datasets.sampler import ClusterSampler
from loss.memory import Memory
from model.svllreid import SvllReid
from processor.build.data import Data, draw, ordered_loader
from processor.build.evaluation import evaluate_epoch
from processor.build.handover import cluster_settings, hand_over, pseudo_labels
from processor.cluster_stage import ClusterStage, Texts
from processor.clusters import Clustering, Swap, describe, find_clusters, shown
from processor.features import compute_features
from processor.image_stage import all_text_features
from processor.pseudo_labels import PseudoLabels, write_labels
from processor.run import Run
from processor.stage_run import StageParts
from processor.turn import Turn, prefix
from utils.distributed import on_main, rank, sync_batch_norm, world_size
from utils.run import PSEUDO_LABELS

logger = logging.getLogger(__name__)


def cluster_parts(run: Run, turn: Turn, model: SvllReid, data: Data, seed: int) -> StageParts:
    cfg, device, train = run.cfg, run.device, data.benchmark.train
    block = CLUSTER.settings(cfg)
    if not run.resumes(turn.number):
        hand_over(run, turn, model, data)
    texts = _texts(run, turn, model, data)
    modalities = torch.tensor([sample.modality for sample in train])
    stage = ClusterStage(
        model,
        weights={"cluster": 1.0, "image_text": cfg.MODEL.I2T_LOSS_WEIGHT if texts else 0.0},
        modalities=modalities,
        memory=partial(Memory, temperature=cfg.MEMORY.TEMP, momentum=cfg.MEMORY.MOMENTUM),
        swap=Swap(cfg.MEMORY.SWAP_MODE, cfg.MEMORY.SWAP_START, cfg.MEMORY.SWAP_RATIO),
        texts=texts,
        smoothing=0.1 if cfg.MODEL.IF_LABELSMOOTH else 0.0,
    )
    if cfg.SOLVER.SYNC_BN:
        model.image = sync_batch_norm(model.image, device)
    sampler = _cluster_sampler(cfg, modalities, seed)
    strangers = [sample._replace(pid=0) for sample in train]  # training is not told who people are
    loader = make_loader(cfg, strangers, train=True, device=device, seed=seed, drawn=sampler)
    ordered = ordered_loader(run, train, again=True)

    def before_epoch(epoch: int, state: dict | None, optimizer: torch.optim.Optimizer) -> dict:
        if state is None:
            labels = _find_clusters(run, turn, stage, ordered, data, epoch)
        else:
            labels = state["labels"]
            stage.resume_epoch(epoch, labels, state["memories"])
        if epoch == block.MAX_EPOCHS:
            found = PseudoLabels.of(labels, modalities, len(stage.memories), epoch, cluster_settings(run))
            on_main(lambda: write_labels(run.path / PSEUDO_LABELS.format(prefix(turn.again)), found, train))
        sampler.set_labels(stage.labels.tolist())
        if not sampler.rows:
            logger.warning("%s  epoch %d/%d: nothing to train on, it is skipped", turn.title, epoch, block.MAX_EPOCHS)
        # Memories change in place: a state within the epoch has them as they are then.
        return {"labels": labels, "memories": [memory.state_dict() for memory in stage.memories]}

    return StageParts(
        stage,
        partial(draw, loader),
        summed=dict.fromkeys(stage.weights, "2 modalities") if data.benchmark.templates else {},
        image_paths=data.paths,
        shares=world_size(),
        before_epoch=before_epoch,
        after_step=stage.update,
        evaluate=partial(evaluate_epoch, run, model, data.benchmark, turn),
        epoch_ended=data.train_watch.look,
    )


def _find_clusters(run: Run, turn: Turn, stage: ClusterStage, ordered: Loader, data: Data, epoch: int) -> Tensor:
    """Cluster the features that the images have now, with lines for the log and a record -> labels [N].

    Args:
        ordered: reads all training images.
    """
    cfg, train = run.cfg, data.benchmark.train
    stage.eval()
    what = "features to cluster"
    features = compute_features(ordered, stage.query, device=run.device, what=what).features
    settings = Clustering(**{key.lower(): value for key, value in cfg.CLUSTER.items()})
    labels = on_main(lambda: find_clusters(features, stage.modalities, settings))
    pairs = stage.begin_epoch(epoch, labels, features)
    facts = describe(labels, stage.modalities, pairs, torch.tensor([sample.pid for sample in train]))
    epochs = CLUSTER.epochs(cfg)
    logger.info("%s  epoch %d/%d\n  %s", turn.title, epoch, epochs, "\n  ".join(shown(facts)))
    run.record("clusters", step=epoch, stage=CLUSTER.name, epoch=epoch, **facts, **turn.mark)
    return labels


def _cluster_sampler(cfg: CfgNode, modalities: Tensor, seed: int) -> ClusterSampler:
    """Of no cluster yet."""
    instances, share = cfg.DATALOADER.NUM_INSTANCE, {"rank": rank(), "world_size": world_size()}
    nothing, clusters = [-1] * len(modalities), clusters_per_batch(cfg)
    return ClusterSampler(nothing, modalities.tolist(), clusters, instances, seed=seed, **share)


def _texts(run: Run, turn: Turn, model: SvllReid, data: Data) -> Texts | None:
    """The texts that the clustering compares images with: of the prompts before it; None without these."""
    if PROMPT.name not in turn.before or not run.cfg.MODEL.I2T_LOSS_WEIGHT:
        return None
    last = turn.number - 1 - turn.before[::-1].index(PROMPT.name)
    found = pseudo_labels(run, turn._replace(number=last), data)
    if found is None:
        return None
    features = all_text_features(model, run.device).split(found.counts)
    return Texts(features, torch.tensor(found.labels))
