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
import functools
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import yaml

from utils.command import FAILED, add_settings, answer_early, new_parser, run_script

OUTPUT, ALL = Path("runs/reproduce"), "all"
Figures = dict[str, float]  # in per cent, under the names of results.json


@dataclass(frozen=True)
class Row:
    """A published line, and how this program gets there; see tools/reproduce.yml."""

    name: str  # what --run takes, and the start of the folder's name
    data_set: str
    method: str
    config: str
    source: str
    settings: Mapping[str, str] | None = None
    files: Mapping[str, str] | None = None
    published: Figures | None = None
    unverified: bool = False
    trained: Row | None = None
    test: Mapping[str, str] | None = None  # of a network of another row
    variant: str = ""  # of the data set that is tested on, in results.json
    part: str = ""  # of the data set, that the figures are of, in results.json
    splits: int = 0  # of the data set: a training each, and the figures are means
    note: str = ""


def read_table(path: Path) -> tuple[dict[str, dict[str, str]], dict[str, Row]]:
    """The data sets (title; place, below DATASETS.ROOT_DIR) and rows of a table, by name."""
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows: dict[str, Row] = {}
    for name, fields in table["rows"].items():
        rows[name] = Row(name, **{**fields, "trained": rows.get(fields.get("trained"))})
    return table["data_sets"], rows


DATA_SETS, ROWS = read_table(Path(__file__).with_suffix(".yml"))


# How many points a figure may be off; rank-k moves more from seed to seed, as a query counts all or nothing.
TOLERANCE = {"mAP": 0.5, "rank1": 1.0, "rank5": 1.0}


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
    return parser.parse_args(argv)


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from open_clip import pretrained as hub
from yacs.config import CfgNode

import test_svllreid
import train_svllreid
from configs import ConfigError, differences, from_dict, load
from configs.stages import STAGES
from datasets.build import make_benchmark
from datasets.msmt17 import UNKNOWN, msmt17_version
from model import pretrained, tiny_clip
from processor.build.place import checkpoint_name
from utils import report
from utils.errors import UserError, one_line
from utils.logs import log_to_screen
from utils.records import Refinement, Reranking
from utils.report import COLUMNS
from utils.run import CONFIG, RESULTS
from utils.run.folder import read_config
from utils.run.results import END, read_results

logger = logging.getLogger("reproduce")
ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"train_svllreid.py": train_svllreid.main, "test_svllreid.py": test_svllreid.main}
REPRODUCED, BELOW, ABOVE = "reproduced", "below", "above"
NOT_REPRODUCED = 1  # exit code
NOT_AT_HAND, NOT_YET = "not at hand", "not yet run"
SHOWN = ("mAP", "rank1", "rank5")
# Keys that a row or an option decides on; the published figures are of the test split.
OWNED = (
    *("OUTPUT_DIR", "DATASETS.ROOT_DIR", "SOLVER.SEED", "DATASETS.NAMES", "DATASETS.HOLD_OUT"),
    *("DATASETS.SYSU_MODE", "DATASETS.REGDB_SPLIT"),
    *("TEST.WEIGHT", "TEST.FLIP", "TEST.AQE", "TEST.RE_RANKING"),
)
# Settings that say where, on what and how often something is logged, not how a number comes about.
NO_DEPARTURE = (
    *("OUTPUT_DIR", "DATASETS.ROOT_DIR", "DATALOADER.NUM_WORKERS", "MODEL.DEVICE", "TEST.IMS_PER_BATCH"),
    "_PERIOD",
)


class Result(NamedTuple):
    """A row that has been run."""

    figures: Figures
    refinement: Refinement = Refinement()
    version: str | None = None  # of MSMT17; None for other data sets
    runs: int = 1  # that the figures are means of
    checkpoint: str | None = None


