"""A vehicle as a set of attributes, how to sample one, and how to paint one.

Lengths are in metres, in body coordinates: x forward, y to the vehicle's own right, z up; the origin is on the ground
below the middle. Angles of view (yaw) are in degrees, as for people: 0 faces the camera, 90 drives to the right of the
image, so that the vehicle's right side is seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from tools.demo.rendering.colours import RGB, Colour, choose, contrasting_dye, dye, jitter, shade

# Raise it whenever the same vehicle is painted or drawn in another way: data sets on disk are then rendered anew.
VEHICLE_VERSION = 1

# As VeRi's key point files number them.
VIEWPOINTS = ("front", "rear", "left", "left front", "left rear", "right", "right front", "right rear")
_BY_YAW = (0, 6, 5, 7, 1, 4, 2, 3)  # of the sectors round yaw 0, 45, 90, ...

# Relative frequencies. Most cars are white, black or some grey: otherwise colour alone would tell them all apart.
TYPE_WEIGHTS = {
    "sedan": 26, "hatchback": 20, "estate": 11, "SUV": 17, "van": 9, "pickup": 7, "lorry": 6, "bus": 4,
}  # fmt: skip
PAINT_WEIGHTS = {
    "white": 25, "black": 20, "grey": 26, "blue": 6, "navy": 5, "red": 7, "green": 2,
    "yellow": 2, "orange": 2, "brown": 2, "beige": 2, "cyan": 1,
}  # fmt: skip
RIM_DESIGNS = ("disc", "five spokes", "ring")
LAMP_SHAPES = ("wide", "round", "tall")
DECAL_SHAPES = ("disc", "box", "triangle", "bar")
DECAL_PROBABILITY = {"van": 0.7, "lorry": 0.7, "bus": 0.7}
_CAR_DECAL_PROBABILITY = 0.3

T = TypeVar("T", float, np.ndarray)

_PITCH = math.radians(14)  # the camera looks down on the road
_COSINE, _SINE = math.cos(_PITCH), math.sin(_PITCH)
_DISTANCE = 15.0  # of the camera from the vehicle's middle, metres
_LIGHT = (-0.35, -0.55, 0.76)  # where light comes from (right, away, up): the left, the camera's side, above
_GLASS_LIGHT, _TYRE, _DARK = (150, 170, 182), (30, 30, 32), (44, 44, 48)


@dataclass(frozen=True)
class _Shape:
    """A type's usual measures; x positions are fractions of half the length, positive in front of the middle."""

    length: float
    width: float
    height: float
    clearance: float  # z of the body's lower edge
    belt: float  # z of the lower edge of the windows
    nose: float  # z of the bonnet's front edge
    tail: float  # z of the rear's upper edge, up to the belt
    windscreen: tuple[float, float]  # x of its lower and its upper edge
    rear: tuple[float, float]  # the same of the rear window
    wheel: float  # radius
    axles: tuple[float, float]


_SHAPES = {
    "sedan": _Shape(4.3, 1.8, 1.46, 0.24, 0.92, 0.72, 0.9, (0.4, 0.08), (-0.74, -0.42), 0.32, (0.64, -0.6)),
    "hatchback": _Shape(3.7, 1.72, 1.5, 0.24, 0.94, 0.76, 0.94, (0.48, 0.14), (-0.97, -0.8), 0.31, (0.68, -0.66)),
    "estate": _Shape(4.4, 1.8, 1.5, 0.24, 0.94, 0.74, 0.94, (0.42, 0.12), (-0.98, -0.86), 0.32, (0.64, -0.6)),
    "SUV": _Shape(4.3, 1.88, 1.8, 0.36, 1.1, 0.95, 1.1, (0.45, 0.2), (-0.97, -0.88), 0.39, (0.64, -0.62)),
    "van": _Shape(4.7, 1.95, 2.15, 0.3, 1.15, 0.95, 1.15, (0.8, 0.5), (-0.99, -0.96), 0.34, (0.68, -0.6)),
    "pickup": _Shape(4.8, 1.88, 1.78, 0.4, 1.05, 0.92, 1.05, (0.42, 0.18), (-0.22, -0.16), 0.39, (0.66, -0.62)),
    "lorry": _Shape(5.8, 2.1, 2.4, 0.45, 1.25, 1.1, 1.25, (0.98, 0.9), (0.42, 0.44), 0.45, (0.72, -0.62)),
    "bus": _Shape(7.0, 2.3, 2.8, 0.35, 1.25, 1.15, 1.25, (0.99, 0.95), (-1.0, -0.98), 0.45, (0.62, -0.6)),
}
_BOX_HEIGHT = 1.15  # of a lorry's box, of the cab's height


