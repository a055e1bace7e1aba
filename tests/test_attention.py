"""Attention and shares: against plain loops over small towers, and the tool."""

import numpy as np
import pytest
import torch
from builders import IMAGE, small_model, small_resnet_model
from PIL import Image
from torch.nn import functional as F

from datasets.transforms import TestTransform
from model.svllreid import SvllReid
from model.timm_tower import Variant, make_timm
from processor.attention import _views, _watched, attention_map, pair_shares
from processor.inference import Embedder
from tools import attention as tool
from tools import attention_figure
from tools.attention_figure import figures
from utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def images():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (40, 24, 3), dtype=np.uint8)) for _ in range(2)]


def shaken(model):
    """Every number of the network counts."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for head in model.heads:
            head.neck.running_mean.normal_()
            head.neck.running_var.uniform_(0.5, 2)
    return model


def embedder(model, size=IMAGE, **options):
    transform = TestTransform(size, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Embedder(shaken(model), transform, device=CPU, **options)


def of_timm(name, size, **options):
    return SvllReid(make_timm(name, size, (16, 16), **options), 3)


NETWORKS = {
    "CLIP, class token": lambda **o: embedder(small_model(cams=2), **o),
    "CLIP, ResNet": lambda **o: embedder(small_resnet_model(), **o),
    "plain": lambda **o: embedder(of_timm("test_vit", (64, 32), embed_dim=12), (64, 32), **o),
    "token and mean": lambda **o: embedder(of_timm("test_vit", (64, 32), pooling="token+avg"), (64, 32), **o),
    "mean": lambda **o: embedder(of_timm("test_vit", (64, 32), pooling="avg"), (64, 32), **o),
    "registers, rotary positions": lambda **o: embedder(of_timm("vit_small_patch16_dinov3", (64, 32)), (64, 32), **o),
    "ConvNeXt": lambda **o: embedder(of_timm("test_convnext", (64, 32)), (64, 32), **o),
    "ResNet": lambda **o: embedder(of_timm("test_resnet", (64, 32)), (64, 32), **o),
}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_shares_and_the_rest_are_the_cosine_and_features_stay(name, flip, images):
    embed = NETWORKS[name](flip=flip)
    before = embed(images)
    shares = pair_shares(embed, *images)
    assert shares.cosine == pytest.approx(float(before[0] @ before[1]), abs=1e-6)
    for grid, rest in zip(shares[1:3], shares.rests, strict=True):
        assert grid.ndim == 2 and float(grid.sum()) + rest == pytest.approx(shares.cosine, abs=1e-5)
        assert float(grid.std()) > 1e-6
    own = attention_map(embed, images[0], "share")
    assert own.shape == shares.first.shape and not torch.equal(own, shares.first)
    assert torch.equal(embed(images), before)  # nothing of the watching is left


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("ResNet", "ConvNeXt", "CLIP, ResNet")])
def test_what_the_class_token_gets_from_all_tokens_is_what_its_attention_adds(name, images):
    embed = NETWORKS[name]()
    tower, added = embed.model.image, []
    blocks = tower.visual.transformer.resblocks if hasattr(tower, "visual") else tower.net.blocks
    views = _views(embed, images[0])
    for block in blocks:
        block.attn.register_forward_hook(lambda module, args, out: added.append(out[0] if type(out) is tuple else out))
    with torch.no_grad(), _watched(tower) as seen:
        tower(views)
    for block, own, output in zip(blocks, seen.blocks, added, strict=True):
        slope = torch.randn(1, output.shape[-1])
        scale = getattr(block, "gamma_1", None)
        scale = torch.ones(()) if scale is None else scale
        scale = getattr(getattr(block, "ls1", None), "gamma", scale)
        bias = (block.attn.out_proj if hasattr(block.attn, "out_proj") else block.attn.proj).bias
        expected = ((output[:, 0] - bias) * scale * slope).sum()
        torch.testing.assert_close(own.received(slope).sum(), expected, atol=1e-4, rtol=1e-4)


def by_loops(embed, image, unit):
    """CLIP's transformer, head by head and token by token -> attention of the blocks, shares of the tokens."""
    tower = embed.model.image
    visual, x = tower.visual, embed.prepare(image)[None]
    patches = visual.conv1(x).flatten(2).transpose(1, 2)
    token = visual.class_embedding + tower.side(embed.side_of(1))
    x = visual.ln_pre(torch.cat([token[None], patches], dim=1) + visual.positional_embedding)[0]
    attention, received = [], []
    for block in visual.transformer.resblocks:
        h, attn = block.ln_1(x), block.attn
        q, k, v = (h @ attn.in_proj_weight.T + attn.in_proj_bias).chunk(3, dim=1)
        heads = [part.chunk(attn.num_heads, dim=1) for part in (q, k, v)]
        weights = [(q @ k.T / q.shape[1] ** 0.5).softmax(dim=1) for q, k in zip(*heads[:2], strict=True)]
        given = [
            torch.cat([w[0, t] * v[t] for w, v in zip(weights, heads[2], strict=True)]) @ attn.out_proj.weight.T
            for t in range(len(x))
        ]
        received.append(torch.stack(given))
        mixed = torch.cat([w @ v for w, v in zip(weights, heads[2], strict=True)], dim=1)
        x = x + mixed @ attn.out_proj.weight.T + attn.out_proj.bias
        x = x + block.mlp(block.ln_2(x))
        attention.append(torch.stack(weights).mean(dim=0))
    end = x[0]
    deviation = (end.var(correction=0) + visual.ln_post.eps).sqrt()

    def through_necks(part):
        """The linear part of what follows, of a part of the class token."""
        last = (part - part.mean()) / deviation * visual.ln_post.weight
        halves = (last, last @ visual.proj)
        heads = embed.model.heads
        scales = (head.neck.weight / (head.neck.running_var + head.neck.eps).sqrt() for head in heads)
        return torch.cat([half * scale for half, scale in zip(halves, scales, strict=True)])

    feature = embed.model.embed(embed.prepare(image)[None], embed.side_of(1), neck=True)[0]
    total = sum(received)
    return attention, torch.stack([through_necks(part) @ unit / feature.norm() for part in total])


