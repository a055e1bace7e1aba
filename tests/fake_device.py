"""A device that is not there: shapes and types of tensors, and no numbers.

What would make the host wait for a GPU to know a number (`.item()`, `bool(tensor)`, `nonzero`, a boolean index,
`unique`) is an error here. Copies between devices are not: it is a CPU, as old versions of PyTorch abort on fakes of
others. What was not moved has its numbers, and is computed with as ever: that is the host's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from utils.records import ON_HOST


class FakeDevice(FakeTensorMode):
    """Within it, new tensors are fakes, too."""

    def __init__(self):
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kinds = [isinstance(value, FakeTensor) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if kinds and not any(kinds):
            return operation(*args, **(kwargs or {}))
        return super().__torch_dispatch__(operation, types, args, kwargs)

    def move(self, value):
        """Before it is entered: a tensor, record or module (which is changed in place) -> the same on the device."""
        if isinstance(value, Tensor):
            return FakeTensor(self, value.detach().to("meta"), torch.device("cpu"))
        if isinstance(value, nn.Module):
            for module in value.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        module._parameters[name] = nn.Parameter(self.move(parameter), parameter.requires_grad)
                for name, buffer in module._buffers.items():
                    module._buffers[name] = self.move(buffer)
        if hasattr(value, "_fields"):
            fields = value._asdict().items()
            return type(value)(*(field if name in ON_HOST else self.move(field) for name, field in fields))
        return [self.move(each) for each in value] if isinstance(value, list) else value
