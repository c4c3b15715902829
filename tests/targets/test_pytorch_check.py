"""Check and conversion of PyTorch networks for targets, from modules, exported programs and .pt2 files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import onebyone
from onebyone.errors import BadInput
from onebyone.targets import TargetCheck


class Attention(nn.Module):
    """One block of attention with a fused projection, whose reshape has five axes."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(1, 5, 8))


def found(check: TargetCheck) -> list[tuple[str, str, object, object]]:
    return [(o.path, o.constraint, o.found, o.allowed) for o in check.offenders]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=(1, 2), padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


X = torch.ones(1, 3, 8, 8)


def test_the_form_of_layers() -> None:
    m = network()
    assert found(onebyone.check(m, "conv-only", example=X)) == [("4", "form", "aten.linear", "Conv")]
    pointwise = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)).eval()
    assert found(onebyone.check(pointwise, "linear-only", example=X)) == [
        ("0", "form", "aten.conv2d", "MatMul or Gemm")
    ]


def test_numbers_of_layers() -> None:
    m = network()
    assert found(onebyone.check(m, "tidl", example=X)) == [("0", "unequal-strides", 1, 0)]
    large = nn.Sequential(nn.AdaptiveAvgPool2d(1)).eval()
    assert found(onebyone.check(large, "tidl", example=torch.ones(1, 2, 32, 33))) == [
        ("0", "kernel-area", 1056, 1024)
    ]
    assert not onebyone.check(large, "tidl", example=torch.ones(1, 2, 32, 32)).offenders
    wide = nn.Conv2d(2, 2, (1, 14)).eval()
    assert found(onebyone.check(wide, "ane", example=torch.ones(1, 2, 4, 20))) == [
        ("conv2d", "kernel-width", 14, 13)
    ]


def test_the_rank_of_attention_s_reshape() -> None:
    check = onebyone.check(Attention().eval(), "qnn-htp", example=torch.ones(1, 5, 8))
    assert {(o.constraint, o.found, o.allowed) for o in check.offenders} == {("rank", 5, 4)}
    assert all(o.mendable is False and "ONNX" in o.how for o in check.offenders)


def test_free_sizes() -> None:
    batch = torch.export.Dim("batch", min=2, max=16)
    program = torch.export.export(
        nn.Linear(4, 3).eval(), (torch.ones(4, 4),), dynamic_shapes=({0: batch},), strict=False
    )
    check = onebyone.check(program, "nvidia-dla")
    assert found(check) == [("input", "static-shapes", "?×4", "fixed sizes")]


def test_a_file_and_several_targets(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(network(), (X,)), path)
    check = onebyone.check(path, ["conv-only", "tidl"])
    assert [(o.target, o.path) for o in check.offenders] == [("conv-only", "4"), ("tidl", "0")]
    assert check.offenders[0].mendable
    assert "2 of" in check.headline()


@pytest.mark.parametrize(("target", "kind"), [("conv-only", nn.Linear), ("linear-only", nn.Conv2d)])
def test_conversion_to_the_target_s_form(target: str, kind: type[nn.Module]) -> None:
    m = (
        nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        if kind is nn.Linear
        else nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU())
    )
    x = torch.ones(2, 6) if kind is nn.Linear else torch.ones(2, 6, 3, 3)
    conversion = onebyone.convert(m.eval(), target=target, example=x)
    assert [change.path for change in conversion.changes] == ["0"]
    assert not conversion.refused
    assert onebyone.check(conversion.model, target).ok
    assert onebyone.verify(conversion_source(m, x), conversion, x).equivalent


def conversion_source(m: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(m.eval(), (x,))


def test_what_stays_is_listed() -> None:
    conversion = onebyone.convert(network(), target="ane", example=torch.ones(1, 3, 8, 8))
    assert [change.path for change in conversion.changes] == ["4"]
    assert [refusal.path for refusal in conversion.refused] == []
    wide = nn.Sequential(nn.Conv2d(3, 4, (1, 14)), nn.Flatten(), nn.Linear(4 * 8 * 3, 2)).eval()
    conversion = onebyone.convert(wide, target="ane", example=torch.ones(1, 3, 8, 16))
    assert [(r.path, r.reason.partition(":")[0]) for r in conversion.refused] == [
        ("0", "kernel-width is 14, allowed 13")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "rknn"}, "target='rknn': asks for no form of layers"),
        (
            {"target": "conv-only", "to": "linear"},
            "to='linear': the target conv-only asks for the form 'conv'",
        ),
        ({"target": "conv-only", "level": "layers"}, "target: applies to ONNX models and to level='graph'"),
        ({"target": "conv-only", "freeze_initialisers": True}, "applies to ONNX models only"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message.replace("'", ".")):
        onebyone.convert(network(), example=X, **arguments)  # type: ignore[arg-type]


def test_bad_arguments_of_check() -> None:
    with pytest.raises(BadInput, match="example: is missing"):
        onebyone.check(network(), "conv-only")
    with pytest.raises(BadInput, match=r"target=\(\): expected at least one target"):
        onebyone.check(network(), [], example=X)
