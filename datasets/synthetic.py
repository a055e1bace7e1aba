"""Rendered data sets, written as JPEG files in the layouts and namings of well-known benchmarks.

    PEOPLE     people, as Market-1501
    OCCLUDED   the same pictures, but something hides a good part of everybody in the queries, as Occluded-Duke
    VEHICLES   vehicles with viewpoints, as VeRi and the key point files that go with it

Nothing is downloaded: subjects, cameras and pictures are drawn from seeded streams, so that the same parameters give
the same pictures everywhere (up to the version of the JPEG library).

Every random stream starts with its own number, here and in `tools/pretrain_tiny_clip.py`, which draws its people from
stream 999 and its cameras from stream 31337: no identity or camera that was pre-trained on can turn up here. The number
comes *first* because NumPy pads short seeds with zeros: [999, 5] and [999, 5, 0] are the same stream.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets import dukemtmc, market1501, veri
from datasets.rendering.camera import BACKGROUNDS, Camera, sample_camera
from datasets.rendering.occluder import OCCLUDER_VERSION
from datasets.rendering.person import sample_person
from datasets.rendering.scene import RENDERER_VERSION, Picture, Subject, photograph
from datasets.rendering.vehicle import VEHICLE_VERSION, sample_vehicle, viewpoint
from utils.errors import UserError

CAMERA_STREAM = 77
IDENTITY_STREAM = 2000
IMAGE_STREAM = 3000
ASSIGNMENT_STREAM = 4000  # which cameras an identity passes
OCCLUDER_STREAM = 5000
VEHICLE_STREAM = 6000

MANIFEST = "synthetic.json"

# Of VEHICLES, beside VeRi's folder: a line for every picture, of which the queries are a part of the gallery.
VIEWPOINT_FILES = ("keypoint_train.txt", "keypoint_test.txt")

_DEFAULT_CAMERAS_PER_IDENTITY = 4
# Part of the seeds: the test identities stay the same when the number of training identities changes.
_SPLITS = {"train": 0, "test": 1}
_PARTIAL_NAME = re.compile(r"\.synthetic-.+\.partial\.(?P<host>.+)\.(?P<process>\d+)\.[a-z0-9_]+")
_ABANDONED_AFTER = 3600.0  # seconds without a new file

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """What is rendered, and the form in which it is written.

    Attributes:
        prefix: of the data set's folder.
        title: what the manifest calls it.
        version: of all that paints its pictures; another one renders them anew.
        train, query, gallery: folders inside the data set.
        file_name: from identity, camera and picture, all counted from 1.
        sample: draws one identity.
        stream: number of the random stream of identities.
        size: height and width of a picture, pixels.
        hides_queries: something is in front of the subject of every query.
        has_viewpoints: there are VIEWPOINT_FILES, and the gallery holds the queries, too, as VeRi's does.
    """

    prefix: str
    title: str
    version: int | list[int]
    train: str
    query: str
    gallery: str
    file_name: Callable[[int, int, int], str]
    sample: Callable[[np.random.Generator], Subject]
    stream: int
    size: tuple[int, int]
    hides_queries: bool = False
    has_viewpoints: bool = False


PEOPLE = Kind(
    prefix="synthetic",
    title="svll-reid synthetic person data set",
    version=RENDERER_VERSION,
    train=market1501.TRAIN,
    query=market1501.QUERY,
    gallery=market1501.GALLERY,
    file_name=lambda identity, camera, picture: f"{identity:04d}_c{camera}s1_{picture:06d}_00.jpg",
    sample=sample_person,
    stream=IDENTITY_STREAM,
    size=(128, 64),
)
OCCLUDED = replace(
    PEOPLE,
    prefix="synthetic-occluded",
    title="svll-reid synthetic occluded person data set",
    version=[RENDERER_VERSION, OCCLUDER_VERSION, VEHICLE_VERSION],  # a parked car hides people
    train=f"{dukemtmc.OCCLUDED.folders[0]}/{market1501.TRAIN}",
    query=f"{dukemtmc.OCCLUDED.folders[0]}/{market1501.QUERY}",
    gallery=f"{dukemtmc.OCCLUDED.folders[0]}/{market1501.GALLERY}",
    file_name=lambda identity, camera, picture: f"{identity:04d}_c{camera}_f{picture:07d}.jpg",
    hides_queries=True,
)
VEHICLES = Kind(
    prefix="synthetic-vehicle",
    title="svll-reid synthetic vehicle data set",
    version=[RENDERER_VERSION, VEHICLE_VERSION],
    train=f"{veri.ORIGIN.folders[0]}/{veri.TRAIN}",
    query=f"{veri.ORIGIN.folders[0]}/{veri.QUERY}",
    gallery=f"{veri.ORIGIN.folders[0]}/{veri.GALLERY}",
    file_name=lambda identity, camera, picture: f"{identity:04d}_c{camera:03d}_{picture:08d}_0.jpg",
    sample=sample_vehicle,
    stream=VEHICLE_STREAM,
    size=(96, 96),
    has_viewpoints=True,
)


@dataclass(frozen=True)
class _Parameters:
    """What the pictures depend on; see `write_synthetic`."""

    train_identities: int
    train_images: int
    test_identities: int
    test_images: int
    cameras_per_identity: int
    difficulty: float
    seed: int

    def __post_init__(self) -> None:
        cameras = self.cameras_per_identity
        for name in ("train_identities", "train_images", "test_identities"):
            if getattr(self, name) < 1:
                raise UserError(f"synthetic data: {name} must be at least 1, got {getattr(self, name)}")
        if not 2 <= cameras <= len(BACKGROUNDS):
            raise UserError(f"synthetic data: cameras_per_identity must be 2 to {len(BACKGROUNDS)}, got {cameras}")
        if self.test_images < cameras + 2:
            raise UserError(
                f"synthetic data: test_images must be at least {cameras + 2} with {cameras} cameras per identity (one "
                f"query in each, and a gallery that spans two), got {self.test_images}"
            )
        if not self.difficulty >= 0 or self.seed < 0:
            raise UserError(
                f"synthetic data: difficulty and seed must not be negative, got {self.difficulty} and {self.seed}"
            )


@dataclass(frozen=True)
class _Plan:
    """One data set: its kind and its parameters."""

    kind: Kind
    parameters: _Parameters

    @property
    def folder_name(self) -> str:
        parameters = self.parameters
        name = (
            f"{self.kind.prefix}-{parameters.train_identities}x{parameters.train_images}"
            f"-{parameters.test_identities}x{parameters.test_images}-d{parameters.difficulty:g}-s{parameters.seed}"
        )
        if parameters.cameras_per_identity != _DEFAULT_CAMERAS_PER_IDENTITY:
            name += f"-c{parameters.cameras_per_identity}"
        return name

    def counts(self) -> dict[str, int]:
        """How many pictures each folder holds."""
        parameters, kind = self.parameters, self.kind
        queries = parameters.test_identities * parameters.cameras_per_identity
        tests = parameters.test_identities * parameters.test_images
        return {
            kind.train: parameters.train_identities * parameters.train_images,
            kind.query: queries,
            kind.gallery: tests if kind.has_viewpoints else tests - queries,
        }

    def manifest(self) -> dict[str, object]:
        return {
            "kind": self.kind.title,
            "renderer_version": self.kind.version,
            "parameters": asdict(self.parameters),
            "files": self.counts(),
        }


def write_synthetic(
    root: Path,
    *,
    kind: Kind = PEOPLE,
    train_identities: int = 256,
    train_images: int = 6,
    test_identities: int = 64,
    test_images: int = 12,
    cameras_per_identity: int = _DEFAULT_CAMERAS_PER_IDENTITY,
    difficulty: float = 1.7,
    seed: int = 0,
    progress: bool | None = None,
) -> Path:
    """Render the data set below `root`, or find it there, and return its folder.

    There are six cameras, one per background family. People's pictures are JPEG files of 128 x 64 pixels (height x
    width) named as in Market-1501, `0002_c1s1_000451_00.jpg`: person (from 1, training people first), camera (1 to 6),
    sequence, frame, box; other kinds are named as in their benchmarks. Each test identity has one query in each of its
    cameras; its other pictures are the gallery. Those that pass by in a picture are of the same split, so the test
    identities are unknown in training altogether.

    The folder appears under its name only when it is whole. A folder that is whole is reused; one of ours that lacks
    files or was rendered by another version is replaced. Several processes may call this at the same time.

    Args:
        root: the folder that holds the data sets; made if absent.
        kind: PEOPLE, OCCLUDED or VEHICLES.
        train_identities, train_images: identities for training, and pictures of each.
        test_identities, test_images: other identities for query and gallery, and pictures of each.
        cameras_per_identity: how many of the six cameras see one identity.
        difficulty: spread of the cameras' light, colour and sharpness; 0 is clean, 2 is hard.
        seed: another seed gives other identities, cameras and pictures.
        progress: show a bar; by default if stderr is a terminal. Otherwise two lines go to the log.

    Raises:
        UserError: for parameters out of range; if something that this function did not write is in the way; or if the
            folder cannot be written to.
    """
    parameters = _Parameters(
        train_identities=int(train_identities),
        train_images=int(train_images),
        test_identities=int(test_identities),
        test_images=int(test_images),
        cameras_per_identity=int(cameras_per_identity),
        difficulty=float(difficulty),
        seed=int(seed),
    )
    root, plan = Path(root), _Plan(kind, parameters)
    try:
        return _find_or_write(root, plan, sys.stderr.isatty() if progress is None else progress)
    except OSError as error:
        raise UserError(
            f"{root}: the synthetic data set cannot be written there ({error.strerror or error})"
        ) from error


def _find_or_write(root: Path, plan: _Plan, progress: bool) -> Path:
    target = root / plan.folder_name
    root.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(root)
    if _is_complete(target, plan):
        return target
    _refuse_foreign(target, plan.kind)
    if target.exists():
        _log.info("%s is incomplete or of another version of the renderer and is rendered anew", target)
    workshop = _make_workshop(root, target.name)
    try:
        # A folder inside the temporary one: mkdtemp's own is closed to other users, and would stay so when renamed.
        draft = workshop / "data"
        _write(draft, plan, progress)
        _publish(draft, target, plan, workshop)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return target


# --------------------------------------------------------------------------------------------------- pictures


def _subjects(plan: _Plan, split: str) -> list[Subject]:
    parameters = plan.parameters
    count = parameters.train_identities if split == "train" else parameters.test_identities
    return [
        plan.kind.sample(np.random.default_rng([plan.kind.stream, parameters.seed, _SPLITS[split], index]))
        for index in range(count)
    ]


def _cameras(parameters: _Parameters) -> list[Camera]:
    return [
        sample_camera(
            np.random.default_rng([CAMERA_STREAM, parameters.seed, index]),
            difficulty=parameters.difficulty,
            background=background,
        )
        for index, background in enumerate(BACKGROUNDS)
    ]


def _camera_of(parameters: _Parameters, split: str, identity: int, image: int) -> int:
    """Which camera (from 0) takes this picture: an identity's cameras take turns."""
    rng = np.random.default_rng([ASSIGNMENT_STREAM, parameters.seed, _SPLITS[split], identity])
    order = rng.permutation(len(BACKGROUNDS))
    return int(order[image % parameters.cameras_per_identity])


