"""Rank lists: which images are in them, how queries fared, what is drawn, and the tool."""

import importlib.util
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tools import rank_lists as tool
from tools.labelled_images import first_trial
from tools.rank_figure import FRAMES, draw_rank_lists, rank_figure
from utils import rank_lists
from utils.errors import DataError, UserError
from utils.feature_file import FeatureFile
from utils.metrics import ignore_nothing, rank_features, same_camera
from utils.rank_lists import RankLists
from utils.records import Hit, Labels, RankList
from utils.verification import Images


def file_of(features):
    return FeatureFile([str(row) for row in range(len(features))], features, "digest")


def images(first, count, generator, *, pids=5, cams=3):
    draw = [torch.randint(high, (count,), generator=generator) for high in (pids, cams)]
    return Images(torch.arange(first, first + count), Labels(*draw))


@pytest.mark.parametrize("ignored", [same_camera, ignore_nothing])
def test_lists_are_those_of_brute_force(ignored, monkeypatch):
    monkeypatch.setattr(rank_lists, "PAIRS_AT_ONCE", 100)  # 3 queries at a time
    generator = torch.Generator().manual_seed(1)
    # Sixteen different features, without rounding: scores are often equal, and then the gallery's order counts.
    features = torch.randint(2, (40, 4), generator=generator) - 0.5
    query, gallery = images(0, 12, generator), images(8, 32, generator)  # four are in both
    lists = RankLists(file_of(features), query, gallery, ignored)
    outcomes = lists.outcomes()
    expected = {}
    for place in range(12):
        own = Labels(*(field[place : place + 1] for field in query.labels))
        left = ignored(own, gallery.labels)[0].numpy() | (gallery.rows == query.rows[place]).numpy()
        distance = ((features[query.rows[place]].double() - features[gallery.rows].double()) ** 2).sum(1).numpy()
        order = [image for image in np.argsort(distance, kind="stable") if not left[image]]
        hits = [gallery.labels.pids[image] == own.pids[0] for image in order]
        found = lists.best(place, 5)
        first = hits.index(True) if True in hits else None
        wanted = order[:5] + ([order[first]] if first is not None and first >= 5 else [])
        assert [int(hit.name) for hit in found] == gallery.rows[wanted].tolist()
        assert [hit.rank for hit in found][:5] == [1, 2, 3, 4, 5]
        assert [hit.correct for hit in found] == [bool(gallery.labels.pids[image] == own.pids[0]) for image in wanted]
        if first is not None:
            ranks = [rank + 1 for rank, hit in enumerate(hits) if hit]
            expected[place] = (sum((n + 1) / rank for n, rank in enumerate(ranks)) / len(ranks), first + 1)
    assert outcomes.places.tolist() == list(expected)
    for number, place in enumerate(expected):
        assert (outcomes.precision[number].item(), outcomes.first[number].item()) == pytest.approx(expected[place])
    worst = outcomes.worst_first().tolist()
    assert worst == sorted(worst, key=lambda n: (outcomes.precision[n], -outcomes.first[n]))


def test_the_mean_of_the_precisions_is_the_map_of_evaluation():
    generator = torch.Generator().manual_seed(2)
    features = torch.nn.functional.normalize(torch.randn(60, 8, generator=generator), dim=1)
    query, gallery = images(0, 20, generator), images(20, 40, generator)
    found = RankLists(file_of(features), query, gallery, same_camera).outcomes()
    known = rank_features(features[:20], features[20:], query.labels, gallery.labels)
    assert found.precision.mean().item() == pytest.approx(known.mAP, abs=1e-12)
    assert (found.first == 1).double().mean().item() == known.cmc[0] and len(found.places) == known.num_valid


def test_nothing_to_rank_is_said():
    none = Images(torch.tensor([], dtype=torch.int64), Labels(*[torch.tensor([], dtype=torch.int64)] * 2))
    one = Images(torch.tensor([0]), Labels(torch.tensor([1]), torch.tensor([1])))
    with pytest.raises(DataError):
        RankLists(file_of(torch.ones(1, 1)), none, one, same_camera)
    with pytest.raises(DataError):
        RankLists(file_of(torch.ones(1, 1)), one, one, same_camera).outcomes()


def pixels(height=8, width=4):
    return np.zeros((height, width, 3), np.uint8)


