"""The one place that knows devices by name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from utils.errors import UserError


def pick_device(name: str) -> torch.device:
    """MODEL.DEVICE -> device; "auto" takes CUDA, else MPS, else the CPU.

    Raises:
        UserError: there is no such device.
    """
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, in the patch convolution as elsewhere
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"MODEL.DEVICE: invalid value {name!r}, expected auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"MODEL.DEVICE {name}: this machine has {torch.cuda.device_count()} CUDA devices; auto picks another"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"MODEL.DEVICE {name}: this machine has no MPS device; auto picks another")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # otherwise the loader's pinning would open the first device, too
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """SOLVER.PRECISION -> dtype of autocast; torch.float32 means none.

    "auto" is bf16 on CUDA devices that compute in it, else fp32.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """The context that towers run in."""
    return torch.autocast(device.type, precision, enabled=precision is not torch.float32)


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Within it, towers compute in fp32, bf16 (autocast) or tf32 (matrix products and convolutions).

    Raises:
        UserError: the device does not have it.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError(f"TEST.PRECISION: invalid value tf32 on {device.type}; expected fp32 or bf16")
    with tf32(precision == "tf32"), autocast(device, torch.bfloat16 if precision == "bf16" else torch.float32):
        yield


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether, within it, CUDA devices may round the factors of fp32 products and convolutions to TF32."""
    switches: Any = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = allowed
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


def make_deterministic() -> None:
    """Make CUDA deterministic, before it is first used; PyTorch warns where it cannot be."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may sum in any order
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def updates_in_place(device: torch.device) -> bool:
    """Whether PyTorch's fused optimizers can skip an update on this device without a synchronisation."""
    return device.type in ("cpu", "cuda")


def generator_states() -> list[torch.Tensor]:
    """States of the devices' random generators; none if no device was used."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def restore_generator_states(states: Sequence[torch.Tensor]) -> None:
    """Restore them; devices that this machine lacks are skipped."""
    for index, state in enumerate(states[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, index)


def describe(device: torch.device) -> str:
    """The device with its name, or the CPU with its number of threads, for the log."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)
