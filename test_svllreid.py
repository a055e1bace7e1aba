"""Test a checkpoint: rank-k and mAP. What builds the network is in the file.

    python test_svllreid.py TEST.WEIGHT runs/market/ViT-B-16_60.pth
    python test_svllreid.py --config_file configs/person/vit_svllreid.yml TEST.WEIGHT runs/market/ViT-B-16_60.pth

Without --config_file, settings are those that the checkpoint was trained with. Published CLIP-ReID and SVLL-ReID files
hold no settings: they need --config_file. Training images are not needed.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import utils.threads  # noqa: F401
from configs import ConfigError, from_dict, load
from datasets.build import make_benchmark
from model.build import RESIZING, model_from, settle_architecture
from model.weights import read_weights
from processor.build import evaluate_model, result_entry
from utils.command import parse, run
from utils.devices import describe, pick_device
from utils.errors import WeightsError
from utils.fingerprint import data_fingerprint, versions
from utils.logs import log_to_screen
from utils.report import table
from utils.run_folder import RESULTS, append_result, check_writable

logger = logging.getLogger("test")


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
    benchmark = make_benchmark(cfg, train=False)
    model = model.to(device)
    logger.info("%s on %s: %s", weight, describe(device), benchmark.counts())
    if architecture["sie_camera"] and (
        trained["DATASETS"]["NAMES"] != cfg.DATASETS.NAMES
        if trained
        else architecture["num_cams"] != benchmark.num_cams  # a published file does not say where it was trained
    ):
        logger.warning(
            "the network's side information was learnt for %d cameras%s; those of %s are others",
            architecture["num_cams"],
            f" of {trained['DATASETS']['NAMES']}" if trained else "",
            cfg.DATASETS.NAMES,
        )
    evaluation = evaluate_model(cfg, model, benchmark, device)
    entry = result_entry(
        "test",
        cfg,
        benchmark,
        evaluation,
        architecture=architecture,
        seed=trained["SOLVER"]["SEED"] if trained else None,
        fingerprint={"data_fingerprint": data_fingerprint(benchmark), "versions": versions()},
        checkpoint=weight,
        notes=differences,
    )
    logger.info("%s\n%s", benchmark.name, table([entry]))
    logger.info("added to %s", append_result(folder, entry))
    return folder / RESULTS


if __name__ == "__main__":
    sys.exit(run(main, ConfigError))
