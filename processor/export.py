"""A network for retrieval as an ONNX file, which is kept only if onnxruntime agrees with PyTorch."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.heads import SideEmbedding
from processor.evaluate import embed_images
from processor.inference import Embedder
from utils.errors import UserError, writing
from utils.files import replacing
from utils.records import VISIBLE, SideInfo

BATCHES = (1, 2, 7)  # sizes that are compared
AGREEMENT = 0.9999  # the least cosine between features
INPUT, OUTPUT = "images", "features"


class Retrieval(nn.Module):
    """Normalised images float32 [B, 3, H, W] -> features float32 [B, D] of length 1, as an embedder has them.

    Args:
        half: weights and activations are float16; the length is normalised in float32.
    """

    def __init__(self, embedder: Embedder, *, half: bool = False):
        super().__init__()
        self.embedder, self.half_precision = embedder, half
        self.model = copy.deepcopy(embedder.model).cpu()
        if len(getattr(self.model.image, "stems", ())):
            embedder.side_of(1)  # says if the modality is not known
            self.model.image.keep_stem(embedder.modality)
        if getattr(self.model.image, "side", None) is not None and embedder.side:
            self.model.image.side = _Mean(self.model.image.side)
        if half:
            self.model = self.model.half()

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]"""
        images = images.half() if self.half_precision else images
        side = SideInfo.unknown(torch.full(images.shape[:1], VISIBLE)) if self.embedder.side else None
        features = embed_images(self.model, images, side, neck=self.embedder.neck, flip=self.embedder.flip)
        return F.normalize(features.float(), dim=1)


class _Mean(nn.Module):
    """Side information of images without cameras, as a constant."""

    vector: Tensor

    def __init__(self, side: SideEmbedding):
        super().__init__()
        self.register_buffer("vector", side(SideInfo.unknown(torch.tensor([VISIBLE]))).detach())  # [1, D]

    def forward(self, side: SideInfo) -> Tensor:
        """[B] -> [B, D]"""
        return self.vector.expand(side.camids.shape[0], -1)  # len() would fix the number


def export_onnx(embedder: Embedder, path: Path, examples: Sequence, *, half: bool = False) -> float:
    """Write an ONNX file -> the least cosine between its features and PyTorch's.

    Its metadata hold the preprocessing, as JSON: size, mean, deviation, resizing, and the embedder's digest.

    Args:
        embedder: on any device; what is written is made on the CPU.
        examples: images on which both are compared, besides random ones.
        half: float16 inside; input and output are float32 in any case.

    Raises:
        UserError: the features differ, and nothing is written; they are not in fp32; the file cannot be written.
    """
    import onnx
    import onnxruntime

    embedder.check_fp32("features are exported")
    network = Retrieval(embedder, half=half).eval()
    shape = (2, 3, *embedder.transform.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.zeros(shape),),
            dynamo=True,
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}},
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=18,
            verbose=False,
            optimize=False,  # which would take GeM's 1e-12 for 0
        )
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"preprocessing": json.dumps(embedder.described())})
    contents = proto.SerializeToString()
    session = onnxruntime.InferenceSession(contents, session_options(), providers=["CPUExecutionProvider"])
    least = 1.0
    for images in _batches(embedder, examples):
        (theirs,) = session.run(None, {INPUT: images.numpy()})
        least = min(least, float(F.cosine_similarity(torch.from_numpy(theirs), _ours(embedder, images)).min()))
    if not least >= AGREEMENT:
        raise UserError(f"{path}: not written: onnxruntime and PyTorch disagree (cosine {least:.5f} < {AGREEMENT})")
    with writing(path), replacing(path) as file:
        file.write(contents)
    return least


@torch.no_grad()
def _ours(embedder: Embedder, images: Tensor) -> Tensor:
    """The features of the embedder's own network [B, D], which nothing here has changed."""
    side = embedder.side_of(len(images))
    images = images.to(embedder.device)
    return embed_images(embedder.model, images, side, neck=embedder.neck, flip=embedder.flip).float().cpu()


def session_options() -> Any:
    """With which onnxruntime runs such files on a CPU: its last level of optimisation crashes on float16 (1.32)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # says nothing of float16 kernels that a CPU lacks
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return options


def _batches(embedder: Embedder, examples: Sequence) -> Iterator[Tensor]:
    """Random and given images in each of BATCHES; of fewer examples, some several times."""
    generator = torch.Generator().manual_seed(0)
    prepared = [embedder.prepare(image) for image in examples[: max(BATCHES)]]
    for count in BATCHES:
        yield torch.randn(count, 3, *embedder.transform.size, generator=generator)
        if prepared:
            yield torch.stack([prepared[place % len(prepared)] for place in range(count)])
