"""What the rendered data sets show: identities, cameras and images, drawn from seeded streams.

The same parameters give the same images everywhere (up to the version of the JPEG library).

Every random stream starts with its own number, here and in `tools/demo/pretrain_tiny_clip.py`, which draws its people
from stream 999 and its cameras from stream 31337: no identity or camera that was pre-trained on can turn up here. The
number comes *first* because NumPy pads short seeds with zeros: [999, 5] and [999, 5, 0] are the same stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from datasets import dukemtmc, market1501, veri
from datasets.synthetic import VIEWPOINT_FILES, Parameters
from tools.demo.rendering.camera import BACKGROUNDS, Camera, sample_camera
from tools.demo.rendering.occluder import OCCLUDER_VERSION
from tools.demo.rendering.person import sample_person
from tools.demo.rendering.scene import RENDERER_VERSION, Rendered, Subject, photograph
from tools.demo.rendering.vehicle import VEHICLE_VERSION, sample_vehicle, viewpoint
from utils.errors import UserError

CAMERA_STREAM = 77
IDENTITY_STREAM = 2000
IMAGE_STREAM = 3000
ASSIGNMENT_STREAM = 4000  # which cameras an identity passes
OCCLUDER_STREAM = 5000
VEHICLE_STREAM = 6000

# Part of the seeds: the test identities stay the same when the number of training identities changes.
SPLITS = {"train": 0, "test": 1}


@dataclass(frozen=True)
class Kind:
    """What is rendered, and the form in which it is written.

    Attributes:
        name: in DATASETS.NAMES.
        title: what the manifest calls it.
        version: of all that paints its images; another one renders them anew.
        folders: of training, queries and gallery, inside the data set.
        file_name: from identity, camera and image, all counted from 1.
        sample: draws one identity.
        stream: number of the random stream of identities.
        size: height and width of an image, pixels.
        hides_queries: something is in front of the subject of every query.
        has_viewpoints: there are VIEWPOINT_FILES, and the gallery holds the queries, too, as VeRi's does.
    """

    name: str
    title: str
    version: int | list[int]
    folders: tuple[str, ...]
    file_name: Callable[[int, int, int], str]
    sample: Callable[[np.random.Generator], Subject]
    stream: int
    size: tuple[int, int]
    hides_queries: bool = False
    has_viewpoints: bool = False


PEOPLE = Kind(
    name="synthetic",
    title="svll-reid synthetic person data set",
    version=RENDERER_VERSION,
    folders=(market1501.TRAIN, market1501.QUERY, market1501.GALLERY),
    file_name=lambda identity, camera, image: f"{identity:04d}_c{camera}s1_{image:06d}_00.jpg",
    sample=sample_person,
    stream=IDENTITY_STREAM,
    size=(128, 64),
)
OCCLUDED = replace(
    PEOPLE,
    name="synthetic_occluded",
    title="svll-reid synthetic occluded person data set",
    version=[RENDERER_VERSION, OCCLUDER_VERSION, VEHICLE_VERSION],  # a parked car hides people
    folders=tuple(f"{dukemtmc.OCCLUDED.folders[0]}/{name}" for name in PEOPLE.folders),
    file_name=lambda identity, camera, image: f"{identity:04d}_c{camera}_f{image:07d}.jpg",
    hides_queries=True,
)
VEHICLES = Kind(
    name="synthetic_vehicle",
    title="svll-reid synthetic vehicle data set",
    version=[RENDERER_VERSION, VEHICLE_VERSION],
    folders=tuple(f"{veri.ORIGIN.folders[0]}/{name}" for name in (veri.TRAIN, veri.QUERY, veri.GALLERY)),
    file_name=lambda identity, camera, image: f"{identity:04d}_c{camera:03d}_{image:08d}_0.jpg",
    sample=sample_vehicle,
    stream=VEHICLE_STREAM,
    size=(96, 96),
    has_viewpoints=True,
)
KINDS = {kind.name: kind for kind in (PEOPLE, OCCLUDED, VEHICLES)}


class Task(NamedTuple):
    """One image to draw."""

    split: str  # train or test
    identity: int
    image: int
    paths: list[str]  # inside the data set


@dataclass(frozen=True)
class Rendering:
    """One data set: what is rendered, with `name`, `title` and `version`, and how much of it.

    Raises:
        UserError: a parameter that is out of range.
    """

    kind: Any
    parameters: Parameters

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise UserError if a parameter is out of range."""

    @property
    def folder_name(self) -> str:
        return self.parameters.folder(self.kind.name)

    def manifest(self) -> dict[str, object]:
        return {
            "kind": self.kind.title,
            "renderer_version": self.kind.version,
            "parameters": asdict(self.parameters),
            "files": self.counts(),
        }

    def counts(self) -> dict[str, int]:
        """How many images each folder holds."""
        raise NotImplementedError


