"""Features once, then every trial of a benchmark."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.svllreid import SvllReid
from processor.features import compute_features
from utils.clock import duration
from utils.devices import computing_in
from utils.distributed import on_main
from utils.metrics import rank, rank_features
from utils.query_expansion import expand_queries
from utils.records import FP32, Batch, Benchmark, Evaluation, Labels, Ranking, Refinement, Sample, SideInfo
from utils.reranking import expected_cost, rerank

logger = logging.getLogger(__name__)
NOTHING_MORE = Refinement()
MANY = 10_000  # images whose re-ranking takes more than a few seconds
Loader = Callable[[Sequence[Sample]], Iterable[Batch]]  # samples -> batches in their order, test transform


class Features(NamedTuple):
    """Features of some samples."""

    samples: dict[Sample, int]  # -> row
    rows: Tensor  # [N, D + E]

    def of(self, samples: Sequence[Sample]) -> Tensor:
        """Those of `samples` [M], in their order. -> [M, D + E]"""
        return self.rows[[self.samples[sample] for sample in samples]]


def evaluate(
    model: SvllReid,
    benchmark: Benchmark,
    loader: Loader,
    *,
    device: torch.device,
    neck: bool = False,
    normalise: bool = True,
    refinement: Refinement = NOTHING_MORE,
    side: str = "same",
) -> Evaluation:
    """Rank every trial's gallery for its queries, in fp32 whatever the precision of training and towers.

    Several processes share the images; the main one ranks, all get the result, or the error.

    Args:
        model: on `device`; left in eval mode.
        loader: of several processes, each has its share of the batches.
        neck: compare features after the batch-norm necks.
        normalise: compare features of length 1.
        refinement: what is done besides; query expansion needs `normalise`.
        side: "same" takes cameras and viewpoints as they are, "mean" takes the mean over all that the network knows,
            "none" leaves side information out.

    Raises:
        DataError: an image cannot be read; features that are not finite; a trial without any valid query.
    """
    samples = [sample for trial in benchmark.trials for side in trial for sample in side]
    options: dict[str, Any] = {"device": device, "neck": neck, "side": side, **_of_features(refinement)}
    features = features_of(samples, model, loader, normalise=normalise, **options)
    rankings = on_main(lambda: rank_trials(benchmark, features, features, refinement))
    return Evaluation(rankings, refinement, side, benchmark.ranks)


def evaluate_changed(
    model: SvllReid,
    benchmark: Benchmark,
    loaders: Mapping[str, Loader],
    *,
    loader: Loader,
    normalise: bool = True,
    refinement: Refinement = NOTHING_MORE,
    **options: Any,
) -> Iterator[tuple[str, Evaluation]]:
    """An evaluation for each of `loaders`, of queries that it reads and a gallery that `loader` reads, by its name.

    The other arguments are those of `evaluate`.
    """
    read: Any = partial(features_of, normalise=normalise, **_of_features(refinement), **options)
    gallery = read(chain(*(trial.gallery for trial in benchmark.trials)), model, loader)
    for name, changed in loaders.items():
        queries = read(chain(*(trial.query for trial in benchmark.trials)), model, changed)
        rankings = on_main(partial(rank_trials, benchmark, queries, gallery, refinement))
        yield name, Evaluation(rankings, refinement, options.get("side", "same"), benchmark.ranks)


def features_of(
    samples: Iterable[Sample],
    model: SvllReid,
    loader: Loader,
    *,
    normalise: bool = True,
    **options: Any,
) -> Features:
    """Features of `samples`, each once; the arguments are those of `evaluate`, the options those of `embed_all`."""
    rows = {sample: row for row, sample in enumerate(dict.fromkeys(samples))}
    features = embed_all(model, loader(list(rows)), **options)
    return Features(rows, F.normalize(features, dim=1) if normalise else features)


def rank_trials(
    benchmark: Benchmark, queries: Features, galleries: Features, refinement: Refinement
) -> tuple[Ranking, ...]:
    """The ranking of every trial; expansion of queries comes before re-ranking."""
    rankings = []
    rules: Any = {"ignored": benchmark.ignored, "unique_identities": benchmark.unique_identities}
    for trial in benchmark.trials:
        query, gallery = queries.of(trial.query), galleries.of(trial.gallery)
        labels = (Labels.of(side) for side in trial)
        if refinement.query_expansion:
            query = expand_queries(query, gallery, *refinement.query_expansion)
        if refinement.re_ranking:
            _announce(query, gallery)
            distances = rerank(query, gallery, *refinement.re_ranking)
            rankings.append(rank(distances, *labels, **rules))
        else:
            rankings.append(rank_features(query, gallery, *labels, **rules))
    return tuple(rankings)


def _announce(query: Tensor, gallery: Tensor) -> None:
    """Say what re-ranking many images will take."""
    total = len(query) + len(gallery)
    if total >= MANY:
        cost = expected_cost(query, gallery)
        logger.info("re-ranking %d images: about %.1f GB, %s", total, cost.memory / 1e9, duration(cost.seconds))


def _of_features(refinement: Refinement) -> dict[str, Any]:
    """What of it happens to features, as options of `embed_all`."""
    return {"flip": refinement.flip, "precision": refinement.precision}


@torch.no_grad()
def embed_all(
    model: SvllReid,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    neck: bool = False,
    flip: bool = False,
    side: str = "same",
    precision: str = FP32,
) -> Tensor:
    """The vectors [N, D + E] that retrieval compares, for all images of `batches`, in fp32; `side` as in `evaluate`.

    Of several processes, each has a share of the `batches`; all get all vectors.

    Args:
        neck, flip: as `embed_images`.
        precision: of the towers, "fp32", "bf16" or "tf32".
    """
    model.eval()

    def embed(batch: Batch) -> Tensor:
        return embed_images(model, batch.images, _known(batch.side, side, model), neck=neck, flip=flip)

    with computing_in(precision, device):
        features = compute_features(batches, embed, device=device, what="features").features
    # Ranking needs double precision, which MPS lacks.
    return features.cpu() if device.type == "mps" else features


def embed_images(model: SvllReid, images: Tensor, side: SideInfo | None, *, neck: bool, flip: bool) -> Tensor:
    """Images [B, 3, H, W] -> the vectors [B, D + E] that retrieval compares, not yet normalised.

    Args:
        neck: after the batch-norm necks.
        flip: take the mean over an image and its mirror image, as usual of features that are not normalised; since a
            neck is affine, before or after it makes no difference.
    """
    features = model.embed(images, side, neck=neck)
    return (features + model.embed(images.flip(-1), side, neck=neck)) / 2 if flip else features


def _known(side: SideInfo, how: str, model: SvllReid) -> SideInfo | None:
    if how == "none" and getattr(model.image, "side", None) is None:
        return side  # the tower has no table, but may have a stem for each modality
    if how == "mean":
        return side._replace(camids=torch.full_like(side.camids, -1), viewids=torch.full_like(side.viewids, -1))
    return side if how == "same" else None
