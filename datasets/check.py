"""Whether a benchmark can be trained on and evaluated, before hours are spent.

The quick form looks at labels, at the file system's entries and into some files, and belongs at the start of every
training and test; the full form decodes every image. What makes training or evaluation fail, or its figures mean
nothing, is a problem; what a person should know is a warning; what is merely so is a note.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from PIL import Image

from datasets.folder import natural
from datasets.images import FORMATS, orientation, read_image, shown
from datasets.published_counts import published_counts
from utils.errors import DataError
from utils.files import look_at_all
from utils.metrics import Ignored, ignore_nothing
from utils.progress import progress
from utils.records import Benchmark, Labels, Sample, Trial

EXAMPLES = 3  # of a finding
NAMED = 12  # cameras or columns in a line
MOST = 0.5  # of the queries: a few copies happen in published data, so many mean that the test is none
LABELS_AT_ONCE = 64  # rows of a block of the protocol's rule; many small blocks are quicker than few large ones
MOST_READ = 1000  # files that the quick form reads; more could take a disk longer than its few seconds
FIRST_BYTES = 2**16  # of such a file; all of it only where these are another's, too
TINY = 16  # pixels of a side, a patch of ViT-B-16
PATHS_AT_ONCE = 64  # of one process that decodes
PUBLISHED_NAMES = {
    "train_images": "training images",
    "train_identities": "training identities",
    "query_images": "query images",
    "gallery_images": "gallery images",
}
FEW = 512  # images that are decoded before processes would have started
# Suffixes of files that are pictures, though not all readers take them.
PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif"),
    *(".jp2", ".j2k", ".jpx", ".jxl", ".ppm", ".pgm", ".tga", ".dng", ".psd"),
)


class Finding(NamedTuple):
    """Something that a person should know."""

    kind: str  # a word for it
    message: str  # what, and how many of how many
    remedy: str  # what to do, or what follows if nothing is done
    examples: tuple[str, ...] = ()  # paths, with a fact in brackets where it helps

    def __str__(self) -> str:
        examples = f" (e.g. {', '.join(map(shown, self.examples))})" if self.examples else ""
        return f"{self.message}{examples}; {self.remedy}"


class Split(NamedTuple):
    """What one list of images holds."""

    name: str
    images: int
    identities: int
    cameras: int  # different ones that are known
    viewpoints: int
    unknown_cameras: int  # images whose camera is -1
    unknown_viewpoints: int


@dataclass(frozen=True)
class Report:
    """What a check has found."""

    name: str
    splits: tuple[Split, ...]
    problems: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    labels: tuple[str, ...] = ()  # lines about cameras and identities as they were read

    def failure(self) -> str:
        """All problems in one sentence, for an error; empty if there is none."""
        if not self.problems:
            return ""
        return f"{self.name} cannot be trained on or evaluated: {'. '.join(map(str, self.problems))}"

    def heed(self, logger: logging.Logger) -> list[str]:
        """Log notes and warnings -> the warnings.

        Raises:
            DataError: there are problems; the message has all of them.
        """
        for note in self.notes:
            logger.info("%s", note)
        for warning in self.warnings:
            logger.warning("%s", warning)
        if self.problems:
            raise DataError(self.failure())
        return list(map(str, self.warnings))

    def text(self) -> str:
        """For a person: counts, then notes, warnings and problems with their examples."""
        lines = [self.name, *_table(self.splits), *self.labels]
        for title, findings in (("note", self.notes), ("warning", self.warnings), ("problem", self.problems)):
            for finding in findings:
                lines += ["", f"{title}: {finding.message}", *(f"    {shown(example)}" for example in finding.examples)]
                lines.append(f"  -> {finding.remedy}")
        verdict = "training or evaluation could not work" if self.problems else "training and evaluation can work"
        counts = f"{len(self.problems)} problems, {len(self.warnings)} warnings"
        return "\n".join([*lines, "", f"{self.name}: {verdict} ({counts})"])


def quick_check(benchmark: Benchmark, *, instances: int | None, identities: int | None) -> Report:
    """Check labels and the file system's entries; a few seconds for a hundred thousand images.

    Args:
        instances: K, images of each identity in a batch; None to leave out the checks of the training part.
        identities: P, identities in a batch; None if no stage takes such batches.
    """
    files = _look(benchmark)
    found = _Findings(benchmark.as_written)
    _check_files(files, found)
    _check_lists(benchmark, _compare_some(benchmark, files, found), found, instances, identities)
    return found.report(benchmark)


def full_check(
    benchmark: Benchmark, *, instances: int | None, identities: int | None, workers: int | None = None
) -> Report:
    """The same, and decode every image once, with a bar: what cannot be read, is tiny or not RGB, and equal pictures.

    Args:
        workers: processes; None for as many as there are cores.
    """
    files = _look(benchmark)
    found = _Findings(benchmark.as_written)
    _check_files(files, found)
    once = {file.key: path for path, file in files.items() if file.size}
    pictures = dict(zip(once, _decode(list(once.values()), workers), strict=True))
    _check_pictures({once[key]: picture for key, picture in pictures.items()}, found)
    # Pictures are compared by their pixels, so that a copy that was saved anew without loss, or whose comment was
    # taken out, is found as well; a picture that cannot be read is only equal to itself.
    digests = {key: picture.digest for key, picture in pictures.items() if picture.digest}
    keys = {path: digests.get(file.key, file.key) for path, file in files.items()}
    _check_lists(benchmark, _Contents(keys, "picture"), found, instances, identities)
    return found.report(benchmark)


# ------------------------------------------------------------------------------------------------------------- findings


@dataclass
class _Findings:
    """Collects; of the same finding about several trials, the first is told and the others are counted."""

    written: Mapping[str, tuple[str, str]]  # Benchmark.as_written
    levels: dict[str, dict[tuple[str, str], list[Finding]]] = field(
        default_factory=lambda: {"problem": {}, "warning": {}, "note": {}}
    )

    def add(
        self, level: str, kind: str, message: str, remedy: str, examples: Iterable[str] = (), *, where: str = ""
    ) -> None:
        """`where` names the data set if there are several trials of it or several sets."""
        finding = Finding(kind, f"{where}{message}", remedy, tuple(examples)[:EXAMPLES])
        self.levels[level].setdefault((kind, where), []).append(finding)

    def labelled(self, sample: Sample) -> str:
        """An image with the labels that a finding is about."""
        identity, camera = _labels_of(sample, self.written)
        return f"{sample.path} (identity {identity}, camera {camera or 'unknown'})"

    def identities(self, samples: Sequence[Sample]) -> str:
        """Images with their identities."""
        return " and ".join(f"{sample.path} (identity {_labels_of(sample, self.written)[0]})" for sample in samples)

    def report(self, benchmark: Benchmark) -> Report:
        problems, warnings, notes = (tuple(map(_merged, found.values())) for found in self.levels.values())
        return Report(
            benchmark.name, tuple(_splits(benchmark)), problems, warnings, notes, tuple(_labels_read(benchmark))
        )


def _merged(findings: list[Finding]) -> Finding:
    first, *others = findings
    return first._replace(message=f"{first.message}, and the like in {len(others)} more trials") if others else first


def _splits(benchmark: Benchmark) -> Iterable[Split]:
    parts = benchmark.evaluated()
    for part in parts:
        prefix = f"{part.name} " if len(parts) > 1 else ""
        yield _count(f"{prefix}training", part.train)
        for trial in part.trials[:1]:
            several = f" (trial 1 of {len(part.trials)})" if len(part.trials) > 1 else ""
            yield _count(f"{prefix}query{several}", trial.query)
            yield _count(f"{prefix}gallery{several}", trial.gallery)
    if len(parts) > 1:
        yield _count("training together", benchmark.train)


def _labels_read(benchmark: Benchmark) -> Iterable[str]:
    """Lines for a person: the cameras of all splits together, and the first identities."""
    parts = benchmark.evaluated()
    for part in parts:
        prefix = f"{part.name} " if len(parts) > 1 else ""
        every = [*chain(*_lists(part))]
        cameras = _cameras(every, part.as_written)
        which = f" ({_few(cameras, NAMED)})" if cameras and part.as_written else ""
        yield f"{prefix}cameras of all splits: {len(cameras)}{which}"
        if part.as_written:
            first: dict[str, str] = {}
            for sample in every:
                first.setdefault(part.as_written[sample.path][0], os.path.basename(sample.path))
            identities = [f"{label} ({name})" for label, name in first.items()]
            yield f"{prefix}identities as read: {_few(identities, EXAMPLES)}"


def _cameras(samples: Sequence[Sample], written: Mapping[str, tuple[str, str]]) -> list[str]:
    """The labels of the known cameras, in order."""
    first = {sample.camid: sample for sample in samples if sample.camid >= 0}
    return [label for camid in sorted(first) if (label := _labels_of(first[camid], written)[1])]


def _labels_of(sample: Sample, written: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Identity and camera as their owner wrote them where that is known; published cameras count from 1."""
    return written.get(sample.path) or (str(sample.pid), str(sample.camid + 1))


