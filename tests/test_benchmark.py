"""The benchmark: every part runs, and what it compares does the same. Nothing here looks at how long it took."""

from __future__ import annotations

import json

import pytest
import torch

from tools.benchmark import __main__ as benchmark
from tools.benchmark import clustering, image, ranking, reranking, text
from tools.benchmark.data import labelled_features
from tools.benchmark.machine import Clock, Run
from tools.benchmark.measure import Case, Measured, Setting, Way, counts_of, measure
from tools.benchmark.network import make_network
from tools.benchmark.report import table
from utils.clustering import cluster, near_pairs
from utils.errors import UserError
from utils.metrics import rank_features
from utils.records import Labels
from utils.reranking import rerank

CPU = torch.device("cpu")
SMALL = Setting(CPU, scale=0.01, name="ViT-Tiny-8", batch=4, identities=2)


@pytest.mark.parametrize("part", benchmark.PARTS)
def test_a_part_is_measured_and_written(part, tmp_path, capsys):
    file = tmp_path / "x.json"
    words = ["--scale", "0.005", "--batch", "4", "--identities", "2", "--repeats", "2", "--device", "cpu"]
    benchmark.main([part, *words, "--json", str(file)])
    written = json.loads(file.read_text(encoding="utf-8"))
    lines = capsys.readouterr().out.splitlines()
    assert {case["part"] for case in written["cases"]} == {part} and written["machine"]["scale"] == 0.005
    for case in written["cases"]:
        assert f"{part}: {case['title']}" in lines
        for way in case["ways"]:
            assert sum(line.startswith(f"| {way['name']} |") for line in lines) >= 1
            assert len(way["runs"]) == 2 and all(run["wall"] > 0 for run in way["runs"])


def test_growth_is_drawn_where_it_is_measured(tmp_path):
    words = ["--scale", "0.005", "--batch", "4", "--repeats", "1", "--device", "cpu", "--figure"]
    benchmark.main(["growth", *words, str(tmp_path / "x.svg")])
    assert (tmp_path / "x.svg").read_text(encoding="utf-8").count("re-ranking") >= 1
    with pytest.raises(UserError, match="growth"):
        benchmark.main(["text", *words, str(tmp_path / "y.svg")])


def test_texts_by_the_textbook_are_those_of_the_text_tower():
    model = make_network(SMALL).double()
    prompts = model.prompts(torch.tensor([0, 1]))
    theirs = text.textbook_features(model.text, prompts, model.prompts.end)
    torch.testing.assert_close(model.text(prompts, model.prompts.end), theirs, rtol=1e-11, atol=1e-11)


def test_both_ways_of_the_image_part_compute_the_same():
    for case in image.cases(SMALL):
        textbook, ours = case.ways
        torch.testing.assert_close(ours.run(), textbook.run(), rtol=1e-4, atol=1e-4)
        assert ours.flops < textbook.flops


def test_operators_are_counted_without_views():
    some = torch.ones(2, 3)
    assert counts_of(lambda: (some.T @ some).view(9)[:4].add(1)) == {"flops": 36.0, "calls": 2}


def test_ways_take_turns_and_short_ones_are_warmed_up():
    calls = []
    ways = tuple(Way(name, lambda name=name: calls.append(name), 2.0) for name in "ab")
    found = measure(Case("x", ways), CPU, 2)
    assert calls == ["a", "a", "b", "b", "a", "b"]
    assert [len(one.runs) for one in found] == [2, 2, 2]


def test_a_table_has_medians_speed_ups_and_shares():
    def measured(name: str, flops: float | None, *seconds: float) -> Measured:
        return Measured(Way(name, list, flops, calls=70), [Run(2 * each, each, 3_000_000) for each in seconds])

    found = [measured("slow", 8e12, 4, 4, 6), measured("fast", None, 1, 2, 2), measured("product", 4e12, 1, 1, 1)]
    lines = table(found, CPU).splitlines()
    assert lines[2] == "| slow | 8 (8–12) | 4 (4–6) | 1.00 | 8 | 50% | 70 | 3 |"
    assert lines[3] == "| fast | 4 (2–4) | 2 (1–2) | 3.00 |  |  | 70 | 3 |"


def test_the_clock_sees_memory_that_is_given_back_or_was_free():
    blocks = [bytearray(100_000) for _ in range(4000)]
    last = blocks.pop()  # so that the system does not get the others back
    del blocks
    with Clock(CPU) as clock:
        torch.ones(50_000_000)
    assert len(last) and (clock.run.memory is None or 190e6 < clock.run.memory < 300e6)


def test_both_textbooks_rank_as_the_program_does():
    features, labels = labelled_features(300, 16, 20, 3, CPU)
    query, gallery = features.split((60, 240))
    ids = [Labels(*some) for some in zip(*(field.split((60, 240)) for field in labels), strict=True)]
    expected = rank_features(query, gallery, *ids)
    test = ranking.Arrays(*(array.numpy() for array in (query, gallery, *ids[0], *ids[1])))
    for precision, inverse, cmc in (
        ranking.published(test),
        ranking.textbook(test, 7),
        ranking.textbook(test, 60),
    ):
        assert (precision, inverse) == pytest.approx((expected.mAP, expected.mINP), abs=1e-12)
        assert cmc == pytest.approx(expected.cmc.numpy(), abs=1e-12)
    assert 0.05 < expected.mAP < 0.95


def test_ranking_is_measured_however_few_images_there_are():
    for case in ranking.cases(SMALL._replace(scale=0.001)):
        for way in case.ways:
            way.run()


def test_what_does_not_fit_is_left_out(monkeypatch):
    names = {True: "published, numpy", False: "textbook, numpy"}
    for fits, free in ((True, 10**12), (False, 10)):
        monkeypatch.setattr(ranking, "available_memory", lambda free=free: free)
        assert {case.ways[0].name for case in ranking.cases(SMALL)} == {names[fits]}


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (7, 1), (5, 9)])
def test_both_dense_ways_re_rank_as_the_program_does(k1, k2):
    features = labelled_features(300, 16, 20, 1, CPU)[0].double()
    query, gallery = features.split((60, 240))
    expected = rerank(query, gallery, k1, k2, 0.3)
    for weigh in (reranking.published_weights, reranking.textbook_weights):
        found = reranking.dense(query.numpy(), gallery.numpy(), k1, k2, 0.3, weigh)
        torch.testing.assert_close(torch.from_numpy(found).float(), expected, rtol=0, atol=1e-6)


def test_the_textbook_clusters_as_the_program_does():
    features = labelled_features(400, 16, 20, 1, CPU)[0].double()
    expected = cluster(near_pairs(features, 0.6, 20, 6), 0.6, 4)
    assert clustering.textbook(features.numpy(), 0.6, 4, 20, 6).tolist() == expected.tolist()
    assert int(expected.max()) > 5 and (expected < 0).any()


def test_a_share_of_the_images():
    assert SMALL.of(15913) == 159 and SMALL.of(10) == 2
