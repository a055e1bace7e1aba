"""Several processes compute what one does: real ones, started by torchrun, two and three of them.

This file is also what they run: every function of `CHECKS` in every process, and, without a process group, in pytest's
own. What they return is kept, with its error if there was one, and the tests compare.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import benchmark, data_of, image_batch, new_run, small_model, small_resnet_model, stage_run
from PIL import Image
from test_cclnet import CCLNET, SETTINGS, blocks
from torch import nn

import utils.distributed as distributed
from configs import load
from datasets.build import clusters_per_batch, identities_per_batch, make_loader
from loss.memory import Memory
from model.build import make_model, settle_pixels
from model.heads import Predictor
from model.prompts import mask, mix
from processor.build import cluster as build_cluster
from processor.evaluate import NOTHING_MORE, embed_all, evaluate
from processor.image_stage import ImageStage, all_text_features
from processor.loop import fit
from processor.prompt_stage import FeatureBatches, PromptStage, cache_features
from processor.turn import Turn
from utils.command import run_script
from utils.errors import DataError, UserError
from utils.records import Batch, FeatureBatch, Labels, QueryExpansion, Refinement, Reranking, Sample, Trial

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
WORLDS = (2, 3)
LAUNCH = 90  # seconds for all of a launch; a hang ends it

# --------------------------------------------------------------------------------------------------- what processes run


def gradients(stage: nn.Module, batch, *, cast=None) -> dict:
    """Losses, averaged gradients and running statistics after one batch."""
    with cast or contextlib.nullcontext():
        losses = stage(batch)
    losses.total.backward()
    distributed.average_gradients(stage.parameters())
    if getattr(stage, "memories", None):
        stage.update(torch.tensor(True))
    return {
        "losses": {"total": losses.total.detach(), **losses.terms},
        "gradients": {name: p.grad for name, p in stage.named_parameters() if p.grad is not None},
        "statistics": {
            name: value for name, value in stage.named_buffers() if ".running_" in name or "prototypes" in name
        },
    }


def doubled(record):
    if isinstance(record, torch.Tensor):
        return record.double() if record.is_floating_point() else record
    return type(record)(*map(doubled, record)) if isinstance(record, tuple) else record


def share(batch: Batch) -> Batch:
    """This process's part of a batch of twelve images."""
    size = len(batch.pids) // distributed.world_size()
    rows = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
    side = type(batch.side)(*(ids[rows] for ids in batch.side))
    return Batch(batch.images[rows], batch.pids[rows], side, batch.indices[rows], batch.views[:, rows])


ALL = {"identity": 0.25, "triplet": 1.0, "image_text": 0.7, "vision_ssl": 0.8}
PIDS, CAMS = [0, 0, 3, 3, 1, 1, 2, 2, 4, 4, 0, 1], [0, 1, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1]


def image_stage(tower: str = "vit", dtype=torch.float64, *, prototypes: bool = False, **options) -> ImageStage:
    model = (small_model(cams=2) if tower == "vit" else small_resnet_model()).to(dtype)
    if model.image.side is not None:
        nn.init.normal_(model.image.side.table, generator=torch.Generator().manual_seed(7))
    if options.get("self_supervision") == "SIMSIAM":
        torch.manual_seed(5)
        model.image_projector = Predictor(model.image.dims[1], hidden=7).to(dtype)
    stage = ImageStage(model, weights=ALL, text_features=all_text_features(model, CPU), **options).train()
    if prototypes:
        stage.weights = {**ALL, "prototype": 1.0, "camera_proxy": 0.5}
        stage.memories.update({"prototype": Memory(56), "camera_proxy": Memory(56, negatives=3)})
        features = torch.randn(12, 56, generator=torch.Generator().manual_seed(6), dtype=dtype)
        stage.fill(features, Labels(torch.tensor(PIDS), torch.tensor(CAMS)))
    if tower == "resnet":
        model.image.eval()  # its batch norm sees the images of one process only
    return stage


def image_gradients(_, **options) -> dict:
    return gradients(image_stage(**options), share(doubled(image_batch(PIDS, cams=CAMS))))


def image_in_bf16(_) -> dict:
    batch = image_batch(PIDS, cams=CAMS)
    return gradients(image_stage("vit", torch.float32), share(batch), cast=torch.autocast("cpu", torch.bfloat16))


