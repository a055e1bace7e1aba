"""Published configuration files: what they mean here, with which numbers, and what is said of keys that are gone."""

import logging
import re
from itertools import cycle
from pathlib import Path

import pytest
import yaml

from configs import ConfigError, from_dict, load, to_dict
from configs.defaults import defaults
from configs.loading import flatten
from configs.published import BASELINE, CLIPREID, DROPPED, FLAT, ONE_VALUE, SELF_SUPERVISION, SWITCHES
from model.build import settle_pixels

ROOT = Path(__file__).resolve().parent.parent
OURS = ROOT / "configs"
THEIRS = ROOT / "tests" / "published"
LANGUAGE, VISION = "SOLVER.STAGE1.SSL_LOSS_WEIGHT", "SOLVER.STAGE2.SSL_LOSS_WEIGHT"
I2T, STAGES = "MODEL.I2T_LOSS_WEIGHT", "PROCESSOR.STAGES"
CLIP = "SOLVER: {STAGE1: {MAX_EPOCHS: 7}}\n"
SVLL = "SOLVER: {STAGE1: {MAX_EPOCHS: 7}}\nMODEL: {SSL_TYPE: SIMCLR}\n"
BASE = "SOLVER: {MAX_EPOCHS: 7}\n"


def flat(cfg) -> dict:
    return dict(flatten(cfg))


def lines(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.partition(".")[0] == "configs"]


@pytest.fixture
def root(tmp_path, caplog):
    """Load a file of this text, which stands on no other; the settings, flat."""
    caplog.set_level(logging.INFO)

    def of(text: str, *overrides: str, above: str = "") -> dict:
        path = tmp_path / "root.yml"
        path.write_text(text, encoding="utf-8")
        if above:
            path = tmp_path / "upper.yml"
            path.write_text("BASE: root.yml\n" + above, encoding="utf-8")
        return flat(load(path, overrides))

    return of


# ----------------------------------------------------------------------------------- the files here, number by number


def table(text: str) -> dict:
    """Dotted keys and values of YAML, with tuples for lists."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in flatten(yaml.safe_load(text))}


DEFAULTS = table("""
MODEL: {ID_LOSS_WEIGHT: 1.0, TRIPLET_LOSS_WEIGHT: 1.0, I2T_LOSS_WEIGHT: 1.0, SSL_TYPE: SIMCLR, NO_MARGIN: False,
  IF_LABELSMOOTH: True, STRIDE_SIZE: [16, 16], SIE_COE: 3.0, SIE_CAMERA: False, SIE_VIEW: False}
INPUT: {SIZE_TRAIN: [384, 128], SIZE_TEST: [384, 128], PROB: 0.5, RE_PROB: 0.5, PADDING: 10,
  PIXEL_MEAN: [0.485, 0.456, 0.406], PIXEL_STD: [0.229, 0.224, 0.225]}
DATASETS: {NAMES: market1501}
DATALOADER: {NUM_WORKERS: 8, NUM_INSTANCE: 16}
SOLVER: {SEED: 1234, MARGIN: 0.3}
SOLVER.STAGE1: {IMS_PER_BATCH: 64, OPTIMIZER_NAME: Adam, MAX_EPOCHS: 100, BASE_LR: 0.0003, MOMENTUM: 0.9,
  WEIGHT_DECAY: 0.0005, WARMUP_EPOCHS: 5, WARMUP_LR_INIT: 0.01, LR_MIN: 0.000016, CHECKPOINT_PERIOD: 10,
  LOG_PERIOD: 100, SSL_LOSS_WEIGHT: 2.0, PROMPT_AUG_SCALE: 0.5, PROMPT_AUG_METHOD: mask}
SOLVER.STAGE2: {IMS_PER_BATCH: 64, OPTIMIZER_NAME: Adam, MAX_EPOCHS: 100, BASE_LR: 0.0003, MOMENTUM: 0.9,
  LARGE_FC_LR: False, BIAS_LR_FACTOR: 1.0, WEIGHT_DECAY: 0.0005, WEIGHT_DECAY_BIAS: 0.0005, GAMMA: 0.1,
  STEPS: [40, 70], WARMUP_FACTOR: 0.01, WARMUP_ITERS: 500, SSL_LOSS_WEIGHT: 0.8, CHECKPOINT_PERIOD: 10,
  LOG_PERIOD: 100, EVAL_PERIOD: 10}
TEST: {IMS_PER_BATCH: 128, WEIGHT: "", NECK_FEAT: after, FEAT_NORM: True, RE_RANKING: False}
OUTPUT_DIR: ""
""")
# What the published programs do without having a key for it.
BEHAVIOUR = table("""
MODEL: {SIE_TWINS: False, SSL_HIDDEN: 4096, SSL_OUT: 256, INIT_FROM: ""}
INPUT: {TWIN_ERASED_AREA: [0.33, 0.3333333333333333]}
SOLVER.STAGE1: {PROMPT_AUG_TOKENS: all, TRAIN_PROJECTOR: False}
SOLVER.STAGE2: {SSL_IGNORE_SAME_IDENTITY: False, SSL_POSITIVES: image}
TEST: {RE_RANKING_K1: 50, RE_RANKING_K2: 15, RE_RANKING_LAMBDA: 0.3, FLIP: False, AQE: False, PRECISION: fp32}
PROCESSOR: {STAGES: [prompt, image], UNTRAINED_PROMPTS: False}
""")
# What other recipes need and these programs have not.
RECIPES = table("""
MODEL: {TRIPLET_FEATURES: all, INIT_CLASSIFIER: random, POOLING: auto, EMBED_DIM: 0, DROP_PATH_RATE: 0.0,
  SEMANTIC_WEIGHT: 0.2, HEADS: all, PROTOTYPE_LOSS_WEIGHT: 0.0, CAMERA_PROXY_LOSS_WEIGHT: 0.0}
