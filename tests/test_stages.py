"""Both stages on a small network, the training loop on a toy, evaluation of toy models.

The losses themselves are compared with the reference in test_equality.py, whole trainings in test_replay.py.
"""

import logging
from dataclasses import replace
from functools import partial

import pytest
import torch
from builders import IMAGE, benchmark, image_batch, side_info, small_model, stage_run
from fake_device import FakeDevice
from torch import nn
from torch.nn import functional as F

from loss.memory import Memory
from loss.self_supervised import NegativeCosine, NTXent, SupCon, find_positives
from model.heads import Predictor
from model.prompts import MOVING, mask, mix, swap, words_only
from processor.compiled import compile_tower
from processor.evaluate import Features, embed_all, evaluate, rank_trials
from processor.image_stage import ImageStage, all_text_features
from processor.loop import _update, fit
from processor.prompt_stage import FeatureBatches, PromptStage, matching_accuracy
from utils.devices import computing_in
from utils.errors import UserError
from utils.metrics import rank
from utils.query_expansion import expand_queries
from utils.records import (
    Batch,
    FeatureBatch,
    Labels,
    Losses,
    QueryExpansion,
    Refinement,
    Reranking,
    Sample,
    SideInfo,
    Trial,
)
from utils.reranking import rerank


def trainable(stage: nn.Module) -> set[str]:
    return {name for name, parameter in stage.named_parameters() if parameter.requires_grad}


class Count:
    """How many rows a module was given, call by call."""

    def __init__(self, module: nn.Module):
        self.rows: list[int] = []
        module.register_forward_pre_hook(lambda module, inputs: self.rows.append(len(inputs[0])))


# -------------------------------------------------------------------------------------------------------- prompt stage

CPU = torch.device("cpu")
BOTH = {"image_text": 1.0, "language_ssl": 0.8}


def features_of(pids: list[int], seed: int = 0) -> FeatureBatch:
    generator = torch.Generator().manual_seed(seed)
    return FeatureBatch(torch.randn(len(pids), 24, generator=generator), torch.tensor(pids))


def prompt_stage(model=None, **options) -> PromptStage:
    augment = partial(mask, strength=0.5, generator=torch.Generator().manual_seed(4))
    return PromptStage(model or small_model(cams=2), **{"weights": BOTH, "augment": augment, **options}).train()


def test_the_text_projector_trains_on_request():
    stage = prompt_stage(train_projector=True)
    stage(features_of([0, 1, 2, 3])).total.backward()
    with_gradient = {name for name, parameter in stage.named_parameters() if parameter.grad is not None}
    projector = {f"model.text_projector.{name}" for name, _ in stage.model.text_projector.named_parameters()}
    assert trainable(stage) == with_gradient == {"model.prompts.context"} | projector
    # Without a projector there is nothing to train.
    prompt_stage(small_model(language=False), weights={**BOTH, "language_ssl": 0.0}, train_projector=True)


def test_how_well_images_and_texts_match():
    texts = torch.eye(4)[:3] * torch.tensor([[1.0], [5.0], [1.0]])
    features = torch.tensor([[3.0, 0, 0, 0], [0, 1, 0, 0], [0.9, 0.5, 0, 0], [0, 0, 2, 0], [0, 9, 0, 0]])
    cache = FeatureBatch(features, torch.tensor([0, 1, 0, 2, 2]))
    for size in (1, 2, 5, 9):
        accuracy = matching_accuracy(cache, texts, size=size)
        # Images 0, 1 and 3 are right; text 1 is nearest to the last image, which is of identity 2.
        assert accuracy == {"image_to_text": 3 / 5, "text_to_image": pytest.approx(2 / 3)}


def test_the_text_tower_runs_once_over_each_identity_and_its_copies():
    stage = prompt_stage()
    towers, heads = Count(stage.model.text), Count(stage.model.text_projector)
    stage(features_of([3, 0, 3, 3, 2]))
    assert (towers.rows, heads.rows) == ([9], [3, 3])


@pytest.mark.parametrize(("augment", "same"), [(mask, True), (mix, True), (swap, False)])
@pytest.mark.parametrize("words", [True, False])
def test_words_before_the_learned_ones_need_no_gradient_unless_they_move(augment, words, same):
    def gradient(moving: bool) -> torch.Tensor:
        model = small_model().double()
        model.prompts.context.data.mul_(50)  # prompts that differ
        view = partial(augment, strength=0.9, generator=torch.Generator().manual_seed(4))
        view = words_only(view, model.prompts.end) if words else view
        stage = prompt_stage(model, augment=view, moving=moving)
        batch = features_of([0, 1, 2, 3, 3])
        stage(batch._replace(features=batch.features.double())).total.backward()
        return model.prompts.context.grad

    short, plain = gradient(moving=False), gradient(moving=True)
    assert torch.allclose(short, plain, rtol=1e-11, atol=0) == same
    assert (augment is swap) == (augment.__name__ in MOVING)


