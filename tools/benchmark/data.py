"""Features as a network might give them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.records import Labels

NOISE = 0.9  # beside a centre of length 1: of 751 identities in six cameras, mAP is about 0.9


def labelled_features(
    count: int, width: int, identities: int, cameras: int, device: torch.device
) -> tuple[Tensor, Labels]:
    """Features [N, D] of length 1 around a centre for each identity, and their labels."""
    generator = torch.Generator(device).manual_seed(0)
    options = {"generator": generator, "device": device}
    centres = F.normalize(torch.randn(identities, width, **options))
    pids, camids = (torch.randint(high, (count,), **options) for high in (identities, cameras))
    noise = torch.randn(count, width, **options).mul_(NOISE / width**0.5)
    return F.normalize(noise.add_(centres[pids])), Labels(pids, camids)