@dataclass(frozen=True)
class Decal:
    """A print on the doors or the box: place and size as fractions of the panel, and which sides have it."""

    x: float
    z: float
    size: float
    shape: str
    rgb: RGB
    sides: tuple[int, ...]  # +1 the vehicle's right, -1 its left


@dataclass(frozen=True)
class Vehicle:
    """One identity. Everything here stays the same from image to image.

    `length`, `width`, `height`, `wheel_size` and `cabin_length` are factors on the measures of its type, `cabin_shift`
    is a part of half the length.
    """

    type: str
    body: Colour
    roof: RGB
    lower: RGB
    cargo: RGB
    bumpers: RGB
    side_stripe: RGB | None
    top_stripe: RGB | None

    length: float
    width: float
    height: float
    cabin_shift: float
    cabin_length: float
    wheel_size: float
    rims: RGB
    rim_design: str
    glass: RGB
    panelled: bool
    grille: RGB
    lamps: str
    plate: RGB
    roof_rack: bool
    spoiler: bool
    sunroof: bool
    taxi_sign: RGB | None
    decal: Decal | None
    sticker: RGB | None

    # What a subject of a scene has (see scene.py). Two vehicles need more room than two people.
    spacing = 2.0
    horizon = (0.3, 0.5)

    def relative_height(self, yaw: float) -> float:
        """Height of the painted figure in metres (it depends on the side, because the camera looks down)."""
        _, top, _, bottom = _bounds(self, _View(yaw))
        return bottom - top

    def share(self, yaw: float) -> float:
        """Painted height as a share of a square image that the figure fills up or across, whichever is more."""
        left, top, right, bottom = _bounds(self, _View(yaw))
        return (bottom - top) / max(right - left, bottom - top)

    def paint_shadow(
        self, image: Image.Image, rgb: tuple[int, int, int], *, centre_x: float, top: float, height: float, yaw: float
    ) -> None:
        """A little more than the ground that it stands on."""
        brush = _Brush(image, self, centre_x, top, height, yaw)
        x, y = 0.53 * brush.length, 0.6 * brush.width
        brush.polygon([(x, y, 0), (x, -y, 0), (-x, -y, 0), (-x, y, 0)], rgb)

    def paint(
        self, image: Image.Image, *, centre_x: float, top: float, height: float, yaw: float, phase: float
    ) -> None:
        """See `paint_vehicle`."""
        paint_vehicle(image, self, centre_x=centre_x, top=top, height=height, yaw=yaw, phase=phase)


def viewpoint(yaw: float) -> int:
    """The index in VIEWPOINTS of the sector of 45 degrees that a direction (degrees, any number) lies in."""
    return _BY_YAW[round(yaw / 45) % 8]


# ---------------------------------------------------------------------------------------------------- sampling


