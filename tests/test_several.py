"""Several data sets: trained on together, tested one by one."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from builders import benchmark

import test_svllreid
import train_svllreid
from configs import ConfigError, load
from datasets.build import BENCHMARKS, RENDERED, make_benchmark
from datasets.names import PROMPTS, names_together
from datasets.several import combine
from tools.check_dataset import __main__ as check_dataset
from tools.demo.render import rendered_benchmark
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.errors import DataError, WeightsError
from utils.records import Sample, Trial

DEMO = "configs/demo/vit_svllreid.yml"


def test_identities_and_cameras_are_numbered_one_after_the_other():
    first, second = benchmark(pids=3, cams=2, name="a"), benchmark(pids=2, cams=4, name="b")
    far = Sample("far.jpg", 900, 6, viewid=3)  # a camera that training lacks
    first = replace(first, trials=(Trial(first.trials[0].query, (*first.trials[0].gallery, far)),))
    both = combine([first, second])
    assert both.name == "a+b" and both.num_pids == 5 and both.num_cams == 7 + 4 and both.num_views == 4
    a, b = both.evaluated()
    assert (a.name, b.name) == ("a", "b") and a == first
    assert both.train == (*a.train, *b.train)
    assert {sample.pid for sample in b.train} == {3, 4}
    assert {sample.camid for sample in b.train} == {7, 8, 9, 10}
    for moved, before in zip(b.trials[0].gallery, second.trials[0].gallery, strict=True):
        assert moved == before._replace(camid=before.camid + 7)  # identities of tests stay the data set's own
    assert first.evaluated() == (first,)


def test_an_unknown_camera_stays_unknown():
    second = benchmark(pids=2, cams=2, name="b")
    second = replace(second, train=(second.train[0]._replace(camid=-1), *second.train[1:]))
    both = combine([benchmark(pids=3, cams=2, name="a"), second])
    assert [sample.camid for sample in both.evaluated()[1].train] == [-1, 3, 2, 3]


VEHICLES = "market1501 says 'A photo of a {} person.' and veri 'A photo of a {} vehicle.'; one training has one"


@pytest.mark.parametrize(
    ("names", "noun", "message"),
    [
        ("market1501+veri", "person", VEHICLES),
        ("market1501+msmt17+veri", "person", VEHICLES),
        ("folder+synthetic", "horse", "folder says 'A photo of a {} horse.' and synthetic 'A photo of a {} person.'"),
        (
            "synthetic+synthetic_sysu",
            "person",
            "synthetic_sysu has two modalities; expected that it is trained on alone",
        ),
        ("regdb+sysu_mm01", "person", "regdb has two modalities"),
    ],
)
def test_what_cannot_be_trained_on_together_is_said_before_it_is_read_or_rendered(tmp_path, names, noun, message):
    root = tmp_path / "data"
    words = ["DATASETS.NAMES", names, "DATASETS.NOUN", noun, "DATASETS.ROOT_DIR", str(root)]
    for make in (make_benchmark, rendered_benchmark):
        with pytest.raises(DataError, match=re.escape(message)):
            make(load(None, words))
    assert not root.exists()


def test_every_reader_has_the_prompt_of_the_table(settings):
    assert BENCHMARKS.keys() == PROMPTS.keys()
    for name in RENDERED:
        found = rendered_benchmark(load(DEMO, [*settings[2:-6], "DATASETS.NAMES", name]))
        assert PROMPTS[name] == (found.templates or (found.template,))


def test_data_sets_of_one_prompt_are_trained_on_together():
    assert names_together("veri+synthetic_vehicle+folder", "vehicle") == ["veri", "synthetic_vehicle", "folder"]
    assert names_together("sysu_mm01", "person") == ["sysu_mm01"]


def test_names_may_be_a_tuple():
    assert load(None, ["DATASETS.NAMES", "('market1501', 'msmt17')"]).DATASETS.NAMES == "market1501+msmt17"
    assert load(None, ["DATASETS.NAMES", "('market1501')"]).DATASETS.NAMES == "market1501"
    assert load(None, ["DATASETS.NAMES", "('market1501',)"]).DATASETS.NAMES == "market1501"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("market1501+", "DATASETS.NAMES 'market1501+': one of the names is empty; expected, e.g., market1501 or "),
        ("('market1501', '')", "DATASETS.NAMES 'market1501+': one of the names is empty"),
        ("+", "DATASETS.NAMES '+': one of the names is empty"),
        ("('market1501', 'market1501')", "DATASETS.NAMES 'market1501+market1501': market1501 is there twice"),
    ],
)
def test_names_that_are_none(tmp_path, names, message):
    with pytest.raises(DataError, match=re.escape(message)):
        make_benchmark(load(None, ["DATASETS.NAMES", names, "DATASETS.ROOT_DIR", str(tmp_path)]))


def test_images_of_ones_own_share_the_root(tmp_path):
    with pytest.raises(
        DataError, match=r"^DATASETS.ROOT_DIR .* neither .* All of DATASETS.NAMES 'folder\+market1501' sha"
    ):
        make_benchmark(load(None, ["DATASETS.NAMES", "folder+market1501", "DATASETS.ROOT_DIR", str(tmp_path)]))
    with pytest.raises(DataError, match=r"nor a CSV file$"):
        make_benchmark(load(None, ["DATASETS.NAMES", "folder", "DATASETS.ROOT_DIR", str(tmp_path)]))


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> list[str]:
    """A root with two data sets: the rendered one, and another one in Market-1501's layout."""
    root = tmp_path_factory.mktemp("data")
    rendered = [
        *("DATASETS.ROOT_DIR", str(root), "DATASETS.SYNTHETIC.TRAIN_IDENTITIES", "8"),
        *("DATASETS.SYNTHETIC.TRAIN_IMAGES", "4", "DATASETS.SYNTHETIC.TEST_IDENTITIES", "4"),
        *("DATASETS.SYNTHETIC.TEST_IMAGES", "6"),
    ]
    other = load(DEMO, [*rendered, "DATASETS.SYNTHETIC.SEED", "5"])
    folder = Path(rendered_benchmark(other).train[0].path).parents[1]
    shutil.copytree(folder, root / "Market-1501")
    shutil.copytree(folder, root / "DukeMTMC-reID")
    return [
        *("--config_file", DEMO, *rendered, "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"),
        *("SOLVER.STAGE1.MAX_EPOCHS", "1", "SOLVER.STAGE2.MAX_EPOCHS", "1", "SOLVER.STAGE2.IMS_PER_BATCH", "16"),
    ]


