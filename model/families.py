"""Published person towers: a row for each, and how their files become ours.

To add one: a row of FAMILIES (MODEL.NAME is its name), and a YAML file. A tensor's name in a file becomes ours in two
steps, which can be undone, so that messages name it as the file does: what part of the network it belongs to, then what
it is called in timm's tower. A file has exactly the tensors of its network, but for those that a row drops.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor

from model.clip import resize_positions
from model.conv_stem import ConvStem
from model.files import check_tensors
from model.heads import SideEmbedding
from model.pretrained import NONE, refuse_network
from model.published import GRIDS
from model.swin import add_semantics, pad_first
from model.timm_tower import MapTower, TokenTower, Variant, make_timm
from utils.checkpoint import load_strictly, read_tensors
from utils.errors import WeightsError, some
from utils.paths import expanded

LEADS = ("teacher", "state_dict", "model")  # keys of which one may lead to the state dict
PREFIX = "backbone."  # of the tower's names in files of pre-training, if they have one
WRAPPER = "module."  # what data parallelism puts before all names; DINO's code wraps a teacher that has batch norm
TOWER = "image.net."  # how the names of timm's tower begin in our network
FINE_TUNED = {
    "bottleneck.": "heads.0.neck.",
    "classifier.": "heads.0.classifier.",
    "base.sie_embed": "image.side.table",
    "base.": TOWER,
}
JPM = r"(module\.)?((b1|b2)\.|(bottleneck|classifier)_\d\.)"
PRETRAINING_HEAD, CLASSES = "the head of the pre-training", "a classifier of 1000 classes, unused"
VIT_EXTRAS = {r"head\.": PRETRAINING_HEAD, r"fc\.": CLASSES, r"pre_logits\.": "not used without it"}
SWIN_EXTRAS = {
    r"head\.": PRETRAINING_HEAD,
    r"fc\.": CLASSES,
    r".*\.(relative_position_index|attn_mask)$": "follow from the window",
}
# Microsoft merges at the end of a stage, timm at the beginning of the next.
SWIN_NAMES = {f"layers.{stage}.downsample.": f"layers.{stage + 1}.downsample." for stage in range(3)}
SOLIDER_NAMES = {
    "patch_embed.projection.": "patch_embed.proj.",
    **{
        f"semantic_embed_{theirs}.{stage}.{leaf}": f"layers.{stage + 1}.downsample.{ours}_{leaf}"
        for stage in range(3)
        for theirs, ours in (("w", "scale"), ("b", "shift"))
        for leaf in ("weight", "bias")
    },
    **{f"stages.{stage}.downsample.": f"layers.{stage + 1}.downsample." for stage in range(3)},
    "stages.#.blocks.#.attn.w_msa.": "layers.#.blocks.#.attn.",
    "stages.#.blocks.#.ffn.layers.0.0.": "layers.#.blocks.#.mlp.fc1.",
    "stages.#.blocks.#.ffn.layers.1.": "layers.#.blocks.#.mlp.fc2.",
    "stages.#.blocks.#.": "layers.#.blocks.#.",
    "norm3.": "norm.",
}
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _merge_by_pixel(name: str, value: Tensor) -> Tensor:
    """Weights of a merging that lists its 4 C inputs by channel, (c, row, column), as timm's, (column, row, c)."""
    if not re.search(r"downsample\.(norm|reduction)\.", name) or value.shape[-1] % 4:
        return value
    by_pixel = value.unflatten(-1, (-1, 2, 2)).movedim(-3, -1).transpose(-3, -2)
    return by_pixel.flatten(-3)


class Family(NamedTuple):
    """A published tower, and its files."""

    timm: str  # timm's name of the tower
    licence: str  # of the weights, for the log
    where: str  # the file is to be had
    arguments: Mapping[str, Any] = {}  # further ones for timm.create_model
    pads_first: bool = False  # whether a Swin pads before it rolls
    whole: Mapping[str, str] = FINE_TUNED  # how names begin in files of a whole network -> in ours
    names: Mapping[str, str] = {}  # how they begin within the tower -> in timm's; # stands for a number
    dropped: Mapping[str, str] = VIT_EXTRAS  # how names within the tower or beside it begin that are left out -> why
    convert: Callable[[str, Tensor], Tensor] = lambda name, value: value  # a tensor, by timm's name, as timm has it
    pixels: tuple[tuple[float, ...], tuple[float, ...]] = HALF  # mean and deviation of the channels
    size: tuple[int, int] | None = None  # the only image size; None for any
    semantic: bool = False  # whether MODEL.SEMANTIC_WEIGHT decides on it

    @property
    def has_heads(self) -> bool:
        """Whether files of whole networks have necks and classifiers."""
        return any(name.startswith("heads.") for name in self.whole.values())


