"""Release a network: a folder that others use as it is, with a model card, in the layout of the Hugging Face Hub.

    python -m tools.release --weight runs/market/ViT-B-16_60.pth --output market-vit-b-16/
    python -m tools.release --weight runs/market/ViT-B-16_60.pth --output market-vit-b-16/ --push user/market-vit-b-16

All tools take the folder as --weight, and hf-hub:user/market-vit-b-16 once it is uploaded. Its features are those of
the checkpoint, bit for bit; what only training needs is left out. Settings of TEST that follow become the network's
own. A repository that --push makes is private until you change that on its page: read the card's terms first.
"""

from __future__ import annotations

import argparse
import sys

from tools.inference import network_parser, open_embedder, parse
from utils.command import answer_early, run_script
from utils.files import check_new_folder
from utils.hub import PREFIX
from utils.paths import expanded
from utils.run.places import check_writable


def read_command_line(argv: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = network_parser(__doc__, skips=False)
    add = parser.add_argument
    add("--output", metavar="FOLDER", required=True, help="the folder to write")
    add("--push", metavar="USER/NAME", help="upload it to this repository of the Hub; a new one is private")
    add("--license", metavar="ID", help="of the network, by the Hub's names; default: mit if all is this repository's")
    arguments = parse(parser, argv, words=None)
    folder = expanded(arguments.output, "--output")
    check_new_folder(folder, "--output")
    check_writable(folder, "--output")
    return arguments


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from processor.release import release
from utils import hub
from utils.release_folder import FILES


def main(argv: list[str] | None = None) -> None:
    """Release as the command line says."""
    arguments = read_command_line(argv)
    folder = expanded(arguments.output)
    if arguments.push:
        hub.check_login(arguments.push)
    embedder = open_embedder(arguments)
    place = PREFIX + arguments.push if arguments.push else folder.name
    release(embedder, arguments.weight, folder, place=place, licence=arguments.license)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    sys.stdout.write(f"{folder}: {size:.1f} MB: {', '.join(sorted(path.name for path in folder.iterdir()))}\n")
    if arguments.push:
        sys.stdout.write(f"{hub.push(folder, arguments.push, FILES)}\n")


if __name__ == "__main__":
    sys.exit(run_script(main))
