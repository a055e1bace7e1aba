"""Several data sets trained on together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from utils.errors import DataError
from utils.records import Benchmark, Sample, Trial

SEVERAL = "+"  # between the names of data sets that are trained on together


TWO_WAYS = ("regdb", "synthetic_regdb")  # data sets of DATASETS.REGDB_SPLIT, whose tests have two directions


def count_evaluations(names: str) -> int:
    """How many results an evaluation of all data sets has."""
    return sum(2 if name in TWO_WAYS else 1 for name in names_of(names))


def names_of(names: str) -> list[str]:
    """The data sets that DATASETS.NAMES names.

    Raises:
        DataError: an empty name, or one that is there twice.
    """
    several = names.split(SEVERAL)
    if not all(several):
        raise DataError(
            f"DATASETS.NAMES {names!r}: one of the names is empty; expected, e.g., market1501 or "
            "\"('market1501', 'msmt17')\""
        )
    twice = sorted({name for name in several if several.count(name) > 1})
    if twice:
        raise DataError(f"DATASETS.NAMES {names!r}: {twice[0]} is there twice")
    return several


def combine(benchmarks: Sequence[Benchmark]) -> Benchmark:
    """One training set of all of them; each is evaluated by itself, as one of the result's `parts`.

    Training identities and cameras continue from one data set to the next, in queries and galleries, too, so
    that side information has a row for every camera of every set. Viewpoints mean the same everywhere and keep theirs.

    Raises:
        DataError: sets of people and of vehicles, which have no prompt in common; a set of two modalities, whose
            protocol is about its own cameras.
    """
    for benchmark in benchmarks:
        if benchmark.templates:
            raise DataError(
                f"DATASETS.NAMES: {benchmark.name} has two modalities; expected that it is trained on alone"
            )
    templates = {benchmark.template: benchmark.name for benchmark in benchmarks}
    if len(templates) > 1:
        (one, first), (other, second), *_ = templates.items()
        raise DataError(
            f"DATASETS.NAMES: {first} says {one!r} and {second} {other!r}; one training has one prompt for all"
        )
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
