"""`python -m bench.report`: `docs/bench.md` and its plot, from the results under `bench/results/`."""

from __future__ import annotations

import io
import json
import re
from typing import Any

from bench.models.summary import PEER_COLUMNS, geomean
from bench.zoo.work import ROOT

RESULTS, DOCS = ROOT / "bench" / "results", ROOT / "docs"
NAMES = {
    "eager": "eager",
    "eager_channels_last": "eager, channels last",
    "compile": "torch.compile",
    "compile_freezing": "torch.compile, freezing",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
_UNGUARDED = (
    "These results were measured before linear layers of the engine `onebyone` kept an error bound for each row:",
    "with the products that `fast_products=True` gives today, and without the judge of rows.",
    "",
)
INK = {"light": ("#1d1f24", "#d9d9d4"), "dark": ("#eeeeea", "#44464c")}
COLOURS = {
    "light": ("#6b7280", "#9ca3af", "#1d63b5", "#60a5fa", "#0f766e", "#b4420c"),
    "dark": ("#9ca3af", "#6b7280", "#60a5fa", "#1d63b5", "#2dd4bf", "#fb923c"),
}
MARKS = ("o", "o", "s", "s", "D", "^")


def main() -> int:
    """Write the page and the plot."""
    models = _read("models")
    (DOCS / "bench.md").write_text(
        page(models, _read("forms"), _read("convert"), _read("profiles")), encoding="utf-8"
    )
    for theme in INK:
        (DOCS / f"bench-models-{theme}.svg").write_bytes(plot(models, theme))
    print("docs/bench.md written")
    return 0


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def page(
    models: dict[str, Any], forms: dict[str, Any], convert: dict[str, Any], profiles: list[dict[str, Any]]
) -> str:
    """All of it as Markdown."""
    machine, versions = models["machine"], models["versions"]
    peak = max(m["peak_gflops"] for m in models["models"])
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m bench.report` from `bench/results/`; measured by `make bench`. Ratios are the peer's",
        "time ÷ ours, medians of interleaved rounds in one run per network, after the choice was made; above 1 ours is",
        "faster.",
        "",
        f"{machine['processor']}, {models['threads']} threads, {', '.join(machine['features'])}; largest float32 "
        f"product seen {peak:.0f} GFLOP/s; "
        + ", ".join(f"{k} {v}" for k, v in versions.items() if k != "onebyone")
        + ".",
        "",
        "## Whole networks: `tune` beside its peers",
        "",
        *(_UNGUARDED if "eager_fast_products" not in models["geomean"] else ()),
        '<picture><source media="(prefers-color-scheme: dark)" srcset="bench-models-dark.svg">'
        '<img src="bench-models-light.svg" width="720" alt="Each peer\'s time divided by the tuned network\'s, '
        'by network; the numbers are in the table below"></picture>',
        "",
        "| network | chosen | ms (spread) | rounding ratio | of peak | " + " | ".join(NAMES.values()) + " |",
        "|---|---|---|---|---|" + "---|" * len(NAMES),
    ]
    for m in models["models"]:
        for key, label in (
            ("all", "any engine"),
            ("torch", "PyTorch alone"),
            ("fast", "with `fast_products=True`"),
        ):
            if key in m["ours"]:
                lines.append(_row(m, key, label))
    lines += [
        "",
        "Geometric means over the networks:",
        "",
        "| peer | any engine | PyTorch alone |",
        "|---|---|---|",
    ]
    mean = models["geomean"]
    for name in ("eager", "compile", "onnxruntime", "openvino", "best_peer"):
        cells = [mean.get(name), mean.get(f"{name}_torch_only")]
        title = {"compile": "the better torch.compile", "best_peer": "the best of all peers"}
        shown = " | ".join("–" if c is None else f"{c:.2f}" for c in cells)
        lines.append(f"| {title.get(name) or NAMES[name]} | {shown} |")
    fast = {name: mean.get(f"{name}_fast_products") for name in ("eager", "best_peer")}
    if fast["eager"] and fast["best_peer"]:
        lines += [
            "",
            f"Without an error bound for each row (`fast_products=True`), where the engine `onebyone` was chosen: "
            f"{fast['eager']:.2f} times as fast as eager, {fast['best_peer']:.2f} as the best of all peers.",
        ]
    lines += ["", _ceiling(models["models"])]
    lines += ["", *profiled(profiles, models["models"]), "", *_forms(forms), "", *_convert(convert)]
    return "\n".join(lines) + "\n"


def _row(m: dict[str, Any], key: str, label: str) -> str:
    ours = m["ours"][key]
    ratio = ours["rounding_ratio"]
    flipped = f", {ours['layers_flipped']} layers flipped" if ours["layers_flipped"] else ""
    cells = [
        f"**{m['name']}**" if key == "all" else "",
        f"{label}: {ours['engine']}, {ours['form']}{flipped}",
        f"{ours['median_ms']:.1f} ({ours['spread_ms']:.1f})",
        "–" if ratio is None else f"{ratio:.2f}",
        f"{100 * ours['of_peak']:.0f} %",
    ]
    for name in PEER_COLUMNS:
        peer = m["peers"].get(name)
        cells.append("–" if peer is None else f"{peer[f'ratio_{key}']:.2f}")
    return "| " + " | ".join(cells) + " |"


def _ceiling(results: list[dict[str, Any]]) -> str:
    """What no form could pass: the eager network's time at the machine's peak ÷ what it takes."""
    shares = [2e-6 * r["macs"] / r["peers"]["eager"]["median_ms"] / r["peak_gflops"] for r in results]
    most = geomean([1 / s for s in shares])
    return (
        f"In eager mode the networks already compute at {100 * min(shares):.0f} to {100 * max(shares):.0f} % of this "
        f"machine's measured peak: one that reached the peak throughout would be {most:.2f} times as fast as eager in "
        f"the geometric mean, and no form that does all of the multiplications can be faster. Winograd's form of 3×3 "
        f"convolutions does a quarter of theirs, Strassen's of linear layers 7/8 or 49/64: shares of the peak are "
        f"counted by the direct form's, and may pass 100 %. “PyTorch alone” is PyTorch and kernels of onebyone's own, "
        f"compiled where they run by the compiler that `torch.compile` uses: no other runtime."
    )


def profiled(profiles: list[dict[str, Any]], results: list[dict[str, Any]]) -> list[str]:
    """Where the time goes on the networks on which a peer wins; or which peer comes nearest."""
    title = ["### Where a peer is faster than PyTorch alone", ""]
    if not profiles:
        nearest = (
            (p["ratio_torch"], r["name"], NAMES[name]) for r in results for name, p in r["peers"].items()
        )
        ratio, network, peer = min(nearest)
        return [
            *title,
            f"Nowhere. The nearest is {peer} on {network}, which takes {ratio:.2f} times as long.",
        ]
    lines = [
        *title,
        "Both profiled (`python -m bench.models.profile`), milliseconds by operator, the largest first; profiling",
        "slows everything, so shares are what counts.",
        "",
        "| network | ours | the peer |",
        "|---|---|---|",
    ]
    for p in profiles:
        (_, ours), (name, peer) = list(p["ms"].items())[:2]
        lines.append(f"| **{p['name']}** | {p['ours']}: {_listed(ours)} | {NAMES[name]}: {_listed(peer)} |")
    return lines


def _listed(times: dict[str, float]) -> str:
    return ", ".join(f"`{name}` {ms:.2f}" for name, ms in times.items() if ms >= 0.005)


def _forms(forms: dict[str, Any]) -> list[str]:
    model = forms["cost_model"]
    wins = ", ".join(f"{k} {v}" for k, v in sorted(forms["wins"].items(), key=lambda kv: -kv[1]))
    spread = sorted(r["spread"] for r in forms["shapes"])
    lines = [
        "## Single layers: every form of every shape",
        "",
        f"{len(spread)} shapes of linear layers and 1×1 convolutions. Fastest form: {wins}. The slowest form takes "
        f"{spread[len(spread) // 2]:.1f} times the fastest's time in the middle, {spread[-1]:.0f} times at the end.",
        "",
        "How good a choice is without measuring anything:",
        "",
        "| choice | fastest | within 5 % of it | time ÷ the fastest's, mean | worst |",
        "|---|---|---|---|---|",
    ]
    titles = {
        "default": "the cost model, default rates",
        "fitted_to_other_networks": "the cost model, fitted here to the other networks",
        "as_it_is": "the layer as it is",
    }
    for name, title in titles.items():
        f = model[name]
        lines.append(
            f"| {title} | {f['first_is_fastest']:.0%} | {f['first_within_5_percent']:.0%} | "
            f"{f['geomean_slower']:.2f} | {f['worst_slower']:.1f} |"
        )
    return lines


def _convert(convert: dict[str, Any]) -> list[str]:
    lines = [
        "## Converting",
        "",
        "| network | layers | seconds | new storage | `graph`, seconds |",
        "|---|---|---|---|---|",
    ]
    for row in convert["networks"]:
        layers = row["layers"]
        lines.append(
            f"| {row['network']} | {layers['layers']} | {layers['seconds']:.3f} | "
            f"{layers['new_storage_share']:.2%} | {row['graph_conv']['seconds']:.1f} |"
        )
    return lines


def plot(models: dict[str, Any], theme: str) -> bytes:
    """Ratios by network, one mark a peer, on a logarithmic axis; ours (any engine) is the line at 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ink, faint = INK[theme]
    settings = {
        "svg.hashsalt": "onebyone",
        "font.family": "DejaVu Sans",
        "text.color": ink,
        "axes.labelcolor": ink,
    }
    with plt.rc_context(settings):
        figure, axes = plt.subplots(figsize=(8, 4.9), layout="constrained")
        names = [m["name"] for m in models["models"]][::-1]
        for peer, colour, mark in zip(PEER_COLUMNS, COLOURS[theme], MARKS, strict=True):
            found = [(m["peers"].get(peer) or {}).get("ratio_all") for m in models["models"]][::-1]
            points = [(ratio, place) for place, ratio in enumerate(found) if ratio is not None]
            xs, ys = [p[0] for p in points], [p[1] for p in points]
            axes.scatter(xs, ys, color=colour, marker=mark, s=34, label=NAMES[peer], zorder=3)
        axes.axvline(1.0, color=ink, linewidth=1.2, zorder=2)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        axes.set_yticks(range(len(names)), names)
        axes.grid(axis="x", color=faint, linewidth=0.6, zorder=0)
        axes.tick_params(colors=ink, which="both", length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel(
            "the peer's time ÷ the tuned network's (right of the line the tuned network is faster)"
        )
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, 1.19),
            ncols=3,
            frameon=False,
            fontsize=8,
            handletextpad=0.2,
        )
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    return re.sub(rb"[ \t]+\n", b"\n", out.getvalue())


if __name__ == "__main__":
    raise SystemExit(main())
