"""A device that is not there: shapes, types and devices of tensors, and no numbers.

What would make the host wait for a GPU (`.item()`, `bool(tensor)`, `nonzero`, a boolean index, `unique`, a copy from
or to the CPU) is an error here, and so is what mixes devices up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

CPU = torch.device("cpu")  # on others that are not there, old versions of PyTorch abort the process


class FakeDevice(FakeTensorMode):
    """Within it, new tensors are fakes, too."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = super().__torch_dispatch__(function, types, arguments, named)
        if function is torch.ops.aten._to_copy.default and result.device != arguments[0].device:
            raise RuntimeError(f"a copy from {arguments[0].device} to {result.device}")
        return result

    def move(self, value):
        """Before it is entered: a tensor, record or module (which is changed in place) -> the same on the device."""
        if isinstance(value, Tensor):
            return FakeTensor(self, value.detach().to("meta"), self.device)
        if isinstance(value, nn.Module):
            for module in value.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        module._parameters[name] = nn.Parameter(self.move(parameter), parameter.requires_grad)
                for name, buffer in module._buffers.items():
                    module._buffers[name] = self.move(buffer)
        return type(value)(*map(self.move, value)) if isinstance(value, tuple) else value
