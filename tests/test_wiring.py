"""processor/build: what the configuration says reaches the stages."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from builders import benchmark as toy
from builders import data_of, new_run

import train_svllreid
from configs import from_dict, load, to_dict
from datasets.check import quick_check
from model.build import make_model, settle_architecture
from model.weights import Weights
from processor.build import data as build_data
from processor.build import evaluation as build_evaluation
from processor.build import stage as build_stage
from processor.result import result_entry
from tools.demo.render import rendered_benchmark
from utils.errors import WeightsError
from utils.metrics import ignore_nothing
from utils.records import Omitted, Refinement
from utils.report import figures, table
from utils.run.folder import RunFolder
from utils.schema import Entry, fault
from utils.stopping import Interrupted

CPU = torch.device("cpu")


WORDS = """
DATASETS.SYNTHETIC.TRAIN_IDENTITIES 8  DATASETS.SYNTHETIC.TRAIN_IMAGES 8
DATASETS.SYNTHETIC.TEST_IDENTITIES 2  DATASETS.SYNTHETIC.TEST_IMAGES 6
SOLVER.STAGE1.MAX_EPOCHS 5  SOLVER.STAGE1.CHECKPOINT_PERIOD 2
SOLVER.STAGE2.MAX_EPOCHS 5  SOLVER.STAGE2.CHECKPOINT_PERIOD 2
SOLVER.STAGE2.IMS_PER_BATCH 16  SOLVER.STAGE2.EVAL_PERIOD 9
"""


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("data"))
    return load("configs/demo/vit_svllreid.yml", ["DATASETS.ROOT_DIR", root, *WORDS.split()])


def changed(cfg, *words: str):
    return from_dict(to_dict(cfg), list(words), where="here")


def entry_of(cfg, model, benchmark, evaluation) -> dict:
    """Of results.json."""
    facts = {"architecture": model.architecture, "seed": 1, "fingerprint": {}, "checkpoint": None}
    return result_entry("test", cfg, benchmark, evaluation, **facts)


def recorded(folder) -> list[dict]:
    """Evaluations on the way."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "evaluation"]


@pytest.fixture
def parts(cfg, tmp_path):
    benchmark = rendered_benchmark(cfg)
    model = make_model(cfg, benchmark)
    model.prompts.trained = True  # so that each stage runs by itself
    return new_run(cfg, tmp_path), model, data_of(benchmark)


@pytest.fixture
def fitted(monkeypatch):
    """Stands in for `fit`: keeps what it was given and goes through the epochs without training."""
    given = {}

    def fit(stage, batches, optimizer, lr_at, epochs, **rest):
        given.update(rest, stage=stage, batches=batches, optimizer=optimizer, lr_at=lr_at, epochs=epochs)
        for epoch in range(1, epochs + 1):
            rest["run"].after_epoch(epoch)

    monkeypatch.setattr(build_stage, "fit", fit)
    return given


def train_stage(name: str, run, model, data):
    """Its last checkpoint."""
    return build_stage.run_stage(run, run.cfg.PROCESSOR.STAGES.index(name), model, data)


def test_every_epoch_of_the_image_stage_draws_batches_and_augmentations_anew(parts, fitted):
    train_stage("image", *parts)
    seen = []
    for epoch in (1, 2, 1):
        loader = fitted["batches"](epoch, 0)
        seen.append((loader.batch_sampler.batches, int(loader.dataset.epoch)))
    assert seen[0] == seen[2]
    assert seen[0][0] != seen[1][0]
    assert [epoch for _, epoch in seen] == [1, 2, 1]


@pytest.mark.parametrize("name", ["prompt", "image"])
def test_a_repetition_of_a_stage_draws_others(parts, fitted, name):
    """And the first time is as without a repetition."""
    run, model, data = parts
    seen = []
    for stages, number in (([name], 0), ([name, name], 0), ([name, name], 1)):
        run.cfg = changed(run.cfg, "PROCESSOR.STAGES", str(stages), "PROCESSOR.UNTRAINED_PROMPTS", "True")
        build_stage.run_stage(run, number, model, data)
        drawn = [batch.pids.tolist() for batch in fitted["batches"](1, 0)]
        seen.append((drawn, [each.initial_seed() for each in fitted["run"].parts.generators.values()]))
    assert seen[0] == seen[1] and seen[1][0] != seen[2][0]
    assert name == "image" or seen[1][1] != seen[2][1]  # prompts are augmented


