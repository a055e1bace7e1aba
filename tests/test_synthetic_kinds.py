"""What is drawn: people and their captions, what hides them, and vehicles from all sides."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tools.demo.rendering import occluder, scene
from tools.demo.rendering.camera import BACKGROUNDS, sample_camera
from tools.demo.rendering.caption import caption
from tools.demo.rendering.person import Colour, Logo, Person, sample_person
from tools.demo.rendering.scene import photograph
from tools.demo.rendering.vehicle import TYPE_WEIGHTS, VIEWPOINTS, Decal, Vehicle, sample_vehicle, viewpoint

# Going round a vehicle: sectors of 45 degrees from yaw 0 on.
ROUND = ("front", "right front", "right", "right rear", "rear", "left rear", "left", "left front")


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)), float)


def test_caption_names_the_top_and_never_the_fine_details() -> None:
    for number in range(100):
        person = sample_person(np.random.default_rng([7, number]))
        text = caption(person, np.random.default_rng(number))
        assert person.top.name in text
        bare = replace(
            person,
            inner_shirt=(1, 2, 3),
            scarf=None if person.scarf else (1, 2, 3),
            belt=None if person.belt else (1, 2, 3),
            side_stripe=None if person.side_stripe else (1, 2, 3),
            cuffs=None if person.cuffs else (1, 2, 3),
            logo=Logo(0, 0.3, 0.2, "disc"),
            glasses=not person.glasses,
        )
        assert caption(bare, np.random.default_rng(number)) == text
        words = set(re.findall(r"[a-z]+", text.lower()))
        assert not words & {"scarf", "belt", "stripe", "cuff", "cuffs", "glasses", "inner"}


def test_a_red_top_is_redder_than_a_blue_one() -> None:
    camera = sample_camera(np.random.default_rng(3), difficulty=0.5, background="tiles")
    person = replace(
        sample_person(np.random.default_rng(1)), pattern="plain", open_jacket=False, sleeves="long", bag="none"
    )
    means = {}
    for name, rgb in (("red", (190, 36, 40)), ("blue", (40, 70, 170))):
        dressed = replace(person, top=Colour(name, rgb), bottom_kind="trousers")
        image = Image.open(io.BytesIO(photograph(dressed, camera, np.random.default_rng(2)).jpeg))
        means[name] = np.asarray(image, float).mean(axis=(0, 1))
    assert means["red"][0] > means["blue"][0] + 3
    assert means["blue"][2] > means["red"][2] + 3


def test_every_background_and_other_sizes() -> None:
    person = sample_person(np.random.default_rng(0))
    for background in BACKGROUNDS:
        camera = sample_camera(np.random.default_rng(0), background=background)
        image = Image.open(io.BytesIO(photograph(person, camera, np.random.default_rng(0), size=(256, 128)).jpeg))
        assert image.size == (128, 256)
    with pytest.raises(ValueError, match="too wide"):
        photograph(person, camera, np.random.default_rng(0), size=(64, 128))
    with pytest.raises(ValueError, match="unknown background"):
        sample_camera(np.random.default_rng(0), background="moon")


@pytest.mark.parametrize("number", range(0, 40, 4))
def test_a_good_part_of_the_figure_is_hidden_and_nothing_else_changes(monkeypatch, number: int) -> None:
    sheets, poses = [], []
    hide, paint = occluder.paint_occluder, Person.paint

    def watch_hiding(sheet: Image.Image, figure: np.ndarray, rng: np.random.Generator) -> None:
        sheets.append(sheet.copy())
        hide(sheet, figure, rng)
        sheets.append(sheet.copy())

    def watch_painting(person: Person, image: Image.Image, **pose: float) -> None:
        if person is subject:
            poses.append(pose)
        paint(person, image, **pose)

    subject = sample_person(np.random.default_rng([71, number]))
    camera = replace(
        sample_camera(np.random.default_rng([72, number]), difficulty=0.0, background=BACKGROUNDS[number % 6]),
        occlusion=0.0,
    )
    monkeypatch.setattr(scene, "paint_occluder", watch_hiding)
    monkeypatch.setattr(Person, "paint", watch_painting)
    usual = photograph(subject, camera, np.random.default_rng(number)).jpeg
    hidden = photograph(
        subject, camera, np.random.default_rng(number), occluder=np.random.default_rng([73, number])
    ).jpeg

    flat = [Image.new("RGB", sheets[0].size, colour) for colour in ("black", "white")]
    for sheet in flat:
        paint(subject, sheet, **poses[0])
    figure = (np.asarray(flat[0]) == np.asarray(flat[1])).all(axis=2)
    covered = (np.asarray(sheets[0]) != np.asarray(sheets[1])).any(axis=2)
    assert 0.3 < covered[figure].mean() < 0.7
    # A block of JPEG is 16 x 16 pixels, and colours spill a little into the next one.
    change = np.abs(pixels(usual) - pixels(hidden)).max(axis=2)
    rows, columns = (covered.any(axis=axis).nonzero()[0] // 3 for axis in (1, 0))
    untouched = np.ones(change.shape, bool)
    untouched[max(0, rows[0] - 20) : rows[-1] + 20, max(0, columns[0] - 20) : columns[-1] + 20] = False
    assert change[untouched].max(initial=0) == 0
    assert change.max() > 20


def test_there_are_five_ways_to_hide_and_each_its_own_share() -> None:
    figure = np.zeros((384, 192), bool)
    figure[40:360, 60:130] = True
    shares = []
    for number in range(60):
        sheet = Image.new("RGB", (192, 384), "white")
        occluder.paint_occluder(sheet, figure, np.random.default_rng(number))
        shares.append((np.asarray(sheet) != 255).any(axis=2)[figure].mean())
    assert 0.3 < min(shares) < 0.42 and 0.58 < max(shares) < 0.7


def test_viewpoints_are_numbered_as_veri_does() -> None:
    assert VIEWPOINTS == ("front", "rear", "left", "left front", "left rear", "right", "right front", "right rear")
    for sector, name in enumerate(ROUND):
        for turn in (-720, 0, 360):
            for offset in (-22, 0, 22):
                assert VIEWPOINTS[viewpoint(45 * sector + turn + offset)] == name


PLAIN = replace(
    sample_vehicle(np.random.default_rng(0)),
    **{"type": "sedan", "decal": None, "sticker": None, "taxi_sign": None, "lamps": "wide", "cabin_shift": 0.0},
    **{name: (128, 130, 134) for name in ("roof", "lower", "bumpers", "rims", "glass", "grille", "plate")},
    **{"body": replace(sample_vehicle(np.random.default_rng(0)).body, rgb=(128, 130, 134))},
    **{"side_stripe": None, "top_stripe": None, "roof_rack": False, "spoiler": False, "sunroof": False},
)
MARK = (40, 200, 60)


def view(vehicle: Vehicle, yaw: float) -> np.ndarray:
    """The vehicle on white, (160, 160, 3)."""
    image, height = Image.new("RGB", (160, 160), "white"), 140 * vehicle.share(yaw)
    vehicle.paint(image, centre_x=80, top=80 - height / 2, height=height, yaw=yaw, phase=0.0)
    return np.asarray(image, float)


def marked(image: np.ndarray) -> int:
    return int((np.abs(image - np.array(MARK)).max(axis=2) < 60).sum())


def test_a_print_on_one_side_is_seen_from_that_side_alone() -> None:
    for sides, seen in (((1,), (True, False)), ((-1,), (False, True)), ((1, -1), (True, True))):
        vehicle = replace(PLAIN, decal=Decal(0.0, 0.5, 0.4, "box", MARK, sides))
        for right, left in ((90, 270), (50, 310), (130, 230)):
            assert (marked(view(vehicle, right)) > 20, marked(view(vehicle, left)) > 20) == seen
        assert marked(view(vehicle, 0)) == marked(view(vehicle, 180)) == 0


def test_left_and_right_mirror_each_other_but_for_the_print() -> None:
    for yaw in (90, 60, 120):
        plain = np.abs(view(PLAIN, yaw) - view(PLAIN, -yaw)[:, ::-1]).mean()
        vehicle = replace(PLAIN, decal=Decal(0.0, 0.5, 0.4, "box", MARK, (1,)))
        one_sided = np.abs(view(vehicle, yaw) - view(vehicle, -yaw)[:, ::-1]).mean()
        assert one_sided > plain + 0.5


def test_lamps_are_white_in_front_and_red_behind() -> None:
    def red(image: np.ndarray) -> int:
        return int(((image[..., 0] > 150) & (image[..., 1] < 80)).sum())

    def yellowish(image: np.ndarray) -> int:
        return int(((image[..., 0] > 225) & (image[..., 0] - image[..., 2] > 20)).sum())

    front, rear = view(PLAIN, 0), view(PLAIN, 180)
    assert yellowish(front) > 40 > red(front) == 0
    assert red(rear) > 40 > yellowish(rear) == 0


@pytest.mark.parametrize("kind", TYPE_WEIGHTS)
def test_eight_sides_fill_the_image_and_look_different(kind: str) -> None:
    views = [view(replace(PLAIN, type=kind), 45 * sector) for sector in range(8)]
    for number, image in enumerate(views):
        rows, columns = ((image != 255).any(axis=2).any(axis=axis).nonzero()[0] for axis in (1, 0))
        assert 116 < max(np.ptp(rows), np.ptp(columns)) < 156
        assert abs(columns[0] + columns[-1] - 159) < 24 and abs(rows[0] + rows[-1] - 159) < 24
        assert all(np.abs(image - other).mean() > 1 for other in views[:number])


def test_every_vehicle_is_its_own_and_most_are_grey() -> None:
    vehicles = [sample_vehicle(np.random.default_rng([74, number])) for number in range(400)]
    assert vehicles[:5] == [sample_vehicle(np.random.default_rng([74, number])) for number in range(5)]
    assert len(set(vehicles)) == 400
    assert {vehicle.type for vehicle in vehicles} == TYPE_WEIGHTS.keys()
    grey = sum(vehicle.body.name in ("white", "black", "grey") for vehicle in vehicles)
    assert 0.55 < grey / 400 < 0.85
    sides = {vehicle.decal.sides for vehicle in vehicles if vehicle.decal}
    assert sides == {(-1, 1), (1,), (-1,)}


def test_strangers_stand_on_the_same_road_at_their_own_size(monkeypatch) -> None:
    """A small car beside a bus is smaller than the bus, whichever sides are seen."""
    poses: dict[str, dict[str, float]] = {}
    monkeypatch.setattr(Vehicle, "paint", lambda vehicle, image, **pose: poses.setdefault(vehicle.type, pose))
    bus, car = replace(PLAIN, type="bus"), replace(PLAIN, type="hatchback")
    camera = replace(sample_camera(np.random.default_rng(1), difficulty=0.0), occlusion=1.25)  # somebody, always
    for number in range(20):
        poses.clear()
        photograph(bus, camera, np.random.default_rng(number), size=(96, 96), passers_by=[car])
        assert poses["hatchback"]["height"] < 0.85 * poses["bus"]["height"]
        feet = [pose["top"] + pose["height"] for pose in (poses["hatchback"], poses["bus"])]
        assert abs(feet[0] - feet[1]) < 0.25 * 384
