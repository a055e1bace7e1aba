"""Small things of the real kinds: a CLIP of a few thousand parameters, networks, batches, benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from datasets.synthetic import Parameters
from model.clip import ResNetTower, TextTower, ViTTower
from model.heads import Projector, SideEmbedding
from model.prompts import PromptLearner
from model.svllreid import SvllReid
from processor.build.data import Data
from processor.run import Run
from processor.stage_run import StageRun
from tools.demo.render import render
from tools.demo.sets import PEOPLE, Kind, RenderedSet
from utils.fingerprint import Watch
from utils.metrics import same_camera
from utils.records import Batch, Benchmark, Sample, SideInfo, Trial
from utils.stopping import Stopping

TEMPLATE = "A photo of a {} person."
IMAGE, PATCH = (32, 16), 8
SMALL = "ViT-Small-Test"
SMALL_TRAINING = (  # settings of one of a second, on rendered people
    *("DATASETS.SYNTHETIC.TRAIN_IDENTITIES", "8", "DATASETS.SYNTHETIC.TRAIN_IMAGES", "4"),
    *("DATASETS.SYNTHETIC.TEST_IDENTITIES", "4", "DATASETS.SYNTHETIC.TEST_IMAGES", "6"),
    *("SOLVER.STAGE2.IMS_PER_BATCH", "16", "SOLVER.STAGE2.MAX_EPOCHS", "1"),
)


def small_config(
    *, image_size: int | tuple[int, int] = IMAGE, patch: int = PATCH, layers: int = 3, context: int = 77
) -> dict:
    """A CLIP of open_clip's form with CLIP's real vocabulary."""
    return {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": image_size,
            "patch_size": patch,
            "width": 32,
            "layers": layers,
            "head_width": 16,
        },
        "text_cfg": {"context_length": context, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }


def small_clip(*, quick_gelu: bool = True, seed: int = 0, **config) -> open_clip.CLIP:
    """Random weights of which every one counts: gains are not 1, shifts are not 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = open_clip.CLIP(**small_config(**config), quick_gelu=quick_gelu)
        with torch.no_grad():
            for parameter in clip.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
            clip.token_embedding.weight.mul_(20)  # as large as the positions, or the words would hardly count
    return clip.eval()


def small_model(*, pids: int = 5, language: bool = True, cams: int = 0) -> SvllReid:
    """A whole network at stride 6 (patches of 8 overlap); `cams` above 0 adds side information."""
    clip = small_clip()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        side = SideEmbedding(cams, 1, 32, camera=True, view=False, scale=1.0) if cams else None
        prompts = PromptLearner(pids, TEMPLATE, clip.token_embedding, open_clip.tokenize)
        return SvllReid(
            ViTTower(clip.visual, IMAGE, (6, 6), side),
            pids,
            text=TextTower(clip),
            prompts=prompts,
            image_projector=Projector(32, 20, 10).reset_as_published(),
            text_projector=Projector(24, 20, 10) if language else None,
        )


