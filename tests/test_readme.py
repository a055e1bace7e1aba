"""README and documents: commands are read by the real parsers, Python is run, names and links exist."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from PIL import Image

from configs import load, to_dict
from configs.defaults import defaults
from configs.published import DROPPED, FLAT
from datasets.build import BENCHMARKS
from datasets.names import SEVERAL
from model.build import make_model
from tests.builders import benchmark
from tools import reproduce
from tools.demo.render import rendered_benchmark
from utils import records
from utils.checkpoint import save_checkpoint
from utils.command import parse

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
EVERYTHING = "\n".join(DOCUMENTS.values())
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = ("python", "torchrun", "make", "pip")


def commands() -> Iterator[str]:
    """Those in blocks, and those within text."""
    for language, block in BLOCK.findall(EVERYTHING):
        if language == "bash":
            yield from (part for line in block.splitlines() for part in line.split(" && "))
    spans = re.findall(r"`([^`\n]+)`", BLOCK.sub("", EVERYTHING))
    yield from (span for span in spans if span.startswith(tuple(f"{program} " for program in PROGRAMS)))


COMMANDS = sorted(set(commands()))


def test_the_readme_is_short_and_begins_with_the_demo():
    assert len(DOCUMENTS["README.md"].splitlines()) <= 200
    assert "make demo" in next(block for _, block in BLOCK.findall(DOCUMENTS["README.md"]))
    assert sum("train_svllreid.py --config_file" in command for command in COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood(command, tmp_path, monkeypatch):
    program, *words = shlex.split(command, comments=True)
    for place, (before, word) in enumerate(itertools.pairwise(["", *words])):  # tools look whether a file is there
        if before == "DATASETS.ROOT_DIR":
            words[place] = word = str(tmp_path / word.lstrip("/"))
        if word.endswith("/") or (before == "DATASETS.ROOT_DIR" and not word.endswith(".csv")):
            (tmp_path / word).mkdir(parents=True, exist_ok=True)
        elif word == "my_images":
            (tmp_path / word).mkdir()
        elif "tools.split_dataset" in words or ("tools.convert_checkpoint" in words and place == 3):
            pass  # what they write is not there
        elif word.endswith((".pth", ".jpg", ".csv", ".npz")):
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).touch()
    monkeypatch.chdir(tmp_path)
    if program == "torchrun":
        assert words[0] == "--nproc_per_node" and words[1].isdigit()
        program, words = "python", words[2:]
    if program == "make":
        done = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif program == "pip":
        assert words[:2] == ["install", "-r"] and (ROOT / words[2]).is_file()
    elif program == "python" and words[0] == "-m":
        understand_module(words[1], words[2:])
    elif program == "python":
        assert (ROOT / words[0]).is_file()
        understand_settings(words[1:])
    else:
        assert command == ". .venv/bin/activate"


def understand_settings(words: list[str]) -> None:
    """The words of a script's command line."""
    if {"--help-keys", "--print_config"} & set(words):  # which are answered
        with pytest.raises(SystemExit) as left:
            parse("", [str(ROOT / word) if word.endswith(".yml") else word for word in words])
        assert not left.value.code
        return
    parsed = parse("", words)
    cfg = load(ROOT / parsed.config_file if parsed.config_file else None, parsed.overrides)
    assert set(cfg.DATASETS.NAMES.split(SEVERAL)) <= BENCHMARKS.keys()


def program(name: str) -> ModuleType:
    """What `python -m NAME` runs."""
    module = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module


def understand_module(name: str, words: list[str]) -> None:
    """The words after python -m NAME."""
    if name in ("venv", "pytest", "tests.mutations"):
        assert all(not word.startswith("tests/") or (ROOT / word).is_file() for word in words)
        return
    tool = program(name)
    words = [str(ROOT / word) if word.endswith(".yml") else word for word in words]
    getattr(tool, "read_command_line", tool.main)(words)


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory) -> Path:
    """A folder as it is after the demo, with two images."""
    folder = tmp_path_factory.mktemp("demo")
    cfg = load(ROOT / "configs/demo/vit_svllreid.yml", [])
    model = make_model(cfg, benchmark())
    facts = {"stage": "image", "epoch": 12, "config": to_dict(cfg), "prompts_trained": True}
    path = folder / f"runs/demo/{cfg.MODEL.NAME}_{cfg.SOLVER.STAGE2.MAX_EPOCHS}.pth"
    path.parent.mkdir(parents=True)
    save_checkpoint(path, {**facts, "model": model.state_dict(), "architecture": model.architecture, "fingerprint": {}})
    for name, colour in (("a.jpg", "red"), ("b.jpg", "blue")):
        Image.new("RGB", (40, 80), colour).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def after_training(tmp_path_factory) -> Path:
    """A folder with all that the commands of docs/use.md name, but for data sets and weights of others."""
    folder = tmp_path_factory.mktemp("after")
    words = ["DATASETS.SYNTHETIC.TRAIN_IMAGES", "1", "MODEL.DEVICE", "cpu"]
    cfg = load(ROOT / "configs/demo/vit_svllreid.yml", [*words, "DATASETS.ROOT_DIR", str(folder / "data")])
    data = rendered_benchmark(cfg)
    model = make_model(cfg, data)
    model.prompts.trained = True
    contents = {"model": model.state_dict(), "architecture": model.architecture, "prompts_trained": True}
    for name in (
        "demo/ViT-Tiny-8_12",
        "demo/ViT-Tiny-8_stage1_10",
        *(f"{run}/ViT-B-16_60" for run in ("market", "a", "b")),
    ):
        path = folder / f"runs/{name}.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, {**contents, "config": to_dict(cfg), "fingerprint": {}})
    query, gallery = ([Path(sample.path) for sample in side] for side in data.trials[0])
    named = {"a.jpg": query[0], "b.jpg": query[1], "query.jpg": query[5]}
    named |= {f"queries/{path.name}": path for path in query[8:10]}
    for name, some in (("gallery", gallery[:40]), ("more", gallery[40:44]), ("others", gallery[100:130])):
        named |= {f"{name}/{path.name}": path for path in some}
    named |= {"my_images/{}/{}_{}".format(*path.name.split("_", 2)): path for path in gallery[:32]}
    named |= {f"data/synthetic-256x6-64x12-d1.7-s1/bounding_box_test/{path.name}": path for path in gallery[:4]}
    for name, path in named.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / name)
    (folder / "pairs.csv").write_text(f"a.jpg,b.jpg\nquery.jpg,queries/{query[8].name}\n")
    return folder


