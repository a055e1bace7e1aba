"""Both stages at full ViT-B/16 size on a CUDA device, in fp32 and in bf16, compared. `make test-gpu` runs it.

CLIP's weights are not needed: the towers start at random, the same way in both precisions, and see the same batches.
Everything must run on the device, losses must fall, both precisions must agree, and a checkpoint must test as the
network that was saved. A ResNet takes a few steps in bf16 and in fp16, a loss that is not finite must leave a network
alone, and re-ranking is compared with the CPU's. Speed and memory are in the log (`-s`), not judged.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import test_svllreid
import train_svllreid
from configs import load
from datasets.build import make_benchmark, make_loader
from model.build import load_model
from processor.evaluate import embed_all
from processor.image_stage import ImageStage
from utils.checkpoint import read_tensors
from utils.devices import pick_device
from utils.errors import UserError
from utils.reranking import rerank

pytestmark = pytest.mark.gpu
CONFIGS = Path(__file__).resolve().parents[2] / "configs/person"
VIT, RESNET = CONFIGS / "vit_svllreid.yml", CONFIGS / "cnn_svllreid.yml"
EPOCHS = {"prompt": 10, "image": 5}  # of 4 and 8 steps
SETTINGS = [
    *("MODEL.PRETRAIN", "none", "DATASETS.NAMES", "synthetic", "DATASETS.SYNTHETIC.TRAIN_IDENTITIES", "64"),
    *("DATASETS.SYNTHETIC.TRAIN_IMAGES", "8", "DATASETS.SYNTHETIC.TEST_IDENTITIES", "8"),
    *("SOLVER.STAGE1.IMS_PER_BATCH", "128", "SOLVER.STAGE1.LOG_PERIOD", "1", "SOLVER.STAGE2.LOG_PERIOD", "1"),
    # From a random start, and for a few dozen steps, the published rates would move nothing.
    *("SOLVER.STAGE1.BASE_LR", "0.001", "SOLVER.STAGE1.WARMUP_EPOCHS", "0"),
    *("SOLVER.STAGE2.BASE_LR", "0.0001", "SOLVER.STAGE2.WARMUP_ITERS", "0"),
]


@pytest.fixture(scope="module")
def device(request) -> torch.device:
    return pick_device(request.config.getoption("--device"))


@pytest.fixture(scope="module")
def train(device, tmp_path_factory):
    """Trains into a folder with a configuration, a precision and epochs of both stages."""
    data = tmp_path_factory.mktemp("data")

    def run(folder: Path, config: Path, precision: str, epochs: dict[str, int], *more: str) -> Path:
        places = ["DATASETS.ROOT_DIR", str(data), "OUTPUT_DIR", str(folder), "MODEL.DEVICE", str(device)]
        lengths = ["SOLVER.STAGE1.MAX_EPOCHS", str(epochs["prompt"]), "SOLVER.STAGE2.MAX_EPOCHS", str(epochs["image"])]
        words = ["--config_file", str(config), *SETTINGS, *places, *lengths, "SOLVER.PRECISION", precision, *more]
        return train_svllreid.main(words)

    return run


@pytest.fixture(scope="module")
def runs(train, tmp_path_factory) -> dict[str, Path]:
    return {precision: train(tmp_path_factory.mktemp("run"), VIT, precision, EPOCHS) for precision in ("fp32", "bf16")}


def losses(folder: Path, stage: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train" and line["stage"] == stage]


def checkpoint(folder: Path) -> Path:
    return next(folder.glob(f"*_{EPOCHS['image']}.pth"))


@pytest.mark.parametrize("stage", EPOCHS)
def test_losses_fall_and_those_of_both_precisions_agree(runs, stage):
    of = {precision: torch.tensor(losses(folder, stage)) for precision, folder in runs.items()}
    assert of["bf16"].mean().item() == pytest.approx(of["fp32"].mean().item(), rel=0.05)
    for values in of.values():
        quarter = len(values) // 4
        assert values[-quarter:].sum() < values[:quarter].sum()


def test_features_of_both_precisions_agree(runs, device):
    def features(folder: Path) -> Tensor:
        trained = read_tensors(checkpoint(folder))["config"]["DATASETS"]["ROOT_DIR"]
        cfg = load(VIT, [*SETTINGS, "DATASETS.ROOT_DIR", trained])
        loader = make_loader(cfg, make_benchmark(cfg).trials[0].query, train=False)
        return embed_all(load_model(checkpoint(folder)).to(device), loader, device=device)

    assert torch.cosine_similarity(*map(features, runs.values())).mean() > 0.95


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_checkpoint_tests_as_the_network_that_was_saved(runs, device, precision):
    folder = runs[precision]
    test_svllreid.main(["TEST.WEIGHT", str(checkpoint(folder)), "MODEL.DEVICE", str(device)])
    _, end, test = json.loads((folder / "results.json").read_text())["evaluations"]
    assert test["mAP"] == pytest.approx(end["mAP"], abs=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_resnet_trains(train, tmp_path, precision):
    folder = train(tmp_path, RESNET, precision, {"prompt": 2, "image": 1})
    assert all(math.isfinite(loss) for stage in EPOCHS for loss in losses(folder, stage))


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "SGD"])
def test_a_loss_that_is_not_finite_moves_no_weight(train, tmp_path, monkeypatch, optimizer):
    real, steps = ImageStage.forward, []

    def forward(self, batch):
        steps.append(batch)
        result = real(self, batch)
        return result._replace(total=result.total * math.nan) if len(steps) == 2 else result

    monkeypatch.setattr(ImageStage, "forward", forward)
    more = ["PROCESSOR.STAGES", "image", "MODEL.I2T_LOSS_WEIGHT", "0.0", "SOLVER.CHECKPOINT_MINUTES", "1e-9"]
    with pytest.raises(UserError, match="not finite"):
        train(tmp_path, VIT, "fp32", EPOCHS, *more, "SOLVER.STAGE2.OPTIMIZER_NAME", optimizer)
    before = read_tensors(max((tmp_path / "resume").glob("*.pth")))["model"]
    after = read_tensors(tmp_path / "non_finite.pt")["model"]
    moved = {name for name, value in after.items() if not value.equal(before[name])}
    assert all(name.endswith(("_mean", "_var", "_tracked")) for name in moved)


def test_re_ranking_is_the_cpus(device):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(60, 64, generator=generator)
    features = centres.repeat(10, 1) + 0.5 * torch.randn(600, 64, generator=generator)
    query, gallery = features.split([100, 500])
    here = rerank(query, gallery, 20, 6, 0.3)
    assert torch.allclose(rerank(query.to(device), gallery.to(device), 20, 6, 0.3).cpu(), here, rtol=0, atol=1e-5)
