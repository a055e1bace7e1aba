"""A learnable prompt for every identity, and its three augmentations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

CONTEXT = 4  # learned tokens a prompt: "A photo of a X X X X person."


class PromptLearner(nn.Module):
    """The template's token embeddings with `CONTEXT` learned tokens of each identity in the gap.

    Only the embeddings of the template's own words are kept (as buffers); the embedding table itself is not.

    There may be several templates, e.g. one for each modality: the identities of the second are numbered after those of
    the first.

    Args:
        num_pids: identities; of several templates, of each.
        template: a prompt with {} where the learned tokens go, e.g. "A photo of a {} person.", or several, equally
            long before and behind the gap.
        token_embedding: CLIP's table [vocabulary, W].
        tokenizer: CLIP's tokenizer, list of texts -> token ids [N, L].

    Attributes:
        counts: identities of each template.
        prefix, suffix: embeddings of each template's tokens before the gap and behind it [templates, l, W].
        end: position of the end-of-text token.
        trained: whether the tokens were trained, here or in the run that a file comes from.

    Raises:
        ValueError: the template has no gap between its words, is too long for the context, or has a word that the
            embedding table does not know; several of unequal length.
    """

    prefix: Tensor
    suffix: Tensor

    def __init__(
        self,
        num_pids: int | Sequence[int],
        template: str | Sequence[str],
        token_embedding: nn.Embedding,
        tokenizer: Callable,
    ):
        super().__init__()
        templates = (template,) if isinstance(template, str) else tuple(template)
        counts = (num_pids,) if isinstance(num_pids, int) else tuple(num_pids)
        embedded, places = zip(*(_embed(each, token_embedding, tokenizer) for each in templates), strict=True)
        if len(set(places)) > 1 or len(counts) != len(templates):
            raise ValueError(
                f"templates {templates}, identities {counts}: expected equally long ones, a number for each"
            )
        start, self.end = places[0]
        table = torch.cat(embedded)  # [templates, L, W]
        self.register_buffer("prefix", table[:, :start].clone())
        self.register_buffer("suffix", table[:, start + CONTEXT :].clone())
        self.resize(counts)

    def resize(self, counts: Sequence[int], generator: Generator | None = None) -> None:
        """Begin anew with so many identities of each template."""
        self.counts, self.trained = tuple(counts), False
        shape, device = (sum(counts), CONTEXT, self.prefix.shape[-1]), self.prefix.device
        # Drawn on the CPU, so that every device has the same start.
        self.context = nn.Parameter((0.02 * torch.randn(shape, generator=generator)).to(device))

    def parts(self, pids: Tensor) -> list[Tensor]:
        """Identities [N] -> for each template, which of them are its own, bool [N]."""
        parts, start = [], 0
        for count in self.counts:
            parts.append((pids >= start) & (pids < start + count))
            start += count
        return parts

    def template_of(self, pids: Tensor) -> Tensor:
        """Identities [N] -> the number of each one's template [N]."""
        if len(self.counts) == 1:
            return torch.zeros_like(pids)
        return torch.stack(self.parts(pids)).int().argmax(dim=0)

    def forward(self, pids: Tensor) -> Tensor:
        """Identities [N] -> token embeddings [N, L, W] over the full context."""
        n, prefix, suffix = len(pids), self.prefix, self.suffix
        if len(self.counts) > 1:
            which = self.template_of(pids)
            prefix, suffix = prefix[which], suffix[which]
        return torch.cat([prefix.expand(n, -1, -1), self.context[pids], suffix.expand(n, -1, -1)], dim=1)


def _embed(template: str, token_embedding: nn.Embedding, tokenizer: Callable) -> tuple[Tensor, tuple[int, int]]:
    """A template's token embeddings [1, L, W], and where its gap starts and its text ends."""
    if template.count("{}") != 1:
        raise ValueError(f"template {template!r}: expected {{}} exactly once, where the learned tokens go")
    tokens = tokenizer([template.format(" ".join(["X"] * CONTEXT))])  # [1, L]
    # The words before the gap, less the end-of-text token, are the start of the full prompt, too.
    start = int(tokenizer([template.partition("{}")[0]]).argmax())
    end = int(tokens.argmax())  # the end-of-text token has the largest id
    gap = tokens[0, start : start + CONTEXT]
    if not (gap == tokenizer(["X"])[0, 1]).all() or end < start + CONTEXT:
        raise ValueError(f"template {template!r}: {{}} must stand between spaces, within the context of the tower")
    with torch.no_grad():
        embedded = token_embedding(tokens)  # [1, L, W]
    if not torch.isfinite(embedded).all():
        raise ValueError(f"template {template!r}: a word is not in the vocabulary that these weights were trained on")
    return embedded, (start, end)


def mask(prompts: Tensor, strength: float, generator: Generator | None = None) -> Tensor:
    """Zero every number of [N, L, W] with probability `strength`; what is left is not rescaled."""
    kept = torch.rand(prompts.shape, generator=generator, device=prompts.device) >= strength
    return prompts * kept


def swap(prompts: Tensor, strength: float, generator: Generator | None = None) -> Tensor:
    """Permute the embeddings of floor(strength * L) positions of every prompt [N, L, W] among themselves.

    Start, end and padding may move, as published; the read-out position stays.
    """
    n, length, width = prompts.shape
    count = int(strength * length)

    def shuffled(size: int) -> Tensor:
        return torch.rand(n, size, generator=generator, device=prompts.device).argsort(dim=1)

    to = shuffled(length)[:, :count]
    source = to.gather(1, shuffled(count))
    moved = prompts.gather(1, source[..., None].expand(-1, -1, width))
    return prompts.scatter(1, to[..., None].expand(-1, -1, width), moved)


def mix(prompts: Tensor, strength: float, generator: Generator | None = None) -> Tensor:
    """Blend every prompt of [N, L, W] with another one: (1 - strength) * own + strength * other.

    The partner is uniform over the others and taken from the originals. (Published code never draws the last prompt,
    may draw the prompt itself and mixes rows that are mixed already.) A single prompt has no partner and stays.
    """
    n = len(prompts)
    if n < 2:
        return prompts
    steps = torch.randint(1, n, (n,), generator=generator, device=prompts.device)
    other = (torch.arange(n, device=prompts.device) + steps) % n
    return torch.lerp(prompts, prompts[other], strength)


AUGMENTATIONS = {"mask": mask, "swap": swap, "mix": mix}
MOVING = ("swap",)  # those by which tokens change their places


def words_only(augment: Callable[[Tensor], Tensor], end: int) -> Callable[[Tensor], Tensor]:
    """An augmentation that leaves start, end (at position `end`) and padding as they are.

    Published code augments the whole context: with `mask`, half of the read-out position is lost; with
    `swap`, most words are replaced with padding.
    """

    def augmented(prompts: Tensor) -> Tensor:
        return torch.cat([prompts[:, :1], augment(prompts[:, 1:end]), prompts[:, end:]], dim=1)

    return augmented
