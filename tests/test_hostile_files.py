"""Files that are broken, strange or meant to do harm: every one has a defined treatment, and none runs code."""

import argparse
import errno
import gzip
import io
import os
import pickle
import random
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import GONE, SMALL, STRANGE, TEMPLATE, benchmark, places, with_strange
from PIL import Image
from torch import nn

from configs import ConfigError, from_dict, load, to_dict
from datasets.findings import Report
from datasets.images import MOST_PIXELS, Images, Loader, read_image, shown
from datasets.transforms import TestTransform
from model.build import load_model, make_model, rebuild, settle_architecture
from model.pretrained import load_clip
from model.weights import Weights, read_weights, weights_in
from processor.transfer import homes_of
from tools.check_dataset.full import full_check
from tools.check_dataset.report import text
from utils.checkpoint import FORMAT, read_tensors, read_torchscript, write_tensors
from utils.errors import DataError, UserError, WeightsError, one_line
from utils.metrics import ignore_nothing
from utils.records import Benchmark, Sample, Trial

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 120  # nothing here may hang

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning"),
    # pytest puts its own in place of the filters of `datasets.images`.
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
]


class Late(BaseException):
    """No Exception, which who reads an image would take for the image's fault."""


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    def late(*_):
        raise Late(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------------------------------ weights that would run code


class MakesFolder:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def bare_pickle(protocol: int) -> Callable[[Path, dict], None]:
    return lambda path, contents: path.write_bytes(pickle.dumps(contents, protocol=protocol))


def like_torchscript(path: Path, contents: dict) -> None:
    """A pickle of Python's where TorchScript has one of its own kind."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"archive/{name}", pickle.dumps(contents, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/code/__torch__.py", "class Module(Module):\n  pass\n")


FORMS: dict[str, Callable[[Path, dict], object]] = {
    "archive": lambda path, contents: torch.save(contents, path),
    "older form": lambda path, contents: torch.save(contents, path, _use_new_zipfile_serialization=False),
    **{f"pickle {protocol}": bare_pickle(protocol) for protocol in range(6)},
    "like TorchScript": like_torchscript,
}
DOORS = {
    "a file of tensors": read_tensors,
    "MODEL.INIT_FROM": read_weights,
    "TEST.WEIGHT": load_model,
    "MODEL.PRETRAIN": lambda path: load_clip(SMALL, str(path), "quick_gelu"),
    "TorchScript": read_torchscript,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_never_run_code(tmp_path, small_architecture, form, suffix, door):
    target, path = tmp_path / "harm", tmp_path / f"weights{suffix}"
    FORMS[form](path, {"format": FORMAT, "model": {}, "architecture": {}, "config": MakesFolder(target)})
    with pytest.raises(WeightsError) as refused:
        DOORS[door](path)
    assert not target.exists()
    assert path.name in str(refused.value) and "\n" not in one_line(refused.value)
    # The file does what it is meant to, for whoever trusts it.
    if form.startswith("pickle"):
        pickle.loads(path.read_bytes())
        assert target.exists()


# ----------------------------------------------------------------------------------------- files that are no weights


WEIGHTS = {f"image_encoder.{number}": torch.ones(2) for number in range(3)}


def packed(how: str) -> Callable[[Path], None]:
    def pack(path: Path) -> None:
        inner = path.with_name("inner.pth")
        torch.save(WEIGHTS, inner)
        if how == "gzip":
            path.write_bytes(gzip.compress(inner.read_bytes()))
        else:
            made = shutil.make_archive(str(path.with_name("made")), how, path.parent, "inner.pth")
            Path(made).rename(path)

    return pack


def folder_of_weights(path: Path) -> None:
    path.mkdir()
    (path / "open_clip_model.safetensors").write_bytes(b"x")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 598516979\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Quota exceeded</title></head></html>\n"
# How to make the file, and as what it is named.
NO_WEIGHTS = {
    "a page": (lambda path: path.write_bytes(PAGE), "web page"),
    "a pointer": (lambda path: path.write_bytes(POINTER), "git lfs pull"),
    "a text": (lambda path: path.write_text("Zugriff verweigert für alle"), "text"),
    "nothing": (lambda path: path.write_bytes(b""), "empty"),
    **{how: (packed(how), "archive") for how in ("zip", "tar", "gzip")},
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(np.ones(3))), "pickle"),
    "protocol 4": (lambda path: torch.save(WEIGHTS, path, pickle_protocol=4), "pickle"),
    "a folder": (folder_of_weights, "open_clip_model.safetensors"),
    "a module": (lambda path: torch.save(nn.Linear(2, 2), path), "torch.nn.modules.linear.Linear"),
}


@pytest.mark.parametrize("door", ["a file of tensors", "MODEL.INIT_FROM", "TEST.WEIGHT", "MODEL.PRETRAIN"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_what_is_no_file_of_weights_is_called_by_its_name(tmp_path, small_architecture, kind, suffix, door):
    make, word = NO_WEIGHTS[kind]
    path = tmp_path / f"x{suffix}"
    make(path)
    with pytest.raises(WeightsError) as refused:
        DOORS[door](path)
    message = str(refused.value)
    assert path.name in message and word in message and "damaged" not in message and "\n" not in message


@pytest.mark.parametrize("form", ["archive", "older form"])
def test_a_sound_file_with_more_than_tensors_says_how_to_get_at_them(tmp_path, monkeypatch, form):
    path = tmp_path / "x.pth"
    FORMS[form](path, {"state_dict": WEIGHTS, "best": np.float64(3), "options": argparse.Namespace(lr=1)})
    with pytest.raises(WeightsError) as refused:
        read_weights(path)
    assert ("damaged" in str(refused.value)) == (form == "older form")  # which has no checksums
    monkeypatch.chdir(tmp_path)
    exec(re.search(r'python -c "(.*)"', str(refused.value))[1], {})
    assert len(read_weights(tmp_path / "x_tensors.pth").tensors) == 3


# --------------------------------------------------------------------------------------------------------- TorchScript


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.again = self.linear  # shared
        self.norm = nn.BatchNorm1d(3)
        self.turned = nn.Parameter(torch.arange(6.0).view(2, 3).t())
        self.halves = nn.Parameter(torch.randn(4).half(), requires_grad=False)
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("absent", None)
        self.register_buffer("passing", torch.ones(3), persistent=False)
        self.mask = torch.ones(3)  # neither parameter nor buffer
        self.list = [torch.ones(1)]
        self.word = {"a": 1}

    def forward(self, x):
        return self.norm(self.linear(x)) * self.mask + self.list[0] + self.passing + self.turned.sum()


@pytest.mark.parametrize("made", [torch.jit.script, lambda module: torch.jit.trace(module, torch.randn(5, 3))])
def test_torchscript_is_read_as_its_own_loader_reads_it(tmp_path, made):
    path = tmp_path / "x.pt"
    torch.jit.save(made(nn.Sequential(Part(), nn.Sequential(Part())).eval()), path)
    expected, found = torch.jit.load(path).state_dict(), read_torchscript(path)
    assert found.keys() == expected.keys() and len(found) > 20
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert torch.equal(found[name], value)


class WritesFile(nn.Module):
    """Its code is run when it is loaded, and can write files."""

    def __init__(self, target: str):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.training = False
        self.target = target

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool, str]:
        return self.weight, self.training, self.target

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool, str]) -> None:
        self.weight, self.training, self.target = state
        torch.save(self.weight, self.target)

    def forward(self, x):
        return x


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor):
        return x


def that_writes(path: Path, target: Path, how: str) -> None:
    """TorchScript that makes `target` when torch.jit.load reads it."""
    if how == "__setstate__":
        torch.jit.save(torch.jit.script(WritesFile(str(target))), path)
        return
    torch.jit.save(torch.jit.script(Plain()), path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (code,) = (name for name in records if name.endswith(".py"))
    default = f'x: Tensor, y: Tensor=torch.from_file("{target}", True, 10)) ->'
    changed = records[code].replace(b"x: Tensor) ->", default.encode())
    assert changed != records[code]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**records, code: changed}.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("how", ["__setstate__", "default of an argument"])
def test_code_in_torchscript_is_not_run(tmp_path, small_architecture, how):
    path, target = tmp_path / "x.pt", tmp_path / "harm"
    that_writes(path, target, how)
    for name, door in DOORS.items():
        try:
            state = door(path)
        except WeightsError as refused:
            assert "x.pt" in str(refused)
        else:
            assert name == "TorchScript" and how != "__setstate__" and state.keys() == {"weight"}
        assert not target.exists()
    torch.jit.load(path)
    assert target.exists()


# ---------------------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir [{target}]",
        "SOLVER: !!python/object/new:os.mkdir [{target}]",
        "? !!python/object/apply:os.mkdir [{target}]\n: 1",
        "BASE: !!python/object/apply:os.mkdir [{target}]",
    ],
)
def test_configuration_files_never_run_code(tmp_path, text):
    target, path = tmp_path / "harm", tmp_path / "settings.yml"
    path.write_text(text.format(target=target))
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert not target.exists() and path.name in str(refused.value)


# ------------------------------------------------------------------------------------------------- damaged checkpoints


CONTENTS = {
    "model": {"weight": torch.arange(40.0).view(5, 8), "count": torch.tensor(7), "half": torch.ones(3).half()},
    "config": {"SOLVER": {"SEED": 1, "STEPS": [3, 4]}, "OUTPUT_DIR": "runs/ü"},
    "architecture": {"name": "ViT", "sie_camera": True, "sie_scale": 1.0, "template": None},
}


def same(a, b) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(a, b)
    return (type(a), a) == (type(b), b)


def read_or_refused(path: Path) -> dict | None:
    """What is in a file; None if it was refused, with a message that names it. No other exception is right."""
    try:
        return read_tensors(path)
    except WeightsError as refused:
        assert path.name in str(refused) and "\n" not in str(refused)
        return None


@pytest.mark.parametrize("form", ["archive", "older form"])
def test_no_damaged_byte_of_a_checkpoint_changes_what_is_read(tmp_path, form):
    """Random bytes anywhere, and every byte of the directory of records, which no checksum covers.

    torch alone would not notice a record that is marked as a folder (0x10). The older form has no checksums: there a
    damaged byte is read or refused, but nothing else happens.
    """
    path, rng = tmp_path / "x.pth", np.random.default_rng(0)
    FORMS[form](path, CONTENTS)
    whole = path.read_bytes()
    assert same(read_tensors(path), CONTENTS)
    damages = [(int(rng.integers(len(whole))), int(rng.integers(1, 256))) for _ in range(200)]
    if form == "archive":
        damages += [(at, change) for at in range(whole.index(b"PK\x01\x02"), len(whole)) for change in (0x10, 0xFF)]
    refused = 0
    for place, change in damages:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
        found = read_or_refused(path)
        refused += found is None
        assert found is None or form == "older form" or same(found, CONTENTS), (place, change)
    assert len(damages) / 3 < refused < len(damages)  # others are of no consequence: times, padding, unread counts


@pytest.mark.parametrize("form", ["archive", "older form"])
def test_no_part_of_a_checkpoint_passes_for_the_whole(tmp_path, form):
    path = tmp_path / "x.pth"
    FORMS[form](path, CONTENTS)
    whole = path.read_bytes()
    lengths = {0, 1, 2, 3, 4, 5, *range(0, len(whole), len(whole) // 100), *range(len(whole) - 40, len(whole))}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        assert read_or_refused(path) is None, length
    path.write_bytes(bytes(len(whole)))
    assert read_or_refused(path) is None


def test_an_archive_that_was_written_without_checksums_is_read(tmp_path):
    set_checksums = torch.serialization.set_crc32_options
    set_checksums(False)
    try:
        torch.save(CONTENTS, tmp_path / "x.pth")
    finally:
        set_checksums(True)
    assert same(read_tensors(tmp_path / "x.pth"), CONTENTS)


def test_damaged_archives_are_refused_at_every_door(tmp_path, small_architecture):
    torch.jit.save(torch.jit.script(Plain()), tmp_path / "script.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pt")
    for name in ("script.pt", "state.pt"):
        path = tmp_path / name
        whole = path.read_bytes()
        directory = whole.index(b"PK\x01\x02")
        for place in (directory + 2, directory + 28):  # a signature, and the length of a name
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
            for door in DOORS:
                with pytest.raises(WeightsError, match=name):
                    DOORS[door](path)


# ----------------------------------------------------------------------------- checkpoints whose description is damaged


@pytest.fixture(scope="module")
def checkpoint(small_architecture) -> dict:
    """What a small network's checkpoint holds."""
    cfg = load(
        None,
        [
            *("MODEL.NAME", SMALL, "MODEL.PRETRAIN", "none", "MODEL.STRIDE_SIZE", "(6, 6)", "MODEL.SIE_CAMERA", "True"),
            *("INPUT.SIZE_TRAIN", "(32, 16)", "INPUT.SIZE_TEST", "(32, 16)", "MODEL.SSL_HIDDEN", "8"),
            *("MODEL.SSL_OUT", "4"),
        ],
    )
    data = benchmark(pids=4, cams=3)
    model = make_model(cfg, data)
    return {
        **{"format": FORMAT, "model": model.state_dict(), "stage": "image", "epoch": 3, "config": to_dict(cfg)},
        **{"architecture": model.architecture, "prompts_trained": True},
        "fingerprint": {"data_fingerprint": {"train": "0a", "test": "0b", "parts": ["0c"]}, "versions": {"torch": "2"}},
    }


def described(contents: dict, source: Path) -> tuple[Weights, dict]:
    """What a test makes of a checkpoint before it builds the network."""
    weights = weights_in(contents, str(source))
    homes_of(weights)
    return weights, settle_architecture(from_dict(weights.config, where=str(source)), weights)[1]


def take(contents: dict, path: Path) -> None:
    """Write a checkpoint and do with it all that comes before images are looked at."""
    torch.save(contents, path)
    rebuild(*described(read_tensors(path), path), testing=True)
    load_model(path)


def test_whatever_is_done_to_a_description_the_file_is_read_or_refused(tmp_path, checkpoint):
    path, rng = tmp_path / "x.pth", random.Random(0)
    description = {name: value for name, value in checkpoint.items() if name != "model"}
    cases = rng.sample([(place, value) for place in places(description) for value in STRANGE], 500)

    def refused(door: Callable, place: tuple, value: object) -> bool:
        try:
            door(with_strange(checkpoint, place, value), path)
        except (UserError, ConfigError) as error:
            message = str(error)  # what is wrong with settings together is not one field's fault
            assert str(path) in message or message.startswith("contradicting settings"), (place, value)
            assert "\n" not in message and len(message) < 1000, (place, value)
            return True
        return False

    left = [case for case in cases if not refused(described, *case)]
    assert len(left) < len(cases) / 2
    of_the_network = [case for case in left if case[0][0] == "architecture"]
    for case in (*of_the_network, *rng.sample(left, 10)):
        refused(take, *case)


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ("architecture.stride", [0, 0], "architecture.stride[0]"),
        ("architecture.image_size", [32], "architecture.image_size"),
        ("architecture.image_size", [4, 4], "INPUT.SIZE_TRAIN"),
        ("architecture.image_size", [4096, 4096], "positional_embedding"),
        ("architecture.num_pids", -1, "architecture.num_pids"),
        ("architecture.num_pids", 10**9, "classifier.weight"),
        ("architecture.num_cams", 10**9, "image.side.table"),
        ("architecture.ssl_hidden", 10**9, "_projector"),
        ("architecture.sie_scale", "x", "architecture.sie_scale"),
        ("architecture.template", "A {} {:9999999999}", "architecture.template"),
        ("architecture.template", "A {0.__class__}.", "architecture.template"),
        ("architecture.template", "A{}.", "template 'A{}.'"),
        ("architecture.name", "ViT-Z", "MODEL.NAME"),
        ("architecture.name", "hf-hub:x/y", "architecture.name"),
        ("architecture.activation", "relu", "architecture.activation"),
        ("config.SOLVER.SEED", GONE, "config.SOLVER.SEED"),
        ("config.TEST.SIE", 5, "TEST.SIE"),
        ("fingerprint", [0, 0], "fingerprint"),
        ("fingerprint.data_fingerprint.parts", ["a", 5], "data_fingerprint"),
        ("epoch", 10**500, "epoch"),
        ("stage", "test", "stage"),
    ],
)
def test_the_field_is_named(tmp_path, checkpoint, place, value, named):
    with pytest.raises((UserError, ConfigError)) as refused:
        take(with_strange(checkpoint, tuple(place.split(".")), value), tmp_path / "x.pth")
    assert "x.pth: " in str(refused.value) and named in str(refused.value)


