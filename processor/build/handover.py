"""What a clustering hands over to the stages behind it."""

from __future__ import annotations

import logging

from configs.stages import CLUSTER
from model.build import RESIZING
from model.svllreid import SvllReid
from processor.build.data import Data
from processor.build.network import new_network
from processor.pseudo_labels import PseudoLabels, read_labels
from processor.run import Run
from processor.turn import Turn, prefix
from utils.distributed import copy_from_main, on_main
from utils.run import PSEUDO_LABELS

logger = logging.getLogger(__name__)


def hand_over(run: Run, turn: Turn, model: SvllReid, data: Data) -> None:
    """Behind a clustering, a stage begins as published: clusters alone are handed over, the tower starts again."""
    if CLUSTER.name not in turn.before[-1:]:
        return
    restart = CLUSTER.settings(run.cfg).RESTART
    what = "starts again from the weights that the run began with" if restart else f"goes on from {CLUSTER.title}"
    logger.info("%s %s: the image tower %s", CLUSTER.key("RESTART"), restart, what)
    if restart:
        fresh = new_network(run, data, RESIZING)
        model.image.load_state_dict(fresh.image.state_dict())
        model.heads.load_state_dict(fresh.heads.state_dict())
        copy_from_main(model)


def cluster_settings(run: Run) -> str:
    """What pseudo-labels depend on besides the epoch, in one line."""
    facts = ", ".join(f"{key} {value}" for key, value in run.cfg.CLUSTER.items())
    images = run.fingerprint.get("data_fingerprint", {}).get("train")
    return f"{run.cfg.MODEL.NAME}, seed {run.cfg.SOLVER.SEED}, {facts}, images {images}"


def pseudo_labels(run: Run, turn: Turn, data: Data) -> PseudoLabels | None:
    """What the last clustering before this place found; None without one."""
    again = turn.before.count(CLUSTER.name) - 1
    if again < 0:
        return None
    path, epoch = run.path / PSEUDO_LABELS.format(prefix(again)), CLUSTER.epochs(run.cfg)
    train, settings = data.benchmark.train, cluster_settings(run)
    return on_main(lambda: read_labels(path, train, epoch=epoch, settings=settings))
