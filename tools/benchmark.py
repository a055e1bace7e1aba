"""Measure what two shortcuts of stage 1 save: prompts cut at their end, and one prompt per identity.

    python -m tools.benchmark                                # the tiny CLIP
    python -m tools.benchmark --name ViT-B-16 --device cuda

Forward and backward of the text tower over a batch: all positions of the context against those up to the end of the
text (attention is causal, so that the features are the same), and a prompt for every image against one for every
identity of the batch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from utils.command import answer_early, at_least, new_parser, run_script


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--name", default="ViT-Tiny-8", help="architecture (default ViT-Tiny-8)")
    parser.add_argument("--device", default="auto", help="as MODEL.DEVICE (default auto)")
    parser.add_argument("--batch", type=at_least(1), default=64, metavar="N", help="images (default 64)")
    parser.add_argument(
        "--identities", type=at_least(1), default=16, metavar="N", help="identities in the batch (default 16)"
    )
    parser.add_argument(
        "--repeats",
        type=at_least(1),
        default=5,
        metavar="N",
        help="repetitions, of which the fastest counts (default 5)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

import open_clip
import torch

from model.clip import TextTower
from model.pretrained import QUICK_GELU, build_clip
from model.prompts import PromptLearner
from utils.devices import describe, pick_device

TEMPLATE = "A photo of a {} person."


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each way."""
    arguments = read_command_line(argv)
    device = pick_device(arguments.device)
    clip = build_clip(arguments.name, QUICK_GELU)
    tower = TextTower(clip).to(device).requires_grad_(False)
    prompts = PromptLearner(arguments.identities, TEMPLATE, clip.token_embedding, open_clip.tokenize).to(device)
    images = torch.arange(arguments.batch, device=device) % arguments.identities
    context = prompts.prefix.shape[1] + prompts.context.shape[1] + prompts.suffix.shape[1]
    ways = {
        f"{arguments.batch} prompts of {context} tokens": (images, context - 1),
        f"{arguments.batch} prompts of {prompts.end + 1} tokens": (images, prompts.end),
        f"{arguments.identities} prompts of {prompts.end + 1} tokens": (images.unique(), prompts.end),
    }
    sys.stdout.write(f"text tower of {arguments.name} on {describe(device)}, forward and backward\n")
    first = None
    for name, (pids, end) in ways.items():

        def step(pids=pids, end=end) -> None:
            prompts.zero_grad()
            tower(prompts(pids), end).sum().backward()

        seconds = fastest(step, device, arguments.repeats)
        first = first or seconds
        sys.stdout.write(f"  {name:<32} {1000 * seconds:9.1f} ms   {first / seconds:5.1f} x\n")


def fastest(step: Callable[[], None], device: torch.device, repeats: int) -> float:
    """The least seconds that `step` took; the first time does not count."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


if __name__ == "__main__":
    sys.exit(run_script(main))
