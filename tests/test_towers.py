"""The towers against open_clip's own forward and against arithmetic written out, on random weights."""

import copy

import numpy as np
import open_clip
import pytest
import torch
from builders import IMAGE, PATCH, TEMPLATE, small_clip, small_model, small_resnet, small_resnet_model

from model.clip import ResNetTower, TextTower, ViTTower, patch_grid, resize_positions
from model.heads import SideEmbedding
from model.prompts import AUGMENTATIONS, PromptLearner
from model.towers import has_batch_norm
from utils.records import SideInfo

OPENAI = (14, 14)  # the grid of OpenAI's position table: 224 / 16


def random_images(count: int = 3, size: tuple[int, int] = IMAGE) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(5))


def tower(clip: open_clip.CLIP, size=IMAGE, stride=(PATCH, PATCH), side=None) -> ViTTower:
    """The tower changes what it is given, so it is given a copy."""
    return ViTTower(copy.deepcopy(clip.visual), size, stride, side).eval()


# --------------------------------------------------------------------------------------------------------- image tower


@torch.no_grad()
@pytest.mark.parametrize("kind", ["transformer", "with side information", "ResNet"])
def test_an_exported_tower_takes_any_number_of_images(kind):
    model = small_resnet_model() if kind == "ResNet" else small_model(cams=3 if kind.startswith("with") else 0)
    image, batch = model.image.eval(), {0: torch.export.Dim("batch")}

    def side(count: int) -> SideInfo | None:
        camids = torch.arange(count) % 4 - 1  # -1: unknown
        return SideInfo(camids, torch.zeros(count, dtype=torch.long)) if model.image.side is not None else None

    shapes = (batch, SideInfo(batch, batch) if model.image.side is not None else None)
    program = torch.export.export(image, (random_images(3), side(3)), dynamic_shapes=shapes).module()
    for count in (1, 5):
        exported, expected = (each(random_images(count), side(count)) for each in (program, image))
        torch.testing.assert_close(exported, expected)


@torch.no_grad()
@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (32, 16), (16, 40)])
def test_without_overlap_it_is_open_clips_tower(quick_gelu, size):
    clip = small_clip(quick_gelu=quick_gelu, image_size=size)
    expected = clip.visual(random_images(size=size))
    features = tower(clip, size)(random_images(size=size))
    torch.testing.assert_close(features.projected, expected, rtol=0, atol=1e-5)
    other = small_clip(quick_gelu=not quick_gelu, image_size=size).visual(random_images(size=size))
    assert (features.projected - other).abs().max() > 1e-3  # the comparison above can tell activations apart


@pytest.mark.parametrize("layers", [2, 24])
def test_every_block_trains_at_any_depth(layers):
    image = tower(small_clip(layers=layers)).train()
    features = image(random_images())
    sum(feature.square().sum() for feature in features).backward()
    blocks = image.visual.transformer.resblocks
    assert len(blocks) == layers
    assert all(parameter.grad.abs().sum() > 0 for block in blocks for parameter in block.parameters())


@pytest.mark.parametrize(
    ("size", "stride", "grid"),
    [((256, 128), 16, (16, 8)), ((256, 128), 12, (21, 10)), ((256, 256), 16, (16, 16)), ((256, 256), 12, (21, 21))],
)
def test_overlapping_grids(size, stride, grid):
    assert patch_grid(size, (16, 16), (stride, stride)) == grid
    visual = small_clip(image_size=64, patch=16).visual
    image = ViTTower(visual, size, (stride, stride))
    assert image.visual.positional_embedding.shape == (1 + grid[0] * grid[1], 32)
    assert visual.conv1(torch.zeros(1, 3, *size)).shape[2:] == grid


# ------------------------------------------------------------------------------------------------------ position table


