"""Published person towers in small, written down from their papers: tensors by their files' names, and what they do.

Plain functions of a state dict and images, without this program or timm.
"""

import torch
from torch.nn import functional as F

VIT = {"width": 32, "depth": 2, "heads": 2}
SWIN = {"width": 16, "depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8)}


def draw(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A random tensor for each; norms' scales near 1 and variances above 0."""
    state = {}
    for name, shape in shapes.items():
        value = 0.2 * torch.randn(shape)
        scale = name.endswith("weight") and len(shape) == 1
        state[name] = 1 + value if scale else value.abs() + 0.5 if name.endswith("running_var") else value
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(3)
    return state


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    running = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,), f"{name}.num_batches_tracked": ()}
    return norm_shapes(name, width) | running


def linear_shapes(name: str, width: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def layer_norm(state, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def attend(qkv, heads, bias=0.0):
    """[..., N, 3 D] -> [..., N, D], head by head; `bias` [..., heads, N, N]."""
    q, k, v = qkv.chunk(3, dim=-1)
    found = []
    for head in range(heads):
        q1, k1, v1 = (part.chunk(heads, dim=-1)[head] for part in (q, k, v))
        added = bias[..., head, :, :] if isinstance(bias, torch.Tensor) else bias
        found.append((q1 @ k1.transpose(-1, -2) / q1.shape[-1] ** 0.5 + added).softmax(dim=-1) @ v1)
    return torch.cat(found, dim=-1)


# ---------------------------------------------------------------------------------------------------------------- ViT


def vit_shapes(tokens: int = 129, *, stem: bool = False) -> dict[str, tuple[int, ...]]:
    width = VIT["width"]
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, tokens, width)}
    if stem:
        shapes["patch_embed.conv.0.weight"] = (64, 3, 7, 7)
        for place in (1, 4):
            shapes |= norm_shapes(f"patch_embed.conv.{place}.IN", 32)
            shapes |= batch_norm_shapes(f"patch_embed.conv.{place}.BN", 32)
        shapes |= {f"patch_embed.conv.{place}.weight": (64, 64, 3, 3) for place in (3, 6)}
        shapes |= batch_norm_shapes("patch_embed.conv.7", 64)
    shapes["patch_embed.proj.weight"] = (width, 64, 8, 8) if stem else (width, 3, 16, 16)
    shapes["patch_embed.proj.bias"] = (width,)
    for number in range(VIT["depth"]):
        block = f"blocks.{number}."
        shapes |= norm_shapes(block + "norm1", width) | norm_shapes(block + "norm2", width)
        shapes |= linear_shapes(block + "attn.qkv", width, 3 * width) | linear_shapes(block + "attn.proj", width, width)
        shapes |= linear_shapes(block + "mlp.fc1", width, 4 * width)
        shapes |= linear_shapes(block + "mlp.fc2", 4 * width, width)
    return shapes | norm_shapes("norm", width)


def half_instance_half_batch(state, name, maps):
    first, second = maps[:, :32], maps[:, 32:]
    mean, variance = first.mean(dim=(2, 3), keepdim=True), first.var(dim=(2, 3), keepdim=True, unbiased=False)
    scale, shift = (state[f"{name}.IN.{leaf}"].view(1, -1, 1, 1) for leaf in ("weight", "bias"))
    first = (first - mean) / (variance + 1e-5).sqrt() * scale + shift
    return torch.cat([first, fixed_batch_norm(state, f"{name}.BN", second)], dim=1)


def fixed_batch_norm(state, name, maps):
    mean, variance, scale, shift = (
        state[f"{name}.{leaf}"].view(1, -1, 1, 1) for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return (maps - mean) / (variance + 1e-5).sqrt() * scale + shift


def vit(state, images, *, stride=16, side=0.0):
    """The class token [B, D]; `side` [B, 1, D] is added to every token."""
    stem = "patch_embed.conv.0.weight" in state
    x = images
    if stem:
        x = F.conv2d(x, state["patch_embed.conv.0.weight"], stride=2, padding=3)
        x = half_instance_half_batch(state, "patch_embed.conv.1", x).relu()
        x = F.conv2d(x, state["patch_embed.conv.3.weight"], padding=1)
        x = half_instance_half_batch(state, "patch_embed.conv.4", x).relu()
        x = fixed_batch_norm(state, "patch_embed.conv.7", F.conv2d(x, state["patch_embed.conv.6.weight"], padding=1))
        x = x.relu()
    step = stride // 2 if stem else stride
    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=step)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = x + state["pos_embed"] + side
    for number in range(VIT["depth"]):
        block = f"blocks.{number}."
        qkv = linear(state, block + "attn.qkv", layer_norm(state, block + "norm1", x, 1e-6))
        x = x + linear(state, block + "attn.proj", attend(qkv, VIT["heads"]))
        inner = F.gelu(linear(state, block + "mlp.fc1", layer_norm(state, block + "norm2", x, 1e-6)))
        x = x + linear(state, block + "mlp.fc2", inner)
    return layer_norm(state, "norm", x, 1e-6)[:, 0]


# --------------------------------------------------------------------------------------------------------------- Swin


