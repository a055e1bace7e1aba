"""Towers, prompts, heads and the network made of them.

torchvision and timm import PyTorch's compiler along with themselves, a third of the time until a test begins, and use
two functions of it. Here they are imported first, through open_clip, and get it when they call one.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

ASKED = "torch._dynamo.utils"  # where torchvision finds its function


class _Later(ModuleType):
    """Stands for the module `ASKED` while others are imported."""

    def is_compile_supported(self, device_type: str) -> bool:
        return self.__getattr__("is_compile_supported")(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python itself asks
            raise AttributeError(name)
        if sys.modules.get(ASKED) is self:  # there is no doing without the compiler
            del sys.modules[ASKED]
        return getattr(import_module(ASKED), name)


@contextmanager
def _without_compiler() -> Iterator[None]:
    disable, later = torch.compiler.disable, _Later(ASKED)

    def disable_later(fn: Any = None, recursive: bool = True, **reason: Any) -> Any:
        return getattr(torch, "_disable_dynamo", disable)(fn, recursive)  # the latter loads the compiler now

    sys.modules.setdefault(ASKED, later)
    torch.compiler.disable = disable_later
    try:
        yield
    finally:
        torch.compiler.disable = disable
        if sys.modules.get(ASKED) is later:
            del sys.modules[ASKED]


with _without_compiler():
    import open_clip  # noqa: F401
