"""The option --window: one number for every axis of the network, or one per axis."""

from __future__ import annotations

import json

import pytest
from torch import nn
from typer.testing import CliRunner

from onebyone.cli.main import app


def signals() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(60, 3))


def added_axis() -> nn.Module:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, (5, 1)), nn.Linear(4 * 60, 3)

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.head(self.conv(x[:, None, :, None]).flatten(1))

    return Added()


@pytest.mark.parametrize(
    ("factory", "window", "expected"),
    [("signals", "33", [33]), ("signals", "33,", [33]), ("added_axis", "64,", [64])],
)
def test_windows_of_signals(factory: str, window: str, expected: list[int]) -> None:
    result = CliRunner().invoke(
        app, ["convolutionalize", f"tests.cli.test_windows:{factory}", "--window", window, "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["geometry"]["window"] == expected
