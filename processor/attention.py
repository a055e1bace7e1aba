"""Where in an image its feature comes from: attention, and exact shares of a similarity by place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.clip import ResNetTower, ViTTower
from model.timm_tower import AVG, MapTower, TokenTower
from processor.evaluate import embed_images
from processor.inference import Embedder, Input
from utils.errors import UserError

CLASS, ROLLOUT, SHARE = METHODS = ("class", "rollout", "share")


class PairShares(NamedTuple):
    """By which places two images are alike: of each, all its places and its rest sum to the cosine."""

    cosine: float
    first: Tensor  # [h, w]
    second: Tensor  # [h, w]
    rests: tuple[float, float]  # what belongs to no place


def attention_map(embedder: Embedder, image: Input, method: str = ROLLOUT) -> Tensor:
    """An image -> [h, w] on the CPU, a number for every patch (of convolutions and Swin: for every cell of the last
    map).

    Args:
        method: "class": attention of the class token in the last block, mean over the heads (of CLIP's ResNet: of the
            attention pool). "rollout": attention through all blocks (Abnar and Zuidema, 2020): with A the mean over
            the heads of a block, the class token's row of the product of all (A + 1) / 2. "share": shares of the
            image's own feature, as `pair_shares` has them; they sum to 1 with the rest.

    Raises:
        UserError: the tower does not have this.
        DataError: the image cannot be read.
    """
    if method == SHARE:
        return _shares(embedder, image, embedder([image])[0])[0]
    views = _views(embedder, image)
    with torch.no_grad(), _watched(embedder.model.image) as seen:
        _embed(embedder, views)
    if not seen.weights or (method == ROLLOUT and seen.pooled):
        raise UserError(f"this tower has no class token, whose attention would be shown by {method!r}; try {SHARE!r}")
    if method == ROLLOUT:
        means = (weights.mean(dim=1) for weights in seen.weights)  # [F, N, N], rows sum to 1
        rows = reduce(lambda after, own: own @ after, ((own + torch.eye(own.shape[-1])) / 2 for own in means))[:, 0]
    else:
        rows = seen.weights[-1][:, :, 0].mean(dim=1)  # [F, N]
    return _upright(rows[:, seen.prefix :].unflatten(1, seen.grid)).mean(dim=0)


def has_class_token(embedder: Embedder) -> bool:
    """Whether there is a class token, whose attention through all blocks can be shown."""
    return isinstance(embedder.model.image, (ViTTower, TokenTower))


def pair_shares(embedder: Embedder, a: Input, b: Input) -> PairShares:
    """The share of every place of two images in their cosine.

    The feature e of an image is an affine function of what its tower ends with, if the deviations by which the last
    layer norms divide are held at their values; so is its inner product with the other image's feature u of length 1.
    What the tower ends with is a sum over places:

    - Of a mean over a map (Swin, ConvNeXt, ResNets): the places themselves; constants are spread evenly. A generalised
      mean is no affine function, but sums to itself along its slopes, as a mean does.
    - Of a class token: what it has got from each patch by the attention of all blocks, directly (Gandelsman et al.,
      ICLR 2024). The rest is its start, biases, MLPs, and what it has got from itself and from registers.

    So the shares tell, without gradients through the blocks, what the places add to the very number that is ranked by.

    Raises:
        UserError: the tower does not have this.
        DataError: an image cannot be read.
    """
    first, second = embedder([a, b])
    (of_first, rest), (of_second, other) = _shares(embedder, a, second), _shares(embedder, b, first)
    return PairShares(float(first @ second), of_first, of_second, (rest, other))


def _shares(embedder: Embedder, image: Input, unit: Tensor) -> tuple[Tensor, float]:
    """Shares [h, w] in the cosine of an image's feature and `unit`, and the rest."""
    views = _views(embedder, image)
    with torch.enable_grad(), _watched(embedder.model.image) as seen:
        feature = _embed(embedder, views)
        cosine = feature @ unit.to(feature) / feature.norm().detach()
        (slopes,) = torch.autograd.grad(cosine, seen.end)
    with torch.no_grad():
        products = seen.end * slopes
        if seen.channels_first:
            shares = products.sum(dim=1)  # [F, h, w]
        elif products.dim() == 4:
            shares = products.sum(dim=3)
        else:
            received = sum(block.received(slopes[:, 0]) for block in seen.blocks)  # [F, N]
            shares = (received + products.sum(dim=2))[:, seen.prefix :].unflatten(1, seen.grid)
        shares = _upright(shares.cpu()).sum(dim=0)
        rest = float(cosine) - float(shares.sum())
        return (shares + rest / shares.numel(), 0.0) if seen.pooled else (shares, rest)


