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
from processor.clusters import NAMES, Swap, matched, without_lone_clusters
from utils.association import Association
from utils.distributed import gather
from utils.records import Batch, Losses

logger = logging.getLogger(__name__)


class Texts(NamedTuple):
    """Text features that images are compared with, a set for each modality."""

    features: Sequence[Tensor]  # of each modality [n, E]
    labels: Tensor  # [N] int64, the row of every training image in its modality's set; -1 for none


class ClusterStage(nn.Module):
    """Cluster contrast within each modality, and images against the texts of earlier clusters (CCLNet; Chen et al.,
    2023).

    An image's cluster is looked up by its index; identities are not read. Of several processes, each gives its share of
    the images to the tower; losses and memories see all of them, everywhere.

    Args:
        model: its image tower and the neck of its last feature train; the text side does not.
        weights: "cluster" and, with `texts`, "image_text"; 0.0 is off.
        modalities: of every training image [N] int64.
        memory: width of the features -> an empty memory.
        swap: what matched clusters of two modalities do to each other's memories.
        texts: None without the second term.
        smoothing: of the labels of the second term.

    Attributes:
        labels: of every training image [N], its cluster, in its modality counted from 0; -1 for none.
        memories: of each modality.
    """

    labels: Tensor
    modalities: Tensor

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
        self.register_buffer("modalities", modalities, persistent=False)
        self.register_buffer("labels", torch.full_like(modalities, -1), persistent=False)
        width, number = model.heads[0].neck.num_features, int(modalities.max()) + 1
        self.memories: Any = nn.ModuleList(memory(width) for _ in range(number)).to(modalities.device)
        self.image_text = ImageToText(smoothing)
        self.seen: list[tuple[Tensor, Tensor]] = []  # of the last batch and each modality: queries and clusters

    @torch.no_grad()
    def begin_epoch(self, epoch: int, labels: Tensor, features: Tensor) -> Association | None:
        """Train on these clusters -> the association of those of two modalities, before memories are swapped.

        Args:
            labels: of all images [N], in each modality counted from 0; -1 for none.
            features: of all images [N, D], of length 1.
        """
        self._set_labels(epoch, labels)
        for number, memory in enumerate(self.memories):
            mine = self.modalities == number
            memory.fill(features[mine], labels.to(features.device)[mine])
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
        self.epoch, modalities = epoch, self.modalities.cpu()
        kept = without_lone_clusters(labels, modalities)
        for number in range(len(self.memories)):
            if not (kept[modalities == number] >= 0).any():
                logger.warning(
                    "epoch %d: fewer than two clusters of %s images, which take no part", epoch, NAMES[number]
                )
        self.labels = kept.to(self.modalities.device)

    def query(self, batch: Batch) -> Tensor:
        """Images -> what is clustered and compared with memories: [B, D] of length 1."""
        return self._of_length_1(self.model.encode_image(batch.images, batch.side).last)

    def _of_length_1(self, last: Tensor) -> Tensor:
        return F.normalize(self.model.heads[0].neck(last).float(), dim=1)

    def forward(self, batch: Batch) -> Losses:
        """The batch, or this process's share of it -> losses of the whole."""
        features, indices = self.model.encode_image(batch.images, batch.side), gather(batch.indices)
        queries, labels = self._of_length_1(gather(features.last)), self.labels[indices]
        groups = [self.modalities[indices] == number for number in range(len(self.memories))]
        self.seen = [(queries[group].detach(), labels[group]) for group in groups]
        nothing = queries.sum() * 0.0  # of a batch without any image of a kind
        terms = {"cluster": nothing}
        for memory, (group, (_, clusters)) in zip(self.memories, zip(groups, self.seen, strict=True), strict=True):
            if len(clusters):
                terms["cluster"] = terms["cluster"] + memory(queries[group], clusters)
        if self.texts is not None:
            terms["image_text"] = self._image_text(gather(features.projected), indices, groups, nothing)
        return weigh(terms, self.weights)

    def _image_text(self, projected: Tensor, indices: Tensor, groups: Sequence[Tensor], nothing: Tensor) -> Tensor:
        """Images against the texts of their own modality's clusters; images that were in none are left out."""
        labels, total = self.texts.labels[indices], nothing
        for texts, group in zip(self.texts.features, groups, strict=True):
            kept = group & (labels >= 0)
            if kept.any():
                total = total + self.image_text(projected[kept], texts, labels[kept])
        return total

    @torch.no_grad()
    def update(self, finite: Tensor) -> None:
        """Take the last batch into the memories, after the update of the weights, unless that was not made."""
        if not finite:
            return
        for memory, (queries, clusters) in zip(self.memories, self.seen, strict=True):
            memory.update(queries, clusters)
        self.swap.mix(self.epoch, self.memories, [clusters for _, clusters in self.seen])


def _warn_of_chance(epoch: int, pairs: Association | None) -> None:
    """Say so if memories are about to change by matches that could as well be others."""
    margin = pairs.margin if pairs is not None else None
    if margin is not None and margin <= 0:
        logger.warning(
            "epoch %d: matched clusters are no more alike than others (margin %.3f); matches may be wrong, and "
            "training confirms them from MEMORY.SWAP_START on; expected a later one, or features that agree",
            *(epoch, margin),
        )
