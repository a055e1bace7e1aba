"""Features of many images, block by block, of which those that were computed before are not computed again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from processor.inference import Embedder
from utils.errors import DataError, UserError
from utils.feature_cache import FeatureCache, contents_of
from utils.paths import expanded
from utils.progress import progress
from utils.records import MODALITIES

BLOCK = 256  # images; what an interruption loses


class CachedFeatures:
    """The features of images, from a cache where it has them.

    Args:
        embedder: computes the others.
        path: of the cache; None for none.
    """

    def __init__(self, embedder: Embedder, path: Path | None):
        self.embedder = embedder
        self.width = sum(embedder.model.image.dims[1:])
        network = f"{embedder.digest}{'' if embedder.modality is None else f' {MODALITIES[embedder.modality]}'}"
        self.cache = FeatureCache(path, network) if path else None
        self.computed = self.remembered = self.unreadable = 0

    @classmethod
    def of(cls, embedder: Embedder, arguments: argparse.Namespace, output: Path) -> CachedFeatures:
        """As the options say."""
        path = expanded(arguments.cache or output.with_name("features.sqlite"))
        return cls(embedder, None if arguments.no_cache else path)

    def __call__(self, paths: Sequence[str], what: str) -> Iterator[tuple[list[str], Tensor]]:
        """Paths and features, float32 [N, D] of length 1, in blocks; unreadable images are named and left out.

        Args:
            what: the images are, for the progress bar.

        Raises:
            UserError: none can be read.
        """
        before = self.unreadable
        starts = range(0, len(paths), BLOCK)
        for start in progress(starts, what) if len(starts) > 1 else starts:
            block = paths[start : start + BLOCK]
            names, features = self._block(block)
            if names:
                yield names, features
        if len(paths) == self.unreadable - before:
            raise UserError(f"none of the {len(paths)} images can be read ({what})")

    def all(self, paths: Sequence[str], what: str) -> tuple[list[str], Tensor]:
        """All at once."""
        blocks = list(self(paths, what))
        return [name for names, _ in blocks for name in names], torch.cat([features for _, features in blocks])

    def close(self) -> None:
        """Let go of the cache."""
        if self.cache:
            self.cache.close()

    def _block(self, paths: Sequence[str]) -> tuple[list[str], Tensor]:
        contents = contents_of(paths) if self.cache else [None] * len(paths)
        known = self.cache.find([one for one in contents if one]) if self.cache else {}
        new = [place for place, content in enumerate(contents) if content not in known]
        failed: set[int] = set()

        def skip(number: int, error: DataError) -> None:
            failed.add(new[number])
            sys.stderr.write(f"{error}\n")

        rows = self.embedder([paths[place] for place in new], skip=skip)
        done = dict(zip([place for place in new if place not in failed], rows, strict=True))
        if self.cache and done:
            self.cache.keep({contents[place]: row for place, row in done.items() if contents[place]})
        self.computed += len(done)
        self.remembered += len(paths) - len(new)
        self.unreadable += len(failed)
        kept = [place for place in range(len(paths)) if place not in failed]
        features = [done[place] if place in done else known[contents[place]] for place in kept]
        return [paths[place] for place in kept], torch.stack(features) if features else rows
