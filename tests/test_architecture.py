"""Who may import whom, where the config is opened, who may print, name a device or unpickle."""

import ast
import ctypes
import platform
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import SimpleNamespace

import pytest

import train_svllreid
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    **{"configs": 0},
    **{"utils": 1},
    **{"datasets": 2, "model": 2, "loss": 2, "solver": 2},
    **{"processor": 3},
    **{"train_svllreid": 4, "test_svllreid": 4, "tools": 4},
}
TOP = 4
# Of a run: its settings, and what of them may change.
OPENS = {f"processor/{name}.py" for name in ("run", "resume", "result", "transfer", "inference")}
# Of the configuration's folder, but without its settings: any module may import them.
TABLES = ("configs.stages", "configs.help")
# Where a device is named for a reason.
DEVICES_NAMED = {
    "utils/devices.py": {"cpu", "cuda", "mps"},  # the one place that knows them
    "tools/benchmark/input.py": {"cpu"},  # textbooks transform pictures where they are decoded
}


def sources() -> dict[str, str]:
    paths = [*ROOT.glob("*.py"), *(path for folder in FLOORS for path in (ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


def owner(path: str) -> str:
    return path.partition("/")[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module imports; functions' own imports, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and _name(node.func) in ("__import__", "importlib.import_module"):
            yield node.lineno, "(computed)"


def _name(node: ast.AST) -> str:
    """a.b.c of an expression that is one, else an empty text."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and _name(node.value):
        return f"{_name(node.value)}.{node.attr}"
    return ""


@pytest.mark.parametrize("module", ["train_svllreid", "tools.demo.compare_methods"])
def test_threads_and_memory_are_set_up_before_torch_is_loaded(module):
    code = (
        "import sys, builtins; real = builtins.__import__\n"
        "def watch(name, *rest, **named):\n"
        "    if name == 'torch' and 'utils.runtime' not in sys.modules: raise SystemExit('torch came first')\n"
        "    return real(name, *rest, **named)\n"
        f"builtins.__import__ = watch; import {module}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have ways of their own")
def test_memory_that_is_free_is_used_again():
    code = (
        "import resource, numpy, utils.runtime\n"
        "def pages():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    numpy.ones(10_000_000)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(pages(), pages())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    first, second = map(int, done.stdout.split())
    assert second < 100 < first


@pytest.mark.parametrize(("most", "expected"), [(2**31, {-3: 2**30, -1: -1}), (2**25, {-3: 2**25, -1: -1}), (0, {})])
def test_all_or_nothing_is_kept_where_a_c_library_refuses_large_blocks(most, expected, monkeypatch):
    accepted = {}

    def mallopt(which: int, value: int) -> bool:
        if value <= most:
            accepted[which] = value
        return value <= most

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    runpy.run_path(str(ROOT / "utils/runtime.py"))
    assert accepted == expected


SCRIPTS = [["train_svllreid.py"], ["test_svllreid.py"]]
TOOLS = [
    ["-m", path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__main__")]
    for path in sorted((ROOT / "tools").rglob("*.py"))
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
]
CHECK, CONVERT, DEMO = (["-m", f"tools.{name}"] for name in ("check_dataset", "convert_checkpoint", "demo"))
RENDERED = ("DATASETS.NAMES", "synthetic", "OUTPUT_DIR", "no/run")
NO_TRAINING = [
    (["DATASETS.NAMES", "synthetic+synthetic_vehicle"], "one training has one prompt for all"),
    (["DATASETS.NAMES", "marktet1501"], "DATASETS.NAMES: invalid value 'marktet1501'; did you mean market1501?"),
    ([*RENDERED, "MODEL.PRETRAIN", "no/clip.pt"], "MODEL.PRETRAIN no/clip.pt: there is no such file"),
    ([*RENDERED, "MODEL.INIT_FROM", "no.pth"], "MODEL.INIT_FROM no.pth: there is no such file"),
    ([*RENDERED, "OUTPUT_DIR", "README.md"], "OUTPUT_DIR README.md: README.md is a file; a folder is needed"),
]
TESTS = (SCRIPTS[1], ["-m", "tools.robustness"])
NO_TEST = [
    (["no.pth"], "TEST.WEIGHT no.pth: there is no such file"),
    (["README.md", "DATASETS.NAMES", "marktet1501"], "DATASETS.NAMES: invalid value 'marktet1501'"),
    (["README.md", "TEST.FLPI", "True"], "there is no key TEST.FLPI; did you mean TEST.FLIP?"),
    (["README.md", "OUTPUT_DIR", "LICENSE"], "OUTPUT_DIR LICENSE: LICENSE is a file; a folder is needed"),
    (["hf-hub:a/b"], "OUTPUT_DIR: expected a folder for the results, as hf-hub:a/b is not on this machine"),
    (["README.md", "DATASETS.NAMES", "veri", "DATASETS.ROOT_DIR", "no/data"], "DATASETS.ROOT_DIR no/data: there is"),
]
WEIGHT, THERE = ["--weight", "README.md"], "README.md: exists already and is not overwritten"
NO_OUTPUT = [
    *((name, [*WEIGHT, "--output", "README.md"], THERE) for name in ("export", "release")),
    *(("convert_checkpoint", ["LICENSE", "README.md"], THERE), ("split_dataset", ["docs", "README.md"], THERE)),
    ("calibrate", [*WEIGHT, "--output", "no/x.json"], "--output no/x.json: there is no folder"),
    ("benchmark", ["--json", "no/x.json"], "--json no/x.json: there is no folder"),
    ("check_dataset", ["--sheet", "no/x.png"], "--sheet no/x.png: there is no folder"),
    ("demo.pretrain_tiny_clip", ["--out", "no/x.safetensors"], "--out no/x.safetensors: there is no folder"),
    ("reproduce", ["--output", "no"], "--output no: there is no such folder"),
    ("reproduce", ["--", "TEST.FLPI", "True"], "there is no key TEST.FLPI; did you mean TEST.FLIP?"),
    ("demo.compare_methods", ["TEST.FLPI", "True"], "there is no key TEST.FLPI; did you mean TEST.FLIP?"),
    ("demo", ["DATASETS.NAMES", "synthetic+synthetic_vehicle"], "one training has one prompt for all"),
]
ANSWERED_EARLY = [
    *((command, ["--help"], 0, "usage: ") for command in SCRIPTS),
    *((command, ["--help"], 0, f"usage: python {' '.join(command)} ") for command in TOOLS),
    *((command, ["--what"], 2, "unrecognized arguments: --what") for command in (*SCRIPTS, DEMO)),
    *((command, ["--help-keys", "MODEL.SSL"], 0, "MODEL.SSL_OUT = 256\n") for command in SCRIPTS),
    (SCRIPTS[0], ["--help-keys", "STRIDE"], 2, "error: no key begins with STRIDE; did you mean MODEL.STRIDE_SIZE?"),
    (SCRIPTS[0], ["SOLVER.SEED", "5", "--print_config"], 0, "\nSOLVER:\n  SEED: 5\n"),
    (SCRIPTS[1], ["TEST.WEIGHT", "x.pth", "--print_config"], 2, "error: --print_config: a test without --config_file"),
    *((command, ["SOLVER.SEDE", "1"], 2, "did you mean SOLVER.SEED?") for command in (SCRIPTS[0], CHECK, DEMO)),
    *((command, ["--config_file", "no.yml"], 2, "config file no.yml: ") for command in (*SCRIPTS, CHECK, DEMO)),
    (
        SCRIPTS[0],
        ["DATASETS.ROOT_DIR", "no/data", "OUTPUT_DIR", "no/run"],
        2,
        "DATASETS.ROOT_DIR no/data: there is no such",
    ),
    *((SCRIPTS[0], words, 2, answer) for words, answer in NO_TRAINING),
    *((command, ["TEST.WEIGHT", *words], 2, answer) for command in TESTS for words, answer in NO_TEST),
    (CONVERT, ["no.pth", "new.pth"], 2, "SOURCE no.pth: there is no such file"),
    (["-m", "tools.benchmark"], ["--batch", "0"], 2, "--batch: invalid value '0'"),
    *((["-m", f"tools.{name}"], words, 2, answer) for name, words, answer in NO_OUTPUT),
]


@pytest.mark.parametrize(("command", "words", "code", "answer"), ANSWERED_EARLY)
def test_what_is_wrong_with_a_command_line_is_said_before_torch_is_loaded(command, words, code, answer):
    command = [sys.executable, "-X", "importtime", *command, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == code and answer in done.stdout + done.stderr
    assert "argparse" in loaded and "torch" not in loaded


def test_a_folder_that_holds_a_run_is_refused_before_torch_is_loaded(tmp_path):
    (tmp_path / "results.json").touch()
    words = ["DATASETS.NAMES", "synthetic", "OUTPUT_DIR", str(tmp_path), "RESUME"]
    with pytest.raises(UserError, match=r"holds a run already \(results\.json\)"):
        train_svllreid.read_command_line([*words, "False"])
    assert train_svllreid.read_command_line([*words, "True"])[1] == tmp_path


def climbing(path: str, source: str) -> list[str]:
    faults = []
    own = owner(path)
    for line, name in imported(ast.parse(source)):
        other = name.partition(".")[0]
        if name.startswith(".") or name == "(computed)":
            faults.append(f"{path}:{line}: import by full name, not {name}")
        elif other in FLOORS and other != own and not FLOORS[other] < FLOORS[own] and FLOORS[own] < TOP:
            faults.append(f"{path}:{line}: floor {FLOORS[own]} imports {name} of floor {FLOORS[other]}")
    return faults


def dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def circle(sources: Mapping[str, str]) -> list[str]:
    """Modules of which each imports the one before, the last one the first again; empty if there are none. Imports
    within functions and for types count."""
    modules = {dotted(path): ast.parse(source) for path, source in sources.items()}
    graph = {}
    for module, tree in modules.items():
        names = {name for _, name in imported(tree)}
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names |= {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
        graph[module] = names & modules.keys()
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def opens_config(path: str, source: str) -> list[str]:
    if owner(path) == "configs" or re.search(r"/build(\.py$|/)", path) or path in OPENS or FLOORS[owner(path)] == TOP:
        return []
    tree = ast.parse(source)
    lines = [
        line for line, name in imported(tree) if name.partition(".")[0] in ("yacs", "configs") and name not in TABLES
    ]
    for node in ast.walk(tree):
        name = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, (ast.arg, ast.keyword)) else None
        if name is not None and (name in ("cfg", "CfgNode") or name.startswith("cfg_")):
            lines.append(node.lineno)
    return [
        f"{path}:{line}: the config is for configs/, build, scripts and {', '.join(sorted(OPENS))}" for line in lines
    ]


def prints(path: str, source: str) -> list[str]:
    if FLOORS[owner(path)] == TOP:
        return []
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [f"{path}:{call.lineno}: print" for call in calls if _name(call.func) == "print"]


def too_long(path: str, source: str) -> list[str]:
    """Functions of more than 60 lines or 10 parameters (without self)."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            lines, rest = node.end_lineno - node.lineno + 1, node.args
            count = len([a for a in (*rest.posonlyargs, *rest.args, *rest.kwonlyargs) if a.arg not in ("self", "cls")])
            if lines > 60 or count > 10:
                faults.append(f"{path}:{node.lineno}: {node.name} has {lines} lines and {count} parameters")
    return faults


def names_device(path: str, source: str) -> list[str]:
    tree, harmless = ast.parse(source), set()
    for node in ast.walk(tree):
        # `device.type == "cuda"` asks; `map_location="cpu"` reads a file into memory.
        if isinstance(node, ast.Compare) and _name(node.left).endswith(".type"):
            harmless |= {id(constant) for constant in node.comparators}
        elif isinstance(node, ast.keyword) and node.arg == "map_location":
            harmless.add(id(node.value))
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in harmless:
            kind, _, number = node.value.partition(":")
            device = kind in ("cpu", "cuda", "mps") and (not number or number.isdigit())
            if device and kind not in DEVICES_NAMED.get(path, ()):
                faults.append(f"{path}:{node.lineno}: names a device, {node.value!r}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            faults.append(f"{path}:{node.lineno}: .cuda()")
    return faults


def unpickles(path: str, source: str) -> list[str]:
    faults = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        safe = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        if _name(node.func) == "torch.load" and safe.get("weights_only") is not True:
            faults.append(f"{path}:{node.lineno}: torch.load without weights_only=True")
        elif _name(node.func) in ("pickle.load", "pickle.loads", "joblib.load"):
            faults.append(f"{path}:{node.lineno}: {_name(node.func)}")
    return faults


CHECKS = {
    "imports": climbing,
    "config": opens_config,
    "print": prints,
    "device": names_device,
    "length": too_long,
    "unpickling": unpickles,
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_house_is_in_order(check):
    faults = [fault for path, source in sources().items() for fault in CHECKS[check](path, source)]
    assert not faults, "\n".join(["", *faults])


def test_imports_form_no_circle():
    assert circle(sources()) == []


@pytest.mark.parametrize(
    ("sources", "faulty"),
    [
        ({"a/x.py": "def f():\n    import a.y", "a/y.py": "from a.z import Z", "a/z.py": "from a import x"}, True),
        ({"a/__init__.py": "from a.x import X", "a/x.py": "if TYPE_CHECKING:\n    import a"}, True),
        (
            {
                "a/x.py": "from a import y, z",
                "a/y.py": "from a.z import x",
                "a/z.py": "import b.x",
                "a/__init__.py": "",
            },
            False,
        ),
    ],
)
def test_a_circle_is_found(sources, faulty):
    found = circle(sources)
    assert set(found) == ({dotted(path) for path in sources} if faulty else set())


def test_every_module_has_a_floor():
    elsewhere = {"tests", "docs", "data", "runs"}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in elsewhere}
    folders = {name for name in folders if not name.startswith(".") and any((ROOT / name).rglob("*.py"))}
    scripts = {path.stem for path in ROOT.glob("*.py")}
    assert folders | scripts == FLOORS.keys()
    assert {owner(path) for path in sources()} == FLOORS.keys()  # none is left unread


@pytest.mark.parametrize(
    ("check", "path", "source"),
    [
        ("config", "utils/x.py", "import configs"),
        ("imports", "configs/x.py", "from utils.errors import UserError"),
        ("imports", "loss/x.py", "def f():\n    from model.clip import ViTTower"),
        ("imports", "model/x.py", "import datasets.images as d"),
        ("imports", "solver/x.py", "from processor import loop"),
        ("imports", "processor/x.py", "from train_svllreid import main"),
        ("imports", "processor/x.py", "import tools.demo"),
        ("imports", "model/x.py", "from . import clip"),
        ("imports", "model/x.py", "import importlib\nimportlib.import_module('loss')"),
        ("config", "model/heads.py", "from yacs.config import CfgNode"),
        ("config", "processor/loop.py", "from configs import load"),
        ("config", "loss/x.py", "def f(cfg): ..."),
        ("config", "processor/rebuild.py", "def f(cfg): ..."),
        ("config", "utils/x.py", "def f(cfg_stage): ..."),
        ("print", "processor/x.py", "print('a')"),
        ("print", "utils/x.py", "def f():\n    print()"),
        ("device", "model/x.py", "x.cuda()"),
        ("device", "model/x.py", "torch.zeros(1, device='cuda')"),
        ("device", "processor/x.py", "x.to('cuda:1')"),
        ("device", "datasets/images.py", "torch.device('cpu')"),
        ("device", "datasets/transforms.py", "torch.device('mps')"),
        ("device", "train_svllreid.py", "pick('cuda' if x else 'cpu')"),
        ("length", "model/x.py", "def f(a, b, c, d, e, f, g, h, i, j, *, k): ..."),
        ("unpickling", "model/x.py", "torch.load(path)"),
        ("unpickling", "model/x.py", "torch.load(path, weights_only=False)"),
        ("unpickling", "utils/x.py", "import pickle\npickle.load(file)"),
    ],
)
def test_a_fault_is_found_and_its_line_named(check, path, source):
    faults = CHECKS[check](path, source)
    assert faults and all(f"{path}:{1 + source.count(chr(10))}: " in fault for fault in faults)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/build.py", "from yacs.config import CfgNode\ndef f(cfg: CfgNode): ..."),
        ("processor/build/x.py", "from yacs.config import CfgNode\ndef f(cfg: CfgNode): ..."),
        ("model/x.py", "from model.clip import ViTTower\nfrom utils.records import SideInfo\nimport torch"),
        ("processor/x.py", "from loss.triplet import BatchHardTriplet\nfrom model.svllreid import SvllReid"),
        ("tools/x.py", "from train_svllreid import train\nfrom configs import load\nprint('done')"),
        ("processor/x.py", "pin = device.type == 'cuda'"),
        ("utils/x.py", "torch.load(path, map_location='cpu', weights_only=True)"),
        ("configs/x.py", "DEVICES = 'auto, cpu, cuda'"),
        ("utils/x.py", "from configs.stages import STAGES"),
        ("model/x.py", "def f(a):" + "\n    a += 1" * 59),
    ],
)
def test_what_is_right_is_left_alone(path, source):
    assert [fault for check in CHECKS.values() for fault in check(path, source)] == []
