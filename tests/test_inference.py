"""Embedding single images: the same features as evaluation, from whatever an image comes as; its tool."""

import csv
import errno
import json
import os
import shutil
from argparse import Namespace
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image, ImageSequence

from configs import ConfigError, load, to_dict
from datasets.build import make_loader
from datasets.find_images import find_images
from datasets.images import read_image
from model.build import load_model, make_model
from model.clip import ResNetTower
from processor.attention import attention_map
from processor.evaluate import embed_all
from processor.export import Retrieval, export_onnx, session_options
from processor.inference import Embedder
from tests.builders import benchmark as toy
from tools import compare, embed, export, one_in_many, release, search, verify
from tools.app import __main__ as app
from tools.calibrate import __main__ as calibrate
from tools.inference import short_names
from tools.labelled_images import embed_samples
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.errors import DataError, UserError, WeightsError
from utils.feature_file import read_features
from utils.records import Sample

CPU = torch.device("cpu")


def paths_of(benchmark):
    return [sample.path for sample in benchmark.trials[0].gallery]


def test_features_are_those_that_evaluation_compares(trained):
    path, cfg, benchmark = trained
    embedder = Embedder.from_checkpoint(path, device="cpu")
    loader = make_loader(cfg, benchmark.trials[0].gallery, train=False)
    neck = cfg.TEST.NECK_FEAT == "after"
    expected = embed_all(load_model(path), loader, device=CPU, neck=neck, side="mean")
    found = embedder(paths_of(benchmark))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=1))
    for words in (["TEST.NECK_FEAT", "before" if neck else "after"], ["TEST.SIE", "none"], ["TEST.FLIP", "True"]):
        other = Embedder.from_checkpoint(path, device="cpu", overrides=words)
        assert not torch.allclose(other(paths_of(benchmark)), found, atol=1e-3) and other.digest != embedder.digest


def test_features_are_in_the_precision_of_evaluation(trained, tmp_path):
    path, cfg, benchmark = trained
    paths = paths_of(benchmark)
    embedder = Embedder.from_checkpoint(path, device="cpu", overrides=["TEST.PRECISION", "bf16"])
    loader = make_loader(cfg, benchmark.trials[0].gallery, train=False)
    options = {"neck": cfg.TEST.NECK_FEAT == "after", "side": "mean", "precision": "bf16"}
    expected = torch.nn.functional.normalize(embed_all(load_model(path), loader, device=CPU, **options), dim=1)
    exact = Embedder.from_checkpoint(path, device="cpu")
    found = embedder(paths)
    torch.testing.assert_close(found, expected)
    assert found.dtype == torch.float32 and not torch.allclose(found, exact(paths), atol=1e-3)
    assert embedder.digest != exact.digest
    with pytest.raises(UserError, match=r"TEST\.PRECISION"):
        Embedder.from_checkpoint(path, device="cpu", overrides=["TEST.PRECISION", "tf32"])
    for refused in (lambda: attention_map(embedder, paths[0]), lambda: export_onnx(embedder, tmp_path / "a.onnx", [])):
        with pytest.raises(UserError, match=r"TEST\.PRECISION bf16"):
            refused()


def test_a_path_an_image_and_an_array_are_one_image_bit_for_bit(trained, tmp_path):
    path, _, benchmark = trained
    embedder = Embedder.from_checkpoint(path, device="cpu")
    file = tmp_path / "upright.png"
    turned = Image.open(paths_of(benchmark)[0]).convert("RGBA")
    turned.putalpha(128)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(file, exif=exif)
    inputs = [str(file), file, Image.open(file), np.asarray(read_image(str(file)))]
    assert all(torch.equal(embedder.prepare(inputs[0]), embedder.prepare(other)) for other in inputs[1:])


def test_images_in_memory_are_taken_as_they_are_when_they_are_given(trained, tmp_path):
    path, _, _ = trained
    embedder = Embedder.from_checkpoint(path, device="cpu")
    frames = [Image.new("RGB", (32, 64), colour) for colour in ("red", "green", "blue", "white")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "film.gif") as film:
        found = embedder(ImageSequence.Iterator(film))  # one object, which turns to its next frame
    with Image.open(tmp_path / "film.gif") as film:
        assert torch.equal(found, embedder([frame.copy() for frame in ImageSequence.Iterator(film)]))
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    Image.new("RGB", (2000, 2000), "red").save(tmp_path / "large.png")
    with Image.open(tmp_path / "large.png") as image:
        features = embedder([image] * 16)  # decoded when it is first looked at
    assert torch.equal(features, features[:1].expand(16, -1))


