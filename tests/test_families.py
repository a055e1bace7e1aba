"""Published person towers: features as in their own programs, strict loading through both doors, what is refused."""

import argparse
import importlib
import json
import shlex
import types
from pathlib import Path

import pytest
import timm
import torch
from builders import SMALL_TRAINING, benchmark, side_info
from families_reference import SWIN, VIT, batch_norm_shapes, draw, linear_shapes, swin, swin_shapes, vit, vit_shapes
from PIL import Image
from safetensors.torch import save_file

import test_svllreid
import train_svllreid
from configs import load
from model.build import load_model, make_model, settle_pixels
from model.families import FAMILIES, fill
from model.towers import make_tower
from model.weights import read_weights
from processor.inference import Embedder
from tools import convert_checkpoint, release
from utils.checkpoint import read_checkpoint, read_tensors, save_checkpoint
from utils.errors import WeightsError

ROOT = Path(__file__).resolve().parent.parent
BASELINE = "configs/demo/vit_base.yml"
SIZE = (256, 128)
CLOSE = {"atol": 1e-7, "rtol": 0.0}  # in double precision; the semantic weight is single
SMALL_VIT = {"embed_dim": VIT["width"], "depth": VIT["depth"], "num_heads": VIT["heads"]}
SMALL_SWIN = {"embed_dim": SWIN["width"], "depths": SWIN["depths"], "num_heads": SWIN["heads"]}
VITS = [name for name, row in FAMILIES.items() if row.timm.startswith("vit")]
SWINS = [name for name in FAMILIES if name not in VITS]
HEADS = {**batch_norm_shapes("bottleneck", VIT["width"]), "classifier.weight": (5, VIT["width"])}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """All families in small, under their names."""
    for name, row in FAMILIES.items():
        less = SMALL_VIT if name in VITS else SMALL_SWIN
        classes = {"num_classes": 6} if name == "isr_swin_base" else {}
        monkeypatch.setitem(FAMILIES, name, row._replace(arguments={**row.arguments, **less, **classes}))


def window_of(name):
    return 8 if name.startswith("cion") else 7


def state_of(name):
    """A tower's tensors under the names of its program."""
    if name in VITS:
        return draw(vit_shapes(stem=name.endswith("_ics") or name.startswith("cion")))
    if name == "isr_swin_base":
        state = {f"model.{key}": value for key, value in draw(swin_shapes(7)).items()}
        return state | draw(linear_shapes("feat", 8 * SWIN["width"], 6))
    return draw(swin_shapes(window_of(name), mmdet=name.startswith("solider")))


def expected(name, state, images):
    if name in VITS:
        return vit(state, images)
    if name == "isr_swin_base":
        inner = {key.removeprefix("model."): value for key, value in state.items()}
        return swin(inner, images, 7, always_shift=False) @ state["feat.weight"].T + state["feat.bias"]
    return swin(state, images, window_of(name), mmdet=name.startswith("solider"))


def pretrained(name, state):
    """A file of pre-training as its program writes it."""
    # DINO's code wraps a teacher that has batch norm: the tower, and the head beside it.
    wrapper = "module." if "patch_embed.conv.7.weight" in state else ""
    extras = {f"{wrapper}head.mlp.0.weight": torch.randn(4, 4)}
    if name.startswith("isr"):
        mask = {
            "model.layers.0.blocks.1.attn_mask": torch.zeros(4, 49, 49),
            "model.head.weight": torch.zeros(1000, 128),
        }
        return {"state_dict": state | mask}
    if name.startswith("solider"):
        extras |= {f"backbone.norm{stage}.weight": torch.randn(4) for stage in range(3)}
        extras |= {"backbone.semantic_embed_w.3.weight": torch.randn(128, 2)}
        extras |= {"backbone.stages.0.blocks.0.attn.w_msa.relative_position_index": torch.zeros(49, 49)}
    teacher = {f"{wrapper}backbone.{key.removeprefix('backbone.')}": value for key, value in state.items()}
    student = {f"module.backbone.{key}": value + 1 for key, value in state.items()}
    return {"student": student, "teacher": teacher | extras, "epoch": 220, "args": argparse.Namespace(lr=0.1)}


