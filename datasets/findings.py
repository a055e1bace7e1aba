"""Findings of a data set's check: problems, warnings and notes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from datasets.images import shown
from utils.errors import DataError, some
from utils.records import Sample

EXAMPLES = 3  # of a finding


class Finding(NamedTuple):
    """Something that a person should know."""

    kind: str  # a word for it
    message: str  # what, and how many of how many
    remedy: str  # what to do, or what follows if nothing is done
    examples: tuple[str, ...] = ()  # paths, with a fact in brackets where it helps

    def __str__(self) -> str:
        examples = f" (e.g. {', '.join(map(shown, self.examples))})" if self.examples else ""
        return f"{self.message}{examples}; {self.remedy}"


@dataclass(frozen=True)
class Report:
    """What a check has found."""

    name: str
    problems: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    notes: tuple[Finding, ...]

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


@dataclass
class Findings:
    """Collects findings; of the same one about several trials, the first is kept and the others are counted."""

    written: Mapping[str, tuple[str, str]]  # Benchmark.as_written
    where: str = ""  # of several data sets the one that is looked at
    levels: dict[str, dict[tuple[str, str], list[Finding]]] = field(
        default_factory=lambda: {"problem": {}, "warning": {}, "note": {}}
    )

    def add(self, level: str, kind: str, message: str, remedy: str, examples: Iterable[str] = ()) -> None:
        finding = Finding(kind, f"{self.where}{message}", remedy, tuple(examples)[:EXAMPLES])
        self.levels[level].setdefault((kind, self.where), []).append(finding)

    def labelled(self, sample: Sample) -> str:
        """An image with the labels that a finding is about."""
        identity, camera = labels_of(sample, self.written)
        return f"{sample.path} (identity {identity}, camera {camera or 'unknown'})"

    def identities(self, samples: Sequence[Sample]) -> str:
        """Images with their identities."""
        return " and ".join(f"{sample.path} (identity {labels_of(sample, self.written)[0]})" for sample in samples)

    def report(self, name: str) -> Report:
        levels = [tuple(map(_merged, found.values())) for found in self.levels.values()]
        return Report(name, *levels)


def _merged(findings: list[Finding]) -> Finding:
    first, *others = findings
    return first._replace(message=f"{first.message}, and the like in {len(others)} more trials") if others else first


def cameras_of(samples: Sequence[Sample], written: Mapping[str, tuple[str, str]]) -> list[str]:
    """The labels of the known cameras, in order."""
    first = {sample.camid: sample for sample in samples if sample.camid >= 0}
    return [label for camid in sorted(first) if (label := labels_of(first[camid], written)[1])]


def labels_of(sample: Sample, written: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Identity and camera as their owner wrote them where that is known; published cameras count from 1."""
    return written.get(sample.path) or (str(sample.pid), str(sample.camid + 1))


def few(words: Sequence[str], most: int) -> str:
    return some([*map(shown, words)], most)
