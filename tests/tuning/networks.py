"""Small networks with different signatures and outputs, and engines that compute wrong results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onebyone.tuning.call_signature import Call, CallSignature
from onebyone.tuning.engines import Engine, EngineSettings, base


def images() -> nn.Module:
    """Return a network of a 3×3 convolution, two 1×1 convolutions and two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1)),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 5)),
    )


class Block(nn.Module):
    """A residual MLP block of tokens (B, T, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fc2(torch.nn.functional.gelu(self.fc1(self.norm(x))))
        return out


def tokens(blocks: int = 3) -> nn.Module:
    """Return identical blocks (three by default) and a head."""
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(blocks)), nn.Linear(8, 4))


class TwoInputs(nn.Module):
    """Two inputs, one of them optional and keyword-only; the output is a tuple that contains a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor, *, scale: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        y, z = self.a(x), self.b(x)
        return y + z, {"product": y * z, "scaled": y if scale is None else y * scale}


class Answer(NamedTuple):
    logits: Tensor
    features: Tensor


class Named(nn.Module):
    """Maps token ids to a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Answer:
        features = self.table(ids)
        return Answer(self.head(features.mean(1)), features)


def eager(network: nn.Module, calling: CallSignature, setting: EngineSettings) -> Call:
    return base.engine_named("eager").build(network, calling, setting)


def constant(network: nn.Module, calling: CallSignature, setting: EngineSettings) -> Call:
    """Return the output of the example for every input: fast, and wrong."""
    with torch.inference_mode():
        answer = calling.run(network)
    return lambda *args, **kwargs: answer


def slightly_off(network: nn.Module, calling: CallSignature, setting: EngineSettings) -> Call:
    """Round the outputs to bfloat16."""
    call = eager(network, calling, setting)
    return lambda *args, **kwargs: call(*args, **kwargs).bfloat16().float()


@contextmanager
def registered(*engines: Engine) -> Iterator[None]:
    """Register engines while the context is open."""
    before = dict(base._ENGINES)
    try:
        for engine in engines:
            base.register_engine(engine)
        yield
    finally:
        base._ENGINES.clear()
        base._ENGINES.update(before)


def engine(name: str, build: Callable[..., Any], **options: Any) -> Engine:
    return Engine(name, build, **({"fixed_shapes": False} | options))