def test_what_earlier_versions_did_not_write_may_be_missing(tmp_path, checkpoint):
    old = {name: checkpoint[name] for name in ("format", "model", "config")}
    later = ("first_cameras", "ssl_type")
    old["architecture"] = {name: value for name, value in checkpoint["architecture"].items() if name not in later}
    prints = ({"fingerprint": {"data_fingerprint": data}} for data in (None, "0a", {"train": None, "test": "0b"}))
    for contents in (old, *({**old, **one} for one in prints), {**checkpoint, "stage": None, "epoch": None}):
        take(contents, tmp_path / "x.pth")  # the last is as tools.convert_checkpoint writes it


# ------------------------------------------------------------------------------------------------- writing checkpoints


def test_contents_are_on_the_disk_before_their_name_and_their_name_before_the_end(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        entry = os.fstat(descriptor)
        events.append("folder" if stat.S_ISDIR(entry.st_mode) else "file" if entry.st_size > 1000 else "a part of it")
        if events[-1] == "folder":
            assert entry.st_ino == tmp_path.stat().st_ino
        sync(descriptor)

    def replaced(*paths) -> None:
        events.append("name")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_tensors(tmp_path / "x.pth", CONTENTS)
    assert events == ["file", "name", "folder"]


def test_folders_that_cannot_be_synced_are_no_failure(tmp_path, monkeypatch):
    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    write_tensors(tmp_path / "x.pth", CONTENTS)
    assert same(read_tensors(tmp_path / "x.pth"), CONTENTS)


# ------------------------------------------------------------------------------------------------ images: right ones


WIDTH, HEIGHT = 24, 40


def scene() -> Image.Image:
    """Smooth, so that JPEG keeps it, and different at every corner."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([rows * 6, columns * 10, 255 - rows * 3 - columns * 2], axis=2)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def read(path: Path | str) -> np.ndarray:
    """As training reads it."""
    image = read_image(str(path))
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def of_one(path: Path | str) -> Benchmark:
    """A benchmark of one file."""
    sample = Sample(str(path), 0, 0)
    return Benchmark("toy", TEMPLATE, (sample,), (Trial((sample,), (sample,)),), ignore_nothing)


def checked(path: Path | str) -> Report:
    """What the full data check finds in a training image."""
    return full_check(of_one(path), instances=1, identities=1)


def report_of(path: Path | str) -> str:
    return text(of_one(path), checked(path))


def notes(path: Path | str) -> dict[str, str]:
    """Kind and first example of what the data check says of the file."""
    report = checked(path)
    kinds = ("not RGB", "turned", "unreadable", "empty", "missing")
    return {finding.kind: finding.examples[0] for finding in report.notes + report.problems if finding.kind in kinds}


@pytest.mark.parametrize(
    ("mode", "name", "how"),
    [
        *(("RGB", "x.jpg", {"quality": 80, "progressive": progressive}) for progressive in (False, True)),
        *((mode, "x.png", {}) for mode in ("1", "L", "P")),
        *(("CMYK", name, {}) for name in ("x.tif", "x.jpg")),
    ],
)
def test_plain_images_are_what_pillow_makes_of_them(tmp_path, mode, name, how):
    path = tmp_path / name
    scene().convert(mode).save(path, **how)
    with Image.open(path) as image:
        assert np.array_equal(read(path), array(image))
    assert notes(path) == ({} if mode == "RGB" else {"not RGB": f"{path} ({mode})"})


def test_what_is_transparent_shows_white(tmp_path):
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[10:], alpha[20:] = 128, 255
    clear, half, full = slice(0, 10), slice(10, 20), slice(20, None)
    for mode in ("RGBA", "LA"):
        base = scene().convert(mode[:-1])
        image = base.copy()
        image.putalpha(Image.fromarray(alpha))
        path = tmp_path / f"{mode}.png"
        image.save(path)
        found, colours = read(path), array(base)
        assert (found[clear] == 255).all()
        assert np.abs(found[half] - (colours[half] + 255) / 2).max() <= 1.01
        assert np.array_equal(found[full], colours[full])
        assert notes(path) == {"not RGB": f"{path} ({mode})"}


@pytest.mark.parametrize("name", ["x.png", "x.gif"])
def test_a_transparent_colour_shows_white(tmp_path, name):
    """One colour, or in PNG every colour of a palette with a transparency of its own, or one colour without a palette;
    a file is what it holds, not its suffix."""
    indices = np.repeat(np.arange(4, dtype=np.uint8), 8)[:, None].repeat(WIDTH, axis=1)
    image = Image.fromarray(indices).convert("P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    whole = {"transparency": 1}, [[200, 0, 0], [255] * 3, [0, 0, 200], [9, 9, 9]]
    parts = {"transparency": bytes([255, 51, 0, 255])}, [[200, 0, 0], [204, 244, 204], [255] * 3, [9, 9, 9]]
    cases = [(image, *whole), (image, *parts), (image.convert("RGB"), {"transparency": (0, 200, 0)}, whole[1])]
    for saved, how, colours in cases if name == "x.png" else cases[:1]:
        saved.save(tmp_path / name, **how)
        found = read((tmp_path / name).rename(tmp_path / "x.jpg"))
        assert [found[row, 0].tolist() for row in (0, 8, 16, 24)] == colours


@pytest.mark.parametrize("name", ["x.png", "x.tif", "big-endian.tif", "x.pgm"])
def test_16_bits_of_grey_become_8(tmp_path, name):
    path = tmp_path / name
    grey = np.linspace(0, 2**16 - 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    swapped = grey.astype(">u2").tobytes()
    if name == "big-endian.tif":
        Image.frombytes("I;16B", (WIDTH, HEIGHT), swapped).save(path)
    elif name == "x.pgm":  # which Pillow writes since version 11 only
        path.write_bytes(f"P5 {WIDTH} {HEIGHT} {2**16 - 1}\n".encode() + swapped)
    else:
        Image.fromarray(grey).save(path)
    assert np.array_equal(read(path), (grey // 256)[:, :, None].repeat(3, axis=2))
    assert notes(path)["not RGB"].startswith(f"{path} (I")


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """As a camera stores it that was held that way: undone by what EXIF prescribes for the number."""
    steps = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270")
    return image if orientation == 1 else image.transpose(Image.Transpose[steps[orientation - 2]])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_images_are_turned_upright(tmp_path, suffix, orientation):
    path = tmp_path / f"x{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {".jpg": {"quality": 95}, ".webp": {"lossless": True}}.get(suffix, {})
    turned(scene(), orientation).save(path, exif=exif, **how)
    found = read(path)
    assert found.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(found - array(scene())).max() <= (12 if suffix == ".jpg" else 0)
    # Pillow turns TIFF itself, and the check of the data does not look for it there.
    assert ("turned" in notes(path)) == (orientation != 1 and suffix != ".tif")


def test_an_orientation_that_follows_the_pixels_counts_too(tmp_path):
    """PNG allows it at the end."""
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded("PNG", turned(scene(), 6))
    end = whole.index(b"IEND") - 4
    (tmp_path / "x.png").write_bytes(whole[:end] + png_chunk(b"eXIf", exif.tobytes()[6:]) + whole[end:])
    assert np.array_equal(read(tmp_path / "x.png"), array(scene()))


def exif_blocks() -> dict[str, bytes]:
    good = Image.Exif()
    good[0x0112], good[0x010F] = 6, "a maker"
    whole, entry = good.tobytes(), b"Exif\0\0II*\0\x08\0\0\0"
    return {
        "no TIFF": b"Exif\0\0" + b"nothing of the kind",
        "empty": b"Exif\0\0",
        "cut off": whole[:20],
        "a place far away": whole.replace(struct.pack("<I", 8), struct.pack("<I", 2**31), 1),
        "a count too large": entry + b"\xff\xff" + whole[16:],
        "a number that is none": entry + b"\x01\0\x12\x01\x02\0\x02\0\0\0x\0\0\0\0\0\0\0",
        "an unknown number": entry + b"\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
    }


@pytest.mark.parametrize("name", exif_blocks())
def test_damaged_exif_does_not_matter(tmp_path, name):
    path = tmp_path / "x.jpg"
    scene().save(path, quality=95, exif=exif_blocks()[name])
    with Image.open(path) as image:
        assert image.info["exif"] == exif_blocks()[name]
        pixels = array(image)
    found = read(path)
    assert any(np.array_equal(found, np.rot90(pixels, turns)) for turns in (0, 3))
    assert "unreadable" not in notes(path)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif", ".mpo"])
def test_of_several_images_in_a_file_the_first_counts(tmp_path, suffix):
    first, second = (Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ((200, 10, 10), (10, 10, 200)))
    path = tmp_path / f"x{suffix}"
    how = {".webp": {"lossless": True}, ".mpo": {"quality": 100}}.get(suffix, {})
    first.save(path, save_all=True, append_images=[second], **how)
    with Image.open(path) as image:
        assert image.n_frames == 2
    assert np.abs(read(path) - (200, 10, 10)).max() <= 2
    assert not notes(path).keys() - {"not RGB"}


NAMES = [
    *(["\udcff.png"] if sys.platform == "linux" else []),
    "/".join(["x" * 200] * 16) + "/x.png",
    *("two words.png", "ä 日本\u3000語.png", "line\nbreak.png", "quote'\".png", "c3_%s{}.png", "-x.png", "x.PNG"),
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_kind(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    scene().save(path, format="PNG")
    assert np.array_equal(read(path), array(scene()))
    path.write_bytes(b"no image")
    message = refusal(path)
    assert message.startswith(f"{shown(str(path))}: cannot be read as an image (")
    assert shown(str(path)) in report_of(path)
    assert (message + report_of(path)).encode()  # can be written to a log


# ----------------------------------------------------------------------------------------------- images: broken ones


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(path: Path, width: int, height: int) -> None:
    """A hundred bytes that claim to be a huge image."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))


def encoded(form: str, image: Image.Image | None = None) -> bytes:
    buffer = io.BytesIO()
    (image or scene()).save(buffer, form)
    return buffer.getvalue()


SIDE = int(MOST_PIXELS**0.5)
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"


def pixels(value: float, kind: type) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(np.full((20, 20), value, kind)).save(path, "TIFF")


# How to make the file, and as what the check of the data counts it.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no bytes": (lambda path: path.write_bytes(b""), "empty"),
    "a bomb": (lambda path: bomb(path, SIDE + 1, SIDE + 1), "unreadable"),
    "a flat bomb": (lambda path: bomb(path, 2**31 - 1, 1), "unreadable"),
    "half a JPEG": (lambda path: path.write_bytes(encoded("JPEG")[:-300]), "unreadable"),
    "a text": (lambda path: path.write_text("path,pid\n"), "unreadable"),
    "PostScript": (lambda path: path.write_bytes(POSTSCRIPT), "unreadable"),
    "fractions": (pixels(1, np.float32), "unreadable"),
    "32 bits": (pixels(2**16, np.int32), "unreadable"),
    "negative": (pixels(-1, np.int32), "unreadable"),
    "a folder": (lambda path: path.mkdir(), "missing"),
    "nothing": (lambda path: None, "missing"),
    "a loop of links": (lambda path: path.symlink_to(path), "missing"),
    "a pipe": (lambda path: os.mkfifo(path), "missing"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "missing"),
}


