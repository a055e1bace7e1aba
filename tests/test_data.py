"""From a benchmark to batches: held-out identities, draws, loaders. (Transforms: test_input.py, test_equality.py.)"""

import os
import random
import resource
import signal
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import datasets.build
import datasets.images
from configs import load
from datasets.build import make_benchmark, make_loader
from datasets.hold_out import hold_out
from datasets.images import Images, read_image
from datasets.market1501 import market1501
from datasets.transforms import TrainTransform
from model.build import settle_pixels
from utils.command import run_script
from utils.errors import DataError, UserError, one_line
from utils.metrics import rank, same_camera
from utils.records import Benchmark, Labels, Sample, Trial

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SIZE = (64, 32)


def noise(height: int = 20, width: int = 12, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write(folder: Path, *names: str) -> None:
    """Small images, each its own, below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        noise(seed=number).save(folder / name)


# ------------------------------------------------------------------------------------------------------------- hold out


@pytest.fixture
def market(tmp_path) -> Path:
    """ROOT_DIR with a Market-1501 of six training identities."""
    folder = tmp_path / "data" / "Market-1501-v15.09.15"
    for split in ("bounding_box_train", "query", "bounding_box_test"):
        (folder / split).mkdir(parents=True)
        for pid in range(1, 7):
            (folder / split / f"{pid:04}_c{1 + pid % 3}s1_0_0.jpg").touch()
    return tmp_path / "data"


def test_make_benchmark(market, monkeypatch):
    cfg = load(None, ["DATASETS.ROOT_DIR", str(market)])
    assert make_benchmark(cfg) == market1501(market)
    monkeypatch.setenv("HOME", str(market.parent))
    assert make_benchmark(load(None, ["DATASETS.ROOT_DIR", "~/data"])) == market1501(market)
    with pytest.raises(DataError, match=r"invalid value 'market151'; did you mean market1501\?.*synthetic"):
        make_benchmark(cfg, "market151")


def crowd(identities: int = 20, seed: int = 3) -> Benchmark:
    """Identities with 1 to 8 images in some of four cameras; the first two in one camera and in two, an image each."""
    rng = random.Random(seed)
    places = [[0], [1, 2], *([rng.randrange(4) for _ in range(rng.randint(1, 8))] for _ in range(identities - 2))]
    train = [
        Sample(f"{pid:04}_c{camid + 1}_{number}.jpg", pid, camid)
        for pid, cameras in enumerate(places)
        for number, camid in enumerate(cameras)
    ]
    test = Trial((Sample("q", 900, 0),), (Sample("g", 900, 1),))
    return Benchmark("crowd", "A photo of a {} person.", tuple(train), (test,), same_camera)


@pytest.mark.parametrize(("share", "seed"), [(0.1, 0), (0.5, 1), (0.9, 2)])
def test_hold_out(share, seed):
    whole = crowd()
    held = hold_out(whole, share, seed)
    (trial,) = held.trials
    train, query, gallery = ({sample.path for sample in side} for side in (held.train, *trial))
    assert not train & (query | gallery)  # no image on both sides ...
    owners = {sample.path: sample.pid for sample in whole.train}
    assert not {owners[path] for path in train} & {owners[path] for path in gallery}  # ... and no identity
    assert train | query | gallery == set(owners)  # none lost, none of the test split
    assert len({owners[path] for path in gallery}) == round(share * 20)
    # Labels: dense and in the order they had.
    labels = {owners[sample.path]: sample.pid for sample in held.train}
    assert [labels[pid] for pid in sorted(labels)] == list(range(held.num_pids))
    assert len({(owners[sample.path], sample.pid) for sample in held.train}) == len(labels)
    # One query an identity and camera.
    pairs = Counter((sample.pid, sample.camid) for sample in trial.query)
    assert set(pairs.values()) == {1}
    assert set(pairs) == {(sample.pid, sample.camid) for sample in trial.gallery}
    assert held.name != whole.name and held.template == whole.template
    assert held == hold_out(crowd(), share, seed) != hold_out(whole, share, seed + 1)


@pytest.mark.parametrize("seed", range(2))
def test_hold_out_gives_a_match_to_every_query_that_can_have_one(seed):
    (trial,) = hold_out(crowd(), 0.9, seed).trials
    cameras = {pid: {s.camid for s in trial.gallery if s.pid == pid} for pid in {s.pid for s in trial.query}}
    ranking = rank(torch.rand(len(trial.query), len(trial.gallery)), Labels.of(trial.query), Labels.of(trial.gallery))
    assert ranking.num_valid == sum(len(cameras[sample.pid]) > 1 for sample in trial.query) > 10


@pytest.mark.parametrize("share", [0.01, 0.07, 0.93, 0.99])
def test_hold_out_leaves_two_identities_on_both_sides(share):
    with pytest.raises(DataError, match=rf"DATASETS\.HOLD_OUT {share}: \d+ of 20 training identities"):
        hold_out(crowd(), share, 0)


def test_hold_out_by_config(market):
    cfg = load(None, ["DATASETS.ROOT_DIR", str(market), "DATASETS.HOLD_OUT", "0.5"])
    benchmark = make_benchmark(cfg)
    assert benchmark.num_pids == 3
    assert {Path(s.path).parent.name for s in benchmark.trials[0].gallery} == {"bounding_box_train"}


# --------------------------------------------------------------------------------------------------------------- images


def plain(size=SIZE, **changed) -> TrainTransform:
    """The training transform with everything random switched off but for what is `changed`."""
    return TrainTransform(size, **{**HALF, "flip": 0.0, "padding": 0, "erase": 0.0, **changed})


def pixels(original: Image.Image) -> torch.Tensor:
    """[3, H, W] in -1..1, by plain arithmetic."""
    return torch.from_numpy(np.asarray(original).astype(np.float32) / 255).permute(2, 0, 1) * 2 - 1


@pytest.fixture
def samples(tmp_path) -> list[Sample]:
    """Eight images of four identities in four cameras, the last with viewpoints."""
    write(tmp_path, *(f"{number}.jpg" for number in range(8)))
    return [Sample(str(tmp_path / f"{number}.jpg"), number // 2, number % 4, number // 4) for number in range(8)]


def images(samples, *, views: bool = True, seed: int = 0, epoch: int = 1) -> Images:
    transform = TrainTransform(SIZE, **HALF, flip=0.5, padding=4, erase=0.5, jpeg=0.5)
    made = Images(samples, transform, views=views, seed=seed)
    made.set_epoch(epoch)
    return made


def batch_of(some: Images, *indices: int):
    return some.finish(some.collate(some.__getitems__(list(indices))))


def same(one, other) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.views, other.views)


def test_batch(samples, monkeypatch):
    paths = []
    monkeypatch.setattr(datasets.images, "read_image", lambda path: paths.append(path) or read_image(path))
    batch = batch_of(images(samples), 5, 0, 7)
    assert paths == [samples[index].path for index in (5, 0, 7)]  # decoded once
    assert batch.images.shape == (3, 3, *SIZE)
    assert batch.views.shape == (2, 3, 3, *SIZE)
    assert batch.pids.tolist() == [2, 0, 3]
    assert batch.side.camids.tolist() == [1, 0, 3]
    assert batch.side.viewids.tolist() == [1, 0, 1]
    assert batch.indices.tolist() == [5, 0, 7]
    assert batch_of(images(samples, views=False), 5, 0).views is None
    assert len(images(samples)) == 8


def test_views_belong_to_their_image(samples):
    """Without anything random, views are the image: [view, row of the batch, ...] and not the other way round."""
    still = Images(samples, plain(), views=True)
    batch = batch_of(still, 3, 6, 1)
    assert torch.equal(batch.views[0], batch.images) and torch.equal(batch.views[1], batch.images)
    assert not torch.equal(batch.images[0], batch.images[1])


def test_the_draw_depends_on_seed_epoch_and_index_alone(samples):
    reference = batch_of(images(samples), *range(8))
    backwards = batch_of(images(samples), *reversed(range(8)))
    assert torch.equal(backwards.images.flip(0), reference.images)
    assert torch.equal(backwards.views.flip(1), reference.views)
    alone = batch_of(images(samples), 3)
    assert torch.equal(alone.images[0], reference.images[3]) and torch.equal(alone.views[:, 0], reference.views[:, 3])
    torch.manual_seed(99)
    random.seed(99)
    assert same(batch_of(images(samples), *range(8)), reference)
    without = batch_of(images(samples, views=False), *range(8))
    assert torch.equal(without.images, reference.images)  # views are drawn after the image
    for other in (images(samples, epoch=2), images(samples, seed=1)):
        drawn = batch_of(other, *range(8))
        assert not any(torch.equal(a, b) for a, b in zip(drawn.images, reference.images, strict=True))


def test_an_image_that_fills_several_places_is_drawn_anew_in_each(samples):
    batch = batch_of(images(samples), 4, 4, 1, 4)
    views = torch.stack([batch.images, *batch.views], dim=1)[[0, 1, 3]].flatten(0, 1)  # nine of the same image
    assert not any(torch.equal(views[i], views[j]) for i in range(9) for j in range(i))
    elsewhere = batch_of(images(samples), 1, 4, 0, 4, 4)  # the first, the second, the third copy, wherever they are
    assert torch.equal(elsewhere.images[[1, 3, 4]], batch.images[[0, 1, 3]])


def test_global_generators_stay_untouched(samples, monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)  # nor may an accelerator's be seeded
    torch.manual_seed(5)
    seeded.clear()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    batch_of(images(samples), *range(8))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert not seeded


# -------------------------------------------------------------------------------------------------------------- loaders


def config(*overrides: str):
    small = ["INPUT.SIZE_TRAIN", "(64, 32)", "INPUT.SIZE_TEST", "(32, 16)", "INPUT.PADDING", "4"]
    batches = ["DATALOADER.NUM_INSTANCE", "2", "SOLVER.STAGE2.IMS_PER_BATCH", "4", "TEST.IMS_PER_BATCH", "3"]
    return settle_pixels(load(None, [*small, *batches, "DATALOADER.NUM_WORKERS", "0", *overrides]))


def test_training_loader(samples):
    loader = make_loader(config(), samples, train=True, views=True)
    before = torch.get_rng_state()
    batches = list(loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(loader) == len(batches) == 2
    for batch in batches:
        assert batch.images.shape == (4, 3, 64, 32) and batch.views.shape == (2, 4, 3, 64, 32)
        assert Counter(Counter(batch.pids.tolist()).values()) == {2: 2}
        assert batch.pids.tolist() == [samples[index].pid for index in batch.indices.tolist()]
    assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == list(range(8))
    assert next(iter(make_loader(config(), samples, train=True))).views is None


def test_test_loader(samples):
    """All in their order, the rest of three images, too; the test transform at the test size."""
    loader = make_loader(
        config("INPUT.PIXEL_MEAN", "[0.5, 0.5, 0.5]", "INPUT.PIXEL_STD", "[0.5, 0.5, 0.5]"), samples, train=False
    )
    before = torch.get_rng_state()
    batches = list(loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(batch.pids) for batch in batches] == [3, 3, 2]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(8))
    assert all(batch.views is None for batch in batches)
    expected = pixels(read_image(samples[4].path).resize((16, 32), Image.Resampling.BILINEAR))
    torch.testing.assert_close(batches[1].images[1], expected, rtol=0, atol=1e-6)


def too_large() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as of a small /dev/shm: of pixels, not of labels


def nowhere() -> None:
    tempfile.tempdir = "/no/such/place"  # for the socket by which shared memory is handed over


@pytest.mark.parametrize(("limit", "reason"), [(too_large, "File too large"), (nowhere, "/no/such/place")])
def test_what_a_worker_cannot_hand_over_is_an_error_of_the_reader(samples, monkeypatch, limit, reason):
    real = datasets.build.begin_worker
    monkeypatch.setattr(datasets.build, "begin_worker", lambda number: (real(number), limit()))
    loader = make_loader(config("DATALOADER.NUM_WORKERS", "1"), samples, train=True)
    loader.timeout = 60  # else nobody would ever know
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    assert reason in one_line(caught.value) and "DATALOADER.NUM_WORKERS 0" in one_line(caught.value)


def test_a_worker_that_is_killed_is_reported_with_its_signal(samples, monkeypatch, capsys):
    monkeypatch.setattr(datasets.build, "begin_worker", lambda number: os.kill(os.getpid(), signal.SIGKILL))
    loader = make_loader(config("DATALOADER.NUM_WORKERS", "1"), samples, train=True)
    assert run_script(lambda: next(iter(loader))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is killed by signal: Killed" in line and "memory" in line and "the same command resumes" in line


def test_without_workers_no_memory_is_shared(samples, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "share_memory_", lambda self: pytest.fail("/dev/shm may be full"))
    for train in (True, False):
        assert list(make_loader(config("DATALOADER.NUM_WORKERS", "0"), samples, train=train))


def test_an_epoch_reaches_workers_that_live_on(samples):
    """With workers, another epoch draws the same as without, and not what the epoch before drew."""

    def read(loader, epoch: int) -> list:
        loader.dataset.set_epoch(epoch)
        loader.batch_sampler.set_epoch(epoch)
        return list(loader)

    here, there = (
        make_loader(config("DATALOADER.NUM_WORKERS", workers), samples, train=True, views=True) for workers in "01"
    )
    epochs = [read(there, epoch) for epoch in (1, 2)]
    for epoch, batches in zip((1, 2), epochs, strict=True):
        expected = read(here, epoch)
        assert [batch.indices.tolist() for batch in batches] == [batch.indices.tolist() for batch in expected]
        assert all(same(a, b) for a, b in zip(batches, expected, strict=True))
    assert not any(same(a, b) for a, b in zip(*epochs, strict=True))


def test_workers_are_no_more_than_cores(samples, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for asked, given in (("0", 0), ("1", 1), ("64", 2)):
        assert make_loader(config("DATALOADER.NUM_WORKERS", asked), samples, train=True).num_workers == given


def test_too_few_identities_for_a_batch(samples):
    with pytest.raises(DataError, match="takes 5 identities a batch; the training set has 4"):
        make_loader(config("SOLVER.STAGE2.IMS_PER_BATCH", "10"), samples, train=True)
