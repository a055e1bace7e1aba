"""A person as a set of attributes, how to sample one, and how to paint one.

Lengths are in *body units*: 1 is the painted height of the figure, x is measured from the body's axis and y from the
top of the head. Angles of view (yaw) are in degrees: 0 faces the camera, 90 walks to the right of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from tools.demo.rendering.colours import RGB, Colour, choose, contrasting_dye, dye, jitter, maybe_dye, shade

Point = tuple[float, float]

HAIR_COLOURS: dict[str, RGB] = {
    "black": (26, 22, 22),
    "brown": (84, 54, 34),
    "blond": (196, 160, 88),
    "red": (140, 62, 30),
    "grey": (150, 150, 150),
}
SKIN_TONES: tuple[RGB, ...] = (
    (244, 210, 186),
    (226, 182, 150),
    (198, 146, 108),
    (150, 102, 70),
    (100, 66, 46),
)

# Relative frequencies. Clothes are mostly dark and neutral, as in the street: otherwise colour alone would tell
# everybody apart.
TOP_COLOUR_WEIGHTS = {
    "black": 20, "white": 12, "grey": 10, "red": 7, "blue": 7, "navy": 9, "green": 5, "yellow": 3,
    "orange": 3, "purple": 4, "pink": 4, "brown": 4, "beige": 5, "teal": 3, "cyan": 4, "olive": 3,
}  # fmt: skip
BOTTOM_COLOUR_WEIGHTS = {
    "black": 28, "grey": 12, "navy": 16, "blue": 14, "brown": 6,
    "beige": 7, "white": 4, "olive": 5, "red": 3, "green": 2,
}  # fmt: skip
SHOE_COLOUR_WEIGHTS = {"black": 35, "white": 25, "brown": 15, "red": 6, "blue": 6, "grey": 13}
HAIR_COLOUR_WEIGHTS = {"black": 40, "brown": 28, "blond": 16, "red": 6, "grey": 10}
HAIR_STYLE_WEIGHTS = {
    "woman": {"short": 20, "long": 52.8, "bald": 0.6, "ponytail": 24, "bun": 12, "cap": 7.2},
    "man": {"short": 60, "long": 6, "bald": 12, "ponytail": 2.4, "bun": 0.6, "cap": 16.8},
}
PATTERN_WEIGHTS = {
    "plain": 44, "striped": 11, "vertical striped": 7, "checked": 10, "dotted": 6, "two-tone": 10, "logo": 12,
}  # fmt: skip
SLEEVE_WEIGHTS = {"woman": {"long": 50, "short": 40, "none": 10}, "man": {"long": 50, "short": 40, "none": 3}}
BOTTOM_WEIGHTS = {
    "woman": {"trousers": 60, "shorts": 18, "skirt": 14, "dress": 8},
    "man": {"trousers": 82, "shorts": 18},
}
BAG_WEIGHTS = {"none": 38, "backpack": 25, "handbag": 15, "shoulder bag": 15, "suitcase": 7}
LOGO_SHAPES = ("disc", "box", "triangle")

# Where things are, in body units.
HEAD_Y = 0.068
SHOULDER_Y = 0.165
FOOT_Y = 0.955


@dataclass(frozen=True)
class Logo:
    """A print on the chest: position (x from the middle, y from the shoulders) and size as fractions of the torso."""

    x: float
    y: float
    size: float
    shape: str


@dataclass(frozen=True)
class Person:
    """One identity. Everything here stays the same from image to image.

    The first block is what a caption may mention. The second, `height` and below, never appears in a caption: it is
    what is left to learn from images alone.
    """

    sex: str
    hair_style: str
    hair: Colour
    cap: Colour
    top: Colour
    pattern: str
    second: Colour
    sleeves: str
    open_jacket: bool
    bottom_kind: str
    bottom: Colour
    shoes: Colour
    bag: str
    bag_colour: Colour

    height: float
    build: float
    hips: float
    head_radius: float
    leg_length: float
    gait: float
    skin: RGB
    pattern_period: float
    hem: float
    bag_side: int
    bag_size: float
    inner_shirt: RGB
    scarf: RGB | None
    belt: RGB | None
    side_stripe: RGB | None
    cuffs: RGB | None
    logo: Logo
    glasses: bool

    # What a subject of a scene has (see scene.py). People are all painted as high as the subject, whatever their
    # height: a detector's box is as high as the person in it.
    spacing = 1.0
    horizon = (0.72, 0.9)

    def relative_height(self, yaw: float) -> float:
        """The same for everybody and from every side."""
        return 1.0

    def share(self, yaw: float) -> float:
        """Painted height as a share of the image's."""
        return self.height

    def paint_shadow(
        self, image: Image.Image, rgb: tuple[int, int, int], *, centre_x: float, top: float, height: float, yaw: float
    ) -> None:
        """An ellipse under the feet."""
        box = (centre_x - 0.16 * height, top + 0.955 * height, centre_x + 0.16 * height, top + 1.01 * height)
        ImageDraw.Draw(image).ellipse(box, fill=rgb)

    def paint(
        self, image: Image.Image, *, centre_x: float, top: float, height: float, yaw: float, phase: float
    ) -> None:
        """See `paint_person`."""
        paint_person(image, self, centre_x=centre_x, top=top, height=height, yaw=yaw, phase=phase)


