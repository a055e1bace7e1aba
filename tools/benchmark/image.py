"""A step of stage 2 with vision self-supervision, forward and backward, and features at test.

The textbook way runs the blocks' own forward over all tokens, and each view of the images by itself. Ours computes the
last block for the class token alone, and both views at once. (At test PyTorch's own attention is not counted among the
textbook's operations.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from processor.image_stage import ImageStage
from tools.benchmark.measure import Case, Setting, Way, counts_of
from tools.benchmark.network import make_network, size_of
from utils.records import Batch, SideInfo

WEIGHTS = {"identity": 0.25, "triplet": 1.0, "image_text": 1.0, "vision_ssl": 0.8}


def cases(setting: Setting) -> Iterator[Case]:
    """A batch of the size that the command line says."""
    model = make_network(setting)
    device, count = setting.device, setting.batch
    texts = torch.randn(setting.identities, model.image.dims[2], device=device)
    stage = ImageStage(model, weights=WEIGHTS, text_features=texts)
    rows, views = torch.arange(count, device=device), torch.randn(3, count, 3, *size_of(setting), device=device)
    nowhere = SideInfo(*[torch.zeros_like(rows)] * len(SideInfo._fields))
    batch = Batch(views[0], rows % setting.identities, nowhere, rows, views[1:])

    def step() -> Tensor:
        stage.train().zero_grad()
        loss = stage(batch).total
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def test() -> Tensor:
        stage.eval()
        return model.embed(batch.images)

    for title, work in {"a step with": step, "features of": test}.items():
        yield Case(f"{title} the image tower of {setting.name}, {count} images", ways(stage, work), steady=True)


def ways(stage: ImageStage, work: Callable[[], Tensor]) -> tuple[Way, ...]:
    """The same work both ways."""
    tower, usual = stage.model.image, stage.one_view_at_a_time

    def way(name: str, textbook: bool) -> Way:
        def run() -> Tensor:
            tower.by_blocks, stage.one_view_at_a_time = textbook, textbook or usual
            return work()

        return Way(name, run, **counts_of(run))

    return way("textbook", True), way("ours", False)
