"""Towers that are compiled for training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def compile_tower(tower: nn.Module) -> None:
    """Compile what `tower` computes for a gradient, in place; the first such call compiles, a second one of this
    function changes nothing.

    What needs no gradient, such as features, is computed as ever. Names in the state dict stay.
    """
    if "forward" in vars(tower):
        return
    eager, compiled = tower.forward, torch.compile(tower.forward)

    def forward(*inputs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else eager)(*inputs)

    tower.forward = forward
