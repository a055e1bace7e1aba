"""The tools beside training and testing, at the smallest size that still does everything."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs import differences, load, to_dict
from datasets.build import make_benchmark
from model import tiny_clip
from model.build import make_model
from tools import __main__ as listing
from tools import (
    attention,
    compare,
    convert_checkpoint,
    embed,
    export,
    one_in_many,
    rank_lists,
    release,
    search,
    split_dataset,
    tsne,
)
from tools.calibrate import __main__ as calibrate
from tools.check_dataset.sheet import MARGIN
from tools.demo import __main__ as demo
from tools.demo import compare_methods, figures, pretrain_tiny_clip
from tools.demo.render import render_missing
from utils.checkpoint import save_checkpoint
from utils.errors import UserError
from utils.run.results import append_result


def write_results(folder: Path, checkpoint: Path, start: float, end: float) -> None:
    """What a run leaves: the evaluations of its start and its end."""
    folder.mkdir(exist_ok=True)
    facts = {"data_set": "synthetic", "queries": 9, "valid_queries": 9, "checkpoint": str(checkpoint)}
    for when, score in (("start", start), ("end", end)):
        append_result(
            folder, {"when": when, **dict.fromkeys(("mAP", "mINP", "rank1", "rank5", "rank10"), score), **facts}
        )


def test_pretraining_writes_a_file_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_tiny_clip, "HELD_OUT", 32)
    monkeypatch.setattr(pretrain_tiny_clip, "CAMERAS", 3)
    file = tmp_path / "tiny.safetensors"
    words = ["--identities", "40", "--steps", "3", "--batch", "16", "--processes", "1", "--out", str(file)]
    pretrain_tiny_clip.main(words)
    facts = tiny_clip.facts(file)
    assert facts["steps"] == 3 and 0 <= facts["held_out_top1_of_32"] <= 1
    clip = tiny_clip.build()
    clip.load_state_dict(tiny_clip.load(file))
    known = torch.isfinite(clip.token_embedding.weight).all(dim=1)
    assert 20 < known.sum() < 100 and known[49406] and known[49407]


def test_the_demo_draws_what_it_trained_on_and_what_it_finds(tmp_path, monkeypatch):
    """In the run's folder; the sheet is for the training's image size."""
    words = [
        *("DATASETS.ROOT_DIR", str(tmp_path), "DATASETS.SYNTHETIC.TRAIN_IDENTITIES", "3"),
        *("DATASETS.SYNTHETIC.TRAIN_IMAGES", "4", "DATASETS.SYNTHETIC.TEST_IDENTITIES", "2"),
    ]
    checkpoint = tmp_path / "x.pth"

    def train(cfg, folder):
        render_missing(cfg)
        model = make_model(cfg, make_benchmark(cfg))
        facts = {"config": to_dict(cfg), "architecture": model.architecture}
        save_checkpoint(checkpoint, {"model": model.state_dict(), **facts})
        write_results(folder, checkpoint, 0.1, 0.9)

    monkeypatch.setattr(demo, "train", train)
    assert demo.main([*words, "OUTPUT_DIR", str(tmp_path), "INPUT.SIZE_TRAIN", "[80, 40]"]) == 0
    sheet = Image.open(tmp_path / demo.SHEET)
    assert 3 * 128 < sheet.height < 4 * 128
    assert all(min(Image.open(tmp_path / name).size) > 500 for name in (figures.RANKS, figures.ATTENTION))
    assert (np.asarray(sheet.convert("RGB"))[40:, MARGIN:] < 200).any(axis=(0, 2)).sum() > 3 * 64


def test_what_differs_from_the_recipe():
    published = load("configs/person/vit_svllreid.yml")
    found = differences(load("configs/demo/vit_svllreid.yml"), published, besides=demo.NO_DEPARTURE)
    assert found["MODEL.NAME"] == ("ViT-Tiny-8", "ViT-B-16") and "SOLVER.STAGE2.BASE_LR" in found
    assert not {"OUTPUT_DIR", "SOLVER.STAGE2.LOG_PERIOD"} & found.keys() and "SYNTHETIC" not in str(found)
    assert differences(published, published) == {}


def test_the_comparison_prints_means_spreads_and_the_sign_of_the_gain():
    def entries(*scores: float) -> list[dict]:
        return [{"mAP": score, "rank1": score + 0.1} for score in scores]

    scores = {
        compare_methods.PIXELS: entries(0.02, 0.03),
        compare_methods.FROZEN: entries(0.4, 0.5),
        "CLIP-ReID": entries(0.6, 0.7),
        "SVLL-ReID": entries(0.55, 0.72),
    }
    lines = compare_methods.table(scores, [0, 1]).splitlines()
    assert lines[0] == "| | seed 0 | seed 1 | mean mAP | mean rank-1 |"
    assert lines[3].endswith("| 40.0 | 50.0 | 45.0 ± 7.1 | 55.0 |")
    assert lines[-1] == "| SVLL-ReID − CLIP-ReID | -5.0 | +2.0 | -1.5 |  |"


def test_the_methods_of_a_seed_are_compared_query_by_query(trained, tmp_path, capsys, monkeypatch):
    def train(cfg, folder):
        write_results(folder, shutil.copy(trained[0], tmp_path / f"{folder.name}.pth"), 0.1, 0.5)

    monkeypatch.setattr(compare_methods, "train", train)
    monkeypatch.setattr(compare_methods, "score_pixels", lambda cfg: {"mAP": 0.5, "rank1": 0.5})
    compare_methods.main(["--seeds", "3", "--folder", str(tmp_path), "MODEL.DEVICE", "cpu"])
    networks = json.loads((tmp_path / "compare_3.json").read_text())["networks"]
    ends = [str(tmp_path / f"{name}_3.pth") for name in ("vit_base", "vit_clipreid", "vit_svllreid")]
    assert [one["checkpoint"] for one in networks] == ends
    assert [one["difference"] is None for one in networks] == [True, False, False]
    out = capsys.readouterr().out
    assert "| SVLL-ReID | 50.0 |" in out and "| tiny CLIP before training | 10.0 |" in out
    assert out.count("| synthetic |") == 3


def test_every_tool_is_listed_with_a_sentence(capsys):
    listing.main([])
    lines = dict(re.findall(r"^python -m (\S+) +(.+)\.$", capsys.readouterr().out, re.MULTILINE))
    assert {"tools.check_dataset", "tools.demo", "tools.demo.render", "tools.reproduce"} <= lines.keys()
    for name in lines:
        assert importlib.util.find_spec(name) is not None


OUTPUTS = [
    *((attention, "--output", ".png"), (calibrate, "--figure", ".svg"), (calibrate, "--output", ".json")),
    *((compare, "--output", ".json"), (embed, "--csv", ".csv"), (embed, "--output", ".npz")),
    *((one_in_many, "--output", ".json"), (rank_lists, "--output", ".pdf"), (search, "--csv", ".csv")),
    *((search, "--cache", ".sqlite"), (search, "--output", ".json"), (search, "--picture", ".png")),
    (tsne, "--output", ".png"),
]


NEW = [  # of which nothing may be there yet: the words before it, its name, whether it is a folder, which is made
    *((export, ["--weight", "w.pth", "--output"], "--output", False), (convert_checkpoint, ["w.pth"], "TARGET", False)),
    (release, ["--weight", "w.pth", "--output"], "--output", True),
    (split_dataset, ["images"], "TARGET", True),
    (split_dataset, ["images", "--form", "csv"], "TARGET", True),
]


@pytest.mark.parametrize(("tool", "words", "name", "folder"), NEW)
def test_nothing_is_overwritten_and_the_folder_of_a_file_is_not_made(tool, words, name, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("images/1/a.jpg", "full/x.txt"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    (tmp_path / "w.pth").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for target, wrong in (("w.pth", "exists"), ("full", "exists"), ("dangling", "exists"), ("w.pth/x", "")):
        with pytest.raises(UserError, match=f"^{name} {target}: {wrong}"):
            tool.read_command_line([*words, target])
    for target in ("none/x", "none/x.csv"):
        if folder and not ("csv" in words and target.endswith("csv")):
            tool.read_command_line([*words, target])
        else:
            with pytest.raises(UserError, match=f"^{name} {target}: there is no folder .*/none$"):
                tool.read_command_line([*words, target])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("tool", "option", "ending"), OUTPUTS)
def test_what_cannot_be_written_is_said_before_any_work(tool, option, ending, tmp_path, monkeypatch):
    """And a picture is not overwritten, where a shell has put one, e.g. of --output *.jpg."""
    monkeypatch.chdir(tmp_path)
    for name in ("w.pth", "a.jpg"):
        (tmp_path / name).write_bytes(b"as it is")
    for name in (f"folder{ending}", "gallery"):
        (tmp_path / name).mkdir()
    words = ["--weight", "w.pth", *(["--gallery", "gallery/"] if tool is search else [])]
    words += [] if tool in (calibrate, compare, one_in_many, rank_lists, tsne) else ["a.jpg"]

    for target in ("a.jpg", f"folder{ending}", f"none/x{ending}", f"a.jpg/x{ending}"):
        with pytest.raises(UserError, match=f"{option} {target}:"):
            tool.main([*words, option, target])
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match="may not be written"):
        tool.main([*words, option, f"x{ending}"])
    assert (tmp_path / "a.jpg").read_bytes() == b"as it is"
