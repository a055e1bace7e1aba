"""Changes of an image's light, colours and quality, to test how well a network bears them."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageEnhance

from utils.errors import UserError
from utils.seeds import derive

Change = Callable[[Image.Image], Image.Image]
LEAST = 32  # pixels of a side that imagecorruptions needs
SEVERITIES = 5


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Every value times `factor`."""
    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Every value's distance from the image's mean grey times `factor`."""
    return ImageEnhance.Contrast(image).enhance(factor)


def colour(image: Image.Image, gains: Sequence[float]) -> Image.Image:
    """Red, green and blue times their `gains`."""
    return image.point([min(255, round(value * gain)) for gain in gains for value in range(256)])


def gamma(image: Image.Image, exponent: float) -> Image.Image:
    """Every value, as a fraction of white, to the power of `exponent`: below 1 is lighter."""
    return image.point([round(255 * (value / 255) ** exponent) for value in range(256)] * 3)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Saved as JPEG of this quality, 1 to 95, and read again."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


CHANGES: dict[str, Change] = {
    "brightness -30 %": partial(brightness, factor=0.7),
    "brightness +30 %": partial(brightness, factor=1.3),
    "contrast -40 %": partial(contrast, factor=0.6),
    "contrast +40 %": partial(contrast, factor=1.4),
    "warm": partial(colour, gains=(1.15, 1.0, 0.85)),
    "cool": partial(colour, gains=(0.85, 1.0, 1.15)),
    "gamma 0.6": partial(gamma, exponent=0.6),
    "gamma 1.6": partial(gamma, exponent=1.6),
    "JPEG quality 40": partial(jpeg, quality=40),
    "JPEG quality 20": partial(jpeg, quality=20),
}


class Corruption:
    """One of the 19 corruptions of the package imagecorruptions (Hendrycks and Dietterich, 2019; Michaelis et al.,
    2019), of severity 1 to 5, type and severity drawn for every image, as in the benchmarks of Chen et al. (2021).

    The draws come from torch's global generator, which `datasets.images` seeds for every image. Images with a side of
    less than 32 pixels are enlarged before.

    Args:
        run: numbers from 0 on give unrelated draws.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, run: int):
        self.run = run
        _corruptions()

    def __call__(self, image: Image.Image) -> Image.Image:
        corruptions = _corruptions()
        seed = derive(self.run, int(torch.randint(2**31, ())))
        draw = np.random.default_rng(seed)
        corrupt, severity = corruptions[draw.choice(sorted(corruptions))], int(draw.integers(1, SEVERITIES + 1))
        if min(image.size) < LEAST:
            scale = LEAST / min(image.size)
            image = image.resize([max(LEAST, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
        # Some draw from NumPy's global generator, some from their own.
        own = {"seed": seed} if "seed" in inspect.signature(corrupt).parameters else {}
        state = np.random.get_state()
        np.random.seed(seed)
        try:
            return Image.fromarray(np.uint8(corrupt(image, severity, **own)))
        finally:
            np.random.set_state(state)


def _corruptions() -> dict[str, Callable]:
    try:
        import imagecorruptions  # optional
    except ImportError as error:
        raise UserError(
            f"imagecorruptions cannot be imported ({error}); pip install -r requirements-extra.txt"
        ) from error
    return imagecorruptions.corruption_dict
