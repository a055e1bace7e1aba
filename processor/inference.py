"""Features of single images, for whatever is built on a trained network."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from yacs.config import CfgNode

from configs import load, to_dict
from datasets.images import read_image, upright_rgb
from datasets.transforms import TestTransform
from model.build import rebuild, settle_architecture
from model.svllreid import SvllReid
from model.towers import stem_only
from model.weights import Weights, read_weights
from processor.evaluate import embed_images
from processor.transfer import settings_of
from utils.devices import computing_in, pick_device
from utils.errors import DataError, UserError
from utils.records import FP32, MODALITIES, VISIBLE, SideInfo

DECODED_AT_ONCE = 8  # images; hand over one by one, and Python keeps a small network waiting
Input = str | os.PathLike | Image.Image | np.ndarray  # a path, an image of Pillow's, or RGB of uint8 [H, W, 3]
Given = str | Image.Image | DataError  # a path, an image in RGB, or what is wrong with it


class Origin(NamedTuple):
    """What a file says of a network."""

    weights: Weights  # without the tensors, which the network has
    settings: dict  # the configuration, as plain types
    architecture: dict  # of the whole network, with what only training needs


class Embedder:
    """Images -> features of length 1, compared by cosine, as `evaluate` does with a data set.

    Args:
        model: moved to `device`; left in eval mode.
        transform: of images.
        neck: features after the batch-norm necks.
        flip: take the mean over an image and its mirror image.
        side: whether side information counts. Single images have no camera: it is the mean over all that the network
            knows.
        precision: of the towers, "fp32", "bf16" or, on CUDA devices, "tf32".
        modality: VISIBLE or INFRARED, of images of which a call does not say it; None: visible, or refused by a network
            that has a stem for each modality.
        batch_size: images at a time. Affects speed and memory only.

    Raises:
        UserError: the device does not have this precision.
    """

    origin: Origin | None = None  # of `from_checkpoint`

    def __init__(
        self,
        model: SvllReid,
        transform: TestTransform,
        *,
        neck: bool = True,
        flip: bool = False,
        side: bool = True,
        precision: str = FP32,
        modality: int | None = None,
        device: torch.device,
        batch_size: int = 64,
    ):
        self.device, self.batch_size = device, batch_size
        self.model = model.to(device).eval()
        self.transform, self.precision = transform, precision
        self.neck, self.flip, self.side, self.modality = neck, flip, side, modality
        with computing_in(precision, device):  # which says now if the device cannot
            pass

    @classmethod
    def from_checkpoint(
        cls,
        weight: str | Path,
        *,
        config_file: str | Path | None = None,
        overrides: Iterable[str] = (),
        modality: int | None = None,
        device: str = "auto",
        batch_size: int = 64,
    ) -> Embedder:
        """The embedder of a checkpoint, with its own preprocessing and the settings TEST of its training.

        Args:
            weight: a checkpoint of this program, the folder of a released network or hf-hub:user/name, or a published
                file.
            config_file: the YAML file of a published file, which does not say how its network is built.
            overrides: KEY, VALUE, KEY, VALUE, ...
            device: auto, cpu, cuda, cuda:N or mps.

        Raises:
            WeightsError: no checkpoint, a damaged one, or a published file without `config_file`.
            ConfigError: what is wrong with `config_file` or `overrides`.
            UserError: the device is not there, or does not have the precision.
        """
        overrides = list(overrides)
        cfg: CfgNode = load(config_file, overrides) if config_file else None
        weights = read_weights(weight, cfg.MODEL.NAME if cfg else "")
        cfg, architecture, _ = settle_architecture(
            cfg or settings_of(weights, overrides), weights, requested=overrides[::2]
        )
        model, _ = rebuild(weights, architecture, testing=True)
        embedder = cls(
            model,
            TestTransform(architecture["test_size"], mean=architecture["pixel_mean"], std=architecture["pixel_std"]),
            neck=cfg.TEST.NECK_FEAT == "after",
            flip=cfg.TEST.FLIP,
            side=cfg.TEST.SIE != "none",
            precision=cfg.TEST.PRECISION,
            modality=modality,
            device=pick_device(device),
            batch_size=batch_size,
        )
        embedder.origin = Origin(weights._replace(tensors={}), to_dict(cfg), architecture)
        return embedder

    @cached_property
    def digest(self) -> str:
        """Of the weights and of all settings that features depend on: features of another digest are no match."""
        new = () if self.precision == FP32 else (self.precision,)  # which earlier versions did not know
        seen = self.transform
        settings = (seen.size, seen.mean, seen.std, self.neck, self.flip, self.side, *new)
        state = hashlib.sha256(repr(settings).encode())
        for name, value in self.model.state_dict().items():
            state.update(name.encode())
            state.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return state.hexdigest()[:16]

    def described(self) -> dict[str, Any]:
        """How images are prepared for it, what is done to features, and whose they are, as plain types."""
        return {
            "size": self.transform.size,
            "resize": "bilinear, antialiased, aspect ratio not kept",
            "colours": "RGB, 0 to 1, minus mean, divided by std",
            "mean": self.transform.mean,
            "std": self.transform.std,
            "features": f"{'after' if self.neck else 'before'} the necks",
            "flip": self.flip,
            "side_information": "mean" if self.side else "none",
            "precision": self.precision,
            "digest": self.digest,
        }

    def __call__(
        self,
        images: Iterable[Input],
        *,
        modalities: Sequence[int] | None = None,
        skip: Callable[[int, DataError], None] | None = None,
    ) -> Tensor:
        """Images -> float32 [N, D] on the CPU, each row of length 1.

        Args:
            images: paths, images of Pillow's, or RGB arrays of uint8 [H, W, 3]. OpenCV's arrays are BGR, which nothing
                in them tells: turn them with `array[:, :, ::-1]` first.
            modalities: VISIBLE or INFRARED, of each image; None: all are of the embedder's own.
            skip: is told of an image that cannot be read, by its place among `images`, which then has no row; None
                raises what is wrong with it.

        Raises:
            DataError: an image that cannot be read, an array of another kind, or one image in place of several.
            UserError: the network has a stem for each modality, and nothing says which an image is of.
        """
        if isinstance(images, (str, os.PathLike, Image.Image)) or getattr(images, "ndim", 4) != 4:
            raise DataError(f"{type(images).__name__}: expected several images; of one, [image]")
        rows = []
        for batch in self._batches(images, skip):
            known = None if modalities is None else [modalities[place] for place in batch]
            rows.append(self._embed(torch.stack(list(batch.values())), known))
        return torch.cat(rows) if rows else torch.empty(0, sum(self.model.image.dims[1:]))

    def check_fp32(self, what: str) -> None:
        """Raise UserError if features are of another precision than `what`, which is of fp32."""
        if self.precision != FP32:
            raise UserError(f"TEST.PRECISION {self.precision}: {what} in fp32 only; expected TEST.PRECISION fp32")

    def prepare(self, image: Input) -> Tensor:
        """An image -> what the network sees, [3, H, W]; DataError if it cannot be read."""
        return self.transform(as_rgb(image))[0]

    def side_of(self, count: int, modalities: Sequence[int] | None = None) -> SideInfo | None:
        """Side information of images without cameras: their modalities, and the mean over all that the network knows.

        Raises:
            UserError: the network has a stem for each modality, and nothing says which the images are of.
        """
        if modalities is None:
            if self.modality is None and len(getattr(self.model.image, "stems", ())):
                named = f"--modality {' or '.join(MODALITIES)}, modality=VISIBLE or INFRARED in Python"
                raise UserError(f"the network has a stem for each modality: say which the images are of ({named})")
            modalities = [self.modality or VISIBLE] * count
        side = SideInfo.unknown(torch.tensor(modalities, device=self.device))
        return side if self.side else stem_only(self.model.image, side)

    @torch.no_grad()
    def _embed(self, pixels: Tensor, modalities: Sequence[int] | None) -> Tensor:
        images, side = self.transform.normalised(pixels.to(self.device)), self.side_of(len(pixels), modalities)
        with computing_in(self.precision, self.device):
            features = embed_images(self.model, images, side, neck=self.neck, flip=self.flip)
        return F.normalize(features.float(), dim=1).cpu()

    def _batches(
        self, images: Iterable[Input], skip: Callable[[int, DataError], None] | None
    ) -> Iterator[dict[int, Tensor]]:
        """Batches of pixels, by the images' places; threads decode two batches ahead, in parallel."""
        places, batch = enumerate(map(as_given, images)), {}
        parts = iter(lambda: list(islice(places, DECODED_AT_ONCE)), [])
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1)) as pool:  # one core is the network's

            def submit(count: int) -> Iterator[Future]:
                return (pool.submit(self._pixels, part) for part in islice(parts, count))

            waiting = deque(submit(1 + 2 * self.batch_size // DECODED_AT_ONCE))
            while waiting:
                part = waiting.popleft().result()
                waiting.extend(submit(1))
                for place, pixels in part:
                    if not isinstance(pixels, DataError):
                        batch[place] = pixels
                    elif skip is None:
                        raise pixels
                    else:
                        skip(place, pixels)
                    if len(batch) == self.batch_size:
                        yield batch
                        batch = {}
        if batch:
            yield batch

    def _pixels(self, images: Sequence[tuple[int, Given]]) -> list[tuple[int, Tensor | DataError]]:
        """Places and images -> places and pixels uint8 [3, H, W], or what is wrong with an image."""
        found: list[tuple[int, Tensor | DataError]] = []
        for place, image in images:
            try:
                image = read_image(image) if isinstance(image, str) else image
                found.append((place, image if isinstance(image, DataError) else self.transform.resized(image)))
            except DataError as error:
                found.append((place, error))
        return found


def as_given(image: Input) -> Given:
    """A path, or a copy in RGB, as its owner may give an image twice or turn to its next frame; or what is wrong."""
    try:
        return os.fspath(image) if isinstance(image, (str, os.PathLike)) else as_rgb(image)
    except DataError as error:
        return error


def as_rgb(image: Input) -> Image.Image:
    """An image in RGB, 8 bits a channel, upright, as `read_image` reads it from a file.

    Raises:
        DataError: it cannot be read, has no pixels, or is an array of another kind.
    """
    if isinstance(image, (Image.Image, np.ndarray)) and 0 in getattr(image, "shape", getattr(image, "size", ())):
        raise DataError("image: has no pixels")
    if isinstance(image, (str, os.PathLike)):
        return read_image(os.fspath(image))
    if isinstance(image, Image.Image):
        try:
            return upright_rgb(image.copy())
        except Exception as error:  # of any type: an image that was opened is decoded only now
            raise DataError(f"{getattr(image, 'filename', '') or 'image'}: cannot be decoded ({error})") from error
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return Image.fromarray(image)
    if isinstance(image, (np.ndarray, Tensor)):
        found = f"{str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
    else:
        found = type(image).__name__
    raise DataError(
        f"{found}: is no image; expected a path, an image of Pillow's, or RGB of uint8 [H, W, 3], not yet normalised"
    )