def sample_vehicle(rng: np.random.Generator) -> Vehicle:
    """Draw one identity; the same generator state gives the same vehicle."""
    kind = choose(rng, TYPE_WEIGHTS)
    body = dye(rng, PAINT_WEIGHTS)
    shine = float(np.clip(rng.normal(1, 0.16), 0.6, 1.25))  # silver and anthracite are both grey
    body = Colour(body.name, tuple(channel * shine for channel in body.rgb))
    other = contrasting_dye(rng, body).rgb
    trim = jitter(rng, _DARK, 6)
    tint = rng.uniform(0.22, 0.75)
    return Vehicle(
        type=kind,
        body=body,
        roof=_either(rng, 0.16, (other, jitter(rng, (26, 26, 30), 6)), body.rgb),
        lower=_either(rng, 0.22, (other, trim), body.rgb),
        cargo=dye(rng, {"white": 50, "grey": 15, "blue": 10, "red": 8, "yellow": 7, "green": 6, "brown": 4}).rgb,
        bumpers=_either(rng, 0.3, (trim,), body.rgb),
        side_stripe=dye(rng).rgb if rng.random() < 0.18 else None,
        top_stripe=contrasting_dye(rng, body).rgb if rng.random() < 0.12 else None,
        length=rng.uniform(0.92, 1.08),
        width=rng.uniform(0.95, 1.05),
        height=rng.uniform(0.93, 1.08),
        cabin_shift=rng.uniform(-0.06, 0.06),
        cabin_length=rng.uniform(0.92, 1.08),
        wheel_size=rng.uniform(0.9, 1.15),
        rims=jitter(rng, ((190, 192, 196), (60, 60, 64), (226, 226, 224))[rng.integers(3)]),
        rim_design=RIM_DESIGNS[rng.integers(len(RIM_DESIGNS))],
        glass=jitter(rng, tuple(channel * tint for channel in _GLASS_LIGHT), 5),
        panelled=bool(rng.random() < 0.55),
        grille=jitter(rng, ((36, 36, 40), (176, 178, 182))[rng.integers(2)]),
        lamps=LAMP_SHAPES[rng.integers(len(LAMP_SHAPES))],
        plate=((232, 232, 228), (225, 195, 50), (60, 90, 180))[rng.integers(3)],
        roof_rack=bool(rng.random() < 0.2),
        spoiler=bool(rng.random() < 0.15),
        sunroof=bool(rng.random() < 0.22),
        taxi_sign=dye(rng, {"yellow": 3, "white": 2, "green": 1}).rgb if rng.random() < 0.09 else None,
        decal=_sample_decal(rng, kind),
        sticker=dye(rng).rgb if rng.random() < 0.22 else None,
    )


def _either(rng: np.random.Generator, probability: float, rare: Sequence[RGB], usual: RGB) -> RGB:
    """One of the rare colours with the given probability, else the usual one."""
    return rare[rng.integers(len(rare))] if rng.random() < probability else usual


def _sample_decal(rng: np.random.Generator, kind: str) -> Decal | None:
    if rng.random() >= DECAL_PROBABILITY.get(kind, _CAR_DECAL_PROBABILITY):
        return None
    return Decal(
        x=rng.uniform(-0.3, 0.3),
        z=rng.uniform(0.4, 0.65),
        size=rng.uniform(0.22, 0.42),
        shape=DECAL_SHAPES[rng.integers(len(DECAL_SHAPES))],
        rgb=dye(rng).rgb,
        sides=((-1, 1), (-1, 1), (1,), (-1,))[rng.integers(4)],
    )


# ---------------------------------------------------------------------------------------------------- projection


class _View:
    """The camera, seen from the vehicle."""

    def __init__(self, yaw: float) -> None:
        self.sine, self.cosine = math.sin(math.radians(yaw)), math.cos(math.radians(yaw))
        self.eye = tuple(_DISTANCE * part for part in (_COSINE * self.cosine, _COSINE * self.sine, _SINE))

    def turned(self, x: T, y: T) -> tuple[T, T]:
        """x and y on the body -> right and away, for the camera. (Matrices would round as they like.)"""
        return x * self.sine - y * self.cosine, -x * self.cosine - y * self.sine

    def project(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) in body coordinates -> (N, 2): metres at the vehicle's middle, to the right and down."""
        right, away = self.turned(points[:, 0], points[:, 1])
        up = points[:, 2]
        nearness = _DISTANCE / (_DISTANCE + away * _COSINE - up * _SINE)
        return np.array((right * nearness, -(up * _COSINE + away * _SINE) * nearness)).T

    def sees(self, normal: Sequence[float], point: Sequence[float]) -> bool:
        """Whether a face with this outward normal, through this point, is turned to the camera."""
        return sum(n * (eye - at) for n, eye, at in zip(normal, self.eye, point, strict=True)) > 0

    def light(self, normal: Sequence[float]) -> float:
        """Factor on a face's colour."""
        facing = sum(part * light for part, light in zip((*self.turned(*normal[:2]), normal[2]), _LIGHT, strict=True))
        facing /= math.hypot(*normal)
        return 0.72 + 0.38 * max(0.0, facing)


