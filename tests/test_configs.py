"""Configuration: what is converted, what is refused and with which words, and the files in the repository."""

import copy
import os
import re
from pathlib import Path

import pytest
import yaml
from yacs.config import CfgNode

from configs import ConfigError, from_dict, load, to_dict
from configs.checks import check_value
from configs.defaults import ROWS, defaults
from utils.command import parse

FOLDER = Path(__file__).resolve().parent.parent / "configs"
SHIPPED = sorted(FOLDER.rglob("*.yml"))


def get(cfg: CfgNode, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def leaves(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat.update(leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def from_file(tmp_path: Path, text: str, *overrides: str) -> CfgNode:
    path = tmp_path / "settings.yml"
    path.write_text(text, encoding="utf-8")
    return load(path, overrides)


def nested(key: str, value) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


# --------------------------------------------------------------------------------------------------------- conversion

CONVERTED = [  # key, what a YAML file holds, what the command line holds, what comes of both
    ("MODEL.SIE_COE", 1, "1", 1.0),
    ("SOLVER.STAGE1.SSL_LOSS_WEIGHT", 0, "0", 0.0),
    ("SOLVER.STAGE2.BASE_LR", "5e-6", "5e-6", 5e-6),
    ("SOLVER.STAGE1.WARMUP_LR_INIT", "1E-5", "1E-5", 1e-5),
    ("SOLVER.STAGE2.BIAS_LR_FACTOR", 1.5, "1.5", 1.5),
    ("SOLVER.SEED", 7, "7", 7),
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
    ("DATASETS.NAMES", "market1501", "market1501", "market1501"),
    ("MODEL.STRIDE_SIZE", [12, 12], "[12, 12]", (12, 12)),
    ("MODEL.STRIDE_SIZE", "(12, 8)", "(12, 8)", (12, 8)),
    ("MODEL.STRIDE_SIZE", "'[12, 8]'", "'[12, 8]'", (12, 8)),  # cmd.exe passes single quotes on
    ("SOLVER.MARGIN", "'0.25'", "'0.25'", 0.25),
    ("SOLVER.SEED", "'7'", "'7'", 7),
    ("TEST.FEAT_NORM", "'False'", "'False'", False),
    ("INPUT.PIXEL_MEAN", [0, 1, 0.5], "[0, 1, 0.5]", (0.0, 1.0, 0.5)),
    ("INPUT.TWIN_ERASED_AREA", [0.1, "0.25"], "(0.1, 0.25)", (0.1, 0.25)),
    ("INPUT.TWIN_ERASED_AREA", [0.5, 0.5], "[0.5, 0.5]", (0.5, 0.5)),
    ("MODEL.SSL_TYPE", "SIMSIAM", "'SIMSIAM'", "SIMSIAM"),
    ("MODEL.INIT_FROM", "runs/a.pth", "runs/a.pth", "runs/a.pth"),
    ("MODEL.SIE_TWINS", "yes", "yes", True),
    ("SOLVER.STAGE1.PROMPT_AUG_TOKENS", "words", "words", "words"),
    ("SOLVER.STAGE1.TRAIN_PROJECTOR", True, "on", True),
    ("TEST.RE_RANKING", "yes", "yes", True),
    ("TEST.RE_RANKING_LAMBDA", 1, "1", 1.0),
    ("TEST.RE_RANKING_LAMBDA", 0, "0", 0.0),
    ("SOLVER.STAGE2.STEPS", [20], "20", (20,)),
    ("SOLVER.STAGE2.STEPS", [], "()", ()),
    ("TEST.FEAT_NORM", "no", "no", False),
    ("TEST.FEAT_NORM", "yes", "yes", True),
    ("MODEL.IF_LABELSMOOTH", "off", "off", False),
    ("MODEL.IF_LABELSMOOTH", "on", "on", True),
    ("MODEL.SIE_CAMERA", True, "True", True),
    ("MODEL.SIE_CAMERA", False, "false", False),
]


@pytest.mark.parametrize("where", ["file", "command line"])
@pytest.mark.parametrize(("key", "in_file", "on_line", "expected"), CONVERTED)
def test_values_take_the_type_of_their_default(tmp_path, where, key, in_file, on_line, expected):
    in_file = yaml.safe_dump(nested(key, in_file))
    cfg = from_file(tmp_path, in_file) if where == "file" else load(None, [key, on_line])
    value = get(cfg, key)
    assert (value, type(value)) == (expected, type(expected))
    if isinstance(expected, tuple):
        assert [type(element) for element in value] == [type(element) for element in expected]


def test_a_bare_number_in_yaml_is_what_people_mean(tmp_path):
    # YAML reads 5e-6 as a text, yes as True and 2024 as a number.
    text = "OUTPUT_DIR: 2024\nTEST: {FEAT_NORM: no}\nSOLVER: {STAGE2: {BASE_LR: 5e-6}}\n"
    cfg = from_file(tmp_path, text)
    assert (cfg.OUTPUT_DIR, cfg.TEST.FEAT_NORM, cfg.SOLVER.STAGE2.BASE_LR) == ("2024", False, 5e-6)


REFUSED = [  # key, what a YAML file holds, what the message says would be right
    ("OUTPUT_DIR", None, "which None is not"),
    ("MODEL.NAME", "None", "which None is not"),
    ("SOLVER.STAGE1.SSL_LOSS_WEIGHT", None, "which None is not"),
    ("INPUT.PIXEL_MEAN", [0.5, None, 0.5], "which None is not"),
    ("SOLVER.SEED", True, "integer"),
    ("SOLVER.SEED", 1.5, "integer"),
    ("SOLVER.SEED", 64.0, "integer"),
    ("SOLVER.SEED", "many", "integer"),
    ("SOLVER.SEED", [1], "one integer"),
    ("SOLVER.MARGIN", True, "number"),
    ("SOLVER.MARGIN", "wide", "number"),
    ("SOLVER.MARGIN", [0.3], "one number"),
    ("SOLVER.MARGIN", float("nan"), "finite"),
    ("SOLVER.MARGIN", float("inf"), "finite"),
    ("TEST.FEAT_NORM", 1, "True or False"),
    ("TEST.FEAT_NORM", "perhaps", "True or False"),
    ("MODEL.NAME", False, "string"),
    ("MODEL.NAME", ["ViT-B-16"], "string"),
    ("DATASETS.NAMES", ["market1501", 3], "several in a tuple"),
    ("MODEL.STRIDE_SIZE", [12], "two positive numbers"),
    ("MODEL.STRIDE_SIZE", [12, 0], "two positive numbers"),
    ("MODEL.STRIDE_SIZE", [12, 1.5], "integer"),
    ("MODEL.STRIDE_SIZE", [[12, 12], 12], "integer"),
    ("INPUT.PIXEL_STD", [0.5, 0, 0.5], "three positive numbers"),
    ("INPUT.PROB", 1.1, "from 0 to 1"),
    ("MODEL.DEVICE", "gpu", "cuda:N"),
    ("MODEL.ACTIVATION", "relu", "quick_gelu, gelu"),
    ("SOLVER.PRECISION", "fp8", "auto, fp32, bf16, fp16"),
    ("SOLVER.STAGE1.OPTIMIZER_NAME", "Lion", "Adam, AdamW, SGD"),
    ("SOLVER.STAGE1.PROMPT_AUG_METHOD", "shuffle", "mask, swap, mix"),
    ("SOLVER.STAGE2.STEPS", [50, 30], "ascending"),
    ("SOLVER.STAGE2.BASE_LR", 0, "above 0"),
    ("SOLVER.STAGE2.IMS_PER_BATCH", 1, "at least 2"),
    ("TEST.NECK_FEAT", "middle", "before, after"),
    ("MODEL.SSL_TYPE", "BYOL", "SIMCLR or SIMSIAM (a weight of 0.0 switches self-supervision off"),
    ("MODEL.SSL_TYPE", "simclr", "SIMCLR or SIMSIAM"),
    ("INPUT.TWIN_ERASED_AREA", [0.5, 0.2], "two fractions above 0 and below 1, the smaller first"),
    ("INPUT.TWIN_ERASED_AREA", [0, 0.5], "two fractions above 0"),
    ("INPUT.TWIN_ERASED_AREA", [0.5, 1.0], "and below 1"),
    ("INPUT.TWIN_ERASED_AREA", [0.3], "two fractions"),
    ("SOLVER.STAGE1.PROMPT_AUG_TOKENS", "start", "one of all, words"),
    ("TEST.RE_RANKING_K1", 0, "at least 1"),
    ("TEST.RE_RANKING_K2", 0, "at least 1"),
    ("TEST.RE_RANKING_LAMBDA", 1.5, "from 0 to 1"),
    ("TEST.RE_RANKING_LAMBDA", -0.5, "from 0 to 1"),
    ("PROCESSOR.STAGES", ["image", "prompt"], "prompt, image"),
    ("PROCESSOR.STAGES", ["prompt", "text"], "prompt, image"),
    ("PROCESSOR.STAGES", [], "prompt, image"),
    ("DATASETS.HOLD_OUT", 1, "below 1"),
]


@pytest.mark.parametrize(("key", "value", "right"), REFUSED)
def test_a_wrong_value_is_refused_by_key_value_and_what_would_be_right(tmp_path, key, value, right):
    with pytest.raises(ConfigError) as caught:
        from_file(tmp_path, yaml.safe_dump(nested(key, value)))
    message = str(caught.value)
    assert key in message and right in message and "settings.yml" in message and "\n" not in message
    shown = value if not isinstance(value, list) else next((v for v in value if v not in (12, 0.5)), value)
    assert str(shown).strip("()[]") in message


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_devices_that_are_understood(device):
    cfg = load(None, ["MODEL.DEVICE", device])
    assert get(cfg, "MODEL.DEVICE") == device


# --------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("SOLVER.STAGE1.BASE_LRR", "SOLVER.STAGE1.BASE_LR"),
        ("MODEL.SIE_CAMRA", "MODEL.SIE_CAMERA"),
        ("STRIDE_SIZE", "MODEL.STRIDE_SIZE"),
        ("model.sie_coe", "MODEL.SIE_COE"),
        ("OUTPUT_DIRECTORY", "OUTPUT_DIR"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(tmp_path, wrong, right):
    with pytest.raises(ConfigError, match=rf"command line: there is no key {wrong}; did you mean {right}\?"):
        load(None, [wrong, "1"])
    with pytest.raises(ConfigError, match=rf"settings.yml: there is no key {wrong}; did you mean {right}\?"):
        from_file(tmp_path, yaml.safe_dump(nested(wrong, 1)))


@pytest.mark.parametrize("wrong", ["QQQQ", "MODEL.JIM", "MODEL.NECKS", "SOLVER.OPT", "DATALOADER.SAMPLER_TRAIN"])
def test_an_unknown_key_that_resembles_nothing_is_refused_without_a_guess(wrong):
    with pytest.raises(ConfigError, match=rf"there is no key {wrong}$"):
        load(None, [wrong, "1"])


def test_all_faults_of_all_layers_are_told_at_once(tmp_path):
    (tmp_path / "ground.yml").write_text("MODEL: {JIM: 1, SIE_CAMRA: 1}\nINPUT: {PROB: 7, PADDING: x}\n")
    (tmp_path / "top.yml").write_text("BASE: ground.yml\nSOLVER: {OPT: 1}\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "top.yml", ["SOLVER.SEDE", "1"])
    ground, top, line = re.split(r"\S*/top\.yml: |command line: ", str(caught.value))
    assert ground.startswith(f"{tmp_path / 'ground.yml'}: there is no key MODEL.JIM; ")
    assert all(word in ground for word in ("did you mean MODEL.SIE_CAMERA?", "INPUT.PROB: ", "INPUT.PADDING: "))
    assert ("SOLVER.OPT" in top, "did you mean SOLVER.SEED?" in line, "\n" in str(caught.value)) == (True, True, False)


@pytest.mark.parametrize(
    ("key", "what"),
    [("MODEL", r": it is a block of keys \(MODEL\."), ("SOLVER.STAGE1", ": it is a block"), ("MODEL.NAME.X", "")],
)
def test_a_block_is_no_key_and_a_key_is_no_block(key, what):
    with pytest.raises(ConfigError, match=f"there is no key {key}{what}"):
        load(None, [key, "1"])


def test_an_empty_block_changes_nothing(tmp_path):
    assert from_file(tmp_path, "DATASETS:\nSOLVER:\n  STAGE1:\n") == load()


@pytest.mark.parametrize("overrides", [["SOLVER.SEED"], ["SOLVER.SEED", "1", "OUTPUT_DIR"]])
def test_overrides_come_in_pairs(overrides):
    with pytest.raises(ConfigError, match=f"pairs KEY VALUE; '{overrides[-1]}' is left over"):
        load(None, overrides)


# -------------------------------------------------------------------------------------------------------------- files


def test_later_layers_win(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "ground.yml").write_text("SOLVER: {SEED: 1, MARGIN: 0.1}\nMODEL: {NAME: ViT-L-14}\n")
    (tmp_path / "middle.yml").write_text("BASE: ground.yml\nSOLVER: {SEED: 2, STAGE1: {MAX_EPOCHS: 3}}\n")
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
        ("SOLVER.SEED", "x", "5"),
        ("MODEL.STRIDE_SIZE", [12], "[12, 12]"),
        ("MODEL.USE_SSL", "perhaps", "True"),
        ("DATALOADER.SAMPLER", "softmax", "softmax_triplet"),
        ("SOLVER.STAGE2.SSL_LOSS_WEIGHT", -1, "0.8"),
    ],
)
def test_a_value_counts_only_if_no_later_layer_sets_its_key(tmp_path, key, bad, good):
    (tmp_path / "ground.yml").write_text(yaml.safe_dump(nested(key, bad)))
    (tmp_path / "top.yml").write_text("BASE: ground.yml\nMODEL.SSL_TYPE: SIMCLR\n")
    assert load(tmp_path / "top.yml", [key, good]) == load(None, [key, good])
    with pytest.raises(ConfigError, match=rf"ground\.yml: {key}: invalid value"):
        load(tmp_path / "top.yml")
    with pytest.raises(ConfigError, match=rf"^command line: {key}: invalid value"):
        load(tmp_path / "top.yml", [key, good, key, str(bad)])


def test_an_error_names_the_layer_that_has_it(tmp_path):
    (tmp_path / "ground.yml").write_text("SOLVER: {SEED: x}\n")
    (tmp_path / "top.yml").write_text("BASE: ground.yml\n")
    with pytest.raises(ConfigError, match=r"ground\.yml: SOLVER\.SEED"):
        load(tmp_path / "top.yml")


def test_a_file_that_stands_on_itself_is_refused(tmp_path):
    (tmp_path / "a.yml").write_text("BASE: b.yml\n")
    (tmp_path / "b.yml").write_text("BASE: ./a.yml\n")
    (tmp_path / "self.yml").write_text("BASE: self.yml\n")
    for name in ("a.yml", "self.yml"):
        with pytest.raises(ConfigError, match=rf"{name}: stands on itself through BASE"):
            load(tmp_path / name)


def test_two_files_may_share_a_base(tmp_path):
    # No cycle: the same file twice, but not above itself.
    (tmp_path / "ground.yml").write_text("SOLVER: {SEED: 1}\n")
    (tmp_path / "top.yml").write_text("BASE: ground.yml\n")
    assert load(tmp_path / "top.yml").SOLVER.SEED == load(tmp_path / "top.yml").SOLVER.SEED == 1


def test_files_that_are_no_settings(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yml: No such file"):
        load(tmp_path / "absent.yml")
    (tmp_path / "top.yml").write_text("BASE: absent.yml\n")
    with pytest.raises(ConfigError, match=r"absent\.yml: No such file"):
        load(tmp_path / "top.yml")
    with pytest.raises(ConfigError, match=rf"{tmp_path}: is no plain file"):
        load(tmp_path)
    for text, word in (("a: [1", "is not YAML"), ("- 1\n- 2\n", "holds a list"), ("just words", "holds a str")):
        with pytest.raises(ConfigError, match=word) as caught:
            from_file(tmp_path, text)
        assert "\n" not in str(caught.value)
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match="is not YAML"):
        load(tmp_path / "binary.yml")


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder"])
@pytest.mark.parametrize("base", [False, True])
def test_only_plain_files_are_read(tmp_path, kind, base):
    path = Path(kind) if kind.startswith("/") else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    (tmp_path / "top.yml").write_text(f"BASE: {path}\n")
    with pytest.raises(ConfigError, match=rf"config file {path}: is no plain file"):
        load(tmp_path / "top.yml" if base else path)


REPEATED = "a0: &a0 {x: 1, y: 2}\n"
ABSURD = {
    "mappings": REPEATED + "".join(f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}}}\n" for n in range(1, 60)),
    "merged mappings": REPEATED + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60)),
    "lists": "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)),
    "one long list": f"a: &a [{'1, ' * 1000}1]\nb: [{'*a, ' * 1000}*a]\n",
    "many keys": "".join(f"k{n}: 1\n" for n in range(5000)),
    "a long text": "OUTPUT_DIR: " + 200_000 * "x",
    "a number that Python cannot show": "SOLVER: {SEED: 0x" + 6000 * "f" + "}",
    "deep lists": 40_000 * "[",
    "deep blocks": 400 * "{a: ",
    "a list of itself": "SOLVER: {SEED: &a [*a]}",
    "a mapping of itself": "SOLVER: &a {SEED: *a}",
}


