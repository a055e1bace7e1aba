"""What is not imported before it is used, so that a run begins soon."""

import subprocess
import sys
from pathlib import Path

import pytest
from builders import small_clip, small_resnet

from model.clip import ResNetTower, ViTTower
from model.heads import SideEmbedding
from model.shapes import shapes_only

ROOT = Path(__file__).resolve().parent.parent
# Clustering, the assignment of clusters, plots, figures, the Hub, searching and indices.
LATER = ("sklearn", "scipy", "matplotlib", "pandas", "faiss", "qdrant_client", "onnx", "onnxruntime", "gradio")
COMPILER = "torch._dynamo"


def loaded(program: str) -> list[str]:
    """Names of the modules that are there after a program in a process of its own."""
    program = f"{program}\nimport sys; print(*sorted(sys.modules))"
    there = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return there.stdout.split()


@pytest.mark.parametrize("module", ["train_svllreid", "test_svllreid"])
def test_what_a_run_with_a_clip_does_not_use_is_not_imported(module):
    there = loaded(f"import {module}")
    assert {"torch", "open_clip", "torchvision", "timm"} <= set(there)
    assert not {*LATER, COMPILER} & set(there)


def test_what_was_imported_first_is_not_searched_for_garbage():
    there = loaded(
        "import gc\n"
        "from utils.command import answer_early, run_script\n"
        "answer_early(lambda: None)\n"
        "imported, off = [object], not gc.isenabled()\n"
        "run_script(lambda: print(off, gc.isenabled(), any(each is imported for each in gc.get_objects())))"
    )
    assert there[:3] == ["True", "True", "False"]


ASKS = {
    "function": "from torch._dynamo.utils import counters",
    "package": "import torch._dynamo; assert torch._dynamo.config",
    "module": "import torch._dynamo.config; assert torch._dynamo.utils.counters is not None",
    "decorator": "f = torch.compiler.disable(lambda: 1, reason='tested'); assert f() == 1",
}


@pytest.mark.parametrize("ask", ASKS)
def test_who_needs_the_compiler_gets_it(ask):
    there = loaded(
        "import model, torch\n"
        f"with model._without_compiler():\n    {ASKS[ask]}\n"
        "assert torch.compile(lambda x: x + 1, backend='aot_eager')(torch.ones(1)).item() == 2\n"
        "from torch._dynamo.utils import is_compile_supported as asked\n"
        "from torchvision.ops.roi_align import is_compile_supported as later\n"
        "assert later('cpu') == asked('cpu') and later('meta') == asked('meta')"
    )
    assert COMPILER in there


def test_who_calls_the_compiler_while_others_are_imported_gets_it():
    assert COMPILER in loaded(
        "import model\n"
        "with model._without_compiler():\n"
        "    from torch._dynamo.utils import is_compile_supported as asked\n"
        "    asked('cpu')"
    )


def test_pytorch_may_have_another_way_to_load_the_compiler_later():
    there = loaded("import torch._dynamo; del torch._disable_dynamo; import model")
    assert {"open_clip", "torchvision", "timm"} <= set(there)


@pytest.mark.parametrize("name", ["ViT-B-16", "RN50"])
def test_the_compiler_is_not_loaded_for_shapes(name):
    assert COMPILER not in loaded(
        "from model.heads import SideEmbedding\n"
        "from model.pretrained import build_clip\n"
        "from model.shapes import shapes_only\n"
        "from model.towers import make_tower\n"
        "with shapes_only():\n"
        f"    visual = build_clip({name!r}, 'quick_gelu').visual\n"
        "    side = lambda width: SideEmbedding(6, 1, width, camera=True, view=False, scale=3.0)\n"
        f"    make_tower({name!r}, (256, 128), (16, 16), side=side, visual=visual)"
    )


def test_networks_of_shapes_have_those_of_networks():
    def shapes() -> list[dict]:
        side = SideEmbedding(3, 0, 64, camera=True, view=False, scale=3.0)
        towers = ViTTower(small_clip().visual, (48, 32), (6, 6), side), ResNetTower(small_resnet().visual, (64, 32))
        return [{name: value.shape for name, value in tower.state_dict().items()} for tower in towers]

    with shapes_only():
        there = shapes()
    assert there == shapes()
