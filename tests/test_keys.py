"""No dead key: every key of `configs/defaults.py` changes what is computed, or does what a short list says instead.

`EFFECTS` says for every key where a change must be seen in a training of a few steps. A change that comes earlier than
there is a mistake, too. `ELSEWHERE` has the keys that are about speed, memory, the log and places: there the trained
weights and the figures must stay what they were. A key in neither of them, such as a new one, fails.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from builders import SMALL, data_of, new_run
from yacs.config import CfgNode

import test_svllreid
import train_svllreid
from configs import load, to_dict
from configs.defaults import ROWS
from configs.keys import ALWAYS, UNTIL_OVER
from configs.loading import flatten
from configs.stages import STAGES
from datasets.build import make_loader
from model.build import make_model
from processor.build.evaluation import evaluate_model
from processor.build.stage import run_stage
from tools.demo.render import rendered_benchmark
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.devices import computing_in
from utils.errors import UserError
from utils.records import Benchmark
from utils.run import LOG, METRICS, RESULTS

CPU = torch.device("cpu")
TINY = "ViT-Tiny-8"
# Two epochs of two steps in the prompt stage, one in the image stage; every step is logged.
SETTINGS = f"""
MODEL: {{DEVICE: cpu, NAME: {TINY}, PRETRAIN: rendered, STRIDE_SIZE: [8, 8], SSL_HIDDEN: 8, SSL_OUT: 8}}
INPUT: {{SIZE_TRAIN: [32, 16], SIZE_TEST: [32, 16], PADDING: 2, PIXEL_MEAN: [0.485, 0.456, 0.406],
  PIXEL_STD: [0.229, 0.224, 0.225]}}
