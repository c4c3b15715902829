"""The section of `docs/bench.md` on images of any size, from the results of `bench.dense` and `bench.gigapixel`."""

from __future__ import annotations

from typing import Any

from onebyone.records import size_of


def section(dense: dict[str, Any], scans: dict[str, Any]) -> list[str]:
    """The lines of the section, as Markdown."""
    stride4, resnet, efficiency, finer = (dense[k] for k in ("stride4", "resnet18", "efficiency", "finer"))
    small, large = (scans["scans"][name] for name in scans["compared"][::-1])
    rows = (
        (
            f"All {stride4['windows']:,} windows of {_square(stride4)} cropped ÷ one dense pass; window 64, stride 4, "
            "no padding",
            f"{stride4['speedup_vs_windows_stride4']:.1f}{_work(stride4)}",
        ),
        (
            "Largest difference between a score of that pass and the one of its crop (its derived bound)",
            f"{stride4['max_abs_difference']:.1e} ({stride4['bound']:.2g})",
        ),
        (
            f"The {resnet['windows']:,} windows of {_square(resnet)} by MONAI {resnet['monai']} ÷ one dense pass; "
            "ResNet-18, window 224, stride 32. It pads, so the scores are not those of crops",
            f"{resnet['speedup_vs_monai']:.1f}{_work(resnet)}",
        ),
        (
            "The same windows ÷ one dense pass in the form that `tune` chose",
            f"{resnet['speedup_vs_monai_with_tune']:.0f}",
        ),
        (
            f"Shifted passes ÷ dilated layers, for a finer stride on {_square(finer)}",
            f"{finer['dilation_speedup']:.2f}",
        ),
        (
            f"Share of the network's own time in a scan of {efficiency['megapixels']:.0f} megapixels from a tiled TIFF "
            "to OME-Zarr",
            f"{efficiency['scan_efficiency']:.1%}",
        ),
        ("The same share with Dask's `map_overlap`", f"{efficiency['map_overlap_efficiency']:.1%}"),
        (
            f"Peak memory of a scan of {_pixels(small)} and of {_pixels(large)} pixels",
            f"{size_of(small['peak_bytes'])} and {size_of(large['peak_bytes'])}",
        ),
        (
            "Time per pixel of the larger scan ÷ that of the smaller one",
            f"{scans['time_per_pixel_ratio']:.2f}",
        ),
        ("Wall time of a scan with one worker ÷ with two workers of Dask", f"{scans['dask_scaling']:.2f}"),
        (
            "The same for a network so small that half of the time is for reading and writing",
            f"{scans['dask_scaling_light']:.2f}",
        ),
    )
    return [
        "",
        "## Images of any size",
        "",
        "Measured by `python -m bench.dense`, in processor time, and by `python -m bench.gigapixel`, with one thread",
        "for each process. A ÷ B is the quotient of their times.",
        "",
        "| measurement | result |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in rows),
    ]


def _work(result: dict[str, Any]) -> str:
    return f"; the quotient of their multiply-adds is {result['mac_ratio']:.1f}"


def _square(result: dict[str, Any]) -> str:
    return f"{result['size']:,}×{result['size']:,} pixels"


def _pixels(scan: dict[str, Any]) -> str:
    return f"{scan['pixels']:,}"
