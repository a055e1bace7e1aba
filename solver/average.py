"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """average = decay * average + (1 - decay) * weight, after every update, from the weights at the start.

    As timm's ModelEmaV3 with `exclude_buffers`: running statistics are the network's own.

    Args:
        module: those of its parameters that train are averaged.
        optimizer: makes the updates.
    """

    def __init__(self, module: nn.Module, decay: float, optimizer: Optimizer):
        self.parameters = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.averages = {name: weight.detach().clone() for name, weight in self.parameters.items()}
        self._average = get_ema_multi_avg_fn(decay)
        optimizer.register_step_post_hook(self._update)

    def _update(self, *_) -> None:
        self._average(list(self.averages.values()), [weight.detach() for weight in self.parameters.values()], None)

    def swap(self) -> None:
        """Exchange averages and weights."""
        for name, weight in self.parameters.items():
            weight.data, self.averages[name] = self.averages[name], weight.data

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it, the module has the averages for weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Load earlier `averages`.

        Raises:
            ValueError: they are of other parameters.
        """
        for name in self.averages.keys() | averages.keys():
            if not (name in self.averages and name in averages and averages[name].shape == self.averages[name].shape):
                raise ValueError(f"average[{name!r}] is not what is averaged here")
        for name, average in self.averages.items():
            average.copy_(averages[name])
