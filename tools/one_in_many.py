"""Measure 1:(1+N) retrieval: where the match of a query comes among N images of others, over many random draws.

    python -m tools.one_in_many --weight runs/market/ViT-B-16_60.pth DATASETS.ROOT_DIR /data
    python -m tools.one_in_many --weight runs/market/ViT-B-16_60.pth --pairs pairs.csv --gallery others/

One of two images of a person is the query, the other is mixed into N others (2000, or all there are). Takes the pairs
of query and gallery that count under a data set's protocol and others of its gallery, or a folder that holds a folder
per identity; or the pairs of a CSV file of two columns, and a gallery (images, or a file of tools.embed's) of others.
"""

from __future__ import annotations

import argparse
import sys

from tools.inference import add_output, embed_files, network_parser, open_embedder, parse_labelled
from utils.command import Once, answer_early, at_least, run_script
from utils.errors import UserError
from utils.paths import expanded


def read_command_line(argv: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = network_parser(__doc__)
    add = parser.add_argument
    add("--pairs", metavar="FILE", help="a CSV file of two columns: paths, relative to it; no header")
    add(
        "--gallery",
        metavar="WHERE",
        action=Once,
        help="of others, for --pairs: a folder, a pattern, or a file of tools.embed's",
    )
    add("--draws", metavar="N", type=at_least(1), default=1000, help="default: 1000")
    add("--distractors", metavar="N", type=at_least(1), default=2000, help="images of others; default: 2000")
    add("--seed", metavar="N", type=at_least(0), default=0, help="of the draws; default: 0")
    add_output(parser, "--output", ".json", meaning="written to as well")
    arguments = parse_labelled(parser, argv)
    if bool(arguments.pairs) != bool(arguments.gallery) or (arguments.pairs and arguments.images):
        raise UserError("--pairs, --gallery: expected both and no FOLDER, or neither")
    return arguments


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

import torch

from datasets.find_images import find_images
from processor.inference import Embedder
from tools.labelled_images import embed_samples, first_trial, images_of, labelled_images
from tools.verify import read_pairs
from utils.feature_file import FeatureFile, read_features
from utils.files import write_json
from utils.metrics import check_finite
from utils.one_in_many import ImagePairs, histogram, pairs_that_count, ranks_of_matches
from utils.records import Labels
from utils.verification import Images


def main(argv: list[str] | None = None) -> int:
    """Measure as the command line says; 1 if images were left out that should not be."""
    arguments = read_command_line(argv)
    embedder = open_embedder(arguments)
    source = given_pairs if arguments.pairs else labelled_pairs
    features, pairs, others, failed = source(arguments, embedder)
    check_finite(features, features[:0])
    at_most = len(others.rows) - min(int((others.labels.pids == pid).sum()) for pid in pairs.pids.unique())
    distractors = min(arguments.distractors, at_most)
    if not distractors:
        raise UserError("there is no image of another identity to mix the match into")
    if distractors < arguments.distractors:
        sys.stderr.write(f"only {distractors} images of others, not {arguments.distractors}\n")
    generator = torch.Generator().manual_seed(arguments.seed)
    ranks = ranks_of_matches(
        features, pairs, others, draws=arguments.draws, distractors=distractors, generator=generator
    )
    facts = {
        **{"digest": embedder.digest, "draws": arguments.draws, "seed": arguments.seed, "distractors": distractors},
        **{"identities": len(pairs.pids.unique()), "pairs": len(pairs.pids)},
        **{"median_rank": float(ranks.double().quantile(0.5)), "mean_rank": float(ranks.double().mean())},
        **{f"hit@{k}": float((ranks <= k).double().mean()) for k in (1, 10)},
        "ranks": histogram(ranks),
    }
    if arguments.output:
        write_json(expanded(arguments.output), facts)
    sys.stdout.write(
        f"{facts['draws']} draws of {facts['pairs']} pairs of {facts['identities']} identities, 1:(1+{distractors})\n"
        f"hit@10 {100 * facts['hit@10']:.1f} %, hit@1 {100 * facts['hit@1']:.1f} %, rank of the match: "
        f"median {facts['median_rank']:g}, mean {facts['mean_rank']:.2f}\n"
        + "".join(f"rank {name:>7}  {count}\n" for name, count in facts["ranks"].items())
    )
    return int(failed > 0 and not arguments.skip_unreadable)


def labelled_pairs(arguments: argparse.Namespace, embedder: Embedder) -> tuple[torch.Tensor, ImagePairs, Images, int]:
    """Features, pairs and others of a data set or a folder per identity, and how many images cannot be read."""
    benchmark, _, _ = labelled_images(arguments, embedder)
    trial = first_trial(benchmark)
    contents, failed = embed_samples(arguments, embedder, (sample for side in trial for sample in side))
    query, gallery = (images_of(side, contents) for side in trial)
    return contents.features, pairs_that_count(query, gallery, benchmark.ignored), gallery, failed


def given_pairs(arguments: argparse.Namespace, embedder: Embedder) -> tuple[torch.Tensor, ImagePairs, Images, int]:
    """The same of --pairs, in both directions, and --gallery."""
    pairs = read_pairs(expanded(arguments.pairs))
    of_pairs, failed = embed_files(embedder, list(dict.fromkeys(image for pair in pairs for image in pair)))
    if arguments.gallery.endswith(".npz"):
        others, unread = read_features(arguments.gallery, embedder.digest), 0
    else:
        others, unread = embed_files(embedder, find_images([arguments.gallery]))
    return *combined(pairs, of_pairs, others), failed + unread


def combined(
    pairs: list[tuple[str, str]], of_pairs: FeatureFile, others: FeatureFile
) -> tuple[torch.Tensor, ImagePairs, Images]:
    """Features of both, pairs that could be read, and the others, who are nobody of the pairs (-1)."""
    rows = {name: row for row, name in enumerate(of_pairs.names)}
    kept = [(rows[a], rows[b], pid) for pid, (a, b) in enumerate(pairs) if {a, b} <= rows.keys()]
    if not kept:
        raise UserError("--pairs: of no pair both images can be read")
    both = torch.tensor([*kept, *((b, a, pid) for a, b, pid in kept)])
    nobody = torch.full((len(others.names),), -1)
    places = torch.arange(len(rows), len(rows) + len(others.names))
    features = torch.cat([of_pairs.features, others.features])
    return features, ImagePairs(*both.T), Images(places, Labels(nobody, nobody))


if __name__ == "__main__":
    sys.exit(run_script(main))
