"""Show where in images a network looks, or by which places two images are alike, over the images.

    python -m tools.attention --weight runs/market/ViT-B-16_60.pth --output attention.png a.jpg b.jpg
    python -m tools.attention --weight runs/market/ViT-B-16_60.pth --method pair --output pair.pdf a.jpg b.jpg

Methods: class (the class token's attention in the last block), rollout (its attention through all blocks), share (what
each place adds to the image's own feature), pair (what it adds to the cosine with the other image; images are taken two
by two). The last two are exact, and all that there is for towers without a class token, such as Swin. CLIP's ResNets
have `class`, of their attention pool.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tools.inference import (
    PICTURES,
    add_beside,
    add_output,
    check_unlike,
    for_each_network,
    network_parser,
    open_embedder,
    parse,
    short_names,
)
from utils.command import answer_early, run_script
from utils.errors import DataError, UserError
from utils.paths import expanded

PAIR = "pair"


def read_command_line(argv: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = network_parser(__doc__)
    add = parser.add_argument
    add_output(parser, "--output", *PICTURES, default="attention.png")
    add("--method", choices=("class", "rollout", "share", PAIR), help="default: rollout, else share")
    add_beside(parser)
    return parse(parser, argv, example="a.jpg b.jpg")


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from datasets.find_images import find_images
from processor.attention import ROLLOUT, SHARE, attention_map, has_class_token, pair_shares
from processor.inference import Embedder
from tools.heat import Heat, Row
from utils.progress import progress


def main(argv: list[str] | None = None) -> int:
    """Draw what the command line says; 1 if images were left out that should not be."""
    arguments = read_command_line(argv)
    from tools.attention_figure import figures  # matplotlib is an extra
    from tools.pages import write_pages

    paths = find_images(arguments.images)
    check_unlike(arguments.output, "--output", paths)
    pairs = arguments.method == PAIR
    if pairs and len(paths) % 2:
        raise UserError(f"--method pair takes images two by two; got {len(paths)}")
    networks = for_each_network(arguments)
    embedders = [open_embedder(one) for one in networks]
    methods = [arguments.method or (ROLLOUT if has_class_token(one) else SHARE) for one in embedders]
    groups = [paths[at : at + 1 + pairs] for at in range(0, len(paths), 1 + pairs)]
    unreadable: list[str] = []
    rows = rows_of(progress(groups, "maps"), list(zip(embedders, methods, strict=True)), unreadable)
    names = short_names([one.weight for one in networks])
    columns = [f"{name}\n{method}" for name, method in zip(names, methods, strict=True)]
    files = write_pages(expanded(arguments.output), figures(rows, columns, size=embedders[0].transform.size))
    if not files or len(unreadable) == len(groups):
        raise UserError(f"none of the {len(paths)} images can be read")
    sys.stdout.write(f"{', '.join(map(str, files))}\n")
    return int(bool(unreadable) and not arguments.skip_unreadable)


def rows_of(
    groups: Iterable[Sequence[str]], networks: Sequence[tuple[Embedder, str]], unreadable: list[str]
) -> Iterator[Row]:
    """A row for every image of the groups: single images, or pairs.

    Args:
        networks: embedders with their methods.
        unreadable: is added to; what is wrong is said on stderr.
    """
    for group in groups:
        try:
            heats = [
                _pair(embedder, group) if method == PAIR else [_heat(embedder, group[0], method)]
                for embedder, method in networks
            ]
        except DataError as error:
            unreadable.append(group[0])
            sys.stderr.write(f"{error}\n")
            continue
        for place, image in enumerate(group):
            yield Row(image, Path(image).name, [each[place] for each in heats])


def _heat(embedder: Embedder, image: str, method: str) -> Heat:
    grid = attention_map(embedder, image, method)
    return Heat(grid, f"{100 * float(grid.sum()):.0f} % from patches" if method == SHARE else "")


def _pair(embedder: Embedder, group: Sequence[str]) -> list[Heat]:
    shares = pair_shares(embedder, *group)
    rests = zip((shares.first, shares.second), shares.rests, strict=True)
    return [
        Heat(grid, f"cosine {shares.cosine:.3f} =\n{float(grid.sum()):.3f} + rest {rest:.3f}") for grid, rest in rests
    ]


if __name__ == "__main__":
    sys.exit(run_script(main))
