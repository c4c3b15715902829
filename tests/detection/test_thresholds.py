"""Confidence thresholds: one for all classes or by class, as arguments, as text and in files."""

from __future__ import annotations

import locale
import math
from typing import Any

import pytest

from onebyone.detection import thresholds
from onebyone.detection.thresholds import read_threshold, thresholds_of
from onebyone.errors import BadInput


def test_thresholds_of_classes() -> None:
    classes = ("cat", "dog", "*x")
    assert thresholds_of(0.25, classes).tolist() == [0.25] * 3
    assert thresholds_of({}, classes).tolist() == [0.5] * 3
    assert thresholds_of({"*": 0.75, "dog": 0.0, 2: 1}, classes).tolist() == [0.75, 0.0, 1.0]
    assert thresholds_of({"dog": 0.125, "cat": 0.25}, classes).tolist() == [0.25, 0.125, 0.5]
    for bad, message in [
        ({3: 0.5}, r"threshold: 3 is not a class; expected one of cat, dog, \*x"),
        ({-1: 0.5}, "threshold: -1 is not a class"),
        ({"*": 2}, r"threshold of '\*'=2: expected a number from 0 to 1"),
        ({"dog": -0.5}, "threshold of 'dog'=-0.5: expected a number from 0 to 1"),
        ({0: 1.5}, "threshold of 0=1.5: expected a number"),
        (-0.01, "threshold=-0.01: expected a number from 0 to 1"),
        (math.nan, "threshold=nan: expected a number from 0 to 1"),
        (None, "threshold=None: expected a number from 0 to 1"),
    ]:
        with pytest.raises(BadInput, match=message):
            thresholds_of(bad, classes)
    assert [read_threshold(t) for t in ("0", "1", " a = 0.5 , b=1")] == [0, 1, {"a": 0.5, "b": 1}]


@pytest.mark.parametrize(("text", "message"), [
    ('  {"a": 0.5', "is not valid JSON"),
    ('{"a": 2}', "'a'=2: expected a number from 0 to 1"),
    ('{"a": [1]}', r"'a'=\[1\]: expected a number from 0 to 1"),
    ("a=0.5\na=1\n", "threshold: .*file: 'a' has two values"),
    ("a\n", "threshold: .*file: 'a': expected CLASS=P, such as cat=0.8"),
    (" = 0.5\n", "expected CLASS=P"),
    ("[" * 100_000, "expected CLASS=P"),
])  # fmt: skip
def test_files_of_thresholds_are_checked(tmp_path: Any, text: str, message: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(BadInput, match=message) as error:
        read_threshold(f"@{tmp_path}/file")
    assert len(str(error.value).splitlines()) == 1


def test_files_of_thresholds_are_utf_8_whatever_the_locale(tmp_path: Any) -> None:
    """Bytes of another encoding are a name that does not exist, not an error of Python."""
    (tmp_path / "utf-8").write_bytes("löwe=0.25".encode())
    (tmp_path / "latin-1").write_bytes("löwe=0.25".encode("latin-1"))
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C")  # its encoding is ASCII, except in Python's UTF-8 mode
        assert read_threshold(f"@{tmp_path}/utf-8") == {"löwe": 0.25}
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    with pytest.raises(BadInput, match="threshold: 'l\ufffdwe' is not a class; expected one of löwe"):
        thresholds_of(read_threshold(f"@{tmp_path}/latin-1"), ("löwe",))


def test_a_file_of_thresholds_of_exactly_the_bound_is_read(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a=0.25\n")
    for bound, accepted in ((7, True), (6, False)):
        monkeypatch.setattr(thresholds, "_MAX_BYTES", bound)
        if accepted:
            assert read_threshold(f"@{tmp_path}/file") == {"a": 0.25}
            continue
        with pytest.raises(BadInput, match="has more than 6 bytes"):
            read_threshold(f"@{tmp_path}/file")


def test_a_file_of_thresholds_is_bounded(tmp_path: Any) -> None:
    """16 MiB are read, and one byte more is refused before anything is."""
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(BadInput, match="has more than 16,777,216 bytes"):
        read_threshold(f"@{tmp_path}/large")
    with (tmp_path / "large").open("r+b") as file:
        file.write(b"a=0.5\n" + b" " * 10)
        file.truncate(16)
    assert read_threshold(f"@{tmp_path}/large") == {"a": 0.5}
