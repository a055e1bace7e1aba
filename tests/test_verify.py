"""tools.calibrate and tools.verify: what is written, what is said of two images, and what is refused."""

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from datasets.unsplit import unsplit
from processor.inference import Embedder
from tools import verify
from tools.calibrate import __main__ as calibrate
from tools.calibrate import figure
from tools.pages import write_pages
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.errors import DataError, UserError
from utils.metrics import ignore_nothing, same_camera
from utils.records import Labels
from utils.verification import Images, PairScores, measure


@pytest.fixture
def weight(trained, tmp_path):
    """A copy of the checkpoint, as calibrations lie beside it."""
    return Path(shutil.copy(trained[0], tmp_path / "model.pth"))


@pytest.fixture
def images(trained):
    return sorted({sample.path for side in trained[2].trials[0] for sample in side})


def words(weight, *more):
    return ["--weight", str(weight), "--device", "cpu", *map(str, more)]


def said(capsys, *words):
    """What tools.verify prints as JSON."""
    capsys.readouterr()
    code = verify.main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_rates_are_those_of_the_pairs_that_count(trained, weight, images, capsys):
    _, cfg, benchmark = trained
    assert calibrate.main(words(weight, "DATASETS.ROOT_DIR", cfg.DATASETS.ROOT_DIR)) == 0
    found = json.loads((weight.with_name("model.calibration.json")).read_text())
    embedder = Embedder.from_checkpoint(weight, device="cpu")
    features = dict(zip(images, embedder(images), strict=True))
    same, different = [], []
    for query in benchmark.trials[0].query:
        for other in benchmark.trials[0].gallery:
            score = float(features[query.path] @ features[other.path])
            if query.pid != other.pid:
                different.append(score)
            elif query.camid != other.camid:
                same.append(score)
    assert found["pairs"] == {"same": len(same), "different": len(different)} and found["protocol"] == "cross-camera"
    assert found["digest"] == embedder.digest and len(found["data_fingerprint"]["test"]) == 16
    point = found["eer"]
    accepted = [sum(score >= point["threshold"] for score in scores) / len(scores) for scores in (different, same)]
    assert [point["fpr"]["value"], 1 - point["fnr"]["value"]] == pytest.approx(accepted)
    assert found["at_fpr"].keys() == {"0.01", "0.001", "0.0001"} and found["at_fpr"]["0.0001"] is None  # too few pairs
    with Image.open(weight.with_name("model.calibration.png")) as picture:
        assert picture.info["dpi"] == pytest.approx((200, 200), abs=1)

    code, answer = said(capsys, *words(weight, *images[:2]))
    cosine = float(features[images[0]] @ features[images[1]])
    assert code == 0 and answer["threshold"] == point and answer["digest"] == embedder.digest
    assert answer["pairs"][0]["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert answer["pairs"][0]["decision"] == ("same" if cosine >= point["threshold"] else "different")
    assert verify.main(words(weight, *images[:2])) == 0
    assert f"{100 * point['fpr']['value']:.3g} %" in capsys.readouterr().out
    with pytest.raises(UserError, match="--fpr"):
        verify.main(words(weight, *images[:2], "--fpr", "1e-4"))

    other = Embedder.from_checkpoint(weight, device="cpu", overrides=["TEST.FLIP", "True"]).digest
    with pytest.raises(DataError, match=rf"{embedder.digest}.*{other}"):
        verify.main(words(weight, *images[:2], "TEST.FLIP", "True"))
    assert (
        calibrate.main(
            words(
                weight,
                "--no-figure",
                "--output",
                weight.with_name("flip.json"),
                "DATASETS.ROOT_DIR",
                cfg.DATASETS.ROOT_DIR,
                "TEST.FLIP",
                "True",
            )
        )
        == 0
    )
    code, answer = said(
        capsys, *words(weight, *images[:2], "--calibration", weight.with_name("flip.json"), "TEST.FLIP", "True")
    )
    assert code == 0 and answer["digest"] == other


def test_the_drawn_curve_goes_through_the_points(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figure, "write_pages", lambda path, pages: drawn.extend(pages))
    pids = torch.arange(30).repeat_interleave(4)
    features = torch.nn.functional.normalize(torch.randn(30, 16)[pids] + torch.randn(120, 16), dim=1)
    images = Images(torch.arange(120), Labels(pids, torch.zeros_like(pids)))
    scores = PairScores(features, [(images, images)], ignore_nothing)
    found = measure(scores, (1e-2, 1e-3), generator=torch.Generator().manual_seed(0))
    figure.draw(tmp_path / "roc.png", [("one", found)], title="")
    curve, *_ = (line for line in drawn[0].axes[1].lines if line.get_drawstyle() == "steps-post")
    x, y = curve.get_data()
    for fpr, point in found.at_fpr.items():
        assert y[x.searchsorted(fpr, side="right") - 1] == pytest.approx(100 * point.reached.value)


def test_a_network_beside_is_in_the_picture_alone(weight, trained, tmp_path, monkeypatch):
    given = words(weight, "DATASETS.ROOT_DIR", trained[1].DATASETS.ROOT_DIR)
    assert calibrate.main(given) == 0
    alone = weight.with_name("model.calibration.json").read_text()
    drawn = []

    def keep(path, pages):
        drawn.extend(pages)
        return write_pages(path, pages)

    monkeypatch.setattr(figure, "write_pages", keep)
    contents = read_checkpoint(weight)
    contents["model"] = {
        k: torch.rand_like(v) if "cls" in k or "class" in k else v for k, v in contents["model"].items()
    }
    save_checkpoint(tmp_path / "other.pth", contents)
    assert calibrate.main([*given, "--beside", str(tmp_path / "other.pth")]) == 0
    assert weight.with_name("model.calibration.json").read_text() == alone
    assert not (tmp_path / "other.calibration.json").exists()
    scores, roc = drawn[0].axes
    labels = [text.get_text() for axes in (scores, roc) for text in axes.get_legend().get_texts()]
    for name in ("model.pth", "other.pth"):
        assert sum(label.startswith(name) for label in labels) == 3
    outlines = [patch.get_data().values for patch in scores.patches if not patch.get_fill()]
    assert len(outlines) == 4 and (outlines[0] != outlines[2]).any()
    with pytest.raises(UserError, match="--beside"):
        calibrate.main([*given, "--beside", str(weight), "--no-figure"])
    protocols = iter(("all", "cross-camera"))
    monkeypatch.setattr(calibrate, "protocol_of", lambda ignored: next(protocols))
    with pytest.raises(UserError, match="--beside"):
        calibrate.main([*given, "--beside", str(tmp_path / "other.pth")])


def own_folder(root, images, cameras):
    """Three images of each of four identities."""
    for number, path in enumerate(images[:12]):
        target = root / f"anna{number // 3}" / (f"c{number % 3}_{number}.jpg" if cameras else f"{number}.jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return root


def test_own_images_in_a_folder_per_identity(weight, images, tmp_path, capsys):
    folder = own_folder(tmp_path / "own", images, cameras=False)
    (folder / "anna0" / "broken.jpg").write_bytes(b"no image")
    assert calibrate.main(words(weight, folder)) == 1 and "broken.jpg" in capsys.readouterr().err
    assert calibrate.main(words(weight, folder, "--skip-unreadable", "--figure", tmp_path / "roc.svg")) == 0
    found = json.loads((weight.with_name("model.calibration.json")).read_text())
    assert (found["pairs"], found["protocol"]) == ({"same": 4 * 3, "different": 6 * 9}, "all")
    assert (found["images"], found["unreadable"]) == (12, 1) and (tmp_path / "roc.svg").is_file()


def test_cameras_count_where_all_names_tell_them(images, tmp_path):
    folder = own_folder(tmp_path / "own", images, cameras=True)
    assert unsplit(folder).ignored is same_camera and unsplit(folder, protocol="all").ignored is ignore_nothing
    shutil.copy(images[0], folder / "anna0" / "x.jpg")
    assert unsplit(folder).ignored is ignore_nothing
    with pytest.raises(DataError, match=r"x\.jpg"):
        unsplit(folder, protocol="cross-camera")
    (folder / "query").mkdir()
    with pytest.raises(DataError, match=r"DATASETS\.NAMES folder"):
        unsplit(folder)


def test_without_a_calibration_no_decision_is_made(weight, images, capsys):
    code, answer = said(capsys, *words(weight, images[0], images[0]))
    (pair,) = answer["pairs"]
    assert code == 0 and answer["threshold"] is None and pair["decision"] is None
    assert pair["cosine"] == pytest.approx(1, abs=1e-6) and "twice" in pair["note"]
    assert verify.main(words(weight, *images[:2])) == 0
    assert "no threshold" in capsys.readouterr().out


def test_many_pairs_of_which_some_cannot_be_read(weight, images, tmp_path, capsys):
    shutil.copy(images[0], tmp_path / "a b.jpg")
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("a b.jpg", images[1]), ("a b.jpg", "none.jpg"), (images[2], images[3])])
    given = words(weight, "--pairs", tmp_path / "pairs.csv")
    code, answer = said(capsys, *given)
    assert code == 1 and [pair["cosine"] is None for pair in answer["pairs"]] == [False, True, False]
    assert answer["pairs"][0]["a"] == str(tmp_path / "a b.jpg")
    assert verify.main(given) == 1 and "none.jpg" in capsys.readouterr().err
    assert verify.main([*given, "--skip-unreadable"]) == 0