def _views(embedder: Embedder, image: Input) -> Tensor:
    """The image as the tower sees it, and mirrored where features are means over both: [F, 3, H, W].

    Raises:
        UserError: features are not in fp32.
    """
    embedder.check_fp32("shares and attention are computed")
    prepared = embedder.prepare(image).to(embedder.device)
    return torch.stack([prepared, prepared.flip(-1)] if embedder.flip else [prepared])


def _embed(embedder: Embedder, views: Tensor) -> Tensor:
    side = embedder.side_of(len(views))
    return embed_images(embedder.model, views, side, neck=embedder.neck, flip=False).mean(dim=0)


def _upright(maps: Tensor) -> Tensor:
    """Maps [F, h, w] of an image and, if F is 2, of its mirror image, which is turned back."""
    return torch.cat([maps[:1], maps[1:].flip(-1)])


# ---------------------------------------------------------------------------------------------- inside the towers


class _Block(NamedTuple):
    """What a block of a transformer did to the class token."""

    weights: Tensor  # [F, heads, N, N], of the attention
    values: Tensor  # [F, N, heads * d]
    out: Tensor  # [D, heads * d], the layer after them, with the scale of its branch

    def received(self, slope: Tensor) -> Tensor:
        """What the class token got from each token, along `slope` [F, D] -> [F, N]."""
        heads = self.weights.shape[1]
        along = (slope @ self.out).unflatten(1, (heads, -1))  # [F, heads, d]
        return torch.einsum("fhn,fnhd,fhd->fn", self.weights[:, :, 0], self.values.unflatten(2, (heads, -1)), along)


class _Seen:
    """What a tower did with some images."""

    end: Tensor  # what its trunk ends with: tokens [F, N, D], or a map [F, D, h, w] or [F, h, w, D]
    grid: tuple[int, int]
    prefix = 0  # tokens before those of the patches
    channels_first = False
    pooled = False  # the feature is a mean over places, without a class token

    def __init__(self) -> None:
        self.blocks: list[_Block] = []
        self.pool_weights: Tensor | None = None

    @property
    def weights(self) -> list[Tensor]:
        """Of the attention, block by block, on the CPU."""
        found = [block.weights for block in self.blocks] if self.pool_weights is None else [self.pool_weights]
        return [weights.float().cpu() for weights in found]

    def ends(self, output: Tensor) -> Tensor:
        """Keep what the trunk ends with -> the same, from where slopes are taken."""
        self.end = output.detach().requires_grad_()
        return self.end


@contextmanager
def _watched(tower: Any) -> Iterator[_Seen]:
    """See what `tower` does, whose features stay the same, to rounding.

    Raises:
        UserError: nothing is known of this tower's inside.
    """
    seen = _Seen()
    with ExitStack() as stack:
        for module in tower.modules():
            if isinstance(module, nn.LayerNorm):
                stack.enter_context(module.register_forward_hook(_hold_deviation(seen)))
        if isinstance(tower, (ViTTower, TokenTower)):
            _watch_tokens(tower, seen, stack)
        elif isinstance(tower, ResNetTower):
            seen.channels_first = True
            stack.enter_context(tower.visual.layer4.register_forward_hook(lambda module, args, out: seen.ends(out)))
            stack.enter_context(tower.visual.attnpool.register_forward_hook(_hold_pool(seen)))
        elif isinstance(tower, MapTower):
            _watch_map(tower, seen, stack)
        else:
            raise UserError(f"{type(tower).__name__}: this tower does not tell where its features come from")
        yield seen


def _watch_tokens(tower: Any, seen: _Seen, stack: ExitStack) -> None:
    clip = isinstance(tower, ViTTower)
    blocks = tower.visual.transformer.resblocks if clip else tower.net.blocks
    patches = tower.visual.conv1 if clip else tower.net.patch_embed.proj
    seen.prefix = 1 if clip else tower.net.num_prefix_tokens
    seen.pooled = not clip and tower.pooling == AVG

    def keep_grid(module: nn.Module, args: tuple, output: Tensor) -> None:
        rows, columns = output.shape[2:]
        seen.grid = rows, columns

    stack.enter_context(patches.register_forward_hook(keep_grid))
    if clip:
        stack.callback(setattr, tower, "by_blocks", tower.by_blocks)
        tower.by_blocks = True
    for block in blocks:
        (_watch_clip_block if clip else _watch_timm_block)(block, seen, stack)
    stack.enter_context(blocks[-1].register_forward_hook(lambda module, args, output: seen.ends(output)))


