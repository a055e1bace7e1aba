"""Networks that have shapes but no values, to look at before there is memory for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What keeps a tensor's shape, of all that towers of CLIP compute while they are made; the last ones by numbers.
IN_PLACE = {nn.init.normal_, Tensor.normal_, Tensor.triu_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_}
BY_NUMBERS = {Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.div, Tensor.__truediv__}


class _NothingComputed(TorchFunctionMode):
    """For the meta device PyTorch computes by references in Python, which load its compiler: seconds."""

    def __torch_function__(self, func, types, args: tuple = (), kwargs: dict[str, Any] | None = None):
        kwargs = kwargs or {}
        if func is torch.randn:
            func = torch.empty
        elif func in IN_PLACE or (func in BY_NUMBERS and not isinstance(args[1], Tensor)):
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Tensors that are made here have no values."""
    with torch.device("meta"), _NothingComputed():
        yield
