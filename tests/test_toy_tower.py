"""A tower in one file: this one, with its row, goes through the baseline's training, checkpoint and test."""

import json

import pytest
import torch
from builders import SMALL_TRAINING, benchmark, data_of, image_batch, new_run
from torch import nn

import test_svllreid
import train_svllreid
from configs import load
from model import build
from model.build import load_model, make_model
from model.heads import SideEmbedding
from model.towers import TOWERS, Tower, has_batch_norm
from processor.build.network import make_network
from processor.image_stage import TERMS, ImageStage, Term
from utils.checkpoint import read_checkpoint
from utils.errors import WeightsError
from utils.records import ImageFeatures

BASELINE = "configs/demo/vit_base.yml"


class Toy(nn.Module):
    """Three layers, without a projected feature."""

    dims = (8, 16, 0)

    def __init__(self, visual, image_size, stride, side):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 8, stride=stride), nn.Conv2d(8, 16, 3, padding=1)
        self.norm, self.side = nn.BatchNorm2d(8), side

    def forward(self, images, side=None):
        maps = self.norm(self.first(images)).relu()
        last = self.second(maps).mean(dim=(2, 3))
        if None not in (side, self.side):
            last = last + self.side(side)
        return ImageFeatures(maps.mean(dim=(2, 3)), last, None)

    def set_grad_checkpointing(self, enable=True):
        assert not enable, "as timm says it"


class Smallest(nn.Module):
    """One feature, and nothing that a tower need not have."""

    dims = (0, 5, 0)

    def __init__(self, *_):
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, images, side=None):
        return ImageFeatures(None, self.layer(images.mean(dim=(2, 3))), None)


ROWS = {"toy": Tower(Toy, patch=8, side_width=lambda visual: 16), "smallest": Tower(Smallest, stride=(1, 1))}
CAMERAS = ["MODEL.SIE_CAMERA", "True"]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The rows, on a machine where CLIP must not be asked for anything."""
    for name, row in ROWS.items():
        monkeypatch.setitem(TOWERS, name, row)
    for name in ("load_clip", "build_clip"):
        monkeypatch.setattr(build, name, lambda *_: pytest.fail("a tower without text needs no CLIP"))


@pytest.mark.parametrize(
    ("name", "words", "width"),
    [
        ("toy", [*CAMERAS, "SOLVER.STAGE2.SSL_LOSS_WEIGHT", "0.5"], 16),
        ("smallest", ["MODEL.SIE_CAMERA", "False", "TEST.NECK_FEAT", "before"], 5),
    ],
)
def test_a_tower_is_trained_saved_resumed_and_tested(tmp_path, name, words, width):
    run = [
        *("DATASETS.ROOT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu", "MODEL.NAME", name),
        *(*SMALL_TRAINING, "OUTPUT_DIR", str(tmp_path / "run"), *words),
    ]
    train_svllreid.main(["--config_file", BASELINE, *run])
    train_svllreid.main(["--config_file", BASELINE, *run, "SOLVER.STAGE2.MAX_EPOCHS", "2"])  # resumes
    first, last = tmp_path / "run" / f"{name}_1.pth", tmp_path / "run" / f"{name}_2.pth"
    start, end = (read_checkpoint(path)["model"] for path in (first, last))
    moved = {key for key in start if not torch.equal(start[key], end[key])}
    assert {key for key in start if key.startswith("image.") and key.endswith("weight")} <= moved

    test_svllreid.main(["TEST.WEIGHT", str(last)])
    *_, trained, tested = json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"]
    assert (trained["when"], tested["when"]) == ("end", "test") and trained["mAP"] == tested["mAP"]
    assert load_model(last).eval().embed(torch.randn(2, 3, 64, 32)).shape == (2, width)

    other = ["OUTPUT_DIR", str(tmp_path / "other"), "SOLVER.STAGE2.MAX_EPOCHS", "1", "MODEL.INIT_FROM", str(last)]
    train_svllreid.main(["--config_file", BASELINE, *run, *other])
    assert "MODEL.INIT_FROM: loaded: image tower" in (tmp_path / "other" / "train_log.txt").read_text()


@pytest.mark.parametrize(
    ("name", "words", "key"),
    [
        ("toy", ["PROCESSOR.STAGES", "('prompt', 'image')", "MODEL.I2T_LOSS_WEIGHT", "1"], "MODEL.NAME toy"),
        ("toy", ["MODEL.STRIDE_SIZE", "(9, 6)"], "MODEL.STRIDE_SIZE"),
        ("toy", ["INPUT.SIZE_TEST", "(7, 32)"], "INPUT.SIZE_TEST"),
        ("smallest", CAMERAS, "MODEL.SIE_CAMERA"),
    ],
)
def test_what_a_tower_has_not_is_refused(name, words, key):
    with pytest.raises(WeightsError, match=key):
        make_model(load(BASELINE, ["MODEL.NAME", name, "MODEL.SIE_CAMERA", "False", *words]), benchmark())


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("smallest", "LAYER_DECAY", "0.5"),
        ("smallest", "GRAD_CHECKPOINTING", "True"),
        ("toy", "GRAD_CHECKPOINTING", "True"),
    ],
)
def test_abilities_that_a_tower_has_not_are_refused_before_anything_is_trained(tmp_path, name, key, value):
    words = ["MODEL.NAME", name, "MODEL.SIE_CAMERA", "False", f"SOLVER.STAGE2.{key}", value]
    with pytest.raises(WeightsError, match=f"SOLVER.STAGE2.{key}: invalid value {value}"):
        make_network(new_run(load(BASELINE, words), tmp_path), data_of(benchmark()))


def test_a_tower_gets_its_table_of_side_information():
    model = make_model(load(BASELINE, ["MODEL.NAME", "toy"]), benchmark(cams=3))
    assert isinstance(model.image.side, SideEmbedding) and model.image.side.table.shape == (3, 16)


def test_the_losses_take_the_features_that_there_are():
    model = make_model(load(BASELINE, ["MODEL.NAME", "toy"]), benchmark(pids=3, cams=2)).train()
    assert has_batch_norm(model.image) and [head.neck.num_features for head in model.heads] == [16]
    stage = ImageStage(model, weights={"identity": 1.0, "triplet": 1.0}, text_features=None)
    batch = image_batch([0, 0, 1, 1, 2, 2], views=False)
    terms = stage(batch).terms
    penultimate, last, _ = model.encode_image(batch.images, batch.side)
    torch.testing.assert_close(
        terms["triplet"], stage.triplet(penultimate, batch.pids) + stage.triplet(last, batch.pids)
    )
    torch.testing.assert_close(
        terms["identity"], stage.identity(model.classify(ImageFeatures(None, last, None)), batch.pids)
    )


def test_a_loss_is_a_row(monkeypatch):
    row = Term(lambda stage, features, pids: (features.last.square().mean(), None), "MODEL.TRIPLET_LOSS_WEIGHT")
    monkeypatch.setitem(TERMS, "small", row)
    model = make_model(load(BASELINE, ["MODEL.NAME", "toy"]), benchmark()).eval()
    stage = ImageStage(model, weights={"identity": 0.0, "small": 2.0}, text_features=None)
    batch = image_batch([0, 1], views=False)
    losses = stage(batch)
    expected = model.encode_image(batch.images, batch.side).last.square().mean()
    assert losses.terms.keys() == {"small"} and torch.equal(losses.total, 2 * expected)