def prompt_gradients(_, pids=(3, 0, 3, 2, 2, 3), augment=mask, rows=None, **options) -> dict:
    model = small_model(cams=2).double()
    with torch.no_grad():  # prompts that differ: batch norm of a few almost equal ones magnifies rounding
        model.prompts.context.mul_(50)
    augment = partial(augment, strength=0.5, generator=torch.Generator().manual_seed(4))
    weights = {"image_text": 1.0, "language_ssl": 0.8}
    stage = PromptStage(model, weights=weights, augment=augment, **options).train()
    features = torch.randn(len(pids), 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batches = FeatureBatches(FeatureBatch(features, torch.tensor(pids)), rows or len(pids), seed=1, epoch=1)
    *_, last = batches
    return gradients(stage, last)


def samples(folder: Path, split: str) -> list[Sample]:
    """Eleven images of four identities by two cameras."""
    return [Sample(str(folder / split / f"{number}.png"), number % 4, number // 4 % 2) for number in range(11)]


def config(*overrides: str):
    small = ["INPUT.SIZE_TRAIN", "(32, 16)", "INPUT.SIZE_TEST", "(32, 16)", "INPUT.PADDING", "2"]
    batches = ["DATALOADER.NUM_INSTANCE", "2", "SOLVER.STAGE2.IMS_PER_BATCH", "12", "TEST.IMS_PER_BATCH", "3"]
    return settle_pixels(load(None, [*small, *batches, "DATALOADER.NUM_WORKERS", "0", *overrides]))


def training(folder: Path) -> dict:
    """Two epochs through the real loader: parameters and statistics at the end."""
    stage = image_stage()
    train = [Sample(sample.path, number % 6, 0) for number, sample in enumerate(samples(folder, "train") * 3)]
    stage.model.heads[0].classifier = nn.Linear(32, 6, bias=False, dtype=torch.float64)
    stage.model.heads[1].classifier = nn.Linear(24, 6, bias=False, dtype=torch.float64)
    for head in stage.model.heads:
        nn.init.normal_(head.classifier.weight, generator=torch.Generator().manual_seed(3))
    stage.text_features = torch.randn(6, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    loader = make_loader(config(), train, train=True, views=True)
    group = {"params": [p for p in stage.parameters() if p.requires_grad], "initial_lr": 1e-3}
    drawn = []

    def batches(epoch: int, _done: int) -> list[Batch]:
        loader.dataset.set_epoch(epoch)
        loader.batch_sampler.set_epoch(epoch)
        made = [doubled(batch) for batch in loader]
        drawn.extend(batch.indices.tolist() for batch in made)
        return made

    fit(stage, batches, torch.optim.SGD([group], momentum=0.9, fused=True), lambda _, lr: lr, 2, run=stage_run())
    distributed.check_identical(stage.model)
    return {"state": stage.model.state_dict(), "drawn": drawn}


def clustering(folder: Path) -> dict:
    """Two epochs on clusters, through the real loader; the second from its first step on, and resumed at its second."""
    place = f"{distributed.world_size()}.{distributed.rank()}"
    (folder / f"blocks{place}").mkdir()
    people, changes = blocks(folder / f"blocks{place}"), {"SOLVER.CLUSTER.IMS_PER_BATCH": "12", "CLUSTER.K1": "4"}
    cfg = settle_pixels(load(CCLNET, [word for pair in {**SETTINGS, **changes}.items() for word in pair]))
    run, model = new_run(cfg, folder / f"clusters{place}"), make_model(cfg, people).double()
    found, real = [], build_cluster.find_clusters
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_cluster, "find_clusters", lambda *given: found.append(len(given[0])) or real(*given))
        return {"shown": len(people.train), "found": found, **_cluster_epochs(run, model, people)}


def _cluster_epochs(run, model, people) -> dict:
    parts = build_cluster.cluster_parts(run, Turn(run.cfg.PROCESSOR.STAGES, 0), model, data_of(people), seed=1)
    stage, shown, query = parts.module, [], parts.module.query
    stage.query = lambda batch: shown.append(len(batch.pids)) or query(doubled(batch))
    optimizer = torch.optim.SGD([p for p in stage.parameters() if p.requires_grad], lr=1e-4)
    labels, drawn, losses = [], [], []
    for epoch in (1, 2):
        state = parts.before_epoch(epoch, None, optimizer)
        labels.append(state["labels"].tolist())
        stage.train()
        model.image.eval()  # its batch norm sees the images of one process only
        for step, batch in enumerate(parts.batches(epoch, 0)):
            if (epoch, step) == (2, 1):
                state = {"labels": state["labels"], "memories": [memory.state_dict() for memory in stage.memories]}
                assert not torch.equal(*(memory.prototypes[:2] for memory in stage.memories))
                stage.memories = torch.nn.ModuleList(type(memory)(512) for memory in stage.memories)
                parts.before_epoch(2, state, optimizer)
                rest = [rows.indices.tolist() for rows in parts.batches(2, 1)]
            drawn.append(batch.indices.tolist())
            terms = stage(doubled(batch))
            optimizer.zero_grad()
            terms.total.backward()
            distributed.average_gradients(stage.parameters())
            optimizer.step()
            parts.after_step(torch.tensor(True))
            losses.append(terms.total.detach())
    assert drawn[-len(rest) :] == rest
    distributed.check_identical(stage)
    return {
        "images": sum(shown),
        "labels": labels,
        "drawn": drawn,
        "losses": torch.stack(losses),
        "memories": [memory.prototypes for memory in stage.memories],
        "pseudo-labels": (run.path / "pseudo_labels.npz").exists(),
    }


def features(folder: Path, size: int) -> dict:
    model, cfg = small_model(cams=2), config("TEST.IMS_PER_BATCH", str(size))
    loader = make_loader(cfg, samples(folder, "train"), train=False)
    cache = cache_features(model.train(), loader, CPU)
    return {
        "embedded": embed_all(model.train(), loader, device=CPU, neck=True),
        "features": cache.features,
        "pids": cache.pids,
        "batches": len(list(loader)),
    }


def a_benchmark(folder: Path, **changes):
    gallery, query = samples(folder, "train"), samples(folder, "test")[:4]
    trials = (Trial(tuple(query), tuple(gallery)), Trial(tuple(gallery[4:8]), tuple(query)))
    return benchmark(pids=4, trials=trials, **changes)


def evaluation(folder: Path, refinement: Refinement = NOTHING_MORE, **changes) -> dict:
    model = small_model(cams=2)
    loader = partial(make_loader, config(), train=False)
    got = evaluate(model, a_benchmark(folder, **changes), loader, device=CPU, refinement=refinement)
    return {
        "figures": got.values(),
        "cmc": [t.cmc for t in got.trials],
        "counts": [(t.num_valid, t.num_queries) for t in got.trials],
        "per query": [each for t in got.trials for each in (t.precision, t.hit)],
        "refinement": got.refinement,
    }


def nothing_to_find(query, gallery):
    return torch.ones(len(query.pids), len(gallery.pids), dtype=torch.bool)


def damaged(folder: Path, number: int | None, workers: int) -> None:
    """Image `number` of eleven (None: all) is none: batches of three, so number // 3 % W reads it."""
    broken = Sample(str(folder / "no_image.png"), 0, 0)
    some = [broken if number in (None, each) else sample for each, sample in enumerate(samples(folder, "train"))]
    loader = make_loader(config("DATALOADER.NUM_WORKERS", str(workers)), some, train=False)
    loader.worker_init_fn = None  # the worker ends with this process, which does not wait for it
    embed_all(small_model(), loader, device=CPU)


def batches_of_everybody(folder: Path) -> None:
    """Every process reads all images, as somebody's own loader may do."""
    every = [image_batch([0, 1]), image_batch([2, 3])._replace(indices=torch.tensor([2, 3]))]
    embed_all(small_model(), every, device=CPU)


def words(folder: Path) -> dict:
    """What the small functions say."""
    rank, world = distributed.rank(), distributed.world_size()
    folder = folder / f"words{world}"

    def write_or_read() -> str:
        if distributed.is_main():
            time.sleep(0.3)
            folder.mkdir(exist_ok=True)
            (folder / "file").write_text("written")
        return (folder / "file").read_text()

    network = nn.BatchNorm1d(2)
    before = network.running_mean.clone()
    network.running_mean.add_(torch.tensor([0.1, float(rank)]))
    apart = None
    try:
        distributed.check_identical(network)
    except RuntimeError as error:
        apart = str(error)
    distributed.average_statistics(network)
    distributed.check_identical(network)
    mean = network.running_mean - before
    network.running_mean.add_(rank)
    distributed.copy_from_main(network)
    distributed.check_identical(network)
    some = torch.arange(rank * 3)[:, None] + torch.tensor([[100 * rank, 0]]) if rank else None
    return {
        "place": (rank, world, distributed.is_main(), distributed.place()),
        "any": [distributed.any_rank(flag) for flag in (False, True, rank == world - 1)],
        "broadcast": distributed.broadcast({"from": rank}),
        "objects": distributed.gather_objects(f"process {rank}"),
        "on main": distributed.on_main(lambda: f"done by {distributed.rank()}"),
        "first": distributed.main_first(write_or_read),
        "rows": distributed.gather_rows(some, CPU) if world > 1 else None,
        "gathered": distributed.gather(torch.tensor([rank, -rank])),
        "apart": apart,
        "mean": mean,
    }


def fails_on(rank: int, error: Exception) -> None:
    with distributed.collective():
        if distributed.rank() == rank:
            raise error


def own_failure(_) -> None:
    with distributed.collective():
        raise DataError(f"of process {distributed.rank()}")


def fails_on_main(_) -> None:
    distributed.on_main(lambda: [][distributed.rank()])


def cannot_be_written(folder: Path) -> None:
    """By the main process; the others get its error before they continue."""
    path = folder / f"run {distributed.world_size()}"
    run = new_run(config(), path)
    (path / "metrics.jsonl").mkdir(parents=True, exist_ok=True)
    run.record("train", step=1)
    distributed.any_rank(False)


def out_of_memory_on_last(folder: Path) -> None:
    def loader(some):
        yield from make_loader(config(), some, train=False)
        if distributed.rank() == distributed.world_size() - 1:
            raise MemoryError("no room")

    embed_all(small_model(), loader(samples(folder, "train")), device=CPU)


IMAGE = {
    "image": {},
    "image SimSiam": {"self_supervision": "SIMSIAM"},
    "image, positives of other cameras": {"positives": "camera"},
    "image, published choices undone": {"side_on_views": True, "ignore_same_identity": True, "margin": None},
    "image, prototypes": {"prototypes": True},
    "image ResNet": {"tower": "resnet"},
}
PROMPT = {
    "prompt": {},
    "prompt mix, projector trains": {"augment": mix, "train_projector": True},
    "prompt short last batch": {"pids": (3, 0, 3, 2, 2, 4, 1), "rows": 4},
    "prompt of one identity": {"pids": (2, 2)},
    "prompt of one image": {"pids": (0, 1, 2, 3), "rows": 3},
}
REFINED = Refinement(True, QueryExpansion(2, 3.0), Reranking(3, 2, 0.3))
CHECKS = {
    **{name: partial(image_gradients, **options) for name, options in IMAGE.items()},
    **{name: partial(prompt_gradients, **options) for name, options in PROMPT.items()},
    "image in bf16": image_in_bf16,
    "training": training,
    "clustering": clustering,
    **{f"features {size}": partial(features, size=size) for size in (1, 3, 64)},
    "evaluation": evaluation,
    "evaluation refined": partial(evaluation, refinement=REFINED),
    "nothing to find": partial(evaluation, ignored=nothing_to_find),
    "damaged": partial(damaged, number=4, workers=0),
    "damaged, read by a worker": partial(damaged, number=1, workers=1),
    "damaged for all": partial(damaged, number=None, workers=0),
    "batches of everybody": batches_of_everybody,
    "words": words,
    "user's error": lambda _: fails_on(1, DataError("of process 1")),
    "other error": lambda _: fails_on(1, KeyError("lost")),
    "everybody's own error": own_failure,
    "error on main": fails_on_main,
    "folder on main": cannot_be_written,
    "out of memory": out_of_memory_on_last,
}


def outcome(name: str, folder: Path) -> dict:
    """What a check returned or raised, and how long it took."""
    torch.manual_seed(0)
    started = time.monotonic()
    result, error = None, None
    try:
        result = CHECKS[name](folder)
    except Exception as caught:
        error = (type(caught), str(caught))
    return {"result": result, "error": error, "seconds": time.monotonic() - started}


def main(folder: Path) -> None:
    faulthandler.dump_traceback_later(LAUNCH - 30, exit=True)  # says where it hangs
    torch.set_num_threads(1)
    device = distributed.join_processes(CPU)
    assert device == CPU
    outcomes = {name: outcome(name, folder) for name in CHECKS}
    rank, world = distributed.rank(), distributed.world_size()
    torch.save(outcomes, folder / f"{world}.{rank}.pt")
    distributed.leave_processes()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


# ------------------------------------------------------------------------------------------------------------ the tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        (folder / split).mkdir()
        for number in range(11):
            pixels = rng.integers(0, 256, (40, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
    (folder / "no_image.png").write_text("text")
    return folder


@pytest.fixture(scope="module", params=WORLDS)
def several(request, folder) -> list[dict]:
    """Outcomes of every process."""
    world = request.param
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, __file__, str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=LAUNCH)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes
        errors = "hangs\n" + process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors[-3000:]
    return [torch.load(folder / f"{world}.{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.fixture(scope="module")
def alone(folder):
    """Outcome of a check without a process group."""
    known: dict[str, dict] = {}

    def get(name: str):
        if name not in known:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as the others: what a CPU computes may depend on it in the last digit
            known[name] = outcome(name, folder)
            torch.set_num_threads(threads)
        assert known[name]["error"] is None, known[name]["error"]
        return known[name]["result"]

    return get


def results(several: list[dict], name: str) -> list:
    errors = {rank: one[name]["error"] for rank, one in enumerate(several) if one[name]["error"]}
    assert not errors, errors
    return [one[name]["result"] for one in several]


def errors(several: list[dict], name: str) -> list[tuple[type, str]]:
    """What each process raised, soon."""
    assert all(one[name]["seconds"] < 30 for one in several)
    raised = [one[name]["error"] for one in several]
    assert all(raised), raised
    return raised


def deviation(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference, measured by the largest value of each tensor, or of 1."""
    assert ours.keys() == theirs.keys() and ours
    return max(
        ((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1)).item() for name in ours
    )


@pytest.mark.parametrize("name", [*IMAGE, *PROMPT])
def test_losses_and_gradients_are_those_of_one_process(several, alone, name):
    expected = alone(name)
    # Large activations; three alike in a batch norm.
    tolerance = 2e-11 if name in ("image ResNet", "prompt mix, projector trains") else 1e-12
    some = [gradient for gradient in expected["gradients"].values() if gradient.abs().max() > 1e-3]
    assert len(some) >= (20 if name in IMAGE else "one" not in name)
    for got in results(several, name):
        for what in ("losses", "gradients", "statistics"):  # the latter are the whole batch's
            assert deviation(got[what], expected[what]) < tolerance, what


def test_losses_of_bf16_towers_are_gathered_too(several, alone):
    for got in results(several, "image in bf16"):
        assert got["losses"]["total"].dtype == torch.float32
        assert deviation(got["losses"], alone("image in bf16")["losses"]) < 0.05


def test_a_training_is_that_of_one_process(several, alone):
    expected, got = alone("training"), results(several, "training")
    assert len(expected["drawn"]) >= 2
    for step, images in enumerate(expected["drawn"]):
        assert sorted(images) == sorted(image for one in got for image in one["drawn"][step])
    for one in got:
        assert deviation(one["state"], expected["state"]) < 1e-12
        assert all(torch.equal(one["state"][name], got[0]["state"][name]) for name in one["state"])


def test_clusters_are_found_once_and_batches_of_them_are_shared(several, alone):
    expected, got = alone("clustering"), results(several, "clustering")
    assert all(len(images) == 24 for images in expected["drawn"]) and len(expected["drawn"]) >= 4
    assert expected["images"] == sum(one["images"] for one in got) == 2 * expected["shown"]
    assert [one["found"] for one in got] == [expected["found"], *([[]] * (len(got) - 1))]
    assert [one["pseudo-labels"] for one in got] == [True, *([False] * (len(got) - 1))]
    for step, images in enumerate(expected["drawn"]):
        shares = [one["drawn"][step] for one in got]
        assert sorted(images) == sorted(image for share in shares for image in share)
        assert len({len(share) for share in shares}) == 1
    for one in got:
        assert one["labels"] == expected["labels"]
        torch.testing.assert_close(one["losses"], expected["losses"], rtol=1e-4, atol=0)
        for ours, theirs in zip(one["memories"], expected["memories"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_features_are_those_of_one_process_bit_for_bit(several, alone, size):
    """Of 11, 4 and 1 batches."""
    expected, got = alone(f"features {size}"), results(several, f"features {size}")
    assert [one["batches"] for one in got] == [len(range(rank, -(-11 // size), len(got))) for rank in range(len(got))]
    for one in got:
        for name in ("embedded", "features", "pids"):
            assert torch.equal(one[name], expected[name])


@pytest.mark.parametrize("name", ["evaluation", "evaluation refined"])
def test_an_evaluation_is_that_of_one_process(several, alone, name):
    expected = alone(name)
    for got in results(several, name):
        assert got["figures"] == expected["figures"] and 0 < got["figures"][0]["mAP"] < 1
        assert (got["counts"], got["refinement"]) == (expected["counts"], expected["refinement"])
        for field in ("cmc", "per query"):
            assert all(torch.equal(*pair) for pair in zip(got[field], expected[field], strict=True))


@pytest.mark.parametrize("name", ["damaged", "damaged, read by a worker", "damaged for all"])
def test_an_unreadable_image_of_one_process_stops_all(several, name):
    for kind, text in errors(several, name):
        assert kind is DataError and "no_image.png" in text


def test_a_fault_that_the_ranking_process_finds_reaches_all(several):
    raised = errors(several, "nothing to find")
    assert len(set(raised)) == 1 and raised[0][0] is DataError and "has a valid match" in raised[0][1]


def test_batches_that_are_not_shared_are_refused(several):
    for kind, text in errors(several, "batches of everybody"):
        assert kind is RuntimeError and "hold every image once" in text


def test_what_goes_wrong_on_one_process_is_raised_on_all(several):
    last = len(several) - 1
    assert errors(several, "user's error") == [(DataError, "of process 1")] * len(several)
    assert errors(several, "everybody's own error") == [(DataError, "of process 0")] * len(several)
    for kind, text in errors(several, "folder on main"):
        assert kind is UserError and text.endswith("metrics.jsonl: cannot be written (Is a directory)")
    for name, culprit, kind, text in (
        ("other error", 1, KeyError, "KeyError: 'lost'"),
        ("error on main", 0, IndexError, "IndexError: list index out of range"),
        ("out of memory", last, MemoryError, "MemoryError: no room"),
    ):
        for rank, raised in enumerate(errors(several, name)):
            if rank == culprit:
                assert raised[0] is kind
            else:
                assert raised == (distributed.ProcessFailed, f"process {culprit} failed: {text}")


def test_the_small_functions(several):
    world = len(several)
    for rank, got in enumerate(results(several, "words")):
        assert got["place"] == (rank, world, rank == 0, (rank, world, rank, world))
        assert got["any"] == [False, True, True]
        assert got["broadcast"] == {"from": 0} and got["on main"] == "done by 0" and got["first"] == "written"
        assert got["objects"] == [f"process {number}" for number in range(world)]
        rows = [[row + 100 * number, row] for number in range(1, world) for row in range(3 * number)]
        assert got["rows"].tolist() == rows
        assert got["gathered"].tolist() == [sign * number for number in range(world) for sign in (1, -1)]
        assert got["apart"] == "the networks of processes 0 and 1 differ, first in running_mean"
        torch.testing.assert_close(got["mean"], torch.tensor([0.1, (world - 1) / 2]))


# ---------------------------------------------------------------------------------------------------------- one process


def test_a_single_process_pays_and_says_nothing(alone, folder, caplog):
    caplog.set_level(logging.INFO)
    got = alone("words")
    assert got["place"] == (0, 1, True, None) and got["any"] == [False, True, True]
    assert (got["broadcast"], got["objects"]) == ({"from": 0}, ["process 0"])
    assert (got["on main"], got["first"], got["apart"]) == ("done by 0", "written", None)
    x = torch.ones(3, 2, requires_grad=True)
    assert distributed.gather(x) is x and distributed.gather_rows(x, CPU) is x
    assert distributed.in_shares(lambda rows: rows, x) is x
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    assert distributed.sync_batch_norm(network, torch.device("cuda")) is network
    assert type(network[1]) is nn.BatchNorm2d
    with pytest.raises(KeyError, match="mine"), distributed.collective():
        raise KeyError("mine")
    assert not caplog.messages
    distributed.leave_processes()


@pytest.mark.parametrize(
    ("images", "advice"), [(4, {3: "6"}), (10, {2: "8 or 12", 3: "6 or 12"}), (12, {}), (16, {3: "12 or 18"})]
)
@pytest.mark.parametrize(("stage", "per_batch"), [("STAGE2", identities_per_batch), ("CLUSTER", clusters_per_batch)])
def test_a_batch_that_cannot_be_shared(monkeypatch, stage, per_batch, images, advice):
    cfg = config(f"SOLVER.{stage}.IMS_PER_BATCH", str(images))
    for world in WORLDS:
        monkeypatch.setattr(per_batch.__globals__["distributed"], "world_size", lambda world=world: world)
        if world not in advice:
            assert per_batch(cfg) == images // 2
            continue
        named = (
            f"SOLVER.{stage}.IMS_PER_BATCH {images}",
            "DATALOADER.NUM_INSTANCE 2",
            f"{world} processes",
            advice[world],
        )
        with pytest.raises(UserError) as caught:
            per_batch(cfg)
        assert [words for words in named if words not in str(caught.value)] == []


PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def under_torchrun(monkeypatch, *place: int | str | None) -> None:
    """What torchrun sets; nothing for None."""
    for name, value in zip(PLACE, place, strict=True):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(value))


def test_only_torchrun_makes_several_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    under_torchrun(monkeypatch, None, None, None, None)
    for device in map(torch.device, ("cpu", "cuda", "cuda:3", "mps")):
        assert distributed.join_processes(device) is device
    under_torchrun(monkeypatch, 0, 1, 0, 1)
    assert distributed.place() is None and distributed.join_processes(torch.device("cuda")) == torch.device("cuda")
    assert not torch.distributed.is_initialized()
    # The last one: set by hand, a process a machine.
    for place, understood in (((5, 8, 1, 4), (5, 8, 1, 4)), ((1, 2, 0, None), (1, 2, 0, 1))):
        under_torchrun(monkeypatch, *place)
        assert distributed.place() == understood


@pytest.mark.parametrize(("name", "values"), [("MASTER_PORT", ("x", "", "-1", "99999")), ("MASTER_ADDR", ("",))])
def test_what_is_wrong_in_the_environment_is_one_line(monkeypatch, capsys, name, values):
    under_torchrun(monkeypatch, 0, 2, 0, None)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29511")
    for value in values:
        monkeypatch.setenv(name, value)
        assert run_script(lambda: distributed.join_processes(CPU)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and name in line and repr(value) in line


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    asked, chosen = [], []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **rest: asked.append(backend))
    under_torchrun(monkeypatch, 6, 8, 2, 4)
    assert distributed.join_processes(torch.device("cuda")) == torch.device("cuda:2") == chosen[-1]
    assert distributed.join_processes(CPU) == CPU and asked == ["cpu:gloo,cuda:nccl", "gloo"]
    under_torchrun(monkeypatch, 1, 2, 0, 1)  # the only process of its machine may have any
    assert distributed.join_processes(torch.device("cuda:1")) == torch.device("cuda:1") == chosen[-1]
    for place, device, words in (
        ((6, 8, 2, 4), "cuda:1", r"MODEL\.DEVICE cuda:1: .*4 processes"),
        ((6, 8, 2, 4), "mps", r"MODEL\.DEVICE mps"),
        ((0, 5, 0, 5), "cuda", r"5 processes on a machine with 4 CUDA devices.*--nproc_per_node 4$"),
    ):
        under_torchrun(monkeypatch, *place)
        with pytest.raises(UserError, match=words):
            distributed.join_processes(torch.device(device))
    assert len(asked) == 3


def test_batch_norm_over_processes_is_for_gpus(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(distributed, "_several", lambda: True)
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    names = list(network.state_dict())
    assert distributed.sync_batch_norm(network, CPU) is network and type(network[1]) is nn.BatchNorm2d
    assert "on GPUs only" in caplog.messages[-1]
    network = distributed.sync_batch_norm(network, torch.device("cuda"))
    assert type(network[1]) is nn.SyncBatchNorm and list(network.state_dict()) == names


if __name__ == "__main__":
    main(Path(sys.argv[1]))
