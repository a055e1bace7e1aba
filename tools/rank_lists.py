"""Show what a network finds for the queries of a test: the worst failures first, matches green, others orange.

    python -m tools.rank_lists --weight runs/market/ViT-B-16_60.pth --output ranks.pdf DATASETS.ROOT_DIR /data
    python -m tools.rank_lists --weight runs/market/ViT-B-16_60.pth --count 5 --order random my_images/

Takes the data set of the checkpoint or of DATASETS.NAMES, or a folder that holds a folder per identity. A query's list
leaves out what the protocol ignores; where no match is among the first, the first match follows with its rank. Scores
are cosines of the features that tools.embed writes. The worst are those with the lowest average precision (AP).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.inference import PICTURES, add_output, network_parser, open_embedder, parse_labelled
from utils.command import answer_early, at_least, run_script
from utils.errors import UserError
from utils.paths import expanded

WORST, BEST, RANDOM = "worst", "best", "random"


def read_command_line(argv: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = network_parser(__doc__)
    add = parser.add_argument
    add_output(parser, "--output", *PICTURES, default="ranks.png")
    add("--count", metavar="N", type=at_least(1), default=10, help="queries to show, 10 on a page; default: 10")
    add("--top", metavar="N", type=at_least(1), default=10, help="images of each list; default: 10")
    add("--order", choices=(WORST, BEST, RANDOM), default=WORST, help="which queries come first; default: worst")
    add("--pids", metavar="ID,ID", help="only queries of these identities, as the data set names them")
    add("--seed", metavar="N", type=at_least(0), default=0, help="of --order random; default: 0")
    return parse_labelled(parser, argv)


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

import torch

from tools.labelled_images import embed_samples, first_trial, images_of, labelled_images, plain, written
from utils.metrics import protocol_of
from utils.rank_lists import Outcomes, RankLists
from utils.records import RankList, Refinement


def main(argv: list[str] | None = None) -> int:
    """Draw what the command line says; 1 if images were left out that should not be."""
    arguments = read_command_line(argv)
    from tools.rank_figure import draw_rank_lists  # matplotlib is an extra

    embedder = open_embedder(arguments)
    benchmark, _, _ = labelled_images(arguments, embedder)
    trial = first_trial(benchmark)
    features, failed = embed_samples(arguments, embedder, (sample for side in trial for sample in side))
    lists = RankLists(features, *(images_of(side, features) for side in trial), benchmark.ignored)
    outcomes = lists.outcomes()

    labels = {sample.path: written(benchmark, sample) for side in trial for sample in side}
    queries = [features.names[row] for row in lists.query.rows.tolist()]
    shown = []
    for number in choose(outcomes, [labels[query][0] for query in queries], arguments):
        place, precision, first = (field[number].item() for field in outcomes)
        query = queries[place]
        fared = f"AP {100 * precision:.1f} %, first match at rank {first}"
        found = [hit._replace(camera=labels[hit.name][1]) for hit in lists.best(place, arguments.top)]
        shown.append(RankList(query, found, labels[query][1], f"{Path(query).name}: {fared}"))
        sys.stdout.write(f"{query}  {fared}\n")
    paths, _ = draw_rank_lists(expanded(arguments.output), shown, size=embedder.transform.size)
    refinement = str(Refinement(embedder.flip, precision=embedder.precision))
    how = ", ".join(filter(None, [f"protocol {protocol_of(benchmark.ignored)}", refinement]))
    sys.stdout.write(
        f"{len(outcomes.places)} queries, {how}: "
        f"mAP {100 * outcomes.precision.mean():.1f} %, rank-1 {100 * (outcomes.first == 1).double().mean():.1f} %\n"
        f"{', '.join(map(str, paths))}\n"
    )
    return int(failed > 0 and not arguments.skip_unreadable)


def choose(outcomes: Outcomes, identities: Sequence[str], arguments: argparse.Namespace) -> list[int]:
    """Numbers among the `outcomes`, those to show first.

    Args:
        identities: of all queries.

    Raises:
        UserError: --pids names an identity of which no query has a match.
    """
    order = outcomes.worst_first().tolist()
    if arguments.order == BEST:
        order.reverse()
    elif arguments.order == RANDOM:
        generator = torch.Generator().manual_seed(arguments.seed)
        order = torch.randperm(len(order), generator=generator).tolist()
    if arguments.pids:
        named = [plain(identities[place]) for place in outcomes.places.tolist()]
        wanted = [plain(pid) for pid in arguments.pids.split(",")]
        if unknown := [pid for pid in wanted if pid not in named]:
            raise UserError(f"--pids {unknown[0]}: no query of it has a match; expected e.g. {named[0]}")
        order = [number for number in order if named[number] in wanted]
    return order[: arguments.count]


if __name__ == "__main__":
    sys.exit(run_script(main))
