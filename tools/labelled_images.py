"""Labelled images that a command line names: a data set, or a folder that holds a folder per identity."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

import torch

from datasets.names import names_of
from datasets.unsplit import unsplit
from processor.inference import Embedder
from processor.transfer import OF_THE_DATA, check_held_out, homes_of, prepare, settings_of
from tools.demo.render import render_missing
from tools.inference import embed_files
from utils.errors import UserError
from utils.feature_file import FeatureFile
from utils.fingerprint import data_fingerprint, versions
from utils.paths import expanded
from utils.records import Benchmark, Labels, Sample, Trial
from utils.verification import Images


def labelled_images(arguments: argparse.Namespace, embedder: Embedder) -> tuple[Benchmark, dict, list[str]]:
    """What the command line names, its fingerprint, and what is to be noted, which is said on stderr.

    Raises:
        UserError: what is wrong with it, or several data sets.
    """
    requested = dict(zip(arguments.overrides[::2], arguments.overrides[1::2], strict=True))
    if arguments.images:
        benchmark = unsplit(expanded(arguments.images[0]), protocol=requested.get("TEST.PROTOCOL"))
        return benchmark, {"data_fingerprint": data_fingerprint(benchmark), "versions": versions()}, []
    assert embedder.origin is not None
    weights = embedder.origin.weights
    # Single images have no camera, whatever the data set knows of them.
    words = [*arguments.overrides, *(("TEST.SIE", "mean") if embedder.side else ())]
    cfg = settings_of(weights, words, arguments.config_file)
    names = names_of(cfg.DATASETS.NAMES)
    if len(names) > 1:
        raise UserError(f"DATASETS.NAMES {cfg.DATASETS.NAMES}: expected one data set to measure on, e.g. {names[0]}")
    check_held_out(cfg, weights, names)
    render_missing(cfg, names[0])
    inherited = set() if arguments.config_file else OF_THE_DATA.keys() - requested.keys()
    home = homes_of(weights).get(names[0])
    ready = prepare(cfg, embedder.model.architecture, weights, inherited, names[0], home)
    sys.stderr.writelines(f"{note}\n" for note in ready.notes)
    return ready.benchmark, ready.fingerprint, ready.notes


def embed_samples(
    arguments: argparse.Namespace, embedder: Embedder, samples: Iterable[Sample]
) -> tuple[FeatureFile, int]:
    """As `embed_files`; a data set knows the modality of each image, a folder does not."""
    modalities = {sample.path: sample.modality for sample in samples}
    return embed_files(embedder, list(modalities), None if arguments.images else list(modalities.values()))


def first_trial(benchmark: Benchmark) -> Trial:
    """Of several trials the first, which is said; of two directions, with its name."""
    if len(benchmark.trials) > 1:
        name = benchmark.evaluated()[0].name
        sys.stderr.write(f"{name}: the first of {len(benchmark.trials)} trials\n")
    return benchmark.trials[0]


def images_of(samples: Sequence[Sample], features: FeatureFile) -> Images:
    """Of the samples that have features, their rows and their labels."""
    rows = {name: row for row, name in enumerate(features.names)}
    kept = tuple(sample for sample in samples if sample.path in rows)
    return Images(torch.tensor([rows[sample.path] for sample in kept]), Labels.of(kept))


def plain(identity: str) -> str:
    """An identity without blanks around it and, if it is a number, without leading zeros."""
    return str(int(identity)) if identity.strip().isdecimal() else identity.strip()


def written(benchmark: Benchmark, sample: Sample) -> tuple[str, str]:
    """Identity and camera as the data set's owner wrote them; an unknown camera is empty."""
    own = (str(sample.pid), str(sample.camid + 1 - benchmark.first_camera) if sample.camid >= 0 else "")
    return benchmark.as_written.get(sample.path, own)
