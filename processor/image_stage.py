"""Stage 2 (fine-tuning): the image tower learns from identities, texts and itself; the text side is frozen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from loss.contrast import ImageToText
from loss.identity import IdentityLoss
from loss.self_supervised import NegativeCosine, NTXent, SupCon, find_positives
from loss.triplet import BatchHardTriplet
from loss.weighing import weigh
from model.svllreid import SvllReid
from model.towers import has_batch_norm, stem_only
from processor.chunks import encode_in_chunks
from utils.distributed import gather
from utils.records import Batch, ImageFeatures, Labels, Losses, SideInfo

Outcome = tuple[Tensor, Tensor | None]  # the loss [], and scores [B, P] for its accuracy


class Views(NamedTuple):
    """The two views of every image."""

    first: Tensor  # [B, D]
    second: Tensor  # [B, D]
    positives: Tensor | None = None  # [2B, 2B], of `find_positives`; None: only the other view


class ImageStage(nn.Module):
    """CLIP-ReID §3.3 and the vision self-supervision of SVLL-ReID; a baseline has weights of 0 for what it lacks.

    Two terms have a `Memory` of what retrieval compares, the features before their necks. "prototype": images against
    a prototype of each identity (PCL-CLIP; Li and Gong, 2023). "camera_proxy": images against a prototype of each
    identity in each camera; positives are the own identity's in other cameras (Wang et al., AAAI 2021).

    Of several processes, each gives its share of the images to the tower. Heads, losses and memories see all of them,
    everywhere.

    Args:
        model: its image tower, identity heads and image projector train; text tower, prompts and text projector do not.
        weights: of TERMS, by name; 0.0 is off.
        text_features: of the prompts of all identities [P, E]; None where "image_text" is off.
        margin: of the triplet loss; None for its soft form.
        smoothing: of the labels, in the identity and image-text terms.
        self_supervision: "SIMCLR" or "SIMSIAM", for which the model's image projector must have been made.
        side_on_views: whether views get side information; as published they do not.
        ignore_same_identity: whether SimCLR leaves other images of the same identity out of the negatives.
        positives: of a view, "image" for the other view of its image, as published; "identity" for all other views of
            its identity, "camera" for those from other cameras (`find_positives`).
        triplet_features: that the triplet loss is computed of: "all" that the tower has (CLIP-ReID), or "last" alone
            (TransReID).

    Attributes:
        mini_batch: images that go through the tower at once; 0 is all.
        memories: of the terms that have one and are on, by name; `fill` them before training.
    """

    text_features: Tensor | None
    mini_batch = 0
    memories: Any
    seen: tuple[Tensor, Labels] | None = None  # of the last batch, for the memories: what was compared with them

    def __init__(
        self,
        model: SvllReid,
        *,
        weights: dict[str, float],
        text_features: Tensor | None,
        margin: float | None = 0.3,
        smoothing: float = 0.1,
        self_supervision: str = "SIMCLR",
        side_on_views: bool = False,
        ignore_same_identity: bool = False,
        positives: str = "image",
        triplet_features: str = "all",
    ):
        super().__init__()
        self.side_on_views, self.ignore_same_identity, self.positives = side_on_views, ignore_same_identity, positives
        self.model = model.requires_grad_(True)
        for frozen in (model.text, model.prompts, model.text_projector):
            if frozen is not None:
                frozen.requires_grad_(False)
        for head in model.heads:
            head.neck.bias.requires_grad_(False)
        self.weights, self.triplet_features = weights, triplet_features
        self.register_buffer("text_features", text_features, persistent=False)
        self.identity = IdentityLoss(smoothing)
        self.triplet = BatchHardTriplet(margin)
        self.image_text = ImageToText(smoothing)
        simclr = NTXent() if positives == "image" else SupCon(one_by_one=ignore_same_identity)
        self.self_supervised = NegativeCosine() if self_supervision == "SIMSIAM" else simclr
        self.one_view_at_a_time = has_batch_norm(model.image)  # as published
        self.memories = nn.ModuleDict()

    def layer_of(self, name: str) -> int | None:
        """The layer of a parameter, from 0; None for what comes after the tower's layers."""
        tower, prefix = self.model.image, "model.image."
        return tower.layer_of(name.removeprefix(prefix)) if name.startswith(prefix) else None

    def forward(self, batch: Batch) -> Losses:
        """The batch, or this process's share of it -> losses of the whole; terms of weight 0 are not computed."""
        on = {name: term for name, term in TERMS.items() if self.weights.get(name, 0.0) > 0}
        labels, terms, accuracy = Labels(gather(batch.pids), gather(batch.side.camids)), {}, {}
        if any(not term.of_views for term in on.values()):
            features = _gathered(self._encode(batch.images, batch.side))
        for name, term in on.items():
            seen = self._views(batch, labels) if term.of_views else features
            terms[name], scores = term.compute(self, seen, labels)
            if scores is not None:
                accuracy[name] = _accuracy(scores, labels.pids)
        return weigh(terms, self.weights)._replace(accuracy=accuracy)

    def _views(self, batch: Batch, labels: Labels) -> Views:
        """Of the whole batch."""
        first, second = (gather(view) for view in self._view_features(batch))
        if self.positives == "image":
            return Views(first, second)
        return Views(first, second, find_positives(labels.pids, labels.camids if self.positives == "camera" else None))

    def _view_features(self, batch: Batch) -> tuple[Tensor, ...]:
        """The two views of every image of this process, each [B, D]."""
        assert batch.views is not None
        side = batch.side if self.side_on_views else stem_only(self.model.image, batch.side)
        if self.one_view_at_a_time:
            return tuple(self._encode(view, side).last for view in batch.views)
        both = SideInfo(*(field.repeat(2) for field in side)) if side else None
        return self._encode(batch.views.flatten(0, 1), both).last.chunk(2)

    def _encode(self, images: Tensor, side: SideInfo | None) -> ImageFeatures:
        return encode_in_chunks(self.model.image, images, side, self.mini_batch)

    # The terms, each of the features and labels of the whole batch.

    def _identity(self, features: ImageFeatures, labels: Labels) -> Outcome:
        scores = self.model.classify(features)
        return self.identity(scores, labels.pids), scores[0]

    def _triplet(self, features: ImageFeatures, labels: Labels) -> Outcome:
        depths = features if self.triplet_features == "all" else (features.last,)
        return sum(self.triplet(depth, labels.pids) for depth in depths if depth is not None), None

    def _image_text(self, features: ImageFeatures, labels: Labels) -> Outcome:
        assert features.projected is not None
        scores = features.projected.detach() @ self.text_features.T
        return self.image_text(features.projected, self.text_features, labels.pids), scores

    def _vision_ssl(self, views: Views, labels: Labels) -> Outcome:
        assert self.model.image_projector is not None
        first, second = (self.model.image_projector(view) for view in views[:2])  # batch norm sees one view at a time
        if isinstance(self.self_supervised, NegativeCosine):
            return self.self_supervised(first, views.second, second, views.first, views.positives), None
        if isinstance(self.self_supervised, SupCon):
            return self.self_supervised(first, second, labels.pids, views.positives), None
        return self.self_supervised(first, second, labels.pids if self.ignore_same_identity else None), None

    def _remembered(self, features: ImageFeatures, labels: Labels, *, name: str) -> Outcome:
        queries = self.model.joined(features)
        self.seen = queries.detach(), labels
        return self.memories[name](queries, *_classes(name, labels)), None

    # The memories.

    def query(self, batch: Batch) -> Tensor:
        """Images -> what memories are filled with, [B, D + E]."""
        return self.model.embed(batch.images, batch.side)

    def fill(self, features: Tensor, labels: Labels) -> None:
        """Begin all memories with the features [N, D + E] of all training images, of the order of the labels."""
        for name, memory in self.memories.items():
            memory.fill(features, *_classes(name, labels))

    def update(self, finite: Tensor) -> None:
        """Take the last batch into the memories, after the update of the weights, unless that was not made."""
        assert self.seen is not None
        queries, labels = self.seen
        labels = labels._replace(pids=labels.pids.where(finite, -1))  # no class; the host does not wait to be told
        for name, memory in self.memories.items():
            memory.update(queries, *_classes(name, labels))


