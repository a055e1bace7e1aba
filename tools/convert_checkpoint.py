"""Convert checkpoints of this program into the published layout of CLIP-ReID and SVLL-ReID, and back, exactly.

    python -m tools.convert_checkpoint runs/market/ViT-B-16_60.pth published.pth
    python -m tools.convert_checkpoint published.pth ours.pth --config_file configs/person/vit_clipreid.yml

The source says which way. A published file holds neither size, stride nor side information's factor: on the way back
they are the configuration's, which must be the one of its training. Optimiser and training state are not carried over.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from yacs.config import CfgNode

from configs import load, to_dict
from tools.inference import check_output
from utils.command import answer_early, check_there, parse, run_script
from utils.paths import expanded


def read_command_line(argv: list[str] | None = None) -> tuple[argparse.Namespace, CfgNode]:
    """The words of the command line, and the settings."""
    arguments = parse(__doc__, argv, files=("source", "target"))
    check_there(arguments.source, "SOURCE")
    check_output(arguments.target, "TARGET", new=True)
    return arguments, load(arguments.config_file, arguments.overrides)


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from model.build import SETTLED, rebuild, settle_architecture
from model.pretrained import QUICK_GELU
from model.published import to_published
from model.weights import Weights, read_weights
from utils.checkpoint import save_checkpoint, write_tensors
from utils.errors import WeightsError, writing
from utils.fingerprint import versions


def main(argv: list[str] | None = None) -> None:
    """Convert as the command line says."""
    arguments, cfg = read_command_line(argv)
    target = expanded(arguments.target)
    weights = read_weights(arguments.source, cfg.MODEL.NAME)
    with writing(f"TARGET {target}"):
        if weights.architecture is None:
            _from_published(weights, target, cfg, arguments.overrides[::2])
        else:
            _to_published(weights, target)


def _from_published(weights: Weights, target: Path, cfg, requested: list[str]) -> None:
    cfg, architecture, _ = settle_architecture(cfg, weights, requested=requested)
    model, verdict = rebuild(weights, architecture)  # does it fit?
    contents = {
        "model": model.state_dict(),
        "stage": None,
        "epoch": None,
        "config": to_dict(cfg),
        "architecture": architecture,
        "fingerprint": {"versions": versions(), "converted_from": weights.source},
    }
    save_checkpoint(target, contents)
    sys.stdout.write("\n".join([*verdict, f"{target}: a checkpoint of this program"]) + "\n")


def _to_published(weights: Weights, target: Path) -> None:
    if weights.architecture["activation"] != QUICK_GELU:
        raise WeightsError(
            f"{weights.source}: its activation is {weights.architecture['activation']}; the published layout cannot "
            f"say so, and published programs would run it with {QUICK_GELU}"
        )
    write_tensors(target, to_published(weights.tensors))
    names = ("name", "image_size", "stride", "sie_camera", "sie_view", "sie_scale", "pixel_mean", "pixel_std")
    settings = ", ".join(f"{SETTLED[name]} {weights.architecture[name]}" for name in names)
    sys.stdout.write(f"{target}: {len(weights.tensors)} tensors in the published layout. Pass on with it: {settings}\n")


if __name__ == "__main__":
    sys.exit(run_script(main))
