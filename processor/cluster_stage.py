"""Stage 0 (clustering): the image tower learns from clusters of its own features, modality by modality."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loss.contrast import ImageToText
from loss.memory import Memory
from loss.weighing import weigh
from model.svllreid import SvllReid
from processor.clusters import FEWEST, Swap, matched, without_few_clusters
from utils.association import Association
from utils.distributed import gather, world_size
from utils.records import MODALITIES, Batch, Losses, to_device_at_once

logger = logging.getLogger(__name__)


class Texts(NamedTuple):
    """Text features that images are compared with, a set for each modality."""

    features: Sequence[Tensor]  # of each modality [n, E]
    labels: Tensor  # [N] int64, on the CPU: the row of every training image in its modality's set; -1 for none


class ClusterStage(nn.Module):
    """Cluster contrast within each modality, and images against the texts of earlier clusters (CCLNet; Chen et al.,
    2023).

    An image's cluster is looked up by its index, on the CPU: no step waits for the device, but for the matching of
    "reference". Identities are not read. Of several processes, each gives its share of the images to the tower; losses
    and memories see all of them, everywhere.

    Args:
        model: its image tower and the neck of its last feature train; the text side does not.
        weights: "cluster" and, with `texts`, "image_text"; 0.0 is off.
        modalities: of every training image [N] int64, on the CPU.
        memory: width of the features -> an empty memory.
        swap: what matched clusters of two modalities do to each other's memories.
        texts: None without the second term.
        smoothing: of the labels of the second term.

    Attributes:
        labels: of every training image [N], on the CPU: its cluster, in its modality counted from 0; -1 for none.
        memories: of each modality.
    """

    def __init__(
        self,
        model: SvllReid,
        *,
        weights: dict[str, float],
        modalities: Tensor,
        memory: Callable[[int], Memory],
        swap: Swap,
        texts: Texts | None = None,
        smoothing: float = 0.1,
    ):
        super().__init__()
        self.model = model.requires_grad_(True)
        for frozen in (model.text, model.prompts, model.text_projector, model.image_projector):
            if frozen is not None:
                frozen.requires_grad_(False)
        model.heads.requires_grad_(False)
        model.heads[0].neck.weight.requires_grad_(True)  # whose shift is never trained
        self.weights, self.swap, self.texts, self.epoch = weights, swap, texts, 0
        self.modalities, self.labels = modalities, torch.full_like(modalities, -1)
        weight, number = model.heads[0].neck.weight, int(modalities.max()) + 1
        self.memories: Any = nn.ModuleList(memory(len(weight)) for _ in range(number)).to(weight.device)
        self.image_text = ImageToText(smoothing)
        self.seen: list[tuple[Tensor, Tensor]] = []  # of the last batch and each modality: queries and clusters

    @torch.no_grad()
    def begin_epoch(self, epoch: int, labels: Tensor, features: Tensor) -> Association | None:
        """Train on these clusters -> the association of those of two modalities, before memories are swapped.

        Args:
            labels: of all images [N], on the CPU, in each modality counted from 0; -1 for none.
            features: of all images [N, D], of length 1.
        """
        self._set_labels(epoch, labels)
        for number, memory in enumerate(self.memories):
            mine = self.modalities == number
            memory.fill(features[mine.to(features.device)], self.labels[mine].to(features.device))
        pairs = matched(self.memories)
        if self.swap.acts(epoch):
            _warn_of_chance(epoch, pairs)
        self.swap.exchange(epoch, self.memories, pairs)
        return pairs

    def resume_epoch(self, epoch: int, labels: Tensor, memories: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on within an epoch, with its labels [N] and the state of its memories."""
        self._set_labels(epoch, labels)
        for memory, state in zip(self.memories, memories, strict=True):
            memory.load_state_dict(state)

    def _set_labels(self, epoch: int, labels: Tensor) -> None:
        needed = max(FEWEST, world_size())  # a batch has one in every process
        self.epoch, self.labels = epoch, without_few_clusters(labels, self.modalities, needed)
        for number in range(len(self.memories)):
            if not (self.labels[self.modalities == number] >= 0).any():
                name, why = MODALITIES[number], ", one for each process" if needed > FEWEST else ""
                logger.warning("epoch %d: %s images take no part; expected %d clusters%s", epoch, name, needed, why)

    def query(self, batch: Batch) -> Tensor:
        """Images -> what is clustered and compared with memories: [B, D] of length 1."""
        return self._of_length_1(self.model.encode_image(batch.images, batch.side).last)

    def _of_length_1(self, last: Tensor) -> Tensor:
        return F.normalize(self.model.heads[0].neck(last).float(), dim=1)

    def forward(self, batch: Batch) -> Losses:
        """The batch, or this process's share of it -> losses of the whole."""
        features, indices = self.model.encode_image(batch.images, batch.side), gather(batch.indices)
        queries, groups = self._of_length_1(gather(features.last)), self._groups(self.labels, indices)
        self.seen = [(queries[rows].detach(), clusters) for rows, clusters in groups]
        nothing = queries.sum() * 0.0  # of a batch without any image of a kind
        terms = {"cluster": nothing}
        for memory, (rows, clusters) in zip(self.memories, groups, strict=True):
            if len(rows):
                terms["cluster"] = terms["cluster"] + memory(queries[rows], clusters)
        if self.texts is not None:
            terms["image_text"] = self._image_text(gather(features.projected), indices, nothing)
        return weigh(terms, self.weights)

    def _image_text(self, projected: Tensor, indices: Tensor, nothing: Tensor) -> Tensor:
        """Images against the texts of their own modality's clusters; images that were in none are left out."""
        assert self.texts is not None
        total = nothing
        for texts, (rows, labels) in zip(self.texts.features, self._groups(self.texts.labels, indices), strict=True):
            if len(rows):
                total = total + self.image_text(projected[rows], texts, labels)
        return total

    def _groups(self, labels: Tensor, indices: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each modality's images in the batch that have one of `labels` [N]: their rows and their labels."""
        known, modalities = labels[indices], self.modalities[indices]
        groups = [((modalities == number) & (known >= 0)).nonzero()[:, 0] for number in range(len(self.memories))]
        parts = [*groups, *(known[rows] for rows in groups)]
        moved = to_device_at_once(parts, self.memories[0].prototypes.device)
        return list(zip(moved[: len(groups)], moved[len(groups) :], strict=True))

    @torch.no_grad()
    def update(self, finite: Tensor) -> None:
        """Take the last batch into the memories, after the update of the weights, unless that was not made."""
        # No cluster where it was not; the host does not wait to be told.
        seen = [(queries, clusters.where(finite, -1)) for queries, clusters in self.seen]
        for memory, (queries, clusters) in zip(self.memories, seen, strict=True):
            memory.update(queries, clusters)
        self.swap.mix(self.epoch, self.memories, [clusters for _, clusters in seen])


def _warn_of_chance(epoch: int, pairs: Association | None) -> None:
    """Say so if memories are about to change by matches that could as well be others."""
    margin = pairs.margin if pairs is not None else None
    if margin is not None and margin <= 0:
        logger.warning(
            "epoch %d: matched clusters are no more alike than others (margin %.3f); matches may be wrong, and "
            "training confirms them from MEMORY.SWAP_START on; expected a later one, or features that agree",
            *(epoch, margin),
        )
