"""Seeds for all global random generators, and for streams of their own."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from utils.devices import generator_states, restore_generator_states


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states(generators: Mapping[str, torch.Generator]) -> dict:
    """States of all global generators and of `generators`, as plain types and tensors."""
    state: Any = np.random.get_state()
    kind, keys, *rest = state
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "devices": generator_states(),
        "own": {name: generator.get_state() for name, generator in generators.items()},
    }


def restore_random_states(states: Mapping[str, Any], generators: Mapping[str, torch.Generator]) -> None:
    """Restore what `random_states` returned."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    restore_generator_states(states["devices"])
    for name, generator in generators.items():
        generator.set_state(states["own"][name])


def derive(*numbers: int) -> int:
    """A seed for the stream that `numbers` (not negative) name; neighbouring names give unrelated streams."""
    # With their count, because NumPy takes [5] and [5, 0] for the same.
    return int(np.random.SeedSequence([len(numbers), *numbers]).generate_state(1)[0])
