"""The network: an image tower with its identity heads and, where text is used, a text tower with prompts."""

from __future__ import annotations

from functools import partial
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from model.blocks import pick
from model.clip import TextTower
from model.heads import BNNeckHead, Predictor, Projector, SideEmbedding
from model.prompts import PromptLearner
from model.towers import make_tower
from utils.records import ImageFeatures, SideInfo


class SvllReid(nn.Module):
    """SVLL-ReID's network; CLIP-ReID's and its baseline's are the same with parts left out (None).

    Args:
        image: an image tower (see `model.towers`) with `dims` (Dp, D, E); E is 0 without a projected feature.
        num_pids: training identities; 0 for a network without identity classifiers.
        heads: the features that have one, and that retrieval compares: "all" (last and projected) or "last".
        text, prompts: the text tower and a prompt for every identity.
        image_projector, text_projector: heads of the self-supervised losses, on `last` [D] and on text features [E].
        architecture: plain facts from which `build_network` makes the same network again; saved in checkpoints.
    """

    image: Any
    heads: Any  # of the last and, but for heads "last", of the projected feature

    def __init__(
        self,
        image: nn.Module,
        num_pids: int,
        *,
        heads: str = "all",
        text: TextTower | None = None,
        prompts: PromptLearner | None = None,
        image_projector: nn.Module | None = None,
        text_projector: nn.Module | None = None,
        architecture: dict | None = None,
    ):
        super().__init__()
        self.image = image
        dims = self.image.dims[1:] if heads == "all" else self.image.dims[1:2]
        self.heads = nn.ModuleList(BNNeckHead(dim, num_pids) for dim in dims if dim)
        self.text = text
        self.prompts = prompts
        self.image_projector = image_projector
        self.text_projector = text_projector
        self.num_pids = num_pids
        self.new_classifiers = True  # not loaded from a file
        self.architecture = architecture

    def encode_image(self, images: Tensor, side: SideInfo | None = None) -> ImageFeatures:
        """Images [B, 3, H, W] -> features; side information counts where the tower has a table for it."""
        return self.image(images, side)

    def classify(self, features: ImageFeatures) -> tuple[Tensor, ...]:
        """Identity scores [B, P] of the last and of the projected feature."""
        return tuple(head(feature) for head, feature in zip(self.heads, self._compared(features), strict=True))

    def encode_text(self, pids: Tensor) -> Tensor:
        """Identities [N] -> the features [N, E] of their prompts; each identity is computed once."""
        assert self.text is not None and self.prompts is not None
        unique, rows = pids.unique(return_inverse=True)
        pasts = pick(self.text.read(self.prompts.prefix), self.prompts.template_of(unique))
        return self.text(self.prompts(unique), self.prompts.end, pasts)[rows]

    def embed(self, images: Tensor, side: SideInfo | None = None, *, neck: bool = False) -> Tensor:
        """Images -> the vectors [B, D + E] that retrieval compares, before or (`neck`) after the batch-norm necks."""
        features = self.encode_image(images, side)
        if not neck:
            return self.joined(features)
        parts = zip(self.heads, self._compared(features), strict=True)
        return torch.cat([head.neck(part) for head, part in parts], dim=1)

    def joined(self, features: ImageFeatures) -> Tensor:
        """The vectors [B, D + E] that retrieval compares, before the batch-norm necks."""
        return torch.cat(self._compared(features), dim=1)

    def _compared(self, features: ImageFeatures) -> list[Tensor]:
        there = [feature for feature in (features.last, features.projected) if feature is not None]
        return there[: len(self.heads)]


def build_network(architecture: dict, clip: open_clip.CLIP | None) -> SvllReid:
    """The network of `architecture`: the one place where its parts meet.

    Args:
        clip: with the weights that its towers start from, or the text tower alone if the image tower is no CLIP's;
            None for a network of no CLIP's towers.
    """
    a, side, text, prompts = architecture, None, None, None
    if a["sie_camera"] or a["sie_view"]:
        switches = {"camera": a["sie_camera"], "view": a["sie_view"], "scale": a["sie_scale"]}
        side = partial(SideEmbedding, a["num_cams"], a["num_views"], **switches)
    visual = clip.visual if clip else None  # a tower that is no CLIP's passes it over
    image: Any = make_tower(a["name"], tuple(a["image_size"]), tuple(a["stride"]), side=side, visual=visual, options=a)
    _, width, joint = image.dims
    if a["sentences"] and clip:
        text = TextTower(clip)
        # Of pseudo-labels there are as many as clustering found, in each modality.
        counts, templates = a.get("prompt_counts", a["num_pids"]), a.get("prompt_templates", a["template"])
        prompts = PromptLearner(counts, templates, clip.token_embedding, open_clip.tokenize)
    image_projector: nn.Module | None = None
    if a["vision_ssl"]:
        simsiam = a.get("ssl_type") == "SIMSIAM"  # older descriptions know one type
        image_projector = (
            Predictor(width) if simsiam else Projector(width, a["ssl_hidden"], a["ssl_out"]).reset_as_published()
        )
    return SvllReid(
        image,
        a["num_pids"],
        heads=a.get("heads", "all"),
        text=text,
        prompts=prompts,
        image_projector=image_projector,
        text_projector=Projector(joint, a["ssl_hidden"], a["ssl_out"]) if a["language_ssl"] else None,
        architecture=a,
    )
