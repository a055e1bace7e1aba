"""Which images make a batch: P identities with K images of each for training, all in their order for testing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from utils.errors import DataError


class IdentitySampler(Sampler[list[int]]):
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
        rank, world_size: this process's share of the P identities of every batch, of which all must have equally many.

    Raises:
        DataError: fewer than P identities.
    """

    def __init__(
        self, pids: Sequence[int], identities: int, instances: int, *, seed: int, rank: int = 0, world_size: int = 1
    ):
        self.rows: dict[int, list[int]] = {}
        for row, pid in enumerate(pids):
            self.rows.setdefault(int(pid), []).append(row)
        if len(self.rows) < identities:
            raise DataError(
                f"SOLVER.STAGE2.IMS_PER_BATCH {identities * instances} with DATALOADER.NUM_INSTANCE {instances} takes "
                f"{identities} identities a batch; the training set has {len(self.rows)}"
            )
        self.identities, self.instances, self.seed = identities, instances, seed
        self.rank, self.world_size = rank, world_size
        self.set_epoch(0)

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Draw up the batches of an epoch, without the first `done` ones, which an earlier run has seen."""
        rng = np.random.default_rng([self.seed, epoch])
        groups = {pid: self._groups(self.rows[pid], rng) for pid in sorted(self.rows)}
        self.batches = []
        while len(groups) >= self.identities:
            drawn = rng.choice(np.array(list(groups)), self.identities, replace=False).tolist()
            batch = [groups[pid].pop() for pid in drawn]
            self.batches.append([row for group in batch[self.rank :: self.world_size] for row in group])
            groups = {pid: left for pid, left in groups.items() if left}
        del self.batches[:done]

    def _groups(self, rows: list[int], rng: np.random.Generator) -> list[list[int]]:
        k = self.instances
        if len(rows) < k:
            return [rng.choice(rows, k).tolist()]
        shuffled = rng.permutation(rows).tolist()
        return [shuffled[start : start + k] for start in range(0, len(shuffled) - k + 1, k)]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class OrderedSampler(Sampler[list[int]]):
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

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