def test_one_image_is_not_taken_for_several(trained):
    path, _, benchmark = trained
    embedder, name = Embedder.from_checkpoint(path, device="cpu"), paths_of(benchmark)[0]
    for image in (name, Path(name), read_image(name), np.asarray(read_image(name))):
        with pytest.raises(DataError, match=r"expected several images; of one, \[image\]"):
            embedder(image)
    several = np.stack([np.asarray(read_image(name))] * 2)
    torch.testing.assert_close(embedder(several), embedder([name, name]))


def test_batches_change_nothing(trained):
    path, _, benchmark = trained
    paths = paths_of(benchmark)
    one, many = (Embedder.from_checkpoint(path, device="cpu", batch_size=size)(paths) for size in (1, 64))
    torch.testing.assert_close(one, many, atol=1e-5, rtol=0)
    assert Embedder.from_checkpoint(path, device="cpu")([]).shape == (0, many.shape[1])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 4, 3), dtype=np.float32),
        np.zeros((8, 4), dtype=np.uint8),
        np.zeros((3, 8, 4), dtype=np.uint8),
        torch.zeros(3, 8, 4),
        None,
    ],
    ids=["float", "grey", "channels first", "tensor", "None"],
)
def test_what_is_no_image_is_refused(trained, image):
    with pytest.raises(DataError, match="RGB of uint8"):
        Embedder.from_checkpoint(trained[0], device="cpu")([image])


@pytest.mark.parametrize("image", [np.zeros((0, 4, 3), dtype=np.uint8), Image.new("RGB", (5, 0))], ids=["array", "PIL"])
def test_a_crop_without_pixels_has_no_features(trained, image):
    embedder, name = Embedder.from_checkpoint(trained[0], device="cpu"), paths_of(trained[2])[0]
    with pytest.raises(DataError, match="no pixels"):
        embedder([image])
    told = []
    found = embedder([image, name], skip=lambda place, _: told.append(place))
    assert told == [0] and torch.equal(found, embedder([name]))


def test_a_table_names_files_that_are_in_no_encoding(trained, tmp_path):
    path, _, benchmark = trained
    name = os.fsencode(tmp_path) + b"/f\xfcr.jpg"  # as of an old system
    shutil.copy(paths_of(benchmark)[0], name)
    words = ["--weight", str(path), "--device", "cpu", "--output", str(tmp_path / "f.npz")]
    assert embed.main([*words, "--csv", str(tmp_path / "f.csv"), str(tmp_path)]) == 0
    assert name in (tmp_path / "f.csv").read_bytes()
    assert read_features(tmp_path / "f.npz").names == [os.fsdecode(name)]


@pytest.mark.parametrize(
    ("tool", "option", "name", "more"),
    [
        (embed, "--output", "f.npz", ["IMAGE"]),
        (embed, "--csv", "f.csv", ["IMAGE"]),
        (search, "--output", "s.json", ["--no-cache", "--gallery", "FOLDER", "IMAGE"]),
        (search, "--csv", "s.csv", ["--no-cache", "--gallery", "FOLDER", "IMAGE"]),
        (one_in_many, "--output", "o.json", ["--draws", "1"]),
        (export, "--output", "e.pt", ["--layout", "published"]),
        (compare, "--output", "c.json", []),
    ],
)
def test_results_that_cannot_be_written_are_said(trained, tmp_path, monkeypatch, tool, option, name, more):
    path, _, benchmark = trained
    given = paths_of(benchmark)[0]
    words = ["--weight", str(path), "--device", "cpu", option, str(tmp_path / name)]
    words += [{"IMAGE": given, "FOLDER": str(Path(given).parent)}.get(word, word) for word in more]
    monkeypatch.chdir(tmp_path)
    replace = os.replace

    def full(source, target):
        if Path(target).name == name:
            raise OSError(errno.ESTALE, "Stale file handle")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=rf"{name}: cannot be written \(Stale file handle\)"):
        tool.main(words)
    assert not [one for one in tmp_path.iterdir() if one.name.endswith((name, ".tmp"))]


