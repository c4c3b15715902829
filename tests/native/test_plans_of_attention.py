"""Attention in plans: masks, orders of heads, scores written out; against the network in float64."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.native.steps import AttentionStep
from tests.native.plans import no_compiler, planned, read, tokens

__all__ = ["no_compiler"]  # a fixture
pytestmark = pytest.mark.usefixtures("no_compiler")


class Encoder(nn.Module):
    """As in BERT: norms after the sums, separate keys and values; scores computed explicitly if `eager`."""

    def __init__(
        self, width: int = 32, heads: int = 4, eager: bool = False, mask: Tensor | None = None
    ) -> None:
        super().__init__()
        self.heads, self.eager = heads, eager
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, 1e-12) for _ in range(2))
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) → (N, T, C)."""
        n, t, c = x.shape
        q, k, v = (f(x).view(n, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.eager:
            scores = q @ k.transpose(-1, -2) / math.sqrt(c // self.heads)
            if self.mask is not None:
                scores = scores + self.mask
            mixed = F.dropout(scores.softmax(-1), 0.1, self.training) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, self.mask)
        x = self.norms[0](self.out(mixed.transpose(1, 2).reshape(n, t, c)) + x)
        out: Tensor = self.norms[1](self.down(F.gelu(self.up(x), approximate="tanh")) + x)
        return out


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("mask", [None, (7, 7), (1, 4, 7, 7), (1, 1, 1, 7)])
def test_rows_of_tokens(samples: int, eager: bool, mask: tuple[int, ...] | None) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(Encoder(eager=eager, mask=None if mask is None else torch.randn(mask)) for _ in "12")
    )
    counts = planned(network, tokens(samples, 7, 32))
    assert counts == Counter(INPUT=1, LINEAR=12, ATTENTION=2, LAYER_NORM=4)


def test_a_mask_is_stored_once_for_samples_and_heads_that_share_it() -> None:
    for mask, strides in ((torch.randn(7, 7), (0, 0)), (torch.randn(1, 4, 7, 7), (0, 49))):
        steps, _ = read(Encoder(mask=mask), tokens(3, 7, 32))
        (step,) = [s for s in steps if isinstance(s, AttentionStep)]
        assert step.bias_strides == strides
        assert step.bias is not None
        assert step.bias.numel() == mask.numel()


class Attends(nn.Module):
    """`function` of queries, keys and values (N, 4, T, 8)."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.qkv, self.function = nn.Linear(32, 96), function

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, 32) to whatever the function gives."""
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.function(q, k, v)


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q * 0.3) @ (k * 0.5).transpose(-2, -1)
    scores += torch.arange(5.0, dtype=q.dtype)
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -math.inf).softmax(-1) @ v


ATTENTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "hidden": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.ones(5, 5).tril().bool()),
    "scaled": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.7),
    "written out": masked,
    "of fewer queries": lambda q, k, v: F.scaled_dot_product_attention(q[:, :, 1:3], k, v),
    "one key's channels turned": lambda q, k, v: F.scaled_dot_product_attention(q, k.flip(-1), v),
    "in one batch axis": lambda q, k, v: torch.bmm(
        torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).softmax(-1), v.flatten(0, 1)
    ).view_as(q),
    "a key for all heads": lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :1].expand_as(k), v),
    "wider values": lambda q, k, v: F.scaled_dot_product_attention(q, k, torch.cat([v, q], -1)),
    "more axes for a while": lambda q, k, v: (q @ k.mT).unsqueeze(0).squeeze(0).softmax(-1) @ v,
}


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name: str, samples: int) -> None:
    torch.manual_seed(0)
    within = 1e-6 if "hidden" in name else 1e-11
    assert planned(Attends(ATTENTIONS[name]), tokens(samples, 5, 32), within)["ATTENTION"] == 1
