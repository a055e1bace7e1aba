"""What every test finds."""

import json
from collections.abc import Iterator

import open_clip
import pytest
import torch
from builders import SMALL, small_config


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
