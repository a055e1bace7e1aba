"""Features that were computed before, by what is in the image's file and by the network."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.files import look_at_all

TABLE = """CREATE TABLE IF NOT EXISTS features (
    digest TEXT, content BLOB, checksum INTEGER, feature BLOB, PRIMARY KEY (digest, content)) WITHOUT ROWID"""
WAIT = 60  # seconds, for another program that writes to it


class FeatureCache:
    """An SQLite file; a damaged one becomes NAME.damaged, and a new one is begun.

    Args:
        path: of the file.
        digest: of the network and its settings.
        width: of features.
        say: is told of damage.

    Raises:
        UserError: the file cannot be opened or written, or is another program's.
    """

    def __init__(self, path: Path, digest: str, width: int, say: Callable[[str], object]):
        self.path, self.digest, self.width, self.say = path, digest, width, say
        try:
            self.file = self._open()
        except sqlite3.OperationalError as error:
            raise UserError(f"{path}: cannot be used as a cache ({error}); --cache names another") from error
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)

    def find(self, contents: Sequence[bytes]) -> dict[bytes, Tensor]:
        """Those of the contents whose feature is known, each [D]."""
        found, damaged = {}, 0
        question = "SELECT checksum, feature FROM features WHERE digest = ? AND content = ?"
        try:
            for content in contents:
                for checksum, data in self.file.execute(question, (self.digest, content)):
                    if isinstance(data, bytes) and len(data) == 4 * self.width and zlib.crc32(data) == checksum:
                        found[content] = torch.from_numpy(np.frombuffer(data, dtype=np.float32).copy())
                    else:
                        damaged += 1
        except sqlite3.OperationalError as error:
            raise UserError(f"{self.path}: cannot be used as a cache ({error}); --cache names another") from error
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)
            return {}
        if damaged:
            self.say(f"{self.path}: {damaged} features are damaged, and computed again")
        return found

    def keep(self, features: Mapping[bytes, Tensor]) -> None:
        """Remember the feature, float32 [D], of each content."""
        data = [(content, feature.numpy().tobytes()) for content, feature in features.items()]
        rows = [(self.digest, content, zlib.crc32(feature), feature) for content, feature in data]
        try:
            with self.file:
                self.file.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", rows)
        except sqlite3.OperationalError as error:
            raise UserError(f"{self.path}: cannot be written ({error})") from error
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()

    def _open(self) -> sqlite3.Connection:
        file = sqlite3.connect(self.path, timeout=WAIT)
        try:
            file.execute(TABLE)
            file.execute("SELECT digest, content, checksum, feature FROM features LIMIT 1").fetchone()
        except sqlite3.Error:
            file.close()
            raise
        return file

    def _begin_anew(self, error: Exception) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged")
        self.say(f"{self.path}: is damaged ({error}) and begun anew; the old one is {aside.name}")
        with suppress(AttributeError):  # it could not be opened
            self.file.close()
        os.replace(self.path, aside)
        self.file = self._open()


def contents_of(paths: Sequence[str]) -> list[bytes | None]:
    """The SHA-256 of every file's contents; None if it cannot be read."""
    return look_at_all(paths, _hash)


def _hash(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
