"""What is not imported before it is used, so that a run begins soon."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Clustering, the assignment of clusters, plots, figures, the Hub, searching and indices.
LATER = ("sklearn", "scipy", "matplotlib", "pandas", "faiss", "qdrant_client", "onnx", "onnxruntime", "gradio")


@pytest.mark.parametrize("module", ["train_svllreid", "test_svllreid"])
def test_what_a_run_with_a_clip_does_not_use_is_not_imported(module):
    program = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    there = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = there.stdout.split()
    assert {"torch", "open_clip"} <= set(loaded) and not set(LATER) & set(loaded)