class _Measures:
    """A vehicle's measures in metres."""

    def __init__(self, vehicle: Vehicle) -> None:
        shape = _SHAPES[vehicle.type]
        self.shape = shape
        self.length, self.width = shape.length * vehicle.length, shape.width * vehicle.width
        self.height = shape.height * vehicle.height
        self.half, self.side = self.length / 2, self.width / 2
        shift = vehicle.cabin_shift * (vehicle.type in ("sedan", "hatchback", "estate", "SUV", "pickup"))
        longer = vehicle.cabin_length if shift else 1.0
        # The cabin: windscreen's foot, roof's ends, foot of the rear window.
        foot, front = (self.half * min(0.99, x + shift) for x in shape.windscreen)
        heel, back = (self.half * max(-1.0, (x + shift) * longer) for x in shape.rear)
        self.cabin = (foot, front, back, heel)
        self.belt = shape.belt * (1 + (vehicle.height - 1) * 0.5)
        self.roof_side = self.side * (0.95 if vehicle.type in ("van", "lorry", "bus") else 0.78)
        self.box = vehicle.type == "lorry"
        self.top = self.height * (_BOX_HEIGHT if self.box else 1.0)

    def corners(self) -> np.ndarray:
        """(N, 3) points that the projected figure lies between."""
        _, front, back, _ = self.cabin
        low = [(x, y, z) for x in (self.half, -self.half) for y in (self.side, -self.side) for z in (0.0, self.belt)]
        if self.box:
            back = -self.half
        high = [(x, y, self.top) for x in (front, back) for y in (self.roof_side, -self.roof_side)]
        return np.array(low + high)


