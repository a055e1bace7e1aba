"""CLIP's transformer blocks, computed for no more tokens than are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

QUERIES, KEYS, END = 0, 1, 3  # thirds of the layer that makes queries, keys and values, in this order


class Past(NamedTuple):
    """What a block keeps of tokens for those that come after them."""

    keys: Tensor  # [N, heads, t, d]
    values: Tensor  # [N, heads, t, d]


def pick(pasts: Sequence[Past], rows: Tensor) -> list[Past]:
    """Of every block's tokens [N, ...], those of some `rows` [M], each as often as it is named."""
    return [Past(past.keys[rows], past.values[rows]) for past in pasts]


def remember(block: ResidualAttentionBlock, tokens: Tensor) -> Past:
    """Tokens [N, t, W] that a block gets -> what it keeps of them."""
    return Past(*_project(block.attn, block.ln_1(tokens), KEYS, END))


def run_block(
    block: ResidualAttentionBlock,
    tokens: Tensor,
    wanted: slice | None = None,
    *,
    past: Past | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Past]:
    """A block's output for some of its tokens, and what it keeps of all of them and of those before.

    Its own forward computes all tokens. One whose output nobody reads needs only its key and value, a sixth of the
    arithmetic, and one of the `past` needs nothing.

    Args:
        tokens: [N, T, W].
        wanted: which w of the T tokens; None for all.
        past: of t tokens before these.
        mask: [w, t + T], added to the scores; None where every token sees all.

    Returns:
        [N, w, W], and of t + T tokens.
    """
    normed = block.ln_1(tokens)
    if wanted is None:
        query, key, value = _project(block.attn, normed, QUERIES, END)
    else:
        # What is not contiguous is multiplied in another order where the weight trains than where it is frozen.
        (query,) = _project(block.attn, normed[:, wanted].contiguous(), QUERIES, KEYS)
        key, value = _project(block.attn, normed, KEYS, END)
        tokens = tokens[:, wanted]
    if past is not None:
        key, value = torch.cat([past.keys, key], dim=2), torch.cat([past.values, value], dim=2)
    mask = None if mask is None else mask.to(query.dtype)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # [N, heads, w, d]
    tokens = tokens + block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).flatten(2)))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens))), Past(key, value)


def _project(attention: nn.MultiheadAttention, normed: Tensor, first: int, end: int) -> list[Tensor]:
    """[N, T, W] -> those of queries, keys and values from `first` to before `end`, each [N, heads, T, d]."""
    rows = slice(first * attention.embed_dim, end * attention.embed_dim)
    weight, bias = attention.in_proj_weight[rows], attention.in_proj_bias[rows]
    parts = F.linear(normed, weight, bias).chunk(end - first, dim=-1)
    return [part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts]
