"""The records that Python fills are those of steps.h: the same fields, in the same order, of the same types."""

from __future__ import annotations

import ctypes
import re
from importlib.resources import files
from typing import Any

import pytest

from onebyone.native import step_records
from onebyone.native.kernels.program import kernel
from onebyone.native.step_records import RECORDS, StepRecord
from onebyone.native.steps import Activation, BinaryOperation, Kind
from tests.native.build import needs_compiler

HEADER = re.sub(r"//[^\n]*", "", files("onebyone.native.kernels").joinpath("steps.h").read_text("utf-8"))
TYPES = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}


def fields_of(struct: str) -> list[tuple[str, Any]]:
    """The fields of a structure of steps.h, with the ctypes type that each must have."""
    match = re.search(rf"struct {struct} \{{(.*?)^\}};", HEADER, re.S | re.M)
    assert match, struct
    fields: list[tuple[str, Any]] = []
    for declaration in filter(None, (d.strip() for d in match[1].split(";"))):
        type_, names = re.fullmatch(r"(?:const )?(\w+)\b(.*)", declaration, re.S).groups()  # type: ignore[union-attr]
        for name in names.split(","):
            is_pointer, plain = "*" in name, name.strip("* \n")
            record = getattr(step_records, f"{type_}Record", None)
            fields.append((plain, ctypes.c_void_p if is_pointer else TYPES.get(type_, record)))
    return fields


def enumerators_of(enum: str) -> list[str]:
    match = re.search(rf"enum {enum} \{{(.*?)\}}", HEADER, re.S)
    assert match
    return [name.strip() for name in match[1].split(",")]


@pytest.mark.parametrize("struct", ["SlidingWindow", "Strides"])
def test_parts_of_records(struct: str) -> None:
    assert list(getattr(step_records, f"{struct}Record")._fields_) == fields_of(struct)


@pytest.mark.parametrize("kind", Kind, ids=lambda k: k.name)
def test_the_record_of_each_kind(kind: Kind) -> None:
    name = kind.name.lower()
    struct = "".join(part.capitalize() for part in name.split("_")) + "Step"
    fields = fields_of(struct)
    assert len(fields) >= 5
    assert list(RECORDS[name]._fields_) == fields


@pytest.mark.parametrize("enum", [Kind, Activation, BinaryOperation])
def test_enumerations(enum: Any) -> None:
    assert enumerators_of(enum.__name__) == [member.name for member in enum]
    assert [member.value for member in enum] == list(range(len(enum)))


def test_the_union_has_a_member_for_each_kind() -> None:
    match = re.search(r"union \{(.*?)\};", HEADER, re.S)
    assert match
    assert re.findall(r"\w+Step (\w+);", match[1]) == list(RECORDS) == [k.name.lower() for k in Kind]


@needs_compiler
def test_the_size() -> None:
    assert kernel().onebyone_step_bytes() == ctypes.sizeof(StepRecord)
