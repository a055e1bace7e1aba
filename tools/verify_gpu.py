"""Both stages at full ViT-B/16 size on a CUDA device, in fp32 and in bf16, compared. `make test-gpu` runs it.

    python -m tools.verify_gpu --steps 40

CLIP's weights are not needed: the towers start at random, the same way in both precisions, and see the same batches.
What is checked is that everything runs on the device, that losses fall, that both precisions tell the same story, and
that a checkpoint gives the same features in a fresh network. Then a ResNet takes a few steps in bf16 and in fp16, a
loss that is no number must leave a network alone, and re-ranking is compared with the CPU's. Speed and memory are
reported, not judged.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import tempfile
import time
from pathlib import Path

from utils.command import Pairs, run_script

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--steps", type=int, default=40, help="about so many, in each stage")
PARSER.add_argument("--device", default="cuda")
PARSER.add_argument("overrides", nargs=argparse.REMAINDER, action=Pairs, metavar="KEY VALUE")

if __name__ == "__main__":  # before torch is loaded, which takes seconds
    PARSER.parse_args()

import torch
from torch import Tensor, nn

from configs import ConfigError, load
from datasets.build import make_loader
from model.build import load_model, make_model
from processor.build import Data, run_stage
from processor.evaluate import embed_all
from processor.loop import fit
from processor.progress import NonFiniteLoss
from processor.run import Run
from processor.stage_run import StageRun
from solver.build import make_optimizer
from tools.demo.render import rendered_benchmark
from utils.devices import describe, pick_device
from utils.fingerprint import Watch
from utils.logs import log_to_screen
from utils.records import FeatureBatch, Losses
from utils.reranking import rerank
from utils.run import METRICS
from utils.seeds import seed_everything
from utils.stopping import Stopping

logger = logging.getLogger("verify_gpu")

ROOT = Path(__file__).resolve().parent.parent
CONFIG, RESNET = "configs/person/vit_svllreid.yml", "configs/person/cnn_svllreid.yml"
LOSS_TOLERANCE = 0.05  # of the mean over a stage's steps, relative
FEATURE_TOLERANCE = 0.95  # least mean cosine of features from fp32 and bf16 training


def main() -> int:
    """0 if both precisions agree, 1 if not."""
    arguments = PARSER.parse_args()
    log_to_screen()
    device = pick_device(arguments.device)
    logger.info("%s, torch %s", describe(device), torch.__version__)
    with tempfile.TemporaryDirectory() as temporary:
        results = {
            precision: train(Path(temporary), precision, device, arguments.steps, arguments.overrides)
            for precision in ("fp32", "bf16")
        }
        for precision in ("bf16", "fp16"):
            train(Path(temporary), precision, device, 8, arguments.overrides, config=RESNET)
    return max(compare(*results.values()), check_guard(device), compare_reranking(device))


def train(
    temporary: Path, precision: str, device: torch.device, steps: int, overrides: list[str], *, config: str = CONFIG
) -> dict:
    """Both stages; their logged losses by stage, and features of the test images."""
    settings = {
        "MODEL.PRETRAIN": "none",
        "DATASETS.NAMES": "synthetic",
        "DATASETS.ROOT_DIR": str(temporary / "data"),
        "DATASETS.SYNTHETIC.TRAIN_IDENTITIES": "64",
        "DATASETS.SYNTHETIC.TRAIN_IMAGES": "8",
        "DATASETS.SYNTHETIC.TEST_IDENTITIES": "8",
        "SOLVER.PRECISION": precision,
        "SOLVER.STAGE1.IMS_PER_BATCH": "128",
        "SOLVER.STAGE1.MAX_EPOCHS": str(max(1, steps // 4)),  # 512 images, 4 batches
        "SOLVER.STAGE2.MAX_EPOCHS": str(max(1, steps // 8)),  # 8 batches of 64
        # From a random start, and for a few dozen steps, the published rates would move nothing.
        "SOLVER.STAGE1.BASE_LR": "0.001",
        "SOLVER.STAGE1.WARMUP_EPOCHS": "0",
        "SOLVER.STAGE2.BASE_LR": "0.0001",
        "SOLVER.STAGE2.WARMUP_ITERS": "0",
        "SOLVER.STAGE1.LOG_PERIOD": "1",
        "SOLVER.STAGE2.LOG_PERIOD": "1",
    }
    pairs = [word for pair in settings.items() for word in pair]
    cfg = load(ROOT / config, [*pairs, *overrides])
    seed_everything(cfg.SOLVER.SEED)
    benchmark = rendered_benchmark(cfg)
    model = make_model(cfg, benchmark).to(device)
    losses: dict[str, list[float]] = {}
    run = Run(cfg, temporary / f"{cfg.MODEL.NAME}-{precision}", device, Stopping())
    run.begin()
    data = Data(benchmark, [], Watch("training images"), Watch("test images"))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for number, stage in enumerate(cfg.PROCESSOR.STAGES):
        started = time.perf_counter()
        checkpoint = run_stage(run, number, model, data)
        lines = [json.loads(line) for line in (run.path / METRICS).read_text().splitlines()]
        losses[stage] = [line["loss"] for line in lines if line["kind"] == "train" and line["stage"] == stage]
        seconds, steps = time.perf_counter() - started, len(losses[stage])
        logger.info("%s in %s, %s stage: %.1f s, %d steps", cfg.MODEL.NAME, precision, stage, seconds, steps)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    query = benchmark.trials[0].query
    features = embed_all(model, make_loader(cfg, query, train=False), device=device)
    again = embed_all(load_model(checkpoint).to(device), make_loader(cfg, query, train=False), device=device)
    return {"losses": losses, "features": features, "again": again, "memory": memory}


def compare(full: dict, half: dict) -> int:
    """Say what differs; 1 if too much does."""
    faults = []
    for stage, losses in full["losses"].items():
        means = [torch.tensor(values).mean().item() for values in (losses, half["losses"][stage])]
        gap = abs(means[0] - means[1]) / abs(means[0])
        logger.info("%s stage: mean loss %.4f in fp32, %.4f in bf16: %.2f %% apart", stage, *means, 100 * gap)
        if gap > LOSS_TOLERANCE:
            faults.append(f"{stage} stage: losses of fp32 and bf16 are {100 * gap:.1f} % apart")
        quarter = max(1, len(losses) // 4)
        for precision, values in (("fp32", losses), ("bf16", half["losses"][stage])):
            if not sum(values[-quarter:]) < sum(values[:quarter]):
                faults.append(f"{stage} stage: the loss does not fall in {precision}")
    cosine = torch.nn.functional.cosine_similarity(full["features"], half["features"]).mean().item()
    logger.info("features of unseen people: mean cosine of fp32 and bf16 training %.4f", cosine)
    logger.info("peak device memory: %.1f GiB in fp32, %.1f GiB in bf16", full["memory"], half["memory"])
    if cosine < FEATURE_TOLERANCE:
        faults.append(f"features of fp32 and bf16 training: mean cosine {cosine:.4f} is below {FEATURE_TOLERANCE}")
    faults += [
        f"{precision}: the checkpoint's features differ by {error:.1e}"
        for precision, result in (("fp32", full), ("bf16", half))
        if (error := largest(result["features"] - result["again"])) > 1e-4
    ]
    for fault in faults:
        sys.stderr.write(f"error: {fault}\n")
    logger.info("%s", "NOT the same" if faults else "fp32 and bf16 tell the same story")
    return 1 if faults else 0


class Spoilt(nn.Module):
    """A loss that is no number in its second step."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.seen = nn.Parameter(torch.ones(3)), []

    def forward(self, batch: FeatureBatch) -> Losses:
        self.seen.append(self.value.detach().clone())
        loss = (self.value**2).sum() * (math.nan if len(self.seen) == 2 else 1.0)
        return Losses(loss, {"square": loss.detach()})


