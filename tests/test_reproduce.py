"""The published figures, the commands for them, and what is said of runs that are there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from builders import write_synthetic

from configs import ConfigError, load, to_dict
from datasets.market1501 import FOLDERS
from tools import reproduce
from tools.reproduce import ROWS, Plan, Row
from utils.command import parse
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PLAIN, OVERLAPPING = "market1501-vit_clipreid", "market1501-vit_clipreid-sie-olp"
MSMT17, RE_RANKED = "msmt17-vit_clipreid-sie-olp", "msmt17-vit_clipreid-sie-olp-re-ranking"
SMALL = (
    *("MODEL.NAME", "ViT-Tiny-8", "MODEL.PRETRAIN", "rendered", "MODEL.STRIDE_SIZE", "[8, 8]"),
    *("INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.STAGE1.MAX_EPOCHS", "1", "SOLVER.STAGE2.MAX_EPOCHS", "1", "SOLVER.STAGE2.IMS_PER_BATCH", "16"),
    *("TEST.RE_RANKING_K1", "6", "TEST.RE_RANKING_K2", "2"),
)


def entry(name: str, plan: Plan, **changes) -> dict:
    """An end that is worth what was published, in per cent, or what `changes` say."""
    row = ROWS[name]
    figures = {"mAP": 50.0, "mINP": 30.0, "rank1": 60.0, "rank5": 70.0, "rank10": 80.0, **row.published}
    figures.update({key: changes.pop(key) for key in list(changes) if key in figures})
    return {
        "when": "end",
        **{key: value / 100 for key, value in figures.items()},
        "data_set": row.data_set,
        "queries": 10,
        "valid_queries": 10,
        "re_ranking": None,
        "checkpoint": str(plan.checkpoint(row)),
        "data_fingerprint": {"train": "a" * 16, "test": "b" * 16},
        **changes,
    }


def pretend(name: str, plan: Plan, *, config: bool = True, split: int = 0, **changes) -> Path:
    """A row's folder as a finished run leaves it; its results file."""
    folder = plan.folder(ROWS[name], split)
    folder.mkdir(parents=True, exist_ok=True)
    if config:
        (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(plan.config(ROWS[name], split))))
    file = folder / "results.json"
    start = entry(name, plan, when="start", mAP=1.0)
    file.write_text(json.dumps({"evaluations": [start, entry(name, plan, **changes)]}))
    return file


def pretend_reranked(plan: Plan, **changes) -> Path:
    settings = {"k1": 50, "k2": 15, "lambda_value": 0.3}
    return pretend(RE_RANKED, plan, config=False, **{"when": "test", "re_ranking": settings, **changes})


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(root=str(tmp_path / "data"), output=tmp_path / "runs")


def call(plan: Plan, *words: str) -> int:
    places = ["--root", plan.root, "--output", str(plan.output)]
    return reproduce.main([*places, *words, *(["--", *plan.overrides] if plan.overrides else [])])


def paragraph(text: str, name: str) -> str:
    """What the listing says of a row, without the log before it."""
    return next(part for part in text.split("\n\n") if re.search(rf"^{re.escape(name)}$", part, re.MULTILINE))


# --------------------------------------------------------------------------------------------- figures and commands


def test_names_figures_and_folders(plan):
    assert len({plan.folder(row) for row in ROWS.values()}) == len(ROWS) == 38
    for name, row in ROWS.items():
        assert name.startswith(f"{row.data_set}-")
        assert (not row.published) == ("svllreid" in name or name == "msmt17-personvit_small")
        figures = ["rank1", "rank5"] if row.data_set == "VehicleID" else ["mAP", "rank1"]
        assert list(row.published) in ([], ["rank1"] if "isr" in name else figures)
    unverified = {name for name, row in ROWS.items() if row.unverified}
    others = {name for name in ROWS if re.search("solider|isr|pcl|cclnet", name)}
    assert unverified == {"VehicleID-vit_clipreid-olp", *others}


CCLNET = [name for name in ROWS if "cclnet" in name]
OTHER_TOWERS = [name for name in ROWS if re.search("personvit|solider|dinov3|isr", name)]


