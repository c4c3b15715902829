"""One compilation of the kernels for all processes of a test session.

The kernels take ten seconds to compile, once per process by design. A test session has many processes: the workers of
pytest-xdist, and the subprocesses that run command lines and documents. CXX is set to a wrapper of g++, `bin/g++`, that
keeps compiled kernels for the session, by the content of their sources and flags.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

_VARIABLE = "ONEBYONE_KERNEL_CACHE"


def share_compiled_kernels(config: pytest.Config) -> None:
    """Set CXX for this session and its subprocesses, unless it is set already or a tool is missing."""
    if "CXX" in os.environ or not all(map(shutil.which, ("sh", "g++", "flock", "sha256sum"))):
        return
    folder = tempfile.mkdtemp(prefix="onebyone-kernels-")
    os.environ |= {"CXX": str(Path(__file__).parent / "bin" / "g++"), _VARIABLE: folder}

    def restore() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("CXX", _VARIABLE):
            os.environ.pop(name, None)

    config.add_cleanup(restore)