@torch.no_grad()
def test_clips_shares_class_attention_and_rollout_are_those_of_plain_loops(images):
    embed = NETWORKS["CLIP, class token"]()
    second = embed(images)[1]
    attention, shares = by_loops(embed, images[0], second)
    found = pair_shares(embed, *images)
    grid = found.first.shape
    torch.testing.assert_close(found.first, shares[1:].reshape(grid), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(attention_map(embed, images[0], "class"), attention[-1][0, 1:].reshape(grid))
    rolled = torch.eye(len(shares))
    for weights in attention:
        rolled = (0.5 * weights + 0.5 * torch.eye(len(shares))) @ rolled
    torch.testing.assert_close(attention_map(embed, images[0], "rollout"), rolled[0, 1:].reshape(grid))


def test_swins_shares_are_those_of_its_map(images):
    """Mean pooling and a linear layer: a_t = <W x_t + b, u>, whose mean is the length of the feature."""
    options = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "patch_size": 4}

    def create(**arguments):
        import timm

        return timm.create_model("swin_tiny_patch4_window7_224", **{**arguments, **options}, num_classes=10)

    embed = embedder(
        SvllReid(make_timm("swin_tiny_patch4_window7_224", (64, 64), (32, 32), variant=Variant("tiny", create)), 3),
        (64, 64),
    )
    embed.neck = False
    first, second = embed(images)
    net = embed.model.image.net
    with torch.no_grad():
        tokens = net.forward_features(embed.prepare(images[0])[None])[0]
        each = net.head.fc(tokens)  # [h, w, 10]
        length = each.mean(dim=(0, 1)).norm()
    found = pair_shares(embed, *images)
    torch.testing.assert_close(found.first, (each @ second) / length / each[..., 0].numel(), atol=1e-5, rtol=1e-4)
    own = attention_map(embed, images[0], "share")
    torch.testing.assert_close(own, (each @ first) / length / each[..., 0].numel(), atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="class token"):
        attention_map(embed, images[0], "rollout")
    with pytest.raises(UserError, match="no map"):
        pair_shares(embedder(of_timm("test_vit3", (64, 32)), (64, 32)), *images)


