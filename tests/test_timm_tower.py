"""Towers of timm: the same features as timm's own, what they take, their weights, and training with them."""

import json
from functools import partial

import pytest
import timm
import torch
from builders import SMALL_TRAINING, benchmark, side_info
from safetensors.torch import save_file

import test_svllreid
import train_svllreid
from configs import load
from model import pretrained
from model.build import load_model, make_model, settle_architecture, settle_pixels
from model.heads import SideEmbedding
from model.timm_tower import Variant, fill, make_timm, pixels, read_facts
from model.weights import read_weights
from utils.checkpoint import read_checkpoint
from utils.errors import WeightsError
from utils.run import LOG

BASELINE = "configs/demo/vit_base.yml"
# timm's names of small members of each kind, and the image size of the comparison.
SMALL = {
    "test_vit": (160, 160),
    "vit_tiny_patch16_224": (256, 128),
    "vit_small_patch14_reg4_dinov2": (252, 126),
    "vit_small_patch16_dinov3": (256, 128),
    "vit_small_patch16_rope_mixed_224": (256, 128),
    "eva02_tiny_patch14_224": (224, 112),
    "swin_tiny_patch4_window7_224": (256, 128),
    "test_convnext": (256, 128),
    "test_resnet": (256, 128),
    "repvit_m0_9": (256, 128),
}


def own_net(name, size):
    """timm's own tower with random weights, at an image size."""
    takes_size = {"img_size": size} if read_facts(name).takes_size else {}
    net = timm.create_model(name, num_classes=0, **takes_size).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return net


def stride_of(name):
    facts = read_facts(name)
    return facts.stride or (facts.patch, facts.patch)


@pytest.mark.parametrize(("name", "size"), SMALL.items(), ids=list(SMALL))
def test_features_are_those_of_timms_own_tower(tmp_path, name, size):
    net = own_net(name, size)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    tower = make_timm(name, size, stride_of(name)).eval()
    assert fill(tower, name, str(tmp_path / "net.safetensors")) == []
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        features = tower(images)
        unpooled = net.forward_features(images)
        if read_facts(name).has_token:
            torch.testing.assert_close(features.last, net.fc_norm(unpooled[:, 0]))
            _, (penultimate, _) = net.forward_intermediates(images, indices=2, norm=False, return_prefix_tokens=True)
            torch.testing.assert_close(features.penultimate, penultimate[1][:, 0])
        else:
            torch.testing.assert_close(features.last, net.forward_head(unpooled, pre_logits=True))
            assert features.penultimate is None
    assert features.projected is None
    assert tower.dims == tuple(0 if feature is None else feature.shape[1] for feature in features)


def test_poolings_and_projection():
    images = torch.randn(2, 3, 160, 160)
    net = own_net("test_vit", (160, 160))
    found = {}
    for pooling in ("token", "avg", "token+avg"):
        tower = make_timm("test_vit", (160, 160), (16, 16), pooling=pooling, embed_dim=5).eval()
        tower.net.load_state_dict(net.state_dict())
        found[pooling] = tower(images)
        assert tower.dims == (*(2 * [64 * (1 + (pooling == "token+avg"))]), 5)
        torch.testing.assert_close(found[pooling].projected, found[pooling].last @ tower.projection.weight.T)
    tokens = net.forward_features(images)
    torch.testing.assert_close(found["avg"].last, net.fc_norm(tokens[:, 1:].mean(dim=1)))
    for depth in (0, 1):
        torch.testing.assert_close(
            found["token+avg"][depth], torch.cat([found["token"][depth], found["avg"][depth]], dim=1)
        )


def test_side_information_is_added_to_the_class_token_or_to_all():
    side = side_info([0, 2], [-1, -1])
    images = torch.randn(2, 3, 160, 160)
    for on_all in (False, True):
        table = SideEmbedding(3, 1, 64, camera=True, view=False, scale=2.0)
        variant = Variant("mine", partial(timm.create_model, "test_vit", num_classes=0), side_on_all=on_all)
        tower = make_timm("test_vit", (160, 160), (16, 16), table, variant=variant).eval()
        plain = tower.net
        tokens = plain._pos_embed(plain.patch_embed(images))
        vectors = 2.0 * table.table[[0, 2]]
        for row in range(tokens.shape[1] if on_all else 1):
            tokens[:, row] += vectors
        expected = plain.norm(plain.blocks(plain.norm_pre(tokens)))[:, 0]
        torch.testing.assert_close(tower(images, side).last, plain.fc_norm(expected))
        assert not torch.equal(tower(images).last, tower(images, side).last)


