"""Batches of training images: the pixels of the textbook way, on any device, without waiting for it; kept images."""

import errno
import os
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing

import datasets.cache
import datasets.images
from datasets.cache import PixelCache, make_cache, open_cache
from datasets.images import Images, Loader, read_image
from datasets.transforms import TestTransform, TrainTransform, draw_box
from tests.fake_device import FakeDevice
from tools.benchmark.input import SETTINGS, Textbook
from utils import memory
from utils.errors import DataError, UserError
from utils.records import INFRARED, Sample

ROOT = Path(__file__).resolve().parent.parent
SIZE = (48, 24)


@pytest.fixture
def samples(tmp_path) -> list[Sample]:
    """24 images, every third infrared."""
    rng, found = np.random.default_rng(0), []
    for number in range(24):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (37, 29, 3), np.uint8)).save(path)
        found.append(Sample(str(path), number, 0, modality=INFRARED * (number % 3 == 0)))
    return found


def read(some: Images, epoch: int):
    some.set_epoch(epoch)
    return some.collate(some.__getitems__(list(range(len(some)))))


CHANGES = {
    "published": {},
    "ImageNet's pixels": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "all erased": {"erase": 1.0},
    "never mirrored": {"flip": 0.0, "erase": 0.0},
    "no padding": {"padding": 0},
    "JPEG": {"jpeg": 0.5},
    "grey": {"grey": 0.5},
    "JPEG and grey": {"jpeg": 0.5, "grey": 0.7},
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=list(CHANGES))
def test_a_batch_has_the_pixels_of_the_textbook_bit_by_bit(samples, changed):
    """Of torchvision's and timm's transforms, image by image, from the same seeds."""
    images = Images(samples, TrainTransform(SIZE, **SETTINGS | changed), views=True)
    visible, infrared = Textbook(samples, SIZE, **changed), Textbook(samples, SIZE, **changed | {"grey": 0.0})
    for epoch in (1, 2):
        batch = images.finish(read(images, epoch))
        visible.epoch = infrared.epoch = epoch
        for row, sample in enumerate(samples):
            image, views = (infrared if sample.modality else visible)[row]
            assert torch.equal(batch.images[row], image) and torch.equal(batch.views[:, row], views)


@pytest.mark.parametrize("area", [(0.02, 1 / 3), (0.33, 1 / 3), (0.9, 0.95)])
def test_boxes_are_timms(area):
    """Where timm's leaves its noise, for the same draws; some attempts do not fit, of the last area most."""
    erase = RandomErasing(1.0, *area, min_aspect=0.3, mode="pixel", max_count=1, device="cpu")
    none = 0
    for seed in range(200):
        random.seed(seed)
        image = erase(torch.full((3, *SIZE), 9.0))
        draws = random.Random(seed)
        draws.random()  # whether to erase
        expected, box = torch.zeros(SIZE, dtype=torch.bool), draw_box(draws, SIZE, area)
        if box is not None:
            expected[box.top : box.top + box.height, box.left : box.left + box.width] = True
        none += box is None
        assert torch.equal((image != 9).all(dim=0), expected)
    assert (none > 0) == (area[0] == 0.9)


@pytest.mark.parametrize(
    "transform", [TrainTransform(SIZE, **SETTINGS, grey=0.5), TestTransform(SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)]
)
def test_a_batch_leaves_in_bytes_and_is_finished_without_waiting_for_the_device(samples, transform):
    some = Images(samples, transform, views=isinstance(transform, TrainTransform))
    pixels = read(some, 1)
    assert pixels.pixels.dtype == torch.uint8 and pixels.pixels.shape == (1, 24, 3, *SIZE)
    device, expected = FakeDevice(), some.finish(pixels)
    moved = device.move(pixels)
    with device:
        batch = some.finish(moved)
    assert batch.images.shape == expected.images.shape == (24, 3, *SIZE)
    assert expected.views is None or batch.views.shape == expected.views.shape == (2, 24, 3, *SIZE)