INPUT: {JPEG_PROB: 0.0, JPEG_QUALITY: [20, 90], GREY_PROB: 0.0}
SOLVER.STAGE2: {SCHEDULE: steps, LR_MIN_FACTOR: 0.002, LAYER_DECAY: 1.0, MINI_BATCH: 0,
  GRAD_CHECKPOINTING: False, EMA: 0.0, ITERS_PER_EPOCH: 0}
""")
# Keys that are ours, or of which the published default is of no use here: where, on what, which data, how far.
OURS_ALONE = r"""MODEL\.(DEVICE|NAME|PRETRAIN|ACTIVATION)|TEST\.(SIE|PROTOCOL|OTHER_SPLIT|AQE_.*)|RESUME
|DATASETS\.(ROOT_DIR|HOLD_OUT|NOUN)|DATALOADER\.CACHE(_DIR)?
|DATASETS\.(VIEWPOINTS_TRAIN|VIEWPOINTS_TEST|VEHICLEID_SIZE|MSMT17_VAL|SYSU_MODE|REGDB_SPLIT|SYNTHETIC\..*)
|SOLVER\.(PRECISION|CHECKPOINT_MINUTES|CLIP_GRAD_NORM|DETERMINISTIC|SYNC_BN|TF32|COMPILE)
|(SOLVER\.)?CLUSTER\..*|MEMORY\..*""".replace("\n", "")


def test_the_defaults_are_the_published_ones():
    cfg = flat(settle_pixels(load()))
    right = {**DEFAULTS, **BEHAVIOUR, **RECIPES}
    assert {key: cfg[key] for key in right} == right
    others = cfg.keys() - right.keys()
    assert {key for key in others if not re.fullmatch(OURS_ALONE, key)} == set()


SHARED = table("""
MODEL: {PRETRAIN: openai, TRIPLET_LOSS_WEIGHT: 1.0, NO_MARGIN: False, SSL_TYPE: SIMCLR, SSL_HIDDEN: 4096, SSL_OUT: 256,
  SIE_TWINS: False, INIT_FROM: ""}
INPUT: {PROB: 0.5, RE_PROB: 0.5, PADDING: 10, TWIN_ERASED_AREA: [0.33, 0.3333333333333333]}
DATALOADER: {NUM_INSTANCE: 4, NUM_WORKERS: 8}
SOLVER: {SEED: 1234, MARGIN: 0.3}
SOLVER.STAGE2: {OPTIMIZER_NAME: Adam, LARGE_FC_LR: False, BIAS_LR_FACTOR: 2.0, GAMMA: 0.1, WARMUP_ITERS: 10,
  LOG_PERIOD: 50, SSL_IGNORE_SAME_IDENTITY: False, SSL_POSITIVES: image}
TEST: {IMS_PER_BATCH: 64, NECK_FEAT: before, FEAT_NORM: True, FLIP: False, AQE: False, RE_RANKING: False,
  PRECISION: fp32}
PROCESSOR: {UNTRAINED_PROMPTS: False}
""")
PROMPT_STAGE = table("""
SOLVER.STAGE1: {OPTIMIZER_NAME: Adam, BASE_LR: 0.00035, WARMUP_LR_INIT: 0.00001, LR_MIN: 0.000001, WARMUP_EPOCHS: 5,
  WEIGHT_DECAY: 0.0001, LOG_PERIOD: 50, PROMPT_AUG_METHOD: mask, PROMPT_AUG_SCALE: 0.5, PROMPT_AUG_TOKENS: all,
  TRAIN_PROJECTOR: False}
PROCESSOR: {STAGES: [prompt, image]}
MODEL: {I2T_LOSS_WEIGHT: 1.0}
""")
TOWER = {
    "vit": table("""
MODEL: {NAME: ViT-B-16}
INPUT: {PIXEL_MEAN: [0.5, 0.5, 0.5], PIXEL_STD: [0.5, 0.5, 0.5]}
SOLVER.STAGE2: {WARMUP_FACTOR: 0.1, WEIGHT_DECAY: 0.0001, WEIGHT_DECAY_BIAS: 0.0001, MAX_EPOCHS: 60, STEPS: [30, 50]}
"""),
    "cnn": table("""
