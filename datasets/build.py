"""From the config to benchmarks and loaders."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from datasets.dukemtmc import dukemtmc, occ_duke
from datasets.folder import folder
from datasets.hold_out import hold_out
from datasets.images import Images
from datasets.market1501 import market1501, read_market_folders
from datasets.msmt17 import msmt17, msmt17_version
from datasets.sampler import IdentitySampler
from datasets.several import together
from datasets.synthetic import write_synthetic
from datasets.transforms import TestTransform, TrainTransform
from datasets.vehicleid import vehicleid
from datasets.veri import SOURCE as VIEWPOINT_SOURCE
from datasets.veri import veri
from utils.errors import DataError
from utils.metrics import ignore_nothing
from utils.records import Batch, Benchmark, Sample

logger = logging.getLogger(__name__)
ONE_NAME_MANY_SETS = ("synthetic", "folder")
SEVERAL = "+"  # between the names of data sets that are trained on together
HOLD_OUT_SEED = 1234  # the split stays the same whatever SOLVER.SEED, so that no later test meets what was trained on


def _root(cfg: CfgNode) -> Path:
    return Path(cfg.DATASETS.ROOT_DIR).expanduser()


def _msmt17(cfg: CfgNode, train: bool) -> Benchmark:
    logger.info("msmt17: version %s", msmt17_version(_root(cfg)))
    return msmt17(_root(cfg), train=train, val=cfg.DATASETS.MSMT17_VAL)


def _veri(cfg: CfgNode, train: bool) -> Benchmark:
    files = [Path(file).expanduser() for file in (cfg.DATASETS.VIEWPOINTS_TRAIN, cfg.DATASETS.VIEWPOINTS_TEST) if file]
    if cfg.MODEL.SIE_VIEW and not files:
        raise DataError(
            f"MODEL.SIE_VIEW True: veri's viewpoints are in files of their own, which DATASETS.VIEWPOINTS_TRAIN and "
            f"DATASETS.VIEWPOINTS_TEST name; {VIEWPOINT_SOURCE}. Without them set MODEL.SIE_VIEW False"
        )
    return veri(_root(cfg), train=train, viewpoints=files)


def _vehicleid(cfg: CfgNode, train: bool) -> Benchmark:
    return vehicleid(_root(cfg), train=train, size=cfg.DATASETS.VEHICLEID_SIZE)


def _folder(cfg: CfgNode, train: bool) -> Benchmark:
    return folder(_root(cfg), noun=cfg.DATASETS.NOUN, protocol=cfg.TEST.PROTOCOL, train=train)


def _synthetic(cfg: CfgNode, train: bool) -> Benchmark:
    options = {key.lower(): value for key, value in cfg.DATASETS.SYNTHETIC.items()}
    return read_market_folders("synthetic", write_synthetic(_root(cfg), **options), train=train)


BENCHMARKS: dict[str, Callable[[CfgNode, bool], Benchmark]] = {
    "market1501": lambda cfg, train: market1501(_root(cfg), train=train),
    "dukemtmc": lambda cfg, train: dukemtmc(_root(cfg), train=train),
    "msmt17": _msmt17,
    "occ_duke": lambda cfg, train: occ_duke(_root(cfg), train=train),
    "veri": _veri,
    "VehicleID": _vehicleid,
    "folder": _folder,
    "synthetic": _synthetic,
}


def make_benchmark(cfg: CfgNode, name: str | None = None, *, train: bool = True) -> Benchmark:
    """The data set `name`, or the one that the config names; without `train`, its training images need not be there.

    Raises:
        DataError: an unknown name (the message has the right ones), or what the reader found wrong.
    """
    name = name or cfg.DATASETS.NAMES
    if SEVERAL in name:
        return together([make_benchmark(cfg, one, train=train) for one in name.split(SEVERAL)])
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise DataError(f"DATASETS.NAMES: there is no data set {name!r}; {meant}there are: {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name](cfg, train or cfg.DATASETS.HOLD_OUT > 0)
    if cfg.TEST.PROTOCOL == "all":
        benchmark = replace(benchmark, ignored=ignore_nothing)
    if cfg.DATASETS.HOLD_OUT > 0:
        if benchmark.ignored is ignore_nothing:
            raise DataError(
                f"DATASETS.HOLD_OUT {cfg.DATASETS.HOLD_OUT}: needs cameras (TEST.PROTOCOL cross-camera, and "
                "not VehicleID); without, every held-out query would find itself"
            )
        benchmark = hold_out(benchmark, cfg.DATASETS.HOLD_OUT, HOLD_OUT_SEED)
    return benchmark


def make_loader(
    cfg: CfgNode, samples: Sequence[Sample], *, train: bool, twins: bool = False, pin_memory: bool = False
) -> DataLoader[Batch]:
    """Batches of `samples`.

    For training: identity-balanced batches, random transforms and, if asked for, twins; before each epoch call
    `loader.dataset.set_epoch` and `loader.batch_sampler.set_epoch`. Else: all samples in order, test transform.
    """
    pixels = {"mean": cfg.INPUT.PIXEL_MEAN, "std": cfg.INPUT.PIXEL_STD}
    if train:
        transform = TrainTransform(
            cfg.INPUT.SIZE_TRAIN,
            flip=cfg.INPUT.PROB,
            padding=cfg.INPUT.PADDING,
            erase=cfg.INPUT.RE_PROB,
            erase_twin=cfg.INPUT.TWIN_ERASED_AREA,
            **pixels,
        )
        instances = cfg.DATALOADER.NUM_INSTANCE
        identities = cfg.SOLVER.STAGE2.IMS_PER_BATCH // instances
        pids = [sample.pid for sample in samples]
        batches = {"batch_sampler": IdentitySampler(pids, identities, instances, seed=cfg.SOLVER.SEED)}
    else:
        transform = TestTransform(cfg.INPUT.SIZE_TEST, **pixels)
        batches = {"batch_size": cfg.TEST.IMS_PER_BATCH}
    images = Images(samples, transform, twins=twins, seed=cfg.SOLVER.SEED)
    workers = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    return DataLoader(
        images,
        collate_fn=images.collate,
        num_workers=workers,
        persistent_workers=train and workers > 0,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # its own: reading, e.g. for an evaluation, must not move torch's global one
        **batches,
    )
