"""What `convert` returns, at both levels, for layers that are easy to get wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from onebyone.pytorch.modules.convert import convert_module
from onebyone.verification import verify


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 4))


def twice() -> nn.Module:
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, nn.ReLU(), layer)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "transformer": (transformer, (2, 5, 16), "conv"),
    "spectral norm": (
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 6)), nn.Linear(6, 4)),
        (3, 8),
        "conv",
    ),
    "old weight norm": (old_weight_norm, (3, 8), "conv"),
    "used twice": (twice, (3, 8), "conv"),
    "grouped and strided": (
        lambda: nn.Sequential(nn.Conv2d(8, 12, 1, groups=4, stride=2), nn.ReLU(), nn.Conv2d(12, 3, 1)),
        (2, 8, 9, 7),
        "linear",
    ),
    "one axis, padded": (lambda: nn.Conv1d(8, 3, 1, padding=1), (2, 8, 9), "linear"),
    "three axes": (
        lambda: nn.Sequential(nn.Conv3d(4, 3, 1, bias=False), nn.ReLU()),
        (2, 4, 3, 5, 4),
        "linear",
    ),
}


@pytest.mark.parametrize("level", ["layers", "native"])
@pytest.mark.parametrize("case", CASES)
def test_real_conversions_pass(case: str, level: str) -> None:
    make, shape, to = CASES[case]
    torch.manual_seed(0)
    model, x = make().train(), torch.randn(*shape)
    c = convert_module(model, to=to, level=level)
    v = verify(model, c, x)
    assert v.equivalent, str(v)
    # an attention module is no single product: it is named as left to the whole network
    assert len(v.layers) + sum("does not consist of one weight" in note for note in v.unverified) == len(
        c.pairs
    )
    assert not any("random" in note for note in v.unverified)
    assert v.gradients is not None
    assert v.gradients.ok
    if c.pairs:
        assert v.integer_probe is True
    assert model.training


def test_layers_on_the_meta_device_are_never_called_equivalent() -> None:
    model = nn.Sequential(nn.Linear(8, 4, device="meta"))
    v = verify(model, convert_module(model, to="conv"))
    assert not v.equivalent
    assert any("meta device" in note for note in v.unverified)


@pytest.mark.parametrize("error", [False, True])
def test_arithmetic_settings_are_put_back(error: bool) -> None:
    seen: dict[str, Any] = {}

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            seen.update(state(), training=self.training)
            if error:
                raise ValueError("no")
            return self.layer(x)

    def state() -> dict[str, Any]:
        b = torch.backends
        return {
            "conv": b.cudnn.conv.fp32_precision,
            "matmul": b.cuda.matmul.fp32_precision,
            "deterministic": b.cudnn.deterministic,
            "half": b.cuda.matmul.allow_fp16_reduced_precision_reduction,
            "fast path": b.mha.get_fastpath_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
        }

    model = Looks().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = state()
        c = convert_module(model, to="conv")
        if error:
            with pytest.raises(ValueError, match="model fails on x"):
                verify(model, c, torch.ones(1, 3))
        else:
            assert verify(model, c, torch.ones(1, 3)).equivalent
        assert state() == before
    assert (seen["conv"], seen["matmul"]) == ("ieee", "ieee")
    assert seen["deterministic"]
    assert [seen[k] for k in ("half", "fast path", "autocast", "training")] == [False] * 4
    assert model.training
