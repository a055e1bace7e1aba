"""Features once, then every trial of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from model.svllreid import SvllReid
from processor.features import compute_features
from utils.distributed import on_main
from utils.metrics import rank, rank_features
from utils.records import Batch, Benchmark, Evaluation, Labels, Ranking, Reranking, Sample, SideInfo
from utils.reranking import rerank


def evaluate(
    model: SvllReid,
    benchmark: Benchmark,
    loader: Callable[[Sequence[Sample]], Iterable[Batch]],
    *,
    device: torch.device,
    neck: bool = False,
    normalise: bool = True,
    reranking: Reranking | None = None,
    side: str = "same",
) -> Evaluation:
    """Rank every trial's gallery for its queries, in fp32 whatever the training's precision.

    Several processes share the images; the main one ranks, all get the result, or the error.

    Args:
        model: on `device`; left in eval mode.
        loader: samples -> batches in their order, test transform; of several processes, each has its share of them.
        neck: compare features after the batch-norm necks.
        normalise: compare features of length 1.
        reranking: rank by k-reciprocal distances instead.
        side: "same" takes cameras and viewpoints as they are, "mean" takes the mean over all that the network knows,
            "none" leaves side information out.

    Raises:
        DataError: an image cannot be read; features that are not finite; a trial without any valid query.
    """
    samples = {sample: None for trial in benchmark.trials for side in trial for sample in side}  # a set with an order
    rows = {sample: row for row, sample in enumerate(samples)}
    features = embed_all(model, loader(list(samples)), device=device, neck=neck, side=side)
    if normalise:
        features = F.normalize(features, dim=1)

    def rank_all() -> tuple[Ranking, ...]:
        rankings = []
        for trial in benchmark.trials:
            query, gallery = (features[[rows[sample] for sample in side]] for side in trial)
            labels = (Labels.of(side) for side in trial)
            if reranking is None:
                rankings.append(rank_features(query, gallery, *labels, ignored=benchmark.ignored))
            else:
                rankings.append(rank(rerank(query, gallery, *reranking), *labels, ignored=benchmark.ignored))
        return tuple(rankings)

    return Evaluation(on_main(rank_all), reranking, side)


@torch.no_grad()
def embed_all(
    model: SvllReid, batches: Iterable[Batch], *, device: torch.device, neck: bool = False, side: str = "same"
) -> Tensor:
    """The vectors [N, D + E] that retrieval compares, for all images of `batches`, in fp32; `side` as in `evaluate`.

    Of several processes, each has a share of the `batches`; all get all vectors.
    """
    model.eval()

    def embed(batch: Batch) -> Tensor:
        return model.embed(batch.images, _known(batch.side, side), neck=neck)

    features = compute_features(batches, embed, device=device, what="features").features
    # Ranking needs double precision, which MPS lacks.
    return features.cpu() if device.type == "mps" else features


def _known(side: SideInfo, how: str) -> SideInfo | None:
    if how == "mean":
        return SideInfo(*(torch.full_like(ids, -1) for ids in side))
    return {"same": side, "none": None}[how]
