"""Measure how fast the program is, against the textbook way of doing the same.

    python -m tools.benchmark                                  # all parts, at a tenth of their size
    python -m tools.benchmark ranking --scale 1 --repeats 5    # Market-1501's and MSMT17's sizes
    python -m tools.benchmark text --name ViT-B-16 --device cuda

All ways of a part run in turn, so that other work on the machine slows all of them; what counts are the ratios. The
machine's own matrix product takes a turn, too: the share is how near a way comes to that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tools.inference import PICTURES, add_output
from utils.command import answer_early, at_least, new_parser, run_script
from utils.errors import UserError

PARTS = ("input", "ranking", "reranking", "clustering", "text", "image", "growth")


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "parts", nargs="*", default=[], action=_Parts, metavar="PART", help=f"{', '.join(PARTS)} (default all)"
    )
    parser.add_argument(
        "--scale", type=_share, default=0.1, metavar="X", help="how many of a data set's images, 0 to 1 (default 0.1)"
    )
    parser.add_argument("--repeats", type=at_least(1), default=3, metavar="N", help="runs of each way (default 3)")
    parser.add_argument("--device", default="auto", help="as MODEL.DEVICE (default auto)")
    add_output(parser, "--figure", *PICTURES, meaning="of growth")
    add_output(parser, "--json", ".json", meaning="write every single measurement here, too")
    networks = parser.add_argument_group("of a network")
    networks.add_argument("--name", default="ViT-Tiny-8", help="architecture (default ViT-Tiny-8)")
    networks.add_argument("--batch", type=at_least(1), default=64, metavar="N", help="images (default 64)")
    networks.add_argument(
        "--identities", type=at_least(1), default=16, metavar="N", help="identities in the batch (default 16)"
    )
    arguments = parser.parse_args(argv)
    if arguments.figure and "growth" not in (arguments.parts or PARTS):
        raise UserError(f"--figure {arguments.figure}: is of growth; expected that part")
    return arguments


class _Parts(argparse.Action):
    """The argparse action of names of PARTS; argparse's own choices refuse to have none of them."""

    def __call__(self, parser, namespace: argparse.Namespace, words, _option=None) -> None:
        unknown = [word for word in words if word not in PARTS]
        if unknown:
            parser.error(f"PART {unknown[0]}: expected {', '.join(PARTS)}")
        setattr(namespace, self.dest, words)


def _share(text: str) -> float:
    """An argparse type: numbers above 0, up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"invalid value {text!r}, expected a number above 0, up to 1")
    return value


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

import json

from tools.benchmark import clustering, growth, image, input, ranking, reranking, text
from tools.benchmark.machine import machine
from tools.benchmark.measure import Measured, Setting, measure
from tools.benchmark.report import as_json, table
from utils.devices import pick_device
from utils.files import replace_text
from utils.paths import expanded

MODULES = input, ranking, reranking, clustering, text, image, growth
CASES = {part: module.cases for part, module in zip(PARTS, MODULES, strict=True)}


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for every case of the parts."""
    arguments = read_command_line(argv)
    device = pick_device(arguments.device)
    target, figure = (expanded(path) if path else None for path in (arguments.json, arguments.figure))
    setting = Setting(device, arguments.scale, arguments.name, arguments.batch, arguments.identities)
    facts = machine(device)
    sys.stdout.write(f"{', '.join(f'{name} {value}' for name, value in facts.items())}\n")
    found: dict[str, dict[str, list[Measured]]] = {}
    for part in arguments.parts or PARTS:
        for case in CASES[part](setting):
            sys.stdout.write(f"\n{part}: {case.title}\n\n")
            sys.stdout.flush()
            measured = measure(case, device, arguments.repeats)
            found.setdefault(part, {})[case.title] = measured
            sys.stdout.write(f"{table(measured, device)}\n")
    if target is not None:
        facts |= {"scale": arguments.scale, "repeats": arguments.repeats}
        written = [
            {"part": part, "title": title, "ways": as_json(measured)}
            for part, cases in found.items()
            for title, measured in cases.items()
        ]
        replace_text(target, json.dumps({"machine": facts, "cases": written}, indent=2) + "\n")
    if figure is not None:
        from tools.benchmark.figure import draw  # matplotlib is an extra

        draw(figure, found["growth"], device)


if __name__ == "__main__":
    sys.exit(run_script(main))