def test_what_is_known_of_a_batchs_identities_changes_nothing():
    pids = torch.tensor([3, 0, 3, 3, 2, 1, 0])
    cache = FeatureBatch(features_of(pids.tolist()).features, pids)
    drawn = list(FeatureBatches(cache, 4, seed=1, epoch=1))
    for batch in drawn:
        distinct, rows = batch.pids.unique(return_inverse=True)
        assert torch.equal(batch.distinct, distinct) and torch.equal(batch.rows, rows)
        known, unknown = (prompt_stage()(each) for each in (batch, FeatureBatch(batch.features, batch.pids)))
        assert torch.equal(known.total, unknown.total)


@pytest.mark.parametrize("words", [True, False])
def test_no_step_of_the_prompt_stage_waits_for_the_device(words):
    batch = next(iter(FeatureBatches(features_of([3, 0, 3, 3, 2]), 4, seed=1, epoch=1)))
    model = small_model()
    augment = partial(mask, strength=0.5)
    stage = prompt_stage(model, augment=words_only(augment, model.prompts.end) if words else augment)
    fake = FakeDevice()
    stage, batch = fake.move(stage), fake.move(batch)
    with fake:
        losses = stage(batch)
        losses.total.backward()
        with pytest.raises(Exception, match="unique"):
            stage(FeatureBatch(*batch[:2]))  # nobody said which identities are in it


@pytest.mark.parametrize("projector", [True, False])
def test_language_self_supervision_of_weight_0_costs_nothing(projector):
    model = small_model(language=projector)
    weights = {**BOTH, "language_ssl": 0.0}
    stage = prompt_stage(model, weights=weights, augment=lambda _: pytest.fail("augmented"))
    if projector:
        model.text_projector.forward = lambda _: pytest.fail("projected")
    towers = Count(model.text)
    assert list(stage(features_of([3, 0, 3])).terms) == ["image_text"] and towers.rows == [2]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "tf32"])
def test_towers_compute_in_the_precision_that_is_asked_for(precision):
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    if precision == "tf32":
        with pytest.raises(UserError, match="expected fp32 or bf16"), computing_in(precision, CPU):
            pass
        with computing_in(precision, torch.device("cuda")):
            assert all(switch.allow_tf32 for switch in switches)
    else:
        model, batches = small_model().eval(), [image_batch(PIDS, cams=CAMS)]
        plain, features = (embed_all(model, batches, device=CPU, precision=each) for each in ("fp32", precision))
        assert features.dtype == torch.float32 and torch.equal(plain, features) == (precision == "fp32")
        assert torch.cosine_similarity(plain, features).min() > 0.999
    assert [switch.allow_tf32 for switch in switches] == before


# --------------------------------------------------------------------------------------------------------- image stage

ALL = {"identity": 0.25, "triplet": 1.0, "image_text": 0.7, "vision_ssl": 0.8}
PIDS, CAMS = [0, 0, 3, 3, 1, 1], [0, 1, 1, 1, 0, 1]


def image_stage(model=None, *, weights=ALL, **options) -> ImageStage:
    model = model or small_model(cams=2)
    if model.image.side is not None:
        # Large, so that leaving it out, or in, shows.
        nn.init.normal_(model.image.side.table, generator=torch.Generator().manual_seed(7))
    texts = all_text_features(model, CPU) if weights["image_text"] else None
    return ImageStage(model, weights=weights, text_features=texts, **options).train()


@pytest.mark.parametrize("positives", ["image", "camera"])
def test_no_step_of_the_image_stage_waits_for_the_device(positives):
    stage = image_stage(weights={**ALL, "prototype": 1.0, "camera_proxy": 0.5}, positives=positives)
    stage.memories.update({"prototype": Memory(56), "camera_proxy": Memory(56, negatives=3)})
    stage.fill(torch.randn(6, 56), Labels(torch.tensor(PIDS), torch.tensor(CAMS)))
    optimizer = torch.optim.Adam([p for p in stage.parameters() if p.requires_grad], fused=True)
    fake = FakeDevice()
    stage, batch = fake.move(stage), fake.move(image_batch(PIDS, cams=CAMS))
    optimizer.param_groups[0]["params"] = trained = [p for p in stage.parameters() if p.requires_grad]
    with fake:
        losses = stage(batch)
        losses.total.backward()
        stage.update(_update(optimizer, trained, losses.total.detach(), None, clip_norm=5.0))


