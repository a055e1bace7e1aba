"""Stage 2: the image tower learns from identities, sentences and itself; the text side stands still."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loss.contrast import ImageToText
from loss.identity import IdentityLoss
from loss.self_supervised import NegativeCosine, NTXent
from loss.triplet import BatchHardTriplet
from loss.weighing import weigh
from model.svllreid import SvllReid
from utils.distributed import gather
from utils.records import Batch, ImageFeatures, Losses, SideInfo


class ImageStage(nn.Module):
    """CLIP-ReID §3.3 and the vision self-supervision of SVLL-ReID; a baseline has weights of 0 for what it lacks.

    Of several processes, each gives its share of the images to the tower. Heads and losses see all of them, everywhere.

    Args:
        model: its image tower, identity heads and image projector train; text tower, prompts and text projector do not.
        weights: "identity", "triplet", "image_text", "vision_ssl"; 0.0 is off.
        text_features: the sentences of all identities [P, E]; None where "image_text" is off.
        margin: of the triplet loss; None for its soft form.
        smoothing: of the labels, in the identity and image-text terms.
        self_supervision: "SIMCLR" or "SIMSIAM", for which the model's image projector must have been made.
        side_on_views: whether views get side information; as published they do not.
        ignore_same_identity: whether SimCLR leaves other images of the same identity out of the strangers.
    """

    text_features: Tensor | None

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
    ):
        super().__init__()
        self.side_on_views, self.ignore_same_identity = side_on_views, ignore_same_identity
        self.model = model.requires_grad_(True)
        for frozen in (model.text, model.prompts, model.text_projector):
            if frozen is not None:
                frozen.requires_grad_(False)
        for head in model.heads:
            head.neck.bias.requires_grad_(False)
        self.weights = weights
        self.register_buffer("text_features", text_features, persistent=False)
        self.identity = IdentityLoss(smoothing)
        self.triplet = BatchHardTriplet(margin)
        self.image_text = ImageToText(smoothing)
        self.self_supervised = NegativeCosine() if self_supervision == "SIMSIAM" else NTXent()

    def forward(self, batch: Batch) -> Losses:
        """The batch, or this process's share of it -> losses of the whole; terms of weight 0 are not computed."""
        model, on = self.model, {name for name, weight in self.weights.items() if weight > 0}
        pids, terms, accuracy = gather(batch.pids), {}, {}
        if on & {"identity", "triplet", "image_text"}:
            features = ImageFeatures(*map(gather, model.encode_image(batch.images, batch.side)))
            if "identity" in on:
                scores = model.classify(features)
                terms["identity"] = self.identity(scores, pids)
                accuracy["identity"] = _accuracy(scores[0], pids)
            if "triplet" in on:
                terms["triplet"] = sum(self.triplet(depth, pids) for depth in features)
            if "image_text" in on:
                terms["image_text"] = self.image_text(features.projected, self.text_features, pids)
                accuracy["image_text"] = _accuracy(features.projected.detach() @ self.text_features.T, pids)
        if "vision_ssl" in on:
            terms["vision_ssl"] = self._recognise([gather(view) for view in self._view_features(batch)], pids)
        return weigh(terms, self.weights)._replace(accuracy=accuracy)

    def _view_features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The two views of every image of this process, each [B, D]."""
        tower, side = self.model.image, batch.side if self.side_on_views else None
        if tower.batch_statistics:  # of one view at a time, as published
            return tuple(tower(view, side).last for view in batch.views)
        both = SideInfo(*(field.repeat(2) for field in side)) if side else None
        return tower(batch.views.flatten(0, 1), both).last.chunk(2)

    def _recognise(self, views: list[Tensor], pids: Tensor) -> Tensor:
        first, second = (self.model.image_projector(view) for view in views)  # batch norm sees one view at a time
        if isinstance(self.self_supervised, NegativeCosine):
            return self.self_supervised(first, views[1], second, views[0])
        return self.self_supervised(first, second, pids if self.ignore_same_identity else None)


def _accuracy(scores: Tensor, pids: Tensor) -> Tensor:
    """Scores [B, P], identities [B] -> [], the share of images that score highest for their own."""
    return (scores.argmax(dim=1) == pids).float().mean()


@torch.no_grad()
def sentence_features(model: SvllReid, device: torch.device, size: int = 256) -> Tensor:
    """The features [P, E] of every identity's sentence."""
    model.eval()
    pids = torch.arange(model.num_pids, device=device)
    return torch.cat([model.encode_text(chunk) for chunk in pids.split(size)])