def _watch_clip_block(block: Any, seen: _Seen, stack: ExitStack) -> None:
    attention = block.attn

    def keep(module: Any, args: tuple, output: Any) -> None:
        with torch.no_grad():
            tokens = args[0]
            # By its forward, which calls no hooks.
            _, weights = module.forward(tokens, tokens, tokens, need_weights=True, average_attn_weights=False)
            width = tokens.shape[-1]
            values = F.linear(tokens, module.in_proj_weight[-width:], module.in_proj_bias[-width:])
            seen.blocks.append(_Block(weights, values, _scaled(block.ls_1, module.out_proj.weight)))

    stack.enter_context(attention.register_forward_hook(keep))


def _watch_timm_block(block: Any, seen: _Seen, stack: ExitStack) -> None:
    attention = block.attn
    if not isinstance(getattr(attention, "norm", None), nn.Identity | None) or getattr(attention, "gate", None):
        raise UserError(f"{type(attention).__name__}: this attention has a norm or a gate, which no share is known of")
    caught: list[Tensor] = []
    fused, attention.fused_attn = attention.fused_attn, False  # fused attention has no weights to see
    stack.callback(setattr, attention, "fused_attn", fused)

    def keep(module: Any, args: tuple, output: Any) -> None:
        with torch.no_grad():
            tokens, weights = args[0], caught.pop()
            if module.qkv is None:
                values = module.v_proj(tokens)
            else:
                width = len(module.qkv.weight) // 3
                joint = module.qkv.bias
                bias = getattr(module, "v_bias", None) if joint is None else joint[-width:]
                values = F.linear(tokens, module.qkv.weight[-width:], bias)
            scale = getattr(block, "gamma_1", getattr(block, "ls1", None))  # the former is EVA's
            seen.blocks.append(_Block(weights, values, _scaled(scale, module.proj.weight)))

    stack.enter_context(attention.attn_drop.register_forward_hook(lambda module, args, output: caught.append(output)))
    stack.enter_context(attention.register_forward_hook(keep))


def _scaled(scale: Any, weight: Tensor) -> Tensor:
    """The weight [D, d] of a layer before a scale: a vector, a layer that holds one, or nothing."""
    gamma = scale if isinstance(scale, Tensor) else getattr(scale, "gamma", None)
    return weight if gamma is None else gamma[:, None] * weight


def _watch_map(tower: Any, seen: _Seen, stack: ExitStack) -> None:
    net, inside = tower.net, tower.net.forward_features
    seen.channels_first, seen.pooled = getattr(net, "output_fmt", "NCHW") == "NCHW", True

    def features(images: Tensor, **options: Any) -> Tensor:
        output = inside(images, **options)
        if output.dim() != 4:
            raise UserError(f"{type(net).__name__}: this tower ends with no map, so there is nothing to show")
        return seen.ends(output)

    net.forward_features = features
    stack.callback(delattr, net, "forward_features")  # the class's own is seen again


def _hold_deviation(seen: _Seen) -> Any:
    """Layer norms after the trunk divide by a constant, so that what follows is affine."""
    from timm.layers import LayerNorm2d  # here, because `model` is to import timm first

    def hold(module: nn.LayerNorm, args: tuple, output: Tensor) -> Tensor | None:
        if not hasattr(seen, "end"):
            return None
        dim = 1 if isinstance(module, LayerNorm2d) else -1
        centred = args[0] - args[0].mean(dim, keepdim=True)
        deviation = (centred.square().mean(dim, keepdim=True) + module.eps).sqrt().detach()
        shape = [-1 if place == dim % centred.dim() else 1 for place in range(centred.dim())]
        return centred / deviation * module.weight.reshape(shape) + module.bias.reshape(shape)

    return hold


def _hold_pool(seen: _Seen) -> Any:
    """CLIP's attention pool with its weights held at their values, so that it is affine."""

    def hold(module: Any, args: tuple, output: Tensor) -> Tensor:
        cells = args[0].flatten(2).transpose(1, 2)  # [F, h * w, D]
        tokens = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1) + module.positional_embedding
        query, key, value = (
            layer(some).unflatten(2, (module.num_heads, -1)).transpose(1, 2)
            for layer, some in ((module.q_proj, tokens[:, :1]), (module.k_proj, tokens), (module.v_proj, tokens))
        )
        weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(dim=-1).detach()
        seen.pool_weights, seen.prefix, seen.grid = weights, 1, tuple(args[0].shape[2:])
        return module.c_proj((weights @ value).transpose(1, 2).flatten(2))[:, 0]

    return hold