def test_stride_and_other_sizes():
    tower = make_timm("test_vit", (160, 96), (12, 8)).eval()
    assert tower.grid == (13, 11) and tower.net.pos_embed.shape[1] == 13 * 11 + 1
    assert tower(torch.randn(1, 3, 160, 96)).last.shape == tower(torch.randn(1, 3, 96, 160)).last.shape == (1, 64)
    says = r"INPUT.SIZE_TRAIN \(250, 128\): timm/vit_tiny_patch16_224 .*multiples of 16, e.g. \(240, 128\)"
    with pytest.raises(WeightsError, match=says):
        make_timm("vit_tiny_patch16_224", (250, 128), (16, 16))
    with pytest.raises(WeightsError, match=r"INPUT.SIZE_TEST \(256, 128\)"):  # has a table that is not resized
        make_timm("beit_base_patch16_224", (224, 224), (16, 16), test_size=(256, 128))


def test_layers_are_counted_from_the_patches_to_the_last_block():
    tower = make_timm(
        "test_vit", (160, 160), (16, 16), SideEmbedding(2, 1, 64, camera=True, view=False, scale=1.0), embed_dim=4
    )
    found = {name: tower.layer_of(name) for name, _ in tower.named_parameters()}
    assert {found[name] for name in ("net.patch_embed.proj.weight", "net.pos_embed", "side.table")} == {0}
    assert [found[f"net.blocks.{block}.mlp.fc1.weight"] for block in (0, 5)] == [1, 6]
    assert found["net.norm.weight"] == 6 and found["projection.weight"] is None


def test_gradient_checkpointing_changes_no_gradient():
    tower = make_timm("test_vit", (160, 160), (16, 16)).train()
    images, gradients, passes = torch.randn(2, 3, 160, 160), [], []
    tower.net.blocks[0].register_forward_pre_hook(lambda block, inputs: passes.append(on))
    for on in (False, True):
        tower.set_grad_checkpointing(on)
        tower.zero_grad()
        tower(images).last.square().sum().backward()
        gradients.append([p.grad.clone() for p in tower.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)
    assert passes == [False, True, True]


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224"])
def test_blocks_are_dropped_at_rates_that_grow_to_the_last(name, rate):
    """Also where timm's own rate is not 0."""
    with torch.device("meta"):
        tower = make_timm(name, (160, 160), stride_of(name), drop_path=rate)
    blocks = [module for module in tower.modules() if hasattr(module, "drop_path1")]
    for number, block in enumerate(blocks):
        wanted = pytest.approx(rate * number / (len(blocks) - 1))
        assert [getattr(part, "drop_prob", 0.0) for part in (block.drop_path1, block.drop_path2)] == [wanted, wanted]
    assert len(blocks) >= 6


def test_normalisation_follows_the_weights_unless_it_is_set(tmp_path):
    assert pixels("vit_base_patch16_clip_224", "openai")[0] == pytest.approx((0.481, 0.458, 0.408), abs=1e-3)
    timm_tower = ["MODEL.NAME", "timm/vit_base_patch16_224"]
    for tag, mean in (("augreg_in21k", 0.5), ("mae", 0.485), (str(tmp_path), 0.5)):
        assert settle_pixels(load(None, [*timm_tower, "MODEL.PRETRAIN", tag])).INPUT.PIXEL_MEAN[0] == mean
    said = load(None, [*timm_tower, "INPUT.PIXEL_STD", "(1, 1, 1)"])
    assert settle_pixels(said).INPUT.PIXEL_STD == (1.0, 1.0, 1.0)
    assert settle_pixels(load()).INPUT.PIXEL_MEAN == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["MODEL.NAME", "timm/vit_base_patch16_dinov3.lvd1689m"], "MODEL.PRETRAIN lvd1689m"),
        (["MODEL.NAME", "timm/vit_bas_patch16_224"], "vit_base_patch16_224"),
        (["MODEL.NAME", "timm/test_resnet", "MODEL.POOLING", "token"], "MODEL.POOLING"),
        (["MODEL.NAME", "timm/test_resnet", "MODEL.SIE_CAMERA", "True"], "MODEL.SIE_CAMERA"),
        (["MODEL.NAME", "timm/test_vit", "MODEL.PRETRAIN", "openai"], "tags: r160_in1k"),
        (["MODEL.NAME", "timm/test_vit", "MODEL.STRIDE_SIZE", "(20, 16)"], "MODEL.STRIDE_SIZE"),
        (["MODEL.NAME", "timm/test_vit", "PROCESSOR.STAGES", "('prompt', 'image')"], "MODEL.NAME timm/test_vit"),
        (["MODEL.EMBED_DIM", "8"], "MODEL.EMBED_DIM"),
    ],
)
def test_what_does_not_go_together_is_named(words, says):
    cfg = load(BASELINE, ["MODEL.SIE_CAMERA", "False", *words])
    with pytest.raises(WeightsError) as error:
        make_model(cfg, benchmark())
    assert says in str(error.value)


