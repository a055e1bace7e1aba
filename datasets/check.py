"""The check that precedes every training and test: labels, files and copies, without decoding images.

A problem makes training or evaluation fail, or its results meaningless; a warning should be known; a note is a fact.
`tools.check_dataset` also decodes every image.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Hashable, Mapping
from functools import partial
from itertools import chain
from typing import NamedTuple

from datasets.check_labels import Contents, check_lists, lists_of
from datasets.findings import Findings, Report
from utils.files import instead_of_file, look_at_all
from utils.records import Benchmark

MOST_READ = 1000  # files that are read; more could take a disk longer than a few seconds
FIRST_BYTES = 2**16  # of such a file; all of it only where these are another's, too


def quick_check(benchmark: Benchmark, *, instances: int | None, identities: int | None) -> Report:
    """Check labels and the file system's entries; a few seconds for a hundred thousand images.

    Args:
        instances: K, images of each identity in a batch; None to leave out the checks of the training part.
        identities: P, identities in a batch; None if no stage takes such batches.
    """
    files = look(benchmark)
    found = Findings(benchmark.as_written)
    check_files(files, found)
    check_lists(benchmark, _compare_some(benchmark, files, found), found, instances, identities)
    return found.report(benchmark.name)


class _File(NamedTuple):
    size: int | None  # bytes; None: there is no such file
    key: Hashable  # equal for two paths to the same file, through links, too
    instead: str = ""  # what there is, if it is no plain file


def look(benchmark: Benchmark) -> dict[str, _File]:
    """Every path of the benchmark once, in order."""
    paths = list(dict.fromkeys(sample.path for sample in chain(*lists_of(benchmark))))
    return dict(zip(paths, look_at_all(paths, _stat), strict=True))


def _stat(path: str) -> _File:
    try:
        entry = os.stat(path)
    except (OSError, ValueError):
        return _File(None, path)
    if instead := instead_of_file(entry.st_mode):
        return _File(None, path, instead)
    # Some file systems number their files 0.
    return _File(entry.st_size, (entry.st_dev, entry.st_ino) if entry.st_ino else path)


def check_files(files: Mapping[str, _File], found: Findings) -> None:
    gone = {path: file.instead for path, file in files.items() if file.size is None}
    missing = [f"{path} ({instead})" if instead else path for path, instead in gone.items()]
    if missing:
        message = f"{len(missing)} of {len(files)} images are not there"
        remedy = "is the data set unpacked as a whole, and do its lists belong to this version of it?"
        found.add("problem", "missing", message, remedy, missing)
    empty = [path for path, file in files.items() if file.size == 0]
    if empty:
        message = f"{len(empty)} of {len(files)} image files are empty (0 bytes)"
        found.add("problem", "empty", message, "was the disk full when they were unpacked? Unpack them again", empty)


def _compare_some(benchmark: Benchmark, files: Mapping[str, _File], found: Findings) -> Contents:
    """Compare the contents of files that may be copies, at most MOST_READ of them."""
    suspects = _suspects(benchmark, files)
    paths = {file.key: path for path, file in files.items()}
    read = suspects[:MOST_READ]
    contents = dict(zip(read, look_at_all([paths[key] for key in read], _digest_file), strict=True))
    counts = Counter(contents.values())
    large = {key for key in read if (files[paths[key]].size or 0) > FIRST_BYTES}
    alike = [key for key, content in contents.items() if counts[content] > 1 and key in large]
    wholes = look_at_all([paths[key] for key in alike], partial(_digest_file, most=-1))
    contents.update(zip(alike, wholes, strict=True))
    if len(read) < len(suspects):
        message = f"{len(read)} of {len(suspects)} files that by their sizes may be copies were compared"
        found.add("note", "not compared", message, "python -m tools.check_dataset compares all")
    keys = {path: (file.size, contents[file.key]) if file.key in contents else file.key for path, file in files.items()}
    return Contents(keys, "file", frozenset(suspects[MOST_READ:]))


def _suspects(benchmark: Benchmark, files: Mapping[str, _File]) -> list[Hashable]:
    """Keys of files with the same size as one on the other side: training and test, or query and gallery.

    Those with the same name come first, then those of rare sizes. Name and size prove nothing: small images called
    0001.jpg in a folder per identity often agree in both.
    """
    trials = [trial for part in benchmark.evaluated() for trial in part.trials]
    facts = {file.key: (file.size, os.path.basename(path)) for path, file in files.items() if file.size}
    namesakes: list[list[Hashable]] = []
    sizes: list[list[Hashable]] = []
    for pair in ((benchmark.train, [*chain(*chain(*trials))]), *trials):
        one, other = (dict.fromkeys(files[sample.path].key for sample in side) for side in pair)
        apart = [key for key in (*one, *other) if key in facts and (key in one) != (key in other)]
        for groups, length in ((namesakes, 2), (sizes, 1)):
            alike: dict[tuple, list[Hashable]] = {}
            for key in apart:
                alike.setdefault(facts[key][:length], []).append(key)
            groups += [group for group in alike.values() if 0 < sum(key in one for key in group) < len(group)]
    return list(dict.fromkeys(chain(*namesakes, *sorted(sizes, key=len))))


def _digest_file(path: str, most: int = FIRST_BYTES) -> Hashable:
    """The digest of a file's first bytes, or of all (-1); its path if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.blake2b(file.read(most), digest_size=16).digest()
    except OSError:
        return path
