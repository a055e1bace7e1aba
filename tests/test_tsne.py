"""t-SNE of images and of prompts: which features, and the picture."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tools import tsne
from tools.tsne_figure import COLOURS, Cloud, tsne_figure
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.errors import UserError


@pytest.fixture
def arguments(trained, tmp_path):
    def read(*words):
        return tsne.read_command_line(["--weight", str(trained[0]), "--output", str(tmp_path / "t.png"), *words])

    return read


def test_images_are_those_of_the_identities(trained, arguments):
    benchmark = trained[2]
    features, pids, _, failed = tsne.image_features(arguments())
    samples = [sample for side in benchmark.trials[0] for sample in side]
    assert sorted(pids) == sorted(sample.pid for sample in samples) and failed == 0
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(samples)))
    only = samples[0].pid
    assert set(tsne.image_features(arguments("--pids", str(only)))[1]) == {only}
    with pytest.raises(UserError, match="--pids 99"):
        tsne.image_features(arguments("--pids", "99"))


def test_own_folders_have_names(trained, arguments, tmp_path):
    images = [sample.path for sample in trained[2].trials[0].gallery]
    for name, path in zip(("anna", "anna", "bert", "0007"), images, strict=False):
        (tmp_path / "own" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "own" / name)
    _, pids, names, _ = tsne.image_features(arguments(str(tmp_path / "own"), "--pids", "anna, 7"))
    assert sorted(names[pid] for pid in pids) == ["0007", "anna", "anna"]
    figure = tsne_figure([Cloud("x", torch.rand(3, 2), pids, names)])
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"0007", "anna"}
    with pytest.raises(UserError, match="--pids carla"):
        tsne.image_features(arguments(str(tmp_path / "own"), "--pids", "anna,carla"))


def test_copies_of_a_prompt_follow_it(trained, arguments, tmp_path):
    file = tmp_path / "prompts.pth"
    save_checkpoint(file, {**read_checkpoint(trained[0]), "prompts_trained": False})
    with pytest.raises(UserError, match="no trained prompts"):
        tsne.text_features(arguments("--kind", "text", "--weight", str(file)))
    words = ["--kind", "text", "--copies", "3"]
    features, pids, *_ = tsne.text_features(arguments(*words))
    assert pids == [0] * 4 + [1] * 4 + [2] * 4
    again = tsne.text_features(arguments(*words))[0]
    other = tsne.text_features(arguments(*words, "--seed", "1"))[0]
    assert torch.equal(features, again) and torch.equal(features[::4], other[::4])
    assert not torch.allclose(features[1], other[1], atol=1e-4) and not torch.allclose(features[0], features[1])


def test_two_networks_are_two_panels_of_one_picture(trained, tmp_path):
    words = ["--weight", str(trained[0]), "--output", str(tmp_path / "t.png")]
    assert tsne.main([*words, "--beside", str(trained[0])]) == 0
    wide = Image.open(tmp_path / "t.png").convert("RGB")
    assert tsne.main(words) == 0
    assert wide.width > 1.5 * Image.open(tmp_path / "t.png").width
    assert len(np.unique(np.asarray(wide).reshape(-1, 3), axis=0)) > 10


def test_identities_differ_in_colour_or_marker():
    count = 3 * len(COLOURS)
    figure = tsne_figure(
        [Cloud("x", torch.rand(count, 2), list(range(count)), {pid: str(pid) for pid in range(count)})]
    )
    marks = set()
    for points in figure.axes[0].collections:
        if len(points.get_offsets()):
            marks.add((points.get_facecolor().tobytes(), points.get_paths()[0].vertices.tobytes()))
    assert len(marks) == count