def test_an_unreadable_image_is_raised_or_skipped(trained, tmp_path):
    path, _, benchmark = trained
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    images = [*paths_of(benchmark)[:2], tmp_path / "broken.jpg", paths_of(benchmark)[2]]
    embedder = Embedder.from_checkpoint(path, device="cpu", batch_size=2)
    with pytest.raises(DataError, match="broken"):
        embedder(images)
    told = []
    found = embedder(images, skip=lambda place, error: told.append((place, "broken.jpg" in str(error))))
    assert told == [(2, True)] and torch.equal(found, embedder(paths_of(benchmark)[:3]))


def test_the_tool_writes_features_that_only_this_network_may_read(trained, tmp_path, capsys):
    path, _, benchmark = trained
    folder = tmp_path / "gallery" / "inner"
    folder.mkdir(parents=True)
    for number, source in enumerate(paths_of(benchmark)[:3]):
        shutil.copy(source, folder / f"{number}.jpg")
    (folder / "notes.txt").write_text("no image")
    words = ["--weight", str(path), "--device", "cpu", "--output", str(tmp_path / "f.npz")]
    words += ["--csv", str(tmp_path / "f.csv")]
    assert embed.main([*words, str(tmp_path / "gallery"), str(folder / "*.jpg"), "TEST.FLIP", "True"]) == 0
    embedder = Embedder.from_checkpoint(path, device="cpu", overrides=["TEST.FLIP", "True"])
    found = read_features(tmp_path / "f.npz", embedder.digest)
    assert found.names == [str(folder / f"{number}.jpg") for number in range(3)]
    assert torch.equal(found.features, embedder(found.names))
    header, *rows = csv.reader((tmp_path / "f.csv").open(newline=""))
    assert len(header) == 1 + found.features.shape[1]
    assert torch.equal(torch.tensor([[float(word) for word in row[1:]] for row in rows]), found.features)
    with pytest.raises(DataError, match=embedder.digest):
        read_features(tmp_path / "f.npz", "other")

    (folder / "3.jpg").write_bytes(b"no image")
    assert embed.main([*words, str(folder)]) == 1 and "3.jpg" in capsys.readouterr().err
    assert embed.main([*words, str(folder), "--skip-unreadable"]) == 0
    assert len(read_features(tmp_path / "f.npz").names) == 3


def test_wrong_words_are_refused(trained, tmp_path):
    weight = ["--weight", str(trained[0])]
    for words, error in (
        (weight, UserError),
        ([*weight, str(tmp_path / "nothing")], UserError),
        ([*weight, str(tmp_path / "*.jpg")], DataError),
        ([*weight, str(tmp_path)], DataError),
        (["--weight", str(tmp_path / "x.pth"), "a.jpg"], UserError),
        ([*weight, str(tmp_path), "--output", str(tmp_path / "no" / "f.npz")], UserError),
        ([*weight, paths_of(trained[2])[0], "TEST.FLIPP", "True"], ConfigError),
        ([*weight, "a.jpg", "--batch_size", "0"], SystemExit),
    ):
        with pytest.raises(error):
            embed.main(words)
    (tmp_path / "f.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"f\.npz"):
        read_features(tmp_path / "f.npz")
    published = tmp_path / "published.pth"
    torch.save({"image_encoder.proj": torch.zeros(2, 2)}, published)
    with pytest.raises(WeightsError, match="config_file"):
        Embedder.from_checkpoint(published)


def test_images_after_settings_are_told_so(trained):
    images = paths_of(trained[2])[:2]
    for tool in (embed, verify):
        with pytest.raises(UserError, match="settings come last"):
            tool.main(["--weight", str(trained[0]), "TEST.FLIP", "True", *images])


def test_files_are_found_once_in_order(tmp_path):
    for name in ("b.jpg", "a.PNG", "c.txt", "in/d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(tmp_path / name) for name in ("c.txt", "a.PNG", "b.jpg", "in/d.webp")]
    assert find_images([names[0], str(tmp_path), str(tmp_path / "*.jpg")]) == names


@pytest.fixture(scope="module")
def two_stems(tmp_path_factory):
    """A checkpoint of a network with a stem for each modality, and an image."""
    folder = tmp_path_factory.mktemp("two")
    words = ["MODEL.NAME", "RN-Tiny", "MODEL.PRETRAIN", "none", "INPUT.SIZE_TRAIN", "(64, 32)"]
    cfg = load("configs/sysu/cclnet.yml", [*words, "INPUT.SIZE_TEST", "(64, 32)", "MODEL.DEVICE", "cpu"])
    templates = ("A visible photo of a {} person.", "An infrared photo of a {} person.")
    model = make_model(cfg, toy(templates=templates))
    with torch.no_grad():
        model.image.stems[0].conv3.weight.normal_()
    contents = {"model": model.state_dict(), "config": to_dict(cfg), "architecture": model.architecture}
    save_checkpoint(folder / "two.pth", contents)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 32, 3), dtype=np.uint8)).save(folder / "a.png")
    return folder / "two.pth", folder / "a.png"


