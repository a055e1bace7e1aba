"""The network that a run begins with, or goes on with."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from yacs.config import CfgNode

from configs.stages import CLUSTER, IMAGE
from datasets.names import names_of
from model.build import make_model, resume_model
from model.svllreid import SvllReid
from model.weights import read_weights
from processor.build.data import Data, ordered_loader
from processor.class_means import start_from_means
from processor.run import Run
from processor.transfer import check_held_out
from utils.distributed import collective, copy_from_main, main_first
from utils.errors import WeightsError
from utils.seeds import derive

NETWORK_STREAM = 2  # of draws for a network that starts again, and for prompts that are made anew


def make_network(run: Run, data: Data, *, requested: Collection[str] = ()) -> SvllReid:
    """The network of a run: new, or where its state was saved.

    Args:
        requested: keys of the command line.
    """
    with run.clock("network"):
        if run.state:
            with collective():
                return resume_model(run.state.contents, str(run.state.path)).to(run.device)
        model = new_network(run, data, requested).to(run.device)
        with collective():
            _check_abilities(run.cfg, model.image)
        copy_from_main(model)
        if run.cfg.MODEL.INIT_CLASSIFIER == "means" and model.new_classifiers and model.num_pids:
            start_from_means(model, ordered_loader(run, data.benchmark.train), run.device)
            copy_from_main(model)  # sums of many numbers may differ in their last bits
    return model


def new_network(run: Run, data: Data, requested: Collection[str]) -> SvllReid:
    """The network that a run begins with, the same whenever it is made in a run with clusters."""

    def make() -> SvllReid:
        start = read_weights(run.cfg.MODEL.INIT_FROM, run.cfg.MODEL.NAME) if run.cfg.MODEL.INIT_FROM else None
        if start:
            check_held_out(run.cfg, start, names_of(run.cfg.DATASETS.NAMES))
        return make_model(run.cfg, data.benchmark, start, requested=requested)

    if CLUSTER.name not in run.cfg.PROCESSOR.STAGES:
        return main_first(make)  # weights are downloaded by one process
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(run.cfg.SOLVER.SEED, NETWORK_STREAM))
        return main_first(make)


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