def _few(words: Sequence[str], most: int) -> str:
    return ", ".join(map(shown, words[:most])) + (", ..." if len(words) > most else "")


def _count(name: str, samples: Sequence[Sample]) -> Split:
    cameras, views = (Counter(getattr(sample, what) for sample in samples) for what in ("camid", "viewid"))
    return Split(
        name,
        images=len(samples),
        identities=len({sample.pid for sample in samples}),
        cameras=sum(camera >= 0 for camera in cameras),
        viewpoints=sum(view >= 0 for view in views),
        unknown_cameras=sum(count for camera, count in cameras.items() if camera < 0),
        unknown_viewpoints=sum(count for view, count in views.items() if view < 0),
    )


def _table(splits: Sequence[Split]) -> list[str]:
    """Lines; of what is unknown only where something is."""
    shown = [name for name in Split._fields if not name.startswith("unknown") or any(getattr(s, name) for s in splits)]
    rows = [["" if name == "name" else name.replace("_", " ") for name in shown]]
    rows += [
        [f"{value:,}" if isinstance(value, int) else value for value in (getattr(split, name) for name in shown)]
        for split in splits
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(shown))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


# ---------------------------------------------------------------------------------------------------------------- files


class _File(NamedTuple):
    size: int | None  # bytes; None: there is no such file
    key: Hashable  # equal for two paths to the same file, through links, too
    instead: str = ""  # what there is, if it is no plain file


