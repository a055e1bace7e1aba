"""Configuration: what is converted, what is refused and by which key, the files in the repository, the command line."""

import re
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import yaml
from yacs.config import CfgNode

from configs import ConfigError, from_dict, load, load_for_test, to_dict
from configs.checks import check_value
from configs.defaults import ROWS, defaults
from configs.help import help_keys, resolved
from configs.keys import ALWAYS
from configs.loading import flatten
from configs.resuming import check_changes
from configs.stages import STAGES
from utils.command import parse

FOLDER = Path(__file__).resolve().parent.parent / "configs"
SHIPPED = sorted(FOLDER.rglob("*.yml"))


def get(cfg: CfgNode, key: str):
    return dict(flatten(cfg))[key]


def from_file(tmp_path: Path, text: str, *overrides: str) -> CfgNode:
    path = tmp_path / "settings.yml"
    path.write_text(text, encoding="utf-8")
    return load(path, overrides)


# --------------------------------------------------------------------------------------------------------- conversion

CONVERTED = [  # key, what a YAML file holds, what the command line holds, what comes of both
    ("MODEL.SIE_COE", 1, "1", 1.0),
    ("SOLVER.STAGE2.BASE_LR", "5e-6", "5e-6", 5e-6),  # which YAML reads as a string
    ("SOLVER.STAGE1.WARMUP_LR_INIT", "1E-5", "1E-5", 1e-5),
    ("SOLVER.STAGE1.MAX_EPOCHS", "12", "12", 12),
    ("OUTPUT_DIR", 2024, "2024", "2024"),
    ("OUTPUT_DIR", "007", "007", "007"),
    ("OUTPUT_DIR", "", "", ""),
    ("DATASETS.ROOT_DIR", "/data/with space", "/data/with space", "/data/with space"),
    ("DATASETS.ROOT_DIR", "('')", "('')", ""),  # the current folder, as in published files
    ("DATASETS.ROOT_DIR", r"D:\new\table", r"D:\new\table", r"D:\new\table"),
    ("DATASETS.ROOT_DIR", r"('D:\new')", r"'D:\new'", r"D:\new"),
    ("DATASETS.NAMES", "('veri')", "('veri')", "veri"),
    ("DATASETS.NAMES", ["market1501"], "('market1501',)", "market1501"),
    ("MODEL.STRIDE_SIZE", [12, 12], "[12, 12]", (12, 12)),
    ("MODEL.STRIDE_SIZE", "'[12, 8]'", "'[12, 8]'", (12, 8)),  # cmd.exe passes single quotes on
    ("SOLVER.MARGIN", "'0.25'", "'0.25'", 0.25),
    ("SOLVER.SEED", "'7'", "'7'", 7),
    ("INPUT.PIXEL_MEAN", [0, 1, 0.5], "[0, 1, 0.5]", (0.0, 1.0, 0.5)),
    ("INPUT.TWIN_ERASED_AREA", [0.1, "0.25"], "(0.1, 0.25)", (0.1, 0.25)),
    ("MODEL.SSL_TYPE", "SIMSIAM", "'SIMSIAM'", "SIMSIAM"),
    ("SOLVER.STAGE2.STEPS", [20], "20", (20,)),
    ("SOLVER.STAGE2.STEPS", [], "()", ()),
    ("TEST.FEAT_NORM", "'False'", "'False'", False),
    *(("TEST.RE_RANKING", word, word, True) for word in ("yes", "on", "True", "true")),
    *(("TEST.FEAT_NORM", word, word, False) for word in ("no", "off", "False", "false")),
    ("TEST.RE_RANKING", True, "TRUE", True),
]


@pytest.mark.parametrize(("key", "in_file", "on_line", "expected"), CONVERTED)
def test_values_take_the_type_of_their_default(tmp_path, key, in_file, on_line, expected):
    for cfg in (from_file(tmp_path, yaml.safe_dump({key: in_file})), load(None, [key, on_line])):
        value = get(cfg, key)
        assert (value, type(value)) == (expected, type(expected))
        if isinstance(expected, tuple):
            assert [type(element) for element in value] == [type(element) for element in expected]


