"""Files of whole networks, ours and published ones, and what becomes of each of their parts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from model import published
from model.clip import resize_positions
from model.families import FAMILIES, candidates, read_family, refuse_branches, state_of
from model.files import check_tensors, layout, state_in
from model.svllreid import SvllReid
from model.towers import find_tower
from utils.checkpoint import FORMAT, check_checkpoint, is_torchscript, misfits, read_tensors
from utils.errors import WeightsError, some
from utils.release_folder import is_release, locate, read_release
from utils.schema import Checkpoint, check

# Parts of a network: how their tensors' names begin, and the settings that decide on them.
PARTS = {
    "image tower": (r"image\.(?!side\.)", "MODEL.NAME"),
    "side information": (r"image\.side\.", "MODEL.SIE_CAMERA and MODEL.SIE_VIEW"),
    "batch-norm necks": (r"heads\.[01]\.neck\.", "MODEL.NAME"),
    "identity classifiers": (r"heads\.[01]\.classifier\.", "DATASETS.NAMES"),
    "text tower": (r"text\.", "MODEL.NAME"),
    "prompts": (r"prompts\.", "MODEL.NAME and DATASETS.NAMES"),
    "image projector": (r"image_projector\.", "MODEL.SSL_TYPE, MODEL.SSL_HIDDEN and MODEL.SSL_OUT"),
    "text projector": (r"text_projector\.", "MODEL.SSL_HIDDEN and MODEL.SSL_OUT"),
}
SIZES = "INPUT.SIZE_TRAIN and MODEL.STRIDE_SIZE"


class Weights(NamedTuple):
    """What a file of a whole network holds."""

    source: str  # the file
    tensors: dict[str, Tensor]  # under this program's names
    architecture: dict | None  # how the network is built; None in published files, which do not say
    config: dict | None  # what it was trained with; None in published files
    trained_on: str | None = None  # fingerprint of its training images, where the file says it
    tested_on: tuple[str, ...] = ()  # the same of the queries and galleries of each of its data sets
    prompts_trained: bool = True  # whether the prompts were ever trained
    names: Callable[[str], str] | None = None  # our name of a tensor -> that in the file; None: the same
    lacking: tuple[str, ...] = ()  # PARTS that files of its kind never have
    stage: str | None = None  # of the training that it was saved in, where the file says it
    epoch: int | None = None  # after which it was
    converted: bool = False  # from a published file, so that `config` is what somebody said of it

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of PARTS."""
        return {key: value for key, value in self.tensors.items() if re.match(PARTS[name][0], key)}

    def shown(self, key: str) -> str:
        """A tensor's name as it stands in the file."""
        return self.names(key) if self.names else key


def read_weights(path: str | Path, name: str = "") -> Weights:
    """Read a checkpoint of this program, a published CLIP-ReID or SVLL-ReID file, or that of a published tower.

    Args:
        path: of the file; or the folder of a released network, or hf-hub:user/name, where the Hub holds it.
        name: MODEL.NAME, for the latter, which does not say what it is.

    Raises:
        WeightsError: no such file, damaged, would execute code, or none of these.
    """
    source, path = str(path), locate(path)
    if is_release(path):
        return weights_in(read_release(path), source)
    if is_torchscript(path):
        raise WeightsError(f"{source}: is CLIP as OpenAI publishes it (TorchScript), which MODEL.PRETRAIN takes")
    contents = read_tensors(path)
    if contents.get("format") == FORMAT:
        return weights_in(contents, source)
    state = state_of(contents) if name in FAMILIES else state_in(contents, source)
    if published.is_published(state):
        check_tensors(state, source)
        tensors = published.from_published(state, source=source)
        return Weights(source, tensors, None, None, names=partial(published.published_name, state=tensors))
    if name in FAMILIES:
        return _of_family(name, contents, source)
    refuse_branches(state, source)
    if likely := candidates(state):
        raise WeightsError(
            f"{source}: is a fine-tuned network of another program, which does not say its MODEL.NAME; expected one of "
            f"{', '.join(likely)}, by --config_file or on the command line"
        )
    raise WeightsError(
        f"{source}: is neither a checkpoint of this program (no format {FORMAT!r} in it) nor a published CLIP-ReID or "
        f"SVLL-ReID file (no image_encoder.* in it), but {layout(state)}; CLIP's own weights are for MODEL.PRETRAIN"
    )


def _of_family(name: str, contents: dict, source: str) -> Weights:
    found = read_family(name, contents, source)
    if not found.is_network:
        raise WeightsError(f"{source}: is a pre-trained tower without heads, which MODEL.PRETRAIN takes")
    lacking = () if FAMILIES[name].has_heads else ("batch-norm necks", "identity classifiers")
    return Weights(source, found.tensors, None, None, names=found.shown, lacking=lacking)


