"""List the published figures with commands and needs, run them, and say how far this program is from them.

    python -m tools.reproduce                                        # every row; nothing is run
    python -m tools.reproduce --root /data --run market1501-vit_clipreid msmt17-vit_clipreid-sie-olp-re-ranking
    python -m tools.reproduce --root /data --run all -- MODEL.PRETRAIN /weights/ViT-B-16.pt
    python -m tools.reproduce --markdown                             # the table of docs/results.md

The rows are in tools/reproduce.yml. Each trains into a folder of its own below --output, named after row and seed; one
that has ended is compared, not run again; one that was interrupted is resumed; one with other settings is named and
left alone. The verdict rests on every published figure of the row, at the one decimal that is published: "reproduced"
if none is further away than the tolerance (0.5 of mAP, 1.0 of rank-k), else "below" if one is too low, else "above".
Being above is no success either: it may be an easier protocol.

Exit code 0 if all is well, 1 if a row that was compared is not reproduced, 2 if one could not be run or compared.
"""

from __future__ import annotations

import argparse
import functools
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import yaml

from configs import check_overrides
from utils.command import FAILED, add_settings, answer_early, new_parser, run_script
from utils.errors import UserError
from utils.paths import expanded

OUTPUT, ALL = Path("runs/reproduce"), "all"
# Keys that a row or an option decides on; the published figures are of the test split.
OWNED = (
    *("OUTPUT_DIR", "DATASETS.ROOT_DIR", "SOLVER.SEED", "DATASETS.NAMES", "DATASETS.HOLD_OUT"),
    *("DATASETS.SYSU_MODE", "DATASETS.REGDB_SPLIT"),
    *("TEST.WEIGHT", "TEST.FLIP", "TEST.AQE", "TEST.RE_RANKING"),
)
Figures = Mapping[str, float]  # in per cent


class Row(NamedTuple):
    """A published line, and how this program gets there; see tools/reproduce.yml."""

    name: str  # what --run takes, and the start of the folder's name
    data_set: str
    method: str
    config: str
    source: str
    settings: Mapping[str, str] = {}
    files: Mapping[str, str] = {}
    published: Mapping[str, float] = {}  # in per cent, under the names of results.json; none: not at hand
    unverified: bool = False
    trained: Row | None = None
    test: Mapping[str, str] = {}  # of a network of another row
    entry: Mapping[str, str] = {}  # of results.json: fields of the one that the figures are of
    splits: int = 0  # of the data set: a training each, and the figures are means
    note: str = ""


ROWS: dict[str, Row] = {}
for _name, _fields in yaml.safe_load(Path(__file__).with_suffix(".yml").read_text(encoding="utf-8")).items():
    ROWS[_name] = Row(_name, **{**_fields, "trained": ROWS.get(_fields.get("trained"))})


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    rows = {"nargs": "+", "default": [], "choices": [ALL, *ROWS], "metavar": "ROW"}
    add("--run", **rows, help=f"rows by name, or {ALL}: run what is missing")
    add("--markdown", action="store_true", help="print the table of docs/results.md")
    add("--root", default="data", help="DATASETS.ROOT_DIR, the folder of the data sets (default %(default)s)")
    add("--output", type=Path, default=OUTPUT, help="folder of the runs (default %(default)s)")
    add("--seed", type=int, help="SOLVER.SEED (default: that of the configuration)")
    add_settings(parser, "settings of all commands, after --")
    arguments = parser.parse_args(argv)
    if owned := [key for key in arguments.overrides[::2] if key in OWNED]:
        raise UserError(f"{owned[0]}: invalid as a setting of all commands; the row or an option sets it")
    check_overrides(arguments.overrides)
    if not arguments.run and arguments.output != OUTPUT and not expanded(arguments.output, "--output").is_dir():
        raise UserError(f"--output {arguments.output}: there is no such folder, and so there are no runs in it")
    return arguments


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from open_clip import pretrained as hub
from yacs.config import CfgNode

import test_svllreid
import train_svllreid
from configs import ConfigError, differences, from_dict, load
from datasets.build import make_benchmark
from datasets.msmt17 import UNKNOWN, msmt17_version
from model import tiny_clip
from model.pretrained import NONE, cached
from model.timm_tower import tags_of
from model.towers import TIMM
from processor.build.evaluation import refinement_of
from processor.card import DATA_SETS
from processor.turn import Turn
from utils import report
from utils.errors import one_line
from utils.hub import on_hub
from utils.logs import log_to_screen
from utils.records import Refinement
from utils.report import COLUMNS
from utils.run import CONFIG, RESULTS
from utils.run.folder import read_config
from utils.run.results import END, read_results

