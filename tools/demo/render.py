"""Render the data sets that DATASETS.NAMES names and that are not there yet.

    python -m tools.demo.render --config_file configs/demo/vehicle_svllreid.yml
    python -m tools.demo.render DATASETS.NAMES synthetic DATASETS.ROOT_DIR data DATASETS.SYNTHETIC.SEED 1

Training, testing and tools.check_dataset do it themselves: this is for programs that read the images otherwise. Each
data set is a folder of JPEG files below DATASETS.ROOT_DIR. Nothing is downloaded.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from configs import load
from utils.command import answer_early, parse, run_script


def read_command_line(argv: Sequence[str] | None = None) -> CfgNode:
    """The settings."""
    arguments = parse(__doc__, argv)
    return load(arguments.config_file, arguments.overrides)


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from tqdm import tqdm

from datasets.build import make_benchmark, parameters_of
from datasets.names import names_of
from datasets.synthetic import MANIFEST
from tools.demo.infrared_sets import INFRARED_KINDS, InfraredSet
from tools.demo.sets import KINDS, SPLITS, RenderedSet, Rendering
from utils.errors import UserError
from utils.files import replacing_folder
from utils.logs import log_to_screen
from utils.paths import expanded
from utils.records import Benchmark

logger = logging.getLogger("render")
ALL_KINDS = {**KINDS, **INFRARED_KINDS}


def main(argv: Sequence[str] | None = None) -> None:
    """Render what the command line names."""
    cfg = read_command_line(argv)
    log_to_screen()
    folders = render_missing(cfg)
    if not folders:
        raise UserError(f"DATASETS.NAMES {cfg.DATASETS.NAMES}: expected one of {', '.join(ALL_KINDS)}")
    sys.stdout.write("".join(f"{folder}\n" for folder in folders))


def render_missing(cfg: CfgNode, names: str | None = None) -> list[Path]:
    """Render what is missing of the rendered data sets in `names`, or DATASETS.NAMES -> the folders of all of them."""
    names = [name for name in names_of(names or cfg.DATASETS.NAMES) if name in ALL_KINDS]
    if not names:
        return []
    root = expanded(cfg.DATASETS.ROOT_DIR, "DATASETS.ROOT_DIR")
    sets = (InfraredSet if name in INFRARED_KINDS else RenderedSet for name in names)
    return [render(root, one(ALL_KINDS[name], parameters_of(cfg))) for name, one in zip(names, sets, strict=True)]


def rendered_benchmark(cfg: CfgNode, name: str | None = None) -> Benchmark:
    """`make_benchmark`, of data sets that may have to be rendered first."""
    return make_benchmark(cfg, name, render=render_missing)


def render(root: Path, data: Rendering, *, progress: bool | None = None) -> Path:
    """Render the data set below `root`, or find it there -> its folder.

    The folder appears under its name only when it is whole. A folder that is whole is reused; one of ours that lacks
    files or was rendered by another version is replaced. Several processes may call this at the same time.

    Args:
        root: the folder that holds the data sets; made if absent.
        progress: show a bar; by default if stderr is a terminal. Otherwise two lines go to the log.

    Raises:
        UserError: something that this function did not write is in the way, or the folder cannot be written to.
    """
    try:
        return _find_or_write(Path(root), data, sys.stderr.isatty() if progress is None else progress)
    except OSError as error:
        raise UserError(f"{root}: cannot write the synthetic data set there ({error.strerror or error})") from error


def _find_or_write(root: Path, data: Rendering, progress: bool) -> Path:
    target = root / data.folder_name
    root.mkdir(parents=True, exist_ok=True)
    if _is_complete(target, data):
        return target
    _refuse_foreign(target, data)
    if target.exists():
        logger.info("%s is incomplete or of another version of the renderer and is rendered anew", target)
    try:
        with replacing_folder(target) as draft:
            _write(draft, data, progress)
            if not _is_complete(target, data):
                _refuse_foreign(target, data)
                shutil.rmtree(target, ignore_errors=True)
    except OSError:
        if not _is_complete(target, data):  # by a process that was faster
            raise
    return target


def _write(folder: Path, data: Rendering, progress: bool) -> None:
    """All images and, where the kind has them, lists or viewpoints; then the manifest."""
    started = time.perf_counter()
    tasks = list(data.tasks())
    if not progress:
        logger.info("rendering %d images for %s", len(tasks), data.folder_name)
    for name in data.counts():
        (folder / name).mkdir(parents=True)
    subjects = {split: data.subjects(split) for split in SPLITS}
    cameras = data.cameras()
    drawn = []
    for task in tqdm(tasks, desc="rendering", unit="image", disable=not progress):
        image = data.draw(task, subjects[task.split], cameras)
        for path in task.paths:
            (folder / path).write_bytes(image.jpeg)
        drawn.append((task, image.yaw))
    for name, text in data.texts(drawn).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / MANIFEST).write_text(json.dumps(data.manifest(), indent=2) + "\n", encoding="utf-8")
    if not progress:
        logger.info("rendered %d images in %.1f s", len(tasks), time.perf_counter() - started)


# ---------------------------------------------------------------------------------------------------- folders


def _read_manifest(folder: Path, data: Rendering) -> dict[str, object] | None:
    """The manifest of a folder of this kind that this module wrote, else None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == data.kind.title else None


def _is_complete(folder: Path, data: Rendering) -> bool:
    """Whether the folder was written with these parameters by this renderer and has all its files."""
    if _read_manifest(folder, data) != data.manifest():
        return False
    if not all((folder / name).is_file() for name in data.text_files):
        return False
    return all(len(list((folder / name).glob("*.jpg"))) == count for name, count in data.counts().items())


def _refuse_foreign(folder: Path, data: Rendering) -> None:
    """Raise UserError if there is something in the way that this module did not write."""
    if os.path.lexists(folder) and (folder.is_symlink() or _read_manifest(folder, data) is None):
        raise UserError(
            f"{folder} is in the way of the synthetic data set and was not written by it (no valid {MANIFEST}); "
            "move or delete it, or choose another root"
        )


if __name__ == "__main__":
    sys.exit(run_script(main))
