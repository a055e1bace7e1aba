"""What is not finite changes nothing, is named, and stops the run; gradients are clipped as one vector."""

from __future__ import annotations

import json
import math

import pytest
import torch
from builders import stage_run
from test_end_to_end import arguments, trained  # noqa: F401 (a fixture)
from torch import nn

import train_svllreid
from model import tiny_clip
from processor.loop import fit
from processor.progress import NonFiniteLoss
from utils.checkpoint import read_tensors
from utils.records import FeatureBatch, Losses

OPTIMIZERS = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=True),
    "Adam": lambda groups: torch.optim.Adam(groups, lr=0.1, weight_decay=0.1, fused=True),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.1, fused=True),
    "not fused": lambda groups: torch.optim.Adam(groups, lr=0.1),
}


class Spoilt(nn.Module):
    """value**2 in every step; in step k, counted from 1, what `spoil[k]` makes of it."""

    def __init__(self, spoil: dict):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.spoil, self.values = spoil, []

    def forward(self, batch: FeatureBatch) -> Losses:
        self.values.append(self.value.detach().clone())
        loss = (self.value**2).sum()
        loss = self.spoil.get(len(self.values), lambda loss, value: loss)(loss, self.value)
        return Losses(loss, {"square": loss.detach()})


def no_number(loss, value):
    return loss * math.nan


def endless(loss, value):
    return loss * math.inf


def steep(loss, value):
    """0 plus a root at 0: a loss of 5 or so, with a gradient that is infinite."""
    return loss + ((value - value.detach()) ** 2).sum().sqrt()


def groups_of(stage: nn.Module, rate: float = 0.1) -> list[dict]:
    return [{"params": list(stage.parameters()), "initial_lr": rate}]


def batches(count: int):
    return lambda epoch, done: [FeatureBatch(torch.zeros(2, 1), torch.tensor([step, 7])) for step in range(count)]


def train(stage, optimizer, count: int = 6, *, epochs: int = 1, **options) -> None:
    how = {name: options.pop(name) for name in ("scaler", "clip_norm") if name in options}
    fit(stage, batches(count), optimizer, lambda epoch, lr: lr, epochs, run=stage_run(name="toy", **options), **how)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("spoil", "what"), [(no_number, "loss"), (endless, "loss"), (steep, "gradient")])
def test_that_update_is_not_made_and_the_run_stops_at_the_next_line(name, spoil, what):
    stage, records, kept = Spoilt({3: spoil}), [], []
    optimizer = OPTIMIZERS[name](groups_of(stage))
    message = rf"toy, epoch 1, step 3: the {what} is not finite .*learning rate 0\.1\).*images: 2\.jpg, 7\.jpg"
    with pytest.raises(NonFiniteLoss, match=message):
        train(
            *(stage, optimizer),
            log_period=5,
            record=lambda kind, **values: records.append((kind, values)),
            image_paths=lambda pids: [f"{pid}.jpg" for pid in pids.tolist()],
            failed=lambda position, facts: kept.append((position, facts)),
        )
    assert len(stage.values) == 5  # nobody looked before the line was due
    assert torch.equal(stage.values[3], stage.values[2])  # no update in the third step
    assert not torch.equal(stage.values[4], stage.values[3]) and stage.value.isfinite().all()
    ((kind, line),) = records
    assert (kind, line["step"], line["indices"], line["lr"]) == ("non_finite", 3, [2, 7], 0.1)
    ((position, facts),) = kept
    assert (position.epoch, position.step) == (1, 3) and facts["paths"] == ["2.jpg", "7.jpg"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_suppressed_update_leaves_no_trace(name):
    """The steps after it are those that would have come without it."""
    ends = []
    for spoil, count in (({3: steep}, 5), ({}, 4)):
        stage = Spoilt(spoil)
        optimizer = OPTIMIZERS[name](groups_of(stage))
        try:
            train(stage, optimizer, count, log_period=9)
        except NonFiniteLoss:
            assert spoil
        ends.append((stage.value.detach(), optimizer.state_dict()["state"][0]))
    assert torch.equal(ends[0][0], ends[1][0])
    for fact, value in ends[1][1].items():
        assert torch.equal(torch.as_tensor(ends[0][1][fact]), torch.as_tensor(value)), fact


def test_the_gradient_is_clipped_as_one_vector():
    stage = Spoilt({})
    train(stage, torch.optim.SGD(groups_of(stage), lr=0.1), 2, clip_norm=0.5)
    value = torch.tensor([1.0, -2.0])
    for _ in range(2):
        gradient = 2 * value
        value = value - 0.1 * gradient * min(1.0, 0.5 / gradient.norm().item())
    assert torch.allclose(stage.value, value, atol=1e-6)
    short = Spoilt({})
    train(short, torch.optim.SGD(groups_of(short), lr=0.1), 2, clip_norm=1e9)
    assert torch.allclose(short.value, torch.tensor([1.0, -2.0]) * 0.8**2)


def test_parameters_that_an_epoch_brings_are_clipped_and_watched_like_the_others():
    stage = Spoilt({3: steep})
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "initial_lr": 0.1}], lr=0.1)

    def before_epoch(epoch, epoch_state):
        optimizer.param_groups[0]["params"] = list(stage.parameters())

    with pytest.raises(NonFiniteLoss, match="the gradient is not finite"):
        train(stage, optimizer, 3, clip_norm=0.5, before_epoch=before_epoch)
    first, second, third = stage.values
    assert (second - first).norm() == pytest.approx(0.05) and torch.equal(stage.value, third)


