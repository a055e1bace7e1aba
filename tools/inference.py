"""What the tools that put a trained network to use have in common."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from configs.defaults import BLOCKS, KEYS
from tools.early import check_data, given_settings
from utils.command import Pairs, at_least, check_there, check_weight, new_parser
from utils.errors import UserError, check_installed
from utils.files import instead_of_file
from utils.paths import expanded

PICTURES = (".png", ".svg", ".pdf")

if TYPE_CHECKING:
    from processor.inference import Embedder
    from utils.feature_file import FeatureFile


def network_parser(description: str, *, skips: bool = True, crosses: bool = False) -> argparse.ArgumentParser:
    """A parser with the options that all such tools have; a tool adds its own.

    Args:
        skips: there is --skip-unreadable.
        crosses: --modality may also name two, of the first and of the second image of a pair.
    """
    parser = new_parser(description)
    add = parser.add_argument
    add("--weight", metavar="FILE", required=True, help="the checkpoint, ours or a published file")
    add("--config_file", metavar="FILE", help="a YAML file, which a published file needs")
    add("--device", default="auto", help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps")
    add(
        "--modality",
        choices=("visible", "infrared", *(("visible,infrared", "infrared,visible") if crosses else ())),
        help=f"of all images{', or of the first and second' if crosses else ''}, for a network with a stem for each",
    )
    add("--batch_size", metavar="N", type=at_least(1), default=64, help="images at a time; default: 64")
    if skips:
        add(
            "--skip-unreadable",
            action="store_true",
            help="exit with 0 although images cannot be read; they are named, and the others done, in any case",
        )
    return parser


def parse(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    *,
    words: tuple[str, str] | None = ("IMAGE", "images, folders of images, or patterns"),
    example: str | None = None,
) -> argparse.Namespace:
    """Read the command line of such a tool.

    Args:
        parser: of `network_parser`, with the tool's own options.
        words: what stands before the first setting: its name, and what it means; None: nothing does.
        example: of images, for the message when there are none; None: there need not be any.

    Returns:
        The options by name, the words before the first setting as `images`, and `overrides` (KEY VALUE KEY VALUE ...).

    Raises:
        UserError: no images, or some where nothing is expected; a file or folder that is not there.
        ConfigError: settings that are no pairs, or a value that its key never takes.
    """
    name, meaning = words or ("", "")
    parser.add_argument("images", nargs="*", metavar=name, help=meaning)
    arguments = parser.parse_intermixed_args(argv)
    given = arguments.images
    first = next((place for place, word in enumerate(given) if _is_setting(word)), len(given))
    arguments.images = given[:first]
    Pairs([], "overrides")(parser, arguments, given[first:])
    if arguments.images and not words:
        raise UserError(f"{arguments.images[0]}: is no setting; expected KEY VALUE, e.g. TEST.FLIP True")
    _check_named(arguments, name)
    arguments.given = given_settings(arguments.config_file, arguments.overrides)
    if example and not arguments.images:
        raise UserError(f"{name}: expected images, e.g. {example}")
    return arguments


def _check_named(arguments: argparse.Namespace, name: str) -> None:
    """Raise UserError if files or folders are not there, or after settings; patterns are looked for later."""
    if late := [key for key in arguments.overrides[::2] if not _is_setting(key) and os.path.exists(key)]:
        raise UserError(f"{late[0]}: comes after a setting; settings come last")
    for option in ("weight", "beside"):
        if weight := getattr(arguments, option, None):
            check_weight(weight, f"--{option}")
    given = [(name, image) for image in arguments.images]
    given += [(f"--{option}", getattr(arguments, option, None)) for option in ("calibration", "gallery", "pairs")]
    for what, path in given:
        if path and not glob.has_magic(path):
            check_there(path, what)


def _is_setting(word: str) -> bool:
    """Whether a word is a key, or would be one if it were spelled right."""
    key = word.partition("=")[0]
    return key in KEYS or (key.rpartition(".")[0] in BLOCKS and not os.path.exists(word))


def parse_labelled(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The same for a tool that takes labelled images: those of a data set, or of one folder, the only one of `images`.

    Raises:
        UserError: several folders, or what `parse` raises.
    """
    words = ("FOLDER", "your own images, in a folder per identity, instead of DATASETS.NAMES")
    arguments = parse(parser, argv, words=words)
    if len(arguments.images) > 1:
        raise UserError(f"FOLDER: expected one folder, or settings such as DATASETS.NAMES; got {arguments.images}")
    if not arguments.images:
        check_data(arguments.given, arguments.overrides[::2])
    return arguments


