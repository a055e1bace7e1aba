"""Means to train with less memory: chunks of a batch, and blocks that are computed again."""

import copy

import pytest
import torch
from builders import image_batch, small_resnet_model
from test_stages import ALL, CAMS, PIDS, Count, image_stage
from torch import nn

from configs import load
from processor.build.image import save_memory
from processor.chunks import encode_in_chunks
from processor.image_stage import ImageStage
from utils.records import Batch, ImageFeatures, Labels, SideInfo


class Noise(nn.Module):
    """A tower's with random draws, as drop path has them."""

    def __init__(self, image: nn.Module):
        super().__init__()
        self.image, self.dims, self.side = image, image.dims, image.side
        self.drop = nn.Dropout(0.3)

    def forward(self, images, side=None):
        return ImageFeatures(*(self.drop(depth) for depth in self.image(images, side)))


def gradients(stage: ImageStage, batch: Batch) -> dict[str, torch.Tensor]:
    """And the loss."""
    stage.zero_grad(set_to_none=True)
    loss = stage(batch).total
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad for n, p in stage.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("means", ["mini batch", "checkpointing", "both", "chunks of one", "bf16"])
def test_less_memory_the_same_gradients(means):
    stage, batch = image_stage(side_on_views=True).double(), image_batch(PIDS, cams=CAMS)
    batch = batch._replace(images=batch.images.double(), views=batch.views.double())
    if means == "bf16":  # (matrices of other shapes may be rounded otherwise)
        stage, batch = stage.float(), batch._replace(images=batch.images.float(), views=batch.views.float())
    with torch.autocast("cpu", torch.bfloat16, enabled=means == "bf16"):
        expected = gradients(stage, batch)
        words = ["SOLVER.STAGE2.MINI_BATCH", {"checkpointing": "0", "chunks of one": "1"}.get(means, "4")]
        words += ["SOLVER.STAGE2.GRAD_CHECKPOINTING", str(means in ("checkpointing", "both"))]
        notes = save_memory(stage, load(None, words).SOLVER.STAGE2)
        blocks, towers = Count(stage.model.image.visual.transformer.resblocks[1].mlp), Count(stage.model.image)
        got = gradients(stage, batch)
    if means == "checkpointing":  # again for the gradient
        assert towers.rows == [6, 12] and sorted(blocks.rows) == [6, 6, 12, 12]
    elif means != "chunks of one":
        assert towers.rows == [4, 2, 4, 4, 4, 4, 4, 4, 2, 4]
    assert expected.keys() == got.keys()
    assert len(notes) == (2 if means == "both" else 1)
    near = 0.02 if means == "bf16" else 1e-12
    for name, value in expected.items():
        assert (got[name] - value).abs().max() <= near * max(1, value.abs().max()), name


def test_chunks_draw_the_same_again():
    stage, batch = image_stage(weights={**ALL, "vision_ssl": 0.0}), image_batch(PIDS, cams=CAMS)
    stage.model.image, stage.mini_batch = Noise(stage.model.image).train(), 4
    torch.manual_seed(3)
    got = gradients(stage, batch)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    whole = stage.model.image
    parts = [whole(batch.images[rows], SideInfo(*(f[rows] for f in batch.side))) for rows in (slice(4), slice(4, 6))]
    assert torch.equal(after, torch.get_rng_state())
    features = ImageFeatures(*(torch.cat(depth) for depth in zip(*parts, strict=True)))
    stage.zero_grad()
    labels = Labels(batch.pids, batch.side.camids)
    losses = [stage._identity(features, labels)[0], stage._triplet(features, labels)[0]]
    (ALL["identity"] * losses[0] + losses[1] + 0.7 * stage._image_text(features, labels)[0]).backward()
    for name, parameter in stage.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(got[name], parameter.grad, rtol=1e-5, atol=1e-6)


def test_batch_norm_counts_a_chunk_once():
    model = small_resnet_model().train()
    expected = copy.deepcopy(model.image)
    images = image_batch(PIDS, views=False).images
    for chunk in images.split(4):
        expected(chunk)
    encode_in_chunks(model.image, images, None, 4).projected.sum().backward()
    for (name, got), value in zip(model.image.named_buffers(), expected.buffers(), strict=True):
        assert torch.equal(got, value), name
