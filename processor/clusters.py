"""From the features of all training images to the clusters that an epoch trains on, and what the log says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from loss.memory import Memory
from utils.association import Association, associate, association_accuracy, mix_pairs, swap_pairs
from utils.clustering import cluster, majorities, near_pairs, purity
from utils.records import MODALITIES

FEWEST = 2  # clusters of a modality; among fewer there is nothing to tell apart


class Clustering(NamedTuple):
    """Settings of `find_clusters`, as `utils.clustering` has them."""

    eps: float
    min_samples: int
    k1: int
    k2: int


class Swap(NamedTuple):
    """What matched clusters of two modalities do to each other's memories."""

    mode: str  # reference, true or none
    start: int  # first epoch
    ratio: float  # of a memory, that stays in the mixture of `reference`

    def acts(self, epoch: int) -> bool:
        """Whether matched clusters do anything to each other in this epoch."""
        return self.mode != "none" and epoch >= self.start

    def exchange(self, epoch: int, memories: Sequence[Memory], pairs: Association | None) -> None:
        """Before an epoch trains: exchange the prototypes of `pairs`, in place, if this is the mode."""
        if self.mode == "true" and self.acts(epoch) and pairs is not None:
            first, second = (memory.prototypes for memory in memories)
            _replace(memories, swap_pairs(first, second, pairs))

    def mix(self, epoch: int, memories: Sequence[Memory], seen: Sequence[Tensor]) -> None:
        """After a step whose batch has the clusters `seen` of each modality: mix prototypes in place, if this is the
        mode."""
        pairs = matched(memories) if self.mode == "reference" and self.acts(epoch) else None
        if pairs is not None:
            first, second = (memory.prototypes for memory in memories)
            _replace(memories, mix_pairs(first, second, pairs, (seen[0], seen[1]), self.ratio))


def _replace(memories: Sequence[Memory], prototypes: tuple[Tensor, Tensor]) -> None:
    for memory, new in zip(memories, prototypes, strict=True):
        memory.prototypes.copy_(new)


def matched(memories: Sequence[Memory]) -> Association | None:
    """The association of two memories; None of one alone, or where one is empty."""
    if len(memories) < 2 or not all(len(memory.prototypes) for memory in memories):
        return None
    return associate(*(memory.prototypes for memory in memories))


def find_clusters(features: Tensor, modalities: Tensor, settings: Clustering) -> Tensor:
    """The cluster of every image within its modality, each counted from 0 -> int64 [N] on the CPU; -1 is an outlier.

    Args:
        features: [N, D] of length 1.
        modalities: [N] int64, on the CPU.
    """
    labels = torch.full_like(modalities, -1)
    for modality in modalities.unique().tolist():
        mine = modalities == modality
        pairs = near_pairs(features[mine.to(features.device)], settings.eps, settings.k1, settings.k2)
        labels[mine] = cluster(pairs, settings.eps, settings.min_samples)
    return labels


def without_few_clusters(labels: Tensor, modalities: Tensor, needed: int = FEWEST) -> Tensor:
    """Labels [N] with -1 throughout modalities of fewer than `needed` clusters."""
    labels = labels.clone()
    for modality in modalities.unique().tolist():
        mine = modalities == modality
        if int(labels[mine].max()) + 1 < needed:
            labels[mine] = -1
    return labels


def describe(labels: Tensor, modalities: Tensor, pairs: Association | None, pids: Tensor) -> dict[str, Any]:
    """Numbers for the log: of each modality clusters and share of outliers, of their association cosine and margin and,
    by true identities, which training never sees, "true_...": purity and the share of right pairs."""
    facts: dict[str, Any] = {}
    owners = []
    for number in modalities.unique().tolist():
        mine, name = modalities == number, MODALITIES[number]
        found, own = labels[mine], pids[mine]
        clustered = found[found >= 0]
        facts |= {f"{name}_clusters": len(clustered.unique()), f"{name}_outliers": 1 - len(clustered) / len(found)}
        facts[f"true_{name}_purity"] = purity(found, own)
        owners.append(majorities(found, own))
    if pairs is not None:
        right = association_accuracy(pairs, *owners)
        facts |= {"matched_cosine": pairs.similarity, "matched_margin": pairs.margin, "true_association": right}
    return {name: value for name, value in facts.items() if value is not None}


def shown(facts: Mapping[str, Any]) -> list[str]:
    """The same in words, a line each; those by true identities last."""

    def words(name: str) -> str:
        value = facts[name]
        return f"{name.removeprefix('true_').replace('_', ' ')} {value if isinstance(value, int) else f'{value:.3f}'}"

    own = ", ".join(words(name) for name in facts if not name.startswith("true_"))
    true = ", ".join(words(name) for name in facts if name.startswith("true_"))
    return [own, *([f"by true identities, which training never sees: {true}"] if true else [])]
