"""Memories of the image stage: prototypes of identities, and of identities in cameras, against plain loops."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from builders import benchmark as toy
from builders import data_of, image_batch, new_run, small_model, stage_run
from torch import Tensor, nn

from configs import from_dict, load, to_dict
from datasets.build import make_loader
from loss.memory import Memory
from model.build import make_model
from processor import image_stage
from processor.build import image, prototypes
from processor.build.data import check_cameras
from processor.build.stage import run_stage
from processor.image_stage import ImageStage
from processor.loop import fit
from tests import reference as ref
from tools.demo.render import rendered_benchmark
from utils.errors import DataError
from utils.records import Batch, Labels

WEIGHTS = {"identity": 0.25, "prototype": 1.0, "camera_proxy": 0.5}
PIDS, CAMS = [0, 0, 3, 3, 1, 1], [0, 1, 1, 2, 0, 0]  # of a batch; identity 1 is in one camera
TEMPERATURE, CAMERA_TEMPERATURE, MOMENTUM, CAMERA_MOMENTUM, NEGATIVES = 0.05, 0.07, 0.2, 0.3, 3


def doubled(batch: Batch) -> Batch:
    return batch._replace(images=batch.images.double())


def batches(count: int) -> list[Batch]:
    return [doubled(image_batch(PIDS, cams=CAMS, views=False, seed=seed)) for seed in range(count)]


def memories(width: int) -> dict[str, Memory]:
    camera = {"temperature": CAMERA_TEMPERATURE, "momentum": CAMERA_MOMENTUM, "negatives": NEGATIVES}
    return {
        "prototype": Memory(width, temperature=TEMPERATURE, momentum=MOMENTUM),
        "camera_proxy": Memory(width, **camera),
    }


OWNERS, PLACES = [0, 0, 0, 1, 2, 3, 3, 4, 4], [0, 1, 1, 0, 2, 1, 2, 0, 2]  # of the training images


def stage_and_means() -> tuple[ImageStage, tuple[dict, dict]]:
    """A stage whose memories are filled, and what they hold: by identity, and by identity and camera."""
    stage = ImageStage(small_model(cams=3).double(), weights=WEIGHTS, text_features=None).train()
    stage.memories.update(memories(56))
    features = torch.randn(9, 56, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    stage.fill(features, Labels(torch.tensor(OWNERS), torch.tensor(PLACES)))
    return stage, (ref.class_means(features, OWNERS), ref.class_means(features, zip(OWNERS, PLACES, strict=True)))


def reference_terms(model: nn.Module, batch: Batch, means: tuple[dict, dict]) -> tuple[Tensor, list[Tensor]]:
    """Features and both terms."""
    features = model.embed(batch.images, batch.side)
    one = ref.prototype_contrast(features, PIDS, means[0], TEMPERATURE)
    return features, [one, ref.camera_contrast(features, PIDS, CAMS, means[1], CAMERA_TEMPERATURE, NEGATIVES)]


def held(stage: ImageStage) -> list[Tensor]:
    return [memory.prototypes.clone() for memory in stage.memories.values()]


def stacked(means: tuple[dict, dict]) -> list[Tensor]:
    return [torch.stack(list(one.values())) for one in means]


def test_loss_and_gradient_are_those_of_plain_loops():
    stage, means = stage_and_means()
    torch.testing.assert_close(held(stage), stacked(means))
    (batch,) = batches(1)
    other = deepcopy(stage.model)
    losses = stage(batch)
    losses.total.backward()
    _, terms = reference_terms(other, batch, means)
    assert list(losses.terms) == list(WEIGHTS) and losses.accuracy.keys() == {"identity"}
    for name, term in zip(("prototype", "camera_proxy"), terms, strict=True):
        torch.testing.assert_close(losses.terms[name], term.detach())
    scores = other.classify(other.encode_image(batch.images, batch.side))
    identity = sum(ref.cross_entropy(each, batch.pids) for each in scores)
    (0.25 * identity + terms[0] + 0.5 * terms[1]).backward()
    for (name, ours), theirs in zip(stage.model.named_parameters(), other.parameters(), strict=True):
        if theirs.grad is not None and ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    assert stage.model.image.side.table.grad.any()


def test_memories_are_taken_as_they_are_and_moved_after_the_step():
    stage, means = stage_and_means()
    stage.weights = {"prototype": 1.0, "camera_proxy": 0.5}
    model, drawn = deepcopy(stage.model), batches(3)

    def sgd(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": list(model.image.parameters()), "initial_lr": 1e-3}], lr=1e-3)

    fit(stage, lambda *_: drawn, sgd(stage.model), lambda _, lr: lr, 1, run=stage_run(after_step=stage.update))
    optimizer = sgd(model)
    for batch in drawn:
        features, (one, other) = reference_terms(model, batch, means)
        optimizer.zero_grad()
        (one + 0.5 * other).backward()
        optimizer.step()
        places, features = list(zip(PIDS, CAMS, strict=True)), features.detach()
        moved = [row for row, place in enumerate(places) if place in means[1]]
        means = (
            ref.moved_prototypes(means[0], features, PIDS, MOMENTUM),
            ref.moved_prototypes(means[1], features[moved], [places[row] for row in moved], CAMERA_MOMENTUM),
        )
    torch.testing.assert_close(held(stage), stacked(means))
    for ours, theirs in zip(stage.model.image.parameters(), model.image.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_was_no_step_moves_no_memory():
    stage, means = stage_and_means()
    stage(*batches(1))
    stage.update(torch.tensor(False))
    torch.testing.assert_close(held(stage), stacked(means))
    stage.update(torch.tensor(True))
    assert not torch.equal(held(stage)[0], stacked(means)[0])


# ------------------------------------------------------------------------------------------------- from a configuration

WORDS = (
    *("DATASETS.SYNTHETIC.TRAIN_IDENTITIES", "6", "DATASETS.SYNTHETIC.TEST_IDENTITIES", "2"),
    *("DATASETS.SYNTHETIC.TEST_IMAGES", "6", "DATALOADER.NUM_INSTANCE", "2", "SOLVER.STAGE2.IMS_PER_BATCH", "8"),
    *("SOLVER.STAGE2.MAX_EPOCHS", "2", "SOLVER.STAGE2.EVAL_PERIOD", "9", "MODEL.DEVICE", "cpu"),
    *("SOLVER.STAGE2.CHECKPOINT_PERIOD", "2"),
)
BOTH = ("MODEL.PROTOTYPE_LOSS_WEIGHT", "1.0", "MODEL.CAMERA_PROXY_LOSS_WEIGHT", "0.5", "MEMORY.CAMERA_NEGATIVES", "3")


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    return load("configs/demo/vit_base.yml", ["DATASETS.ROOT_DIR", str(tmp_path_factory.mktemp("data")), *WORDS])


def trained(cfg, path, *words: str) -> tuple[nn.Module, list[tuple]]:
    """A network that has been through the image stage, and calls of its memories: (memory, what, arguments)."""
    cfg, calls = from_dict(to_dict(cfg), list(words), where="here"), []

    class Watched(Memory):
        def fill(self, *arguments):
            super().fill(*arguments)
            calls.append((self, "fill", *arguments, self.prototypes.clone()))

        def forward(self, *arguments):
            calls.append((self, "compare", *arguments, self.prototypes.clone()))
            return super().forward(*arguments)

        def update(self, *arguments):
            super().update(*arguments)
            calls.append((self, "update", *arguments, self.prototypes.clone()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prototypes, "Memory", Watched)
        benchmark = rendered_benchmark(cfg)
        torch.manual_seed(0)
        model = make_model(cfg, benchmark)
        calls.append((None, "network", deepcopy(model), benchmark))
        run_stage(new_run(cfg, path), 0, model, data_of(benchmark))
    return model, calls


def test_the_configuration_begins_compares_and_moves_memories(cfg, tmp_path):
    _, ((*_, model, benchmark), *calls) = trained(cfg, tmp_path, *BOTH)
    images = list(make_loader(cfg, benchmark.train, train=False))
    with torch.no_grad():
        features = torch.cat([model.eval().embed(batch.images, batch.side) for batch in images])
    owners = [sample.pid for sample in benchmark.train]
    places = [(sample.pid, sample.camid) for sample in benchmark.train]
    for classes, temperature, momentum, negatives in ((owners, 0.05, 0.1, None), (places, 0.07, 0.2, 3)):
        mine = [call for call in calls if (call[0].negatives is None) == (negatives is None)]
        memory = mine[0][0]
        assert (memory.temperature, memory.momentum, memory.negatives) == (temperature, momentum, negatives)
        steps = (len(mine) - 1) // 2
        assert [what for _, what, *_ in mine] == ["fill", *["compare", "update"] * steps] and steps > 4
        now = ref.class_means(features, classes)
        for _, what, queries, pids, camids, found in mine:
            if what == "update":
                batch = pids.tolist() if negatives is None else list(zip(pids.tolist(), camids.tolist(), strict=True))
                now = ref.moved_prototypes(now, queries, batch, momentum)
            torch.testing.assert_close(found, torch.stack(list(now.values())), atol=1e-5, rtol=1e-5)


def test_of_weight_0_training_is_bit_by_bit_what_it_is_without_the_terms(cfg, tmp_path, monkeypatch):
    ours, calls = trained(cfg, tmp_path / "ours")
    assert [what for _, what, *_ in calls] == ["network"]
    others, _ = trained(cfg, tmp_path / "others", *BOTH)
    old = {name: term for name, term in image_stage.TERMS.items() if name not in ("prototype", "camera_proxy")}
    for module in (image_stage, image):
        monkeypatch.setattr(module, "TERMS", old)
    monkeypatch.setattr(image, "keep_prototypes", lambda *_: None)
    theirs, _ = trained(cfg, tmp_path / "theirs")
    state = theirs.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    assert any(not torch.equal(value, state[name]) for name, value in others.state_dict().items())


def test_camera_proxies_need_identities_in_two_cameras(cfg, tmp_path):
    asked = from_dict(to_dict(cfg), list(BOTH), where="here")
    check_cameras(asked, toy(cams=2))
    check_cameras(cfg, toy(cams=1))
    alone = toy(cams=1)
    unknown = replace(alone, train=tuple(sample._replace(camid=-1) for sample in toy(cams=2).train))
    for benchmark in (alone, unknown):
        with pytest.raises(DataError, match=r"MODEL\.CAMERA_PROXY_LOSS_WEIGHT 0\.5: .* two cameras; expected 0\.0"):
            check_cameras(asked, benchmark)
