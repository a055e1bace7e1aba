"""A device that is not there: shapes and types of tensors, and no numbers.

What would make the host wait for a GPU to know a number (`.item()`, `bool(tensor)`, `nonzero`, a boolean index,
`unique`) is an error here. Copies between devices are not: it is a CPU, as old versions of PyTorch abort on fakes of
others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


class FakeDevice(FakeTensorMode):
    """Within it, new tensors are fakes, too."""

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
        return type(value)(*map(self.move, value)) if isinstance(value, tuple) else value
