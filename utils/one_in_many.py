"""1:(1+N) retrieval: one image of a pair is the query, the other is mixed into N images of other identities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from utils.errors import DataError
from utils.metrics import Ignored
from utils.records import Labels
from utils.verification import Images

EDGES = (1, 2, 6, 11, 51, 101, 501)  # lowest ranks of the histogram's bars


class ImagePairs(NamedTuple):
    """Pairs of images of one identity."""

    query: Tensor  # int64 [P], rows of features
    match: Tensor
    pids: Tensor  # int64 [P]


def pairs_that_count(query: Images, gallery: Images, ignored: Ignored) -> ImagePairs:
    """All pairs of query and gallery of one identity that the protocol counts; no image is paired with itself.

    Raises:
        DataError: there are none.
    """
    found = []
    for place in range(len(query.rows)):
        labels = Labels(*(field[place : place + 1] for field in query.labels))
        same = (gallery.labels.pids == labels.pids) & ~ignored(labels, gallery.labels)[0]
        match = gallery.rows[same & (gallery.rows != query.rows[place])]
        found.append(ImagePairs(*(value.expand(len(match)) for value in (query.rows[place], match, labels.pids))))
    pairs = ImagePairs(*(torch.cat(fields) for fields in zip(*found, strict=True))) if found else None
    if pairs is None or not len(pairs.pids):
        raise DataError("no two images show one identity, or the protocol ignores all that do")
    return pairs


def ranks_of_matches(
    features: Tensor,
    pairs: ImagePairs,
    others: Images,
    *,
    draws: int,
    distractors: int,
    generator: torch.Generator,
) -> Tensor:
    """The rank of the match among itself and the distractors, int64 [draws], from 1.

    A draw takes an identity, one of its pairs, and distractors of other identities without replacement. A distractor
    that is as similar as the match counts as ahead of it.

    Args:
        features: float32 [M, D], each of length 1.
        others: what distractors are drawn from.
        distractors: how many; where there are fewer of other identities, all of them.
    """
    identities = pairs.pids.unique()
    own = [(pairs.pids == pid).nonzero().flatten() for pid in identities]
    ranks = []
    for _ in range(draws):
        of_one = own[int(torch.randint(len(own), (1,), generator=generator))]
        pair = of_one[torch.randint(len(of_one), (1,), generator=generator)]
        pool = others.rows[others.labels.pids != pairs.pids[pair]]
        drawn = pool[torch.randperm(len(pool), generator=generator)[:distractors]]
        query = features[pairs.query[pair]][0].double()
        match = features[pairs.match[pair]][0].double() @ query
        ranks.append(1 + int((features[drawn].double() @ query >= match).sum()))
    return torch.tensor(ranks)


def histogram(ranks: Tensor) -> dict[str, int]:
    """How many ranks are 1, 2-5, 6-10 ..."""
    counts = {}
    for low, following in zip(EDGES, [*EDGES[1:], None], strict=True):
        name = f"{low}+" if following is None else str(low) if following == low + 1 else f"{low}-{following - 1}"
        counts[name] = int(((ranks >= low) & (ranks < (following or torch.iinfo(ranks.dtype).max))).sum())
    return counts