OF_ANOTHER_TYPE = [  # key, what a YAML file holds, what is expected
    ("OUTPUT_DIR", None, "None is not"),
    ("MODEL.NAME", "None", "None is not"),
    ("INPUT.PIXEL_MEAN", [0.5, None, 0.5], "None is not"),
    *(("SOLVER.SEED", value, "integer") for value in (True, 1.5, 64.0, "many", 2**70)),
    ("SOLVER.SEED", [1], "one integer"),
    *(("SOLVER.MARGIN", value, "number") for value in (True, "wide", float("nan"), float("inf"))),
    ("SOLVER.MARGIN", [0.3], "one number"),
    *(("TEST.FEAT_NORM", value, "True or False") for value in (1, "perhaps")),
    *(("MODEL.USE_SSL", value, "True or False") for value in ("perhaps", 1, [True])),
    ("MODEL.USE_SSL", None, "None is not"),
    *(("MODEL.NAME", value, "string") for value in (False, ["ViT-B-16"])),
    ("DATASETS.NAMES", ["market1501", 3], "several in a tuple"),
    *(("MODEL.STRIDE_SIZE", value, "integer") for value in ([12, 1.5], [[12, 12], 12])),
]


@pytest.mark.parametrize(("key", "value", "expected"), OF_ANOTHER_TYPE)
def test_a_value_of_another_type_is_refused_by_key_and_what_is_expected(tmp_path, key, value, expected):
    with pytest.raises(ConfigError, match=rf"settings\.yml: {key}: invalid value [^\n]*expected [^\n]*{expected}"):
        from_file(tmp_path, yaml.safe_dump({key: value}))


# --------------------------------------------------------------------------------------------------- the table of keys

INVALID = {str: "", int: -1, float: -1.0, tuple: ()}  # for every rule of a key of this type
LIMITS = [  # key, the last valid values, the first invalid ones
    ("MODEL.DEVICE", ["auto", "cpu", "cuda", "cuda:1", "mps"], ["gpu", "cuda:", "cuda:1x"]),
    ("MODEL.STRIDE_SIZE", [(1, 1)], [(12,), (12, 0), (0, 12), (1, 1, 1)]),
    ("MODEL.SSL_TYPE", ["SIMCLR", "SIMSIAM"], ["BYOL", "simclr"]),
    ("MODEL.SSL_OUT", [1], [0]),
    ("INPUT.PROB", [0.0, 1.0], [1.1]),
    ("INPUT.TWIN_ERASED_AREA", [(0.5, 0.5)], [(0.5, 0.2), (0.0, 0.5), (0.5, 1.0), (0.3,)]),
    ("INPUT.JPEG_QUALITY", [(1, 100), (50, 50)], [(0, 50), (50, 101), (60, 50), (50,)]),
    ("INPUT.PIXEL_STD", [(0.1, 0.1, 0.1)], [(0.5, 0.0, 0.5), (0.5, 0.5)]),
    ("DATASETS.NOUN", ["dog", "polar bear"], ["{} dog", "7"]),
    ("DATASETS.HOLD_OUT", [0.0, 0.99], [1.0]),
    ("DATASETS.SYNTHETIC.TEST_IMAGES", [6], [5]),
    ("SOLVER.SEED", [0, 2**32 - 1], [2**32]),
    ("SOLVER.MARGIN", [0.0], [-0.1]),
    ("SOLVER.STAGE2.STEPS", [(), (1,), (30, 50)], [(50, 30), (30, 30), (0,)]),
    ("SOLVER.STAGE2.LAYER_DECAY", [0.01, 1.0], [0.0, 1.01]),
    ("SOLVER.STAGE2.BASE_LR", [1e-9], [0.0]),
    ("SOLVER.STAGE2.IMS_PER_BATCH", [2], [1]),
    ("CLUSTER.EPS", [1e-6, 0.999], [0.0, 9e-7, 1.0]),
    ("TEST.RE_RANKING_K1", [1], [0]),
    (
        "PROCESSOR.STAGES",
        [("prompt",), ("image",), ("prompt", "image"), ("cluster", "prompt", "cluster")],
        [("image", "prompt"), ("prompt", "text")],
    ),
]