class Term(NamedTuple):
    """A term of the loss."""

    compute: Callable[..., Outcome]  # of the stage, features and labels
    weight: str  # the key of its weight in the configuration
    of_views: bool = False  # whether it is given the two Views instead of the image's features


TERMS = {
    "identity": Term(ImageStage._identity, "MODEL.ID_LOSS_WEIGHT"),
    "triplet": Term(ImageStage._triplet, "MODEL.TRIPLET_LOSS_WEIGHT"),
    "image_text": Term(ImageStage._image_text, "MODEL.I2T_LOSS_WEIGHT"),
    "vision_ssl": Term(ImageStage._vision_ssl, "SOLVER.STAGE2.SSL_LOSS_WEIGHT", of_views=True),
    "prototype": Term(partial(ImageStage._remembered, name="prototype"), "MODEL.PROTOTYPE_LOSS_WEIGHT"),
    "camera_proxy": Term(partial(ImageStage._remembered, name="camera_proxy"), "MODEL.CAMERA_PROXY_LOSS_WEIGHT"),
}


def _classes(name: str, labels: Labels) -> tuple[Tensor, Tensor | None]:
    """Identities and, where the term's memory has prototypes by camera, cameras."""
    return labels.pids, labels.camids if name == "camera_proxy" else None


def _gathered(features: ImageFeatures) -> ImageFeatures:
    return ImageFeatures._make(depth if depth is None else gather(depth) for depth in features)


def _accuracy(scores: Tensor, pids: Tensor) -> Tensor:
    """Scores [B, P], identities [B] -> [], the share of images that score highest for their own."""
    return (scores.argmax(dim=1) == pids).float().mean()


@torch.no_grad()
def all_text_features(model: SvllReid, device: torch.device, size: int = 256) -> Tensor:
    """The text features [P, E] of every identity's prompt."""
    model.eval()
    pids = torch.arange(len(model.prompts.context), device=device)
    return torch.cat([model.encode_text(chunk) for chunk in pids.split(size)])
