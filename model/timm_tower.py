"""Image towers of timm: MODEL.NAME timm/NAME, any of `timm.list_models()`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models import PretrainedCfg, group_parameters
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.clip import patch_grid
from model.heads import SideEmbedding
from model.pretrained import NONE, fetch, tower_state, weights_path
from utils.checkpoint import load_strictly
from utils.errors import WeightsError, one_line
from utils.records import ImageFeatures, SideInfo

AUTO, TOKEN, AVG, BOTH = "auto", "token", "avg", "token+avg"  # MODEL.POOLING
# Makes towers that have the choice take another image size at test than in training.
ANY_SIZE = {"strict_img_size": False, "dynamic_img_size": True}


class TimmTower(nn.Module):
    """What all of them share.

    Args:
        net: timm's, without a classifier.
        dims: widths of the features before the last block and after it.
        embed_dim: width of a learnt projection of the latter; 0 for none.
    """

    net: Any

    def __init__(self, net: nn.Module, dims: tuple[int, int], embed_dim: int):
        super().__init__()
        self.net = net
        self.dims = (*dims, embed_dim)
        self.projection = nn.Linear(dims[1], embed_dim, bias=False) if embed_dim else None
        self.side: SideEmbedding | None = None
        self.layers = group_parameters(net, self.net.group_matcher(), reverse=True)

    def layer_of(self, name: str) -> int | None:
        """The layer of a parameter, as `model.towers` says."""
        return None if name.startswith("projection.") else self.layers.get(name.removeprefix("net."), 0)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks keep only their inputs, and are computed again for the gradient; AssertionError if timm has
        not made that for this tower."""
        self.net.set_grad_checkpointing(enable)


