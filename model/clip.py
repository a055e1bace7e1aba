"""CLIP's towers, from open_clip, opened up for re-identification."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from functools import partial

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.blocks import Past, remember, run_block
from model.heads import SideEmbedding
from utils.errors import WeightsError
from utils.records import ImageFeatures, SideInfo

QUICK_GELU, GELU, AUTO = "quick_gelu", "gelu", "auto"  # MODEL.ACTIVATION


class ViTTower(nn.Module):
    """CLIP's vision transformer with overlapping patches and, if given, side information.

    Args:
        visual: open_clip's tower; its patch stride and position table are changed in place.
        image_size: (H, W) in pixels.
        stride: (vertical, horizontal) patch stride in pixels; below the patch size, patches overlap.
        side: added to the class token alone, before the position table, as published (TransReID adds it to every
            token).

    Attributes:
        dims: widths (Dp, D, E) of the three features.
        grid: rows and columns of the position table.
        positions: the table's name in the state dict.
        by_blocks: whether blocks compute all tokens by their own forward, for those who look into them.
    """

    positions = "visual.positional_embedding"
    by_blocks = False

    def __init__(
        self,
        visual: VisionTransformer,
        image_size: tuple[int, int],
        stride: tuple[int, int],
        side: SideEmbedding | None = None,
    ):
        super().__init__()
        self.visual = visual
        old, self.grid = visual.grid_size, self.grid_for(image_size, stride)
        visual.conv1.stride = tuple(stride)
        visual.positional_embedding = nn.Parameter(resize_positions(visual.positional_embedding.data, old, self.grid))
        self.side = side
        width = visual.ln_post.normalized_shape[0]
        self.dims = (width, width, visual.proj.shape[1])

    def grid_for(self, image_size: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of positions for images [H, W] at this patch stride."""
        return patch_grid(image_size, self.visual.patch_size, stride)

    def layer_of(self, name: str) -> int | None:
        """The layer of a parameter, as `model.towers` says."""
        if block := re.match(r"visual\.transformer\.resblocks\.(\d+)\.", name):
            return int(block[1]) + 1
        if name.startswith("visual.ln_post."):
            return len(self.visual.transformer.resblocks)
        return None if name == "visual.proj" else 0

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks keep only their inputs, and are computed again for the gradient."""
        self.visual.set_grad_checkpointing(enable)

    def forward(self, images: Tensor, side: SideInfo | None = None) -> ImageFeatures:
        """Images [B, 3, H, W] -> class tokens; another size than the tower's has its position table resized."""
        visual = self.visual
        patches = visual.conv1(images)  # [B, D, h, w]
        positions = resize_positions(visual.positional_embedding, self.grid, tuple(patches.shape[2:]))
        token = visual.class_embedding.expand(images.shape[0], 1, -1)  # [B, 1, D]
        if self.side is not None and side is not None:
            token = token + self.side(side)[:, None]
        tokens = torch.cat([token, patches.flatten(2).transpose(1, 2)], dim=1)  # [B, 1 + h*w, D]
        penultimate, last = self._run_blocks(visual.ln_pre(tokens + positions))
        last = visual.ln_post(last)
        return ImageFeatures(penultimate, last, last @ visual.proj)

    def _run_blocks(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, D] -> the class token [B, D] before the last block and after it, which computes it alone."""
        transformer = self.visual.transformer
        if self.by_blocks:
            # Counted from the end, so that any depth works.
            _, (penultimate, last) = transformer.forward_intermediates(tokens, indices=2)
            return penultimate[:, 0], last[:, 0]
        run = partial(checkpoint, run_block, use_reentrant=False) if transformer.grad_checkpointing else run_block
        *blocks, last_block = transformer.resblocks
        for block in blocks:
            tokens, _ = run(block, tokens)
        last, _ = run(last_block, tokens, slice(1))
        return tokens[:, 0], last[:, 0]


class ResNetTower(nn.Module):
    """CLIP's ResNet with its last stage at stride 1, so that features have a sixteenth of the image's size.

    There is no class token, hence no side information, and the stride is always 16.

    With several modalities (visible, infrared) each has a stem of its own (CCLNet; Chen et al., 2023): all start as
    CLIP's, and everything behind them is shared. Which stem an image takes is in its side information.

    Args:
        visual: open_clip's tower; the strides of its last stage and its position table are changed in place.
        image_size: (H, W) in pixels.
        pooling: of the last feature: "auto", the mean over the map, or "gem", the generalised mean of exponent 3.
        modalities: how many there are.

    Attributes: as `ViTTower`, and
        stems: of modalities 1 and up; the first one's is in `visual`.

    Raises:
        WeightsError: a pooling that it does not have.
    """

    positions = "visual.attnpool.positional_embedding"
    side = None
    STRIDE = (16, 16)

    def __init__(
        self,
        visual: ModifiedResNet,
        image_size: tuple[int, int],
        stride=STRIDE,
        side: None = None,
        *,
        pooling: str = AUTO,
        modalities: int = 1,
    ):
        super().__init__()
        first, pool = visual.layer4[0], visual.attnpool
        first.avgpool = first.downsample[0] = nn.Identity()  # the two average pools that halve the size
        self.grid = self.grid_for(image_size)
        old = round((len(pool.positional_embedding) - 1) ** 0.5)
        pool.positional_embedding = nn.Parameter(
            resize_positions(pool.positional_embedding.data, (old, old), self.grid)
        )
        self.visual = visual
        self.stems = nn.ModuleList(Stem(visual) for _ in range(1, modalities))
        if pooling not in POOLINGS:
            raise WeightsError(
                f"MODEL.POOLING: invalid value {pooling} for CLIP's ResNet; expected one of {', '.join(POOLINGS)}"
            )
        self.pool = POOLINGS[pooling]
        widths = (stage[-1].bn3.num_features for stage in (visual.layer3, visual.layer4))
        self.dims = (*widths, pool.c_proj.out_features)

    def grid_for(self, image_size: tuple[int, int], stride: tuple[int, int] = STRIDE) -> tuple[int, int]:
        """Rows and columns of positions for images [H, W]: a convolution of stride 2, then three pools of 2."""
        rows, columns = ((size + 1) // 2 // 8 for size in image_size)
        return rows, columns

    def forward(self, images: Tensor, side: SideInfo | None = None) -> ImageFeatures:
        """Images [B, 3, H, W] -> means over the last two stages, and what the attention pool makes of the last.

        Raises:
            ValueError: there are several stems, and an image's modality is not given or has none.
        """
        visual = self.visual
        maps = self._through_stems(images, side) if len(self.stems) else visual.stem(images)
        penultimate = visual.layer3(visual.layer2(visual.layer1(maps)))  # [B, Dp, h, w]
        last = visual.layer4(penultimate)  # [B, D, h, w]
        table = resize_positions(visual.attnpool.positional_embedding, self.grid, tuple(last.shape[2:]))
        projected = functional_call(visual.attnpool, {"positional_embedding": table}, last)
        return ImageFeatures(_mean(penultimate), self.pool(last), projected)

    def keep_stem(self, modality: int) -> None:
        """Become a tower for one modality, which takes no side information."""
        if modality:
            for name, layer in self.stems[modality - 1].named_children():
                setattr(self.visual, name, layer)
        self.stems = nn.ModuleList()

    def _through_stems(self, images: Tensor, side: SideInfo | None) -> Tensor:
        """Each image through its modality's stem, in the order of `images`."""
        if side is None or side.modalities is None:
            raise ValueError(
                "the image tower has a stem for each modality; expected side=SideInfo.unknown(modalities), for each of "
                f"the {len(images)} images 0 (visible) or 1 (infrared)"
            )
        modalities = side.modalities.cpu()  # where they are mostly: nobody waits for the device to tell shapes
        rows = [(modalities == number).nonzero()[:, 0] for number in range(1 + len(self.stems))]
        order = torch.cat(rows)
        if len(order) != len(images):
            raise ValueError(f"modalities: invalid value; expected 0 to {len(self.stems)}")
        # A modality without an image passes its stem by: batch norm has no statistics of nothing.
        stems: Sequence = (self.visual.stem, *self.stems)
        moved = order.to(images.device, non_blocking=True).split([len(mine) for mine in rows])
        maps = [stem(images[mine]) for stem, mine in zip(stems, moved, strict=True) if len(mine)]
        return torch.cat(maps)[order.argsort().to(images.device, non_blocking=True)]


