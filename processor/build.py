"""From the config to a run's data, network and stages, and to evaluations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from configs.stages import CLUSTER, IMAGE, PROMPT, STAGES, Stage
from datasets.build import identities_per_batch, make_benchmark, make_loader
from datasets.changes import Change
from datasets.check import quick_check
from datasets.sampler import ClusterSampler
from loss.memory import Memory
from model.build import RESIZING, make_model, resume_model
from model.prompts import AUGMENTATIONS, MOVING, words_only
from model.svllreid import SvllReid
from model.towers import has_batch_norm
from processor.class_means import start_from_means
from processor.cluster_stage import ClusterStage, Texts
from processor.clusters import Clustering, Swap, describe, find_clusters, shown
from processor.evaluate import evaluate, evaluate_changed
from processor.features import compute_features
from processor.image_stage import TERMS, ImageStage, all_text_features
from processor.loop import fit
from processor.prompt_stage import BalancedBatches, FeatureBatches, PromptStage, cache_features, matching_accuracy
from processor.pseudo_labels import PseudoLabels, read_labels, write_labels
from processor.result import result_entry
from processor.run import Run
from processor.stage_run import Periods, SavedStageRun, StageParts, Training
from solver.average import WeightAverage
from solver.build import make_optimizer, make_schedule
from utils.devices import pick_precision
from utils.distributed import (
    check_identical,
    collective,
    copy_from_main,
    main_first,
    on_main,
    rank,
    sync_batch_norm,
    world_size,
)
from utils.errors import DataError, WeightsError
from utils.fingerprint import Watch, data_fingerprint, versions
from utils.records import Batch, Benchmark, Evaluation, QueryExpansion, Refinement, Reranking, Sample
from utils.report import figures
from utils.run import PSEUDO_LABELS
from utils.seeds import derive

logger = logging.getLogger(__name__)
NETWORK_STREAM = 2  # of draws for a network that starts again, and for prompts that are made anew


# ------------------------------------------------------------------------------------------------- data and network


class Data(NamedTuple):
    """What a run trains on."""

    benchmark: Benchmark
    warnings: list[str]  # of the check before training, for results.json
    train_watch: Watch  # of images that are replaced meanwhile
    test_watch: Watch


def read_data(run: Run, render: Callable[[CfgNode, str], object] | None = None) -> Data:
    """Read and check the data set.

    Args:
        render: as in `make_benchmark`.

    Raises:
        DataError: what is wrong with the data set, or it is not the one that the run was started with.
    """
    cfg = run.cfg
    with run.clock("data"):
        drawn = any(STAGES[name].draws_identities for name in cfg.PROCESSOR.STAGES)
        identities = on_main(lambda: identities_per_batch(cfg)) if drawn else None
        benchmark = main_first(lambda: make_benchmark(cfg, render=render))
        check = partial(quick_check, benchmark, instances=cfg.DATALOADER.NUM_INSTANCE, identities=identities)
        warnings = on_main(lambda: check().heed(logger))
        run.set_fingerprint(on_main(lambda: {"data_fingerprint": data_fingerprint(benchmark), "versions": versions()}))
        watches = Watch("training images", benchmark.train), Watch("test images", *chain(*benchmark.trials))
    return Data(benchmark, warnings, *watches)


def make_network(run: Run, data: Data, *, requested: Collection[str] = ()) -> SvllReid:
    """The network of a run: new, or where its state was saved.

    Args:
        requested: keys of the command line.
    """
    with run.clock("network"):
        if run.state:
            with collective():
                return resume_model(run.state.contents, str(run.state.path)).to(run.device)
        model = _new_network(run, data, requested).to(run.device)
        with collective():
            _check_abilities(run.cfg, model.image)
        copy_from_main(model)
        if run.cfg.MODEL.INIT_CLASSIFIER == "means" and model.new_classifiers and model.num_pids:
            start_from_means(model, _ordered_loader(run, data.benchmark.train), run.device)
            copy_from_main(model)  # sums of many numbers may differ in their last bits
    return model


def _new_network(run: Run, data: Data, requested: Collection[str]) -> SvllReid:
    """The network that a run begins with, the same whenever it is made in a run with clusters."""
    make = partial(make_model, run.cfg, data.benchmark, requested=requested)
    if CLUSTER.name not in run.cfg.PROCESSOR.STAGES:
        return main_first(make)  # weights are downloaded by one process
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(run.cfg.SOLVER.SEED, NETWORK_STREAM))
        return main_first(make)


def _ordered_loader(run: Run, samples: Sequence[Sample]) -> DataLoader[Batch]:
    """Training images in their order, without augmentation."""
    return make_loader(run.cfg, samples, train=False, pin_memory=run.device.type == "cuda")


def _check_abilities(cfg: CfgNode, tower: Any) -> None:
    """Raise WeightsError if the settings of stage 2 need what the image tower has not."""
    name, block = cfg.MODEL.NAME, IMAGE.settings(cfg)
    if block.LAYER_DECAY != 1 and not hasattr(tower, "layer_of"):
        key = IMAGE.key("LAYER_DECAY")
        raise WeightsError(f"{key}: invalid value {block.LAYER_DECAY}, {name} does not tell its layers; expected 1.0")
    if block.GRAD_CHECKPOINTING:
        try:
            tower.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:  # the latter is timm's
            key = IMAGE.key("GRAD_CHECKPOINTING")
            raise WeightsError(f"{key}: invalid value True, {name} does not have it; expected False") from error


# ------------------------------------------------------------------------------------------------------------ stages


def run_stage(run: Run, number: int, model: SvllReid, data: Data) -> Path:
    """Train the stage at place `number` of PROCESSOR.STAGES -> its last checkpoint."""
    cfg, stage = run.cfg, STAGES[run.cfg.PROCESSOR.STAGES[number]]
    block, again = stage.settings(cfg), _again(run, number, stage)
    title = f"{stage.title}, again" if again else stage.title
    with run.clock(title):
        # A repetition draws other batches than the first time.
        seed = derive(cfg.SOLVER.SEED, again) if again else cfg.SOLVER.SEED
        parts = MAKE_STAGE[stage.name](run, number, model, data, seed)
        optimizer = make_optimizer(block, parts.module, getattr(parts.module, "layer_of", None))
        precision = pick_precision(cfg.SOLVER.PRECISION, run.device)
        scaler = torch.amp.GradScaler(run.device.type) if precision is torch.float16 else None
        average = WeightAverage(parts.module, block.EMA, optimizer) if block.get("EMA") else None
        logger.info("%s: %s", title, "\n  ".join(_what_trains(parts, precision)))
        prompts = model.prompts
        stage_run = SavedStageRun(
            run,
            number,
            parts,
            Training(optimizer, precision, scaler, average),
            _periods(cfg, stage),
            name=stage.name,
            title=title,
            again=again,
            file=_prefix(again) + stage.file.replace("{model}", cfg.MODEL.NAME.rpartition("/")[2]),
            facts={
                "architecture": model.architecture,
                "prompts_trained": prompts is not None and (prompts.trained or prompts.context.requires_grad),
            },
        )
        _warn_of_precision(stage_run, cfg.SOLVER.PRECISION, precision)
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
    for name, best in stage_run.best.items():
        figure = f"{name} mAP {100 * best['mAP']:.1f} in epoch {best['epoch']}"
        logger.info("%s  best before the end: %s", title, figure)
    return stage_run.checkpoint


def _prefix(again: int) -> str:
    """How files of a stage that has occurred before begin."""
    return f"again{again}_" if again else ""


def _warn_of_precision(stage_run: SavedStageRun, asked: str, precision: torch.dtype) -> None:
    """The setting is the same as when the run was begun; the device may be another."""
    begun_in = stage_run.saved.get("precision") if stage_run.saved else None
    begun_in = begun_in or str(precision)
    if begun_in != str(precision):
        logger.warning(
            "SOLVER.PRECISION %s is %s on this device; the run was begun in %s",
            *(each.removeprefix("torch.") for each in (asked, str(precision), begun_in)),
        )


def _periods(cfg: CfgNode, stage: Stage) -> Periods:
    block = stage.settings(cfg)
    return Periods(
        block.MAX_EPOCHS,
        log=block.LOG_PERIOD,
        checkpoint=block.CHECKPOINT_PERIOD,
        evaluation=block.get("EVAL_PERIOD", 0),
        minutes=cfg.SOLVER.CHECKPOINT_MINUTES,
    )


def _again(run: Run, number: int, stage: Stage) -> int:
    """How often a stage has occurred before the place `number` of PROCESSOR.STAGES."""
    return run.cfg.PROCESSOR.STAGES[:number].count(stage.name)


def _resumed(run: Run, number: int) -> bool:
    """Whether a stage goes on where it was saved, with the network as it was then."""
    return run.state is not None and number == run.first_stage


def _cluster_parts(run: Run, number: int, model: SvllReid, data: Data, seed: int) -> StageParts:
    cfg, device, train = run.cfg, run.device, data.benchmark.train
    block, again = CLUSTER.settings(cfg), _again(run, number, CLUSTER)
    if not _resumed(run, number):
        _hand_over(run, number, model, data)
    texts = _texts(run, number, model, data)
    modalities = torch.tensor([sample.modality for sample in train])
    stage = ClusterStage(
        model,
        weights={"cluster": 1.0, "image_text": cfg.MODEL.I2T_LOSS_WEIGHT if texts else 0.0},
        modalities=modalities.to(device),
        memory=partial(Memory, temperature=cfg.MEMORY.TEMP, momentum=cfg.MEMORY.MOMENTUM),
        swap=Swap(cfg.MEMORY.SWAP_MODE, cfg.MEMORY.SWAP_START, cfg.MEMORY.SWAP_RATIO),
        texts=texts,
        smoothing=0.1 if cfg.MODEL.IF_LABELSMOOTH else 0.0,
    )
    if cfg.SOLVER.SYNC_BN:
        model.image = sync_batch_norm(model.image, device)
    sampler = _cluster_sampler(cfg, modalities, seed)
    strangers = [sample._replace(pid=0) for sample in train]  # training is not told who people are
    pinned = device.type == "cuda"
    loader = make_loader(cfg, strangers, train=True, pin_memory=pinned, seed=seed, drawn=sampler)

    def before_epoch(epoch: int, state: dict | None, optimizer: torch.optim.Optimizer) -> dict:
        if state is None:
            labels = _find_clusters(run, again, stage, data, epoch)
        else:
            labels = state["labels"]
            stage.resume_epoch(epoch, labels, state["memories"])
        if epoch == block.MAX_EPOCHS:
            found = PseudoLabels.of(labels, modalities, len(stage.memories), epoch, _cluster_settings(run))
            on_main(lambda: write_labels(run.path / PSEUDO_LABELS.format(_prefix(again)), found, train))
        sampler.set_labels(stage.labels.tolist())
        if not any(sampler.rows.values()):
            logger.warning(
                "%s  epoch %d/%d: nothing to train on, it is skipped", CLUSTER.title, epoch, block.MAX_EPOCHS
            )
        # Memories change in place: a state within the epoch has them as they are then.
        return {"labels": labels, "memories": [memory.state_dict() for memory in stage.memories]}

    def batches(epoch: int, done: int) -> DataLoader[Batch]:
        loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        sampler.set_epoch(epoch, done)
        return loader

    return StageParts(
        model,
        stage,
        stage.weights,
        batches,
        summed=dict.fromkeys(stage.weights, "2 modalities") if data.benchmark.templates else {},
        image_paths=lambda indices: [train[index].path for index in indices.tolist()],
        shares=world_size(),
        before_epoch=before_epoch,
        after_step=stage.update,
        evaluate=partial(_evaluate_epoch, run, model, data.benchmark, CLUSTER),
        epoch_ended=data.train_watch.look,
    )


def _find_clusters(run: Run, again: int, stage: ClusterStage, data: Data, epoch: int) -> Tensor:
    """Cluster the features that the images have now, with lines for the log and a record -> labels [N]."""
    cfg, train = run.cfg, data.benchmark.train
    stage.eval()
    what = "features to cluster"
    features = compute_features(_ordered_loader(run, train), stage.query, device=run.device, what=what).features
    settings = Clustering(**{key.lower(): value for key, value in cfg.CLUSTER.items()})
    modalities = stage.modalities.cpu()
    labels = on_main(lambda: find_clusters(features, modalities, settings))
    pairs = stage.begin_epoch(epoch, labels, features)
    facts = describe(labels, modalities, pairs, torch.tensor([sample.pid for sample in train]))
    epochs = CLUSTER.epochs(cfg)
    logger.info("%s  epoch %d/%d\n  %s", CLUSTER.title, epoch, epochs, "\n  ".join(shown(facts)))
    repeated = {"again": again} if again else {}
    run.record("clusters", step=epoch, stage=CLUSTER.name, epoch=epoch, **facts, **repeated)
    return labels


def _cluster_sampler(cfg: CfgNode, modalities: Tensor, seed: int) -> ClusterSampler:
    """Of no cluster yet."""
    instances, share = cfg.DATALOADER.NUM_INSTANCE, {"rank": rank(), "world_size": world_size()}
    clusters = CLUSTER.settings(cfg).IMS_PER_BATCH // instances
    return ClusterSampler([-1] * len(modalities), modalities.tolist(), clusters, instances, seed=seed, **share)


def _hand_over(run: Run, number: int, model: SvllReid, data: Data) -> None:
    """Behind a clustering, a stage begins as published: clusters alone are handed over, the tower starts again."""
    if CLUSTER.name not in run.cfg.PROCESSOR.STAGES[max(0, number - 1) : number]:
        return
    restart = CLUSTER.settings(run.cfg).RESTART
    what = "starts again from the weights that the run began with" if restart else f"goes on from {CLUSTER.title}"
    logger.info("%s %s: the image tower %s", CLUSTER.key("RESTART"), restart, what)
    if restart:
        fresh = _new_network(run, data, RESIZING)
        model.image.load_state_dict(fresh.image.state_dict())
        model.heads.load_state_dict(fresh.heads.state_dict())
        copy_from_main(model)


def _cluster_settings(run: Run) -> str:
    """What pseudo-labels depend on besides the epoch, in one line."""
    facts = ", ".join(f"{key} {value}" for key, value in run.cfg.CLUSTER.items())
    images = run.fingerprint.get("data_fingerprint", {}).get("train")
    return f"{run.cfg.MODEL.NAME}, seed {run.cfg.SOLVER.SEED}, {facts}, images {images}"


def _pseudo_labels(run: Run, number: int, data: Data) -> PseudoLabels | None:
    """What the last clustering before the place `number` of PROCESSOR.STAGES found; None without one."""
    again = _again(run, number, CLUSTER) - 1
    if again < 0:
        return None
    path, epoch = run.path / PSEUDO_LABELS.format(_prefix(again)), CLUSTER.epochs(run.cfg)
    train, settings = data.benchmark.train, _cluster_settings(run)
    return on_main(lambda: read_labels(path, train, epoch=epoch, settings=settings))


def _texts(run: Run, number: int, model: SvllReid, data: Data) -> Texts | None:
    """The texts that the clustering compares images with: of the prompts before it; None without these."""
    stages = run.cfg.PROCESSOR.STAGES[:number]
    if PROMPT.name not in stages or not run.cfg.MODEL.I2T_LOSS_WEIGHT:
        return None
    last = len(stages) - 1 - stages[::-1].index(PROMPT.name)
    found = _pseudo_labels(run, last, data)
    if found is None:
        return None
    features = all_text_features(model, run.device).split(found.counts)
    return Texts(features, torch.tensor(found.labels, device=run.device))


def _prompted(run: Run, number: int, model: SvllReid, data: Data, seed: int) -> Sequence[Sample]:
    """The images that prompts are learned of: all with their identities or, behind a clustering, those in a cluster
    with that as their identity, of which the network gets a prompt each.

    Raises:
        DataError: no pseudo-labels, or those of another run; no cluster at all.
    """
    found = _pseudo_labels(run, number, data)
    if found is None:
        return data.benchmark.train
    if not sum(found.counts):
        raise DataError(
            f"{CLUSTER.title} found no cluster in its last epoch, and there is nothing to learn prompts of; see "
            "CLUSTER.EPS and CLUSTER.MIN_SAMPLES"
        )
    if not _resumed(run, number):
        _hand_over(run, number, model, data)
        model.prompts.resize(found.counts, torch.Generator().manual_seed(derive(seed, NETWORK_STREAM)))
        model.architecture["prompt_counts"] = list(found.counts)
    return found.relabelled(data.benchmark.train)


def _prompt_parts(run: Run, number: int, model: SvllReid, data: Data, seed: int) -> StageParts:
    block, device = PROMPT.settings(run.cfg), run.device
    train = _prompted(run, number, model, data, seed)
    cache = cache_features(model, _ordered_loader(run, train), device)
    data.train_watch.look()
    generator = torch.Generator(device).manual_seed(seed)
    augment = partial(AUGMENTATIONS[block.PROMPT_AUG_METHOD], strength=block.PROMPT_AUG_SCALE, generator=generator)
    stage = PromptStage(
        model,
        weights={"image_text": 1.0, "language_ssl": block.SSL_LOSS_WEIGHT},
        augment=words_only(augment, model.prompts.end) if block.PROMPT_AUG_TOKENS == "words" else augment,
        moving=block.PROMPT_AUG_METHOD in MOVING,
        train_projector=block.TRAIN_PROJECTOR,
    )
    examples = {sample.pid: sample.path for sample in reversed(train)}
    parts = model.prompts.parts(cache.pids)

    def batches(epoch: int, done: int) -> FeatureBatches | BalancedBatches:
        options = {"seed": seed, "epoch": epoch, "done": done}
        if len(parts) > 1:
            return BalancedBatches(cache, parts, block.IMS_PER_BATCH, **options)
        return FeatureBatches(cache, block.IMS_PER_BATCH, **options)

    def ended() -> None:
        model.prompts.trained = True
        accuracy = matching_accuracy(cache, all_text_features(model, device))
        logger.info(
            "%s  on its own training features (this is no test):\n"
            "  %.1f %% of the images are nearest to their identity's text,\n"
            "  %.1f %% of the texts to an image of their identity",
            *(PROMPT.title, 100 * accuracy["image_to_text"], 100 * accuracy["text_to_image"]),
        )
        epochs = block.MAX_EPOCHS
        run.record("training_features", step=epochs, stage=PROMPT.name, epoch=epochs, **accuracy)

    return StageParts(
        model,
        stage,
        stage.weights,
        batches,
        image_paths=lambda pids: [examples[pid] for pid in pids.unique().tolist()],
        generators={"prompts": generator},
        ended=ended,
    )


def _image_parts(run: Run, number: int, model: SvllReid, data: Data, seed: int) -> StageParts:
    cfg, device, benchmark = run.cfg, run.device, data.benchmark
    block = IMAGE.settings(cfg)
    weights = {name: attrgetter(term.weight)(cfg) for name, term in TERMS.items()}
    if weights["image_text"] > 0:
        _check_prompts(model, allowed=cfg.PROCESSOR.UNTRAINED_PROMPTS)
    if cfg.SOLVER.SYNC_BN:
        model.image = sync_batch_norm(model.image, device)
    views = weights["vision_ssl"] > 0
    loader = make_loader(cfg, benchmark.train, train=True, views=views, pin_memory=device.type == "cuda", seed=seed)
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
    notes = save_memory(stage, block)
    if block.EMA:
        notes.append(f"checkpoints and evaluations have the moving average of the weights, of decay {block.EMA:g}")

    def batches(epoch: int, done: int) -> DataLoader[Batch]:
        loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        loader.batch_sampler.set_epoch(epoch, done)
        return loader

    depths = sum(map(bool, model.image.dims)) if cfg.MODEL.TRIPLET_FEATURES == "all" else 1
    return StageParts(
        model,
        stage,
        stage.weights,
        batches,
        summed={"identity": f"{len(model.heads)} heads", "triplet": f"{depths} depths"},
        notes=notes,
        image_paths=lambda indices: [benchmark.train[index].path for index in indices.tolist()],
        shares=world_size(),
        evaluate=partial(_evaluate_epoch, run, model, benchmark, IMAGE),
        epoch_ended=data.train_watch.look,
    )


def _evaluate_epoch(run: Run, model: SvllReid, benchmark: Benchmark, stage: Stage, epoch: int) -> dict[str, float]:
    """Evaluate on every data set, for the log -> mAP by data set."""
    found = {}
    for one in benchmark.evaluated():
        evaluation = evaluate_model(run.cfg, model, one, run.device)
        name = f"{one.name}  " if benchmark.parts else ""
        epochs = stage.epochs(run.cfg)
        logger.info("%s  epoch %d/%d\n  %s%s", stage.title, epoch, epochs, name, figures(evaluation))
        facts = {"data_set": one.name, **evaluation.refinement.entry(), **evaluation.mean}
        run.record("evaluation", step=epoch, stage=stage.name, epoch=epoch, **facts)
        found[one.name] = evaluation.mean["mAP"]
    return found


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


MAKE_STAGE = {CLUSTER.name: _cluster_parts, PROMPT.name: _prompt_parts, IMAGE.name: _image_parts}


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


def _what_trains(stage: StageParts, precision: torch.dtype) -> list[str]:
    """Lines for the log: what trains, what is frozen, and the loss with its weights."""
    model, weights = stage.model, stage.weights
    parts = {name.replace("_", " "): list(part.parameters()) for name, part in model.named_children()}
    training = {name: sum(p.numel() for p in ps if p.requires_grad) for name, ps in parts.items()}
    total = sum(p.numel() for p in model.parameters())
    trains = ", ".join(f"{name} {count:,}" for name, count in training.items() if count)
    frozen = ", ".join(name for name, count in training.items() if not count)
    summed = {term: f" ({words})" for term, words in stage.summed.items()}
    on = ((term, weight) for term, weight in weights.items() if weight > 0)
    terms = (f"{weight:g} {term}{summed.get(term, '')}".removeprefix("1 ") for term, weight in on)
    return [
        f"{sum(training.values()):,} of {total:,} parameters train; towers in {str(precision).removeprefix('torch.')}",
        f"training: {trains}",
        f"frozen: {frozen or 'nothing'}",
        f"loss = {' + '.join(terms)}",
        *stage.notes,
    ]


# -------------------------------------------------------------------------------------------------------- evaluation


def settle_side(asked: str, architecture: dict, benchmark: Benchmark, *, at_home: bool | None) -> str:
    """TEST.SIE for one data set: "same", "mean" or "none", which is all there is without a table.

    Args:
        asked: what the configuration says; "auto" is "same" at home, else "mean": the rows that were learned for other
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
    return evaluate(model, benchmark, **_test_options(cfg, model, benchmark, device, at_home))


