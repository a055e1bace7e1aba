"""A rendered person data set, written as JPEG files in the layout and naming of Market-1501.

Nothing is downloaded: people, cameras and pictures are drawn from seeded streams, so that the same parameters give the
same pictures everywhere (up to the version of the JPEG library).

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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.market1501 import GALLERY as GALLERY_FOLDER
from datasets.market1501 import QUERY as QUERY_FOLDER
from datasets.market1501 import TRAIN as TRAIN_FOLDER
from datasets.rendering.camera import BACKGROUNDS, Camera, sample_camera
from datasets.rendering.person import Person, sample_person
from datasets.rendering.scene import RENDERER_VERSION, render
from utils.errors import UserError

CAMERA_STREAM = 77
IDENTITY_STREAM = 2000
IMAGE_STREAM = 3000
ASSIGNMENT_STREAM = 4000  # which cameras an identity walks past

MANIFEST = "synthetic.json"

_MANIFEST_KIND = "svll-reid synthetic person data set"
_DEFAULT_CAMERAS_PER_IDENTITY = 4
# Part of the seeds: the test people stay the same when the number of training people changes.
_SPLITS = {"train": 0, "test": 1}
_PARTIAL_NAME = re.compile(r"\.synthetic-.+\.partial\.(?P<host>.+)\.(?P<process>\d+)\.[a-z0-9_]+")
_ABANDONED_AFTER = 3600.0  # seconds without a new file

_log = logging.getLogger(__name__)


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

    @property
    def folder_name(self) -> str:
        name = (
            f"synthetic-{self.train_identities}x{self.train_images}-{self.test_identities}x{self.test_images}"
            f"-d{self.difficulty:g}-s{self.seed}"
        )
        if self.cameras_per_identity != _DEFAULT_CAMERAS_PER_IDENTITY:
            name += f"-c{self.cameras_per_identity}"
        return name

    def counts(self) -> dict[str, int]:
        """How many pictures each folder holds."""
        queries = self.test_identities * self.cameras_per_identity
        return {
            TRAIN_FOLDER: self.train_identities * self.train_images,
            QUERY_FOLDER: queries,
            GALLERY_FOLDER: self.test_identities * self.test_images - queries,
        }

    def manifest(self) -> dict[str, object]:
        return {
            "kind": _MANIFEST_KIND,
            "renderer_version": RENDERER_VERSION,
            "parameters": asdict(self),
            "files": self.counts(),
        }


def write_synthetic(
    root: Path,
    *,
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

    There are six cameras, one per background family. The pictures are JPEG files of 128 x 64 pixels (height x width)
    named as in Market-1501, `0002_c1s1_000451_00.jpg`: person (from 1, training people first), camera (1 to 6),
    sequence, frame, box. Each test person has one query in each of its cameras; its other pictures are the gallery.
    People who pass by in a picture are of the same split, so the test people are unknown in training altogether.

    The folder appears under its name only when it is whole. A folder that is whole is reused; one of ours that lacks
    files or was rendered by another version is replaced. Several processes may call this at the same time.

    Args:
        root: the folder that holds the data sets; made if absent.
        train_identities, train_images: people for training, and pictures of each.
        test_identities, test_images: other people for query and gallery, and pictures of each.
        cameras_per_identity: how many of the six cameras see one person.
        difficulty: spread of the cameras' light, colour and sharpness; 0 is clean, 2 is hard.
        seed: another seed gives other people, cameras and pictures.
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
    root = Path(root)
    target = root / parameters.folder_name
    try:
        return _find_or_write(root, target, parameters, sys.stderr.isatty() if progress is None else progress)
    except OSError as error:
        raise UserError(
            f"{root}: the synthetic data set cannot be written there ({error.strerror or error})"
        ) from error


def _find_or_write(root: Path, target: Path, parameters: _Parameters, progress: bool) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(root)
    if _is_complete(target, parameters):
        return target
    _refuse_foreign(target)
    if target.exists():
        _log.info("%s is incomplete or of another version of the renderer and is rendered anew", target)
    workshop = _make_workshop(root, target.name)
    try:
        # A folder inside the temporary one: mkdtemp's own is closed to other users, and would stay so when renamed.
        draft = workshop / "data"
        _write(draft, parameters, progress)
        _publish(draft, target, parameters, workshop)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return target


# --------------------------------------------------------------------------------------------------- pictures


def _people(parameters: _Parameters, split: str) -> list[Person]:
    count = parameters.train_identities if split == "train" else parameters.test_identities
    return [
        sample_person(np.random.default_rng([IDENTITY_STREAM, parameters.seed, _SPLITS[split], index]))
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
    """Which camera (from 0) takes this picture: a person's cameras take turns."""
    rng = np.random.default_rng([ASSIGNMENT_STREAM, parameters.seed, _SPLITS[split], identity])
    order = rng.permutation(len(BACKGROUNDS))
    return int(order[image % parameters.cameras_per_identity])


