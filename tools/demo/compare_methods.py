"""Train the demo's three methods with several seeds and print the table of docs/results.md.

Of each seed, tools.compare then prints how sure the differences to the baseline are, and what an image costs.

    python -m tools.demo.compare_methods --seeds 0 1 2            # a quarter of an hour on two cores

A seed decides on everything: people, cameras, prompts, batches. Methods with the same seed see the same data set. Runs
go to --folder, one folder each; what has ended is read, not run again, and what was interrupted is resumed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from configs import check_overrides
from utils.command import add_settings, answer_early, at_least, new_parser, run_script
from utils.run.places import check_writable


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0, 1, 2], metavar="N", help="default 0 1 2")
    parser.add_argument("--folder", type=Path, default=Path("runs/compare"), help="of the runs (default %(default)s)")
    add_settings(parser, "settings of all runs, after --")
    arguments = parser.parse_args(argv)
    check_overrides(arguments.overrides)
    check_writable(arguments.folder, "--folder")
    return arguments


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

import torch
from yacs.config import CfgNode

from configs import load
from datasets.build import make_benchmark, make_loader
from tools import compare
from train_svllreid import train
from utils.logs import log_to_screen
from utils.metrics import rank_features
from utils.records import Labels
from utils.report import markdown
from utils.run import RESULTS
from utils.run.results import END, START, read_results

METHODS = {
    "baseline (identity + triplet)": "configs/demo/vit_base.yml",
    "CLIP-ReID": "configs/demo/vit_clipreid.yml",
    "SVLL-ReID": "configs/demo/vit_svllreid.yml",
}
PIXELS, FROZEN = "raw pixels", "tiny CLIP before training"
ROOT = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then print."""
    arguments = read_command_line(argv)
    log_to_screen()
    scores: dict[str, list[dict]] = {name: [] for name in (PIXELS, FROZEN, *METHODS)}
    device = load(ROOT / METHODS["CLIP-ReID"], arguments.overrides).MODEL.DEVICE
    for seed in arguments.seeds:
        for name, config in METHODS.items():
            folder = arguments.folder / f"{Path(config).stem}_{seed}"
            seeds = ["SOLVER.SEED", str(seed), "DATASETS.SYNTHETIC.SEED", str(seed)]
            cfg = load(ROOT / config, [*arguments.overrides, *seeds])
            train(cfg, folder)
            entries = {entry["when"]: entry for entry in read_results(folder / RESULTS)["evaluations"]}
            scores[name].append(entries[END])
            if name == "CLIP-ReID":  # the start is the same for all methods
                scores[FROZEN].append(entries[START])
                scores[PIXELS].append(score_pixels(cfg))
    sys.stdout.write(table(scores, arguments.seeds) + "\n")
    for place, seed in enumerate(arguments.seeds):
        weights = [word for name in METHODS for word in ("--weight", scores[name][place]["checkpoint"])]
        sys.stdout.write(f"\nseed {seed}\n\n")
        compare.main([*weights, "--output", str(arguments.folder / f"compare_{seed}.json"), "--device", device])


def score_pixels(cfg: CfgNode) -> dict:
    """What comparing resized images pixel by pixel scores."""
    trial = make_benchmark(cfg).trials[0]
    pixels = (
        torch.cat([batch.images.flatten(1) for batch in make_loader(cfg, samples, train=False)]) for samples in trial
    )
    ranking = rank_features(*pixels, *(Labels.of(samples) for samples in trial))
    return {"mAP": ranking.mAP, "rank1": ranking.cmc[0].item()}


def table(scores: dict[str, list[dict]], seeds: list[int]) -> str:
    """Markdown: per cent, one column a seed, mean and sample standard deviation of mAP, mean rank-1."""
    rows = [["", *(f"seed {seed}" for seed in seeds), "mean mAP", "mean rank-1"]]
    for name, entries in scores.items():
        mAP, rank1 = ([100 * entry[figure] for entry in entries] for figure in ("mAP", "rank1"))
        spread = f" ± {statistics.stdev(mAP):.1f}" if len(mAP) > 1 else ""
        means = f"{statistics.mean(mAP):.1f}{spread}", f"{statistics.mean(rank1):.1f}"
        rows.append([name, *(f"{value:.1f}" for value in mAP), *means])
    gaps = [
        100 * (ours["mAP"] - theirs["mAP"])
        for ours, theirs in zip(scores["SVLL-ReID"], scores["CLIP-ReID"], strict=True)
    ]
    rows.append(["SVLL-ReID − CLIP-ReID", *(f"{gap:+.1f}" for gap in gaps), f"{statistics.mean(gaps):+.1f}", ""])
    return markdown(rows, numbers=range(1, len(rows[0])))


if __name__ == "__main__":
    sys.exit(run_script(main))
