"""Several processes, started by torchrun, that train one network; in a single process everything here is trivial.

    torchrun --nproc_per_node 4 train_svllreid.py --config_file ...

No configuration key turns this on: torchrun's environment does.

Every process has the whole network and reads its share of every batch. The towers' outputs are gathered (`gather`,
`in_shares`), so that all processes compute the same losses over the whole batch; gradients are then averaged
(`average_gradients`). One process and many thus compute the same training.

All functions but `place`, `rank`, `world_size` and `is_main` are collectives: where one process calls one, all must, in
the same order. Where one process may fail alone, use `with collective():`, `on_main` or `main_first`; otherwise the
others would wait for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils import processes
from utils.errors import UserError, one_line
from utils.processes import Place, ProcessFailed, place

# Others wait while the main process re-ranks a large benchmark. It need not be short: torchrun ends all when one dies.
TIMEOUT = timedelta(hours=2)
T = TypeVar("T")
logger = logging.getLogger(__name__)


def join_processes(device: torch.device, *, timeout: timedelta = TIMEOUT) -> torch.device:
    """Join the other processes, if torchrun started several, and return this process's device. Only the main one logs.

    With CUDA that is the GPU of its number on this machine (LOCAL_RANK); else it is `device`.

    Args:
        device: what all were asked to use, e.g. CUDA without a number.
        timeout: of every collective, including the time that others wait for one process.

    Raises:
        UserError: a device that several processes cannot share; more processes than GPUs; the others cannot be reached.
    """
    here = place()
    if here is None:
        return device
    if device.type == "cuda":
        device = _own_gpu(device, here)
        backend = "cpu:gloo,cuda:nccl"  # flags and messages need not wait for a GPU
    elif device.type == "cpu":
        backend = "gloo"
    else:
        raise UserError(f"MODEL.DEVICE {device.type}: several processes need the CPU or CUDA devices")
    try:
        dist.init_process_group(backend, timeout=timeout)
    except (ValueError, RuntimeError) as error:
        address = {name: os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")}
        raise UserError(
            f"the processes cannot be joined at {address}, which torchrun sets: {one_line(error)}"
        ) from error
    processes.met = True
    logger.info("process %d of %d, on %s", here.rank, here.world_size, device)
    if not is_main():
        logging.getLogger().setLevel(logging.ERROR)  # one process's lines are enough
    return device


def _own_gpu(device: torch.device, here: Place) -> torch.device:
    if device.index is None:
        count = torch.cuda.device_count()
        if here.local_world_size > count:  # raised by all of them, not only by those without one
            raise UserError(
                f"torchrun started {here.local_world_size} processes on a machine with {count} CUDA devices, and each "
                f"needs one: torchrun --nproc_per_node {count}"
            )
        device = torch.device(device.type, here.local_rank)
    elif here.local_world_size > 1:
        raise UserError(
            f"MODEL.DEVICE {device}: torchrun started {here.local_world_size} processes on this machine, and each "
            f"needs a GPU of its own; say MODEL.DEVICE {device.type}, and choose GPUs with CUDA_VISIBLE_DEVICES"
        )
    torch.cuda.set_device(device)
    return device


def leave_processes() -> None:
    """Leave the other processes."""
    if _several():
        dist.destroy_process_group()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _several() else 1


def is_main() -> bool:
    """Whether this process writes files and evaluates."""
    return rank() == 0


# ------------------------------------------------------------------------------------------- plain objects and failures


def any_rank(flag: bool) -> bool:
    """Whether `flag` is set in any process; by CPU memory, so that no GPU is waited for."""
    if not _several():
        return flag
    flags = torch.tensor([int(flag)])
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def broadcast(value: T) -> T:
    """The main process's `value`, a plain object; tensors in it must be on the CPU."""
    if not _several():
        return value
    holder: list[Any] = [value if is_main() else None]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def gather_objects(value: T) -> list[T]:
    """Every process's `value`, in the order of ranks."""
    if not _several():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


