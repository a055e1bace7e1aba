"""Galleries on disk that faiss searches: clusters of features, of which the nearest are compared."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from utils.errors import DataError, check_installed, writing
from utils.files import replace_text, replacing
from utils.gallery_index import GalleryIndex, hits
from utils.records import Hit

CONTENTS = "index.json"  # which files belong together; replaced last
PER_CLUSTER, FOR_CLUSTER = 39, 64  # the least features that a cluster holds on average; the most it is learnt from
PROBED = 0.25  # of the clusters are compared with a query, and at least LEAST_PROBED of them
LEAST_PROBED = 16
GROWTH = 4  # clusters are learnt anew when there are so many times more features than they were learnt from
SEED = 1234


class FaissIndex(GalleryIndex):
    """A folder with an inverted file (faiss.IndexIVFFlat, inner product) and the names of its features.

    Features are kept as they are, so that scores are exact; only who is compared is approximate. A search that finds
    too few compares all.

    Args:
        path: of the folder; an index that is there is opened.
        digest: of the network that features are from.
        width: of features.

    Raises:
        UserError: faiss is not installed.
        DataError: the folder holds something else, is damaged, or holds features of another network.
    """

    def __init__(self, path: Path, digest: str, width: int):
        check_installed("--index faiss", "faiss")
        import faiss

        self.faiss: Any = faiss
        self.path, self.digest, self.width = path, digest, width
        self.names: list[str] = []
        self.trained_on = 0
        self.index = self._empty(1)
        if path.exists():
            self._read()

    def add(self, names: Sequence[str], features: Tensor) -> None:
        rows = {name: row for row, name in enumerate(names)}  # of a name that is there twice, the last
        places = {name: place for place, name in enumerate(self.names)}
        known = [name for name in rows if name in places]
        if known:
            self.index.remove_ids(np.array([places[name] for name in known], dtype=np.int64))
        new = [name for name in rows if name not in places]
        places |= {name: place for place, name in enumerate(new, len(self.names))}
        self.names += new
        vectors = features[list(rows.values())].numpy()
        ids = np.array([places[name] for name in rows], dtype=np.int64)
        if len(self.names) > GROWTH * self.trained_on:
            vectors, ids = self._all(vectors, ids)
            self.index = self._empty(max(1, min(len(ids) // PER_CLUSTER, round(2 * len(ids) ** 0.5))))
            self.index.train(vectors)
            self.trained_on = len(ids)
        self.index.add_with_ids(vectors, ids)

    def search(self, queries: Tensor, k: int) -> list[list[Hit]]:
        k = min(k, len(self.names))
        if not k or not len(queries):
            return [[] for _ in queries]
        vectors = queries.numpy()
        probed = min(self.index.nlist, max(LEAST_PROBED, round(PROBED * self.index.nlist)))
        scores, ids = self._compare(vectors, k, probed)
        if len(few := np.flatnonzero((ids < 0).any(axis=1))):
            scores[few], ids[few] = self._compare(vectors[few], k, self.index.nlist)
        rows = zip(ids.tolist(), scores.tolist(), strict=True)
        return [hits((self.names[place] for place in places), cosines) for places, cosines in rows]

    def save(self) -> None:
        """Write it, atomically: whoever opens it finds all of it, or what was there before.

        Raises:
            UserError: it cannot be written.
        """
        data = self.faiss.serialize_index(self.index)
        checksum = zlib.crc32(data)
        vectors = f"vectors-{checksum:08x}.faiss"
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with replacing(self.path / vectors) as file:
                file.write(data)
            contents = {"digest": self.digest, "vectors": vectors, "checksum": checksum, "names": self.names}
            replace_text(self.path / CONTENTS, json.dumps({**contents, "trained_on": self.trained_on}))
            for old in self.path.glob("vectors-*.faiss"):
                if old.name != vectors:
                    old.unlink()

    def _read(self) -> None:
        try:
            contents = json.loads((self.path / CONTENTS).read_text(encoding="utf-8"))
            theirs, names = contents["digest"], list(contents["names"])
            if theirs != self.digest:
                found = f"({theirs}, here {self.digest})"
                raise DataError(f"{self.path}: holds features of another network or of other settings {found}")
            data = (self.path / Path(contents["vectors"]).name).read_bytes()
            if zlib.crc32(data) != contents["checksum"]:
                raise ValueError("the vectors are damaged")
            index: Any = self.faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
            if (index.ntotal, index.d) != (len(names), self.width):
                raise ValueError(f"{index.ntotal} vectors of {index.d} numbers and {len(names)} names")
            self.index, self.names, self.trained_on = index, names, int(contents["trained_on"])
        except DataError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(f"{self.path}: is no index of this program (no {CONTENTS} in it); name another") from error
        except Exception as error:  # of any type: the folder may hold anything
            raise DataError(
                f"{self.path}: is a damaged index ({type(error).__name__}: {error}); delete it, "
                "and give the gallery again"
            ) from error

    def _empty(self, clusters: int) -> Any:
        index = self.faiss.IndexIVFFlat(
            self.faiss.IndexFlatIP(self.width), self.width, clusters, self.faiss.METRIC_INNER_PRODUCT
        )
        index.cp.seed, index.cp.spherical = SEED, True
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, FOR_CLUSTER
        return index

    def _all(self, vectors: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """With what is in the index already."""
        if not self.index.ntotal:
            return vectors, ids
        lists = self.index.invlists
        old = [(n, lists.list_size(n)) for n in range(self.index.nlist)]
        to_array = self.faiss.rev_swig_ptr
        kept = [to_array(lists.get_ids(n), size).copy() for n, size in old if size]
        codes = [to_array(lists.get_codes(n), 4 * self.width * size).copy() for n, size in old if size]
        before = np.concatenate(codes).view(np.float32).reshape(-1, self.width)
        return np.concatenate([before, vectors]), np.concatenate([*kept, ids])

    def _compare(self, vectors: np.ndarray, k: int, probed: int) -> tuple[np.ndarray, np.ndarray]:
        return self.index.search(vectors, k, params=self.faiss.SearchParametersIVF(nprobe=probed))