def double(state):
    return {key: value.double() if value.is_floating_point() else value for key, value in state.items()}


SIZES = {name: [(256, 128), (224, 224)] if FAMILIES[name].size is None else [FAMILIES[name].size] for name in FAMILIES}


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in [*VITS, *SWINS] for size in SIZES[name]])
def test_features_are_those_of_its_own_program(tmp_path, name, size):
    state = state_of(name)
    if name in VITS and size != SIZE:
        state["pos_embed"] = torch.randn(1, 197, VIT["width"])
    torch.save(pretrained(name, state), tmp_path / "tower.pth")
    tower = make_tower(name, size, (16, 16), options={"semantic_weight": 0.2}).eval()
    said = fill(tower, name, str(tmp_path / "tower.pth"))
    assert said[-1].endswith(f"licence: {FAMILIES[name].licence}") and "dropped: " in said[0]
    images = torch.rand(2, 3, *size).double()
    found = tower.double()(images)
    torch.testing.assert_close(found.last, expected(name, double(state), images), **CLOSE)
    assert found.projected is None and tower.dims[1] == found.last.shape[1]


@pytest.mark.parametrize("name", ["personvit_base", "solider_swin_tiny", "cion_swin_tiny", "isr_swin_base"])
def test_features_are_those_of_timms_own_tower_where_both_agree(tmp_path, name):
    """ViTs always; Swins where the windows divide the map, and a semantic weight that changes nothing."""
    family, window = FAMILIES[name], window_of(name)
    size = SIZE if name in VITS else (32 * window, 32 * window)
    state = state_of(name)
    for key in state:
        if key.startswith("semantic_embed"):
            state[key] = torch.zeros_like(state[key])
            if key.startswith("semantic_embed_w") and key.endswith("bias"):
                state[key] += torch.tensor(1.0).expm1().log()  # whose softplus is 1
    torch.save(pretrained(name, state), tmp_path / "tower.pth")
    tower = make_tower(name, size, (16, 16), options={"semantic_weight": 0.7}).eval()
    fill(tower, name, str(tmp_path / "tower.pth"))
    net = timm.create_model(family.timm, img_size=size, **{"num_classes": 0, **family.arguments}).eval()
    net.load_state_dict({key: value for key, value in tower.net.state_dict().items() if key in net.state_dict()})
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(tower(images).last, net(images), atol=1e-5, rtol=1e-5)


def test_the_semantic_weight_is_the_towers(tmp_path):
    state, images = state_of("solider_swin_tiny"), torch.rand(1, 3, 128, 64).double()
    torch.save(state, tmp_path / "bare.pth")
    for weight in (0.0, 1.0):
        tower = make_tower("solider_swin_tiny", (128, 64), (16, 16), options={"semantic_weight": weight}).eval()
        fill(tower, "solider_swin_tiny", str(tmp_path / "bare.pth"))
        wanted = swin(double(state), images, 7, mmdet=True, semantic_weight=weight)
        torch.testing.assert_close(tower.double()(images).last, wanted, **CLOSE)
    assert all(".scale" not in name and ".shift" not in name for name, _ in tower.named_parameters())


def test_overlapping_patches(tmp_path):
    for name in ("transreid_base", "transreid_ssl_small_ics"):
        state = draw(vit_shapes(211, stem=name.endswith("_ics")))
        torch.save(state, tmp_path / f"{name}.pth")
        tower = make_tower(name, SIZE, (12, 12)).eval()
        fill(tower, name, str(tmp_path / f"{name}.pth"))
        images = torch.rand(2, 3, *SIZE).double()
        wanted = vit(double(state), images, stride=12)
        torch.testing.assert_close(tower.double()(images).last, wanted, **CLOSE)
    with pytest.raises(WeightsError, match=r"MODEL.STRIDE_SIZE.*multiples of 2"):
        make_tower("transreid_ssl_small_ics", SIZE, (15, 15))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("personvit_base", (16, 240)), ("transreid_ssl_base_ics", (16, 240)), ("solider_swin_tiny", (4, 248))],
)
def test_a_size_that_it_does_not_take_is_answered_with_multiples_of_the_patch(name, expected):
    says = rf"INPUT.SIZE_TEST \(250, 128\): {name} .*multiples of {expected[0]}, e.g. \({expected[1]}, 128\)"
    with pytest.raises(WeightsError, match=says):
        make_tower(name, SIZE, (16, 16), options={"test_size": (250, 128)})


