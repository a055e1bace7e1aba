"""Write the features of images, as retrieval compares them: a row of length 1 for each.

    python -m tools.embed --weight runs/market/ViT-B-16_60.pth --output features.npz gallery/ extra/*.jpg

The file holds `names`, `features` (float32 [N, D]) and the `digest` of the network, by which other tools refuse
features of another one. `--csv` writes a table as well. Settings of TEST may follow, e.g. TEST.FLIP True.
"""

from __future__ import annotations

import argparse
import sys

from tools.inference import add_output, embed_files, network_parser, open_embedder, parse
from utils.command import answer_early, run_script
from utils.paths import expanded


def read_command_line(argv: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = network_parser(__doc__)
    add_output(parser, "--output", ".npz", default="features.npz")
    add_output(parser, "--csv", ".csv", meaning="a table to write as well")
    return parse(parser, argv, example="gallery/ or 'gallery/*.jpg'")


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from datasets.find_images import find_images
from utils.feature_file import write_csv, write_features


def main(argv: list[str] | None = None) -> int:
    """Embed as the command line says; 1 if images were left out that should not be."""
    arguments = read_command_line(argv)
    targets = [expanded(name) for name in (arguments.output, arguments.csv) if name]
    paths = find_images(arguments.images)
    contents, failed = embed_files(open_embedder(arguments), paths)
    write_features(targets[0], contents)
    if arguments.csv:
        write_csv(targets[1], contents)
    count, width = contents.features.shape
    sys.stdout.write(f"{count} images, {width} numbers each: {', '.join(map(str, targets))}\n")
    return int(failed > 0 and not arguments.skip_unreadable)


if __name__ == "__main__":
    sys.exit(run_script(main))
