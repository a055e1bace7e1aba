"""Test a checkpoint: rank-k and mAP. What builds the network is in the file.

    python test_svllreid.py TEST.WEIGHT runs/market/ViT-B-16_60.pth
    python test_svllreid.py --config_file configs/person/vit_svllreid.yml TEST.WEIGHT runs/market/ViT-B-16_60.pth

Without --config_file, settings are those that the checkpoint was trained with. Published CLIP-ReID and SVLL-ReID files
hold no settings: they need --config_file. Training images are not needed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

import utils.threads  # noqa: F401
from configs import ConfigError, from_dict, load
from datasets.build import ONE_NAME_MANY_SETS, SEVERAL, make_benchmark
from model.build import RESIZING, model_from, settle_architecture
from model.weights import Weights, read_weights
from processor.build import evaluate_model, result_entry
from utils.command import parse, run
from utils.devices import describe, pick_device
from utils.errors import WeightsError
from utils.fingerprint import data_fingerprint, versions
from utils.logs import log_to_screen
from utils.records import Benchmark
from utils.report import table
from utils.run_folder import RESULTS, append_result, check_writable

logger = logging.getLogger("test")
SIDE_IN_WORDS = {
    "same": "cameras and viewpoints as in training",
    "mean": "the mean over all that training knew",
    "none": "left out",
}


def main(argv: list[str] | None = None) -> Path:
    """Test as the command line says; the results file."""
    arguments = parse(__doc__, argv)
    log_to_screen()
    requested = arguments.overrides[::2]
    if arguments.config_file:
        cfg = load(arguments.config_file, arguments.overrides)
        weight = cfg.TEST.WEIGHT
    else:
        given = dict(zip(requested, arguments.overrides[1::2], strict=False)).get("TEST.WEIGHT")
        weight = load(None, ["TEST.WEIGHT", given]).TEST.WEIGHT if given else ""
    if not weight:
        raise ConfigError("TEST.WEIGHT: which checkpoint? e.g. TEST.WEIGHT runs/market/ViT-B-16_60.pth")
    weights = read_weights(weight)
    trained = weights.config
    if trained is not None and not {"DATASETS", "SOLVER"} <= trained.keys():
        raise WeightsError(f"{weight}: is no whole checkpoint, its configuration lacks DATASETS or SOLVER")
    if not arguments.config_file:
        if trained is None:
            raise WeightsError(f"{weight}: is a published file, which holds no settings; give its --config_file")
        cfg = from_dict({**trained, "OUTPUT_DIR": ""}, arguments.overrides, where=weight)
    held_out = cfg.DATASETS.HOLD_OUT
    if trained is not None and held_out > 0 and trained["DATASETS"].get("HOLD_OUT") != held_out:
        raise ConfigError(
            f"DATASETS.HOLD_OUT {held_out}: {weight} was trained with {trained['DATASETS'].get('HOLD_OUT')}, so on "
            "identities that would be tested"
        )
    folder = Path(cfg.OUTPUT_DIR or Path(weight).parent).expanduser()
    check_writable(folder)
    cfg, architecture, differences = settle_architecture(cfg, weights, requested=requested)
    for difference in differences:
        logger.info("%s", difference)

    device = pick_device(cfg.MODEL.DEVICE)
    model, verdict = model_from(weights, architecture, testing=True, resize=not RESIZING.isdisjoint(requested))
    for line in verdict:
        logger.info("TEST.WEIGHT: %s", line)
    model = model.to(device)
    entries = []
    for benchmark in _benchmarks(cfg, trained):
        logger.info("%s on %s: %s: %s", weight, describe(device), benchmark.name, benchmark.counts())
        fingerprint = {"data_fingerprint": data_fingerprint(benchmark), "versions": versions()}
        at_home = _at_home(cfg, weights, fingerprint["data_fingerprint"]["test"])
        evaluation = evaluate_model(cfg, model, benchmark, device, at_home=at_home)
        if architecture["sie_camera"] or architecture["sie_view"]:
            logger.info("side information: TEST.SIE %s: %s", cfg.TEST.SIE, SIDE_IN_WORDS[evaluation.side])
        entry = result_entry(
            "test",
            cfg,
            benchmark,
            evaluation,
            architecture=architecture,
            seed=trained["SOLVER"]["SEED"] if trained else None,
            fingerprint=fingerprint,
            checkpoint=weight,
            notes=differences,
        )
        entries.append(entry)
    logger.info("%s\n%s", cfg.DATASETS.NAMES, table(entries))
    for entry in entries:
        written = append_result(folder, entry)
    logger.info("added to %s", written)
    return folder / RESULTS


def _benchmarks(cfg: CfgNode, trained: dict | None) -> Sequence[Benchmark]:
    """What to test on; several data sets one by one, cameras numbered as in training if it was on all of them."""
    names = cfg.DATASETS.NAMES
    if SEVERAL in names and trained is not None and trained["DATASETS"]["NAMES"] == names:
        return make_benchmark(cfg).evaluated()
    return [make_benchmark(cfg, name, train=False) for name in names.split(SEVERAL)]


def _at_home(cfg: CfgNode, weights: Weights, images: str) -> bool | None:
    """Whether the network was trained on the data set that it is tested on; None where the file does not say."""
    if weights.config is None:
        return None
    named = weights.config["DATASETS"]["NAMES"] == cfg.DATASETS.NAMES
    return named and (cfg.DATASETS.NAMES not in ONE_NAME_MANY_SETS or images == weights.tested_on)


if __name__ == "__main__":
    sys.exit(run(main, ConfigError))