def test_accuracies_are_of_the_terms_own_scores():
    stage = image_stage(weights={**ALL, "vision_ssl": 0.0})
    model, batch = stage.model, image_batch([0, 1, 2, 2], cams=[0, 1, 0, 1])
    features = model.encode_image(batch.images, batch.side)
    first = model.classify(features)[0].argmax(dim=1)
    nearest = (features.projected @ stage.text_features.T).argmax(dim=1)
    for guess, term in ((first, "identity"), (nearest, "image_text")):
        for pids, share in ((guess, 1.0), ((guess + 1) % model.num_pids, 0.0)):
            accuracy = stage(batch._replace(pids=pids)).accuracy
            assert accuracy.keys() == {"identity", "image_text"} and accuracy[term] == share


def test_each_stage_freezes_what_it_does_not_train_and_thaws_what_it_does():
    model = small_model(cams=2)
    fresh = trainable(image_stage(small_model(cams=2)))
    assert trainable(prompt_stage(model)) == {"model.prompts.context"}
    assert trainable(image_stage(model)) == fresh
    assert trainable(prompt_stage(model)) == {"model.prompts.context"}


def last(stage: ImageStage, batch: Batch, side: SideInfo | None = None) -> list[torch.Tensor]:
    """Features of both views."""
    return [stage.model.encode_image(view, side).last for view in batch.views]


def heads(stage: ImageStage, batch: Batch, side: SideInfo | None = None) -> list[torch.Tensor]:
    return [stage.model.image_projector(view) for view in last(stage, batch, side)]


def predictions(stage: ImageStage, batch: Batch, positives: torch.Tensor) -> torch.Tensor:
    (one, other), (p1, p2) = last(stage, batch), heads(stage, batch)
    return NegativeCosine()(p1, other, p2, one, positives)


def everywhere(batch: Batch) -> torch.Tensor:
    return find_positives(batch.pids, None)


def elsewhere(batch: Batch) -> torch.Tensor:
    return find_positives(batch.pids, batch.side.camids)


SIMSIAM, ALONE = {"self_supervision": "SIMSIAM"}, {"ignore_same_identity": True}
UNUSUAL = [  # options, and the term of views that they make
    ({"side_on_views": True}, lambda s, b: NTXent()(*heads(s, b, b.side))),
    (ALONE, lambda s, b: NTXent()(*heads(s, b), b.pids)),
    ({"positives": "identity"}, lambda s, b: SupCon()(*heads(s, b), b.pids, everywhere(b))),
    ({"positives": "camera"}, lambda s, b: SupCon()(*heads(s, b), b.pids, elsewhere(b))),
    ({"positives": "identity", **ALONE}, lambda s, b: SupCon(one_by_one=True)(*heads(s, b), b.pids, everywhere(b))),
    ({"positives": "camera", **ALONE}, lambda s, b: SupCon(one_by_one=True)(*heads(s, b), b.pids, elsewhere(b))),
    ({"positives": "identity", **SIMSIAM}, lambda s, b: predictions(s, b, everywhere(b))),
    ({"positives": "camera", **SIMSIAM}, lambda s, b: predictions(s, b, elsewhere(b))),
]


@pytest.mark.parametrize(("options", "expected"), UNUSUAL)
def test_what_is_no_published_choice(options, expected):
    model, batch = small_model(cams=2), image_batch(PIDS, cams=CAMS)
    if "self_supervision" in options:
        model.image_projector = Predictor(model.image.dims[1], hidden=7)
    stage = image_stage(model, **options)
    got = stage(batch).terms["vision_ssl"]
    torch.testing.assert_close(got, expected(stage, batch), rtol=1e-4, atol=1e-5)
    usual = {name: value for name, value in options.items() if name == "self_supervision"}
    assert (got - image_stage(model, **usual)(batch).terms["vision_ssl"]).abs() > 1e-3


def test_triplets_of_the_last_feature_alone_on_request():
    stage, batch = image_stage(triplet_features="last"), image_batch(PIDS, cams=CAMS)
    feature = stage.model.encode_image(batch.images, batch.side).last
    torch.testing.assert_close(stage(batch).terms["triplet"], stage.triplet(feature, batch.pids))