def test_every_row_explains_its_key_and_allows_its_default():
    assert [row.name for row in ROWS] == [key for key, _ in flatten(defaults())]  # each once, in the file's order
    for row in ROWS:
        assert row.meaning.endswith((".", ".)"))
        check_value(row.name, row.default)
        if row.rule is None:  # switches and paths
            assert type(row.default) is bool or re.search("_DIR|INIT_FROM|VIEWPOINTS|WEIGHT$", row.name)
        elif row.default != () and not row.name.endswith(".STEPS"):  # (): those of the weights
            highest = re.findall(r"^from 0 to (\d+)$", row.rule.expected)
            for value in (INVALID[type(row.default)], *(type(row.default)(1 + int(number)) for number in highest)):
                with pytest.raises(ConfigError, match=re.escape(f"{row.name}: invalid value ") + ".*, expected "):
                    check_value(row.name, value)


@pytest.mark.parametrize(("key", "valid", "invalid"), LIMITS)
def test_the_limits_of_a_rule(key, valid, invalid):
    for value in valid:
        check_value(key, value)
    for value in invalid:
        with pytest.raises(ConfigError, match=key):
            check_value(key, value)


def test_keys_are_explained_by_their_prefix():
    assert [line.split()[0] for line in help_keys().splitlines() if line[0] != " "] == [row.name for row in ROWS]
    assert help_keys("solver.stage1.ssl").startswith("SOLVER.STAGE1.SSL_LOSS_WEIGHT = 2.0\n")
    text = " ".join(help_keys("DATALOADER.NUM_WORKERS").split())
    assert all(words in text for words in ("NUM_WORKERS = 8 Processes", "Valid: at least 0.", "on resume: always."))
    for wrong, near in (("STRIDE", "MODEL.STRIDE_SIZE"), ("MODLE", "MODEL"), ("NUM_INSTANEC", "DATALOADER.NUM_INST")):
        with pytest.raises(ConfigError, match=f"no key begins with {wrong}; did you mean {near}"):
            help_keys(wrong)
    with pytest.raises(ConfigError, match=r"begins with QQQQ$"):
        help_keys("QQQQ")


def test_the_resolved_configuration_is_a_file_that_means_the_same(tmp_path, capsys):
    words = ["--config_file", str(FOLDER / "demo/vit_base.yml"), "SOLVER.SEED", "3", "--print_config"]
    with pytest.raises(SystemExit):
        parse("", words)
    assert from_file(tmp_path, capsys.readouterr().out) == load(words[1], words[2:4])
    with pytest.raises(ConfigError, match="from the checkpoint"):
        resolved(None, ["TEST.WEIGHT", "x.pth"])


def test_what_may_change_on_resume_is_what_the_rows_say():
    earlier = load()

    def outcome(key: str, value, number=0, epoch=1) -> list[str] | None:
        now = earlier.clone()
        now.defrost()
        *blocks, leaf = key.split(".")
        reduce(getitem, blocks, now)[leaf] = value
        try:
            return check_changes(earlier, now, number=number, epoch=epoch, where="here", weights=True)
        except ConfigError as error:
            assert key in str(error) and "here" in str(error)
            return None

    for row in ROWS:
        other = row.default + 1 if type(row.default) is int else (row.default,)
        assert (outcome(row.name, other) is not None) == (row.on_resume == ALWAYS or row.name.endswith("MAX_EPOCHS"))
    first, second = (STAGES[name].key("MAX_EPOCHS") for name in earlier.PROCESSOR.STAGES)
    assert outcome(first, 99, epoch=99) and outcome(first, 99, epoch=100) is None  # has begun
    assert outcome(first, 200, number=1) is None  # is over
    assert outcome(second, 1) and outcome(second, 1, number=1, epoch=2) is None


