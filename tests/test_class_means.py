"""Identity classifiers that start from class means."""

import pytest
import torch
from builders import benchmark, data_of, image_batch, new_run, small_model

from configs import load, to_dict
from model.build import make_model
from processor.build import network as build_network
from processor.class_means import start_from_means
from processor.image_stage import ImageStage
from utils.checkpoint import save_checkpoint

PIDS = [0, 1, 2, 2, 1, 0, 2]


def test_rows_are_class_means_of_what_the_neck_gives():
    model = small_model(pids=3, cams=2)
    batch = image_batch(PIDS, cams=[0, 1, 1, 0, 0, 1, 1], views=False)
    for head in model.heads:
        torch.nn.init.uniform_(head.neck.weight)
    features = model.eval().encode_image(batch.images, batch.side)
    start_from_means(model, [batch], torch.device("cpu"))
    for head, own in zip(model.heads, (features.last, features.projected), strict=True):
        centred = own - own.mean(dim=0)
        necked = centred / (centred.square().mean(dim=0) + 1e-5).sqrt() * head.neck.weight
        for pid, row in enumerate(head.classifier.weight):
            mean = sum(necked[i] for i, other in enumerate(PIDS) if other == pid)
            torch.testing.assert_close(row, mean / mean.norm(), rtol=1e-4, atol=1e-5)
        assert not head.neck.num_batches_tracked and not head.neck.running_mean.any()


def test_the_first_step_is_right():
    model = small_model(pids=3)
    batch = image_batch(PIDS, views=False)
    faces = torch.randn(3, *batch.images.shape[1:], generator=torch.Generator().manual_seed(2))
    batch = batch._replace(images=faces[batch.pids] + 0.1 * batch.images)
    stage = ImageStage(model, weights={"identity": 1.0}, text_features=None).train()
    before = stage(batch)
    start_from_means(model, [batch], torch.device("cpu"))
    after = stage.train()(batch)
    assert after.accuracy["identity"] == 1 > before.accuracy["identity"]
    assert after.total < before.total / 2


@pytest.mark.parametrize(("value", "pids", "made"), [("means", 3, False), ("means", 4, True), ("random", 4, False)])
def test_classifiers_of_a_file_stay_as_they_are(tmp_path, monkeypatch, small_architecture, value, pids, made):
    settings = {"MODEL.NAME": "ViT-Small-Test", "MODEL.PRETRAIN": "none", "MODEL.DEVICE": "cpu"}
    settings |= {"INPUT.SIZE_TRAIN": "(32, 16)", "MODEL.STRIDE_SIZE": "(8, 8)", "MODEL.I2T_LOSS_WEIGHT": "0.0"}
    settings |= {"PROCESSOR.STAGES": "image", "SOLVER.STAGE2.SSL_LOSS_WEIGHT": "0.0", "MODEL.INIT_CLASSIFIER": value}
    words = [word for pair in settings.items() for word in pair]
    cfg, calls = load(None, words), []
    monkeypatch.setattr(build_network, "start_from_means", lambda model, *_: calls.append(model))
    new = build_network.make_network(new_run(cfg, tmp_path / "new"), data_of(benchmark()))
    assert calls == ([new] if value == "means" else [])
    calls.clear()
    model = make_model(cfg, benchmark(pids=3))
    file = tmp_path / "start.pth"
    save_checkpoint(file, {"model": model.state_dict(), "config": to_dict(cfg), "architecture": model.architecture})
    run = new_run(load(None, [*words, "MODEL.INIT_FROM", str(file)]), tmp_path / "run")
    build_network.make_network(run, data_of(benchmark(pids=pids)))
    assert bool(calls) == made
