"""Releasing a network: the folder from which others use it, and the card of any network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from processor.card import Facts, facts_of, model_card, results_of
from processor.inference import Embedder
from utils.calibration_file import beside, read_calibration
from utils.release_folder import CALIBRATION, CARD, PREPROCESSING, is_release, locate, write_release

EMPTIED = ("OUTPUT_DIR", "WEIGHT")  # settings of this machine alone


def card_of(weight: str | Path, embedder: Embedder) -> str:
    """The card of the network that `Embedder.from_checkpoint` made of `weight`: that of its folder, else a new one.

    Raises:
        UserError: the results.json beside it cannot be read.
    """
    path = locate(weight)
    if is_release(path) and (path / CARD).is_file():
        return (path / CARD).read_text(encoding="utf-8", errors="replace")
    return model_card(facts_of_embedder(embedder, path, name=path.stem, place=str(weight)))


def facts_of_embedder(embedder: Embedder, path: Path, **known: Any) -> Facts:
    """The facts of an embedder that `Embedder.from_checkpoint` made of the file `path`; `known` are further fields."""
    assert embedder.origin is not None
    weights, settings, architecture = embedder.origin
    trained = weights.config is not None and not weights.converted
    facts = facts_of(embedder.model, settings, trained=trained, digest=embedder.digest, **known)
    return facts._replace(architecture=architecture, stage=weights.stage, epoch=weights.epoch, results=results_of(path))


def release(embedder: Embedder, weight: str | Path, folder: Path, *, place: str, licence: str | None = None) -> None:
    """Write what `Embedder.from_checkpoint` made of `weight` as a folder that gives the same features, bit for bit.

    What only training needs is left out. A calibration beside the checkpoint goes with it.

    Args:
        place: where others will find it, for the card: the name of the folder or hf-hub:user/name.
        licence: by the Hub's names; None: as its weights and data tell.

    Raises:
        UserError: the folder is there and not empty, or cannot be written; results.json beside the checkpoint cannot be
            read.
        DataError: the calibration beside the checkpoint is of another network or of other settings.
    """
    assert embedder.origin is not None
    weights, settings, _ = embedder.origin
    source = locate(weight)
    facts = facts_of_embedder(embedder, source, name=folder.name, place=place, licence=licence)
    texts = {
        CARD: model_card(facts._replace(settings=without_places(settings))),
        PREPROCESSING: json.dumps(embedder.described(), indent=2) + "\n",
    }
    if (calibration := beside(weight)).exists():
        read_calibration(calibration, embedder.digest)
        texts[CALIBRATION] = calibration.read_text(encoding="utf-8")
    tested = list(weights.tested_on)
    prints = {"train": weights.trained_on, **({"test": tested[0]} if len(tested) == 1 else {"parts": tested})}
    fingerprint: dict[str, Any] = {"data_fingerprint": {name: found for name, found in prints.items() if found}}
    if not facts.trained:
        fingerprint["converted_from"] = source.name
    contents = {
        "architecture": embedder.model.architecture,
        "config": without_places(settings),
        "stage": weights.stage,
        "epoch": weights.epoch,
        "fingerprint": fingerprint,
        "digest": embedder.digest,
    }
    write_release(folder, embedder.model.state_dict(), contents, texts)


def without_places(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without this machine's folders: of absolute paths, the name is left."""

    def bare(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return without_places(value)
        if not isinstance(value, str) or key in EMPTIED:
            return "" if key in EMPTIED else value
        return Path(value).name if value.startswith("~") or Path(value).is_absolute() else value

    return {key: bare(key, value) for key, value in settings.items()}
