"""Features that were computed before, by what is in the image's file and by the network."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.files import look_at_all

TABLE = """CREATE TABLE IF NOT EXISTS features (
    digest TEXT, content BLOB, feature BLOB, PRIMARY KEY (digest, content)) WITHOUT ROWID"""
WAIT = 60  # seconds, for another program that writes to it


class FeatureCache:
    """An SQLite file.

    Args:
        path: of the file.
        digest: of the network and its settings.

    Raises:
        UserError: the file cannot be opened or written, is damaged or another program's; by any of the methods, too.
    """

    def __init__(self, path: Path, digest: str):
        self.path, self.digest = path, digest
        with self._usable():
            self.file = sqlite3.connect(path, timeout=WAIT)
            self.file.execute(TABLE)

    def find(self, contents: Sequence[bytes]) -> dict[bytes, Tensor]:
        """Those of the contents whose feature is known, each [D]."""
        found = {}
        question = "SELECT feature FROM features WHERE digest = ? AND content = ?"
        with self._usable():
            for content in contents:
                for (data,) in self.file.execute(question, (self.digest, content)):
                    found[content] = torch.from_numpy(np.frombuffer(data, dtype=np.float32).copy())
        return found

    def keep(self, features: Mapping[bytes, Tensor]) -> None:
        """Remember the feature, float32 [D], of each content."""
        rows = [(self.digest, content, feature.numpy().tobytes()) for content, feature in features.items()]
        with self._usable(), self.file:
            self.file.executemany("INSERT OR REPLACE INTO features (digest, content, feature) VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}: cannot be used as a cache ({error}); delete it, or name another: --cache"
            ) from error


def contents_of(paths: Sequence[str]) -> list[bytes | None]:
    """The SHA-256 of every file's contents; None if it cannot be read."""
    return look_at_all(paths, _hash)


def _hash(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
