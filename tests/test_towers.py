"""Towers: what the comparison with the reference leaves out."""

import copy

import open_clip
import pytest
import torch
from builders import IMAGE, PATCH, side_info, small_clip, small_model, small_resnet, small_resnet_model

from model.blocks import run_block
from model.clip import ResNetTower, ViTTower, resize_positions
from model.heads import SideEmbedding
from model.towers import find_tower, has_batch_norm
from tests import reference as ref
from utils.errors import WeightsError
from utils.records import SideInfo


def random_images(count: int = 3, size: tuple[int, int] = IMAGE) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(5))


def tower(clip: open_clip.CLIP, size=IMAGE, stride=(PATCH, PATCH), side=None) -> ViTTower:
    """A tower that leaves the CLIP as it is."""
    return ViTTower(copy.deepcopy(clip.visual), size, stride, side).eval()


# --------------------------------------------------------------------------------------------------------- image tower


@torch.no_grad()
@pytest.mark.parametrize("kind", ["transformer", "with side information", "ResNet"])
def test_an_exported_tower_takes_any_number_of_images(kind):
    model = small_resnet_model() if kind == "ResNet" else small_model(cams=3 if kind.startswith("with") else 0)
    image, batch = model.image.eval(), {0: torch.export.Dim("batch")}

    def side(count: int) -> SideInfo | None:
        camids = torch.arange(count) % 4 - 1  # -1: unknown
        return side_info(camids) if model.image.side is not None else None

    shapes = (batch, SideInfo(batch, batch, batch) if model.image.side is not None else None)
    program = torch.export.export(image, (random_images(3), side(3)), dynamic_shapes=shapes).module()
    for count in (1, 5):
        exported, expected = (each(random_images(count), side(count)) for each in (program, image))
        torch.testing.assert_close(exported, expected)


@torch.no_grad()
@pytest.mark.parametrize(("quick_gelu", "size"), [(True, (32, 16)), (False, (16, 40))])
def test_without_overlap_it_is_open_clips_tower(quick_gelu, size):
    clip = small_clip(quick_gelu=quick_gelu, image_size=size)
    expected = clip.visual(random_images(size=size))
    features = tower(clip, size)(random_images(size=size))
    torch.testing.assert_close(features.projected, expected, rtol=0, atol=1e-5)
    other = small_clip(quick_gelu=not quick_gelu, image_size=size).visual(random_images(size=size))
    assert (features.projected - other).abs().max() > 1e-3  # the comparison above can tell activations apart