@pytest.mark.parametrize("text", ABSURD.values(), ids=ABSURD)
def test_files_of_absurd_size_are_refused_in_one_line(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        from_file(tmp_path, text)
    message = str(caught.value)
    assert "settings.yml" in message and "\n" not in message and len(message) < 300


def test_an_alias_is_what_it_repeats(tmp_path):
    cfg = from_file(tmp_path, "INPUT: {SIZE_TRAIN: &size [64, 32], SIZE_TEST: *size}\nTEST: &t {RE_RANKING_K1: 3}\n")
    assert cfg.INPUT.SIZE_TRAIN == cfg.INPUT.SIZE_TEST == (64, 32)


# ----------------------------------------------------------------------------------------------- values taken together

CONTRADICTIONS = [
    (["SOLVER.STAGE2.IMS_PER_BATCH", "30"], ["SOLVER.STAGE2.IMS_PER_BATCH 30", "DATALOADER.NUM_INSTANCE 16"]),
    (["DATALOADER.NUM_INSTANCE", "1"], ["MODEL.TRIPLET_LOSS_WEIGHT", "DATALOADER.NUM_INSTANCE 1"]),
    (["SOLVER.STAGE2.IMS_PER_BATCH", "16"], ["MODEL.TRIPLET_LOSS_WEIGHT", "two identities"]),
    (
        ["PROCESSOR.STAGES", "image"],
        [
            *("MODEL.I2T_LOSS_WEIGHT 1.0", "PROCESSOR.STAGES", "MODEL.I2T_LOSS_WEIGHT 0.0", "MODEL.INIT_FROM"),
            "PROCESSOR.UNTRAINED_PROMPTS True",
        ],
    ),
    (
        ["MODEL.SSL_TYPE", "SIMSIAM", "SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY", "True"],
        ["SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY True", "MODEL.SSL_TYPE SIMSIAM has none"],
    ),
    (["SOLVER.STAGE1.LR_MIN", "1"], ["SOLVER.STAGE1.LR_MIN", "SOLVER.STAGE1.BASE_LR"]),
    (
        [
            *("MODEL.ID_LOSS_WEIGHT", "0", "MODEL.TRIPLET_LOSS_WEIGHT", "0", "MODEL.I2T_LOSS_WEIGHT", "0"),
            *("SOLVER.STAGE2.SSL_LOSS_WEIGHT", "0"),
        ],
        ["nothing to train"],
    ),
]


@pytest.mark.parametrize(("overrides", "words"), CONTRADICTIONS)
def test_settings_at_odds_are_refused(overrides, words):
    with pytest.raises(ConfigError) as caught:
        load(None, overrides)
    assert all(word in str(caught.value) for word in ["contradicting settings", *words])


def test_settings_at_odds_are_refused_all_in_one_message():
    overrides = ["SOLVER.STAGE2.IMS_PER_BATCH", "30", "SOLVER.STAGE1.LR_MIN", "1"]
    overrides += ["SOLVER.STAGE2.SSL_LOSS_WEIGHT", "0", "MODEL.ID_LOSS_WEIGHT", "0", "MODEL.I2T_LOSS_WEIGHT", "0"]
    overrides += ["MODEL.TRIPLET_LOSS_WEIGHT", "0"]
    with pytest.raises(ConfigError) as caught:
        load(None, overrides)
    message = str(caught.value)
    assert all(word in message for word in ("NUM_INSTANCE", "nothing to train", "LR_MIN")) and "\n" not in message
    with pytest.raises(ConfigError, match=r"MODEL\.I2T_LOSS_WEIGHT 1\.0 needs trained prompts"):
        load(None, ["PROCESSOR.STAGES", "image"])


def test_what_a_stage_that_does_not_run_would_need_is_no_contradiction():
    cfg = load(None, ["PROCESSOR.STAGES", "prompt", "DATALOADER.NUM_INSTANCE", "7"])
    assert cfg.PROCESSOR.STAGES == ("prompt",)
    cfg = load(None, ["PROCESSOR.STAGES", "image", "MODEL.I2T_LOSS_WEIGHT", "0"])
    assert cfg.PROCESSOR.STAGES == ("image",)
    ignoring = ["MODEL.SSL_TYPE", "SIMSIAM", "SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY", "True"]
    assert load(None, [*ignoring, "PROCESSOR.STAGES", "prompt"]).MODEL.SSL_TYPE == "SIMSIAM"
    assert load(None, [*ignoring, "SOLVER.STAGE2.SSL_LOSS_WEIGHT", "0"]).MODEL.SSL_TYPE == "SIMSIAM"
    assert load(None, ignoring[:2]).MODEL.SSL_TYPE == "SIMSIAM"
    assert load(None, ignoring[2:]).SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY is True


@pytest.mark.parametrize("way", [["MODEL.INIT_FROM", "x.pth"], ["PROCESSOR.UNTRAINED_PROMPTS", "True"]])
def test_the_image_stage_may_have_its_sentences_from_elsewhere(way):
    cfg = load(None, ["PROCESSOR.STAGES", "image", *way])
    assert (cfg.PROCESSOR.STAGES, cfg.MODEL.I2T_LOSS_WEIGHT) == (("image",), 1.0)
    with pytest.raises(ConfigError, match="is not a multiple"):  # the image stage is still checked
        load(None, ["PROCESSOR.STAGES", "image", *way, "SOLVER.STAGE2.IMS_PER_BATCH", "30"])


# ---------------------------------------------------------------------------------------------------------- the result


def test_the_result_is_frozen():
    cfg = load()
    for block, key in ((cfg, "OUTPUT_DIR"), (cfg.MODEL, "NAME"), (cfg.SOLVER.STAGE1, "MAX_EPOCHS")):
        with pytest.raises(AttributeError):
            setattr(block, key, block[key])


def test_loading_leaves_nothing_behind():
    before = copy.deepcopy(to_dict(defaults()))
    first = load(None, ["SOLVER.SEED", "5", "MODEL.STRIDE_SIZE", "[3, 3]"])
    with pytest.raises(ConfigError):
        load(None, ["SOLVER.SEED", "6", "SOLVER.MARGIN", "x"])
    second = load()
    assert (first.SOLVER.SEED, second.SOLVER.SEED) == (5, 1234)
    assert to_dict(defaults()) == to_dict(second) == before
    assert first.MODEL is not second.MODEL


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_files_load_and_survive_a_file(tmp_path, path):
    cfg = load(path)
    tree = to_dict(cfg)
    assert from_dict(tree, where="a checkpoint") == cfg
    written = from_file(tmp_path, yaml.safe_dump(tree))
    assert written == cfg and written.is_frozen()
    assert all(isinstance(value, (bool, int, float, str, list)) for value in leaves(tree).values())


def test_a_saved_configuration_takes_overrides_and_is_checked():
    tree = to_dict(load())
    assert from_dict(tree, ["SOLVER.SEED", "9"], where="x.pth").SOLVER.SEED == 9
    with pytest.raises(ConfigError, match=r"x\.pth: there is no key OLD"):
        from_dict({**tree, "OLD": 1}, where="x.pth")


def test_there_are_files_to_check():
    assert {f"{path.parent.name}/{path.name}" for path in SHIPPED} >= {
        *("base/published.yml", "base/vit.yml", "base/cnn.yml", "base/demo.yml"),
        *(f"{data}/{tower}_base.yml" for data in ("person", "veri", "VehicleID") for tower in ("vit", "cnn")),
        *(f"{data}/{tower}_clipreid.yml" for data in ("person", "veri", "VehicleID") for tower in ("vit", "cnn")),
        *(f"{data}/{tower}_svllreid.yml" for data in ("person", "veri", "VehicleID") for tower in ("vit", "cnn")),
        *("demo/vit_svllreid.yml", "demo/vit_clipreid.yml", "demo/vit_base.yml"),
    }


def test_every_row_explains_its_key_and_allows_its_default():
    assert [row.name for row in ROWS] == list(leaves(to_dict(defaults())))  # each once, in the file's order
    for row in ROWS:
        assert row.meaning.endswith((".", ".)")) and (row.rule is None or row.rule.expected)
        check_value(row.name, row.default)


PUBLISHED_DEFAULTS = {  # wherever the published programs have the key and mean the same by it
    "MODEL.ID_LOSS_WEIGHT": 1.0,
    "MODEL.TRIPLET_LOSS_WEIGHT": 1.0,
    "MODEL.I2T_LOSS_WEIGHT": 1.0,
    "MODEL.SSL_TYPE": "SIMCLR",
    "MODEL.NO_MARGIN": False,
    "MODEL.IF_LABELSMOOTH": True,
    "MODEL.STRIDE_SIZE": (16, 16),
    "MODEL.SIE_COE": 3.0,
    "MODEL.SIE_CAMERA": False,
    "MODEL.SIE_VIEW": False,
    "INPUT.SIZE_TRAIN": (384, 128),
    "INPUT.SIZE_TEST": (384, 128),
    "INPUT.PROB": 0.5,
    "INPUT.RE_PROB": 0.5,
    "INPUT.PADDING": 10,
    "INPUT.PIXEL_MEAN": (0.485, 0.456, 0.406),
    "INPUT.PIXEL_STD": (0.229, 0.224, 0.225),
    "DATASETS.NAMES": "market1501",
    "DATALOADER.NUM_WORKERS": 8,
    "DATALOADER.NUM_INSTANCE": 16,
    "SOLVER.SEED": 1234,
    "SOLVER.MARGIN": 0.3,
    "SOLVER.STAGE1.IMS_PER_BATCH": 64,
    "SOLVER.STAGE1.OPTIMIZER_NAME": "Adam",
    "SOLVER.STAGE1.MAX_EPOCHS": 100,
    "SOLVER.STAGE1.BASE_LR": 3e-4,
    "SOLVER.STAGE1.MOMENTUM": 0.9,
    "SOLVER.STAGE1.WEIGHT_DECAY": 5e-4,
    "SOLVER.STAGE1.WARMUP_EPOCHS": 5,
    "SOLVER.STAGE1.WARMUP_LR_INIT": 0.01,
    "SOLVER.STAGE1.LR_MIN": 1.6e-5,
    "SOLVER.STAGE1.CHECKPOINT_PERIOD": 10,
    "SOLVER.STAGE1.LOG_PERIOD": 100,
    "SOLVER.STAGE1.SSL_LOSS_WEIGHT": 2.0,
    "SOLVER.STAGE1.PROMPT_AUG_SCALE": 0.5,
    "SOLVER.STAGE1.PROMPT_AUG_METHOD": "mask",
    "SOLVER.STAGE2.IMS_PER_BATCH": 64,
    "SOLVER.STAGE2.OPTIMIZER_NAME": "Adam",
    "SOLVER.STAGE2.MAX_EPOCHS": 100,
    "SOLVER.STAGE2.BASE_LR": 3e-4,
    "SOLVER.STAGE2.MOMENTUM": 0.9,
    "SOLVER.STAGE2.LARGE_FC_LR": False,
    "SOLVER.STAGE2.BIAS_LR_FACTOR": 1.0,
    "SOLVER.STAGE2.WEIGHT_DECAY": 5e-4,
    "SOLVER.STAGE2.WEIGHT_DECAY_BIAS": 5e-4,
    "SOLVER.STAGE2.GAMMA": 0.1,
    "SOLVER.STAGE2.STEPS": (40, 70),
    "SOLVER.STAGE2.WARMUP_FACTOR": 0.01,
    "SOLVER.STAGE2.WARMUP_ITERS": 500,
    "SOLVER.STAGE2.SSL_LOSS_WEIGHT": 0.8,
    "SOLVER.STAGE2.CHECKPOINT_PERIOD": 10,
    "SOLVER.STAGE2.LOG_PERIOD": 100,
    "SOLVER.STAGE2.EVAL_PERIOD": 10,
    "TEST.IMS_PER_BATCH": 128,
    "TEST.WEIGHT": "",
    "TEST.NECK_FEAT": "after",
    "TEST.FEAT_NORM": True,
    "TEST.RE_RANKING": False,
    "OUTPUT_DIR": "",
}
# What the published programs do without having a key for it; the rest of their constants are in their formulas.
PUBLISHED_BEHAVIOUR = {
    "MODEL.SIE_TWINS": False,
    "MODEL.SSL_HIDDEN": 4096,
    "MODEL.SSL_OUT": 256,
    "MODEL.INIT_FROM": "",
    "INPUT.TWIN_ERASED_AREA": (0.33, 1 / 3),
    "SOLVER.STAGE1.PROMPT_AUG_TOKENS": "all",
    "SOLVER.STAGE1.TRAIN_PROJECTOR": False,
    "SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY": False,
    "TEST.RE_RANKING_K1": 50,
    "TEST.RE_RANKING_K2": 15,
    "TEST.RE_RANKING_LAMBDA": 0.3,
    "PROCESSOR.STAGES": ("prompt", "image"),
    "PROCESSOR.UNTRAINED_PROMPTS": False,
}
NOT_PUBLISHED = {  # keys that are ours, or of which the published default is of no use here
    *("MODEL.DEVICE", "MODEL.NAME", "MODEL.PRETRAIN", "MODEL.ACTIVATION", "SOLVER.PRECISION"),
    *("DATASETS.ROOT_DIR", "DATASETS.HOLD_OUT", "TEST.SIE", "TEST.PROTOCOL"),
    *("DATASETS.VIEWPOINTS_TRAIN", "DATASETS.VIEWPOINTS_TEST", "DATASETS.VEHICLEID_SIZE", "DATASETS.MSMT17_VAL"),
    *("DATASETS.NOUN", "RESUME", "SOLVER.CHECKPOINT_MINUTES", "SOLVER.CLIP_GRAD_NORM", "SOLVER.DETERMINISTIC"),
    "SOLVER.SYNC_BN",
}


def test_the_defaults_are_the_published_ones():
    cfg = load()
    for right in (PUBLISHED_DEFAULTS, PUBLISHED_BEHAVIOUR):
        assert {key: get(cfg, key) for key in right} == right
    others = set(leaves(to_dict(cfg))) - {*PUBLISHED_DEFAULTS, *PUBLISHED_BEHAVIOUR}
    assert {key for key in others if not key.startswith("DATASETS.SYNTHETIC.")} == NOT_PUBLISHED


PUBLISHED = {  # SVLL-ReID on people: the published file
    "MODEL.NAME": "ViT-B-16",
    "MODEL.PRETRAIN": "openai",
    "MODEL.STRIDE_SIZE": (12, 12),
    "MODEL.SIE_CAMERA": True,
    "MODEL.SIE_VIEW": False,
    "MODEL.SIE_COE": 1.0,
    "MODEL.ID_LOSS_WEIGHT": 0.25,
    "MODEL.TRIPLET_LOSS_WEIGHT": 1.0,
    "MODEL.I2T_LOSS_WEIGHT": 1.0,
    "MODEL.IF_LABELSMOOTH": True,
    "MODEL.NO_MARGIN": False,
    "MODEL.SSL_HIDDEN": 4096,
    "MODEL.SSL_OUT": 256,
    "INPUT.SIZE_TRAIN": (256, 128),
    "INPUT.SIZE_TEST": (256, 128),
    "INPUT.PROB": 0.5,
    "INPUT.RE_PROB": 0.5,
    "INPUT.PADDING": 10,
    "INPUT.PIXEL_MEAN": (0.5, 0.5, 0.5),
    "INPUT.PIXEL_STD": (0.5, 0.5, 0.5),
    "DATALOADER.NUM_INSTANCE": 4,
    "DATALOADER.NUM_WORKERS": 8,
    "SOLVER.SEED": 1234,
    "SOLVER.MARGIN": 0.3,
    "SOLVER.STAGE1.IMS_PER_BATCH": 256,
    "SOLVER.STAGE1.OPTIMIZER_NAME": "Adam",
    "SOLVER.STAGE1.MAX_EPOCHS": 120,
    "SOLVER.STAGE1.BASE_LR": 3.5e-4,
    "SOLVER.STAGE1.WARMUP_LR_INIT": 1e-5,
    "SOLVER.STAGE1.LR_MIN": 1e-6,
    "SOLVER.STAGE1.WARMUP_EPOCHS": 5,
    "SOLVER.STAGE1.WEIGHT_DECAY": 1e-4,
    "SOLVER.STAGE1.SSL_LOSS_WEIGHT": 0.8,
    "SOLVER.STAGE1.PROMPT_AUG_METHOD": "mask",
    "SOLVER.STAGE1.PROMPT_AUG_SCALE": 0.5,
    "SOLVER.STAGE1.LOG_PERIOD": 50,
    "SOLVER.STAGE2.IMS_PER_BATCH": 64,
    "SOLVER.STAGE2.OPTIMIZER_NAME": "Adam",
    "SOLVER.STAGE2.MAX_EPOCHS": 60,
    "SOLVER.STAGE2.BASE_LR": 5e-6,
    "SOLVER.STAGE2.BIAS_LR_FACTOR": 2.0,
    "SOLVER.STAGE2.LARGE_FC_LR": False,
    "SOLVER.STAGE2.WEIGHT_DECAY": 1e-4,
    "SOLVER.STAGE2.WEIGHT_DECAY_BIAS": 1e-4,
    "SOLVER.STAGE2.STEPS": (30, 50),
    "SOLVER.STAGE2.GAMMA": 0.1,
    "SOLVER.STAGE2.WARMUP_FACTOR": 0.1,
    "SOLVER.STAGE2.WARMUP_ITERS": 10,
    "SOLVER.STAGE2.SSL_LOSS_WEIGHT": 0.8,
    "SOLVER.STAGE2.CHECKPOINT_PERIOD": 60,
    "SOLVER.STAGE2.LOG_PERIOD": 50,
    "TEST.IMS_PER_BATCH": 64,
    "TEST.NECK_FEAT": "before",
    "TEST.FEAT_NORM": True,
    "PROCESSOR.STAGES": ("prompt", "image"),
}


def test_the_person_file_is_the_published_recipe():
    cfg = load(FOLDER / "person" / "vit_svllreid.yml")
    assert {key: get(cfg, key) for key in PUBLISHED} == PUBLISHED
    assert cfg.DATASETS.NAMES == "market1501"


def test_the_demo_files_differ_in_what_makes_the_method():
    svll, clip, base = (
        leaves(to_dict(load(FOLDER / "demo" / f"vit_{n}.yml"))) for n in ("svllreid", "clipreid", "base")
    )
    weights = {"SOLVER.STAGE1.SSL_LOSS_WEIGHT", "SOLVER.STAGE2.SSL_LOSS_WEIGHT"}
    assert {key for key in svll if svll[key] != clip[key]} == weights
    assert all(svll[key] > 0 and clip[key] == 0.0 for key in weights)
    different = {key for key in clip if clip[key] != base[key]}
    assert {"MODEL.I2T_LOSS_WEIGHT", "PROCESSOR.STAGES"} <= different
    assert base["MODEL.I2T_LOSS_WEIGHT"] == base["SOLVER.STAGE2.SSL_LOSS_WEIGHT"] == 0.0
    assert base["PROCESSOR.STAGES"] == ["image"]


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
    if pairs != ["RESUME"]:
        assert load(None, parse("", words).overrides) == load(None, pairs)


def test_the_rank_that_a_launcher_passes_on_is_understood(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    for form in ("--local-rank=1", "--local_rank=1"):
        assert parse("", [form, "SOLVER.SEED", "1"]).overrides == ["SOLVER.SEED", "1"]
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(SystemExit):
        parse("", ["--local_rank", "0", "SOLVER.SEED", "1"])
    assert "torchrun --nproc_per_node" in capsys.readouterr().err
