"""What the tests of files share: one sentence of a BadInput, checkpoints and archives to damage."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onebyone.errors import BadInput


def sentence(call: Callable[[], object]) -> str:
    """The message of the BadInput that `call` raises, which must be one line."""
    with pytest.raises(BadInput) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def fresh() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def same(network: nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, expected[k]) for k, v in network.state_dict().items())


class Small(nn.Module):
    """A network whose program has free sizes, arithmetic on them, guards and a named parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.register_buffer("scale", torch.ones(4, 1, 1))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.conv(image) * self.scale
        return {"map": x, "flat": x.reshape(x.shape[0], -1, x.shape[2] * x.shape[3])}


def recompress(source: Path, target: Path) -> None:
    rewrite(source, target, zipfile.ZIP_DEFLATED)


def rewrite(
    source: Path,
    target: Path,
    compression: int = zipfile.ZIP_STORED,
    edit: Callable[[dict[str, bytes]], None] = lambda records: None,
) -> Path:
    """The archive again, with its records edited: names are given without the root folder."""
    with zipfile.ZipFile(source) as archive:
        root = archive.namelist()[0].split("/")[0]
        records = {n.split("/", 1)[1]: archive.read(n) for n in archive.namelist()}
    edit(records)
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(f"{root}/{name}", content)
    return target


class Evil:
    """Runs when it is unpickled: makes a directory."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)
