"""List the published figures with commands and needs, run them, and say how far this program is from them.

    python -m tools.reproduce                                        # every row; nothing is run
    python -m tools.reproduce --root /data --run market1501-vit_clipreid msmt17-vit_clipreid-sie-olp-re-ranking
    python -m tools.reproduce --root /data --run all -- MODEL.PRETRAIN /weights/ViT-B-16.pt
    python -m tools.reproduce --markdown                             # the table of docs/results.md

The rows are in tools/reproduce.yml. Each trains into a folder of its own below --output, named after row and seed; one
that has ended is compared, not run again; one that was interrupted is resumed; one with other settings is named and
left alone. The verdict rests on every published figure of the row, at the one decimal that is published: "reproduced"
if none is further away than the tolerance, else "below" if one is too low, else "above". Being above is no success
either: it may be an easier protocol.

Exit code 0 if all is well, 1 if a row that was compared is not reproduced, 2 if one could not be run or compared.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from utils.command import FAILED, add_settings, new_parser, run_script

OUTPUT, DATA, ALL = Path("runs/reproduce"), "data", "all"


class Tolerance(NamedTuple):
    """How many points a figure may be off."""

    mAP: float = 0.5
    rank: float = 1.0  # moves more from seed to seed: a query counts all or nothing

    def of(self, figure: str) -> float:
        """That of one figure, by its name in results.json."""
        return self.mAP if figure == "mAP" else self.rank

    def __str__(self) -> str:
        return f"tolerance {self.mAP:g} of mAP, {self.rank:g} of rank-k"


def _points(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"invalid value {text!r}; expected points, 0 to 100")
    return value


PARSER = new_parser(__doc__)
USUAL = Tolerance()
PARSER.add_argument("--run", nargs="+", default=[], metavar="ROW", help=f"rows by name, or {ALL}: run what is missing")
PARSER.add_argument("--markdown", action="store_true", help="print the table of docs/results.md")
PARSER.add_argument("--root", default=DATA, help="DATASETS.ROOT_DIR: the folder that holds the data sets' folders")
PARSER.add_argument("--output", type=Path, default=OUTPUT, help="the folder that holds the runs")
PARSER.add_argument("--seed", type=int, help="SOLVER.SEED; the configuration's if it is not given")
PARSER.add_argument("--tolerance", type=_points, default=USUAL.mAP, help=f"of mAP, in points (default {USUAL.mAP:g})")
PARSER.add_argument(
    "--rank-tolerance", type=_points, default=USUAL.rank, help=f"of rank-k, in points (default {USUAL.rank:g})"
)
add_settings(PARSER, "settings of all commands, after --")

if __name__ == "__main__":  # before torch is loaded, which takes seconds
    PARSER.parse_args()

from open_clip import pretrained as hub
from yacs.config import CfgNode

import test_svllreid
import train_svllreid
from configs import ConfigError, from_dict, load, to_dict
from datasets.build import make_benchmark
from datasets.msmt17 import UNKNOWN, msmt17_version
from model import pretrained, tiny_clip
from processor.build import refinement_of
from utils.errors import UserError, one_line
from utils.logs import log_to_screen
from utils.records import Refinement
from utils.report import COLUMNS
from utils.run import CONFIG, RESULTS
from utils.run.results import END, read_results

logger = logging.getLogger("reproduce")
ROOT = Path(__file__).resolve().parent.parent
REPRODUCED, BELOW, ABOVE = "reproduced", "below", "above"
NOT_REPRODUCED = 1  # exit code
NOT_AT_HAND, NOT_YET = "not at hand", "not yet run"
SHOWN = ("mAP", "rank1", "rank5")
VIEWPOINTS = {"TRAIN": "keypoint_train.txt", "TEST": "keypoint_test.txt"}
REFINED = ("TEST.FLIP", "TEST.AQE", "TEST.RE_RANKING")
# Keys that a row or an option decides on: nothing to append to every command.
OWNED = {
    **{"OUTPUT_DIR": "--output sets it", "DATASETS.ROOT_DIR": "--root sets it", "SOLVER.SEED": "--seed sets it"},
    **dict.fromkeys(("DATASETS.NAMES", "TEST.WEIGHT", *REFINED), "the row sets it"),
    "DATASETS.HOLD_OUT": "the published figures are of the test split",
}
# Settings that say where, on what and how often something is logged, not how a number comes about.
NO_DEPARTURE = ("OUTPUT_DIR", "DATASETS.ROOT_DIR", "DATALOADER.NUM_WORKERS", "MODEL.DEVICE", "TEST.IMS_PER_BATCH")
Figures = dict[str, float]  # in per cent, under the names of results.json


class DataSet(NamedTuple):
    """A data set of the published tables."""

    title: str
    place: str  # below DATASETS.ROOT_DIR
    figures: list[str]  # what the papers compare by


class Need(NamedTuple):
    """Files that a row needs."""

    what: str
    where: str
    there: bool
    remark: str


class Command(NamedTuple):
    """One of this program's scripts and its arguments."""

    script: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(["python", self.script, *self.words])