def _look(benchmark: Benchmark) -> dict[str, _File]:
    """Every path of the benchmark once, in order."""
    paths = list(dict.fromkeys(sample.path for sample in chain(*_lists(benchmark))))
    return dict(zip(paths, look_at_all(paths, _stat), strict=True))


def _lists(benchmark: Benchmark) -> Iterable[Sequence[Sample]]:
    yield benchmark.train
    for part in benchmark.evaluated():
        for trial in part.trials:
            yield trial.query
            yield trial.gallery


def _stat(path: str) -> _File:
    try:
        entry = os.stat(path)
    except (OSError, ValueError):
        return _File(None, path)
    if not stat.S_ISREG(entry.st_mode):
        return _File(None, path, "a folder" if stat.S_ISDIR(entry.st_mode) else "a pipe or a device")
    # Some file systems number their files 0.
    return _File(entry.st_size, (entry.st_dev, entry.st_ino) if entry.st_ino else path)


def _check_files(files: Mapping[str, _File], found: _Findings) -> None:
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


class _Contents(NamedTuple):
    """Which images of a benchmark have the same content."""

    keys: Mapping[str, Hashable]  # path -> key, equal for the same content
    same: str  # what equal keys mean, for messages: the same "file" or "picture"
    unread: frozenset[Hashable] = frozenset()  # keys of files that may be copies but were not compared

    def most(self, found: Collection[Sample], samples: Sequence[Sample]) -> tuple[bool, str]:
        """Whether `found` are most of the `samples` that were compared; and the counts for a message, "2 of 3"."""
        compared = sum(sample in found or self.keys[sample.path] not in self.unread for sample in samples)
        some = " compared" if compared < len(samples) else ""
        return len(found) >= MOST * compared, f"{len(found)} of {compared}{some}"


