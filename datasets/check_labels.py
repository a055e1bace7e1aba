"""What the labels of a benchmark say: training, matches of queries, repeats, leaks, published counts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from datasets.findings import Findings, cameras_of, few
from datasets.labels import natural
from datasets.published_counts import PublishedCounts, published_counts
from utils.metrics import Ignored, ignore_nothing, same_camera
from utils.records import INFRARED, MODALITIES, VISIBLE, Benchmark, Labels, Sample, Trial

NAMED = 12  # cameras or columns in a line
MOST = 0.5  # of the queries: a few copies happen in published data, so many mean that the test is none
# Suffixes of image files, though not all readers take them.
IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif"),
    *(".jp2", ".j2k", ".jpx", ".jxl", ".ppm", ".pgm", ".tga", ".dng", ".psd"),
)


def lists_of(benchmark: Benchmark) -> Iterable[Sequence[Sample]]:
    yield benchmark.train
    for part in benchmark.evaluated():
        for trial in part.trials:
            yield trial.query
            yield trial.gallery


class Contents(NamedTuple):
    """Which images of a benchmark have the same content."""

    keys: Mapping[str, Hashable]  # path -> key, equal for the same content
    same: str  # what equal keys mean, for messages: the same "file" or "image"
    unread: frozenset[Hashable] = frozenset()  # keys of files that may be copies but were not compared

    def most(self, found: Collection[Sample], samples: Sequence[Sample]) -> tuple[bool, str]:
        """Whether `found` are most of the `samples` that were compared; and the counts for a message, "2 of 3"."""
        compared = sum(sample in found or self.keys[sample.path] not in self.unread for sample in samples)
        some = " compared" if compared < len(samples) else ""
        return len(found) >= MOST * compared, f"{len(found)} of {compared}{some}"


def check_lists(
    benchmark: Benchmark, contents: Contents, found: Findings, instances: int | None, identities: int | None
) -> None:
    """Labels, repeats and published counts."""
    if instances is not None:
        _check_training(benchmark.train, found, instances, identities)
        _check_modalities(benchmark, found)
        _check_repeats(benchmark.train, "training", contents, found)
    trained = {contents.keys[sample.path] for sample in benchmark.train}
    parts = benchmark.evaluated()
    for part in parts:
        found.where = f"{part.name}: " if len(parts) > 1 else ""
        for trial in part.trials:
            _check_trial(trial, part.ignored, contents, found)
            _check_leaks(trial, trained, contents, found)
        _check_identities(part, found)
        _check_unknown(part, found)
        _check_common(part, found)
        _check_omitted(part, found)
        _check_published(part, found)
    if benchmark.parts:
        found.where = ""
        _check_published(benchmark, found)  # of directions of a test, which have no training images of their own


def _check_training(samples: Sequence[Sample], found: Findings, instances: int, identities: int | None) -> None:
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
    fewest = sorted((count, pid) for pid, count in counts.items() if count < instances)
    if fewest and identities is not None:
        first = {sample.pid: sample.path for sample in reversed(samples)}
        examples = (f"{first[pid]} ({count} of its identity)" for count, pid in fewest)
        single = sum(count == 1 for count, _ in fewest)
        alone = f", {single} of them a single one" if single else ""
        message = f"{len(fewest)} of {len(counts)} training identities have fewer than {instances} images{alone}"
        remedy = "copies of their images, augmented anew, fill their DATALOADER.NUM_INSTANCE places in a batch"
        found.add("warning", "few images", message, remedy, examples)


def _check_modalities(benchmark: Benchmark, found: Findings) -> None:
    present = _modalities(benchmark.train)
    absent = [name for number, name in enumerate(MODALITIES) if number not in present]
    if benchmark.templates and len(absent) == 1:
        message = f"there are no {absent[0]} training images"
        remedy = "both are trained on: are the folders of all cameras there, and are the lists those of training?"
        found.add("problem", "one modality", message, remedy)


def _check_trial(trial: Trial, ignored: Ignored, contents: Contents, found: Findings) -> None:
    for name, samples in (("query", trial.query), ("gallery", trial.gallery)):
        if not samples:
            found.add("problem", f"no {name}", f"there are no {name} images", "name a test split")
        _check_repeats(samples, name, contents, found)
    if not trial.query or not trial.gallery:
        return
    if len({sample.pid for samples in trial for sample in samples}) == 1:
        message = "all query and gallery images are of one identity"
        found.add("problem", "one answer", message, "every ranking is right: test with two or more")
    _check_matches(trial, ignored, found)
    _check_overlap(trial, ignored, contents, found)


def _check_matches(trial: Trial, ignored: Ignored, found: Findings) -> None:
    matched = _matched(trial, ignored)
    present = {sample.pid for sample in trial.gallery}
    left_out = [sample for sample in trial.query if (sample.pid, sample.camid) not in matched]
    if not left_out:
        return
    absent = [sample for sample in left_out if sample.pid not in present]
    hidden = [sample for sample in left_out if sample.pid in present]
    own = " (their own camera)" if ignored is same_camera else ""
    reasons = {
        "not in the gallery": (absent, "have an identity that the gallery lacks"),
        "only ignored": (hidden, f"have their identity in the gallery only where the protocol ignores it{own}"),
    }
    total = len(trial.query)
    if len(left_out) == total:
        counted = ", ".join(f"{len(queries)} {reason}" for queries, reason in reasons.values() if queries)
        examples = [found.labelled(queries[0]) for queries, _ in reasons.values() if queries]
        single = len({sample.camid for samples in trial for sample in samples}) == 1
        remedy = (
            "all images are of one camera: number the cameras, or, if they are not known, set TEST.PROTOCOL all"
            if single and hidden
            else "nothing could be evaluated: do queries and gallery belong together, are their labels right?"
        )
        message = f"none of {total} queries has a valid match: {counted}"
        found.add("problem", "no match", message, remedy, examples)
        return
    for kind, (queries, reason) in reasons.items():
        if queries:
            message = f"{len(queries)} of {total} queries have no valid match: they {reason}"
            remedy = "they are left out of the figures, which other programs may count otherwise"
            found.add("warning", kind, message, remedy, map(found.labelled, queries))


def _matched(trial: Trial, ignored: Ignored) -> set[tuple[int, int]]:
    """Identity and camera of the queries that have a match."""
    # The rule sees labels only: it is asked once for those of an identity. A mask of all pairs would not fit in memory.
    queries, gallery = (_of_identities(samples) for samples in trial)
    matched = set()
    for pid in queries.keys() & gallery.keys():
        counts = ~ignored(Labels.of(queries[pid]), Labels.of(gallery[pid]))
        pairs = zip(queries[pid], counts.any(dim=1).tolist(), strict=True)
        matched |= {(pid, sample.camid) for sample, any_counts in pairs if any_counts}
    return matched


def _of_identities(samples: Sequence[Sample]) -> dict[int, tuple[Sample, ...]]:
    """One image of each camera of every identity."""
    first: dict[int, dict[int, Sample]] = {}
    for sample in samples:
        first.setdefault(sample.pid, {}).setdefault(sample.camid, sample)
    return {pid: tuple(cameras.values()) for pid, cameras in first.items()}


def _check_repeats(samples: Sequence[Sample], name: str, contents: Contents, found: Findings) -> None:
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
        found.add("warning", f"{name} repeats", message, remedy, map(_pair, repeated))
    torn = [[group[0], other] for group in repeated if (other := _other_identity(group))]
    if torn:
        message = f"{len(torn)} {name} images are there under two identities (the same {same})"
        remedy = "one of the labels is wrong: correct it, or take the images out"
        found.add("warning", f"{name} contradictions", message, remedy, map(found.identities, torn))


def _other_identity(group: Sequence[Sample]) -> Sample | None:
    return next((sample for sample in group if sample.pid != group[0].pid), None)


def _pair(samples: Sequence[Sample]) -> str:
    one, other = samples[0].path, samples[1].path
    return f"{one} and {other}" if one != other else f"{one} (there twice)"


def _check_overlap(trial: Trial, ignored: Ignored, contents: Contents, found: Findings) -> None:
    """Queries that are in the gallery themselves, where the protocol does not ignore the pair."""
    keys, same, _ = contents
    wanted = {keys[sample.path] for sample in trial.query}
    there: dict[Hashable, dict[tuple[int, int], Sample]] = {}  # one of each label: blank images may be many
    for sample in trial.gallery:
        if keys[sample.path] in wanted:
            there.setdefault(keys[sample.path], {}).setdefault((sample.pid, sample.camid), sample)
    pairs: list[tuple[Sample, Sample]] = []
    for query in trial.query:
        if others := tuple(there.get(keys[query.path], {}).values()):
            drops = ignored(Labels.of((query,)), Labels.of(others))[0].tolist()
            pairs += [(query, other) for other, dropped in zip(others, drops, strict=True) if not dropped]
    found_again = [(query, other) for query, other in pairs if query.pid == other.pid]
    if found_again:
        most, count = contents.most({query for query, _ in found_again}, trial.query)
        message = f"{count} queries find themselves in the gallery (the same {same})"
        remedy = "that answer is right by itself, and the figures too good: take them out of the gallery"
        level = "problem" if most else "warning"
        found.add(level, "overlap", message, remedy, map(_pair, found_again))
    torn = [(query, other) for query, other in pairs if query.pid != other.pid]
    if torn:
        _, count = contents.most({query for query, _ in torn}, trial.query)
        message = f"{count} queries are in the gallery under another identity (the same {same})"
        remedy = "that answer counts as wrong: correct the label, or take the images out"
        found.add("warning", "contradictions", message, remedy, map(found.identities, torn))


def _check_leaks(trial: Trial, trained: set[Hashable], contents: Contents, found: Findings) -> None:
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
        remedy = "the figures would measure memory: separate the splits by identity"
        examples = [sample.path for side in leaks for sample in side]
        found.add("problem" if leaks[0] and most else "warning", "leak", message, remedy, examples)


def _check_identities(part: Benchmark, found: Findings) -> None:
    """Identities that are in training and test alike, by the data set's own labels."""
    if part.seen:
        tested = len({sample.pid for trial in part.trials for side in trial for sample in side})
        message = f"{len(part.seen)} of {tested} test identities are training identities, too"
        remedy = "the figures will not tell how well unknown ones are found: separate the splits by identity"
        examples = (f"identity {label}" for label in part.seen)
        found.add("warning", "shared identities", message, remedy, examples)


