"""Training images with two views of each: from JPEG files to the batch that the network sees.

The textbook way decodes every image in every epoch and augments picture by picture, with torchvision's and timm's
transforms: what the field's programs do. Ours has the same pixels, bit by bit.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2

from datasets.cache import PixelCache
from datasets.images import Images, read_image
from datasets.transforms import ERASED, VIEW_ERASED, TrainTransform
from tools.benchmark.measure import Case, Setting, Way
from utils.records import Sample, to_device
from utils.seeds import derive

SIZE, FILES = (256, 128), (128, 64)  # height and width of what the network sees, and of the files (Market-1501)
SETTINGS = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "flip": 0.5, "padding": 10, "erase": 0.5}


def cases(setting: Setting) -> Iterator[Case]:
    """A batch of the size that the command line says."""
    with tempfile.TemporaryDirectory() as folder:
        samples = draw_images(Path(folder), setting.batch)
        transform, cache = TrainTransform(SIZE, **SETTINGS), PixelCache(Path(folder, "cache"), len(samples), (3, *SIZE))
        ours = Images(samples, transform, views=True, cache=cache)
        title = f"{len(samples)} images of {SIZE[0]} × {SIZE[1]} and two views of each"
        yield Case(title, ways(Textbook(samples), ours, setting), steady=True)


def ways(book: Textbook, ours: Images, setting: Setting) -> tuple[Way, ...]:
    """Each reads a batch, of a new epoch every time."""
    rows, epochs = list(range(len(book))), count()

    def first() -> None:
        ours.cache.entries[:] = 0
        batch()

    def textbook() -> None:
        book.epoch = next(epochs)
        for pictures in default_collate([book[row] for row in rows]):
            pictures.to(setting.device)

    def batch() -> None:
        ours.set_epoch(next(epochs))
        ours.finish(to_device(ours.collate(ours.__getitems__(rows)), setting.device))

    return Way("textbook", textbook), Way("ours, first epoch", first), Way("ours, later epochs", batch)


class Textbook(Dataset):
    """Images picture by picture: an image [3, H, W] and its views [2, 3, H, W], with the draws of `datasets.images`."""

    def __init__(self, samples: Sequence[Sample], size: tuple[int, int] = SIZE, *, jpeg=0.0, grey=0.0, **changed):
        setting = SETTINGS | changed
        self.samples, self.epoch = samples, 0
        self.resize = v2.Resize(list(size), v2.InterpolationMode.BICUBIC)
        self.augment = v2.Compose(
            [
                *([v2.RandomApply([v2.JPEG((20, 90))], jpeg)] if jpeg else ()),
                *([v2.RandomGrayscale(grey)] if grey else ()),
                v2.RandomHorizontalFlip(setting["flip"]),
                v2.Pad(setting["padding"]),
                v2.RandomCrop(list(size)),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(setting["mean"]), list(setting["std"])),
            ]
        )
        self.erase, self.erase_view = (
            RandomErasing(setting["erase"], *area, min_aspect=0.3, mode="pixel", max_count=1, device="cpu")
            for area in (ERASED, VIEW_ERASED)
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image, seed = self.resize(read_image(self.samples[row].path)), derive(0, self.epoch, row, 0)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            first = self.erase(self.augment(image))
            return first, torch.stack([self.erase_view(self.augment(image)) for _ in range(2)])


def draw_images(folder: Path, number: int) -> list[Sample]:
    """JPEG files like those of people: large soft shapes, some noise."""
    rng, samples = np.random.default_rng(0), []
    for index in range(number):
        shapes = Image.fromarray(rng.integers(0, 256, (8, 4, 3), np.uint8)).resize(
            FILES[::-1], Image.Resampling.BICUBIC
        )
        pixels = np.asarray(shapes) + rng.normal(0, 8, (*FILES, 3))
        path = folder / f"{index}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        samples.append(Sample(str(path), index, 0))
    return samples
