"""Summaries over all networks: geometric means, and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

COMPILE = ("compile", "compile_freezing")
Result = dict[str, Any]


def geomean(values: Sequence[float]) -> float | None:
    """Return the geometric mean; None if there are no values.

    >>> geomean([1.0, 4.0])
    2.0
    """
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def best(result: Result, names: Sequence[str], ratio: str) -> float | None:
    """Return the smallest ratio (peer's time ÷ ours) among peers, which is that of the fastest peer."""
    peers = (result["peers"][n] for n in names if n in result["peers"])
    return min((p[ratio] for p in peers if ratio in p), default=None)


def means(results: Sequence[Result]) -> dict[str, float | None]:
    """Return geometric means over the networks of the peer's time ÷ ours.

    `*_torch_only` are those of our result with PyTorch alone, and `*_fast_products` with `fast_products=True`, over the
    networks on which that makes a difference.
    """

    def over(names: Sequence[str], ratio: str) -> float | None:
        ratios = [best(r, names or list(r["peers"]), ratio) for r in results]
        return geomean([r for r in ratios if r is not None])

    fast = {
        "eager_fast_products": over(["eager"], "ratio_fast"),
        "best_peer_fast_products": over([], "ratio_fast"),
    }
    return {
        "eager": over(["eager"], "ratio_all"),
        "eager_channels_last": over(["eager_channels_last"], "ratio_all"),
        "compile": over(COMPILE, "ratio_all"),
        "onnxruntime": over(["onnxruntime"], "ratio_all"),
        "openvino": over(["openvino"], "ratio_all"),
        "best_peer": over([], "ratio_all"),
        "eager_torch_only": over(["eager"], "ratio_torch"),
        "compile_torch_only": over(COMPILE, "ratio_torch"),
        "onnxruntime_torch_only": over(["onnxruntime"], "ratio_torch"),
        "openvino_torch_only": over(["openvino"], "ratio_torch"),
        **{name: mean for name, mean in fast.items() if mean is not None},
    }


def rows(results: Sequence[Result]) -> list[list[str]]:
    """Return one row for each result: the choice, its time, rounding ratio and share of peak, and the peers' ratios."""
    out = []
    for r in results:
        for key, label in (("all", "any engine"), ("torch", "PyTorch alone"), ("fast", "fast products")):
            if key not in r["ours"]:
                continue
            ours = r["ours"][key]
            ratio = ours["rounding_ratio"]
            cells = [
                r["name"] if key == "all" else "",
                f"{label}: {ours['engine']}, {ours['form']}",
                f"{ours['median_ms']:.1f} ± {ours['spread_ms']:.1f}",
                "–" if ratio is None else f"{ratio:.2f}",
                f"{100 * ours['of_peak']:.0f} %",
            ]
            out.append(cells + [_ratio(r, name, f"ratio_{key}") for name in PEER_COLUMNS])
    return out


PEER_COLUMNS = ("eager", "eager_channels_last", "compile", "compile_freezing", "onnxruntime", "openvino")
HEAD = (
    "network",
    "ours",
    "ms",
    "rounding",
    "of peak",
    "eager",
    "channels last",
    "compile",
    "freezing",
    "ORT",
    "OpenVINO",
)


def _ratio(result: Result, name: str, ratio: str) -> str:
    peer = result["peers"].get(name)
    return "–" if peer is None else f"{peer[ratio]:.2f}"
