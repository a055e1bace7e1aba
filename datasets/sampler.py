"""Which images make a batch: K images of each of P identities or clusters for training, all in order for testing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from utils.errors import DataError


class Batches(Sampler[list[int]]):
    """Batches that are drawn up before the first is asked for: `len` is exact."""

    batches: list[list[int]]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class IdentitySampler(Batches):
    """A batch sampler of `identities` x `instances` images (Hermans et al., 2017; TransReID's order of drawing).

    In every epoch each identity's images are shuffled and cut into groups of K; a rest is left out, an identity with
    fewer than K images draws K with replacement. Batches then take one group from each of P identities, drawn
    uniformly among those that have groups left, until fewer than P have any. Every batch is full, identities in it are
    distinct, and an image of an identity with at least K is used at most once in an epoch.

    Unlike published samplers, `len` is exact: the epoch is drawn up before it is counted.

    Args:
        pids: identity of every image.
        identities, instances: P and K, of the whole batch, over all processes.
        seed: of the draws, together with the epoch.
        count: of batches in an epoch, from as many such passes as it takes, the last cut short; 0 for one whole pass.
        rank, world_size: this process's share of the P identities of every batch, of which all must have equally many.

    Raises:
        DataError: fewer than P identities.
    """

    def __init__(
        self,
        pids: Sequence[int],
        identities: int,
        instances: int,
        *,
        seed: int,
        count: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.rows: dict[int, list[int]] = {}
        for row, pid in enumerate(pids):
            self.rows.setdefault(int(pid), []).append(row)
        if len(self.rows) < identities:
            raise DataError(
                f"SOLVER.STAGE2.IMS_PER_BATCH {identities * instances} with DATALOADER.NUM_INSTANCE {instances} takes "
                f"{identities} identities a batch; the training set has {len(self.rows)}"
            )
        self.identities, self.instances, self.seed, self.count = identities, instances, seed, count
        self.rank, self.world_size = rank, world_size
        self.set_epoch(0)

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Draw up the batches of an epoch, without the first `done` ones, which an earlier run has seen."""
        rng = np.random.default_rng([self.seed, epoch])
        batches = self._pass(rng)
        while len(batches) < self.count:
            batches += self._pass(rng)
        self.batches = batches[done : self.count or None]

    def _pass(self, rng: np.random.Generator) -> list[list[int]]:
        """This process's share of the batches of a pass over the images."""
        groups = {pid: self._groups(self.rows[pid], rng) for pid in sorted(self.rows)}
        batches = []
        while len(groups) >= self.identities:
            drawn = rng.choice(np.array(list(groups)), self.identities, replace=False).tolist()
            batch = [groups[pid].pop() for pid in drawn]
            batches.append([row for group in batch[self.rank :: self.world_size] for row in group])
            groups = {pid: left for pid, left in groups.items() if left}
        return batches

    def _groups(self, rows: list[int], rng: np.random.Generator) -> list[list[int]]:
        k = self.instances
        if len(rows) < k:
            return [rng.choice(rows, k).tolist()]
        shuffled = rng.permutation(rows).tolist()
        return [shuffled[start : start + k] for start in range(0, len(shuffled) - k + 1, k)]


class ClusterSampler(Batches):
    """A batch sampler of `clusters` x `instances` images of each modality, from pseudo-labels (CCLNet).

    For every batch, P of a modality's clusters are drawn uniformly, and K images of each: with replacement where a
    cluster has fewer (the published program always draws so). Modalities are drawn independently and stand one after
    the other, clusters one after the other. As published there are floor(max N / (P K)) + 1 batches an epoch, where N
    are a modality's images that are in a cluster; none without any.

    Of a modality with fewer than P clusters, all are in every batch. Of several processes, all have equally many:
    where their number does not divide a modality's clusters, some of these are left out of a batch; a modality with
    fewer clusters than processes takes no part.

    Args:
        labels: cluster of every image, numbered in each modality by itself; -1 is in none and never drawn.
        modalities: of every image.
        clusters, instances: P and K, of the whole batch, over all processes.
        seed: of the draws, together with the epoch and the modality.
        rank, world_size: this process's share of each modality's clusters in every batch.
    """

    def __init__(
        self,
        labels: Sequence[int],
        modalities: Sequence[int],
        clusters: int,
        instances: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.modalities = modalities
        self.clusters, self.instances, self.seed = clusters, instances, seed
        self.rank, self.world_size = rank, world_size
        self.set_labels(labels)
        self.set_epoch(0)

    def set_labels(self, labels: Sequence[int]) -> None:
        """Draw from these clusters from the next `set_epoch` on."""
        self.rows: dict[int, dict[int, list[int]]] = {}
        for row, (label, modality) in enumerate(zip(labels, self.modalities, strict=True)):
            if label >= 0:
                self.rows.setdefault(int(modality), {}).setdefault(int(label), []).append(row)
        # Of fewer clusters than processes, not every process would have one.
        self.rows = {modality: rows for modality, rows in self.rows.items() if len(rows) >= self.world_size}

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Draw up the batches of an epoch, without the first `done` ones, which an earlier run has seen."""
        sizes = [sum(map(len, rows.values())) for rows in self.rows.values()]
        count = max(sizes) // (self.clusters * self.instances) + 1 if sizes else 0
        self.batches = [[] for _ in range(count)]
        for modality, rows in sorted(self.rows.items()):
            rng = np.random.default_rng([self.seed, epoch, modality])
            for batch in self.batches:
                batch.extend(self._half(rows, rng))
        del self.batches[:done]

    def _half(self, rows: dict[int, list[int]], rng: np.random.Generator) -> list[int]:
        """This process's images of one modality in the next batch."""
        number = min(self.clusters, len(rows)) // self.world_size * self.world_size
        groups = [
            rng.choice(rows[label], self.instances, replace=len(rows[label]) < self.instances).tolist()
            for label in rng.choice(sorted(rows), number, replace=False).tolist()
        ]
        return [row for group in groups[self.rank :: self.world_size] for row in group]


class OrderedSampler(Batches):
    """A batch sampler of all images in their order; several processes take turns.

    Batches are those of a single process, because a network's results may depend, in the last digit, on the size of its
    batch.

    Args:
        count: of images.
        size: of a batch; the last one may be short.
        rank, world_size: this process has batch number `rank` and every `world_size`th after it, which may be none.
    """

    def __init__(self, count: int, size: int, *, rank: int = 0, world_size: int = 1):
        starts = range(0, count, size)[rank::world_size]
        self.batches = [list(range(start, min(start + size, count))) for start in starts]