DATASETS: {{NAMES: synthetic}}
DATASETS.SYNTHETIC: {{TRAIN_IDENTITIES: 8, TRAIN_IMAGES: 4, TEST_IDENTITIES: 4, TEST_IMAGES: 6}}
DATALOADER: {{NUM_WORKERS: 0, NUM_INSTANCE: 4}}
SOLVER: {{PRECISION: fp32}}
SOLVER.STAGE1: {{IMS_PER_BATCH: 16, MAX_EPOCHS: 2, WARMUP_EPOCHS: 0, LOG_PERIOD: 1}}
SOLVER.STAGE2: {{IMS_PER_BATCH: 16, MAX_EPOCHS: 1, STEPS: [1], WARMUP_ITERS: 0, LOG_PERIOD: 1}}
SOLVER.CLUSTER: {{IMS_PER_BATCH: 8, MAX_EPOCHS: 1, STEPS: [1], WARMUP_ITERS: 0, LOG_PERIOD: 1}}
CLUSTER: {{K1: 3, K2: 2, EPS: 0.6, MIN_SAMPLES: 2}}
MEMORY: {{SWAP_START: 1}}
PROCESSOR: {{UNTRAINED_PROMPTS: True}}  # so that each stage runs by itself
"""
BASE = {key: str(value) for key, value in flatten(yaml.safe_load(SETTINGS))}
# Files that the tests make, as values of keys.
NOISY, OTHER, WORDLESS = "<noisy.pth>", "<other.pth>", "<wordless.pth>"


class Effect(NamedTuple):
    """A key, another value, and all points of `POINTS` where that must be seen."""

    key: str
    value: str
    seen: tuple[str, ...]
    on: dict[str, str]  # what is changed in BASE, so that the key matters
    network: dict[str, str] | None  # changes that the network is made with instead of the key's, the same both times


def effect(key: str, value: str, *seen: str, on: dict | None = None, network: dict | None = None) -> Effect:
    return Effect(key, value, seen, on or {}, network)


# The terms of the image stage's loss: a key that must be seen in some of them may change no other.
TERMS = ("identity", "triplet", "image_text", "vision_ssl")
SIE = {"MODEL.SIE_CAMERA": "True"}
RANDOM = {"MODEL.PRETRAIN": "none"}
FROM_FILE = {"MODEL.INIT_FROM": NOISY}
EXPANDED = {**FROM_FILE, "TEST.AQE": "True", "TEST.AQE_K": "9"}
RERANKED = {**FROM_FILE, "TEST.RE_RANKING": "True", "TEST.RE_RANKING_K1": "6", "TEST.RE_RANKING_K2": "3"}
TIMM = {
    **{"MODEL.NAME": "timm/test_vit", "MODEL.PRETRAIN": "none", "PROCESSOR.STAGES": "image"},
    **{"MODEL.I2T_LOSS_WEIGHT": "0.0", "SOLVER.STAGE2.SSL_LOSS_WEIGHT": "0.0"},
}
SIZES = {"INPUT.SIZE_TRAIN": "(64, 32)", "INPUT.SIZE_TEST": "(64, 32)"}
SOLIDER = {**TIMM, **SIZES, "MODEL.NAME": "solider_swin_tiny"}
IMAGE_ONLY = {"PROCESSOR.STAGES": "image"}
SIMSIAM = {"MODEL.SSL_TYPE": "SIMSIAM"}
IDENTITY = {"SOLVER.STAGE2.SSL_POSITIVES": "identity"}
PROTOTYPES, PROXIES = {"MODEL.PROTOTYPE_LOSS_WEIGHT": "1.0"}, {"MODEL.CAMERA_PROXY_LOSS_WEIGHT": "1.0"}
SHOWN = ("images", "views", "test images")
PICTURES = ("training pictures", "test pictures")
# A stage's learning rate: what is logged (the first epoch's, and all of them) and what it does.
PROMPT_RATES = ("prompt rate", "prompt rates", "prompts after")
IMAGE_RATES = ("image rates", "tower after")

EFFECTS = (
    effect("MODEL.NAME", SMALL, "shape of tower", on=RANDOM),
    effect("MODEL.PRETRAIN", "none", "start of tower", "start of text", "start of words"),
    effect("MODEL.INIT_FROM", NOISY, "start of tower", "start of text", "start of prompts", "figures"),
    effect("MODEL.POOLING", "avg", "identity", "triplet", on=TIMM),
    effect("MODEL.POOLING", "token+avg", "shape of heads", on=TIMM),
    effect("MODEL.EMBED_DIM", "8", "shape of heads", on=TIMM),
    effect("MODEL.SEMANTIC_WEIGHT", "0.9", "identity", "triplet", on=SOLIDER),
    effect("MODEL.DROP_PATH_RATE", "0.5", "identity", "triplet", on=TIMM),
    effect("MODEL.INIT_CLASSIFIER", "means", "classifiers of a run", on={"PROCESSOR.STAGES": "prompt"}),
    effect("MODEL.ACTIVATION", "gelu", *TERMS, "prompt's image_text", on={**RANDOM, "MODEL.NAME": SMALL}),
    effect("MODEL.STRIDE_SIZE", "(6, 6)", "shape of tower"),
    effect("MODEL.SIE_CAMERA", "True", "shape of side"),
    effect("MODEL.SIE_VIEW", "True", "shape of side"),
    effect("MODEL.SIE_VIEW", "True", "shape of side", on=SIE),
    effect("MODEL.SIE_COE", "1.0", "identity", "triplet", "image_text", on=SIE),
    effect("MODEL.SIE_TWINS", "True", "vision_ssl", on=SIE),
    effect("MODEL.ID_LOSS_WEIGHT", "0.5", "image loss", "tower after"),
    effect("MODEL.TRIPLET_LOSS_WEIGHT", "0.5", "image loss", "tower after"),
    effect("MODEL.I2T_LOSS_WEIGHT", "0.5", "image loss", "tower after"),
    effect("MODEL.I2T_LOSS_WEIGHT", "0.0", "shape of text", "shape of prompts", on=IMAGE_ONLY),
    effect("MODEL.PROTOTYPE_LOSS_WEIGHT", "0.5", "prototype", "image loss", "tower after"),
    effect("MODEL.CAMERA_PROXY_LOSS_WEIGHT", "0.5", "camera_proxy", "image loss", "tower after"),
    effect("MODEL.IF_LABELSMOOTH", "False", "identity", "image_text"),
    effect("MODEL.NO_MARGIN", "True", "triplet"),
    effect("MODEL.TRIPLET_FEATURES", "last", "triplet"),
    effect("MODEL.SSL_TYPE", "SIMSIAM", "shape of image projector"),
    effect("MODEL.SSL_TYPE", "SIMSIAM", "vision_ssl", network=SIMSIAM),
    effect("MODEL.SSL_HIDDEN", "6", "shape of image projector", "shape of text projector"),
    effect("MODEL.SSL_OUT", "6", "shape of image projector", "shape of text projector"),
    effect("INPUT.SIZE_TRAIN", "(40, 16)", "shape of tower"),
    effect("INPUT.SIZE_TRAIN", "(40, 16)", "images", "views", network={}),
    effect("INPUT.SIZE_TEST", "(40, 16)", "test images", "prompt's image_text"),
    effect("INPUT.SIZE_TEST", "(64, 32)", "test images", "figures", on=FROM_FILE),
    effect("INPUT.PROB", "1.0", "images", "views"),
    effect("INPUT.RE_PROB", "1.0", "images", "views"),
    effect("INPUT.JPEG_PROB", "1.0", "images", "views"),
    effect("INPUT.JPEG_QUALITY", "(5, 6)", "images", "views", on={"INPUT.JPEG_PROB": "1.0"}),
    effect("INPUT.TWIN_ERASED_AREA", "(0.1, 0.2)", "views"),
    effect("INPUT.PADDING", "4", "images", "views"),
    effect("INPUT.PIXEL_MEAN", "(0.485, 0.456, 0.5)", *SHOWN),
    effect("INPUT.PIXEL_STD", "(0.229, 0.224, 0.5)", *SHOWN),
    effect("DATASETS.NAMES", "market1501", *PICTURES),
    effect("DATASETS.HOLD_OUT", "0.25", *PICTURES),
    effect("DATASETS.SYNTHETIC.TRAIN_IDENTITIES", "9", "training pictures"),
    effect("DATASETS.SYNTHETIC.TRAIN_IMAGES", "5", "training pictures"),
    effect("DATASETS.SYNTHETIC.TEST_IDENTITIES", "5", "test pictures"),
    effect("DATASETS.SYNTHETIC.TEST_IMAGES", "7", "test pictures"),
    effect("DATASETS.SYNTHETIC.DIFFICULTY", "0.5", *PICTURES),
    effect("DATASETS.SYNTHETIC.SEED", "1", *PICTURES),
    effect("DATALOADER.NUM_INSTANCE", "2", "order of images"),
    effect("SOLVER.SEED", "4321", "order of images", "images", "views"),
    effect("SOLVER.SEED", "4321", "prompt's image_text"),
    # With all images in a batch, order cannot matter: what is left is how prompts are disturbed.
    effect("SOLVER.SEED", "4321", "language_ssl", on={"SOLVER.STAGE1.IMS_PER_BATCH": "32"}),
    effect("SOLVER.SEED", "4321", "classifiers of a run", on={"PROCESSOR.STAGES": "prompt"}),
    effect("SOLVER.MARGIN", "5.0", "triplet"),
    effect("SOLVER.PRECISION", "bf16", *TERMS, "prompt's image_text", "language_ssl"),
    effect("SOLVER.STAGE1.IMS_PER_BATCH", "8", "prompt steps"),
    effect("SOLVER.STAGE1.OPTIMIZER_NAME", "AdamW", "prompts after"),
    effect("SOLVER.STAGE1.OPTIMIZER_NAME", "SGD", "prompts after"),
    effect("SOLVER.STAGE1.MOMENTUM", "0.5", "prompts after", on={"SOLVER.STAGE1.OPTIMIZER_NAME": "SGD"}),
    effect("SOLVER.STAGE1.MAX_EPOCHS", "3", "prompt steps", "prompt rate"),
    effect("SOLVER.CLIP_GRAD_NORM", "0.01", "prompts after", "tower after"),
    effect("SOLVER.STAGE1.BASE_LR", "6e-4", *PROMPT_RATES),
    effect("SOLVER.STAGE1.WEIGHT_DECAY", "0.1", "prompts after"),
    effect("SOLVER.STAGE1.WARMUP_EPOCHS", "2", *PROMPT_RATES),
    effect("SOLVER.STAGE1.WARMUP_LR_INIT", "0.02", *PROMPT_RATES, on={"SOLVER.STAGE1.WARMUP_EPOCHS": "2"}),
    effect("SOLVER.STAGE1.LR_MIN", "1e-6", *PROMPT_RATES),
    effect("SOLVER.STAGE1.SSL_LOSS_WEIGHT", "1.0", "prompt loss", "prompts after"),
    effect("SOLVER.STAGE1.SSL_LOSS_WEIGHT", "0.0", "shape of text projector"),
    effect("SOLVER.STAGE1.TRAIN_PROJECTOR", "True", "text projector after"),
    effect("SOLVER.STAGE1.PROMPT_AUG_METHOD", "swap", "language_ssl"),
    effect("SOLVER.STAGE1.PROMPT_AUG_METHOD", "mix", "language_ssl"),
    effect("SOLVER.STAGE1.PROMPT_AUG_SCALE", "0.25", "language_ssl"),
    effect("SOLVER.STAGE1.PROMPT_AUG_TOKENS", "words", "language_ssl"),
    effect("INPUT.GREY_PROB", "1.0", "images", "views"),
    effect("MODEL.HEADS", "last", "shape of heads"),
    effect(
        "MODEL.POOLING", "gem", "identity", "triplet", "vision_ssl", on={**RANDOM, **SIZES, "MODEL.NAME": "RN-Tiny"}
    ),
    effect("CLUSTER.EPS", "0.3", "clusters"),
    effect("CLUSTER.MIN_SAMPLES", "6", "clusters"),
    effect("CLUSTER.K1", "6", "clusters"),
    effect("CLUSTER.K2", "1", "clusters"),
    effect("MEMORY.TEMP", "0.5", "cluster loss"),
    effect("MEMORY.MOMENTUM", "0.9", "second cluster loss"),
    effect("MEMORY.TEMP", "0.5", "prototype", on=PROTOTYPES),
    effect("MEMORY.MOMENTUM", "0.9", "tower after", on=PROTOTYPES),
    effect("MEMORY.CAMERA_TEMP", "0.5", "camera_proxy", on=PROXIES),
    effect("MEMORY.CAMERA_MOMENTUM", "0.9", "tower after", on=PROXIES),
    effect("MEMORY.CAMERA_NEGATIVES", "1", "camera_proxy", on=PROXIES),
    effect("MEMORY.SWAP_MODE", "true", "cluster loss"),
    effect("MEMORY.SWAP_MODE", "none", "second cluster loss"),
    effect("MEMORY.SWAP_START", "2", "second cluster loss"),
    effect("MEMORY.SWAP_RATIO", "0.5", "second cluster loss"),
    effect("SOLVER.CLUSTER.RESTART", "False", "tower of a run", on={"PROCESSOR.STAGES": "('cluster', 'prompt')"}),
    effect("SOLVER.CLUSTER.IMS_PER_BATCH", "4", "cluster steps"),
    effect("SOLVER.CLUSTER.OPTIMIZER_NAME", "SGD", "tower after clustering"),
    effect("SOLVER.CLUSTER.MOMENTUM", "0.5", "tower after clustering", on={"SOLVER.CLUSTER.OPTIMIZER_NAME": "SGD"}),
    effect("SOLVER.CLUSTER.MAX_EPOCHS", "2", "cluster steps"),
    effect("SOLVER.CLUSTER.BASE_LR", "6e-4", "cluster rates", "tower after clustering"),
    effect("SOLVER.CLUSTER.BIAS_LR_FACTOR", "1.0", "tower after clustering"),
    effect("SOLVER.CLUSTER.WEIGHT_DECAY", "0.1", "tower after clustering"),
    effect("SOLVER.CLUSTER.WEIGHT_DECAY_BIAS", "0.1", "tower after clustering"),
    effect("SOLVER.CLUSTER.STEPS", "(2,)", "cluster rates"),
    effect("SOLVER.CLUSTER.GAMMA", "0.5", "cluster rates"),
    effect("SOLVER.CLUSTER.WARMUP_FACTOR", "0.1", "cluster rates", on={"SOLVER.CLUSTER.WARMUP_ITERS": "2"}),
    effect("SOLVER.CLUSTER.WARMUP_ITERS", "2", "cluster rates"),
    effect("SOLVER.STAGE2.IMS_PER_BATCH", "8", "order of images", "image steps"),
    effect("SOLVER.STAGE2.ITERS_PER_EPOCH", "3", "order of images", "image steps"),
    effect("SOLVER.STAGE2.OPTIMIZER_NAME", "AdamW", "tower after"),
    effect("SOLVER.STAGE2.OPTIMIZER_NAME", "SGD", "tower after"),
    effect("SOLVER.STAGE2.MOMENTUM", "0.5", "tower after", on={"SOLVER.STAGE2.OPTIMIZER_NAME": "SGD"}),
    effect("SOLVER.STAGE2.MAX_EPOCHS", "2", "image steps"),
    effect("SOLVER.STAGE2.BASE_LR", "6e-4", *IMAGE_RATES),
    effect("SOLVER.STAGE2.BIAS_LR_FACTOR", "2.0", "tower after"),
    effect("SOLVER.STAGE2.LARGE_FC_LR", "True", "heads after"),
    effect("SOLVER.STAGE2.LAYER_DECAY", "0.5", "tower after"),
    effect("SOLVER.STAGE2.WEIGHT_DECAY", "0.1", "tower after"),
    effect("SOLVER.STAGE2.WEIGHT_DECAY_BIAS", "0.1", "tower after"),
    effect("SOLVER.STAGE2.STEPS", "(2,)", *IMAGE_RATES),
    effect("SOLVER.STAGE2.GAMMA", "0.5", *IMAGE_RATES),
    effect("SOLVER.STAGE2.SCHEDULE", "cosine", *IMAGE_RATES),
    effect("SOLVER.STAGE2.LR_MIN_FACTOR", "0.01", *IMAGE_RATES, on={"SOLVER.STAGE2.SCHEDULE": "cosine"}),
    effect("SOLVER.STAGE2.WARMUP_FACTOR", "0.1", *IMAGE_RATES, on={"SOLVER.STAGE2.WARMUP_ITERS": "2"}),
    effect("SOLVER.STAGE2.WARMUP_ITERS", "2", *IMAGE_RATES),
    effect("SOLVER.STAGE2.EMA", "0.5", "tower after"),
    effect("SOLVER.STAGE2.SSL_LOSS_WEIGHT", "0.4", "image loss", "tower after"),
    effect("SOLVER.STAGE2.SSL_LOSS_WEIGHT", "0.0", "shape of image projector"),
    effect("SOLVER.STAGE2.SSL_LOSS_WEIGHT", "0.0", "vision_ssl", network={}),
    effect("SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY", "True", "vision_ssl"),
    effect("SOLVER.STAGE2.SSL_IGNORE_SAME_IDENTITY", "True", "vision_ssl", on=IDENTITY),
    effect("SOLVER.STAGE2.SSL_POSITIVES", "identity", "vision_ssl"),
    effect("SOLVER.STAGE2.SSL_POSITIVES", "camera", "vision_ssl", on=IDENTITY),
    effect("SOLVER.STAGE2.SSL_POSITIVES", "camera", "vision_ssl", on=SIMSIAM),
    effect("TEST.WEIGHT", OTHER, "figures of a test", on={"TEST.WEIGHT": NOISY}),
    effect("TEST.NECK_FEAT", "before", "figures", on=FROM_FILE),
    effect("TEST.PROTOCOL", "all", "figures", on=FROM_FILE),
    effect("TEST.SIE", "none", "figures", on={**FROM_FILE, **SIE}),
    effect("TEST.FEAT_NORM", "False", "figures", on=FROM_FILE),
    effect("TEST.PRECISION", "bf16", "figures", on=FROM_FILE),
    effect("TEST.FLIP", "True", "figures", on=FROM_FILE),
    effect("TEST.AQE", "True", "figures", on=FROM_FILE),
    effect("TEST.AQE_K", "3", "figures", on=EXPANDED),
    effect("TEST.AQE_ALPHA", "40.0", "figures", on=EXPANDED),
    effect("TEST.RE_RANKING", "True", "figures", on=FROM_FILE),
    effect("TEST.RE_RANKING_K1", "3", "figures", on=RERANKED),
    effect("TEST.RE_RANKING_K2", "1", "figures", on=RERANKED),
    effect("TEST.RE_RANKING_LAMBDA", "0.9", "figures", on=RERANKED),
    effect("PROCESSOR.STAGES", "image", "shape of text", "shape of prompts", on={"MODEL.I2T_LOSS_WEIGHT": "0.0"}),
    effect("PROCESSOR.STAGES", "image", "stages of a run"),
    effect("PROCESSOR.STAGES", "prompt", "stages of a run"),
    effect("PROCESSOR.UNTRAINED_PROMPTS", "False", "image refusal"),
    effect(
        "PROCESSOR.UNTRAINED_PROMPTS",
        "True",
        "network refusal",
        # Settings that stand on a file are not refused before it is read.
        on={"MODEL.INIT_FROM": WORDLESS, "PROCESSOR.UNTRAINED_PROMPTS": "False", **IMAGE_ONLY},
    ),
)


# ---------------------------------------------------------------------------------------------------- what is computed


def digest(*tensors: torch.Tensor) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().numpy().tobytes())
    return total.hexdigest()


PARTS = {
    "tower": "image.visual.",
    "side": "image.side.",
    "heads": "heads.",
    "text": "text.",
    "words": ("prompts.prefix", "prompts.suffix"),
    "prompts": "prompts.context",
    "image projector": "image_projector.",
    "text projector": "text_projector.",
}


def part(state: dict, name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key.startswith(PARTS[name])}


class Stage(NamedTuple):
    """What a stage left behind."""

    lines: list[dict]  # of metrics.jsonl, a step each
    weights: dict[str, str]  # part of the network -> digest
    refusal: str | None


class Trace:
    """Everything that one configuration computes, as far as somebody looks at it."""

    def __init__(self, changes: dict[str, str], network: dict[str, str] | None, place: Place):
        self.place = place
        self.words = place.words(changes)
        self.cfg = load(None, self.words)
        self.network_cfg = self.cfg if network is None else load(None, place.words(network))

    @cached_property
    def benchmark(self) -> Benchmark:
        """With two viewpoints, which no data set here has."""
        benchmark = rendered_benchmark(self.cfg)

        def seen_from(samples) -> tuple:
            return tuple(sample._replace(viewid=number % 2) for number, sample in enumerate(samples))

        trials = tuple(type(trial)(*map(seen_from, trial)) for trial in benchmark.trials)
        return replace(benchmark, train=seen_from(benchmark.train), trials=trials)

    @cached_property
    def start(self):
        """The network, or why there is none."""
        torch.manual_seed(0)
        try:
            return make_model(self.network_cfg, self.benchmark)
        except UserError as error:
            return str(error)

    def parts(self, name: str) -> dict[str, torch.Tensor]:
        return part(self.start.state_dict(), name)

    @cached_property
    def prompt(self) -> Stage:
        return self._run("prompt")

    @cached_property
    def image(self) -> Stage:
        return self._run("image")

    @cached_property
    def cluster(self) -> Stage:
        """With every second image as if it were infrared."""
        train = [sample._replace(modality=number % 2) for number, sample in enumerate(self.benchmark.train)]
        return self._run("cluster", replace(self.benchmark, train=tuple(train)))

    def _run(self, stage: str, benchmark: Benchmark | None = None) -> Stage:
        folder, model, refusal = self.place.new(), deepcopy(self.start), None
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.PROCESSOR.STAGES = (stage,)
        run = new_run(cfg, folder)
        torch.manual_seed(0)
        try:
            run_stage(run, 0, model, data_of(benchmark or self.benchmark))
        except UserError as error:
            refusal = str(error)
        state = model.state_dict()
        weights = {name: digest(*part(state, name).values()) for name in PARTS}
        return Stage([line for line in metrics(folder) if line["kind"] in ("train", "clusters")], weights, refusal)

    @cached_property
    def loader(self):
        loader = make_loader(self.cfg, self.benchmark.train, train=True, views=True)
        loader.dataset.set_epoch(1)
        loader.batch_sampler.set_epoch(1)
        return loader

    @cached_property
    def script(self) -> Path:
        """The folder of a whole training by the script."""
        return train_svllreid.main([*self.words, "OUTPUT_DIR", str(self.place.new())])


def metrics(folder: Path) -> list[dict]:
    path = folder / METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def figures(folder: Path) -> list[dict]:
    """Of all evaluations in results.json, without what they say of their settings."""
    entries = json.loads((folder / RESULTS).read_text())["evaluations"]
    return [{name: entry[name] for name in ("mAP", "mINP", "rank1", "rank5", "rank10")} for entry in entries]


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(max(folder.glob("*.pth"), key=lambda path: path.stat().st_mtime_ns))["model"]


def pictures(samples) -> list[tuple]:
    return [(*sample[1:], Path(sample.path).name, digest_of(sample.path)) for sample in samples]


def digest_of(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def figures_of_a_test(trace: Trace) -> list[dict]:
    folder = trace.place.new()
    test_svllreid.main(["TEST.WEIGHT", trace.cfg.TEST.WEIGHT, "OUTPUT_DIR", str(folder)])
    return figures(folder)


def of_first_step(stage: str, term: str) -> Callable[[Trace], float | None]:
    return lambda trace: getattr(trace, stage).lines[0].get(term)


def drawn(trace: Trace, field: str) -> str:
    """Training images or views of the first pictures, whatever batch they are in."""
    images = trace.loader.dataset
    return digest(getattr(images.finish(images.collate(images.__getitems__(list(range(8))))), field))


# Group by group, and in each from first to last; by name, what is looked at.
POINTS: dict[str, dict[str, Callable[[Trace], object]]] = {
    "data": {
        "training pictures": lambda trace: pictures(trace.benchmark.train),
        "test pictures": lambda trace: [[pictures(side) for side in trial] for trial in trace.benchmark.trials],
    },
    "network": {
        "network refusal": lambda trace: trace.start if isinstance(trace.start, str) else None,
        **{
            f"shape of {name}": lambda trace, name=name: {key: list(v.shape) for key, v in trace.parts(name).items()}
            for name in PARTS
        },
        **{f"start of {name}": lambda trace, name=name: digest(*trace.parts(name).values()) for name in PARTS},
    },
    "loader": {
        "order of images": lambda trace: list(trace.loader.batch_sampler),
        "images": lambda trace: drawn(trace, "images"),
        "views": lambda trace: drawn(trace, "views"),
    },
    "test loader": {
        "test images": lambda trace: digest(
            *(batch.images for batch in make_loader(trace.cfg, trace.benchmark.trials[0].query, train=False))
        ),
    },
    "prompt": {
        "prompt rate": lambda trace: trace.prompt.lines[0]["lr"],
        "prompt rates": lambda trace: [line["lr"] for line in trace.prompt.lines],
        "prompt steps": lambda trace: [(line["epoch"], line["step"]) for line in trace.prompt.lines],
        "prompt's image_text": of_first_step("prompt", "image_text"),
        "language_ssl": of_first_step("prompt", "language_ssl"),
        "prompt loss": of_first_step("prompt", "loss"),
        "prompts after": lambda trace: trace.prompt.weights["prompts"],
        "text projector after": lambda trace: trace.prompt.weights["text projector"],
    },
    "cluster": {
        "clusters": lambda trace: trace.cluster.lines[0],
        "cluster rates": lambda trace: [line.get("lr") for line in trace.cluster.lines],
        "cluster steps": lambda trace: [(line["kind"], line["step"]) for line in trace.cluster.lines],
        "cluster loss": lambda trace: trace.cluster.lines[1]["loss"],
        "second cluster loss": lambda trace: trace.cluster.lines[2]["loss"],
        "tower after clustering": lambda trace: trace.cluster.weights["tower"],
    },
    "image": {
        "image refusal": lambda trace: trace.image.refusal,
        "image rates": lambda trace: [line["lr"] for line in trace.image.lines],
        "image steps": lambda trace: [(line["epoch"], line["step"]) for line in trace.image.lines],
        **{term: of_first_step("image", term) for term in (*TERMS, "prototype", "camera_proxy")},
        "image loss": of_first_step("image", "loss"),
        "tower after": lambda trace: trace.image.weights["tower"],
        "heads after": lambda trace: trace.image.weights["heads"],
    },
    "evaluation": {"figures": lambda trace: evaluate_model(trace.cfg, trace.start, trace.benchmark, CPU).mean},
    "script": {
        "stages of a run": lambda trace: [line["stage"] for line in metrics(trace.script) if line["kind"] == "train"],
        "classifiers of a run": lambda trace: digest(last_weights(trace.script)["heads.0.classifier.weight"]),
        "tower of a run": lambda trace: digest(*part(last_weights(trace.script), "tower").values()),
        "figures of a test": figures_of_a_test,
    },
}
LOOK = {name: look for group in POINTS.values() for name, look in group.items()}
GROUP = {name: group for group, names in POINTS.items() for name in names}
# What comes before a group; there nothing but what an effect names may change.
BEFORE = {
    "data": (),
    "network": ("data",),
    "loader": ("data",),
    "test loader": ("data",),
    "prompt": ("data", "network", "test loader"),
    "cluster": ("data", "network", "loader"),
    "image": ("data", "network", "loader"),
    "evaluation": ("data", "network", "test loader"),
    "script": ("data",),
}


class Place:
    """Folders, the files that stand for values, and traces that several tests look at."""

    def __init__(self, root: Path):
        self.root, self.files, self.traces, self.count = root, {}, {}, 0

    def new(self) -> Path:
        self.count += 1
        return self.root / f"run{self.count}"

    def words(self, changes: dict[str, str]) -> list[str]:
        """BASE with changes, as on a command line."""
        settings = {**BASE, "DATASETS.ROOT_DIR": str(self.root / "data"), **changes}
        return [word for key, value in settings.items() for word in (key, self.files.get(value, value))]

    def unchanged(self, changes: dict[str, str], network: dict[str, str] | None) -> Trace:
        """The trace that many effects are compared with, made once."""
        key = json.dumps([changes, network])
        if key not in self.traces:
            self.traces[key] = Trace(changes, network, self)
        return self.traces[key]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small wait for their threads longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory, small_architecture) -> Place:
    place = Place(tmp_path_factory.mktemp("keys"))
    # Market-1501's folders hold other pictures than the rendered set.
    others = rendered_benchmark(load(None, place.words({"DATASETS.SYNTHETIC.SEED": "2"})))
    shutil.copytree(Path(others.train[0].path).parents[1], place.root / "data" / "Market-1501")
    baseline = {**IMAGE_ONLY, "MODEL.I2T_LOSS_WEIGHT": "0.0"}
    for seed, (value, changes) in enumerate(((NOISY, {}), (OTHER, {}), (WORDLESS, baseline))):
        cfg = load(None, place.words(changes))
        place.files[value] = str(noisy_checkpoint(place.root / value.strip("<>"), cfg, seed))
    return place


def noisy_checkpoint(path: Path, cfg: CfgNode, seed: int) -> Path:
    """A network whose every tensor differs from a fresh one's, its batch-norm statistics a lot."""
    torch.manual_seed(seed)
    model = make_model(cfg, rendered_benchmark(cfg))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.add_((3.0 if "running" in name else 0.05) * torch.rand_like(value))
    save_checkpoint(path, {"model": model.state_dict(), "config": to_dict(cfg), "architecture": model.architecture})
    return path


