"""Learning rates against their closed forms and the published numbers; optimisers and their groups."""

import copy
import math

import pytest
import torch
from builders import small_model
from timm.models import VisionTransformer
from timm.optim import param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn
from yacs.config import CfgNode

from configs import load
from processor.image_stage import ImageStage
from solver.average import WeightAverage
from solver.build import make_optimizer, make_schedule
from solver.schedules import warmup_cosine, warmup_steps


def exactly(value: float):
    return pytest.approx(value, rel=1e-12, abs=0)


# ------------------------------------------------------------------------------------------------------------ schedules


@pytest.mark.parametrize("epochs, warmup", [(120, 5), (60, 5), (10, 0), (7, 1), (3, 3)])
def test_cosine_closed_form(epochs, warmup):
    lr, start, floor = 3.5e-4, 1e-5, 1e-6
    for epoch in range(1, epochs + 3):
        if epoch < warmup:
            expected = start + epoch * (lr - start) / warmup
        elif epoch < epochs:
            expected = floor + (lr - floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2
        else:
            expected = floor
        got = warmup_cosine(epoch, lr, epochs=epochs, floor=floor, warmup_epochs=warmup, warmup_start=start)
        assert got == exactly(expected), epoch


@pytest.mark.parametrize(
    "epochs, warmup, factor, gamma, steps",
    [(60, 10, 0.1, 0.1, (30, 50)), (12, 0, 0.5, 0.3, (8,)), (9, 20, 0.01, 0.1, ())],
)
def test_steps_closed_form(epochs, warmup, factor, gamma, steps):
    lr = 5e-6
    for epoch in range(1, epochs + 1):
        expected = lr * (factor * (1 - epoch / warmup) + epoch / warmup if epoch < warmup else 1)
        for step in steps:
            if epoch >= step:
                expected *= gamma
        got = warmup_steps(epoch, lr, steps=steps, gamma=gamma, warmup_epochs=warmup, warmup_factor=factor)
        assert got == exactly(expected), epoch


def test_schedules_run_over_the_configured_epochs():
    rate = make_schedule(block("STAGE1", MAX_EPOCHS=30, WARMUP_EPOCHS=2, WARMUP_LR_INIT=1e-5, LR_MIN=0.0))
    assert rate(1, 1.0) == exactly((1.0 + 1e-5) / 2)
    assert rate(15, 1.0) == exactly(0.5)
    assert rate(30, 1.0) == 0


@pytest.mark.parametrize("epochs, warmup", [(120, 20), (60, 0), (4, 7)])
def test_the_image_stages_cosine_is_that_of_transreid(epochs, warmup):
    """Which has timm's scheduler, with absolute bounds for all groups, and steps it at the start of epochs 1, 2, ..."""
    cfg = block(SCHEDULE="cosine", MAX_EPOCHS=epochs, WARMUP_ITERS=warmup, WARMUP_FACTOR=0.01, BIAS_LR_FACTOR=2.0)
    optimizer, rate = make_optimizer(cfg, Network()), make_schedule(cfg)
    bounds = {"lr_min": 0.002 * cfg.BASE_LR, "warmup_lr_init": 0.01 * cfg.BASE_LR}
    theirs = CosineLRScheduler(optimizer, t_initial=epochs, warmup_t=warmup, **bounds)
    assert {group["initial_lr"] for group in optimizer.param_groups} == {0.01, 0.02}
    for epoch in range(1, epochs + 1):
        theirs.step(epoch)
        for group in optimizer.param_groups:
            assert rate(epoch, group["initial_lr"]) == exactly(group["lr"]), epoch


# ----------------------------------------------------------------------------------------------------------- optimisers


class Network(nn.Module):
    """One parameter of every kind that names can trip over."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)  # in_proj_weight, in_proj_bias, out_proj.weight, out_proj.bias
        self.norm = nn.LayerNorm(4)
        self.debias = nn.Linear(4, 4, bias=False)  # an owner's name does not make a weight a bias
        self.head = nn.ModuleDict({"neck": nn.BatchNorm1d(4), "classifier": nn.Linear(4, 3)})
        self.token = nn.Parameter(torch.ones(4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head.neck.bias.requires_grad_(False)


BIASES = {"attention.in_proj_bias", "attention.out_proj.bias", "norm.bias", "head.classifier.bias"}
OTHERS = {"attention.in_proj_weight", "attention.out_proj.weight", "norm.weight", "debias.weight", "head.neck.weight"}
OTHERS |= {"head.classifier.weight", "token"}


def block(stage: str = "STAGE2", **changed) -> CfgNode:
    cfg = load(None).SOLVER[stage].clone()
    cfg.defrost()
    cfg.update({"BASE_LR": 0.01, "WEIGHT_DECAY": 0.2, **changed})
    return cfg


def settings(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, tuple[float, float]]:
    """Name -> (rate, decay) of everything in the optimiser; nothing may be in it twice."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    rows = [
        (names[parameter], (group["lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(rows) == len(dict(rows))
    assert all(group["initial_lr"] == group["lr"] for group in optimizer.param_groups)
    return dict(rows)


def test_biases_have_a_rate_and_a_decay_of_their_own():
    network = Network()
    cfg = block(BIAS_LR_FACTOR=2.0, WEIGHT_DECAY_BIAS=0.3)
    expected = dict.fromkeys(BIASES, (0.02, 0.3)) | dict.fromkeys(OTHERS, (0.01, 0.2))  # and nothing that is frozen
    assert settings(make_optimizer(cfg, network), network) == expected


def test_a_larger_rate_for_classifiers_on_request():
    network = Network()
    got = settings(make_optimizer(block(LARGE_FC_LR=False, BIAS_LR_FACTOR=3.0), network), network)
    rates = {name: rate for name, (rate, _) in got.items()}
    assert rates == pytest.approx(dict.fromkeys(BIASES, 0.03) | dict.fromkeys(OTHERS, 0.01))
    got = settings(make_optimizer(block(LARGE_FC_LR=True, BIAS_LR_FACTOR=3.0), network), network)
    rates |= {"head.classifier.weight": 0.02, "head.classifier.bias": 0.06}
    assert {name: rate for name, (rate, _) in got.items()} == pytest.approx(rates)


def test_a_stage_without_keys_for_biases_treats_all_alike():
    network = Network()
    got = settings(make_optimizer(block("STAGE1"), network), network)
    assert got == dict.fromkeys(BIASES | OTHERS, (0.01, 0.2))


def test_layer_decay_is_timms():
    """Of a vision transformer of timm's that has the same layers; with the factors of biases and classifiers."""
    stage = ImageStage(small_model(cams=2), weights={}, text_features=None)
    cfg = block(LAYER_DECAY=0.7, BIAS_LR_FACTOR=3.0, LARGE_FC_LR=True)
    optimizer = make_optimizer(cfg, stage, stage.layer_of)
    names = {parameter: name for name, parameter in stage.named_parameters()}
    rates = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    theirs = VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=5)
    scales = {
        p: group["lr_scale"] for group in param_groups_layer_decay(theirs, layer_decay=0.7) for p in group["params"]
    }
    scale = {name: scales[parameter] for name, parameter in theirs.named_parameters()}
    assert scale["patch_embed.proj.weight"] == pytest.approx(0.7**4)
    for ours, name in {
        "visual.conv1.weight": "patch_embed.proj.weight",
        "visual.class_embedding": "cls_token",
        "visual.positional_embedding": "pos_embed",
        "visual.ln_pre.weight": "pos_embed",
        "side.table": "pos_embed",
        **{f"visual.transformer.resblocks.{i}.mlp.c_fc.weight": f"blocks.{i}.mlp.fc1.weight" for i in range(3)},
        "visual.ln_post.weight": "norm.weight",
        "visual.proj": "head.weight",
    }.items():
        assert rates.pop(f"model.image.{ours}") == pytest.approx(0.01 * scale[name]), ours
    assert rates["model.image.visual.transformer.resblocks.1.mlp.c_fc.bias"] == pytest.approx(0.03 * 0.7**2)
    assert rates["model.heads.0.classifier.weight"] == pytest.approx(0.02)
    assert all(rate >= 0.01 for name, rate in rates.items() if not name.startswith("model.image."))


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_first_step_of_each_optimiser(name):
    """Gradient 1 for the weight p = 3, rate r = 0.01, decay d = 0.2.

    Adam: the first step is r times the sign of (gradient + d p), whatever its size; AdamW: decay besides, r d p;
    SGD: r (gradient + d p), then with momentum 0.5 the step before adds half of itself.
    """
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, 3.0)
    optimizer = make_optimizer(block(OPTIMIZER_NAME=name, MOMENTUM=0.5), module)
    assert type(optimizer) is getattr(torch.optim, name)
    module.weight.grad = torch.ones_like(module.weight)
    optimizer.step()
    step = {"Adam": 0.01, "AdamW": 0.01 + 0.01 * 0.2 * 3, "SGD": 0.01 * (1 + 0.2 * 3)}[name]
    assert module.weight.item() == pytest.approx(3 - step, abs=1e-9)
    if name == "SGD":
        after = module.weight.item()
        optimizer.step()
        assert module.weight.item() == pytest.approx(after - 0.01 * (1 + 0.2 * after) - step / 2, abs=1e-9)


def test_the_average_of_the_weights_is_timms():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    network[2].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    average, theirs = WeightAverage(network, 0.9, optimizer), ModelEmaV3(network, 0.9, exclude_buffers=True)
    for step in range(4):
        if step == 2:  # in between, as for an evaluation
            weights = copy.deepcopy(network.state_dict())
            with average.applied():
                ours = network.state_dict()
                assert all(torch.equal(ours[name], value) for name, value in theirs.module.state_dict().items())
                assert not torch.equal(ours["0.weight"], weights["0.weight"])
            assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
        network(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        theirs.update(network)
    assert average.averages.keys() == {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight"}
    for name, value in average.averages.items():
        assert torch.equal(value, theirs.module.get_parameter(name))
    for wrong in ({}, {**average.averages, "x": torch.ones(1)}, {**average.averages, "0.bias": torch.ones(3)}):
        with pytest.raises(ValueError, match="average"):
            average.load(wrong)


def test_adam_as_published():
    group = make_optimizer(block(), Network()).param_groups[0]
    assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.9, 0.999), 1e-8, False)
