"""A few faults of every kind are survived; and the judge sees when a program does not survive them."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import random
import sys
import time
from functools import partial

import campaign
import pytest
import torch
from campaign import FAILED, FAULTS, LOST, SURVIVED, TIMEOUT, WRONG, Operation, Plan, Reference, Trial
from PIL import Image

import train_svllreid
from datasets import images
from processor import loop
from utils import checkpoint
from utils.run import folder as run_folder
from utils.run import metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the campaign forks, and looks into /proc"),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`make faults FAULTS=120`: kinds take turns. A fault is drawn from --fault-seed, its kind and its number."""
    if "fault" in metafunc.fixturenames:
        kinds = [*FAULTS]
        faults = [(number, kinds[(number - 1) % len(kinds)]) for number in range(1, metafunc.config.option.faults + 1)]
        metafunc.parametrize("fault", faults, ids=[f"{number}-{kind}" for number, kind in faults])


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Reference:
    return campaign.make_reference(tmp_path_factory.mktemp("faults"))


def test_a_fault_is_survived(reference, tmp_path, fault, request):
    number, kind = fault
    verdict = campaign.judge(number, kind, reference, tmp_path / "fault", seed=request.config.option.fault_seed)
    assert verdict.word == SURVIVED, verdict
    assert list(tmp_path.iterdir()) == []  # only what fails is kept


@pytest.mark.parametrize("name", ["metrics.jsonl", "results.json"])
def test_a_disk_that_is_full_at_the_last_evaluation(reference, tmp_path, name):
    """The run is not finished yet."""
    operation = Operation("write", name)
    trial = Trial(tmp_path, random.Random(0), timeout=TIMEOUT)
    trial.data = reference.data
    outcome = trial.start(Plan(at=len(reference.operations) - 1 - reference.operations[::-1].index(operation)))
    assert outcome.code == FAILED and outcome.failed == [operation]
    campaign.said(trial, outcome)
    trial.finish()
    trial.compare(reference)


# ------------------------------------------------------------------------------- each breaks the program in its process


def unless_it_fails(write):
    def written(*arguments):
        with contextlib.suppress(OSError, RuntimeError):
            write(*arguments)

    return written


def in_place(path, contents) -> None:
    with open(path, "wb") as file:
        torch.save(contents, file)


def painted(read):
    return lambda path: read(path) if os.path.exists(path) else Image.new("RGB", (64, 128))


def on_nan(optimizer, *_):
    optimizer.step()
    return torch.ones((), dtype=torch.bool)


# Kind of fault, what of the program is replaced by what, and how that is judged.
BROKEN = [
    ("kill", run_folder, "newest_state", lambda path: None, {LOST}),
    ("truncation", torch.optim.Optimizer, "load_state_dict", lambda self, state: None, {WRONG}),
    ("kill", metrics.Metrics, "_take_back", lambda *_: True, {WRONG}),
    ("kill", checkpoint, "write_tensors", in_place, {WRONG}),
    ("truncation", run_folder, "KEPT", 1, {LOST, WRONG}),
    ("corruption", checkpoint, "check_archive", lambda path: None, {LOST, WRONG}),
    ("full-disk", checkpoint, "write_tensors", unless_it_fails(checkpoint.write_tensors), {WRONG}),
    ("vanished-image", images, "read_image", painted(images.read_image), {WRONG}),
    ("nan", loop, "_update", on_nan, {WRONG}),
]


@pytest.mark.parametrize(("kind", "owner", "name", "replacement", "words"), BROKEN)
def test_the_judge_sees_it(reference, tmp_path, kind, owner, name, replacement, words):
    seen, broken = [], partial(setattr, owner, name, replacement)
    for number in range(1, 9):  # not every fault hits what is broken
        verdict = campaign.judge(number, kind, reference, tmp_path / "fault", seed=0, broken=broken)
        if verdict.word != SURVIVED:
            assert verdict.word in words, verdict
            assert verdict.reason and any((tmp_path / "fault").iterdir())
            return
        seen.append(verdict)
    pytest.fail(f"nothing was noticed: {seen}")


def test_a_run_that_hangs_is_lost(reference, tmp_path):
    slow = partial(setattr, train_svllreid, "main", lambda words: time.sleep(60))
    verdict = campaign.judge(1, "nan", reference, tmp_path / "fault", seed=0, timeout=0.5, broken=slow)
    assert (verdict.word, verdict.reason) == (LOST, "hangs: no end after 0 s")


def test_a_full_disk_fails_halfway_and_only_for_a_while(tmp_path, monkeypatch):
    in_os = ("replace", "unlink", "mkdir", "fsync", "truncate")
    for module, name in ((builtins, "open"), (io, "open"), *((os, each) for each in in_os)):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    folder, failed = tmp_path / "run", []
    disk = campaign.Disk(folder, Plan(at=2), failed=failed.append)
    disk.install()
    folder.mkdir()
    with pytest.raises(OSError, match="No space left"):
        (folder / "metrics.jsonl").write_bytes(b"0123456789" * 1000)
    assert failed == [Operation("write", "metrics.jsonl")]
    (folder / "metrics.jsonl").write_text("whole")
    (tmp_path / "elsewhere").write_text("nobody looks")
    assert (folder / "metrics.jsonl").read_text() == "whole"
    assert disk.count == 5  # a folder, and twice open and write


def test_states_are_compared_to_the_last_bit():
    one = {"a": torch.zeros(2), "b": [1, (2, "x")], "c": {"d": None}}
    assert campaign.same(one, {"a": torch.zeros(2), "b": [1, (2, "x")], "c": {"d": None}})
    for change in ({"a": torch.tensor([0.0, 1e-45])}, {"a": torch.zeros(2).double()}, {"b": [1, (2, "y")]}, {"c": {}}):
        assert not campaign.same({**one, **change}, one)
