# Every program here imports this package first, Feast later if at all. Feast imports PyTorch where it is installed, for
# tensors nobody here asks it for: seconds and some 200 MB in each process that serves. It gets it when it asks.
import sys
from types import ModuleType


def _get_torch() -> ModuleType:
    import torch

    return torch


_lazy = ModuleType("feast.torch_wrapper")
_lazy.get_torch = _get_torch  # type: ignore[attr-defined]
sys.modules.setdefault(_lazy.__name__, _lazy)
