"""Compare networks on the same queries: mAP, rank-1, how sure the differences are, and what an image costs.

    python -m tools.compare --weight runs/a/ViT-B-16_60.pth --weight runs/b/ViT-B-16_60.pth DATASETS.ROOT_DIR /data
    python -m tools.compare --weight ours/ --weight hf-hub:user/theirs --data market1501 --data msmt17 TEST.FLIP True

Prints a Markdown table and writes --output with everything that changes a figure. Differences are to the first network
that can be read, with 95 % intervals of a paired bootstrap over queries; they need the same queries, gallery and
protocol. The time of an image is that of its features in batches of --batch random images, measured here and now; the
networks, all in memory, take turns. Settings are those of each checkpoint, with those of the command line on top;
--config_file is for published files.

Exit code 1 if a network could not be tested or compared, which is said; the others are done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from configs import ConfigError, check_overrides, load_for_test, replaced
from datasets.names import check_known
from tools.early import check_data
from tools.inference import add_output
from utils.command import add_settings, answer_early, at_least, new_parser, run_script
from utils.errors import UserError
from utils.paths import expanded


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--weight", metavar="FILE", action="append", required=True, help="a network; the first is the reference")
    add("--data", metavar="NAME", action="append", default=[], help="a data set; default: those of the first network")
    add("--config_file", metavar="FILE", help="a YAML file, which published files need")
    add_output(parser, "--output", ".json", default="compare.json")
    add("--device", default="auto", help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps")
    add("--batch", metavar="N", type=at_least(1), default=8, help="images at a time when time is measured; default: 8")
    add("--repeats", metavar="N", type=at_least(1), default=5, help="whose median counts; default: 5")
    add_settings(parser, "settings of all, e.g. DATASETS.ROOT_DIR /data TEST.RE_RANKING True")
    arguments = parser.parse_intermixed_args(argv)
    if len(set(arguments.weight)) < len(arguments.weight):
        raise UserError("--weight: the same network twice; expected different ones")
    load_for_test(arguments.config_file, ["TEST.WEIGHT", arguments.weight[0], *arguments.overrides])
    check_data(check_overrides(arguments.overrides), arguments.overrides[::2])
    for name in arguments.data:
        check_known(name)
    return arguments


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import torch

from datasets.names import SEVERAL, names_of
from model.towers import stem_only
from processor.build.evaluation import evaluate_model
from processor.build.testing import NetworkTest, data_sets, entry_of, open_network
from processor.evaluate import embed_images
from tools.benchmark.measure import Way, measure_once
from tools.demo.render import render_missing
from utils.bootstrap import REPLICATES, paired_difference
from utils.devices import computing_in, describe, pick_device
from utils.errors import one_line
from utils.files import write_json
from utils.records import VISIBLE, Evaluation, SideInfo
from utils.report import conditions, markdown, percent
from utils.verification import LEVEL, Estimate

SEED = 0  # of the bootstrap and of the images that time is measured with
FIGURES = {"mAP": "mAP", "rank1": "rank-1"}
OTHER = "other queries"  # nothing to pair


class Measured(NamedTuple):
    """A network on a data set."""

    weight: str
    entry: dict  # as in results.json
    evaluation: Evaluation
    parameters: int  # of the image tower
    seconds: float  # an image takes

    @property
    def data_set(self) -> str:
        """What it was tested on, with the variant where there are several."""
        return " ".join(filter(None, [self.entry["data_set"], self.entry["variant"]]))

    def queries(self) -> tuple:
        """What has to be the same for a paired comparison."""
        fingerprint = self.entry["data_fingerprint"]["test"]
        return self.data_set, fingerprint, self.entry["protocol"], self.entry["valid_queries"]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare as the command line says; 1 if something could not be."""
    arguments = read_command_line(argv)
    device = pick_device(arguments.device)
    names, tests, steps, measured, failed = list(arguments.data), {}, {}, [], {}
    for weight in arguments.weight:
        try:
            test = open_one(arguments, weight, names)
            names = names or names_of(test.cfg.DATASETS.NAMES)
            step = embedding(test, device, arguments.batch)
            step()  # the first time does not count
        except (UserError, ConfigError) as error:
            failed[weight] = one_line(error)
            continue
        tests[weight], steps[weight] = test, step
    seconds = seconds_in_turn(steps, device, arguments.repeats)
    for weight, test in tests.items():
        for name in names:
            try:
                measured += measure(test, name, device, weight, seconds[weight] / arguments.batch)
            except (UserError, ConfigError) as error:
                failed[f"{weight} on {name}"] = one_line(error)
    for what, why in failed.items():
        sys.stderr.write(f"error: {why if why.startswith(what) else f'{what}: {why}'}\n")
    if not measured:
        raise UserError("none of the networks could be tested")
    differences = [difference_to_first(one, measured) for one in measured]
    target = expanded(arguments.output)
    facts = {
        "device": describe(device),
        "batch": arguments.batch,
        "bootstrap": {"over": "queries", "replicates": REPLICATES, "level": LEVEL, "seed": SEED},
        "failed": failed,
        "networks": [as_json(one, found) for one, found in zip(measured, differences, strict=True)],
    }
    write_json(target, facts)
    sys.stdout.write(f"{table(measured, differences)}\n\n{caption(facts)}\n{target}\n")
    return int(bool(failed) or OTHER in differences)


