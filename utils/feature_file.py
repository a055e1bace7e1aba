"""Files of features, with the names of their images and the digest of the network that they are from."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.errors import DataError, writing
from utils.files import replacing, write_text
from utils.paths import expanded


class FeatureFile(NamedTuple):
    """Features of some images."""

    names: list[str]  # of the images' files
    features: Tensor  # float32 [N, D], each of length 1
    digest: str  # of the network and its settings


def write_features(path: Path, contents: FeatureFile) -> None:
    """Write an .npz file of `names` [N], `features` float32 [N, D] and `digest`, atomically.

    Raises:
        UserError: it cannot be written.
    """
    names, features, digest = np.array(contents.names, dtype=str), contents.features.numpy(), np.array(contents.digest)
    with writing(path), replacing(path) as file:
        np.savez(file, names=names, features=features, digest=digest)


def write_csv(path: Path, contents: FeatureFile) -> None:
    """Write a line for every image: its name, and its numbers with all their digits; errors as above."""
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(["name", *(f"f{place}" for place in range(contents.features.shape[1]))])
    for name, row in zip(contents.names, contents.features.tolist(), strict=True):
        lines.writerow([name, *(f"{value:.9g}" for value in row)])
    write_text(path, text.getvalue())


def read_features(path: str | Path, digest: str | None = None) -> FeatureFile:
    """Read what `write_features` wrote.

    Args:
        digest: of the network that they must be from; None for any.

    Raises:
        DataError: no such file, none of features, or of another network.
    """
    path = expanded(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            names, features, theirs = file["names"], file["features"], str(file["digest"])
    except Exception as error:  # of any type: the file may be anything
        raise DataError(f"{path}: is no file of features ({type(error).__name__}: {error})") from error
    if features.dtype != np.float32 or features.ndim != 2 or names.shape != features.shape[:1]:
        raise DataError(f"{path}: holds {features.dtype} {list(features.shape)} and {list(names.shape)} names")
    if digest not in (None, theirs):
        raise DataError(f"{path}: holds features of another network or of other settings ({theirs}, here {digest})")
    return FeatureFile(names.tolist(), torch.from_numpy(features), theirs)