class Stem(nn.Module):
    """A copy of a ResNet's first three convolutions, with their batch norms, and of its first pool."""

    LAYERS = ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv3", "bn3", "act3", "avgpool")

    def __init__(self, visual: ModifiedResNet):
        super().__init__()
        for name in self.LAYERS:
            self.add_module(name, deepcopy(getattr(visual, name)))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, H / 4, W / 4]"""
        for layer in self.children():
            images = layer(images)
        return images


def _mean(maps: Tensor) -> Tensor:
    """[B, D, h, w] -> [B, D]; of half-precision maps in fp32, as losses and ranking see it."""
    return maps.mean(dim=(2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))


def _generalised_mean(maps: Tensor, exponent: float = 3.0, eps: float = 1e-12) -> Tensor:
    """[B, D, h, w], not negative -> [B, D], as `_mean` (GeM: Radenovic et al., 2019); the exponent is not trained."""
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return (maps.pow(exponent).mean(dim=(2, 3)) + eps).pow(1 / exponent)


POOLINGS = {AUTO: _mean, "gem": _generalised_mean}


class TextTower(nn.Module):
    """CLIP's text transformer, entered after the token embedding."""

    attn_mask: Tensor

    def __init__(self, clip: open_clip.CLIP):
        super().__init__()
        self.transformer = clip.transformer
        self.positional_embedding = clip.positional_embedding
        self.ln_final = clip.ln_final
        self.text_projection = clip.text_projection
        self.register_buffer("attn_mask", clip.attn_mask, persistent=False)

    @torch.no_grad()
    def read(self, words: Tensor) -> list[Past]:
        """Token embeddings [N, t, W] that sentences begin with -> what every block keeps of them, without gradient."""
        length, pasts = words.shape[1], []
        x, mask = words + self.positional_embedding[:length], self.attn_mask[:length, :length]
        *blocks, last = self.transformer.resblocks
        for block in blocks:
            x, past = run_block(block, x, mask=mask)
            pasts.append(past)
        return [*pasts, remember(last, x)]

    def forward(self, prompts: Tensor, end: int, pasts: Sequence[Past] = ()) -> Tensor:
        """Token embeddings [N, L, W] and the end-of-text position -> features [N, E].

        Attention is causal: what comes after `end` cannot reach it, so it is cut off before anything is computed. Of
        the last block, only the token at `end` is.

        Args:
            pasts: what `read` made of the first tokens of each, which are not computed again; gradients end there.
        """
        known = pasts[0].keys.shape[2] if pasts else 0
        x = prompts[:, known : end + 1] + self.positional_embedding[known : end + 1]
        mask = self.attn_mask[known : end + 1, : end + 1]
        blocks = self.transformer.resblocks
        for block, past in zip(blocks, pasts or [None] * len(blocks), strict=True):
            wanted = slice(-1, None) if block is blocks[-1] else None
            x, _ = run_block(block, x, wanted, past=past, mask=mask if wanted is None else mask[wanted])
        return self.ln_final(x[:, -1]) @ self.text_projection


