"""What every test finds."""

import json
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from builders import SMALL, small_config
from yacs.config import CfgNode

from configs import load, to_dict
from model.build import make_model
from tools.demo.render import rendered_benchmark
from utils.checkpoint import save_checkpoint
from utils.records import Benchmark


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/faults and tests/gpu."""
    parser.addoption("--faults", type=int, default=10, help="how many faults `make faults` makes")
    parser.addoption("--fault-seed", type=int, default=11, help="another one draws other faults")
    parser.addoption("--device", default="cuda", help="what `make test-gpu` runs on")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same draws whichever tests run, and in whichever order."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def small_architecture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a small CLIP that open_clip knows while it is needed."""
    path = tmp_path_factory.mktemp("architecture") / f"{SMALL}.json"
    path.write_text(json.dumps(small_config(image_size=32)))
    open_clip.add_model_config(path)
    yield SMALL
    open_clip.factory._MODEL_CONFIG_PATHS.remove(path)
    open_clip.factory._MODEL_CONFIGS.pop(SMALL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CfgNode, Benchmark]:
    """A checkpoint of the tiny CLIP with side information, whose necks do something, and its test images."""
    root = tmp_path_factory.mktemp("trained")
    words = ["DATASETS.ROOT_DIR", str(root), "DATASETS.SYNTHETIC.TRAIN_IDENTITIES", "3", "MODEL.DEVICE", "cpu"]
    words += ["DATASETS.SYNTHETIC.TEST_IDENTITIES", "2", "DATASETS.SYNTHETIC.TEST_IMAGES", "6"]
    cfg = load("configs/demo/vit_svllreid.yml", words)
    benchmark = rendered_benchmark(cfg)
    model = make_model(cfg, benchmark)
    with torch.no_grad():
        for head in model.heads:
            head.neck.running_mean.normal_()
            head.neck.running_var.uniform_(0.5, 2)
    path = root / "model.pth"
    save_checkpoint(path, {"model": model.state_dict(), "config": to_dict(cfg), "architecture": model.architecture})
    return path, cfg, benchmark