def small_resnet(*, image_size: int = 32, layers: tuple[int, ...] = (1, 2, 1, 2)) -> open_clip.CLIP:
    """A CLIP with a ResNet of a few thousand parameters, of which every one counts."""
    vision = {"image_size": image_size, "layers": layers, "width": 8, "head_width": 64, "patch_size": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        clip = open_clip.CLIP(24, vision, small_config()["text_cfg"], quick_gelu=True)
        with torch.no_grad():
            for parameter in clip.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
            for module in clip.visual.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.normal_(std=0.2)
                    module.running_var.uniform_(0.5, 2)
    return clip.eval()


def small_resnet_model(*, pids: int = 5) -> SvllReid:
    """A whole network with a ResNet tower."""
    clip = small_resnet()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return SvllReid(
            ResNetTower(clip.visual, IMAGE),
            pids,
            text=TextTower(clip),
            prompts=PromptLearner(pids, TEMPLATE, clip.token_embedding, open_clip.tokenize),
            image_projector=Projector(256, 20, 10).reset_as_published(),
            text_projector=Projector(24, 20, 10),
        )


def side_info(camids: Sequence[int] | torch.Tensor, viewids: Sequence[int] | torch.Tensor | None = None) -> SideInfo:
    """Of visible images."""
    camids = torch.as_tensor(camids)
    zeros = torch.zeros_like(camids)
    return SideInfo(camids, zeros if viewids is None else torch.as_tensor(viewids), zeros)


def image_batch(pids: list[int], *, cams: list[int] | None = None, views: bool = True, seed: int = 0) -> Batch:
    """Random images of these identities."""
    generator = torch.Generator().manual_seed(seed)
    n = len(pids)
    return Batch(
        images=torch.randn(n, 3, *IMAGE, generator=generator),
        pids=torch.tensor(pids),
        side=side_info(cams or [0] * n),
        indices=torch.arange(n),
        views=torch.randn(2, n, 3, *IMAGE, generator=generator) if views else None,
    )


def benchmark(*, pids: int = 3, cams: int = 2, views: int = 1, **changes) -> Benchmark:
    """A benchmark without files: an image of every identity from every camera, in training and in the test."""
    train = tuple(
        Sample(f"train/{pid}_{cam}.jpg", pid, cam, viewid=(pid + cam) % views)
        for pid in range(pids)
        for cam in range(cams)
    )
    query = tuple(sample._replace(path=sample.path.replace("train", "query")) for sample in train if sample.camid == 0)
    gallery = tuple(sample._replace(path=sample.path.replace("train", "test")) for sample in train if sample.camid > 0)
    facts = {"name": "toy", "template": TEMPLATE, "train": train, "trials": (Trial(query, gallery),)}
    return Benchmark(**{**facts, "ignored": same_camera, **changes})


def _under(prefix: str):
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
# Ways in which programs write a state dict.
WRAPPINGS = {
    "state dict": lambda state: state,
    **{prefix: _under(prefix) for prefix in ("module.", "module.module.", "_orig_mod.", "module._orig_mod.", "model.")},
    "within": lambda state: {name.replace(".", "._orig_mod.", 1): value for name, value in state.items()},
    "state_dict": lambda state: {"epoch": 3, "name": "x", "state_dict": _under("module.")(state)},
    "state_dict_ema": lambda state: {"state_dict_ema": state, "rng": torch.zeros(5), "optimizer": OPTIMIZER},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": OPTIMIZER, "loss": 0.5},
    "net": lambda state: {"net": state, "centers": {"weight": torch.zeros(3, 4)}, "loss": torch.tensor(0.5)},
    "model": lambda state: {"model": {"network": state}, "scheduler": {"last_epoch": 3}, "iteration": 7},
    "Lightning": lambda state: {"state_dict": _under("model.net.")(state), "callbacks": {}, "loops": {"fit_loop": {}}},
}


GONE = object()
# What an edit or damage may leave where a field was.
STRANGE = (
    *(GONE, None, True, "", "x", "{:9999999999}", "hf-hub:x/y", -1, 0, 10**9, 2**70, 10**500, 0.5, 1e9, math.nan),
    *(math.inf, [], {}, [0, 0], [-1, -1], [None], {"x": 1}),
)


def places(tree: Any, at: tuple = ()) -> Iterator[tuple]:
    """Where everything is in nested dictionaries and lists, of which the first two elements are enough."""
    inner = tree if isinstance(tree, dict) else range(min(2, len(tree))) if isinstance(tree, (list, tuple)) else ()
    for key in inner:
        yield (*at, key)
        yield from places(tree[key], (*at, key))


def with_strange(tree: Any, place: tuple, value: Any) -> Any:
    """A copy of `tree` with another value at a place, or without it."""
    key, *rest = place
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if value is GONE and not rest:
        del copy[key]
    else:
        copy[key] = with_strange(copy[key], tuple(rest), value) if rest else value
    return tuple(copy) if isinstance(tree, tuple) else copy


def stage_run(**options: Any) -> StageRun:
    """A StageRun; options that are methods of it replace them."""
    methods = {name: options.pop(name) for name in list(options) if callable(getattr(StageRun, name, None))}
    run = StageRun(torch.device("cpu"), **options)
    for name, method in methods.items():
        setattr(run, name, method)
    return run


def new_run(cfg: Any, path: Path, *, stopping: Stopping | None = None) -> Run:
    """A run that has begun to write to `path`."""
    run = Run(cfg, path, torch.device("cpu"), stopping or Stopping())
    run.fingerprint = {"data": "x"}
    run.begin()
    return run


def data_of(benchmark: Benchmark) -> Data:
    """What a run trains on, without warnings or watched files."""
    return Data(benchmark, [], Watch("training images"), Watch("test images"))


def write_synthetic(root: Path, *, kind: Kind = PEOPLE, progress: bool | None = None, **parameters: float) -> Path:
    """`render` with the fields of `Parameters` by name."""
    return render(root, RenderedSet(kind, Parameters(**parameters)), progress=progress)


class TensorSizes(TorchDispatchMode):
    """Within `with`, how many numbers the largest tensor has that PyTorch makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple) else (found,):
            if isinstance(each, torch.Tensor):
                self.largest = max(self.largest, each.numel())
        return found
