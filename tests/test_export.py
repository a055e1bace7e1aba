"""Exported networks: ONNX files that agree with PyTorch, and files that trackers read."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from processor import export
from processor.inference import Embedder
from tools import export as tool
from utils.errors import UserError


@pytest.mark.slow
@pytest.mark.parametrize(("words", "tolerance"), [(["TEST.FLIP", "True"], 1e-5), (["--fp16"], 1e-3)])
def test_onnxruntime_gives_the_embedders_features_for_any_number_of_images(trained, tmp_path, words, tolerance):
    path, _, benchmark = trained
    images = [sample.path for sample in benchmark.trials[0].gallery][:3]
    file = tmp_path / "reid.onnx"
    tool.main(["--weight", str(path), "--output", str(file), *images, *words])
    embedder = Embedder.from_checkpoint(path, device="cpu", overrides=[word for word in words if word != "--fp16"])
    session = onnxruntime.InferenceSession(file, export.session_options(), providers=["CPUExecutionProvider"])
    (facts,) = session.get_modelmeta().custom_metadata_map.values()
    assert json.loads(facts)["digest"] == embedder.digest and json.loads(facts)["mean"] == list(embedder.transform.mean)
    for count in (1, 3):
        batch = torch.stack([embedder.prepare(image) for image in images[:count]]).numpy()
        (found,) = session.run(None, {"images": batch})
        assert found.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(found), embedder(images[:count]), atol=tolerance, rtol=0)
    with pytest.raises(UserError, match="exists already"):
        tool.main(["--weight", str(path), "--output", str(file)])


@pytest.mark.slow
def test_a_file_that_disagrees_is_not_written(trained, tmp_path, monkeypatch):
    embedder = Embedder.from_checkpoint(trained[0], device="cpu")
    monkeypatch.setattr(export, "AGREEMENT", 1.1)
    with pytest.raises(UserError, match="disagree"):
        export.export_onnx(embedder, tmp_path / "reid.onnx", [])
    assert not list(tmp_path.iterdir())


def test_a_library_that_is_missing_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime: .*requirements-extra\.txt"):
        tool.main(["--weight", str(trained[0]), "--output", str(tmp_path / "reid.onnx")])


class Tracker(nn.Module):
    """As trackers build it: CLIP-ReID's names."""

    def __init__(self, visual, dims, pids, rows):
        super().__init__()
        self.image_encoder = visual
        self.bottleneck, self.bottleneck_proj = (nn.BatchNorm1d(dim) for dim in dims)
        self.classifier, self.classifier_proj = (nn.Linear(dim, pids, bias=False) for dim in dims)
        self.cv_embed = nn.Parameter(torch.zeros(rows, dims[0]))


def test_a_tracker_reads_the_published_layout(trained, tmp_path):
    path, _, benchmark = trained
    tool.main(["--weight", str(path), "--output", str(tmp_path / "clip.pt"), "--layout", "published"])
    contents = torch.load(tmp_path / "clip.pt", weights_only=True)
    model = Embedder.from_checkpoint(path, device="cpu").model
    dims, rows = model.image.dims[1:], len(model.image.side.table)
    client = Tracker(model.image.visual, dims, benchmark.num_pids, rows)
    state = client.state_dict()
    for key in state:  # each of the client's own
        state[key].copy_(contents[key])
    assert torch.equal(client.bottleneck_proj.running_var, model.heads[1].neck.running_var)
    assert contents.keys() == state.keys()