class TokenTower(TimmTower):
    """A transformer with a class token: plain ViT, DINOv2, DINOv3, EVA-02.

    Args:
        net: timm's, without a classifier; its patch stride and position table are changed in place.
        image_size: (H, W) in pixels.
        stride: (vertical, horizontal) patch stride in pixels; below the patch size, patches overlap.
        side: added to the class token, or to every token (`side_on_all`, as TransReID does), before the first block.
        pooling: "token" or "auto" (class token), "avg" (mean over the patches), or "token+avg" (both, in this order).
        embed_dim: width of a learnt projection of the last feature; 0 for none.

    Attributes:
        dims: widths (Dp, D, E) of the three features.
        grid: rows and columns of patches.
        positions: name of the position table in the state dict; None without one (rotary positions).
        prefix: rows of that table before those of the patches.
    """

    def __init__(
        self,
        net: VisionTransformer | Eva,
        image_size: tuple[int, int],
        stride: tuple[int, int],
        side: SideEmbedding | None = None,
        *,
        side_on_all: bool = False,
        pooling: str = AUTO,
        embed_dim: int = 0,
    ):
        width: Any = net.num_features * (2 if pooling == BOTH else 1)
        super().__init__(net, (width, width), embed_dim)
        self.side, self.side_on_all, self.pooling = side, side_on_all, pooling
        self.prefix = 0 if net.no_embed_class else net.num_prefix_tokens
        self.positions = None if net.pos_embed is None else "net.pos_embed"
        self.patch = net.patch_embed.patch_size
        self.grid = net.patch_embed.grid_size
        if isinstance(net.patch_embed, PatchEmbed):
            self._set_stride(image_size, stride)

    def grid_for(self, image_size: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches for images [H, W] at this patch stride."""
        return patch_grid(image_size, self.patch, stride)

    def _set_stride(self, image_size: tuple[int, int], stride: tuple[int, int]) -> None:
        embed, old = self.net.patch_embed, self.net.patch_embed.grid_size
        self.grid = embed.grid_size = self.grid_for(image_size, stride)
        stem = self.patch[0] // embed.proj.kernel_size[0]  # its own stride; 1 without one
        if any(step % stem for step in stride):
            raise WeightsError(f"MODEL.STRIDE_SIZE: invalid value {tuple(stride)}; expected multiples of {stem}")
        embed.proj.stride = tuple(step // stem for step in stride)
        if self.positions:
            table = resample_abs_pos_embed(self.net.pos_embed.data, self.grid, old, num_prefix_tokens=self.prefix)
            self.net.pos_embed = nn.Parameter(table)

    def forward(self, images: Tensor, side: SideInfo | None = None) -> ImageFeatures:
        """Images [B, 3, H, W] -> pooled tokens before the last block and after it, and the projection of the latter."""
        net = self.net
        tokens = net._pos_embed(net.patch_embed(images))
        tokens, rope = tokens if isinstance(tokens, tuple) else (tokens, None)
        if self.side is not None and side is not None:
            vectors = self.side(side)[:, None]
            first = tokens.shape[1] if self.side_on_all else 1
            tokens = torch.cat([tokens[:, :first] + vectors, tokens[:, first:]], dim=1)
        tokens = net.norm_pre(tokens)
        for number, block in enumerate(net.blocks):
            penultimate = tokens
            options = {} if rope is None else {"rope": rope[number] if getattr(net, "rope_mixed", False) else rope}
            if net.grad_checkpointing and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False, **options)
            else:
                tokens = block(tokens, **options)
        last = net.fc_norm(self._pool(net.norm(tokens)))
        return ImageFeatures(self._pool(penultimate), last, self.projection(last) if self.projection else None)

    def _pool(self, tokens: Tensor) -> Tensor:
        token, patches = tokens[:, 0], tokens[:, self.net.num_prefix_tokens :]
        if self.pooling == AVG:
            return patches.mean(dim=1)
        return torch.cat([token, patches.mean(dim=1)], dim=1) if self.pooling == BOTH else token


class MapTower(TimmTower):
    """Any other tower: Swin, ConvNeXt, ResNet, RepViT, ...; pooled and normalised by timm's own head.

    Its linear layer, if it has one (`num_classes`), makes the feature.
    """

    def __init__(self, net: Any, *, embed_dim: int = 0):
        width: Any = net.num_classes or getattr(net, "head_hidden_size", net.num_features)
        super().__init__(net, (0, width), embed_dim)

    def forward(self, images: Tensor, side: SideInfo | None = None) -> ImageFeatures:
        """Images [B, 3, H, W] -> the pooled feature, and its projection."""
        last = self.net(images)
        return ImageFeatures(None, last, self.projection(last) if self.projection else None)


def make_timm(
    name: str,
    image_size: tuple[int, int],
    stride: tuple[int, int],
    side: SideEmbedding | None = None,
    *,
    test_size: tuple[int, int] | None = None,
    pooling: str = AUTO,
    embed_dim: int = 0,
    drop_path: float = 0.0,
    variant: Variant | None = None,
) -> TokenTower | MapTower:
    """The tower that timm calls `name`, without trained weights.

    Args:
        image_size: (H, W) in pixels.
        stride: of towers that let it be chosen (`Facts.stride` is None).
        test_size: another image size that it must take.
        drop_path: largest rate of stochastic depth, that of the last block.
        variant: a published tower that is made of it; None: timm's own.

    Raises:
        WeightsError: an image size or a pooling that this tower does not have.
    """
    facts = read_facts(name)
    variant = variant or Variant(f"timm/{name}", partial(timm.create_model, name, num_classes=0))
    arguments: dict[str, Any] = {}
    if facts.takes_size:
        arguments["img_size"] = tuple(image_size)
    arguments |= {key: value for key, value in ANY_SIZE.items() if key in facts.arguments}
    if drop_path or "drop_path_rate" in facts.arguments:  # timm's own default is 0.1 for some
        arguments["drop_path_rate"] = drop_path
    if pooling not in (AUTO, *((TOKEN, AVG, BOTH) if facts.has_token else ())):
        expected = "auto, token, avg or token+avg" if facts.has_token else "auto, its own: it has no class token"
        raise WeightsError(f"MODEL.POOLING: invalid value {pooling} for {variant.name}; expected {expected}")

    def make(side: SideEmbedding | None, **more: Any) -> TokenTower | MapTower:
        net = variant.create(**arguments, **more)
        if facts.has_token:
            options: dict[str, Any] = {"pooling": pooling, "embed_dim": embed_dim}
            return TokenTower(net, image_size, stride, side, side_on_all=variant.side_on_all, **options)
        return MapTower(net, embed_dim=embed_dim)

    quick = {"weight_init": "skip"} if "weight_init" in facts.arguments else {}
    for size, key in {tuple(test_size or image_size): "INPUT.SIZE_TEST", tuple(image_size): "INPUT.SIZE_TRAIN"}.items():
        try:
            with torch.device("meta"), torch.no_grad():
                make(None, **quick).eval().to("meta")(torch.zeros(1, 3, *size))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            patch = facts.multiple or 1
            if any(pixels % patch for pixels in size):
                expected = f"multiples of {patch}, e.g. {tuple(max(pixels // patch, 1) * patch for pixels in size)}"
            else:
                expected = f"e.g. {facts.size} ({one_line(error)})"
            raise WeightsError(
                f"{key} {tuple(size)}: {variant.name} does not take images of this size; expected {expected}"
            ) from error
    return make(side)


class Variant(NamedTuple):
    """A published tower that is made of one of timm's."""

    name: str  # for messages
    create: Callable[..., Any]  # makes timm's tower of arguments of its class
    side_on_all: bool = False  # as of `TokenTower`


class Facts(NamedTuple):
    """What is known of a tower of timm before it is made."""

    patch: int  # side of a patch in pixels; of towers without patches, pixels per cell of the last map
    stride: tuple[int, int] | None  # the only one; None where it can be chosen
    width: int  # of a token, or of the map
    has_token: bool
    size: tuple[int, int]  # of the images that it was trained with, by timm's default tag
    multiple: int | None  # of pixels, that sizes of images must be; None for any
    takes_size: bool  # whether it is made for one image size
    arguments: frozenset[str]  # that it is made with


@cache
def read_facts(name: str) -> Facts:
    """The facts of the tower that timm calls `name`."""
    with torch.device("meta"):
        net: Any = timm.create_model(name, num_classes=0)
    arguments = frozenset(inspect.signature(type(net).__init__).parameters)
    transformer = isinstance(net, VisionTransformer | Eva)
    free = transformer and isinstance(net.patch_embed, PatchEmbed)
    cell = net.patch_embed.patch_size[0] if free else net.feature_info[-1]["reduction"]
    return Facts(
        cell,
        None if free else (cell, cell),
        net.num_features,
        transformer and net.cls_token is not None,
        tuple(net.pretrained_cfg["input_size"][1:]),
        net.patch_embed.patch_size[0] if isinstance(getattr(net, "patch_embed", None), PatchEmbed) else None,
        transformer or "img_size" in arguments,
        arguments,
    )


def fill(tower: TokenTower | MapTower, name: str, pretrain: str) -> list[str]:
    """Load the weights that MODEL.PRETRAIN names -> lines for the log.

    Args:
        pretrain: one of timm's tags for `name` (timm.list_pretrained), a file, or "none". timm's own conversion is
            used for files by other names (Meta's, Microsoft's), and to resize position tables.

    Raises:
        WeightsError: an unknown tag; a file that is missing, damaged or of another tower; or it cannot be downloaded.
    """
    if pretrain == NONE:
        return []
    licence = None
    if pretrain in tags_of(name):
        entry: Any = timm.get_pretrained_cfg(f"{name}.{pretrain}")
        licence, path = entry.license, fetch(f"timm/{name}", pretrain, _hub_entry(entry))
    else:
        path = weights_path(pretrain, f"timm/{name}", tags_of(name))
    source = f"MODEL.PRETRAIN {pretrain}"
    state = tower_state(path)
    classifier = tower.net.pretrained_cfg.get("classifier") or ()
    for layer in (classifier,) if isinstance(classifier, str) else classifier:
        for leaf in ("weight", "bias"):
            state.pop(f"{layer}.{leaf}", None)
    convert = getattr(inspect.getmodule(type(tower.net)), "checkpoint_filter_fn", None)
    if convert and _shapes(state) != _shapes(tower.net.state_dict()):
        try:
            state = convert(state, tower.net)
        except Exception as error:  # of any type: it expects a file of this tower
            raise WeightsError(f"{source}: is no file of timm/{name} ({type(error).__name__}: {error})") from error
    load_strictly(tower.net, state, source=source, name=f"timm/{name}")
    return [f"{source}: licence {licence}"] if licence else []


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _hub_entry(entry: PretrainedCfg) -> dict:
    """timm's description of a file as open_clip's."""
    if entry.hf_hub_id:
        return {"hf_hub": f"{entry.hf_hub_id}/{entry.hf_hub_filename or 'model.safetensors'}"}
    return {"url": entry.url}


def pixels(name: str, pretrain: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the channels that the weights were trained with; of a file, those of timm's default tag."""
    entry: Any = timm.get_pretrained_cfg(f"{name}.{pretrain}" if pretrain in tags_of(name) else name)
    return tuple(entry.mean), tuple(entry.std)


def tags_of(name: str) -> list[str]:
    """The tags of weights that timm has for a tower."""
    return [tag.partition(".")[2] for tag in timm.list_pretrained(f"{name}.*")]