Outcomes = Mapping[str, Result | str | None]  # by row: what it scored, why it cannot be said, or that it was not run


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
            **(row.settings or {}),
            **({"DATASETS.REGDB_SPLIT": str(split)} if split else {}),
            **{"DATASETS.NAMES": row.data_set, "DATASETS.ROOT_DIR": self.root},
            "OUTPUT_DIR": str(self.folder(row, split)),
            **({} if self.seed is None else {"SOLVER.SEED": str(self.seed)}),
            **{key: f"{self.root}/{file}" for key, file in (row.files or {}).items()},
        }
        words = (word for pair in settings.items() for word in pair)
        return ("train_svllreid.py", "--config_file", row.config, *words, *self.overrides)

    def testing(self, row: Row) -> tuple[str, ...]:
        """What tests the network of another row."""
        places = ("DATASETS.ROOT_DIR", self.root, "OUTPUT_DIR", str(self.folder(row)))
        settings = (word for pair in row.test.items() for word in pair)
        return ("test_svllreid.py", "TEST.WEIGHT", str(self.checkpoint(row)), *settings, *places, *self.overrides)

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
        stage = STAGES[cfg.PROCESSOR.STAGES[-1]]
        name = checkpoint_name(cfg.PROCESSOR.STAGES, len(cfg.PROCESSOR.STAGES) - 1, cfg.MODEL.NAME)
        return self.folder(row.trained or row) / name.format(epoch=stage.epochs(cfg))

    def departures(self, row: Row) -> list[str]:
        """What the overrides change of the published recipe."""
        return list(differences(self.config(row), replace(self, overrides=()).config(row), besides=NO_DEPARTURE))


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
    if owned := [key for key in plan.overrides[::2] if key in OWNED]:
        raise UserError(f"{owned[0]}: invalid as a setting of all commands; the row or an option sets it")
    if not arguments.run and plan.output != OUTPUT and not plan.output.expanduser().is_dir():
        raise UserError(f"--output {plan.output}: there is no such folder, and so there are no runs in it")
    log_to_screen()
    for row in ROWS.values():
        plan.config(row)  # a wrong override is named before anything is run

    asked = [row for row in ROWS.values() if {ALL, row.name} & set(arguments.run)]
    shown = list(ROWS.values()) if arguments.markdown or not asked else asked
    # First what is run: a network may be that of two rows.
    order = sorted(shown, key=lambda row: row not in asked)
    outcomes = {row.name: find_outcome(row, plan, run=row in asked) for row in order}
    write = markdown if arguments.markdown else listing
    sys.stdout.write(write(shown, plan, outcomes) + "\n")
    if not arguments.markdown:
        sys.stdout.write(comparisons(shown, plan, outcomes))
    if any(isinstance(outcome, str) for outcome in outcomes.values()):
        return FAILED
    verdicts = {judge(row, outcomes[row.name])[0] for row in shown if row.published and outcomes[row.name]}
    return 0 if verdicts <= {REPRODUCED} else NOT_REPRODUCED


def comparisons(rows: Sequence[Row], plan: Plan, outcomes: Outcomes) -> str:
    """Of the networks that were trained on a data set, the command that compares them query by query."""
    networks: dict[str, dict[str, None]] = {}
    for row in rows:
        outcome = outcomes[row.name]
        if isinstance(outcome, Result) and outcome.checkpoint and outcome.runs == 1:
            networks.setdefault(row.data_set, {})[outcome.checkpoint] = None
    lines = []
    for data_set, weights in networks.items():
        if len(weights) > 1:
            words = [word for weight in weights for word in ("--weight", weight)]
            places = ["--data", data_set, "DATASETS.ROOT_DIR", plan.root]
            lines.append(f"how sure the differences are: python -m tools.compare {shlex.join([*words, *places])}\n")
    return "".join(lines)


def find_outcome(row: Row, plan: Plan, *, run: bool) -> Result | str | None:
    """What a row scored, after running what is missing of it if `run`; None if it was not run, a text if it cannot be
    run or compared."""
    try:
        if run:
            reproduce(row, plan)
        return find_result(row, plan)
    except (UserError, ConfigError) as error:  # the other rows may do
        sys.stderr.write(f"error: {row.name}: {one_line(error)}\n")
        return one_line(error)


def reproduce(row: Row, plan: Plan) -> None:
    """Run what is missing of a row.

    Raises:
        UserError: a folder that holds something else than this row's finished run, and all that training and testing
            raise.
    """
    if find_result(row, plan) is not None:
        logger.info("%s: has been run", row.name)
        return
    for split in splits_of(row):
        if _find_training(row, plan, split) is None:
            _start(plan.training(row, split))
    if row.test:
        _start(plan.testing(row))


def _start(command: Sequence[str]) -> None:
    logger.info("%s", spelled(command))
    script, *words = command
    if words[0] == "--config_file":  # printed as seen from the repository, where this may not have been started
        words[1] = str(ROOT / words[1])
    SCRIPTS[script](words)