def test_the_prompt_stage_sees_every_image_once_as_it_is_tested(parts, fitted, monkeypatch):
    asked = []

    def make_loader(cfg, samples, *, train, **rest):
        asked.append((samples, train))
        return real(cfg, samples, train=train, **rest)

    real = build_data.make_loader
    monkeypatch.setattr(build_data, "make_loader", make_loader)
    benchmark = parts[2].benchmark
    train_stage("prompt", *parts)
    assert asked == [(benchmark.train, False)]
    batches = list(fitted["batches"](1, 0))
    assert sum(len(batch.pids) for batch in batches) == len(benchmark.train)
    orders = [torch.cat([batch.pids for batch in fitted["batches"](epoch, 0)]).tolist() for epoch in (1, 2)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize(("stage", "name"), [("prompt", "ViT-Tiny-8_stage1_{}.pth"), ("image", "ViT-Tiny-8_{}.pth")])
def test_checkpoints_come_by_their_period_and_always_at_the_end(parts, fitted, stage, name):
    run = parts[0]
    last = train_stage(stage, *parts)
    assert {path.name for path in run.path.glob("*.pth")} == {name.format(epoch) for epoch in (2, 4, 5)}
    assert last == run.path / name.format(5)
    contents = torch.load(last, weights_only=True)
    assert (contents["stage"], contents["epoch"], contents["fingerprint"]) == (stage, 5, {"data": "x"})
    assert contents["config"] == to_dict(run.cfg)


# Words of a command line, what they are in an entry, in a line of the log, and in a column of the table.
DONE = [
    ("TEST.FLIP True", {"flip": True}, "flip", ("flip", "yes")),
    (
        "TEST.AQE True TEST.AQE_K 2 TEST.AQE_ALPHA 1.5",
        *({"query_expansion": {"k": 2, "alpha": 1.5}}, "query expansion (k 2, alpha 1.5)"),
        ("query expansion", "k 2, alpha 1.5"),
    ),
    (
        "TEST.RE_RANKING True TEST.RE_RANKING_K1 6 TEST.RE_RANKING_K2 3 TEST.RE_RANKING_LAMBDA 0.2",
        *({"re_ranking": {"k1": 6, "k2": 3, "lambda_value": 0.2}}, "re-ranked (k1 6, k2 3, lambda 0.2)"),
        ("re-ranking", "k1 6, k2 3, lambda 0.2"),
    ),
    ("TEST.PRECISION bf16", {"precision": "bf16"}, "in bf16", ("precision", "bf16")),
]


@pytest.mark.parametrize(("words", "entry", "said", "column"), DONE)
def test_what_was_done_at_test_is_said_everywhere(words, entry, said, column, cfg, parts, fitted, caplog, tmp_path):
    _, model, data = parts
    benchmark = data.benchmark
    refined = changed(cfg, *words.split(), "SOLVER.STAGE2.EVAL_PERIOD", "3")
    plain, evaluation = (build_evaluation.evaluate_model(one, model, benchmark, CPU) for one in (cfg, refined))
    nothing = {"flip": False, "query_expansion": None, "re_ranking": None, "precision": "fp32"}
    assert evaluation.refinement.entry() == {**nothing, **entry} and plain.refinement.entry() == nothing
    assert figures(evaluation).endswith(f"  {said}") and figures(plain)[-1].isdigit()

    entries = [entry_of(cfg, model, benchmark, one) for one in (plain, evaluation)]
    assert [{name: one[name] for name in nothing} for one in entries] == [nothing, {**nothing, **entry}]
    assert all(fault(one, Entry) is None for one in entries)
    assert [Refinement.of(json.loads(json.dumps(one))) for one in entries] == [plain.refinement, evaluation.refinement]
    assert Refinement.of({}) == plain.refinement  # earlier versions' entries
    header, _, first, second = table(entries).splitlines()
    name, cell = column
    assert header.endswith(name) and header.partition("valid queries")[2].strip() == name
    assert first.endswith("fp32" if name == "precision" else "none") and second.endswith(cell)
    assert name not in table(entries[:1])

    with caplog.at_level("INFO"):
        train_stage("image", new_run(refined, tmp_path / "refined"), model, data)
    assert [{name: line[name] for name in nothing} for line in recorded(tmp_path / "refined")] == [{**nothing, **entry}]
    assert any(said in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("asked", "at_home", "rows", "used"),
    [
        *(("auto", True, 6, "same"), ("auto", False, 6, "mean"), ("auto", None, 6, "same"), ("auto", None, 7, "mean")),
        *(("same", False, 6, "same"), ("mean", True, 6, "mean"), ("none", True, 6, "none"), ("mean", True, 5, "mean")),
    ],
)
def test_whose_side_information(asked, at_home, rows, used):
    facts = {"sie_camera": True, "sie_view": False, "num_cams": rows, "num_views": 1}
    assert build_evaluation.settle_side(asked, facts, toy(cams=6), at_home=at_home) == used
    assert build_evaluation.settle_side(asked, {**facts, "sie_camera": False}, toy(cams=6), at_home=at_home) == "none"


@pytest.mark.parametrize("camera", [True, False])
def test_whose_side_information_of_viewpoints(camera):
    """A bare file's rows are for cameras and viewpoints together."""
    facts = {"sie_camera": camera, "sie_view": True, "num_cams": 6, "num_views": 3}
    used = [
        build_evaluation.settle_side("auto", facts, toy(cams=c, views=v), at_home=None)
        for c, v in ((6, 3), (6, 2), (5, 3))
    ]
    assert used == ["same", "mean", "mean" if camera else "same"]


@pytest.mark.parametrize(("asked", "at_home"), [("same", False), ("auto", True)])
def test_side_information_that_knows_too_few_cameras(asked, at_home):
    facts = {"sie_camera": True, "sie_view": False, "num_cams": 5, "num_views": 1}
    with pytest.raises(WeightsError, match=r"5 cameras, toy has 6: .* TEST\.SIE"):
        build_evaluation.settle_side(asked, facts, toy(cams=6), at_home=at_home)


def test_the_protocol_that_was_followed_is_reported(cfg, parts):
    """Of the data set, whatever the configuration says: VehicleID leaves nothing out."""
    model, benchmark = parts[1], parts[2].benchmark
    both = (benchmark, replace(benchmark, ignored=ignore_nothing))
    entries = [entry_of(cfg, model, one, build_evaluation.evaluate_model(cfg, model, one, CPU)) for one in both]
    assert [entry["protocol"] for entry in entries] == ["cross-camera", "all"]
    header, _, first, second = table(entries).splitlines()
    assert header.endswith("protocol") and first.endswith("cross-camera") and second.endswith("all")
    assert "protocol" not in table(entries[:1])


def test_several_data_sets_are_evaluated_one_by_one_on_the_way(cfg, parts, fitted, monkeypatch, caplog, tmp_path):
    model, benchmark = parts[1], parts[2].benchmark
    (trial,) = benchmark.trials
    few = replace(benchmark, name="few", trials=(trial._replace(query=trial.query[:2]),))
    both = replace(benchmark, name="synthetic+few", parts=(benchmark, few))
    asked, evaluate = [], build_evaluation.evaluate_model
    monkeypatch.setattr(build_evaluation, "evaluate_model", lambda *all: (asked.append(all[2]), evaluate(*all))[1])
    with caplog.at_level("INFO"):
        run = new_run(changed(cfg, "SOLVER.STAGE2.EVAL_PERIOD", "3"), tmp_path / "both")
        train_stage("image", run, model, data_of(both))
    assert asked == [benchmark, few]
    assert [line["data_set"] for line in recorded(tmp_path / "both")] == ["synthetic", "few"]
    assert any("epoch 3/5\n  few  mAP" in message for message in caplog.messages)


def test_a_signal_between_epochs_ends_the_next_step(parts):
    """While files are looked at, which may take a slow file system seconds: what was trained is not thrown away."""
    run, model, data = parts
    data.train_watch.look = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with run.stopping, pytest.raises(Interrupted):
        train_stage("image", run, model, data)
    assert run.folder.states[-1].name.endswith("image_epoch2_step1.pth")


def test_what_the_quick_check_warns_of_reaches_the_log(cfg, caplog):
    benchmark = replace(rendered_benchmark(cfg), omitted=Omitted(("train/a.heic",)))
    quick_check(benchmark, instances=4, identities=4).heed(train_svllreid.logger)
    (record,) = [record for record in caplog.records if record.name == "train"]
    assert record.levelname == "WARNING" and "train/a.heic" in record.message


def test_side_information_at_test(cfg, parts):
    model, benchmark = parts[1], parts[2].benchmark
    table, scores = model.image.side.table, {}
    with torch.no_grad():
        table.normal_(std=5, generator=torch.Generator().manual_seed(0))
    for how in ("same", "mean", "none"):
        evaluation = build_evaluation.evaluate_model(changed(cfg, "TEST.SIE", how), model, benchmark, CPU)
        assert evaluation.side == how
        scores[how] = evaluation.mean["mINP"]
    assert len(set(scores.values())) == 3
    with torch.no_grad():
        table.copy_(table.mean(dim=0, keepdim=True).expand_as(table))
    again = build_evaluation.evaluate_model(cfg, model, benchmark, CPU)
    assert again.side == "same" and again.mean["mINP"] == pytest.approx(scores["mean"])


def test_several_trials_are_shown_with_their_spread(cfg, parts):
    model, benchmark = parts[1], parts[2].benchmark
    (trial,) = benchmark.trials
    twice = replace(benchmark, trials=(trial, trial._replace(query=trial.query[:2])))
    evaluation = build_evaluation.evaluate_model(cfg, model, twice, CPU)
    entry = entry_of(cfg, model, twice, evaluation)
    assert entry["trials"] == 2 and entry["std"]["mAP"] == evaluation.std["mAP"] > 0
    shown = f"{100 * evaluation.mean['mAP']:.1f} ± {100 * evaluation.std['mAP']:.1f}"
    assert shown in table([entry]) and "±" not in table([{**entry, "std": None}])
    # A further rank is a column where an entry has it, and an empty cell elsewhere.
    further = entry_of(cfg, model, twice, evaluation._replace(ranks=(1, 20)))
    assert further["rank20"] == further["std"]["rank20"] + 1 == 1.0 and "rank-20" not in table([entry])
    header, _, first, second = table([entry, further]).splitlines()
    assert "rank-20" in header and "100.0 ± 0.0" in second and first.count("±") == second.count("±") + 1


def test_projection_heads_start_as_published(parts):
    model = parts[1]
    gains = model.image_projector[1].weight
    assert gains.min() >= 0 and gains.max() < 1 and len(gains.unique()) > len(gains) / 2
    assert (model.text_projector[1].weight == 1).all()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["MODEL.STRIDE_SIZE", "(9, 6)"], r"MODEL\.STRIDE_SIZE: .*\(9, 6\).*\(8, 8\)"),
        (["MODEL.NAME", "RN50", "MODEL.PRETRAIN", "none"], r"MODEL\.SIE_CAMERA: .*True, RN50 "),
        (["INPUT.SIZE_TEST", "(7, 32)"], r"INPUT\.SIZE_TEST .*\(7, 32\)"),
    ],
)
def test_what_an_architecture_cannot_do_is_refused(cfg, overrides, words):
    with pytest.raises(WeightsError, match=words):
        make_model(changed(cfg, *overrides), toy())