# ---------------------------------------------------------------------------------------------------- sampling


def sample_person(rng: np.random.Generator) -> Person:
    """Draw one identity; the same generator state gives the same person."""
    woman = rng.random() < 0.5
    sex = "woman" if woman else "man"
    hair_colour = choose(rng, HAIR_COLOUR_WEIGHTS)
    top = dye(rng, TOP_COLOUR_WEIGHTS)
    sleeves = choose(rng, SLEEVE_WEIGHTS[sex])
    bottom_kind = choose(rng, BOTTOM_WEIGHTS[sex])
    belt_is_leather = rng.random() < 0.6
    return Person(
        sex=sex,
        hair_style=choose(rng, HAIR_STYLE_WEIGHTS[sex]),
        hair=Colour(hair_colour, jitter(rng, HAIR_COLOURS[hair_colour], 7)),
        cap=dye(rng),
        top=top,
        pattern=choose(rng, PATTERN_WEIGHTS),
        second=contrasting_dye(rng, top),
        sleeves=sleeves,
        open_jacket=bottom_kind != "dress" and sleeves == "long" and rng.random() < 0.35,
        bottom_kind=bottom_kind,
        bottom=top if bottom_kind == "dress" else dye(rng, BOTTOM_COLOUR_WEIGHTS),
        shoes=dye(rng, SHOE_COLOUR_WEIGHTS),
        bag=choose(rng, BAG_WEIGHTS),
        bag_colour=dye(rng),
        height=rng.normal(0.93 if woman else 0.97, 0.03),
        build=float(np.clip(rng.normal(0.9 if woman else 1.0, 0.13), 0.68, 1.4)),
        hips=float(np.clip(rng.normal(1.1 if woman else 0.95, 0.06), 0.8, 1.3)),
        head_radius=rng.normal(0.064, 0.004),
        leg_length=rng.normal(0.47, 0.015),
        gait=rng.uniform(0.6, 1.3),
        skin=jitter(rng, SKIN_TONES[rng.integers(len(SKIN_TONES))], 6),
        pattern_period=rng.uniform(0.035, 0.075),
        hem=rng.uniform(0.35, 0.7),
        bag_side=1 if rng.random() < 0.5 else -1,
        bag_size=rng.uniform(0.8, 1.25),
        inner_shirt=dye(rng).rgb,
        scarf=maybe_dye(rng, 0.14),
        belt=jitter(rng, (60, 40, 25) if belt_is_leather else (210, 205, 190)) if rng.random() < 0.3 else None,
        side_stripe=maybe_dye(rng, 0.15),
        cuffs=maybe_dye(rng, 0.25),
        logo=Logo(
            x=rng.uniform(-0.35, 0.35),
            y=rng.uniform(0.2, 0.5),
            size=rng.uniform(0.12, 0.3),
            shape=LOGO_SHAPES[rng.integers(len(LOGO_SHAPES))],
        ),
        glasses=bool(rng.random() < 0.2),
    )