logger = logging.getLogger("reproduce")
ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"train_svllreid.py": train_svllreid.main, "test_svllreid.py": test_svllreid.main}
REPRODUCED, BELOW, ABOVE = "reproduced", "below", "above"
NOT_REPRODUCED = 1  # exit code
# How many points a figure may be off; rank-k moves more from seed to seed, as a query counts all or nothing.
TOLERANCE = {"mAP": 0.5, "rank1": 1.0, "rank5": 1.0}
# Settings that say where, on what and how often something is logged, not how a number comes about.
NO_DEPARTURE = (
    *("OUTPUT_DIR", "DATASETS.ROOT_DIR", "DATALOADER.NUM_WORKERS", "MODEL.DEVICE", "TEST.IMS_PER_BATCH"),
    "_PERIOD",
)


class Result(NamedTuple):
    """What a row that has been run scored."""

    figures: Figures
    remarks: list[str]  # what a reader must know to compare it


Outcomes = Sequence[tuple[Row, Result | str | None]]  # what it scored, why it cannot be said, or that it was not run


@dataclass(frozen=True)
class Plan:
    """Where from, where to, and what else was asked for: what turns a row into commands (script, word, word ...)."""

    root: str = "data"
    output: Path = OUTPUT
    seed: int | None = None  # None: the configuration's
    overrides: tuple[str, ...] = ()

    def folder(self, row: Row, split: int = 0) -> Path:
        """The row's OUTPUT_DIR; with a split, that of one of its trainings."""
        seed = _settings(ROOT / row.config, ()).SOLVER.SEED if self.seed is None else self.seed
        return self.output.expanduser() / f"{row.name}{f'-split{split}' if split else ''}_seed{seed}"

    def training(self, row: Row, split: int = 0) -> tuple[str, ...]:
        """What trains the row's network, or that of one split."""
        row = row.trained or row
        settings = {
            **row.settings,
            **({"DATASETS.REGDB_SPLIT": str(split)} if split else {}),
            **{"DATASETS.NAMES": row.data_set, "DATASETS.ROOT_DIR": self.root},
            "OUTPUT_DIR": str(self.folder(row, split)),
            **({} if self.seed is None else {"SOLVER.SEED": str(self.seed)}),
            **{key: f"{self.root}/{file}" for key, file in row.files.items()},
        }
        return ("train_svllreid.py", "--config_file", row.config, *_words(settings), *self.overrides)

    def testing(self, row: Row) -> tuple[str, ...]:
        """What tests the network of another row."""
        settings = {
            "TEST.WEIGHT": str(self.checkpoint(row)),
            **row.test,
            **{"DATASETS.ROOT_DIR": self.root, "OUTPUT_DIR": str(self.folder(row))},
        }
        return ("test_svllreid.py", *_words(settings), *self.overrides)

    def commands(self, row: Row) -> list[tuple[str, ...]]:
        """All that the row takes, in order: a training, or one of each split, and a test where it has one."""
        return [*(self.training(row, split) for split in splits_of(row)), *([self.testing(row)] if row.test else [])]

    def config(self, row: Row, split: int = 0) -> CfgNode:
        """The settings of the row's training."""
        _, _, file, *overrides = self.training(row, split)
        return _settings(ROOT / file, tuple(overrides))

    def checkpoint(self, row: Row) -> Path:
        """The trained network, under the name that the last stage gives it."""
        cfg = self.config(row)
        last = Turn(cfg.PROCESSOR.STAGES, len(cfg.PROCESSOR.STAGES) - 1)
        return self.folder(row.trained or row) / last.file(cfg.MODEL.NAME).format(epoch=last.stage.epochs(cfg))


def _words(settings: Mapping[str, str]) -> list[str]:
    return [word for pair in settings.items() for word in pair]


def splits_of(row: Row) -> range:
    """The splits that are trained on, from 1; 0 alone for a data set without any."""
    return range(1, row.splits + 1) if row.splits else range(1)


