"""Checkpoints: written whole or not at all, read without running anything, rebuilt from their own description."""

from pathlib import Path

import pytest
import torch
from builders import SMALL, benchmark, image_batch, side_info
from torch import nn

from configs import load, to_dict
from model.build import SETTLED, load_model, make_model, settle_architecture, settle_pixels
from model.weights import Weights
from utils import checkpoint
from utils.checkpoint import FORMAT, load_strictly, read_checkpoint, read_tensors, save_checkpoint
from utils.errors import WeightsError
from utils.records import Sample, Trial

CONTENTS = {
    "model": {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(7), "half": torch.ones(2).half()},
    "stage": "image",
    "epoch": 3,
    "config": {"SOLVER": {"SEED": 1, "STEPS": [3, 4]}, "OUTPUT_DIR": "runs/x"},
    "architecture": {"name": "ViT", "sie_camera": True, "sie_scale": 1.0, "template": None},
}


def assert_same(a, b) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    else:
        assert (type(a), a) == (type(b), b)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------------------- writing


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "ViT_3.pth"
    save_checkpoint(path, CONTENTS)
    assert_same(read_checkpoint(path), {"format": FORMAT, **CONTENTS})
    assert_same(read_checkpoint(str(path)), read_tensors(path))
    assert names(tmp_path) == ["ViT_3.pth"]


class Refuses:
    """Fails half-way through writing."""

    def __init__(self, error: BaseException):
        self.error = error

    def __call__(self, contents, file):
        file.write(b"half a checkpoint")
        raise self.error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("x")])
def test_a_failure_while_writing_leaves_what_was_there(tmp_path, monkeypatch, error):
    path = tmp_path / "ViT_3.pth"
    save_checkpoint(path, CONTENTS)
    before = path.read_bytes()
    monkeypatch.setattr(checkpoint.torch, "save", Refuses(error))
    for target in (path, tmp_path / "new.pth"):
        with pytest.raises(type(error)):
            save_checkpoint(target, {**CONTENTS, "epoch": 4})
    assert names(tmp_path) == ["ViT_3.pth"] and path.read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_numbers_that_are_not_finite_are_never_written(tmp_path, value, dtype):
    path = tmp_path / "ViT_3.pth"
    save_checkpoint(path, CONTENTS)
    before = path.read_bytes()
    spoilt = torch.zeros(3, 3, dtype=dtype)
    spoilt[1, 2] = value
    with pytest.raises(WeightsError, match=r"ViT_3\.pth: not written: head\.weight"):
        save_checkpoint(path, {**CONTENTS, "model": {**CONTENTS["model"], "head.weight": spoilt}})
    assert names(tmp_path) == ["ViT_3.pth"] and path.read_bytes() == before


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("contents", [{"classifier.weight": torch.zeros(1)}, {**CONTENTS, "format": "svllreid-0"}])
def test_files_that_are_no_checkpoints(tmp_path, contents):
    torch.save(contents, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=rf"x\.pth: .*{FORMAT}"):
        read_checkpoint(tmp_path / "x.pth")


# ----------------------------------------------------------------------------------------------------- strict loading


def test_strict_loading_copies_everything_or_nothing():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = {name: torch.ones_like(value) for name, value in module.state_dict().items()}
    load_strictly(module, state, source="x.pth", name="RN50")
    assert all((value == 1).all() for value in module.state_dict().values())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    bad = {name: value + 1 for name, value in state.items() if name != "1.running_mean"}
    bad |= {"0.bias": torch.zeros(1), "more": torch.zeros(1)}
    named = r"x\.pth: .*missing \(1\.running_mean\).*unexpected \(more\).*0\.bias is \[1\], not \[2\]; is it a RN50"
    with pytest.raises(WeightsError, match=named):
        load_strictly(module, bad, source="x.pth", name="RN50")
    with pytest.raises(WeightsError, match=r"0\.weight is of torch\.int8, not torch\.float32"):  # quantised
        load_strictly(module, state | {"0.weight": state["0.weight"].to(torch.int8)}, source="x.pth", name="RN50")
    assert_same(dict(module.state_dict()), before)


