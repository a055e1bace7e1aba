"""Records that are passed between folders.

They are NamedTuples: PyTorch's loader collates and pins them field by field, and they are immutable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

VISIBLE, INFRARED = 0, 1  # modalities of images
MODALITIES = ("visible", "infrared")  # their names
RANKS = (1, 5, 10)  # of the CMC, as they are usually reported
ON_HOST = ("indices", "modalities")  # fields of records that stay on the CPU: shapes depend on them


class Sample(NamedTuple):
    """One image on disk and what is known about it."""

    path: str
    pid: int  # training: 0..P-1 without gaps; query and gallery: the benchmark's own number
    camid: int  # counted from 0
    viewid: int = 0  # viewpoint of a vehicle, counted from 0
    modality: int = VISIBLE


class Trial(NamedTuple):
    """One query set and its gallery."""

    query: tuple[Sample, ...]
    gallery: tuple[Sample, ...]


class Labels(NamedTuple):
    """Identities and cameras of a list of images."""

    pids: Tensor  # [N] int64
    camids: Tensor  # [N] int64

    @staticmethod
    def of(samples: tuple[Sample, ...]) -> Labels:
        """The labels of a list of samples."""
        return Labels(torch.tensor([s.pid for s in samples]), torch.tensor([s.camid for s in samples]))


class Omitted(NamedTuple):
    """Paths that a reader skipped though they are where images belong."""

    files: tuple[str, ...] = ()  # not images by their suffix
    folders: tuple[str, ...] = ()  # where only files belong
    identities: tuple[str, ...] = ()  # folders of identities without an image


NOTHING = Omitted()


@dataclass(frozen=True)
class Benchmark:
    """A data set with its protocol.

    `template` is the prompt, with {} where the learned tokens go. `ignored` is the rule for pairs that leave the
    gallery of a query: (query labels [Q], gallery labels [G]) -> bool [Q, G]; it is called chunk by chunk, because the
    whole mask of a large benchmark does not fit into memory. `train` is empty where only testing was asked for. Several
    data sets trained on together have `parts`, which are evaluated one by one. `seen` are identities, by the labels
    that they had before training labels were numbered anew, which are in training and test alike; a reader names them
    where its labels mean the same in both. `variant` is which of several published forms it is, `first_camera` the
    number of its first camera, above 0 for all but the first of several data sets trained on together. `unused` names
    columns of its list and folders beside its own that are not read. `as_written` has, by an image's path, its identity
    and camera as its owner wrote them; it is empty where the numbers are the data set's own (cameras less 1).

    Of visible and infrared images, `templates` has the prompts of both modalities, in their order. With
    `unique_identities`, ranks of the CMC count identities of the gallery, not images. `ranks` are those reported.
    """

    name: str
    template: str
    train: tuple[Sample, ...]
    trials: tuple[Trial, ...]
    ignored: Callable[[Labels, Labels], Tensor]
    parts: tuple[Benchmark, ...] = ()
    seen: tuple[str, ...] = ()
    variant: str = ""
    first_camera: int = 0
    omitted: Omitted = NOTHING
    unused: tuple[str, ...] = ()
    as_written: Mapping[str, tuple[str, str]] = field(default_factory=dict, hash=False, repr=False)
    templates: tuple[str, ...] = ()
    unique_identities: bool = False
    ranks: tuple[int, ...] = RANKS

    def evaluated(self) -> tuple[Benchmark, ...]:
        """The benchmarks to evaluate: itself, or its parts."""
        return self.parts or (self,)

    def counts(self) -> str:
        """Its numbers of images, identities and cameras, for the log."""
        trial = self.trials[0]
        train = f"{len(self.train)} training images of {self.num_pids} identities, " if self.train else ""
        several = f", {len(self.trials)} trials" if len(self.trials) > 1 else ""
        cameras = f"{self.num_cams} cameras" if self.num_cams > 1 else "one camera or none known"
        return f"{train}{len(trial.query)} queries, {len(trial.gallery)} gallery images, {cameras}{several}"

    def _all(self) -> Iterator[Sample]:
        yield from self.train
        for trial in self.trials:
            yield from trial.query
            yield from trial.gallery

    @property
    def num_pids(self) -> int:
        """Training identities: rows of the classifiers and of the prompts."""
        return 1 + max((sample.pid for sample in self.train), default=-1)

    @property
    def num_cams(self) -> int:
        """Cameras of all splits, as largest index + 1: rows of a table (counts fail when a number is skipped)."""
        return 1 + max((sample.camid for sample in self._all()), default=-1)

    @property
    def num_views(self) -> int:
        """Viewpoints of all splits, as largest index + 1."""
        return 1 + max((sample.viewid for sample in self._all()), default=-1)


class SideInfo(NamedTuple):
    """What is known of images besides their pixels; -1 is an unknown camera or viewpoint."""

    camids: Tensor  # [B] int64
    viewids: Tensor  # [B] int64
    modalities: Tensor  # [B] int64, VISIBLE or INFRARED

    @staticmethod
    def unknown(modalities: Tensor) -> SideInfo:
        """Of images of these modalities, without camera and viewpoint."""
        return SideInfo(torch.full_like(modalities, -1), torch.full_like(modalities, -1), modalities)


class Batch(NamedTuple):
    """A batch of images."""

    images: Tensor  # [B, 3, H, W] float, normalised
    pids: Tensor  # [B] int64
    side: SideInfo
    indices: Tensor  # [B] int64, into the list of samples
    views: Tensor | None = None  # [2, B, 3, H, W]: two more augmentations of every image


class Part(NamedTuple):
    """What belongs to one of several templates; of both at least one."""

    images: Tensor  # [b] int64, rows of a batch
    identities: Tensor  # [u] int64, rows of its distinct identities


class FeatureBatch(NamedTuple):
    """Image features of a frozen tower."""

    features: Tensor  # [B, E], in the space shared with text
    pids: Tensor  # [B] int64
    # Where it was found out before, so that nobody waits for the device: `pids.unique(return_inverse=True)`.
    distinct: Tensor | None = None  # [U] int64, each identity once, ascending
    rows: Tensor | None = None  # [B] int64, of `distinct`
    parts: Sequence[Part] | None = None  # where there are several templates


class ImageFeatures(NamedTuple):
    """Output of an image tower, a vector per image at three depths; None where the tower has none."""

    penultimate: Tensor | None  # [B, Dp] one block before the end
    last: Tensor  # [B, D] at the end, normalised by the tower's last layer norm
    projected: Tensor | None  # [B, E] the same, in the space shared with text


class Losses(NamedTuple):
    """Losses of a batch."""

    total: Tensor  # [] to differentiate
    terms: dict[str, Tensor]  # name -> [] detached, unweighted, for the log
    accuracy: dict[str, Tensor] = {}  # noqa: RUF012 (never changed) term -> [], a fraction, by its own scores


class QueryExpansion(NamedTuple):
    """The settings of alpha query expansion (Radenovic et al., 2019)."""

    k: int  # nearest gallery images that are added to a query
    alpha: float  # exponent of the similarities that weigh them

    def __str__(self) -> str:
        return f"k {self.k}, alpha {self.alpha:g}"


class Reranking(NamedTuple):
    """The settings of k-reciprocal re-ranking (Zhong et al., 2017)."""

    k1: int  # neighbours that must be mutual
    k2: int  # neighbours that an image's neighbourhood is averaged over
    lambda_value: float  # weight of the original distance

    def __str__(self) -> str:
        return f"k1 {self.k1}, k2 {self.k2}, lambda {self.lambda_value:g}"


FP32 = "fp32"


class Refinement(NamedTuple):
    """What was done at test besides comparing the features of images; nothing by default."""

    flip: bool = False  # features are means over the image and its mirror image
    query_expansion: QueryExpansion | None = None
    re_ranking: Reranking | None = None
    precision: str = FP32  # of the towers

    @staticmethod
    def of(entry: Mapping) -> Refinement:
        """What an entry of results.json says; what earlier versions could not do is missing there."""
        expansion, reranking = entry.get("query_expansion"), entry.get("re_ranking")
        return Refinement(
            bool(entry.get("flip")),
            QueryExpansion(*map(expansion.get, QueryExpansion._fields)) if expansion else None,
            Reranking(*map(reranking.get, Reranking._fields)) if reranking else None,
            entry.get("precision") or FP32,
        )

    def entry(self) -> dict[str, Any]:
        """The same as plain types, for an entry of results.json or a line of metrics.jsonl."""
        return {
            "flip": self.flip,
            "query_expansion": self.query_expansion._asdict() if self.query_expansion else None,
            "re_ranking": self.re_ranking._asdict() if self.re_ranking else None,
            "precision": self.precision,
        }

    def __str__(self) -> str:
        done = [
            "flip" if self.flip else "",
            f"query expansion ({self.query_expansion})" if self.query_expansion else "",
            f"re-ranked ({self.re_ranking})" if self.re_ranking else "",
            f"in {self.precision}" if self.precision != FP32 else "",
        ]
        return ", ".join(filter(None, done))


class Ranking(NamedTuple):
    """Figures of one trial, as fractions."""

    mAP: float
    mINP: float
    cmc: Tensor  # [K] float64; cmc[0] is rank-1
    num_valid: int  # queries with at least one match
    num_queries: int
    precision: Tensor | None = None  # [V] float64, of each query with a match; mAP is their mean
    hit: Tensor | None = None  # [V] float64, 1 where the first image is a match; rank-1 is their mean


class Evaluation(NamedTuple):
    """All trials of a benchmark."""

    trials: tuple[Ranking, ...]
    refinement: Refinement = Refinement()
    side: str = "none"  # side information: same (as in training), mean (of all in training) or none
    ranks: tuple[int, ...] = RANKS

    def values(self) -> list[dict[str, float]]:
        """The figures of every trial by name."""
        return [
            {"mAP": t.mAP, "mINP": t.mINP, **{f"rank{k}": t.cmc[k - 1].item() for k in self.ranks}} for t in self.trials
        ]

    @property
    def mean(self) -> dict[str, float]:
        """mAP, mINP, rank1, rank5, ..., averaged over the trials."""
        rows = self.values()
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    @property
    def std(self) -> dict[str, float]:
        """Their population standard deviation over the trials; 0 for a single trial."""
        rows, mean = self.values(), self.mean
        return {name: (sum((row[name] - mean[name]) ** 2 for row in rows) / len(rows)) ** 0.5 for name in mean}


class Hit(NamedTuple):
    """A gallery image in a rank list."""

    rank: int  # from 1
    name: str  # its path
    score: float  # cosine
    camera: str | None = None  # None: unknown
    correct: bool | None = None  # whether it shows the query's identity; None: unknown


class RankList(NamedTuple):
    """A query and what was found for it."""

    query: str  # its path
    found: Sequence[Hit]  # best first; some ranks may be left out
    camera: str | None = None
    note: str = ""  # on how it fared
    left_out: Sequence[str] = ()  # the query itself, as the gallery has it


def to_device(record, device: torch.device):
    """A copy of `record`, and of the records in it, with its tensors on `device`; fields of ON_HOST stay."""
    if isinstance(record, Tensor):
        return record.to(device, non_blocking=True)
    if isinstance(record, tuple) and hasattr(record, "_fields"):
        fields = zip(record._fields, record, strict=True)
        return type(record)(*(field if name in ON_HOST else to_device(field, device) for name, field in fields))
    return record


def to_device_at_once(tensors: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Tensors [n, ...] of one dtype, n differing, on `device`, by one copy."""
    return to_device(torch.cat(list(tensors)), device).split([len(tensor) for tensor in tensors])
