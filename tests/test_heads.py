"""Necks, classifiers, projection heads and the table of side information."""

import math

import pytest
import torch
from builders import side_info

from model.heads import BNNeckHead, Projector, SideEmbedding

# ---------------------------------------------------------------------------------------------------------------- neck


def test_a_head_starts_undecided():
    head = BNNeckHead(64, 300)
    assert head.classifier.bias is None and head.classifier.weight.shape == (300, 64)
    assert head.classifier.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert torch.equal(head.neck.weight, torch.ones(64)) and torch.equal(head.neck.bias, torch.zeros(64))
    assert (head.neck.eps, head.neck.momentum) == (1e-5, 0.1)


# ------------------------------------------------------------------------------------------------------ projection head


def test_published_start_of_the_image_projector():
    torch.manual_seed(1)
    plain = Projector(100, 400, 50)
    biases = {name: value.clone() for name, value in plain.named_parameters() if name in ("0.bias", "3.bias", "6.bias")}
    published = plain.reset_as_published()
    assert published is plain
    for layer in (0, 3, 6):
        weight = published[layer].weight
        assert weight.std().item() == pytest.approx(math.sqrt(2 / weight.shape[1]), rel=0.03)
        beyond = (weight.abs() > 2 * weight.std()).float().mean().item()
        assert beyond == pytest.approx(0.0455, abs=0.01)  # normal; a uniform draw has none
        assert torch.equal(published[layer].bias, biases[f"{layer}.bias"])  # PyTorch's own
    for layer in (1, 4):
        for value in (published[layer].weight, published[layer].bias):
            assert 0 <= value.min() < 0.05 and 0.95 < value.max() <= 1
            assert value.mean().item() == pytest.approx(0.5, abs=0.08)


# ---------------------------------------------------------------------------------------------------- side information


@pytest.mark.parametrize(("camera", "view", "rows"), [(True, False, 3), (False, True, 4)])
def test_what_the_table_does_not_tell_apart_does_not_count(camera, view, rows):
    table = SideEmbedding(3, 4, 5, camera=camera, view=view, scale=1.0)
    assert table.table.shape == (rows, 5)
    other = [99, -1, -7]  # out of every range, and ignored
    for row in range(rows):
        ids = ([row] * 3, other) if camera else (other, [row] * 3)
        assert torch.equal(table(side_info(*ids)), table.table[row].expand(3, -1))


@torch.no_grad()
def test_unknown_is_the_mean_over_what_it_could_have_been():
    table = SideEmbedding(3, 4, 5, camera=True, view=True, scale=2.0)
    rows = table.table.view(3, 4, 5)
    torch.testing.assert_close(table(side_info([-1], [2]))[0], 2 * rows[:, 2].mean(dim=0))
    torch.testing.assert_close(table(side_info([1], [-1]))[0], 2 * rows[1].mean(dim=0))
    torch.testing.assert_close(table(side_info([-1], [-1]))[0], 2 * rows.mean(dim=(0, 1)))
    cameras = SideEmbedding(3, 1, 5, camera=True, view=False, scale=1.0)
    torch.testing.assert_close(
        cameras(side_info([-1, 0], [0, 0])), torch.stack([cameras.table.mean(0), cameras.table[0]])
    )
    views = SideEmbedding(1, 4, 5, camera=False, view=True, scale=1.0)
    torch.testing.assert_close(views(side_info([0], [-1]))[0], views.table.mean(dim=0))


@pytest.mark.parametrize("ids", [([3], [0]), ([-2], [0]), ([0], [4]), ([0], [-2]), ([0, 99], [0, 0]), ([-9], [-9])])
def test_ids_that_are_not_in_the_table_raise(ids):
    table = SideEmbedding(3, 4, 5, camera=True, view=True, scale=1.0)
    with pytest.raises(IndexError):
        table(side_info(*ids))


def test_the_table_starts_small_and_cut_off():
    table = SideEmbedding(100, 1, 200, camera=True, view=False, scale=1.0).table
    assert table.std().item() == pytest.approx(0.02, rel=0.05)
    assert table.abs().max() > 0.06  # cut at 2, not at 2 standard deviations
    assert table.mean().abs() < 0.001
