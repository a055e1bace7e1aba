"""Small networks on top of a feature vector, and the side information below one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.records import SideInfo


class BNNeckHead(nn.Module):
    """A batch-norm neck without shift, then a linear identity classifier (Luo et al., 2019, "bag of tricks", §3.5).

    The neck's shift is never trained; the classifier has no bias and starts near zero, so that all identities start
    equally likely. Without identities there is no classifier.
    """

    def __init__(self, dim: int, num_pids: int):
        super().__init__()
        self.neck = nn.BatchNorm1d(dim)
        self.classifier = None  # where only features are wanted
        if num_pids:
            self.classifier = nn.Linear(dim, num_pids, bias=False)
            nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, features: Tensor) -> Tensor:
        """[B, dim] -> identity scores [B, num_pids]."""
        assert self.classifier is not None
        return self.classifier(self.neck(features))


class SideEmbedding(nn.Module):
    """A learned vector for every camera and/or viewpoint, added to the class token (SIE; CLIP-ReID, §3.4).

    The table has a row for every camera, every viewpoint, or every pair (row = camera * viewpoints + viewpoint), as in
    published checkpoints. An id of -1 stands for "unknown" and takes the mean over the rows it could have been.
    """

    def __init__(self, num_cams: int, num_views: int, dim: int, *, camera: bool, view: bool, scale: float):
        super().__init__()
        self.camera, self.view = camera, view
        self.shape = (num_cams if camera else 1, num_views if view else 1, dim)
        self.scale = scale
        self.table = nn.Parameter(torch.empty(self.shape[0] * self.shape[1], dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, side: SideInfo) -> Tensor:
        """[B] cameras and viewpoints -> [B, dim]; an id beyond the table, or below -1, raises IndexError (on a CPU)."""
        table = self.table.view(self.shape)
        table = torch.cat([table.mean(dim=0, keepdim=True), table])  # row 0 is the mean over cameras
        table = torch.cat([table.mean(dim=1, keepdim=True), table], dim=1)  # and column 0 over viewpoints
        # What the table does not tell apart has one row, which is its own mean: row 0.
        camids = _rows(side.camids, self.shape[0]) if self.camera else torch.zeros_like(side.camids)
        viewids = _rows(side.viewids, self.shape[1]) if self.view else torch.zeros_like(side.viewids)
        return self.scale * table[camids, viewids]


def _rows(ids: Tensor, count: int) -> Tensor:
    """Rows 1..count for ids from 0, row 0 for -1; below that a row that is not there, where indexing would go round."""
    return (ids + 1).masked_fill(ids < -1, count + 1)


class Projector(nn.Sequential):
    """SimCLR's projection head with three linear layers (Chen et al., 2020b, §2; SVLL-ReID: 4096, 4096, 256)."""

    def __init__(self, dim: int, hidden: int = 4096, out: int = 256):
        super().__init__(
            nn.Linear(dim, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out),
        )

    def reset_as_published(self) -> Projector:
        """The start that the published image projector has; the text projector keeps PyTorch's defaults."""
        for module in self:
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm1d):
                nn.init.uniform_(module.weight)
                nn.init.uniform_(module.bias)
        return self


class Predictor(nn.Sequential):
    """SimSiam's prediction head (Chen and He, 2021, §3): what one view tells of the other.

    Its input itself is what is compared with, as published: there is no projector between tower and predictor.
    """

    def __init__(self, dim: int, hidden: int = 512):
        super().__init__(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))
