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
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from tools.inference import (
    PICTURES,
    add_beside,
    add_output,
    check_output,
    for_each_network,
    network_parser,
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
    parser = network_parser(__doc__)
    add = parser.add_argument
    add_output(parser, "--output", ".json", meaning="written to, else beside the checkpoint, NAME.calibration.json")
    add_output(parser, "--figure", *PICTURES, meaning="a picture, else beside that, NAME.calibration.png")
    add("--no-figure", action="store_true", help="no picture")
    add_beside(parser)
    arguments = parse_labelled(parser, argv)
    if arguments.beside and arguments.no_figure:
        raise UserError("--beside: is for the picture; expected no --no-figure")
    if not arguments.no_figure:
        check_installed("the picture (which --no-figure leaves out)", "matplotlib")
    return arguments


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

import torch

from tools.labelled_images import embed_samples, images_of, labelled_images
from utils.calibration_file import beside, write_calibration
from utils.metrics import protocol_of
from utils.records import MODALITIES
from utils.report import aligned
from utils.verification import PairScores, measure


def main(argv: list[str] | None = None) -> int:
    """Calibrate as the command line says; 1 if images were left out that should not be."""
    arguments = read_command_line(argv)
    target = expanded(arguments.output or beside(arguments.weight))
    figure = None if arguments.no_figure else expanded(arguments.figure or target.with_suffix(".png"))
    check_output(str(target), "--output", ".json")
    if figure is not None:
        check_output(str(figure), "--figure", *PICTURES)
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
    trials = [tuple(images_of(side, features) for side in trial) for trial in benchmark.trials]
    scores = PairScores(features.features, trials, benchmark.ignored)
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
        present = sorted({sample.modality for sample in samples})
        facts["modality"] = arguments.modality if arguments.images else ",".join(MODALITIES[one] for one in present)
    return found, facts, failed


def report(found: Verification) -> str:
    """A table of the thresholds and their rates, in per cent."""
    rows = [["", "threshold", "false accepts (FPR)", "false rejects (FNR)", "EER or TPR"]]
    rates: list[Estimate] = []
    for name, point in found.points().items():
        own = [point.fpr, point.fnr, point.reached] if point else []
        rates += own
        cells = [f"{point.threshold:.4f}", *map(_percent, own)] if point else ["too few pairs", "", "", ""]
        rows.append([name, *cells])
    counts = " and ".join(
        f"{int(pairs.sum()):,} pairs of {what}".replace(",", " ")
        for pairs, what in ((found.same, "one identity"), (found.different, "two"))
    )
    without = any(isnan(rate.low) for rate in rates)
    said = "; none where replicates agree: too few identities, or no error seen" if without else ""
    return f"{aligned(rows)}\nper cent of {counts}, with 95 % intervals{said}"


def _percent(rate: Estimate) -> str:
    interval = "no interval" if isnan(rate.low) else f"{100 * rate.low:.3g} to {100 * rate.high:.3g}"
    return f"{100 * rate.value:.3g} ({interval})"


if __name__ == "__main__":
    sys.exit(run_script(main))
