"""Released networks: the folder gives the checkpoint's features, wherever it is; its card says what is known."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml

import test_svllreid
from configs import load, to_dict
from model.build import load_model
from model.weights import read_weights
from processor.card import method_of, without_front_matter
from processor.inference import Embedder
from processor.release import card_of
from tools import release, verify
from tools.calibrate.__main__ import main as calibrate_main
from utils import hub, release_folder
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.errors import DataError, UserError, WeightsError
from utils.release_folder import CALIBRATION, CARD, CONFIG, FILES, TENSORS

RE_RANKED = ("TEST.RE_RANKING", "True", "TEST.RE_RANKING_K1", "4", "TEST.RE_RANKING_K2", "2")


def head_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.fixture
def checkpoint(trained, tmp_path) -> Path:
    """A copy of the checkpoint, so that what is written beside it is this test's."""
    return Path(shutil.copy(trained[0], tmp_path / "model.pth"))


@pytest.fixture
def released(checkpoint, tmp_path) -> Path:
    folder = tmp_path / "new" / "released"
    release.main(["--weight", str(checkpoint), "--output", str(folder), "--device", "cpu"])
    return folder


@pytest.mark.parametrize("words", [(), ("TEST.FLIP", "True", "TEST.NECK_FEAT", "after")])
def test_features_and_digest_are_the_checkpoints_bit_for_bit(trained, checkpoint, tmp_path, words):
    images = [sample.path for sample in trained[2].trials[0].query][:3]
    folder = tmp_path / "released"
    folder.mkdir()  # an empty one is no obstacle
    release.main(["--weight", str(checkpoint), "--output", str(folder), *words])
    ours, theirs = (
        Embedder.from_checkpoint(checkpoint, device="cpu", overrides=words),
        Embedder.from_checkpoint(folder, device="cpu"),
    )
    assert torch.equal(ours(images), theirs(images)) and ours.digest == theirs.digest
    batch = torch.stack([ours.prepare(image) for image in images])
    whole, part = (load_model(path).eval() for path in (checkpoint, folder))
    assert torch.equal(whole.embed(batch), part.embed(batch)) and part.text is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pth", "released"]


def test_it_is_tested_like_the_checkpoint(trained, checkpoint, released, tmp_path):
    found = []
    for weight in (checkpoint, released):
        words = ["TEST.WEIGHT", str(weight), "DATASETS.ROOT_DIR", trained[1].DATASETS.ROOT_DIR]
        file = test_svllreid.main([*words, "OUTPUT_DIR", str(tmp_path / weight.stem)])
        (entry,) = json.loads(file.read_text())["evaluations"]
        found.append({name: value for name, value in entry.items() if name != "checkpoint"})
    assert found[0] == found[1]


def test_the_data_set_of_the_training_is_known_again(checkpoint, tmp_path):
    contents = read_checkpoint(checkpoint)
    contents["fingerprint"] = {"data_fingerprint": {"train": "0123", "test": "4567"}}
    save_checkpoint(checkpoint, contents)
    release.main(["--weight", str(checkpoint), "--output", str(tmp_path / "released"), "--device", "cpu"])
    ours, theirs = map(read_weights, (checkpoint, tmp_path / "released"))
    assert (theirs.trained_on, theirs.tested_on) == (ours.trained_on, ours.tested_on) == ("0123", ("4567",))


def test_a_folder_that_is_there_is_not_overwritten(checkpoint, released):
    before = (released / CONFIG).read_bytes()
    for target in (released, checkpoint):
        with pytest.raises(UserError, match="exists already"):
            release.main(["--weight", str(checkpoint), "--output", str(target)])
    assert (released / CONFIG).read_bytes() == before