def test_a_file_that_does_not_fit_names_the_tensor(tmp_path):
    state = own_net("test_vit", (160, 160)).state_dict() | {"blocks.1.mlp.fc1.bias": torch.zeros(7)}
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match=r"blocks\.1\.mlp\.fc1\.bias is \[7\].*is it a timm/test_vit"):
        fill(make_timm("test_vit", (160, 160), (16, 16)), "test_vit", str(tmp_path / "net.safetensors"))


def test_metas_own_file_of_dinov3_is_read(tmp_path):
    """Meta's names, a key bias of zeros with its mask, and the mask token and periods that nobody needs."""
    name, size = "vit_small_patch16_dinov3", (64, 32)
    net = own_net(name, size)
    theirs = {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.zeros(16)}
    for key, value in net.state_dict().items():
        key = key.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        theirs[key] = value
        if key.endswith("qkv.weight"):
            theirs[key.replace("weight", "bias")] = torch.zeros(len(value))
            theirs[key.replace("weight", "bias_mask")] = torch.ones(len(value))
    torch.save(theirs, tmp_path / "dinov3_vits16_pretrain_lvd1689m.pth")
    tower = make_timm(name, size, (16, 16)).eval()
    fill(tower, name, str(tmp_path / "dinov3_vits16_pretrain_lvd1689m.pth"))
    images = torch.randn(1, 3, *size)
    torch.testing.assert_close(tower(images).last, net.forward_features(images)[:, 0])