def names_of(effects) -> list[str]:
    return [f"{e.key}-{e.value}-{e.seen[0]}".replace(" ", "_") for e in effects]


@pytest.mark.parametrize("wanted", EFFECTS, ids=names_of(EFFECTS))
def test_a_change_is_seen_where_the_key_acts_and_not_before(place, wanted):
    before = place.unchanged(wanted.on, wanted.network)
    after = Trace({**wanted.on, wanted.key: wanted.value}, wanted.network, place)
    unseen = [name for name in wanted.seen if LOOK[name](before) == LOOK[name](after)]
    assert unseen == []
    earlier = {name for group in BEFORE[GROUP[wanted.seen[0]]] for name in POINTS[group]} - set(wanted.seen)
    assert {name for name in earlier if LOOK[name](before) != LOOK[name](after)} == set()
    if set(TERMS) & set(wanted.seen):
        assert {term for term in TERMS if LOOK[term](before) != LOOK[term](after)} <= set(wanted.seen)


# ---------------------------------------------------------------------------------------- speed, memory, log and places


class Run(NamedTuple):
    """A whole training by the script."""

    cfg: CfgNode
    folder: Path

    def lines(self, kind: str, stage: str) -> list[int]:
        """The steps of such lines in metrics.jsonl."""
        found = metrics(self.folder)
        return [line["step"] for line in found if line["kind"] == kind and line["stage"] == stage]

    def logged(self, text: str) -> int:
        return (self.folder / LOG).read_text(encoding="utf-8").count(text)


