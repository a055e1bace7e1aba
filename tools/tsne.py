"""Draw features in the plane by t-SNE: images of some identities, or their prompts; of one network or two.

    python -m tools.tsne --weight runs/market/ViT-B-16_60.pth --output tsne.pdf DATASETS.ROOT_DIR /data
    python -m tools.tsne --weight runs/a/ViT-B-16_stage1_120.pth --beside runs/b/ViT-B-16_stage1_120.pth --kind text

Images are those of a test, of the data set of the checkpoint or of DATASETS.NAMES, or of a folder that holds a folder
per identity. Of prompts there are the learned one of each training identity (large) and copies of it, augmented as in
stage 1. Distances within a cluster mean something, those between clusters little.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from tools.inference import (
    PICTURES,
    add_beside,
    add_output,
    for_each_network,
    network_parser,
    open_embedder,
    parse_labelled,
    short_names,
)
from utils.command import answer_early, at_least, run_script
from utils.errors import UserError
from utils.paths import expanded

IMAGE, TEXT = "image", "text"


def read_command_line(argv: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = network_parser(__doc__)
    add = parser.add_argument
    add_output(parser, "--output", *PICTURES, default="tsne.png")
    add_beside(parser)
    add("--kind", choices=(IMAGE, TEXT), default=IMAGE, help="of features; default: image")
    add("--identities", metavar="N", type=at_least(2), default=10, help="the first so many; default: 10")
    add(
        "--pids",
        metavar="ID,ID",
        help="these identities instead, as the data set names (of prompts: training numbers) them",
    )
    add("--copies", metavar="N", type=at_least(1), default=20, help="augmented copies of a prompt; default: 20")
    add("--seed", metavar="N", type=at_least(0), default=0, help="of t-SNE and the copies; default: 0")
    return parse_labelled(parser, argv)


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

import torch
from torch import Tensor
from torch.nn import functional as F

from model.build import rebuild, settle_architecture
from model.prompts import AUGMENTATIONS, words_only
from model.weights import read_weights
from processor.inference import Embedder
from processor.transfer import settings_of
from tools.labelled_images import embed_samples, labelled_images, plain, written
from utils.devices import computing_in
from utils.records import Sample


def main(argv: list[str] | None = None) -> int:
    """Draw what the command line says; 1 if images were left out that should not be."""
    arguments = read_command_line(argv)
    from tools.pages import write_pages
    from tools.tsne_figure import Cloud, tsne_figure  # matplotlib is an extra

    clouds, failed = [], 0
    networks = for_each_network(arguments)
    for own, title in zip(networks, short_names([one.weight for one in networks]), strict=True):
        features, pids, names, unread = text_features(own) if arguments.kind == TEXT else image_features(own)
        failed += unread
        every = arguments.copies + 1 if arguments.kind == TEXT else 0
        clouds.append(Cloud(title, plane(features, arguments.seed), pids, names, every))
    (file,) = write_pages(expanded(arguments.output), [tsne_figure(clouds)])
    sys.stdout.write(f"{len(set(clouds[0].pids))} identities, {len(clouds[0].pids)} points: {file}\n")
    return int(failed > 0 and not arguments.skip_unreadable)


def image_features(arguments: argparse.Namespace) -> tuple[Tensor, list[int], dict[int, str], int]:
    """Features of the test images of some identities, their identities, the names of these, and how many failed."""
    embedder: Embedder = open_embedder(arguments)
    benchmark, _, _ = labelled_images(arguments, embedder)
    samples = {sample.path: sample for trial in benchmark.trials for side in trial for sample in side}
    names = {sample.pid: written(benchmark, sample)[0] for sample in samples.values() if sample.pid >= 0}
    wanted = chosen(names, arguments)
    shown: list[Sample] = [sample for sample in samples.values() if sample.pid in wanted]
    found, failed = embed_samples(arguments, embedder, shown)
    return found.features, [samples[name].pid for name in found.names], names, failed


@torch.no_grad()
def text_features(arguments: argparse.Namespace) -> tuple[Tensor, list[int], dict[int, str], int]:
    """Of some identities, the feature of the prompt and those of augmented copies; their identities; the names; 0.

    Raises:
        UserError: the network has no trained prompts.
    """
    weights = read_weights(arguments.weight)
    cfg = settings_of(weights, arguments.overrides, arguments.config_file)
    _, architecture, _ = settle_architecture(cfg, weights, requested=arguments.overrides[::2])
    model = rebuild(weights, architecture)[0].eval()
    if model.prompts is None or model.text is None or not model.prompts.trained:
        raise UserError(
            f"--weight {arguments.weight}: has no trained prompts; expected a checkpoint of stage 1 or after it"
        )
    block, end = cfg.SOLVER.STAGE1, model.prompts.end
    generator = torch.Generator().manual_seed(arguments.seed)

    def augment(prompts: Tensor) -> Tensor:
        return AUGMENTATIONS[block.PROMPT_AUG_METHOD](prompts, block.PROMPT_AUG_SCALE, generator)

    augment = words_only(augment, end) if block.PROMPT_AUG_TOKENS == "words" else augment
    names = {pid: str(pid) for pid in range(model.num_pids)}
    pids = torch.tensor(sorted(chosen(names, arguments)))
    prompts = model.prompts(pids)
    # Identity by identity, the prompt first.
    with computing_in(cfg.TEST.PRECISION, prompts.device):
        encoded = [model.text(some, end) for some in (prompts, *(augment(prompts) for _ in range(arguments.copies)))]
    features = torch.stack(encoded, dim=1).flatten(0, 1).float()
    return F.normalize(features, dim=1), pids.repeat_interleave(len(encoded)).tolist(), names, 0


def chosen(names: Mapping[int, str], arguments: argparse.Namespace) -> set[int]:
    """The identities that the command line names, or the first of all.

    Raises:
        UserError: --pids names one that there is not.
    """
    known = sorted(names)
    if not arguments.pids:
        return set(known[: arguments.identities])
    wanted = [plain(word) for word in arguments.pids.split(",")]
    if unknown := set(wanted) - set(map(plain, names.values())):
        raise UserError(f"--pids {min(unknown)}: no such identity; expected e.g. {names[known[0]]}")
    return {pid for pid in known if plain(names[pid]) in wanted}


def plane(features: Tensor, seed: int) -> Tensor:
    """Features [N, D] -> places in the plane [N, 2]."""
    from sklearn.manifold import TSNE  # takes a second

    if len(features) < 4:
        raise UserError(f"{len(features)} features: too few for t-SNE; expected 4 or more")
    perplexity = min(30.0, (len(features) - 1) / 3)
    return torch.from_numpy(TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features.numpy()))


if __name__ == "__main__":
    sys.exit(run_script(main))