ICS = {"embed_layer": ConvStem}
PERSONVIT = Family(
    "vit_base_patch16_224",
    "Creative Commons (code Apache-2.0; the terms of its pictures, LUPerson, are unclear)",
    "huggingface.co/lakeAGI/PersonViT, vitb.lup.256x128.wopt.csk.4-8.ar.375.n8/checkpoint0260.pth",
)
TRANSREID = Family(
    "vit_base_patch16_224",
    "Apache-2.0 (ImageNet-21k weights of Google's)",
    "github.com/rwightman/pytorch-image-models, release v0.1-vitjx, jx_vit_base_p16_224-80ecf9dd.pth",
)
TRANSREID_SSL = Family(
    "vit_base_patch16_224",
    "see its page (the terms of its pictures, LUPerson, are unclear)",
    "github.com/damo-cv/TransReID-SSL (vit_*_cfs_lup.pth, vit_*_ics_cfs_lup.pth)",
)
SOLIDER = Family(
    "swin_base_patch4_window7_224",
    "see its page (the terms of its pictures, LUPerson, are unclear)",
    "github.com/tinyvision/SOLIDER (swin_tiny.pth, swin_small.pth, swin_base.pth)",
    {"always_partition": True},
    pads_first=True,
    names=SOLIDER_NAMES,
    dropped={
        **SWIN_EXTRAS,
        r"norm[012]\.": "norms of earlier stages, unused",
        r"semantic_embed_[wb]\.3\.": "after the last stage, unused",
    },
    convert=_merge_by_pixel,
    semantic=True,
)
CION_VIT = Family(
    "vit_base_patch16_224",
    "research only (CION ReIDZoo, by a signed agreement)",
    "CION ReIDZoo, which its authors send on request",
    ICS,
)
CION_SWIN = CION_VIT._replace(
    timm="swin_base_patch4_window7_224",
    arguments={"always_partition": True, "window_size": 8},
    pads_first=True,
    names=SWIN_NAMES,
    dropped=SWIN_EXTRAS,
)
SMALL_VIT = "vit_small_patch16_224"
SMALL_SWIN, TINY_SWIN = "swin_small_patch4_window7_224", "swin_tiny_patch4_window7_224"

FAMILIES = {
    "personvit_small": PERSONVIT._replace(
        timm=SMALL_VIT,
        where="huggingface.co/lakeAGI/PersonViT, vits.lup.256x128.wopt.csk.4-8.ar.375.n8/checkpoint0220.pth",
    ),
    "personvit_base": PERSONVIT,
    "transreid_base": TRANSREID,
    "transreid_ssl_small": TRANSREID_SSL._replace(timm=SMALL_VIT),
    "transreid_ssl_base": TRANSREID_SSL,
    "transreid_ssl_small_ics": TRANSREID_SSL._replace(timm=SMALL_VIT, arguments=ICS),
    "transreid_ssl_base_ics": TRANSREID_SSL._replace(arguments=ICS),
    "solider_swin_tiny": SOLIDER._replace(timm=TINY_SWIN),
    "solider_swin_small": SOLIDER._replace(timm=SMALL_SWIN),
    "solider_swin_base": SOLIDER,
    "cion_vit_small": CION_VIT._replace(timm=SMALL_VIT),
    "cion_vit_base": CION_VIT,
    "cion_swin_tiny": CION_SWIN._replace(timm=TINY_SWIN),
    "cion_swin_small": CION_SWIN._replace(timm=SMALL_SWIN),
    "cion_swin_base": CION_SWIN,
    "isr_swin_base": Family(
        "swin_base_patch4_window7_224",
        "none is stated: ask its authors before you pass it on",
        "github.com/dcp15/ISR_ICCV2023_Oral",
        {"num_classes": 512},  # its linear layer
        whole={"feat.": TOWER + "head.fc.", "model.": TOWER},
        names=SWIN_NAMES,
        dropped={**SWIN_EXTRAS, r"head\.": CLASSES},
        pixels=IMAGENET,
        size=(224, 224),
    ),
}