def whole_run(place: Place, changes: dict[str, str]) -> Run:
    """Of two epochs in either stage: what comes every so many epochs must be seen before the last."""
    words = place.words({"OUTPUT_DIR": str(place.new()), "SOLVER.STAGE2.MAX_EPOCHS": "2", **changes})
    return Run(load(None, words), train_svllreid.main(words))


@pytest.fixture(scope="module")
def usual(place) -> Run:
    return whole_run(place, {})


def another_device_is_asked_for(place: Place, before: Run, after: Run) -> None:
    for main in (train_svllreid.main, test_svllreid.main):
        changes = {"MODEL.DEVICE": "cuda:99", "TEST.WEIGHT": NOISY, "OUTPUT_DIR": str(place.new())}
        words = place.words(changes)
        with pytest.raises(UserError, match=r"MODEL\.DEVICE cuda:99"):
            main(words)


def pictures_are_there(place: Place, before: Run, after: Run) -> None:
    root = Path(after.cfg.DATASETS.ROOT_DIR)
    shutil.copytree(place.root / "data" / "Market-1501", root / "Market-1501")
    for name in ("synthetic", "market1501"):
        samples = [rendered_benchmark(run.cfg, name).train for run in (before, after)]
        assert pictures(samples[0]) == pictures(samples[1])
        assert [all(Path(s.path).is_relative_to(root) for s in side) for side in samples] == [False, True]


