"""What the page says of pictures: pictures in, records out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from processor.attention import SHARE, attention_map, pair_shares
from processor.card import without_front_matter
from processor.inference import Embedder, as_rgb
from processor.release import card_of
from tools.verify import Known, decide, explain
from utils.errors import UserError
from utils.feature_file import FeatureFile
from utils.gallery_index import ExactIndex
from utils.hub import on_hub
from utils.records import Hit

COLOUR = (255, 96, 0)  # of what counts most, over a grey picture
HEIGHT = 384  # of pictures on the page, pixels


class Comparison(NamedTuple):
    """What is said of two pictures."""

    cosine: float
    decision: str | None  # same or different; None: no threshold is known
    meaning: str  # of the decision
    pictures: Sequence[Image.Image]  # two or, with those that show where they agree, four
    note: str | None = None


class Shown(NamedTuple):
    """A picture of the gallery."""

    hit: Hit
    picture: Image.Image


class Found(NamedTuple):
    """The most similar pictures of the gallery, best first."""

    pictures: Sequence[Image.Image]  # the one that was asked for and, if asked for, where its feature comes from
    shown: Sequence[Shown]
    note: str | None = None


class Answers:
    """What a network says of pictures.

    Args:
        weight: what `embedder` was made of, for its card.
        known: its threshold.
        gallery: features of pictures to search in, by their paths; None for none.
    """

    def __init__(self, embedder: Embedder, weight: str, known: Known, gallery: FeatureFile | None = None):
        self.embedder, self.known, self.gallery = embedder, known, gallery
        self.index = ExactIndex()
        if gallery:
            self.index.add(gallery.names, gallery.features)
        card = without_front_matter(card_of(weight, embedder))
        self.card = card if on_hub(weight) else card.replace(weight, Path(weight).name)  # visitors need no folders

    def compare(self, a: str, b: str, *, places: bool = False) -> Comparison:
        """Whether two pictures show one identity; `places`: and where they agree.

        Raises:
            DataError: one cannot be read.
        """
        images, note = [as_rgb(a), as_rgb(b)], None
        first, second = self.embedder(images)
        cosine, pictures = float(first @ second), [self._shown(image) for image in images]
        if places:
            try:
                shares = pair_shares(self.embedder, *images)
                pictures += [overlay(pictures[0], shares.first), overlay(pictures[1], shares.second)]
            except UserError as error:  # some towers do not tell
                note = str(error)
        return Comparison(cosine, decide(cosine, self.known.threshold), explain(self.known), pictures, note)

    def search(self, query: str, top: int, *, places: bool = False) -> Found:
        """The `top` most similar pictures of the gallery; `places`: and where the query's feature comes from.

        Raises:
            UserError: there is no gallery.
            DataError: the query cannot be read.
        """
        if self.gallery is None:
            raise UserError("there is no gallery; start with --gallery FOLDER")
        image, note = as_rgb(query), None
        pictures = [self._shown(image)]
        (hits,) = self.index.search(self.embedder([image]), top)
        shown = [Shown(hit, self._shown(as_rgb(hit.name))) for hit in hits]
        if places:
            try:
                pictures.append(overlay(pictures[0], attention_map(self.embedder, image, SHARE)))
            except UserError as error:
                note = str(error)
        return Found(pictures, shown, note)

    def _shown(self, image: Image.Image) -> Image.Image:
        """In the shape in which the network sees it, which overlays fit."""
        height, width = self.embedder.transform.size
        return image.resize((round(HEIGHT * width / height), HEIGHT), Image.Resampling.BICUBIC)


def overlay(picture: Image.Image, grid: Tensor) -> Image.Image:
    """A grey picture, on which colour shows where `grid` [h, w] is high; below 0 is none."""
    high = grid.clamp(min=0)
    high = high / high.max().clamp(min=torch.finfo(high.dtype).tiny)
    alpha = Image.fromarray((high.numpy() * 255).astype(np.uint8)).resize(picture.size, Image.Resampling.BILINEAR)
    alpha = alpha.point(lambda value: round(0.75 * value))  # what is below stays visible
    return Image.composite(Image.new("RGB", picture.size, COLOUR), picture.convert("L").convert("RGB"), alpha)


def named(error: UserError, paths: Sequence[str]) -> str:
    """What is wrong, without the folders in which uploads are."""
    words = str(error)
    for path in paths:
        words = words.replace(f"{Path(path).parent}/", "")
    return words