def test_frames_differ_in_colour_and_line():
    found = [Hit(1, pixels(), 0.9, "3", True), Hit(2, pixels(), 0.8, "hall", False), Hit(9, pixels(), 0.1)]
    (axes,) = rank_figure([RankList(pixels(), found, "1", "$x^$.jpg")], size=(256, 128)).axes
    frames = [(tuple(frame.get_edgecolor()), frame.get_linestyle()) for frame in axes.patches[1:]]
    assert len(set(frames)) == 3 and len({line for _, line in frames[:2]}) == 2
    words = [text.get_text() for text in axes.texts]
    assert words == ["$x^$.jpg", "query  c1", "1 ✓ 0.900  c3", "2 ✗ 0.800  hall", "9 0.100"]
    assert FRAMES[True].colour == "#009E73" and FRAMES[False].colour == "#D55E00"


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_many_lists_are_on_several_pages_and_broken_images_are_grey(tmp_path, suffix):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    lists = [RankList(pixels(), [Hit(1, tmp_path / "broken.jpg", 0.5)])] * 11
    paths, unreadable = draw_rank_lists(tmp_path / f"r.{suffix}", lists, size=(256, 128))
    assert [path.name for path in paths] == (["r.pdf"] if suffix == "pdf" else [f"r.{suffix}", f"r_2.{suffix}"])
    assert all(path.stat().st_size for path in paths) and len(unreadable) == 11 and "broken.jpg" in unreadable[0]
    with pytest.raises(UserError, match="no/r"):
        draw_rank_lists(tmp_path / f"no/r.{suffix}", lists[:1], size=(256, 128))


def words(trained, *more):
    path, cfg, _ = trained
    return ["--weight", str(path), "--device", "cpu", *map(str, more), "DATASETS.ROOT_DIR", cfg.DATASETS.ROOT_DIR]


def test_the_tool_draws_the_worst_first(trained, tmp_path, capsys):
    assert tool.main(words(trained, "--output", tmp_path / "r.png", "--count", 3, "--top", 4)) == 0
    *lines, summary, path = capsys.readouterr().out.splitlines()
    precisions = [float(line.partition("AP ")[2].partition(" ")[0]) for line in lines]
    assert len(lines) == 3 and precisions == sorted(precisions) and "mAP" in summary and path.endswith("r.png")
    with Image.open(tmp_path / "r.png") as picture:
        assert picture.info["dpi"] == pytest.approx((200, 200), abs=1)
    (query,) = {sample.pid for sample in trained[2].trials[0].query if sample.path in lines[0]}
    assert "flip" not in summary
    best = ["--output", tmp_path / "b.svg", "--order", "best", "--pids", f"00{query}"]
    assert tool.main([*words(trained, *best), "TEST.FLIP", "True"]) == 0
    *lines, summary, _ = capsys.readouterr().out.splitlines()
    assert "flip: mAP" in summary
    assert len(lines) == sum(sample.pid == query for sample in trained[2].trials[0].query)
    with pytest.raises(UserError, match="--pids 77"):
        tool.main(words(trained, "--output", tmp_path / "b.svg", "--pids", f"{query},77"))


def test_own_images_in_a_folder_per_identity(trained, tmp_path, capsys):
    paths = sorted({sample.path for side in trained[2].trials[0] for sample in side})
    for number, path in enumerate(paths[:6]):
        (tmp_path / f"own/anna{number // 3}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / f"own/anna{number // 3}/{number}.jpg")
    (tmp_path / "own/anna0/broken.jpg").write_bytes(b"no image")
    given = ["--weight", str(trained[0]), "--device", "cpu", "--output", str(tmp_path / "r.png"), str(tmp_path / "own")]
    assert tool.main([*given, "--order", "random", "--pids", "anna0"]) == 1
    said = capsys.readouterr()
    assert "broken.jpg" in said.err and said.out.count("anna0") == 3 and "6 queries" in said.out
    assert tool.main([*given, "--skip-unreadable"]) == 0


def test_which_of_several_trials_is_shown_is_said(trained, capsys):
    whole = replace(trained[2], trials=trained[2].trials * 2)
    assert first_trial(whole) is whole.trials[0] and whole.name in capsys.readouterr().err
    parts = tuple(replace(whole, name=f"toy ({way})", trials=(whole.trials[0],)) for way in ("forth", "back"))
    assert first_trial(replace(whole, parts=parts)) is whole.trials[0]
    assert "toy (forth)" in capsys.readouterr().err
    assert first_trial(parts[0]) and not capsys.readouterr().err


def test_wrong_words_are_refused(trained, tmp_path, monkeypatch):
    for given, message in (
        (["--output", tmp_path / "r.gif"], "gif"),
        (["--output", tmp_path / "no/r.png"], "no/r.png"),
        ([tmp_path, tmp_path], "FOLDER"),
        ([tmp_path / "none"], "none"),
    ):
        with pytest.raises(UserError, match=message):
            tool.main(words(trained, *given))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"requirements-extra\.txt"):
        tool.main(words(trained))