# ----------------------------------------------------------------------------------------------------- whole networks


def settings(*overrides: str):
    return load(
        None,
        [
            *("MODEL.NAME", SMALL, "MODEL.PRETRAIN", "none", "MODEL.STRIDE_SIZE", "(6, 6)"),
            *("INPUT.SIZE_TRAIN", "(32, 16)", "INPUT.SIZE_TEST", "(32, 16)"),
            *("MODEL.SSL_HIDDEN", "8", "MODEL.SSL_OUT", "4", *overrides),
        ],
    )


PARTS = {"text", "prompts", "image_projector", "text_projector"}
NO_LANGUAGE, NO_VISION = ["SOLVER.STAGE1.SSL_LOSS_WEIGHT", "0"], ["SOLVER.STAGE2.SSL_LOSS_WEIGHT", "0"]
SIDE = ["MODEL.SIE_CAMERA", "True", "MODEL.SIE_VIEW", "True", "MODEL.SIE_COE", "1.5"]
VARIANTS = {  # settings, parts, rows of side information
    "everything": (SIDE, PARTS, 6),
    "cameras": (["MODEL.SIE_CAMERA", "True"], PARTS, 3),
    "viewpoints": (["MODEL.SIE_VIEW", "True"], PARTS, 2),
    "no self-supervision": ([*NO_LANGUAGE, *NO_VISION], {"text", "prompts"}, None),
    "language only": ([*NO_VISION, "MODEL.ACTIVATION", "gelu"], PARTS - {"image_projector"}, None),
    "vision only": (NO_LANGUAGE, PARTS - {"text_projector"}, None),
    "baseline": ([*NO_VISION, "PROCESSOR.STAGES", "image", "MODEL.I2T_LOSS_WEIGHT", "0"], set(), None),
    # What the image stage needs starts the same, whichever process runs it.
    "first stage": (["PROCESSOR.STAGES", "prompt"], PARTS, None),
}


def saved(path: Path, cfg, **changes) -> nn.Module:
    model = make_model(cfg, benchmark(pids=4, cams=3, views=2))
    with torch.no_grad():
        for value in model.state_dict().values():  # nothing is what a fresh network has
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    contents = {"model": model.state_dict(), "config": to_dict(cfg), "architecture": {**model.architecture, **changes}}
    save_checkpoint(path, contents)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_network_comes_back_from_its_file_alone(tmp_path, small_architecture, variant):
    overrides, parts, rows = VARIANTS[variant]
    cfg = settings(*overrides)
    model = saved(tmp_path / "x.pth", cfg)
    again = load_model(tmp_path / "x.pth").eval()
    assert_same(dict(again.state_dict()), dict(model.state_dict()))
    assert again.architecture == model.architecture
    batch = image_batch([0, 1, 2])
    side = side_info([0, 2, -1], [1, 0, 1])
    for neck in (False, True):
        assert torch.equal(again.embed(batch.images, side, neck=neck), model.embed(batch.images, side, neck=neck))
    assert {name for name in PARTS if getattr(again, name) is not None} == parts
    if again.text is not None:
        pids = torch.tensor([3, 0])
        assert torch.equal(again.encode_text(pids), model.encode_text(pids))
        assert again.prompts.end == model.prompts.end == 11
    if again.image_projector is not None:
        features = torch.randn(2, 32)
        assert torch.equal(again.image_projector(features), model.image_projector(features))
    assert (again.image.side is None) == (rows is None)
    assert rows is None or again.image.side.table.shape == (rows, 32)
    assert not any("token_embedding" in name for name in again.state_dict())