@pytest.mark.parametrize("off", ALL)
def test_a_term_of_weight_0_does_not_exist(off):
    stage, batch = image_stage(), image_batch(PIDS, cams=CAMS)
    expected = stage(batch)
    stage = image_stage(weights={**ALL, off: 0.0})
    losses = stage(batch if off != "vision_ssl" else batch._replace(views=None))
    assert list(losses.terms) == [name for name in ALL if name != off]
    missing = ALL[off] * expected.terms[off]
    torch.testing.assert_close(losses.total, expected.total - missing, rtol=1e-4, atol=1e-4)
    assert stage.text_features is None or off != "image_text"


def test_what_is_off_costs_no_forward():
    model, batch = small_model(cams=2), image_batch(PIDS, cams=CAMS)
    towers, heads, projectors = Count(model.image), Count(model.heads[0]), Count(model.image_projector)
    off = dict.fromkeys(ALL, 0.0)
    for weights, expected in (
        ({**off, "vision_ssl": 1.0}, ([12], [], [6, 6])),
        ({**off, "triplet": 1.0}, ([6], [], [])),
        ({**off, "identity": 1.0}, ([6], [6], [])),
        (ALL, ([6, 12], [6], [6, 6])),
    ):
        for count in (towers, heads, projectors):
            count.rows.clear()
        image_stage(model, weights=weights)(batch)
        assert (towers.rows, heads.rows, projectors.rows) == expected


def test_text_features_are_those_of_all_identities_and_not_saved():
    model = small_model(pids=7).train()
    stage = image_stage(model)
    expected = torch.cat([model.encode_text(torch.tensor([pid])) for pid in range(7)])
    torch.testing.assert_close(stage.text_features, expected)
    torch.testing.assert_close(all_text_features(model, CPU, size=3), expected)
    assert not stage.text_features.requires_grad
    assert not any("text_features" in name for name in stage.state_dict())


# ----------------------------------------------------------------------------------------------------------------- fit


