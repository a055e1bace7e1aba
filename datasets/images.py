"""From samples to batches: decoding, the random draws of every image, collation, augmentation."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.cache import PixelCache
from datasets.transforms import Draws, Picture, TestTransform, TrainTransform
from utils.errors import DataError, one_line
from utils.files import instead_of_file
from utils.records import INFRARED, Batch, Sample, SideInfo, to_device
from utils.seeds import derive

SIDE = tuple(map(Sample._fields.index, ("camid", "viewid", "modality")))
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000")  # for others Pillow may start programs (EPS)
MOST_PIXELS = 2**30 // 12  # of an image, 256 MB of RGB; from here on Pillow warns of a decompression bomb
PAGE = (255, 255, 255)  # what transparent images lie on
ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")  # modes
# What Pillow calls a grey value of 16 bits; until version 11 it read such PNG files as "I", of 32 bits.
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
# Pillow's warnings do not name the file. Of those files that it reads all the same, nothing needs to be said.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class Item(NamedTuple):
    """An image that was read, and what was drawn for it."""

    number: int  # in the list of samples
    pixels: Tensor  # [1 or V, 3, H, W] uint8
    pictures: list[Picture]


class Pixels(NamedTuple):
    """A batch as it leaves the processes that read it."""

    pixels: Tensor  # [1 or V, B, 3, H, W] uint8
    draws: Draws
    pids: Tensor
    side: SideInfo
    indices: Tensor


class Images(Dataset):
    """Samples as pixels and draws, and batches of them as tensors.

    What is drawn for an image depends on (seed, epoch, index in the list of samples) and, where a batch holds the same
    image several times, on which of them it is; never on workers, their number or the order of batches.

    Args:
        samples: what to read.
        transform: TrainTransform or TestTransform.
        views: whether to make two more augmentations of every image.
        seed: of all draws.
        cache: keeps resized images.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: TrainTransform | TestTransform,
        *,
        views: bool = False,
        seed: int = 0,
        cache: PixelCache | None = None,
    ):
        self.cache = cache
        self.samples, self.transform, self.views, self.seed = samples, transform, views, seed
        self.epoch = torch.zeros((), dtype=torch.int64)  # shared with workers, if there are any

    def set_epoch(self, epoch: int) -> None:
        """Draw anew; call it before a loader starts to iterate."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: list[int]) -> list[Item]:
        """A whole batch: an identity with few images fills its places with copies, which must not be drawn alike."""
        return [self._read(index, repeat=indices[:place].count(index)) for place, index in enumerate(indices)]

    def _read(self, index: int, repeat: int) -> Item:
        sample, transform = self.samples[index], self.transform
        seed = derive(self.seed, int(self.epoch), index, repeat)

        def make() -> Tensor:
            with seeded(seed) if transform.change else nullcontext():
                return transform.resized(read_image(sample.path))

        pixels = self.cache.read(index, sample.path, make) if self.cache else make()
        pictures = transform.draw(seed, views=self.views, infrared=sample.modality == INFRARED)
        return Item(index, transform.compressed(pixels, pictures), pictures)

    def collate(self, items: list[Item]) -> Pixels:
        """What `__getitems__` returned, as one record."""
        samples = [self.samples[item.number] for item in items]
        return Pixels(
            torch.stack([item.pixels for item in items], dim=1),
            Draws.of([item.pictures for item in items]),
            torch.tensor([sample.pid for sample in samples]),
            SideInfo(*(torch.tensor([s[place] for s in samples]) for place in SIDE)),
            torch.tensor([item.number for item in items]),
        )

    def finish(self, batch: Pixels) -> Batch:
        """What `collate` returned, on any device -> Batch."""
        images, views = self.transform.finish(batch.pixels, batch.draws)
        return Batch(images, batch.pids, batch.side, batch.indices, views)


class Loader(DataLoader[Batch]):
    """Batches of images, on a device.

    Args:
        images: what to read.
        device: that batches are moved to and augmented on; None leaves them where they are.
        options: of the DataLoader.
    """

    dataset: Images

    def __init__(self, images: Images, device: torch.device | None, **options: Any):
        pinned = device is not None and device.type == "cuda"
        super().__init__(images, collate_fn=images.collate, pin_memory=pinned, **options)
        self.device = device

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return map(self._finish, super().__iter__())

    def _finish(self, batch: Pixels) -> Batch:
        return self.dataset.finish(batch if self.device is None else to_device(batch, self.device))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it, torch's and Python's global generators begin at `seed`; behind it they are what they were before."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators, too
        random.seed(seed)
        yield
    random.setstate(state)


def read_image(path: str) -> Image.Image:
    """An image in RGB, 8 bits a channel, upright; of several in a file (animations, pages, MPO), the first.

    Images of published benchmarks are RGB in JPEG without EXIF: they are decoded, and nothing is done to them. Else

    - an EXIF orientation is applied, as every viewer does; without that, a phone's images would lie on their side;
    - what is transparent shows a white page; the colours under it are arbitrary, and were never shown;
    - grey values of 16 bits keep the upper 8, as Pillow does with colours of 16 bits;
    - one bit, 8 bits of grey, palettes, CMYK and the like become the RGB that Pillow makes of them.

    Raises:
        DataError: naming the file that is missing, a folder or pipe, cut off, none of FORMATS, of more than MOST_PIXELS
            pixels, or of grey values without an agreed range (fractions; whole numbers of more than 16 bits). Read
            once: what fails now fails again.
    """
    try:
        # Stat first: who opens a pipe waits until somebody writes to it.
        if instead := instead_of_file(os.stat(path).st_mode):
            raise DataError(f"it is {instead}")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(f"{image.width} x {image.height} are more than {MOST_PIXELS:,} pixels")
            return upright_rgb(image)
    except Exception as error:  # of any type: decoders have faults of their own
        raise DataError(f"{shown(path)}: cannot be read as an image ({one_line(error)})") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """What `read_image` makes of an image that Pillow has opened, which may be changed; raises Pillow's own errors."""
    image.load()  # PNG files may have their orientation at the end
    with suppress(Exception):  # of any type: the block may hold anything
        ImageOps.exif_transpose(image, in_place=True)
    return _rgb(image)


def shown(path: str) -> str:
    """A path for a message: as it is, or quoted where it holds line breaks or what no log file can hold."""
    return path if path.isprintable() else repr(path)


def _rgb(image: Image.Image) -> Image.Image:
    if image.format == "JPEG" and image.mode == "RGB":
        return image  # no copy, which would cost more than all that is looked at here
    if image.mode == "F":
        raise DataError("grey values with fractions have no agreed range; save it with 8 bits")
    if image.mode in DEEP:
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 2**16:
            raise DataError(f"grey values up to {values.max()}, and from {values.min()} on, are not of 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ALPHA or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGB", layer.size, PAGE)
        page.paste(layer, mask=layer.getchannel("A"))
        return page
    return image.convert("RGB")
