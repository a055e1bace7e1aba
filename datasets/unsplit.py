"""Labelled images that are not split into query and gallery: a folder per identity, of which all pairs are compared."""

from __future__ import annotations

from pathlib import Path

from datasets.identity_folders import list_folder, read_identities, usual_protocol
from datasets.labels import FOLDERS, natural, numbering
from utils.errors import DataError
from utils.metrics import CROSS_CAMERA, PROTOCOLS
from utils.records import Benchmark, Sample, Trial


def unsplit(root: Path, *, protocol: str | None = None) -> Benchmark:
    """All images of a folder that holds a folder per identity, as queries and as gallery.

    Args:
        protocol: "cross-camera" or "all"; None goes by cameras where the names of all images tell them (c3_0001.jpg)
            and some identity was seen by two.

    Raises:
        DataError: what is wrong with the folder; it is split; an unknown camera though the protocol goes by them.
    """
    folders, _ = list_folder(root)
    if split := [name for names in FOLDERS.values() for name in names if name in folders]:
        raise DataError(
            f"{root}: is split (it holds {' and '.join(split)}), so its pairs are those of DATASETS.NAMES folder "
            f"DATASETS.ROOT_DIR {root}; expected a folder per identity"
        )
    images, omitted = read_identities(root)
    if not images:
        raise DataError(f"{root}: holds no image in a folder of its identity")
    protocol = protocol or usual_protocol(images)
    unknown = [image.path for image in images if not image.camera]
    if protocol == CROSS_CAMERA and unknown:
        raise DataError(f"TEST.PROTOCOL {CROSS_CAMERA}: {unknown[0]}: its name tells no camera, as c3_0001.jpg does")
    identities = numbering("identities", {image.identity: image.path for image in images})
    cameras = numbering("cameras", {image.camera: image.path for image in images})
    ordered = sorted(images, key=lambda image: (identities[image.identity], natural(image.path)))
    samples = tuple(Sample(one.path, identities[one.identity], cameras.get(one.camera, -1)) for one in ordered)
    return Benchmark(
        name=str(root),
        template="{}",  # no prompt is made of it
        train=(),
        trials=(Trial(samples, samples),),
        ignored=PROTOCOLS[protocol],
        omitted=omitted,
        as_written={image.path: (image.identity, image.camera) for image in images},
    )