def test_nothing_is_rendered_before_what_is_missing_is_said(settings, tmp_path):
    """Nor before a wrong name is."""
    for name in ("market1501", "marktet"):
        words = [*settings, "DATASETS.ROOT_DIR", str(tmp_path), "DATASETS.NAMES", f"synthetic+{name}"]
        for main in (train_svllreid.main, check_dataset.main):
            with pytest.raises(DataError, match=name if name == "marktet" else "Market-1501"):
                main([*words, "OUTPUT_DIR", str(tmp_path / "run")])
        assert list(tmp_path.iterdir()) == []


def results(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["evaluations"]


def test_training_on_two_and_testing_on_each(settings, tmp_path, capsys):
    both = ["DATASETS.NAMES", "('synthetic', 'market1501')"]
    train_svllreid.main([*settings, *both, "OUTPUT_DIR", str(tmp_path / "run")])
    entries = results(tmp_path / "run")
    assert [(entry["when"], entry["data_set"]) for entry in entries] == [
        *(("start", "synthetic"), ("start", "market1501"), ("end", "synthetic"), ("end", "market1501")),
    ]
    assert all(entry["notes"][0].startswith("market1501: differs from what is published") for entry in entries)
    weight = tmp_path / "run" / "ViT-Tiny-8_1.pth"
    capsys.readouterr()
    test_svllreid.main(["TEST.WEIGHT", str(weight), "OUTPUT_DIR", str(tmp_path / "test")])
    again = results(tmp_path / "test")
    assert [entry["mAP"] for entry in again] == [entry["mAP"] for entry in entries[2:]]
    assert [entry["side_information"] for entry in again] == ["same", "same"]
    said = capsys.readouterr().out
    assert "synthetic test" in said and "market1501 test" in said
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Market-1501"):  # before the other one is rendered
        test_svllreid.main(["TEST.WEIGHT", str(weight), "DATASETS.ROOT_DIR", str(tmp_path / "empty")])
    assert list((tmp_path / "empty").iterdir()) == []
    # The cameras of each keep their numbers: alone, in another order, beside others, and without training images.
    root = Path(settings[settings.index("DATASETS.ROOT_DIR") + 1])
    shutil.copytree(root, tmp_path / "data")
    for place in ("Market-1501", "DukeMTMC-reID"):
        shutil.rmtree(tmp_path / "data" / place / "bounding_box_train")
    expected = {entry["data_set"]: ("same", entry["mAP"]) for entry in again}
    for names in ("market1501", "synthetic", "market1501+synthetic", "dukemtmc+market1501"):
        words = ["DATASETS.NAMES", names, "DATASETS.ROOT_DIR", str(tmp_path / "data"), "TEST.WEIGHT", str(weight)]
        test_svllreid.main([*words, "OUTPUT_DIR", str(tmp_path / names)])
        used = {entry["data_set"]: (entry["side_information"], entry["mAP"]) for entry in results(tmp_path / names)}
        assert list(used) == names.split("+")
        assert used.pop("dukemtmc", ("mean",))[0] == "mean"
        assert used == {name: expected[name] for name in used}


def test_a_file_of_before_does_not_say_whose_cameras_are_whose(tmp_path, settings, trained_on_two):
    contents = read_checkpoint(trained_on_two)
    contents["architecture"].pop("first_cameras")
    contents["fingerprint"]["data_fingerprint"].pop("parts")
    save_checkpoint(tmp_path / "old.pth", contents)
    test_svllreid.main(["TEST.WEIGHT", str(tmp_path / "old.pth"), "DATASETS.NAMES", "dukemtmc+market1501"])
    first, second = results(tmp_path)
    assert first["side_information"] == "same"  # it was the first of them
    assert second["side_information"] == "mean"
    assert "the file does not say which rows of its side information are market1501's" in second["notes"]


def test_a_network_on_another_data_set(settings, tmp_path, capsys):
    one = ["DATASETS.NAMES", "synthetic", "PROCESSOR.STAGES", "prompt", "SOLVER.STAGE1.MAX_EPOCHS", "1"]
    train_svllreid.main([*settings, *one, "OUTPUT_DIR", str(tmp_path / "run")])
    weight = str(tmp_path / "run" / "ViT-Tiny-8_stage1_1.pth")
    used = {}
    for name, words in {
        "home": [],
        "market1501": ["DATASETS.NAMES", "market1501"],
        "another one of the same name": ["DATASETS.SYNTHETIC.SEED", "6"],
        "on request": ["DATASETS.NAMES", "market1501", "TEST.SIE", "same"],
    }.items():
        test_svllreid.main(["TEST.WEIGHT", weight, *words, "OUTPUT_DIR", str(tmp_path / name)])
        used[name] = results(tmp_path / name)[0]["side_information"]
    assert used == {"home": "same", "market1501": "mean", "another one of the same name": "mean", "on request": "same"}
    said = capsys.readouterr().out
    assert "side information: TEST.SIE auto: the mean over all that training knew" in said
    assert results(tmp_path / "home")[0]["notes"] == []
    note, counts = results(tmp_path / "on request")[0]["notes"]
    assert "TEST.SIE same" in note and "market1501" in note and note in said
    assert "16 query images (published 3,368)" in counts


@pytest.fixture(scope="module")
def trained_on_two(settings, tmp_path_factory) -> Path:
    """A checkpoint of the prompt stage."""
    folder = tmp_path_factory.mktemp("two")
    words = ["PROCESSOR.STAGES", "prompt", "SOLVER.STAGE1.MAX_EPOCHS", "1", "DATASETS.NAMES", "dukemtmc+market1501"]
    train_svllreid.main([*settings, *words, "OUTPUT_DIR", str(folder / "run")])
    return folder / "run" / "ViT-Tiny-8_stage1_1.pth"


def trained(settings: list[str], folder: Path, *words: str) -> list[str]:
    """The words that test a network of one epoch."""
    train_svllreid.main([*settings, "PROCESSOR.STAGES", "prompt", *words, "OUTPUT_DIR", str(folder / "run")])
    return ["TEST.WEIGHT", str(folder / "run" / "ViT-Tiny-8_stage1_1.pth")]


def test_the_protocol_of_the_training_is_not_that_of_another_data_set(settings, tmp_path, capsys):
    weight = trained(settings, tmp_path, "DATASETS.NAMES", "market1501", "TEST.PROTOCOL", "all")
    capsys.readouterr()
    test_svllreid.main([*weight, "DATASETS.NAMES", "market1501+dukemtmc", "OUTPUT_DIR", str(tmp_path / "both")])
    entries = results(tmp_path / "both")
    assert [entry["protocol"] for entry in entries] == ["all", "cross-camera"]
    note = (
        "TEST.PROTOCOL all is of the training's data set; dukemtmc is another one: cross-camera (TEST.PROTOCOL on the "
        "command line is obeyed)"
    )
    assert note in entries[1]["notes"] and note not in entries[0]["notes"]
    said = capsys.readouterr().out
    assert note in said and "protocol all: every pair counts" in said
    header, _, first, second = said.split("market1501, dukemtmc\n")[1].splitlines()[:4]
    assert header.endswith("protocol") and first.endswith("all") and second.endswith("cross-camera")
    test_svllreid.main(
        [*weight, "DATASETS.NAMES", "dukemtmc", "TEST.PROTOCOL", "all", "OUTPUT_DIR", str(tmp_path / "asked")]
    )
    (entry,) = results(tmp_path / "asked")
    assert entry["protocol"] == "all" and entry["mAP"] != entries[1]["mAP"]
    test_svllreid.main([*weight, "DATASETS.NAMES", "dukemtmc", "TEST.PROTOCOL", "cross-camera"])
    header = capsys.readouterr().out.split("dukemtmc\n")[-1].splitlines()[0]
    assert header.endswith("valid queries")  # the usual one goes without saying


def test_the_protocol_of_other_images_of_ones_own(settings, tmp_path):
    """Both are called folder; their images differ."""
    root = Path(settings[settings.index("DATASETS.ROOT_DIR") + 1])
    shutil.copytree(root / "Market-1501", tmp_path / "one")
    others = load(DEMO, [*settings[2:], "DATASETS.ROOT_DIR", str(tmp_path / "data"), "DATASETS.SYNTHETIC.SEED", "6"])
    Path(rendered_benchmark(others).train[0].path).parents[1].rename(tmp_path / "two")
    words = ["DATASETS.NAMES", "folder", "TEST.PROTOCOL", "all", "DATASETS.ROOT_DIR"]
    weight = trained(settings, tmp_path, *words, str(tmp_path / "one"))
    used = []
    for name in ("one", "two"):
        test_svllreid.main([*weight, "DATASETS.ROOT_DIR", str(tmp_path / name), "OUTPUT_DIR", str(tmp_path / name)])
        used += [(e["protocol"], e["side_information"]) for e in results(tmp_path / name)]
    assert used == [("all", "same"), ("cross-camera", "mean")]


def test_what_is_held_out_is_of_the_trainings_data_set(settings, tmp_path, capsys):
    weight = trained(settings, tmp_path, "DATASETS.NAMES", "market1501", "DATASETS.HOLD_OUT", "0.5")
    capsys.readouterr()
    test_svllreid.main([*weight, "DATASETS.NAMES", "market1501+dukemtmc", "OUTPUT_DIR", str(tmp_path / "both")])
    home, other = results(tmp_path / "both")
    assert home["data_set"] == "market1501 (held-out training identities)" and home["side_information"] == "same"
    assert other["data_set"] == "dukemtmc" and other["data_fingerprint"]["train"] is None
    note = "DATASETS.HOLD_OUT 0.5 is of the training's data set; dukemtmc is another one: 0.0"
    assert any(line.startswith(note) for line in other["notes"])
    assert "market1501 (held-out training identities), dukemtmc\n" in capsys.readouterr().out
    test_svllreid.main([*weight, "DATASETS.NAMES", "market1501", "OUTPUT_DIR", str(tmp_path / "one")])
    assert "market1501 (held-out training identities)\n" in capsys.readouterr().out  # heads the table
    words = ["DATASETS.NAMES", "dukemtmc", "DATASETS.HOLD_OUT", "0.25"]  # nobody was trained on any of it
    test_svllreid.main([*weight, *words, "OUTPUT_DIR", str(tmp_path / "asked")])
    assert results(tmp_path / "asked")[0]["data_set"] == "dukemtmc (held-out training identities)"
    with pytest.raises(ConfigError, match=r"DATASETS\.HOLD_OUT 0\.25: .* was trained with 0\.5"):
        test_svllreid.main([*weight, "DATASETS.NAMES", "market1501+dukemtmc", "DATASETS.HOLD_OUT", "0.25"])


def test_what_was_measured_is_kept_when_a_later_one_fails(trained_on_two, tmp_path, capsys, monkeypatch):
    evaluate = test_svllreid.evaluate_model

    def fails_on_the_second(cfg, model, one, *rest, **named):
        if one.name == "market1501":
            raise WeightsError("features are not finite")
        return evaluate(cfg, model, one, *rest, **named)

    monkeypatch.setattr(test_svllreid, "evaluate_model", fails_on_the_second)
    with pytest.raises(WeightsError, match="not finite"):
        test_svllreid.main(["TEST.WEIGHT", str(trained_on_two), "OUTPUT_DIR", str(tmp_path)])
    assert [entry["data_set"] for entry in results(tmp_path)] == ["dukemtmc"]
    assert "dukemtmc\n" in (said := capsys.readouterr().out) and "rank-1" in said


def test_all_that_can_be_wrong_with_any_is_found_before_the_first_is_tested(trained_on_two, tmp_path, settings):
    """Its side information, its images, and its name."""
    root = Path(settings[settings.index("DATASETS.ROOT_DIR") + 1])
    shutil.copytree(root, tmp_path / "data")
    query = next((tmp_path / "data" / "Market-1501" / "query").iterdir())
    camera = query.name.split("_")[1]
    query.rename(query.with_name(query.name.replace(camera, "c99s1")))
    words = ["TEST.WEIGHT", str(trained_on_two), "OUTPUT_DIR", str(tmp_path)]
    words += ["DATASETS.ROOT_DIR", str(tmp_path / "data")]
    with pytest.raises(WeightsError, match=r"knows 12 cameras, market1501 has 105: .*TEST\.SIE mean or none"):
        test_svllreid.main(words)
    gone = next((tmp_path / "data" / "Market-1501" / "query").iterdir())
    gone.unlink()
    gone.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=rf"^{gone}: is a link to nothing$"):
        test_svllreid.main(words)
    with pytest.raises(DataError, match="dukemtmc is there twice"):
        test_svllreid.main([*words, "DATASETS.NAMES", "('dukemtmc', 'market1501', 'dukemtmc')"])
    assert not (tmp_path / "results.json").exists()