def add_threshold_options(parser: argparse.ArgumentParser) -> None:
    """Let a command line say which threshold decides."""
    add = parser.add_argument
    add(
        "--fpr",
        metavar="RATE",
        type=_fpr,
        default="eer",
        help="of false accepts: 1e-2, 1e-3 or 1e-4, or eer (the default)",
    )
    add("--calibration", metavar="FILE", help="default: beside the checkpoint, NAME.calibration.json")


def _fpr(text: str) -> str:
    with suppress(ValueError):
        if text == "eer" or 0 < float(text) < 1:
            return text
    raise argparse.ArgumentTypeError(f"invalid rate {text!r}, expected eer or a number between 0 and 1, e.g. 1e-3")


def add_beside(parser: argparse.ArgumentParser) -> None:
    """Let a command line name a second network."""
    parser.add_argument("--beside", metavar="FILE", help="another checkpoint, which is shown beside")


def for_each_network(arguments: argparse.Namespace) -> list[argparse.Namespace]:
    """The command line as if for --weight alone and, if it is given, for --beside alone."""
    weights = [arguments.weight, *([arguments.beside] if arguments.beside else [])]
    return [argparse.Namespace(**{**vars(arguments), "weight": weight}) for weight in weights]


def short_names(weights: Sequence[str]) -> list[str]:
    """Checkpoints by their file names or, where these are the same, by their paths."""
    names = [Path(weight).name for weight in weights]
    return names if len(set(names)) == len(set(weights)) else list(weights)


def add_cache_options(parser: argparse.ArgumentParser, *, where: str = "beside the output") -> None:
    """Let a command line say where features are remembered; `where` they are by default."""
    add_output(parser, "--cache", ".sqlite", meaning=f"of features, else features.sqlite {where}")
    parser.add_argument("--no-cache", action="store_true", help="remember no features")


def add_output(
    parser: argparse.ArgumentParser,
    option: str,
    *endings: str,
    default: str | None = None,
    meaning: str = "written to",
) -> None:
    """Let a command line name a file to write, and refuse it at once if it cannot be written."""

    def checked(path: str) -> str:
        check_output(path, option, *endings)
        if endings == PICTURES:
            check_installed(f"{option} {path}", "matplotlib")
        return path

    said = f"{meaning}: {', '.join(endings)}" + (f"; default: {default}" if default else "")
    parser.add_argument(option, metavar="FILE", type=checked, default=default, help=said)


def check_output(path: str, option: str, *endings: str, new: bool = False) -> None:
    """Raise UserError if `path` cannot be written, does not end so (it may be an image of the user's) or, with `new`,
    is there already. Its folder has to be there: one of a mistyped name is not made."""
    target = expanded(path, option).absolute()
    if new and os.path.lexists(target):
        raise UserError(f"{option} {path}: exists already and is not overwritten")
    if endings and not path.lower().endswith(endings):
        raise UserError(f"{option} {path}: expected a name that ends in {', '.join(endings)}")
    if not target.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {target.parent}")
    if target.exists() and (instead := instead_of_file(target.stat().st_mode)):
        raise UserError(f"{option} {path}: is {instead}; expected a file")
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"{option} {path}: the folder {target.parent} may not be written to")


def check_unlike(path: str, option: str, images: Sequence[str]) -> None:
    """Raise UserError if `path`, which is to be written, is one of the images."""
    target = expanded(path)
    if target.exists() and any(os.path.basename(one) == target.name and target.samefile(one) for one in images):
        raise UserError(f"{option} {path}: is one of the images; name another file")


def open_embedder(arguments: argparse.Namespace) -> Embedder:
    """The embedder that the command line describes."""
    from processor.inference import Embedder  # only now: torch takes seconds
    from utils.records import MODALITIES

    return Embedder.from_checkpoint(
        arguments.weight,
        config_file=arguments.config_file,
        overrides=arguments.overrides,
        modality=MODALITIES.index(arguments.modality) if arguments.modality in MODALITIES else None,
        device=arguments.device,
        batch_size=arguments.batch_size,
    )


def embed_files(
    embedder: Embedder, paths: Sequence[str], modalities: Sequence[int] | None = None
) -> tuple[FeatureFile, int]:
    """Features of all files that can be read, and how many cannot; those are named on stderr.

    Args:
        modalities: as `Embedder` takes them.

    Raises:
        UserError: none can be read.
    """
    from utils.feature_file import FeatureFile
    from utils.progress import progress

    unreadable: set[int] = set()

    def skip(place: int, error: Exception) -> None:
        unreadable.add(place)
        sys.stderr.write(f"{error}\n")

    features = embedder(progress(paths, "features"), modalities=modalities, skip=skip)
    if len(unreadable) == len(paths):
        raise UserError(f"none of the {len(paths)} images can be read")
    names = [path for place, path in enumerate(paths) if place not in unreadable]
    return FeatureFile(names, features, embedder.digest), len(unreadable)
