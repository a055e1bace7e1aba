"""From the config to benchmarks and loaders."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import Sampler
from yacs.config import CfgNode

from configs.stages import CLUSTER, IMAGE, Stage
from datasets.cache import PixelCache, make_cache
from datasets.changes import Change
from datasets.dukemtmc import dukemtmc, occ_duke
from datasets.folder import folder
from datasets.hold_out import hold_out
from datasets.images import Images, Loader
from datasets.market1501 import market1501
from datasets.msmt17 import msmt17, msmt17_version
from datasets.names import SEVERAL, check_known, names_together
from datasets.regdb import regdb
from datasets.sampler import IdentitySampler, OrderedSampler
from datasets.several import combine
from datasets.synthetic import READERS, REGDB_FORM, SYSU_FORM, Parameters, read_rendered
from datasets.sysu import sysu_mm01
from datasets.transforms import TestTransform, TrainTransform
from datasets.vehicleid import vehicleid
from datasets.veri import SOURCE as VIEWPOINT_SOURCE
from datasets.veri import veri
from utils import distributed
from utils.errors import DataError, UserError
from utils.metrics import ALL, ignore_nothing
from utils.paths import expanded
from utils.records import Benchmark, Sample
from utils.workers import begin_worker, worker_context

logger = logging.getLogger(__name__)
RENDERED = tuple(READERS)
ONE_NAME_MANY_SETS = (*RENDERED, "folder")
HOLD_OUT_SEED = 1234  # the split stays the same whatever SOLVER.SEED, so that no later test meets what was trained on


def _root(cfg: CfgNode) -> Path:
    return expanded(cfg.DATASETS.ROOT_DIR, "DATASETS.ROOT_DIR")


def _msmt17(cfg: CfgNode, train: bool) -> Benchmark:
    logger.info("msmt17: version %s", msmt17_version(_root(cfg)))
    return msmt17(_root(cfg), train=train, val=cfg.DATASETS.MSMT17_VAL)


def _veri(cfg: CfgNode, train: bool) -> Benchmark:
    keys = ("VIEWPOINTS_TRAIN", "VIEWPOINTS_TEST")
    files = [expanded(cfg.DATASETS[key], f"DATASETS.{key}") for key in keys if cfg.DATASETS[key]]
    if cfg.MODEL.SIE_VIEW and not files:
        raise DataError(
            f"MODEL.SIE_VIEW True: veri's viewpoints are in files of their own, which DATASETS.VIEWPOINTS_TRAIN and "
            f"DATASETS.VIEWPOINTS_TEST name; {VIEWPOINT_SOURCE}. Without them set MODEL.SIE_VIEW False"
        )
    return veri(_root(cfg), train=train, viewpoints=files)


def parameters_of(cfg: CfgNode) -> Parameters:
    """What the rendered data sets of this configuration depend on."""
    return Parameters(**{key.lower(): value for key, value in cfg.DATASETS.SYNTHETIC.items()})


def _rendered(name: str, cfg: CfgNode, train: bool) -> Benchmark:
    options: dict[str, str | int] = {}
    if name in SYSU_FORM:
        options["mode"] = cfg.DATASETS.SYSU_MODE
    elif name in REGDB_FORM:
        options["split"] = cfg.DATASETS.REGDB_SPLIT
    return read_rendered(name, _root(cfg), parameters_of(cfg), train=train, **options)


BENCHMARKS: dict[str, Callable[[CfgNode, bool], Benchmark]] = {
    "market1501": lambda cfg, train: market1501(_root(cfg), train=train),
    "dukemtmc": lambda cfg, train: dukemtmc(_root(cfg), train=train),
    "msmt17": _msmt17,
    "occ_duke": lambda cfg, train: occ_duke(_root(cfg), train=train),
    "veri": _veri,
    "VehicleID": lambda cfg, train: vehicleid(_root(cfg), train=train, size=cfg.DATASETS.VEHICLEID_SIZE),
    "sysu_mm01": lambda cfg, train: sysu_mm01(_root(cfg), train=train, mode=cfg.DATASETS.SYSU_MODE),
    "regdb": lambda cfg, train: regdb(_root(cfg), train=train, split=cfg.DATASETS.REGDB_SPLIT),
    "folder": lambda cfg, train: folder(_root(cfg), noun=cfg.DATASETS.NOUN, protocol=cfg.TEST.PROTOCOL, train=train),
    **{name: partial(_rendered, name) for name in RENDERED},
}


def make_benchmark(
    cfg: CfgNode, name: str | None = None, *, train: bool = True, render: Callable[[CfgNode, str], object] | None = None
) -> Benchmark:
    """The data set `name`, or what the config names; without `train`, its training images need not be there.

    With DATASETS.HOLD_OUT, the training images are what is tested on, and are read in any case.

    Args:
        render: called with the name of a rendered data set before it is read, and after all others were.

    Raises:
        DataError: what is wrong with the names, or what the reader or the file system found wrong.
    """
    if name is None:
        name = cfg.DATASETS.NAMES
        if SEVERAL in name:
            names = names_together(name, cfg.DATASETS.NOUN)
            ordered = sorted(names, key=RENDERED.__contains__)
            read = {one: make_benchmark(cfg, one, train=train, render=render) for one in ordered}
            return combine([read[one] for one in names])
    check_known(name, BENCHMARKS)
    if render is not None and name in RENDERED:
        render(cfg, name)
    try:
        benchmark = BENCHMARKS[name](cfg, train or cfg.DATASETS.HOLD_OUT > 0)
    except OSError as error:  # wherever a reader met it: no rights, a name that is too long, a disk that fails
        where = error.filename or cfg.DATASETS.ROOT_DIR
        raise DataError(f"{name}: {where}: {error.strerror or error}") from error
    except DataError as error:
        if name == "folder" and SEVERAL in cfg.DATASETS.NAMES:
            raise DataError(
                f"{error}. All of DATASETS.NAMES {cfg.DATASETS.NAMES!r} share DATASETS.ROOT_DIR: the images of "
                "folder lie right in it (train, query, gallery, or one CSV file), beside the folders of the others"
            ) from error
        raise
    if cfg.TEST.PROTOCOL == ALL:
        benchmark = replace(benchmark, ignored=ignore_nothing)
    if cfg.DATASETS.HOLD_OUT > 0:
        if benchmark.ignored is ignore_nothing and not benchmark.templates:
            raise DataError(
                f"DATASETS.HOLD_OUT {cfg.DATASETS.HOLD_OUT}: needs cameras (TEST.PROTOCOL cross-camera, and "
                "not VehicleID); without, every held-out query would find itself"
            )
        benchmark = hold_out(benchmark, cfg.DATASETS.HOLD_OUT, HOLD_OUT_SEED)
    return benchmark


def identities_per_batch(cfg: CfgNode) -> int:
    """How many identities a batch of stage 2 has, over all processes; UserError if these cannot share them evenly."""
    return _groups_per_batch(cfg, IMAGE, "identities")


def clusters_per_batch(cfg: CfgNode) -> int:
    """How many clusters of each modality a batch of stage 0 has, as above."""
    return _groups_per_batch(cfg, CLUSTER, "clusters")


def _groups_per_batch(cfg: CfgNode, stage: Stage, noun: str) -> int:
    images, instances = stage.settings(cfg).IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE
    groups, processes = images // instances, distributed.world_size()
    if groups % processes:
        fewer = groups - groups % processes
        fitting = " or ".join(str(count * instances) for count in (fewer, fewer + processes) if count)
        raise UserError(
            f"{stage.key('IMS_PER_BATCH')} {images} with DATALOADER.NUM_INSTANCE {instances} takes {groups} "
            f"{noun} a batch, which {processes} processes cannot share evenly; expected IMS_PER_BATCH {fitting}"
        )
    return groups


def _pixels(cfg: CfgNode) -> dict:
    return {"mean": cfg.INPUT.PIXEL_MEAN, "std": cfg.INPUT.PIXEL_STD}


def train_transform(cfg: CfgNode) -> TrainTransform:
    """What INPUT says of training images."""
    return TrainTransform(
        cfg.INPUT.SIZE_TRAIN,
        flip=cfg.INPUT.PROB,
        padding=cfg.INPUT.PADDING,
        erase=cfg.INPUT.RE_PROB,
        erase_view=cfg.INPUT.TWIN_ERASED_AREA,
        jpeg=cfg.INPUT.JPEG_PROB,
        jpeg_quality=cfg.INPUT.JPEG_QUALITY,
        grey=cfg.INPUT.GREY_PROB,
        **_pixels(cfg),
    )


def _cache(cfg: CfgNode, samples: Sequence[Sample], transform: TrainTransform | TestTransform) -> PixelCache | None:
    block, paths = cfg.DATALOADER, [sample.path for sample in samples]
    folder = expanded(block.CACHE_DIR, "DATALOADER.CACHE_DIR")
    with distributed.collective():
        return make_cache(block.CACHE, folder, paths, transform.size, transform.how.name)


def make_loader(
    cfg: CfgNode,
    samples: Sequence[Sample],
    *,
    train: bool,
    views: bool = False,
    device: torch.device | None = None,
    seed: int | None = None,
    change: Change | None = None,
    drawn: Sampler[list[int]] | None = None,
    again: bool = False,
) -> Loader:
    """Batches of `samples`, or this process's share of them: its identities of every batch, or its turn of the batches.

    For training: identity-balanced batches, random transforms and, if asked for, views; before each epoch call
    `loader.dataset.set_epoch` and `loader.batch_sampler.set_epoch`. Else: all samples in order, test transform.

    Args:
        device: that batches are moved to and augmented on; None leaves them where they are.
        seed: of batches and transforms; None for SOLVER.SEED.
        change: of every image; not for training.
        drawn: draws this process's share of the batches for training; None for identity-balanced ones.
        again: whether images are read more than once, as always for training: resized images are kept then, as
            DATALOADER.CACHE says.

    Raises:
        UserError: batches that the processes cannot share evenly, or more identities in a batch than there are.
    """
    seed = cfg.SOLVER.SEED if seed is None else seed
    share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    transform: TrainTransform | TestTransform
    batches: Sampler[list[int]]
    if train:
        transform = train_transform(cfg)
        if drawn is None:
            instances = cfg.DATALOADER.NUM_INSTANCE
            pids = [sample.pid for sample in samples]
            count = cfg.SOLVER.STAGE2.ITERS_PER_EPOCH
            drawn = IdentitySampler(pids, identities_per_batch(cfg), instances, seed=seed, count=count, **share)
        batches = drawn
    else:
        transform = TestTransform(cfg.INPUT.SIZE_TEST, change=change, **_pixels(cfg))
        batches = OrderedSampler(len(samples), cfg.TEST.IMS_PER_BATCH, **share)
    cache = _cache(cfg, samples, transform) if train or again else None
    images = Images(samples, transform, views=views, seed=seed, cache=cache)
    workers = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    if workers:
        images.epoch.share_memory_()
    return Loader(
        images,
        device,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=train and workers > 0,
        worker_init_fn=begin_worker,
        multiprocessing_context=worker_context() if workers else None,
        generator=torch.Generator(),  # its own: reading, e.g. for an evaluation, must not move torch's global one
    )
