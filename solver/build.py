"""From a stage's block of the config to its optimiser and learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from solver.schedules import warmup_cosine, warmup_steps
from utils.devices import updates_in_place


def make_optimizer(
    cfg_stage: CfgNode, module: nn.Module, layer_of: Callable[[str], int | None] | None = None
) -> torch.optim.Optimizer:
    """An optimiser of what trains in `module`; each group has its own rate in `initial_lr`, and a factor of what the
    schedule makes of that in `lr_scale`, as timm's groups.

    Biases (of layer and batch norms, too) have their own factor and decay where the stage has keys for them;
    LARGE_FC_LR doubles the rate of the identity classifiers. Adam's decay is coupled (L2), as published.

    Args:
        layer_of: the layer of a parameter by its name, from 0, or None for what comes after all of them. With
            LAYER_DECAY d the last of n layers has the rate d, the first d^n (BEiT: Bao et al., 2022).
    """
    scales = _layer_scales(cfg_stage.get("LAYER_DECAY", 1.0), module, layer_of)
    groups: dict[tuple[float, float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        factor, decay = 1.0, cfg_stage.WEIGHT_DECAY
        *owners, own = name.split(".")
        if own.endswith("bias"):  # in_proj_bias, too
            factor, decay = cfg_stage.get("BIAS_LR_FACTOR", 1.0), cfg_stage.get("WEIGHT_DECAY_BIAS", decay)
        if "classifier" in owners and cfg_stage.get("LARGE_FC_LR", False):
            factor *= 2
        groups.setdefault((cfg_stage.BASE_LR * factor, decay, scales.get(name, 1.0)), []).append(parameter)
    options: list[dict[str, Any]] = [
        {"params": parameters, "lr": lr * scale, "initial_lr": lr, "lr_scale": scale, "weight_decay": decay}
        for (lr, decay, scale), parameters in groups.items()
    ]
    fused = all(updates_in_place(parameter.device) for group in options for parameter in group["params"])
    common: dict[str, Any] = {"lr": cfg_stage.BASE_LR, "fused": fused}
    if cfg_stage.OPTIMIZER_NAME == "SGD":
        return torch.optim.SGD(options, momentum=cfg_stage.MOMENTUM, **common)
    return {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[cfg_stage.OPTIMIZER_NAME](options, **common)


def _layer_scales(
    layer_decay: float, module: nn.Module, layer_of: Callable[[str], int | None] | None
) -> dict[str, float]:
    """Factors of the learning rate by the name of the parameter; one that is not there is 1."""
    if layer_decay == 1 or layer_of is None:
        return {}
    layers = {name: layer for name, _ in module.named_parameters() if (layer := layer_of(name)) is not None}
    count = 1 + max(layers.values(), default=-1)
    return {name: layer_decay ** (count - layer) for name, layer in layers.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, gathered: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Load an earlier optimiser's state of each parameter; options, such as the learning rate, stay as they are.

    Raises:
        ValueError: the state is of other parameters, or of another optimiser.
    """
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    needed = set() if isinstance(optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    for index, values in gathered.items():
        fits = index in range(len(shapes)) and needed <= values.keys()
        if not fits or any(value.ndim and value.shape != shapes[index] for value in values.values()):
            raise ValueError(f"optimizer.state[{index!r}] is not what {type(optimizer).__name__} gathers here")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": gathered})


def make_schedule(cfg_stage: CfgNode) -> Callable[[int, float], float]:
    """(epoch from 1, initial rate) -> rate: steps in the clustering stage, a cosine in the prompt stage, in the image
    stage what SCHEDULE says."""
    if cfg_stage.get("SCHEDULE", "steps" if "STEPS" in cfg_stage else None) == "steps":
        return partial(
            warmup_steps,
            steps=cfg_stage.STEPS,
            gamma=cfg_stage.GAMMA,
            warmup_epochs=cfg_stage.WARMUP_ITERS,
            warmup_factor=cfg_stage.WARMUP_FACTOR,
        )
    if cfg_stage.get("SCHEDULE") == "cosine":  # as TransReID, floor and start are the same for all groups
        return partial(
            warmup_cosine,
            epochs=cfg_stage.MAX_EPOCHS,
            floor=cfg_stage.LR_MIN_FACTOR * cfg_stage.BASE_LR,
            warmup_epochs=cfg_stage.WARMUP_ITERS,
            warmup_start=cfg_stage.WARMUP_FACTOR * cfg_stage.BASE_LR,
        )
    return partial(
        warmup_cosine,
        epochs=cfg_stage.MAX_EPOCHS,
        floor=cfg_stage.LR_MIN,
        warmup_epochs=cfg_stage.WARMUP_EPOCHS,
        warmup_start=cfg_stage.WARMUP_LR_INIT,
    )