@functools.cache  # the same few are asked for again and again; they are frozen
def _settings(file: Path, overrides: tuple[str, ...]) -> CfgNode:
    return load(file, overrides)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for, show rows, and return the exit code."""
    arguments = read_command_line(argv)
    plan = Plan(arguments.root, arguments.output, arguments.seed, tuple(arguments.overrides))
    log_to_screen()
    for row in ROWS.values():
        plan.config(row)  # a wrong override is named before anything is run

    asked = [row for row in ROWS.values() if {ALL, row.name} & set(arguments.run)]
    shown = list(ROWS.values()) if arguments.markdown or not asked else asked
    # First what is run: a network may be that of two rows.
    order = sorted(shown, key=lambda row: row not in asked)
    found = {row.name: find_outcome(row, plan, run=row in asked) for row in order}
    outcomes = [(row, found[row.name]) for row in shown]
    sys.stdout.write((markdown if arguments.markdown else listing)(outcomes, plan) + "\n")
    if any(isinstance(outcome, str) for outcome in found.values()):
        return FAILED
    verdicts = {judge(row, one)[0] for row, one in outcomes if row.published and isinstance(one, Result)}
    return 0 if verdicts <= {REPRODUCED} else NOT_REPRODUCED


def find_outcome(row: Row, plan: Plan, *, run: bool) -> Result | str | None:
    """What a row scored, after running what is missing of it if `run`; None if it was not run, a text if it cannot be
    run or compared."""
    try:
        if run:
            for split in splits_of(row):
                if _end_of(row, plan, split) is None:
                    _start(plan.training(row, split))
            if row.test and _test_of(row, plan) is None:
                _start(plan.testing(row))
        return find_result(row, plan)
    except (UserError, ConfigError) as error:  # the other rows may do
        sys.stderr.write(f"error: {row.name}: {one_line(error)}\n")
        return one_line(error)


def _start(command: Sequence[str]) -> None:
    logger.info("%s", spelled(command))
    script, *words = command
    if words[0] == "--config_file":  # printed as seen from the repository, where this may not have been started
        words[1] = str(ROOT / words[1])
    SCRIPTS[script](words)


def find_result(row: Row, plan: Plan) -> Result | None:
    """What a finished row scored; None if some of it is still to be run.

    Raises:
        UserError: a folder holds a run with other settings, or a damaged file.
    """
    found = [_end_of(row, plan, split) for split in splits_of(row)]
    if row.test and None not in found:
        found = [_test_of(row, plan)]
    entries = [entry for entry in found if entry is not None]
    if len(entries) < len(found):
        return None
    remarks = [f"mean of {len(entries)} splits"] if row.splits else []
    remarks.append(str(Refinement.of(entries[0])) or "not re-ranked")
    if row.data_set == "msmt17":  # by the folder that it was trained from, wherever --root is now
        root = read_config(plan.folder(row.trained or row))["DATASETS"]["ROOT_DIR"]
        remarks.append(f"MSMT17 {version_of_msmt17(Path(root).expanduser())}")
    published = replace(plan, overrides=()).config(row)
    if departures := differences(plan.config(row), published, besides=NO_DEPARTURE):
        remarks.append(f"not the published recipe: {', '.join(departures)}")
    return Result({name: 100 * fmean(entry[name] for entry in entries) for name in TOLERANCE}, remarks)


def _end_of(row: Row, plan: Plan, split: int = 0) -> dict | None:
    """The evaluation after the training, or after that of one split; None if it has not ended."""
    folder, wanted = plan.folder(row.trained or row, split), plan.config(row, split)
    if not any((folder / name).exists() for name in (CONFIG, RESULTS)):
        return None
    trained = from_dict(read_config(folder), where=str(folder / CONFIG))
    if others := list(differences(trained, wanted, besides=NO_DEPARTURE)):
        raise UserError(
            f"{folder}: holds a run with other settings ({', '.join(others)}); move it away, or give another --output"
        )
    return next((entry for entry in _entries(folder, END) if row.test or row.entry.items() <= entry.items()), None)


def _test_of(row: Row, plan: Plan) -> dict | None:
    """The latest test of the trained network with the row's settings; None if there is none."""
    overrides = (*plan.training(row)[3:], *_words(row.test))
    wanted, network = refinement_of(_settings(ROOT / row.config, overrides)), plan.checkpoint(row).parts[-2:]
    for entry in _entries(plan.folder(row), "test"):
        tested = Path(str(entry.get("checkpoint"))).parts[-2:]
        if tested == network and Refinement.of(entry) == wanted and row.entry.items() <= entry.items():
            return entry
    return None


def _entries(folder: Path, when: str) -> list[dict]:
    """The evaluations of this kind in a folder's results file, the latest first."""
    return [entry for entry in reversed(read_results(folder / RESULTS)["evaluations"]) if entry["when"] == when]


