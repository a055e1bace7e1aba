"""What the page says of pictures, without a browser."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from processor.inference import Embedder
from tools.app import __main__ as app
from tools.app.answers import Answers, overlay
from tools.app.markup import of_comparison, of_search
from tools.inference import embed_files
from tools.verify import Known
from utils.errors import UserError


def test_pictures_are_compared_and_found(trained):
    weight, _, benchmark = trained
    paths = [sample.path for sample in benchmark.trials[0].gallery]
    embedder = Embedder.from_checkpoint(weight, device="cpu")
    gallery, _ = embed_files(embedder, paths)
    cosines = gallery.features @ gallery.features[1]
    limit = float(cosines.sort(descending=True).values[2])
    rate = {"value": 0.0, "low": None, "high": None}
    calibration = {"data_set": "<x>", "protocol": "all", "pairs": {"same": 1, "different": 1}}
    known = Known(Path("x"), "eer", calibration, {"threshold": limit, "fpr": rate, "fnr": rate})
    answers = Answers(embedder, str(weight), known, gallery)

    found = answers.search(paths[1], 3, places=True)
    assert [one.hit.name for one in found.shown] == [paths[i] for i in cosines.argsort(descending=True)[:3]]
    assert len(found.pictures) == 2 and of_search(found).count("<img") == 5
    for number, path in enumerate(paths):
        compared = answers.compare(path, paths[1])
        assert abs(compared.cosine - float(cosines[number])) < 1e-5
        if abs(compared.cosine - limit) > 1e-5:
            assert compared.decision == ("same" if compared.cosine > limit else "different")
    assert len(answers.compare(*paths[:2], places=True).pictures) == 4
    assert "&lt;x&gt;" in of_comparison(compared) and "<x>" not in of_comparison(compared)
    assert str(weight.parent) not in answers.card and answers.embedder.digest in answers.card

    unknown = Answers(embedder, str(weight), Known(Path("x"), "eer")).compare(*paths[:2])
    assert unknown.decision is None and "no threshold is known" in of_comparison(unknown)


def test_a_gallery_is_embedded_once(trained, tmp_path, monkeypatch):
    weight, _, benchmark = trained
    paths = [sample.path for sample in benchmark.trials[0].gallery]
    monkeypatch.chdir(tmp_path)
    embedder = Embedder.from_checkpoint(weight, device="cpu")
    words = ["--weight", str(weight), "--gallery", str(Path(paths[0]).parent)]
    first = app.embed_gallery(embedder, paths, app.read_command_line(words))
    assert first.names == paths and (tmp_path / "features.sqlite").is_file()
    monkeypatch.setattr(
        Embedder, "__call__", lambda self, images, skip: torch.zeros(len(images), first.features.shape[1])
    )
    again = app.embed_gallery(embedder, paths, app.read_command_line(words))
    assert torch.equal(first.features, again.features)
    assert not app.embed_gallery(embedder, paths, app.read_command_line([*words, "--no-cache"])).features.any()
    with pytest.raises(UserError, match="--cache"):
        app.read_command_line([*words, "--cache", "features.npz"])


def test_an_overlay_colours_what_is_high():
    grey = Image.new("RGB", (64, 32), (128, 128, 128))
    shown = overlay(grey, torch.tensor([[1.0, -1.0]]))
    left, right = shown.getpixel((0, 0)), shown.getpixel((grey.width - 1, 0))
    assert left[0] > left[2] + 50 and right == (128, 128, 128)
    assert overlay(grey, torch.zeros(1, 2)).getpixel((0, 0)) == (128, 128, 128)