def make(
    name: str,
    image_size: tuple[int, int],
    stride: tuple[int, int],
    side: SideEmbedding | None = None,
    *,
    test_size: tuple[int, int] | None = None,
    semantic_weight: float = 0.2,
    **options: Any,
) -> TokenTower | MapTower:
    """The tower of a family, without trained weights; arguments as of `make_timm`.

    Raises:
        WeightsError: an image size, a stride or a pooling that this tower does not have.
    """
    family = FAMILIES[name]
    for key, size in {"INPUT.SIZE_TRAIN": image_size, "INPUT.SIZE_TEST": test_size}.items():
        if size and family.size not in (None, tuple(size)):
            raise WeightsError(f"{key}: invalid value {tuple(size)}; {name} takes images of {family.size} only")

    variant = Variant(name, partial(_create, family, semantic_weight), side_on_all=True)
    return make_timm(family.timm, image_size, stride, side, test_size=test_size, variant=variant, **options)


def _create(family: Family, semantic_weight: float, **arguments: Any) -> Any:
    """timm's tower as a family has it."""
    net: Any = timm.create_model(family.timm, **{"num_classes": 0, **arguments, **family.arguments})
    if family.pads_first:
        pad_first(net)
    if family.semantic:
        add_semantics(net, semantic_weight)
    return net


class Contents(NamedTuple):
    """What a file of a family holds."""

    tensors: dict[str, Tensor]  # by our names
    shown: Callable[[str], str]  # our name -> the file's
    is_network: bool  # whether it is a whole network's; of those without heads, a tower's, too
    said: list[str]  # for the log


def read_family(name: str, contents: Mapping, source: str) -> Contents:
    """The tensors of a family's file, whose contents were read from `source`.

    Raises:
        WeightsError: no tensors are in it; they are no numbers; they are of a network with further branches.
    """
    family, state = FAMILIES[name], state_of(contents)
    if not state:
        raise WeightsError(f"{source}: holds no tensors of {name}; its keys are {some([*map(repr, contents)])}")
    refuse_branches(state, source)
    check_tensors(state, source)
    rows, start, whole = _layout(family, state)
    wrapper = WRAPPER if start.startswith(WRAPPER) else ""
    shown = partial(_to_theirs, rows=rows, names=family.names)
    tensors, unknown = {}, []
    dropped: dict[str, list[str]] = defaultdict(list)
    for key, value in state.items():
        bare = key.removeprefix(start).removeprefix(wrapper)  # the latter of what is beside the tower
        why = next((why for pattern, why in family.dropped.items() if re.match(pattern, bare)), None)
        ours = _to_ours(key, rows, family.names)
        if why:
            dropped[why].append(key)
        elif shown(ours) != key or ours == key:
            unknown.append(key)
        else:
            by_row = ours == "image.side.table" and value.ndim == 3  # theirs is [rows, 1, D]
            tensors[ours] = family.convert(ours, value.squeeze(1) if by_row else value)
    if unknown:
        raise WeightsError(f"{source}: {len(unknown)} unexpected ({some(unknown)}); is it a {name} (MODEL.NAME)?")
    said = [f"dropped: {some(keys)}: {why}" for why, keys in dropped.items()]
    return Contents(tensors, shown, whole, said)


def refuse_branches(state: Iterable[str], source: str) -> None:
    """Raise WeightsError if a file holds the branches of TransReID's jigsaw patch module."""
    if branches := [key for key in state if re.match(JPM, key)]:
        raise WeightsError(
            f"{source}: holds the branches of TransReID's jigsaw patch module ({some(branches)}), which is not "
            "supported; expected a file trained with MODEL.JPM False, or train MODEL.NAME transreid_base without it"
        )