@pytest.mark.parametrize("name", OTHER_TOWERS)
def test_rows_of_other_towers_start_from_their_weights(plan, name):
    cfg = plan.config(ROWS[name])
    kind = re.search("personvit|solider|dinov3|isr", name)[0]
    assert kind in cfg.MODEL.NAME and (cfg.MODEL.PRETRAIN.startswith(plan.root) or cfg.MODEL.PRETRAIN == "lvd1689m")
    assert cfg.PROCESSOR.STAGES == ("image",) and cfg.SOLVER.STAGE2.SCHEDULE == "cosine"


@pytest.mark.parametrize("name", [name for name in ROWS if name not in (*OTHER_TOWERS, *CCLNET)])
def test_the_row_trains_the_method_that_it_names(plan, name):
    row, cfg = ROWS[name], plan.config(ROWS[name])
    data, model, first, second = cfg.DATASETS, cfg.MODEL, cfg.SOLVER.STAGE1, cfg.SOLVER.STAGE2
    facts = [data.NAMES, data.ROOT_DIR, model.NAME, model.PRETRAIN, model.SIE_COE, cfg.TEST.RE_RANKING]
    assert facts == [row.data_set, plan.root, "ViT-B-16", "openai", 1.0, False]
    height, width = cfg.INPUT.SIZE_TEST
    assert (height, width) == (256, 256 if row.data_set in ("veri", "VehicleID") else 128)
    self_supervised = "svllreid" in name
    assert all((stage.SSL_LOSS_WEIGHT > 0) is self_supervised for stage in (first, second))
    overlapping = self_supervised or "olp" in name
    assert list(model.STRIDE_SIZE) == ([12, 12] if overlapping else [16, 16])
    assert model.SIE_CAMERA is (overlapping and row.data_set != "VehicleID")


def commands(table: str) -> list[str]:
    return re.findall(r"`([^`]+)`", table)


def test_every_command_of_the_markdown_table_parses(plan, capsys):
    plan.output.mkdir()
    assert call(plan, "--markdown", "--seed", "7") == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "| data set | method | published | ours | command |"
    assert len(lines) == 2 + len(ROWS) and all(line.count("|") == 6 for line in lines)
    of_row = dict(zip(ROWS, lines[2:], strict=True))
    row = "| Market-1501 | CLIP-ReID, ViT-B/16 | mAP 89.6, rank-1 95.5 | not yet run | `python train_svllreid.py"
    assert of_row["market1501-vit_clipreid"].startswith(row)
    assert "| not at hand | not yet run |" in of_row["market1501-vit_svllreid"]
    unverified = "| rank-1 85.5, rank-5 97.2 (unverified) | not yet run |"
    assert unverified in of_row["VehicleID-vit_clipreid-olp"]
    found = commands("\n".join(lines))
    assert len(found) == len(ROWS) + 2
    for command in found:
        python, script, *words = shlex.split(command)
        assert python == "python" and (ROOT / script).is_file()
        arguments = parse("", words)
        cfg = load(arguments.config_file and ROOT / arguments.config_file, arguments.overrides)
        if script == "train_svllreid.py":
            assert cfg.SOLVER.SEED == 7 and cfg.OUTPUT_DIR.endswith("_seed7")
        elif cfg.DATASETS.SYSU_MODE == "indoor":
            assert cfg.TEST.WEIGHT.endswith("sysu_mm01-cclnet-all_seed7/again1_RN50_stage0_120.pth")
        else:
            assert cfg.TEST.RE_RANKING and cfg.TEST.WEIGHT.endswith(f"{MSMT17}_seed7/ViT-B-16_60.pth")


def test_overrides_come_last_in_every_command(plan):
    plan = Plan(plan.root, plan.output, overrides=("INPUT.PADDING", "4", "MODEL.STRIDE_SIZE", "[14, 14]"))
    for row in ROWS.values():
        assert all(command[-4:] == plan.overrides for command in plan.commands(row))
        assert plan.config(row).MODEL.STRIDE_SIZE == (14, 14)


@pytest.mark.parametrize("key", reproduce.OWNED)
def test_what_rows_and_options_decide_is_no_override(key):
    with pytest.raises(UserError, match=key):
        reproduce.main(["--", key, "1"])


@pytest.mark.parametrize("words", [["market1501-vit_clipried"], [PLAIN, "INPUT.PADDING", "4"]])
def test_a_row_that_there_is_not_is_named(capsys, words):
    with pytest.raises(SystemExit) as error:
        reproduce.main(["--run", *words])
    said = capsys.readouterr().err
    assert error.value.code == 2 and f"{words[-2:][0]!r}" in said and PLAIN in said


