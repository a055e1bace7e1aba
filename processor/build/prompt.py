"""The parts of stage 1 (prompts)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import torch

from configs.stages import CLUSTER, PROMPT
from model.prompts import AUGMENTATIONS, MOVING, words_only
from model.svllreid import SvllReid
from processor.build.data import Data, ordered_loader
from processor.build.handover import hand_over, pseudo_labels
from processor.build.network import NETWORK_STREAM
from processor.image_stage import all_text_features
from processor.prompt_stage import BalancedBatches, FeatureBatches, PromptStage, cache_features, matching_accuracy
from processor.run import Run
from processor.stage_run import StageParts
from processor.turn import Turn
from utils.errors import DataError
from utils.records import Sample
from utils.seeds import derive

logger = logging.getLogger(__name__)


def prompt_parts(run: Run, turn: Turn, model: SvllReid, data: Data, seed: int) -> StageParts:
    block, device = PROMPT.settings(run.cfg), run.device
    train = _prompted(run, turn, model, data, seed)
    cache = cache_features(model, ordered_loader(run, train), device, precision=run.cfg.TEST.PRECISION)
    data.train_watch.look()
    generator = torch.Generator(device).manual_seed(seed)
    augment = partial(AUGMENTATIONS[block.PROMPT_AUG_METHOD], strength=block.PROMPT_AUG_SCALE, generator=generator)
    stage = PromptStage(
        model,
        weights={"image_text": 1.0, "language_ssl": block.SSL_LOSS_WEIGHT},
        augment=words_only(augment, model.prompts.end) if block.PROMPT_AUG_TOKENS == "words" else augment,
        moving=block.PROMPT_AUG_METHOD in MOVING,
        train_projector=block.TRAIN_PROJECTOR,
    )
    examples = {sample.pid: sample.path for sample in reversed(train)}
    parts = model.prompts.parts(cache.pids)

    def batches(epoch: int, done: int) -> FeatureBatches | BalancedBatches:
        options = {"seed": seed, "epoch": epoch, "done": done}
        if len(parts) > 1:
            return BalancedBatches(cache, parts, block.IMS_PER_BATCH, **options)
        return FeatureBatches(cache, block.IMS_PER_BATCH, **options)

    def ended() -> None:
        model.prompts.trained = True
        accuracy = matching_accuracy(cache, all_text_features(model, device))
        logger.info(
            "%s  on its own training features (this is no test):\n"
            "  %.1f %% of the images are nearest to their identity's text,\n"
            "  %.1f %% of the texts to an image of their identity",
            *(turn.title, 100 * accuracy["image_to_text"], 100 * accuracy["text_to_image"]),
        )
        epochs = block.MAX_EPOCHS
        run.record("training_features", step=epochs, stage=PROMPT.name, epoch=epochs, **accuracy, **turn.mark)

    return StageParts(
        stage,
        batches,
        image_paths=lambda pids: [examples[pid] for pid in pids.unique().tolist()],
        generators={"prompts": generator},
        ended=ended,
    )


def _prompted(run: Run, turn: Turn, model: SvllReid, data: Data, seed: int) -> Sequence[Sample]:
    """The images that prompts are learned of: all with their identities or, behind a clustering, those in a cluster
    with that as their identity, of which the network gets a prompt each.

    Raises:
        DataError: no pseudo-labels, or those of another run; no cluster at all.
    """
    found = pseudo_labels(run, turn, data)
    if found is None:
        return data.benchmark.train
    if not sum(found.counts):
        raise DataError(
            f"{CLUSTER.title} found no cluster in its last epoch, and there is nothing to learn prompts of; see "
            "CLUSTER.EPS and CLUSTER.MIN_SAMPLES"
        )
    if not run.resumes(turn.number):
        hand_over(run, turn, model, data)
        model.prompts.resize(found.counts, torch.Generator().manual_seed(derive(seed, NETWORK_STREAM)))
        model.architecture["prompt_counts"] = list(found.counts)
    return found.relabelled(data.benchmark.train)
