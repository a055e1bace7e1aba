"""One picture: a person in front of a camera, from pose to JPEG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from datasets.rendering.camera import CANVAS_SIZE, Camera
from datasets.rendering.person import Person, paint_person, shade

# Raise it whenever the same arguments give another picture: data sets on disk are then rendered anew.
RENDERER_VERSION = 1

# Figures are painted on a sheet this high and then reduced, which smooths their edges.
_SHEET_HEIGHT = 384
# The height in pixels at which the camera's blur is stated.
_REFERENCE_HEIGHT = 128


@dataclass(frozen=True)
class _Placement:
    """Where and how the subject stands on the sheet: pixels, degrees (yaw) and radians (phase)."""

    centre_x: float
    top: float
    height: float
    yaw: float
    phase: float


def render(
    person: Person,
    camera: Camera,
    rng: np.random.Generator,
    *,
    size: tuple[int, int] = (128, 64),
    passers_by: Sequence[Person] = (),
) -> bytes:
    """Photograph a person.

    Args:
        person: the subject, roughly in the middle of the picture.
        camera: fixes background, light, colour and sharpness.
        rng: pose, place, light of the moment, passers-by and obstacles; the same state gives the same bytes.
        size: (height, width) of the picture in pixels.
        passers_by: other people who may stand behind or in front; nobody does if empty.

    Returns:
        The bytes of one RGB JPEG file.

    Raises:
        ValueError: if the picture is more than 1.25 times as wide as high.
    """
    height, width = size
    sheet_width = round(_SHEET_HEIGHT * width / height)
    if sheet_width > CANVAS_SIZE:
        raise ValueError(f"a picture of {height} x {width} (height x width) is too wide for the background")
    sheet, ground = _background(camera, rng, sheet_width)
    placement = _place(person, camera, rng, sheet)
    _paint_passer_by_behind(sheet, placement, camera, rng, passers_by)
    _paint_subject(sheet, person, placement, ground)
    _paint_obstacle(sheet, placement, camera, rng, passers_by)
    pixels = np.asarray(_photograph(sheet, camera, rng, size), np.float32)
    image = Image.fromarray(_develop(pixels, camera, rng))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=camera.jpeg_quality)
    return buffer.getvalue()


def _background(camera: Camera, rng: np.random.Generator, width: int) -> tuple[Image.Image, tuple[float, ...]]:
    """A crop of the camera's canvas with a floor blended in; also the floor's colour."""
    left, top = rng.integers(0, CANVAS_SIZE - width + 1), rng.integers(0, CANVAS_SIZE - _SHEET_HEIGHT + 1)
    sheet = camera.canvas.crop((left, top, left + width, top + _SHEET_HEIGHT))
    horizon = int(_SHEET_HEIGHT * rng.uniform(0.72, 0.9))
    ground = tuple(channel * 0.6 + 40 for channel in sheet.getpixel((width // 2, _SHEET_HEIGHT - 5)))
    strip = sheet.crop((0, horizon, width, _SHEET_HEIGHT))
    sheet.paste(Image.blend(strip, Image.new("RGB", strip.size, shade(ground)), 0.6), (0, horizon))
    return sheet, ground


def _place(person: Person, camera: Camera, rng: np.random.Generator, sheet: Image.Image) -> _Placement:
    """The subject's pose, and its scale and position as a detector's box would jitter them."""
    height = sheet.height * camera.scale * person.height * math.exp(rng.normal(0, 0.06))
    return _Placement(
        centre_x=sheet.width * (0.5 + rng.normal(0, 0.06)),
        top=sheet.height * (0.5 + rng.normal(0, 0.035)) - height / 2,
        height=height,
        yaw=camera.yaw_centre + rng.normal(0, camera.yaw_spread),
        phase=rng.uniform(0, 2 * math.pi),
    )


def _paint_subject(sheet: Image.Image, person: Person, placement: _Placement, ground: tuple[float, ...]) -> None:
    """The subject and its shadow on the floor; the only place that knows what kind of thing the subject is."""
    middle, top, height = placement.centre_x, placement.top, placement.height
    shadow = (middle - 0.16 * height, top + 0.955 * height, middle + 0.16 * height, top + 1.01 * height)
    ImageDraw.Draw(sheet).ellipse(shadow, fill=shade(ground, 0.6))
    paint_person(
        sheet,
        person,
        centre_x=placement.centre_x,
        top=placement.top,
        height=placement.height,
        yaw=placement.yaw,
        phase=placement.phase,
    )


def _paint_stranger(
    sheet: Image.Image,
    placement: _Placement,
    rng: np.random.Generator,
    passers_by: Sequence[Person],
    *,
    distance: tuple[float, float],
    lower: float,
    scale: tuple[float, float],
) -> None:
    """Somebody beside the subject, `distance` (of the sheet's width) away, `lower` by a share of its height."""
    side = 1 if rng.random() < 0.5 else -1
    paint_person(
        sheet,
        passers_by[rng.integers(len(passers_by))],
        centre_x=placement.centre_x + side * rng.uniform(*distance) * sheet.width,
        top=placement.top + lower * sheet.height,
        height=placement.height * rng.uniform(*scale),
        yaw=rng.uniform(0, 360),
        phase=rng.uniform(0, 2 * math.pi),
    )


def _paint_passer_by_behind(
    sheet: Image.Image,
    placement: _Placement,
    camera: Camera,
    rng: np.random.Generator,
    passers_by: Sequence[Person],
) -> None:
    """Now and then somebody farther away, smaller and higher up in the picture."""
    if rng.random() < camera.occlusion * 0.8 and passers_by:
        lower = -rng.uniform(0, 0.05)
        _paint_stranger(sheet, placement, rng, passers_by, distance=(0.3, 0.5), lower=lower, scale=(0.8, 0.95))


def _paint_obstacle(
    sheet: Image.Image,
    placement: _Placement,
    camera: Camera,
    rng: np.random.Generator,
    passers_by: Sequence[Person],
) -> None:
    """Now and then something in front: a pole, a low wall, a box or a passer-by."""
    if rng.random() >= camera.occlusion:
        return
    width, height = sheet.size
    draw, fill = ImageDraw.Draw(sheet), shade(rng.uniform(20, 220, 3))
    kind = ("pole", "wall", "box", "passer-by")[rng.integers(4)]
    if kind == "pole":
        left = rng.uniform(0.1, 0.9) * width
        draw.rectangle((left, 0, left + rng.uniform(0.05, 0.16) * width, height), fill=fill)
    elif kind == "wall":
        draw.rectangle((0, rng.uniform(0.6, 0.82) * height, width, height), fill=fill)
    elif kind == "box":
        left, top = rng.uniform(-0.3, 0.8) * width, rng.uniform(0.35, 0.75) * height
        # Nine pixels below the sheet, so that the lower corners do not look round.
        draw.rounded_rectangle((left, top, left + rng.uniform(0.3, 0.6) * width, height + 9), 20, fill=fill)
    elif passers_by:
        _paint_stranger(sheet, placement, rng, passers_by, distance=(0.28, 0.45), lower=0.03, scale=(0.95, 1.1))


def _photograph(sheet: Image.Image, camera: Camera, rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """The sheet at the sensor's resolution, out of focus, brought to `size` (height, width)."""
    height, width = size
    if camera.resolution < 0.95:
        sensor = (max(12, int(width * camera.resolution)), max(24, int(height * camera.resolution)))
    else:
        sensor = (width, height)
    image = sheet.resize(sensor, Image.Resampling.BOX)
    focus = rng.uniform(0.5, 1.5)
    if camera.blur > 0.15:
        image = image.filter(ImageFilter.GaussianBlur(camera.blur * focus * height / _REFERENCE_HEIGHT))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image


def _develop(pixels: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Light, colour and noise on an (H, W, 3) float32 picture in 0..255; gives uint8."""
    height, width, _ = pixels.shape
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    light = 1 + np.float32(0.22 * camera.side_light) * across + np.float32(rng.normal(0, 0.08)) * down
    light *= np.float32(math.exp(rng.normal(0, 0.1)))
    pixels = pixels * light
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) * np.float32(camera.saturation)
    white_balance = np.exp(rng.normal(0, 0.03, 3)).astype(np.float32)
    factor = 255 * camera.exposure * camera.gain * white_balance
    pixels = np.clip(pixels / 255, 0, 1) ** np.float32(camera.gamma) * factor.astype(np.float32) + camera.offset
    pixels += rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(camera.noise)
    return np.clip(pixels, 0, 255).astype(np.uint8)
