"""From samples to batches: decoding, the random draws of every image, collation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from utils.errors import DataError
from utils.records import Batch, Sample, Side
from utils.seeds import derive


class Images(Dataset):
    """Samples as tensors.

    What is drawn for an image depends on (seed, epoch, index in the list of samples) and, where a batch holds the same
    image several times, on which of them it is; never on workers, their number or the order of batches.

    Args:
        samples: what to read.
        transform: (picture, twins=...) -> image [3, H, W], twins [2, 3, H, W] or None.
        twins: whether to make two more augmentations of every image.
        seed: of all draws.
    """

    def __init__(self, samples: Sequence[Sample], transform: Callable, *, twins: bool = False, seed: int = 0):
        self.samples = samples
        self.transform = transform
        self.twins = twins
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change

    def set_epoch(self, epoch: int) -> None:
        """Draw anew; call it before a loader starts to iterate."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor | None]:
        return self._draw(index, repeat=0)

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Tensor, Tensor | None]]:
        """A whole batch: an identity with few images fills its places with copies, which must not be drawn alike."""
        return [self._draw(index, repeat=indices[:place].count(index)) for place, index in enumerate(indices)]

    def _draw(self, index: int, repeat: int) -> tuple[int, Tensor, Tensor | None]:
        picture = read_image(self.samples[index].path)
        seed = derive(self.seed, int(self.epoch), index, repeat)
        state = random.getstate()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators, too
            random.seed(seed)
            image, twins = self.transform(picture, twins=self.twins)
        random.setstate(state)
        return index, image, twins

    def collate(self, items: list[tuple[int, Tensor, Tensor | None]]) -> Batch:
        """What `__getitems__` returned -> Batch."""
        indices, images, twins = zip(*items, strict=True)
        samples = [self.samples[index] for index in indices]
        return Batch(
            images=torch.stack(images),
            pids=torch.tensor([sample.pid for sample in samples]),
            side=Side(
                torch.tensor([sample.camid for sample in samples]), torch.tensor([sample.viewid for sample in samples])
            ),
            indices=torch.tensor(indices),
            twins=torch.stack(twins, dim=1) if self.twins else None,
        )


def read_image(path: str) -> Image.Image:
    """A picture in RGB.

    Raises:
        DataError: naming the file that is missing, cut off or no image. Read once: what fails now fails again.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image ({' '.join(str(error).split())})") from error