def weights_in(contents: dict, source: str) -> Weights:
    """What a checkpoint of this program holds that was read from `source`.

    Raises:
        WeightsError: it lacks a part, its description is damaged, or something else is where a tensor belongs.
    """
    check_checkpoint(contents, source)
    check(contents, Checkpoint, source)
    try:
        find_tower(contents["architecture"]["name"])
    except WeightsError as error:
        raise WeightsError(f"{source}: architecture.name: {error}") from None
    check_tensors(contents["model"], source)
    fingerprint = contents.get("fingerprint") or {}
    data = fingerprint.get("data_fingerprint")
    data = data if isinstance(data, dict) else {}
    several = "+" in contents["config"]["DATASETS"]["NAMES"]  # else the parts, if any, are all of one
    return Weights(
        source,
        contents["model"],
        contents["architecture"],
        contents["config"],
        trained_on=data.get("train"),
        tested_on=tuple(filter(None, (several and data.get("parts")) or [data.get("test")])),
        prompts_trained=contents.get("prompts_trained") is not False,
        stage=contents.get("stage"),
        epoch=contents.get("epoch"),
        converted="converted_from" in fingerprint,
    )


class Reuse(NamedTuple):
    """How a training starts from a file."""

    spare: dict[str, str]  # parts of the file that are not taken -> why
    fresh: dict[str, str]  # parts that it may lack as a whole -> what happens then
    prompts_anew: bool  # whether prompts are wanted that the file does not have


def plan_reuse(weights: Weights, architecture: dict, trained_on: str | None = None) -> Reuse:
    """Which parts of a file a training of `architecture` takes.

    The towers and necks must fit. What belongs to a data set (classifiers, prompts, side information) is taken where
    the numbers agree, and the training images too where file and `trained_on` (their fingerprint) say so; it starts
    anew where they do not.
    """
    pids = architecture["num_pids"]
    parts = ("side information", "identity classifiers", "image projector", "text projector", *weights.lacking)
    fresh = dict.fromkeys(parts, "new")
    other_data = None not in (weights.trained_on, trained_on) and weights.trained_on != trained_on
    spare = {}

    def rows(name: str) -> int:
        return len(weights.tensors.get(name, ()))

    if other_data:
        spare["identity classifiers"] = "trained on other images; new"
    elif rows("heads.0.classifier.weight") != pids:
        spare["identity classifiers"] = f"of {rows('heads.0.classifier.weight')} identities, here are {pids}; new"
    table = side_rows(architecture)
    if table is None:
        spare["side information"] = "MODEL.SIE_CAMERA and MODEL.SIE_VIEW are off"
    elif rows("image.side.table") != table:
        spare["side information"] = f"of {rows('image.side.table')} rows, here are {table}; new"
    for part, wanted in (
        ("image projector", architecture["vision_ssl"]),
        ("text projector", architecture["language_ssl"]),
        ("text tower", architecture["sentences"]),
        ("prompts", architecture["sentences"]),
    ):
        if not wanted:
            spare[part] = "nothing here uses it"
    template = (weights.architecture or architecture)["template"]
    unlike = {
        "trained on other images": other_data,
        f"of {rows('prompts.context')} identities, here are {pids}": rows("prompts.context") != pids,
        f"{template!r}, here {architecture['template']!r}": template != architecture["template"],
        "never trained": not weights.prompts_trained,
    }
    anew = architecture["sentences"] and any(unlike.values())
    if anew:
        spare["prompts"] = f"{next(reason for reason, holds in unlike.items() if holds)}; new"
        fresh["prompts"] = "new"
    return Reuse({part: reason for part, reason in spare.items() if weights.part(part)}, fresh, anew)


def side_rows(architecture: dict) -> int | None:
    """Rows of the table of side information; None without one."""
    if not (architecture["sie_camera"] or architecture["sie_view"]):
        return None
    cams = architecture["num_cams"] if architecture["sie_camera"] else 1
    return cams * (architecture["num_views"] if architecture["sie_view"] else 1)


