"""`python -m bench.convert`: the cost of converting, in time, memory and layout operators.

Measured on three image classifiers with weights, and on a transformer with 7 billion parameters on the meta device.
"New storage" is the size of the untyped storages that only the converted network has; "peak" is the increase of the
highest resident memory while converting.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from bench.zoo import memory
from bench.zoo.totals import machine
from bench.zoo.work import ROOT
from onebyone.pytorch.files.sources import load_source
from onebyone.pytorch.graph.convert import convert_graph, exported
from onebyone.pytorch.modules.convert import convert_module
from onebyone.records import table

RESULTS = ROOT / "bench" / "results" / "convert.json"
REPEATS = 5


class Block(nn.Module):
    """One decoder layer of LLaMA-7B: self-attention and a gated MLP, each after an RMS norm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, width) to (N, T, width)."""
        y = self.norm1(x)
        q, k, v = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = self.norm2(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


class Decoder(nn.Module):
    """A decoder with 6.7 billion parameters: 32 layers of width 4096, 32 heads, hidden size 11008, 32000 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32000, 4096)
        self.layers = nn.Sequential(*(Block(4096, 32, 11008) for _ in range(32)))
        self.norm, self.head = nn.RMSNorm(4096), nn.Linear(4096, 32000, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (N, T) to (N, T, 32000)."""
        out: Tensor = self.head(self.norm(self.layers(self.embed(tokens))))
        return out


def _decoder() -> nn.Module:
    with torch.device("meta"):
        return Decoder().eval()


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = load_source(f"torchvision:{name}")
        assert isinstance(model, nn.Module)
        return model

    return build


IMAGE = torch.zeros(1, 3, 224, 224)
TOKENS = torch.zeros(1, 128, dtype=torch.int64, device="meta")
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "VGG-16": (_torchvision("vgg16"), IMAGE),
    "ViT-B/16": (_torchvision("vit_b_16"), IMAGE),
    "ConvNeXt-T": (_torchvision("convnext_tiny"), IMAGE),
    "7B transformer (meta)": (_decoder, TOKENS),
}


def measure(name: str) -> dict[str, Any]:
    """Measure one network at every level and in both directions."""
    build, example = NETWORKS[name]
    model = build()
    weights = sum(t.numel() * t.element_size() for t in model.parameters())
    row: dict[str, Any] = {"network": name, "parameters": sum(p.numel() for p in model.parameters())}
    row["weight_bytes"] = weights
    for level in ("layers", "native"):
        row[level] = _repeated(lambda level=level: convert_module(model, to="conv", level=level), model)
        row[level]["new_storage_share"] = row[level]["new_storage_bytes"] / weights
    program = exported(model, example)
    for to in ("conv", "linear"):
        start = time.perf_counter()
        graph = convert_graph(program, to=to)
        row[f"graph_{to}"] = {
            "seconds": time.perf_counter() - start,
            "layers": len(graph.changes),
            "copied_bytes": graph.copied_bytes,
            "layout_before": graph.layout_before.total(),
            "layout_after": graph.layout_after.total(),
        }
    return row


def _repeated(convert: Callable[[], Any], model: nn.Module) -> dict[str, Any]:
    """Return the median time of several conversions, and the memory of the first."""
    gc.collect()
    before, seconds, peak = memory.forget_peak(), [], 0
    for turn in range(REPEATS):
        start = time.perf_counter()
        result = convert()
        seconds.append(time.perf_counter() - start)
        peak = memory.peak() - before if turn == 0 else peak
    return {
        "seconds": sorted(seconds)[REPEATS // 2],
        "layers": len(result.changes),
        "refused": len(result.refused),
        "peak_bytes": max(0, peak),
        "new_storage_bytes": new_storage(model, result.model),
    }


def new_storage(original: nn.Module, converted: nn.Module) -> int:
    """Return the bytes of the untyped storages that only the converted network has."""
    old = {s._cdata for s in _storages(original)}
    return sum({s._cdata: s.nbytes() for s in _storages(converted) if s._cdata not in old}.values())


def _storages(model: nn.Module) -> list[torch.UntypedStorage]:
    return [t.untyped_storage() for t in [*model.parameters(), *model.buffers()]]


def rows(measured: list[dict[str, Any]]) -> list[list[str]]:
    """Return the measurements as rows of a table."""
    table_rows = []
    for row in measured:
        layers, native, conv, linear = (row[k] for k in ("layers", "native", "graph_conv", "graph_linear"))
        table_rows.append(
            [
                row["network"],
                f"{row['parameters'] / 1e6:,.1f} M",
                str(layers["layers"]),
                f"{layers['seconds'] * 1e3:.1f} ms",
                f"{native['seconds'] * 1e3:.1f} ms",
                f"{layers['peak_bytes'] / 2**20:.1f} MiB",
                f"{layers['new_storage_share']:.2%}",
                f"{conv['seconds']:.2f} s",
                f"{conv['layout_before']} → {conv['layout_after']}",
                f"{linear['layout_before']} → {linear['layout_after']}",
            ]
        )
    return table_rows


HEAD = (
    "network",
    "parameters",
    "layers",
    'level="layers"',
    '"native"',
    "peak memory",
    "new storage",
    '"graph"',
    "layout operators, to conv",
    "to linear",
)


def main() -> int:
    """Measure, print the table, and write `bench/results/convert.json`."""
    console = Console(stderr=True)
    measured = []
    for name in NETWORKS:
        with console.status(name):
            measured.append(measure(name))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(
        json.dumps({"machine": machine(), "networks": measured}, indent=1) + "\n", encoding="utf-8"
    )
    print(table(HEAD, rows(measured)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