MODEL: {NAME: RN50}
INPUT: {PIXEL_MEAN: [0.485, 0.456, 0.406], PIXEL_STD: [0.229, 0.224, 0.225]}
SOLVER.STAGE2: {WARMUP_FACTOR: 0.01, WEIGHT_DECAY: 0.0005, WEIGHT_DECAY_BIAS: 0.0005, MAX_EPOCHS: 120, STEPS: [40, 70]}
"""),
}
FOLDER = {
    "person": {"DATASETS.NAMES": "market1501", "INPUT.SIZE_TRAIN": (256, 128), "INPUT.SIZE_TEST": (256, 128)},
    "veri": {"DATASETS.NAMES": "veri", "INPUT.SIZE_TRAIN": (256, 256), "INPUT.SIZE_TEST": (256, 256)},
    "VehicleID": {"DATASETS.NAMES": "VehicleID", "INPUT.SIZE_TRAIN": (256, 256), "INPUT.SIZE_TEST": (256, 256)},
}
ROWS = {  # weight of identities, smoothing, stride, side information (camera, view);
    # prompt stage: batch, epochs, weight of self-supervision; image stage: batch, rate, weight of self-supervision
    "person/cnn_base": (1.0, True, 16, (0, 0), None, (64, 3.5e-4, 0.0)),
    "person/cnn_clipreid": (1.0, True, 16, (0, 0), (64, 60, 0.0), (64, 3.5e-4, 0.0)),
    "person/cnn_svllreid": (1.0, True, 16, (0, 0), (64, 60, 0.8), (64, 3.5e-4, 0.8)),
    "person/vit_base": (1.0, True, 16, (0, 0), None, (64, 5e-6, 0.0)),
    "person/vit_clipreid": (0.25, True, 16, (0, 0), (64, 120, 0.0), (64, 5e-6, 0.0)),
    "person/vit_svllreid": (0.25, True, 12, (1, 0), (256, 120, 0.8), (64, 5e-6, 0.8)),
    "veri/cnn_base": (1.0, True, 16, (0, 0), None, (64, 3.5e-4, 0.0)),
    "veri/cnn_clipreid": (1.0, True, 16, (0, 0), (64, 60, 0.0), (64, 3.5e-4, 0.0)),
    "veri/cnn_svllreid": (1.0, True, 16, (0, 0), (64, 60, 2.0), (64, 3.5e-4, 0.8)),
    "veri/vit_base": (1.0, True, 16, (0, 0), None, (64, 5e-6, 0.0)),
    "veri/vit_clipreid": (0.25, True, 16, (0, 0), (64, 60, 0.0), (64, 5e-6, 0.0)),
    "veri/vit_svllreid": (0.25, True, 12, (1, 1), (64, 60, 2.0), (32, 5e-6, 0.8)),
    "VehicleID/cnn_base": (1.0, False, 16, (0, 0), None, (64, 3.5e-4, 0.0)),
    "VehicleID/cnn_clipreid": (1.0, False, 16, (0, 0), (256, 60, 0.0), (64, 3.5e-4, 0.0)),
    "VehicleID/cnn_svllreid": (1.0, False, 16, (0, 0), (256, 60, 0.8), (64, 3.5e-4, 0.8)),
    "VehicleID/vit_base": (1.0, False, 16, (0, 0), None, (64, 5e-5, 0.0)),
    "VehicleID/vit_clipreid": (0.25, True, 16, (0, 0), (256, 60, 0.0), (64, 5e-5, 0.0)),
    "VehicleID/vit_svllreid": (0.25, True, 12, (0, 0), (64, 60, 0.8), (32, 5e-5, 0.8)),
}


def expected(name: str) -> dict:
    folder, _, file = name.partition("/")
    identity, smoothing, stride, (camera, view), prompt, (batch, rate, vision) = ROWS[name]
    values = {**SHARED, **RECIPES, **TOWER[file[:3]], **FOLDER[folder]}
    values |= {
        "MODEL.ID_LOSS_WEIGHT": identity,
        "MODEL.IF_LABELSMOOTH": smoothing,
        "MODEL.STRIDE_SIZE": (stride, stride),
        "MODEL.SIE_CAMERA": bool(camera),
        "MODEL.SIE_VIEW": bool(view),
        "SOLVER.STAGE2.IMS_PER_BATCH": batch,
        "SOLVER.STAGE2.BASE_LR": rate,
        VISION: vision,
    }
    if camera or view:
        values["MODEL.SIE_COE"] = 1.0
    if prompt is None:
        return values | {STAGES: ("image",), I2T: 0.0, LANGUAGE: 0.0}
    keys = ("SOLVER.STAGE1.IMS_PER_BATCH", "SOLVER.STAGE1.MAX_EPOCHS", LANGUAGE)
    return values | PROMPT_STAGE | dict(zip(keys, prompt, strict=True))


def has(cfg: dict, right: dict, without: str) -> None:
    """All numbers are right, and no key that changes numbers is forgotten: what is not named is one of `without`."""
    assert {key: cfg[key] for key in right} == right
    assert [type(cfg[key]) for key in right] == [type(value) for value in right.values()]
    without += r"|TEST\.(RE_RANKING_.*|WEIGHT)|OUTPUT_DIR|MODEL\.SIE_COE|" + OURS_ALONE
    assert [key for key in cfg if key not in right and not re.fullmatch(without, key)] == []


@pytest.mark.parametrize("name", ROWS)
def test_every_file_has_the_published_numbers(name):
    without = r"SOLVER\.STAGE[12]\.((CHECKPOINT|EVAL)_PERIOD|MOMENTUM)"
    without += r"|SOLVER\.STAGE1\..*" if ROWS[name][4] is None else ""
    has(flat(load(OURS / f"{name}.yml")), expected(name), without)


# TransReID's recipe, which PersonViT and SOLIDER follow.
PERSON_TOWER = table("""
MODEL: {STRIDE_SIZE: [16, 16], SIE_CAMERA: False, SIE_VIEW: False, ID_LOSS_WEIGHT: 1.0, TRIPLET_LOSS_WEIGHT: 1.0,
  I2T_LOSS_WEIGHT: 0.0, NO_MARGIN: True, TRIPLET_FEATURES: last, IF_LABELSMOOTH: False, DROP_PATH_RATE: 0.1}