def test_wrong_words_are_refused(weight, images, tmp_path, monkeypatch):
    (tmp_path / "pairs.csv").write_text("a.jpg,b.jpg,c.jpg\n")
    (tmp_path / "model.calibration.json").write_text('{"digest": 1}')
    for tool, given, error in (
        (verify, words(weight), UserError),
        (verify, words(weight, images[0]), UserError),
        (verify, words(tmp_path / "none.pth", *images[:2]), UserError),
        (verify, words(weight, "--pairs", tmp_path / "pairs.csv"), UserError),
        (verify, words(weight, "--pairs", tmp_path / "none.csv"), UserError),
        (verify, words(weight, *images[:2], "--calibration", tmp_path / "none.json"), UserError),
        (verify, words(weight, *images[:2]), DataError),
        (calibrate, words(weight, tmp_path, tmp_path), UserError),
        (calibrate, words(weight, tmp_path / "none"), UserError),
        (calibrate, words(weight, "--output", tmp_path / "no" / "c.json"), UserError),
        (calibrate, words(weight, "--figure", tmp_path / "roc.gif"), UserError),
        (calibrate, words(weight, "DATASETS.NAMES", "('synthetic', 'market1501')"), UserError),
    ):
        with pytest.raises(error):
            tool.main(given)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"requirements-extra\.txt"):
        calibrate.main(words(weight))
