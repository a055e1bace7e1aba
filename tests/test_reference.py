"""The reference itself, against printed figures, numbers worked out by hand, and plain torch modules."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests import reference as ref

VIT = {"width": 16, "layers": 2, "embed": 12, "patch": 4, "text_width": 8, "text_layers": 2}
HEADS = {"ssl_hidden": 10, "ssl_out": 6}
PERSON = {"classes": 5, "image_size": (256, 128)}


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors here are too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        rtol=tolerance,
        atol=tolerance,
    )


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_vit(seed=0, **changes):
    arguments = {"classes": 4, "image_size": (16, 8), "stride": 4, "ssl": "SIMCLR", **VIT, **HEADS, **changes}
    return ref.random_state(ref.layout("vit", **arguments), seed)


def small_rn50(seed=0, **changes):
    arguments = {"classes": 4, "image_size": (64, 32), "width": 4, "blocks": (2, 1, 1, 2), "embed": 12}
    return ref.random_state(ref.layout("rn50", **{**arguments, "text_width": 8, "text_layers": 2, **changes}), seed)


# --- checkpoint


@pytest.mark.parametrize(
    ("count", "arguments"),
    [
        (347, {"ssl": "SIMCLR"}),
        (348, {"ssl": "SIMCLR", "rows": 8}),
        (348, {"ssl": "SIMCLR", "rows": 8, "stride": 12}),
        (325, {"ssl": "SIMSIAM", "rows": 8}),
        (316, {"rows": 8}),
        (315, {}),
        (502, {"tower": "rn50"}),
        (164, {"prompts": False}),
        (351, {"tower": "rn50", "prompts": False}),
    ],
)
def test_the_layout_has_the_published_number_of_tensors(count, arguments):
    assert len(ref.layout(**PERSON, **arguments)) == count


def test_the_layout_has_the_published_shapes():
    shapes = ref.layout(**PERSON, stride=12, rows=8, ssl="SIMCLR")
    assert next(iter(shapes)) == "cv_embed"
    assert shapes["cv_embed"] == (8, 768)
    assert shapes["image_encoder.positional_embedding"] == (211, 768)
    assert shapes["image_encoder.transformer.resblocks.11.mlp.c_fc.weight"] == (3072, 768)
    assert shapes["text_mlp.layer1.weight"] == (4096, 512)
    assert shapes["image_mlp.layer3.weight"] == (256, 4096)
    assert shapes["prompt_learner.token_suffix"] == (1, 68, 512)
    assert shapes["text_encoder.text_projection"] == (512, 512)
    grids = [ref.grid(size, 16, stride) for size in ((256, 128), (256, 256)) for stride in (16, 12)]
    assert grids == [(16, 8), (21, 10), (16, 16), (21, 21)]
    shapes = ref.layout("rn50", **PERSON)
    assert shapes["classifier.weight"] == (5, 2048)
    assert shapes["bottleneck_proj.running_var"] == (1024,)
    assert shapes["image_encoder.attnpool.positional_embedding"] == (129, 2048)
    assert shapes["image_encoder.layer4.0.downsample.0.weight"] == (2048, 1024, 1, 1)
    assert shapes["text_encoder.text_projection"] == (512, 1024)


def test_a_random_state_leaves_no_tensor_without_effect_and_activations_of_order_one():
    state = small_vit()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            assert value.std() > 0.03, name
        if name.endswith("running_var"):
            assert value.min() > 0
    assert all(0.1 < x.std() < 10 for x in ref.vit(state, normal(3, 3, 16, 8), heads=2, stride=4))
    deep = small_rn50(blocks=(3, 4, 6, 3))
    assert all(0.1 < x.std() < 10 for x in ref.rn50(deep, normal(3, 3, 64, 32), heads=2))


# --- layers and towers


def test_resizing_keeps_a_ramp_a_ramp_and_agrees_with_torch():
    ramp = torch.arange(4.0, dtype=torch.float64).view(1, 4).expand(3, 4).reshape(12, 1)
    table = torch.cat([torch.full((1, 1), 9.0, dtype=torch.float64), ramp])
    out = ref.resize_positions(table, (3, 4), (2, 8))
    assert out[0] == 9
    close(out[1:].view(2, 8)[1], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])  # the outermost beyond the centres
    table = normal(1 + 14 * 14, 3)
    for new in ((14, 14), (21, 10), (16, 8), (5, 7)):
        expected = F.interpolate(table[1:].T.reshape(1, 3, 14, 14), new, mode="bilinear", align_corners=False)
        out = ref.resize_positions(table, (14, 14), new)
        close(out[1:], expected[0].flatten(1).T)
        close(out[0], table[0])


def test_normalisations_agree_with_torch():
    state = small_vit()
    x = normal(5, 16)
    weight, bias = state["image_encoder.ln_pre.weight"], state["image_encoder.ln_pre.bias"]
    close(ref.layer_norm(state, "image_encoder.ln_pre", x), F.layer_norm(x, (16,), weight, bias, 1e-5))
    for name, values in (("bottleneck", x), ("bottleneck_proj", normal(5, 12, 3, 2))):
        module = (nn.BatchNorm1d if values.ndim == 2 else nn.BatchNorm2d)(values.shape[1]).double()
        module.load_state_dict({key[len(name) + 1 :]: v for key, v in state.items() if key.startswith(f"{name}.")})
        moved = {}
        for _ in range(2):
            close(ref.batch_norm(state, name, values, True, moved), module(values).detach())
        for key in ref.RUNNING:
            close(moved[f"{name}.{key}"], module.state_dict()[key])
        close(ref.batch_norm({**state, **moved}, name, values, False), module.eval()(values).detach())


def test_attention_agrees_with_torch():
    module = nn.MultiheadAttention(16, 4, batch_first=True).double()
    x = normal(2, 5, 16)
    q, k, v = (x @ module.in_proj_weight.T + module.in_proj_bias).chunk(3, -1)
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    for causal in (False, True):
        out = ref.attention(q, k, v, 4, causal) @ module.out_proj.weight.T + module.out_proj.bias
        expected, _ = module(x, x, x, attn_mask=future if causal else None)
        close(out.detach(), expected.detach())


def test_side_information_reaches_the_class_token_only():
    state = small_vit(rows=6)
    for camera, view, rows in ((True, True, [1 * 3 + 2, 0]), (True, False, [1, 0]), (False, True, [2, 0])):
        cams, views = (2 if view else 6), (3 if camera else 6)
        out = ref.sie_rows(state, 2.0, [1, 0], [2, 0], cams, views, camera, view)
        close(out, 2 * state["cv_embed"][rows])
    assert ref.sie_rows(state, 2.0, [1], [2], 2, 3, False, False) is None
    images = normal(2, 3, 16, 8)
    plain = ref.vit(state, images, heads=2, stride=4, tokens=True)
    moved = dict(state)
    moved["image_encoder.class_embedding"] = state["image_encoder.class_embedding"] + out[1]
    side = ref.vit(state, images, heads=2, stride=4, side_row=out[1].expand(2, 16), tokens=True)
    for one, other, without in zip(side, ref.vit(moved, images, heads=2, stride=4, tokens=True), plain, strict=True):
        close(one, other)
        assert (one - without).abs().max() > 1e-3


def test_towers_return_the_class_token_and_the_pooled_maps():
    state = small_vit()
    images = normal(2, 3, 16, 8)
    every = ref.vit(state, images, heads=2, stride=4, tokens=True)
    assert [tuple(x.shape) for x in every] == [(2, 9, 16), (2, 9, 16), (2, 9, 12)]
    for one, all_tokens in zip(ref.tower(state, images, heads=2, stride=4), every, strict=True):
        close(one, all_tokens[:, 0])
    state = small_rn50()
    images = normal(2, 3, 64, 32)
    third, fourth, sequence = ref.rn50(state, images, heads=2, tokens=True)
    assert [tuple(x.shape) for x in (third, fourth, sequence)] == [(2, 64, 4, 2), (2, 128, 4, 2), (2, 9, 12)]
    assert [tuple(x.shape) for x in ref.tower(state, images, heads=2)] == [(2, 64), (2, 128), (2, 12)]


def test_text_ignores_what_comes_after_the_end_and_reads_its_own_context():
    state = small_vit()
    embedded = ref.prompts(state, [3, 1])
    assert embedded.shape == (2, 77, 8)
    close(embedded[0, 5:9], state["prompt_learner.cls_ctx"][3])
    out = ref.text(state, embedded, heads=2)
    later, earlier = embedded.clone(), embedded.clone()
    later[:, 12:] = 7
    earlier[:, 11] = 0
    close(ref.text(state, later, heads=2), out, 1e-14)
    assert (ref.text(state, earlier, heads=2) - out).abs().min() > 1e-6
    assert out.shape == (2, 12)


def test_prompt_augmentations_by_hand():
    prompts = torch.arange(12.0).view(2, 3, 2)
    zeroed = torch.zeros(2, 3, 2, dtype=torch.bool)
    zeroed[0, 1, 1] = True
    assert ref.mask(prompts, zeroed).flatten().tolist() == [0, 1, 2, 0, 4, 5, 6, 7, 8, 9, 10, 11]
    swapped = ref.swap(prompts, [[0, 2], [1, 2]], [[1, 0], [0, 1]])
    assert swapped.flatten().tolist() == [4, 5, 2, 3, 0, 1, 6, 7, 8, 9, 10, 11]
    mixed = ref.mix(prompts, [1, 0], 0.25)
    assert mixed[:, 0].tolist() == [[1.5, 2.5], [4.5, 5.5]]


def test_heads_and_the_retrieval_feature():
    state = small_vit()
    first, second = [[nn.Linear(size, 10), nn.BatchNorm1d(10), nn.ReLU()] for size in (16, 10)]
    module = nn.Sequential(*first, *second, nn.Linear(10, 6)).double()
    own = [v for k, v in state.items() if k.startswith("image_mlp.")]
    module.load_state_dict(dict(zip(module.state_dict(), own, strict=True)))
    x = normal(5, 16)
    close(ref.simclr_head(state, "image_mlp", x), module(x).detach())
    siamese = small_vit(ssl="SIMSIAM")
    module = nn.Sequential(nn.Linear(16, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 16)).double()
    own = [v for k, v in siamese.items() if k.startswith("image_mlp.")]
    module.load_state_dict(dict(zip(module.state_dict(), own, strict=True)))
    close(ref.simsiam_head(siamese, "image_mlp", x), module(x).detach())
    projected = normal(5, 12, seed=1)
    close(ref.embed(state, x, projected), torch.cat([x, projected], 1))
    after = ref.embed(state, x, projected, "after")
    mean, var = state["bottleneck.running_mean"], state["bottleneck.running_var"]
    expected = (x - mean) / (var + 1e-5).sqrt() * state["bottleneck.weight"] + state["bottleneck.bias"]
    close(after[:, :16], expected)


# --- losses


def test_cross_entropy_by_hand_and_against_torch():
    scores = torch.tensor([[math.log(2.0), 0.0, 0.0]], dtype=torch.float64)  # probabilities 1/2, 1/4, 1/4
    close(ref.cross_entropy(scores, [0], 0.0), math.log(2))
    close(ref.cross_entropy(scores, [0], 0.3), 0.7 * math.log(2) + 0.1 * (math.log(2) + 2 * math.log(4)))
    scores, labels = normal(4, 5), torch.tensor([0, 2, 2, 4])
    close(ref.cross_entropy(scores, labels), F.cross_entropy(scores, labels, label_smoothing=0.1))


def test_triplet_by_hand():
    points = torch.tensor([[0.0], [1.0], [3.0], [3.5]], dtype=torch.float64)
    # gaps: 1 - 3, 1 - 2, 0.5 - 2, 0.5 - 2.5
    close(ref.triplet(points, [0, 0, 1, 1], 1.75), (0 + 0.75 + 0.25 + 0) / 4)
    soft = sum(math.log(1 + math.exp(gap)) for gap in (-2, -1, -1.5, -2)) / 4
    close(ref.triplet(points, [0, 0, 1, 1], None), soft)


def test_supervised_contrast_by_hand():
    anchors = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    candidates = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    first = math.log(1 + math.e + math.e**3) - 3  # its only positive is the last
    second = math.log(1 + math.e**2 + math.e**6) - (0 + 2) / 2
    close(ref.sup_con(anchors, candidates, [1, 0], [0, 0, 1]), (first + second) / 2)


def test_nt_xent_by_hand():
    close(ref.nt_xent(normal(1, 3), normal(1, 3, seed=1)), 0)
    first = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    second = torch.tensor([[5.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    # each row: its view at similarity 1, two others at 0
    close(ref.nt_xent(first, second, 0.5), math.log(math.e**2 + 2) - 2)
    close(ref.nt_xent(first, second), math.log(1 + 2 * math.exp(-10)))


def test_simsiam_by_hand_and_its_stopped_gradient():
    p, z = (torch.tensor([row], dtype=torch.float64) for row in ([1.0, 0.0], [3.0, 4.0]))
    close(ref.simsiam(p, 2 * p, z, 3 * z), -0.6)
    p, z = p.requires_grad_(), z.requires_grad_()
    ref.simsiam(p, p, z, z).backward()
    assert z.grad is None
    assert p.grad.abs().max() > 0


def test_totals_are_weighted_sums():
    images, texts, labels = normal(4, 3), normal(4, 3, seed=1), [0, 0, 1, 2]
    views = normal(3, 2, seed=2), normal(3, 2, seed=3)
    terms = ref.stage1_total(images, texts, labels, views, 0.8)
    close(terms["total"], terms["image_text"] + 0.8 * terms["language_ssl"])
    both = ref.sup_con(images, texts, labels, labels) + ref.sup_con(texts, images, labels, labels)
    close(terms["image_text"], both)
    weights = {"id": 0.25, "triplet": 1.0, "image_text": 2.0, "image_ssl": 0.5}
    scores, features = [normal(4, 3), normal(4, 3)], [normal(4, 5), normal(4, 6), normal(4, 7)]
    ssl = torch.tensor(3.0, dtype=torch.float64)
    terms = ref.stage2_total(scores, features, scores[0], labels, weights=weights, ssl=ssl)
    close(terms["total"], sum(weights[name] * terms[name] for name in weights))
    close(terms["id"], 2 * terms["image_text"])


# --- schedules and optimiser


def test_the_first_schedule_gives_the_published_rates():
    rates = [ref.stage1_lr(epoch) for epoch in range(1, 121)]
    close(rates[:4], [7.8e-5, 1.46e-4, 2.14e-4, 2.82e-4], 1e-15)
    close(rates[4:6], [3.48507e-4, 3.47852e-4], 5e-10)
    close(rates[118:], [1.0598e-6, 1e-6], 5e-11)


def test_the_second_schedule_gives_the_published_rates():
    person = [ref.stage2_lr(epoch) for epoch in range(1, 61)]
    close(person[:3], [9.5e-7, 1.4e-6, 1.85e-6], 1e-15)
    close(person[8], 4.55e-6, 1e-15)
    close(person[9:], [5e-6] * 20 + [5e-7] * 20 + [5e-8] * 11, 1e-15)
    rates = [ref.stage2_lr(epoch, base=3.5e-4, factor=0.01, steps=(40, 70)) for epoch in range(1, 121)]
    close(rates[:2], [3.815e-5, 7.28e-5], 1e-15)
    close(rates[9:], [3.5e-4] * 30 + [3.5e-5] * 30 + [3.5e-6] * 51, 1e-15)


def test_the_image_stage_has_the_published_groups():
    names = ref.trained(ref.layout(**PERSON, rows=8, ssl="SIMCLR"))
    rules = ref.group_rules(names, decay=1e-4, decay_bias=5e-4)
    assert len(names) == 177
    assert sum(rule == (2, 5e-4) for rule in rules.values()) == 84
    assert rules["bottleneck.weight"] == rules["cv_embed"] == rules["image_encoder.ln_pre.weight"] == (1, 1e-4)
    assert rules["image_encoder.transformer.resblocks.3.attn.in_proj_bias"] == (2, 5e-4)
    assert ref.group_rules(["classifier.weight"], large_fc=True) == {"classifier.weight": (2, 1e-4)}


def test_adam_by_hand_and_against_torch():
    one = torch.ones(1, dtype=torch.float64)
    new = ref.adam_step({"a": one, "b": one}, {"a": 0 * one, "b": None}, {}, {"a": 0.1}, {"a": 0.5})
    close(new["a"], [1 - 0.1 * 0.5 / (0.5 + 1e-8)])  # decay alone moves by the whole rate
    close(new["b"], [1])
    params = {"a": normal(3, 2), "b.bias": normal(2)}
    leaves = {name: nn.Parameter(value.clone()) for name, value in params.items()}
    rates, decays, moments = {"a": 1e-2, "b.bias": 2e-2}, {"a": 0.1, "b.bias": 0.3}, {}
    optimizer = torch.optim.Adam(
        [{"params": [leaf], "lr": rates[name], "weight_decay": decays[name]} for name, leaf in leaves.items()]
    )
    for step in range(5):
        grads = {name: normal(*value.shape, seed=step + 7) for name, value in params.items()}
        for name, leaf in leaves.items():
            leaf.grad = grads[name].clone()
        optimizer.step()
        params = ref.adam_step(params, grads, moments, rates, decays)
    for name, leaf in leaves.items():
        close(params[name], leaf.detach(), 1e-13)


# --- transforms


def test_transforms_by_hand():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    view = ref.train_view(image, flipped=True, padding=1, top=0, left=2)
    # black on top; below, the second to last columns of the mirrored picture and one of border
    expected = [[-1, -1, -1, -1], [6, 3, 0, None]]
    close(view[0, 0], expected[0])
    close(view[0, 1], [2 * v / 255 - 1 if v is not None else -1 for v in expected[1]])
    values = ref.normalise(image, (0.1, 0.2, 0.3), (0.5, 0.25, 1.0))[:, 0, 1]
    close(values, [(3 / 255 - 0.1) * 2, (4 / 255 - 0.2) * 4, 5 / 255 - 0.3])
    noise = torch.full((3, 1, 2), 5.0, dtype=torch.float64)
    erased = ref.erase(view, 1, 1, noise)
    assert (erased == 5).nonzero().tolist() == [[c, 1, x] for c in range(3) for x in (1, 2)]
    assert ref.erase_size(0.25, 1.0, 8, 16) == (6, 6)
    assert ref.erase_size(0.5, 1.0, 4, 16) is None


# --- retrieval


def test_ranking_by_hand():
    # first query: own camera left out, then wrong, right, right; second: no match; third: right at once
    dist = [[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 3.0, 2.0]]
    cmc, mean = ref.cmc_map(dist, [7, 9, 8], [7, 8, 7, 7], [0, 0, 1], [0, 0, 1, 2])
    close(cmc, [0.5, 1, 1, 1])
    close(mean, ((1 / 2 + 2 / 3) / 2 + 1) / 2)
    assert len(ref.cmc_map(dist, [7, 9, 8], [7, 8, 7, 7], [0, 0, 1], [0, 0, 1, 2], max_rank=2)[0]) == 2


def test_reranking_by_hand():
    query, gallery = [[0.0]], [[1.0], [10.0], [12.0]]
    out = ref.rerank_dense(query, gallery, k1=1, k2=1, lam=0.3)
    a, b = math.exp(-1 / 144), math.exp(-1 / 121)
    shared = a / (1 + a) + b / (1 + b)
    close(out[0], [0.7 * (1 - shared / (2 - shared)) + 0.3 / 144, 0.7 + 0.3 * 100 / 144, 1.0])
    # with the mean of two rows, both of the first pair have the same weights
    out = ref.rerank_dense(query, gallery, k1=1, k2=2, lam=0.3)
    close(out[0], [0.3 / 144, 0.7 + 0.3 * 100 / 144, 1.0])


def test_half_precision_reranking_stays_near():
    features = ref.unit(normal(80, 8)).numpy()
    exact = ref.rerank_dense(features[:20], features[20:], k1=12, k2=4)
    half = ref.rerank_half(features[:20], features[20:], k1=12, k2=4)
    assert exact.shape == half.shape == (20, 60)
    assert 0 < np.abs(exact - half).max() < 5e-3
    assert exact.min() >= 0 and exact.max() <= 1


# --- whole stages


def slope(function, value, index, step=1e-5):
    """Central difference of the function of a tensor, along one entry."""
    shifted = [value.clone(), value.clone()]
    shifted[0].view(-1)[index] += step
    shifted[1].view(-1)[index] -= step
    return ((function(shifted[0]) - function(shifted[1])) / (2 * step)).item()


WEIGHTS = {"id": 0.25, "triplet": 1.0, "image_text": 1.0, "image_ssl": 0.8}


def image_batch(size=(16, 8), seed=0):
    return {
        "images": normal(6, 3, *size, seed=seed),
        "views": normal(2, 6, 3, *size, seed=seed + 1),
        "pids": [0, 0, 1, 1, 3, 3],
        "camids": [0, 1, 1, 0, 1, 1],
        "viewids": [0, 2, 1, 0, 2, 2],
    }


SIDE = {"scale": 2.0, "cams": 2, "views": 3, "camera": True, "view": True}


@pytest.mark.parametrize("ssl", ["SIMCLR", "SIMSIAM"])
def test_gradients_of_the_image_stage_are_slopes(ssl):
    state = small_vit(rows=6, ssl=ssl)
    texts = normal(4, 12, seed=5)
    settings = {"weights": WEIGHTS, "stride": 4, "heads": 2, "side": SIDE, "ssl": ssl}
    last = "image_mlp.layer3.weight" if ssl == "SIMCLR" else "image_mlp.layer2.weight"
    for name in ("image_encoder.conv1.weight", "cv_embed", "bottleneck_proj.weight", last):
        leaf = state[name].clone().requires_grad_()

        def total(value, name=name):
            return ref.image_stage_terms({**state, name: value}, image_batch(), texts, **settings)["total"]

        (gradient,) = torch.autograd.grad(total(leaf), [leaf])
        if ssl == "SIMSIAM" and name not in (last, "bottleneck_proj.weight"):
            continue  # a stopped gradient is no slope
        for index in (0, leaf.numel() // 2):
            close(gradient.view(-1)[index], slope(total, state[name], index), 1e-6)


def test_the_image_stage_moves_what_it_trains_and_nothing_else():
    state = small_vit(rows=6)
    texts = normal(4, 12, seed=5)
    batches = [[image_batch(), image_batch(seed=3)], [image_batch(seed=6)]]
    settings = {"weights": WEIGHTS, "stride": 4, "heads": 2, "side": SIDE, "ssl": "SIMCLR"}
    schedule = {"base": 1e-3, "factor": 0.1, "iters": 2, "steps": (2,)}
    steps, final = ref.replay_image_stage(state, batches, texts, schedule=schedule, **settings)
    assert len(steps) == 3
    first = ref.image_stage_terms(state, batches[0][0], texts, **settings)
    assert steps[0] == {name: value.item() for name, value in first.items()}
    moving = {name for name in state if not torch.equal(state[name], final[name])}
    optimised = {name for name in ref.trained(state) if not name.startswith("text_mlp.")}
    passed = {name for name in state if name.rsplit(".", 1)[-1] in ref.RUNNING and not name.startswith("text_mlp.")}
    assert moving == optimised | passed
    assert final["bottleneck.num_batches_tracked"] == 3
    assert final["image_mlp.bn1.num_batches_tracked"] == 6
    _, once = ref.replay_image_stage(state, [batches[0][:1]], texts, schedule=schedule, **settings)
    # Adam's first step: the rate for weights, twice that for biases
    assert (once["classifier.weight"] - state["classifier.weight"]).abs().max() == pytest.approx(5.5e-4, rel=1e-4)
    name = "image_encoder.ln_post.bias"
    assert (once[name] - state[name]).abs().max() == pytest.approx(1.1e-3, rel=1e-4)


def test_the_image_stage_of_the_resnet_moves_its_normalisations():
    state = small_rn50(ssl="SIMCLR", **HEADS)
    batch = image_batch((64, 32))
    settings = {"weights": WEIGHTS, "heads": 2, "ssl": "SIMCLR"}
    steps, final = ref.replay_image_stage(state, [[batch]], normal(4, 12, seed=5), **settings)
    assert all(math.isfinite(value) for value in steps[0].values())
    assert final["image_encoder.layer3.0.bn2.num_batches_tracked"] == 3
    still = {name for name in ref.trained(state) if torch.equal(state[name], final[name])}
    assert still == {name for name in ref.trained(state) if name.startswith("text_mlp.")}


def test_the_baseline_needs_neither_text_nor_views():
    state = small_vit(prompts=False, ssl=None)
    weights = {"id": 1.0, "triplet": 1.0}
    batch = {name: image_batch()[name] for name in ("images", "pids")}
    steps, _ = ref.replay_image_stage(state, [[batch]], None, weights=weights, stride=4, heads=2, margin=None)
    assert steps[0]["total"] == pytest.approx(steps[0]["id"] + steps[0]["triplet"])
    assert steps[0]["image_text"] == steps[0]["image_ssl"] == 0


def test_the_prompt_stage_moves_all_prompts_by_slopes_and_decay():
    state = small_vit()
    name = "prompt_learner.cls_ctx"
    features, pids = normal(5, 12, seed=4), [2, 0, 2, 1, 1]
    draws = [torch.rand(2, 77, 8, generator=torch.Generator().manual_seed(s)) < 0.5 for s in (0, 1)]
    settings = {"schedule": {"base": 0.01, "epochs": 2}, "heads": 2}
    moved = {}
    steps, final = ref.replay_prompt_stage(
        state,
        features,
        pids,
        batches=[[[0, 1, 2], [3, 4]], [[4, 2, 0]]],
        zeroed=[[draws, None], [draws]],
        moved=moved,
        **settings,
    )
    assert [step["language_ssl"] > 0 for step in steps] == [True, False, True]
    assert moved["text_mlp.bn2.num_batches_tracked"] == 4
    close(steps[1]["total"], steps[1]["image_text"])

    def total(context):
        current = {**state, name: context}
        embedded = ref.prompts(current, [0, 2])
        views = [ref.simclr_head(current, "text_mlp", ref.text(current, ref.mask(embedded, d), heads=2)) for d in draws]
        texts = ref.text(current, ref.prompts(current, [2, 0, 2]), heads=2)
        return ref.stage1_total(features[:3], texts, [2, 0, 2], views, 0.8)["total"]

    close(steps[0]["total"], total(state[name]))
    _, once = ref.replay_prompt_stage(state, features, pids, batches=[[[0, 1, 2]]], zeroed=[[draws]], **settings)
    for index in (0, 37, 70):  # of identities 0, 1 (not in the batch: decay only) and 2
        slant = slope(total, state[name], index) + 1e-4 * state[name].view(-1)[index].item()
        # linear warm-up: 1e-5 + (0.01 - 1e-5) / 5; Adam's first step is the rate times the sign
        expected = -(1e-5 + (0.01 - 1e-5) / 5) * slant / (abs(slant) + 1e-8)
        assert (once - state[name]).view(-1)[index].item() == pytest.approx(expected, rel=1e-4)
    assert all((final - state[name])[pid].abs().min() > 0 for pid in range(4))