def test_side_information_that_tells_nothing_apart_is_reported(cfg, caplog):
    """As of VehicleID, which has no cameras: it trains, with one row."""
    assert make_model(cfg, toy(cams=1, name="VehicleID")).image.side.table.shape[0] == 1
    make_model(cfg, toy())
    (message,) = [message for message in caplog.messages if "MODEL.SIE_CAMERA" in message]
    assert "VehicleID" in message


def test_a_resnet_has_one_stride(cfg, caplog):
    overrides = ["MODEL.NAME", "RN50", "MODEL.PRETRAIN", "none", "MODEL.SIE_CAMERA", "no", "MODEL.SSL_HIDDEN", "8"]
    settings = from_dict(to_dict(cfg), overrides, where="here")
    with caplog.at_level("INFO"):
        model = make_model(settings, toy())
    assert model.architecture["stride"] == [16, 16]
    assert "MODEL.STRIDE_SIZE (6, 6): not used, the stride of RN50 is (16, 16)" in caplog.messages
    weights = Weights("x.pth", {}, model.architecture, {})
    settled, architecture, lines = settle_architecture(settings, weights, requested=["MODEL.STRIDE_SIZE"])
    assert architecture["stride"] == [16, 16] and settled.MODEL.STRIDE_SIZE == (16, 16)
    assert lines == ["MODEL.STRIDE_SIZE: the checkpoint has [16, 16], the configuration [6, 6], which is not used"]