def _render_image(
    plan: _Plan, subjects: list[Subject], cameras: list[Camera], split: str, identity: int, image: int
) -> Picture:
    """One picture, which depends on nothing that was drawn before it."""
    parameters = plan.parameters
    number = [parameters.seed, _SPLITS[split], identity, image]
    hidden = plan.kind.hides_queries and _is_query(parameters, split, image)
    return photograph(
        subjects[identity],
        cameras[_camera_of(parameters, split, identity, image)],
        np.random.default_rng([IMAGE_STREAM, *number]),
        size=plan.kind.size,
        passers_by=[*subjects[:identity], *subjects[identity + 1 :]],
        occluder=np.random.default_rng([OCCLUDER_STREAM, *number]) if hidden else None,
    )


def _is_query(parameters: _Parameters, split: str, image: int) -> bool:
    return split == "test" and image < parameters.cameras_per_identity


def _tasks(plan: _Plan) -> Iterator[tuple[str, int, int, list[str]]]:
    """(split, identity, image, paths inside the data set) of every picture."""
    parameters, kind = plan.parameters, plan.kind
    for identity in range(parameters.train_identities):
        for image in range(parameters.train_images):
            yield "train", identity, image, [f"{kind.train}/{_file_name(plan, 'train', identity, image)}"]
    for identity in range(parameters.test_identities):
        for image in range(parameters.test_images):
            folders = [kind.query] if _is_query(parameters, "test", image) else [kind.gallery]
            if kind.has_viewpoints and kind.gallery not in folders:
                folders.append(kind.gallery)
            name = _file_name(plan, "test", identity, image)
            yield "test", identity, image, [f"{folder}/{name}" for folder in folders]