# ---------------------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Files that were decoded, in this process."""
    paths = []
    monkeypatch.setattr(datasets.images, "read_image", lambda path: paths.append(path) or read_image(path))
    return paths


def cached(samples: list[Sample], folder: Path, *, size=SIZE, how="BICUBIC", mode: str = "disk") -> PixelCache | None:
    """A cache as another program opens it."""
    open_cache.cache_clear()
    return make_cache(mode, folder, [sample.path for sample in samples], size, how)


def images(samples: list[Sample], cache: PixelCache | None) -> Images:
    return Images(samples, TrainTransform(SIZE, **SETTINGS, jpeg=0.2), views=True, cache=cache)


def same(one, other) -> bool:
    return torch.equal(one.pixels, other.pixels) and all(
        torch.equal(*pair) for pair in zip(one.draws[::2], other.draws[::2], strict=True)
    )


def test_with_a_cache_batches_are_those_without_and_every_file_is_decoded_once(samples, decoded, tmp_path):
    expected = [read(images(samples, None), epoch) for epoch in (1, 2)]
    decoded.clear()
    some = images(samples, cached(samples, tmp_path / "a" / "b"))
    assert all(same(read(some, epoch), batch) for epoch, batch in zip((1, 2), expected, strict=True))
    assert sorted(decoded) == sorted(sample.path for sample in samples)
    decoded.clear()
    later = images(samples, cached(samples, tmp_path / "a" / "b"))
    assert same(read(later, 2), expected[1]) and not decoded


def test_workers_fill_the_cache_that_others_read(samples, decoded, tmp_path):
    cache = cached(samples, tmp_path)
    for batch in Loader(images(samples, cache), None, num_workers=2, batch_size=5):
        assert batch.images.shape[1:] == (3, *SIZE)
    assert same(read(images(samples, cache), 1), read(images(samples, None), 1))
    assert len(decoded) == len(samples)  # without the cache


def test_processes_that_do_not_inherit_memory_share_the_cache(samples, decoded, tmp_path):
    one = cached(samples, tmp_path)
    read(images(samples, one), 1)
    open_cache.cache_clear()
    other = pickle.loads(pickle.dumps(one))
    decoded.clear()
    assert other is not one and same(read(images(samples, other), 2), read(images(samples, one), 2)) and not decoded


def replaced(samples, cache, tmp_path) -> None:
    before = os.stat(samples[3].path)
    Image.new("RGB", (29, 37), "red").save(samples[3].path, "BMP")
    os.utime(samples[3].path, ns=(before.st_atime_ns, before.st_mtime_ns))  # its size is another


def touched(samples, cache, tmp_path) -> None:
    os.utime(samples[3].path, ns=(0, 1))


def damaged(samples, cache, tmp_path) -> None:
    cache.pixels[3, 1, 20, 7] ^= 1


def half_written(samples, cache, tmp_path) -> None:
    cache.pixels[3, :, 10:] = 0  # as of a machine that went down


def never_written(samples, cache, tmp_path) -> None:
    cache.entries[3] = 0


@pytest.mark.parametrize("harm", [replaced, touched, damaged, half_written, never_written])
def test_what_is_stale_or_damaged_is_read_anew(samples, decoded, tmp_path, harm):
    cache = cached(samples, tmp_path)
    read(images(samples, cache), 1)
    harm(samples, cache, tmp_path)
    decoded.clear()
    assert same(read(images(samples, cached(samples, tmp_path)), 1), read(images(samples, None), 1))
    assert decoded == [samples[3].path, *(sample.path for sample in samples)]
    decoded.clear()
    read(images(samples, cache), 1)
    assert not decoded  # mended


def test_a_file_that_is_gone_is_an_error_with_a_cache_too(samples, tmp_path):
    some = images(samples, cached(samples, tmp_path))
    read(some, 1)
    os.remove(samples[3].path)
    with pytest.raises(DataError, match=re.escape(samples[3].path)):
        read(some, 2)


