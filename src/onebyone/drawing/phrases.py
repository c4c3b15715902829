"""Numbers and shapes as the pictures write them."""

from __future__ import annotations

from collections.abc import Sequence


def count(number: int) -> str:
    """With commas between the thousands.

    >>> count(25088)
    '25,088'
    """
    return f"{number:,}"


def shape(sizes: Sequence[int]) -> str:
    """A shape, without commas.

    >>> shape((512, 7, 7)), shape((4096,)), shape(())
    ('512×7×7', '4096', '1')
    """
    return "×".join(str(n) for n in sizes) or "1"


def short(number: int) -> str:
    """To three digits with a unit, from a hundred thousand up.

    >>> short(4096), short(102_760_448), short(16_777_216)
    ('4,096', '103 M', '16.8 M')
    """
    if number < 100_000:
        return count(number)
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            value = number / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return count(number)


def many(number: int, noun: str) -> str:
    """A number of things.

    >>> many(1, "filter"), many(32, "filter")
    ('1 filter', '32 filters')
    """
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def some(drawn: int, of: int) -> str:
    """How many of all are drawn.

    >>> some(24, 4096), some(3, 3)
    ('24 of 4,096 drawn', 'all drawn')
    """
    return "all drawn" if drawn == of else f"{count(drawn)} of {count(of)} drawn"


def convolution(kernel: Sequence[int]) -> str:
    """A convolution by its kernel.

    >>> convolution((7, 7)), convolution((14,))
    ('7×7 convolution', 'convolution of 14')
    """
    return f"{shape(kernel)} convolution" if len(kernel) != 1 else f"convolution of {kernel[0]}"
