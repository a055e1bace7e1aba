"""Rendered data sets, in the layouts and namings of well-known benchmarks.

    synthetic             people, as Market-1501
    synthetic_occluded    the same images, but something hides a good part of everybody in the queries, as Occluded-Duke
    synthetic_vehicle     vehicles with viewpoints, as VeRi and the key point files that go with it
    synthetic_sysu        figures of blocks in visible and infrared images, as SYSU-MM01
    synthetic_sysu_inverted   the same, but light blocks are dark in infrared: a control, where matching must fail
    synthetic_regdb       figures of blocks in two modalities, as RegDB with its ten splits

They are read here as those benchmarks are. `tools/demo/render.py` draws and writes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.dukemtmc import occ_duke
from datasets.market1501 import read_market_folders
from datasets.regdb import regdb
from datasets.sysu import sysu_mm01
from datasets.veri import veri
from utils.errors import DataError
from utils.records import Benchmark

MANIFEST = "synthetic.json"  # written last: a folder that has it is whole
# Of synthetic_vehicle, beside VeRi's folder: a line for every image, of which the queries are a part of the gallery.
VIEWPOINT_FILES = ("keypoint_train.txt", "keypoint_test.txt")
USUAL_CAMERAS = 4
SYSU_FORM, REGDB_FORM = ("synthetic_sysu", "synthetic_sysu_inverted"), ("synthetic_regdb",)


@dataclass(frozen=True)
class Parameters:
    """What the images of a rendered data set depend on.

    Attributes:
        train_identities, train_images: identities for training, and images of each.
        test_identities, test_images: other identities for query and gallery, and images of each.
        difficulty: spread of the cameras' light, colour and sharpness; 0 is clean, 2 is hard.
        seed: another seed gives other identities, cameras and images.
        cameras_per_identity: how many of the six cameras see one identity.
    """

    train_identities: int = 256
    train_images: int = 6
    test_identities: int = 64
    test_images: int = 12
    cameras_per_identity: int = USUAL_CAMERAS
    difficulty: float = 1.7
    seed: int = 0

    def folder(self, name: str) -> str:
        """The folder of the data set `name` below DATASETS.ROOT_DIR."""
        cameras = "" if self.cameras_per_identity == USUAL_CAMERAS else f"-c{self.cameras_per_identity}"
        return (
            f"{name.replace('_', '-')}-{self.train_identities}x{self.train_images}"
            f"-{self.test_identities}x{self.test_images}-d{self.difficulty:g}-s{self.seed}{cameras}"
        )


READERS: dict[str, Callable[..., Benchmark]] = {
    "synthetic": lambda folder, train: read_market_folders("synthetic", folder, train=train),
    "synthetic_occluded": lambda folder, train: occ_duke(folder, train=train),
    "synthetic_vehicle": lambda folder, train: veri(
        folder, train=train, viewpoints=[folder / name for name in VIEWPOINT_FILES]
    ),
    **dict.fromkeys(SYSU_FORM, lambda folder, train, **options: sysu_mm01(folder, train=train, **options)),
    **dict.fromkeys(REGDB_FORM, lambda folder, train, **options: regdb(folder, train=train, **options)),
}


def read_rendered(
    name: str, root: Path, parameters: Parameters, *, train: bool = True, **options: str | int
) -> Benchmark:
    """Read the rendered data set `name` below `root`; `options` are those of the reader of its form.

    Raises:
        DataError: it has not been rendered, or is damaged.
    """
    folder = root / parameters.folder(name)
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"{folder}: there is no such data set yet; render it: python -m tools.demo.render DATASETS.NAMES {name} "
            f"DATASETS.ROOT_DIR {root}, with the same --config_file and DATASETS.SYNTHETIC settings"
        )
    benchmark = READERS[name](folder, train, **options)
    parts = (replace(part, name=part.name.replace(benchmark.name, name, 1)) for part in benchmark.parts)
    return replace(benchmark, name=name, parts=tuple(parts))
