"""The one place that knows devices by name."""

from __future__ import annotations

import torch

from utils.errors import UserError


def pick_device(name: str) -> torch.device:
    """MODEL.DEVICE -> device; "auto" takes CUDA, else MPS, else the CPU.

    Raises:
        UserError: the device is not there.
    """
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, in the patch convolution as elsewhere
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"MODEL.DEVICE {name}: there are {torch.cuda.device_count()} CUDA devices here; auto takes what is there"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"MODEL.DEVICE {name}: there is no MPS device here; auto takes what is there")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # or the loader's pinning would open the first device, too
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """SOLVER.PRECISION -> dtype of autocast; torch.float32 means none.

    "auto" is bf16 on CUDA devices that compute in it, else fp32.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """The context that towers run in."""
    return torch.autocast(device.type, precision, enabled=precision is not torch.float32)


def describe(device: torch.device) -> str:
    """The device for people: its name, or the CPU's number of threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
