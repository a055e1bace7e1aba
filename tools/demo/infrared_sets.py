"""Rendered data sets of visible and infrared images, in the folders of SYSU-MM01 and RegDB."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from datasets import regdb, sysu
from tools.demo.rendering.blocks import (
    BLOCKS_VERSION,
    BlockCamera,
    BlockFigure,
    photograph_blocks,
    sample_block_camera,
    sample_figure,
)
from tools.demo.rendering.scene import Rendered
from tools.demo.sets import Rendering, Task
from utils.errors import UserError
from utils.records import INFRARED

FIGURE_STREAM, BLOCK_CAMERA_STREAM, SHOT_STREAM, SPLIT_STREAM = 7000, 7001, 7002, 7003
# Cameras of an identity's images take turns: of fourteen, visible ones have two each and infrared ones (3, 6) three.
TURNS = (1, 3, 2, 6, 4, 5, 3, 6, 1, 3, 2, 6, 4, 5)
SYSU, REGDB = sysu.ORIGIN.folders[0], regdb.ORIGIN.folders[0]


@dataclass(frozen=True)
class InfraredKind:
    """What is rendered.

    Attributes:
        name: in DATASETS.NAMES.
        title: what the manifest calls it.
        splits: how many lists there are, as RegDB's; 0 is the form of SYSU-MM01.
        inverted: see `photograph_blocks`.
    """

    name: str
    title: str
    splits: int = 0
    inverted: bool = False
    version: int = BLOCKS_VERSION


INFRARED_KINDS = {
    kind.name: kind
    for kind in (
        InfraredKind("synthetic_sysu", "svll-reid synthetic visible-infrared data set"),
        InfraredKind("synthetic_sysu_inverted", "svll-reid synthetic inverted infrared data set", inverted=True),
        InfraredKind("synthetic_regdb", "svll-reid synthetic visible-thermal data set", splits=len(regdb.SPLITS)),
    )
}


class InfraredSet(Rendering):
    """Of figures in two modalities; `kind` is an InfraredKind, and cameras_per_identity has no meaning here."""

    def check(self) -> None:
        for name, least in (("train_identities", 2), ("train_images", 2), ("test_identities", 1), ("test_images", 6)):
            if (value := getattr(self.parameters, name)) < least:
                raise UserError(f"synthetic data: {name}: expected at least {least}, got {value}")

    @property
    def text_files(self) -> tuple[str, ...]:
        """The lists."""
        return tuple(self.texts(()))

    def counts(self) -> dict[str, int]:
        return dict(Counter(path.rpartition("/")[0] for task in self.tasks() for path in task.paths))

    def tasks(self) -> Iterator[Task]:
        """All images, each of which depends on nothing that was drawn before it."""
        of = self.parameters
        if self.kind.splits:  # an identity is trained on in one split and tested in another
            most = max(of.train_images, of.test_images)
            every = [(identity, most) for identity in range(of.train_identities + of.test_identities)]
        else:
            every = [(identity, of.train_images) for identity in range(of.train_identities)]
            every += [(of.train_identities + identity, of.test_images) for identity in range(of.test_identities)]
        for identity, images in every:
            split = "train" if self.kind.splits or identity < of.train_identities else "test"
            number = identity if split == "train" else identity - of.train_identities
            for image in range(images):
                yield Task(split, number, image, [self._path(identity + 1, image)])

    def subjects(self, split: str) -> list[BlockFigure]:
        """The identities of a split; RegDB's splits share them."""
        of, test = self.parameters, split == "test"
        count = of.test_identities if test else of.train_identities + bool(self.kind.splits) * of.test_identities
        return [sample_figure(np.random.default_rng([FIGURE_STREAM, of.seed, test, index])) for index in range(count)]

    def cameras(self) -> list[BlockCamera]:
        """The six of SYSU-MM01, of which RegDB's form has the first and the third."""
        of = self.parameters
        return [
            sample_block_camera(
                np.random.default_rng([BLOCK_CAMERA_STREAM, of.seed, number]),
                infrared=modality == INFRARED,
                difficulty=of.difficulty,
            )
            for number, modality in sysu.MODALITIES.items()
        ]

    def draw(self, task: Task, subjects: Sequence[BlockFigure], cameras: Sequence[BlockCamera]) -> Rendered:
        """One image; all are seen from the front."""
        of = self.parameters
        rng = np.random.default_rng([SHOT_STREAM, of.seed, task.split == "test", task.identity, task.image])
        camera = cameras[self._camera(task.image) - 1]
        options = {"difficulty": of.difficulty, "inverted": self.kind.inverted}
        return Rendered(photograph_blocks(subjects[task.identity], camera, rng, **options), 0.0)

    def texts(self, drawn: Sequence[tuple[Task, float]]) -> dict[str, str]:
        """The lists, by their names."""
        of = self.parameters
        if not self.kind.splits:
            train = list(range(1, of.train_identities + 1))
            kept = of.train_identities - max(1, of.train_identities // 5)
            test = range(of.train_identities + 1, of.train_identities + of.test_identities + 1)
            lists = dict(zip((*sysu.TRAIN, *sysu.TEST), (train[:kept], train[kept:], test), strict=True))
            return {f"{SYSU}/{sysu.LISTS}/{name}": ",".join(map(str, pids)) + "\n" for name, pids in lists.items()}
        texts = {}
        for split in range(1, self.kind.splits + 1):
            rng = np.random.default_rng([SPLIT_STREAM, of.seed, split])
            pids = 1 + rng.permutation(of.train_identities + of.test_identities)
            sides = {"train": (pids[: of.train_identities], of.train_images)}
            sides["test"] = (pids[of.train_identities :], of.test_images)
            for use, (some, images) in sides.items():
                for kind, modality in regdb.KINDS.items():
                    lines = [
                        f"{self._path(pid, image).removeprefix(f'{REGDB}/')} {label}\n"
                        for label, pid in enumerate(sorted(some.tolist()))
                        for image in range(images)
                        if (sysu.MODALITIES[self._camera(image)]) == modality
                    ]
                    texts[f"{REGDB}/{regdb.LISTS}/{use}_{kind}_{split}.txt"] = "".join(lines)
        return texts

    def _camera(self, image: int) -> int:
        """Which camera takes this image, from 1."""
        return (1, 3)[image % 2] if self.kind.splits else TURNS[image % len(TURNS)]

    def _path(self, pid: int, image: int) -> str:
        camera = self._camera(image)
        if not self.kind.splits:
            return f"{SYSU}/cam{camera}/{pid:04d}/{image + 1:04d}.jpg"
        folder, letter = ("Thermal", "t") if sysu.MODALITIES[camera] == INFRARED else ("Visible", "v")
        return f"{REGDB}/{folder}/{pid}/{letter}_{image + 1:05d}_{pid}.jpg"
