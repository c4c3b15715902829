"""The section of `docs/bench.md` on a GPU, from the results of `bench.gpu` and `bench.forms --device cuda`."""

from __future__ import annotations

from typing import Any

from bench.models.summary import geomean

TITLES = {
    "ieee": "IEEE float32",
    "defaults": "PyTorch's defaults",
    "tf32": "TF32 for both",
    "bfloat16": "bfloat16",
}
LAYERS = {"linear": "linear layers on tokens", "conv": "1×1 convolutions on images"}


def gpu_section(gpu: dict[str, Any], forms: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the section."""
    machine = gpu["machine"]
    lines = [
        "",
        "## On a GPU",
        "",
        f"{machine['gpu']}, {machine['cores']} cores of {machine['processor']}, torch {machine['torch']}; measured by "
        f"`python -m bench.gpu` and `python -m bench.forms --device cuda`, each in one run.",
        "",
        "With PyTorch's defaults, a GPU computes float32 convolutions in TF32 and linear layers in IEEE float32. A "
        "linear layer (8192 rows, 1024 → 1024) and the same layer as a 1×1 convolution:",
        "",
        "| precision | linear: error | ms | convolution: error | ms |",
        "|---|---|---|---|---|",
    ]
    for name, title in TITLES.items():
        cells = [f"{r['error']:.1e} | {r['ms']:.3f}" for r in gpu["precision"] if r["precision"] == name]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", "Errors are relative to the largest output, against float64.", ""]
    lines += [
        f"Inputs are repeated {forms[0]['batch']} times along the batch. Times are those of the other form ÷ those of "
        "the layer as it is: geometric mean, and range over all shapes.",
        "",
        "| layers | precision | shapes | mean | range |",
        "|---|---|---|---|---|",
    ]
    for data in forms:
        for kind, title in LAYERS.items():
            ratios = _other_form(data, kind)
            precision = "TF32" if data["tf32"] else data["dtype"]
            mean = geomean(ratios) or 0.0
            lines.append(
                f"| {title} | {precision} | {len(ratios)} | {mean:.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
            )
    return [*lines, *_dense(gpu)]


def _other_form(data: dict[str, Any], kind: str) -> list[float]:
    """The time of a layer in the other form ÷ that in its own, of the layers of a kind with more than one position."""
    other = {"linear": "conv", "conv": "linear"}[kind]
    rows = [r for r in data["shapes"] if r["kind"] == kind and _positions(r) > 1 and other in r["forms"]]
    return [r["forms"][other]["median_ms"] / r["forms"][kind]["median_ms"] for r in rows]


def _positions(row: dict[str, Any]) -> int:
    size = row["input"]
    product = 1
    for n in size[2:] if row["kind"] == "conv" else size[1:-1]:
        product *= n
    return product


def _dense(gpu: dict[str, Any]) -> list[str]:
    float32 = [r for r in gpu["dense"] if "seconds_windows" in r]
    half = [r["seconds_dense"] for r in gpu["dense"] if "seconds_windows" not in r]
    side = float32[0]["side"]
    lines = [
        "",
        f"The any-size form against every window, on an image of {side} × {side} pixels. Seconds are wall-clock time "
        f"from pixels to scores in the processor's memory. MONAI's "
        "windows were timed once, without a warm-up. The last column has the largest difference between scores of the "
        "any-size form and of every window, and the largest score. ResNet-18 is padded, so its difference is not "
        "rounding.",
        "",
        "| network | precision | any size, s | every window ÷ any size | MONAI ÷ any size | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for r in float32:
        monai = f"{r['monai_over_dense']:.0f}" if "monai_over_dense" in r else "–"
        lines.append(
            f"| {r['network']}, {r['windows']:,} windows | {TITLES[r['precision']]} | {r['seconds_dense']:.3f} | "
            f"{r['windows_over_dense']:.0f} | {monai} | {r['difference']:.1e} of {r['largest']:.2f} |"
        )
    lines += [
        "",
        f"With `half=`, a scan takes {min(half):.2f} to {max(half):.2f} s on this image, because it first measures the "
        f"error of 16 bits on a tile; it was not measured on a larger image.",
        "",
        "| network | megapixels | megapixels per second | the network alone ÷ the scan |",
        "|---|---|---|---|",
    ]
    for r in gpu["large"]:
        lines.append(
            f"| {r['network']} | {r['megapixels']:.0f} | {r['megapixels_per_second']:.0f} | {r['efficiency']:.0%} |"
        )
    lines += [
        "",
        "8-bit pixels are copied to the GPU as they are stored and normalised there. The network alone runs on tiles "
        "that are on the GPU already, and its scores stay there; ResNet-18 has 1000 of them at every position.",
    ]
    return lines