def check_guard(device: torch.device) -> int:
    """1 if an optimiser makes an update from a loss that is no number."""
    batch = FeatureBatch(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))
    block = load(None).SOLVER.STAGE2.clone()
    block.defrost()
    faults = []
    for name in ("Adam", "AdamW", "SGD"):
        block.OPTIMIZER_NAME = name
        stage = Spoilt().to(device)
        try:
            fit(
                *(stage, lambda epoch, done: [batch] * 3, make_optimizer(block, stage), lambda epoch, lr: lr, 1),
                run=StageRun(device),
            )
        except NonFiniteLoss:
            first, second, third = stage.seen
            if not torch.equal(second, first) and torch.equal(third, second):
                continue
        faults.append(name)
    for name in faults:
        sys.stderr.write(f"error: {name} does not keep its hands off a loss that is no number\n")
    logger.info("a loss that is no number: %s", "NOT suppressed" if faults else "no optimiser made that update")
    return int(bool(faults))


def compare_reranking(device: torch.device, images: int = 600) -> int:
    """1 if re-ranked distances on the device are not those of the CPU."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(images // 10, 64, generator=generator)
    features = centres.repeat(10, 1) + 0.5 * torch.randn(images, 64, generator=generator)
    query, gallery = features.split([images // 6, images - images // 6])
    here = rerank(query, gallery, 20, 6, 0.3)
    there = rerank(query.to(device), gallery.to(device), 20, 6, 0.3).cpu()
    error = largest(here - there)
    logger.info("re-ranking: largest difference to the CPU's %.1e", error)
    if error > 1e-5:
        sys.stderr.write(f"error: re-ranked distances differ by {error:.1e}\n")
    return int(error > 1e-5)


def largest(values: Tensor) -> float:
    return values.abs().max().item()


if __name__ == "__main__":
    sys.exit(run_script(main, ConfigError))