def test_a_network_with_a_stem_for_each_modality_is_told_which(two_stems, tmp_path):
    weight, image = two_stems
    with pytest.raises(UserError, match="--modality visible or infrared"):
        Embedder.from_checkpoint(weight, device="cpu")([image])
    visible, infrared = (Embedder.from_checkpoint(weight, device="cpu", modality=one) for one in (0, 1))
    assert not torch.allclose(visible([image]), infrared([image]), atol=1e-3)
    assert torch.equal(infrared([image, image], modalities=[0, 1]), torch.cat([visible([image]), infrared([image])]))
    assert infrared.digest == visible.digest  # they are compared with each other
    without = Embedder.from_checkpoint(weight, device="cpu", modality=1, overrides=["TEST.SIE", "none"])
    assert torch.equal(without([image]), infrared([image]))
    with torch.no_grad():
        found = Retrieval(infrared)(infrared.prepare(image)[None])
    torch.testing.assert_close(found, infrared([image]))
    samples = [Sample(str(image), pid=0, camid=0, modality=1)]
    unsaid = Embedder.from_checkpoint(weight, device="cpu")
    of_data_set, _ = embed_samples(Namespace(images=[]), unsaid, samples)
    assert torch.equal(of_data_set.features, infrared([image]))
    with pytest.raises(UserError, match="--modality"):
        embed_samples(Namespace(images=["folder"]), unsaid, samples)

    words = ["--weight", str(weight), "--device", "cpu", str(image), "--output"]
    assert embed.main([*words, str(tmp_path / "f.npz"), "--modality", "infrared"]) == 0
    assert torch.equal(read_features(tmp_path / "f.npz", infrared.digest).features, infrared([image]))
    gallery = ["--gallery", str(tmp_path / "f.npz"), "--cache", str(tmp_path / "c.sqlite")]
    for modality, score in (("infrared", 1.0), ("visible", float(visible([image])[0] @ infrared([image])[0]))):
        output = tmp_path / "s.json"
        assert search.main([*words, str(output), *gallery, "--keep-own", "--modality", modality]) == 0
        (answer,) = json.loads(output.read_text())["queries"]
        assert answer["found"][0]["score"] == pytest.approx(score, abs=1e-5)


def test_a_visible_image_is_compared_with_an_infrared_one(two_stems, tmp_path, capsys):
    weight, image = two_stems
    other = tmp_path / "b.png"
    Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other)
    visible, infrared = (Embedder.from_checkpoint(weight, device="cpu", modality=one) for one in (0, 1))
    words = ["--weight", str(weight), "--device", "cpu", "--json", "--modality"]
    for modality, a, b in (("visible,infrared", visible, infrared), ("infrared,visible", infrared, visible)):
        assert verify.main([*words, modality, str(image), str(other)]) == 0
        (pair,) = json.loads(capsys.readouterr().out)["pairs"]
        assert pair["cosine"] == pytest.approx(float(a([image])[0] @ b([other])[0]), abs=1e-6)
    with pytest.raises(UserError, match=r"a\.png"):
        verify.main([*words, "visible,infrared", str(image), str(image)])