def test_a_tag_comes_from_the_hub_or_says_where_it_is(tmp_path, monkeypatch):
    state = own_net("test_vit", (160, 160)).state_dict() | {"head.weight": torch.zeros(1000, 64)}
    save_file(state | {"head.bias": torch.zeros(1000)}, tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr(pretrained, "cached", lambda entry: asked.append(entry) or tmp_path / "model.safetensors")
    tower = make_timm("test_vit", (160, 160), (16, 16))
    (line,) = fill(tower, "test_vit", "r160_in1k")
    assert asked == [{"hf_hub": "timm/test_vit.r160_in1k/model.safetensors"}] and "apache-2.0" in line
    assert torch.equal(tower.net.pos_embed, state["pos_embed"])
    monkeypatch.setattr(pretrained, "cached", lambda entry: None)
    monkeypatch.setattr(pretrained, "answers", lambda address: False)
    with pytest.raises(WeightsError, match=r"timm/test_vit\.r160_in1k/resolve/main/model\.safetensors"):
        fill(tower, "test_vit", "r160_in1k")


def words(tmp_path, folder, *more):
    return [
        *("--config_file", BASELINE, "DATASETS.ROOT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"),
        *(*SMALL_TRAINING, "OUTPUT_DIR", str(tmp_path / folder), *more),
    ]


TIMM = ["MODEL.NAME", "timm/test_vit", "MODEL.PRETRAIN", "none", "INPUT.SIZE_TRAIN", "(64, 32)"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("test_vit", ["MODEL.EMBED_DIM", "6", "SOLVER.STAGE2.SSL_LOSS_WEIGHT", "0.5", "MODEL.POOLING", "token+avg"]),
        ("test_resnet", ["MODEL.SIE_CAMERA", "False", "MODEL.STRIDE_SIZE", "(32, 32)", "INPUT.PIXEL_MEAN", "()"]),
    ],
)
def test_it_trains_saves_and_is_tested(tmp_path, name, more):
    train_svllreid.main(words(tmp_path, "run", *TIMM, "MODEL.NAME", f"timm/{name}", *more))
    (path,) = (tmp_path / "run").glob("*_1.pth")
    parts = ("identity (2 heads)", "triplet (3 depths)") if name == "test_vit" else ("identity +", "triplet")
    (loss,) = (line for line in (tmp_path / "run" / LOG).read_text().splitlines() if "loss = " in line)
    assert all(part in loss for part in parts) and "1 head" not in loss and "1 depth" not in loss
    test_svllreid.main(["TEST.WEIGHT", str(path)])
    *_, trained, tested = json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"]
    assert trained["mAP"] == tested["mAP"]
    assert load_model(path).embed(torch.randn(2, 3, 64, 32)).shape[1] == (128 + 6 if name == "test_vit" else 96)
    asked = load(None, ["MODEL.STRIDE_SIZE", "(8, 8)"])
    _, architecture, _ = settle_architecture(asked, read_weights(path), requested=["MODEL.STRIDE_SIZE"])
    assert architecture["stride"] == ([8, 8] if name == "test_vit" else [32, 32])  # a ResNet has no other


def test_prompts_of_a_clip_guide_another_tower(tmp_path):
    clip = ["MODEL.NAME", "ViT-Tiny-8", "MODEL.PRETRAIN", "rendered", "MODEL.I2T_LOSS_WEIGHT", "1.0"]
    stage1 = [*clip, "PROCESSOR.STAGES", "('prompt',)", "SOLVER.STAGE1.MAX_EPOCHS", "1"]
    train_svllreid.main(words(tmp_path, "prompts", *stage1))
    (prompts,) = (tmp_path / "prompts").glob("*_1.pth")
    width = read_checkpoint(prompts)["model"]["text.text_projection"].shape[1]
    foreign = [*TIMM, "MODEL.I2T_LOSS_WEIGHT", "1.0", "MODEL.INIT_FROM", str(prompts), "PROCESSOR.STAGES", "('image',)"]
    with pytest.raises(WeightsError, match=f"MODEL.EMBED_DIM.*expected {width}"):
        train_svllreid.main(words(tmp_path, "wrong", *foreign, "MODEL.EMBED_DIM", "7"))
    foreign += ["MODEL.EMBED_DIM", str(width), "MODEL.INIT_CLASSIFIER", "means"]
    for untrained in ("False", "True"):  # new prompts need words that are not in the file
        others = ["DATASETS.SYNTHETIC.TRAIN_IDENTITIES", "9", "PROCESSOR.UNTRAINED_PROMPTS", untrained]
        with pytest.raises(WeightsError, match=r"prompts for these 9 identities.*MODEL\.NAME ViT-Tiny-8"):
            train_svllreid.main(words(tmp_path, "wrong", *foreign, *others))
    train_svllreid.main(words(tmp_path, "run", *foreign))
    (path,) = (tmp_path / "run").glob("*_1.pth")
    start, end = (read_checkpoint(file)["model"] for file in (prompts, path))
    assert (end["heads.0.classifier.weight"].norm(dim=1) > 0.5).all()  # class means; a random start is near 0
    with pytest.raises(WeightsError, match=f"MODEL.EMBED_DIM.*expected {width}"):
        train_svllreid.main(words(tmp_path, "wrong", *TIMM, "MODEL.INIT_FROM", str(path), "MODEL.EMBED_DIM", "8"))
    assert all(torch.equal(start[key], end[key]) for key in start if key.startswith(("text.", "prompts.")))
    model = load_model(path)
    assert model.text is not None and model.image.projection is not None
    test_svllreid.main(["TEST.WEIGHT", str(path)])
