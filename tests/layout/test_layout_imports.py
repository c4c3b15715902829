"""The planner works in a Python that has neither PyTorch nor ONNX."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import pkgutil, sys
import onebyone.layout
for module in pkgutil.iter_modules(onebyone.layout.__path__):
    __import__(f"onebyone.layout.{module.name}")
loaded = {"torch", "onnx", "onnx_ir", "onnxruntime", "onebyone.lifting", "onebyone.pytorch"} & set(sys.modules)
print(len(list(pkgutil.iter_modules(onebyone.layout.__path__))), sorted(loaded))
"""


def test_no_framework_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=1800
    )
    count, loaded = done.stdout.split(maxsplit=1)
    assert int(count) >= 9
    assert loaded.strip() == "[]"