def state_of(contents: Mapping) -> dict[str, Tensor]:
    """The state dict in a family's file; empty if there is none."""
    inner = next((contents[key] for key in LEADS if isinstance(contents.get(key), Mapping)), contents)
    return {key: value for key, value in inner.items() if isinstance(key, str) and isinstance(value, Tensor)}


def fill(tower: TokenTower | MapTower, name: str, pretrain: str) -> list[str]:
    """Load the file that MODEL.PRETRAIN names -> lines for the log.

    A position table of another grid is resized: this is a new start.

    Raises:
        WeightsError: a file that is missing, damaged, of another tower or of a fine-tuned network.
    """
    if pretrain == NONE:
        return []
    family, source = FAMILIES[name], f"MODEL.PRETRAIN {pretrain}"
    path = expanded(pretrain, "MODEL.PRETRAIN")
    if not path.exists():
        raise WeightsError(f"{source}: there is no such file; expected that of {name}, from {family.where}")
    contents = read_tensors(path)
    refuse_network(contents, state_of(contents), path)
    found = read_family(name, contents, source)
    if found.is_network and family.has_heads:
        raise WeightsError(f"{source}: is a fine-tuned network, which MODEL.INIT_FROM and TEST.WEIGHT take")
    said, state = found.said, {key.removeprefix(TOWER): value for key, value in found.tensors.items()}
    table, grid = state.get("pos_embed"), getattr(tower, "grid", None)
    if grid and table is not None and table.ndim == 3:
        old = GRIDS.get(table.shape[1] - 1, (None,))[0]
        if old and old != grid:
            state["pos_embed"] = resize_positions(table, old, grid)
            said = [*said, f"position table resized from {old} to {grid}"]
    load_strictly(tower.net, state, source=source, name=name, shown=lambda key: found.shown(TOWER + key))
    return [f"{source}: {line}" for line in (*said, f"licence: {family.licence}")]


def candidates(state: Mapping[str, Tensor]) -> list[str]:
    """The families whose whole networks have all names and shapes in a file's state dict, but for position tables."""
    found = []
    for name, family in FAMILIES.items():
        rows, _, whole = _layout(family, state)
        if whole:
            there = {_to_ours(key, rows, family.names): value.shape for key, value in state.items()}
            with torch.device("meta"):
                wanted = _create(family, 0.0, weight_init="skip").state_dict()
            wanted.pop("pos_embed", None)  # which follows the size of images
            if all(there.get(TOWER + key) == value.shape for key, value in wanted.items()):
                found.append(name)
    return found


def _layout(family: Family, state: Iterable[str]) -> tuple[dict[str, str], str, bool]:
    """How names begin in this file -> in our network; how those of the tower do; and whether it is a whole network's
    file."""
    for wrapper in ("", WRAPPER):
        rows = {wrapper + theirs: ours for theirs, ours in family.whole.items()}
        start = next(theirs for theirs, ours in rows.items() if ours == TOWER)
        if any(key.startswith(start) for key in state):
            return rows, start, True
    starts = (WRAPPER + PREFIX, PREFIX, WRAPPER, "")
    start = next(start for start in starts if any(key.startswith(start) for key in state))
    return {start: TOWER}, start, False


def _to_ours(key: str, rows: Mapping[str, str], names: Mapping[str, str]) -> str:
    """A tensor's name in a file -> ours; one that no row begins stays."""
    placed = _renamed(key, rows.items())
    if placed == key or not placed.startswith(TOWER):
        return placed
    return TOWER + _renamed(placed.removeprefix(TOWER), names.items())


def _to_theirs(name: str, rows: Mapping[str, str], names: Mapping[str, str]) -> str:
    """The way back."""
    if name.startswith(TOWER):
        name = TOWER + _renamed(name.removeprefix(TOWER), [(ours, theirs) for theirs, ours in names.items()])
    return _renamed(name, [(ours, theirs) for theirs, ours in rows.items()])


def _renamed(name: str, rows: Iterable[tuple[str, str]]) -> str:
    """`name` with another beginning, by the first row that fits; # stands for a number."""
    for start, replacement in rows:
        if match := re.match(re.escape(start).replace(r"\#", r"(\d+)"), name):
            for number in match.groups():
                replacement = replacement.replace("#", number, 1)
            return replacement + name[match.end() :]
    return name