def test_an_interrupted_release_leaves_nothing_that_loads(checkpoint, tmp_path, monkeypatch):
    def stops(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(release_folder.json, "dumps", stops)
    embedder = Embedder.from_checkpoint(checkpoint, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        release_folder.write_release(tmp_path / "released", embedder.model.state_dict(), {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("file", [CONFIG, TENSORS])
@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_a_folder_that_is_not_whole_is_refused(released, file, damage):
    path = released / file
    contents = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(contents[:-100] if damage == "cut" else b'{"format": "other"}')
    with pytest.raises(WeightsError, match=file.replace(".", r"\.")):
        Embedder.from_checkpoint(released, device="cpu")


def test_a_changed_number_and_a_pickled_file_are_refused(checkpoint, released):
    path = released / TENSORS
    contents = bytearray(path.read_bytes())
    contents[-3] ^= 1  # a weight's last digits, which safetensors does not notice
    path.write_bytes(contents)
    with pytest.raises(WeightsError, match=r"model\.safetensors: is not the file"):
        Embedder.from_checkpoint(released, device="cpu")
    facts = json.loads((released / CONFIG).read_text())
    shutil.copy(checkpoint, path)
    facts["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (released / CONFIG).write_text(json.dumps(facts))
    with pytest.raises(WeightsError, match="no safetensors file"):
        Embedder.from_checkpoint(released, device="cpu")


def test_a_field_that_is_wrong_is_named(released):
    contents = json.loads((released / CONFIG).read_text())
    contents["architecture"]["stride"] = "x"
    (released / CONFIG).write_text(json.dumps(contents))
    with pytest.raises(WeightsError, match=r"architecture\.stride"):
        load_model(released)


def test_no_folder_of_this_machine_is_in_it(trained, released):
    root = trained[1].DATASETS.ROOT_DIR
    assert all(root.encode() not in path.read_bytes() for path in released.iterdir())


def test_a_calibration_goes_with_it(trained, checkpoint, tmp_path, capsys):
    images = [sample.path for sample in trained[2].trials[0].query][:2]
    words = ["--weight", str(checkpoint), "--no-figure", "DATASETS.ROOT_DIR", trained[1].DATASETS.ROOT_DIR]
    assert calibrate_main(words) == 0
    with pytest.raises(DataError, match="other settings"):
        release.main(["--weight", str(checkpoint), "--output", str(tmp_path / "flipped"), "TEST.FLIP", "True"])
    assert not (tmp_path / "flipped").exists()
    release.main(["--weight", str(checkpoint), "--output", str(tmp_path / "released")])
    capsys.readouterr()
    said = []
    for weight in (checkpoint, tmp_path / "released"):
        assert verify.main(["--weight", str(weight), "--json", *images]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0]["threshold"] == said[1]["threshold"] is not None
    assert said[1]["calibration"] == str(tmp_path / "released" / CALIBRATION)


def test_the_card_says_what_is_known_and_nothing_else(trained, checkpoint, tmp_path):
    words = ["TEST.WEIGHT", str(checkpoint), "DATASETS.ROOT_DIR", trained[1].DATASETS.ROOT_DIR]
    test_svllreid.main(words)
    test_svllreid.main([*words, *RE_RANKED])
    test_svllreid.main([*words, *RE_RANKED])  # the last of its kind counts
    embedder = Embedder.from_checkpoint(checkpoint, device="cpu")
    card = card_of(checkpoint, embedder)
    head = head_of(card)
    assert head["license"] == "mit" and head["datasets"] == ["synthetic"]
    assert head["pipeline_tag"] == "image-feature-extraction" and "person-re-identification" in head["tags"]
    (index,) = head["model-index"]
    assert len(index["results"]) == 2 and "k1 4" in index["results"][1]["metrics"][0]["name"]
    huggingface_hub.ModelCard(card).data.to_dict()  # the Hub's own reader
    text = without_front_matter(card)
    assert text.startswith("# model\n") and embedder.digest in text and "SVLL-ReID" in text
    assert text.count("| synthetic |") == 2 and "64 × 32" in text and trained[1].DATASETS.ROOT_DIR not in text
    table = [line for line in text.partition("## Results")[2].splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 4
    folder = tmp_path / "released"
    release.main(["--weight", str(checkpoint), "--output", str(folder), "--license", "cc-by-4.0"])
    again = card_of(folder, Embedder.from_checkpoint(folder, device="cpu"))
    assert again == (folder / CARD).read_text() and head_of(again)["license"] == "cc-by-4.0"


def test_terms_of_data_and_weights_are_named(trained, tmp_path):
    contents = torch.load(trained[0], weights_only=True)
    contents["config"]["DATASETS"]["NAMES"] = "market1501+dukemtmc"
    contents["config"]["MODEL"]["PRETRAIN"] = "none"
    torch.save(contents, tmp_path / "real.pth")
    card = card_of(tmp_path / "real.pth", Embedder.from_checkpoint(tmp_path / "real.pth", device="cpu"))
    assert head_of(card)["license"] == "other" and head_of(card)["datasets"] == ["market1501", "dukemtmc"]
    assert "Market-1501: its authors' terms" in card and "withdrawn" in card and "## Results" not in card


# --------------------------------------------------------------------------------------------------------------- Hub


@pytest.fixture
def repository(released, monkeypatch) -> Path:
    """The folder as the Hub's cache on this machine has it, under the name of user/name; without a network."""
    asked = []

    def snapshot(repo_id, revision, allow_patterns, local_files_only=False):
        asked.append((repo_id, revision))
        if (repo_id, revision) != ("user/name", None):
            raise FileNotFoundError("not in the cache")
        return str(released)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(hub, "answers", lambda address: False)
    return released


def test_the_hubs_cache_is_read_without_a_network(trained, checkpoint, repository, capsys):
    images = [sample.path for sample in trained[2].trials[0].query][:2]
    ours = Embedder.from_checkpoint(checkpoint, device="cpu")
    assert Embedder.from_checkpoint("hf-hub:user/name", device="cpu").digest == ours.digest
    assert load_model("hf-hub:user/name").architecture["num_pids"] == 0
    assert verify.main(["--weight", "hf-hub:user/name", *images]) == 0
    with pytest.raises(
        WeightsError, match=r"hf-hub:user/name@v2: .*download model\.safetensors, config\.json from http"
    ):
        load_model("hf-hub:user/name@v2")
    for wrong in ("hf-hub:", "hf-hub:name", "hf-hub:../../etc/x"):
        with pytest.raises(UserError, match="expected hf-hub:user/name"):
            verify.main(["--weight", wrong, *images])


def test_what_is_not_here_is_downloaded_once_with_its_reason_if_it_fails(released, monkeypatch):
    def snapshot(repo_id, revision, allow_patterns, local_files_only=False):
        if local_files_only:
            raise FileNotFoundError("not in the cache")
        assert set(allow_patterns) == set(FILES) and "README.md" in FILES
        if repo_id == "user/broken":
            raise ConnectionError("reset by peer")
        return str(released)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(hub, "answers", lambda address: True)
    assert load_model("hf-hub:user/name").architecture["name"] == "ViT-Tiny-8"
    with pytest.raises(WeightsError, match=r"reset by peer.*download model\.safetensors"):
        load_model("hf-hub:user/broken")
    (released / CONFIG).unlink()
    with pytest.raises(WeightsError, match=r"no released network.*config\.json"):
        load_model("hf-hub:user/name")


def test_results_of_a_network_from_the_hub_need_a_folder(repository):
    with pytest.raises(UserError, match="OUTPUT_DIR"):
        test_svllreid.main(["TEST.WEIGHT", "hf-hub:user/name"])


def test_push_uploads_the_folder_to_a_private_repository(checkpoint, tmp_path, monkeypatch, capsys):
    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))
            return "https://hub/user/name"

        def upload_folder(self, *, repo_id, folder_path, allow_patterns):
            calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
            if repo_id == "user/full":
                raise OSError("quota exceeded")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(hub, "answers", lambda address: True)
    words = ["--weight", str(checkpoint), "--output"]
    release.main([*words, str(tmp_path / "a"), "--push", "user/name"])
    assert calls[0] == ("user/name", {"private": True, "exist_ok": True})
    assert calls[1][0] == "user/name" and {TENSORS, CONFIG, CARD} <= set(calls[1][1]) <= set(FILES)
    assert "https://hub/user/name" in capsys.readouterr().out
    assert 'from_checkpoint("hf-hub:user/name")' in (tmp_path / "a" / CARD).read_text()
    with pytest.raises(UserError, match=r"quota exceeded; .*hf upload user/full"):
        release.main([*words, str(tmp_path / "b"), "--push", "user/full"])
    assert load_model(tmp_path / "b")


def test_push_is_refused_before_anything_is_written(checkpoint, tmp_path, monkeypatch):
    words = ["--weight", str(checkpoint), "--output", str(tmp_path / "a"), "--push"]
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="--push user/name: nobody is logged in"):
        release.main([*words, "user/name"])
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(hub, "answers", lambda address: False)
    for name, said in (("user/name", "does not answer"), ("name", "expected user/name")):
        with pytest.raises(UserError, match=said):
            release.main([*words, name])
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ("person/vit_svllreid", "SVLL-ReID"),
        ("person/vit_clipreid", "CLIP-ReID"),
        ("person/vit_base", "baseline"),
        ("person/vit_pcl", "PCL-CLIP"),
        ("sysu/cclnet", "CCLNet"),
    ],
)
def test_the_card_calls_a_method_as_the_readme_does(config, method):
    assert method_of(to_dict(load(f"configs/{config}.yml"))) == method