def load_weights(
    model: SvllReid,
    weights: Weights,
    *,
    spare: Mapping[str, str] | None = None,
    fresh: Mapping[str, str] | None = None,
    resize: bool = False,
) -> list[str]:
    """Copy a file's tensors into `model`, all or nothing -> what became of its parts, a line for each outcome.

    A model on the meta device, which has shapes but no values, is compared with the file and not changed.

    Args:
        spare: parts of the file that are not taken, each with the reason; the network's own stay as they are.
        fresh: parts of the network that the file may lack as a whole, each with the reason.
        resize: whether a position table of another grid is resized, or refused.

    Raises:
        WeightsError: tensors that are missing, unexpected, of another shape or not of the same kind of number, with
            the setting to change; a position table of unknown grid, if it is to be resized.
    """
    spare, fresh, wanted = spare or {}, fresh or {}, model.state_dict()
    verdict = defaultdict(list)
    strange = [name for name in weights.tensors if not any(re.match(start, name) for start, _ in PARTS.values())]
    faults = [f"{len(strange)} unexpected ({some(strange)})"] if strange else []
    tensors, table = dict(weights.tensors), _PositionTable.of(model, weights)
    if table and (outcome := table.fit(tensors, wanted, faults, resize=resize)):
        verdict[outcome].append("position table")
    taken: dict[str, Tensor] = {}
    for part, (start, setting) in PARTS.items():
        mine = {name: value for name, value in wanted.items() if re.match(start, name)}
        theirs = {name: value for name, value in tensors.items() if re.match(start, name)}
        if part in spare:
            if theirs:
                verdict[f"not needed ({spare[part]})"].append(part)
        elif mine and not theirs and part in fresh:
            verdict[f"not in the file, {fresh[part]}"].append(part)
        else:
            taken.update(theirs)
            if table:  # which has been compared
                mine.pop(table.name, None)
                theirs.pop(table.name, None)
            faults += [f"{part}: {fault}, as follows from {setting}" for fault in misfits(theirs, mine, weights.shown)]
            if theirs:
                count = f"{len(theirs.get('prompts.context', ()))} " if part == "prompts" else ""
                verdict["loaded"].append(count + part)
    if faults:
        raise WeightsError(f"{weights.source}: does not fit the network: {some(faults, separator='; ')}")
    if not next(model.parameters()).is_meta:
        model.load_state_dict({**wanted, **taken})
    return [f"{outcome}: {', '.join(parts)}" for outcome, parts in verdict.items()]


class _PositionTable(NamedTuple):
    """An image tower's position table, whose grid follows image size and stride."""

    weights: Weights
    name: str  # in the network's state dict
    old: tuple[int, int] | None  # rows and columns in the file; None: unknown
    new: tuple[int, int]  # in the network
    prefix: int  # rows before those of the patches

    @staticmethod
    def of(model: SvllReid, weights: Weights) -> _PositionTable | None:
        """The table of a network's tower, if it has one that the file has, too, in the same width."""
        name = f"image.{getattr(model.image, 'positions', None)}"
        wanted, there = model.state_dict().get(name), weights.tensors.get(name)
        if wanted is None or there is None or _rowless(there) != _rowless(wanted):
            return None
        grid, prefix = model.image.grid, getattr(model.image, "prefix", 1)
        patches = there.shape[-2] - prefix
        if weights.architecture is None:  # of published files: the sizes that they are trained at
            return _PositionTable(weights, name, published.GRIDS.get(patches, (None,))[0], grid, prefix)
        rows, columns = model.image.grid_for(*(tuple(weights.architecture[size]) for size in ("image_size", "stride")))
        known = rows * columns == patches  # else the file contradicts itself
        return _PositionTable(weights, name, (rows, columns) if known else None, grid, prefix)

    def fit(self, tensors: dict[str, Tensor], wanted: Mapping[str, Tensor], faults: list[str], *, resize: bool) -> str:
        """Resize the table among `tensors`, or add to `faults` why it does not fit -> the outcome, if resized."""
        value, place, shown = tensors[self.name], wanted[self.name], self.weights.shown(self.name)
        if resize and self.old is None:
            faults.append(
                f"{shown} has {value.shape[-2] - self.prefix} positions in an unknown number of rows: "
                "convert the file with its own settings first (tools.convert_checkpoint); the copy says it"
            )
        elif resize and self.old and self.old != self.new:
            tensors[self.name] = resize_positions(value, self.old, self.new)
            return f"resized from {_times(self.old)} to {_times(self.new)}"
        elif value.shape != place.shape or (self.weights.architecture and self.old != self.new):
            faults.append(self._unlike(value))
        else:
            faults += misfits({self.name: value}, {self.name: place}, self.weights.shown)
        return ""

    def _unlike(self, value: Tensor) -> str:
        positions, width = value.shape[-2:]
        grid = f" ({_times(self.old)} positions)" if self.old else ""
        origin = published.GRIDS.get(positions - self.prefix) if self.weights.architecture is None else None
        hint = f" such as {origin[1]} give," if origin else ""
        wanted = self.new[0] * self.new[1] + self.prefix
        return (
            f"{self.weights.shown(self.name)} is [{positions}, {width}]{grid},{hint} not [{wanted}, {width}] "
            f"({_times(self.new)}); {SIZES} decide on it: set them as in its training, or name the one to change on "
            "the command line of train_svllreid.py or test_svllreid.py, and it is resized"
        )


def _rowless(table: Tensor) -> tuple[int, ...]:
    """The shape of a position table [..., rows, D] without its rows; () of what is none."""
    return (*table.shape[:-2], table.shape[-1]) if table.ndim > 1 else ()


def _times(grid: tuple[int, int]) -> str:
    return " x ".join(map(str, grid))
