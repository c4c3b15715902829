"""Geometry as plain data and as text, and its messages."""

from __future__ import annotations

import re

import pytest

from onebyone.errors import BadInput
from onebyone.laws.geometry import Field, Geometry

AXES = ("window", "stride", "window_offset", "receptive_field", "receptive_field_offset")


def test_plain_data_of_a_geometry() -> None:
    wide = Geometry.from_fields((8,), [Field(2, -3, 12)], ("pool",), image_wide=True)
    assert wide == Geometry((8,), (2,), (0,), (12,), (3,), False, ("pool",), True)
    data = wide.to_dict()
    assert data == {
        "window": [8], "stride": [2], "window_offset": [0], "receptive_field": [12], "receptive_field_offset": [3],
        "exact": False, "inexact_because": ["pool"], "image_wide": True,
    }  # fmt: skip
    assert Geometry.from_dict(data) == wide
    del data["image_wide"]  # files of earlier versions
    assert Geometry.from_dict(data).image_wide is False


@pytest.mark.parametrize("name", AXES)
def test_every_axis_needs_every_number(name: str) -> None:
    numbers = dict.fromkeys(AXES, (9, 9)) | {name: (9,)}
    given = ", ".join(f"{axis} {values}" for axis, values in numbers.items())
    with pytest.raises(BadInput, match=re.escape(f"a geometry needs one number per axis in each of {given}")):
        Geometry(**numbers, exact=True)


def test_messages_name_what_has_the_wrong_axes() -> None:
    g = Geometry((8, 8), (2, 2), (0, 0), (8, 8), (0, 0), True)
    for call, what in ((g.positions, "image size"), (g.window_at, "index"), (g.receptive_field_at, "index")):
        with pytest.raises(BadInput, match=rf"^{what}=\(9,\): expected 2 axes, not 1$"):
            call((9,))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "no reason given"),
        (2, "r0; r1"),
        (3, "r0; r1; r2"),
        (4, "r0; r1; r2; and 1 more"),
        (6, "r0; r1; r2; and 3 more"),
    ],
)
def test_print_shows_three_reasons(count: int, text: str) -> None:
    g = Geometry((8,), (2,), (0,), (8,), (0,), False, tuple(f"r{i}" for i in range(count)))
    assert str(g).splitlines()[-1] == f"not exact: {text}"
