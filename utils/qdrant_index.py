"""Galleries that Qdrant keeps: in a folder of this machine, or on a server."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from utils.errors import DataError, UserError, check_installed, one_line
from utils.gallery_index import GalleryIndex, hits
from utils.records import Hit

PREFIX = "reid-"  # of collections: a network's digest follows
AT_ONCE = 256  # points or queries in a request


class QdrantIndex(GalleryIndex):
    """A collection of Qdrant's, one for each network; whatever is added is kept at once.

    Args:
        path: a folder, or the URL of a server (http://host:6333).
        digest: of the network that features are from.
        width: of features.
        create: whether there may be no collection of this network yet.

    Raises:
        UserError: qdrant_client is not installed; the folder is in use; the server does not answer.
        DataError: there are only features of other networks; the folder holds something else.
    """

    def __init__(self, path: str, digest: str, width: int, *, create: bool):
        check_installed("--index qdrant", "qdrant_client")
        import qdrant_client.models

        self.qdrant: Any = qdrant_client
        self.path, self.collection = path, f"{PREFIX}{digest}"
        if "://" not in path and (strange := _strange(path)):
            raise DataError(f"{path}: is no index of Qdrant's ({strange} is in it); name another folder")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the versions of client and server
                place = {"url": path} if "://" in path else {"path": path}
                self.client = self.qdrant.QdrantClient(**place)
            names = [one.name for one in self.client.get_collections().collections]
        except Exception as error:  # of any type: the client's, the transport's, the operating system's
            raise UserError(
                f"{path}: cannot be opened by Qdrant ({type(error).__name__}: {one_line(error)})"
            ) from error
        if self.collection in names:
            return
        if not create:
            others = ", ".join(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)) or "nothing"
            self.close()
            raise DataError(f"{path}: holds {others}, and no features of this network and its settings ({digest})")
        models = self.qdrant.models
        settings = models.VectorParams(size=width, distance=models.Distance.DOT)
        self._ask("create_collection", vectors_config=settings)

    def add(self, names: Sequence[str], features: Tensor) -> None:
        models = self.qdrant.models
        rows = {name: row for row, name in enumerate(names)}  # of a name that is there twice, the last
        points = [
            models.PointStruct(id=str(uuid.uuid5(uuid.NAMESPACE_URL, name)), vector=vector, payload={"name": name})
            for name, vector in zip(rows, features[list(rows.values())].tolist(), strict=True)
        ]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Local mode is not recommended")
            for start in range(0, len(points), AT_ONCE):
                self._ask("upsert", points[start : start + AT_ONCE], wait=True)

    def search(self, queries: Tensor, k: int) -> list[list[Hit]]:
        k = min(k, self.count())
        if not k or not len(queries):
            return [[] for _ in queries]
        models, found = self.qdrant.models, []
        requests = [models.QueryRequest(query=query, limit=k, with_payload=True) for query in queries.tolist()]
        for start in range(0, len(requests), AT_ONCE):
            found += self._ask("query_batch_points", requests[start : start + AT_ONCE])
        pages = [one.points for one in found]
        return [hits((point.payload["name"] for point in page), (point.score for point in page)) for page in pages]

    def count(self) -> int:
        return self._ask("count", exact=True).count

    def close(self) -> None:
        self.client.close()

    def _ask(self, what: str, *words: Any, **options: Any) -> Any:
        """What the client says on the collection; UserError if it fails, e.g. because the server has gone."""
        try:
            return getattr(self.client, what)(self.collection, *words, **options)
        except Exception as error:  # of any type, as above
            raise UserError(f"{self.path}: Qdrant failed ({type(error).__name__}: {one_line(error)})") from error


def _strange(folder: str) -> str | None:
    """A file in a folder that is not Qdrant's; None if there is none."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return None if "meta.json" in names else next((name for name in sorted(names) if name != ".lock"), None)