INPUT: {PIXEL_MEAN: [0.5, 0.5, 0.5], PIXEL_STD: [0.5, 0.5, 0.5]}
SOLVER.STAGE1: {SSL_LOSS_WEIGHT: 0.0}
SOLVER.STAGE2: {IMS_PER_BATCH: 64, OPTIMIZER_NAME: SGD, MOMENTUM: 0.9, MAX_EPOCHS: 120, BASE_LR: 0.0004,
  BIAS_LR_FACTOR: 2.0, WEIGHT_DECAY: 0.0001, WEIGHT_DECAY_BIAS: 0.0001, SCHEDULE: cosine, LR_MIN_FACTOR: 0.002,
  WARMUP_ITERS: 20, WARMUP_FACTOR: 0.01, SSL_LOSS_WEIGHT: 0.0}
PROCESSOR: {STAGES: [image]}
""")
SOLIDER = table("""
MODEL: {STRIDE_SIZE: [32, 32], SEMANTIC_WEIGHT: 0.2}
INPUT: {SIZE_TRAIN: [384, 128], SIZE_TEST: [384, 128]}
SOLVER.STAGE2: {BASE_LR: 0.0002}
""")
PERSON_TOWERS = {
    "personvit_small": {},
    "personvit_base": {},
    "solider_swin_tiny": {**SOLIDER, "SOLVER.STAGE2.BASE_LR": 0.0008},
    "solider_swin_small": SOLIDER,
    "solider_swin_base": SOLIDER,
    "dinov3_base": table("""
MODEL: {NAME: timm/vit_base_patch16_dinov3, PRETRAIN: lvd1689m, POOLING: token+avg}
INPUT: {PIXEL_MEAN: [0.485, 0.456, 0.406], PIXEL_STD: [0.229, 0.224, 0.225]}
SOLVER.STAGE2: {OPTIMIZER_NAME: AdamW, BASE_LR: 0.00005, LAYER_DECAY: 0.75}
"""),
    "swin_isr": table("""
MODEL: {NAME: isr_swin_base, PRETRAIN: weights/isr_swin_base.pth, STRIDE_SIZE: [32, 32]}
INPUT: {SIZE_TRAIN: [224, 224], SIZE_TEST: [224, 224], PIXEL_MEAN: [0.485, 0.456, 0.406],
  PIXEL_STD: [0.229, 0.224, 0.225]}
SOLVER.STAGE2: {BASE_LR: 0.0002}
"""),
}


@pytest.mark.parametrize("name", PERSON_TOWERS)
def test_every_file_of_a_person_tower_has_its_recipe(name):
    weights = {"MODEL.NAME": name, "MODEL.PRETRAIN": f"weights/{name}.pth"}
    right = {**SHARED, **RECIPES, **FOLDER["person"], **PERSON_TOWER, **weights, **PERSON_TOWERS[name]}
    without = r"SOLVER\.STAGE(1\..*|2\.(STEPS|(CHECKPOINT|EVAL)_PERIOD))"
    has(flat(settle_pixels(load(OURS / "person" / f"{name}.yml"))), right, without)


def test_the_rows_are_all_files():
    others = ("base", "demo", "isr", "sysu", "regdb")
    files = (path for path in OURS.glob("*/*.yml") if path.parent.name not in others and path.stem != "vit_pcl")
    names = [*ROWS, *(f"person/{name}" for name in PERSON_TOWERS)]
    assert sorted(names) == sorted(f"{path.parent.name}/{path.stem}" for path in files)
    assert len(ROWS) == 18


PCL_CLIP = table("""
MODEL: {NAME: ViT-B-16, ID_LOSS_WEIGHT: 0.25, PROTOTYPE_LOSS_WEIGHT: 1.0, CAMERA_PROXY_LOSS_WEIGHT: 0.0,
  TRIPLET_LOSS_WEIGHT: 0.0, I2T_LOSS_WEIGHT: 0.0}
INPUT: {SIZE_TRAIN: [256, 128]}
DATALOADER: {NUM_INSTANCE: 8}
PROCESSOR: {STAGES: [image]}
MEMORY: {TEMP: 0.05, MOMENTUM: 0.2}
SOLVER.STAGE2: {OPTIMIZER_NAME: SGD, BASE_LR: 0.00035, WEIGHT_DECAY: 0.0005, WEIGHT_DECAY_BIAS: 0.0005,
  IMS_PER_BATCH: 256, MAX_EPOCHS: 60, ITERS_PER_EPOCH: 200, SSL_LOSS_WEIGHT: 0.0}