def test_every_block_trains_at_any_depth():
    layers = 24
    image = tower(small_clip(layers=layers)).train()
    features = image(random_images())
    sum(feature.square().sum() for feature in features).backward()
    blocks = image.visual.transformer.resblocks
    assert len(blocks) == layers
    assert all(parameter.grad.abs().sum() > 0 for block in blocks for parameter in block.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_last_block_is_computed_for_the_class_token_alone(checkpointing):
    image, counts = small_model(cams=2).image.double().train(), []
    image.set_grad_checkpointing(checkpointing)
    for block in image.visual.transformer.resblocks:
        block.mlp.register_forward_pre_hook(lambda module, inputs: counts.append(inputs[0].shape[1]))

    def run(by_blocks: bool) -> tuple:
        image.by_blocks = by_blocks
        features = image(random_images().double(), side_info([0, 1, 1]))
        sum(feature.square().sum() for feature in features).backward()
        gradients = {name: parameter.grad for name, parameter in image.named_parameters()}
        image.zero_grad()
        return features, gradients

    short = run(by_blocks=False)
    tokens = 1 + image.grid[0] * image.grid[1]
    assert sorted(set(counts)) == [1, tokens] and counts.count(1) == (2 if checkpointing else 1)
    torch.testing.assert_close(short, run(by_blocks=True), rtol=1e-11, atol=1e-12)


# ------------------------------------------------------------------------------------------------------ position table


@pytest.mark.parametrize(("old", "new"), [((4, 2), (9, 1)), ((3, 5), (3, 4)), ((2, 2), (1, 1))])
def test_resizing_to_odd_grids(old, new):
    table = torch.randn(1 + old[0] * old[1], 3)
    expected = ref.resize_positions(table.double(), old, new).float()
    torch.testing.assert_close(resize_positions(table, old, new), expected)


def test_the_same_grid_keeps_the_table_bit_for_bit():
    table = torch.randn(9, 3)
    assert torch.equal(resize_positions(table, (4, 2), (4, 2)), table)
    assert not torch.equal(resize_positions(table, (4, 2), (2, 4)), table)  # as many patches, placed otherwise


@torch.no_grad()
def test_images_of_another_size_than_the_towers():
    clip, images = small_clip(), random_images(size=(48, 24))
    features = tower(clip)(images)
    table = ref.resize_positions(clip.visual.positional_embedding.double(), (4, 2), (6, 3)).float()
    clip.visual.positional_embedding = torch.nn.Parameter(table)
    torch.testing.assert_close(features.projected, clip.visual(images), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- side information


@torch.no_grad()
def test_side_information_counts_in_what_retrieval_compares():
    model, side = small_model(cams=2).eval(), side_info([0, 1, 1])
    features = model.encode_image(random_images(), side)
    embedded = model.embed(random_images(), side)
    torch.testing.assert_close(embedded, torch.cat([features.last, features.projected], dim=1))
    assert not torch.allclose(model.embed(random_images()), embedded)


@torch.no_grad()
def test_without_side_information_given_or_without_a_table_nothing_is_added():
    clip = small_clip()
    plain = tower(clip)(random_images()).last
    side = SideEmbedding(3, 1, 32, camera=True, view=False, scale=3.0)
    torch.nn.init.normal_(side.table)
    assert torch.equal(tower(clip, side=side)(random_images()).last, plain)
    assert torch.equal(tower(clip)(random_images(), side_info([0, 1, 2])).last, plain)


# -------------------------------------------------------------------------------------------------------------- ResNet


@torch.no_grad()
@pytest.mark.parametrize(("size", "grid"), [((64, 32), (4, 2)), ((256, 128), (16, 8)), ((255, 127), (16, 8))])
def test_the_resnets_last_stage_keeps_its_size(size, grid):
    image = ResNetTower(small_resnet().visual, size).eval()
    maps = []
    image.visual.layer4.register_forward_hook(lambda module, inputs, output: maps.append(output.shape[2:]))
    features = image(random_images(size=size), side_info(torch.zeros(3)))  # which it has no place for
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


@torch.no_grad()
@pytest.mark.parametrize("known", [0, 1, 5, 11])
def test_no_more_tokens_are_computed_than_are_needed(known):
    model = small_model().double().eval()
    text, prompts = model.text, model.prompts
    embedded = prompts(torch.tensor([0, 1]))
    x = text.transformer(embedded + text.positional_embedding, attn_mask=text.attn_mask)
    expected = text.ln_final(x)[:, prompts.end] @ text.text_projection
    *blocks, last = text.transformer.resblocks
    seen = {block: [] for block in (*blocks, last)}
    for block, counts in seen.items():
        block.mlp.register_forward_pre_hook(lambda module, inputs, counts=counts: counts.append(inputs[0].shape[1]))
    pasts = text.read(embedded[:, :known]) if known else ()
    torch.testing.assert_close(text(embedded, prompts.end, pasts), expected, rtol=1e-12, atol=1e-12)
    assert prompts.end == 11 and seen[last] == [1]
    assert all(seen[block] == [known, 12 - known][not known :] for block in blocks)


@torch.no_grad()
@pytest.mark.parametrize("wanted", [slice(1), slice(-1, None), slice(2)])
def test_a_frozen_block_computes_what_one_that_trains_does(wanted):
    """To the last bit: a stage that is resumed has frozen less than one that follows another."""
    block = small_model().text.transformer.resblocks[0]
    tokens = torch.randn(20, 7, block.attn.embed_dim, generator=torch.Generator().manual_seed(5))
    trains, _ = run_block(block.requires_grad_(True), tokens, wanted)
    frozen, _ = run_block(block.requires_grad_(False), tokens, wanted)
    assert torch.equal(trains, frozen)


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


# ---------------------------------------------------------------------------------------------------------------- names


def test_names_of_clips():
    for name, patch, stride in (("ViT-B-32-quickgelu", 32, None), ("ViT-L-14-336", 14, None), ("RN50", 16, (16, 16))):
        assert find_tower(name)[1:3] == (patch, stride) and find_tower(name).is_clip


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("vit_base_patch16_dinov3", "near it: timm/vit_base_patch16_dinov3"),
        ("vit_base_patch16_dinov3.lvd1689m", "MODEL.NAME timm/vit_base_patch16_dinov3 MODEL.PRETRAIN lvd1689m"),
        ("hf-hub:timm/test_vit.r160_in1k", "MODEL.NAME timm/test_vit MODEL.PRETRAIN r160_in1k"),
        ("TIMM/resnet50 ", "near it: timm/resnet50"),
        ("timm/vit_bas_patch16_224", "near it: timm/vit_base_patch16_224"),
        ("swin_base_patch4_window7_224", "near it: timm/swin_base_patch4_window7_224"),  # open_clip's of this name
        ("timm/personvit_base", "near it: personvit_base"),
        ("PersonViT-Base", "near it: personvit_base"),
        ("ViT-B/16", "near it: ViT-B-16"),
        ("ViT-Tiny8", "near it: ViT-Tiny-8"),
        ("RN500", "near it: RN50"),
        ("dinov3", "near it: timm/vit_7b_patch16_dinov3"),
        ("isr", "near it: isr_swin_base"),
    ],
)
def test_a_name_that_there_is_not_is_answered_with_what_is_meant(name, meant):
    with pytest.raises(WeightsError) as refused:
        find_tower(name)
    assert str(refused.value).partition("; ")[2].partition(";")[0].partition(", ")[0] in (meant, f"expected {meant}")


@pytest.mark.parametrize("name", ["vit-b-16-siglip", "ViT-B-16-SigLIP-25", "EVA02-B16", "coca", "MobileCLIP", "ViT-H"])
def test_only_names_that_there_are_are_offered(name):
    """open_clip has CLIPs that are not of OpenAI's form under the first five."""
    with pytest.raises(WeightsError, match="near it: ") as refused:
        find_tower(name)
    for near in str(refused.value).partition("near it: ")[2].partition(";")[0].split(", "):
        assert find_tower(near)