@pytest.mark.parametrize("tokens", [129, 197, 211])
def test_a_new_start_resizes_the_position_table(tmp_path, tokens):
    rows, columns = {129: (16, 8), 197: (14, 14), 211: (21, 10)}[tokens]
    state = draw(vit_shapes(tokens))
    torch.save(state, tmp_path / "x.pth")
    tower = make_tower("transreid_base", (384, 128), (16, 16))
    assert any("resized" in line for line in fill(tower, "transreid_base", str(tmp_path / "x.pth")))
    grid = state["pos_embed"][:, 1:].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (24, 8), mode="bilinear")
    torch.testing.assert_close(tower.net.pos_embed[:, 1:], grid.flatten(2).transpose(1, 2))


FAULTS = {
    "personvit_small": "blocks.1.mlp.fc1.bias",
    "transreid_ssl_base_ics": "patch_embed.conv.4.BN.running_mean",
    "solider_swin_small": "stages.2.blocks.1.attn.w_msa.qkv.weight",
    "cion_swin_base": "layers.1.downsample.reduction.weight",
    "isr_swin_base": "feat.bias",
}


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
@pytest.mark.parametrize(("name", "key"), FAULTS.items())
def test_a_file_that_does_not_fit_names_the_tensor_as_it_does(tmp_path, name, key, fault):
    contents = pretrained(name, state_of(name))
    state = contents["state_dict" if name.startswith("isr") else "teacher"]
    (key,) = (each for each in state if each.endswith(key))
    if fault == "missing":
        del state[key]
    elif fault == "unexpected":
        key += "2"
        state[key] = torch.zeros(1)
    else:
        state[key] = state[key][:-1]
    torch.save(contents, tmp_path / "x.pth")
    with pytest.raises(WeightsError) as caught:
        fill(make_tower(name, FAMILIES[name].size or SIZE, (16, 16)), name, str(tmp_path / "x.pth"))
    assert key in str(caught.value) and "and" not in str(caught.value).partition(key)[0].partition(": ")[0]


def test_names_by_timm_are_not_those_of_the_file(tmp_path):
    """Else the merging weights would be taken in the wrong order, or for another stage's."""
    for name, key in (
        ("solider_swin_tiny", "layers.0.blocks.0.attn.proj.bias"),
        ("cion_swin_tiny", "layers.3.downsample.reduction.weight"),
    ):
        tower = make_tower(name, SIZE, (16, 16))
        save_file(tower.net.state_dict(), tmp_path / f"{name}.safetensors")
        with pytest.raises(WeightsError, match=key.replace(".", r"\.")):
            fill(tower, name, str(tmp_path / f"{name}.safetensors"))


@pytest.mark.parametrize("form", ["state_dict", "model", "bare"])
def test_isr_files_of_all_forms(tmp_path, form):
    state = state_of("isr_swin_base")
    torch.save(state if form == "bare" else {form: state}, tmp_path / "isr.pth")
    tower = make_tower("isr_swin_base", (224, 224), (32, 32))
    fill(tower, "isr_swin_base", str(tmp_path / "isr.pth"))
    assert torch.equal(tower.net.head.fc.weight, state["feat.weight"])
    with pytest.raises(WeightsError, match=r"INPUT.SIZE_TEST.*\(224, 224\)"):
        make_tower("isr_swin_base", (224, 224), (32, 32), options={"test_size": SIZE})


