"""The any-size rules import without any framework."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onebyone.lifting

PACKAGE = Path(onebyone.lifting.__file__).parent


def test_every_module_of_lifting_imports_without_torch_and_onnx() -> None:
    files = [p.relative_to(PACKAGE.parents[1]).with_suffix("") for p in PACKAGE.rglob("*.py")]
    names = sorted(".".join(p.parts).removesuffix(".__init__") for p in files)
    assert "onebyone.lifting.rules.table" in names
    script = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
frameworks = [n for n in ("torch", "onnx", "onnx_ir", "onnxruntime") if n in sys.modules]
assert not frameworks, frameworks
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=1800)