def test_a_cache_that_was_cut_off_is_filled_again(samples, decoded, tmp_path):
    read(images(samples, cached(samples, tmp_path)), 1)
    open_cache.cache_clear()
    (file,) = tmp_path.glob("*.images")
    os.truncate(file, file.stat().st_size // 2)
    decoded.clear()
    assert same(read(images(samples, cached(samples, tmp_path)), 1), read(images(samples, None), 1))
    assert len(samples) < len(decoded) < 2 * len(samples)


def test_other_images_sizes_and_filters_have_files_of_their_own(samples, tmp_path):
    cached(samples, tmp_path), cached(samples[1:], tmp_path), cached(samples, tmp_path, how="BILINEAR")
    cached(samples, tmp_path, size=(24, 48))
    assert len(list(tmp_path.glob("*.images"))) == 4


def test_memory_is_shared_and_given_back_even_if_a_program_was_killed(samples, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(datasets.cache, "SHARED_MEMORY", tmp_path / "memory")
    (tmp_path / "memory").mkdir()
    code = (
        "import datasets.cache, pathlib, os, signal, sys; mode, folder, last, *paths = sys.argv[1:]\n"
        "datasets.cache.SHARED_MEMORY = pathlib.Path(folder)\n"
        "cache = datasets.cache.make_cache(mode, None, paths, (8, 4), 'BICUBIC')\n"
        "print(*os.listdir(folder)); sys.stdout.flush()\n"
        "if last == 'killed': os.kill(os.getpid(), signal.SIGKILL)"
    )

    def program(last: str, *paths: str) -> str:
        words = [sys.executable, "-c", code, "auto", str(tmp_path / "memory"), last, *paths]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    left = program("killed", "a.jpg")
    assert os.listdir(tmp_path / "memory") == [left] != [""]
    held = cached(samples, tmp_path, mode="ram")
    (name,) = os.listdir(tmp_path / "memory")
    assert name == held.arguments[0].name != left
    assert sorted(program("ended", "b.jpg").split())[0] and os.listdir(tmp_path / "memory") == [name]  # in use here
    assert "DATALOADER.CACHE ram: 0.1 MB for 24 images of 48 x 24" in caplog.messages


def test_without_room_auto_is_off_and_others_are_errors(samples, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(datasets.cache, "available_memory", lambda: 150_000)
    monkeypatch.setattr(datasets.cache, "SHARED_MEMORY", tmp_path)
    assert cached(samples, tmp_path, mode="auto") is None and not list(tmp_path.glob("*.images"))
    assert (
        "DATALOADER.CACHE auto: off, 0.1 MB for 24 images of 48 x 24 are more than 50 % of what is free" in caplog.text
    )
    monkeypatch.setattr(datasets.cache, "available_memory", lambda: 200_000)
    assert cached(samples[:20], tmp_path, mode="auto")

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert cached(samples[:10], tmp_path, mode="auto") is None
    assert "CACHE auto: off, no 0.0 MB for 10 images" in caplog.text and "(No space left on device)" in caplog.text
    for mode in ("ram", "disk"):
        with pytest.raises(UserError, match=f"^DATALOADER.CACHE {mode}: no .* in {tmp_path} .No space.*off$"):
            cached(samples, tmp_path, mode=mode)
    assert cached(samples, tmp_path, mode="off") is None


def test_memory_of_a_container_is_what_its_group_may_use(tmp_path, monkeypatch):
    for name, text in {"info": "MemTotal: 9 kB\nMemAvailable: 8 kB\n", "limit": "5000\n", "used": "2000\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "info")
    monkeypatch.setattr(memory, "GROUPS", [(tmp_path / "limit", tmp_path / "used"), (tmp_path / "no", tmp_path / "no")])
    assert memory.available_memory() == 3000
    (tmp_path / "limit").write_text("max\n")
    assert memory.available_memory() == 8192
    (tmp_path / "info").unlink()
    assert memory.available_memory() == 0