ELSEWHERE = (  # what others have: data sets, the Hub, servers, weights; and the page, which has a test in a browser
    *("/data", "hf-hub:", "--push", "http://", "isr_swin_base.pth", "tools.app"),
)


@pytest.mark.slow
@pytest.mark.parametrize("document", ["docs/use.md", "README.md"])
def test_commands_after_training_run_one_after_the_other(document, after_training, tmp_path, monkeypatch):
    text = DOCUMENTS[document]
    if document == "README.md":
        text = text.partition("## Use your model")[2].partition("\n## ")[0]
    lines = [line for language, block in BLOCK.findall(text) if language == "bash" for line in block.splitlines()]
    chosen = [line for line in lines if line.startswith("python") and not any(word in line for word in ELSEWHERE)]
    assert len(chosen) > 8
    monkeypatch.chdir(shutil.copytree(after_training, tmp_path / "here"))
    for line in chosen:
        _, _, name, *words = shlex.split(line, comments=True)
        assert not program(name).main(words), line


PYTHON = [block for language, block in BLOCK.findall(EVERYTHING) if language == "python"]


@pytest.mark.parametrize("block", PYTHON)
def test_python_runs(block, demo_folder, monkeypatch):
    monkeypatch.chdir(demo_folder)
    names: dict = {}
    exec(block, names)
    if "similarity" in names:
        assert -1 < names["similarity"] < 1 and torch.isfinite(names["similarity"])


def test_there_is_python():
    assert any("load_model" in block for block in PYTHON)


def test_own_images_are_split_and_checked_as_the_readme_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for identity, camera, seen in product(range(32), (1, 2), (1, 2)):  # a batch takes 16 identities
        path = tmp_path / f"my_images/{identity}/c{camera}_{seen:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 64), (8 * identity, 100 * camera, 100 * seen)).save(path)
    _, _, after = DOCUMENTS["README.md"].partition("## Your own images")
    tools = [shlex.split(line, comments=True) for line in BLOCK.search(after)[2].splitlines() if "-m tools" in line]
    assert [words[2] for words in tools] == ["tools.split_dataset", "tools.check_dataset"]
    for _, _, name, *words in tools:
        words = [str(ROOT / word) if word.endswith(".yml") else word for word in words]
        assert not program(name).main(words)


def test_the_table_of_published_numbers_is_the_tools_own(tmp_path, capsys):
    assert reproduce.main(["--markdown", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.replace(str(tmp_path), "runs/reproduce") in DOCUMENTS["docs/results.md"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", DOCUMENTS[name]):
        path = ((ROOT / name).parent / target) if target else ROOT / name
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, anchor


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_within_the_repository_exist(name):
    top = "configs|utils|datasets|model|loss|solver|processor|tools|tests|docs"
    for path in re.findall(rf"`((?:{top})/[\w./]*)`", DOCUMENTS[name]):
        pattern = re.sub(r"NAME|DATASET", "*", path)  # files that somebody is told to write
        assert list(ROOT.glob(pattern.rstrip("/"))), path


def test_every_key_that_is_named_exists():
    keys = set(
        re.findall(r"\b(?:MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|PROCESSOR)\.[A-Z0-9_.]*[A-Z0-9]", EVERYTHING)
    )
    assert len(keys) > 40
    for key in keys - FLAT.keys() - DROPPED.keys():  # the published programs' keys are named as such
        if "NAME" in key.split("_"):
            continue
        node = defaults()
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def test_the_citation_can_be_read():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] and cited["title"] and cited["authors"] and cited["message"]
    assert cited["preferred-citation"]["title"] in re.sub(r"\s+", " ", DOCUMENTS["README.md"])


def test_the_interface_is_where_the_architecture_says():
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (.*) \|$", DOCUMENTS["docs/architecture.md"], re.MULTILINE)
    assert len(rows) > 15
    for path, row in rows:
        module = importlib.import_module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        for name in re.findall(r"`(\w+)`", row):
            assert hasattr(module, name), f"{path}: {name}"


def test_the_recipes_name_tables_that_are_there():
    recipes = DOCUMENTS["docs/architecture.md"].partition("## Adding")[2]
    steps = re.findall(r"^\d\. `([\w/]+\.py)`: (.*?)(?=^\d\.|^$)", recipes, re.MULTILINE | re.DOTALL)
    tables = [(path, name) for path, step in steps for name in re.findall(r"`([A-Z][A-Z_]+)`", step)]
    assert {"TOWERS", "TERMS", "BENCHMARKS", "MAKE_STAGE"} <= {name for _, name in tables}
    for path, name in tables:
        assert hasattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name), f"{path}: {name}"


def test_every_record_is_in_the_table():
    rows = set(re.findall(r"^\| `([A-Z]\w+)` \|", DOCUMENTS["docs/architecture.md"], re.MULTILINE))
    assert rows and all(hasattr(records, name) for name in rows)
