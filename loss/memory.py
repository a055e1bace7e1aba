"""Images against a memory of prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loss.precision import in_fp32


class Memory(nn.Module):
    """A prototype of each class, or of each class in each camera, which images of the class move as they come.

    With q an image's feature and phi_j the prototypes, all of length 1, s_j = q·phi_j / tau, P the positives of q and N
    its negatives:

        L = - mean over q, mean over p in P, of log(exp(s_p) / sum over j in P and N of exp(s_j))

    One prototype a class: the own class's is the positive, all others are negatives, so that L is the cross-entropy
    of cluster contrast (Dai et al., "Cluster Contrast for Unsupervised Person Re-Identification", ACCV 2022), as in
    CCLNet (Chen et al., ACM MM 2023), and of PCL-CLIP (Li and Gong, 2023), where identities are the classes.

    One a class and camera: positives are the own class's in other cameras, negatives are the nearest of other classes;
    the one in the image's own camera is neither (Wang et al., "Camera-aware Proxies for Unsupervised Person
    Re-Identification", AAAI 2021, inter-camera loss; there tau is 0.07, mu 0.2 and there are 50 negatives).

    Prototypes are constant in `forward`: the gradient is that of the images alone. After the step of the optimizer,
    `update` moves them, one image after the other:

        phi <- mu · phi + (1 - mu) · q, at length 1 again

    With mu = 0.1, a prototype is thus close to the last image of its class.

    Label -1 is no class. An image without a positive does not count: neither in the mean nor in the update.

    Args:
        dim: D of the features.
        temperature: tau.
        momentum: mu.
        negatives: how many of the most similar negatives count; None for all.

    Attributes:
        prototypes: [R, D] of length 1; R is 0 until `fill`.
        classes: int64 [R], the class of each prototype.
        cameras: int64 [R], the camera of each; -1 throughout with one prototype a class.
    """

    prototypes: Tensor
    classes: Tensor
    cameras: Tensor

    def __init__(self, dim: int, *, temperature: float = 0.05, momentum: float = 0.1, negatives: int | None = None):
        super().__init__()
        self.temperature, self.momentum, self.negatives = temperature, momentum, negatives
        self.register_buffer("prototypes", torch.zeros(0, dim))
        for name in ("classes", "cameras"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64))

    @torch.no_grad()
    @in_fp32
    def fill(self, features: Tensor, labels: Tensor, camids: Tensor | None = None) -> None:
        """Begin anew: prototypes are the means of their images' features of length 1, at length 1.

        Args:
            features: [N, D].
            labels: [N], of classes; -1 is left out.
            camids: [N], for a prototype in each camera; an unknown one, -1, is left out. None: one prototype a class.
        """
        places = torch.stack([labels, torch.full_like(labels, -1) if camids is None else camids], dim=1)
        kept = labels >= 0 if camids is None else (labels >= 0) & (camids >= 0)
        places, owners, counts = places[kept].unique(dim=0, return_inverse=True, return_counts=True)
        # In a fixed order on a GPU, too: all processes make the same prototypes.
        rows = F.normalize(features[kept], dim=1)[owners.argsort(stable=True)]
        self.prototypes = F.normalize(torch.segment_reduce(rows, "sum", lengths=counts, unsafe=True), dim=1)
        self.classes, self.cameras = places.unbind(dim=1)

    @in_fp32
    def forward(self, features: Tensor, labels: Tensor, camids: Tensor | None = None) -> Tensor:
        """Features [B, D] of any length, classes [B], cameras [B] if prototypes have some -> []; 0 if no image counts.

        Of several processes, each takes the gathered batch.
        """
        scores = F.normalize(features, dim=1) @ self.prototypes.to(features.dtype).T / self.temperature
        same = self.classes == labels[:, None]
        positives = same if camids is None else same & (self.cameras != camids[:, None]) & (camids >= 0)[:, None]
        counts = positives.any(dim=1, keepdim=True)
        negatives = ~same
        if self.negatives is not None and self.negatives < scores.shape[1]:
            others = scores.detach().masked_fill(same, -torch.inf)
            nearest = others.topk(self.negatives, dim=1).indices
            negatives &= torch.zeros_like(same).scatter_(1, nearest, True)
        # All prototypes where there is no positive: the logarithm of an empty sum has no gradient.
        among = positives | negatives | ~counts
        logs = scores - scores.masked_fill(~among, -torch.inf).logsumexp(dim=1, keepdim=True)
        terms = logs.where(positives, 0).sum(dim=1) / positives.sum(dim=1).clamp(min=1)
        return -terms.sum() / counts.sum().clamp(min=1)

    @torch.no_grad()
    @in_fp32
    def update(self, features: Tensor, labels: Tensor, camids: Tensor | None = None) -> None:
        """Move the prototypes by a batch, in its order; arguments as in `forward`, after the step of the optimizer.

        Of several processes, each takes the gathered batch, so that all of them have the same memory.
        """
        if not len(self.prototypes):
            return
        own = self.classes == labels[:, None]
        if camids is not None:
            own &= self.cameras == camids[:, None]
        moves, rows = own.any(dim=1, keepdim=True), own.int().argmax(dim=1)  # an image moves one prototype at most
        queries = (1 - self.momentum) * F.normalize(features, dim=1).to(self.prototypes.dtype)
        # No shape depends on the labels, so that the host need not wait for the device.
        for query, row, moved in zip(queries.split(1), rows.split(1), moves.split(1), strict=True):
            before = self.prototypes.index_select(0, row)
            after = F.normalize(self.momentum * before + query, dim=1)
            self.prototypes.index_copy_(0, row, torch.where(moved, after, before))

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        # The number of prototypes is that of the clusters, which the saved memory knows and this one need not.
        for name, buffer in list(self.named_buffers(recurse=False)):
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape[1:] == buffer.shape[1:]:
                setattr(self, name, buffer.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)
