"""One image: a person or a vehicle in front of a camera, from pose to JPEG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools.demo.rendering.camera import CANVAS_SIZE, Camera
from tools.demo.rendering.colours import shade
from tools.demo.rendering.occluder import paint_occluder

# Raise it whenever the same arguments give another image: data sets on disk are then rendered anew.
RENDERER_VERSION = 1

# Figures are painted on a sheet this high and then reduced, which smooths their edges.
_SHEET_HEIGHT = 384
# The height in pixels at which the camera's blur is stated.
_REFERENCE_HEIGHT = 128


class Subject(Protocol):
    """What a scene needs of whatever it shows.

    Attributes:
        spacing: how far apart two of its kind stand in an image, as a factor on what people keep.
        horizon: between which shares of the image's height the floor may end.
    """

    spacing: float
    horizon: tuple[float, float]

    def relative_height(self, yaw: float) -> float:
        """Height of the painted figure, in a measure that all of its kind share."""
        ...

    def share(self, yaw: float) -> float:
        """The same as a share of the image's height, where the camera's scale is 1."""
        ...

    def paint_shadow(
        self, image: Image.Image, rgb: tuple[int, int, int], *, centre_x: float, top: float, height: float, yaw: float
    ) -> None:
        """Paint what lies on the floor under the figure; measures as for `paint`."""
        ...

    def paint(
        self, image: Image.Image, *, centre_x: float, top: float, height: float, yaw: float, phase: float
    ) -> None:
        """Paint the figure between `top` and `top + height`: pixels, degrees (yaw) and radians (phase)."""
        ...


SubjectType = TypeVar("SubjectType", bound=Subject)


class Rendered(NamedTuple):
    """A photograph, and the direction in which the subject faces on it, degrees (any number)."""

    jpeg: bytes
    yaw: float


@dataclass(frozen=True)
class _Placement:
    """Where and how the subject stands on the sheet: pixels, degrees (yaw) and radians (phase)."""

    centre_x: float
    top: float
    height: float
    yaw: float
    phase: float


def photograph(
    subject: SubjectType,
    camera: Camera,
    rng: np.random.Generator,
    *,
    size: tuple[int, int] = (128, 64),
    passers_by: Sequence[SubjectType] = (),
    occluder: np.random.Generator | None = None,
) -> Rendered:
    """Photograph a person or a vehicle.

    Args:
        subject: what is roughly in the middle of the image.
        camera: fixes background, light, colour and sharpness.
        rng: pose, place, light of the moment, passers-by and obstacles; the same state gives the same bytes.
        size: (height, width) of the image in pixels.
        passers_by: others of the same kind, who may stand behind or in front; nobody does if empty.
        occluder: the source of something that hides 35 to 65 % of the subject, besides what `rng` puts there; without,
            nothing does. All the rest of the image stays the same.

    Returns:
        One RGB JPEG file, and the subject's direction.

    Raises:
        ValueError: if the image is more than 1.25 times as wide as high.
    """
    height, width = size
    sheet_width = round(_SHEET_HEIGHT * width / height)
    if sheet_width > CANVAS_SIZE:
        raise ValueError(f"an image of {height} x {width} (height x width) is too wide for the background")
    sheet, ground = _background(subject, camera, rng, sheet_width)
    placement = _place(subject, camera, rng, sheet)
    if rng.random() < camera.occlusion * 0.8 and passers_by:  # somebody farther away, smaller and higher up
        lower = -rng.uniform(0, 0.05)
        _paint_stranger(sheet, subject, placement, rng, passers_by, distance=(0.3, 0.5), lower=lower, scale=(0.8, 0.95))
    figure = _paint_subject(sheet, subject, placement, ground, outlined=occluder is not None)
    _paint_obstacle(sheet, subject, placement, camera, rng, passers_by)
    if occluder is not None:
        paint_occluder(sheet, figure, occluder)
    pixels = np.asarray(_expose(sheet, camera, rng, size), np.float32)
    image = Image.fromarray(_develop(pixels, camera, rng))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=camera.jpeg_quality)
    return Rendered(buffer.getvalue(), placement.yaw)


def _background(
    subject: Subject, camera: Camera, rng: np.random.Generator, width: int
) -> tuple[Image.Image, tuple[float, ...]]:
    """A crop of the camera's canvas with a floor blended in; also the floor's colour."""
    left, top = rng.integers(0, CANVAS_SIZE - width + 1), rng.integers(0, CANVAS_SIZE - _SHEET_HEIGHT + 1)
    sheet = camera.canvas.crop((left, top, left + width, top + _SHEET_HEIGHT))
    horizon = int(_SHEET_HEIGHT * rng.uniform(*subject.horizon))
    ground = tuple(channel * 0.6 + 40 for channel in sheet.getpixel((width // 2, _SHEET_HEIGHT - 5)))
    strip = sheet.crop((0, horizon, width, _SHEET_HEIGHT))
    sheet.paste(Image.blend(strip, Image.new("RGB", strip.size, shade(ground)), 0.6), (0, horizon))
    return sheet, ground


def _place(subject: Subject, camera: Camera, rng: np.random.Generator, sheet: Image.Image) -> _Placement:
    """The subject's pose, and its scale and position as a detector's box would jitter them."""
    scale, across, down, turn = rng.normal(0, 0.06), rng.normal(0, 0.06), rng.normal(0, 0.035), rng.normal(0, 1)
    yaw = camera.yaw_centre + camera.yaw_spread * turn
    height = sheet.height * camera.scale * subject.share(yaw) * math.exp(scale)
    return _Placement(
        centre_x=sheet.width * (0.5 + across),
        top=sheet.height * (0.5 + down) - height / 2,
        height=height,
        yaw=yaw,
        phase=rng.uniform(0, 2 * math.pi),
    )


def _paint_subject(
    sheet: Image.Image, subject: Subject, placement: _Placement, ground: tuple[float, ...], *, outlined: bool
) -> np.ndarray | None:
    """The subject and its shadow on the floor; if asked for, where the figure is, bool (H, W) of the sheet."""
    where = {name: getattr(placement, name) for name in ("centre_x", "top", "height", "yaw")}
    subject.paint_shadow(sheet, shade(ground, 0.6), **where)
    before = np.array(sheet) if outlined else None
    subject.paint(sheet, **where, phase=placement.phase)
    return None if before is None else (np.asarray(sheet) != before).any(axis=2)


def _paint_stranger(
    sheet: Image.Image,
    subject: SubjectType,
    placement: _Placement,
    rng: np.random.Generator,
    passers_by: Sequence[SubjectType],
    *,
    distance: tuple[float, float],
    lower: float,
    scale: tuple[float, float],
) -> None:
    """Somebody beside the subject, `distance` (of the sheet's width) away, `lower` by a share of its height."""
    side = 1 if rng.random() < 0.5 else -1
    stranger = passers_by[rng.integers(len(passers_by))]
    away, factor = rng.uniform(*distance), rng.uniform(*scale)
    yaw, phase = rng.uniform(0, 360), rng.uniform(0, 2 * math.pi)
    # Both stand on the same floor.
    height = placement.height * (stranger.relative_height(yaw) / subject.relative_height(placement.yaw))
    stranger.paint(
        sheet,
        centre_x=placement.centre_x + side * away * subject.spacing * sheet.width,
        top=placement.top + (placement.height - height) + lower * sheet.height,
        height=height * factor,
        yaw=yaw,
        phase=phase,
    )


def _paint_obstacle(
    sheet: Image.Image,
    subject: SubjectType,
    placement: _Placement,
    camera: Camera,
    rng: np.random.Generator,
    passers_by: Sequence[SubjectType],
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
        _paint_stranger(
            sheet, subject, placement, rng, passers_by, distance=(0.28, 0.45), lower=0.03, scale=(0.95, 1.1)
        )


def _expose(sheet: Image.Image, camera: Camera, rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
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
    """Light, colour and noise on an (H, W, 3) float32 image in 0..255; gives uint8."""
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
