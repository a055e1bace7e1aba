"""The machine that something was measured on, and its clocks."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from utils.devices import describe

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


class Run(NamedTuple):
    """What a run took."""

    wall: float  # seconds
    cpu: float  # seconds of all threads, and of the processes that ended meanwhile
    memory: int | None  # bytes at its peak above what there was before; None where the system does not tell


def machine(device: torch.device) -> dict[str, str]:
    """Processor, device, versions and how busy the machine is."""
    facts = {"processor": _processor(), "cores": str(os.cpu_count()), "device": describe(device)}
    facts["torch"] = torch.__version__
    if hasattr(os, "getloadavg"):
        facts["load"] = f"{os.getloadavg()[0]:.1f}"
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


class Clock:
    """Measures what happens within it.

    Args:
        device: waited for at both ends; on CUDA, memory is that of the device.
        fresh: whether what is free is given back to the system before; if not, memory that is used again does not show.
    """

    def __init__(self, device: torch.device, *, fresh: bool = True):
        self.device, self.fresh = device, fresh

    def __enter__(self) -> Clock:
        _wait(self.device)
        if self.fresh:
            _give_back()
        self.before = _forget_peak(self.device)
        self.cpu, self.wall = _cpu_seconds(), time.perf_counter()
        return self

    def __exit__(self, *_error: object) -> None:
        _wait(self.device)
        wall, cpu = time.perf_counter() - self.wall, _cpu_seconds() - self.cpu
        self.run = Run(wall, cpu, None if self.before is None else max(0, _peak(self.device) - self.before))


def _give_back() -> None:
    """Give what is free back to the system: memory that is used again would count for nothing."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # not of other C libraries than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpu_seconds() -> float:
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _forget_peak(device: torch.device) -> int | None:
    """The bytes in use now, from which on the peak is counted; None where it cannot be."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        FORGET.write_text("5", encoding="utf-8")
        return _status("VmRSS")
    except OSError:
        return None


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
