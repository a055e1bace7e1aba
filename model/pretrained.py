"""CLIP with its weights: from open_clip's list, from a local file, or the tiny one in this repository."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import open_clip
from open_clip import pretrained as hub
from torch import Tensor

from model import tiny_clip
from model.clip import AUTO, GELU, QUICK_GELU
from model.files import check_tensors, layout, state_in
from model.published import is_published
from utils.checkpoint import FORMAT, is_torchscript, load_strictly, read_tensors, read_torchscript
from utils.errors import WeightsError
from utils.network import answers
from utils.paths import expanded

NONE = "none"  # MODEL.PRETRAIN for a random start
# What towers may be described by; others have another tokenizer, another read-out, no causal mask, other positions ...
VISION_KEYS = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "ls_init_value"}
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
ARCHIVE_EXTRAS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's archives beside the weights


def clip_names() -> list[str]:
    """The names of the tiny CLIP and of those that open_clip knows."""
    return [*tiny_clip.CONFIGS, *open_clip.list_models()]


def taken_clips() -> list[str]:
    """Those of them that `clip_config` takes."""
    taken = []
    for name in clip_names():  # a tenth of a second for all
        with suppress(WeightsError):
            clip_config(name)
            taken.append(name)
    return taken


def clip_config(name: str) -> dict:
    """The architecture called `name`, as open_clip.CLIP takes it.

    Raises:
        WeightsError: open_clip does not know the name, or it is not a CLIP of OpenAI's two forms: a vision transformer
            with a class token, or a ResNet with an attention pool.
    """
    if name in tiny_clip.CONFIGS:
        return tiny_clip.CONFIGS[name]()
    if name not in clip_names():
        raise WeightsError(f"MODEL.NAME: there is no CLIP {name!r}; ViT-B-16 and RN50, for example, are")
    # For other names it would open folders (local-dir:) or the network (hf-hub:).
    config = open_clip.get_model_config(name)
    config.pop("quick_gelu", None)
    plain = (
        config.keys() == {"embed_dim", "vision_cfg", "text_cfg"}
        and config["text_cfg"].keys() <= TEXT_KEYS
        and config["vision_cfg"].keys() <= VISION_KEYS
        and config["vision_cfg"]["layers"] != 1  # two depths are looked at
    )
    if not plain:
        raise WeightsError(f"MODEL.NAME: {name!r} is not a CLIP of OpenAI's form; ViT-B-16 and RN50, for example, are")
    return config


def build_clip(name: str, activation: str) -> open_clip.CLIP:
    """A CLIP without trained weights; `activation` is "quick_gelu" or "gelu" (the tiny one has the former)."""
    if activation not in (QUICK_GELU, GELU):
        raise WeightsError(
            f"MODEL.ACTIVATION: invalid value {activation!r} for {name}; expected {QUICK_GELU} or {GELU}"
        )
    if name == tiny_clip.NAME:
        if activation != QUICK_GELU:
            raise WeightsError(f"MODEL.ACTIVATION: {name} has {QUICK_GELU}, not {activation}")
        return tiny_clip.build()
    return open_clip.CLIP(**clip_config(name), quick_gelu=activation == QUICK_GELU)


def load_clip(name: str, pretrain: str, activation: str = AUTO) -> tuple[open_clip.CLIP, str]:
    """A CLIP with the weights that `pretrain` names, and its activation.

    Args:
        name: architecture, e.g. "ViT-B-16".
        pretrain: one of open_clip's tags for it ("openai"), a file, "rendered" (tiny CLIP), or "none".
        activation: "auto" where the weights say it (tags, OpenAI archives); must be named for other files, because a
            wrong guess is silent and costs accuracy.

    Raises:
        WeightsError: unknown tag; an activation that has to be named; a file that is missing, damaged or of another
            architecture; or it cannot be downloaded.
    """
    clip_config(name)  # a wrong name is said before anything is downloaded for it
    if pretrain == NONE:
        activation = QUICK_GELU if activation == AUTO else activation
        return build_clip(name, activation), activation
    state, known = _read(name, pretrain)
    settled = known if activation == AUTO else activation
    if known not in (None, settled):
        raise WeightsError(f"MODEL.ACTIVATION: {pretrain} was trained with {known}, not {activation}; auto knows it")
    clip = build_clip(name, settled or QUICK_GELU)
    wanted = clip.state_dict()
    state = {key: value for key, value in state.items() if key not in ARCHIVE_EXTRAS}
    if "logit_scale" in state:
        state["logit_scale"] = state["logit_scale"].reshape(wanted["logit_scale"].shape)
    load_strictly(clip, state, source=f"MODEL.PRETRAIN {pretrain}", name=name)
    if settled is None:  # asked only of weights that fit
        raise WeightsError(
            f"MODEL.ACTIVATION: {pretrain} does not say whether it was trained with quick_gelu (OpenAI, DFN, MetaCLIP) "
            "or gelu (LAION, DataComp); set it"
        )
    return clip, settled


def _read(name: str, pretrain: str) -> tuple[dict[str, Tensor], str | None]:
    """State dict and, where it is known, activation."""
    if name == tiny_clip.NAME and pretrain == tiny_clip.TAG:
        return tiny_clip.load(), QUICK_GELU
    tag = hub.get_pretrained_cfg(name, pretrain)
    if tag:
        activation = QUICK_GELU if tag.get("quick_gelu") else GELU
        return _read_file(fetch(name, pretrain, tag, f" and MODEL.ACTIVATION {activation}"))[0], activation
    tags = [tiny_clip.TAG] if name == tiny_clip.NAME else hub.list_pretrained_tags_by_model(name)
    return _read_file(weights_path(pretrain, name, tags))


def weights_path(pretrain: str, name: str, tags: Sequence[str]) -> Path:
    """The file that MODEL.PRETRAIN names; WeightsError if it is none, with the tags that `name` has."""
    path = expanded(pretrain, "MODEL.PRETRAIN")
    if os.path.exists(path):
        return path
    near = difflib.get_close_matches(pretrain, tags, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise WeightsError(
        f"MODEL.PRETRAIN: {pretrain!r} is neither a file nor a tag of {name}; {meant}tags: {', '.join(tags) or 'none'}"
    )


def _read_file(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read safetensors, an OpenAI archive or a pickled state dict; nothing in the file is ever executed as Python."""
    if is_torchscript(path):
        return read_torchscript(path), QUICK_GELU
    state = tower_state(path)
    if not any(name.startswith("visual.") for name in state):
        raise WeightsError(
            f"MODEL.PRETRAIN: {path} is {layout(state)}; expected a tag (openai), OpenAI's archive (ViT-B-16.pt), or a "
            "whole CLIP by open_clip's names (open_clip_model.safetensors, open_clip_pytorch_model.bin)"
        )
    return state, None