# ----------------------------------------------------------------------------------------------------------- fp16


def scaled(stage: nn.Module, count: int, *, rate: float = 0.1, **options) -> tuple[list[dict], torch.amp.GradScaler]:
    records: list[dict] = []
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(groups_of(stage, rate), lr=rate, fused=True)
    train(
        *(stage, optimizer, count),
        scaler=scaler,
        record=lambda kind, **values: records.append(values),
        **options,
    )
    return records, scaler


def test_an_update_that_overflows_in_fp16_is_skipped_and_counted():
    """65536 times the loss is too much for a float until the scale has been halved a few times."""
    large = {step: lambda loss, value: loss * 1e34 for step in range(1, 9)}
    stage = Spoilt(large)
    records, scaler = scaled(stage, 8, rate=1e-36, log_period=4)
    changes = [not torch.equal(one, other) for one, other in zip(stage.values, stage.values[1:], strict=False)]
    skipped = changes.index(True)
    assert 0 < skipped < 8 and all(changes[skipped:])
    assert [line["skipped"] for line in records] == [min(4, skipped), skipped]
    assert scaler.get_scale() == 65536 / 2**skipped


def test_skipped_updates_are_counted_over_the_whole_stage():
    stage = Spoilt({2: lambda loss, value: loss * 1e36, 5: lambda loss, value: loss * 1e36})
    records, _ = scaled(stage, 3, rate=1e-9, epochs=2)
    assert [line["skipped"] for line in records] == [1, 2]


def test_a_loss_that_is_no_number_is_not_the_scalers_business():
    with pytest.raises(NonFiniteLoss, match=r"step 2: the loss is not finite"):
        scaled(Spoilt({2: no_number}), 4)


def test_a_scale_that_has_nothing_left_to_give_stops_the_run():
    stage = Spoilt(dict.fromkeys(range(1, 40), steep))
    with pytest.raises(NonFiniteLoss, match=r"the gradient is not finite"):
        scaled(stage, 39, log_period=1)
    assert len(stage.values) == 17  # 65536 is 2**16


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_both_stages_train_in_half_precision(trained, tmp_path, precision):  # noqa: F811
    words = arguments("configs/demo/vit_svllreid.yml", tmp_path, DATASETS__ROOT_DIR=str(trained / "data"))
    train_svllreid.main([*words, "SOLVER.PRECISION", precision])
    full, half = (
        [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        for folder in (trained, tmp_path)
    )
    for one, other in zip(full, half, strict=True):
        if one["kind"] == "train":  # fp16 skips its first updates until it has found a scale
            assert other["loss"] == pytest.approx(one["loss"], rel=0.25) and other["loss"] != one["loss"]
            assert ("skipped" in other) == (precision == "fp16")
    model = read_tensors(tmp_path / "run" / "ViT-Tiny-8_2.pth")["model"]
    assert {value.dtype for value in model.values() if value.is_floating_point()} == {torch.float32}


# ------------------------------------------------------------------------------------------------------- a whole run


def test_a_run_leaves_something_to_look_into_and_no_checkpoint(trained, tmp_path, monkeypatch):  # noqa: F811
    broken = tiny_clip.load()
    gain = "visual.ln_post.weight"
    broken[gain] = broken[gain] * 1e30  # finite weights and features, no finite loss
    monkeypatch.setattr(tiny_clip, "load", lambda: broken)
    words = arguments("configs/demo/vit_base.yml", tmp_path, DATASETS__ROOT_DIR=str(trained / "data"))
    with pytest.raises(NonFiniteLoss, match=r"stage 2 \(fine-tuning\), epoch 1, step 1: .*triplet.*\.jpg"):
        train_svllreid.main(words)
    found = read_tensors(tmp_path / "run" / "non_finite.pt")
    assert {"model", "optimizer", "position", "terms", "indices", "paths", "lr", "architecture"} <= found.keys()
    assert len(found["indices"]) == len(found["paths"]) == 32 and found["position"]["step"] == 1
    assert not list((tmp_path / "run").rglob("*.pth"))  # nothing to resume from