def refusal(path: Path | str) -> str:
    with pytest.raises(DataError) as error:
        read_image(str(path))
    message = one_line(error.value)
    assert message == str(error.value)  # one line already
    return message


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_named(tmp_path, kind):
    make, finding = BROKEN[kind]
    path = tmp_path / "x.jpg"
    make(path)
    message, report = refusal(path), checked(path)
    assert message.startswith(f"{path}: ")
    (problem,) = (problem for problem in report.problems if problem.kind == finding)
    assert problem.examples[0].startswith(str(path))
    if finding == "unreadable":
        assert problem.examples == (message,)


def test_a_worker_says_the_same(tmp_path):
    path = tmp_path / "x\ny.jpg"
    bomb(path, SIDE + 1, SIDE + 1)
    images = Images([Sample(str(path), 0, 0)], TestTransform((8, 8), mean=(0.5,) * 3, std=(0.5,) * 3))
    with pytest.raises(DataError) as error:
        list(Loader(images, None, num_workers=1))
    traceback.clear_frames(error.tb)  # lets go of the worker
    assert one_line(error.value) == refusal(path)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_parts_of_an_image_are_refused_and_damaged_ones_are_read_or_refused(tmp_path, form):
    path, whole = tmp_path / "x.jpg", encoded(form)
    path.write_bytes(whole)
    expected = read(path)

    def read_or_refused(content: bytes) -> np.ndarray | None:
        path.write_bytes(content)
        try:
            return read(path)
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            return None

    lengths = {*range(0, len(whole), max(1, len(whole) // 60)), *range(len(whole) - 12, len(whole))}
    parts = [read_or_refused(whole[:length]) for length in sorted(lengths)]
    assert all(part is None or np.array_equal(part, expected) for part in parts)
    assert sum(part is None for part in parts) > 50
    rng = np.random.default_rng(0)
    for _ in range(60 if form != "BMP" else 0):
        damaged = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            damaged[int(rng.integers(min(len(whole), 400)))] = int(rng.integers(256))
        read_or_refused(bytes(damaged))


# With Python's own settings for warnings, as users have them.


@pytest.mark.slow  # starts a process
def test_what_is_read_is_read_in_silence_and_what_is_not_is_one_line(tmp_path):
    """Twice, as every epoch does."""
    for number, block in enumerate(exif_blocks().values()):
        scene().save(tmp_path / f"{number}.jpg", exif=block)
    scene().convert("P").save(tmp_path / "x.png", transparency=bytes([0, 99]))
    scene().save(tmp_path / "x.mpo", save_all=True, append_images=[scene()])
    whole = (tmp_path / "x.mpo").read_bytes()
    place = whole.index(b"MPF\0") + 8
    (tmp_path / "x.mpo").write_bytes(whole[:place] + b"\xff" * 8 + whole[place + 8 :])
    # An image that Pillow only warns of, and one that it refuses itself.
    bomb(tmp_path / "bomb1.jpg", SIDE + 1, SIDE + 1)
    bomb(tmp_path / "bomb2.jpg", 60_000, 60_000)
    program = """
import sys
from pathlib import Path
from datasets.images import read_image
from utils.errors import DataError
for path in sorted(Path(sys.argv[1]).iterdir()) * 2:
    try:
        read_image(str(path))
    except DataError as error:
        print(error, file=sys.stderr)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"{tmp_path}/bomb{number}.jpg" for number in (1, 2)] * 2