def _compare_some(benchmark: Benchmark, files: Mapping[str, _File], found: _Findings) -> _Contents:
    """Compare the contents of files that may be copies, at most MOST_READ of them."""
    suspects = _suspects(benchmark, files)
    paths = {file.key: path for path, file in files.items()}
    read = suspects[:MOST_READ]
    contents = dict(zip(read, look_at_all([paths[key] for key in read], _digest_file), strict=True))
    counts = Counter(contents.values())
    alike = [key for key, content in contents.items() if counts[content] > 1 and files[paths[key]].size > FIRST_BYTES]
    wholes = look_at_all([paths[key] for key in alike], partial(_digest_file, most=-1))
    contents.update(zip(alike, wholes, strict=True))
    if len(read) < len(suspects):
        message = f"{len(read)} of {len(suspects)} files that by their sizes may be copies were compared"
        found.add("note", "not compared", message, "python -m tools.check_dataset compares all")
    keys = {path: (file.size, contents[file.key]) if file.key in contents else file.key for path, file in files.items()}
    return _Contents(keys, "file", frozenset(suspects[MOST_READ:]))


def _suspects(benchmark: Benchmark, files: Mapping[str, _File]) -> list[Hashable]:
    """Keys of files with the same size as one on the other side: training and test, or query and gallery.

    Those with the same name come first, then those of rare sizes. Name and size prove nothing: small pictures called
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


# ------------------------------------------------------------------------------------------------------------- pictures


class _Picture(NamedTuple):
    error: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    turned: bool = False  # upright, by its EXIF orientation
    digest: bytes = b""  # of size and pixels


def _decode(paths: Sequence[str], workers: int | None) -> list[_Picture]:
    """Every picture, in order."""
    workers = workers or os.cpu_count() or 1
    chunks = [paths[start : start + PATHS_AT_ONCE] for start in range(0, len(paths), PATHS_AT_ONCE)]
    if workers == 1 or len(paths) <= FEW:
        return [picture for chunk in progress(chunks, "decoding") for picture in _decode_all(chunk)]
    with ProcessPoolExecutor(workers) as processes:
        futures: list[Future] = [processes.submit(_decode_all, chunk) for chunk in chunks]
        try:
            return [picture for future in progress(futures, "decoding") for picture in future.result()]
        except BaseException:  # Ctrl-C, too: nobody waits for the rest
            processes.shutdown(wait=False, cancel_futures=True)
            raise


def _decode_all(paths: Sequence[str]) -> list[_Picture]:
    return [_decode_one(path) for path in paths]


def _decode_one(path: str) -> _Picture:
    try:
        picture = read_image(path)  # as training does
        with Image.open(path, formats=FORMATS) as header:
            mode, turned = header.mode, orientation(header) != 1
    except DataError as error:
        return _Picture(str(error))
    except Exception as error:  # a decoder's own fault ends a training just as well
        return _Picture(f"{path}: cannot be read as an image ({type(error).__name__}: {error})")
    digest = hashlib.blake2b(f"{picture.size}".encode(), digest_size=16)
    digest.update(picture.tobytes())
    return _Picture("", *picture.size, mode, turned, digest.digest())


def _check_pictures(pictures: Mapping[str, _Picture], found: _Findings) -> None:
    errors = [picture.error for picture in pictures.values() if picture.error]
    if errors:
        message = f"{len(errors)} of {len(pictures)} images cannot be read"
        found.add("problem", "unreadable", message, "unpack them again, or take them out of the data set", errors)
    tiny = [
        f"{path} ({picture.width} x {picture.height})"
        for path, picture in pictures.items()
        if not picture.error and min(picture.width, picture.height) < TINY
    ]
    if tiny:
        message = f"{len(tiny)} of {len(pictures)} images have a side below {TINY} pixels"
        found.add("warning", "tiny", message, "look at them: enlarged, they hold next to nothing", tiny)
    modes = Counter(picture.mode for picture in pictures.values() if picture.mode not in ("", "RGB"))
    if modes:
        kinds = ", ".join(f"{mode}: {count}" for mode, count in modes.most_common())
        other = [f"{path} ({p.mode})" for path, p in pictures.items() if p.mode not in ("", "RGB")]
        message = f"{len(other)} of {len(pictures)} images are not RGB ({kinds})"
        remedy = "they are converted when they are read (transparent parts become white, 16 bits of grey become 8)"
        found.add("note", "not RGB", message, remedy, other)
    turned = [path for path, picture in pictures.items() if picture.turned]
    if turned:
        message = f"{len(turned)} of {len(pictures)} images lie on their side or head, and their EXIF says so"
        remedy = "they are turned upright when they are read; other programs may not do that"
        found.add("note", "turned", message, remedy, turned)


# ---------------------------------------------------------------------------------------------------------------- lists


def _check_lists(
    benchmark: Benchmark,
    contents: _Contents,
    found: _Findings,
    instances: int | None,
    identities: int | None,
) -> None:
    """Labels, repeats and published counts."""
    if instances is not None:
        _check_training(benchmark.train, found, instances, identities)
        _check_repeats(benchmark.train, "training", contents, found)
    trained = {contents.keys[sample.path] for sample in benchmark.train}
    parts = benchmark.evaluated()
    for part in parts:
        where = f"{part.name}: " if len(parts) > 1 else ""
        if not part.trials:
            found.add("problem", "no trial", "there are no queries and no gallery", "name a test split", where=where)
        for trial in part.trials:
            _check_trial(trial, part.ignored, contents, found, where)
            _check_leaks(trial, trained, contents, found, where)
        _check_identities(part, found, where)
        _check_unknown(part, found, where)
        _check_common(part, found, where)
        _check_omitted(part, found, where)
        _check_published(part, found, where)


def _check_training(samples: Sequence[Sample], found: _Findings, instances: int, identities: int | None) -> None:
    if not samples:
        found.add("problem", "no training", "there are no training images", "name a training split")
        return
    counts = Counter(sample.pid for sample in samples)
    if len(counts) < 2:
        remedy = "there is nothing to tell apart: train on two or more"
        found.add("problem", "one identity", "all training images are of one identity", remedy)
    elif identities is not None and len(counts) < identities:
        message = f"a batch takes {identities} identities, and the training set has {len(counts)}"
        remedy = (
            f"set SOLVER.STAGE2.IMS_PER_BATCH to at most {len(counts) * instances}, "
            f"or DATALOADER.NUM_INSTANCE to more than {instances}"
        )
        found.add("problem", "few identities", message, remedy)
    if sorted(counts) != list(range(len(counts))):
        message = f"training labels are not 0 to {len(counts) - 1} (they go from {min(counts)} to {max(counts)})"
        found.add("problem", "labels", message, "the classifier has a row for each: number them without gaps")
    if identities is None:
        return
    few = {pid for pid, count in counts.items() if count < instances}
    if few:
        first: dict[int, str] = {}
        for sample in samples:
            first.setdefault(sample.pid, sample.path)
        fewest = sorted(few, key=lambda pid: (counts[pid], pid))
        examples = (f"{first[pid]} ({counts[pid]} of its identity)" for pid in fewest)
        single = sum(counts[pid] == 1 for pid in few)
        alone = f", {single} of them a single one" if single else ""
        message = f"{len(few)} of {len(counts)} training identities have fewer than {instances} images{alone}"
        remedy = "copies of their images, augmented anew, fill their DATALOADER.NUM_INSTANCE places in a batch"
        found.add("warning", "few images", message, remedy, examples)


def _check_trial(trial: Trial, ignored: Ignored, contents: _Contents, found: _Findings, where: str) -> None:
    for name, samples in (("query", trial.query), ("gallery", trial.gallery)):
        if not samples:
            found.add("problem", f"no {name}", f"there are no {name} images", "name a test split", where=where)
        _check_repeats(samples, name, contents, found, where)
    if not trial.query or not trial.gallery:
        return
    if len({sample.pid for samples in trial for sample in samples}) == 1:
        message = "all query and gallery images are of one identity"
        found.add("problem", "one answer", message, "every ranking is right: test with two or more", where=where)
    _check_matches(trial, ignored, found, where)
    _check_overlap(trial, ignored, contents, found, where)


def _check_matches(trial: Trial, ignored: Ignored, found: _Findings, where: str) -> None:
    matched = _matched(trial, ignored)
    present = {sample.pid for sample in trial.gallery}
    left_out = [sample for sample in trial.query if (sample.pid, sample.camid) not in matched]
    if not left_out:
        return
    absent = [sample for sample in left_out if sample.pid not in present]
    hidden = [sample for sample in left_out if sample.pid in present]
    cameras: dict[int, set[int]] = {sample.pid: set() for sample in hidden}
    for sample in trial.gallery:
        if sample.pid in cameras:
            cameras[sample.pid].add(sample.camid)
    own = all(cameras[sample.pid] == {sample.camid} for sample in hidden)
    reasons = {
        "not in the gallery": (absent, "have an identity that the gallery lacks"),
        "only ignored": (
            hidden,
            "have their identity in the gallery only in their own camera, which the protocol ignores"
            if own
            else "have their identity in the gallery only where the protocol ignores it",
        ),
    }
    total = len(trial.query)
    if len(left_out) == total:
        told = ", ".join(f"{len(queries)} {reason}" for queries, reason in reasons.values() if queries)
        examples = [found.labelled(queries[0]) for queries, _ in reasons.values() if queries]
        single = len({sample.camid for samples in trial for sample in samples}) == 1
        remedy = (
            "all images are of one camera: number the cameras, or, if they are not known, set TEST.PROTOCOL all"
            if single and hidden
            else "nothing could be evaluated: do queries and gallery belong together, are their labels right?"
        )
        message = f"none of {total} queries has a valid match: {told}"
        found.add("problem", "no match", message, remedy, examples, where=where)
        return
    for kind, (queries, reason) in reasons.items():
        if queries:
            message = f"{len(queries)} of {total} queries have no valid match: they {reason}"
            remedy = "they are left out of the figures, which other programs may count otherwise"
            found.add("warning", kind, message, remedy, map(found.labelled, queries), where=where)


def _matched(trial: Trial, ignored: Ignored) -> set[tuple[int, int]]:
    """Identity and camera of the queries that have a match.

    The rule sees labels only, so that it is asked once for every pair of different ones, in blocks of neighbouring
    identities: a mask of all pairs would not fit into memory.
    """
    queries, gallery = (sorted({(sample.pid, sample.camid) for sample in samples}) for samples in trial)
    matched = set()
    for start in range(0, len(queries), LABELS_AT_ONCE):
        rows = queries[start : start + LABELS_AT_ONCE]
        first, behind = (bisect_left(gallery, pid, key=lambda label: label[0]) for pid in (rows[0][0], rows[-1][0] + 1))
        block = gallery[first:behind]
        if block:
            one, other = _labels(rows), _labels(block)
            counts = (one.pids[:, None] == other.pids) & ~ignored(one, other)
            matched |= {label for label, any_counts in zip(rows, counts.any(dim=1).tolist(), strict=True) if any_counts}
    return matched


def _labels(pairs: Sequence[tuple[int, int]]) -> Labels:
    return Labels(*torch.tensor(pairs).T)


def _check_repeats(
    samples: Sequence[Sample], name: str, contents: _Contents, found: _Findings, where: str = ""
) -> None:
    keys, same, _ = contents
    if len({keys[sample.path] for sample in samples}) == len(samples):
        return
    groups: dict[Hashable, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(keys[sample.path], []).append(sample)
    repeated = [group for group in groups.values() if len(group) > 1]
    if repeated:
        more = sum(map(len, repeated)) - len(repeated)
        message = f"{more} of {len(samples)} {name} images repeat another (the same {same})"
        remedy = "they count more than once: leave one of each"
        found.add("warning", f"{name} repeats", message, remedy, map(_pair, repeated), where=where)
    torn = [[group[0], _other_identity(group)] for group in repeated if _other_identity(group)]
    if torn:
        message = f"{len(torn)} {name} images are there under two identities (the same {same})"
        remedy = "one of the labels is wrong: correct it, or take the images out"
        found.add("warning", f"{name} contradictions", message, remedy, map(found.identities, torn), where=where)


def _other_identity(group: Sequence[Sample]) -> Sample | None:
    return next((sample for sample in group if sample.pid != group[0].pid), None)


def _pair(samples: Sequence[Sample]) -> str:
    one, other = samples[0].path, samples[1].path
    return f"{one} and {other}" if one != other else f"{one} (there twice)"


def _check_overlap(trial: Trial, ignored: Ignored, contents: _Contents, found: _Findings, where: str) -> None:
    """Queries that are in the gallery themselves, where the protocol does not ignore the pair."""
    keys, same, _ = contents
    wanted = {keys[sample.path] for sample in trial.query}
    there: dict[Hashable, dict[tuple[int, int], Sample]] = {}  # one of each label: blank pictures may be many
    for sample in trial.gallery:
        if keys[sample.path] in wanted:
            there.setdefault(keys[sample.path], {}).setdefault((sample.pid, sample.camid), sample)
    pairs = [(query, other) for query in trial.query for other in there.get(keys[query.path], {}).values()]
    harmless = _ignored_labels({(q.pid, q.camid, g.pid, g.camid) for q, g in pairs}, ignored)
    pairs = [(q, g) for q, g in pairs if (q.pid, q.camid, g.pid, g.camid) not in harmless]
    found_again = [(query, other) for query, other in pairs if query.pid == other.pid]
    if found_again:
        most, count = contents.most({query for query, _ in found_again}, trial.query)
        message = f"{count} queries find themselves in the gallery (the same {same})"
        remedy = "that answer is right by itself, and the figures too good: take them out of the gallery"
        level = "problem" if most else "warning"
        found.add(level, "overlap", message, remedy, map(_pair, found_again), where=where)
    torn = [(query, other) for query, other in pairs if query.pid != other.pid]
    if torn:
        _, count = contents.most({query for query, _ in torn}, trial.query)
        message = f"{count} queries are in the gallery under another identity (the same {same})"
        remedy = "that answer counts as wrong: correct the label, or take the images out"
        found.add("warning", "contradictions", message, remedy, map(found.identities, torn), where=where)


def _ignored_labels(pairs: set[tuple[int, int, int, int]], ignored: Ignored) -> set[tuple[int, int, int, int]]:
    """Those of the pairs (identity and camera of a query, the same of a gallery image) that the rule ignores."""
    ordered, result = sorted(pairs), set()
    for start in range(0, len(ordered), LABELS_AT_ONCE):
        block = ordered[start : start + LABELS_AT_ONCE]
        drops = ignored(_labels([pair[:2] for pair in block]), _labels([pair[2:] for pair in block])).diagonal()
        result |= {pair for pair, dropped in zip(block, drops.tolist(), strict=True) if dropped}
    return result


def _check_leaks(trial: Trial, trained: set[Hashable], contents: _Contents, found: _Findings, where: str) -> None:
    """Test images that are training images.

    They share identities whatever their labels say, where these are of the data set (see `_check_identities`) or not.
    """
    leaks = [dict.fromkeys(sample for sample in side if contents.keys[sample.path] in trained) for side in trial]
    if any(leaks):
        (most, queries), (_, others) = (contents.most(some, side) for some, side in zip(leaks, trial, strict=True))
        message = (
            f"{queries} queries and {others} gallery images are training images (the same {contents.same}), so that "
            "training and test share identities"
        )
        remedy = "the figures would tell what was learnt by heart: separate the splits by identity"
        examples = [sample.path for side in leaks for sample in side]
        found.add("problem" if leaks[0] and most else "warning", "leak", message, remedy, examples, where=where)


def _check_identities(part: Benchmark, found: _Findings, where: str) -> None:
    """Identities that are in training and test alike, by the data set's own labels."""
    if part.seen:
        tested = len({sample.pid for trial in part.trials for side in trial for sample in side})
        message = f"{len(part.seen)} of {tested} test identities are training identities, too"
        remedy = "the figures will not tell how well unknown ones are found: separate the splits by identity"
        examples = (f"identity {label}" for label in part.seen)
        found.add("warning", "shared identities", message, remedy, examples, where=where)