def test_the_log_says_what_the_tower_sees(cfg, caplog):
    with caplog.at_level("INFO"):
        make_model(cfg, toy())
        make_model(changed(cfg, "MODEL.STRIDE_SIZE", "(8, 8)"), toy())
    assert [message for message in caplog.messages if message.startswith("ViT-Tiny-8: ")] == [
        "ViT-Tiny-8: 10 x 5 overlapping patches of 8 pixels at stride [6, 6]",
        "ViT-Tiny-8: 8 x 4 patches of 8 pixels at stride [8, 8]",
    ]


def test_more_cameras_than_the_table_has_are_refused(cfg, parts):
    model, benchmark = parts[1], parts[2].benchmark
    (trial,) = benchmark.trials
    elsewhere = replace(benchmark, trials=(trial._replace(query=(trial.query[0]._replace(camid=6),)),))
    with pytest.raises(WeightsError, match=r"6 cameras, synthetic has 7"):
        build_evaluation.evaluate_model(cfg, model, elsewhere, CPU)


@pytest.mark.parametrize("kinds", [("evaluation",), ("evaluation", "train")])
def test_a_run_that_logged_a_step_keeps_its_folder(tmp_path, kinds):
    folder = RunFolder(tmp_path / "run", config={}, fingerprint={})
    for kind in kinds:
        folder.metrics.record(kind, step=1, mAP=0.5)
    assert folder.discard() == ("train" not in kinds)
    assert (tmp_path / "run" / "config.yaml").exists() == ("train" in kinds)
