"""The program against the plain float64 form in `reference.py`, term by term.

Networks are small but of the real kinds. Each starts as a published file with random contents, which the reference
works on as it is and the program loads through `load_model`, so that the mapping of names is compared, too.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from builders import side_info
from PIL import Image

from configs import load
from datasets.sampler import IdentitySampler
from datasets.transforms import TestTransform, TrainTransform
from loss.contrast import ImageTextContrast, ImageToText
from loss.identity import IdentityLoss
from loss.self_supervised import NegativeCosine, NTXent
from loss.triplet import BatchHardTriplet
from model.build import load_model, make_model
from model.clip import ViTTower
from model.pretrained import build_clip
from model.prompts import AUGMENTATIONS, MOVING
from model.published import from_published, published_name, to_published
from model.svllreid import SvllReid
from model.weights import read_weights
from processor.image_stage import ImageStage, all_text_features
from processor.prompt_stage import PromptStage, cache_features
from solver.build import make_optimizer, make_schedule
from tests import reference as ref
from utils.metrics import rank_features, same_camera
from utils.records import Batch, Benchmark, FeatureBatch, Labels, Sample, SideInfo
from utils.reranking import rerank

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PERSON, VEHICLE = (256, 128), (256, 256)
CLASSES = 5
SCALE = 1.5  # of the side information
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
RESIDUAL = {"layers": [2, 1, 1, 2], "width": 8, "head_width": 64, "patch_size": None, "image_size": 224}
# Architectures for open_clip, the same for the reference, and its number of heads.
ARCHITECTURES = {
    "vit": {"layers": 3, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 224},
    "rn50": RESIDUAL,
    "deep": {"layers": 12, "width": 8, "head_width": 8, "patch_size": 16, "image_size": 224},
}
SIZES = {
    "vit": {"width": 32, "layers": 3, "patch": 16},
    "rn50": {"width": 8, "blocks": (2, 1, 1, 2)},
    "deep": {"width": 8, "layers": 12, "patch": 16},
}
HEADS = {"vit": 2, "rn50": 4, "deep": 1}
TEXT_HEADS = 2
# Side information: (cameras, viewpoints, by camera, by viewpoint).
SIDES = {"none": (0, 0, False, False), "camera": (6, 1, True, False), "view": (1, 8, False, True)}
SIDES["both"] = (20, 8, True, True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Small architectures that open_clip knows while they are needed."""
    folder = tmp_path_factory.mktemp("architectures")
    for tower, vision in ARCHITECTURES.items():
        config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}
        (folder / f"equal-{tower}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    for tower in ARCHITECTURES:
        open_clip.factory._MODEL_CONFIGS.pop(f"equal-{tower}")


def settings(tower: str = "vit", *, size=PERSON, stride: int = 16, side: str = "none", file=None, **changes):
    """The configuration of one of the small networks; `changes` are keys with __ for dots."""
    _, _, camera, view = SIDES[side]
    values = {
        "MODEL.NAME": f"equal-{tower}",
        "INPUT.SIZE_TRAIN": size,
        "INPUT.SIZE_TEST": size,
        "MODEL.STRIDE_SIZE": (stride, stride),
        "MODEL.SIE_CAMERA": camera,
        "MODEL.SIE_VIEW": view,
        "MODEL.SIE_COE": SCALE,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return load(file, [str(word) for pair in values.items() for word in pair])


def wide(state: dict) -> dict:
    """The same numbers in float64."""
    return {name: value.double() if value.is_floating_point() else value for name, value in state.items()}


def published(
    folder: Path, tower="vit", *, size=PERSON, stride=16, side="none", ssl="SIMCLR", double=False, seed=0, **layout
) -> tuple[SvllReid, dict]:
    """A network loaded from a published file, in fp32 or `double`, and what the reference takes: the file's numbers."""
    cams, views, camera, view = SIDES[side]
    rows = (cams if camera else 1) * (views if view else 1) if camera or view else None
    hidden = {"SIMCLR": {"ssl_hidden": 20, "ssl_out": 10}}.get(ssl, {})  # SimSiam's is always 512
    sizes = {**SIZES[tower], "embed": 24, "text_width": 16, "text_layers": 2, **hidden, **layout}
    kind = "rn50" if tower == "rn50" else "vit"
    shapes = ref.layout(kind, **{"classes": CLASSES, **sizes}, image_size=size, stride=stride, rows=rows, ssl=ssl)
    state = ref.random_state(shapes, seed, torch.float32)
    path = folder / "published.pth"
    torch.save(state, path)
    model = load_model(path, settings(tower, size=size, stride=stride, side=side)).eval()
    return model.double() if double else model, wide(state)


def normal(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    """Random numbers; in float64 they are those of fp32, so that both forms get the same."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return values.to(dtype)


def close(actual, expected, tolerance: float) -> None:
    """Every number to `tolerance`, absolutely or relatively."""
    actual, expected = (torch.as_tensor(value).detach().double() for value in (actual, expected))
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def ids(side: str, count: int, seed: int = 0) -> tuple[SideInfo, dict]:
    """Random cameras and viewpoints, and the same as the reference's `sie_rows` takes them."""
    cams, views, camera, view = SIDES[side]
    generator = torch.Generator().manual_seed(seed)
    camids = torch.randint(0, max(cams, 1), (count,), generator=generator)
    viewids = torch.randint(0, max(views, 1), (count,), generator=generator)
    facts = {"scale": SCALE, "cams": cams, "views": views, "camera": camera, "view": view}
    return side_info(camids, viewids), facts


# --------------------------------------------------------------------------------------------------- the file's layout

LAYOUTS = [  # kind, size, stride, rows, self-supervision, sentences, number of tensors
    ("vit", PERSON, 16, None, "SIMCLR", True, 347),
    ("vit", PERSON, 12, None, "SIMCLR", True, 347),
    ("vit", PERSON, 16, (6, 1), "SIMCLR", True, 348),
    ("vit", PERSON, 12, (15, 1), "SIMCLR", True, 348),
    ("vit", VEHICLE, 12, (20, 8), "SIMCLR", True, 348),
    ("vit", PERSON, 12, (6, 1), "SIMSIAM", True, 325),
    ("vit", PERSON, 16, (6, 1), None, True, 316),
    ("vit", VEHICLE, 16, (20, 8), None, True, 316),
    ("vit", PERSON, 16, None, None, True, 315),
    ("vit", PERSON, 16, None, None, False, 164),
    ("rn50", PERSON, 16, None, None, True, 502),
    ("rn50", VEHICLE, 16, None, None, True, 502),
    ("rn50", PERSON, 16, None, "SIMCLR", True, 534),
    ("rn50", PERSON, 16, None, None, False, 351),
]


@pytest.fixture
def unfilled(monkeypatch) -> None:
    """Full-size networks whose numbers nobody draws."""

    def build(name, activation):
        with torch.device("meta"):
            clip = build_clip(name, activation)
        clip.to_empty(device="cpu").token_embedding.weight.data.zero_()
        return clip

    monkeypatch.setattr("model.pretrained.build_clip", build)
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "trunc_normal_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


def without_images(*, pids: int, cams: int, views: int, template: str) -> Benchmark:
    """As large as a data set, with its last picture alone."""
    return Benchmark("toy", template, (Sample("x.jpg", pids - 1, cams - 1, views - 1),), (), same_camera)


@pytest.mark.parametrize(("kind", "size", "stride", "rows", "ssl", "sentences", "count"), LAYOUTS)
def test_names_order_and_shapes_are_the_published_ones(unfilled, kind, size, stride, rows, ssl, sentences, count):
    cams, views = rows or (1, 1)
    cfg = load(
        None,
        [
            *("MODEL.NAME", {"vit": "ViT-B-16", "rn50": "RN50"}[kind], "MODEL.PRETRAIN", "none"),
            *("INPUT.SIZE_TRAIN", str(size), "INPUT.SIZE_TEST", str(size), "MODEL.STRIDE_SIZE", str((stride, stride))),
            *("MODEL.SIE_CAMERA", str(cams > 1), "MODEL.SIE_VIEW", str(views > 1)),
            *("MODEL.SSL_TYPE", ssl or "SIMCLR", "SOLVER.STAGE2.SSL_LOSS_WEIGHT", str(0.8 if ssl else 0.0)),
            *("SOLVER.STAGE1.SSL_LOSS_WEIGHT", str(0.8 if ssl == "SIMCLR" else 0.0)),
            *(() if sentences else ("MODEL.I2T_LOSS_WEIGHT", "0.0", "PROCESSOR.STAGES", "('image',)")),
        ],
    )
    facts = without_images(pids=751, cams=cams, views=views, template="A photo of a {} person.")
    state = make_model(cfg, facts).state_dict()
    theirs = to_published(state)
    number = math.prod(rows) if rows else None
    wanted = ref.layout(kind, classes=751, image_size=size, stride=stride, rows=number, ssl=ssl, prompts=sentences)
    assert [(name, tuple(value.shape)) for name, value in theirs.items()] == list(wanted.items())
    assert len(theirs) == count
    counters = {name for name in theirs if name.endswith("num_batches_tracked")}
    assert all(value.dtype == (torch.int64 if name in counters else torch.float32) for name, value in theirs.items())
    back = from_published(theirs, source="there and back")
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)


@pytest.mark.parametrize(("tower", "ssl"), [("vit", "SIMCLR"), ("vit", "SIMSIAM"), ("rn50", "SIMCLR")])
def test_a_file_loaded_is_the_file(tmp_path, tower, ssl):
    model, state = published(tmp_path, tower, side="camera" if tower == "vit" else "none", ssl=ssl)
    again = to_published(model.state_dict())
    assert list(again) == list(state)
    assert all(torch.equal(again[name].double(), state[name].double()) for name in state)
    torch.save({f"module.{name}": value for name, value in again.items()}, tmp_path / "parallel.pth")
    assert read_weights(tmp_path / "parallel.pth").tensors.keys() == model.state_dict().keys()


# -------------------------------------------------------------------------------------------------------------- towers


def compare_features(actual, expected, tolerance: float) -> None:
    for one, other in zip(actual, expected, strict=True):
        close(one, other, tolerance)


@pytest.mark.parametrize("size", [PERSON, VEHICLE])
@pytest.mark.parametrize("stride", [16, 12])
@pytest.mark.parametrize("side", SIDES)
def test_the_features_of_the_transformer(tmp_path, size, stride, side):
    model, state = published(tmp_path, size=size, stride=stride, side=side, ssl=None)
    if side == "both":
        assert len(state["cv_embed"]) == 160
    images, (ours, facts) = normal(2, 3, *size), ids(side, 2)
    row = ref.sie_rows(state, camids=ours.camids, viewids=ours.viewids, **facts)
    expected = ref.vit(state, images, heads=HEADS["vit"], stride=stride, side_row=row)
    with torch.no_grad():
        actual = model.encode_image(images.float(), ours)
        exact = model.double().encode_image(images, ours)
        plain = model.encode_image(images)
    compare_features(actual, expected, 1e-5)
    compare_features(exact, expected, 1e-10)
    # Without ids, as for the prompt stage and the views, the table has no say.
    close(plain.projected, ref.vit(state, images, heads=HEADS["vit"], stride=stride)[2], 1e-10)


@pytest.mark.parametrize("size", [PERSON, VEHICLE])
@pytest.mark.parametrize("training", [False, True])
def test_the_features_of_the_resnet(tmp_path, size, training):
    model, state = published(tmp_path, "rn50", size=size, ssl=None)
    images, moved = normal(3, 3, *size), {}
    expected = ref.rn50(state, images, training=training, moved=moved)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        compare_features(model.train(training).encode_image(images.float()), expected, 1e-5)
        running = {name: value.clone() for name, value in to_published(model.state_dict()).items()}
        model.load_state_dict(before)
        compare_features(model.double().encode_image(images), expected, 1e-10)
    for name, value in running.items():
        if name.rsplit(".", 1)[-1] in ref.RUNNING:
            close(value, moved.get(name, state[name]), 1e-5)
    assert len(moved) == (3 * 3 + 3 * (3 * 6 + 4) if training else 0)


def test_the_features_of_the_full_transformer():
    shapes = ref.layout("vit", classes=1, image_size=PERSON, stride=16, prompts=False)
    shapes = {name: shape for name, shape in shapes.items() if name.startswith("image_encoder.")}
    state = ref.random_state(shapes, 3, torch.float32)
    with torch.device("meta"):
        clip = build_clip("ViT-B-16", "quick_gelu")
    tower = ViTTower(clip.visual.to_empty(device="cpu"), PERSON, (16, 16)).eval()
    tower.load_state_dict(
        {key.removeprefix("image."): value for key, value in from_published(state, source="").items()}
    )
    images = normal(1, 3, *PERSON)
    with torch.no_grad():
        compare_features(tower(images.float()), ref.vit(wide(state), images), 1e-5)


@pytest.mark.parametrize("size", [PERSON, VEHICLE])
@pytest.mark.parametrize(("tower", "stride"), [("vit", 16), ("vit", 12), ("rn50", 16)])
def test_position_tables_of_clip_are_resized(tmp_path, tower, size, stride):
    clip = open_clip.CLIP(embed_dim=24, vision_cfg=ARCHITECTURES[tower], text_cfg=TEXT, quick_gelu=True)
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    cfg = settings(
        tower, size=size, stride=stride, MODEL__PRETRAIN=tmp_path / "clip.pt", MODEL__ACTIVATION="quick_gelu"
    )
    facts = without_images(pids=2, cams=1, views=1, template="A photo of a {} vehicle.")
    model = make_model(cfg, facts)
    pool = clip.visual if tower == "vit" else clip.visual.attnpool
    old = (14, 14) if tower == "vit" else (7, 7)
    expected = ref.resize_positions(pool.positional_embedding.double(), old, ref.grid(size, 16, stride))
    close(model.image.get_parameter(model.image.positions), expected, 1e-5)
    # The words around the learned tokens are those of the published sentence.
    words = [49406, 320, 1125, 539, 320], [5299, 269, 49407, *[0] * 65]
    assert torch.equal(model.prompts.prefix[0], clip.token_embedding.weight[words[0]])
    assert torch.equal(model.prompts.suffix[0], clip.token_embedding.weight[words[1]])
    assert model.prompts.end == ref.END


# ------------------------------------------------------------------------------------------------- sentences and heads


def test_sentences(tmp_path):
    model, state = published(tmp_path)
    pids = torch.tensor([3, 0, 3, 4])
    close(model.prompts(pids), ref.prompts(state, pids), 0)
    everyone = ref.text(state, ref.prompts(state, range(CLASSES)), heads=TEXT_HEADS)  # over all 77 positions
    with torch.no_grad():
        close(model.encode_text(pids), everyone[pids], 1e-5)
        close(all_text_features(model, torch.device("cpu"), size=2), everyone, 1e-5)
        close(model.double().encode_text(pids), everyone[pids], 1e-10)


@pytest.mark.parametrize("tower", ["vit", "rn50"])
def test_necks_scores_and_what_retrieval_compares(tmp_path, tower):
    model, state = published(tmp_path, tower, double=True)
    images = normal(4, 3, *PERSON)
    features = ref.tower(state, images, heads=HEADS[tower])
    with torch.no_grad():
        for neck, name in ((False, "before"), (True, "after")):
            vectors = model.embed(images, neck=neck)
            close(vectors, ref.embed(state, *features[1:], name), 1e-10)
            assert vectors.shape[1] == sum(model.image.dims[1:])
        for training in (False, True):
            moved = {}
            wanted = [
                ref.classify(state, classifier, ref.bnneck(state, neck, x, training, moved))
                for classifier, neck, x in zip(
                    ("classifier", "classifier_proj"), ("bottleneck", "bottleneck_proj"), features[1:], strict=True
                )
            ]
            encoded = model.eval().encode_image(images)
            compare_features(model.train(training).classify(encoded), wanted, 1e-10)
        ours = to_published(model.state_dict())
        assert len(moved) == 6
        for name, value in moved.items():
            close(ours[name], value, 1e-10)


@pytest.mark.parametrize(("ssl", "part"), [("SIMCLR", "image"), ("SIMCLR", "text"), ("SIMSIAM", "image")])
def test_projection_heads_see_one_view_at_a_time(tmp_path, ssl, part):
    model, state = published(tmp_path, ssl=ssl, double=True)
    head = model.image_projector if part == "image" else model.text_projector
    prefix, function = f"{part}_mlp", ref.simclr_head if ssl == "SIMCLR" else ref.simsiam_head
    width = 32 if part == "image" else 24
    views = [normal(4, width, seed=seed) for seed in (1, 2)]
    names = [name for name in ref.trained(state) if name.startswith(prefix)]
    leaves = {name: state[name].clone().requires_grad_() for name in names}
    for training in (True, False):
        moved = {}
        if not training:
            state = {**state, **to_published(model.state_dict())}
        outputs = [function({**state, **leaves}, prefix, view, training, moved) for view in views]
        ours = [head.train(training)(view) for view in views]
        compare_features(ours, outputs, 1e-10)
        for name, value in moved.items():
            close(to_published(model.state_dict())[name], value, 1e-10)
        head.zero_grad()
        target = normal(*ours[0].shape, seed=3)
        sum(((view - target) ** 3).sum() for view in ours).backward()
        wanted = torch.autograd.grad(sum(((view - target) ** 3).sum() for view in outputs), list(leaves.values()))
        found = {
            published_name(f"{part}_projector.{key}", model.state_dict()): p.grad for key, p in head.named_parameters()
        }
        assert found.keys() == leaves.keys()
        for name, gradient in zip(names, wanted, strict=True):
            close(found[name], gradient, 1e-8)


# -------------------------------------------------------------------------------------------- disturbing the sentences


def drawn(method: str, generator: torch.Generator, count: int, width: int):
    """What an augmentation draws for `count` prompts, read off from prompts in which every place has a label."""
    augment = partial(AUGMENTATIONS[method], strength=0.5, generator=generator)
    if method == "mask":
        return augment(torch.ones(count, 77, width)) == 0
    if method == "swap":
        places = torch.arange(77.0)[None, :, None].expand(count, -1, width)
        source = augment(places)[:, :, 0].long()
        assert (source.sort(dim=1).values == torch.arange(77)).all()  # nothing lost, nothing twice
        moved = [(row != torch.arange(77)).nonzero().flatten() for row in source]
        assert all(len(places) <= math.floor(0.5 * 77) for places in moved)
        # To the reference: the places which changed, and of which of them each one's new content is.
        order = [
            [places.tolist().index(int(row[place])) for place in places]
            for places, row in zip(moved, source, strict=True)
        ]
        return moved, order
    owners = torch.eye(count, width)[:, None].expand(-1, 77, -1)
    shares = augment(owners)[:, 0, :count]
    close(shares.sum(dim=1), torch.ones(count), 1e-6)
    partners = (shares - torch.eye(count)).argmax(dim=1)
    assert (partners != torch.arange(count)).all()
    return partners


def disturbed(method: str, prompts, draw):
    if method == "mask":
        return ref.mask(prompts, draw)
    return ref.swap(prompts, *draw) if method == "swap" else ref.mix(prompts, draw, 0.5)


def prompt_batch(pids=(4, 1, 1, 0, 4, 3), seed: int = 6) -> FeatureBatch:
    return FeatureBatch(normal(len(pids), 24, seed=seed), torch.tensor(pids))


@pytest.mark.parametrize("method", AUGMENTATIONS)
def test_the_prompt_stage_disturbs_the_whole_context(tmp_path, method):
    model, state = published(tmp_path, double=True)
    batch, width = prompt_batch(), 16
    distinct = sorted(set(batch.pids.tolist()))
    generator = torch.Generator().manual_seed(5)
    draws = [drawn(method, generator, len(distinct), width) for _ in range(2)]
    if method == "mask":
        assert all(draw.shape == (4, 77, 16) and 0.4 < draw.double().mean() < 0.6 for draw in draws)
    if method == "swap":
        assert all(len(places) > 30 for moved, _ in draws for places in moved)
        assert any(ref.END in places.tolist() for moved, _ in draws for places in moved)  # the end moves, too
    augment = partial(AUGMENTATIONS[method], strength=0.5, generator=torch.Generator().manual_seed(5))
    weights = {"image_text": 1.0, "language_ssl": 0.8}
    stage = PromptStage(model, weights=weights, augment=augment, moving=method in MOVING).train()
    compare_prompt_stage(stage, state, batch, [partial(disturbed, method, draw=draw) for draw in draws], 0.8)


def compare_prompt_stage(stage: PromptStage, state: dict, batch: FeatureBatch, augmentations, weight: float) -> None:
    """Terms, gradient and running statistics of a step."""
    context = state["prompt_learner.cls_ctx"].clone().requires_grad_()
    current, moved = {**state, "prompt_learner.cls_ctx": context}, {}
    distinct = sorted(set(batch.pids.tolist()))
    embedded = ref.prompts(current, distinct)
    texts = ref.text(current, embedded, heads=TEXT_HEADS)[[distinct.index(pid) for pid in batch.pids]]
    views = None
    if augmentations:
        views = [ref.text(current, augment(embedded), heads=TEXT_HEADS) for augment in augmentations]
        views = [ref.simclr_head(current, "text_mlp", view, True, moved) for view in views]
    terms = ref.stage1_total(batch.features, texts, batch.pids.tolist(), views, weight)
    losses = stage(batch)
    losses.total.backward()
    assert losses.terms.keys() == ({"image_text", "language_ssl"} if augmentations else {"image_text"})
    for name, value in {**losses.terms, "total": losses.total}.items():
        close(value, terms[name], 1e-9)
    (gradient,) = torch.autograd.grad(terms["total"], [context])
    model = stage.model
    close(model.prompts.context.grad, gradient, 1e-8)
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not model.prompts.context)
    ours = to_published(model.state_dict())
    for name, value in moved.items():
        close(ours[name], value, 1e-9)


@pytest.mark.parametrize(
    ("tower", "pids", "weight", "both"),
    [("vit", (4, 1, 1, 0), 0.0, False), ("vit", (2, 2, 2), 0.8, False), ("rn50", (0, 1, 1), 2.0, True)],
)
def test_the_prompt_stage_with_and_without_self_supervision(tmp_path, tower, pids, weight, both):
    model, state = published(tmp_path, tower, double=True)
    draws = [normal(len(set(pids)), 77, 16, seed=seed) > 0 for seed in (1, 2)] if both else []
    given = iter(draws)
    stage = PromptStage(
        model, weights={"image_text": 1.0, "language_ssl": weight}, augment=lambda prompts: prompts * ~next(given)
    )
    augmentations = [partial(ref.mask, zeroed=draw) for draw in draws]
    compare_prompt_stage(stage.train(), state, prompt_batch(pids), augmentations, weight)
    assert next(given, None) is None


def test_cached_features_know_no_side_information(tmp_path):
    model, state = published(tmp_path, side="camera", stride=12)
    images, side = normal(3, 3, *PERSON), ids("camera", 3)[0]
    batches = [Batch(images.float(), torch.tensor([2, 0, 1]), side, torch.arange(3))]
    cache = cache_features(model.train(), batches, torch.device("cpu"))
    close(cache.features, ref.vit(state, images, heads=HEADS["vit"], stride=12)[2], 1e-5)
    assert cache.pids.tolist() == [2, 0, 1]


def test_cached_features_of_a_resnet_use_running_statistics(tmp_path):
    model, state = published(tmp_path, "rn50")
    images = normal(3, 3, *PERSON)
    batches = [Batch(images.float(), torch.tensor([2, 0, 1]), ids("none", 3)[0], torch.arange(3))]
    cache = cache_features(model.train(), batches, torch.device("cpu"))
    close(cache.features, ref.rn50(state, images)[2], 1e-5)


# -------------------------------------------------------------------------------------------------------------- losses

PIDS = [3, 0, 3, 1, 0, 1, 2, 2]


def compare_loss(ours, theirs, *arguments: torch.Tensor, detached=()) -> None:
    """Value and gradients by every argument, which has none where it is `detached`."""
    sets = [[value.clone().requires_grad_() for value in arguments] for _ in range(2)]
    values = [function(*values) for function, values in zip((ours, theirs), sets, strict=True)]
    close(*values, 1e-9)
    assert values[0].item() != 0
    gradients = [
        torch.autograd.grad(value, leaves, allow_unused=True) for value, leaves in zip(values, sets, strict=True)
    ]
    for place, (one, other) in enumerate(zip(*gradients, strict=True)):
        if place in detached:
            assert one is None
            assert other is None
        else:
            close(one, other, 1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_identity_loss(smoothing):
    pids = torch.tensor(PIDS)
    compare_loss(
        lambda *scores: IdentityLoss(smoothing)(scores, pids),
        lambda *scores: sum(ref.cross_entropy(one, PIDS, smoothing) for one in scores),
        *(normal(8, 6, seed=seed) for seed in (1, 2)),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_images_against_all_sentences(smoothing):
    pids = torch.tensor(PIDS)
    compare_loss(
        lambda images, texts: ImageToText(smoothing)(images, texts, pids),
        lambda images, texts: ref.cross_entropy(images @ texts.T, PIDS, smoothing),
        *(normal(8, 5, seed=1), normal(4, 5, seed=2)),
    )


@pytest.mark.parametrize("margin", [0.3, 1.5, None])
@pytest.mark.parametrize("pids", [PIDS, [0, 0, 0, 1, 1, 2]])
def test_the_triplet_loss(margin, pids):
    compare_loss(
        lambda features: BatchHardTriplet(margin)(features, torch.tensor(pids)),
        lambda features: ref.triplet(features, pids, margin),
        normal(len(pids), 7),
    )


def test_images_against_sentences_both_ways():
    compare_loss(
        lambda images, texts: ImageTextContrast()(images, texts, torch.tensor(PIDS)),
        lambda images, texts: ref.sup_con(images, texts, PIDS, PIDS) + ref.sup_con(texts, images, PIDS, PIDS),
        *(normal(8, 5, seed=seed) for seed in (1, 2)),
    )


def test_views_among_strangers():
    compare_loss(NTXent(), ref.nt_xent, *(normal(6, 5, seed=seed) for seed in (1, 2)))


def test_predictions_against_views():
    compare_loss(
        lambda p1, p2, z1, z2: NegativeCosine()(p1, z2, p2, z1),
        ref.simsiam,
        *(normal(6, 5, seed=seed) for seed in range(4)),
        detached=(2, 3),
    )


# ----------------------------------------------------------------------------------------------------- the image stage

WEIGHTS = {"identity": 0.25, "triplet": 1.0, "image_text": 0.9, "vision_ssl": 0.8}
THEIRS = {"identity": "id", "vision_ssl": "image_ssl"}  # the reference's names, where they differ
STAGES = [  # tower, stride, side information, self-supervision, smoothing, margin
    ("vit", 16, "none", "SIMCLR", 0.1, 0.3),
    ("vit", 12, "camera", "SIMCLR", 0.1, 0.3),
    ("vit", 16, "both", "SIMSIAM", 0.0, None),
    ("vit", 16, "none", None, 0.1, 0.3),
    ("rn50", 16, "none", "SIMCLR", 0.1, 0.3),
    ("rn50", 16, "none", "SIMSIAM", 0.0, None),
]


def image_batch(pids, side: str, size, seed: int = 0) -> tuple[Batch, dict]:
    """A batch, for us and for the reference."""
    ours, _ = ids(side, len(pids), seed)
    images, views = normal(len(pids), 3, *size, seed=seed), normal(2, len(pids), 3, *size, seed=seed + 1)
    theirs = {"images": images, "views": views, "pids": pids, **ours._asdict()}
    return Batch(images, torch.tensor(pids), ours, torch.arange(len(pids)), views), theirs


@pytest.mark.parametrize(("tower", "stride", "side", "ssl", "smoothing", "margin"), STAGES)
def test_the_image_stage_and_the_gradient_of_every_tensor(tmp_path, tower, stride, side, ssl, smoothing, margin):
    size = (64, 48)
    model, state = published(tmp_path, tower, size=size, stride=stride, side=side, ssl=ssl, double=True)
    ours, theirs = image_batch([0, 0, 3, 3, 1, 1], side, size)
    texts = ref.text(state, ref.prompts(state, range(CLASSES)), heads=TEXT_HEADS)
    weights = {**WEIGHTS, "vision_ssl": WEIGHTS["vision_ssl"] if ssl else 0.0}
    stage = ImageStage(
        model,
        weights=weights,
        text_features=all_text_features(model, torch.device("cpu")),
        margin=margin,
        smoothing=smoothing,
        self_supervision=ssl or "SIMCLR",
    ).train()
    losses = stage(ours)
    losses.total.backward()

    names, moved = ref.trained(state), {}
    leaves = {name: state[name].clone().requires_grad_() for name in names}
    terms = ref.image_stage_terms(
        {**state, **leaves},
        theirs,
        texts,
        weights={THEIRS.get(name, name): weight for name, weight in weights.items()},
        stride=stride,
        heads=HEADS[tower],
        side=ids(side, 1)[1] if side != "none" else None,
        ssl=ssl,
        smoothing=smoothing,
        margin=margin,
        moved=moved,
    )
    assert losses.terms.keys() == {name for name, weight in weights.items() if weight}
    for name, value in {**losses.terms, "total": losses.total}.items():
        close(value, terms[THEIRS.get(name, name)], 1e-9)
    gradients = torch.autograd.grad(terms["total"], list(leaves.values()), allow_unused=True)
    wanted = {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    full = model.state_dict()
    found = {published_name(name, full): p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys() == {name for name in names if not name.startswith("text_mlp.")}
    for name, gradient in wanted.items():
        scale = gradient.abs().max().item()
        close(found[name] / max(scale, 1e-3), gradient / max(scale, 1e-3), 1e-7)
        if "attn.in_proj_bias" not in name:  # the keys' third has no gradient, the others have
            assert scale > 1e-12 or before_batch_norm(name), name
    running = to_published(full)
    for name, value in moved.items():
        close(running[name], value, 1e-9)
    assert all(torch.equal(running[name].double(), state[name].double()) for name in state.keys() - moved.keys())


def before_batch_norm(name: str) -> bool:
    """Biases that the batch norm behind them takes out again, and that of the keys: their gradient is nought."""
    return name.endswith(("layer1.bias", "linear1.bias", "k_proj.bias")) or name == "image_mlp.layer2.bias"


# ----------------------------------------------------------------------------------------------------- the optimisers

SCHEDULES = {  # file -> the reference's keywords of both stages
    "person/vit_svllreid.yml": ({}, {}),
    "veri/vit_svllreid.yml": ({"epochs": 60}, {}),
    "VehicleID/vit_svllreid.yml": ({"epochs": 60}, {"base": 5e-5}),
    "person/cnn_clipreid.yml": ({"epochs": 60}, {"base": 3.5e-4, "factor": 0.01, "steps": (40, 70)}),
}


@pytest.mark.parametrize("file", SCHEDULES)
def test_the_learning_rate_of_every_epoch(file):
    solver = load(CONFIGS / file).SOLVER
    for block, theirs, keywords in zip(
        (solver.STAGE1, solver.STAGE2), (ref.stage1_lr, ref.stage2_lr), SCHEDULES[file], strict=True
    ):
        schedule = make_schedule(block)
        for epoch in range(1, block.MAX_EPOCHS + 1):
            assert schedule(epoch, block.BASE_LR) == pytest.approx(theirs(epoch, **keywords), rel=1e-12)
            # Groups of biases follow the same curve from their own rate.
            if theirs is ref.stage2_lr:
                assert schedule(epoch, 2 * block.BASE_LR) == pytest.approx(2 * theirs(epoch, **keywords), rel=1e-12)
    assert (120 if "cnn" in file else 60) == block.MAX_EPOCHS


def groups(optimizer: torch.optim.Optimizer, stage) -> dict[str, tuple[float, float]]:
    """Published name -> (rate, decay) of everything that is optimised."""
    model = stage.model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    full, found = model.state_dict(), {}
    for group in optimizer.param_groups:
        assert group["lr"] == group["initial_lr"]
        for parameter in group["params"]:
            found[published_name(names.pop(id(parameter)), full)] = (group["lr"], group["weight_decay"])
    return found


@pytest.mark.parametrize(("large", "file"), [(False, "person/vit_svllreid.yml"), (True, "person/cnn_clipreid.yml")])
def test_rate_and_decay_of_every_tensor(tmp_path, large, file):
    model, state = published(tmp_path, "deep", side="camera")  # as many blocks as the real one
    cfg = settings("deep", side="camera", file=CONFIGS / file, SOLVER__STAGE2__LARGE_FC_LR=large)
    cfg.defrost()
    cfg.SOLVER.STAGE2.WEIGHT_DECAY_BIAS = 7e-4  # different, or which of the two is taken could not be seen
    block = cfg.SOLVER.STAGE2
    stage = ImageStage(model, weights=WEIGHTS, text_features=None)
    optimizer = make_optimizer(block, stage)
    names = ref.trained(state)
    assert (len(names), sum("bias" in name for name in names)) == (177, 84)
    # Published programs also hand the text projector to the optimiser, where it never gets a gradient.
    names = [name for name in names if not name.startswith("text_mlp.")]
    assert (len(names), sum("bias" in name for name in names)) == (167, 79)
    rules = ref.group_rules(names, decay=block.WEIGHT_DECAY, decay_bias=7e-4, large_fc=large)
    found = groups(optimizer, stage)
    assert found.keys() == rules.keys()
    for name, (factor, decay) in rules.items():
        assert found[name] == pytest.approx((factor * block.BASE_LR, decay), rel=1e-12), name
    check_adam(optimizer)

    stage = PromptStage(model, weights={"image_text": 1.0, "language_ssl": 0.8}, augment=lambda prompts: prompts)
    optimizer = make_optimizer(cfg.SOLVER.STAGE1, stage)
    assert groups(optimizer, stage) == {"prompt_learner.cls_ctx": (3.5e-4, 1e-4)}
    check_adam(optimizer)


def check_adam(optimizer: torch.optim.Optimizer) -> None:
    """Two steps from random gradients, with a decay that can be seen."""
    assert type(optimizer) is torch.optim.Adam
    parameters = [p for group in optimizer.param_groups for p in group["params"][:2]]
    rates = {n: group["lr"] for n, group in enumerate(g for g in optimizer.param_groups for _ in g["params"][:2])}
    decays = dict.fromkeys(rates, 0.1)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.1
    values, moments = {n: p.detach().double() for n, p in enumerate(parameters)}, {}
    for step in range(2):
        grads = {n: normal(*value.shape, seed=step + 5) for n, value in values.items()}
        for n, parameter in enumerate(parameters):
            parameter.grad = grads[n].float()
        optimizer.step()
        values = ref.adam_step(values, grads, moments, rates, decays)
    for n, parameter in enumerate(parameters):
        close(parameter, values[n], 1e-6)


# ------------------------------------------------------------------------------------------------- images and sampling


@pytest.mark.parametrize("seed", range(4))
def test_batches_of_identities(seed):
    rng = random.Random(seed)
    counts = {pid: rng.randint(1, 14) for pid in range(rng.randint(5, 12))}
    pids = [pid for pid, count in counts.items() for _ in range(count)]
    rng.shuffle(pids)
    sampler = IdentitySampler(pids, 4, 4, seed=seed)
    batches = list(sampler)
    left = {pid: max(count // 4, 1) for pid, count in counts.items()}
    for batch in batches:
        assert len(batch) == 16
        found = Counter(pids[row] for row in batch)
        assert sorted(found.values()) == [4] * 4
        for pid in found:
            left[pid] -= 1
    assert min(left.values()) >= 0
    assert sum(groups > 0 for groups in left.values()) < 4  # it stops for this reason alone
    used = Counter(row for batch in batches for row in batch)
    assert all(count == 1 for row, count in used.items() if counts[pids[row]] >= 4)


MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


def draws(torch_draws: torch.Generator, python: random.Random, size, padding: int, area) -> dict:
    """What a view of an image is made with, drawn in the order in which the program draws it."""
    height, width = size
    flipped = torch.rand(1, generator=torch_draws).item() < 0.5
    top, left = (int(torch.randint(0, 2 * padding + 1, (), generator=torch_draws)) for _ in range(2))
    erased = None
    if python.random() <= 0.5:
        for _ in range(10):
            share = python.uniform(*area)
            aspect = math.exp(python.uniform(math.log(0.3), math.log(1 / 0.3)))
            box = ref.erase_size(share, aspect, height, width)
            if box is not None:
                at = python.randint(0, height - box[0]), python.randint(0, width - box[1])
                erased = (*at, torch.empty(3, *box).normal_(generator=torch_draws).double())
                break
    return {"flipped": flipped, "padding": padding, "top": top, "left": left, "erased": erased}


def test_training_images_and_their_views():
    size, seen = (48, 24), Counter()
    pixels = np.random.default_rng(0).integers(0, 256, (37, 29, 3), np.uint8)
    picture = Image.fromarray(pixels)
    resized = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    transform = TrainTransform(size, mean=MEAN, std=STD, flip=0.5, padding=4, erase=0.5)
    for seed in range(20):
        image, views = transform(picture, views=True, seed=seed)
        generator, python = torch.Generator().manual_seed(seed), random.Random(seed)
        for view, area in ((image, (0.02, 1 / 3)), (views[0], (0.33, 1 / 3)), (views[1], (0.33, 1 / 3))):
            given = draws(generator, python, size, 4, area)
            close(view, ref.train_view(resized, **given, mean=MEAN, std=STD), 1e-5)
            seen[given["flipped"], given["erased"] is not None] += 1
            if given["erased"] and area[0] == 0.33:
                assert given["erased"][2][0].numel() == pytest.approx(48 * 24 / 3, rel=0.05)
    assert len(seen) == 4
    # What the configuration says of views where nobody changes it, and of the rest in published files.
    cfg = load(CONFIGS / "person" / "vit_svllreid.yml").INPUT
    assert cfg.TWIN_ERASED_AREA == (0.33, 1 / 3)
    assert (cfg.PROB, cfg.RE_PROB, cfg.PADDING) == (0.5, 0.5, 10)


def test_test_images():
    pixels = np.random.default_rng(0).integers(0, 256, (37, 29, 3), np.uint8)
    picture = Image.fromarray(pixels)
    for size in ((20, 12), (64, 32)):
        resized = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
        image, _ = TestTransform(size, mean=MEAN, std=STD)(picture)
        close(image, ref.normalise(resized, MEAN, STD), 1e-5)


# ----------------------------------------------------------------------------------------------------------- retrieval


def labelled(count: int, seed: int) -> Labels:
    generator = torch.Generator().manual_seed(seed)
    return Labels(*(torch.randint(0, high, (count,), generator=generator) for high in (12, 3)))


@pytest.mark.parametrize("gallery", [90, 30])
def test_ranking(gallery):
    query, others = normal(25, 8, seed=1, dtype=torch.float32), normal(gallery, 8, seed=2, dtype=torch.float32)
    labels = labelled(25, 3), labelled(gallery, 4)
    result = rank_features(query, others, *labels)
    distances = ref.squared_distances(query, others)
    facts = [labels[0].pids, labels[1].pids, labels[0].camids, labels[1].camids]
    cmc, mean = ref.cmc_map(distances, *([int(value) for value in values] for values in facts))
    assert result.mAP == pytest.approx(mean, abs=1e-7)
    close(result.cmc[: len(cmc)], cmc, 1e-7)
    close(result.cmc[len(cmc) :], np.full(50 - len(cmc), cmc[-1]), 1e-7)


@pytest.mark.parametrize(("k1", "k2", "share"), [(50, 15, 0.3), (9, 4, 0.5), (20, 1, 0.0)])
def test_reranking(k1, k2, share):
    """Clustered features of length 1, so that neighbourhoods are of every size."""
    centres = normal(12, 16, seed=1)
    owners = torch.randint(0, 12, (110,), generator=torch.Generator().manual_seed(2))
    features = torch.nn.functional.normalize(centres[owners] + 0.7 * normal(110, 16, seed=3), dim=1).float()
    query, gallery = features[:20], features[20:]
    result = rerank(query, gallery, k1, k2, share)
    close(result, ref.rerank_dense(query, gallery, k1, k2, share), 1e-6)
    assert (result.double() - torch.as_tensor(ref.rerank_half(query, gallery, k1, k2, share))).abs().max() < 6e-3
