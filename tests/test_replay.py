"""Both stages of training, step by step against the plain float64 form, with batches and draws given.

The program runs as in a training, with its own loop and with optimisers and schedules from a configuration: in float64,
where both must agree to the last digits, and in fp32.

Decay is strong here. With the published one, the tensors whose gradient is nought by construction (biases in front of
a batch norm, the keys' part of an attention's bias) would be moved by rounding alone, which Adam scales up to whole
steps; as it is, decay decides where they go, and every tensor can be compared.
"""

from __future__ import annotations

import pytest
import torch
from builders import stage_run
from test_equality import (  # the fixtures are used by being here
    HEADS,
    TEXT_HEADS,
    THEIRS,
    WEIGHTS,
    architectures,  # noqa: F401
    ids,
    image_batch,
    normal,
    one_thread,  # noqa: F401
    published,
    settings,
)

from model.published import to_published
from model.svllreid import SvllReid
from processor.image_stage import ImageStage, all_text_features
from processor.loop import fit
from processor.prompt_stage import FeatureBatches, PromptStage, cache_features
from solver.build import make_optimizer, make_schedule
from tests import reference as ref
from utils.records import Batch, FeatureBatch

CPU = torch.device("cpu")
SIZE = (64, 48)
IDENTITIES = 6
PIDS = [pid for pid in range(IDENTITIES) for _ in range(4)]
EPOCHS = 3
STRONG = 0.02  # decay
PROMPT = {"epochs": EPOCHS, "base": 0.01, "init": 1e-3, "minimum": 1e-4, "warmup": 2}
IMAGE = {"factor": 0.1, "iters": 2, "steps": (3,), "gamma": 0.3}
BASE = {"vit": 1e-3, "rn50": 1e-4}  # rounding grows faster where batch norms see six images
LANGUAGE = 0.8
# Of every term, relatively; of where a tensor went, in relation to how far it went (as lengths of vectors: in fp32 a
# number whose gradient is near nought may go the other way); and of rounding, a number.
TERMS = {torch.float64: 1e-9, torch.float32: 1e-4}
WAYS = {torch.float64: 1e-6, torch.float32: 1e-2}
ROUNDED = {torch.float64: 1e-12, torch.float32: 1e-6}


def configuration(tower: str, side: str, stride: int):
    """What a run's two stages are made from; the reference's keywords above say the same."""
    return settings(
        tower,
        size=SIZE,
        side=side,
        stride=stride,
        **{
            "SOLVER__STAGE1__MAX_EPOCHS": EPOCHS,
            "SOLVER__STAGE1__BASE_LR": PROMPT["base"],
            "SOLVER__STAGE1__WARMUP_LR_INIT": PROMPT["init"],
            "SOLVER__STAGE1__LR_MIN": PROMPT["minimum"],
            "SOLVER__STAGE1__WARMUP_EPOCHS": PROMPT["warmup"],
            "SOLVER__STAGE1__WEIGHT_DECAY": STRONG,
            "SOLVER__STAGE2__MAX_EPOCHS": EPOCHS,
            "SOLVER__STAGE2__BASE_LR": BASE[tower],
            "SOLVER__STAGE2__WARMUP_FACTOR": IMAGE["factor"],
            "SOLVER__STAGE2__WARMUP_ITERS": IMAGE["iters"],
            "SOLVER__STAGE2__STEPS": IMAGE["steps"],
            "SOLVER__STAGE2__GAMMA": IMAGE["gamma"],
            "SOLVER__STAGE2__BIAS_LR_FACTOR": 2.0,
            "SOLVER__STAGE2__WEIGHT_DECAY": STRONG,
            "SOLVER__STAGE2__WEIGHT_DECAY_BIAS": 2 * STRONG,
        },
    )


def train(stage, batches: list[list], block) -> list[dict]:
    """Train; what was recorded, a line a step."""
    lines = []
    fit(
        stage,
        lambda epoch, done: batches[epoch - 1],
        make_optimizer(block, stage),
        make_schedule(block),
        block.MAX_EPOCHS,
        run=stage_run(log_period=1, record=lambda event, **line: lines.append(line)),
    )
    return lines


def compare_steps(ours: list[dict], theirs: list[dict], names: dict[str, str], dtype: torch.dtype) -> None:
    """Every term of every step; `names` are ours and the reference's."""
    assert [line["step"] for line in ours] == list(range(1, len(theirs) + 1))
    for line, step in zip(ours, theirs, strict=True):
        for name, other in names.items():
            # A term that is not there (one identity in the batch) is 0 in the reference.
            assert line.get(name, 0.0) == pytest.approx(step[other], rel=TERMS[dtype], abs=TERMS[dtype]), (line, name)


def compare_moves(model: SvllReid, theirs: dict, start: dict, dtype: torch.dtype) -> None:
    """Where every tensor of the published file went, running statistics included."""
    ours = to_published(model.state_dict())
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        way = (value - start[name]).double().norm().item()
        apart = (ours[name].double() - value).norm().item()
        limit = WAYS[dtype] * way + ROUNDED[dtype] * value.numel() ** 0.5
        assert apart <= limit, f"{name}: {apart:.2g} apart after {way:.2g}"


def compare_rates(lines: list[dict], schedule, keywords: dict) -> None:
    for line in lines:
        assert line["lr"] == pytest.approx(schedule(line["epoch"], **keywords), rel=1e-12)