class Result(NamedTuple):
    """A row that has been run."""

    figures: Figures
    refinement: Refinement = Refinement()
    version: str | None = None  # of MSMT17; None for other data sets


@dataclass(frozen=True)
class Row:
    """A published line, and how this program gets there; see tools/reproduce.yml."""

    name: str  # what --run takes, and the start of the folder's name
    data_set: str
    method: str
    config: str
    source: str
    settings: Mapping[str, str] | None = None
    published: Figures | None = None
    unverified: bool = False
    trained: Row | None = None
    note: str = ""


def read_table(path: Path) -> tuple[dict[str, DataSet], dict[str, Row]]:
    """The data sets and rows of a table, by name."""
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows: dict[str, Row] = {}
    for name, fields in table["rows"].items():
        trained = fields.pop("trained", None)
        rows[name] = Row(name, **fields, trained=rows[trained] if trained else None)
    return {name: DataSet(**fields) for name, fields in table["data_sets"].items()}, rows


DATA_SETS, ROWS = read_table(Path(__file__).with_suffix(".yml"))


@dataclass(frozen=True)
class Plan:
    """Where from, where to, and what else was asked for: what turns a row into commands.

    Raises:
        UserError: an override of what a row or an option decides on.
    """

    root: str = DATA
    output: Path = OUTPUT
    seed: int | None = None  # None: the configuration's
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in self.overrides[::2]:
            if key in OWNED:
                raise UserError(f"{key}: invalid as a setting of all commands; {OWNED[key]}")

    def folder(self, row: Row) -> Path:
        """The row's OUTPUT_DIR."""
        seed = _settings(None, ()).SOLVER.SEED if self.seed is None else self.seed
        return self.output.expanduser() / f"{row.name}_seed{seed}"

    def training(self, row: Row) -> Command:
        """What trains the row's network."""
        row = row.trained or row
        places = ("DATASETS.ROOT_DIR", self.root, "OUTPUT_DIR", str(self.folder(row)))
        seed = () if self.seed is None else ("SOLVER.SEED", str(self.seed))
        words = ("--config_file", row.config, *_words(row), "DATASETS.NAMES", row.data_set, *places, *seed)
        return Command("train_svllreid.py", (*words, *self._viewpoints(row), *self.overrides))

    def _viewpoints(self, row: Row) -> tuple[str, ...]:
        """Where annotation files are looked for that no data set comes with: beside its folders of images."""
        if not _settings(ROOT / row.config, _words(row)).MODEL.SIE_VIEW:
            return ()
        folder = f"{self.root}/{DATA_SETS[row.data_set].place.partition('/')[0]}"
        return tuple(
            word for split in VIEWPOINTS for word in (f"DATASETS.VIEWPOINTS_{split}", f"{folder}/{VIEWPOINTS[split]}")
        )

    def testing(self, row: Row) -> Command:
        """What tests it with re-ranking."""
        places = ("DATASETS.ROOT_DIR", self.root, "OUTPUT_DIR", str(self.folder(row)))
        words = ("TEST.WEIGHT", str(self.checkpoint(row)), "TEST.RE_RANKING", "True", *places, *self.overrides)
        return Command("test_svllreid.py", words)

    def commands(self, row: Row) -> list[Command]:
        """All that the row takes, in order."""
        return [self.training(row), *([self.testing(row)] if row.trained else [])]

    def config(self, row: Row) -> CfgNode:
        """The settings of the row's training."""
        _, file, *overrides = self.training(row).words
        return _settings(ROOT / file, tuple(overrides))

    def checkpoint(self, row: Row) -> Path:
        """The trained network, under the name that the image stage gives it."""
        cfg = self.config(row)
        return self.folder(row.trained or row) / f"{cfg.MODEL.NAME}_{cfg.SOLVER.STAGE2.MAX_EPOCHS}.pth"

    def departures(self, row: Row) -> list[str]:
        """What the overrides change of the published recipe."""
        recipe = Plan(self.root, self.output, self.seed).config(row)
        return differences(to_dict(self.config(row)), to_dict(recipe))


