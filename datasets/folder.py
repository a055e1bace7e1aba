"""Your own images, without code: a folder per identity, names as Market-1501's, or one CSV file.

    ROOT/train/anna/*.jpg              a folder per identity; any names
    ROOT/query/7/*.jpg
    ROOT/gallery/7/*.jpg

    ROOT/train/0002_c1s1_000451.jpg    names that begin with the identity, as Market-1501's; the folders may have its
    ROOT/query/0007_c2_a.jpg           names, too: bounding_box_train, query, bounding_box_test
    ROOT/gallery/0007_c3_b.jpg

    ROOT/any.csv, or ROOT itself:      path,pid,camid,viewid,split      header; camid and viewid may be empty or absent
                                       images/1.jpg,anna,hall,,train  paths are relative to the file

An image's camera is the first cN that stands between underscores, or at either end, of its file name: c3_0001.jpg,
0002_c3s1_000451.jpg, img_c3.jpg are all of camera 3, whatever the folder. In a CSV file it is any label.
What stands before it is the identity, unless that can be read in two ways: 0001_0 beside 0001_1 is refused.

Labels of identities, cameras and viewpoints are text (in Unicode's normal form, so that ü is ü, and without blanks
around it), put in natural order: 2 before 10. Two spellings of one label (3 and 3.0, cam3 and Cam 03) are refused. A
camera or viewpoint NaN, None, NULL, ? or -1 is unknown. The identity -1 is junk, as in Market-1501, and left out. Files
without the suffix of an image are skipped, which the data check reports; names that begin with a dot are skipped, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets.identity_folders import list_folder, read_folders
from datasets.labels import FOLDERS, GALLERY, QUERY, TRAIN, Found, LabelledImage, natural, numbering
from datasets.names import own_prompt
from datasets.table import is_table, read_table
from utils.errors import DataError
from utils.metrics import CROSS_CAMERA, PROTOCOLS
from utils.records import Benchmark, Sample, Trial


def folder(root: Path, *, noun: str = "person", protocol: str = CROSS_CAMERA, train: bool = True) -> Benchmark:
    """Read the images at `root`; without `train`, the training part need not be there.

    Training identities are numbered from 0 in natural order; so are those of query and gallery together; so are cameras
    and viewpoints over all splits, over the training part also where it is not asked for but there. An unknown camera
    is -1 beside known ones; where none is known, all images are of camera 0. The same for viewpoints. Samples are in
    natural order of identity, camera and file name, so that the three forms of the same images are the same.

    Args:
        root: a folder in one of the three forms, or a CSV file.
        noun: of the prompt, e.g. person or vehicle.
        protocol: "cross-camera" (a query's own identity in its own camera does not count) or "all".
        train: whether the training part is asked for.

    Raises:
        DataError: saying what is missing, empty or ambiguous, and where; a camera that is unknown though the protocol
            goes by cameras.
    """
    splits, table, omitted, unused = read_splits(root, train=train)
    if protocol == CROSS_CAMERA:
        asked = [image for split in splits if train or split != TRAIN for image in splits[split]]
        _check_cameras(table or root, asked, listed=table is not None)
    images = [image for split in splits.values() for image in split]
    identities = numbering("identities", {p.identity: p.path for p in images})
    cameras = numbering("cameras", {p.camera: p.path for p in images})
    views = numbering("viewpoints", {p.view: p.path for p in images})

    def dense(images: Iterable[LabelledImage]) -> dict[str, int]:
        labels = sorted({p.identity for p in images}, key=identities.__getitem__)
        return {label: number for number, label in enumerate(labels)}

    def samples(images: Sequence[LabelledImage], pids: dict[str, int]) -> tuple[Sample, ...]:
        keyed = sorted(
            (pids[p.identity], _number(cameras, p.camera), natural(os.path.basename(p.path)), p.path, p.view)
            for p in images
        )
        return tuple(Sample(path, pid, camid, _number(views, view)) for pid, camid, _, path, view in keyed)

    training = splits[TRAIN] if train else []
    query, gallery = splits[QUERY], splits[GALLERY]
    shared = dense((*query, *gallery))
    trained = {image.identity for image in training}
    return Benchmark(
        name="folder",
        template=own_prompt(noun),
        train=samples(training, dense(training)),
        trials=(Trial(samples(query, shared), samples(gallery, shared)),),
        ignored=PROTOCOLS[protocol],
        seen=tuple(label for label in shared if label in trained),
        omitted=omitted,
        unused=unused,
        as_written={p.path: (p.identity, p.camera) for p in images},
    )


def read_splits(root: Path, *, train: bool = True) -> Found:
    """The images of train, query and gallery, with their labels; without `train`, the first may be empty.

    Raises:
        DataError: see `folder`.
    """
    if root.is_file():
        if not is_table(root.name):
            raise DataError(f"DATASETS.ROOT_DIR {root}: is neither a folder nor a CSV file")
        return read_table(root, train)
    if not root.is_dir():
        raise DataError(f"DATASETS.ROOT_DIR {root}: there is no such folder or file")
    folders, files = list_folder(root)
    tables = [name for name in files if is_table(name)]
    if not tables:
        return read_folders(root, folders, train)
    try:
        if len(tables) > 1:
            raise DataError(
                f"DATASETS.ROOT_DIR {root}: holds {len(tables)} CSV files "
                f"({', '.join(sorted(tables, key=natural)[:3])}); expected one, or DATASETS.ROOT_DIR "
                "set to one of them"
            )
        return read_table(root / tables[0], train)
    except DataError as error:
        beside = [name for names in FOLDERS.values() for name in names if name in folders]
        if not beside:
            raise
        raise DataError(
            f"{error}. A CSV file decides over folders ({', '.join(beside)} are there, too); if these are meant, move "
            "it away"
        ) from error


def _number(numbers: dict[str, int], label: str) -> int:
    return numbers[label] if label else -1 if numbers else 0


def _check_cameras(place: Path, images: Sequence[LabelledImage], *, listed: bool) -> None:
    lacking = [image.path for image in images if not image.camera]
    if lacking:
        remedy = (
            "Write it into column camid (in a CSV file, names of images do not say it)"
            if listed
            else "Name it in the file's name (c3_0001.jpg)"
        )
        raise DataError(
            f"{place}: {len(lacking)} of {len(images)} images have no camera (e.g. {min(lacking, key=natural)}). "
            f"{remedy}; or choose TEST.PROTOCOL all, by which every query is compared with the whole gallery"
        )
