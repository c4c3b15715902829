"""Fixtures of the tests of programs in files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.export import Dim, export

from tests.pytorch.source_files import Small


@pytest.fixture(scope="session")
def program_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("program") / "good.pt2"
    sizes = {0: Dim.AUTO, 2: Dim("height", min=8, max=512), 3: Dim.AUTO}
    torch.manual_seed(0)
    torch.export.save(
        export(Small().eval(), (torch.randn(2, 3, 9, 12),), dynamic_shapes=(sizes,)),
        path,
        extra_files={"onebyone.json": '{"a": "ä"}'},
    )
    return path.read_bytes()


@pytest.fixture
def program(program_bytes: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "good.pt2"
    path.write_bytes(program_bytes)
    return path