def _words(row: Row) -> tuple[str, ...]:
    return tuple(word for pair in (row.settings or {}).items() for word in pair)


@functools.cache  # the same few are asked for again and again; they are frozen
def _settings(file: Path | None, overrides: tuple[str, ...]) -> CfgNode:
    return load(file, overrides)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for, show rows, and return the exit code."""
    arguments = PARSER.parse_args(argv)
    overrides = tuple(arguments.overrides)
    plan = Plan(arguments.root, arguments.output, arguments.seed, overrides)
    tolerance = Tolerance(arguments.tolerance, arguments.rank_tolerance)
    asked = choose(arguments.run)
    if not asked and plan.output != OUTPUT and not plan.output.expanduser().is_dir():
        raise UserError(f"--output {plan.output}: there is no such folder, and so there are no runs in it")
    log_to_screen()
    for row in ROWS.values():
        plan.config(row)  # a wrong override is named before anything is run

    faults: dict[str, str] = {}
    for row in asked:
        try:
            reproduce(row, plan)
        except (UserError, ConfigError) as error:  # the other rows may do
            faults[row.name] = one_line(error)
            logger.error("%s: %s", row.name, faults[row.name])
    shown = list(ROWS.values()) if arguments.markdown or not asked else asked
    results: dict[str, Result | None] = {}
    for row in shown:
        try:
            results[row.name] = None if row.name in faults else find_result(row, plan)
        except (UserError, ConfigError) as error:
            faults[row.name], results[row.name] = one_line(error), None
    write = markdown if arguments.markdown else listing
    sys.stdout.write(write(shown, plan, results, faults, tolerance) + "\n")
    for name, fault in faults.items():
        sys.stderr.write(f"error: {name}: {fault}\n")
    if faults:
        return FAILED
    verdicts = {
        judge(row, results[row.name].figures, tolerance)[0] for row in shown if row.published and results[row.name]
    }
    return 0 if verdicts <= {REPRODUCED} else NOT_REPRODUCED


def choose(names: Sequence[str]) -> list[Row]:
    """The rows of these names, in the table's order.

    Raises:
        UserError: a name that no row has.
    """
    for name in names:
        if name not in (ALL, *ROWS):
            near = difflib.get_close_matches(name, ROWS, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {ALL}, {', '.join(ROWS)}"
            hint = "; settings come after --" if "." in name else hint
            raise UserError(f"--run: there is no row {name!r}{hint}")
    return [row for row in ROWS.values() if ALL in names or row.name in names]


# ---------------------------------------------------------------------------------------------------- running


def reproduce(row: Row, plan: Plan) -> None:
    """Run what is missing of a row.

    Raises:
        UserError: files that are missing; a folder that holds something else than this row's finished run; and all that
            training and testing raise.
    """
    if find_result(row, plan) is not None:
        logger.info("%s: has been run", row.name)
        return
    missing = [f"{need.what} {need.where}: {need.remark}" for need in needs(row, plan) if not need.there]
    if missing:
        raise UserError("not run, files are missing: " + "; ".join(missing))
    trained = row.trained or row
    if find_result(trained, plan) is None:
        _start(plan.training(row))
    if row.trained:
        _start(plan.testing(row))


def _start(command: Command) -> None:
    logger.info("%s", command)
    script = {"train_svllreid.py": train_svllreid.main, "test_svllreid.py": test_svllreid.main}[command.script]
    words = list(command.words)
    if words[0] == "--config_file":  # printed as seen from the repository, where this may not have been started
        words[1] = str(ROOT / words[1])
    script(words)


# ------------------------------------------------------------------------------------------------ what it needs


def needs(row: Row, plan: Plan) -> list[Need]:
    """The data set and CLIP's weights, and whether they are there."""
    cfg = plan.config(row)
    return [data_need(cfg), weights_need(cfg)]