""")


def test_pcl_clip_has_its_published_numbers():
    cfg = flat(load(OURS / "person/vit_pcl.yml"))
    assert {key: cfg[key] for key in PCL_CLIP} == PCL_CLIP


@pytest.mark.parametrize("name", sorted(path.relative_to(OURS).as_posix() for path in OURS.glob("*/*.yml")))
def test_our_files_need_no_translation(caplog, name):
    caplog.set_level(logging.INFO)
    cfg = load(OURS / name)
    assert lines(caplog) == []
    # The last epoch is always saved; a period beyond it would look as if something else were.
    assert cfg.SOLVER.STAGE2.CHECKPOINT_PERIOD <= cfg.SOLVER.STAGE2.MAX_EPOCHS


# ------------------------------------------------------------------------------------------------- the published files

# A published file -> ours.
PAIRS = {
    path.stem: f"{folder.replace('vehicleid', 'VehicleID')}/{file.replace('prom', 'clipreid')}"
    for path in sorted(THEIRS.glob("*.yml"))
    for _, folder, file in [path.stem.split("_", maxsplit=2)]
}
# What may differ: where things lie and how often something is saved or looked at ...
NO_NUMBERS = {
    *("DATASETS.NAMES", "DATASETS.ROOT_DIR", "OUTPUT_DIR", "MODEL.SIE_COE"),
    *("SOLVER.STAGE1.CHECKPOINT_PERIOD", "SOLVER.STAGE2.CHECKPOINT_PERIOD"),
}
# ... and, of VehicleID, side information, with which the published file crashes.
CRASHES = {"svllreid_vehicleid_vit_svllreid": {"MODEL.SIE_CAMERA", "MODEL.SIE_VIEW"}}


def test_every_published_file_is_here():
    assert len(PAIRS) == 15
    cfg = load(THEIRS / "svllreid_person_vit_svllreid.yml", ["MODEL.STRIDE_SIZE", "[16, 16]"])
    assert cfg.DATASETS.ROOT_DIR == "/home/author/data" and cfg.MODEL.STRIDE_SIZE == (16, 16)
    assert set(PAIRS.values()) == {name for name in ROWS if not name.endswith("cnn_svllreid")}


@pytest.mark.parametrize("name", PAIRS)
def test_a_published_file_means_what_ours_means(name):
    theirs, ours = flat(load(THEIRS / f"{name}.yml")), flat(load(OURS / f"{PAIRS[name]}.yml"))
    different = {key for key in theirs if theirs[key] != ours[key]} - NO_NUMBERS
    if theirs[STAGES] == ("image",):  # of a stage that does not run, nothing matters
        different = {key for key in different if not key.startswith("SOLVER.STAGE1.")}
    assert different == CRASHES.get(name, set())
    if theirs["MODEL.SIE_CAMERA"]:
        assert theirs["MODEL.SIE_COE"] == ours["MODEL.SIE_COE"] == 1.0


@pytest.mark.parametrize("name", PAIRS)
def test_each_key_of_a_published_file_that_is_not_ours_gets_one_line(caplog, name):
    caplog.set_level(logging.INFO)
    load(THEIRS / f"{name}.yml")
    said = lines(caplog)
    method = int(not name.startswith("svllreid"))
    keys = flat(yaml.safe_load((THEIRS / f"{name}.yml").read_text(encoding="utf-8")))
    known = flat(defaults())
    foreign = [key for key in keys if key not in known and key != "DATASETS"]
    assert all(sum(f" {key} " in line for line in said) == 1 for key in foreign)
    assert len(said) == len(foreign) + method
    assert all(line.startswith(f"{THEIRS / name}.yml: ") and "\n" not in line for line in said)


def test_a_published_file_survives_a_checkpoint_and_a_run_folder(caplog, tmp_path):
    for name in PAIRS:
        cfg = load(THEIRS / f"{name}.yml")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(cfg)), encoding="utf-8")
        caplog.clear()
        assert load(tmp_path / "config.yaml") == cfg == from_dict(to_dict(cfg), where="x.pth")
        assert lines(caplog) == []


# --------------------------------------------------------------------------------------- which method a root file means

SVLLREID, CLIPS, BASELINES = (2.0, 0.8, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)  # weights: language, vision, text
BOTH, ALONE = ("prompt", "image"), ("image",)
SAYS_SSL = [
    *("MODEL.USE_SSL: True", "MODEL.USE_SSL_STAGE1: True", "MODEL.SSL_TYPE: SIMCLR"),
    *("SOLVER.STAGE1.PROMPT_AUG_METHOD: mask", "SOLVER.STAGE1.PROMPT_AUG_SCALE: 0.5"),
    *("SOLVER.STAGE1.SSL_LOSS_WEIGHT: 2.0", "SOLVER.STAGE2.SSL_LOSS_WEIGHT: 0.8", "MODEL.SIE_TWINS: False"),
]
METHODS = [  # the root file, the file above, stages, weights
    ("SOLVER: {MAX_EPOCHS: 7, CENTER_LR: 0.5}\nMODEL: {I2T_LOSS_WEIGHT: 1.0, USE_SSL: True}\n", "", ALONE, BASELINES),
    (BASE + "PROCESSOR: {STAGES: [image]}\n", "", ALONE, BASELINES),
    ("SOLVER: {MAX_EPOCHS: 3, STAGE1: , STAGE2: }\n", "", ALONE, BASELINES),  # an empty block says nothing
    *((f"SOLVER.{stage}.MAX_EPOCHS: 7\n", "", BOTH, CLIPS) for stage in ("STAGE1", "STAGE2")),
    ("SOLVER: {STAGE2: {CENTER_LR: 0.5}}\n", "", BOTH, CLIPS),  # even if only a key that is gone makes it one
    *((f"SOLVER.STAGE{n % 2 + 1}.MAX_EPOCHS: 7\n{said}\n", "", BOTH, SVLLREID) for n, said in enumerate(SAYS_SSL)),
    # Without keys of a stage, a file says nothing of the method.
    *((text, "", BOTH, SVLLREID) for text in ("", "MODEL: {NAME: RN50}\n", "SOLVER:\n  STAGE1:\n")),
    *((text, "", BOTH, SVLLREID) for text in ("TEST: {EVAL: True}\n", "SOLVER: {SEED: 5, PRECISION: fp32}\n")),
    # Only the lowest file that has any does.
    ("MODEL: {NAME: RN50}\n", CLIP, BOTH, CLIPS),
    ("", BASE, ALONE, BASELINES),
    (CLIP, "SOLVER: {STAGE2: {SSL_LOSS_WEIGHT: 0.3}}\n", BOTH, (0.0, 0.3, 1.0)),
    (BASE, "MODEL: {I2T_LOSS_WEIGHT: 0.5}\nPROCESSOR: {STAGES: [prompt, image]}\n", BOTH, (0.0, 0.0, 0.5)),
]


@pytest.mark.parametrize(("text", "above", "stages", "weights"), METHODS)
def test_the_method_is_known_by_the_keys_of_a_root_file(root, caplog, text, above, stages, weights):
    cfg = root(text, above=above)
    assert (cfg[STAGES], (cfg[LANGUAGE], cfg[VISION], cfg[I2T])) == (stages, weights)
    method = [line for line in lines(caplog) if ": read as " in line]
    if weights == SVLLREID:
        assert method == []
    else:
        read_as = BASELINE if "baseline" in method[0] else CLIPREID
        assert len(method) == 1 and all(f"{key} {value}" in method[0] for key, value in read_as.items())


@pytest.mark.parametrize("key", sorted(FLAT))
def test_every_flat_key_makes_a_baseline(root, caplog, key):
    default = flat(load()).get(FLAT[key], "linear")
    cfg = root(yaml.safe_dump({key: list(default) if isinstance(default, tuple) else default}))
    assert (cfg[STAGES], cfg[I2T]) == (ALONE, 0.0)
    assert sum(f": {key} is " in line for line in lines(caplog)) == 1
    assert f": {key} is {'read as ' + FLAT[key] if FLAT[key] in cfg else 'dropped: '}" in "".join(lines(caplog))


def test_the_flat_keys_are_those_of_the_image_stage_and_those_of_self_supervision_are_known():
    ours = {key.removeprefix("SOLVER.STAGE2.") for key in flat(load()) if key.startswith("SOLVER.STAGE2.")}
    gone = {key.removeprefix("SOLVER.STAGE2.") for key in {**DROPPED, **ONE_VALUE} if key.startswith("SOLVER.STAGE2.")}
    others = {key.removeprefix("SOLVER.STAGE2.") for key in RECIPES}
    published = (ours | gone) - {"SSL_LOSS_WEIGHT", "SSL_IGNORE_SAME_IDENTITY", "SSL_POSITIVES"} - others
    assert {key.removeprefix("SOLVER.") for key in FLAT} == published and len(FLAT) == 24
    ssl = {key for key in flat(load()) if re.search(r"SSL|TWIN|PROMPT_AUG|TRAIN_PROJECTOR", key)}
    assert ssl | set(SWITCHES) == SELF_SUPERVISION


@pytest.mark.parametrize(
    ("text", "above", "message"),
    [
        ("SOLVER: {STAGE2: {MAX_EPOCHS: 3}, STEPS: [2]}\n", "", r"root.*SOLVER\.STEPS.*SOLVER\.STAGE2\.MAX_EPOCHS"),
        (BASE, "SOLVER: {GAMMA: 0.2, STAGE1: {MAX_EPOCHS: 3}}\n", r"upper.*SOLVER\.GAMMA.*SOLVER\.STAGE1\.MAX_EPOCHS"),
        ("SOLVER: {MAX_EPOCHS: 3, STAGE2: {CENTER_LR: 0.5}}\n", "", r"SOLVER\.MAX_EPOCHS.*SOLVER\.STAGE2\.CENTER_LR"),
        (BASE + "PROCESSOR: {STAGES: [prompt, image]}\n", "", r"SOLVER\.MAX_EPOCHS.*PROCESSOR\.STAGES"),
    ],
)
def test_a_file_has_keys_of_one_tree(root, text, above, message):
    with pytest.raises(ConfigError, match=message):
        root(text, above=above)


# ------------------------------------------------------------------------------------------------------------- switches


@pytest.mark.parametrize(("switch", "key"), [("MODEL.USE_SSL", VISION), ("MODEL.USE_SSL_STAGE1", LANGUAGE)])
@pytest.mark.parametrize("no", ["False", "'no'", "off"])
def test_a_switch_beats_a_weight_in_its_file(root, caplog, switch, key, no):
    cfg = root(f"{switch}: {no}\n{key}: 0.7\n")
    assert cfg[key] == 0.0 and cfg[{VISION: LANGUAGE, LANGUAGE: VISION}[key]] > 0
    said = [line.partition(": ")[2] for line in lines(caplog)]
    assert said[-1] == f"{switch} False is read as {key} 0.0"
    left = ["SOLVER.STAGE1.SSL_LOSS_WEIGHT stays 2.0; MODEL.USE_SSL_STAGE1 False switches it off"]
    assert said[:-1] == (left if switch == "MODEL.USE_SSL" else [])
    assert root(f"{key}: 0.7\n", above=f"{switch}: {no}\n{key}: 0.6\n")[key] == 0.0


def test_true_changes_nothing_by_itself(root, caplog):
    for text in ("SOLVER: {STAGE1: {SSL_LOSS_WEIGHT: 0.0}, STAGE2: {SSL_LOSS_WEIGHT: 0.0}}\n", CLIP, BASE):
        cfg = root(text, "MODEL.USE_SSL", "True", "MODEL.USE_SSL_STAGE1", "on")
        assert (cfg[LANGUAGE], cfg[VISION]) == (0.0, 0.0)  # no switch has set them to 0.0
        assert f"changes nothing: {LANGUAGE} is 0.0" in lines(caplog)[-1]


OFF = "MODEL: {USE_SSL: False, USE_SSL_STAGE1: False}\n"
BACK = [  # the root file, the file above, the command line, the weight of the vision self-supervision
    (OFF, "", "MODEL.USE_SSL True", 0.8),  # the default
    (OFF + "SOLVER.STAGE2.SSL_LOSS_WEIGHT: 0.3\n", "", "MODEL.USE_SSL True", 0.3),
    (OFF + "SOLVER.STAGE2.SSL_LOSS_WEIGHT: 0.0\n", "", "MODEL.USE_SSL True", 0.8),
    ("SOLVER.STAGE2.SSL_LOSS_WEIGHT: 0.3\n", OFF, "MODEL.USE_SSL yes", 0.3),
    (OFF, "SOLVER.STAGE2.SSL_LOSS_WEIGHT: 0.4\n", "MODEL.USE_SSL True", 0.4),
    (OFF, "SOLVER.STAGE2.SSL_LOSS_WEIGHT: 0.0\n", "MODEL.USE_SSL True", 0.0),
    (OFF, "MODEL.USE_SSL: True\n", "", 0.8),
    (OFF, "", f"{VISION} 0.5", 0.5),
    (OFF, "", f"{VISION} 0.5 MODEL.USE_SSL False", 0.0),
    (OFF, "", f"{VISION} 0.5 MODEL.USE_SSL off MODEL.USE_SSL on", 0.5),
    (OFF, "", f"MODEL.USE_SSL True {VISION} 0.5", 0.5),
    (OFF, "", f"{VISION} 0 MODEL.USE_SSL True", 0.0),
    (OFF, "", "MODEL.USE_SSL_STAGE1 True", 0.0),
    (SVLL, "", "MODEL.USE_SSL False", 0.0),
    (SVLL, "", f"{VISION} 0 MODEL.USE_SSL True", 0.0),
]


@pytest.mark.parametrize(("text", "above", "words", "weight"), BACK)
def test_a_later_layer_takes_a_switch_back(root, text, above, words, weight):
    assert root(text, *words.split(), above=above)[VISION] == weight


def test_a_checkpoint_remembers_its_weight():
    tree = to_dict(load(None, [VISION, "0.6"]))
    words = [VISION, "0", "MODEL.USE_SSL", "False", "MODEL.USE_SSL", "True"]
    assert flat(from_dict(tree, words, where="x.pth"))[VISION] == 0.6


# --------------------------------------------------------------------------------------------------- keys that are gone


def test_no_key_is_both_gone_and_here():
    assert not set(flat(load())) & {*DROPPED, *ONE_VALUE, *SWITCHES, *FLAT}
    assert len(DROPPED) == 29 and not set(DROPPED) & set(ONE_VALUE)


@pytest.mark.parametrize(("key", "value"), list(zip(DROPPED, cycle(["no", None, [1, 2]]), strict=False)))
def test_a_key_that_is_gone_is_dropped_wherever_it_stands(root, caplog, key, value):
    # (The first file has a key of self-supervision, so that a SOLVER block does not make it CLIP-ReID's.)
    gone, first = yaml.safe_dump({key: value}), SAYS_SSL[2] + "\n"
    for text, above, words, where in (
        (first + gone, "", (), "root.yml"),
        ("SOLVER: {SEED: 1234}\n", first + gone, (), "upper.yml"),
        (first, "", (key, str(value)), "command line"),
    ):
        caplog.clear()
        assert root(text, *words, above=above) == flat(load())
        (line,) = lines(caplog)
        assert where in line and line.endswith(f": {key} is dropped: {DROPPED[key]}")


@pytest.mark.parametrize("key", [*ONE_VALUE, "SOLVER.WARMUP_METHOD"])
def test_a_key_that_had_an_effect_has_one_value(root, caplog, key):
    right, _ = ONE_VALUE[FLAT.get(key, key)]
    for value in (right, f"('{right}')"):
        caplog.clear()
        root(yaml.safe_dump({key: value}))
        assert sum(f"root.yml: {key} is dropped" in line for line in lines(caplog)) == 1
    load(None, [key, right])
    assert f"command line: {key} is dropped" in lines(caplog)[-1]
    words = rf"{re.escape(key)}: invalid value 'other', expected {right}"
    with pytest.raises(ConfigError, match=r"root\.yml: " + words):
        root(yaml.safe_dump({key: "other"}))
    with pytest.raises(ConfigError, match="command line: " + words):
        load(None, [key, "other"])


OTHERS = [
    ("TransReID", "MODEL: {JPM: True, RE_ARRANGE: True, SHIFT_NUM: 5}\n", ["MODEL.JPM", "MODEL.RE_ARRANGE"]),
    ("TransReID", "MODEL: {TRANSFORMER_TYPE: vit_base_patch16_224_TransReID}\n", ["MODEL.TRANSFORMER_TYPE"]),
    ("SOLIDER", "MODEL: {PRETRAIN_HW_RATIO: 2, SEMANTIC_WEIGHT: 0.2}\n", ["MODEL.PRETRAIN_HW_RATIO"]),
    ("SOLIDER", "MODEL: {TRANSFORMER_TYPE: 'swin_base_patch4_window7_224'}\n", ["MODEL.TRANSFORMER_TYPE"]),
    ("fast-reid", "MODEL: {BACKBONE: {DEPTH: 50x}}\nSOLVER: {OPT: SGD}\n", ["MODEL.BACKBONE.DEPTH"]),
    ("fast-reid", "_BASE_: ../Base-bagtricks.yml\n", ["_BASE_"]),
]


@pytest.mark.parametrize(("program", "text", "keys"), OTHERS)
def test_files_of_other_programs_are_told_by_their_keys(root, program, text, keys):
    with pytest.raises(ConfigError, match=rf"root\.yml: has keys of {program} .*not supported") as caught:
        root(text + "SOLVER.MAX_EPOCHS: 7\n")  # flat keys, as theirs
    assert all(key in str(caught.value) for key in keys) and "did you mean" not in str(caught.value)
    assert ("configs/person/" in str(caught.value)) == (program != "fast-reid")


def test_a_checkpoint_has_our_keys_only():
    tree = to_dict(load())
    for key in ("DEVICE_ID", "USE_SSL"):
        with pytest.raises(ConfigError, match=rf"x\.pth: there is no key MODEL\.{key}"):
            from_dict({**tree, "MODEL": {**tree["MODEL"], key: "0"}}, where="x.pth")
    old = {"SOLVER": {"STAGE2": {"MAX_EPOCHS": 7}}}  # a configuration of ours says no method by what it lacks
    assert flat(from_dict(old, where="x.pth"))[VISION] == 0.8
    assert from_dict(tree, ["MODEL.DEVICE_ID", "0"], where="x.pth") == load()


# ------------------------------------------------------------------------------------------- flat keys in later layers


def test_a_flat_key_on_the_command_line_of_a_baseline(root, caplog):
    cfg = root(BASE, "SOLVER.MAX_EPOCHS", "5", "SOLVER.STEPS", "(2, 3)", "SOLVER.LR_MIN", "1")
    assert (cfg["SOLVER.STAGE2.MAX_EPOCHS"], cfg["SOLVER.STAGE2.STEPS"]) == (5, (2, 3))
    assert cfg["SOLVER.STAGE1.MAX_EPOCHS"] == 100 and cfg["SOLVER.STAGE1.LR_MIN"] == 1.6e-5
    assert [" ".join(line.split()[2:6]) for line in lines(caplog) if line.startswith("command line: ")] == [
        *("SOLVER.MAX_EPOCHS is read as", "SOLVER.STEPS is read as", "SOLVER.LR_MIN is dropped: published")
    ]
    assert root(BASE, above="SOLVER: {MAX_EPOCHS: 6}\n")["SOLVER.STAGE2.MAX_EPOCHS"] == 6
    tree = to_dict(load(OURS / "person" / "vit_base.yml"))
    single = [STAGES, "image", I2T, "0"]
    words = ["SOLVER.MAX_EPOCHS", "3"]
    for cfg in (from_dict(tree, words, where="x.pth"), load(None, [*single, *words])):
        assert cfg.SOLVER.STAGE2.MAX_EPOCHS == 3
    assert load(None, ["SOLVER.CENTER_LR", "0.1"]) == load()  # is gone from both stages


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("MAX_EPOCHS", "expected SOLVER.STAGE1.MAX_EPOCHS or SOLVER.STAGE2.MAX_EPOCHS"),
        ("WARMUP_EPOCHS", "expected SOLVER.STAGE1.WARMUP_EPOCHS"),
        ("STEPS", "expected SOLVER.STAGE2.STEPS"),
    ],
)
def test_a_flat_key_where_two_stages_run_is_ambiguous(root, key, meant):
    with pytest.raises(ConfigError, match=rf"command line: SOLVER\.{key} .*{meant}$"):
        load(None, [f"SOLVER.{key}", "5"])
    with pytest.raises(ConfigError, match=rf"upper\.yml: SOLVER\.{key} .*{meant}$"):
        root(CLIP, above=f"SOLVER: {{{key}: 5}}\n")
    with pytest.raises(ConfigError, match=f"{meant}$"):
        load(None, [STAGES, "prompt", f"SOLVER.{key}", "5"])