def _file_name(plan: _Plan, split: str, identity: int, image: int) -> str:
    number = identity + 1 + (plan.parameters.train_identities if split == "test" else 0)
    return plan.kind.file_name(number, _camera_of(plan.parameters, split, identity, image) + 1, image + 1)


def _write(folder: Path, plan: _Plan, progress: bool) -> None:
    """All pictures and, where the kind has them, their viewpoints; then the manifest."""
    started = time.perf_counter()
    parameters = plan.parameters
    total = parameters.train_identities * parameters.train_images + parameters.test_identities * parameters.test_images
    if not progress:
        _log.info("rendering %d pictures for %s", total, plan.folder_name)
    for name in plan.counts():
        (folder / name).mkdir(parents=True)
    subjects = {split: _subjects(plan, split) for split in _SPLITS}
    cameras = _cameras(parameters)
    annotations: dict[str, list[str]] = {split: [] for split in _SPLITS}
    for split, identity, image, paths in tqdm(
        _tasks(plan), total=total, desc="rendering", unit="image", disable=not progress
    ):
        picture = _render_image(plan, subjects[split], cameras, split, identity, image)
        for path in paths:
            (folder / path).write_bytes(picture.jpeg)
        annotations[split].append(_annotation(paths[-1], picture.yaw))
    if plan.kind.has_viewpoints:
        for name, lines in zip(VIEWPOINT_FILES, annotations.values(), strict=True):
            (folder / name).write_text("".join(lines), encoding="utf-8")
    (folder / MANIFEST).write_text(json.dumps(plan.manifest(), indent=2) + "\n", encoding="utf-8")
    if not progress:
        _log.info("rendered %d pictures in %.1f s", total, time.perf_counter() - started)


