"""The demo's last pictures: what its network finds, and where it looks."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from tools import attention, rank_lists
from utils.errors import UserError, check_installed
from utils.records import Benchmark

logger = logging.getLogger("demo")

RANKS, ATTENTION = "ranks.png", "attention.png"
QUERIES = 3  # and identities


def draw(checkpoint: Path, benchmark: Benchmark, folder: Path, device: str) -> None:
    """Write the rank lists of the queries that fare worst, and by which places images of one identity are alike."""
    try:
        check_installed("a picture", "matplotlib")
    except UserError as error:
        logger.info("no rank lists and no attention: %s", error)
        return
    network = ["--weight", str(checkpoint), "--device", device]
    # What they print are figures of images without cameras, which are not those of the run.
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        rank_lists.main([*network, "--output", str(folder / RANKS), "--count", str(QUERIES)])
        images = matches(benchmark, QUERIES)
        attention.main([*network, "--output", str(folder / ATTENTION), "--method", "pair", *images])
    logger.info("%s: the %d queries that fare worst", folder / RANKS, QUERIES)
    logger.info("%s: by which places images of %d identities are alike", folder / ATTENTION, QUERIES)


def matches(benchmark: Benchmark, count: int) -> list[str]:
    """Of each of the first identities, a query and a gallery image from another camera."""
    (trial,) = benchmark.trials
    pairs: dict[int, list[str]] = {}
    for query in trial.query:
        found = (one.path for one in trial.gallery if one.pid == query.pid and one.camid != query.camid)
        if query.pid not in pairs and (path := next(found, None)):
            pairs[query.pid] = [query.path, path]
    return [path for pair in list(pairs.values())[:count] for path in pair]