def patch_grid(image_size, patch, stride) -> tuple[int, int]:
    """Rows and columns of patches, ((H - p) // s + 1, (W - p) // s + 1)."""
    rows, columns = ((size - p) // s + 1 for size, p, s in zip(image_size, patch, stride, strict=True))
    return rows, columns


def resize_positions(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position table [..., p + h*w, D] for grid `old` -> the same for grid `new`; the p rows before it stay.

    Bilinear without antialiasing, as CLIP-ReID does it; open_clip's own helper is bicubic and antialiased, which
    changes the features by 3e-3.
    """
    if tuple(old) == tuple(new):
        return embedding
    *lengths, rows, width = embedding.shape
    prefix, patches = rows - old[0] * old[1], old[0] * old[1]
    shape = (*lengths, prefix + new[0] * new[1], width)
    if embedding.is_meta:  # see model/shapes.py
        return embedding.new_empty(shape)
    tokens, grid = embedding.flatten(0, -2).split([prefix, patches])
    grid = grid.reshape(1, *old, width).permute(0, 3, 1, 2)  # [1, D, h, w]
    grid = F.interpolate(grid, size=new, mode="bilinear", align_corners=False, antialias=False)
    return torch.cat([tokens, grid.flatten(2).transpose(1, 2)[0]]).reshape(shape)
