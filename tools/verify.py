"""Say whether two images show one identity: their cosine and, once calibrated, the decision and how often it is wrong.

    python -m tools.verify --weight runs/market/ViT-B-16_60.pth a.jpg b.jpg
    python -m tools.verify --weight runs/market/ViT-B-16_60.pth --fpr 1e-3 --pairs pairs.csv --json

tools.calibrate measures thresholds and writes them beside the checkpoint; one of another network or of other settings
is refused. `--pairs` takes two columns of paths, relative to the file, without a header. Settings of TEST may follow.
"""

from __future__ import annotations

import argparse
import csv
import filecmp
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tools.inference import add_threshold_options, embed_files, network_parser, open_embedder, parse
from utils.command import answer_early, run_script
from utils.errors import UserError
from utils.paths import expanded


class Verdict(NamedTuple):
    """What is said of two images."""

    a: str
    b: str
    cosine: float | None  # None: one of them cannot be read
    decision: str | None  # same or different; None without a threshold
    note: str | None


def read_command_line(argv: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line, with the `pairs` of paths to compare."""
    parser = network_parser(__doc__, crosses=True)
    add = parser.add_argument
    add("--pairs", metavar="FILE", help="a CSV file of two columns: paths, relative to it; no header")
    add_threshold_options(parser)
    add("--json", action="store_true", help="print JSON")
    arguments = parse(parser, argv, words=("IMAGE", "two images"))
    if len(arguments.images) != 2 and (arguments.images or not arguments.pairs):
        raise UserError(f"IMAGE: expected two images, or --pairs FILE; got {len(arguments.images)}")
    return arguments


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from utils.calibration_file import EQUAL, Calibration, Rate, Threshold, beside, read_calibration, threshold_at
from utils.records import MODALITIES


class Known(NamedTuple):
    """A threshold; without a calibration there is none."""

    path: Path  # of the calibration
    fpr: str
    calibration: Calibration | None = None
    threshold: Threshold | None = None


def main(argv: list[str] | None = None) -> int:
    """Compare the images that the command line names; 1 if some cannot be read that should."""
    arguments = read_command_line(argv)
    pairs = [tuple(arguments.images)] if arguments.images else []
    if arguments.pairs:
        pairs += read_pairs(expanded(arguments.pairs))
    embedder = open_embedder(arguments)
    known = read_threshold(arguments, embedder.digest)
    images = list(dict.fromkeys(image for pair in pairs for image in pair))
    found, failed = embed_files(embedder, images, modalities_of(pairs, images, arguments.modality))
    features = dict(zip(found.names, found.features, strict=True))
    verdicts = []
    for a, b in pairs:
        cosine = float(features[a] @ features[b]) if {a, b} <= features.keys() else None
        decision = None if cosine is None else decide(cosine, known.threshold)
        alike = cosine is not None and filecmp.cmp(a, b, shallow=False)
        verdicts.append(Verdict(a, b, cosine, decision, "the same picture twice" if alike else None))
    if arguments.json:
        facts = {
            "digest": embedder.digest,
            "calibration": known.calibration and str(known.path),
            "threshold": known.threshold,
        }
        sys.stdout.write(json.dumps({**facts, "pairs": [verdict._asdict() for verdict in verdicts]}, indent=2) + "\n")
    elif lines := "".join(map(in_words, verdicts)):
        sys.stdout.write(lines + explain(known))
    return int(failed > 0 and not arguments.skip_unreadable)


def modalities_of(pairs: Sequence[tuple[str, ...]], images: Sequence[str], modality: str | None) -> list[int] | None:
    """Of each image, where --modality says that of the first and of the second of a pair; else None.

    Raises:
        UserError: an image would be of both.
    """
    if modality is None or modality in MODALITIES:
        return None
    first, second = map(MODALITIES.index, modality.split(","))
    of_first = {a for a, _ in pairs}
    if both := of_first & {b for _, b in pairs}:
        raise UserError(f"--modality {modality}: {min(both)} is the first image of a pair and the second of another")
    return [first if image in of_first else second for image in images]


def read_threshold(arguments: argparse.Namespace, digest: str) -> Known:
    """The threshold that the command line asks for, of the network with this `digest`.

    Raises:
        UserError: the calibration is of another network, or has no such threshold.
    """
    path = expanded(arguments.calibration or beside(arguments.weight))
    if not path.exists():
        return Known(path, arguments.fpr)
    calibration = read_calibration(path, digest)
    measured = calibration.get("modality")
    named = arguments.modality  # None is refused, once there are images
    if measured and named and set(measured.split(",")) != set(named.split(",")):
        sys.stderr.write(f"{path}: thresholds are of pairs that are {measured}, not {named}\n")
    return Known(path, arguments.fpr, calibration, threshold_at(calibration, arguments.fpr, path))


def decide(cosine: float, threshold: Threshold | None) -> str | None:
    """same or different; None without a threshold."""
    return threshold and ("same" if cosine >= threshold["threshold"] else "different")


def explain(known: Known) -> str:
    """What the threshold does, and where that was measured; or that there is none."""
    calibration, threshold = known.calibration, known.threshold
    if calibration is None or threshold is None:
        return "no threshold is known; python -m tools.calibrate measures one\n"
    pairs, at = calibration["pairs"], "EER" if known.fpr == EQUAL else f"FPR {known.fpr}"
    return (
        f"same from {threshold['threshold']:.4f} on ({at}): expected false accepts {_percent(threshold['fpr'])}, false "
        f"rejects {_percent(threshold['fnr'])}\n"
        f"measured on {calibration['data_set']}, protocol {calibration['protocol']}: {pairs['same']} pairs of one "
        f"identity, {pairs['different']} of two\n"
    )


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """The pairs of paths in a CSV file of two columns.

    Raises:
        UserError: it cannot be read, holds nothing, or a line of it has not two columns.
    """
    pairs = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            for row in filter(None, lines):
                if len(row) != 2:
                    raise UserError(f"--pairs {path}: line {lines.line_num} has {len(row)} columns; expected two paths")
                pairs.append(tuple(os.path.join(path.parent, name) for name in row))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--pairs {path}: cannot be read ({error})") from error
    if not pairs:
        raise UserError(f"--pairs {path}: holds no pairs")
    return pairs


def in_words(verdict: Verdict) -> str:
    """A line, or nothing where an image cannot be read, which was said."""
    if verdict.cosine is None:
        return ""
    said = [f"cosine {verdict.cosine:.4f}", verdict.decision, verdict.note]
    return f"{verdict.a}  {verdict.b}  {', '.join(filter(None, said))}\n"


def _percent(rate: Rate) -> str:
    interval = " (no interval)" if rate["low"] is None else f" ({100 * rate['low']:.3g} to {100 * rate['high']:.3g})"
    return f"{100 * rate['value']:.3g} %{interval}"


if __name__ == "__main__":
    sys.exit(run_script(main))
