"""Several ways of doing the same, measured in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tools.benchmark.machine import Clock, Run

SIDE = 1024  # of the machine's own matrix product
SHORT = 2.0  # seconds; shorter ways run once before they count


class Setting(NamedTuple):
    """What the command line asks for."""

    device: torch.device
    scale: float  # share of a data set's images
    name: str  # architecture of networks
    batch: int  # images
    identities: int  # in the batch

    def of(self, count: int) -> int:
        """So many images or identities, scaled."""
        return max(2, round(count * self.scale))


class Way(NamedTuple):
    """One way of doing it."""

    name: str
    run: Callable[[], object]
    flops: float | None = None  # of its matrix products
    size: int | None = None  # of what it works on, where ways differ in that
    calls: int | None = None  # of operators that compute something, for which a GPU needs a launch or a few


class Case(NamedTuple):
    """Something to do, and the ways to do it; the others are compared with the first."""

    title: str
    ways: tuple[Way, ...]
    steady: bool = False  # whether it is done over and over, so that memory which was given back is there again


class Measured(NamedTuple):
    """A way, and its runs."""

    way: Way
    runs: list[Run]


def measure(case: Case, device: torch.device, repeats: int) -> list[Measured]:
    """Every way, then the machine's product; they take turns, so that all feel what else the machine does.

    A way that takes less than SHORT seconds, or is one of a steady case, runs once before, which counts for its memory
    alone.
    """
    found = [Measured(way, []) for way in (*case.ways, matrix_product(device))]
    for number in range(repeats):
        for way, runs in found:
            run = measure_once(way, device, fresh=not (case.steady and number))
            if number == 0 and (case.steady or run.wall < SHORT):
                run = measure_once(way, device, fresh=not case.steady)._replace(memory=run.memory)
            runs.append(run)
    return found


def measure_once(way: Way, device: torch.device, *, fresh: bool = True) -> Run:
    """One run of it; `fresh`: all memory is got from the system."""
    with Clock(device, fresh=fresh) as clock:
        way.run()
    return clock.run


def matrix_product(device: torch.device) -> Way:
    """What the machine can do: a product of two square matrices in fp32."""
    matrix = torch.randn(SIDE, SIDE, device=device, generator=torch.Generator(device).manual_seed(0))
    return Way(f"product {SIDE} × {SIDE} × {SIDE}", lambda: matrix @ matrix, 2.0 * SIDE**3)


def counts_of(run: Callable[[], object]) -> dict[str, Any]:
    """`flops`, of matrix products and convolutions, and `calls` of a run, for a Way."""
    with Calls() as calls, FlopCounterMode(display=False) as flops:
        run()
    return {"flops": float(flops.get_total_flops()), "calls": calls.count}


class Calls(TorchDispatchMode):
    """Counts operators, without those that only look at a tensor in another way."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += not operator.is_view
        return operator(*args, **(kwargs or {}))
