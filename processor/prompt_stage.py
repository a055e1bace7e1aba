"""Stage 1: a prompt for every identity; both towers are frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from loss.contrast import ImageTextContrast
from loss.self_supervised import NTXent
from loss.weighing import weigh
from model.blocks import Past, pick
from model.svllreid import SvllReid
from model.towers import stem_only
from processor.features import compute_features
from utils.devices import computing_in
from utils.distributed import in_shares
from utils.records import FP32, Batch, FeatureBatch, Losses, Part, to_device_at_once
from utils.seeds import derive


class PromptStage(nn.Module):
    """Only the prompts' learned tokens train (CLIP-ReID §3.2; SVLL-ReID for the language self-supervision).

    Several processes are given the same batches and draw the same augmentations; each puts a share of the prompts
    through the text tower.

    Args:
        model: with text tower and prompts; everything but the learned tokens is frozen here.
        weights: "image_text" (both directions), which is always there, and "language_ssl"; 0.0 is off.
        augment: prompts [U, L, W] -> one augmented view; called twice.
        moving: whether `augment` moves tokens to other places. Where it does not, no gradient can reach the words
            before the learned tokens, and they are computed without.
        train_projector: whether the text projector trains, too. As published it does not: it stays at its random start
            and keeps to batch statistics, so that language self-supervision acts through a fixed random network.
    """

    def __init__(
        self,
        model: SvllReid,
        *,
        weights: dict[str, float],
        augment: Callable[[Tensor], Tensor],
        moving: bool = False,
        train_projector: bool = False,
    ):
        super().__init__()
        self.model = model.requires_grad_(False)
        model.prompts.context.requires_grad_(True)
        if train_projector and model.text_projector is not None:
            model.text_projector.requires_grad_(True)
        self.weights = weights
        self.augment, self.moving = augment, moving
        self.templates: list[Past] = []  # what the text tower keeps of their first words, once it has read them
        self.contrast = ImageTextContrast()
        self.self_contrast = NTXent()

    def forward(self, batch: FeatureBatch) -> Losses:
        """The tower runs once, over each identity of the batch and its two augmented views."""
        model = self.model
        pids, rows = batch.distinct, batch.rows
        if pids is None:
            pids, rows = batch.pids.unique(return_inverse=True)
        copies = [model.prompts(pids)]  # [U, L, W]
        # A single identity has no negatives, and batch norm no statistics.
        if self.weights["language_ssl"] > 0 and len(pids) > 1:
            copies += [self.augment(copies[0]), self.augment(copies[0])]
        encoded = in_shares(self._encode, model.prompts.template_of(pids), *copies)
        texts, *views = encoded.unbind(dim=1)  # each [U, E]
        if len(model.prompts.counts) > 1:
            parts = parts_of(*map(model.prompts.parts, (batch.pids, pids))) if batch.parts is None else batch.parts
            return self._by_template(batch, parts, texts[rows], views)
        terms = {"image_text": self.contrast(batch.features, texts[rows], batch.pids)}
        if views:
            terms["language_ssl"] = self._compare(views)
        return weigh(terms, self.weights)

    def _encode(self, templates: Tensor, *copies: Tensor) -> Tensor:
        """The number of each prompt's template [U], prompts [U, L, W] and their views -> [U, copies, E]."""
        text, prompts, pasts = self.model.text, self.model.prompts, []
        copies = tuple(copy[:, : prompts.end + 1] for copy in copies)  # before they are copied once more
        if not self.moving or len(copies) == 1:
            self.templates = self.templates or text.read(prompts.prefix)
            pasts = pick(self.templates, templates)
        if pasts and len(copies) > 1:
            of_views = text.read(torch.cat([view[:, : prompts.prefix.shape[1]] for view in copies[1:]]))
            pasts = [Past(*map(torch.cat, zip(*both, strict=True))) for both in zip(pasts, of_views, strict=True)]
        return torch.stack(text(torch.cat(copies), prompts.end, pasts).chunk(len(copies)), dim=1)

    def _by_template(
        self, batch: FeatureBatch, parts: Sequence[Part], texts: Tensor, views: Sequence[Tensor]
    ) -> Losses:
        """The same within the identities of each template, summed over templates (CCLNet: within each modality)."""
        terms: dict[str, Tensor] = {}

        def add(name: str, value: Tensor) -> None:
            terms[name] = terms[name] + value if name in terms else value

        for own, prompted in parts:
            add("image_text", self.contrast(batch.features[own], texts[own], batch.pids[own]))
            if views and len(prompted) > 1:
                add("language_ssl", self._compare([view[prompted] for view in views]))
        return weigh(terms, self.weights)

    def _compare(self, views: Sequence[Tensor]) -> Tensor:
        return self.self_contrast(*(self.model.text_projector(view) for view in views))


