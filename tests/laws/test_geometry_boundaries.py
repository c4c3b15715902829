"""Geometry at its boundaries: what is exactly at a limit, on one side only, or in the last entry of a list."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onebyone.errors import BadInput
from onebyone.laws.geometry import Field, Geometry, Sliding, why_not_exact

EXACT = Geometry((8, 6), (2, 3), (0, 0), (8, 6), (0, 0), True)


@pytest.mark.parametrize("size", range(1, 16))
def test_an_operator_with_one_output_position_has_stride_1(size: int) -> None:
    for kernel in (1, 2, 5):
        for stride in (1, 2, 4):
            op = Sliding(kernel, stride)
            outputs = len(range(0, size - kernel + 1, stride))
            assert op.at_one_position(size) == (replace(op, stride=1) if outputs == 1 else op)


@pytest.mark.parametrize(("before", "after"), [(1, 0), (0, 1), (1, 1)])
def test_padding_on_either_side_makes_a_result_inexact(before: int, after: int) -> None:
    reason = f"step 0: padding {before} before and {after} after"
    assert why_not_exact([Sliding(3, pad_before=before, pad_after=after)], 8) == (reason,)
    assert why_not_exact([Sliding(3)], 8) == ()


def test_fields_of_a_result_become_its_geometry() -> None:
    geometry = Geometry.from_fields((9, 8), [Field(2, -3, 12), Field(4, 1, 5)], ["pool"], image_wide=True)
    assert geometry == Geometry((9, 8), (2, 4), (0, 0), (12, 5), (3, -1), False, ("pool",), True)
    assert not Geometry.from_fields((9,), [Field(2, -3, 12)], ["pool"]).image_wide
    assert Geometry.from_fields((9,), [Field()]).exact


def test_an_image_wide_geometry_is_read_from_its_dictionary() -> None:
    wide = replace(EXACT, exact=False, image_wide=True)
    assert Geometry.from_dict(wide.to_dict()) == wide
    earlier = {key: value for key, value in wide.to_dict().items() if key != "image_wide"}
    assert not Geometry.from_dict(earlier).image_wide


@pytest.mark.parametrize(
    ("reasons", "text"),
    [
        ((), "no reason given"),
        (("a",), "a"),
        (("a", "b", "c"), "a; b; c"),
        (("a", "b", "c", "d"), "a; b; c; and 1 more"),
        (("a", "b", "c", "d", "e"), "a; b; c; and 2 more"),
    ],
)
def test_three_reasons_are_printed_and_the_others_counted(reasons: tuple[str, ...], text: str) -> None:
    assert str(replace(EXACT, exact=False, inexact_because=reasons)).splitlines()[2] == f"not exact: {text}"


def test_an_image_of_exactly_one_window_has_one_position() -> None:
    assert EXACT.positions((8, 6)) == (1, 1)
    assert EXACT.positions((9, 8)) == (1, 1)
    assert EXACT.positions((10, 9)) == (2, 2)
    for size in ((7, 6), (8, 5)):
        with pytest.raises(BadInput, match=f"{size[0]}×{size[1]} pixels"):
            EXACT.positions(size)


def test_windows_and_fields_on_every_axis() -> None:
    geometry = Geometry((8, 6), (2, 3), (1, -2), (20, 6), (7, -2), False)
    assert geometry.window_at((3, 2)) == ((5, 13), (8, 14))
    assert geometry.receptive_field_at((3, 2)) == ((-1, 19), (8, 14))
    assert geometry.halo == ((6, 6), (0, 0))


@pytest.mark.parametrize("name", ["window", "stride", "receptive_field"])
def test_lengths_are_at_least_one_pixel(name: str) -> None:
    assert getattr(replace(EXACT, **{name: (1, 1)}), name) == (1, 1)
    with pytest.raises(BadInput, match=f"{name}"):
        replace(EXACT, **{name: (1, 0)})


def test_a_geometry_is_of_windows_unless_it_says_that_positions_see_the_whole_image() -> None:
    assert EXACT.image_wide is False
    assert EXACT.inexact_because == ()
