"""A step of stage 1 with language self-supervision, forward and backward.

The published way puts a prompt and two augmented views for every image of a batch through the text tower, at all
positions of the context. Ours computes each identity once, no position behind the end of the text, of the last block
that one alone, and without gradient the words before the learned tokens, once for all prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Generator, Tensor

from model.clip import TextTower
from model.prompts import mask
from processor.prompt_stage import PromptStage
from tools.benchmark.measure import Case, Setting, Way, counts_of
from tools.benchmark.network import make_network
from utils.records import FeatureBatch

WEIGHT = 0.8  # of the language self-supervision


def cases(setting: Setting) -> Iterator[Case]:
    """A batch of the size that the command line says."""
    model = make_network(setting)
    augment = partial(mask, strength=0.5, generator=Generator(setting.device).manual_seed(0))
    stage = PromptStage(model, weights={"image_text": 1.0, "language_ssl": WEIGHT}, augment=augment).train()
    pids = torch.arange(setting.batch, device=setting.device) % setting.identities
    features = torch.randn(len(pids), model.image.dims[2], device=setting.device)
    batch = FeatureBatch(features, pids, *pids.unique(return_inverse=True))

    def way(name: str, loss) -> Way:
        def step() -> None:
            model.prompts.zero_grad()
            loss(stage, batch).backward()

        return Way(name, step, **counts_of(step))

    yield Case(
        f"a step with the text tower of {setting.name}, {len(pids)} images of {setting.identities} identities",
        (way("textbook", textbook_loss), way("ours", lambda stage, batch: stage(batch).total)),
        steady=True,
    )


def textbook_loss(stage: PromptStage, batch: FeatureBatch) -> Tensor:
    """The losses of both terms, summed, with a prompt for every image."""
    model = stage.model
    prompts = model.prompts(batch.pids)
    copies = [prompts, stage.augment(prompts), stage.augment(prompts)]
    texts, *views = textbook_features(model.text, torch.cat(copies), model.prompts.end).chunk(3)
    return stage.contrast(batch.features, texts, batch.pids) + WEIGHT * stage._compare(views)


def textbook_features(tower: TextTower, prompts: Tensor, end: int) -> Tensor:
    """Token embeddings [N, L, W] -> features [N, E], by the blocks' own forward over all positions."""
    tokens = tower.transformer(prompts + tower.positional_embedding, attn_mask=tower.attn_mask)
    return tower.ln_final(tokens)[:, end] @ tower.text_projection