def _check_unknown(part: Benchmark, found: Findings) -> None:
    """Unknown labels beside known ones; where all are unknown, the data set has none."""
    every = [sample for samples in lists_of(part) for sample in samples]
    for what, name, key in (("camid", "camera", "MODEL.SIE_CAMERA"), ("viewid", "viewpoint", "MODEL.SIE_VIEW")):
        unknown = [sample.path for sample in every if getattr(sample, what) < 0]
        if 0 < len(unknown) < len(every):
            images = list(dict.fromkeys(unknown))
            message = f"{len(images)} of {len({sample.path for sample in every})} images have no known {name}"
            remedy = f"with {key} they get the mean over all {name}s; without it, nothing changes"
            found.add("warning", f"unknown {name}", message, remedy, images)


def _check_common(part: Benchmark, found: Findings) -> None:
    """Warn if queries and gallery share no camera: perhaps each side has its own names for the same ones."""
    for trial in part.trials if part.ignored is not ignore_nothing else ():
        if _modalities(trial.query).isdisjoint(_modalities(trial.gallery)):
            continue
        query, gallery = (cameras_of(samples, part.as_written) for samples in trial)
        if min(len(query), len(gallery)) > 1 and not set(query) & set(gallery):
            message = f"queries ({few(query, NAMED)}) and gallery ({few(gallery, NAMED)}) have no camera in common"
            remedy = (
                "if a camera has two names, images from a query's own camera are not left out, and the figures are "
                "too good: give it one"
            )
            found.add("warning", "no common camera", message, remedy)


