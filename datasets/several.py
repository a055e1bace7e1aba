"""Several data sets trained on together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from datasets.names import SEVERAL
from utils.records import Benchmark, Sample, Trial


def combine(benchmarks: Sequence[Benchmark]) -> Benchmark:
    """One training set of all of them; each is evaluated by itself, as one of the result's `parts`.

    Training identities and cameras continue from one data set to the next, in queries and galleries, too, so
    that side information has a row for every camera of every set. Viewpoints mean the same everywhere and keep theirs.
    All have the prompt of the first (`datasets.names.names_together`).
    """
    parts, pids, cams = [], 0, 0
    for benchmark in benchmarks:
        parts.append(shifted(benchmark, pids=pids, cams=cams))
        pids, cams = pids + benchmark.num_pids, cams + benchmark.num_cams
    return Benchmark(
        name=SEVERAL.join(benchmark.name for benchmark in benchmarks),
        template=benchmarks[0].template,
        train=tuple(sample for part in parts for sample in part.train),
        trials=tuple(trial for part in parts for trial in part.trials),
        ignored=benchmarks[0].ignored,
        parts=tuple(parts),
        as_written={path: labels for part in parts for path, labels in part.as_written.items()},
    )


def shifted(benchmark: Benchmark, *, pids: int = 0, cams: int = 0) -> Benchmark:
    """The same with training identities numbered from `pids` and cameras from `cams`."""

    def moved(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        return tuple(s._replace(camid=s.camid + cams) if s.camid >= 0 else s for s in samples)  # -1 stays unknown

    return replace(
        benchmark,
        train=tuple(sample._replace(pid=sample.pid + pids) for sample in moved(benchmark.train)),
        trials=tuple(Trial(moved(trial.query), moved(trial.gallery)) for trial in benchmark.trials),
        first_camera=benchmark.first_camera + cams,
    )
