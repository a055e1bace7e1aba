"""The network: an image tower with two identity heads and, where sentences are used, a text tower with prompts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.clip import TextTower
from model.heads import BNNeckHead
from model.prompts import PromptLearner
from utils.records import ImageFeatures, SideInfo


class SvllReid(nn.Module):
    """SVLL-ReID's network; CLIP-ReID's and its baseline's are the same with parts left out (None).

    Args:
        image: an image tower: `dims` (Dp, D, E) and forward(images, side=None) -> ImageFeatures.
        num_pids: training identities.
        text, prompts: the text tower and a sentence for every identity.
        image_projector, text_projector: heads of the self-supervised losses, on `last` [D] and on text features [E].
        architecture: plain facts from which `model.build` makes the same network again; saved in checkpoints.
    """

    def __init__(
        self,
        image: nn.Module,
        num_pids: int,
        *,
        text: TextTower | None = None,
        prompts: PromptLearner | None = None,
        image_projector: nn.Module | None = None,
        text_projector: nn.Module | None = None,
        architecture: dict | None = None,
    ):
        super().__init__()
        self.image = image
        self.heads = nn.ModuleList(BNNeckHead(dim, num_pids) for dim in image.dims[1:])
        self.text = text
        self.prompts = prompts
        self.image_projector = image_projector
        self.text_projector = text_projector
        self.num_pids = num_pids
        self.architecture = architecture

    def encode_image(self, images: Tensor, side: SideInfo | None = None) -> ImageFeatures:
        """Images [B, 3, H, W] -> features; side information counts where the tower has a table for it."""
        return self.image(images, side)

    def classify(self, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Identity scores [B, P] of the last and of the projected feature."""
        last, projected = self.heads
        return last(features.last), projected(features.projected)

    def encode_text(self, pids: Tensor) -> Tensor:
        """Identities [N] -> the features [N, E] of their sentences; each identity is computed once."""
        unique, rows = pids.unique(return_inverse=True)
        return self.text(self.prompts(unique), self.prompts.end)[rows]

    def embed(self, images: Tensor, side: SideInfo | None = None, *, neck: bool = False) -> Tensor:
        """Images -> the vectors [B, D + E] that retrieval compares, before or (`neck`) after the batch-norm necks."""
        features = self.encode_image(images, side)
        parts = (features.last, features.projected)
        if neck:
            parts = tuple(head.neck(part) for head, part in zip(self.heads, parts, strict=True))
        return torch.cat(parts, dim=1)
