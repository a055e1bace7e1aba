"""Entries of results.json: the figures, and everything that changes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from model.build import SETTLED
from utils.metrics import protocol_of
from utils.records import Benchmark, Evaluation


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
        "variant": benchmark.variant or None,
        "feat_norm": cfg.TEST.FEAT_NORM,
        "neck_feat": cfg.TEST.NECK_FEAT,
        "protocol": protocol_of(benchmark.ignored),
        "side_information": evaluation.side,
        "network": {name: architecture[name] for name in SETTLED},
        "notes": list(notes),
        **evaluation.refinement.entry(),
        "seed": seed,
        "checkpoint": str(checkpoint) if checkpoint else None,
        **fingerprint,
    }
