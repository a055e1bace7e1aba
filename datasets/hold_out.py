"""A validation split of training identities, so that settings can be chosen without looking at the test split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from utils.errors import DataError
from utils.records import Benchmark, Sample, Trial


def hold_out(benchmark: Benchmark, share: float, seed: int) -> Benchmark:
    """The same benchmark, trained on fewer identities and evaluated on the others instead of on its test split.

    The held-out identities' first image in every camera becomes a query; all their images are the gallery.

    Raises:
        DataError: one of the two sides would have fewer than two identities.
    """
    pids = np.arange(benchmark.num_pids)
    count = round(share * len(pids))
    if min(count, len(pids) - count) < 2:
        raise DataError(f"DATASETS.HOLD_OUT {share}: {count} of {len(pids)} training identities; both sides need two")
    held = set(np.random.default_rng(seed).permutation(pids)[:count].tolist())
    labels = {pid: label for label, pid in enumerate(pid for pid in pids.tolist() if pid not in held)}
    train, query, gallery = [], [], []
    seen: set[tuple[int, int]] = set()
    for sample in benchmark.train:
        if sample.pid not in held:
            train.append(sample._replace(pid=labels[sample.pid]))
        elif (sample.pid, sample.camid) in seen:
            gallery.append(sample)
        else:
            seen.add((sample.pid, sample.camid))
            query.append(sample)
    # An identity with one image a camera has no others: its queries look for each other across cameras.
    gallery = gallery + query
    trial = Trial(_ordered(query), _ordered(gallery))
    name = f"{benchmark.name} (held-out training identities)"
    return replace(benchmark, name=name, train=tuple(train), trials=(trial,), seen=())


def _ordered(samples: list[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples))