def _annotation(path: str, yaw: float) -> str:
    """A line of a viewpoint file; none of the 20 key points is marked."""
    return f"{path} {' '.join(['-1'] * 40)} {viewpoint(yaw)}\n"


# ---------------------------------------------------------------------------------------------------- folders


def _read_manifest(folder: Path, kind: Kind) -> dict[str, object] | None:
    """The manifest of a folder of this kind that this module wrote, else None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == kind.title else None


def _is_complete(folder: Path, plan: _Plan) -> bool:
    """Whether the folder was written with these parameters by this renderer and has all its files."""
    if _read_manifest(folder, plan.kind) != plan.manifest():
        return False
    if plan.kind.has_viewpoints and not all((folder / name).is_file() for name in VIEWPOINT_FILES):
        return False
    return all(len(list((folder / name).glob("*.jpg"))) == count for name, count in plan.counts().items())


def _refuse_foreign(folder: Path, kind: Kind) -> None:
    """Raise UserError if there is something in the way that this module did not write."""
    if os.path.lexists(folder) and (folder.is_symlink() or _read_manifest(folder, kind) is None):
        raise UserError(
            f"{folder} is in the way of the synthetic data set and was not written by it (no valid {MANIFEST}); "
            "move or delete it, or choose another root"
        )


def _make_workshop(root: Path, name: str) -> Path:
    """A temporary folder beside the target, named after the machine and process that work in it."""
    return Path(tempfile.mkdtemp(prefix=f".{name}.partial.{socket.gethostname()}.{os.getpid()}.", dir=root))


def _publish(draft: Path, target: Path, plan: _Plan, workshop: Path) -> None:
    """Give the finished draft its name, unless another process was faster."""
    for attempt in range(10):
        if _is_complete(target, plan):
            return
        _refuse_foreign(target, plan.kind)
        if target.exists():
            # Moving it away is one step; deleting it in place would show others a half-empty folder.
            with contextlib.suppress(FileNotFoundError):  # another process moved it first
                target.rename(workshop / f"replaced-{attempt}")
        try:
            draft.rename(target)
        except OSError:
            if not target.exists():
                raise
        else:
            return
    raise UserError(f"{target} keeps changing: other processes write it with another version; try again")


def _remove_abandoned(root: Path) -> None:
    """Delete the temporary folders that killed runs left behind."""
    for folder in root.glob(".synthetic-*.partial.*"):
        match = _PARTIAL_NAME.fullmatch(folder.name)
        if match and folder.is_dir() and not folder.is_symlink() and _is_abandoned(folder, match):
            _log.info("removing %s, left behind by an interrupted run", folder)
            shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path, match: re.Match[str]) -> bool:
    """Whether nobody writes into the folder any more.

    Its process is gone, if it ran on this machine. Process numbers of other machines and containers say nothing here,
    so for those the folder counts as abandoned when no file was added for an hour.
    """
    if match["host"] == socket.gethostname() and not _is_running(int(match["process"])):
        return True
    try:
        newest = max(path.stat().st_mtime for path in (folder, *folder.glob("data/**/")))
    except FileNotFoundError:
        return False  # finished and renamed while we looked
    return time.time() - newest > _ABANDONED_AFTER


def _is_running(process: int) -> bool:
    """Whether this machine has a process of that number; True where one cannot ask."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
