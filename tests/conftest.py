"""What every test finds."""

import json
from collections.abc import Iterator

import open_clip
import pytest
import torch
from builders import SMALL, small_config


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
