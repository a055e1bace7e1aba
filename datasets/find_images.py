"""Images that a command line names: files, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence

from datasets.identity_folders import SUFFIXES, is_image
from utils.errors import DataError
from utils.paths import expanded


def find_images(words: Sequence[str]) -> list[str]:
    """The files that the words name, each once, in this order; those of a folder and all folders in it are sorted.

    Args:
        words: files of any name, folders, of which files with the suffix of an image are taken, and patterns as of a
            shell (`gallery/*.jpg`; `**` is any depth).

    Raises:
        DataError: a word that names nothing.
    """
    found: dict[str, None] = {}
    for word in words:
        files = list(_named(str(expanded(word))))
        if not files:
            raise DataError(
                f"{word}: names no image; expected a file, a folder with {', '.join(SUFFIXES)}, or a pattern"
            )
        found |= dict.fromkeys(files)
    return list(found)


def _named(word: str) -> Iterator[str]:
    if os.path.isdir(word):
        for folder, folders, files in os.walk(word):
            folders.sort()
            yield from (os.path.join(folder, name) for name in sorted(files) if is_image(name))
    elif os.path.exists(word):
        yield word
    else:
        yield from (path for path in sorted(glob.glob(word, recursive=True)) if os.path.isfile(path))
