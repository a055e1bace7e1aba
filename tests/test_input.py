"""Batches of training images: the pixels of the textbook way, on any device, without waiting for it."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing

from datasets.images import Images
from datasets.transforms import TestTransform, TrainTransform, draw_box
from tools.benchmark.input import SETTINGS, Textbook
from utils.records import INFRARED, Sample, to_device

SIZE = (48, 24)


@pytest.fixture
def samples(tmp_path) -> list[Sample]:
    """24 images, every third infrared."""
    rng, found = np.random.default_rng(0), []
    for number in range(24):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (37, 29, 3), np.uint8)).save(path)
        found.append(Sample(str(path), number, 0, modality=INFRARED * (number % 3 == 0)))
    return found


def read(images: Images, epoch: int):
    images.set_epoch(epoch)
    return images.collate(images.__getitems__(list(range(len(images)))))


CHANGES = {
    "published": {},
    "ImageNet's pixels": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "all erased": {"erase": 1.0},
    "never mirrored": {"flip": 0.0, "erase": 0.0},
    "no padding": {"padding": 0},
    "JPEG": {"jpeg": 0.5},
    "grey": {"grey": 0.5},
    "JPEG and grey": {"jpeg": 0.5, "grey": 0.7},
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=list(CHANGES))
def test_a_batch_has_the_pixels_of_the_textbook_bit_by_bit(samples, changed):
    """Of torchvision's and timm's transforms, image by image, from the same seeds."""
    images = Images(samples, TrainTransform(SIZE, **SETTINGS | changed), views=True)
    visible, infrared = Textbook(samples, SIZE, **changed), Textbook(samples, SIZE, **changed | {"grey": 0.0})
    for epoch in (1, 2):
        batch = images.finish(read(images, epoch))
        visible.epoch = infrared.epoch = epoch
        for row, sample in enumerate(samples):
            image, views = (infrared if sample.modality else visible)[row]
            assert torch.equal(batch.images[row], image) and torch.equal(batch.views[:, row], views)


@pytest.mark.parametrize("area", [(0.02, 1 / 3), (0.33, 1 / 3), (0.9, 0.95)])
def test_boxes_are_timms(area):
    """Where timm's leaves its noise, for the same draws; some attempts do not fit, of the last area most."""
    erase = RandomErasing(1.0, *area, min_aspect=0.3, mode="pixel", max_count=1, device="cpu")
    none = 0
    for seed in range(200):
        random.seed(seed)
        image = erase(torch.full((3, *SIZE), 9.0))
        draws = random.Random(seed)
        draws.random()  # whether to erase
        expected, box = torch.zeros(SIZE, dtype=torch.bool), draw_box(draws, SIZE, area)
        if box is not None:
            expected[box.top : box.top + box.height, box.left : box.left + box.width] = True
        none += box is None
        assert torch.equal((image != 9).all(dim=0), expected)
    assert (none > 0) == (area[0] == 0.9)


@pytest.mark.parametrize(
    "transform", [TrainTransform(SIZE, **SETTINGS, grey=0.5), TestTransform(SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)]
)
def test_a_batch_leaves_in_bytes_and_is_finished_without_waiting_for_the_device(samples, transform):
    """What would wait has to know a value, which tensors of the device "meta" do not have."""
    images = Images(samples, transform, views=isinstance(transform, TrainTransform))
    pixels = read(images, 1)
    assert pixels.pixels.dtype == torch.uint8 and pixels.pixels.shape == (1, 24, 3, *SIZE)
    batch, expected = images.finish(to_device(pixels, torch.device("meta"))), images.finish(pixels)
    assert batch.images.is_meta and batch.images.shape == expected.images.shape == (24, 3, *SIZE)
    assert expected.views is None or batch.views.shape == expected.views.shape == (2, 24, 3, *SIZE)
