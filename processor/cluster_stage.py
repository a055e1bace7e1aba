"""Stage 0 (clustering): the image tower learns from clusters of its own features, modality by modality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loss.contrast import ImageToText
from loss.memory import ClusterMemory
from loss.weighing import weigh
from model.svllreid import SvllReid
from processor.clusters import Clusters, Swap
from utils.distributed import gather
from utils.records import Batch, Losses


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
        memory: rows [n, D] -> the memory that has them.
        swap: what matched clusters of two modalities do to each other's memories.
        texts: None without the second term.
        smoothing: of the labels of the second term.

    Attributes:
        labels: of every training image [N], its cluster, in its modality counted from 0; -1 for none.
        memories: of each modality.
    """

    labels: Tensor

    def __init__(
        self,
        model: SvllReid,
        *,
        weights: dict[str, float],
        modalities: Tensor,
        memory: Callable[[Tensor], ClusterMemory],
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
        self.weights, self.memory, self.swap, self.texts = weights, memory, swap, texts
        self.register_buffer("modalities", modalities, persistent=False)
        self.register_buffer("labels", torch.full_like(modalities, -1), persistent=False)
        self.memories: nn.ModuleList = nn.ModuleList()
        self.mixing = False
        self.image_text = ImageToText(smoothing)
        self.seen: list[tuple[Tensor, Tensor]] = []  # of the last batch and each modality: queries and clusters

    def begin_epoch(self, epoch: int, found: Clusters) -> None:
        """Train on these clusters; `update` changes the memories."""
        device = self.modalities.device
        self.labels = found.trainable(self.modalities.cpu()).to(device)
        self.memories = nn.ModuleList(self.memory(rows.to(device)) for rows in found.memories)
        self.mixing = self.swap.mixes(epoch)

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
        if self.mixing:
            self.swap.mix([memory.rows for memory in self.memories], [clusters for _, clusters in self.seen])
