"""Export a network for retrieval: as ONNX, or in the published layout that trackers read.

    python -m tools.export --weight runs/market/ViT-B-16_60.pth --output reid.onnx gallery/0001.jpg
    python -m tools.export --weight runs/market/ViT-B-16_60.pth --output clip_market.pt --layout published

An ONNX file takes normalised images [B, 3, H, W] of any number and gives features of length 1; how to prepare images is
in its metadata. It is written only if onnxruntime agrees with PyTorch on random images and on those that are named. The
published layout has image tower, necks and classifiers as CLIP-ReID's files do.
"""

from __future__ import annotations

import argparse
import sys

from tools.inference import check_output, network_parser, open_embedder, parse
from utils.command import answer_early, run_script
from utils.errors import UserError, check_installed, writing
from utils.paths import expanded


def read_command_line(argv: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = network_parser(__doc__, skips=False)
    parser.add_argument("--output", metavar="FILE", required=True, help="the file to write")
    parser.add_argument("--layout", choices=("onnx", "published"), default="onnx", help="default: onnx")
    parser.add_argument("--fp16", action="store_true", help="onnx: weights and activations are float16")
    arguments = parse(parser, argv)
    check_output(arguments.output, "--output", new=True)
    if arguments.layout == "onnx":
        check_installed("an ONNX file", "onnx", "onnxruntime", "onnxscript")
    return arguments


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from datasets.find_images import find_images
from model.published import to_published
from model.weights import read_weights
from processor.export import export_onnx
from utils.checkpoint import write_tensors

PARTS = ("image tower", "side information", "batch-norm necks", "identity classifiers")  # that trackers read


def main(argv: list[str] | None = None) -> None:
    """Export as the command line says."""
    arguments = read_command_line(argv)
    target = expanded(arguments.output)
    if arguments.layout == "published":
        weights = read_weights(arguments.weight)
        if "image.visual.proj" not in weights.tensors and "image.visual.layer1.0.conv1.weight" not in weights.tensors:
            raise UserError(f"--layout published: {arguments.weight} holds no tower of CLIP; expected --layout onnx")
        with writing(target):
            write_tensors(target, to_published({k: v for part in PARTS for k, v in weights.part(part).items()}))
        sys.stdout.write(f"{target}: image tower, necks and classifiers in the published layout\n")
        return
    examples = find_images(arguments.images) if arguments.images else []
    least = export_onnx(open_embedder(arguments), target, examples, half=arguments.fp16)
    size = target.stat().st_size / 1e6
    sys.stdout.write(f"{target}: {size:.1f} MB; cosine to PyTorch's features at least {least:.6f}\n")


if __name__ == "__main__":
    sys.exit(run_script(main))