def open_one(arguments: argparse.Namespace, weight: str, names: Sequence[str]) -> NetworkTest:
    """The network of a file, with the settings that it is tested with."""
    overrides = ["TEST.WEIGHT", weight, *arguments.overrides]
    if names:
        overrides += ["DATASETS.NAMES", SEVERAL.join(names)]
    return open_network(load_for_test(arguments.config_file, overrides), overrides, configured=None)


def measure(test: NetworkTest, name: str, device: torch.device, weight: str, seconds: float) -> list[Measured]:
    """NetworkTest a network on one data set, in each of the variants that it is tested in."""
    test = test._replace(cfg=replaced(test.cfg, {"DATASETS.NAMES": name}))
    parameters, measured = sum(parameter.numel() for parameter in test.model.image.parameters()), []
    for one in data_sets(test, device, render_missing):
        prepared = one.prepared
        evaluation = evaluate_model(prepared.cfg, test.model, prepared.benchmark, device, at_home=prepared.at_home)
        measured.append(Measured(weight, entry_of(test, one, evaluation), evaluation, parameters, seconds))
    return measured


def embedding(test: NetworkTest, device: torch.device, batch: int) -> Callable[[], object]:
    """What makes the features of random images, with flip and in the precision of the test."""
    model, cfg = test.model.to(device).eval(), test.cfg
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(batch, 3, *test.architecture["test_size"], generator=generator).to(device)
    visible = torch.full((batch,), VISIBLE, device=device)
    options = {"neck": cfg.TEST.NECK_FEAT == "after", "flip": cfg.TEST.FLIP}
    side: SideInfo | None = SideInfo.unknown(visible)
    side = stem_only(model.image, side) if cfg.TEST.SIE == "none" else side

    @torch.no_grad()
    def step() -> None:
        with computing_in(cfg.TEST.PRECISION, device):
            embed_images(model, images, side, **options)

    return step


def seconds_in_turn(steps: Mapping[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, float]:
    """The median of the seconds that each step takes; they take turns, so that all feel what else the machine does."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            seconds[name].append(measure_once(Way(name, step), device, fresh=False).wall)
    return {name: median(found) for name, found in seconds.items()}


def difference_to_first(one: Measured, measured: Sequence[Measured]) -> dict[str, Estimate] | str | None:
    """By how much a network is better than the first one on its data set; None for that one itself."""
    first = next(each for each in measured if each.data_set == one.data_set)
    if first is one:
        return None
    if one.queries() != first.queries():
        return OTHER
    found = {}
    for figure, field in (("mAP", "precision"), ("rank1", "hit")):
        ours, theirs = ([getattr(trial, field) for trial in each.evaluation.trials] for each in (one, first))
        found[figure] = paired_difference(ours, theirs, generator=torch.Generator().manual_seed(SEED))
    return found


def as_json(one: Measured, difference: Mapping[str, Estimate] | str | None) -> dict:
    """An entry like those of results.json, with what is measured here."""
    paired = {figure: each._asdict() for figure, each in difference.items()} if isinstance(difference, dict) else None
    costs = {"parameters": one.parameters, "milliseconds_per_image": 1000 * one.seconds}
    return {**one.entry, **costs, "difference": paired, "paired": difference != OTHER}


def table(measured: Sequence[Measured], differences: Sequence[Mapping[str, Estimate] | str | None]) -> str:
    """Markdown: a row for every network on every data set, by data set."""
    titles, *how = conditions([one.entry for one in measured])
    columns = [word for title in FIGURES.values() for word in (title, f"difference of {title}")]
    head = ["data set", "network", *columns, "ms an image", "million parameters", *titles]
    rows = []
    for one, difference, cells in zip(measured, differences, how, strict=True):
        figures = []
        for figure in FIGURES:
            figures.append(percent(one.entry, figure))
            figures.append(in_points(difference[figure]) if isinstance(difference, dict) else difference or "")
        costs = [f"{1000 * one.seconds:.2f}", f"{one.parameters / 1e6:.1f}"]
        rows.append([one.data_set, one.weight, *figures, *costs, *cells])
    order = list(dict.fromkeys(row[0] for row in rows))
    rows.sort(key=lambda row: order.index(row[0]))
    return markdown([head, *rows], numbers=range(2, 8))


def in_points(difference: Estimate) -> str:
    """+1.3 (+0.2 to +2.4)"""
    value, low, high = (f"{100 * number:+.1f}" for number in difference)
    return f"{value} ({low} to {high})"


def caption(facts: Mapping) -> str:
    """What the table does not say."""
    return (
        "In per cent; differences are to the first network of a data set, in points, with "
        f"{100 * LEVEL:.0f} % intervals of a paired bootstrap over queries. Milliseconds are of an image's features in "
        f"batches of {facts['batch']} on {facts['device']}."
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
