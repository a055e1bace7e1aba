"""Files of whole networks, ours and published ones, and what becomes of each of their parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from model import published
from model.clip import resize_positions
from model.files import check_tensors, layout, state_in
from model.pretrained import clip_config
from model.svllreid import SvllReid
from utils.checkpoint import FORMAT, check_checkpoint, is_torchscript, read_tensors
from utils.errors import WeightsError
from utils.schema import Checkpoint, check

# Parts of a network by the start of their tensors' names, and the settings that decide on them.
PARTS = {
    "image tower": (("image.visual.",), "MODEL.NAME"),
    "side information": (("image.side.",), "MODEL.SIE_CAMERA and MODEL.SIE_VIEW"),
    "batch-norm necks": (("heads.0.neck.", "heads.1.neck."), "MODEL.NAME"),
    "identity classifiers": (("heads.0.classifier.", "heads.1.classifier."), "DATASETS.NAMES"),
    "text tower": (("text.",), "MODEL.NAME"),
    "prompts": (("prompts.",), "MODEL.NAME and DATASETS.NAMES"),
    "image projector": (("image_projector.",), "MODEL.SSL_TYPE, MODEL.SSL_HIDDEN and MODEL.SSL_OUT"),
    "text projector": (("text_projector.",), "MODEL.SSL_HIDDEN and MODEL.SSL_OUT"),
}
SIZES = "INPUT.SIZE_TRAIN and MODEL.STRIDE_SIZE"
SHOWN = 3  # names in a message


KINDS = tuple(prefix for prefixes, _ in PARTS.values() for prefix in prefixes)


class Weights(NamedTuple):
    """What a file of a whole network holds."""

    source: str  # the file
    tensors: dict[str, Tensor]  # under this program's names
    architecture: dict | None  # how the network is built; None in published files, which do not say
    config: dict | None  # what it was trained with; None in published files
    trained_on: str | None = None  # fingerprint of its training images, where the file says it
    tested_on: tuple[str, ...] = ()  # the same of the queries and galleries of each of its data sets
    prompts_trained: bool = True  # whether the sentences were ever trained

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of PARTS."""
        return {key: value for key, value in self.tensors.items() if key.startswith(PARTS[name][0])}

    def shown(self, key: str) -> str:
        """A tensor's name as it stands in the file."""
        return key if self.architecture else published.published_name(key, self.tensors)


def read_weights(path: str | Path) -> Weights:
    """Read a checkpoint of this program, or a published CLIP-ReID or SVLL-ReID file.

    Raises:
        WeightsError: no such file, damaged, would execute code, or neither of the two.
    """
    source = str(path)
    if is_torchscript(path):
        raise WeightsError(f"{source}: is CLIP as OpenAI publishes it (TorchScript), which MODEL.PRETRAIN takes")
    contents = read_tensors(path)
    if contents.get("format") == FORMAT:
        return weights_in(contents, source)
    state = state_in(contents, source)
    if published.is_published(state):
        check_tensors(state, source)
        return Weights(source, published.from_published(state, source=source), None, None)
    raise WeightsError(
        f"{source}: is neither a checkpoint of this program (no format {FORMAT!r} in it) nor a published CLIP-ReID or "
        f"SVLL-ReID file (no image_encoder.* in it), but {layout(state)}; CLIP's own weights are for MODEL.PRETRAIN"
    )


def weights_in(contents: dict, source: str) -> Weights:
    """What a checkpoint of this program holds that was read from `source`.

    Raises:
        WeightsError: it lacks a part, its description is damaged, or something else is where a tensor belongs.
    """
    check_checkpoint(contents, source)
    check(contents, Checkpoint, source)
    try:
        clip_config(contents["architecture"]["name"])
    except WeightsError as error:
        raise WeightsError(f"{source}: architecture.name: {error}") from None
    check_tensors(contents["model"], source)
    data = (contents.get("fingerprint") or {}).get("data_fingerprint")
    data = data if isinstance(data, dict) else {}
    return Weights(
        source,
        contents["model"],
        contents["architecture"],
        contents["config"],
        trained_on=data.get("train"),
        tested_on=tuple(data.get("parts") or filter(None, [data.get("test")])),
        prompts_trained=contents.get("prompts_trained") is not False,
    )


class Reuse(NamedTuple):
    """How a training starts from a file."""

    spare: dict[str, str]  # parts of the file that are not taken -> why
    fresh: dict[str, str]  # parts that it may lack as a whole -> what happens then
    prompts_anew: bool  # whether sentences are wanted that the file does not have