@torch.no_grad()
def test_of_clips_resnet_only_constants_are_left_as_the_rest(images):
    embed = NETWORKS["CLIP, ResNet"]()
    embed.neck = False
    second = embed(images)[1]
    tower, view = embed.model.image, embed.prepare(images[0])[None]
    features = tower(view)
    feature = torch.cat([features.last, features.projected], dim=1)[0]
    pool, visual = tower.visual.attnpool, tower.visual
    cells = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(view)))))[0].flatten(1).T
    tokens = torch.cat([cells.mean(dim=0, keepdim=True), cells]) + pool.positional_embedding
    mixed = []  # of positions and biases alone, with the weights of the whole
    for part in range(pool.num_heads):
        q, k, v = (
            layer(t).chunk(pool.num_heads, dim=1)[part]
            for layer, t in ((pool.q_proj, tokens[:1]), (pool.k_proj, tokens), (pool.v_proj, pool.positional_embedding))
        )
        mixed.append((q @ k.T / q.shape[1] ** 0.5).softmax(dim=1) @ v)
    constant = torch.cat([torch.zeros_like(features.last[0]), pool.c_proj(torch.cat(mixed, dim=1))[0]])
    found = pair_shares(embed, *images)
    assert found.rests[0] == pytest.approx(float(constant @ second / feature.norm()), abs=1e-5)
    assert attention_map(embed, images[0], "class").shape == found.first.shape


def test_a_mirror_image_is_turned_back(images):
    """An image that is its own mirror image has the same shares left and right."""
    half = np.asarray(images[0])
    image = Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1))
    found = attention_map(NETWORKS["CLIP, class token"](flip=True), image, "rollout")
    torch.testing.assert_close(found, found.flip(-1), atol=1e-6, rtol=1e-4)
    alone = attention_map(NETWORKS["CLIP, class token"](), image, "rollout")
    assert not torch.allclose(alone, alone.flip(-1), atol=1e-4)
    assert F.cosine_similarity(found.flatten(), alone.flatten(), dim=0) > 0.9


# ------------------------------------------------------------------------------------------------------------- the tool


def test_the_tool_draws_rows_of_images_and_networks(trained, tmp_path, capsys, monkeypatch):
    path, _, benchmark = trained
    images = [sample.path for sample in benchmark.trials[0].gallery[:2]]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    drawn = []

    def draw(rows, columns, *, size):
        drawn.append((list(rows), columns))
        return figures(drawn[-1][0], columns, size=size)

    monkeypatch.setattr(attention_figure, "figures", draw)
    words = ["--weight", str(path), "--output", str(tmp_path / "a.png")]
    assert tool.main([*words, "--beside", str(path), *images]) == 0
    (rows, columns), embed = drawn.pop(), Embedder.from_checkpoint(path, device="cpu")
    assert [row.image for row in rows] == images and len(columns) == 2 and columns[0].split() == [path.name, "rollout"]
    for row in rows:
        for heat in row.heats:
            torch.testing.assert_close(heat.grid, attention_map(embed, row.image))
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert picture.shape[0] > 500 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000

    assert tool.main([*words, "--method", "pair", *images]) == 0
    shares = pair_shares(embed, *images)
    assert torch.equal(drawn[-1][0][1].heats[0].grid, shares.second)
    assert tool.main([*words, *images, str(broken)]) == 1 and "broken.jpg" in capsys.readouterr().err
    assert tool.main([*words, "--skip-unreadable", *images, str(broken)]) == 0
    for wrong, name in ((["--method", "pair", images[0]], "pair"), ([str(broken)], "none of the 1")):
        with pytest.raises(UserError, match=name):
            tool.main([*words, *wrong])


def test_many_images_are_several_files_and_pages(trained, tmp_path):
    path, _, benchmark = trained
    images = [sample.path for side in benchmark.trials[0] for sample in side][: attention_figure.ROWS + 1]
    files = [tmp_path / "a.svg", tmp_path / "a_2.svg"]
    assert tool.main(["--weight", str(path), "--output", str(files[0]), *images]) == 0
    assert all(file.read_text().lstrip().startswith("<?xml") for file in files)


def test_what_is_there_stays_if_nothing_can_be_drawn(trained, tmp_path):
    broken, output = tmp_path / "broken.png", tmp_path / "a.pdf"
    broken.write_bytes(b"no image")
    output.write_bytes(b"as it is")
    words = ["--weight", str(trained[0]), "--output"]
    with pytest.raises(UserError, match="none of the 1"):
        tool.main([*words, str(output), str(broken)])
    with pytest.raises(UserError, match=r"--output .*is one of the images"):
        tool.main([*words, str(broken), trained[2].trials[0].query[0].path, str(broken)])
    assert (broken.read_bytes(), output.read_bytes()) == (b"no image", b"as it is")
