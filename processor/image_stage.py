"""Stage 2: the image tower learns from identities, sentences and itself; the text side stands still."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loss.contrast import ImageToText
from loss.identity import IdentityLoss
from loss.self_supervised import NTXent
from loss.triplet import BatchHardTriplet
from loss.weighing import weigh
from model.svllreid import SvllReid
from utils.records import Batch, Losses


class ImageStage(nn.Module):
    """CLIP-ReID §3.3 and the vision self-supervision of SVLL-ReID; a baseline has weights of 0 for what it lacks.

    Args:
        model: its image tower, identity heads and image projector train; text tower, prompts and text projector do not.
        weights: "identity", "triplet", "image_text", "vision_ssl"; 0.0 is off.
        text_features: the sentences of all identities [P, E]; None where "image_text" is off.
        margin: of the triplet loss; None for its soft form.
        smoothing: of the labels, in the identity and image-text terms.
    """

    def __init__(
        self,
        model: SvllReid,
        *,
        weights: dict[str, float],
        text_features: Tensor | None,
        margin: float | None = 0.3,
        smoothing: float = 0.1,
    ):
        super().__init__()
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
        self.self_contrast = NTXent()

    def forward(self, batch: Batch) -> Losses:
        """Terms of weight 0 are not computed."""
        model, pids, on = self.model, batch.pids, {name for name, weight in self.weights.items() if weight > 0}
        terms = {}
        if on & {"identity", "triplet", "image_text"}:
            features = model.encode_image(batch.images, batch.side)
            if "identity" in on:
                terms["identity"] = self.identity(model.classify(features), pids)
            if "triplet" in on:
                terms["triplet"] = sum(self.triplet(depth, pids) for depth in features)
            if "image_text" in on:
                terms["image_text"] = self.image_text(features.projected, self.text_features, pids)
        if "vision_ssl" in on:
            # Twins go without side information, as published.
            twins = model.encode_image(batch.twins.flatten(0, 1)).last.chunk(2)  # each [B, D]
            terms["vision_ssl"] = self.self_contrast(*(model.image_projector(twin) for twin in twins))
        return weigh(terms, self.weights)


@torch.no_grad()
def sentence_features(model: SvllReid, device: torch.device, size: int = 256) -> Tensor:
    """The features [P, E] of every identity's sentence."""
    model.eval()
    pids = torch.arange(model.num_pids, device=device)
    return torch.cat([model.encode_text(chunk) for chunk in pids.split(size)])