def data_need(cfg: CfgNode) -> Need:
    """The images: there if the reader says so."""
    name, root = cfg.DATASETS.NAMES, Path(cfg.DATASETS.ROOT_DIR).expanduser()
    where = f"{root}/{DATA_SETS[name].place}"
    try:
        benchmark = make_benchmark(cfg)
    except UserError as error:
        return Need("images", where, False, f"missing ({one_line(error)})")
    version = f", MSMT17 {version_of_msmt17(root)}" if name == "msmt17" else ""
    return Need("images", where, True, f"there: {benchmark.counts()}{version}")


def weights_need(cfg: CfgNode) -> Need:
    """CLIP's weights. What open_clip can download counts as there: training says at once if it cannot."""
    what, name, source = "CLIP weights", cfg.MODEL.NAME, cfg.MODEL.INIT_FROM or cfg.MODEL.PRETRAIN
    if source == pretrained.NONE:
        return Need(what, source, True, "none are needed, a random start")
    if (name, source) == (tiny_clip.NAME, tiny_clip.TAG):
        return Need(what, source, True, "there, in this repository")
    tag = {} if cfg.MODEL.INIT_FROM else hub.get_pretrained_cfg(name, source)
    if not tag:
        there = Path(source).expanduser().is_file()
        return Need(what, source, there, "there" if there else "missing")
    file = pretrained.cached(tag)
    if file is not None:
        return Need(what, str(file), True, "there")
    return Need(what, pretrained.address(tag), True, f"not here yet, {name} {source} is downloaded by training")


def version_of_msmt17(root: Path) -> str:
    """V1, V2 or that it is unknown, also where the images are gone."""
    try:
        return msmt17_version(root)
    except UserError:
        return UNKNOWN


# ------------------------------------------------------------------------------------------------ what came out


def find_result(row: Row, plan: Plan) -> Result | None:
    """What a finished row scored; None if it was never started, or was interrupted.

    Raises:
        UserError: its folder holds something else: other settings, another data set, a result that was re-ranked where
            the published was not (or the other way round), or a damaged file.
    """
    if row.trained:
        return _find_test(row, plan)
    folder = plan.folder(row)
    if not any((folder / name).exists() for name in (CONFIG, RESULTS)):
        return None
    trained = _read_config(folder)
    if others := differences(to_dict(trained), to_dict(plan.config(row))):
        raise UserError(
            f"{folder}: holds a run with other settings ({', '.join(others)}); move it away, or give another --output"
        )
    entry = _last(folder, END, row)
    if entry is None:
        return None
    refinement = _refinement(entry, folder, refinement_of(plan.config(row)))
    # By the folder that it was trained from, wherever --root is now.
    root = Path(trained.DATASETS.ROOT_DIR).expanduser()
    version = version_of_msmt17(root) if row.data_set == "msmt17" else None
    return Result(_figures(entry), refinement, version)