def images(cfg: CfgNode) -> str:
    """Where the images are looked for, and what the reader says."""
    name, root = cfg.DATASETS.NAMES, Path(cfg.DATASETS.ROOT_DIR).expanduser()
    try:
        said = f"there: {make_benchmark(cfg).counts()}"
    except UserError as error:
        said = f"missing ({one_line(error)})"
    else:
        said += f", MSMT17 {version_of_msmt17(root)}" if name == "msmt17" else ""
    return f"{root}/{DATA_SETS[name]['place']}: {said}"


def weights(cfg: CfgNode) -> str:
    """Where CLIP's weights are looked for, and whether they are there."""
    name, source = cfg.MODEL.NAME, cfg.MODEL.INIT_FROM or cfg.MODEL.PRETRAIN
    if tag := hub.get_pretrained_cfg(name, source):
        file = pretrained.cached(tag)
        return f"{file}: there" if file else f"{pretrained.address(tag)}: not here yet, downloaded by training"
    if source in (pretrained.NONE, tiny_clip.TAG):
        return f"{source}: nothing is downloaded"
    return f"{source}: {'there' if Path(source).expanduser().is_file() else 'missing'}"


def version_of_msmt17(root: Path) -> str:
    """V1, V2 or that it is unknown, also where the images are gone."""
    try:
        return msmt17_version(root)
    except UserError:
        return UNKNOWN


def find_result(row: Row, plan: Plan) -> Result | None:
    """What a finished row scored; None if it was never started, or was interrupted.

    Raises:
        UserError: its folder holds something else: other settings, another network's test, or a damaged file.
    """
    if row.test:
        return _find_test(row, plan)
    found = [_find_training(row, plan, split) for split in splits_of(row)]
    if None in found:
        return None
    means = {name: sum(one.figures[name] for one in found) / len(found) for name in SHOWN}
    return found[0]._replace(figures=means, runs=len(found))


def _find_training(row: Row, plan: Plan, split: int = 0) -> Result | None:
    folder, wanted = plan.folder(row.trained or row, split), plan.config(row, split)
    if not any((folder / name).exists() for name in (CONFIG, RESULTS)):
        return None
    trained = from_dict(read_config(folder), where=str(folder / CONFIG))
    if others := list(differences(trained, wanted, besides=NO_DEPARTURE)):
        raise UserError(
            f"{folder}: holds a run with other settings ({', '.join(others)}); move it away, or give another --output"
        )
    entry = _last(folder, END, row.part)
    if entry is None:
        return None
    # By the folder that it was trained from, wherever --root is now.
    root = Path(trained.DATASETS.ROOT_DIR).expanduser()
    version = version_of_msmt17(root) if row.data_set == "msmt17" else None
    return Result(_figures(entry), Refinement.of(entry), version, checkpoint=entry.get("checkpoint"))


def _find_test(row: Row, plan: Plan) -> Result | None:
    folder, trained, cfg = plan.folder(row), plan.folder(row.trained), plan.config(row)
    training, test = find_result(row.trained, plan), _last(folder, "test")
    if test is None:
        return None
    end = _last(trained, END) or {}
    images = ((entry.get("data_fingerprint") or {}).get("test") for entry in (test, end))
    network = Path(str(test.get("checkpoint"))).parts[-2:] == plan.checkpoint(row).parts[-2:]
    same = (test.get("variant") or "") == row.variant if row.variant else len(set(images)) == 1
    if training is None or not network or not same:
        raise UserError(f"{folder}: holds a test of another network or of other images than {trained}; move it away")
    reranking = Reranking(cfg.TEST.RE_RANKING_K1, cfg.TEST.RE_RANKING_K2, cfg.TEST.RE_RANKING_LAMBDA)
    wanted = Refinement(re_ranking=reranking if "TEST.RE_RANKING" in row.test else None)
    done = Refinement.of(test)
    if done != wanted:
        was, right = str(done) or "not re-ranked", str(wanted) or "nothing of that"
        raise UserError(f"{folder / RESULTS}: the test was {was}; expected {right}")
    return Result(_figures(test), done, training.version)


def _last(folder: Path, when: str, part: str = "") -> dict | None:
    """The latest evaluation of this kind, on this part of the data set, in a folder's results file."""
    evaluations = read_results(folder / RESULTS)["evaluations"]
    fitting = (entry for entry in reversed(evaluations) if entry["when"] == when)
    return next((entry for entry in fitting if not part or entry["data_set"] == part), None)