@pytest.mark.slow
def test_an_exported_network_with_a_stem_for_each_modality_has_the_right_one(two_stems, tmp_path, monkeypatch):
    weight, image = two_stems
    file = tmp_path / "infrared.onnx"
    words = ["--weight", str(weight), "--device", "cpu", "--output", str(file), str(image)]
    with pytest.raises(UserError, match="--modality"):
        export.main(words)
    keep = ResNetTower.keep_stem
    with monkeypatch.context() as other:
        other.setattr(ResNetTower, "keep_stem", lambda self, modality: keep(self, 1 - modality))
        with pytest.raises(UserError, match="disagree"):
            export.main([*words, "--modality", "infrared"])
    export.main([*words, "--modality", "infrared"])
    infrared = Embedder.from_checkpoint(weight, device="cpu", modality=1)
    session = onnxruntime.InferenceSession(file, session_options(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": infrared.prepare(image)[None].numpy()})
    torch.testing.assert_close(torch.from_numpy(found), infrared([image]), atol=1e-3, rtol=0)


@pytest.mark.slow
def test_an_exported_network_keeps_small_numbers(two_stems, tmp_path):
    weight, _ = two_stems
    contents = read_checkpoint(weight)
    for name in [name for name in contents["model"] if name.endswith("layer4.0.bn3.weight")]:
        contents["model"][name] = torch.zeros_like(contents["model"][name])
    contents["model"] = {k: v * 0.1 if ".downsample.1.weight" in k else v for k, v in contents["model"].items()}
    save_checkpoint(tmp_path / "small.pth", contents)
    embedder = Embedder.from_checkpoint(tmp_path / "small.pth", device="cpu", modality=1)
    assert export_onnx(embedder, tmp_path / "small.onnx", []) > 0.9999  # with the 1e-12 under GeM's root


def test_thresholds_say_of_which_modalities_they_are(two_stems, tmp_path, capsys):
    weight, image = Path(shutil.copy(two_stems[0], tmp_path / "two.pth")), two_stems[1]
    for pid, seen in product("ab", range(3)):
        (tmp_path / "own" / pid).mkdir(parents=True, exist_ok=True)
        shade = 80 * "ab".index(pid) + 20 * seen
        Image.new("RGB", (32, 64), (shade, 200 - shade, 20 * seen)).save(tmp_path / "own" / pid / f"{seen}.png")
    words = ["--weight", str(weight), "--device", "cpu", "--modality"]
    assert calibrate.main([*words, "infrared", "--no-figure", str(tmp_path / "own")]) == 0
    assert json.loads((tmp_path / "two.calibration.json").read_text())["modality"] == "infrared"
    for modality, said in (("infrared", False), ("visible", True), ("visible,infrared", True)):
        capsys.readouterr()
        assert verify.main([*words, modality, str(image), str(tmp_path / "own/a/0.png")]) == 0
        assert ("infrared" in capsys.readouterr().err) == said


def test_networks_are_called_by_what_tells_them_apart():
    assert short_names(["runs/a/x.pth"]) == ["x.pth"]
    assert short_names(["runs/a/x.pth", "runs/b/y.pth"]) == ["x.pth", "y.pth"]
    assert short_names(["runs/a/x.pth", "runs/b/x.pth"]) == ["runs/a/x.pth", "runs/b/x.pth"]
    assert short_names(["a/x.pth", "a/x.pth"]) == ["x.pth", "x.pth"]


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        *((tool, ["--output", "x", "--skip-unreadable"]) for tool in (export, release)),
        *((tool, [*given, "--gallery", "a", "--gallery", "b"]) for tool, given in ((app, []), (search, ["a.jpg"]))),
        (app, ["--skip-unreadable"]),
        (one_in_many, ["--pairs", "p.csv", "--gallery", "a", "--gallery", "b"]),
        *((verify, ["a.jpg", "b.jpg", "--fpr", rate]) for rate in ("7", "0", "one", "nan")),
    ],
)
def test_words_that_would_be_ignored_are_refused(trained, tool, words, capsys):
    with pytest.raises(SystemExit):
        tool.read_command_line(["--weight", str(trained[0]), *words])
    assert next(word for word in reversed(words) if word.startswith("--")) in capsys.readouterr().err


@pytest.mark.parametrize("words", [["TEST.FLIP"], ["TEST.FLIP", "3"]])
def test_wrong_settings_are_refused_before_a_checkpoint_is_read(tmp_path, words):
    (tmp_path / "x.pth").touch()
    with pytest.raises(ConfigError, match=r"TEST\.FLIP"):
        release.read_command_line(["--weight", str(tmp_path / "x.pth"), "--output", "x", *words])