def plan_reuse(weights: Weights, architecture: dict, trained_on: str | None = None) -> Reuse:
    """Which parts of a file a training of `architecture` takes.

    The towers and necks must fit. What belongs to a data set (classifiers, prompts, side information) is taken where
    the numbers agree, and the training images too where file and `trained_on` (their fingerprint) say so; it starts
    anew where they do not.
    """
    pids = architecture["num_pids"]
    fresh = dict.fromkeys(("side information", "identity classifiers", "image projector", "text projector"), "new")
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
    """Copy a file's tensors into `model`, all or nothing -> the verdict, a line for all parts with one outcome.

    A model on the meta device, which has shapes but no values, is compared with the file and not changed.

    Args:
        spare: parts of the file that are not taken, each with the reason; the network's own stay as they are.
        fresh: parts of the network that the file may lack as a whole, each with the reason.
        resize: whether a position table of another grid is resized, or refused.

    Raises:
        WeightsError: tensors that are missing, unexpected, of another shape or no longer numbers with a fraction, with
            the setting to change; a position table whose grid nobody knows, if it is to be resized.
    """
    spare, fresh, wanted = spare or {}, fresh or {}, model.state_dict()
    taken, verdict = {}, defaultdict(list)
    strange = [name for name in weights.tensors if not name.startswith(KINDS)]
    faults = [f"{len(strange)} unexpected ({', '.join(strange[:SHOWN])})"] if strange else []
    table, old, new = f"image.{model.image.positions}", _grid(model, weights), model.image.grid
    for part, (prefixes, setting) in PARTS.items():
        mine = {name for name in wanted if name.startswith(prefixes)}
        theirs = weights.part(part)
        if part in spare:
            if theirs:
                verdict[f"not needed ({spare[part]})"].append(part)
            continue
        if mine and not theirs and part in fresh:
            verdict[f"not in the file, {fresh[part]}"].append(part)
            continue
        for word, names in (("missing", mine - theirs.keys()), ("unexpected", theirs.keys() - mine)):
            if names:
                shown = ", ".join(weights.shown(name) for name in sorted(names)[:SHOWN])
                more = ", …" if len(names) > SHOWN else ""
                faults.append(f"{part}: {len(names)} {word} ({shown}{more}); {setting} decide on it")
        for name in sorted(mine & theirs.keys()):
            value, place = theirs[name], wanted[name]
            if name == table and value.shape[1:] == place.shape[1:]:
                if resize and old is None:
                    faults.append(
                        f"{weights.shown(name)} has {len(value) - 1} positions, and nobody knows in how many rows: "
                        "convert the file with its own settings first (tools.convert_checkpoint); the copy says it"
                    )
                elif resize and old != new:
                    theirs[name] = resize_positions(value, old, new)
                    verdict[f"resized from {_times(old)} to {_times(new)}"].append("position table")
                elif value.shape != place.shape or (weights.architecture and old != new):
                    faults.append(_unlike_positions(weights, name, old, new))
            elif value.shape != place.shape:
                shapes = f"{list(value.shape)}, not {list(place.shape)}"
                faults.append(f"{weights.shown(name)} is {shapes}; {setting} decide on it")
            elif value.is_floating_point() != place.is_floating_point():
                faults.append(f"{weights.shown(name)} is of {value.dtype}, not {place.dtype}; the file is damaged")
        taken.update(theirs)
        if theirs:
            count = f"{len(theirs.get('prompts.context', ()))} " if part == "prompts" else ""
            verdict["loaded"].append(count + part)
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise WeightsError(f"{weights.source}: does not fit the network: {'; '.join(faults[:SHOWN])}{more}")
    if not next(model.parameters()).is_meta:
        model.load_state_dict({**wanted, **taken})
    return [f"{outcome}: {', '.join(parts)}" for outcome, parts in verdict.items()]


def _grid(model: SvllReid, weights: Weights) -> tuple[int, int] | None:
    """Rows and columns of a file's position table; of published files, those of the sizes that are trained at."""
    positions = len(weights.tensors.get(f"image.{model.image.positions}", [None])) - 1
    if weights.architecture is None:
        return published.GRIDS[positions][0] if positions in published.GRIDS else None
    sizes = (tuple(weights.architecture[name]) for name in ("image_size", "stride"))
    grid = model.image.grid_for(*sizes)
    return grid if grid[0] * grid[1] == positions else None  # else the file contradicts itself


def _unlike_positions(weights: Weights, name: str, old: tuple[int, int] | None, new: tuple[int, int]) -> str:
    positions, width = weights.tensors[name].shape
    grid = f" ({_times(old)} positions)" if old else ""
    origin = published.GRIDS.get(positions - 1) if weights.architecture is None else None
    hint = f" such as {origin[1]} give," if origin else ""
    return (
        f"{weights.shown(name)} is [{positions}, {width}]{grid},{hint} not [{new[0] * new[1] + 1}, {width}] "
        f"({_times(new)}); {SIZES} decide on it: set them as in its training, or name the one to change on the command "
        "line of train_svllreid.py or test_svllreid.py, and it is resized"
    )


def _times(grid: tuple[int, int]) -> str:
    return " x ".join(map(str, grid))