def test_what_is_wrong_with_a_test_is_said_as_in_training(trained_on_two, tmp_path, settings, capsys):
    """A copy of a query in the gallery is a warning, and noted with the figures; queries as the gallery are refused."""
    mine = tmp_path / "mine"
    shutil.copytree(Path(settings[settings.index("DATASETS.ROOT_DIR") + 1]) / "Market-1501", mine)
    query, gallery = sorted((mine / "query").iterdir()), mine / "bounding_box_test"
    shutil.copy(query[0], gallery)
    words = ["TEST.WEIGHT", str(trained_on_two), "OUTPUT_DIR", str(tmp_path), "TEST.PROTOCOL", "all"]
    words += ["DATASETS.NAMES", "folder", "DATASETS.ROOT_DIR", str(mine)]
    test_svllreid.main(words)
    (entry,) = results(tmp_path)
    warning = f"1 of 16 queries find themselves in the gallery (the same file) (e.g. {query[0]} and {gallery}/"
    assert sum(note.startswith(warning) for note in entry["notes"]) == 1 and capsys.readouterr().out.count(warning) == 1
    shutil.rmtree(gallery)
    gallery.symlink_to(mine / "query")
    with pytest.raises(DataError, match=r"^folder cannot be .*: 16 of 16 queries find themselves in the gallery"):
        test_svllreid.main(words)
    gallery.unlink()
    shutil.rmtree(mine / "query")
    for folder, name in ((mine / "query", query[0].name), (gallery, f"{query[0].name[:4]}_c9_0.jpg")):
        folder.mkdir()
        (folder / name).write_bytes(next((mine / "bounding_box_train").iterdir()).read_bytes() + name.encode())
    with pytest.raises(DataError, match="all query and gallery images are of one identity"):
        test_svllreid.main(words)
    assert len(results(tmp_path)) == 1