def processes(run: Run) -> list[int]:
    """How many read images, for training and for a test."""
    counts = []
    for train in (True, False):
        before = set(multiprocessing.active_children())
        reading = iter(make_loader(run.cfg, rendered_benchmark(run.cfg).train, train=train))
        next(reading)
        counts.append(len(set(multiprocessing.active_children()) - before))
        del reading
    return counts


def batches_of_a_test(run: Run) -> int:
    return len(make_loader(run.cfg, rendered_benchmark(run.cfg).train, train=False))


def has(checkpoint: str) -> Callable[[Run], bool]:
    return lambda run: (run.folder / checkpoint).is_file()


def last_state(run: Run) -> int:
    return max(int(file.name[:5]) for file in run.folder.glob("resume/*.pth"))


def pictures_are_kept_there(place: Place, before: Run, after: Run) -> None:
    cfg = after.cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.CACHE = "disk"
    make_loader(cfg, rendered_benchmark(cfg).train, train=True)
    assert len(list(Path(cfg.DATALOADER.CACHE_DIR).glob("*.images"))) == 1


def steps(stage: str) -> Callable[[Run], tuple]:
    """Those that are logged, and how many lines that makes on the screen."""
    return lambda run: (run.lines("train", stage), run.logged(f"{STAGES[stage].title}  epoch"))