def test_a_namespace_is_read_and_nothing_else(tmp_path):
    torch.save({"weight": torch.ones(1), "args": argparse.Namespace(lr=1.0)}, tmp_path / "x.pth")
    assert read_tensors(tmp_path / "x.pth")["args"].lr == 1.0
    torch.save({"weight": torch.ones(1), "args": types.SimpleNamespace(lr=1.0)}, tmp_path / "y.pth")
    with pytest.raises(WeightsError, match=r"types\.SimpleNamespace"):
        read_tensors(tmp_path / "y.pth")


# ------------------------------------------------------------------------------------------------ whole networks' files


def fine_tuned(state, *, side=None, width=VIT["width"]):
    """A file of a fine-tuned network, and its heads."""
    heads = draw({**batch_norm_shapes("bottleneck", width), "classifier.weight": (5, width)})
    dead = {"base.fc.weight": torch.randn(1000, width), "base.fc.bias": torch.randn(1000)}
    table = {} if side is None else {"base.sie_embed": side}
    return {f"base.{key}": value for key, value in state.items()} | dead | table | heads


def words(tmp_path, *more, config=BASELINE):
    return [
        *("--config_file", config, "DATASETS.ROOT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"),
        *(*SMALL_TRAINING, "OUTPUT_DIR", str(tmp_path / "run")),
        *("MODEL.SIE_CAMERA", "False", "TEST.NECK_FEAT", "before", "INPUT.PIXEL_MEAN", "()", "INPUT.PIXEL_STD", "()"),
        *("INPUT.SIZE_TRAIN", str(SIZE), "INPUT.SIZE_TEST", str(SIZE), "MODEL.PRETRAIN", "none"),
        *("MODEL.STRIDE_SIZE", "(16, 16)", *more),
    ]


def settings(tmp_path, *more):
    return load(BASELINE, words(tmp_path, *more)[2:])


@pytest.mark.parametrize("name", ["personvit_base", "transreid_ssl_small_ics", "solider_swin_base"])
def test_a_fine_tuned_network_keeps_its_features_and_heads(tmp_path, name):
    state = state_of(name)
    whole = fine_tuned(state, width=VIT["width"] if name in VITS else 8 * SWIN["width"])
    torch.save(whole, tmp_path / "x.pth")
    model = load_model(tmp_path / "x.pth", settings(tmp_path, "MODEL.NAME", name)).eval()
    images = torch.rand(2, 3, *SIZE).double()
    wanted = expected(name, double(state), images)
    torch.testing.assert_close(model.double().embed(images), wanted, **CLOSE)
    assert torch.equal(model.heads[0].classifier.weight, whole["classifier.weight"].double())
    assert torch.equal(model.heads[0].neck.running_var, whole["bottleneck.running_var"].double())


def test_side_information_of_transreid_is_on_every_token(tmp_path):
    state, table = state_of("transreid_base"), torch.randn(6, 1, VIT["width"])
    torch.save(fine_tuned(state, side=table), tmp_path / "x.pth")
    asked = ["MODEL.NAME", "transreid_base", "MODEL.SIE_CAMERA", "True", "MODEL.SIE_COE", "2.0"]
    model = load_model(tmp_path / "x.pth", settings(tmp_path, *asked)).eval().double()
    images, cameras = torch.rand(2, 3, *SIZE).double(), torch.tensor([4, 1])
    wanted = vit(double(state), images, side=2.0 * table[cameras].double())
    found = model.embed(images, side_info(cameras, [-1, -1]))
    torch.testing.assert_close(found, wanted, **CLOSE)
    with pytest.raises(WeightsError, match=r"base\.sie_embed"):
        load_model(tmp_path / "x.pth", settings(tmp_path, "MODEL.NAME", "transreid_base"))