def evaluate_changes(
    cfg: CfgNode,
    model: SvllReid,
    benchmark: Benchmark,
    device: torch.device,
    changes: Mapping[str, Change | None],
    *,
    at_home: bool | None = True,
) -> Iterator[tuple[str, Evaluation]]:
    """Evaluations as TEST says of changed queries and the gallery as it is, by the names of `changes`.

    What a change draws for an image depends on neither SOLVER.SEED nor the other changes.
    """
    options = _test_options(cfg, model, benchmark, device, at_home)
    loaders = {name: partial(options["loader"], change=change, seed=0) for name, change in changes.items()}
    return evaluate_changed(model, benchmark, loaders, **options)


def _test_options(
    cfg: CfgNode, model: SvllReid, benchmark: Benchmark, device: torch.device, at_home: bool | None
) -> dict[str, Any]:
    return {
        "loader": partial(make_loader, cfg, train=False, pin_memory=device.type == "cuda"),
        "device": device,
        "neck": cfg.TEST.NECK_FEAT == "after",
        "normalise": cfg.TEST.FEAT_NORM,
        "refinement": refinement_of(cfg),
        "side": settle_side(cfg.TEST.SIE, model.architecture, benchmark, at_home=at_home),
    }


def refinement_of(cfg: CfgNode) -> Refinement:
    """What TEST says of flip, query expansion and re-ranking."""
    test = cfg.TEST
    return Refinement(
        test.FLIP,
        QueryExpansion(test.AQE_K, test.AQE_ALPHA) if test.AQE else None,
        Reranking(test.RE_RANKING_K1, test.RE_RANKING_K2, test.RE_RANKING_LAMBDA) if test.RE_RANKING else None,
    )


def evaluate_run(run: Run, model: SvllReid, data: Data, when: str, checkpoint: Path | None = None) -> None:
    """Evaluate on every data set of the run, and write it down.

    Args:
        when: START or END.
        checkpoint: that holds the network's weights; gets a model card beside it.
    """
    for one in data.benchmark.evaluated():
        evaluation = evaluate_model(run.cfg, model, one, run.device)
        entry = result_entry(
            when,
            run.cfg,
            one,
            evaluation,
            architecture=model.architecture,
            seed=run.cfg.SOLVER.SEED,
            fingerprint=run.fingerprint,
            checkpoint=checkpoint,
            notes=[*data.warnings, *data.train_watch.look(), *data.test_watch.look()],
        )
        facts = {"data_set": one.name, **evaluation.refinement.entry(), **evaluation.mean}
        run.record("evaluation", step=len(run.entries) + 1, stage=when, **facts)
        if checkpoint:
            results = [*(each for each in run.entries if each["when"] == when), entry]
            run.write_card(checkpoint, model, results)
        run.add_result(entry)  # last: a run whose last entry is there is finished
