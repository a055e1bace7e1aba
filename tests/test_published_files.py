"""Files of whole networks: published layouts, starting a training from a file, converting there and back."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import builders
import pytest
import torch

import test_svllreid
import train_svllreid
from configs import load, to_dict
from model import build
from model.build import load_model, make_model, settle_architecture
from model.pretrained import load_clip
from model.published import GRIDS
from model.published_network import describe
from model.towers import find_tower
from model.weights import plan_reuse, read_weights
from tools import convert_checkpoint
from tools.demo.render import rendered_benchmark
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.errors import UserError, WeightsError
from utils.fingerprint import data_fingerprint

DEMO = "configs/demo/vit_svllreid.yml"


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """Settings of a small rendered data set."""
    return [
        *("DATASETS.ROOT_DIR", str(tmp_path_factory.mktemp("data")), "DATASETS.SYNTHETIC.TRAIN_IDENTITIES", "12"),
        *("DATASETS.SYNTHETIC.TRAIN_IMAGES", "4", "DATASETS.SYNTHETIC.TEST_IDENTITIES", "4"),
        *("DATASETS.SYNTHETIC.TEST_IMAGES", "6", "SOLVER.STAGE2.IMS_PER_BATCH", "16", "MODEL.DEVICE", "cpu"),
        *("SOLVER.STAGE1.MAX_EPOCHS", "2", "SOLVER.STAGE2.MAX_EPOCHS", "2", "SOLVER.STAGE1.IMS_PER_BATCH", "16"),
    ]


@pytest.fixture(scope="module")
def ours(data, tmp_path_factory) -> Path:
    """A checkpoint of a network in which no tensor is what a fresh one has."""
    return saved(tmp_path_factory.mktemp("ours") / "ours.pth", data)


def saved(path: Path, data: list[str], *overrides: str, config: str = DEMO) -> Path:
    cfg = load(config, [*data, *overrides])
    torch.manual_seed(1)
    benchmark = rendered_benchmark(cfg)
    model = make_model(cfg, benchmark)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.add_(0.02 * torch.rand_like(value))
            else:
                value.fill_(7)
            assert name
    facts = {"architecture": model.architecture, "fingerprint": {"data_fingerprint": data_fingerprint(benchmark)}}
    save_checkpoint(path, {"model": model.state_dict(), "config": to_dict(cfg), **facts})
    return path


@pytest.fixture(scope="module")
def published(ours, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "published.pth"
    convert_checkpoint.main([str(ours), str(path)])
    return path


def evaluated(folder: Path, *words: str) -> dict:
    test_svllreid.main([*words, "OUTPUT_DIR", str(folder)])
    return json.loads((folder / "results.json").read_text())["evaluations"][-1]


# ----------------------------------------------------------------------------------------------------------- converting


def test_there_and_back_is_exact(ours, published, data, tmp_path):
    back = tmp_path / "back.pth"
    convert_checkpoint.main([str(published), str(back), "--config_file", DEMO, *data])
    first, again = read_checkpoint(ours), read_checkpoint(back)
    assert same(first["model"], again["model"])
    assert first["architecture"] == again["architecture"]
    assert same(dict(load_model(back).state_dict()), dict(load_model(ours).state_dict()))
    twice = tmp_path / "twice.pth"
    convert_checkpoint.main([str(back), str(twice)])
    bare, repeated = (torch.load(path, weights_only=True) for path in (published, twice))
    assert list(bare) == list(repeated) and same(bare, repeated)


def test_nothing_is_overwritten(ours, published):
    before = published.read_bytes()
    with pytest.raises(UserError, match=r"published\.pth: exists"):
        convert_checkpoint.main([str(ours), str(published)])
    assert published.read_bytes() == before


def test_an_activation_that_the_layout_cannot_say_is_refused(ours, tmp_path):
    contents = read_checkpoint(ours)
    contents["architecture"]["activation"] = "gelu"
    save_checkpoint(tmp_path / "gelu.pth", contents)
    with pytest.raises(WeightsError, match=r"gelu\.pth: its activation is gelu"):
        convert_checkpoint.main([str(tmp_path / "gelu.pth"), str(tmp_path / "x.pth")])
    assert not (tmp_path / "x.pth").exists()


# -------------------------------------------------------------------------------------------------------------- testing


def test_a_published_file_scores_as_ours(ours, published, data, tmp_path, capsys):
    wanted = evaluated(tmp_path / "ours", "TEST.WEIGHT", str(ours))
    got = evaluated(tmp_path / "published", "--config_file", DEMO, *data, "TEST.WEIGHT", str(published))
    said = capsys.readouterr().out
    assert (got["mAP"], got["rank1"], got["seed"]) == (wanted["mAP"], wanted["rank1"], None)
    assert "image tower, side information, batch-norm necks\n" in said
    assert "identity classifiers, text tower, prompts, image projector, text projector\n" in said


def test_testing_needs_neither_training_images_nor_what_only_training_uses(published, ours, data, tmp_path):
    cfg = load(DEMO, data)
    folder = Path(rendered_benchmark(cfg).train[0].path).parents[1]
    shutil.copytree(folder, tmp_path / "Market-1501", ignore=shutil.ignore_patterns("bounding_box_train"))
    words = ["DATASETS.NAMES", "market1501", "DATASETS.ROOT_DIR", str(tmp_path), "TEST.SIE", "same"]
    wanted = evaluated(tmp_path / "1", "TEST.WEIGHT", str(ours))["mAP"]
    assert evaluated(tmp_path / "2", "TEST.WEIGHT", str(ours), *words)["mAP"] == wanted
    kept = {
        name: value
        for name, value in torch.load(published, weights_only=True).items()
        if not name.startswith(("classifier", "prompt_learner", "text_", "image_mlp"))
    }
    torch.save(kept, tmp_path / "kept.pth")
    got = evaluated(tmp_path / "3", "--config_file", DEMO, *data, *words, "TEST.WEIGHT", str(tmp_path / "kept.pth"))
    assert got["mAP"] == wanted
    features_only = load_model(tmp_path / "kept.pth", cfg)
    assert features_only.heads[0].classifier is None and features_only.text is None


def changed(path: Path, to: Path, change) -> str:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, to)
    return str(to)


def without(*names: str):
    return lambda state: [state.pop(name) for name in names]


def having(name, value):
    """Another tensor, or what becomes of the one that is there."""
    return lambda state: state.update({name: value(state[name]) if callable(value) else value})


ONE, PROJ, POSITIONS = torch.zeros(1), "image_encoder.proj", "image_encoder.positional_embedding"
AS_TRAINED = ["cv_embed", "MODEL.SIE_CAMERA", "MODEL.SIE_VIEW"]


@pytest.mark.parametrize(
    ("change", "overrides", "named"),
    [
        (without("image_encoder.ln_post.weight"), "", ["image_encoder.ln_post.weight"]),
        (without("bottleneck.running_var"), "", ["bottleneck.running_var", "MODEL.NAME"]),
        (having(PROJ, lambda x: x[:, :-1].clone()), "", [PROJ, "[96, 127]", "[96, 128]", "MODEL.NAME"]),
        (having("image_encoder.x", ONE), "", ["image_encoder.x"]),
        (having("centers", ONE), "", ["centers"]),
        (having("cv_embed", lambda x: x[:1].clone()), "MODEL.SIE_VIEW True", [*AS_TRAINED, "1 rows"]),
        (without("cv_embed"), "", AS_TRAINED),
        (without(), "MODEL.NAME RN50", ["MODEL.NAME RN50", "transformer"]),
        (without(), "MODEL.NAME ViT-B-32", ["image_encoder.", "MODEL.NAME"]),
        (
            having(POSITIONS, torch.zeros(7, 96)),
            "",
            [POSITIONS, "[7, 96]", "10 x 5", "SIZE_TRAIN", "STRIDE_SIZE"],
        ),
        (without(), "MODEL.ACTIVATION gelu", ["MODEL.ACTIVATION gelu", "quick_gelu"]),
        (having("bottleneck.weight", lambda x: x.long()), "", ["bottleneck.weight", "int64"]),
        (having(PROJ, lambda x: x.fill_(torch.nan)), "", [PROJ, "finite"]),
        (having("epoch", 3), "", ["'epoch'"]),
        (having(7, ONE), "", ["7 is a Tensor"]),
    ],
)
def test_what_does_not_fit_is_named_with_the_setting_to_change(published, data, tmp_path, change, overrides, named):
    weight = changed(published, tmp_path / "x.pth", change)
    with pytest.raises(WeightsError, match=r"x\.pth") as caught:
        evaluated(tmp_path, "--config_file", DEMO, *data, *overrides.split(), "TEST.WEIGHT", weight)
    assert [word for word in named if word not in str(caught.value)] == []
    assert not (tmp_path / "results.json").exists()


def test_a_table_of_side_information_is_left_out_only_on_request(published, data, tmp_path):
    without = tmp_path / "without.yml"
    without.write_text(f"BASE: {Path(DEMO).resolve()}\nMODEL: {{SIE_CAMERA: False}}\n")
    words = [*data, "TEST.WEIGHT", str(published)]
    with pytest.raises(WeightsError, match=r"cv_embed, of 6 rows, .*MODEL\.SIE_CAMERA"):
        evaluated(tmp_path, "--config_file", str(without), *words)
    assert evaluated(tmp_path, "--config_file", str(without), *words, "MODEL.SIE_CAMERA", "False")["mAP"] > 0
    assert evaluated(tmp_path, "--config_file", DEMO, *words, "MODEL.SIE_CAMERA", "False")["mAP"] > 0


def test_positions_are_resized_only_on_request(published, data, tmp_path, capsys, monkeypatch):
    wide = tmp_path / "wide.yml"
    wide.write_text(f"BASE: {Path(DEMO).resolve()}\nMODEL: {{STRIDE_SIZE: [8, 8]}}\n")
    words = [*data, "TEST.WEIGHT", str(published)]
    with pytest.raises(WeightsError, match=r"embedding is \[51, 96\], not \[33, 96\] \(8 x 4\); INPUT\.SIZE_TRAIN and"):
        evaluated(tmp_path, "--config_file", str(wide), *words)
    monkeypatch.setitem(GRIDS, 50, ((10, 5), "the demo's settings"))
    with pytest.raises(WeightsError, match=r"\[51, 96\] \(10 x 5 positions\), such as the demo's settings give, not"):
        evaluated(tmp_path, "--config_file", str(wide), *words)
    found = evaluated(tmp_path, "--config_file", DEMO, *words, "MODEL.STRIDE_SIZE", "[8, 8]")
    assert found["network"]["stride"] == [8, 8]
    assert "TEST.WEIGHT: resized from 10 x 5 to 8 x 4: position table" in capsys.readouterr().out
    found = evaluated(tmp_path, "--config_file", DEMO, *words, "INPUT.SIZE_TRAIN", "[32, 64]")  # 50 positions, too
    assert "TEST.WEIGHT: resized from 10 x 5 to 5 x 10: position table" in capsys.readouterr().out


def test_a_grid_that_nobody_knows_is_not_guessed(published, data, tmp_path):
    words = ["--config_file", DEMO, *data]
    for key, value in (("MODEL.STRIDE_SIZE", "[8, 8]"), ("INPUT.SIZE_TRAIN", "[32, 64]")):  # 33 positions, 50 positions
        with pytest.raises(WeightsError, match="50 positions"):
            evaluated(tmp_path, *words, "TEST.WEIGHT", str(published), key, value)
    convert_checkpoint.main([str(published), str(tmp_path / "copy.pth"), *words])
    found = evaluated(tmp_path, "TEST.WEIGHT", str(tmp_path / "copy.pth"), "INPUT.SIZE_TRAIN", "[32, 64]")
    assert found["network"]["image_size"] == [32, 64]


def test_a_published_file_needs_a_configuration(published, tmp_path):
    with pytest.raises(WeightsError, match="is a published file, which does not say its image size and stride"):
        load_model(published)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth: is neither a checkpoint of this program .* nor a published"):
        load_model(tmp_path / "other.pth")


# ------------------------------------------------------------------------------------------------- starting from a file


def started(data, benchmark=None, *, config: str = DEMO, requested=(), **overrides):
    words = [word for key, value in overrides.items() for word in (key.replace("__", "."), value)]
    cfg = load(config, [*data, *words])
    return make_model(cfg, benchmark or rendered_benchmark(cfg), requested=requested)


@pytest.mark.parametrize("kind", ["ours", "published"])
def test_everything_is_taken_where_everything_fits(ours, published, data, kind, caplog, monkeypatch):
    monkeypatch.setattr(build, "load_clip", lambda *_: pytest.fail("CLIP's own weights are not needed"))
    with caplog.at_level(logging.INFO):
        model = started(data, MODEL__INIT_FROM=str(ours if kind == "ours" else published))
    assert same(dict(model.state_dict()), read_checkpoint(ours)["model"])
    assert model.prompts.trained
    parts = "image tower, side information, batch-norm necks, identity classifiers, text tower, 12 prompts"
    assert f"MODEL.INIT_FROM: loaded: {parts}, image projector, text projector" in caplog.messages


def other_identities(data, count: int = 10):
    benchmark = rendered_benchmark(load(DEMO, data))
    return replace(benchmark, train=tuple(sample for sample in benchmark.train if sample.pid < count))


def test_another_training_set_has_classifiers_and_prompts_of_its_own(ours, data, tmp_path, caplog):
    ours = with_changes(ours, tmp_path / "unknown.pth", fingerprint={})  # where only numbers can be compared
    fewer = other_identities(data)
    with caplog.at_level(logging.INFO):
        model = started(data, fewer, MODEL__INIT_FROM=str(ours))
    file = read_checkpoint(ours)["model"]
    state = model.state_dict()
    anew = {name for name in state if name not in file or not torch.equal(state[name], file[name])}
    prompts = {f"prompts.{name}" for name in ("context", "prefix", "suffix")}
    assert anew == {*(f"heads.{n}.classifier.weight" for n in (0, 1)), *prompts}
    assert not model.prompts.trained and len(model.prompts.context) == 10
    anew = "not needed (of 12 identities, here are 10; new): identity classifiers, prompts"
    assert f"MODEL.INIT_FROM: {anew}" in caplog.messages

    only_images = {"MODEL__INIT_FROM": str(ours), "PROCESSOR__STAGES": "image"}
    with pytest.raises(WeightsError, match=r"no prompts for these 10 identities \(of 12"):
        started(data, fewer, **only_images)
    assert not started(data, fewer, **only_images, PROCESSOR__UNTRAINED_PROMPTS="yes").prompts.trained
    vehicles = replace(rendered_benchmark(load(DEMO, data)), template="A photo of a {} vehicle.")
    plan = plan_reuse(read_weights(ours), {**read_checkpoint(ours)["architecture"], "template": vehicles.template})
    assert plan.prompts_anew and "'A photo of a {} person.'" in plan.spare["prompts"]


def test_a_baselines_file_takes_the_text_side_from_clip(data, tmp_path, caplog):
    path = saved(tmp_path / "base.pth", data, config="configs/demo/vit_base.yml")
    fresh = started(data)
    with caplog.at_level(logging.INFO):
        model = started(data, MODEL__INIT_FROM=str(path))
    file, state = read_checkpoint(path)["model"], model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in file.items())
    assert same(dict(model.text.state_dict()), dict(fresh.text.state_dict()))
    assert torch.equal(model.prompts.prefix, fresh.prompts.prefix) and not model.prompts.trained
    assert "MODEL.INIT_FROM: not in the file, taken from MODEL.PRETRAIN rendered: text tower" in caplog.messages
    with pytest.raises(WeightsError, match=r"has no prompts for these 12 identities \(none at all\)"):
        started(data, MODEL__INIT_FROM=str(path), PROCESSOR__STAGES="image")


def test_side_information_follows_the_cameras(ours, data, caplog):
    more = rendered_benchmark(load(DEMO, data))
    more = replace(more, train=(*more.train, more.train[0]._replace(camid=8)))
    with caplog.at_level(logging.INFO):
        model = started(data, more, MODEL__INIT_FROM=str(ours))
    assert model.image.side.table.shape == (9, 96)
    assert "MODEL.INIT_FROM: not needed (of 6 rows, here are 9; new): side information" in caplog.messages
    assert started(data, MODEL__INIT_FROM=str(ours), MODEL__SIE_CAMERA="False").image.side is None


def test_sizes_and_heads_that_differ_are_refused_or_resized(ours, data):
    with pytest.raises(WeightsError, match=r"10 x 5 .*8 x 4.*INPUT\.SIZE_TRAIN and MODEL"):
        started(data, MODEL__INIT_FROM=str(ours), MODEL__STRIDE_SIZE="[8, 8]")
    asked = {"MODEL__STRIDE_SIZE": "[8, 8]", "requested": ["MODEL.STRIDE_SIZE"]}
    assert started(data, MODEL__INIT_FROM=str(ours), **asked).image.visual.positional_embedding.shape == (33, 96)
    for change, words in (
        ({"MODEL__SSL_OUT": "32"}, r"image_projector.6.weight .*MODEL.SSL_TYPE"),
        ({"MODEL__SSL_TYPE": "SIMSIAM"}, r"image projector: .*MODEL\.SSL_TYPE"),
        ({"MODEL__ACTIVATION": "gelu"}, r"MODEL.ACTIVATION gelu: .*quick_gelu"),
        ({"MODEL__NAME": "RN50", "MODEL__SIE_CAMERA": "no"}, r"image tower: .*MODEL\.NAME"),
    ):
        with pytest.raises(WeightsError, match=words):
            started(data, MODEL__INIT_FROM=str(ours), **change)


def with_changes(path: Path, to: Path, **changes) -> Path:
    save_checkpoint(to, {**{k: v for k, v in read_checkpoint(path).items() if k != "format"}, **changes})
    return to


def test_the_same_number_of_other_identities_is_another_training_set(ours, published, data, tmp_path, caplog):
    here = data_fingerprint(rendered_benchmark(load(DEMO, data)))
    same_data = with_changes(ours, tmp_path / "same.pth", fingerprint={"data_fingerprint": here})
    other = with_changes(ours, tmp_path / "other.pth", fingerprint={"data_fingerprint": {**here, "train": "0" * 16}})
    only_images = {"PROCESSOR__STAGES": "image"}
    assert started(data, MODEL__INIT_FROM=str(same_data), **only_images).prompts.trained
    assert not any("does not say what it was trained on" in line for line in caplog.messages)
    with pytest.raises(WeightsError, match=r"has no prompts for these 12 identities \(trained on other images"):
        started(data, MODEL__INIT_FROM=str(other), **only_images)
    model = started(data, MODEL__INIT_FROM=str(other))
    file = read_checkpoint(ours)["model"]
    assert not torch.equal(model.heads[0].classifier.weight, file["heads.0.classifier.weight"])
    started(data, MODEL__INIT_FROM=str(published), **only_images)
    assert any("does not say what it was trained on" in line for line in caplog.messages)


def test_prompts_that_nobody_trained_stay_untrained_in_a_file(ours, data, tmp_path):
    untrained = with_changes(ours, tmp_path / "untrained.pth", prompts_trained=False)
    with pytest.raises(WeightsError, match=r"has no prompts for these 12 identities \(never trained"):
        started(data, MODEL__INIT_FROM=str(untrained), PROCESSOR__STAGES="image")


def test_a_file_may_lack_a_whole_part_but_not_half_of_it(published, data, tmp_path, caplog):
    whole = changed(published, tmp_path / "whole.pth", lambda state: state.pop("cv_embed"))
    with caplog.at_level(logging.INFO):
        started(data, MODEL__INIT_FROM=whole)
    assert "MODEL.INIT_FROM: not in the file, new: side information" in caplog.messages
    half = changed(published, tmp_path / "half.pth", lambda state: state.pop("classifier_proj.weight"))
    with pytest.raises(WeightsError, match=r"identity classifiers: 1 missing \(classifier_proj\.weight\)"):
        started(data, MODEL__INIT_FROM=half)


def test_a_simsiam_file_for_simclr_is_refused(data, tmp_path):
    path = saved(tmp_path / "ours.pth", data, "MODEL.SSL_TYPE", "SIMSIAM")
    convert_checkpoint.main([str(path), str(tmp_path / "published.pth")])
    assert started(data, MODEL__INIT_FROM=str(tmp_path / "published.pth"), MODEL__SSL_TYPE="SIMSIAM")
    with pytest.raises(WeightsError, match=r"image projector: \d+ missing .*MODEL\.SSL_TYPE"):
        started(data, MODEL__INIT_FROM=str(tmp_path / "published.pth"))


@pytest.mark.parametrize(
    ("rows", "camera", "view", "sizes"),
    [
        *((160, True, True, (20, 8)), (6, True, False, (6, 1)), (8, False, True, (1, 8)), (48, True, True, (6, 8))),
        *((160, True, False, None), (160, False, True, None), (15, True, True, None)),
    ],
)
def test_rows_of_side_information_and_what_they_stand_for(rows, camera, view, sizes):
    facts = {"name": "ViT-B-16", "activation": "auto", "stride": [16, 16], "sie_camera": camera, "sie_view": view}

    def described():
        tensors = {"image.side.table": torch.zeros(rows, 4)}
        sizes = {"ssl_hidden": 1, "ssl_out": 1}
        return describe(tensors, {**facts, **sizes}, tower=find_tower("ViT-B-16"), side_refused=False, source="x.pth")

    if sizes is None:
        with pytest.raises(WeightsError, match=rf"x\.pth: cv_embed has {rows} rows"):
            described()
    else:
        assert (described()["num_cams"], described()["num_views"]) == sizes


def test_a_table_of_other_cameras_is_told(published, data, tmp_path, capsys):
    many = changed(published, tmp_path / "x.pth", lambda state: state.update(cv_embed=torch.zeros(15, 96)))
    found = evaluated(tmp_path, "--config_file", DEMO, *data, "TEST.WEIGHT", many)
    assert "side information: TEST.SIE auto: the mean over all that training knew" in capsys.readouterr().out
    assert found["side_information"] == "mean"


@pytest.mark.parametrize("form", builders.WRAPPINGS)
def test_files_as_other_programs_wrap_them(published, tmp_path, form):
    state = torch.load(published, weights_only=True)
    torch.save(builders.WRAPPINGS[form](state), tmp_path / "x.pth")
    assert same(read_weights(tmp_path / "x.pth").tensors, read_weights(published).tensors)
    with pytest.raises(WeightsError, match=r"x\.pth is a checkpoint for re-identification, which MODEL\.INIT_FROM"):
        load_clip("ViT-Tiny-8", str(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {f"visual.{name}": value for name, value in state.items()}, "CLIP by open_clip's names"),
        (lambda state: {f"vision_model.{name}": value for name, value in state.items()}, "Hugging Face"),
        (lambda state: {"blocks.0.attn.qkv.weight": torch.ones(1), **state}, "timm"),
        (lambda state: {f"image.visual.{name}": value for name, value in state.items()}, "without its description"),
        (lambda state: state, r"'x', 'layer1\.0"),
    ],
)
def test_what_is_no_network_for_re_identification_is_called_by_its_name(tmp_path, change, words):
    torch.save(change({"x": torch.ones(1), "layer1.0.weight": torch.ones(1)}), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=rf"x\.pth: is neither .*{words}.*MODEL\.PRETRAIN"):
        read_weights(tmp_path / "x.pth")


def test_two_processes_are_one(data, tmp_path):
    one, first, second = (tmp_path / name for name in ("one", "first", "second"))
    epochs = ["SOLVER.STAGE1.MAX_EPOCHS", "1", "SOLVER.STAGE2.MAX_EPOCHS", "1"]
    train = ["--config_file", DEMO, *data, *epochs, "DATALOADER.NUM_WORKERS", "0"]
    train_svllreid.main([*train, "OUTPUT_DIR", str(one)])
    train_svllreid.main([*train, "OUTPUT_DIR", str(first), "PROCESSOR.STAGES", "prompt"])
    file = str(first / "ViT-Tiny-8_stage1_1.pth")
    train_svllreid.main([*train, "OUTPUT_DIR", str(second), "PROCESSOR.STAGES", "image", "MODEL.INIT_FROM", file])
    a, b = (read_checkpoint(folder / "ViT-Tiny-8_1.pth")["model"] for folder in (one, second))
    assert same(a, b)
    assert not same(a, read_checkpoint(file)["model"])
    assert "12 prompts" in (second / "train_log.txt").read_text()
    assert " 4,608 of" in (one / "train_log.txt").read_text()  # 12 identities, 4 tokens, 96 wide


# ---------------------------------------------------------------------------------------------------------------- names


def test_settling_a_published_file_changes_nothing_in_the_configuration(published, data):
    cfg = load(DEMO, data)
    settled, architecture, differences = settle_architecture(cfg, read_weights(published))
    assert differences == [] and architecture["num_pids"] == 12 and architecture["num_cams"] == 6
    assert settled.MODEL.ACTIVATION == "quick_gelu"
