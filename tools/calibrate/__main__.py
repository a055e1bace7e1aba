"""Measure on labelled images from which score on two images show one identity: thresholds for tools.verify.

    python -m tools.calibrate --weight runs/market/ViT-B-16_60.pth DATASETS.NAMES market1501 DATASETS.ROOT_DIR /data
    python -m tools.calibrate --weight runs/market/ViT-B-16_60.pth my_images/

Takes the pairs of query and gallery that count under the data set's protocol or, of a folder that holds a folder per
identity, all pairs of its images (of one identity only those from two cameras, where all names tell the camera). The
scores are cosines of the features that tools.embed writes. Writes beside the checkpoint the thresholds with equal error
rates and with false accept rates of 1e-2, 1e-3 and 1e-4, with what they were measured on, and a picture of the scores
and the ROC curve. Intervals are 95 % of a bootstrap over identities. Of a network --beside, the scores and the curve on
the same images are in the picture as well.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from tools.inference import (
    KINDS,
    add_beside,
    check_output,
    for_each_network,
    open_embedder,
    parse_labelled,
    short_names,
)
from utils.command import answer_early, run_script
from utils.errors import UserError, check_installed
from utils.paths import expanded

if TYPE_CHECKING:
    from utils.verification import Estimate, Verification

TARGETS = (1e-2, 1e-3, 1e-4)  # FPR
SEED = 0  # of the bootstrap


def read_command_line(argv: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    arguments = parse_labelled(__doc__, argv, _options)
    if arguments.beside and arguments.no_figure:
        raise UserError("--beside: is for the picture; expected no --no-figure")
    if not arguments.no_figure:
        check_installed("the picture (which --no-figure leaves out)", "matplotlib")
    return arguments


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", metavar="FILE", help="written to; default: beside the checkpoint, NAME.calibration.json")
    add("--figure", metavar="FILE", help=".png, .svg or .pdf; default: beside that, NAME.calibration.png")
    add("--no-figure", "--no_figure", action="store_true", help="no picture")
    add_beside(parser)


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

import torch

from tools.labelled_images import embed_samples, images_of, labelled_images, readable
from utils.calibration_file import beside, write_calibration
from utils.feature_file import FeatureFile
from utils.metrics import protocol_of
from utils.records import MODALITIES, Benchmark, Sample
from utils.report import aligned
from utils.verification import PairScores, measure


def main(argv: list[str] | None = None) -> int:
    """Calibrate as the command line says; 1 if images were left out that should not be."""
    arguments = read_command_line(argv)
    target = expanded(arguments.output or beside(arguments.weight))
    figure = None if arguments.no_figure else expanded(arguments.figure or target.with_suffix(".png"))
    check_output(str(target), "--output", ".json")
    if figure is not None:
        check_output(str(figure), "--figure", *KINDS)
    networks = for_each_network(arguments)
    measured = [measure_network(one) for one in networks]
    found, facts, _ = measured[0]
    same = [(facts["data_fingerprint"]["test"], facts["protocol"]) for _, facts, _ in measured]
    if len(set(same)) > 1:
        raise UserError(
            f"--beside {arguments.beside}: is tested on other images than --weight, or by another protocol; "
            "expected DATASETS.NAMES and TEST.PROTOCOL, or a FOLDER, for both"
        )
    write_calibration(target, found, facts)
    written = [target]
    if figure is not None:
        from tools.calibrate.figure import draw  # matplotlib is an extra

        names = short_names([one.weight for one in networks])
        shown = list(zip(names, (one[0] for one in measured), strict=True))
        draw(figure, shown, title=f"{facts['data_set']}, protocol {facts['protocol']}")
        written.append(figure)
    sys.stdout.write(f"{report(found)}\n{', '.join(map(str, written))}\n")
    return int(any(one[2] for one in measured) and not arguments.skip_unreadable)


def measure_network(arguments: argparse.Namespace) -> tuple[Verification, dict, int]:
    """What is measured of --weight, with what and on what, and how many images cannot be read."""
    embedder = open_embedder(arguments)
    benchmark, fingerprint, notes = labelled_images(arguments, embedder)
    samples = [sample for trial in benchmark.trials for side in trial for sample in side]
    features, failed = embed_samples(arguments, embedder, samples)
    scores = pair_scores(benchmark, features)
    found = measure(scores, TARGETS, generator=torch.Generator().manual_seed(SEED))
    facts = {
        "digest": embedder.digest,
        "checkpoint": Path(arguments.weight).name,
        "settings": embedder.described(),
        "data_set": benchmark.name,
        **fingerprint,
        "protocol": protocol_of(benchmark.ignored),
        "images": len(features.names),
        "unreadable": failed,
        "identities": len(scores.pids),
        "seed": SEED,
        "notes": notes,
    }
    if len(getattr(embedder.model.image, "stems", ())):
        facts["modality"] = arguments.modality if arguments.images else modalities_in(samples)
    return found, facts, failed


def pair_scores(benchmark: Benchmark, features: FeatureFile) -> PairScores:
    """Scores of all pairs that count, of the images that could be read."""
    kept = (readable(trial, features) for trial in benchmark.trials)
    trials = [(images_of(trial.query, features), images_of(trial.gallery, features)) for trial in kept]
    return PairScores(features.features, trials, benchmark.ignored)


def modalities_in(samples: Sequence[Sample]) -> str:
    """One, or two with a comma."""
    return ",".join(MODALITIES[number] for number in sorted({sample.modality for sample in samples}))


def report(found: Verification) -> str:
    """A table of the thresholds and their rates, in per cent."""
    rows = [["", "threshold", "false accepts (FPR)", "false rejects (FNR)", "EER or TPR"]]
    for name, point in (("EER", found.eer), *((f"FPR {fpr:g}", point) for fpr, point in found.at_fpr.items())):
        cells = (point.fpr, point.fnr, point.reached) if point else ()
        rows.append(
            [name, f"{point.threshold:.4f}" if point else "too few pairs", *map(_percent, cells), *[""] * 3][:5]
        )
    counts = " and ".join(
        f"{int(pairs.sum()):,} pairs of {what}".replace(",", " ")
        for pairs, what in ((found.same, "one identity"), (found.different, "two"))
    )
    points = (found.eer, *filter(None, found.at_fpr.values()))
    without = any(isnan(rate.low) for point in points for rate in (point.fpr, point.fnr, point.reached))
    said = "; none where replicates agree: too few identities, or no error seen" if without else ""
    return f"{aligned(rows)}\nper cent of {counts}, with 95 % intervals{said}"


def _percent(rate: Estimate) -> str:
    interval = "no interval" if isnan(rate.low) else f"{100 * rate.low:.3g} to {100 * rate.high:.3g}"
    return f"{100 * rate.value:.3g} ({interval})"


if __name__ == "__main__":
    sys.exit(run_script(main))