def bilinear(table: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Pixel centres at (i + 0.5) * old / new - 0.5, four neighbours, edges repeated; no smoothing when shrinking."""
    grid = table[1:].astype(np.float64).reshape(*old, -1)
    rows = [table[0].astype(np.float64)]
    for i in range(new[0]):
        for j in range(new[1]):
            y = max((i + 0.5) * old[0] / new[0] - 0.5, 0.0)
            x = max((j + 0.5) * old[1] / new[1] - 0.5, 0.0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, old[0] - 1), min(left + 1, old[1] - 1)
            down, across = y - top, x - left
            above = (1 - across) * grid[top, left] + across * grid[top, right]
            below = (1 - across) * grid[bottom, left] + across * grid[bottom, right]
            rows.append((1 - down) * above + down * below)
    return np.stack(rows)


@pytest.mark.parametrize(
    ("old", "new"),
    [(OPENAI, (16, 8)), (OPENAI, (21, 10)), (OPENAI, (21, 21)), ((4, 2), (9, 1)), ((3, 5), (3, 4)), ((2, 2), (1, 1))],
)
def test_resizing_is_bilinear_without_smoothing(old, new):
    table = torch.randn(1 + old[0] * old[1], 3)
    resized = resize_positions(table, old, new)
    assert resized.shape == (1 + new[0] * new[1], 3)
    assert torch.equal(resized[0], table[0])
    np.testing.assert_allclose(resized.numpy(), bilinear(table.numpy(), old, new), atol=1e-5)


def test_the_same_grid_keeps_the_table_bit_for_bit():
    table = torch.randn(9, 3)
    assert torch.equal(resize_positions(table, (4, 2), (4, 2)), table)
    assert not torch.equal(resize_positions(table, (4, 2), (2, 4)), table)  # as many patches, placed otherwise


@torch.no_grad()
def test_images_of_another_size_than_the_towers():
    clip = small_clip(image_size=(32, 16))
    features = tower(clip, (32, 16))(random_images(size=(48, 24)))
    larger = copy.deepcopy(clip)
    larger.visual.positional_embedding = torch.nn.Parameter(
        torch.tensor(bilinear(clip.visual.positional_embedding.numpy(), (4, 2), (6, 3))).float()
    )
    torch.testing.assert_close(features.projected, larger.visual(random_images(size=(48, 24))), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- side information


def known(camids: list[int], viewids: list[int] | None = None) -> SideInfo:
    return SideInfo(torch.tensor(camids), torch.tensor(viewids or [0] * len(camids)))


@torch.no_grad()
def test_without_side_information_given_or_without_a_table_nothing_is_added():
    clip = small_clip()
    plain = tower(clip)(random_images()).last
    side = SideEmbedding(3, 1, 32, camera=True, view=False, scale=3.0)
    torch.nn.init.normal_(side.table)
    assert torch.equal(tower(clip, side=side)(random_images()).last, plain)
    assert torch.equal(tower(clip)(random_images(), known([0, 1, 2])).last, plain)


# -------------------------------------------------------------------------------------------------------------- ResNet


@torch.no_grad()
@pytest.mark.parametrize(("size", "grid"), [((64, 32), (4, 2)), ((256, 128), (16, 8)), ((255, 127), (16, 8))])
def test_the_resnets_last_stage_keeps_its_size(size, grid):
    image = ResNetTower(small_resnet().visual, size).eval()
    maps = []
    image.visual.layer4.register_forward_hook(lambda module, inputs, output: maps.append(output.shape[2:]))
    features = image(random_images(size=size), SideInfo(torch.zeros(3), torch.zeros(3)))  # which it has no place for
    assert maps == [grid] and image.grid == image.grid_for(size, (12, 12)) == grid
    assert image.dims == tuple(feature.shape[1] for feature in features) == (128, 256, 24) and has_batch_norm(image)


@torch.no_grad()
def test_the_resnets_positions_follow_the_image():
    clip = small_resnet(image_size=64)  # a table of 2 x 2
    old = clip.visual.attnpool.positional_embedding.clone()
    image = ResNetTower(clip.visual, (64, 32)).eval()
    table = image.visual.attnpool.positional_embedding
    torch.testing.assert_close(table.data, resize_positions(old, (2, 2), (4, 2)))
    assert image.state_dict()[image.positions].shape == (9, 256)
    wide = image(random_images(size=(32, 64))).projected  # 2 x 4 positions, resized on the way
    again = ResNetTower(small_resnet(image_size=64).visual, (32, 64)).eval()
    again.visual.attnpool.positional_embedding.data = resize_positions(table, (4, 2), (2, 4))
    torch.testing.assert_close(wide, again(random_images(size=(32, 64))).projected)


# ---------------------------------------------------------------------------------------------------------- text tower


@pytest.fixture(scope="module")
def language() -> tuple[open_clip.CLIP, TextTower, PromptLearner]:
    torch.manual_seed(3)
    clip = small_clip()
    prompts = PromptLearner(4, TEMPLATE, clip.token_embedding, open_clip.tokenize)
    torch.nn.init.normal_(prompts.context, std=0.3)
    return clip, TextTower(clip).eval(), prompts


def whole_context(clip: open_clip.CLIP, prompts: torch.Tensor, end: int) -> torch.Tensor:
    """All 77 positions through open_clip's own parts, read out at the end-of-text token."""
    x = clip.transformer(prompts + clip.positional_embedding, attn_mask=clip.attn_mask)
    return clip.ln_final(x)[:, end] @ clip.text_projection


@torch.no_grad()
def test_cut_text_is_open_clips_own_text(language):
    clip, text, prompts = language
    sentence = open_clip.tokenize(["A photo of a X X X X person."])
    words = copy.deepcopy(prompts)
    words.context.copy_(clip.token_embedding(sentence)[:, 5:9].expand(4, -1, -1))
    features = text(words(torch.tensor([1])), words.end)
    torch.testing.assert_close(features, clip.encode_text(sentence), rtol=0, atol=3e-6)


@torch.no_grad()
@pytest.mark.parametrize("method", [None, *AUGMENTATIONS])
def test_cut_text_is_whole_text_whatever_was_augmented(language, method):
    clip, text, prompts = language
    texts = prompts(torch.arange(4))
    if method:
        generator = torch.Generator().manual_seed(1)
        texts = AUGMENTATIONS[method](texts, 0.5, generator=generator)
        assert not torch.equal(texts[:, 12:], prompts(torch.arange(4))[:, 12:]) or method == "mix"
    expected = whole_context(clip, texts, prompts.end)
    torch.testing.assert_close(text(texts, prompts.end), expected, rtol=0, atol=3e-6)
    longer = whole_context(clip, texts, prompts.end + 1)
    assert (text(texts, prompts.end) - longer).abs().max() > 1e-3  # another position would have been seen


@torch.no_grad()
def test_only_tokens_up_to_the_end_are_computed(language):
    _, text, prompts = language
    lengths = []
    handle = text.transformer.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    text(prompts(torch.tensor([0, 1])), prompts.end)
    handle.remove()
    assert lengths == [prompts.end + 1] == [12]


def test_text_gradients_reach_the_learned_tokens(language):
    _, text, prompts = language
    text(prompts(torch.tensor([0, 2])), prompts.end).square().sum().backward()
    reached = prompts.context.grad.abs().sum(dim=(1, 2)) > 0
    assert reached.tolist() == [True, False, True, False]


# --------------------------------------------------------------------------------------------------------- the network


@torch.no_grad()
def test_each_identity_is_computed_once():
    model = small_model(pids=6).eval()
    rows = []
    handle = model.text.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    pids = torch.tensor([4, 1, 4, 4, 0, 1])
    features = model.encode_text(pids)
    handle.remove()
    assert rows == [3] and features.shape == (6, 24)
    for row, pid in enumerate(pids):
        alone = model.text(model.prompts(pid[None]), model.prompts.end)[0]
        torch.testing.assert_close(features[row], alone)
    assert not torch.allclose(features[0], features[1])


@torch.no_grad()
def test_what_retrieval_compares():
    model = small_model(cams=2).eval()
    for head in model.heads:
        head.neck.running_mean.normal_()
        head.neck.running_var.uniform_(0.5, 2)
    side = known([0, 1, 1])
    features = model.encode_image(random_images(), side)
    plain = model.embed(random_images(), side)
    torch.testing.assert_close(plain, torch.cat([features.last, features.projected], dim=1))
    assert plain.shape == (3, 32 + 24)
    assert (plain.norm(dim=1) - 1).abs().min() > 0.1  # lengths are left to the evaluation
    necks = [head.neck for head in model.heads]
    expected = [
        neck.weight * (f - neck.running_mean) / (neck.running_var + 1e-5).sqrt()
        for neck, f in zip(necks, (features.last, features.projected), strict=True)
    ]
    torch.testing.assert_close(model.embed(random_images(), side, neck=True), torch.cat(expected, dim=1))
    assert not torch.allclose(model.embed(random_images()), plain)  # side information counts


@torch.no_grad()
def test_scores_come_from_behind_the_necks():
    model = small_model().eval()
    features = model.encode_image(random_images())
    for score, head, feature in zip(model.classify(features), model.heads, features[1:], strict=True):
        head.neck.running_mean.fill_(0.5)
        assert score.shape == (3, 5)
        expected = (feature - 0.5) / (1 + 1e-5) ** 0.5 @ head.classifier.weight.T
        torch.testing.assert_close(head(feature), expected)
