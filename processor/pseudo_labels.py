"""Pseudo-labels: which cluster each training image was in, as a file of the run that later stages read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from utils.errors import DataError, some
from utils.files import replacing
from utils.records import Sample


class PseudoLabels(NamedTuple):
    """Clusters of the training images, each modality's counted from 0; -1 is an outlier."""

    labels: list[int]  # [N], in the order of the samples
    counts: tuple[int, ...]  # clusters of each modality
    epoch: int  # of the clustering
    settings: str  # what else they depend on

    @staticmethod
    def of(labels: Tensor, modalities: Tensor, number: int, epoch: int, settings: str) -> PseudoLabels:
        """Of labels [N] and modalities [N], which are 0 to `number` - 1."""
        found = (labels[modalities == modality] for modality in range(number))
        counts = tuple(int(own.max()) + 1 if len(own) else 0 for own in found)
        return PseudoLabels(labels.tolist(), counts, epoch, settings)

    def relabelled(self, samples: Sequence[Sample]) -> list[Sample]:
        """The images that are in a cluster, with that as their identity; a modality's come after those before it."""
        first = np.cumsum([0, *self.counts])
        pairs = zip(samples, self.labels, strict=True)
        return [each._replace(pid=int(first[each.modality]) + label) for each, label in pairs if label >= 0]


def write_labels(path: Path, found: PseudoLabels, samples: Sequence[Sample]) -> None:
    """Write an .npz file of `paths` [N], below the folder of all, `modalities` [N], `labels` [N], `counts`, `epoch` and
    `settings`, atomically."""
    with replacing(path) as file:
        np.savez(
            file,
            paths=np.array(_names(samples), dtype=str),
            modalities=np.array([sample.modality for sample in samples]),
            labels=np.array(found.labels),
            counts=np.array(found.counts),
            epoch=np.array(found.epoch),
            settings=np.array(found.settings),
        )


def read_labels(path: Path, samples: Sequence[Sample], *, epoch: int, settings: str) -> PseudoLabels:
    """What `write_labels` wrote, in the order of `samples`, whatever the order in the file.

    Raises:
        DataError: no such file, none of pseudo-labels, of another epoch or other settings, or of other images.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            numbers = (file[name].astype(np.int64, casting="safe") for name in ("modalities", "labels", "counts"))
            (modalities, labels, counts), paths = (each.tolist() for each in numbers), file["paths"].tolist()
            found = PseudoLabels([], tuple(counts), int(file["epoch"]), str(file["settings"]))
            rows = dict(zip(zip(paths, modalities, strict=True), labels, strict=True))
    except Exception as error:  # of any type: the file may be anything
        raise DataError(f"{path}: is no file of pseudo-labels ({type(error).__name__}: {error})") from error
    if found.settings != settings:
        raise DataError(f"{path}: has the pseudo-labels of other settings ({found.settings}, here {settings})")
    if found.epoch != epoch:
        raise DataError(
            f"{path}: has the pseudo-labels of epoch {found.epoch}; expected those of epoch {epoch}, the last"
        )
    wanted = [(name, sample.modality) for name, sample in zip(_names(samples), samples, strict=True)]
    if len(rows) != len(paths) or rows.keys() != set(wanted):
        strange = sorted({name for name, _ in rows.keys() ^ set(wanted)})
        raise DataError(f"{path}: has the pseudo-labels of other images ({some(strange) or 'some twice'})")
    return found._replace(labels=[rows[key] for key in wanted])


def _names(samples: Sequence[Sample]) -> list[str]:
    """Paths below the folder that all are in: a data set may have been moved."""
    top = os.path.commonpath([os.path.dirname(sample.path) for sample in samples])
    return [Path(sample.path).relative_to(top).as_posix() for sample in samples]