# ----------------------------------------------------------------------------------------------------- what is needed


def test_a_row_without_its_files_leaves_nothing_behind(plan, capsys):
    assert call(plan, "--run", PLAIN) == 2
    error = capsys.readouterr().err
    assert f"error: {PLAIN}: " in error and plan.root in error and not plan.output.exists()


def test_weights_are_looked_for_where_they_would_be_read(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "cached", lambda tag: None)
    said = reproduce.weights(plan.config(ROWS[PLAIN]))
    assert said == "openai: training fetches what is not on this machine"
    monkeypatch.setattr(reproduce, "cached", lambda tag: tmp_path / "openai.safetensors")
    assert reproduce.weights(plan.config(ROWS[PLAIN])) == f"{tmp_path / 'openai.safetensors'}: there"

    file = tmp_path / "ViT-B-16.pt"
    mine = Plan(overrides=("MODEL.PRETRAIN", str(file))).config(ROWS[PLAIN])
    assert reproduce.weights(mine) == f"{file}: missing"
    file.touch()
    assert reproduce.weights(mine) == f"{file}: there"
    tag = plan.config(ROWS["msmt17-dinov3_base"])
    assert reproduce.weights(tag) == "lvd1689m: training fetches what is not on this machine"
    tiny = Plan(overrides=SMALL).config(ROWS[PLAIN])
    assert re.fullmatch(".*/weights/vit_tiny_8_rendered.safetensors: there", reproduce.weights(tiny))


@pytest.mark.parametrize("row", [PLAIN, "msmt17-dinov3_base", "msmt17-personvit_base"])
@pytest.mark.parametrize("key", ["MODEL.PRETRAIN", "MODEL.INIT_FROM"])
def test_weights_in_the_folder_of_today_are_files_too(plan, tmp_path, monkeypatch, row, key):
    monkeypatch.chdir(tmp_path)
    cfg = Plan(plan.root, plan.output, overrides=(key, "mine.pth")).config(ROWS[row])
    assert reproduce.weights(cfg) == "mine.pth: missing"
    Path("mine.pth").touch()
    assert reproduce.weights(cfg) == "mine.pth: there"


def test_weights_of_the_hub_are_fetched_and_none_are_not(plan):
    there = Plan(overrides=("MODEL.INIT_FROM", "hf-hub:user/mine")).config(ROWS[PLAIN])
    assert reproduce.weights(there) == "hf-hub:user/mine: training fetches what is not on this machine"
    none = Plan(overrides=("MODEL.PRETRAIN", "none")).config(ROWS[PLAIN])
    assert reproduce.weights(none) == "none: training starts from random numbers"


# ----------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("scores", "word"),
    [
        ({}, "reproduced"),
        ({"mAP": 89.1, "rank1": 94.5}, "reproduced"),  # exactly the tolerance
        ({"mAP": 90.1, "rank1": 96.5}, "reproduced"),
        ({"mAP": 89.06}, "reproduced"),  # 89.1 as printed
        *(({"mAP": 89.04}, "below"), ({"mAP": 90.2}, "above"), ({"rank1": 94.4}, "below"), ({"rank1": 96.6}, "above")),
        ({"mAP": 95.0, "rank1": 90.0}, "below"),
    ],
)
def test_verdicts(plan, capsys, monkeypatch, scores, word):
    """Of what has ended, which is not run again: neither data set nor weights are there."""
    monkeypatch.setattr(reproduce, "_start", lambda command: pytest.fail(f"started {command}"))
    pretend(PLAIN, plan, **scores)
    pretend("market1501-vit_svllreid", plan)  # which is not judged
    assert call(plan, "--run", PLAIN, "market1501-vit_svllreid") == (0 if word == "reproduced" else 1)
    text = paragraph(capsys.readouterr().out, PLAIN)
    assert f"{word}: mAP {round(scores.get('mAP', 89.6), 1) - 89.6:+.1f}, rank-1 " in text