def test_the_network_is_sized_for_all_splits(small_architecture):
    toy = benchmark(pids=4, cams=2)
    far = Sample("far.jpg", 900, 6, viewid=3)  # a camera, a viewpoint and an identity that training lacks
    toy = benchmark(pids=4, cams=2, trials=(Trial(toy.trials[0].query, (*toy.trials[0].gallery, far)),))
    model = make_model(settings("MODEL.SIE_CAMERA", "True", "MODEL.SIE_VIEW", "True"), toy)
    assert model.image.side.table.shape == (7 * 4, 32)
    assert [head.classifier.out_features for head in model.heads] == [4, 4]
    assert model.prompts.context.shape[0] == 4


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"num_pids": 5}, "classifier.weight is [4, 32], not [5, 32]"),
        ({"language_ssl": False}, "text projector: 16 unexpected"),
        ({"image_size": [64, 32]}, "positional_embedding is [11, 32], not [51, 32] (10 x 5); INPUT.SIZE_TRAIN"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, small_architecture, changes, word):
    saved(tmp_path / "x.pth", settings(), **changes)
    with pytest.raises(WeightsError, match=r"x\.pth: .*contradicts its own description") as caught:
        load_model(tmp_path / "x.pth")
    assert word in str(caught.value)


def test_a_file_without_its_description_is_refused(tmp_path, small_architecture):
    saved(tmp_path / "x.pth", settings())
    whole = read_checkpoint(tmp_path / "x.pth")
    lacking = {name: value for name, value in whole["architecture"].items() if name != "sie_camera"}
    for contents, fault in (
        ({"model": whole["model"]}, "architecture, config"),
        ({**whole, "architecture": lacking}, r"architecture\.sie_camera"),
    ):
        save_checkpoint(tmp_path / "y.pth", contents)
        with pytest.raises(WeightsError, match=rf"y\.pth: .*{fault}"):
            load_model(tmp_path / "y.pth")


# ------------------------------------------------------------------------------------------------------------ settling


def of(architecture: dict) -> Weights:
    return Weights("x.pth", {}, architecture, {})


def test_what_the_file_says_wins_and_every_difference_is_told(small_architecture):
    trained = settle_pixels(settings("MODEL.SIE_CAMERA", "True", "MODEL.SIE_COE", "1"))
    architecture = make_model(trained, benchmark()).architecture
    here = ["INPUT.SIZE_TEST", "(64, 32)", "MODEL.NAME", SMALL, "SOLVER.SEED", "8", "TEST.NECK_FEAT", "before"]
    asked = load(None, here)
    settled, _, differences = settle_architecture(asked, of(architecture))
    told = {"MODEL.STRIDE_SIZE", "MODEL.SIE_CAMERA", "MODEL.SIE_COE", "INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST"}
    assert {line.partition(":")[0] for line in differences} == told
    line = next(line for line in differences if "SIZE_TEST" in line)
    assert "[32, 16]" in line and "[64, 32]" in line and "not used" in line
    for key in SETTLED.values():
        block, leaf = key.split(".")
        expected = "quick_gelu" if leaf == "ACTIVATION" else trained[block][leaf]
        assert (settled[block][leaf], type(settled[block][leaf])) == (expected, type(expected))
    assert settled.is_frozen() and asked.is_frozen()
    assert asked.INPUT.SIZE_TEST == (64, 32) and asked.MODEL.ACTIVATION == "auto"  # untouched
    assert (settled.SOLVER.SEED, settled.TEST.NECK_FEAT) == (8, "before")  # not the network's business


def test_no_difference_no_line(small_architecture):
    cfg = settings()
    architecture = make_model(cfg, benchmark()).architecture
    settled, same, differences = settle_architecture(cfg, of(architecture))
    assert differences == [] and same == architecture
    assert settle_architecture(settled, of(architecture)) == (settled, architecture, [])
    _, _, differences = settle_architecture(settings("MODEL.ACTIVATION", "gelu"), of(architecture))
    assert [line.partition(":")[0] for line in differences] == ["MODEL.ACTIVATION"]