def look(at: Callable[[Run], object], usual: object, changed: object) -> Callable[[Place, Run, Run], None]:
    """A claim about what is seen at a run with the usual value, and at one with the other."""

    def claim(place: Place, before: Run, after: Run) -> None:
        assert (at(before), at(after)) == (usual, changed)

    return claim


def an_earlier_run_is_refused(place: Place, before: Run, after: Run) -> None:
    with pytest.raises(UserError, match="holds a run already"):
        train_svllreid.train(after.cfg, after.folder)
    train_svllreid.train(before.cfg, before.folder)  # which has ended


def training_may_round(place: Place, before: Run, after: Run) -> None:
    seen = []

    def fit(*_, **__):
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        with computing_in("fp32", torch.device("cpu")):
            seen.append(torch.backends.cuda.matmul.allow_tf32)
        raise UserError("enough")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="enough"):
        patch.setattr("processor.build.stage.fit", fit)
        train_svllreid.train(after.cfg, Path(place.files["<another root>"]))
    assert seen == [True, False] and not torch.backends.cuda.matmul.allow_tf32


def towers_are_compiled(place: Place, before: Run, after: Run) -> None:
    assert [run.logged(", compiled") for run in (before, after)] == [0, 2]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # of either tower


def cuda_is_told(place: Place, before: Run, after: Run) -> None:
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)


