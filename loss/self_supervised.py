"""Two views of one thing must recognise each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loss.precision import in_fp32


class NTXent(nn.Module):
    """SimCLR's loss (Chen et al., 2020, eq. 1): each of 2N views finds its positive among the other 2N - 1.

    Cosine similarity over a temperature. Other images of the same identity count as negatives, as published, unless
    identities are given.
    """

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        self.temperature = temperature

    @in_fp32
    def forward(self, a: Tensor, b: Tensor, pids: Tensor | None = None) -> Tensor:
        """Views [N, D] and [N, D], row i of one being the positive of row i of the other -> []; 0 for N = 1.

        With identities [N], other images of an image's own identity are neither positives nor negatives.
        """
        views = F.normalize(torch.cat([a, b]), dim=1)  # [2N, D]
        scores = views @ views.T / self.temperature
        rows = torch.arange(len(scores), device=scores.device)
        positive = rows.roll(len(a))
        left_out = rows[:, None] == rows  # a view itself
        if pids is not None:
            owners = pids.repeat(2)
            left_out = (owners[:, None] == owners) & (positive[:, None] != rows)
        return F.cross_entropy(scores.masked_fill(left_out, -torch.inf), positive)


class SupCon(nn.Module):
    """NT-Xent with several positives, their mean outside the logarithm (Khosla et al., 2020, eq. 2, L_out).

    With s_ij the cosine similarity of views i and j over the temperature, P(i) the positives of view i and N(i) the
    views of other identities:

        L = - mean over i, mean over p in P(i), of log(exp(s_ip) / sum over a in A of exp(s_ia))

    A is P(i) and N(i). With `one_by_one` it is p and N(i), so that positives do not compete (Feeney and Hughes, 2023,
    SINCERE). A view of the same identity that is no positive is no negative either.
    """

    def __init__(self, temperature: float = 0.1, one_by_one: bool = False):
        super().__init__()
        self.temperature, self.one_by_one = temperature, one_by_one

    @in_fp32
    def forward(self, a: Tensor, b: Tensor, pids: Tensor, positives: Tensor) -> Tensor:
        """Views [N, D] and [N, D] of images with identities [N], positives [2N, 2N] of `find_positives` -> []."""
        views, owners = F.normalize(torch.cat([a, b]), dim=1), pids.repeat(2)
        scores = views @ views.T / self.temperature
        negatives = owners[:, None] != owners
        own = scores if self.one_by_one else _log_sum_exp(scores, positives)
        return -_mean_over(positives, scores - torch.logaddexp(own, _log_sum_exp(scores, negatives)))


class NegativeCosine(nn.Module):
    """SimSiam's loss (Chen and He, 2021, eq. 4): what is predicted from one view against the other view, both ways."""

    @in_fp32
    def forward(self, p1: Tensor, z2: Tensor, p2: Tensor, z1: Tensor, positives: Tensor | None = None) -> Tensor:
        """Predictions p and views z, each [N, D] -> [], from -1 to 1; no gradient goes through the views.

        With positives [2N, 2N] of `find_positives`, the mean over all of a view's positives instead of the other view.
        """
        if positives is not None:
            predictions, views = (F.normalize(torch.cat(pair), dim=1) for pair in ((p1, p2), (z1, z2)))
            return -_mean_over(positives, predictions @ views.detach().T)
        return -0.5 * (F.cosine_similarity(p1, z2.detach()).mean() + F.cosine_similarity(p2, z1.detach()).mean())


def find_positives(pids: Tensor, camids: Tensor | None = None) -> Tensor:
    """Identities [N] -> bool [2N, 2N]: which of 2N views, the second of image i being i + N, are positives of which.

    All other views of the identity, the image's own among them, or, with cameras [N], those from another camera. Where
    the batch has none from another camera, it is all of the identity again. An unknown camera, -1, is no other one.
    """
    owners, rows = pids.repeat(2), torch.arange(2 * len(pids), device=pids.device)
    positives = (owners[:, None] == owners) & (rows[:, None] != rows)
    if camids is None:
        return positives
    cameras = camids.repeat(2)
    known = cameras >= 0
    elsewhere = positives & (cameras[:, None] != cameras) & known[:, None] & known
    return torch.where(elsewhere.any(dim=1, keepdim=True), elsewhere, positives)


def _log_sum_exp(scores: Tensor, among: Tensor) -> Tensor:
    """[M, M] -> [M, 1]"""
    return scores.masked_fill(~among, -torch.inf).logsumexp(dim=1, keepdim=True)


def _mean_over(positives: Tensor, values: Tensor) -> Tensor:
    """[M, M] -> []: the mean over rows of the mean over their positives."""
    return (values.where(positives, 0).sum(dim=1) / positives.sum(dim=1)).mean()
