"""Numbers, counts and shapes as figures and pages write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from onebyone.records import by

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(number: int) -> str:
    """A whole number with commas between the thousands.

    >>> count(25088)
    '25,088'
    """
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """A whole number with its noun, in the plural where it is not 1.

    >>> counted(1, "filter"), counted(1200, "layer")
    ('1 filter', '1,200 layers')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shape(sizes: Sequence[int]) -> str:
    """A shape, without commas.

    >>> shape((512, 7, 7)), shape((4096,)), shape(())
    ('512×7×7', '4096', '1')
    """
    return by(sizes) or "1"


def abbreviated(number: int) -> str:
    """A whole number to three digits with a unit, from a hundred thousand up.

    >>> abbreviated(4096), abbreviated(102_760_448), abbreviated(16_777_216)
    ('4,096', '103 M', '16.8 M')
    """
    if number < 100_000:
        return count(number)
    unit, name = next((u, n) for u, n in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if number >= u)
    value = number / unit
    return f"{value:.0f} {name}" if value >= 100 else f"{value:.3g} {name}"


def drawn_of(drawn: int, total: int) -> str:
    """How many of a figure's parts are drawn.

    >>> drawn_of(24, 4096), drawn_of(3, 3)
    ('24 of 4,096 drawn', 'all drawn')
    """
    return "all drawn" if drawn == total else f"{count(drawn)} of {count(total)} drawn"


def convolution(kernel: Sequence[int]) -> str:
    """A convolution named by its kernel size.

    >>> convolution((7, 7)), convolution((14,))
    ('7×7 convolution', 'convolution of 14')
    """
    return f"{shape(kernel)} convolution" if len(kernel) != 1 else f"convolution of {kernel[0]}"


def superscript(number: int) -> str:
    """A whole number as an exponent.

    >>> superscript(-12)
    '⁻¹²'
    """
    return str(number).translate(_SUPERSCRIPTS)


def number(value: Any) -> str:
    """A number to three digits; whole numbers in full, very small and very large ones by a power of ten.

    Infinity and NaN may also come by name, as JSON holds them.

    >>> [number(v) for v in (0.000123456, 1234567, 0.25, 16958288812.4, "inf", 0.0, True)]
    ['1.23·10⁻⁴', '1,234,567', '0.25', '1.7·10¹⁰', '∞', '0', 'yes']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    value = float(value)
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    power = math.floor(math.log10(abs(value)))
    return f"{value / 10.0**power:.3g}·10{superscript(power)}"


def percent(share: float) -> str:
    """A share in [0, 1] to three digits.

    >>> percent(0.0204), percent(1)
    ('2.04%', '100%')
    """
    return f"{100 * share:.3g}%"


def tick(value: float) -> str:
    """A number as the axis of a chart shows it.

    >>> [tick(v) for v in (0.001, 0.25, 1, 1024, 15000, 2_000_000, 1e-9, 1e12)]
    ['0.001', '0.25', '1', '1024', '15k', '2M', '10⁻⁹', '10¹²']
    """
    size = abs(value)
    if size and not 1e-3 <= size < 1e10:
        power = math.floor(math.log10(size) + 1e-9)
        digits = value / 10.0**power
        return ("" if abs(digits - 1) < 1e-9 else f"{digits:.2g}·") + "10" + superscript(power)
    if size < 1e4 and value == round(value):
        return f"{value:.0f}"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"
