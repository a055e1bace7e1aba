"""A fixed camera: where it looks, how it renders light and colour, and how good its image is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from tools.demo.rendering.colours import NAMED_COLOURS

BACKGROUNDS = ("road", "brick", "grass", "tiles", "corridor", "shop")
CANVAS_SIZE = 480  # pixels; an image is a crop of this square, taken before supersampling is reduced

_TEXTURE_SIZE = 320
_BASE_COLOURS = {
    "road": (120, 120, 124),
    "brick": (140, 88, 70),
    "grass": (88, 120, 66),
    "tiles": (170, 166, 156),
    "corridor": (186, 184, 176),
    "shop": (96, 92, 104),
}


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera's constants.

    Attributes:
        canvas: RGB image, CANVAS_SIZE square; every image shows a random crop of it.
        gain: (3,) factors on the channels, exposure excluded.
        exposure: factor on all channels.
        gamma: exponent on values in 0..1.
        saturation: 1 leaves colours, 0 makes them grey.
        offset: (3,) added to the channels, in grey levels (0..255).
        blur: standard deviation in pixels of a 128-pixel-high image.
        noise: standard deviation in grey levels.
        resolution: linear fraction of the pixels that the sensor really has, 0..1.
        jpeg_quality: 1..95, PIL's scale.
        yaw_centre: the direction in which people mostly walk here, degrees.
        yaw_spread: standard deviation round it, degrees.
        side_light: -1..1, negative is light from the left.
        scale: height of a person of height 1 as a fraction of the image.
        occlusion: probability of something in front of the person.
    """

    canvas: Image.Image
    gain: np.ndarray
    exposure: float
    gamma: float
    saturation: float
    offset: np.ndarray
    blur: float
    noise: float
    resolution: float
    jpeg_quality: int
    yaw_centre: float
    yaw_spread: float
    side_light: float
    scale: float
    occlusion: float


def sample_camera(rng: np.random.Generator, *, difficulty: float = 1.0, background: str | None = None) -> Camera:
    """Draw one camera.

    Args:
        rng: the source of randomness; the same state gives the same camera.
        difficulty: how far its light, colour and sharpness stray from neutral; 0 is a clean camera.
        background: one of BACKGROUNDS, drawn if absent.

    Raises:
        ValueError: for an unknown background or a negative difficulty.
    """
    if background is None:
        background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    if background not in BACKGROUNDS:
        raise ValueError(f"unknown background {background!r}; there are {', '.join(BACKGROUNDS)}")
    if not difficulty >= 0:
        raise ValueError(f"difficulty must not be negative, got {difficulty}")
    texture = Image.fromarray(_texture(rng, background))
    gain = np.exp(rng.normal(0, 0.13 * difficulty, 3))
    return Camera(
        canvas=texture.resize((CANVAS_SIZE, CANVAS_SIZE), Image.Resampling.BILINEAR),
        gain=(gain / gain.mean()).astype(np.float32),
        exposure=float(np.exp(rng.normal(0, 0.18 * difficulty))),
        gamma=float(np.exp(rng.normal(0, 0.2 * difficulty))),
        saturation=float(np.clip(1 + rng.normal(-0.15, 0.25) * difficulty, 0.3, 1.5)),
        offset=(rng.normal(8, 8, 3) * difficulty).astype(np.float32),
        blur=max(0.0, rng.normal(0.35, 0.35) * difficulty),
        noise=abs(rng.normal(4, 3)) * difficulty,
        resolution=float(np.clip(1 - abs(rng.normal(0, 0.3)) * difficulty, 0.35, 1)),
        jpeg_quality=int(np.clip(rng.normal(70, 18), 25, 95)),
        yaw_centre=rng.uniform(0, 360),
        yaw_spread=rng.uniform(30, 60),
        side_light=rng.uniform(-1, 1),
        scale=rng.normal(0.9, 0.04),
        occlusion=float(np.clip(rng.normal(0.15, 0.1), 0.02, 0.4)),
    )


def _texture(rng: np.random.Generator, background: str) -> np.ndarray:
    """A background of one family: (_TEXTURE_SIZE, _TEXTURE_SIZE, 3) uint8."""
    size = _TEXTURE_SIZE
    base = np.array(_BASE_COLOURS[background]) + rng.normal(0, 14, 3)
    grain = rng.normal(0, 7, (size, size, 1))
    texture = base + _clouds(rng, size) + grain
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    if background == "road":
        texture[(x + y * 0.5) % 130 < 16] += 70
    elif background == "brick":
        _lay_bricks(texture, rng, x, y)
    elif background == "grass":
        texture += rng.normal(0, 22, (size, size, 1))
        sky = texture[: size // 3]
        sky[:] = sky * 0.6 + np.array([110, 140, 170]) * 0.4
    elif background == "tiles":
        period = rng.integers(26, 60)
        texture[((x + y * 0.3) % period < 2) | (y % period < 2)] -= 40
    elif background == "corridor":
        texture[x % 90 < 6] -= 50
        texture[y % 150 < 8] -= 35
    else:
        _fill_shelves(texture, rng)
    return texture.clip(0, 255).astype(np.uint8)


def _clouds(rng: np.random.Generator, size: int) -> np.ndarray:
    """Uneven light on the wall: smooth (size, size, 1) noise about zero."""
    coarse = rng.normal(0, 1, (size // 16, size // 16)).repeat(16, axis=0).repeat(16, axis=1)
    image = Image.fromarray((coarse * 30 + 128).clip(0, 255).astype(np.uint8))
    smooth = np.asarray(image.filter(ImageFilter.GaussianBlur(10)), np.float32)
    return 2 * (smooth[..., None] - 128)


def _lay_bricks(texture: np.ndarray, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> None:
    """Light mortar, each brick a little lighter or darker, every other course shifted by half a brick."""
    height, width = rng.integers(10, 18), rng.integers(22, 40)
    course = (y // height).astype(int)
    along = x + (course % 2) * width / 2
    texture[(y % height < 2) | (along % width < 2)] += 50
    tint = rng.normal(0, 14, (64, 64))
    texture += tint[course % 64, (along // width).astype(int) % 64][..., None]


def _fill_shelves(texture: np.ndarray, rng: np.random.Generator) -> None:
    """Forty coloured boxes, half transparent: a shop's clutter."""
    palette = np.array(list(NAMED_COLOURS.values()))
    for _ in range(40):
        left, top = rng.integers(0, len(texture) - 20, 2)
        width, height = rng.integers(12, 70, 2)
        box = texture[top : top + height, left : left + width]
        box[:] = box * 0.4 + palette[rng.integers(len(palette))] * 0.6