class RenderedSet(Rendering):
    """Of people or vehicles; `kind` is a Kind, whose files are named as in its benchmark.

    There are six cameras, one per background family. Each test identity has one query in each of its cameras; its other
    images are the gallery. Those that pass by in an image are of the same split: training knows no test identity.
    """

    def check(self) -> None:
        of, cameras = self.parameters, self.parameters.cameras_per_identity
        for name in ("train_identities", "train_images", "test_identities"):
            if getattr(of, name) < 1:
                raise UserError(f"synthetic data: {name}: expected at least 1, got {getattr(of, name)}")
        if not 2 <= cameras <= len(BACKGROUNDS):
            raise UserError(f"synthetic data: cameras_per_identity: expected 2 to {len(BACKGROUNDS)}, got {cameras}")
        if of.test_images < cameras + 2:
            raise UserError(
                f"synthetic data: test_images: expected at least {cameras + 2} with {cameras} cameras per identity "
                f"(one query in each, and a gallery that spans two), got {of.test_images}"
            )
        if not of.difficulty >= 0 or of.seed < 0:
            raise UserError(
                f"synthetic data: difficulty, seed: expected no negative number, got {of.difficulty} and {of.seed}"
            )

    @property
    def text_files(self) -> tuple[str, ...]:
        """The files beside the images."""
        return VIEWPOINT_FILES if self.kind.has_viewpoints else ()

    def texts(self, drawn: Sequence[tuple[Task, float]]) -> dict[str, str]:
        """What these files hold, of all images and the directions in which their subjects face."""
        lines: dict[str, list[str]] = {split: [] for split in SPLITS}
        for task, yaw in drawn:
            # VeRi's lines: 20 key points, of which none is marked here, and the viewpoint.
            lines[task.split].append(f"{task.paths[-1]} {' '.join(['-1'] * 40)} {viewpoint(yaw)}\n")
        return {name: "".join(lines[split]) for name, split in zip(self.text_files, SPLITS, strict=False)}

    def counts(self) -> dict[str, int]:
        of = self.parameters
        queries, tests = of.test_identities * of.cameras_per_identity, of.test_identities * of.test_images
        numbers = (of.train_identities * of.train_images, queries, tests - (not self.kind.has_viewpoints) * queries)
        return dict(zip(self.kind.folders, numbers, strict=True))

    def tasks(self) -> Iterator[Task]:
        """All images, each of which depends on nothing that was drawn before it."""
        of, (train, query, gallery) = self.parameters, self.kind.folders
        for identity in range(of.train_identities):
            for image in range(of.train_images):
                yield Task("train", identity, image, [f"{train}/{self._file_name('train', identity, image)}"])
        for identity in range(of.test_identities):
            for image in range(of.test_images):
                asked = self._is_query("test", image)
                folders = [query] * asked + [gallery] * (not asked or self.kind.has_viewpoints)
                name = self._file_name("test", identity, image)
                yield Task("test", identity, image, [f"{folder}/{name}" for folder in folders])

    def subjects(self, split: str) -> list[Subject]:
        """The identities of a split."""
        of = self.parameters
        count = of.train_identities if split == "train" else of.test_identities
        return [
            self.kind.sample(np.random.default_rng([self.kind.stream, of.seed, SPLITS[split], index]))
            for index in range(count)
        ]

    def cameras(self) -> list[Camera]:
        """One for every family of backgrounds."""
        of = self.parameters
        return [
            sample_camera(
                np.random.default_rng([CAMERA_STREAM, of.seed, index]), difficulty=of.difficulty, background=background
            )
            for index, background in enumerate(BACKGROUNDS)
        ]

    def draw(self, task: Task, subjects: list[Subject], cameras: list[Camera]) -> Rendered:
        """One image; those that pass by in it are other `subjects`, of the same split."""
        number = [self.parameters.seed, SPLITS[task.split], task.identity, task.image]
        hidden = self.kind.hides_queries and self._is_query(task.split, task.image)
        return photograph(
            subjects[task.identity],
            cameras[self._camera(task.split, task.identity, task.image)],
            np.random.default_rng([IMAGE_STREAM, *number]),
            size=self.kind.size,
            passers_by=[*subjects[: task.identity], *subjects[task.identity + 1 :]],
            occluder=np.random.default_rng([OCCLUDER_STREAM, *number]) if hidden else None,
        )

    def _camera(self, split: str, identity: int, image: int) -> int:
        """Which camera (from 0) takes this image: an identity's cameras take turns."""
        rng = np.random.default_rng([ASSIGNMENT_STREAM, self.parameters.seed, SPLITS[split], identity])
        return int(rng.permutation(len(BACKGROUNDS))[image % self.parameters.cameras_per_identity])

    def _is_query(self, split: str, image: int) -> bool:
        return split == "test" and image < self.parameters.cameras_per_identity

    def _file_name(self, split: str, identity: int, image: int) -> str:
        number = identity + 1 + (self.parameters.train_identities if split == "test" else 0)
        return self.kind.file_name(number, self._camera(split, identity, image) + 1, image + 1)
