"""What a run trains on: read, checked and watched."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

from torch import Tensor
from yacs.config import CfgNode

from configs.stages import CLUSTER, IMAGE, STAGES
from datasets.build import clusters_per_batch, identities_per_batch, make_benchmark, make_loader
from datasets.check import quick_check
from datasets.images import Loader
from processor.run import Run
from utils.distributed import collective, main_first, on_main
from utils.errors import DataError
from utils.fingerprint import Watch, data_fingerprint, versions
from utils.records import Benchmark, Sample

logger = logging.getLogger(__name__)


class Data(NamedTuple):
    """What a run trains on."""

    benchmark: Benchmark
    warnings: list[str]  # of the check before training, for results.json
    train_watch: Watch  # of images that are replaced meanwhile
    test_watch: Watch

    def paths(self, indices: Tensor) -> list[str]:
        """The training images with these numbers [B]."""
        return [self.benchmark.train[index].path for index in indices.tolist()]


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
        if CLUSTER.name in cfg.PROCESSOR.STAGES:
            on_main(lambda: clusters_per_batch(cfg))
        benchmark = main_first(lambda: make_benchmark(cfg, render=render))
        with collective():
            check_cameras(cfg, benchmark)
        check = partial(quick_check, benchmark, instances=cfg.DATALOADER.NUM_INSTANCE, identities=identities)
        warnings = on_main(lambda: check().heed(logger))
        run.set_fingerprint(on_main(lambda: {"data_fingerprint": data_fingerprint(benchmark), "versions": versions()}))
        watches = Watch("training images", benchmark.train), Watch("test images", *chain(*benchmark.trials))
    return Data(benchmark, warnings, *watches)


def check_cameras(cfg: CfgNode, benchmark: Benchmark) -> None:
    """Raise DataError if images are to be compared with their identity in other cameras, and there is none."""
    weight = cfg.MODEL.CAMERA_PROXY_LOSS_WEIGHT
    places = {(sample.pid, sample.camid) for sample in benchmark.train if sample.camid >= 0}
    if weight and IMAGE.name in cfg.PROCESSOR.STAGES and len(places) == len({pid for pid, _ in places}):
        raise DataError(
            f"MODEL.CAMERA_PROXY_LOSS_WEIGHT {weight}: no training identity of {benchmark.name} has images from two "
            "cameras; expected 0.0"
        )


def draw(loader: Loader, epoch: int, done: int) -> Loader:
    """What is left of an epoch of which `done` batches were trained on earlier: the same loader, set to it."""
    loader.dataset.set_epoch(epoch)
    loader.batch_sampler.set_epoch(epoch, done)
    return loader


def ordered_loader(run: Run, samples: Sequence[Sample], *, again: bool = False) -> Loader:
    """Training images in their order, without augmentation; `again`: not for the only time."""
    return make_loader(run.cfg, samples, train=False, device=run.device, again=again)