class collective:
    """`with collective():` what one process raises inside, all raise at its end.

    The first process's error is raised by all if it is a UserError. Any other error is raised where it happened, and
    ProcessFailed elsewhere. (Interrupts are torchrun's, which passes them on to all.)
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind, error: BaseException | None, _traceback) -> None:
        if not _several() or not (error is None or isinstance(error, Exception)):
            return
        if not any_rank(error is not None):
            return
        mendable = isinstance(error, UserError)
        text = None if error is None else one_line(error) if mendable else f"{type(error).__name__}: {one_line(error)}"
        reports: list[Any] = gather_objects((type(error) if mendable else None, text))
        first, (kind, text) = next((number, report) for number, report in enumerate(reports) if report[1] is not None)
        if error is not None and (first == rank() or kind is None):
            return  # it is on its way. Kept here, it would keep its traceback, and that a loader with its workers
        if kind is not None:
            copy = kind(text)
            copy.reported = True  # by the process that failed
            raise copy
        raise ProcessFailed(f"process {first} failed: {text}")


def on_main(work: Callable[[], T]) -> T:
    """The result of `work()`, a plain object, which the main process alone does; what it raises, all raise."""
    result: Any = None
    with collective():
        if is_main():
            result = work()
    return broadcast(result)


def main_first(work: Callable[[], T]) -> T:
    """`work()`, first in the main process, then in the others, which find the files that it wrote."""
    result: Any = None
    for turn in (True, False):
        with collective():
            if is_main() == turn:
                result = work()
    return result


# ---------------------------------------------------------------------------------------------------- shares of a batch


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.chunk(world_size())[rank()] * world_size()


def gather(x: Tensor) -> Tensor:
    """[b, ...] of every process, b being the same on all -> [W * b, ...] in the order of ranks, with gradient.

    For a loss that every process then computes alike from all of it, and gradients that `average_gradients` takes the
    mean of. Let x_r = f_r(u) be what process r made of its own images with the parameters u (a tower), and L = L(x_1,
    ..., x_W; v) the loss, with parameters v behind the gathering (a classifier).

        dL/du = sum over r of dL/dx_r * dx_r/du

    Process r can compute only its own summand, and the mean over processes divides by W. Hence backward returns W times
    this process's slice of dL/dx: the mean of W * dL/dx_r * dx_r/du over r is dL/du. All processes compute the same
    dL/dv, which its own mean does not change. Nothing is sent in backward.
    """
    return _Gather.apply(x) if _several() else x


def in_shares(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """`function(*rows)`, of which every process computes a share; with gradient, as in `gather`.

    Args:
        function: [n, ...] and so on -> [n, ...], each row by itself.
        rows: [N, ...] each, the same on all processes; N may be less than their number.
    """
    if not _several():
        return function(*rows)
    count = len(rows[0])
    size = -(-count // world_size())
    mine = torch.arange(rank() * size, (rank() + 1) * size, device=rows[0].device).clamp(max=count - 1)
    # Shares are equally long: the last row fills them up, and what becomes of it is cut off, with its gradient.
    return gather(function(*(each[mine] for each in rows)))[:count]


@torch.no_grad()
def gather_rows(x: Tensor | None, device: torch.device) -> Tensor:
    """[n, ...] of every process, n differing -> [sum of n, ...] in the order of ranks, without gradient.

    A process without rows passes None; `device` is where all have theirs.
    """
    facts = gather_objects(None if x is None else (len(x), tuple(x.shape[1:]), x.dtype))
    if not any(facts):
        raise ValueError("no process has any rows")
    if x is not None and not _several():
        return x
    _, shape, dtype = next(fact for fact in facts if fact is not None)
    counts = [0 if fact is None else fact[0] for fact in facts]
    padded = torch.zeros(max(counts), *shape, dtype=dtype, device=device)
    if x is not None:
        padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


# ------------------------------------------------------------------------------------- one network in several processes


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over processes; parameters without one, the same in all, are skipped."""
    if _several():
        _average([parameter.grad for parameter in parameters if parameter.grad is not None])


def _average(tensors: list[Tensor]) -> None:
    """In place; one message for all tensors of a dtype."""
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    for kind in kinds.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in kind])
        dist.all_reduce(flat)
        flat /= world_size()
        for tensor, mean in zip(kind, flat.split([tensor.numel() for tensor in kind]), strict=True):
            tensor.copy_(mean.view(tensor.shape))


@torch.no_grad()
def average_statistics(module: nn.Module) -> None:
    """Make the running statistics of all batch norms the mean over processes.

    Those of a ResNet tower have seen each process's own images; they must agree before the network is tested or saved.
    Training does not read them, and a moving average of means is the mean of moving averages: doing this more often
    changes their last bits and nothing else. Statistics that agree already, as behind `gather`, stay to the last bit.
    """
    if not _several():
        return
    norms = [norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    mine = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
    mains = [value.clone() for value in mine]
    for value in mains:
        dist.broadcast(value, src=0)
    deviations = [value - main for value, main in zip(mine, mains, strict=True)]
    _average(deviations)
    for value, main, deviation in zip(mine, mains, deviations, strict=True):
        value.copy_(main + deviation)


@torch.no_grad()
def copy_from_main(module: nn.Module) -> None:
    """Copy the main process's parameters and buffers (random weights differ between kinds of machines)."""
    if not _several():
        return
    for value in (*module.parameters(), *module.buffers()):
        copy = value.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(copy, src=0)
        value.copy_(copy)


@torch.no_grad()
def check_identical(module: nn.Module) -> None:
    """Raise RuntimeError, in all processes, if their parameters and saved buffers differ in any bit."""
    if not _several():
        return
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    state = module.state_dict()
    sums = [
        value.contiguous().view(integers[value.element_size()]).sum(dtype=torch.int64).cpu() for value in state.values()
    ]
    values = gather_objects(torch.stack(sums).tolist() if sums else [])
    for number, other in enumerate(values):
        if other != values[0]:
            pairs = zip(state, values[0], other, strict=False)
            name = next((name for name, a, b in pairs if a != b), "number of tensors")
            raise RuntimeError(f"the networks of processes 0 and {number} differ, first in {name}")


def sync_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with batch norms over all processes' images, if each process has a GPU; else unchanged.

    Only for what comes before `gather`, a ResNet tower: what comes after sees the whole batch anyway. Names in the
    state dict stay.
    """
    if not _several():
        return module
    if device.type != "cuda":
        logger.info("SOLVER.SYNC_BN: PyTorch synchronises batch norm on GPUs only; each process has its own")
        return module
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)
