"""CCLNet: clusters of two modalities, prompts of them, clusters with texts; resumed, and with nothing to find."""

from __future__ import annotations

import json
import math
import signal
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_device import FakeDevice
from PIL import Image

import train_svllreid
from configs import load
from datasets import build as data_build
from datasets.names import PROMPTS
from loss.memory import Memory
from model.build import load_model, make_model
from processor.build import cluster as build_cluster
from processor.cluster_stage import ClusterStage, Texts
from processor.clusters import Swap, without_few_clusters
from processor.progress import NonFiniteLoss
from processor.prompt_stage import BalancedBatches, PromptStage
from processor.pseudo_labels import PseudoLabels, read_labels, write_labels
from solver.build import make_schedule
from utils.checkpoint import read_checkpoint, read_tensors
from utils.errors import DataError
from utils.metrics import ignore_nothing
from utils.records import Batch, Benchmark, FeatureBatch, Sample, SideInfo, Trial
from utils.stopping import Interrupted

TEMPLATES = ("A visible photo of a {} person.", "An infrared photo of a {} person.")
PEOPLE, TESTED, CAMERAS, IMAGES = 8, 3, (0, 0, 1), 3  # cameras: modality of each; images of a person in each


def blocks(root: Path) -> Benchmark:
    """People of 8 x 4 blocks: coloured in two cameras, grey in the third."""
    rng, found = np.random.default_rng(0), []
    for pid in range(PEOPLE + TESTED):
        albedo, hue = rng.uniform(0.1, 1, (8, 4, 1)), rng.uniform(0.3, 1, 3)
        for camid, modality in enumerate(CAMERAS):
            for number in range(IMAGES):
                shown = albedo**0.7 * np.ones(3) if modality else albedo * hue
                image = np.kron(shown, np.ones((8, 8, 1))) * rng.uniform(0.85, 1.15) + rng.normal(0, 0.03, (64, 32, 3))
                path = root / f"{pid}_{camid}_{number}.png"
                Image.fromarray((255 * image.clip(0, 1)).astype(np.uint8)).save(path)
                found.append(Sample(str(path), pid, camid, modality=modality))
    train, test = ([s for s in found if (s.pid < PEOPLE) == training] for training in (True, False))
    query, gallery = (tuple(s for s in test if s.modality == modality) for modality in (1, 0))
    facts = {"train": tuple(train), "trials": (Trial(query, gallery),), "templates": TEMPLATES}
    return Benchmark("blocks", "A photo of a {} person.", ignored=ignore_nothing, **facts)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> Benchmark:
    return blocks(tmp_path_factory.mktemp("blocks"))


SETTINGS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.NAME": "RN-Tiny",
    "MODEL.PRETRAIN": "none",
    "INPUT.SIZE_TRAIN": "(64, 32)",
    "INPUT.SIZE_TEST": "(64, 32)",
    "INPUT.PADDING": "2",
    "DATASETS.NAMES": "blocks",
    "DATASETS.ROOT_DIR": ".",
    "DATALOADER.NUM_WORKERS": "0",
    "DATALOADER.NUM_INSTANCE": "2",
    "CLUSTER.K1": "6",
    "CLUSTER.K2": "3",
    "CLUSTER.MIN_SAMPLES": "2",
    "MEMORY.SWAP_START": "2",
    "SOLVER.CLUSTER.IMS_PER_BATCH": "8",
    "SOLVER.CLUSTER.MAX_EPOCHS": "2",
    "SOLVER.CLUSTER.WARMUP_ITERS": "0",
    "SOLVER.STAGE1.IMS_PER_BATCH": "16",
    "SOLVER.STAGE1.MAX_EPOCHS": "2",
    "SOLVER.CHECKPOINT_MINUTES": "1e-9",  # a state after every step
}
CCLNET = "configs/sysu/cclnet.yml"
SLOW = pytest.mark.slow


def words(folder: Path, **changes: str) -> list[str]:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    settings = {**SETTINGS, "OUTPUT_DIR": str(folder), **named}
    return ["--config_file", CCLNET, *(word for pair in settings.items() for word in pair)]