def _bounds(vehicle: Vehicle, view: _View) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the projected figure, metres."""
    points = view.project(_Measures(vehicle).corners())
    return *points.min(axis=0), *points.max(axis=0)


# ---------------------------------------------------------------------------------------------------- painting


class _Brush(_Measures):
    """Paints polygons given in body coordinates onto an image."""

    def __init__(
        self, image: Image.Image, vehicle: Vehicle, centre_x: float, top: float, height: float, yaw: float
    ) -> None:
        super().__init__(vehicle)
        self.draw = ImageDraw.Draw(image)
        self.view = _View(yaw)
        left, upper, right, lower = _bounds(vehicle, self.view)
        self.scale = height / (lower - upper)
        self.origin = np.array([centre_x - self.scale * (left + right) / 2, top - self.scale * upper])

    def polygon(self, points: Sequence[Sequence[float]], rgb: Sequence[float], factor: float = 1.0) -> None:
        pixels = self.view.project(np.asarray(points, float)) * self.scale + self.origin
        self.draw.polygon([tuple(pixel) for pixel in pixels.tolist()], fill=shade(rgb, factor))

    def face(self, points: Sequence[Sequence[float]], normal: Sequence[float], rgb: Sequence[float]) -> None:
        """A lit polygon, if it is turned to the camera."""
        if self.view.sees(normal, points[0]):
            self.polygon(points, rgb, self.view.light(normal))

    def solid(self, profile: Sequence[tuple[float, float, float]], colours: Sequence[RGB], flank: RGB) -> None:
        """A convex body: `profile` is (x, z, half width), from the front's foot over the roof to the rear's foot.

        `colours` are those of the faces between one point and the next, `flank` that of both sides.
        """
        for (start, end), rgb in zip(pairwise(profile), colours, strict=True):
            normal = (end[1] - start[1], 0.0, start[0] - end[0])
            corners = [(x, sign * half, z) for (x, z, half), sign in ((start, 1), (end, 1), (end, -1), (start, -1))]
            self.face(corners, normal, rgb)
        for sign in (1, -1):
            self.face([(x, sign * half, z) for x, z, half in profile], (0, sign, 0), flank)

    def flank(self, sign: int, points: Sequence[tuple[float, float]], rgb: Sequence[float]) -> None:
        """A polygon (x, z) on the lower body's side, +1 the vehicle's right."""
        self.face([(x, sign * self.side, z) for x, z in points], (0, sign, 0), rgb)

    def bar(self, sign: int, left: float, low: float, right: float, high: float, rgb: Sequence[float]) -> None:
        self.flank(sign, [(left, low), (left, high), (right, high), (right, low)], rgb)

    def end(self, sign: int, left: float, low: float, right: float, high: float, rgb: Sequence[float]) -> None:
        """A box (y, z) on the front (+1) or the rear (-1)."""
        corners = [(left, low), (left, high), (right, high), (right, low)]
        self.face([(sign * self.half, y, z) for y, z in corners], (sign, 0, 0), rgb)

    def disc(self, sign: int, x: float, z: float, radius: float, rgb: Sequence[float], sectors: Sequence[float] = ()):
        """A disc on a side, or spokes at the given angles (radians)."""
        if not self.view.sees((0, sign, 0), (x, sign * self.side, z)):
            return
        if not sectors:
            angles = np.linspace(0, 2 * math.pi, 18, endpoint=False)
            self.polygon([(x + radius * math.cos(a), sign * self.side, z + radius * math.sin(a)) for a in angles], rgb)
        for angle in sectors:
            spread = (angle - 0.28, angle + 0.28)
            rim = [(x + radius * math.cos(a), sign * self.side, z + radius * math.sin(a)) for a in spread]
            self.polygon([(x, sign * self.side, z), *rim], rgb)


def paint_vehicle(
    image: Image.Image,
    vehicle: Vehicle,
    *,
    centre_x: float,
    top: float,
    height: float,
    yaw: float,
    phase: float = 0.0,
) -> None:
    """Paint a vehicle onto an RGB image, in place.

    Args:
        image: the image; parts that fall outside are cut off.
        vehicle: which.
        centre_x: the middle of the painted figure, in pixels from the left.
        top: its highest point, in pixels from the top; what is mounted on the roof stands out.
        height: from there to its lowest point, in pixels.
        yaw: the direction that the vehicle faces, degrees; 0 is towards the camera, 90 to the image's right.
        phase: how far the wheels have turned, radians.
    """
    brush = _Brush(image, vehicle, centre_x, top, height, yaw)
    shows_front = brush.view.eye[0] > 0
    _paint_far_wheels(brush, vehicle)
    if brush.box and shows_front:
        _paint_box(brush, vehicle)
    _paint_lower_body(brush, vehicle)
    _paint_ends(brush, vehicle)
    for sign in (1, -1):
        _paint_flank(brush, vehicle, sign, phase)
    _paint_cabin(brush, vehicle)
    if brush.box and not shows_front:
        _paint_box(brush, vehicle)
    if brush.box:
        _paint_box_decal(brush, vehicle)
    _paint_roof(brush, vehicle)


def _wheels(brush: _Brush, vehicle: Vehicle) -> list[tuple[float, float]]:
    """(x, radius) of the axles."""
    return [(x * brush.half, brush.shape.wheel * vehicle.wheel_size) for x in brush.shape.axles]


def _paint_far_wheels(brush: _Brush, vehicle: Vehicle) -> None:
    """Tyres, as far as they show below the body, and the dark underneath."""
    x, y, z = brush.half * 0.96, brush.side * 0.94, brush.shape.clearance
    brush.polygon([(x, y, z), (x, -y, z), (-x, -y, z), (-x, y, z)], (22, 22, 24))
    for sign in (1, -1):
        for axle, radius in _wheels(brush, vehicle):
            inner, outer = sign * brush.side * 0.7, sign * brush.side * 0.97
            for y in (inner, outer):  # a tyre seen from in front is as broad as it is
                brush.polygon(
                    [
                        (axle + radius * math.cos(a), y, radius + radius * math.sin(a))
                        for a in np.linspace(0, 2 * math.pi, 14, endpoint=False)
                    ],
                    _TYRE,
                )
            for end in (-1, 1):
                x = axle + end * radius * 0.7
                brush.polygon([(x, inner, 0.05), (x, outer, 0.05), (x, outer, radius), (x, inner, radius)], _TYRE)


def _paint_lower_body(brush: _Brush, vehicle: Vehicle) -> None:
    """Everything below the windows."""
    shape, half, side, body = brush.shape, brush.half, brush.side, vehicle.body.rgb
    rear_colour = (60, 60, 64) if brush.box else body
    middle = shape.clearance + 0.45 * (brush.belt - shape.clearance)
    profile = [
        (half, shape.clearance, side),
        (half, shape.nose, side),
        (brush.cabin[0], brush.belt, side),
        (brush.cabin[3], brush.belt, side),
        (-half, shape.tail, side),
        (-half, shape.clearance, side),
    ]
    if brush.box:  # behind the cab there is only a frame
        frame = brush.cabin[3]
        brush.solid(
            [(frame, 0.5, side * 0.8), (frame, 0.85, side * 0.8), (-half, 0.85, side * 0.8), (-half, 0.5, side * 0.8)],
            [rear_colour] * 3, rear_colour,
        )  # fmt: skip
        profile[3:] = [(frame, brush.belt, side), (frame, shape.clearance, side)]
    brush.solid(profile, [body] * (len(profile) - 1), body)
    rear = profile[-1][0]
    for sign in (1, -1):
        if vehicle.lower != body:
            brush.bar(sign, rear, shape.clearance, half, middle, vehicle.lower)
    if vehicle.top_stripe is not None and not brush.box:
        y = side * 0.22
        slope = (brush.belt - shape.nose, 0.0, half - brush.cabin[0])
        brush.face([(half, y, shape.nose), (brush.cabin[0], y, brush.belt), (brush.cabin[0], -y, brush.belt),
                    (half, -y, shape.nose)], slope, vehicle.top_stripe)  # fmt: skip
    if vehicle.type == "pickup":
        x, y = brush.cabin[3] - 0.1, side * 0.86
        bed = [(x, y, brush.belt), (x, -y, brush.belt), (-half * 0.97, -y, brush.belt), (-half * 0.97, y, brush.belt)]
        brush.face(bed, (0, 0, 1), (52, 52, 54))


def _paint_ends(brush: _Brush, vehicle: Vehicle) -> None:
    """Bumpers, plates, lamps and grille."""
    shape, side = brush.shape, brush.side
    low = shape.clearance
    for sign, top in ((1, shape.nose), (-1, shape.tail)):
        span = top - low
        if sign < 0 and brush.box:
            continue
        brush.end(sign, -side, low, side, low + 0.34 * span, vehicle.bumpers)
        plate = low + 0.12 * span if sign > 0 else low + 0.42 * span
        brush.end(sign, -0.26, plate, 0.26, plate + 0.14, vehicle.plate)
        wide, tall = {"wide": (0.5, 0.2), "round": (0.3, 0.3), "tall": (0.22, 0.46)}[vehicle.lamps]
        lamp = (250, 244, 214) if sign > 0 else (196, 22, 24)
        high = low + 0.95 * span
        for edge in (1, -1):
            inner, outer = sorted((edge * side * 0.96, edge * (side * 0.96 - wide)))
            brush.end(sign, inner, high - tall * span * 1.2, outer, high, lamp)
        if sign > 0:
            brush.end(1, -side * 0.46, low + 0.42 * span, side * 0.46, low + 0.9 * span, vehicle.grille)


def _paint_flank(brush: _Brush, vehicle: Vehicle, sign: int, phase: float) -> None:
    """One side: stripe, doors, decal, wheels."""
    shape, half = brush.shape, brush.half
    low, span = shape.clearance, brush.belt - shape.clearance
    rear = brush.cabin[3] if brush.box else -half
    if vehicle.side_stripe is not None:
        brush.bar(sign, rear, low + 0.55 * span, half, low + 0.72 * span, vehicle.side_stripe)
    foot, front, back, _ = brush.cabin
    seam = [channel * 0.6 for channel in vehicle.body.rgb]
    doors = (foot * 0.9, (front + back) / 2 + 0.1, back) if vehicle.type != "bus" else (foot * 0.85, foot * 0.68)
    for x in doors:
        brush.bar(sign, x - 0.02, low + 0.1 * span, x + 0.02, brush.belt, seam)
    for x in doors[1:]:
        brush.bar(sign, x + 0.12, low + 0.78 * span, x + 0.32, low + 0.84 * span, _DARK)
    # Lamps reach round the corners.
    brush.bar(sign, half - 0.22, shape.nose - 0.2, half, shape.nose - 0.04, (250, 244, 214))
    if not brush.box:
        brush.bar(sign, -half, shape.tail - 0.26, -half + 0.16, shape.tail - 0.06, (196, 22, 24))
        if vehicle.decal is not None and sign in vehicle.decal.sides:
            tall = span if vehicle.type != "van" or not vehicle.panelled else brush.height - low
            _paint_decal(brush, vehicle.decal, sign, (-half * 0.75, half * 0.45), (low, low + tall))
    for x, radius in _wheels(brush, vehicle):
        brush.disc(sign, x, radius * 1.05, radius * 1.2, (18, 18, 20))
        brush.disc(sign, x, radius, radius, _TYRE)
        spokes = [phase + 2 * math.pi * k / 5 for k in range(5)] if vehicle.rim_design == "five spokes" else ()
        brush.disc(sign, x, radius, radius * 0.68, vehicle.rims, spokes)
        if vehicle.rim_design == "ring":
            brush.disc(sign, x, radius, radius * 0.45, _DARK)


def _paint_decal(brush: _Brush, decal: Decal, sign: int, along: tuple[float, float], up: tuple[float, float]) -> None:
    """The print, mirrored from side to side as painters do: seen at the same distance from the front."""
    tall = up[1] - up[0]
    x = (along[0] + along[1]) / 2 + decal.x * (along[1] - along[0])
    z, size = up[0] + decal.z * tall, max(0.34, decal.size * tall)
    if decal.shape == "disc":
        brush.disc(sign, x, z, size, decal.rgb)
    elif decal.shape == "triangle":
        brush.flank(sign, [(x - 1.2 * size, z - 0.9 * size), (x, z + 0.9 * size), (x + 1.2 * size, z - 0.9 * size)],
                    decal.rgb)  # fmt: skip
    else:
        wide, high = (1.3, 0.75) if decal.shape == "box" else (2.4, 0.4)
        brush.bar(sign, x - wide * size, z - high * size, x + wide * size, z + high * size, decal.rgb)


def _paint_cabin(brush: _Brush, vehicle: Vehicle) -> None:
    """Pillars and roof, then the windows."""
    foot, front, back, heel = brush.cabin
    low, high, wide, narrow = brush.belt, brush.height, brush.side * 0.97, brush.roof_side
    body = vehicle.body.rgb
    brush.solid(
        [(foot, low, wide), (front, high, narrow), (back, high, narrow), (heel, low, wide)],
        [body, vehicle.roof, body], body,
    )  # fmt: skip

    def between(t: float, start: float, end: float) -> float:
        return start + t * (end - start)

    # Front and rear windows, a little inside their faces.
    for lower, upper, sign in ((foot, front, 1), (heel, back, -1)):
        if sign < 0 and (brush.box or (vehicle.type == "van" and vehicle.panelled)):
            continue
        normal = (sign * (high - low), 0.0, sign * (lower - upper))
        corners = [(between(t, lower, upper), y * between(t, wide, narrow), between(t, low, high))
                   for t, y in ((0.1, 0.9), (0.9, 0.86), (0.9, -0.86), (0.1, -0.9))]  # fmt: skip
        brush.face(corners, normal, vehicle.glass)
        if sign < 0 and vehicle.sticker is not None:
            patch = ((0.25, 0.15), (0.7, 0.15), (0.7, 0.6), (0.25, 0.6))
            corners = [(between(t, lower, upper), y * narrow, between(t, low, high)) for t, y in patch]
            brush.face(corners, normal, vehicle.sticker)
    for sign in (1, -1):
        for start, end in _panes(vehicle):
            corners = []
            for t, u in ((0.12, start), (0.86, start), (0.86, end), (0.12, end)):
                x = between(u, between(t, heel, back), between(t, foot, front))
                corners.append((x, sign * between(t, wide, narrow), between(t, low, high)))
            brush.face(corners, (0, sign, 0), vehicle.glass)
    mirror, side = (foot * 0.93, low + 0.05), brush.side + 0.16
    for sign in (1, -1):
        if brush.view.sees((0.4, sign, 0), (mirror[0], sign * side, low)):
            x, z = mirror
            brush.polygon([(x, sign * brush.side * 0.95, z), (x, sign * side, z), (x, sign * side, z + 0.17),
                           (x, sign * brush.side * 0.95, z + 0.17)], vehicle.bumpers, 0.8)  # fmt: skip


def _panes(vehicle: Vehicle) -> tuple[tuple[float, float], ...]:
    """Where side windows begin and end, from the rear (0) to the windscreen (1)."""
    if vehicle.type == "bus":
        return tuple((0.03 + 0.16 * k, 0.16 + 0.16 * k) for k in range(6))
    if vehicle.type == "van":
        return ((0.72, 0.94),) if vehicle.panelled else ((0.05, 0.35), (0.39, 0.68), (0.72, 0.94))
    if vehicle.type in ("lorry", "pickup"):
        return ((0.15, 0.9),)
    return ((0.08, 0.47), (0.52, 0.93))


def _paint_roof(brush: _Brush, vehicle: Vehicle) -> None:
    """What is on the roof: stripe, window, rack, sign, spoiler."""
    _, front, back, _ = brush.cabin
    high, half = brush.height, brush.roof_side
    length = front - back

    def lid(x0: float, x1: float, y: float, rgb: Sequence[float]) -> None:
        brush.face([(x0, y, high), (x1, y, high), (x1, -y, high), (x0, -y, high)], (0, 0, 1), rgb)

    if vehicle.top_stripe is not None:
        lid(back, front, brush.side * 0.22, vehicle.top_stripe)
    if vehicle.sunroof and not brush.box:
        lid(front - 0.5 * length, front - 0.15 * length, half * 0.6, (34, 38, 44))
    if vehicle.roof_rack and not brush.box:
        for sign in sorted((1, -1), key=lambda sign: sign * brush.view.eye[1]):  # the far rail first
            y, x0, x1 = sign * half * 0.85, back + 0.1 * length, front - 0.1 * length
            brush.polygon([(x0, y, high), (x0, y, high + 0.12), (x1, y, high + 0.12), (x1, y, high)], _DARK)
    if vehicle.taxi_sign is not None:
        x = front - 0.35 * length
        _paint_block(brush, (x - 0.14, x + 0.14), 0.38, (high, high + 0.24), vehicle.taxi_sign)
    if vehicle.spoiler and vehicle.type in ("sedan", "hatchback", "SUV"):
        x, z = (-brush.half, brush.shape.tail + 0.14) if vehicle.type == "sedan" else (back, high)
        _paint_block(brush, (x - 0.05, x + 0.25), brush.side * 0.85, (z, z + 0.08), vehicle.body.rgb)


def _paint_block(
    brush: _Brush, along: tuple[float, float], half_width: float, up: tuple[float, float], rgb: RGB
) -> None:
    corners = [(along[1], up[0]), (along[1], up[1]), (along[0], up[1]), (along[0], up[0])]
    brush.solid([(x, z, half_width) for x, z in corners], [rgb] * 3, rgb)


def _paint_box(brush: _Brush, vehicle: Vehicle) -> None:
    """A lorry's box."""
    front, rear = brush.cabin[3] - 0.08, -brush.half
    _paint_block(brush, (rear, front), brush.side, (0.85, brush.top), vehicle.cargo)
    seam = [channel * 0.75 for channel in vehicle.cargo]
    brush.end(-1, -0.02, 0.9, 0.02, brush.top, seam)
    for edge in (1, -1):
        inner, outer = sorted((edge * brush.side * 0.95, edge * brush.side * 0.7))
        brush.end(-1, inner, 0.86, outer, 1.02, (196, 22, 24))
    brush.end(-1, -0.26, 0.62, 0.26, 0.8, vehicle.plate)


def _paint_box_decal(brush: _Brush, vehicle: Vehicle) -> None:
    """The print on a lorry's box."""
    if vehicle.decal is not None:
        for sign in vehicle.decal.sides:
            along = (-brush.half, brush.cabin[3] - 0.08)
            _paint_decal(brush, vehicle.decal, sign, along, (0.85, brush.top))
