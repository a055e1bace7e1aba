"""From the features of all training images to the clusters that an epoch trains on, and what the log says of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.association import exchange, match, mix
from utils.clustering import Statistics, cluster, near_pairs

logger = logging.getLogger(__name__)
NAMES = ("visible", "infrared")  # modalities, in the log and in records
FEWEST = 2  # clusters of a modality; among fewer there is nothing to tell apart


class Clustering(NamedTuple):
    """Settings of the clustering, as `utils.clustering` has them."""

    eps: float
    min_samples: int
    k1: int
    k2: int


class Clusters(NamedTuple):
    """Clusters of all training images, each modality by itself."""

    labels: Tensor  # [N] int64, in each modality counted from 0; -1 is an outlier
    memories: Sequence[Tensor]  # of each modality [n, D], the mean features of its clusters, of length 1

    @property
    def counts(self) -> tuple[int, ...]:
        """Clusters of each modality."""
        return tuple(map(len, self.memories))

    def trainable(self, modalities: Tensor) -> Tensor:
        """The labels [N] without modalities of fewer than two clusters."""
        few = [number for number, count in enumerate(self.counts) if count < FEWEST]
        return self.labels.masked_fill(torch.isin(modalities, torch.tensor(few, dtype=torch.int64)), -1)


class Swap(NamedTuple):
    """What matched clusters of two modalities do to each other's memories."""

    mode: str  # reference, true or none
    start: int  # first epoch
    ratio: float  # of a memory, that stays in the mixture of `reference`

    def mixes(self, epoch: int) -> bool:
        """Whether memories mix after every step of this epoch."""
        return self.mode == "reference" and epoch >= self.start

    def exchanged(self, epoch: int, memories: Sequence[Tensor]) -> Sequence[Tensor]:
        """The memories that this epoch begins with."""
        if self.mode == "true" and epoch >= self.start and len(memories) > 1:
            exchange(*memories)
        return memories

    def mix(self, memories: Sequence[Tensor], clusters: Sequence[Tensor]) -> None:
        """Mix those of the batch's `clusters`, in place."""
        if len(memories) > 1 and all(map(len, memories)):
            present = [
                torch.zeros(len(rows), dtype=torch.bool).index_fill(0, mine.cpu(), True)
                for rows, mine in zip(memories, clusters, strict=True)
            ]
            mix(*memories, *present, self.ratio)


def find_clusters(features: Tensor, modalities: Tensor, number: int, settings: Clustering) -> Clusters:
    """Cluster each of `number` modalities.

    Args:
        features: [N, D] of length 1.
        modalities: [N] int64, on the CPU.
    """
    labels, memories = torch.full_like(modalities, -1), []
    for modality in range(number):
        mine = modalities == modality
        rows = features[mine.to(features.device)]
        found = torch.empty(0, dtype=torch.int64)
        if len(rows):
            found = cluster(near_pairs(rows, settings.eps, settings.k1, settings.k2), settings.eps, settings.min_samples)
        labels[mine] = found
        memories.append(means(rows, found))
    return Clusters(labels, memories)


def means(features: Tensor, labels: Tensor) -> Tensor:
    """The mean feature [n, D] of each of n clusters, of length 1, on the CPU; labels [N], -1 is left out."""
    kept = labels >= 0
    rows, labels = features.cpu()[kept], labels[kept]
    count = int(labels.max()) + 1 if len(labels) else 0
    return F.normalize(torch.zeros(count, features.shape[1]).index_add(0, labels, rows), dim=1)


def describe(found: Clusters, modalities: Tensor, pids: Tensor) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    owners = []
    for number, rows in enumerate(found.memories):
        labels, own = found.labels[modalities == number], pids[modalities == number]
        name = NAMES[number]
        s = Statistics.of(labels)
        facts |= {f"{name}_clusters": s.clusters, f"{name}_outliers": s.outliers}
        who = torch.stack([own[labels == k].bincount().argmax() for k in range(len(rows))]) if len(rows) else torch.empty(0)
        owners.append(who)
        kept = labels >= 0
        facts[f"{name}_purity"] = float((who[labels[kept]] == own[kept]).float().mean()) if kept.any() else 0
    if len(found.memories) > 1 and all(map(len, found.memories)):
        a, b = found.memories
        S = a @ b.T
        r, c = match(S)
        facts["matched"] = float(S[r, c].mean())
        T = S.clone()
        T[r, c] = -9
        facts["margin"] = float((S[r, c] - torch.maximum(T[r].max(1)[0], T[:, c].max(0)[0])).mean())
        facts["association"] = float((owners[0][r] == owners[1][c]).float().mean())
    return facts


def shown(facts: Mapping[str, Any]) -> list[str]:
    return [", ".join(f"{k} {v:.3g}" for k, v in facts.items())]