def prompt_stage(model: SvllReid, state: dict, cached: torch.Tensor, features: torch.Tensor, cfg) -> dict:
    """Stage 1, here and there, from image features; the reference's state after it."""
    generator = torch.Generator().manual_seed(2)
    plan = [[rows.tolist() for rows in torch.randperm(len(PIDS), generator=generator).split(9)] for _ in range(EPOCHS)]
    plan[1].append([4, 6, 7])  # a single identity, with nobody to be told apart from
    zeroed = []
    for epoch in plan:
        counts = [len({PIDS[row] for row in rows}) for rows in epoch]
        views = [torch.rand(2, count, 77, 16, generator=generator) < 0.5 for count in counts]
        zeroed.append([pair if count > 1 else None for pair, count in zip(views, counts, strict=True)])
    given = iter([view for epoch in zeroed for step in epoch if step is not None for view in step])
    stage = PromptStage(
        model,
        weights={"image_text": 1.0, "language_ssl": LANGUAGE},
        augment=lambda prompts: prompts * ~next(given),
    )
    pids = torch.tensor(PIDS)
    batches = [[FeatureBatch(cached[rows], pids[rows]) for rows in epoch] for epoch in plan]
    lines = train(stage, batches, cfg.SOLVER.STAGE1)
    assert next(given, None) is None
    moved = {}
    steps, context = ref.replay_prompt_stage(
        state,
        features,
        PIDS,
        batches=plan,
        zeroed=zeroed,
        weight=LANGUAGE,
        schedule=PROMPT,
        decay=STRONG,
        heads=TEXT_HEADS,
        moved=moved,
    )
    names = {"loss": "total", "image_text": "image_text", "language_ssl": "language_ssl"}
    compare_steps(lines, steps, names, cached.dtype)
    compare_rates(lines, ref.stage1_lr, PROMPT)
    after = {**state, **moved, "prompt_learner.cls_ctx": context}
    compare_moves(model, after, state, cached.dtype)
    return after


def image_stage(model: SvllReid, state: dict, cfg, *, tower: str, side: str, ssl: str, stride: int) -> None:
    """Stage 2, here and there; each with the sentences of its own prompts."""
    generator = torch.Generator().manual_seed(3)
    ours, theirs, dtype = [], [], model.prompts.context.dtype
    for epoch in range(EPOCHS):
        ours.append([])
        theirs.append([])
        for step in range(2):
            pids = torch.randperm(IDENTITIES, generator=generator)[:3].repeat_interleave(2)
            # Seeds for which no unit of a projector is so near 0 that rounding decides whether it is on.
            batch, numbers = image_batch(pids.tolist(), side, SIZE, seed=500 + 10 * epoch + step)
            ours[-1].append(batch._replace(images=batch.images.to(dtype), views=batch.views.to(dtype)))
            theirs[-1].append(numbers)
    stage = ImageStage(
        model,
        weights=WEIGHTS,
        text_features=all_text_features(model, CPU),
        self_supervision=ssl,
    )
    lines = train(stage, ours, cfg.SOLVER.STAGE2)
    schedule = {"base": BASE[tower], **IMAGE}
    steps, after = ref.replay_image_stage(
        state,
        theirs,
        ref.text(state, ref.prompts(state, range(IDENTITIES)), heads=TEXT_HEADS),
        weights={THEIRS.get(name, name): weight for name, weight in WEIGHTS.items()},
        stride=stride,
        heads=HEADS[tower],
        side=ids(side, 1)[1] if side != "none" else None,
        ssl=ssl,
        schedule=schedule,
        decay=STRONG,
        decay_bias=2 * STRONG,
    )
    names = {"loss": "total", **{name: THEIRS.get(name, name) for name in WEIGHTS}}
    compare_steps(lines, steps, names, dtype)
    compare_rates(lines, ref.stage2_lr, schedule)
    compare_moves(model, after, state, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("tower", "side", "ssl", "stride"),
    [("vit", "camera", "SIMCLR", 12), ("vit", "both", "SIMSIAM", 16), ("rn50", "none", "SIMCLR", 16)],
)
def test_a_whole_training(tmp_path, tower, side, ssl, stride, dtype):
    model, state = published(tmp_path, tower, size=SIZE, stride=stride, side=side, ssl=ssl, classes=IDENTITIES, seed=4)
    cfg = configuration(tower, side, stride)
    images = normal(len(PIDS), 3, *SIZE, seed=11)
    features = ref.tower(state, images, heads=HEADS[tower], stride=stride)[2]
    batch = Batch(images.float(), torch.tensor(PIDS), ids(side, len(PIDS))[0], torch.arange(len(PIDS)))
    cached = cache_features(model, [batch], CPU).features
    assert (cached.double() - features).abs().max() < 1e-5
    model.to(dtype)
    if ssl == "SIMCLR":  # published networks with SimSiam have no head for sentences
        given = cached if dtype == torch.float32 else features  # the cache is in fp32 always
        state = prompt_stage(model, state, given, features, cfg)
    image_stage(model, state, cfg, tower=tower, side=side, ssl=ssl, stride=stride)


def test_every_epoch_of_the_prompt_stage_visits_every_feature_once():
    """Published programs end an epoch with an empty batch where the size divides the number of images, and stop."""
    cache = FeatureBatch(normal(24, 4), torch.arange(24))
    for size in (8, 9):
        epochs = [list(FeatureBatches(cache, size, seed=0, epoch=epoch)) for epoch in (1, 2)]
        orders = [torch.cat([batch.pids for batch in batches]).tolist() for batches in epochs]
        assert [len(batch.pids) for batch in epochs[0]] == ([8, 8, 8] if size == 8 else [9, 9, 6])
        assert orders[0] != orders[1]
        assert all(sorted(order) == list(range(24)) for order in orders)
        assert all(torch.equal(batch.features, cache.features[batch.pids]) for batch in epochs[0])
