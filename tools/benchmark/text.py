"""Stage 1's text tower, forward and backward: prompts cut at their end, and one prompt for each identity.

The published way puts all positions of the context through the tower, for every image of a batch. Attention is causal,
so the features at the end of the text are the same without what follows it.
"""

from __future__ import annotations

from collections.abc import Iterator

import open_clip
import torch
from torch import Tensor

from model.clip import TextTower
from model.pretrained import QUICK_GELU, build_clip
from model.prompts import PromptLearner
from tools.benchmark.measure import Case, Setting, Way, flops_of

TEMPLATE = "A photo of a {} person."


def cases(setting: Setting) -> Iterator[Case]:
    """A batch of the size that the command line says."""
    clip = build_clip(setting.name, QUICK_GELU)
    tower = TextTower(clip).to(setting.device).requires_grad_(False)
    prompts = PromptLearner(setting.identities, TEMPLATE, clip.token_embedding, open_clip.tokenize).to(setting.device)
    images = torch.arange(setting.batch, device=setting.device) % setting.identities
    context = prompts.prefix.shape[1] + prompts.context.shape[1] + prompts.suffix.shape[1]

    def way(name: str, pids: Tensor, end: int) -> Way:
        def step() -> None:
            prompts.zero_grad()
            tower(prompts(pids), end).sum().backward()

        return Way(f"{name}: {len(pids)} prompts of {end + 1} tokens", step, flops_of(step))

    yield Case(
        f"text tower of {setting.name}, forward and backward",
        (
            way("textbook", images, context - 1),
            way("cut at the end", images, prompts.end),
            way("ours", images.unique(), prompts.end),
        ),
    )
