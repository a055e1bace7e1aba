"""A ResNet with a stem for each modality, its pooling, and prompts of two templates."""

from __future__ import annotations

import open_clip
import pytest
import torch
from builders import IMAGE, small_clip, small_resnet

from model.clip import ResNetTower
from model.prompts import PromptLearner
from model.svllreid import SvllReid
from utils.errors import WeightsError
from utils.records import SideInfo

TEMPLATES = ("A visible photo of a {} person.", "An infrared photo of a {} person.")


def tower(**options) -> ResNetTower:
    return ResNetTower(small_resnet().visual, IMAGE, **options).eval()


def side(*modalities: int) -> SideInfo:
    nothing = torch.zeros(len(modalities), dtype=torch.long)
    return SideInfo(nothing, nothing, torch.tensor(modalities))


def test_stems_start_as_clips_and_each_image_takes_its_own():
    plain, two, images = tower(), tower(modalities=2), torch.randn(5, 3, *IMAGE)
    for side_info in (side(0, 1, 1, 0, 1), side(1, 1, 1, 1, 1), side(0, 0, 0, 0, 0)):
        for ours, theirs in zip(two(images, side_info), plain(images), strict=True):
            torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        two.stems[0].conv3.weight.normal_()
    mixed, before = two(images, side(0, 1, 1, 0, 1)), plain(images)
    for ours, theirs in zip(mixed, before, strict=True):
        changed = (ours - theirs).abs().amax(dim=1) > 1e-4
        assert changed.tolist() == [False, True, True, False, True]
    alone = two(images[1:3], side(1, 1))
    torch.testing.assert_close(alone.last, mixed.last[1:3])


def test_a_stem_without_images_keeps_its_statistics_in_training():
    two = tower(modalities=2).train()
    before = two.stems[0].bn1.running_mean.clone()
    two(torch.randn(3, 3, *IMAGE), side(0, 0, 0))
    assert torch.equal(two.stems[0].bn1.running_mean, before)
    two(torch.randn(3, 3, *IMAGE), side(0, 1, 1))
    assert not torch.equal(two.stems[0].bn1.running_mean, before)


@pytest.mark.parametrize("wrong", [None, side(0, 1)._replace(modalities=None), side(0, 2), side(-1, 0)])
def test_images_without_a_modality_are_refused(wrong):
    with pytest.raises(ValueError, match="modalit"):
        tower(modalities=2)(torch.randn(2, 3, *IMAGE), wrong)


def test_pooling_by_the_generalised_mean_against_plain_loops():
    gem, images = tower(pooling="gem"), torch.randn(2, 3, *IMAGE)
    maps = []
    gem.visual.layer4.register_forward_hook(lambda module, inputs, output: maps.append(output.double()))
    found = gem(images)
    for row, features in zip(maps[0], found.last, strict=True):
        for channel, feature in zip(row.flatten(1).tolist(), features.tolist(), strict=True):
            expected = (sum(x**3 for x in channel) / len(channel) + 1e-12) ** (1 / 3)
            assert feature == pytest.approx(expected, rel=1e-5)
    mean = tower()(images)
    torch.testing.assert_close((found.penultimate, found.projected), (mean.penultimate, mean.projected))
    with pytest.raises(WeightsError, match=r"MODEL\.POOLING"):
        tower(pooling="token")


def test_a_network_whose_last_feature_alone_is_compared():
    model = SvllReid(tower(pooling="gem", modalities=2), 0, heads="last").eval()
    images, where = torch.randn(3, 3, *IMAGE), side(1, 0, 1)
    last = model.image(images, where).last
    assert len(model.heads) == 1 and model.heads[0].classifier is None
    torch.testing.assert_close(model.embed(images, where), last)
    torch.testing.assert_close(model.embed(images, where, neck=True), model.heads[0].neck(last))


def test_prompts_of_two_templates():
    words = small_clip().token_embedding
    prompts = PromptLearner([2, 3], TEMPLATES, words, open_clip.tokenize)
    assert prompts.counts == (2, 3) and prompts.context.shape == (5, 4, 16)
    both = prompts(torch.tensor([3, 0, 1, 4]))
    for row, (pid, template) in zip(both, [(3, 1), (0, 0), (1, 0), (4, 1)], strict=True):
        one = PromptLearner(1, TEMPLATES[template], words, open_clip.tokenize)
        with torch.no_grad():
            one.context.copy_(prompts.context[pid : pid + 1])
        assert one.end == prompts.end and torch.equal(row, one(torch.tensor([0]))[0])
    assert [part.tolist() for part in prompts.parts(torch.tensor([1, 2, 4]))] == [
        [True, False, False],
        [False, True, True],
    ]


def test_prompts_that_begin_anew_with_other_numbers():
    words = small_clip().token_embedding
    prompts = PromptLearner([0, 0], TEMPLATES, words, open_clip.tokenize)
    prompts.trained = True
    prompts.resize([1, 2], torch.Generator().manual_seed(3))
    first = prompts.context.detach().clone()
    assert first.shape == (3, 4, 16) and 0.01 < first.std() < 0.04 and not prompts.trained
    prompts.resize([1, 2], torch.Generator().manual_seed(3))
    assert torch.equal(prompts.context, first)
    assert torch.equal(prompts(torch.tensor([0]))[0, :6], prompts.prefix[0])


def test_templates_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="equally long"):
        PromptLearner(
            [1, 1], ("A photo of a {} person.", TEMPLATES[0]), small_clip().token_embedding, open_clip.tokenize
        )