def _figures(entry: Mapping) -> Figures:
    return {name: 100 * entry[name] for name in SHOWN}


def judge(row: Row, result: Result) -> tuple[str, Figures]:
    """Compare with the published figures, at their one decimal -> the verdict, and ours - published in points."""
    off = {name: round(round(result.figures[name], 1) - value, 1) for name, value in row.published.items()}
    if any(difference < -TOLERANCE[name] for name, difference in off.items()):
        return BELOW, off
    return ABOVE if any(difference > TOLERANCE[name] for name, difference in off.items()) else REPRODUCED, off


def listing(shown: Sequence[Row], plan: Plan, outcomes: Outcomes) -> str:
    """A paragraph for every row."""
    data: dict[tuple, str] = {}  # a data set is read once, not once a row
    paragraphs = []
    for row in shown:
        cfg = plan.config(row)
        files = row.data_set, *(row.files or ())
        data[files] = data.get(files) or images(cfg)
        published = f"{figures(row.published)}{' (unverified)' * row.unverified}" if row.published else NOT_AT_HAND
        lines = [
            ("data set", DATA_SETS[row.data_set]["title"]),
            ("method", row.method),
            ("published", published),
            *(("command", command) for command in shown_commands(row, plan)),
            ("source", row.source),
            ("images", data[files]),
            ("CLIP weights", weights(cfg)),
            *([("note", row.note)] if row.note else []),
            ("ours", ours(row, outcomes[row.name], plan)),
        ]
        paragraphs.append("\n".join([row.name, *(f"  {title:12}  {text}" for title, text in lines)]))
    return "\n\n".join(paragraphs)


def markdown(shown: Sequence[Row], plan: Plan, outcomes: Outcomes) -> str:
    """The table of docs/results.md."""
    rows = [["data set", "method", "published", "ours", "command"]]
    for row in shown:
        published, remarks = row.published or {}, ["unverified"] * row.unverified
        if published and "mAP" not in published:
            remarks.insert(0, " / ".join(COLUMNS[name] for name in published))
        cells = [
            DATA_SETS[row.data_set]["title"],
            row.method,
            (" / ".join(map(str, published.values())) or NOT_AT_HAND) + (f" ({', '.join(remarks)})" if remarks else ""),
            ours(row, outcomes[row.name], plan),
            ", then ".join(shown_commands(row, plan, mark="`")),
        ]
        rows.append(cells)
    return report.markdown(rows)


def shown_commands(row: Row, plan: Plan, mark: str = "") -> list[str]:
    """The commands as one types them; of those that differ in the split, the first."""
    more = f", and so for each split up to {row.splits}" if row.splits else ""
    commands = [plan.training(row, splits_of(row)[0]), *plan.commands(row)[len(splits_of(row)) :]]
    return [f"{mark}{spelled(command)}{mark}{more}" for command in commands]


def spelled(command: Sequence[str]) -> str:
    """A command as one types it."""
    return shlex.join(["python", *command])


def figures(values: Figures, sign: str = "") -> str:
    """mAP 89.6, rank-1 95.5"""
    return ", ".join(f"{COLUMNS[name]} {value:{sign}.1f}" for name, value in values.items())


def ours(row: Row, outcome: Result | str | None, plan: Plan) -> str:
    """What this program scored, with all that a reader must know to compare it."""
    if not isinstance(outcome, Result):
        return f"error: {outcome}" if outcome else NOT_YET
    words = [figures(outcome.figures)]
    if row.published is None:
        words.append("nothing to compare it with")
    else:
        verdict, off = judge(row, outcome)
        limits = f"tolerance {TOLERANCE['mAP']:g} of mAP, {TOLERANCE['rank1']:g} of rank-k"
        unverified = ", and the published figures are unverified" if row.unverified else ""
        words.append(f"{verdict}: {figures(off, '+')} ({limits}{unverified})")
    if outcome.runs > 1:
        words.append(f"mean of {outcome.runs} splits")
    words.append(str(outcome.refinement) or "not re-ranked")
    if outcome.version:
        words.append(f"MSMT17 {outcome.version}")
    if departures := plan.departures(row):
        words.append(f"not the published recipe: {', '.join(departures)}")
    return "; ".join(words)


if __name__ == "__main__":
    sys.exit(run_script(main))
