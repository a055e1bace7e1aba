"""A page in the browser: are two pictures of one identity, and which pictures of a gallery are most like one?

    python -m tools.app --weight runs/market/ViT-B-16_60.pth --gallery gallery/

It is for this machine alone unless --host says otherwise; it needs no network connection, and keeps no pictures. Of the
gallery, features are remembered, so that the next start is fast.
Thresholds are those that tools.calibrate wrote beside the checkpoint. Settings of TEST may follow.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from tools.inference import add_cache_options, add_threshold_options, network_parser, open_embedder, parse
from utils.command import Once, answer_early, run_script
from utils.errors import UserError, check_installed

HOST = "127.0.0.1"


def read_command_line(argv: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = network_parser(__doc__, skips=False)
    add = parser.add_argument
    add("--gallery", metavar="WHERE", action=Once, help="a folder or a pattern of images, in which the page searches")
    add_cache_options(parser, where="here")
    add_threshold_options(parser)
    add("--host", default=HOST, help=f"the address to listen on; default: {HOST}, this machine alone; all: 0.0.0.0")
    add("--port", type=int, default=7860, help="default: 7860")
    return parse(parser, argv, words=None)


def read_and_check(argv: list[str] | None = None) -> argparse.Namespace:
    """The same, if the page can be shown there.

    Raises:
        UserError: there is no gradio, or the port is taken.
    """
    arguments = read_command_line(argv)
    check_installed("the page", "gradio")
    host, port = arguments.host, arguments.port
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: cannot be listened on ({reason}); name others") from error
    return arguments


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_and_check)

from datasets.find_images import find_images
from processor.inference import Embedder
from tools.app.answers import Answers
from tools.cached_features import CachedFeatures
from tools.verify import read_threshold
from utils.feature_file import FeatureFile


def main(argv: list[str] | None = None) -> None:
    """Show the page until Ctrl-C or SIGTERM."""
    arguments = read_and_check(argv)
    paths = find_images([arguments.gallery]) if arguments.gallery else []
    embedder = open_embedder(arguments)
    known = read_threshold(arguments, embedder.digest)
    gallery = embed_gallery(embedder, paths, arguments) if paths else None
    answers = Answers(embedder, arguments.weight, known, gallery)
    with tempfile.TemporaryDirectory(prefix="svllreid-page-") as folder:
        # Gradio reads these when it is imported.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
        from tools.app.page import launch, make_page

        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        page = make_page(answers, Path(folder))
        launch(page, arguments.host, arguments.port)
        sys.stdout.write(f"http://{arguments.host}:{arguments.port}  (Ctrl-C ends it)\n")
        sys.stdout.flush()
        ended.wait()
        page.close(verbose=False)


def embed_gallery(embedder: Embedder, paths: Sequence[str], arguments: argparse.Namespace) -> FeatureFile:
    """Features of the gallery's pictures, from the cache where it has them."""
    with closing(CachedFeatures.of(embedder, arguments, Path("features.sqlite"))) as features:
        return FeatureFile(*features.all(paths, "gallery"), embedder.digest)


if __name__ == "__main__":
    sys.exit(run_script(main))