def _modalities(samples: Sequence[Sample]) -> set[int]:
    return {sample.modality for sample in samples}


def _check_omitted(part: Benchmark, found: Findings) -> None:
    """What the reader skipped, which nobody would miss otherwise."""
    files, folders, identities = part.omitted
    images = [path for path in files if _suffix(path) in IMAGES]
    others = [path for path in files if _suffix(path) not in IMAGES]
    for level, kind, paths, remedy in (
        ("warning", "images skipped", images, "these formats are not read: save them as .jpg or .png"),
        ("note", "files skipped", others, "their names are not those of images; nothing is missed if they are none"),
    ):
        if paths:
            suffixes = Counter(map(_suffix, paths)).most_common()
            counts = ", ".join(f"{suffix or 'no suffix'}: {count}" for suffix, count in suffixes)
            found.add(level, kind, f"{len(paths)} files skipped ({counts})", remedy, paths)
    if folders:
        message = f"{len(folders)} folders skipped where only images belong"
        remedy = "what is in them is not used: move the images up, or the folders away"
        found.add("warning", "folders skipped", message, remedy, folders)
    if identities:
        message = f"{len(identities)} identities without an image"
        remedy = "their folders hold none that is read: they are not trained on or tested"
        found.add("warning", "empty identities", message, remedy, sorted(identities, key=natural))
    if part.unused:
        message = f"not used: {few(part.unused, NAMED)}"
        remedy = "nothing is missed unless they label images, or hold images that are meant"
        found.add("note", "not used", message, remedy)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _check_published(part: Benchmark, found: Findings) -> None:
    """One warning with all numbers that differ."""
    published = published_counts(part.name, part.variant)
    if published is None:
        return
    query, gallery = part.trials[0]
    by_modality = Counter(sample.modality for sample in part.train)
    ours = PublishedCounts(
        training_images=len(part.train),
        training_identities=len({sample.pid for sample in part.train}),
        query_images=len(query),
        gallery_images=len(gallery),
        cameras=len({sample.camid for samples in lists_of(part) for sample in samples if sample.camid >= 0}),
        training_visible_images=by_modality[VISIBLE],
        training_infrared_images=by_modality[INFRARED],
    )
    differing = [
        f"{count:,} {name.replace('_', ' ')} (published {right:,})"
        for name, count, right in zip(ours._fields, ours, published, strict=True)
        if right is not None and count != right and (part.train or not name.startswith("training"))
    ]
    if differing:
        variant = f" ({part.variant})" if part.variant else ""
        name = "" if found.where else f"{part.name} "
        message = f"{name}differs from what is published{variant}: {', '.join(differing)}"
        remedy = "figures may not compare with published ones: is the copy whole, is it another version?"
        found.add("warning", "counts", message, remedy)
