"""How time and memory grow: of ranking and re-ranking with the images, of a step of stage 1 with the identities.

Ours alone, at every size. Of the images, a sixth are queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from model.prompts import mask
from processor.prompt_stage import PromptStage
from tools.benchmark.data import labelled_features
from tools.benchmark.measure import Case, Setting, Way
from tools.benchmark.network import make_network
from tools.benchmark.reranking import K1, K2, LAMBDA
from tools.benchmark.text import WEIGHT
from utils.metrics import rank_features
from utils.records import FeatureBatch, Labels
from utils.reranking import rerank

IMAGES = (1000, 3000, 10_000, 30_000, 93_820)  # the last: MSMT17's
WIDTH, CAMERAS, EACH = 1280, 6, 20  # images of an identity
IDENTITIES = (751, 1041, 13_164)  # Market-1501, MSMT17, VehicleID


def cases(setting: Setting) -> Iterator[Case]:
    """A way for each size."""
    sizes = [setting.of(count) for count in IMAGES]
    for title, work in {"ranking": rank_features, "re-ranking": _rerank}.items():
        yield Case(f"{title}, features of {WIDTH}", tuple(_of_images(size, work, setting.device) for size in sizes))
    identities = tuple(_step(setting._replace(identities=setting.of(count))) for count in IDENTITIES)
    yield Case(f"a step of stage 1, text tower of {setting.name}, {setting.batch} images", identities)


def _of_images(count: int, work: Callable[..., object], device: torch.device) -> Way:
    """The work on so many images."""
    features, labels = labelled_features(count, WIDTH, max(1, count // EACH), CAMERAS, device)
    parts = max(1, count // 6), count - max(1, count // 6)
    ids = [Labels(*some) for some in zip(*(field.split(parts) for field in labels), strict=True)]
    return Way(f"{count} images", partial(work, *features.split(parts), *ids), size=count)


def _rerank(query: Tensor, gallery: Tensor, *_labels: Labels) -> None:
    rerank(query, gallery, K1, K2, LAMBDA)


def _step(setting: Setting) -> Way:
    """A step of stage 1 with language self-supervision, and of its optimizer, each image of another identity."""
    model = make_network(setting)
    augment = partial(mask, strength=0.5, generator=torch.Generator(setting.device).manual_seed(0))
    stage = PromptStage(model, weights={"image_text": 1.0, "language_ssl": WEIGHT}, augment=augment).train()
    optimizer = torch.optim.Adam(parameter for parameter in stage.parameters() if parameter.requires_grad)
    pids = torch.arange(setting.batch, device=setting.device) * setting.identities // setting.batch
    features = torch.randn(len(pids), model.image.dims[2], device=setting.device)
    batch = FeatureBatch(features, pids, *pids.unique(return_inverse=True))

    def run() -> None:
        optimizer.zero_grad()
        stage(batch).total.backward()
        optimizer.step()

    return Way(f"{setting.identities} identities", run, size=setting.identities)
