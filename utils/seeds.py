"""Seeds for all global random generators, and for streams of their own."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derive(*numbers: int) -> int:
    """A seed for the stream that `numbers` (not negative) name; neighbouring names give unrelated streams."""
    # With their count, because NumPy takes [5] and [5, 0] for the same.
    return int(np.random.SeedSequence([len(numbers), *numbers]).generate_state(1)[0])