# ---------------------------------------------------------------------------------------------------- painting


def _edge(rgb: Sequence[float], factor: float = 1.0) -> tuple[int, int, int]:
    """A thin outline's colour: darker than the cloth, or lighter where the cloth is nearly black."""
    if sum(rgb) < 150:
        return shade([channel * factor + 24 for channel in rgb])
    return shade(rgb, factor * 0.62)


class _Brush:
    """Paints shapes given in body units onto an image."""

    def __init__(self, image: Image.Image, centre_x: float, top: float, height: float) -> None:
        self.image = image
        self.draw = ImageDraw.Draw(image)
        self.centre_x = centre_x
        self.top = top
        self.height = height

    def pixel(self, point: Point) -> Point:
        return self.centre_x + point[0] * self.height, self.top + point[1] * self.height

    def pixels(self, length: float) -> int:
        """A line's width in pixels, at least one."""
        return max(1, int(length * self.height))

    def box(self, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        return *self.pixel((left, top)), *self.pixel((right, bottom))

    def ellipse(self, left: float, top: float, right: float, bottom: float, fill: tuple[int, int, int]) -> None:
        self.draw.ellipse(self.box(left, top, right, bottom), fill=fill)

    def disc(self, centre: Point, radius: float, fill: tuple[int, int, int]) -> None:
        self.ellipse(centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius, fill)

    def rounded(
        self, left: float, top: float, right: float, bottom: float, radius: float, fill: tuple[int, int, int]
    ) -> None:
        self.draw.rounded_rectangle(self.box(left, top, right, bottom), radius * self.height, fill=fill)

    def line(self, points: Sequence[Point], width: float, fill: tuple[int, int, int]) -> None:
        self.draw.line([self.pixel(point) for point in points], fill=fill, width=self.pixels(width))

    def polygon(self, points: Sequence[Point], fill: tuple[int, int, int]) -> None:
        self.draw.polygon([self.pixel(point) for point in points], fill=fill)

    def limb(self, joints: Sequence[Point], radii: Sequence[float], rgb: RGB, factor: float = 1.0) -> None:
        """A chain of tapering segments with round joints and a thin outline."""
        outline = 0.006
        for margin, fill in ((outline, _edge(rgb, factor)), (0.0, shade(rgb, factor))):
            self.disc(joints[0], radii[0] + margin, fill)
            for index in range(len(joints) - 1):
                self._segment(joints[index], joints[index + 1], radii[index] + margin, radii[index + 1] + margin, fill)

    def _segment(
        self, start: Point, end: Point, start_radius: float, end_radius: float, fill: tuple[int, int, int]
    ) -> None:
        along_x, along_y = end[0] - start[0], end[1] - start[1]
        length = math.hypot(along_x, along_y) + 1e-6
        normal_x, normal_y = -along_y / length, along_x / length
        self.polygon(
            [
                (start[0] + normal_x * start_radius, start[1] + normal_y * start_radius),
                (end[0] + normal_x * end_radius, end[1] + normal_y * end_radius),
                (end[0] - normal_x * end_radius, end[1] - normal_y * end_radius),
                (start[0] - normal_x * start_radius, start[1] - normal_y * start_radius),
            ],
            fill,
        )
        self.disc(end, end_radius, fill)


@dataclass(frozen=True)
class _Pose:
    """A person's projected measures for one view; half widths in body units."""

    cosine: float
    sine: float
    shoulder: float
    hip: float
    waist: float
    hip_y: float
    swing: float

    @property
    def frontal(self) -> float:
        """1 seen from the front or the back, 0 from the side."""
        return abs(self.cosine)

    @property
    def lateral(self) -> float:
        """1 seen from the side, 0 from the front or the back."""
        return abs(self.sine)

    @property
    def shows_front(self) -> bool:
        return self.cosine > 0.25

    @property
    def shows_back(self) -> bool:
        return self.cosine < -0.25

    @property
    def shows_side(self) -> bool:
        return self.lateral > 0.6

    @property
    def walks_to(self) -> int:
        """+1 when the figure looks to the right of the image, else -1."""
        return 1 if self.sine >= 0 else -1

    def image_side(self, body_side: int) -> int:
        """Which side of the image (-1 left, +1 right) a side of the body is on."""
        return body_side if self.cosine >= 0 else -body_side


def _pose(person: Person, yaw: float, phase: float) -> _Pose:
    cosine, sine = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    shoulder = (0.112 * abs(cosine) + 0.062 * abs(sine)) * person.build
    hip = (0.088 * abs(cosine) + 0.066 * abs(sine)) * person.build * person.hips
    return _Pose(
        cosine=cosine,
        sine=sine,
        shoulder=shoulder,
        hip=hip,
        waist=min(shoulder, hip) * 0.93,
        hip_y=0.98 - person.leg_length,
        swing=person.gait * math.sin(phase) * (0.12 * abs(sine) + 0.025),
    )


def paint_person(
    image: Image.Image,
    person: Person,
    *,
    centre_x: float,
    top: float,
    height: float,
    yaw: float,
    phase: float,
) -> None:
    """Paint a person onto an RGB image, in place.

    Args:
        image: the image; parts that fall outside are cut off.
        person: who.
        centre_x: the body axis, in pixels from the left.
        top: the top of the head, in pixels from the top.
        height: from the head's top to under the shoes, in pixels.
        yaw: the direction the person faces, degrees; 0 is towards the camera, 90 to the image's right.
        phase: where in a walking step, radians.
    """
    brush = _Brush(image, centre_x, top, height)
    pose = _pose(person, yaw, phase)
    # Seen from the side, one arm is behind the body; seen from the front, both are drawn over its edge.
    hides_far_arm = pose.lateral > 0.35
    near_side, far_side = (-pose.walks_to, pose.walks_to)
    sides = {side: pose.image_side(side) for side in (near_side, far_side)}
    _paint_behind(brush, person, pose)
    _paint_legs(brush, person, pose)
    if hides_far_arm:
        _paint_arm(brush, person, pose, sides[far_side], 0.82)
    _paint_neck(brush, person)
    _paint_torso(brush, person, pose)
    _paint_backpack(brush, person, pose)
    if not hides_far_arm:
        _paint_arm(brush, person, pose, sides[far_side], 0.9)
    _paint_arm(brush, person, pose, sides[near_side], 0.98)
    _paint_shoulder_bag(brush, person, pose)
    _paint_scarf(brush, person)
    _paint_head(brush, person, pose)


def _paint_behind(brush: _Brush, person: Person, pose: _Pose) -> None:
    """What the body hides in part: a backpack from the side, a suitcase, long hair from the front."""
    bag, size = shade(person.bag_colour.rgb), person.bag_size
    if person.bag == "backpack" and pose.shows_side and not pose.shows_back:
        outer, inner = -pose.walks_to * (pose.shoulder + 0.075 * size), -pose.walks_to * (pose.shoulder - 0.02)
        brush.rounded(min(outer, inner), 0.19, max(outer, inner), 0.19 + 0.2 * size, 0.03, bag)
    if person.bag == "suitcase":
        x = pose.image_side(person.bag_side) * (0.17 + 0.03 * pose.lateral)
        brush.rounded(x - 0.055 * size, 0.72, x + 0.055 * size, 0.95, 0.015, bag)
        brush.line([(x, 0.72), (x * 0.9, 0.53)], 0.012, (50, 50, 50))
    if person.hair_style == "long" and pose.shows_front:
        radius = person.head_radius * 1.25
        brush.ellipse(-radius, 0.01, radius, 0.235, shade(person.hair.rgb, 0.8))


def _paint_legs(brush: _Brush, person: Person, pose: _Pose) -> None:
    """Both legs with trousers, shorts, or bare below a skirt; then the skirt."""
    knee_y = 0.5 * (pose.hip_y + FOOT_Y)
    for side, factor in ((-1, 0.86), (1, 1.0)):
        swing = side * pose.swing
        hip_x = side * 0.045 * pose.frontal * person.build
        hip, knee = (hip_x, pose.hip_y), (hip_x + swing * 0.5, knee_y)
        ankle = (hip_x * 0.95 + swing, FOOT_Y - abs(swing) * 0.18)
        _paint_leg(brush, person, pose, side, (hip, knee, ankle), factor)
        toe, length = ankle[0] + pose.sine * 0.03, 0.034 + 0.018 * pose.lateral
        brush.ellipse(toe - length, ankle[1] - 0.008, toe + length, ankle[1] + 0.036, shade(person.shoes.rgb, factor))
    if person.bottom_kind in ("skirt", "dress"):
        hem_y = pose.hip_y + (knee_y + 0.06 - pose.hip_y) * person.hem * 1.5
        flare = pose.waist * 1.35 + abs(pose.swing) * 0.4
        waist_y = pose.hip_y - 0.05
        brush.polygon(
            [(-pose.waist, waist_y), (pose.waist, waist_y), (flare, hem_y), (-flare, hem_y)],
            shade(person.bottom.rgb, 0.95),
        )


def _paint_leg(
    brush: _Brush, person: Person, pose: _Pose, side: int, joints: tuple[Point, Point, Point], factor: float
) -> None:
    hip, knee, _ = joints
    thigh, shin = 0.047 * person.build * (0.9 + 0.1 * pose.frontal), 0.03 * person.build
    if person.bottom_kind == "trousers":
        brush.limb(joints, (thigh, shin * 1.15, shin * 0.9), person.bottom.rgb, factor)
        if person.side_stripe is not None:
            offset = side * shin * 0.7
            brush.line([(x + offset, y) for x, y in joints], 0.014, shade(person.side_stripe, factor))
        return
    brush.limb(joints, (thigh * 0.8, shin, shin * 0.6), person.skin, factor)
    if person.bottom_kind == "shorts":
        end = _between(hip, knee, person.hem * 1.3)
        brush.limb((hip, end), (thigh * 1.02, thigh * 0.98), person.bottom.rgb, factor)


def _between(start: Point, end: Point, fraction: float) -> Point:
    return start[0] + (end[0] - start[0]) * fraction, start[1] + (end[1] - start[1]) * fraction


def _paint_arm(brush: _Brush, person: Person, pose: _Pose, image_side: int, factor: float) -> None:
    """One arm with its sleeve, cuff and hand, and the handbag if this hand carries it."""
    radius = 0.03 * person.build
    # Arms swing against the legs.
    swing = -image_side * pose.swing * 0.8
    if swing * image_side < 0 and not pose.shows_side:
        swing *= 0.3  # towards the body's middle: nobody's hands cross over the belly in walking
    shoulder_x = image_side * (pose.shoulder - radius * 0.3) * (pose.frontal * 0.9 + 0.1)
    shoulder = (shoulder_x, SHOULDER_Y + radius * 1.1 + 0.004)
    elbow = (shoulder_x + image_side * 0.022 * pose.frontal + swing * 0.6, SHOULDER_Y + 0.175)
    hand = (shoulder_x + image_side * 0.027 * pose.frontal + swing * 1.4, SHOULDER_Y + 0.33 - abs(swing) * 0.3)
    if person.sleeves == "long":
        brush.limb((shoulder, elbow, hand), (radius, radius * 0.95, radius * 0.75), person.top.rgb, factor)
        if person.cuffs is not None:
            wrist = _between(elbow, hand, 0.8)
            brush.limb((wrist, hand), (radius * 0.85, radius * 0.8), person.cuffs, factor)
    else:
        brush.limb((shoulder, elbow, hand), (radius * 0.85, radius * 0.75, radius * 0.55), person.skin, factor)
    if person.sleeves == "short":
        end = _between(shoulder, elbow, 0.62)
        brush.limb((shoulder, end), (radius * 1.05, radius * 1.1), person.top.rgb, factor)
        if person.cuffs is not None:
            start = _between(shoulder, elbow, 0.5)
            brush.limb((start, end), (radius * 1.1, radius * 1.1), person.cuffs, factor)
    brush.ellipse(hand[0] - 0.018, hand[1] - 0.01, hand[0] + 0.018, hand[1] + 0.03, shade(person.skin, factor))
    if person.bag == "handbag" and image_side == pose.image_side(person.bag_side):
        _paint_handbag(brush, person, hand, factor)


def _paint_handbag(brush: _Brush, person: Person, hand: Point, factor: float) -> None:
    size, (x, y) = person.bag_size, hand
    brush.line([(x, y), (x, y + 0.06)], 0.02, shade(person.bag_colour.rgb, 0.7))
    brush.rounded(
        x - 0.06 * size, y + 0.04, x + 0.06 * size, y + 0.04 + 0.11 * size, 0.015, shade(person.bag_colour.rgb, factor)
    )


def _paint_neck(brush: _Brush, person: Person) -> None:
    half = person.head_radius * 0.5
    brush.draw.rectangle(brush.box(-half, 0.1, half, SHOULDER_Y + 0.02), fill=shade(person.skin, 0.85))


def _paint_torso(brush: _Brush, person: Person, pose: _Pose) -> None:
    """The top: a patterned cloth cut to the outline of the trunk."""
    height = brush.height
    width_pixels = int(2 * max(pose.shoulder, pose.hip) * height) + 3
    height_pixels = int((pose.hip_y + 0.03 - SHOULDER_Y) * height) + 3
    cloth = _cloth(person, width_pixels, height_pixels, height)
    _decorate(cloth, person, pose, height)
    middle = width_pixels / 2
    shoulder, waist, hip = pose.shoulder * height, pose.waist * height, pose.hip * height
    right_edge = [
        (shoulder * 0.8, 0),
        (shoulder, 0.035 * height),
        (waist, height_pixels * 0.62),
        (hip, height_pixels - 1),
    ]
    outline = [(middle + x, y) for x, y in right_edge] + [(middle - x, y) for x, y in reversed(right_edge)]
    mask = Image.new("L", cloth.size, 0)
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    ImageDraw.Draw(cloth).line([*outline, outline[0]], fill=_edge(person.top.rgb), width=brush.pixels(0.008))
    left, top = brush.pixel((0, SHOULDER_Y))
    brush.image.paste(cloth, (int(left - middle), int(top)), mask)


def _cloth(person: Person, width: int, height: int, pixels_per_unit: float) -> Image.Image:
    """A (height, width) swatch of the top's two colours."""
    y, x = np.ogrid[0:height, 0:width]
    period = person.pattern_period * pixels_per_unit
    first, second = np.array(person.top.rgb, np.uint8), np.array(person.second.rgb, np.uint8)
    if person.pattern == "striped":
        uses_second = (y % period < period / 2) | (x < 0)
    elif person.pattern == "vertical striped":
        uses_second = (x % (period * 0.7) < period * 0.35) | (y < 0)
    elif person.pattern == "checked":
        uses_second = (y % period < period / 2) ^ (x % period < period / 2)
    elif person.pattern == "dotted":
        uses_second = (y % period - period / 2) ** 2 + (x % period - period / 2) ** 2 < (period * 0.3) ** 2
    elif person.pattern == "two-tone":
        uses_second = (y > height / 2) | (x < 0)
    else:
        return Image.new("RGB", (width, height), shade(person.top.rgb))
    return Image.fromarray(np.where(uses_second[..., None], second, first))


def _decorate(cloth: Image.Image, person: Person, pose: _Pose, pixels_per_unit: float) -> None:
    """Logo, open jacket and belt, in the cloth's own pixels."""
    draw = ImageDraw.Draw(cloth)
    width, height = cloth.size
    if person.pattern == "logo" and pose.cosine > -0.1:
        logo = person.logo
        x, y = width * (0.5 + logo.x * pose.frontal * 0.7 + 0.2 * pose.sine), height * logo.y
        tall = logo.size * width * 0.5
        wide = tall * max(pose.frontal, 0.3)
        fill = shade(person.second.rgb)
        if logo.shape == "disc":
            draw.ellipse((x - wide, y - tall, x + wide, y + tall), fill=fill)
        elif logo.shape == "box":
            draw.rectangle((x - wide, y - tall * 0.7, x + wide, y + tall * 0.7), fill=fill)
        else:
            draw.polygon([(x, y - tall), (x + wide, y + tall), (x - wide, y + tall)], fill=fill)
    if person.open_jacket and pose.cosine > -0.05:
        x = width * (0.5 + 0.28 * pose.sine)
        wide, narrow = width * 0.16 * pose.frontal, width * 0.1 * pose.frontal
        draw.polygon(
            [(x - wide, 0), (x + wide, 0), (x + narrow, height), (x - narrow, height)],
            fill=shade(person.inner_shirt),
        )
    if person.belt is not None and person.bottom_kind != "dress":
        draw.rectangle(
            (0, height - 0.05 * pixels_per_unit, width, height - 0.03 * pixels_per_unit), fill=shade(person.belt)
        )


def _paint_backpack(brush: _Brush, person: Person, pose: _Pose) -> None:
    """The pack itself from behind, else its straps."""
    if person.bag != "backpack":
        return
    fill, size = shade(person.bag_colour.rgb), person.bag_size
    if pose.shows_back:
        narrowing, shift = max(pose.frontal, 0.5), -0.03 * pose.sine
        half, pocket = 0.085 * size * narrowing, 0.055 * size * narrowing
        brush.rounded(shift - half, 0.185, shift + half, 0.185 + 0.215 * size, 0.03, fill)
        brush.rounded(
            shift - pocket, 0.185 + 0.12 * size, shift + pocket, 0.185 + 0.195 * size, 0.015,
            shade(person.bag_colour.rgb, 0.75),
        )  # fmt: skip
    elif pose.shows_front:
        for side in (-1, 1):
            strap = [(side * pose.shoulder * 0.55, SHOULDER_Y), (side * pose.shoulder * 0.6, SHOULDER_Y + 0.15)]
            brush.line(strap, 0.026, fill)
    else:
        x = -pose.walks_to * pose.shoulder
        brush.line([(x * 0.2, SHOULDER_Y), (x * 0.5, SHOULDER_Y + 0.14)], 0.03, fill)


def _paint_shoulder_bag(brush: _Brush, person: Person, pose: _Pose) -> None:
    if person.bag != "shoulder bag":
        return
    side, size = pose.image_side(person.bag_side), person.bag_size
    x = side * pose.hip
    strap = [(-side * pose.shoulder * 0.7, SHOULDER_Y), (x, pose.hip_y - 0.02)]
    brush.line(strap, 0.02, shade(person.bag_colour.rgb, 0.8))
    brush.rounded(
        x - 0.055 * size, pose.hip_y - 0.05, x + 0.055 * size, pose.hip_y + 0.07 * size, 0.02,
        shade(person.bag_colour.rgb),
    )  # fmt: skip


def _paint_scarf(brush: _Brush, person: Person) -> None:
    if person.scarf is not None:
        half = person.head_radius * 0.95
        brush.rounded(-half, 0.125, half, SHOULDER_Y + 0.02, 0.02, shade(person.scarf))


def _paint_head(brush: _Brush, person: Person, pose: _Pose) -> None:
    """The skull, then hair or cap, then the face."""
    radius = person.head_radius
    hair = shade(person.hair.rgb)
    bald = person.hair_style == "bald"
    skull = hair if pose.shows_back and not bald else shade(person.skin)
    brush.ellipse(-radius * 0.9, HEAD_Y - radius, radius * 0.9, HEAD_Y + radius, skull)
    if not bald:
        _paint_crown(brush, person, pose)
        if person.hair_style == "long" and not pose.shows_front:
            _paint_long_hair(brush, person, pose)
        elif person.hair_style == "ponytail":
            _paint_ponytail(brush, person, pose)
        elif person.hair_style == "bun":
            x = -pose.walks_to * pose.lateral * radius * 0.7
            brush.ellipse(x - radius * 0.45, -0.03, x + radius * 0.45, 0.03, hair)
    if not pose.shows_back:
        _paint_face(brush, person, pose)


def _paint_crown(brush: _Brush, person: Person, pose: _Pose) -> None:
    """The top of the head: hair or a cap, with the hair below a cap's rim."""
    radius, has_cap = person.head_radius, person.hair_style == "cap"
    hair = shade(person.hair.rgb)
    crown = shade(person.cap.rgb) if has_cap else hair
    bounds = brush.box(-radius * 0.95, HEAD_Y - radius * 1.08, radius * 0.95, HEAD_Y + radius * 0.9)
    if pose.shows_front:
        brush.draw.chord(bounds, 190, 350, fill=crown)
    elif pose.shows_back:
        nape = HEAD_Y + radius * (0.2 if has_cap else 0.75)
        brush.ellipse(-radius * 0.95, HEAD_Y - radius * 1.08, radius * 0.95, nape, crown)
    else:
        # PIL's angles run clockwise from three o'clock; the hair covers the half of the head away from the face.
        start, end = (120, 275) if pose.walks_to > 0 else (265, 420)
        brush.draw.pieslice(brush.box(-radius, HEAD_Y - radius, radius, HEAD_Y + radius), start, end, fill=hair)
        start, end = (180, 345) if pose.walks_to > 0 else (195, 360)
        brush.draw.chord(bounds, start, end, fill=crown)
    if has_cap and not pose.shows_back:
        x = pose.sine * radius * 0.72
        brim = brush.box(x - radius * 0.8, HEAD_Y - radius * 0.35, x + radius * 0.8, HEAD_Y - radius * 0.18)
        brush.draw.rectangle(brim, fill=shade(person.cap.rgb, 0.7))


def _paint_long_hair(brush: _Brush, person: Person, pose: _Pose) -> None:
    radius = person.head_radius
    if pose.shows_back:
        left, right = -radius, radius
    elif pose.walks_to > 0:
        left, right = -radius, -radius * 0.1
    else:
        left, right = radius * 0.1, radius
    brush.rounded(left, HEAD_Y - 0.01, right, 0.235, 0.02, shade(person.hair.rgb))


def _paint_ponytail(brush: _Brush, person: Person, pose: _Pose) -> None:
    radius = person.head_radius
    if pose.shows_back:
        brush.ellipse(-radius * 0.3, HEAD_Y, radius * 0.3, 0.24, shade(person.hair.rgb, 0.75))
    elif pose.shows_side:
        near, far = -pose.walks_to * radius * 0.9, -pose.walks_to * radius * 1.6
        brush.ellipse(min(near, far), HEAD_Y - 0.02, max(near, far), 0.2, shade(person.hair.rgb))


def _paint_face(brush: _Brush, person: Person, pose: _Pose) -> None:
    """Eyes, and glasses for those who wear them."""
    radius = person.head_radius
    x = pose.sine * radius * 0.36
    for side in (-1, 1):
        eye = x + side * radius * 0.35 * pose.frontal
        brush.ellipse(eye - 0.007, HEAD_Y - 0.002, eye + 0.007, HEAD_Y + 0.01, (30, 25, 25))
    if person.glasses:
        brush.line([(x - radius * 0.6, HEAD_Y + 0.004), (x + radius * 0.6, HEAD_Y + 0.004)], 0.014, (25, 25, 28))