def _check_unknown(part: Benchmark, found: _Findings, where: str) -> None:
    """Unknown labels beside known ones; where all are unknown, the data set has none."""
    every = [sample for samples in _lists(part) for sample in samples]
    for what, name, key in (("camid", "camera", "MODEL.SIE_CAMERA"), ("viewid", "viewpoint", "MODEL.SIE_VIEW")):
        unknown = [sample.path for sample in every if getattr(sample, what) < 0]
        if 0 < len(unknown) < len(every):
            images = list(dict.fromkeys(unknown))
            message = f"{len(images)} of {len({sample.path for sample in every})} images have no known {name}"
            remedy = f"with {key} they get the mean over all {name}s; without it, nothing changes"
            found.add("warning", f"unknown {name}", message, remedy, images, where=where)


def _check_common(part: Benchmark, found: _Findings, where: str) -> None:
    """Warn if queries and gallery share no camera: perhaps each side has its own names for the same ones."""
    for trial in part.trials if part.ignored is not ignore_nothing else ():
        query, gallery = (_cameras(samples, part.as_written) for samples in trial)
        if min(len(query), len(gallery)) > 1 and not set(query) & set(gallery):
            message = f"queries ({_few(query, NAMED)}) and gallery ({_few(gallery, NAMED)}) have no camera in common"
            remedy = (
                "if a camera has two names, pictures from a query's own camera are not left out, and the figures are "
                "too good: give it one"
            )
            found.add("warning", "no common camera", message, remedy, where=where)