def swin_shapes(window: int, *, mmdet: bool = False) -> dict[str, tuple[int, ...]]:
    """By Microsoft's names, or (`mmdet`) by OpenMMLab's with SOLIDER's semantic layers."""
    width, names = SWIN["width"], MMDET if mmdet else MICROSOFT
    shapes = {f"patch_embed.{names['patch']}.weight": (width, 3, 4, 4), f"patch_embed.{names['patch']}.bias": (width,)}
    shapes |= norm_shapes("patch_embed.norm", width)
    for stage, (depth, heads) in enumerate(zip(SWIN["depths"], SWIN["heads"], strict=True)):
        dim = width * 2**stage
        for number in range(depth):
            block = f"{names['stage']}.{stage}.blocks.{number}."
            shapes |= norm_shapes(block + "norm1", dim) | norm_shapes(block + "norm2", dim)
            attn = block + names["attn"]
            shapes |= linear_shapes(attn + "qkv", dim, 3 * dim) | linear_shapes(attn + "proj", dim, dim)
            shapes[attn + "relative_position_bias_table"] = ((2 * window - 1) ** 2, heads)
            shapes |= linear_shapes(block + names["fc1"], dim, 4 * dim)
            shapes |= linear_shapes(block + names["fc2"], 4 * dim, dim)
        if stage < 3:
            merging = f"{names['stage']}.{stage}.downsample."
            shapes |= norm_shapes(merging + "norm", 4 * dim) | {merging + "reduction.weight": (2 * dim, 4 * dim)}
            if mmdet:
                for letter in "wb":
                    shapes |= linear_shapes(f"semantic_embed_{letter}.{stage}", 2, 2 * dim)
    return shapes | norm_shapes(names["norm"], 8 * width)


MICROSOFT = {"stage": "layers", "attn": "attn.", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "norm": "norm", "patch": "proj"}
MMDET = {
    **{"stage": "stages", "attn": "attn.w_msa.", "fc1": "ffn.layers.0.0", "fc2": "ffn.layers.1", "norm": "norm3"},
    "patch": "projection",
}


def window_attention(state, attn, x, window, shift, heads):
    """[B, H, W, C], of whole windows -> the same: rolled, attended to window by window, rolled back."""
    height, width = x.shape[1:3]
    x = x.roll((-shift, -shift), dims=(1, 2))
    # Where each cell comes from: cells that were not neighbours before the roll do not see each other.
    region_of = torch.zeros(height, width)
    for row in range(height if shift else 0):
        for column in range(width):
            down, right = ((at >= end - window) + (at >= end - shift) for at, end in ((row, height), (column, width)))
            region_of[row, column] = 3 * down + right
    cells = [(row, column) for row in range(window) for column in range(window)]
    table = state[attn + "relative_position_bias_table"]
    index = [[(r1 - r2 + window - 1) * (2 * window - 1) + c1 - c2 + window - 1 for r2, c2 in cells] for r1, c1 in cells]
    bias = table[torch.tensor(index)].permute(2, 0, 1)  # [heads, N, N]
    out = torch.empty_like(x)
    for top in range(0, height, window):
        for left in range(0, width, window):
            here = (slice(None), slice(top, top + window), slice(left, left + window))
            regions = region_of[here[1:]].flatten()
            apart = torch.where(regions[:, None] == regions[None, :], 0.0, -100.0)
            qkv = linear(state, attn + "qkv", x[here].flatten(1, 2))
            found = linear(state, attn + "proj", attend(qkv, heads, bias + apart))
            out[here] = found.unflatten(1, (window, window))
    return out.roll((shift, shift), dims=(1, 2))


def swin(state, images, window, *, mmdet=False, semantic_weight=0.2, always_shift=True):
    """The mean [B, 8 width] of the last map; pads to whole windows first, then rolls.

    Without `always_shift`, a map that is one window is not rolled, as in Microsoft's code for classification.
    """
    names = MMDET if mmdet else MICROSOFT
    patch = f"patch_embed.{names['patch']}"
    x = F.conv2d(images, state[patch + ".weight"], state[patch + ".bias"], stride=4).permute(0, 2, 3, 1)
    x = layer_norm(state, "patch_embed.norm", x, 1e-5)
    for stage, (depth, heads) in enumerate(zip(SWIN["depths"], SWIN["heads"], strict=True)):
        for number in range(depth):
            block = f"{names['stage']}.{stage}.blocks.{number}."
            height, width = x.shape[1:3]
            y = layer_norm(state, block + "norm1", x, 1e-5)
            y = F.pad(y, (0, 0, 0, -width % window, 0, -height % window))
            shift = window // 2 if number % 2 and (always_shift or min(height, width) > window) else 0
            y = window_attention(state, block + names["attn"], y, window, shift, heads)
            x = x + y[:, :height, :width]
            inner = F.gelu(linear(state, block + names["fc1"], layer_norm(state, block + "norm2", x, 1e-5)))
            x = x + linear(state, block + names["fc2"], inner)
        if stage < 3:
            x = merge(state, f"{names['stage']}.{stage}.downsample.", x, by_channel=mmdet)
            if mmdet:
                weights = x.new_tensor([semantic_weight, 1 - semantic_weight])
                scale, shift = (linear(state, f"semantic_embed_{letter}.{stage}", weights) for letter in "wb")
                x = x * F.softplus(scale) + shift
    return layer_norm(state, names["norm"], x, 1e-5).mean(dim=(1, 2))


def merge(state, name, x, *, by_channel):
    """[B, H, W, C] -> [B, H/2, W/2, 2 C]."""
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    if by_channel:  # OpenMMLab unfolds: all four of a channel, then those of the next
        columns = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
        x = columns.unflatten(1, (x.shape[1] // 2, x.shape[2] // 2))
    else:
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
    return linear(state, name + "reduction", layer_norm(state, name + "norm", x, 1e-5))