@torch.no_grad()
def cache_features(
    model: SvllReid, batches: Iterable[Batch], device: torch.device, *, precision: str = FP32
) -> FeatureBatch:
    """Features [N, E] of all images, in the space shared with text, without side information (as published).

    Of several processes, each has a share of the `batches`; all get all features.

    Args:
        precision: of the tower, "fp32", "bf16" or "tf32".
    """
    model.eval()
    with computing_in(precision, device):
        return compute_features(
            batches,
            lambda batch: model.encode_image(batch.images, stem_only(model.image, batch.side)).projected,
            device=device,
            what="features of the training images",
        )


@torch.no_grad()
def matching_accuracy(cache: FeatureBatch, texts: Tensor, size: int = 4096) -> dict[str, float]:
    """How often an image's best text, and a text's best image, is of its own identity; fractions.

    On the features that the prompts were trained with: it shows that training worked, not how well people are found.

    Args:
        cache: features [N, E] of all images and their identities.
        texts: [P, E], features of all identities.
        size: images at once.
    """
    best_score = torch.full((len(texts),), -torch.inf, device=texts.device)
    best_pid = torch.full_like(best_score, -1, dtype=torch.long)
    right = 0
    for features, pids in zip(cache.features.split(size), cache.pids.split(size), strict=True):
        scores = features @ texts.T  # [B, P], as the loss sees them: not of length 1
        right += int((scores.argmax(dim=1) == pids).sum())
        score, row = scores.max(dim=0)
        better = score > best_score
        best_score, best_pid = torch.where(better, score, best_score), torch.where(better, pids[row], best_pid)
    wanted = torch.arange(len(texts), device=texts.device)
    return {
        "image_to_text": right / len(cache.pids),
        "text_to_image": int((best_pid == wanted).sum()) / len(texts),
    }


class DrawnBatches:
    """Batches of cached features; `len` is exact.

    Which identities are in each is found out here, on the CPU, and moved to the device at once: no step waits for it.

    Args:
        rows: of the features in every batch, on the CPU.
        parts: of several templates, which features [N] are its own, on the CPU.
    """

    def __init__(self, cache: FeatureBatch, rows: Sequence[Tensor], parts: Sequence[Tensor] = ()):
        self.cache, pids = cache, cache.pids.cpu()
        found = []
        for some in rows:
            distinct, inverse = pids[some].unique(return_inverse=True)
            own = [part[some] for part in parts]
            theirs = [torch.zeros_like(distinct, dtype=torch.bool).index_fill(0, inverse[mine], True) for mine in own]
            found.append((some, distinct, inverse, *chain(*parts_of(own, theirs))))
        columns = (to_device_at_once(column, cache.pids.device) for column in zip(*found, strict=True))
        self.batches = list(zip(*columns, strict=True))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[FeatureBatch]:
        for rows, distinct, inverse, *parts in self.batches:
            known = [Part(*both) for both in zip(parts[::2], parts[1::2], strict=True)] or None
            yield FeatureBatch(self.cache.features[rows], self.cache.pids[rows], distinct, inverse, known)


def parts_of(images: Sequence[Tensor], identities: Sequence[Tensor]) -> list[Part]:
    """Of several templates those that have any: whose are the images [B] of a batch and its distinct identities [U]."""
    parts = [Part(*(mask.nonzero()[:, 0] for mask in both)) for both in zip(images, identities, strict=True)]
    return [part for part in parts if len(part.images)]


class FeatureBatches(DrawnBatches):
    """Cached features in random order, in batches; every image once an epoch, the last batch may be short.

    (Published code makes an empty last batch where the size divides the number of images, and stops.)
    """

    def __init__(self, cache: FeatureBatch, size: int, *, seed: int, epoch: int, done: int = 0):
        # Drawn on the CPU, so that every device sees the same order.
        generator = torch.Generator().manual_seed(derive(seed, epoch))
        order = torch.randperm(len(cache.pids), generator=generator)
        order = order[done * size :]  # without batches that an earlier run has seen
        super().__init__(cache, order.split(size) if len(order) else ())  # split makes an empty batch of nothing


class BalancedBatches(DrawnBatches):
    """`size` cached features of each part, e.g. of each modality, in every batch (CCLNet; Chen et al., 2023).

    Parts are in random orders of their own, every image of the longest once an epoch; the others are filled up with
    further random orders of their images. A part without images is left out.
    """

    def __init__(
        self, cache: FeatureBatch, parts: Sequence[Tensor], size: int, *, seed: int, epoch: int, done: int = 0
    ):
        parts = [part.cpu() for part in parts]
        rows = [part.nonzero()[:, 0] for part in parts if part.any()]
        longest = max(map(len, rows))
        orders = []
        for number, mine in enumerate(rows):
            generator = torch.Generator().manual_seed(derive(seed, epoch, number))
            rounds = -(-longest // len(mine))
            drawn = [torch.randperm(len(mine), generator=generator) for _ in range(rounds)]
            orders.append(mine[torch.cat(drawn)[:longest]])
        batches = zip(*(order.split(size) for order in orders), strict=True)
        super().__init__(cache, [torch.cat(drawn) for drawn in batches][done:], parts)
