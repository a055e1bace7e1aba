"""What the README tells people to type, and every name in it."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from configs import load
from configs.defaults import defaults
from configs.published import DROPPED, FLAT
from datasets.build import BENCHMARKS, SEVERAL
from tools import reproduce
from utils.command import parse

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"(?:python|make) [^`\n]*", README)))


def words_of(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def test_the_commands_were_found():
    assert {"make demo", "make test"} <= {" ".join(words_of(command)) for command in COMMANDS}
    assert sum("train_svllreid.py --config_file" in command for command in COMMANDS) >= 5


@pytest.mark.parametrize("command", [c for c in COMMANDS if "svllreid.py" in c])
def test_scripts_take_the_command_and_its_settings(command):
    _, name, *arguments = words_of(command)
    assert (ROOT / name).is_file()
    parsed = parse("", arguments)
    cfg = load(ROOT / parsed.config_file if parsed.config_file else None, parsed.overrides)
    assert set(cfg.DATASETS.NAMES.split(SEVERAL)) <= BENCHMARKS.keys()


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-m tools." in c])
def test_tools_exist(command):
    module = re.search(r"-m (tools\.\w+)", command)[1]
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command):
    target = words_of(command)[1].rstrip(",.")
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_table_of_published_numbers_is_the_tools_own(tmp_path, capsys):
    assert reproduce.main(["--markdown", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.replace(str(tmp_path), "runs/reproduce") in README


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_key_that_is_named_exists():
    keys = set(re.findall(r"\b(?:MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|PROCESSOR)\.[A-Z0-9_.]*[A-Z0-9]", README))
    assert len(keys) > 12
    for key in keys - FLAT.keys() - DROPPED.keys():  # the published programs' keys are named as such
        node = defaults()
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def test_the_knobs_are_where_the_readme_says():
    for key in ("SOLVER.STAGE1.SSL_LOSS_WEIGHT", "SOLVER.STAGE2.SSL_LOSS_WEIGHT", "INPUT.RE_PROB"):
        assert f"`{key}`" in README
