"""Checks of labels: which preprocessing and class names are accepted, and the message for each that is not."""

from __future__ import annotations

import math
import re

import pytest

from onebyone.errors import BadInput
from onebyone.laws.labels import foreground, require_fitting, require_sound
from onebyone.records import Labels


@pytest.mark.parametrize(
    ("labels", "channels"),
    [
        (Labels(), None),
        (Labels(scale=-1e-3, mean=(-0.5, 0.0, 2.0), std=(1e-3, 1.0, 9.0), colour_order="BGR"), 3),
        (Labels(mean=(0.5,), std=(0.25,)), 3),  # one number for all channels
        (Labels(mean=(0.5, 0.5), std=(0.25, 0.25)), None),
        (Labels(colour_order="L"), 1),
        (Labels(classes=("a", "b"), background=("b",)), 3),
        (Labels(background=("b",)), 3),  # without class names any background is possible
    ],
)
def test_usable_labels(labels: Labels, channels: int | None) -> None:
    require_sound(labels, channels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Labels(scale=0.0), "scale=0.0: expected a finite number other than 0"),
        (Labels(scale=math.inf), "scale=inf: expected a finite number other than 0"),
        (Labels(scale=math.nan), "scale=nan: expected a finite number other than 0"),
        (Labels(mean=(0.5, math.inf)), "mean=0.5,inf: expected finite numbers"),
        (Labels(std=(1.0, 0.0)), "std=1.0,0.0: expected positive finite numbers"),
        (Labels(std=(-1.0,)), "std=-1.0: expected positive finite numbers"),
        (Labels(std=(math.inf,)), "std=inf: expected positive finite numbers"),
        (Labels(mean=(1.0, 2.0)), "mean=1.0,2.0: expected 1 or 3 numbers (one per image channel), not 2"),
        (Labels(std=(1.0, 2.0)), "std=1.0,2.0: expected 1 or 3 numbers (one per image channel), not 2"),
        (Labels(colour_order="rgb"), "colour_order='rgb': expected RGB, BGR or L"),
        (Labels(classes=("a", "b", "c", "b")), "classes: 'b' is given twice; expected distinct names"),
        (Labels(classes=("a", "b"), background=("c",)), "background: 'c' is not one of the classes"),
    ],
)
def test_unusable_labels(labels: Labels, message: str) -> None:
    with pytest.raises(BadInput, match="^" + re.escape(message) + "$"):
        require_sound(labels, 3)


def test_class_names_must_match_the_channels_of_an_output() -> None:
    named = Labels(classes=("a", "b"))
    require_fitting(named, [2])
    require_fitting(named, [4, 2])
    require_fitting(named, [])  # the channels are unknown
    require_fitting(Labels(), [5])
    with pytest.raises(BadInput, match=r"^classes: labels name 2 classes and the network gives 4 or 5$"):
        require_fitting(named, [4, 5, 4])
    with pytest.raises(BadInput, match=r"^classes: labels name 2 classes and the network gives 3$"):
        require_fitting(named, [3])


def test_the_foreground_is_what_is_not_named() -> None:
    classes = ["a", "b", "c"]
    assert foreground(classes, []) == [0, 1, 2]
    assert [foreground(classes, [k]) for k in (0, 2)] == [[1, 2], [0, 1]]
    assert foreground(classes, ["b", 0, "b"]) == [2]
    for bad in (-1, 3, "d"):
        with pytest.raises(BadInput, match=f"^background={bad!r}: expected one of the classes: a, b, c$"):
            foreground(classes, [bad])