@pytest.fixture(autouse=True)
def registered(monkeypatch, benchmark):
    monkeypatch.setitem(data_build.BENCHMARKS, "blocks", lambda cfg, train: benchmark)
    monkeypatch.setitem(PROMPTS, "blocks", TEMPLATES)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def records(folder: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines if line["kind"] == kind]


def weights(folder: Path) -> dict[str, dict]:
    return {path.name: read_checkpoint(path)["model"] for path in sorted(folder.glob("*.pth"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, benchmark) -> Path:
    """A run that nobody stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data_build.BENCHMARKS, "blocks", lambda cfg, train: benchmark)
        patch.setitem(PROMPTS, "blocks", TEMPLATES)
        return train_svllreid.main(words(tmp_path_factory.mktemp("run") / "whole"))


def test_the_whole_chain(whole, benchmark):
    files = ["RN-Tiny_stage0_2.pth", "RN-Tiny_stage1_2.pth", "again1_RN-Tiny_stage0_2.pth"]
    assert list(weights(whole)) == files
    found = records(whole, "clusters")
    assert [(line["epoch"], line.get("again")) for line in found] == [(1, None), (2, None), (1, 1), (2, 1)]
    assert {"visible_clusters", "infrared_outliers", "matched_cosine", "true_visible_purity"} <= found[0].keys()
    assert (whole / "again1_pseudo_labels.npz").exists()
    with np.load(whole / "pseudo_labels.npz") as file:
        counts, labels, modalities = (file[name] for name in ("counts", "labels", "modalities"))
    assert counts.tolist() == [found[1][f"{name}_clusters"] for name in ("visible", "infrared")]
    assert [labels[modalities == number].max() + 1 for number in (0, 1)] == counts.tolist()
    first, last = (read_checkpoint(whole / files[number]) for number in (0, 2))
    assert first["architecture"]["prompt_counts"] == [0, 0] and len(first["model"]["prompts.context"]) == 0
    assert last["architecture"]["prompt_counts"] == counts.tolist()
    model = load_model(whole / files[2]).eval()
    assert len(model.prompts.context) == counts.sum() and len(model.heads) == 1
    side = SideInfo.unknown(torch.tensor([0, 1]))
    assert model.embed(torch.randn(2, 3, 64, 32), side, neck=True).shape == (2, 512)
    # As published, the tower begins again where the prompts are learned, and the text tower and prompts stay.
    begun = weights(whole)[files[1]]
    assert (begun["heads.0.neck.weight"] == 1).all() and (begun["heads.0.neck.running_mean"] == 0).all()
    assert torch.equal(last["model"]["prompts.context"], begun["prompts.context"])
    assert {"cluster", "image_text"} <= records(whole, "train")[-1].keys()


class Killed(Exception):
    """As if by a signal that cannot be caught."""


@pytest.mark.parametrize(
    ("where", "call"),
    [
        ("update", 4),
        *(pytest.param(*each, marks=SLOW) for each in (("update", 2), ("update", 11), ("find", 2), ("find", 3))),
        pytest.param("prompt", 2, marks=SLOW),
    ],
)
def test_killed_and_resumed_is_as_uninterrupted(tmp_path, monkeypatch, whole, where, call):
    owner, name = {
        "update": (ClusterStage, "update"),
        "find": (build_cluster, "find_clusters"),
        "prompt": (PromptStage, "forward"),
    }[where]
    real, calls = getattr(owner, name), []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(Killed):
            train_svllreid.main(words(tmp_path / "run"))
    clustered = len(records(tmp_path / "run", "clusters"))
    state = max((tmp_path / "run" / "resume").glob("*.pth"))
    begun = read_checkpoint(state)["run"]["position"]["epoch_state"] is not None
    real_find, again = build_cluster.find_clusters, []
    monkeypatch.setattr(build_cluster, "find_clusters", lambda *given: again.append(1) or real_find(*given))
    train_svllreid.main(words(tmp_path / "run"))
    if where == "update":
        assert begun and len(again) == 4 - clustered  # those of the epoch were given back
    ours, theirs = weights(tmp_path / "run"), weights(whole)
    assert ours.keys() == theirs.keys()
    for file, state in theirs.items():
        assert [name for name in state if not torch.equal(ours[file][name], state[name])] == []
    for kind in ("clusters", "evaluation"):
        assert records(tmp_path / "run", kind) == records(whole, kind)
    with np.load(tmp_path / "run" / "pseudo_labels.npz") as mine, np.load(whole / "pseudo_labels.npz") as other:
        assert mine["labels"].tolist() == other["labels"].tolist()


def test_a_signal_while_clusters_are_found_loses_nothing(tmp_path, monkeypatch):
    real, calls = build_cluster.find_clusters, []

    def signalled(*arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(build_cluster, "find_clusters", signalled)
    with pytest.raises(Interrupted):
        train_svllreid.main(words(tmp_path / "run", PROCESSOR__STAGES="cluster", SOLVER__CHECKPOINT_MINUTES="0"))
    (state,) = (tmp_path / "run" / "resume").glob("*.pth")
    position = read_checkpoint(state)["run"]["position"]
    assert (position["epoch"], position["step"]) == (2, 1)


@SLOW
def test_without_a_restart_the_tower_goes_on(tmp_path, whole):
    folder = train_svllreid.main(words(tmp_path / "run", SOLVER__CLUSTER__RESTART="False"))
    for path, moved in ((whole, True), (folder, False)):
        before, after = (
            weights(path)[f"RN-Tiny_stage{number}_2.pth"]["image.visual.conv1.weight"] for number in (0, 1)
        )
        assert torch.equal(before, after) != moved


def test_periods_and_seeds(tmp_path, whole):
    changes = {"SOLVER__CLUSTER__EVAL_PERIOD": "1", "SOLVER__CLUSTER__LOG_PERIOD": "1", "PROCESSOR__STAGES": "cluster"}
    folder = train_svllreid.main(words(tmp_path / "run", SOLVER__CLUSTER__CHECKPOINT_PERIOD="1", **changes))
    ours, theirs = weights(folder), weights(whole)["RN-Tiny_stage0_2.pth"]
    assert list(ours) == ["RN-Tiny_stage0_1.pth", "RN-Tiny_stage0_2.pth"]
    assert [line["stage"] for line in records(folder, "evaluation")] == ["start", "cluster", "end"]
    assert len(records(folder, "train")) > 2
    assert all(torch.equal(value, theirs[name]) for name, value in ours["RN-Tiny_stage0_2.pth"].items())
    other = train_svllreid.main(words(tmp_path / "other", SOLVER__SEED="2", **changes))
    assert not torch.equal(
        weights(other)["RN-Tiny_stage0_2.pth"]["image.visual.conv1.weight"], theirs["image.visual.conv1.weight"]
    )


@pytest.mark.parametrize("changes", [{"CLUSTER__MIN_SAMPLES": "99"}, {"CLUSTER__EPS": "0.99", "CLUSTER__K1": "72"}])
def test_no_cluster_or_one_skips_the_epoch(tmp_path, changes):
    folder = train_svllreid.main(words(tmp_path / "run", PROCESSOR__STAGES="cluster", **changes))
    few = {line["visible_clusters"] for line in records(folder, "clusters")}
    assert (
        few <= {0, 1} and records(folder, "train") == [] and "it is skipped" in (folder / "train_log.txt").read_text()
    )
    before, after = (line["mAP"] for line in records(folder, "evaluation"))
    assert before == after


def test_a_loss_that_is_not_finite_stops_the_run_and_moves_no_memory(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"stage 0 \(clustering\), epoch 1, step 2: .* loss .*1e\+25.*\.png"):
        train_svllreid.main(words(tmp_path / "run", SOLVER__CLUSTER__BASE_LR="1e25"))
    position = read_tensors(tmp_path / "run" / "non_finite.pt")["position"]
    assert all(memory["prototypes"].isfinite().all() for memory in position["epoch_state"]["memories"])


@pytest.mark.parametrize(("smooth", "smoothing"), [("False", 0.0), ("True", 0.1)])
def test_the_settings_are_those_of_the_stage(tmp_path, monkeypatch, smooth, smoothing):
    made = []

    class Kept(ClusterStage):
        def begin_epoch(self, *arguments):
            made.append(self)
            if self.texts is not None:
                raise Killed
            return super().begin_epoch(*arguments)

    monkeypatch.setattr(build_cluster, "ClusterStage", Kept)
    settings = {"TEMP": "0.07", "MOMENTUM": "0.3", "SWAP_MODE": "reference", "SWAP_START": "5", "SWAP_RATIO": "0.2"}
    changes = {"MODEL__I2T_LOSS_WEIGHT": "0.5", "MODEL__IF_LABELSMOOTH": smooth, "SOLVER__CLUSTER__MAX_EPOCHS": "1"}
    changes |= {f"MEMORY__{key}": value for key, value in settings.items()}
    with pytest.raises(Killed):
        train_svllreid.main(words(tmp_path / "run", **changes))
    for stage, weight in zip(made, (0.0, 0.5), strict=True):
        assert stage.weights == {"cluster": 1.0, "image_text": weight} and stage.image_text.smoothing == smoothing
        assert stage.swap == Swap("reference", 5, 0.2)
        assert [(memory.temperature, memory.momentum) for memory in stage.memories] == [(0.07, 0.3)] * 2


def test_every_epoch_draws_anew_and_no_identity_is_told(tmp_path, monkeypatch, benchmark):
    forward, batches = ClusterStage.forward, []
    monkeypatch.setattr(ClusterStage, "forward", lambda self, batch: batches.append(batch) or forward(self, batch))
    query, modes = ClusterStage.query, []
    monkeypatch.setattr(ClusterStage, "query", lambda self, batch: modes.append(self.training) or query(self, batch))
    pids = torch.tensor([sample.pid for sample in benchmark.train])
    monkeypatch.setattr(build_cluster, "find_clusters", lambda *given: pids)
    train_svllreid.main(words(tmp_path / "run", PROCESSOR__STAGES="cluster"))
    first, second = batches[: len(batches) // 2], batches[len(batches) // 2 :]
    assert any(not torch.equal(one.indices, other.indices) for one, other in zip(first, second, strict=True))
    images = [
        {int(row): image for batch in epoch for row, image in zip(batch.indices, batch.images, strict=True)}
        for epoch in (first, second)
    ]
    assert any(not torch.equal(images[0][row], images[1][row]) for row in images[0].keys() & images[1].keys())
    assert all((batch.pids == 0).all() for batch in batches)
    assert modes and not any(modes)  # what is clustered does not depend on the batch that an image is in


def test_prompts_of_no_clusters_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"CLUSTER\.EPS"):
        train_svllreid.main(words(tmp_path / "run", CLUSTER__MIN_SAMPLES="99"))


def test_a_modality_with_a_single_cluster_takes_no_part():
    labels, modalities = torch.tensor([0, 1, -1, 0, 0, -1]), torch.tensor([0, 0, 0, 1, 1, 1])
    assert without_few_clusters(labels, modalities).tolist() == [0, 1, -1, -1, -1, -1]
    assert labels.tolist() == [0, 1, -1, 0, 0, -1]


@pytest.mark.parametrize("mode", ["true", "reference"])
def test_a_modality_with_a_single_cluster_lends_it_to_no_other(benchmark, mode):
    stage, modalities = stage_of(benchmark, swap=mode)
    labels = (torch.arange(len(modalities)) % 4).where(modalities == 0, 0)
    features = torch.eye(4, 512)[labels]
    assert stage.begin_epoch(1, labels, features) is None
    stage.swap.mix(1, stage.memories, [torch.arange(4), torch.tensor([0])])
    assert [memory.prototypes.tolist() for memory in stage.memories] == [torch.eye(4, 512).tolist(), []]


def test_a_modality_of_fewer_clusters_than_processes_takes_no_part_and_the_log_says_so(benchmark, monkeypatch, caplog):
    stage, modalities = stage_of(benchmark)
    monkeypatch.setattr("processor.cluster_stage.world_size", lambda: 4)
    count = len(modalities)
    labels = (torch.arange(count) % 4).where(modalities == 1, torch.arange(count) % 3)
    stage.begin_epoch(1, labels, torch.nn.functional.normalize(torch.randn(count, 512), dim=1))
    assert torch.equal(stage.labels, labels.where(modalities == 1, -1))
    (said,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "visible" in said and "4 clusters" in said and "process" in said


# What the published program does, on SYSU-MM01 and in a later copy on RegDB, where the two differ.
PUBLISHED = {
    **{"INPUT.SIZE_TRAIN": (288, 144), "INPUT.GREY_PROB": 0.5, "INPUT.RE_PROB": 0.5, "MODEL.IF_LABELSMOOTH": True},
    **{"CLUSTER.EPS": 0.6, "CLUSTER.MIN_SAMPLES": 4, "CLUSTER.K2": 6, "MEMORY.TEMP": 0.05, "MEMORY.MOMENTUM": 0.1},
    **{
        "MEMORY.SWAP_START": 61,
        "MEMORY.SWAP_RATIO": 0.1,
        "SOLVER.SEED": 1,
        "PROCESSOR.STAGES": ("cluster", "prompt", "cluster"),
    },
    **{
        f"SOLVER.CLUSTER.{key}": value
        for key, value in {"MAX_EPOCHS": 120, "BASE_LR": 3.5e-4, "STEPS": (30, 50)}.items()
    },
    **{f"SOLVER.CLUSTER.{key}": value for key, value in {"WEIGHT_DECAY": 5e-4, "BIAS_LR_FACTOR": 2.0}.items()},
    **{f"SOLVER.STAGE1.{key}": value for key, value in {"MAX_EPOCHS": 60, "BASE_LR": 3.5e-4, "LR_MIN": 1e-6}.items()},
    **{f"SOLVER.STAGE1.{key}": value for key, value in {"WEIGHT_DECAY": 1e-4, "WARMUP_LR_INIT": 1e-5}.items()},
}
DIFFERING = {  # P x K of each modality, K, k1, stage 1's batch, flip, padding
    "sysu": (64, 16, 30, 128, 0.5, 10),
    "regdb": (32, 8, 10, 32, 0.0, 0),
}
KEYS = (
    *("SOLVER.CLUSTER.IMS_PER_BATCH", "DATALOADER.NUM_INSTANCE", "CLUSTER.K1", "SOLVER.STAGE1.IMS_PER_BATCH"),
    *("INPUT.PROB", "INPUT.PADDING"),
)


@pytest.mark.parametrize("name", DIFFERING)
def test_the_configurations_are_the_published_settings(name):
    cfg = load(f"configs/{name}/cclnet.yml")
    wanted = {**PUBLISHED, **dict(zip(KEYS, DIFFERING[name], strict=True))}
    assert {key: attrgetter(key)(cfg) for key in wanted} == wanted
    rate = make_schedule(cfg.SOLVER.CLUSTER)
    rates = [rate(epoch, cfg.SOLVER.CLUSTER.BASE_LR) for epoch in (1, 5, 10, 29, 30, 49, 50, 120)]
    assert rates == pytest.approx([3.815e-5, 1.7675e-4, 3.5e-4, 3.5e-4, 3.5e-5, 3.5e-5, 3.5e-6, 3.5e-6])


# ------------------------------------------------------------------------------------------------------------ formulas


def stage_of(
    benchmark: Benchmark, *, texts: Texts | None = None, swap: str = "none", **options: float
) -> tuple[ClusterStage, torch.Tensor]:
    cfg = load(CCLNET, [word for pair in SETTINGS.items() for word in pair])
    model = make_model(cfg, benchmark)
    modalities = torch.tensor([sample.modality for sample in benchmark.train])
    on = {"cluster": 1.0, "image_text": 1.0 if texts else 0.0}
    options |= {"weights": on, "modalities": modalities, "swap": Swap(swap, 1, 0.1), "texts": texts}
    return ClusterStage(model, memory=Memory, **options), modalities


def batch_of(stage: ClusterStage, indices: list[int]) -> Batch:
    chosen = torch.tensor(indices)
    images = torch.randn(len(indices), 3, 64, 32, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.zeros_like(chosen), SideInfo.unknown(stage.modalities[chosen]), chosen)


@pytest.mark.parametrize(("options", "smoothing"), [({}, 0.1), ({"smoothing": 0.0}, 0.0)])
def test_the_loss_against_plain_loops(benchmark, options, smoothing):
    count = len(benchmark.train)
    # Were as many images of one text as of another, smoothing would hardly show: to an untrained tower all are alike.
    own_texts = torch.tensor([-1, 0, 1, 1]).repeat(count)[:count]
    texts = Texts((4 * torch.randn(2, 128), 4 * torch.randn(3, 128)), own_texts)
    stage, modalities = stage_of(benchmark, texts=texts, **options)
    stage.eval()
    labels = torch.arange(count) % 4 - 1  # -1 is an outlier
    features = torch.nn.functional.normalize(torch.randn(count, 512), dim=1)
    stage.begin_epoch(1, labels, features)
    indices = [row for row in range(count) if labels[row] >= 0][:20]
    assert {int(modalities[row]) for row in indices} == {0, 1}
    batch = batch_of(stage, indices)
    losses = stage(batch)
    queries, projected = (
        stage.query(batch).double(),
        stage.model.encode_image(batch.images, batch.side).projected.double(),
    )
    cluster, image_text = 0.0, 0.0
    for modality in (0, 1):
        means = []
        for label in range(3):
            own = [features[row] for row in range(count) if labels[row] == label and modalities[row] == modality]
            mean = sum(own).double()
            means.append(mean / mean.norm())
        mine = [place for place, row in enumerate(indices) if modalities[row] == modality]
        for place in mine:
            scores = [float(queries[place].detach() @ mean) / 0.05 for mean in means]
            cluster += (math.log(sum(map(math.exp, scores))) - scores[labels[indices[place]]]) / len(mine)
        told = [place for place in mine if texts.labels[indices[place]] in range(len(texts.features[modality]))]
        for place in told:
            scores = [float(projected[place].detach() @ text.double()) for text in texts.features[modality]]
            logs = [score - math.log(sum(map(math.exp, scores))) for score in scores]
            own = logs[texts.labels[indices[place]]]
            image_text -= ((1 - smoothing) * own + smoothing * sum(logs) / len(logs)) / len(told)
    assert losses.terms["cluster"].item() == pytest.approx(cluster, rel=1e-4)
    assert losses.terms["image_text"].item() == pytest.approx(image_text, rel=1e-3)
    assert losses.total.item() == pytest.approx(cluster + image_text, rel=1e-3)


def test_memories_learn_after_the_update_and_only_from_what_is_finite(benchmark):
    stage, _ = stage_of(benchmark, swap="reference")
    count = len(benchmark.train)
    features = torch.nn.functional.normalize(torch.randn(count, 512), dim=1)
    assert len(stage.begin_epoch(1, torch.arange(count) % 4, features).first)
    before = [memory.prototypes.clone() for memory in stage.memories]
    stage(batch_of(stage, [0, 1, 2, 6, 7, 8]))
    stage.update(torch.tensor(False))
    assert all(torch.equal(memory.prototypes, rows) for memory, rows in zip(stage.memories, before, strict=True))
    stage.swap = stage.swap._replace(mode="none")
    stage.update(torch.tensor(True))
    for memory, rows, (queries, labels) in zip(stage.memories, before, stage.seen, strict=True):
        expected = [row.clone() for row in rows]
        for query, label in zip(queries, labels.tolist(), strict=True):
            moved = 0.1 * expected[label] + 0.9 * query
            expected[label] = moved / moved.norm()
        torch.testing.assert_close(memory.prototypes, torch.stack(expected))


@pytest.mark.parametrize("mode", ["true", "none"])
def test_no_step_waits_for_the_device(benchmark, mode):
    count, device = len(benchmark.train), FakeDevice()
    texts = Texts([device.move(torch.randn(n, 128)) for n in (2, 3)], torch.arange(count) % 3 - 1)
    stage, _ = stage_of(benchmark, texts=texts, swap=mode)
    stage.begin_epoch(1, torch.arange(count) % 4 - 1, torch.nn.functional.normalize(torch.randn(count, 512), dim=1))
    stage, batch = device.move(stage), device.move(batch_of(stage, [0, 1, 2, 6, 7, 8]))
    with device:
        losses = stage(batch)
        losses.total.backward()
        stage.update(torch.isfinite(losses.total))


@pytest.mark.parametrize("mode", ["true", "reference", "none"])
def test_modes_of_the_swap(benchmark, mode):
    stage, _ = stage_of(benchmark, swap=mode)
    labels = torch.arange(len(benchmark.train)) % 4
    features = torch.eye(4, 512)[labels]
    features[:, 5] = torch.where(stage.modalities == 1, 0.5, 0.0)  # infrared ones are alike, but not the same
    features = torch.nn.functional.normalize(features, dim=1)
    pairs = stage.begin_epoch(1, labels, features)
    assert pairs.first.tolist() == pairs.second.tolist() == [0, 1, 2, 3] and 0.8 < pairs.similarity < 1
    assert [bool(memory.prototypes[0, 5] > 0) for memory in stage.memories] == [mode == "true", mode != "true"]
    stage.seen = [(torch.zeros(0, 512), torch.zeros(0, dtype=torch.long)), (torch.zeros(0, 512), torch.tensor([2]))]
    before = [memory.prototypes.clone() for memory in stage.memories]
    stage.swap.mix(1, stage.memories, [seen[1] for seen in stage.seen])
    changed = [
        (memory.prototypes - rows).abs().amax(dim=1) > 1e-3 for memory, rows in zip(stage.memories, before, strict=True)
    ]
    assert [rows.nonzero()[:, 0].tolist() for rows in changed] == [[], [2] if mode == "reference" else []]


@pytest.mark.parametrize(("mode", "epoch"), [("true", 1), ("reference", 2), ("none", 1), ("true", 0)])
@pytest.mark.parametrize("agree", [True, False])
def test_a_swap_by_matches_that_do_not_stand_out_is_warned_of(benchmark, caplog, mode, epoch, agree):
    stage, modalities = stage_of(benchmark, swap=mode)
    labels = torch.arange(len(modalities)) % 4
    features = torch.eye(4, 512)[labels]
    # Where they do not agree, each infrared cluster lies between two visible ones: matches could as well be others.
    features[modalities == 1] += torch.eye(4, 512)[(labels[modalities == 1] + 1) % 4] * (0.5 if agree else 1.0)
    pairs = stage.begin_epoch(epoch, labels, torch.nn.functional.normalize(features, dim=1))
    assert (pairs.margin > 0.1) == agree
    warned = [record for record in caplog.records if "no more alike than others" in record.getMessage()]
    assert bool(warned) == (not agree and mode != "none" and epoch > 0)


def test_batches_of_cached_features_are_balanced():
    pids = torch.tensor([0] * 5 + [1] * 12)
    cache, parts = FeatureBatch(torch.arange(17.0)[:, None], pids), [pids == 0, pids == 1]
    drawn = [list(BalancedBatches(cache, parts, 5, seed=1, epoch=epoch)) for epoch in (1, 1, 2)]
    assert [batch.pids.tolist() for batch in drawn[0]] == [[0] * 5 + [1] * 5] * 2 + [[0] * 2 + [1] * 2]
    rows = torch.cat([batch.features[batch.pids == 1, 0] for batch in drawn[0]])
    assert sorted(rows.tolist()) == list(range(5, 17))
    orders = [torch.cat([batch.features for batch in batches]) for batches in drawn]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    left = BalancedBatches(cache, parts, 5, seed=1, epoch=1, done=2)
    assert len(left) == 1 and torch.equal(next(iter(left)).features, drawn[0][2].features)
    alone = BalancedBatches(cache, [pids == 7, pids == 1], 6, seed=1, epoch=1)
    assert [len(batch.pids) for batch in alone] == [6, 6]


def test_prompts_are_contrasted_within_their_modality(benchmark):
    cfg = load(CCLNET, [word for pair in SETTINGS.items() for word in pair])
    model = make_model(cfg, benchmark)
    model.prompts.resize([2, 3], torch.Generator().manual_seed(1))
    stage = PromptStage(model, weights={"image_text": 1.0, "language_ssl": 0.0}, augment=lambda prompts: prompts)
    pids = torch.tensor([0, 3, 1, 2, 4, 0])
    batch = FeatureBatch(torch.randn(6, 128), pids)
    parts = [FeatureBatch(batch.features[own], pids[own]) for own in (pids < 2, pids >= 2)]
    expected = [stage.contrast(part.features, model.encode_text(part.pids), part.pids) for part in parts]
    torch.testing.assert_close(stage(batch).total, sum(expected))


@pytest.mark.parametrize("counts", [(2, 3), (0, 5)])
def test_what_is_known_of_batches_that_were_drawn_changes_nothing_and_saves_waiting(benchmark, counts):
    cfg = load(CCLNET, [word for pair in SETTINGS.items() for word in pair] + ["SOLVER.STAGE1.SSL_LOSS_WEIGHT", "0.8"])
    model = make_model(cfg, benchmark)
    model.prompts.resize(counts, torch.Generator().manual_seed(1))
    on = {"image_text": 1.0, "language_ssl": 0.8}
    stage = PromptStage(model, weights=on, augment=lambda prompts: 0.5 * prompts)
    cache = FeatureBatch(torch.randn(9, 128), torch.tensor([0, 3, 1, 2, 4, 0, 1, 3, 3]))
    batch = next(iter(BalancedBatches(cache, model.prompts.parts(cache.pids), 4, seed=1, epoch=1)))
    known, unknown = stage(batch), stage(FeatureBatch(batch.features, batch.pids))
    assert known.terms.keys() == on.keys() and torch.equal(known.total, unknown.total)
    device = FakeDevice()
    stage, batch, stage.templates = device.move(stage), device.move(batch), []
    with device:
        stage(batch).total.backward()


# ------------------------------------------------------------------------------------------------------- pseudo-labels


def test_pseudo_labels_are_joined_by_path(tmp_path, benchmark):
    train = list(benchmark.train)
    labels = torch.tensor([sample.pid % 3 - 1 for sample in train])
    modalities = torch.tensor([sample.modality for sample in train])
    found, path = PseudoLabels.of(labels, modalities, 2, 7, "settings"), tmp_path / "labels.npz"
    assert found.counts == (2, 2)
    write_labels(path, found, train)
    back = read_labels(path, train[::-1], epoch=7, settings="settings")
    assert back == found._replace(labels=found.labels[::-1])
    prompted = found.relabelled(train)
    assert {(sample.modality, sample.pid) for sample in prompted} == {(0, 0), (0, 1), (1, 2), (1, 3)}
    assert len(prompted) == sum(label >= 0 for label in found.labels)
    strange = [train[0]._replace(path=f"{train[0].path}x"), *train[1:]]
    for samples, epoch, settings in (
        (train, 6, "settings"),
        (train, 7, "other"),
        (train[1:], 7, "settings"),
        (strange, 7, "settings"),
    ):
        with pytest.raises(DataError, match=r"labels\.npz: "):
            read_labels(path, samples, epoch=epoch, settings=settings)
    path.write_bytes(b"no file")
    with pytest.raises(DataError, match=r"labels\.npz: "):
        read_labels(path, train, epoch=7, settings="settings")