@pytest.mark.parametrize("name", ["personvit_base", "solider_swin_tiny"])
def test_it_is_tested_converted_and_trained_further(tmp_path, name):
    torch.save(fine_tuned(state_of(name), width=32 if name in VITS else 128), tmp_path / "x.pth")
    named = ["MODEL.NAME", name]
    test_svllreid.main(words(tmp_path, *named, "TEST.WEIGHT", str(tmp_path / "x.pth")))
    convert_checkpoint.main([str(tmp_path / "x.pth"), str(tmp_path / "ours.pth"), *words(tmp_path, *named)])
    test_svllreid.main(words(tmp_path, "TEST.WEIGHT", str(tmp_path / "ours.pth")))
    first, again = json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"]
    assert first["mAP"] == again["mAP"]
    start = ["MODEL.INIT_FROM", str(tmp_path / "x.pth"), "OUTPUT_DIR", str(tmp_path / "on")]
    train_svllreid.main(words(tmp_path, *named, *start))
    (path,) = (tmp_path / "on").glob("*_1.pth")
    assert read_checkpoint(path)["architecture"]["name"] == name
    test_svllreid.main(["TEST.WEIGHT", str(path)])


@pytest.mark.parametrize("name", ["personvit_base", "isr_swin_base"])
def test_a_fine_tuned_network_is_released_with_its_licence(tmp_path, name):
    state, size = state_of(name), "(224, 224)" if name == "isr_swin_base" else str(SIZE)
    torch.save({"state_dict": state} if name == "isr_swin_base" else fine_tuned(state), tmp_path / "x.pth")
    sizes = ["INPUT.SIZE_TRAIN", size, "INPUT.SIZE_TEST", size, "MODEL.NAME", name]
    named = ["--weight", str(tmp_path / "x.pth"), *words(tmp_path, *sizes)]
    release.main([*named, "--output", str(tmp_path / "released")])
    theirs = Embedder.from_checkpoint(
        tmp_path / "x.pth", config_file=BASELINE, overrides=words(tmp_path, *sizes)[2:], device="cpu"
    )
    assert Embedder.from_checkpoint(tmp_path / "released", device="cpu").digest == theirs.digest
    card = (tmp_path / "released" / "README.md").read_text()
    assert FAMILIES[name].licence in card and "## Training" not in card and "datasets:" not in card
    release.main(["--weight", str(tmp_path / "released"), "--output", str(tmp_path / "again")])
    assert "## Training" not in (tmp_path / "again" / "README.md").read_text()


def test_isr_is_tested_and_trained_without_heads_of_its_own(tmp_path):
    state = state_of("isr_swin_base")
    torch.save({"state_dict": state}, tmp_path / "isr.pth")
    sizes = ["INPUT.SIZE_TRAIN", "(224, 224)", "INPUT.SIZE_TEST", "(224, 224)", "MODEL.NAME", "isr_swin_base"]
    cfg = settings(tmp_path, *sizes)
    images = torch.rand(2, 3, 224, 224).double()
    model = load_model(tmp_path / "isr.pth", cfg).eval().double()
    wanted = expected("isr_swin_base", double(state), images)
    for neck in (False, True):
        cosine = torch.nn.functional.cosine_similarity(model.embed(images, neck=neck), wanted)
        torch.testing.assert_close(cosine, torch.ones(2).double())
    assert settle_pixels(cfg).INPUT.PIXEL_MEAN == (0.485, 0.456, 0.406)
    test_svllreid.main(words(tmp_path, *sizes, "TEST.WEIGHT", str(tmp_path / "isr.pth")))
    trained = make_model(settings(tmp_path, *sizes, "MODEL.INIT_FROM", str(tmp_path / "isr.pth")), benchmark())
    assert torch.equal(trained.image.net.head.fc.bias, state["feat.bias"])


