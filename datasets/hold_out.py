"""A validation split of training identities, so that settings can be chosen without looking at the test split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from utils.errors import DataError
from utils.records import Benchmark, Sample, Trial


def hold_out(benchmark: Benchmark, share: float, seed: int) -> Benchmark:
    """The same benchmark, trained on fewer identities and evaluated on the others instead of on its test split.

    The held-out identities' first image in every camera becomes a query; all their images are the gallery. Of two
    modalities, the one that queries have in the test split has all of them here, and the other one is the gallery.

    Raises:
        DataError: one of the two sides would have fewer than two identities.
    """
    pids = np.arange(benchmark.num_pids)
    count = round(share * len(pids))
    if min(count, len(pids) - count) < 2:
        raise DataError(f"DATASETS.HOLD_OUT {share}: {count} of {len(pids)} training identities; both sides need two")
    held = set(np.random.default_rng(seed).permutation(pids)[:count].tolist())
    labels = {pid: label for label, pid in enumerate(pid for pid in pids.tolist() if pid not in held)}
    train = tuple(s._replace(pid=labels[s.pid]) for s in benchmark.train if s.pid not in held)
    samples = [sample for sample in benchmark.train if sample.pid in held]
    parts = tuple(_tested(part, samples) for part in benchmark.parts)
    trials = tuple(trial for part in parts for trial in part.trials)
    whole = replace(_tested(benchmark, samples), train=train, parts=parts)
    return replace(whole, trials=trials) if parts else whole


def _tested(benchmark: Benchmark, samples: list[Sample]) -> Benchmark:
    """The same, tested on `samples`."""
    if benchmark.templates:
        modality = benchmark.trials[0].query[0].modality
        query = [sample for sample in samples if sample.modality == modality]
        gallery = [sample for sample in samples if sample.modality != modality]
    else:
        # An identity with one image a camera has no others: its queries look for each other across cameras.
        query = list({(sample.pid, sample.camid): sample for sample in reversed(samples)}.values())
        gallery = samples
    trial = Trial(tuple(sorted(query)), tuple(sorted(gallery)))
    name = f"{benchmark.name} (held-out training identities)"
    return replace(benchmark, name=name, trials=(trial,), seen=())
