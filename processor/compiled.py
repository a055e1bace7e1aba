"""Towers that are compiled for training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from utils.errors import UserError, one_line


def compile_tower(tower: nn.Module) -> None:
    """Compile what `tower` computes for a gradient, in place; the first such call compiles, a second one of this
    function changes nothing.

    What needs no gradient, such as features, is computed as ever. Names in the state dict stay.

    Raises (when it is called):
        UserError: PyTorch's compiler does not work on this machine.
    """
    if "forward" in vars(tower):
        return
    from torch._dynamo.exc import BackendCompilerFailed  # the compiler, which takes seconds to load

    eager, compiled = tower.forward, torch.compile(tower.forward)

    def forward(*inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return eager(*inputs)
        try:
            return compiled(*inputs)
        except BackendCompilerFailed as error:
            raise UserError(
                f"SOLVER.COMPILE True: PyTorch cannot compile here ({one_line(error.inner_exception)}); expected a C++ "
                "compiler (g++), and on a GPU Triton, or SOLVER.COMPILE False"
            ) from error

    tower.forward = forward
