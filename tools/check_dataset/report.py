"""The report of a check as text: counts of every split, labels as they were read, findings."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from datasets.check_labels import NAMED, lists_of
from datasets.findings import EXAMPLES, Report, cameras_of, few
from datasets.images import shown
from utils.records import INFRARED, VISIBLE, Benchmark, Sample


class Split(NamedTuple):
    """Counts of one list of images."""

    name: str
    images: int
    identities: int
    cameras: int  # different ones that are known
    viewpoints: int
    unknown_cameras: int  # images whose camera is -1
    unknown_viewpoints: int
    visible: int
    infrared: int


def text(benchmark: Benchmark, report: Report) -> str:
    """Counts, then notes, warnings and problems with their examples."""
    lines = [report.name, *_table(list(splits(benchmark))), *_labels_read(benchmark)]
    for title, findings in (("note", report.notes), ("warning", report.warnings), ("problem", report.problems)):
        for finding in findings:
            lines += ["", f"{title}: {finding.message}", *(f"    {shown(example)}" for example in finding.examples)]
            lines.append(f"  -> {finding.remedy}")
    verdict = "training or evaluation could not work" if report.problems else "training and evaluation can work"
    counts = f"{len(report.problems)} problems, {len(report.warnings)} warnings"
    return "\n".join([*lines, "", f"{report.name}: {verdict} ({counts})"])


def splits(benchmark: Benchmark) -> Iterable[Split]:
    """Every list of images; of several trials, the first."""
    parts = benchmark.evaluated()
    for part in parts:
        prefix = f"{part.name} " if len(parts) > 1 else ""
        if part.train or part is benchmark:
            yield _count(f"{prefix}training", part.train)
        for trial in part.trials[:1]:
            several = f" (trial 1 of {len(part.trials)})" if len(part.trials) > 1 else ""
            yield _count(f"{prefix}query{several}", trial.query)
            yield _count(f"{prefix}gallery{several}", trial.gallery)
    if len(parts) > 1:
        several = any(part.train for part in parts)  # else the parts are directions of one test
        yield _count("training together" if several else "training", benchmark.train)


def _labels_read(benchmark: Benchmark) -> Iterable[str]:
    """Lines: the cameras of all splits together, and the first identities."""
    parts = benchmark.evaluated()
    for part in parts:
        prefix = f"{part.name} " if len(parts) > 1 else ""
        every = [*chain(*lists_of(part))]
        cameras = cameras_of(every, part.as_written)
        which = f" ({few(cameras, NAMED)})" if cameras and part.as_written else ""
        yield f"{prefix}cameras of all splits: {len(cameras)}{which}"
        if part.as_written:
            first: dict[str, str] = {}
            for sample in every:
                first.setdefault(part.as_written[sample.path][0], os.path.basename(sample.path))
            identities = [f"{label} ({name})" for label, name in first.items()]
            yield f"{prefix}identities as read: {few(identities, EXAMPLES)}"


def _count(name: str, samples: Sequence[Sample]) -> Split:
    cameras, views, modalities = (
        Counter(getattr(sample, what) for sample in samples) for what in ("camid", "viewid", "modality")
    )
    return Split(
        name,
        images=len(samples),
        identities=len({sample.pid for sample in samples}),
        cameras=sum(camera >= 0 for camera in cameras),
        viewpoints=sum(view >= 0 for view in views),
        unknown_cameras=sum(count for camera, count in cameras.items() if camera < 0),
        unknown_viewpoints=sum(count for view, count in views.items() if view < 0),
        visible=modalities[VISIBLE],
        infrared=modalities[INFRARED],
    )


def _table(parts: Sequence[Split]) -> list[str]:
    """Lines; what is unknown only where something is, modalities only where there are infrared images."""
    unused = [name for name in Split._fields if name.startswith("unknown") and not any(getattr(s, name) for s in parts)]
    if not any(split.infrared for split in parts):
        unused += ["visible", "infrared"]
    columns = [name for name in Split._fields if name not in unused]
    rows = [["" if name == "name" else name.replace("_", " ") for name in columns]]
    rows += [
        [f"{value:,}" if isinstance(value, int) else value for value in (getattr(split, name) for name in columns)]
        for split in parts
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
