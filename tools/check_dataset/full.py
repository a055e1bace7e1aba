"""The quick check, and every image decoded once: unreadable, tiny or not RGB images, and copies by their pixels."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import NamedTuple

from PIL import ExifTags, Image

from datasets.check import check_files, look
from datasets.check_labels import Contents, check_lists
from datasets.findings import Findings, Report
from datasets.images import FORMATS, read_image
from utils.errors import DataError
from utils.progress import progress
from utils.records import Benchmark

TINY = 16  # pixels of a side, a patch of ViT-B-16
PATHS_AT_ONCE = 64  # of one process that decodes
FEW = 512  # images that are decoded before processes would have started


def full_check(
    benchmark: Benchmark, *, instances: int | None, identities: int | None, workers: int | None = None
) -> Report:
    """The quick check, with every image decoded once and compared by its pixels; shows a bar.

    Args:
        workers: processes; None for as many as there are cores.
    """
    files = look(benchmark)
    found = Findings(benchmark.as_written)
    check_files(files, found)
    once = {file.key: path for path, file in files.items() if file.size}
    images = dict(zip(once, _decode(list(once.values()), workers), strict=True))
    _check_decoded({once[key]: image for key, image in images.items()}, found)
    # By pixels, so that a copy saved anew without loss, or without its comment, is found as well; an image that cannot
    # be read only equals itself.
    digests = {key: image.digest for key, image in images.items() if image.digest}
    keys = {path: digests.get(file.key, file.key) for path, file in files.items()}
    check_lists(benchmark, Contents(keys, "image"), found, instances, identities)
    return found.report(benchmark.name)


class Decoded(NamedTuple):
    error: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    turned: bool = False  # upright, by its EXIF orientation
    digest: bytes = b""  # of size and pixels


def _decode(paths: Sequence[str], workers: int | None) -> list[Decoded]:
    """Every image, in order."""
    workers = workers or os.cpu_count() or 1
    chunks = [paths[start : start + PATHS_AT_ONCE] for start in range(0, len(paths), PATHS_AT_ONCE)]
    if workers == 1 or len(paths) <= FEW:
        return [image for chunk in progress(chunks, "decoding") for image in _decode_all(chunk)]
    with ProcessPoolExecutor(workers) as processes:
        futures: list[Future] = [processes.submit(_decode_all, chunk) for chunk in chunks]
        try:
            return [image for future in progress(futures, "decoding") for image in future.result()]
        except BaseException:  # Ctrl-C, too: nobody waits for the rest
            processes.shutdown(wait=False, cancel_futures=True)
            raise


def _decode_all(paths: Sequence[str]) -> list[Decoded]:
    return [_decode_one(path) for path in paths]


def _decode_one(path: str) -> Decoded:
    try:
        image = read_image(path)  # as training does
        with Image.open(path, formats=FORMATS) as header:
            mode, turned = header.mode, _is_turned(header)
    except DataError as error:
        return Decoded(str(error))
    except Exception as error:  # a decoder's own fault ends a training just as well
        return Decoded(f"{path}: cannot be read as an image ({type(error).__name__}: {error})")
    digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
    digest.update(image.tobytes())
    return Decoded("", *image.size, mode, turned, digest.digest())


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # of any type: the block may hold anything
        return False


def _check_decoded(images: Mapping[str, Decoded], found: Findings) -> None:
    errors = [image.error for image in images.values() if image.error]
    if errors:
        message = f"{len(errors)} of {len(images)} images cannot be read"
        found.add("problem", "unreadable", message, "unpack them again, or take them out of the data set", errors)
    tiny = [
        f"{path} ({image.width} x {image.height})"
        for path, image in images.items()
        if not image.error and min(image.width, image.height) < TINY
    ]
    if tiny:
        message = f"{len(tiny)} of {len(images)} images have a side below {TINY} pixels"
        found.add("warning", "tiny", message, "look at them: enlarged, they hold next to nothing", tiny)
    modes = Counter(image.mode for image in images.values() if image.mode not in ("", "RGB"))
    if modes:
        kinds = ", ".join(f"{mode}: {count}" for mode, count in modes.most_common())
        other = [f"{path} ({p.mode})" for path, p in images.items() if p.mode not in ("", "RGB")]
        message = f"{len(other)} of {len(images)} images are not RGB ({kinds})"
        remedy = "they are converted when they are read (transparent parts become white, 16 bits of grey become 8)"
        found.add("note", "not RGB", message, remedy, other)
    turned = [path for path, image in images.items() if image.turned]
    if turned:
        message = f"{len(turned)} of {len(images)} images lie on their side or head, and their EXIF says so"
        remedy = "they are turned upright when they are read; other programs may not do that"
        found.add("note", "turned", message, remedy, turned)
