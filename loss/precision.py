"""Losses are sums of many small differences: half precision is for the towers."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def in_fp32(forward: Callable) -> Callable:
    """Run a module's `forward` outside autocast, with half-precision arguments widened to fp32; fp64 stays fp64."""

    @functools.wraps(forward)
    def wrapper(self, *arguments):
        def widen(value):
            half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
            return value.float() if half else value

        arguments = [type(a)(map(widen, a)) if isinstance(a, (list, tuple)) else widen(a) for a in arguments]
        device = next(a for a in arguments for a in (a if isinstance(a, (list, tuple)) else (a,))).device
        with torch.autocast(device.type, enabled=False):
            return forward(self, *arguments)

    return wrapper