class Elsewhere(NamedTuple):
    """Another value, a test of what it does, and why nothing that is computed depends on it."""

    value: str
    claim: Callable[[Place, Run, Run], None]
    rounding: float = 0.0  # how far the numbers of a tensor may be off, on average


ELSEWHERE = {
    "MODEL.DEVICE": Elsewhere("auto", another_device_is_asked_for),
    "DATASETS.ROOT_DIR": Elsewhere("<another root>", pictures_are_there),
    "DATALOADER.NUM_WORKERS": Elsewhere("1", look(processes, [0, 0], [1, 1])),
    "DATALOADER.CACHE": Elsewhere("off", look(lambda run: run.logged("DATALOADER.CACHE auto, ram"), 1, 0)),
    "DATALOADER.CACHE_DIR": Elsewhere("<another root>", pictures_are_kept_there),
    "SOLVER.STAGE1.CHECKPOINT_PERIOD": Elsewhere("1", look(has(f"{TINY}_stage1_1.pth"), False, True)),
    "SOLVER.STAGE1.LOG_PERIOD": Elsewhere("2", look(steps("prompt"), ([1, 2, 3, 4], 4), ([2, 4], 2))),
    "SOLVER.STAGE2.CHECKPOINT_PERIOD": Elsewhere("1", look(has(f"{TINY}_1.pth"), False, True)),
    "SOLVER.STAGE2.LOG_PERIOD": Elsewhere("2", look(steps("image"), ([1, 2, 3, 4], 4), ([2, 4], 2))),
    "SOLVER.STAGE2.EVAL_PERIOD": Elsewhere("1", look(lambda run: run.lines("evaluation", "image"), [], [1])),
    # Matrices of another shape are multiplied in another order. A step of training moves a number by up to 3e-4.
    "TEST.IMS_PER_BATCH": Elsewhere("5", look(batches_of_a_test, 1, 7), rounding=1e-5),
    "SOLVER.STAGE2.MINI_BATCH": Elsewhere("6", look(lambda run: run.logged("6 images at a time"), 0, 1), rounding=1e-5),
    "SOLVER.STAGE2.GRAD_CHECKPOINTING": Elsewhere("True", look(lambda run: run.logged("gradient checkpointing"), 0, 1)),
    "OUTPUT_DIR": Elsewhere("", look(lambda run: str(run.folder) == "runs/synthetic_defaults_seed1234", False, True)),
    "RESUME": Elsewhere("False", an_earlier_run_is_refused),
    "SOLVER.CHECKPOINT_MINUTES": Elsewhere("1e-9", look(last_state, 2, 8)),  # ends of stages; all steps, too
    "SOLVER.SYNC_BN": Elsewhere("True", look(lambda run: run.logged("batch norm"), 0, 0)),  # of ResNets on GPUs
    "SOLVER.TF32": Elsewhere("True", training_may_round),
    "SOLVER.COMPILE": Elsewhere("True", towers_are_compiled),
    "SOLVER.DETERMINISTIC": Elsewhere("True", cuda_is_told),
}


