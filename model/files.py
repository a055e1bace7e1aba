"""Files of weights by other programs: finds the state dict in them, and says whose names it has."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from utils.errors import WeightsError, some

# What data parallelism, torch.compile, FSDP and activation checkpointing insert into names.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# First parts of names that are no prefix, even if all names have them.
PARTS = {"visual", "image_encoder", "image", "vision_model", "text_model"}
DEEPEST = 3  # dictionaries in dictionaries that are looked into
# How a name in a file begins -> what the file is.
LAYOUTS = {
    r"visual\.": "CLIP by open_clip's names",
    r"image\.visual\.": "a network of this program without its description, which its checkpoints hold",
    r"(.*\.)?(vision_model|text_model)\.": "CLIP by the names of Hugging Face's transformers",
    r"(.*\.)?(cls_token$|blocks\.0\.attn|layer1\.0\.conv1|encoder\.layers\.encoder_layer_0)": (
        "an image tower by the names of timm or torchvision"
    ),
    r"": "one of unknown names",
}


def state_in(contents: Mapping, source: str) -> dict[str, Tensor]:
    """The state dict in what was read from `source`, at any level, without prefixes by wrappers.

    Dictionaries with less than half as many tensors (an optimiser's state and the like) are passed over.

    Raises:
        WeightsError: there is no state dict, or several; a name is no text; two names differ in wrappers only.
    """
    found = _states(contents)
    most = max((_tensors(state) for state in found.values()), default=0)
    large = [keys for keys, state in found.items() if 2 * _tensors(state) > most]
    if not large:
        raise WeightsError(f"{source}: holds no dictionary of tensors; its keys are {some([*map(repr, contents)])}")
    if len(large) > 1:
        names = ", ".join(keys or "itself" for keys in large)
        raise WeightsError(
            f"{source}: holds several dictionaries of tensors ({names}); save the right one in a file of its own: "
            'python -c "import argparse, torch; torch.serialization.add_safe_globals([argparse.Namespace]); '
            f"torch.save(torch.load('{source}'){large[-1]}, 'right.pth')\""
        )
    state = found[large[0]]
    for name, value in state.items():
        if not isinstance(name, str):
            raise WeightsError(f"{source}: {name!r} is a {type(value).__name__}, where names and tensors belong")
    bare = {".".join(part for part in name.split(".") if part not in WRAPPERS): state[name] for name in state}
    if len(bare) < len(state):
        raise WeightsError(f"{source}: holds tensors whose names differ in {' and '.join(sorted(WRAPPERS))} only")
    while (first := _common(bare)) and first not in PARTS:
        bare = {name.partition(".")[2]: value for name, value in bare.items()}
    return bare


def check_tensors(state: Mapping, source: str) -> None:
    """Raise WeightsError unless names, and tensors of finite numbers that can be copied, are all that is in `state`."""
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{source}: {name!r} is a {type(value).__name__}, where names and tensors belong")
        if value.is_meta or value.layout != torch.strided or value.is_quantized or value.is_complex():
            kind = "meta" if value.is_meta else value.dtype if value.layout == torch.strided else value.layout
            raise WeightsError(f"{source}: {name} is a tensor of another kind ({kind}); expected dense real numbers")
        if value.is_floating_point() and not value.isfinite().all():
            raise WeightsError(f"{source}: {name} holds values that are not finite")


def layout(state: Mapping[str, Tensor]) -> str:
    """What a file is by the names in it, with some of them."""
    what = next(what for names, what in LAYOUTS.items() if any(re.match(names, name) for name in state))
    return f"{what} ({some([*map(repr, state)])})"


def _states(contents: Mapping, keys: str = "", depth: int = 0) -> dict[str, Mapping]:
    """All dictionaries with tensors, by the keys that lead to them, e.g. "['ema']['model']"."""
    found = {keys: contents} if _tensors(contents) else {}
    for key, value in contents.items():
        if isinstance(key, str) and isinstance(value, Mapping) and depth < DEEPEST:
            found |= _states(value, f"{keys}[{key!r}]", depth + 1)
    return found


def _tensors(state: Mapping) -> int:
    return sum(isinstance(value, Tensor) for value in state.values())


def _common(state: Mapping[str, Tensor]) -> str | None:
    """What all names have before their first dot; None if they differ, or one has no dot."""
    firsts = {name.partition(".")[0] if "." in name else None for name in state}
    return firsts.pop() if len(firsts) == 1 else None