def _check_omitted(part: Benchmark, found: _Findings, where: str) -> None:
    """What the reader passed over: pictures and identities that are gone without a word would be missed by nobody."""
    files, folders, identities = part.omitted
    pictures = [path for path in files if _suffix(path) in PICTURES]
    others = [path for path in files if _suffix(path) not in PICTURES]
    for level, kind, paths, remedy in (
        ("warning", "pictures passed over", pictures, "these formats are not read: save them as .jpg or .png"),
        (
            "note",
            "files passed over",
            others,
            "they are no pictures by their names; nothing is missed if they are none",
        ),
    ):
        if paths:
            suffixes = Counter(map(_suffix, paths)).most_common()
            counts = ", ".join(f"{suffix or 'no suffix'}: {count}" for suffix, count in suffixes)
            found.add(level, kind, f"{len(paths)} files passed over ({counts})", remedy, paths, where=where)
    if folders:
        message = f"{len(folders)} folders passed over where only pictures belong"
        remedy = "what is in them is not used: move the pictures up, or the folders away"
        found.add("warning", "folders passed over", message, remedy, folders, where=where)
    if identities:
        message = f"{len(identities)} identities without a picture"
        remedy = "their folders hold none that is read: they are not trained on or tested"
        found.add("warning", "empty identities", message, remedy, sorted(identities, key=natural), where=where)
    if part.unused:
        message = f"not used: {_few(part.unused, NAMED)}"
        remedy = "nothing is missed unless they say what a picture is, or hold pictures that are meant"
        found.add("note", "not used", message, remedy, where=where)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _check_published(part: Benchmark, found: _Findings, where: str) -> None:
    """One warning with all numbers that differ."""
    counts = published_counts(part.name, part.variant)
    if counts is None:
        return
    ours = {
        "query images": len(part.trials[0].query) if part.trials else 0,
        "gallery images": len(part.trials[0].gallery) if part.trials else 0,
        "cameras": len({sample.camid for samples in _lists(part) for sample in samples if sample.camid >= 0}),
    }
    if part.train:
        ours["training images"] = len(part.train)
        ours["training identities"] = len({sample.pid for sample in part.train})
    published = {PUBLISHED_NAMES.get(what, what): count for what, count in counts._asdict().items()}
    differing = {what: n for what, n in published.items() if n is not None and ours.get(what, n) != n}
    if differing:
        told = ", ".join(f"{ours[what]:,} {what} (published {count:,})" for what, count in differing.items())
        variant = f" ({part.variant})" if part.variant else ""
        name = "" if where else f"{part.name} "
        message = f"{name}differs from what is published{variant}: {told}"
        remedy = "figures may not compare with published ones: is the copy whole, is it another version?"
        found.add("warning", "counts", message, remedy, where=where)