def _find_test(row: Row, plan: Plan) -> Result | None:
    folder, trained = plan.folder(row), plan.folder(row.trained)
    training = find_result(row.trained, plan)
    if not (folder / RESULTS).exists():
        return None
    if training is None:
        raise UserError(f"{folder}: holds a test, but the network that it is of is not in {trained}; move it away")
    entry = _last(folder, "test", row)
    if entry is None:
        raise UserError(f"{folder / RESULTS}: holds no test; move it away, or give another --output")
    cfg = plan.config(row).clone()
    cfg.defrost()
    cfg.TEST.RE_RANKING = True
    refinement = _refinement(entry, folder, refinement_of(cfg))
    network = Path(str(entry.get("checkpoint"))).parts[-2:] == plan.checkpoint(row).parts[-2:]
    if not network or entry["data_fingerprint"]["test"] != _last(trained, END, row)["data_fingerprint"]["test"]:
        raise UserError(f"{folder / RESULTS}: is a test of another network or of other images than {trained}")
    return Result(_figures(entry), refinement, training.version)


def _refinement(entry: Mapping, folder: Path, wanted: Refinement) -> Refinement:
    """What was done in this test; UserError if it is not what is `wanted`."""
    done = Refinement.of(entry)
    if done != wanted:
        was, expected = (str(each) or "not re-ranked" for each in (done, wanted))
        raise UserError(f"{folder / RESULTS}: the test was {was}; expected {expected}")
    return done


