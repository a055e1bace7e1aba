"""The tiny CLIP knows people it has never seen, and its features are as long as the published losses need them."""

from __future__ import annotations

import io

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from datasets.transforms import TestTransform
from model import tiny_clip
from model.clip import TextTower
from model.pretrained import load_clip
from tools.demo.rendering.camera import sample_camera
from tools.demo.rendering.caption import caption
from tools.demo.rendering.person import sample_person
from tools.demo.rendering.scene import photograph

PEOPLE = 256
PEOPLE_STREAM, CAMERA_STREAM = 555, 556  # neither the pre-training's nor the demo's
PRETRAINING_DIFFICULTY = 1.1


@pytest.fixture(scope="module")
def features() -> tuple[torch.Tensor, torch.Tensor]:
    """Images and captions [N, E] of people in cameras that were not pre-trained on."""
    cameras = [
        sample_camera(np.random.default_rng([CAMERA_STREAM, i]), difficulty=PRETRAINING_DIFFICULTY) for i in range(20)
    ]
    transform = TestTransform(tiny_clip.IMAGE_SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    images, captions = [], []
    for number in range(PEOPLE):
        rng = np.random.default_rng([PEOPLE_STREAM, number])
        person = sample_person(rng)
        jpeg = photograph(person, cameras[number % len(cameras)], rng).jpeg
        images.append(transform(Image.open(io.BytesIO(jpeg)))[0])
        captions.append(caption(person, rng))
    clip, _ = load_clip(tiny_clip.NAME, tiny_clip.TAG)
    tokens, text = open_clip.tokenize(captions), TextTower(clip)
    with torch.no_grad():
        features = clip.encode_image(torch.stack(images))
        words = [text(clip.token_embedding(row[None]), int(row.argmax())) for row in tokens]
    return features, torch.cat(words)


def test_plain_inner_products_have_the_trained_scale(features):
    images, texts = features
    product = (images.norm(dim=1) * texts.norm(dim=1)).mean().item()
    assert product == pytest.approx(tiny_clip.facts()["logit_scale"], rel=0.03)


def test_it_finds_the_caption_of_people_it_has_never_seen(features):
    images, texts = (F.normalize(part) for part in features)
    hits = ((images @ texts.T).argmax(dim=1) == torch.arange(PEOPLE)).float().mean().item()
    assert hits > 0.5  # chance is 0.004; the pre-training's own held-out score is in the file
    assert tiny_clip.facts()["held_out_top1_of_256"] > 0.5


def test_folding_keeps_directions_and_sets_the_length():
    clip = tiny_clip.build(vocabulary=50)
    state = tiny_clip.fold_logit_scale(clip.state_dict(), norm_product=200.0)
    factor = state["visual.proj"] / clip.state_dict()["visual.proj"]
    assert torch.allclose(factor, factor[0, 0].expand_as(factor))
    both = factor[0, 0] * (state["text_projection"] / clip.state_dict()["text_projection"])[0, 0]
    assert (200.0 * both).item() == pytest.approx(clip.logit_scale.exp().item(), rel=1e-5)


def test_the_file_is_small_and_holds_no_code():
    assert tiny_clip.FILE.stat().st_size <= 2_000_000
    assert tiny_clip.FILE.suffix == ".safetensors"
