"""DukeMTMC-reID (Ristani et al., 2016; Zheng et al., 2017) and Occluded-Duke (Miao et al., 2019).

ROOT_DIR/dukemtmcreid/
    DukeMTMC-reID/        bounding_box_train, query, bounding_box_test: 0001_c2_f0046182.jpg ...   identity 1, camera 2
    Occluded_Duke/        the same three, of the same images: queries are all occluded

There is no junk, and one viewpoint: 0.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from datasets.market1501 import GALLERY, QUERY, TRAIN, read_market_folders
from datasets.naming import Origin, usual_folder
from utils.records import Benchmark

EXAMPLE = "0001_c2_f0046182.jpg"
PARENTS = ("dukemtmcreid/", "", "dukemtmc-reid/", "dukemtmc/", "DukeMTMC/")


def _folders(*names: str) -> tuple[str, ...]:
    return tuple(f"{parent}{name}" for parent, name in product(PARENTS, names))


DUKE = Origin(
    "DukeMTMC-reID",
    _folders("DukeMTMC-reID", "DukeMTMC-ReID", "dukemtmc-reid", "dukemtmcreid"),
    EXAMPLE,
    "its authors withdrew it in 2019, and it is never downloaded here",
)
OCCLUDED = Origin(
    "Occluded-Duke",
    _folders("Occluded_Duke", "Occluded-Duke", "Occluded-DukeMTMC", "Occluded-DukeMTMC-reID", "occluded_duke"),
    EXAMPLE,
    "its authors give lists that choose its images from DukeMTMC-reID, withdrawn in 2019; it is never downloaded here",
)


def dukemtmc(root: Path, *, train: bool = True) -> Benchmark:
    """Read DukeMTMC-reID below `root`; without `train`, its training images need not be there.

    Raises:
        DataError: naming the folder that is missing or empty, or the file whose name does not fit.
    """
    return _read("dukemtmc", root, DUKE, train)


def occ_duke(root: Path, *, train: bool = True) -> Benchmark:
    """Read Occluded-Duke below `root`; without `train`, its training images need not be there.

    Raises:
        DataError: naming the folder that is missing or empty, or the file whose name does not fit.
    """
    return _read("occ_duke", root, OCCLUDED, train)


def _read(name: str, root: Path, origin: Origin, train: bool) -> Benchmark:
    folder = usual_folder(root, origin, (GALLERY, QUERY, TRAIN))
    return read_market_folders(name, folder, train=train, origin=origin)