def _read_config(folder: Path) -> CfgNode:
    """The settings of a run."""
    try:
        tree = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        return from_dict(tree, where=str(folder / CONFIG))
    except OSError as error:
        raise UserError(f"{folder / CONFIG}: cannot be read ({error.strerror}); is this a run's folder?") from error
    except (ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{folder / CONFIG}: is not a run's settings ({one_line(error)})") from error


def _last(folder: Path, when: str, row: Row) -> dict | None:
    """The latest evaluation of this kind in a folder's results file; UserError if it cannot be the row's."""
    path = folder / RESULTS
    entry = next((one for one in reversed(read_results(path)["evaluations"]) if one["when"] == when), None)
    if entry is None:
        return None
    images = entry.get("data_fingerprint")
    if not isinstance(images, dict) or not images.get("test"):
        raise UserError(f"{path}: the entry {when!r} does not say of which images it is (data_fingerprint)")
    if entry["data_set"] != row.data_set:
        raise UserError(f"{path}: is of the data set {entry['data_set']!r}; expected {row.data_set!r}")
    return entry


def _figures(entry: Mapping) -> Figures:
    return {name: 100 * entry[name] for name in SHOWN}


def differences(ours: Mapping, wanted: Mapping, prefix: str = "") -> list[str]:
    """The keys that differ, of those that can change a number."""
    keys: list[str] = []
    for name in {**ours, **wanted}:
        key, mine, other = f"{prefix}{name}", ours.get(name), wanted.get(name)
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            keys += differences(mine, other, f"{key}.")
        elif mine != other and key not in NO_DEPARTURE and not key.endswith("_PERIOD"):
            keys.append(key)
    return keys


def judge(row: Row, ours: Figures, tolerance: Tolerance) -> tuple[str, Figures]:
    """Compare with the published figures, at their one decimal -> the verdict, and ours - published in points."""
    off = {name: round(round(ours[name], 1) - value, 1) for name, value in row.published.items()}
    if any(difference < -tolerance.of(name) for name, difference in off.items()):
        return BELOW, off
    if any(difference > tolerance.of(name) for name, difference in off.items()):
        return ABOVE, off
    return REPRODUCED, off


# --------------------------------------------------------------------------------------------------- what is shown


def listing(
    shown: Sequence[Row],
    plan: Plan,
    results: Mapping[str, Result | None],
    faults: Mapping[str, str],
    tolerance: Tolerance,
) -> str:
    """A paragraph for every row."""
    data: dict[str, Need] = {}  # a data set is read once, not once a row
    paragraphs = []
    for row in shown:
        cfg = plan.config(row)
        if row.data_set not in data:
            data[row.data_set] = data_need(cfg)
        lines = [
            ("data set", DATA_SETS[row.data_set].title),
            ("method", row.method),
            ("published", published(row)),
            *(("command", str(command)) for command in plan.commands(row)),
            ("source", row.source),
            *((need.what, f"{need.where}: {need.remark}") for need in (data[row.data_set], weights_need(cfg))),
            *([("note", row.note)] if row.note else []),
            ("ours", f"error: {faults[row.name]}" if row.name in faults else ours(row, plan, results, tolerance)),
        ]
        paragraphs.append("\n".join([row.name, *(f"  {title:12}  {text}" for title, text in lines)]))
    return "\n\n".join(paragraphs)


def published(row: Row) -> str:
    """The published figures in words."""
    if row.published is None:
        return NOT_AT_HAND
    return spell(row.published) + (" (unverified)" if row.unverified else "")


def spell(figures: Mapping[str, float], sign: str = "") -> str:
    """mAP 89.6, rank-1 95.5"""
    return ", ".join(f"{COLUMNS[name]} {value:{sign}.1f}" for name, value in figures.items())


def ours(row: Row, plan: Plan, results: Mapping[str, Result | None], tolerance: Tolerance) -> str:
    """What this program scored, with all that a reader must know to compare it."""
    result = results[row.name]
    if result is None:
        return NOT_YET
    words = [spell(result.figures)]
    if row.published is None:
        words.append("nothing to compare it with")
    else:
        verdict, off = judge(row, result.figures, tolerance)
        unverified = ", and the published figures are unverified" if row.unverified else ""
        words.append(f"{verdict}: {spell(off, '+')} ({tolerance}{unverified})")
    words.append(str(result.refinement) or "not re-ranked")
    if result.version:
        words.append(f"MSMT17 {result.version}")
    departures = plan.departures(row)
    if departures:
        words.append(f"not the published recipe: {', '.join(departures)}")
    return "; ".join(words)


def markdown(
    shown: Sequence[Row],
    plan: Plan,
    results: Mapping[str, Result | None],
    faults: Mapping[str, str],
    tolerance: Tolerance,
) -> str:
    """The table of docs/results.md."""
    lines = ["| data set | method | published | ours | command |", "| --- | --- | --- | --- | --- |"]
    for row in shown:
        result = results[row.name]
        mine = NOT_YET if result is None else _cell(row, result, plan, tolerance)
        commands = ", then ".join(f"`{command}`" for command in plan.commands(row))
        cells = [
            DATA_SETS[row.data_set].title,
            row.method,
            _published_cell(row),
            "error" if row.name in faults else mine,
            commands,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _published_cell(row: Row) -> str:
    if row.published is None:
        return NOT_AT_HAND
    remarks = [] if "mAP" in row.published else [" / ".join(COLUMNS[name] for name in row.published)]
    remarks += ["unverified"] if row.unverified else []
    return _slashed(row.published) + (f" ({', '.join(remarks)})" if remarks else "")


def _cell(row: Row, result: Result, plan: Plan, tolerance: Tolerance) -> str:
    scores = _slashed({name: result.figures[name] for name in DATA_SETS[row.data_set].figures})
    if row.published is None:
        return scores
    remarks = [judge(row, result.figures, tolerance)[0]]
    remarks += [f"MSMT17 {result.version}"] if result.version else []
    remarks += ["other settings"] if plan.departures(row) else []
    return f"{scores} ({', '.join(remarks)})"


def _slashed(figures: Mapping[str, float]) -> str:
    return " / ".join(f"{value:.1f}" for value in figures.values())


if __name__ == "__main__":
    sys.exit(run_script(main, ConfigError))
