"""Files of whole networks, ours and published ones, and what becomes of each of their parts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from model import published
from model.clip import resize_positions
from model.svllreid import SvllReid
from utils.checkpoint import FORMAT, check_checkpoint, read_tensors
from utils.errors import WeightsError

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
    contents, source = read_tensors(path), str(path)
    if contents.get("format") == FORMAT:
        check_checkpoint(contents, path)
        return Weights(source, contents["model"], contents["architecture"], contents["config"])
    if published.is_published(contents):
        return Weights(source, published.from_published(contents, source=source), None, None)
    raise WeightsError(
        f"{source}: is neither a checkpoint of this program (no format {FORMAT!r} in it) nor a published CLIP-ReID or "
        "SVLL-ReID file (no image_encoder.* in it)"
    )


class Reuse(NamedTuple):
    """How a training starts from a file."""

    spare: dict[str, str]  # parts of the file that are not taken -> why
    fresh: dict[str, str]  # parts that it may lack as a whole -> what happens then
    prompts_anew: bool  # whether sentences are wanted that the file does not have


def plan_reuse(weights: Weights, architecture: dict) -> Reuse:
    """Which parts of a file a training of `architecture` takes.

    The towers and necks must fit. What belongs to a data set (classifiers, prompts, side information) is taken where
    the numbers agree and starts anew where they do not.
    """
    pids, spare = architecture["num_pids"], {}
    fresh = dict.fromkeys(("side information", "identity classifiers", "image projector", "text projector"), "new")

    def rows(name: str) -> int:
        return len(weights.tensors.get(name, ()))

    if rows("heads.0.classifier.weight") != pids:
        spare["identity classifiers"] = f"of {rows('heads.0.classifier.weight')} identities, here are {pids}"
    table = side_rows(architecture)
    if table is None:
        spare["side information"] = "MODEL.SIE_CAMERA and MODEL.SIE_VIEW are off"
    elif rows("image.side.table") != table:
        spare["side information"] = f"of {rows('image.side.table')} rows, here are {table}; the table is new"
    for part, wanted in (
        ("image projector", architecture["vision_ssl"]),
        ("text projector", architecture["language_ssl"]),
        ("text tower", architecture["sentences"]),
        ("prompts", architecture["sentences"]),
    ):
        if not wanted:
            spare[part] = "nothing here uses it"
    template = (weights.architecture or architecture)["template"]
    anew = architecture["sentences"] and (rows("prompts.context") != pids or template != architecture["template"])
    if anew and weights.part("prompts"):
        spare["prompts"] = (
            f"of {rows('prompts.context')} identities, {template!r}; here are {pids}, {architecture['template']!r}"
        )
    if anew:
        fresh["prompts"] = "new"
    return Reuse(spare, fresh, anew)


def side_rows(architecture: dict) -> int | None:
    """Rows of the table of side information; None without one."""
    if not (architecture["sie_camera"] or architecture["sie_view"]):
        return None
    cams = architecture["num_cams"] if architecture["sie_camera"] else 1
    return cams * (architecture["num_views"] if architecture["sie_view"] else 1)


def nearest_grid(positions: int, like: tuple[int, int]) -> tuple[int, int]:
    """Of all grids with so many positions, the one whose proportions are nearest to those of `like`; rather upright."""
    grids = [(rows, positions // rows) for rows in range(positions, 0, -1) if positions % rows == 0]
    return min(grids, key=lambda grid: abs(math.log(grid[0] * like[1] / (grid[1] * like[0]))))


def load_weights(
    model: SvllReid,
    weights: Weights,
    *,
    spare: Mapping[str, str] | None = None,
    fresh: Mapping[str, str] | None = None,
    old_grid: Callable[[int], tuple[int, int]] | None = None,
    resize: bool = False,
) -> list[str]:
    """Copy a file's tensors into `model`, all or nothing -> the verdict, a line for all parts with one outcome.

    Args:
        spare: parts of the file that are not taken, each with the reason; the network's own stay as they are.
        fresh: parts of the network that the file may lack as a whole, each with the reason.
        old_grid: number of positions in the file -> their rows and columns; None where they must be the network's.
        resize: whether a position table of another grid is resized, or refused.

    Raises:
        WeightsError: tensors that are missing, unexpected or of another shape, with the setting to change.
    """
    spare, fresh, wanted = spare or {}, fresh or {}, model.state_dict()
    taken, verdict = {}, defaultdict(list)
    strange = [name for name in weights.tensors if not name.startswith(KINDS)]
    faults = [f"{len(strange)} unexpected ({', '.join(strange[:SHOWN])})"] if strange else []
    table = f"image.{model.image.positions}"
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
        if table in theirs and old_grid is not None:
            old, new = old_grid(len(theirs[table]) - 1), model.image.grid
            if old != new and resize:
                theirs[table] = resize_positions(theirs[table], old, new)
                verdict[f"resized from {_times(old)} to {_times(new)}"].append("position table")
            elif old != new:
                faults.append(
                    f"{weights.shown(table)} is {list(theirs.pop(table).shape)} ({_times(old)} positions), not "
                    f"{list(wanted[table].shape)} ({_times(new)}); {SIZES} decide on it: name the one to change on the "
                    "command line, and it is resized"
                )
        for name in sorted(mine & theirs.keys()):
            if theirs[name].shape != wanted[name].shape:
                faults.append(
                    f"{weights.shown(name)} is {list(theirs[name].shape)}, not {list(wanted[name].shape)}; "
                    f"{SIZES if name == table else setting} decide on it"
                )
        taken.update(theirs)
        if theirs:
            count = f"{len(theirs.get('prompts.context', ()))} " if part == "prompts" else ""
            verdict["loaded"].append(count + part)
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise WeightsError(f"{weights.source}: does not fit the network: {'; '.join(faults[:SHOWN])}{more}")
    model.load_state_dict({**wanted, **taken})
    return [f"{outcome}: {', '.join(parts)}" for outcome, parts in verdict.items()]


def _times(grid: tuple[int, int]) -> str:
    return " x ".join(map(str, grid))