@pytest.mark.parametrize(
    ("folder", "version"),
    [("MSMT17_V2/mask_test_v2", "V2"), ("MSMT17/test", "unknown version"), ("gone", "unknown version")],
)
def test_a_result_on_msmt17_says_its_version(plan, capsys, folder, version):
    (Path(plan.root) / folder).mkdir(parents=True)
    pretend(MSMT17, plan, mAP=72.8)
    assert call(plan) == 1
    text = paragraph(capsys.readouterr().out, MSMT17)
    assert f"MSMT17 {version}" in text


def test_a_reranked_test_is_compared_with_its_settings(plan, capsys):
    pretend(MSMT17, plan)
    assert reproduce.find_result(ROWS[RE_RANKED], plan) is None
    pretend_reranked(plan, mAP=86.5)
    assert call(plan) == 0
    text = paragraph(capsys.readouterr().out, RE_RANKED)
    assert "reproduced: mAP -0.2" in text and "re-ranked (k1 50, k2 15, lambda 0.3)" in text


@pytest.mark.parametrize(
    "changes",
    [
        *({"re_ranking": None}, {"re_ranking": {"k1": 20, "k2": 6, "lambda_value": 0.3}}, {"flip": True}),
        {"checkpoint": "elsewhere/ViT-B-16_60.pth"},
    ],
)
def test_another_test_is_not_the_reranked_row(plan, changes):
    pretend(MSMT17, plan)
    pretend_reranked(plan, **changes)
    assert reproduce.find_result(ROWS[RE_RANKED], plan) is None


SYSU, INDOOR = "sysu_mm01-cclnet-all", "sysu_mm01-cclnet-indoor"
FORTH, BACK = "regdb-cclnet-visible_to_thermal", "regdb-cclnet-thermal_to_visible"


def test_the_indoor_search_is_a_test_of_the_same_network(plan):
    assert plan.commands(ROWS[INDOOR])[0] == plan.training(ROWS[SYSU])
    pretend(SYSU, plan, variant="all-search")
    assert reproduce.find_result(ROWS[INDOOR], plan) is None
    pretend(INDOOR, plan, config=False, when="test", variant="all-search")
    assert reproduce.find_result(ROWS[INDOOR], plan) is None
    pretend(INDOOR, plan, config=False, when="test", variant="indoor-search", mAP=64.8)
    assert reproduce.find_result(ROWS[INDOOR], plan).figures["mAP"] == pytest.approx(64.8)


def test_both_directions_are_means_over_ten_trainings(plan, capsys, monkeypatch):
    commands = plan.commands(ROWS[FORTH])
    assert commands == plan.commands(ROWS[BACK]) and len({plan.folder(ROWS[FORTH], k) for k in range(1, 11)}) == 10
    for split, command in enumerate(commands, start=1):
        assert split == load(ROOT / command[2], command[3:]).DATASETS.REGDB_SPLIT
    started = []

    def start(command) -> None:
        started.append(command)
        split = 1 + commands.index(command)
        file = pretend(FORTH, plan, split=split, **ROWS[FORTH].entry, mAP=60.0 + split)
        back = entry(BACK, plan, **ROWS[BACK].entry, mAP=66.7)
        file.write_text(json.dumps({"evaluations": [*json.loads(file.read_text())["evaluations"], back]}))

    monkeypatch.setattr(reproduce, "_start", start)
    for command in commands[:3]:
        start(command)
    assert reproduce.find_result(ROWS[FORTH], plan) is None  # three splits are no result
    assert call(plan, "--run", FORTH, BACK) == 0
    assert started == commands
    text = capsys.readouterr().out
    assert "reproduced: mAP +0.0" in paragraph(text, FORTH) and "mean of 10 splits" in paragraph(text, FORTH)
    assert reproduce.find_result(ROWS[BACK], plan).figures["mAP"] == pytest.approx(66.7)


def test_a_broken_results_file_is_named(plan, capsys):
    file = pretend(PLAIN, plan)
    file.write_text('{"evaluations": [{}]}')
    assert call(plan, "--run", PLAIN) == 2
    captured = capsys.readouterr()
    assert f"error: {PLAIN}: {file}" in captured.err and "ours        error: " in captured.out


@pytest.mark.parametrize("text", [None, "{"])
def test_results_without_the_runs_settings_are_refused(plan, text):
    config = pretend(PLAIN, plan).with_name("config.yaml")
    config.unlink() if text is None else config.write_text(text)
    with pytest.raises((UserError, ConfigError), match=re.escape(str(config))):
        reproduce.find_result(ROWS[PLAIN], plan)


