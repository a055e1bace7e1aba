"""From a decoded image to what the network sees."""

from __future__ import annotations

import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from datasets.changes import Change

ERASED = (0.02, 1 / 3)  # smallest and largest share of a training image that is erased ...
VIEW_ERASED = (0.33, 1 / 3)  # ... and, as published, of a view


class TrainTransform:
    """Training image and views of stage 2 (CLIP-ReID §4.2; SVLL-ReID for the views).

    Bicubic resize; then, drawn anew for the image and for each view: horizontal flip, zero padding and random crop,
    normalisation, random erasing with normal noise. Views differ in the erased area alone: as published it is always a
    third of the image, if anything.

    With `jpeg`, the probability of JPEG compression at a quality drawn from `jpeg_quality`, that comes first. `grey` is
    the probability of a grey image.

    Draws come from torch's and Python's global generators; `datasets.images` seeds both for every image.
    """

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
        self.resize = v2.Resize(list(size), InterpolationMode.BICUBIC)
        self.augment = v2.Compose(
            [
                # Where it is off, nothing is drawn for it: the other draws stay what they are.
                *([v2.RandomApply([v2.JPEG(tuple(jpeg_quality))], jpeg)] if jpeg else ()),
                *([v2.RandomGrayscale(grey)] if grey else ()),
                v2.RandomHorizontalFlip(flip),
                v2.Pad(padding),  # black, before normalisation: -1 with mean and deviation 0.5
                v2.RandomCrop(list(size)),
                _to_tensor(mean, std),
            ]
        )
        self.erase = _erasing(erase, ERASED)
        self.erase_view = _erasing(erase, erase_view)

    def __call__(self, image: Image.Image, *, views: bool) -> tuple[Tensor, Tensor | None]:
        """An image -> tensor [3, H, W] and, if asked for, views [2, 3, H, W]; the resize is shared."""
        image = self.resize(image)
        augmented = self.erase(self.augment(image))
        if not views:
            return augmented, None
        return augmented, torch.stack([self.erase_view(self.augment(image)) for _ in range(2)])


class TestTransform:
    """Evaluation, and the features of the prompt stage: bilinear resize (not bicubic, as published), normalisation.

    Args:
        change: of the decoded image, before anything else.
    """

    __test__ = False  # not a test case, whatever its name looks like to pytest

    def __init__(self, size, *, mean, std, change: Change | None = None):
        self.change = change
        self.steps = v2.Compose([v2.Resize(list(size), InterpolationMode.BILINEAR), _to_tensor(mean, std)])

    def __call__(self, image: Image.Image, *, views: bool = False) -> tuple[Tensor, None]:
        """An image -> tensor [3, H, W]; there are no views."""
        return self.steps(image if self.change is None else self.change(image)), None


def _to_tensor(mean, std) -> v2.Compose:
    return v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])


def _erasing(probability: float, area) -> RandomErasing:
    smallest, largest = area
    return RandomErasing(
        probability, min_area=smallest, max_area=largest, min_aspect=0.3, mode="pixel", max_count=1, device="cpu"
    )
