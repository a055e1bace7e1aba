"""The memories of stage 2: made, begun, saved and resumed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from loss.memory import Memory
from processor.build.data import Data, ordered_loader
from processor.features import compute_features
from processor.image_stage import ImageStage
from processor.run import Run
from utils.records import Labels


def keep_prototypes(run: Run, stage: ImageStage, data: Data) -> Callable[..., dict] | None:
    """Give a stage the memories of its terms -> what begins and resumes them (`StageParts.before_epoch`); None without
    any.

    Before the first epoch they become the class means of the training images, without augmentation.
    """
    cfg, train = run.cfg.MEMORY, data.benchmark.train
    camera = {"temperature": cfg.CAMERA_TEMP, "momentum": cfg.CAMERA_MOMENTUM, "negatives": cfg.CAMERA_NEGATIVES}
    make = {
        "prototype": partial(Memory, temperature=cfg.TEMP, momentum=cfg.MOMENTUM),
        "camera_proxy": partial(Memory, **camera),
    }
    width = sum(head.neck.num_features for head in stage.model.heads)
    stage.memories.update({name: one(width) for name, one in make.items() if stage.weights[name] > 0})
    if not stage.memories:
        return None
    stage.memories.to(run.device)

    def before_epoch(epoch: int, state: dict | None, _optimizer: torch.optim.Optimizer) -> dict:
        if state is not None:
            stage.memories.load_state_dict(state)
        elif epoch == 1:
            stage.eval()
            loader, what = ordered_loader(run, train), "features for the prototypes"
            features = compute_features(loader, stage.query, device=run.device, what=what).features
            stage.fill(features, Labels(*(ids.to(run.device) for ids in Labels.of(train))))
        return dict(stage.memories.state_dict())  # which changes in place

    return before_epoch