def judge(row: Row, result: Result) -> tuple[str, Figures]:
    """Compare with the published figures, at their one decimal -> the verdict, and ours - published in points."""
    off = {name: round(round(result.figures[name], 1) - value, 1) for name, value in row.published.items()}
    if any(difference < -TOLERANCE[name] for name, difference in off.items()):
        return BELOW, off
    return ABOVE if any(difference > TOLERANCE[name] for name, difference in off.items()) else REPRODUCED, off


# ------------------------------------------------------------------------------------------------------ what is shown


def listing(outcomes: Outcomes, plan: Plan) -> str:
    """A paragraph for every row, with what it needs."""
    read: dict[tuple, str] = {}  # a data set is read once, not once a row
    paragraphs = []
    for row, outcome in outcomes:
        cfg, files = plan.config(row), (row.data_set, *row.files)
        read[files] = read.get(files) or images(cfg)
        lines = [
            *facts(row, outcome).items(),
            *(("command", command) for command in commands(row, plan)),
            *(("source", row.source), ("images", read[files]), ("weights", weights(cfg))),
            *([("note", row.note)] if row.note else []),
        ]
        paragraphs.append("\n".join([row.name, *(f"  {title:10}  {text}" for title, text in lines)]))
    return "\n\n".join(paragraphs)


def markdown(outcomes: Outcomes, plan: Plan) -> str:
    """The table of docs/results.md."""
    rows = [
        {**facts(row, outcome), "command": ", then ".join(commands(row, plan, mark="`"))} for row, outcome in outcomes
    ]
    return report.markdown([list(rows[0]), *(list(row.values()) for row in rows)])


def facts(row: Row, outcome: Result | str | None) -> dict[str, str]:
    """What is said of a row, by its title."""
    published = (figures(row.published) or "not at hand") + " (unverified)" * row.unverified
    ours = f"error: {outcome}" if outcome else "not yet run"
    if isinstance(outcome, Result):
        verdict, off = judge(row, outcome)
        compared = [f"{verdict}: {figures(off, '+')}"] if off else []
        ours = "; ".join([figures(outcome.figures), *compared, *outcome.remarks])
    return {"data set": DATA_SETS[row.data_set][0], "method": row.method, "published": published, "ours": ours}


def commands(row: Row, plan: Plan, mark: str = "") -> list[str]:
    """The commands as one types them, between marks; of those that differ in the split, the first."""
    more = f", and so for each split up to {row.splits}" if row.splits else ""
    return [f"{mark}{spelled(command)}{mark}{more}" for command in plan.commands(row)[:: row.splits or 1]]


def spelled(command: Sequence[str]) -> str:
    """A command as one types it."""
    return shlex.join(["python", *command])


def figures(values: Figures, sign: str = "") -> str:
    """mAP 89.6, rank-1 95.5"""
    return ", ".join(f"{COLUMNS[name]} {value:{sign}.1f}" for name, value in values.items())


def images(cfg: CfgNode) -> str:
    """Whether the images are there, by what the reader says."""
    try:
        said = f"there: {make_benchmark(cfg).counts()}"
    except UserError as error:
        return f"missing ({one_line(error)})"
    root = Path(cfg.DATASETS.ROOT_DIR).expanduser()
    return said + (f", MSMT17 {version_of_msmt17(root)}" if cfg.DATASETS.NAMES == "msmt17" else "")


def weights(cfg: CfgNode) -> str:
    """Where the weights that training starts from are looked for, and whether they are there."""
    name, source = cfg.MODEL.NAME, cfg.MODEL.INIT_FROM or cfg.MODEL.PRETRAIN
    tag, fetched = None, on_hub(source)
    if not cfg.MODEL.INIT_FROM:
        if source == NONE:
            return f"{source}: training starts from random numbers"
        tag = hub.get_pretrained_cfg(name, source)
        fetched = bool(tag) or (name.startswith(TIMM) and source in tags_of(name.removeprefix(TIMM)))
        if (name, source) == (tiny_clip.NAME, tiny_clip.TAG):
            source = str(tiny_clip.FILE)
    there = cached(tag) if tag else None
    if fetched:
        return f"{there}: there" if there else f"{source}: training fetches what is not on this machine"
    return f"{source}: {'there' if Path(source).expanduser().exists() else 'missing'}"


def version_of_msmt17(root: Path) -> str:
    """V1, V2 or that it is unknown, also where the images are gone."""
    try:
        return msmt17_version(root)
    except UserError:
        return UNKNOWN


if __name__ == "__main__":
    sys.exit(run_script(main))