def _render_image(
    parameters: _Parameters, people: list[Person], cameras: list[Camera], split: str, identity: int, image: int
) -> bytes:
    """One picture, which depends on nothing that was drawn before it."""
    rng = np.random.default_rng([IMAGE_STREAM, parameters.seed, _SPLITS[split], identity, image])
    others = [*people[:identity], *people[identity + 1 :]]
    camera = cameras[_camera_of(parameters, split, identity, image)]
    return render(people[identity], camera, rng, passers_by=others)


def _tasks(parameters: _Parameters) -> Iterator[tuple[str, int, int, str]]:
    """(split, identity, image, path inside the data set) of every picture."""
    for identity in range(parameters.train_identities):
        for image in range(parameters.train_images):
            yield "train", identity, image, f"{TRAIN_FOLDER}/{_file_name(parameters, 'train', identity, image)}"
    for identity in range(parameters.test_identities):
        for image in range(parameters.test_images):
            folder = QUERY_FOLDER if image < parameters.cameras_per_identity else GALLERY_FOLDER
            yield "test", identity, image, f"{folder}/{_file_name(parameters, 'test', identity, image)}"


def _file_name(parameters: _Parameters, split: str, identity: int, image: int) -> str:
    person = identity + 1 + (parameters.train_identities if split == "test" else 0)
    camera = _camera_of(parameters, split, identity, image) + 1
    return f"{person:04d}_c{camera}s1_{image + 1:06d}_00.jpg"


def _write(folder: Path, parameters: _Parameters, progress: bool) -> None:
    """All pictures, then the manifest."""
    started = time.perf_counter()
    total = sum(parameters.counts().values())
    if not progress:
        _log.info("rendering %d pictures for %s", total, parameters.folder_name)
    for name in parameters.counts():
        (folder / name).mkdir(parents=True)
    people = {split: _people(parameters, split) for split in _SPLITS}
    cameras = _cameras(parameters)
    tasks = tqdm(_tasks(parameters), total=total, desc="rendering", unit="image", disable=not progress)
    for split, identity, image, path in tasks:
        (folder / path).write_bytes(_render_image(parameters, people[split], cameras, split, identity, image))
    (folder / MANIFEST).write_text(json.dumps(parameters.manifest(), indent=2) + "\n", encoding="utf-8")
    if not progress:
        _log.info("rendered %d pictures in %.1f s", total, time.perf_counter() - started)


# ---------------------------------------------------------------------------------------------------- folders


def _read_manifest(folder: Path) -> dict[str, object] | None:
    """The manifest of a folder that this module wrote, else None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == _MANIFEST_KIND else None


def _is_complete(folder: Path, parameters: _Parameters) -> bool:
    """Whether the folder was written with these parameters by this renderer and has all its files."""
    if _read_manifest(folder) != parameters.manifest():
        return False
    return all(len(list((folder / name).glob("*.jpg"))) == count for name, count in parameters.counts().items())


def _refuse_foreign(folder: Path) -> None:
    """Raise UserError if there is something in the way that this module did not write."""
    if os.path.lexists(folder) and (folder.is_symlink() or _read_manifest(folder) is None):
        raise UserError(
            f"{folder} is in the way of the synthetic data set and was not written by it (no valid {MANIFEST}); "
            "move or delete it, or choose another root"
        )


def _make_workshop(root: Path, name: str) -> Path:
    """A temporary folder beside the target, named after the machine and process that work in it."""
    return Path(tempfile.mkdtemp(prefix=f".{name}.partial.{socket.gethostname()}.{os.getpid()}.", dir=root))


def _publish(draft: Path, target: Path, parameters: _Parameters, workshop: Path) -> None:
    """Give the finished draft its name, unless another process was faster."""
    for attempt in range(10):
        if _is_complete(target, parameters):
            return
        _refuse_foreign(target)
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
        newest = max(path.stat().st_mtime for path in (folder, *folder.glob("data"), *folder.glob("data/*")))
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
