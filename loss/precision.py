"""Losses are sums of many small differences: half precision is for the towers."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from utils.devices import tf32


def in_fp32(forward: Callable) -> Callable:
    """Run a module's `forward` without autocast and TF32, half-precision arguments widened to fp32; fp64 stays."""

    @functools.wraps(forward)
    def wrapper(self, *arguments, **named):
        widened = [_widened(value) for value in arguments]
        named = {name: _widened(value) for name, value in named.items()}
        with torch.autocast(_device_type([*widened, *named.values()]), enabled=False), tf32(False):
            return forward(self, *widened, **named)

    return wrapper


def _widened(value):
    if isinstance(value, (list, tuple)):
        return [_widened(element) for element in value]
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


def _device_type(value) -> str:
    return value.device.type if isinstance(value, Tensor) else _device_type(value[0])