# --------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("SOLVER.STAGE1.BASE_LRR", "; did you mean SOLVER.STAGE1.BASE_LR?"),
        ("STRIDE_SIZE", "; did you mean MODEL.STRIDE_SIZE?"),
        ("model.sie_coe", "; did you mean MODEL.SIE_COE?"),
        ("OUTPUT_DIRECTORY", "; did you mean OUTPUT_DIR?"),
        ("SOLVER.STEPP", "; did you mean SOLVER.STAGE2.STEPS?"),
        ("MODEL", ": it is a block of keys (MODEL.DEVICE, …)"),
        ("SOLVER.STAGE1", ": it is a block of keys (SOLVER.STAGE1.IMS_PER_BATCH, …)"),
        *((wrong, "") for wrong in ("QQQQ", "MODEL.NECKS", "SOLVER.OPT", "MODEL.NAME.X")),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_if_one_is_near(tmp_path, wrong, right):
    with pytest.raises(ConfigError, match=f"command line: there is no key {wrong}{re.escape(right)}$"):
        load(None, [wrong, "1"])
    with pytest.raises(ConfigError, match=rf"settings\.yml: there is no key {wrong}{re.escape(right)}$"):
        from_file(tmp_path, f"{wrong}: 1\n")


def test_all_faults_of_all_layers_are_told_at_once(tmp_path):
    (tmp_path / "ground.yml").write_text("MODEL: {JIM: 1, SIE_CAMRA: 1}\nINPUT: {PROB: 7, PADDING: x}\n")
    (tmp_path / "top.yml").write_text("BASE: ground.yml\nSOLVER: {OPT: 1}\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "top.yml", ["SOLVER.SEDE", "1"])
    ground, top, line = re.split(r"\S*/top\.yml: |command line: ", str(caught.value))
    assert ground.startswith(f"{tmp_path / 'ground.yml'}: there is no key MODEL.JIM; ")
    assert all(word in ground for word in ("MODEL.SIE_CAMERA?", "INPUT.PROB: ", "INPUT.PADDING: "))
    assert "SOLVER.OPT" in top and "SOLVER.SEED?" in line and "\n" not in str(caught.value)


def test_overrides_come_in_pairs():
    with pytest.raises(ConfigError, match="'OUTPUT_DIR' is left over"):
        load(None, ["SOLVER.SEED", "1", "OUTPUT_DIR"])


def test_wrong_overrides_of_a_test_are_found_before_the_checkpoint_is_read():
    weight = ["TEST.WEIGHT", "x.pth"]
    with pytest.raises(ConfigError, match=r"'TEST\.FLIP' is left over"):
        load_for_test(None, [*weight, "TEST.FLIP"])
    with pytest.raises(ConfigError, match=r"command line: TEST\.FLIP: .*'3'.*; TEST\.RE_RANKING_K1: "):
        load_for_test(None, [*weight, "TEST.FLIP", "3", "TEST.RE_RANKING_K1", "0"])
    with pytest.raises(ConfigError, match=r"command line: there is no key TEST\.FLPI; did you mean TEST\.FLIP\?"):
        load_for_test(None, [*weight, "TEST.FLPI", "True"])
    with pytest.raises(ConfigError, match=r"command line: has keys of TransReID \(MODEL\.JPM\)"):
        load_for_test(None, [*weight, "MODEL.JPM", "True"])
    # What only the checkpoint's settings allow, and a value that a later one replaces, may be right.
    right = ["SOLVER.MAX_EPOCHS", "3", "TEST.FLIP", "3", "TEST.FLIP", "True", "MODEL.USE_SSL", "no"]
    right += ["MODEL.NECK", "bnneck", "DATALOADER.SAMPLER", "softmax_triplet"]
    assert load_for_test(None, [*weight, *right]).TEST.WEIGHT == "x.pth"


# -------------------------------------------------------------------------------------------------------------- files


def test_later_layers_win(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "ground.yml").write_text("SOLVER: {SEED: 1, MARGIN: 0.1}\nMODEL: {NAME: ViT-L-14}\n")
    (tmp_path / "middle.yml").write_text("BASE: ground.yml\nSOLVER: {SEED: 2, STAGE1: {MAX_EPOCHS: 3}, STAGE2: }\n")
    top = tmp_path / "sub" / "top.yml"
    top.write_text("BASE: ../middle.yml\nSOLVER: {SEED: 3}\n")
    cfg = load(top, ["SOLVER.SEED", "4", "SOLVER.SEED", "5"])
    assert (cfg.SOLVER.SEED, cfg.SOLVER.STAGE1.MAX_EPOCHS, cfg.SOLVER.MARGIN, cfg.MODEL.NAME) == (5, 3, 0.1, "ViT-L-14")
    assert load(top).SOLVER.SEED == 3 and load(str(tmp_path / "middle.yml")).SOLVER.SEED == 2


@pytest.mark.parametrize(
    ("key", "bad", "good"),
    [
        ("INPUT.PROB", 7, "0.5"),
        ("INPUT.PROB", None, "0.5"),
        ("MODEL.STRIDE_SIZE", [12], "[12, 12]"),
        ("MODEL.USE_SSL", "perhaps", "True"),
        ("DATALOADER.SAMPLER", "softmax", "softmax_triplet"),
        ("SOLVER.STAGE2.SSL_LOSS_WEIGHT", -1, "0.8"),
    ],
)
def test_a_value_counts_only_if_no_later_layer_sets_its_key(tmp_path, key, bad, good):
    (tmp_path / "ground.yml").write_text(yaml.safe_dump({key: bad}))
    (tmp_path / "top.yml").write_text("BASE: ground.yml\nMODEL.SSL_TYPE: SIMCLR\n")
    assert load(tmp_path / "top.yml", [key, good]) == load(None, [key, good])
    with pytest.raises(ConfigError, match=rf"ground\.yml: {key}: invalid value"):
        load(tmp_path / "top.yml")
    with pytest.raises(ConfigError, match=rf"^command line: {key}: invalid value"):
        load(tmp_path / "top.yml", [key, good, key, str(bad)])


@pytest.mark.parametrize(
    "text",
    [
        *("BASE: settings.yml\n", "BASE: ./other.yml\n", "BASE: absent.yml\n", "BASE: .\n", 'BASE: "\\0"'),
        *("SOLVER: {SEED: 1}\nMODEL: {NAME: x}\nSOLVER: {MARGIN: 1}\n", "SOLVER:\n  SEED: 1\n  SEED: 1\n"),
        *("a: [1", "- 1\n- 2\n", "just words", "\0", 40_000 * "[", 3000 * "{", "a: !!int x", "a: !!timestamp x"),
        *("SOLVER: {SEED: &a [*a]}", "SOLVER: &a {SEED: *a}", "SOLVER: {SEED: 2001-99-99}"),
    ],
)
def test_files_that_are_no_settings(tmp_path, text):
    (tmp_path / "other.yml").write_text("BASE: settings.yml\n")
    with pytest.raises(ConfigError) as caught:
        from_file(tmp_path, text)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_alias_is_what_it_repeats(tmp_path):
    cfg = from_file(tmp_path, "INPUT: {SIZE_TRAIN: &size [64, 32], SIZE_TEST: *size}\nTEST: &t {RE_RANKING_K1: 3}\n")
    assert cfg.INPUT.SIZE_TRAIN == cfg.INPUT.SIZE_TEST == (64, 32)


# ------------------------------------------------------------------------------------------------ settings that clash

NO_WEIGHTS = [
    *("MODEL.ID_LOSS_WEIGHT", "0", "MODEL.TRIPLET_LOSS_WEIGHT", "0", "MODEL.I2T_LOSS_WEIGHT", "0"),
    *("SOLVER.STAGE2.SSL_LOSS_WEIGHT", "0"),
]
IGNORING = ["MODEL.SSL_TYPE", "SIMSIAM", "SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY", "True"]
ALONE = ["PROCESSOR.STAGES", "image"]
CONTRADICTIONS = [  # overrides, keys that are named, what is none
    (["SOLVER.STAGE2.IMS_PER_BATCH", "30"], ["SOLVER.STAGE2.IMS_PER_BATCH 30", "DATALOADER.NUM_INSTANCE 16"], []),
    (["DATALOADER.NUM_INSTANCE", "1"], ["MODEL.TRIPLET_LOSS_WEIGHT", "NUM_INSTANCE 1"], NO_WEIGHTS[2:4]),
    (["SOLVER.STAGE2.IMS_PER_BATCH", "16"], ["MODEL.TRIPLET_LOSS_WEIGHT", "two identities"], NO_WEIGHTS[2:4]),
    (ALONE, ["MODEL.I2T_LOSS_WEIGHT 1.0", "MODEL.INIT_FROM"], NO_WEIGHTS[4:6]),
    (ALONE, ["MODEL.I2T_LOSS_WEIGHT 0.0"], ["MODEL.INIT_FROM", "x.pth"]),
    (ALONE, ["PROCESSOR.UNTRAINED_PROMPTS True"], ["PROCESSOR.UNTRAINED_PROMPTS", "True"]),
    (IGNORING, ["SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY", "MODEL.SSL_TYPE SIMSIAM"], NO_WEIGHTS[6:]),
    (IGNORING, ["SSL_IGNORE"], ["MODEL.SSL_TYPE", "SIMCLR"]),
    (IGNORING, ["SSL_IGNORE"], ["SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY", "False"]),
    (NO_WEIGHTS, ["nothing to train"], ["MODEL.I2T_LOSS_WEIGHT", "0.1"]),
    (["SOLVER.STAGE2.IMS_PER_BATCH", "30", *NO_WEIGHTS], ["NUM_INSTANCE", "nothing to train"], []),  # in one message
    (NO_WEIGHTS, ["nothing to train"], ["MODEL.PROTOTYPE_LOSS_WEIGHT", "0.1"]),
    (NO_WEIGHTS, ["nothing to train"], ["MODEL.CAMERA_PROXY_LOSS_WEIGHT", "0.1"]),
    (["SOLVER.STAGE1.LR_MIN", "1"], ["SOLVER.STAGE1.LR_MIN", "SOLVER.STAGE1.BASE_LR"], [*ALONE, *NO_WEIGHTS[4:6]]),
    (["TEST.AQE", "True", "TEST.FEAT_NORM", "False"], ["TEST.AQE", "TEST.FEAT_NORM"], ["TEST.AQE", "False"]),
    # What a stage that does not run would need is no contradiction.
    (["DATALOADER.NUM_INSTANCE", "7"], ["DATALOADER.NUM_INSTANCE 7"], ["PROCESSOR.STAGES", "prompt"]),
]


@pytest.mark.parametrize(("overrides", "words", "unless"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused(overrides, words, unless):
    with pytest.raises(ConfigError) as caught:
        load(None, overrides)
    assert all(word in str(caught.value) for word in ["contradicting settings", *words])
    if unless:
        load(None, [*overrides, *unless])


# ---------------------------------------------------------------------------------------------------------- the result


def test_loading_leaves_nothing_behind_and_its_result_is_frozen():
    first = load(None, ["SOLVER.SEED", "5", "MODEL.STRIDE_SIZE", "[3, 3]"])
    with pytest.raises(ConfigError):
        load(None, ["SOLVER.SEED", "6", "SOLVER.MARGIN", "x"])
    second = load()
    assert (first.SOLVER.SEED, second.SOLVER.SEED) == (5, 1234)
    assert second == defaults() and second.MODEL.STRIDE_SIZE == (16, 16)
    for block, key in ((second, "OUTPUT_DIR"), (second.MODEL, "NAME"), (second.SOLVER.STAGE1, "MAX_EPOCHS")):
        with pytest.raises(AttributeError):
            setattr(block, key, block[key])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_files_load_and_survive_a_file(tmp_path, path):
    cfg = load(path)
    tree = to_dict(cfg)
    assert from_dict(tree, where="a checkpoint") == cfg
    written = from_file(tmp_path, yaml.safe_dump(tree))
    assert written == cfg and written.is_frozen()
    assert all(isinstance(value, (bool, int, float, str, list)) for _, value in flatten(tree))


def test_the_demo_files_differ_in_what_makes_the_method():
    svll, clip, base = (dict(flatten(load(FOLDER / "demo" / f"vit_{n}.yml"))) for n in ("svllreid", "clipreid", "base"))
    weights = {"SOLVER.STAGE1.SSL_LOSS_WEIGHT", "SOLVER.STAGE2.SSL_LOSS_WEIGHT"}
    assert {key for key in svll if svll[key] != clip[key]} == weights
    assert all(svll[key] > 0 and clip[key] == 0.0 for key in weights)
    assert {key for key in clip if clip[key] != base[key]} >= {"MODEL.I2T_LOSS_WEIGHT", "PROCESSOR.STAGES"}
    assert base["MODEL.I2T_LOSS_WEIGHT"] == base["SOLVER.STAGE2.SSL_LOSS_WEIGHT"] == 0.0
    assert base["PROCESSOR.STAGES"] == ("image",)


# -------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("words", "pairs"),
    [
        (["SOLVER.SEED", "1", "OUTPUT_DIR", "a=b"], ["SOLVER.SEED", "1", "OUTPUT_DIR", "a=b"]),
        (
            ["SOLVER.SEED=1", "OUTPUT_DIR=a=b", "RESUME", "no"],
            ["SOLVER.SEED", "1", "OUTPUT_DIR", "a=b", "RESUME", "no"],
        ),
        (["INPUT.SIZE_TEST", "'[64,", "32]'", "RESUME", "no"], ["INPUT.SIZE_TEST", "'[64, 32]'", "RESUME", "no"]),
        (["INPUT.SIZE_TEST='[64,", "32]'"], ["INPUT.SIZE_TEST", "'[64, 32]'"]),
        (["INPUT.SIZE_TEST", "[64,", "32]", "RESUME=no"], ["INPUT.SIZE_TEST", "[64, 32]", "RESUME", "no"]),
        (["INPUT.SIZE_TEST=(64,", "32)"], ["INPUT.SIZE_TEST", "(64, 32)"]),
        (["OUTPUT_DIR", "[old", "RESUME", "no"], ["OUTPUT_DIR", "[old", "RESUME", "no"]),
        (["OUTPUT_DIR", "'tis", "RESUME", "no"], ["OUTPUT_DIR", "'tis", "RESUME", "no"]),
        (["RESUME"], ["RESUME"]),
        ([], []),
    ],
)
def test_the_command_line_is_cut_into_keys_and_values(words, pairs):
    assert parse("", words).overrides == pairs
    assert parse("", ["--config_file", "x.yml", *words]).overrides == pairs


def test_the_rank_that_a_launcher_passes_on_is_understood(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    for form in ("--local-rank=1", "--local_rank=1"):
        assert parse("", [form, "SOLVER.SEED", "1"]).overrides == ["SOLVER.SEED", "1"]
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(SystemExit):
        parse("", ["--local_rank", "0", "SOLVER.SEED", "1"])
    assert "torchrun --nproc_per_node" in capsys.readouterr().err
