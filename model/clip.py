"""CLIP's towers, from open_clip, opened up for re-identification."""

from __future__ import annotations

import re

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from model.heads import SideEmbedding
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
    """

    positions = "visual.positional_embedding"

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
        # Blocks are counted from the end, so that any depth works.
        _, (penultimate, last) = visual.transformer.forward_intermediates(visual.ln_pre(tokens + positions), indices=2)
        last = visual.ln_post(last[:, 0])
        return ImageFeatures(penultimate[:, 0], last, last @ visual.proj)


class ResNetTower(nn.Module):
    """CLIP's ResNet with its last stage at stride 1, so that features have a sixteenth of the image's size.

    There is no class token, hence no side information, and the stride is always 16.

    Args:
        visual: open_clip's tower; the strides of its last stage and its position table are changed in place.
        image_size: (H, W) in pixels.

    Attributes: as `ViTTower`.
    """

    positions = "visual.attnpool.positional_embedding"
    side = None
    STRIDE = (16, 16)

    def __init__(self, visual: ModifiedResNet, image_size: tuple[int, int], stride=STRIDE, side: None = None):
        super().__init__()
        first, pool = visual.layer4[0], visual.attnpool
        first.avgpool = first.downsample[0] = nn.Identity()  # the two average pools that halve the size
        self.grid = self.grid_for(image_size)
        old = round((len(pool.positional_embedding) - 1) ** 0.5)
        pool.positional_embedding = nn.Parameter(
            resize_positions(pool.positional_embedding.data, (old, old), self.grid)
        )
        self.visual = visual
        widths = (stage[-1].bn3.num_features for stage in (visual.layer3, visual.layer4))
        self.dims = (*widths, pool.c_proj.out_features)

    def grid_for(self, image_size: tuple[int, int], stride: tuple[int, int] = STRIDE) -> tuple[int, int]:
        """Rows and columns of positions for images [H, W]: a convolution of stride 2, then three pools of 2."""
        rows, columns = ((size + 1) // 2 // 8 for size in image_size)
        return rows, columns

    def forward(self, images: Tensor, side: SideInfo | None = None) -> ImageFeatures:
        """Images [B, 3, H, W] -> means over the last two stages, and what the attention pool makes of the last."""
        visual = self.visual
        penultimate = visual.layer3(visual.layer2(visual.layer1(visual.stem(images))))  # [B, Dp, h, w]
        last = visual.layer4(penultimate)  # [B, D, h, w]
        table = resize_positions(visual.attnpool.positional_embedding, self.grid, tuple(last.shape[2:]))
        projected = functional_call(visual.attnpool, {"positional_embedding": table}, last)
        return ImageFeatures(_mean(penultimate), _mean(last), projected)


def _mean(maps: Tensor) -> Tensor:
    """[B, D, h, w] -> [B, D]; of half-precision maps in fp32, as losses and ranking see it."""
    return maps.mean(dim=(2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))


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

    def forward(self, prompts: Tensor, end: int) -> Tensor:
        """Token embeddings [N, L, W] and the end-of-text position -> features [N, E].

        Attention is causal: what comes after `end` cannot reach it, so it is cut off before anything is computed.
        """
        length = end + 1
        x = prompts[:, :length] + self.positional_embedding[:length]
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        return self.ln_final(x[:, end]) @ self.text_projection


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
    rows = embedding.flatten(0, -2)
    tokens, patches = rows.split([len(rows) - old[0] * old[1], old[0] * old[1]])
    grid = patches.reshape(1, *old, -1).permute(0, 3, 1, 2)  # [1, D, h, w]
    grid = F.interpolate(grid, size=new, mode="bilinear", align_corners=False, antialias=False)
    rows = torch.cat([tokens, grid.flatten(2).transpose(1, 2)[0]])
    return rows.reshape(*embedding.shape[:-2], *rows.shape)
