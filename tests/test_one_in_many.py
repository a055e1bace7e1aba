"""1:(1+N) retrieval: ranks against brute force, the tool, and ISR's published layout."""

import csv
import json
import shutil

import pytest
import torch

from tools import embed
from tools import one_in_many as tool
from utils.errors import DataError, UserError
from utils.metrics import ignore_nothing, same_camera
from utils.one_in_many import histogram, pairs_that_count, ranks_of_matches
from utils.records import Labels
from utils.verification import Images


def test_pairs_are_those_that_count():
    images = Images(torch.arange(5), Labels(torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 0, 1, 0, 1])))
    found = pairs_that_count(images, images, same_camera)
    assert set(zip(*(field.tolist() for field in found), strict=True)) == {(0, 2, 0), (1, 2, 0), (2, 0, 0), (2, 1, 0)}
    assert len(pairs_that_count(images, images, ignore_nothing).pids) == 6
    with pytest.raises(DataError):
        pairs_that_count(images, Images(images.rows[3:], Labels(*(f[3:] for f in images.labels))), same_camera)


def test_with_all_distractors_ranks_are_those_of_brute_force():
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(60, 6, generator=generator), dim=1)
    features[41] = features[1]  # as similar as the match: ahead of it
    images = Images(torch.arange(60), Labels(torch.arange(60) // 2, torch.zeros(60, dtype=torch.int64)))
    pairs = pairs_that_count(images, images, ignore_nothing)
    options = {"draws": 400, "generator": generator}
    ranks = ranks_of_matches(features, pairs, images, distractors=99, **options)
    wanted = []
    for query, match in zip(pairs.query.tolist(), pairs.match.tolist(), strict=True):
        scores = features.double() @ features[query].double()
        wanted.append(1 + sum(bool(scores[o] >= scores[match]) for o in range(60) if o // 2 != query // 2))
    assert set(ranks.tolist()) == set(wanted)
    assert ranks.double().mean().item() == pytest.approx(sum(wanted) / len(wanted), rel=0.15)
    few = ranks_of_matches(features, pairs, images, distractors=3, **options)
    assert few.max() <= 4 and few.double().mean() < ranks.double().mean()


def test_the_histogram_counts_every_rank_once():
    assert histogram(torch.tensor([1, 1, 2, 5, 6, 10, 11, 50, 501, 2001])) == {
        **{"1": 2, "2-5": 2, "6-10": 2, "11-50": 2},
        **{"51-100": 0, "101-500": 0, "501+": 2},
    }


def test_the_tool_on_a_data_set_and_on_pairs(trained, tmp_path, capsys):
    path, cfg, benchmark = trained
    given = ["--weight", str(path), "--device", "cpu", "--draws", "50", "--output", str(tmp_path / "r.json")]
    assert tool.main([*given, "DATASETS.ROOT_DIR", cfg.DATASETS.ROOT_DIR]) == 0
    said = capsys.readouterr()
    found = json.loads((tmp_path / "r.json").read_text())
    assert sum(found["ranks"].values()) == 50 and found["hit@10"] >= found["hit@1"] and "not 2000" in said.err
    assert tool.main([*given, "DATASETS.ROOT_DIR", cfg.DATASETS.ROOT_DIR]) == 0
    assert json.loads((tmp_path / "r.json").read_text()) == found

    gallery = benchmark.trials[0].gallery
    mine = [sample.path for sample in gallery if sample.pid == gallery[0].pid]
    for number, sample in enumerate(s for s in gallery if s.pid != gallery[0].pid):
        (tmp_path / "others").mkdir(exist_ok=True)
        shutil.copy(sample.path, tmp_path / f"others/{number}.jpg")
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([(mine[0], mine[1]), (mine[0], "none.jpg")])
    pairs = ["--pairs", str(tmp_path / "pairs.csv"), "--gallery"]
    assert tool.main([*given, *pairs, str(tmp_path / "others")]) == 1 and "none.jpg" in capsys.readouterr().err
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["distractors"] == len(list((tmp_path / "others").iterdir())) and found["identities"] == 1
    file = str(tmp_path / "f.npz")
    embed.main(["--weight", str(path), "--device", "cpu", "--output", file, str(tmp_path / "others")])
    assert tool.main([*given, *pairs, file, "--skip-unreadable"]) == 0
    assert json.loads((tmp_path / "r.json").read_text()) == found
    for words in (["--pairs", "p.csv"], [*pairs, "g", "folder"], ["a", "b"]):
        with pytest.raises(UserError):
            tool.main([*given, *words])
