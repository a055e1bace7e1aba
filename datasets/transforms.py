"""From a decoded image to what the network sees: resized where it is decoded, all else in batches on any device."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from datasets.changes import Change

ERASED = (0.02, 1 / 3)  # smallest and largest share of a training image that is erased ...
VIEW_ERASED = (0.33, 1 / 3)  # ... and, as published, of a view
ASPECTS = (math.log(0.3), math.log(1 / 0.3))  # logarithms of height : width of what is erased
ATTEMPTS = 10  # to draw a box that fits into the image
GROUP = 4  # images that are normalised at a time, few enough for a processor's cache


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Picture(NamedTuple):
    """What is drawn for a training image, or for one of its views."""

    grey: bool
    mirrored: bool
    top: int  # of the crop, in the padded image
    left: int
    quality: int | None = None  # of JPEG compression; None for none
    box: Box | None = None  # that is erased; None for nothing
    noise: Tensor | None = None  # in that box, [3 * height * width] float32


class Draws(NamedTuple):
    """What is drawn for V pictures (the image or, with its views, three) of each of B images."""

    places: Tensor  # [4, V, B] int64: grey, mirrored, top, left
    boxes: list[tuple[int, int, Box]]  # picture, image, what is erased of it
    noise: Tensor  # [N] float32: of one box after the other

    @staticmethod
    def of(images: Sequence[Sequence[Picture]]) -> Draws:
        """Of B images, V pictures each."""
        numbers = [[picture[:4] for picture in pictures] for pictures in images]
        places = torch.tensor(numbers, dtype=torch.int64).view(len(images), len(images[0]), 4).permute(2, 1, 0)
        erased = [
            (number, row, picture)
            for row, pictures in enumerate(images)
            for number, picture in enumerate(pictures)
            if picture.box
        ]
        noise = [picture.noise for _, _, picture in erased]
        boxes = [(number, row, picture.box) for number, row, picture in erased]
        return Draws(places, boxes, torch.cat(noise) if noise else torch.empty(0))


class TrainTransform:
    """Training image and views of stage 2 (CLIP-ReID §4.2; SVLL-ReID for the views).

    Bicubic resize; then, drawn anew for the image and for each view: horizontal flip, zero padding and random crop,
    normalisation, random erasing with normal noise. Views differ in the erased area alone: as published it is always a
    third of the image, if anything.

    With `jpeg`, the probability of JPEG compression at a quality drawn from `jpeg_quality`, that comes first. `grey` is
    the probability of a grey image; infrared images are left alone.

    An image goes through `resized`, `draw` and `compressed` one by one, which belong where it is read; then batches
    through `finish`, wherever they are.
    """

    how = Image.Resampling.BICUBIC
    change = None

    def __init__(
        self,
        size,
        *,
        mean,
        std,
        flip: float,
        padding: int,
        erase: float,
        erase_view=VIEW_ERASED,
        jpeg: float = 0.0,
        jpeg_quality=(20, 90),
        grey: float = 0.0,
    ):
        self.size, self.mean, self.std = tuple(size), tuple(mean), tuple(std)
        self.flip, self.padding, self.grey = flip, padding, grey
        self.erase, self.areas = erase, (ERASED, erase_view, erase_view)
        self.jpeg, self.jpeg_quality = jpeg, jpeg_quality

    def __call__(self, image: Image.Image, *, views: bool, seed: int | None = None) -> tuple[Tensor, Tensor | None]:
        """An image -> tensor [3, H, W] and, if asked for, views [2, 3, H, W]: all steps, for a single one.

        Args:
            seed: of what is drawn; None for one that is drawn itself.
        """
        pictures = self.draw(int(torch.randint(2**32, ())) if seed is None else seed, views=views)
        pixels = self.compressed(self.resized(image), pictures)
        images, made = self.finish(pixels[:, None], Draws.of([pictures]))
        return images[0], made if made is None else made[:, 0]

    def resized(self, image: Image.Image) -> Tensor:
        """An image in RGB -> uint8 [3, H, W]."""
        return _resized(image, self.size, self.how)

    def draw(self, seed: int, *, views: bool, infrared: bool = False) -> list[Picture]:
        """What is drawn for an image and, if asked for, its two views."""
        draws, chance = torch.Generator().manual_seed(seed), random.Random(seed)
        return [self._draw(draws, chance, area, infrared) for area in self.areas[: 3 if views else 1]]

    def _draw(self, draws: torch.Generator, chance: random.Random, area, infrared: bool) -> Picture:
        def happens(probability: float) -> bool:
            return bool(torch.rand(1, generator=draws) < probability)

        def number(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=draws))

        # Where JPEG, grey or padding are off, nothing is drawn for them: the other draws stay what they are.
        quality = number(*self.jpeg_quality) if self.jpeg and happens(self.jpeg) else None
        grey = self.grey > 0 and not infrared and happens(self.grey)
        mirrored = happens(self.flip)
        top, left = (number(0, 2 * self.padding) if self.padding else 0 for _ in range(2))
        box = draw_box(chance, self.size, area) if chance.random() <= self.erase else None
        noise = torch.empty(3 * box.height * box.width).normal_(generator=draws) if box else None
        return Picture(grey, mirrored, top, left, quality, box, noise)

    def compressed(self, pixels: Tensor, pictures: Sequence[Picture]) -> Tensor:
        """uint8 [3, H, W] -> as it is, [1, 3, H, W] or, where JPEG may make a difference, [V, 3, H, W] of pictures."""
        if not self.jpeg:
            return pixels[None]
        return torch.stack([pixels if each.quality is None else _jpeg(pixels, each.quality) for each in pictures])

    def finish(self, pixels: Tensor, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Pixels uint8 [1 or V, B, 3, H, W] -> images [B, 3, H, W] and, of three pictures, views [2, B, 3, H, W].

        Nothing here waits for the device.
        """
        grey, mirrored, top, left = draws.places
        if self.grey:
            pixels = torch.where(grey.bool()[..., None, None, None], _grey(pixels), pixels)
        made = self._cut(pixels, mirrored, top, left)
        sizes = [3 * box.height * box.width for _, _, box in draws.boxes]
        for (number, row, box), noise in zip(draws.boxes, draws.noise.split(sizes), strict=True):
            rectangle = made[number, row, :, box.top : box.top + box.height, box.left : box.left + box.width]
            rectangle.copy_(noise.view_as(rectangle))
        return made[0], made[1:] if len(made) > 1 else None

    def _cut(self, pixels: Tensor, mirrored: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Pixels uint8 [1 or V, B, 3, H, W] -> normalised [V, B, 3, H, W], from the places [V, B] of a padded image.

        Row by row, which is faster than any index of places, and GROUP images at a time. All pictures are cut out of
        an image that was normalised once: that is the same as normalising what is cut out.
        """
        (views, count), (height, width), device = top.shape, self.size, pixels.device
        rows, columns = height + 2 * self.padding, width + 2 * self.padding
        both = torch.empty(2, len(pixels), min(GROUP, count), 3, rows, columns, device=device)  # mirrored, too
        view, image, channel, row = (torch.arange(size, device=device) for size in (views, count, 3, height))
        first = (mirrored * len(pixels) + view[:, None] % len(pixels)) * both.shape[2] + image % GROUP
        planes = first[..., None] * 3 + channel  # [V, B, 3]
        starts = (planes[..., None] * rows + top[..., None, None] + row) * columns + left[..., None, None]
        every_start = both.view(-1).as_strided((both.numel() - width + 1, width), (1, 1))
        made = torch.empty(views, count, 3, height, width, device=device)
        for some in (slice(start, start + GROUP) for start in range(0, count, GROUP)):
            padded = F.pad(pixels[:, some], [self.padding] * 4)
            plain, flipped = both[:, :, : padded.shape[1]]
            flipped.copy_(_normalise(plain.copy_(padded), self.mean, self.std).flip(-1))
            for cut, places in zip(made[:, some], starts[:, some], strict=True):
                torch.index_select(every_start, 0, places.flatten(), out=cut.view(-1, width))
        return made


class TestTransform:
    """Evaluation, and the features of the prompt stage: bilinear resize (not bicubic, as published), normalisation.

    Args:
        change: of the decoded image, before anything else.
    """

    __test__ = False  # not a test case, whatever its name looks like to pytest
    how = Image.Resampling.BILINEAR

    def __init__(self, size, *, mean, std, change: Change | None = None):
        self.size, self.mean, self.std, self.change = tuple(size), tuple(mean), tuple(std), change

    def __call__(self, image: Image.Image, *, views: bool = False) -> tuple[Tensor, None]:
        """An image -> tensor [3, H, W]; there are no views."""
        return self.normalised(self.resized(image)), None

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 [..., 3, H, W] -> what the network sees."""
        return _normalise(pixels.float(), self.mean, self.std)

    def resized(self, image: Image.Image) -> Tensor:
        """An image in RGB -> uint8 [3, H, W]."""
        changed = image if self.change is None else self.change(image)
        return _resized(changed, self.size, self.how)

    def draw(self, seed: int, **_: bool) -> list[Picture]:
        """Nothing."""
        return []

    def compressed(self, pixels: Tensor, pictures: Sequence[Picture]) -> Tensor:
        """uint8 [3, H, W] -> the same, [1, 3, H, W]."""
        return pixels[None]

    def finish(self, pixels: Tensor, draws: Draws) -> tuple[Tensor, None]:
        """Pixels uint8 [1, B, 3, H, W] -> images [B, 3, H, W]; there are no views."""
        return self.normalised(pixels[0]), None


def draw_box(chance: random.Random, size: tuple[int, int], area: tuple[float, float]) -> Box | None:
    """What is erased of an image of `size` (Zhong et al., 2017; drawn as timm does); None if no attempt fits.

    Args:
        area: smallest and largest share of the image's area.
    """
    height, width = size
    for _ in range(ATTEMPTS):
        pixels, aspect = chance.uniform(*area) * height * width, math.exp(chance.uniform(*ASPECTS))
        rows, columns = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if rows < height and columns < width:
            return Box(chance.randint(0, height - rows), chance.randint(0, width - columns), rows, columns)
    return None


def _resized(image: Image.Image, size: tuple[int, int], how: Image.Resampling) -> Tensor:
    height, width = size
    return torch.from_numpy(np.asarray(image.resize((width, height), how)).transpose(2, 0, 1).copy())


def _normalise(values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels float32 [..., 3, H, W], in place: to 0..1, minus mean, over std."""
    values.mul_(1 / 255)
    for channel, numbers in enumerate(zip(mean, std, strict=True)):  # numbers need no copy to the device
        centre, spread = numbers
        values[..., channel, :, :].sub_(centre).div_(spread)
    return values


def _grey(pixels: Tensor) -> Tensor:
    """uint8 [..., 3, H, W] -> the same in grey, as Pillow rounds it (ITU-R 601-2)."""
    red, green, blue = pixels.to(torch.int32).unbind(-3)
    grey = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16
    return grey.to(torch.uint8).unsqueeze(-3).expand_as(pixels)


def _jpeg(pixels: Tensor, quality: int) -> Tensor:
    """uint8 [3, H, W] -> the same, saved as JPEG and read again."""
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(file)).transpose(2, 0, 1).copy())
