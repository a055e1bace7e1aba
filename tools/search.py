"""Search a gallery for what query images show: its most similar images, best first.

    python -m tools.search --weight runs/market/ViT-B-16_60.pth --gallery gallery/ --picture ranks.png query.jpg
    python -m tools.search --weight runs/market/ViT-B-16_60.pth --gallery features.npz --top 20 --json query/
    python -m tools.search --weight W --gallery gallery/ --index faiss --index_path gallery.faiss query.jpg

The gallery is a folder, a pattern, or a file of tools.embed's. By default all of it is compared; `--index faiss` and
`--index qdrant` keep it, so that later searches need no --gallery, and one that is given is added. Images are embedded
once: features are remembered by the content of the file. A query that is in the gallery itself is left out of its list.
"""

from __future__ import annotations

import argparse
import csv
import filecmp
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from tools.inference import PICTURES, add_cache_options, add_output, check_unlike, network_parser, open_embedder, parse
from utils.command import Once, answer_early, at_least, run_script
from utils.errors import UserError
from utils.paths import expanded

if TYPE_CHECKING:
    from tools.cached_features import CachedFeatures
    from utils.gallery_index import GalleryIndex

EXACT, FAISS, QDRANT = "exact", "faiss", "qdrant"


def read_command_line(argv: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line."""
    parser = network_parser(__doc__)
    add = parser.add_argument
    add("--gallery", metavar="WHERE", action=Once, help="a folder, a pattern, or a file of tools.embed's")
    add("--top", metavar="N", type=at_least(1), default=10, help="images to find; default: 10")
    add_output(parser, "--output", ".json", default="search.json")
    add_output(parser, "--picture", *PICTURES, meaning="of what was found")
    add_output(parser, "--csv", ".csv", meaning="a table to write as well")
    add("--json", action="store_true", help="print JSON instead of tables")
    add("--keep-own", action="store_true", help="leave queries in their own lists")
    add("--identities", choices=("names", "folders", "none"), help="where identities stand (0002_c1.jpg, anna/1.jpg)")
    add("--index", choices=(EXACT, FAISS, QDRANT), default=EXACT, help="what searches; default: exact")
    add("--index_path", metavar="WHERE", help="a folder or, for qdrant, the URL of a server")
    add_cache_options(parser)
    words = ("QUERY", "images, folders of images, or patterns")
    arguments = parse(parser, argv, words=words, example="query.jpg")
    if arguments.index == EXACT and not arguments.gallery:
        raise UserError("--gallery: expected what to search in, e.g. --gallery gallery/ or --gallery features.npz")
    if arguments.gallery and not arguments.gallery.endswith(".npz") and expanded(arguments.gallery).is_file():
        expected = "a folder, an .npz file of tools.embed's, or a pattern in quotes: 'gallery/*.jpg'"
        raise UserError(f"--gallery {arguments.gallery}: is a file; expected {expected}")
    if (arguments.index == EXACT) != (arguments.index_path is None):
        raise UserError(f"--index {arguments.index}: expected --index_path with faiss and qdrant, and only with them")
    return arguments


if __name__ == "__main__":  # before torch is loaded, which takes seconds
    answer_early(read_command_line)

from torch import Tensor

from datasets.find_images import find_images
from datasets.identity_folders import CAMERA_FOLDER
from datasets.labels import FOLDERS as SPLITS
from datasets.path_labels import FOLDERS, NAMES, path_label, same_identity
from tools.cached_features import CachedFeatures
from utils.faiss_index import FaissIndex
from utils.feature_file import read_features
from utils.files import write_text
from utils.gallery_index import ExactIndex
from utils.metrics import check_finite
from utils.qdrant_index import QdrantIndex
from utils.records import Hit, RankList


def main(argv: list[str] | None = None) -> int:
    """Search as the command line says; 1 if images cannot be read that should."""
    arguments = read_command_line(argv)
    output = expanded(arguments.output)
    queries = find_images(arguments.images)
    gallery = None  # names of images
    if arguments.gallery and not arguments.gallery.endswith(".npz"):
        gallery = find_images([arguments.gallery])
    if arguments.picture:
        check_unlike(arguments.picture, "--picture", queries + (gallery or []))
    embedder = open_embedder(arguments)
    with (
        closing(CachedFeatures.of(embedder, arguments, output)) as features,
        closing(open_index(arguments, embedder.digest, features.width)) as index,
    ):
        names = fill(index, gallery, features, arguments) if arguments.gallery else []
        paths, vectors = features.all(queries, "queries")
        check_finite(vectors, vectors[:0])
        rank_lists = search(index, paths, vectors, arguments.top, keep_own=arguments.keep_own)
        count = index.count()
    answers = labelled(rank_lists, names, arguments.identities)
    counts = {"gallery": count, "embedded": features.computed, "from_cache": features.remembered}
    write(answers, {"digest": embedder.digest, "index": arguments.index, **counts}, arguments)
    if arguments.picture:
        draw(answers, expanded(arguments.picture), embedder.transform.size)
    return int(features.unreadable > 0 and not arguments.skip_unreadable)


def open_index(arguments: argparse.Namespace, digest: str, width: int) -> GalleryIndex:
    """The index that the command line names.

    Raises:
        UserError: it is not there, and no gallery is given; its library is missing.
    """
    if arguments.index == EXACT:
        return ExactIndex()
    place, path = arguments.index_path, expanded(arguments.index_path)
    server = arguments.index == QDRANT and "://" in place
    if not (server or arguments.gallery or path.exists()):
        raise UserError(f"--index_path {path}: there is no such folder; --gallery fills a new one")
    if arguments.index == QDRANT:
        return QdrantIndex(place if server else str(path), digest, width, create=bool(arguments.gallery))
    return FaissIndex(path, digest, width)


def fill(
    index: GalleryIndex, gallery: Sequence[str] | None, features: CachedFeatures, arguments: argparse.Namespace
) -> list[str]:
    """Add the gallery that is given, and save the index; -> its names.

    Args:
        gallery: images; None: --gallery is a file of features.
    """
    added: list[str] = []
    if gallery is None:
        contents = read_features(arguments.gallery, features.embedder.digest)
        blocks = iter([(contents.names, contents.features)])
    else:
        blocks = features(gallery, "gallery")
    for names, vectors in blocks:
        check_finite(vectors[:0], vectors)
        if arguments.index != EXACT:  # which outlives this folder
            names = [os.path.abspath(name) for name in names]
        index.add(names, vectors)
        added += names
    index.save()
    return added


def search(index: GalleryIndex, paths: Sequence[str], vectors: Tensor, top: int, *, keep_own: bool) -> list[RankList]:
    """For every query the first `top`, and which files are its copies; the list has none of these unless `keep_own`."""
    count, lists = index.count(), []
    for row, (path, found) in enumerate(zip(paths, index.search(vectors, top + 1), strict=True)):
        asked = top + 1
        while True:
            own = [hit.name for hit in found if is_copy(path, hit.name)]
            if keep_own or len(found) - len(own) >= top or asked >= count:
                break
            asked *= 2  # it has many copies
            (found,) = index.search(vectors[row : row + 1], asked)
        kept = found if keep_own else [hit for hit in found if hit.name not in own]
        kept = [hit._replace(rank=rank) for rank, hit in enumerate(kept[:top], 1)]
        lists.append(RankList(path, kept, note=Path(path).name, left_out=own))
    return lists


def is_copy(one: str, other: str) -> bool:
    """Whether two files hold the same; False if one is not there."""
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def labelled(lists: Sequence[RankList], gallery: Sequence[str], where: str | None) -> list[RankList]:
    """The lists with what paths tell of cameras and identities.

    Args:
        where: identities stand, as in `path_label`; None: in names or, where the gallery seems so, in folders.
    """
    known = None
    if where is None and per_identity(gallery):
        where, known = FOLDERS, {path_label(name, FOLDERS).identity for name in gallery}
    found = []
    for one in lists:
        label = path_label(one.query, where or NAMES)
        if known is not None and label.identity not in known:
            label = label._replace(identity="")  # its folder is no identity's
        pairs = [(hit, path_label(hit.name, where or NAMES)) for hit in one.found]
        hits = [hit._replace(camera=own.camera or None, correct=same_identity(label, own)) for hit, own in pairs]
        found.append(one._replace(camera=label.camera or None, found=hits))
    return found


def per_identity(names: Sequence[str]) -> bool:
    """Whether images seem to lie in a folder per identity: folders beside each other, not of cameras or splits."""
    if any(path_label(name, NAMES).identity for name in names):
        return False
    folders = {os.path.dirname(os.path.abspath(name)) for name in names}
    last = [os.path.basename(folder) for folder in folders]
    splits = {name for split in SPLITS.values() for name in split}
    beside = len(folders) > 1 and len({os.path.dirname(folder) for folder in folders}) == 1
    return beside and not splits & set(last) and not all(map(CAMERA_FOLDER.fullmatch, last))


def write(answers: Sequence[RankList], facts: dict, arguments: argparse.Namespace) -> None:
    """Write JSON and a table, and print one of them."""
    queries = [
        {"query": query, "camera": camera, "found": [hit._asdict() for hit in found], "left_out": own}
        for query, found, camera, _, own in answers
    ]
    text = json.dumps({**facts, "queries": queries}, indent=2) + "\n"
    write_text(expanded(arguments.output), text)
    if arguments.csv:
        table = io.StringIO(newline="")
        lines = csv.writer(table)
        lines.writerow(["query", *Hit._fields])
        lines.writerows([one.query, *hit] for one in answers for hit in one.found)
        write_text(expanded(arguments.csv), table.getvalue())
    sys.stdout.write(text if arguments.json else "".join(map(in_words, answers)))
    if not arguments.json:
        sys.stdout.write(
            f"{facts['gallery']} images searched ({facts['index']}), {facts['embedded']} embedded, "
            f"{facts['from_cache']} known: {arguments.output}\n"
        )


def in_words(answer: RankList) -> str:
    """A line for the query and each image found."""
    lines = [answer.query] + [f"  in the gallery itself, as {name}" for name in answer.left_out]
    for hit in answer.found:
        mark = {True: "✓", False: "✗", None: " "}[hit.correct]
        camera = f"c{hit.camera}" if hit.camera else ""
        lines.append(f"{hit.rank:>4}  {hit.score:.4f}  {mark} {camera:<4} {hit.name}")
    return "\n".join([*lines, ""])


def draw(answers: Sequence[RankList], path: Path, size: Sequence[int]) -> None:
    """Draw what was found; gallery images that are not there any more are grey, and said."""
    from tools.rank_figure import draw_rank_lists  # matplotlib is an extra

    _, unreadable = draw_rank_lists(path, answers, size=size)
    if unreadable:
        sys.stderr.write(f"{path}: {len(unreadable)} images cannot be read now, and are grey: {unreadable[0]}\n")


if __name__ == "__main__":
    sys.exit(run_script(main))
