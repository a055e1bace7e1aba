"""Networks compared on the same queries: the bootstrap against loops, and the tool."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import test_svllreid
from model.build import load_model
from tools import compare, release
from utils.bootstrap import paired_difference
from utils.checkpoint import save_checkpoint
from utils.errors import UserError
from utils.metrics import rank_features
from utils.records import Labels
from utils.verification import Estimate


def by_loops(ours, theirs, replicates, generator) -> Estimate:
    """One trial after the other, one replicate after the other."""
    means = []
    for one, other in zip(ours, theirs, strict=True):
        draws = [torch.randint(len(one), (len(one),), generator=generator).tolist() for _ in range(replicates)]
        means.append([sum(float(one[q] - other[q]) for q in drawn) / len(drawn) for drawn in draws])
    drawn = sorted(sum(of_replicate) / len(ours) for of_replicate in zip(*means, strict=True))
    value = sum(float((one - other).mean()) for one, other in zip(ours, theirs, strict=True)) / len(ours)

    def quantile(share: float) -> float:
        place = share * (replicates - 1)
        low = int(place)
        return drawn[low] + (place - low) * (drawn[min(low + 1, replicates - 1)] - drawn[low])

    return Estimate(value, quantile(0.025), quantile(0.975))


@pytest.mark.parametrize("sizes", [(7,), (5, 9)])
def test_the_bootstrap_is_the_one_of_loops(sizes, monkeypatch):
    monkeypatch.setattr("utils.bootstrap.DRAWS_AT_ONCE", 20)  # some replicates at a time, or one
    ours, theirs = ([torch.rand(size, dtype=torch.float64) for size in sizes] for _ in range(2))
    found = paired_difference(ours, theirs, replicates=41, generator=torch.Generator().manual_seed(3))
    assert found == pytest.approx(by_loops(ours, theirs, 41, torch.Generator().manual_seed(3)))


def test_pairing_narrows_the_interval_and_equals_differ_by_nothing():
    hard = torch.rand(200, dtype=torch.float64)
    better = hard + 0.01
    found = paired_difference([better], [hard], generator=torch.Generator().manual_seed(0))
    assert found == pytest.approx((0.01, 0.01, 0.01))
    other = hard[torch.randperm(200)] + 0.01  # the same values, of other queries
    value, low, high = paired_difference([other], [hard], generator=torch.Generator().manual_seed(0))
    assert value == pytest.approx(0.01) and low < 0 < high


def test_a_ranking_has_the_figures_of_its_queries():
    labels = Labels(torch.tensor([0, 1, 9]), torch.tensor([0, 0, 0])), Labels(torch.arange(4) % 2, torch.ones(4))
    ranking = rank_features(torch.randn(3, 5), torch.randn(4, 5), *labels)
    assert ranking.num_valid == len(ranking.precision) == len(ranking.hit) == 2  # the third has no match
    assert ranking.mAP == pytest.approx(ranking.precision.mean().item())
    assert ranking.cmc[0] == ranking.hit.mean()


@pytest.fixture(scope="module")
def networks(trained, tmp_path_factory) -> tuple[Path, Path, list[str]]:
    """A checkpoint, one with other weights, and what says where the images are."""
    folder = tmp_path_factory.mktemp("networks")
    contents = torch.load(trained[0], weights_only=True)
    first = Path(shutil.copy(trained[0], folder / "first.pth"))
    for name, value in contents["model"].items():
        if name.startswith("image.visual.transformer") and value.is_floating_point():
            contents["model"][name] = value + 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    del contents["format"]
    save_checkpoint(folder / "second.pth", contents)
    return first, folder / "second.pth", ["DATASETS.ROOT_DIR", trained[1].DATASETS.ROOT_DIR]


def run(tmp_path: Path, *words: str) -> tuple[int, dict]:
    target = tmp_path / "compare.json"
    code = compare.main(["--output", str(target), "--device", "cpu", "--batch", "2", "--repeats", "1", *words])
    return code, json.loads(target.read_text())


def test_figures_are_those_of_a_test_and_differences_theirs(networks, tmp_path, capsys):
    first, second, places = networks
    weights = ["--weight", str(first), "--weight", str(second)]
    code, found = run(tmp_path, *weights, "--data", "synthetic", *places, "TEST.FLIP", "True")
    assert code == 0 and found["failed"] == {}
    for weight, row in zip((first, second), found["networks"], strict=True):
        out = tmp_path / weight.stem
        file = test_svllreid.main(["TEST.WEIGHT", str(weight), "OUTPUT_DIR", str(out), *places, "TEST.FLIP", "True"])
        (entry,) = json.loads(file.read_text())["evaluations"]
        assert {name: row[name] for name in entry} == entry
        assert row["milliseconds_per_image"] > 0
        assert row["parameters"] == sum(p.numel() for p in load_model(weight).image.parameters())
    one, other = found["networks"]
    assert one["difference"] is None and other["mAP"] != one["mAP"]
    for figure in ("mAP", "rank1"):
        value, low, high = other["difference"][figure].values()
        assert value == pytest.approx(other[figure] - one[figure], abs=1e-9) and low <= value <= high
    out = capsys.readouterr().out
    assert f"| {100 * other['mAP']:.1f} |" in out and "batches of 2" in out
    assert "flip" in next(line for line in out.splitlines() if line.startswith("| data set |"))
    again = run(tmp_path, *weights, *places, "TEST.FLIP", "True")[1]["networks"][1]
    assert again["difference"] == other["difference"]  # seeded; the data set is the checkpoint's


def test_networks_are_timed_in_turn_on_a_machine_that_slows_down(networks, tmp_path, monkeypatch):
    real, now, timed = compare.embed_images, [0.0], []

    def embed(model, *rest, **options):
        now[0] += len(timed)  # every call takes a second longer than the one before
        timed.append(id(model))
        return real(model, *rest, **options)

    monkeypatch.setattr(compare, "embed_images", embed)
    clock = SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: 0.0)
    monkeypatch.setattr("tools.benchmark.machine.time", clock)
    first, second, places = networks
    _, found = run(tmp_path, "--weight", str(first), "--weight", str(second), *places, "--repeats", "3")
    assert len(set(timed)) == 2 and timed == timed[:2] * 4  # the first of each does not count
    # Medians of (2, 4, 6) and (3, 5, 7) seconds, of two images.
    assert [row["milliseconds_per_image"] for row in found["networks"]] == [2000, 2500]


def test_what_cannot_be_read_is_named_and_the_others_are_done(networks, tmp_path, capsys):
    first, second, places = networks
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    release.main(["--weight", str(second), "--output", str(tmp_path / "released")])
    weights = [tmp_path / "broken.pth", tmp_path / "gone.pth", first, tmp_path / "released"]
    code, found = run(tmp_path, *(word for weight in weights for word in ("--weight", str(weight))), *places)
    assert code == 1 and [row["checkpoint"] for row in found["networks"]] == [str(path) for path in weights[2:]]
    said = capsys.readouterr().err
    assert all(f"error: {path}: " in said for path in weights[:2]) and found["failed"].keys() == {
        *map(str, weights[:2])
    }
    assert found["networks"][1]["difference"]["mAP"]["value"]
    with pytest.raises(UserError, match="none of the networks"):
        run(tmp_path, "--weight", str(weights[0]), *places)
    code, found = run(tmp_path, "--weight", str(first), "--data", "synthetic", "--data", "market1501", *places)
    assert code == 1 and len(found["networks"]) == 1 and f"{first} on market1501" in found["failed"]


def test_other_queries_are_not_paired(networks, tmp_path, capsys):
    first, second, places = networks
    (alone,) = run(tmp_path, "--weight", str(first), *places)[1]["networks"]
    contents = torch.load(second, weights_only=True)
    contents["config"]["TEST"]["PROTOCOL"] = "all"  # which is its own only on the images of its training
    contents["fingerprint"] = {"data_fingerprint": alone["data_fingerprint"]}
    torch.save(contents, tmp_path / "other.pth")
    code, found = run(tmp_path, "--weight", str(first), "--weight", str(tmp_path / "other.pth"), *places)
    assert code == 1 and found["networks"][1]["difference"] is None and not found["networks"][1]["paired"]
    assert compare.OTHER in capsys.readouterr().out


def test_the_same_network_twice_and_an_output_without_a_folder_are_refused(networks, tmp_path):
    words = ["--weight", str(networks[0])]
    with pytest.raises(UserError, match="--weight"):
        compare.main([*words, *words])
    with pytest.raises(UserError, match="--output"):
        compare.main([*words, "--output", str(tmp_path / "no" / "compare.json")])