class Pull(nn.Module):
    """Pulls a number towards 0: the gradient of the total is 2 * value + 3."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(1.0))
        self.seen: list[tuple[float, bool]] = []

    def forward(self, batch: FeatureBatch) -> Losses:
        square, line = self.value**2, 3 * self.value
        self.seen.append((self.value.item(), self.training))
        return Losses(square + line, {"square": square.detach(), "line": line.detach()})


def toy_batches(count: int, size: int = 2):
    return lambda epoch, done: [FeatureBatch(torch.zeros(size, 1), torch.arange(size)) for _ in range(count)][done:]


def sgd(stage: nn.Module, rate: float = 0.1) -> torch.optim.Optimizer:
    groups = [{"params": list(stage.parameters()), "initial_lr": rate}]
    return torch.optim.SGD(groups, lr=rate)


def test_a_group_may_have_a_factor_of_the_scheduled_rate():
    stage = Pull()
    optimizer = sgd(stage)
    optimizer.param_groups[0]["lr_scale"] = 0.5
    fit(stage, toy_batches(1), optimizer, lambda epoch, lr: lr + 0.2, 1, run=stage_run())
    assert stage.value.item() == pytest.approx(1 - 0.5 * (0.1 + 0.2) * 5)


def test_the_order_of_an_epoch():
    events, stage = [], Pull()
    optimizer = torch.optim.SGD([{"params": [stage.value], "initial_lr": 0.1}], lr=0.1)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "initial_lr": 0.3})

    def before(epoch, state):
        assert state is None
        events.append(("before", epoch))
        stage.eval()  # as for features of all images

    def lr_at(epoch, initial):
        events.append(("rate", epoch))
        return initial / 10**epoch

    def batches(epoch, done):
        events.append(("batches", epoch))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 / 10**epoch, 0.3 / 10**epoch])
        return toy_batches(1)(epoch, done)

    def after(epoch):
        events.append(("after", epoch))
        assert len(stage.seen) == epoch
        stage.eval()

    fit(stage, batches, optimizer, lr_at, 2, run=stage_run(before_epoch=before, after_epoch=after))
    assert list(dict.fromkeys(events)) == [
        (what, epoch) for epoch in (1, 2) for what in ("before", "rate", "batches", "after")
    ]
    assert all(training for _, training in stage.seen)


def test_every_term_is_recorded_and_logged_by_name(caplog):
    caplog.set_level(logging.INFO)
    records, stage = [], Pull()
    fit(
        *(stage, toy_batches(5), sgd(stage), lambda epoch, lr: lr / epoch, 2),
        run=stage_run(name="toy", log_period=2, record=lambda kind, **values: records.append({"kind": kind, **values})),
    )
    assert [record["step"] for record in records] == [2, 4, 5, 7, 9, 10]
    assert [record["epoch"] for record in records] == [1, 1, 1, 2, 2, 2]
    assert {record["kind"] for record in records} == {"train"} and {record["stage"] for record in records} == {"toy"}
    assert [record["lr"] for record in records] == [0.1] * 3 + [0.05] * 3
    starts = [value for value, _ in stage.seen]
    for record, steps in zip(records, ([0, 1], [2, 3], [4], [5, 6], [7, 8], [9]), strict=True):
        square = sum(starts[step] ** 2 for step in steps) / len(steps)
        line = sum(3 * starts[step] for step in steps) / len(steps)
        assert record["square"] == pytest.approx(square, rel=1e-5)
        assert record["line"] == pytest.approx(line, rel=1e-5)
        assert record["loss"] == pytest.approx(square + line, rel=1e-5, abs=1e-6)
    assert len(caplog.messages) == 6
    assert all(word in caplog.messages[1] for word in ("toy", "epoch 1/2", "step 4/5", "square", "line", "lr 0.1"))


# ---------------------------------------------------------------------------------------------------------- evaluation


class Toy(nn.Module):
    """Sees the identity in every image, as a direction; the length says nothing."""

    def __init__(self, directions: torch.Tensor):
        super().__init__()
        self.directions = directions
        self.seen: list[int] = []
        self.asked: list[tuple[bool, bool]] = []

    def embed(self, images, side=None, *, neck=False):
        self.asked.append((neck, self.training))
        self.seen += images[:, 1].long().tolist()
        assert torch.equal(side.camids, images[:, 2].long())
        return self.directions[images[:, 0].long()] * images[:, 3:]


def loader(samples, lengths=lambda number: 1.0):
    """Batches of two; an image is (identity, number, camera, length)."""
    rows = [[s.pid, i, s.camid, lengths(i)] for i, s in enumerate(samples)]
    for start in range(0, len(rows), 2):
        images = torch.tensor(rows[start : start + 2])
        ids = images[:, :3].long()
        yield Batch(images, ids[:, 0], side_info(ids[:, 2]), ids[:, 1])


def test_lengths_count_unless_features_are_normalised():
    toy, model = benchmark(pids=4, cams=3), Toy(torch.eye(4) + 0.2)

    def figures(**options):
        images = partial(loader, lengths=lambda i: 1.0 + 5.0 * (i % 3))
        return evaluate(model, toy, images, device=CPU, **options).mean

    assert figures(normalise=True)["mAP"] == 1.0 > figures(normalise=False)["mAP"]
    assert figures() == figures(normalise=True)


@pytest.mark.parametrize("neck", [False, True])
def test_flip_is_the_mean_with_the_mirror_image_before_normalisation(neck):
    """Image by image, mirrored pixel by pixel; lengths differ, so that normalising first would give something else."""
    model, images = small_model(cams=2).eval(), torch.randn(3, 3, *IMAGE, generator=torch.Generator().manual_seed(0))
    side = side_info([0, 1, -1])
    batches = [Batch(images, torch.zeros(3), side, torch.arange(3))]
    found = embed_all(model, batches, device=CPU, neck=neck, flip=True)
    for number in range(3):
        mirrored = torch.stack([images[number, :, :, column] for column in reversed(range(IMAGE[1]))], dim=-1)
        one = SideInfo(*(ids[number : number + 1] for ids in side))
        both = [model.embed(image[None], one, neck=neck)[0] for image in (images[number], mirrored)]
        assert not torch.allclose(*both, atol=1e-3)
        assert torch.allclose(found[number], (both[0] + both[1]) / 2, rtol=0, atol=1e-5)


def test_queries_are_expanded_before_re_ranking():
    generator = torch.Generator().manual_seed(3)
    trial = benchmark(pids=6, cams=3).trials[0]
    images = {sample: torch.randn(8, generator=generator) for sample in (*trial.query, *trial.gallery)}
    rows = {sample: row for row, sample in enumerate(images)}
    features = Features(rows, F.normalize(torch.stack([*images.values()])))
    refinement = Refinement(query_expansion=QueryExpansion(4, 2.0), re_ranking=Reranking(4, 2, 0.3))
    (found,) = rank_trials(benchmark(pids=6, cams=3), features, features, refinement)
    query, gallery = (features.of(samples) for samples in trial)
    distances = rerank(expand_queries(query, gallery, 4, 2.0), gallery, 4, 2, 0.3)
    expected = rank(distances, *map(Labels.of, trial))
    assert found.mAP == expected.mAP and torch.equal(found.cmc, expected.cmc)
    assert found.mAP != rank(rerank(query, gallery, 4, 2, 0.3), *map(Labels.of, trial)).mAP


@pytest.mark.parametrize("many", [30, 31])
def test_re_ranking_many_images_is_announced(many, monkeypatch, caplog):
    monkeypatch.setattr("processor.evaluate.MANY", many)
    toy, images = benchmark(pids=6, cams=3), [Sample(str(number), number % 6, number % 5) for number in range(30)]
    trials = (Trial(tuple(images[:10]), tuple(images[10:])),)
    rows = torch.randn(30, 8, generator=torch.Generator().manual_seed(3))
    features = Features({sample: row for row, sample in enumerate(images)}, rows)
    with caplog.at_level(logging.INFO):
        rank_trials(replace(toy, trials=trials), features, features, Refinement(re_ranking=Reranking(4, 2, 0.3)))
    assert len(caplog.records) == (many == 30)


def test_features_are_computed_once_for_all_trials():
    toy = benchmark(pids=3, cams=3)
    query, gallery = toy.trials[0]
    other = Sample("elsewhere.jpg", 0, 1)
    trials = (Trial(query, gallery), Trial(query, (other, *gallery[2:])), Trial(gallery[:2], query))
    model = Toy(torch.eye(3)).train()
    evaluation = evaluate(model, benchmark(pids=3, cams=3, trials=trials), loader, device=CPU)
    assert sorted(model.seen) == list(range(len(query) + len(gallery) + 1))
    assert set(model.asked) == {(False, False)}  # the neck, training
    assert [ranking.num_valid for ranking in evaluation.trials] == [3, 3, 2]
    assert evaluation.std == dict.fromkeys(evaluation.mean, 0.0) and evaluation.mean["mAP"] == 1.0


@pytest.mark.parametrize("how", ["same", "mean", "none"])
def test_the_modality_of_images_reaches_a_tower_whatever_its_side_information(how):
    class TwoStems(Toy):
        image = None  # no table

        def embed(self, images, side=None, *, neck=False):
            self.seen += side.modalities.tolist()
            return self.directions[images[:, 0].long()]

    def infrared_queries(samples):
        for batch in loader(samples):
            yield batch._replace(side=batch.side._replace(modalities=(batch.side.camids == 0).long()))

    toy, model = benchmark(pids=3, cams=3), TwoStems(torch.eye(3))
    evaluate(model, toy, infrared_queries, device=CPU, side=how)
    assert model.seen == [1] * 3 + [0] * 6


def test_a_benchmark_says_what_ranks_count_and_which_are_reported():
    """Identity 0 looks like 1, of which there are two images: rank 3 of images, 2 of identities."""
    toy = benchmark(pids=2, cams=3, trials=(benchmark(pids=2, cams=3).trials[0]._replace(query=(Sample("q", 0, 0),)),))

    class Confused(Toy):
        def embed(self, images, side=None, *, neck=False):
            return self.directions[torch.where(side.camids == 0, 1, images[:, 0].long())]

    plain = evaluate(Confused(torch.eye(2)), toy, loader, device=CPU)
    assert list(plain.mean) == ["mAP", "mINP", "rank1", "rank5", "rank10"]
    toy = replace(toy, unique_identities=True, ranks=(1, 2, 20))
    found = evaluate(Confused(torch.eye(2)), toy, loader, device=CPU)
    assert plain.trials[0].cmc.tolist()[:3] == [0, 0, 1] and found.trials[0].cmc.tolist()[:3] == [0, 1, 1]
    assert found.mean == {"mAP": plain.mean["mAP"], "mINP": plain.mean["mINP"], "rank1": 0, "rank2": 1, "rank20": 1}


def test_a_machine_without_a_compiler_is_said_in_a_line(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    tower = nn.Linear(2, 2)
    compile_tower(tower)
    with torch.no_grad():
        assert tower(torch.ones(1, 2)).shape == (1, 2)
    with pytest.raises(UserError, match=r"^SOLVER\.COMPILE True: .*No working C\+\+ compiler.*SOLVER\.COMPILE False$"):
        tower(torch.ones(1, 2))
