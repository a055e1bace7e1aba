"""Split your own images, in a folder per identity, into training, query and gallery.

    python -m tools.split_dataset images data/mine                  # images/ID/*.jpg -> data/mine/train/ID/*.jpg
    python -m tools.split_dataset images data/mine --link           # links instead of copies
    python -m tools.split_dataset images data/mine.csv --form csv   # one file; no image is copied

A share of the identities, drawn with the seed, is for training. Of every other identity each camera gives some images
as queries, and the rest is the gallery. A camera keeps at least one image for the gallery; where all have just one,
one of them gives it. So every query has a match in another camera: identities that only one camera saw, or that have
one image, are trained on instead. An image's camera is in its name (c3_0001.jpg; see datasets/folder.py); where some
names have none, or no identity was seen by two, cameras are not looked at, which is TEST.PROTOCOL all.

The same seed gives the same splits in every form. SOURCE is only read, TARGET must not be there.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import shlex
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tools.inference import check_output
from utils.command import answer_early, at_least, new_parser, run_script
from utils.errors import UserError
from utils.paths import expanded
from utils.run.places import check_writable

FORMS = ("folders", "csv")


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder with a folder per identity")
    add("target", metavar="TARGET", help="new folder; for --form csv a new folder or *.csv")
    add("--train", type=float, default=0.5, metavar="FRACTION", help="of the identities, for training (default 0.5)")
    per_camera = "queries of every test identity and camera; without cameras, of every test identity (default 1)"
    add("--query-per-camera", type=at_least(1), default=1, metavar="N", help=per_camera)
    add("--seed", type=at_least(0), default=0, metavar="N", help="seed of the random draws (default 0)")
    add("--form", choices=FORMS, default=FORMS[0], help="form of the output (default folders)")
    add("--link", action="store_true", help="link to the images instead of copying them")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.train < 1:
        parser.error(f"--train: invalid value {arguments.train}, expected a fraction above 0 and below 1")
    if arguments.link and arguments.form == "csv":
        parser.error("--link: a CSV file names the images where they are; there is nothing to link")
    arguments.source, arguments.target = expanded(arguments.source, "SOURCE"), expanded(arguments.target, "TARGET")
    _check_places(arguments.source, arguments.target, file=_is_file(arguments.target, arguments.form))
    return arguments


def _is_file(target: Path, form: str) -> bool:
    return form == "csv" and target.suffix.lower() == ".csv"


def _check_places(source: Path, target: Path, *, file: bool) -> None:
    if not source.is_dir():
        raise UserError(f"SOURCE {source}: {'is a file' if source.exists() else 'there is no such folder'}")
    if os.path.lexists(target):
        raise UserError(f"TARGET {target}: exists already and is not overwritten")
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"TARGET {target}: is inside SOURCE, which is only read")
    if file:
        check_output(str(target), "TARGET")
    else:
        check_writable(target, "TARGET")


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

import numpy as np

from datasets.identity_folders import read_identities, usual_protocol
from datasets.labels import FOLDERS, GALLERY, JUNK, QUERY, TRAIN, LabelledImage, natural, numbering
from utils.errors import some, writing
from utils.files import replace_text, replacing_folder
from utils.metrics import ALL, CROSS_CAMERA

TABLE = "pictures.csv"
COMMAND = "python train_svllreid.py --config_file configs/person/vit_clipreid.yml"
Images = dict[str, list[LabelledImage]]  # train, query, gallery


class Splits(NamedTuple):
    """Who is in which split, and what the evaluation can go by."""

    images: Images
    protocol: str
    moved: list[str]  # identities that were drawn for testing and cannot be tested


def main(argv: Sequence[str] | None = None) -> None:
    """Split as the command line says."""
    arguments = read_command_line(argv)
    source, target = arguments.source, arguments.target
    ready = [name for name in (*FOLDERS[QUERY], *FOLDERS[GALLERY]) if (source / name).is_dir()]
    if len(ready) > 1:
        raise UserError(f"SOURCE {source}: is split already (it holds {' and '.join(ready)})")
    images, omitted = read_identities(source)
    if not images:
        raise UserError(f"SOURCE {source}: expected a folder per identity, with images in it; found no image")
    splits = split(images, share=arguments.train, queries=arguments.query_per_camera, seed=arguments.seed)
    with writing(f"TARGET {target}"):
        write(splits.images, source, target, form=arguments.form, link=arguments.link)
    lines = [f"{source / JUNK}: is junk by its name, and left out"] if (source / JUNK).is_dir() else []
    if omitted.files:
        lines.append(f"{len(omitted.files)} files are not named as images, and left out: {some(omitted.files)}")
    if omitted.identities:
        lines.append(f"{len(omitted.identities)} folders hold no image, and are left out: {some(omitted.identities)}")
    sys.stdout.write("\n".join([*lines, *_report(splits, target)]) + "\n")


def split(images: Sequence[LabelledImage], *, share: float, queries: int, seed: int) -> Splits:
    """Training, query and gallery images, whatever the order they are given in.

    Args:
        images: with identities and, maybe, cameras.
        share: of the identities, for training.
        queries: images of every test identity and camera that become queries.
        seed: of the draws.

    Raises:
        UserError: a side would be left without an identity.
    """
    cameras: dict[str, dict[str, list[LabelledImage]]] = defaultdict(lambda: defaultdict(list))  # of every identity
    for image in sorted(images, key=lambda image: natural(image.path)):
        cameras[image.identity][image.camera].append(image)
    identities = list(numbering("identities", {image.identity: image.path for image in images}))
    protocol = usual_protocol(images)
    rng = np.random.default_rng(seed)
    count = round(share * len(identities))
    order = rng.permutation(len(identities)).tolist()
    drawn = set(order[count:])  # for testing
    splits: Images = {name: [] for name in FOLDERS}
    moved = []
    for number, identity in enumerate(identities):
        seen = cameras[identity]
        every = [image for images in seen.values() for image in images]
        if number in drawn and len(seen if protocol == CROSS_CAMERA else every) > 1:
            asked = set(_queries(seen, queries, rng))
            for image in every:
                splits[QUERY if image in asked else GALLERY].append(image)
            continue
        splits[TRAIN] += every
        if number in drawn:
            moved.append(identity)
    for side, what in ((TRAIN, "training"), (QUERY, "testing")):
        if not splits[side]:
            why = "; the others have too few images for a query and a gallery" if side == QUERY and moved else ""
            raise UserError(f"--train {share:g} of {len(identities)} identities leaves none for {what}{why}")
    return Splits(splits, protocol, moved)


def write(splits: Images, source: Path, target: Path, *, form: str, link: bool = False) -> None:
    """Write the splits of images below `source` to `target`, which is there as a whole or not at all.

    Raises:
        OSError: what the file system says.
    """
    if _is_file(target, form):
        _write_csv(splits, source, target)
        return
    with replacing_folder(target) as folder:
        if form == "csv":
            _write_csv(splits, source, folder / TABLE)
        else:
            _write_images(splits, folder, link=link)


def _queries(seen: dict[str, list[LabelledImage]], count: int, rng: np.random.Generator) -> list[LabelledImage]:
    """Up to `count` images of every camera, each of which keeps one; at least one in all."""
    cameras = [seen[camera] for camera in sorted(seen, key=natural)]
    drawn = [
        images[number]
        for images in cameras
        for number in rng.permutation(len(images))[: min(count, len(images) - 1)].tolist()
    ]
    return drawn or cameras[rng.integers(len(cameras))]


def _write_images(splits: Images, folder: Path, *, link: bool) -> None:
    for side, images in splits.items():
        for image in images:
            place = folder.joinpath(FOLDERS[side][0], *Path(image.path).parts[-2:])
            place.parent.mkdir(parents=True, exist_ok=True)
            if link:
                place.symlink_to(os.path.realpath(image.path))
            else:
                shutil.copyfile(image.path, place)  # not its rights: what is read-only there need not be here


def _write_csv(splits: Images, source: Path, file: Path) -> None:
    # Relative to where things really are: ".." of a link is not the folder that the link is in.
    there = os.path.relpath(os.path.realpath(source), os.path.realpath(file.parent))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "pid", "camid", "viewid", "split"))
    writer.writerows(
        (os.path.join(there, os.path.relpath(image.path, source)), image.identity, image.camera, "", side)
        for side, images in splits.items()
        for image in images
    )
    replace_text(file, text.getvalue())


def _report(splits: Splits, target: Path) -> list[str]:
    lines = []
    for name, images in splits.images.items():
        identities = {image.identity for image in images}
        cameras = {image.camera for image in images} - {""}
        seen = f"{len(cameras):5} cameras" if cameras else "  no cameras"
        lines.append(f"{name:8}{len(images):8} images{len(identities):7} identities{seen}")
    if splits.moved:
        why = "seen by one camera" if splits.protocol == CROSS_CAMERA else "with one image"
        moved = some([*map(repr, splits.moved)], 5)
        lines.append(f"{len(splits.moved)} of the identities drawn for testing are trained on, {why}: {moved}")
    if splits.protocol == ALL:
        unknown = sum(not image.camera for images in splits.images.values() for image in images)
        why = f"{unknown} images have none in their names" if unknown else "no identity was seen by two"
        lines.append(f"cameras are not looked at, as {why}")
    protocol = "" if splits.protocol == CROSS_CAMERA else f" TEST.PROTOCOL {ALL}"
    root = shlex.quote(str(target))
    return [*lines, "train with:", f"{COMMAND} DATASETS.NAMES folder DATASETS.ROOT_DIR {root}{protocol}"]


if __name__ == "__main__":
    sys.exit(run_script(main))
