"""Evaluations as TEST says: of a run, of one of its epochs, of any network."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from datasets.build import make_loader
from datasets.changes import Change
from model.svllreid import SvllReid
from processor.build.data import Data
from processor.evaluate import evaluate, evaluate_changed
from processor.result import result_entry
from processor.run import Run
from processor.turn import Turn
from utils.errors import WeightsError
from utils.records import Benchmark, Evaluation, QueryExpansion, Refinement, Reranking
from utils.report import figures

logger = logging.getLogger(__name__)


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
        "loader": partial(make_loader, cfg, train=False, device=device),
        "device": device,
        "neck": cfg.TEST.NECK_FEAT == "after",
        "normalise": cfg.TEST.FEAT_NORM,
        "refinement": refinement_of(cfg),
        "side": settle_side(cfg.TEST.SIE, model.architecture, benchmark, at_home=at_home),
    }


def refinement_of(cfg: CfgNode) -> Refinement:
    """What TEST says of flip, query expansion, re-ranking and precision."""
    test = cfg.TEST
    return Refinement(
        test.FLIP,
        QueryExpansion(test.AQE_K, test.AQE_ALPHA) if test.AQE else None,
        Reranking(test.RE_RANKING_K1, test.RE_RANKING_K2, test.RE_RANKING_LAMBDA) if test.RE_RANKING else None,
        test.PRECISION,
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


def evaluate_epoch(run: Run, model: SvllReid, benchmark: Benchmark, turn: Turn, epoch: int) -> dict[str, float]:
    """Evaluate on every data set, for the log -> mAP by data set."""
    found, epochs = {}, turn.stage.epochs(run.cfg)
    for one in benchmark.evaluated():
        evaluation = evaluate_model(run.cfg, model, one, run.device)
        name = f"{one.name}  " if benchmark.parts else ""
        logger.info("%s  epoch %d/%d\n  %s%s", turn.title, epoch, epochs, name, figures(evaluation))
        facts = {"data_set": one.name, **evaluation.refinement.entry(), **evaluation.mean, **turn.mark}
        run.record("evaluation", step=epoch, stage=turn.stage.name, epoch=epoch, **facts)
        found[one.name] = evaluation.mean["mAP"]
    return found
