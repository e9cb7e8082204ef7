"""What a serving process must not carry."""

from __future__ import annotations

import subprocess
import sys

CHECK = """
import sys
import serving.app, serving.replica, serving.plan
import feast
assert "torch" not in sys.modules, "serving imported PyTorch"
from feast.torch_wrapper import get_torch
try:
    import torch
except ModuleNotFoundError:
    pass
else:
    assert get_torch() is torch
"""


def test_serving_imports_feast_without_pytorch() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