# Keys of a single reader, and where their effect is seen.
IN_READERS = {
    *("DATASETS.MSMT17_VAL", "DATASETS.VEHICLEID_SIZE", "DATASETS.VIEWPOINTS_TRAIN", "DATASETS.VIEWPOINTS_TEST"),
    *("DATASETS.NOUN", "DATASETS.SYSU_MODE", "DATASETS.REGDB_SPLIT"),
}
AT_TEST = {"TEST.OTHER_SPLIT"}  # test_data_sets.py
IN_CLUSTERING = {f"SOLVER.CLUSTER.{name}_PERIOD" for name in ("CHECKPOINT", "LOG", "EVAL")}  # test_cclnet.py


def test_keys_of_readers_have_an_effect_in_their_own_test():
    from test_data_sets import CHANGES

    assert {key for key, *_ in CHANGES} >= IN_READERS


@pytest.mark.parametrize("key", ELSEWHERE)
def test_keys_of_speed_log_and_places_do_what_they_say_and_change_no_number(place, usual, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a run without OUTPUT_DIR goes
    place.files["<another root>"] = str(tmp_path / "elsewhere")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # which needs no C++ compiler
    value, claim, rounding = ELSEWHERE[key]
    run = whole_run(place, {key: value})
    claim(place, usual, run)
    if key == "MODEL.DEVICE" and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        return  # "auto" is no CPU here, and another device rounds otherwise
    assert figures(run.folder) == figures(usual.folder)
    ours, theirs = last_weights(run.folder), last_weights(usual.folder)
    assert ours.keys() == theirs.keys()
    moved = {name: (ours[name].double() - theirs[name].double()).abs().mean().item() for name in ours}
    assert {name: by for name, by in moved.items() if not by <= rounding} == {}


# ------------------------------------------------------------------------------------------------------------- all keys


def test_every_key_is_entered_once():
    keys = {row.name for row in ROWS}
    effects = {entry.key for entry in EFFECTS}
    assert keys - effects - ELSEWHERE.keys() - IN_READERS - AT_TEST - IN_CLUSTERING == set()  # say what a new key does
    assert (effects | ELSEWHERE.keys() | IN_READERS | AT_TEST | IN_CLUSTERING) - keys == set()  # the key is gone
    assert effects & ELSEWHERE.keys() == effects & IN_READERS == set()


def test_what_may_change_on_resume_changes_no_number():
    """But for files that the data's fingerprint stands for, and the checkpoint of a test."""
    others = {"DATASETS.VIEWPOINTS_TRAIN", "DATASETS.VIEWPOINTS_TEST", "TEST.WEIGHT"}
    # These may change numbers on CUDA and with batch norm.
    numbers = {"SOLVER.SYNC_BN", "SOLVER.DETERMINISTIC", "SOLVER.TF32", "SOLVER.COMPILE", "SOLVER.STAGE2.MINI_BATCH"}
    assert {row.name for row in ROWS if row.on_resume == ALWAYS} == (
        ELSEWHERE.keys() - numbers
    ) | others | IN_CLUSTERING
    assert {row.name for row in ROWS if row.on_resume == UNTIL_OVER} == {s.key("MAX_EPOCHS") for s in STAGES.values()}
