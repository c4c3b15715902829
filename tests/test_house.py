"""The house rules name what breaks them."""

from __future__ import annotations

import ast

from tools.house import shared_class_names


def test_two_classes_of_one_name_are_found_wherever_they_are() -> None:
    sources = {
        "package.first": "class Plan: ...\nclass Step: ...",
        "package.second": "def plan():\n    class Step: ...\nclass Other: ...",
        "package.third": "class Plan(tuple): ...",
    }
    modules = {name: ast.parse(text) for name, text in sources.items()}
    (fault,) = shared_class_names(modules)  # a class inside a function has no name of its own in the package
    assert fault == "package.first, package.third: define a class of the same name, Plan"


def test_different_names_are_no_fault() -> None:
    assert shared_class_names({"a": ast.parse("class A: ..."), "b": ast.parse("class B: ...")}) == []