def test_a_run_with_other_settings_is_refused_and_the_settings_named(plan):
    pretend(PLAIN, plan)
    other = Plan(plan.root, plan.output, overrides=("SOLVER.STAGE2.BASE_LR", "0.1"))
    with pytest.raises(UserError, match=r"other settings \(SOLVER.STAGE2.BASE_LR\)"):
        reproduce.find_result(ROWS[PLAIN], other)
    harmless = ("DATALOADER.NUM_WORKERS", "1", "SOLVER.STAGE2.LOG_PERIOD", "7", "MODEL.DEVICE", "cpu")
    elsewhere = Plan("/elsewhere", plan.output, overrides=harmless)
    assert reproduce.find_result(ROWS[PLAIN], elsewhere).figures["mAP"] == pytest.approx(89.6)
    assert "recipe" not in str(reproduce.find_result(ROWS[PLAIN], elsewhere))


def test_rows_that_can_be_run_are_run_although_others_cannot(plan, monkeypatch):
    started = []

    def start(command) -> None:
        row = next(row for row in ROWS.values() if command in plan.commands(row))
        if row.data_set != "msmt17":
            raise UserError("there are no images")
        started.append(command)
        (pretend_reranked if row.trained else lambda plan: pretend(row.name, plan))(plan)

    monkeypatch.setattr(reproduce, "_start", start)

    assert call(plan, "--run", "all") == 2
    rows = [row for row in ROWS.values() if row.data_set == "msmt17"]
    assert started == [plan.commands(row)[-1] for row in rows]  # the network of two rows was trained once


# ------------------------------------------------------------------------------------------------------ a real run


def test_a_row_is_trained_tested_with_reranking_and_compared(tmp_path, capsys, monkeypatch):
    made = write_synthetic(
        tmp_path / "made", train_identities=8, train_images=4, test_identities=4, test_images=6, difficulty=0.5, seed=1
    )
    shutil.copytree(made, tmp_path / "data" / FOLDERS[0])
    plan = Plan(str(tmp_path / "data"), tmp_path / "runs", 3, SMALL)
    trained = ROWS[OVERLAPPING]
    row = Row(
        *(RE_RANKED, "market1501", "re-ranked", trained.config, "a test"),
        settings=trained.settings,
        published={"mAP": 0.0, "rank1": 0.0},
        trained=trained,
        test={"TEST.RE_RANKING": "True"},
    )
    monkeypatch.setitem(ROWS, row.name, row)
    words = ["--seed", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "TOLERANCE", dict.fromkeys(reproduce.TOLERANCE, 100))
        assert call(plan, "--run", row.name, OVERLAPPING, *words) == 0
    text = capsys.readouterr().out
    assert "re-ranked (k1 6, k2 2, lambda 0.3)" in paragraph(text, row.name)
    assert "there: 32 training images of 8 identities" in paragraph(text, OVERLAPPING)
    assert "not the published recipe: MODEL.NAME" in paragraph(text, OVERLAPPING)

    folder, tested = plan.folder(trained), plan.folder(row)
    results = json.loads((folder / "results.json").read_text())["evaluations"]
    assert [one["when"] for one in results] == ["start", "end"]
    assert {"market1501-vit_clipreid-sie-olp_seed3", f"{row.name}_seed3"} == {
        path.name for path in plan.output.iterdir()
    }
    end, (test,) = results[1], json.loads((tested / "results.json").read_text())["evaluations"]
    assert test["re_ranking"] == {"k1": 6, "k2": 2, "lambda_value": 0.3} and test["mAP"] != end["mAP"]
    assert f"ours        mAP {100 * end['mAP']:.1f}" in paragraph(text, OVERLAPPING)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["MODEL"]["SIE_CAMERA"] and config["SOLVER"]["SEED"] == 3

    monkeypatch.setattr(reproduce, "_start", lambda command: pytest.fail(f"started {command}"))
    assert call(plan, "--run", row.name, OVERLAPPING, *words, "--markdown") == 1  # eight people are not Market-1501's
    table = capsys.readouterr().out
    assert f"| mAP {100 * end['mAP']:.1f}, rank-1 {100 * end['rank1']:.1f}" in table
