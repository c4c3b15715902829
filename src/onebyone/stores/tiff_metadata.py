"""What the tags and descriptions of a TIFF state about its pixels: their size in microns, and the value of no data."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

_MICRONS = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


def nodata_value(page: Any) -> float | None:
    """GDAL's nodata value (tag 42113); None without one."""
    tag = page.tags.get(42113)
    if tag is None:
        return None
    try:
        return float(str(tag.value).strip("\0 "))
    except ValueError:
        return None


def microns_per_pixel(tiff: Any, page: Any) -> tuple[float, float] | None:
    """Microns per pixel (rows, columns) that OME-XML, Aperio's description or the resolution tags state.

    Resolutions in inches are ignored: most are the resolution of a screen. None where nothing is stated, or what is
    stated is not a positive number.
    """
    stated: tuple[float, float] | None = None
    description = str(page.description or "")
    aperio = re.search(r"\bMPP = ([0-9.]+)", description) if description.startswith("Aperio") else None
    if tiff.is_ome:
        stated = _ome_microns(tiff.ome_metadata or "")
    elif aperio:
        stated = (_number(aperio[1]), _number(aperio[1]))
    elif int(page.tags.valueof(296, 2)) == 3:  # ResolutionUnit: centimetre
        x, y = (page.tags.valueof(code, None) for code in (282, 283))
        if x and y and x[0] and y[0]:
            stated = (1e4 * y[1] / y[0], 1e4 * x[1] / x[0])
    valid = stated is not None and all(0 < v < 1e6 for v in stated)
    return stated if valid else None


def _ome_microns(text: str) -> tuple[float, float] | None:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can expand without bound
        return None
    try:
        pixels = ElementTree.fromstring(text).find(".//{*}Pixels")
    except ElementTree.ParseError:
        return None
    if pixels is None:
        return None
    sizes = []
    for axis in "YX":
        unit = _MICRONS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), 0.0)
        sizes.append(_number(pixels.get(f"PhysicalSize{axis}", "0")) * unit)
    return sizes[0], sizes[1]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