def test_isr_verifies_searches_and_explains_as_the_document_says(tmp_path, monkeypatch, capsys):
    torch.save({"state_dict": state_of("isr_swin_base")}, tmp_path / "isr.pth")
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.jpg", "b.jpg", "others/1.jpg", "others/2.jpg")):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 60), (80 * number, 200, 90)).save(name)
    Path("pairs.csv").write_text("a.jpg,b.jpg\n")
    text = (ROOT / "docs" / "use.md").read_text(encoding="utf-8").partition("## ISR")[2].partition("\n## ")[0]
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("python -m tools.")]
    assert len(commands) == 4
    for _, _, tool, *words in commands:
        words = [word.replace("weights/isr_swin_base.pth", "isr.pth") for word in words]
        words = [str(ROOT / word) if word.endswith(".yml") else word for word in words]
        assert importlib.import_module(tool).main([*words, "--device", "cpu"]) == 0
        capsys.readouterr()


def test_a_position_table_is_resized_where_the_command_line_asks(tmp_path):
    torch.save(fine_tuned(draw(vit_shapes(211))), tmp_path / "x.pth")
    asked = ["MODEL.NAME", "transreid_base", "TEST.WEIGHT", str(tmp_path / "x.pth")]
    test_svllreid.main(words(tmp_path, *asked))  # INPUT.SIZE_TRAIN is on it
    with pytest.raises(WeightsError, match=r"base\.pos_embed is \[211, 32\].*\[129, 32\]"):
        load_model(tmp_path / "x.pth", settings(tmp_path, *asked))


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "strange"])
@pytest.mark.parametrize("key", ["base.blocks.1.attn.qkv.weight", "bottleneck.running_mean"])
def test_a_whole_network_that_does_not_fit_names_the_tensor_as_it_does(tmp_path, key, fault):
    state = fine_tuned(state_of("personvit_base"))
    if fault == "missing":
        del state[key]
    elif fault == "shape":
        state[key] = state[key][:-1]
    else:
        key = "net." + key if fault == "strange" else key + "2"
        state[key] = torch.zeros(1)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError) as caught:
        load_model(tmp_path / "x.pth", settings(tmp_path, "MODEL.NAME", "personvit_base"))
    assert key in str(caught.value)


def test_what_is_at_the_wrong_door_is_sent_to_the_right_one(tmp_path):
    name, state = "personvit_base", state_of("personvit_base")
    torch.save(fine_tuned(state), tmp_path / "whole.pth")
    torch.save(pretrained(name, state), tmp_path / "tower.pth")
    with pytest.raises(WeightsError, match=r"tower\.pth.*MODEL\.PRETRAIN"):
        read_weights(tmp_path / "tower.pth", name)
    tower = make_tower(name, SIZE, (16, 16))
    save_checkpoint(tmp_path / "ours.pth", {"model": state, "config": {}, "architecture": {}})
    torch.save({"image_encoder.proj": torch.ones(2, 2)}, tmp_path / "published.pth")
    for file in ("whole", "ours", "published"):
        with pytest.raises(WeightsError, match=rf"{file}\.pth.* is a .*which MODEL\.INIT_FROM"):
            fill(tower, name, str(tmp_path / f"{file}.pth"))
    with pytest.raises(WeightsError, match=r"openai.*huggingface\.co/lakeAGI/PersonViT"):
        fill(tower, name, "openai")


def test_a_file_without_its_name_says_which_may_be_meant(tmp_path):
    torch.save(fine_tuned(state_of("solider_swin_base"), width=128), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"MODEL\.NAME.*solider_swin_base") as caught:
        read_weights(tmp_path / "x.pth")
    assert "vit" not in str(caught.value) and "cion" not in str(caught.value)
    torch.save(fine_tuned(state_of("personvit_base")), tmp_path / "y.pth")
    with pytest.raises(WeightsError, match=r"personvit_base, transreid_base") as caught:
        read_weights(tmp_path / "y.pth")
    assert "_ics" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "transreid_base"])
def test_branches_of_the_jigsaw_module_are_refused(tmp_path, name):
    branches = {"b1.0.norm1.weight": torch.ones(32), "bottleneck_1.weight": torch.ones(32)}
    torch.save(fine_tuned(state_of("transreid_base")) | branches, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"b1\.0\.norm1\.weight, bottleneck_1\.weight.*MODEL\.NAME transreid_base"):
        read_weights(tmp_path / "x.pth", name)
