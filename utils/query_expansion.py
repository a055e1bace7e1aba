"""Alpha query expansion (Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.errors import DataError
from utils.k_reciprocal import chunks, nearest
from utils.metrics import check_finite


@torch.no_grad()
def expand_queries(query: Tensor, gallery: Tensor, k: int, alpha: float) -> Tensor:
    """Queries as means of themselves and of what is near them in the gallery.

    A query q becomes the direction of q + sum of s_i^alpha · g_i, over the k gallery images with the largest cosine
    similarities s_i; negative similarities count as 0, and the query itself has weight 1. The gallery stays as it is.

    No label is used. Every gallery image may join, also those of the query's own camera, and among them those of its
    own identity, which the protocol leaves out of the ranking: only who knows the identities could keep these out. A
    query that is in the gallery, too, as where identities are held out, is the first to join.

    Args:
        query, gallery: features [Q, D] and [G, D] of length 1.
        k: from 1 on; more than there are means all. Of equally similar ones, the first.
        alpha: from 0 on; 0 weighs all alike.

    Returns:
        [Q, D], of length 1. Similarities are held for a chunk of queries at a time.

    Raises:
        DataError: features are not finite, or the gallery is empty.
    """
    check_finite(query, gallery)
    if not len(gallery):
        raise DataError("no gallery image to expand queries with")
    k = min(k, len(gallery))
    expanded = torch.empty_like(query)
    for rows in chunks(len(query), max(len(gallery), k * gallery.shape[1])):
        similarities = query[rows] @ gallery.T
        neighbours = nearest(-similarities, k)
        weights = similarities.gather(1, neighbours).clamp(min=0) ** alpha
        expanded[rows] = query[rows] + (weights[:, None] @ gallery[neighbours])[:, 0]
    return F.normalize(expanded, dim=1)