def tower_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of MODEL.PRETRAIN, safetensors or pickled, under their own names.

    Raises:
        WeightsError: it is missing, damaged, or a network for re-identification.
    """
    contents = read_tensors(path)
    state = state_in(contents, str(path))
    refuse_network(contents, state, path)
    state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    check_tensors(state, f"MODEL.PRETRAIN: {path}")
    return state


def refuse_network(contents: Mapping, state: Mapping, path: Path) -> None:
    """Raise WeightsError if what was read from a file of MODEL.PRETRAIN is a whole network of this program, or a
    published one."""
    if contents.get("format") == FORMAT or is_published(state):
        raise WeightsError(f"MODEL.PRETRAIN: {path} is a checkpoint for re-identification, which MODEL.INIT_FROM takes")


def fetch(name: str, tag: str, entry: dict, settings: str = "") -> Path:
    """The local file of a tag, from the cache or from the network.

    Args:
        entry: `hf_hub` (repository/file) or `url`, as in open_clip's list.
        settings: what to set besides MODEL.PRETRAIN when the file is copied by hand, for the message.

    Raises:
        WeightsError: it is not on this machine and cannot be downloaded.
    """
    there = cached(entry)
    if there is not None:
        return there
    where = address(entry)
    if not answers(where):
        raise WeightsError(
            f"MODEL.PRETRAIN {tag}: the weights of {name} are not on this machine and the network does not answer. "
            f"Download {where} elsewhere, copy it here and set MODEL.PRETRAIN to its path{settings}"
        )
    try:
        return Path(hub.download_pretrained(entry))
    except Exception as error:
        raise WeightsError(
            f"MODEL.PRETRAIN {tag}: downloading {where} failed ({error}); download it by hand and set MODEL.PRETRAIN "
            "to its path"
        ) from error


def cached(entry: dict) -> Path | None:
    """Where open_clip has put a tag's weights before, if it has."""
    from huggingface_hub import try_to_load_from_cache

    if entry.get("hf_hub"):
        repository, _, file = entry["hf_hub"].rpartition("/")
        for candidate in [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]:
            found = try_to_load_from_cache(repository, candidate)
            if isinstance(found, str):
                return Path(found)
    if entry.get("url"):
        # Unlike Path's, it leaves ~ alone where there is no home folder.
        file = Path(os.path.expanduser("~/.cache/clip"), entry["url"].rpartition("/")[2])
        if file.is_file():
            return file  # open_clip's own check would download it again, without a time limit
    return None


def address(entry: dict) -> str:
    """Where a person finds a tag's weights."""
    if not entry.get("hf_hub"):
        return entry["url"]
    from huggingface_hub.constants import ENDPOINT

    repository, _, file = entry["hf_hub"].rpartition("/")
    return f"{ENDPOINT}/{repository}/resolve/main/{file or 'open_clip_model.safetensors'}"
