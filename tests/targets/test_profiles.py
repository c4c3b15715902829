"""Profiles: every constraint just inside and just outside its number, and the strict reading of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from onebyone.errors import BadInput
from onebyone.targets import NodeDescription, find_profile, profile_names, read_profile
from tests.targets.boundary_cases import built_in_files, cases

NAMED = (
    "ane", "qnn-htp", "tidl", "ethos-u", "rknn", "kneron", "nvidia-dla", "amd-dpu", "mediatek-mdla", "ryzen-ai",
    "conv-only", "linear-only", "4d",
)  # fmt: skip
CASES = list(cases())
VALID = 'name = "mine"\ntitle = "Mine"\n[[constraint]]\nkind = "rank"\nmaximum = 4\nsource = "a page"\n'


def test_the_named_targets_exist() -> None:
    assert set(NAMED) <= set(profile_names()) == set(built_in_files())


@pytest.mark.parametrize(
    ("name", "index", "inside", "outside"), CASES, ids=[f"{name}-{index}" for name, index, _, _ in CASES]
)
def test_just_inside_and_just_outside(
    name: str, index: int, inside: NodeDescription, outside: NodeDescription
) -> None:
    constraint = find_profile(name).constraints[index]
    assert not constraint.applies(inside) or constraint.check(inside) is None
    assert constraint.applies(outside)
    finding = constraint.check(outside)
    assert finding is not None
    assert finding.found != finding.allowed


def test_every_constraint_of_every_profile_has_a_case_and_a_source() -> None:
    tested = {(name, index) for name, index, _, _ in CASES}
    for name in profile_names():
        profile = find_profile(name)
        assert profile.name == name
        assert profile.preferred.source
        for index, constraint in enumerate(profile.constraints):
            assert (name, index) in tested
            assert len(constraint.source) > 10
            assert constraint.describe()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name = ", "mine.toml: is not a TOML file"),
        ('title = "x"', "mine.toml: lacks the key 'name'"),
        ('name = 3\ntitle = "x"', "mine.toml: name is 3; expected a text"),
        (
            VALID + "[extra]\n",
            "mine.toml: has the unknown key 'extra'; expected constraint, name, note, preferred, title",
        ),
        ('name = "a"\ntitle = "b"\nconstraint = 3', "mine.toml: constraint is not a list of tables"),
        ('name = "a"\ntitle = "b"\npreferred = 3', "mine.toml: preferred is not a table"),
        (
            VALID.replace('"rank"', '"rang"'),
            "mine.toml: constraint 1: kind is 'rang'; expected one of rank, size",
        ),
        (VALID + "minimal = 3\n", "mine.toml: constraint 1 (rank): has the unknown key 'minimal'"),
        (
            VALID.replace("4", '"4"'),
            "mine.toml: constraint 1 (rank): maximum is '4'; expected a whole number",
        ),
        (
            VALID.replace("4", "4.5"),
            "mine.toml: constraint 1 (rank): maximum is 4.5; expected a whole number",
        ),
        (
            VALID.replace("4", "true"),
            "mine.toml: constraint 1 (rank): maximum is True; expected a whole number",
        ),
        (VALID.replace("4", "-1"), "maximum is -1; expected a whole number of at least 0"),
        (VALID.replace('source = "a page"', ""), "mine.toml: constraint 1 (rank): lacks the key 'source'"),
        (VALID.replace("a page", " "), "mine.toml: constraint 1 (rank): source is empty"),
        (VALID + 'operators = "Conv"\n', "operators is 'Conv'; expected a list"),
        (VALID + "operators = [1]\n", "operators is 1; expected a text"),
        (VALID + 'count = "some"\n', "count is 'some'; expected one of all, non-singleton"),
        (
            VALID + '[preferred]\nform = "convolution"\n',
            "form is 'convolution'; expected one of conv, linear, any",
        ),
        (VALID.replace('"rank"\nmaximum = 4', '"missing-operator"'), "operators is empty"),
    ],
)
def test_a_file_that_is_not_a_profile(content: str, message: str) -> None:
    with pytest.raises(BadInput) as error:
        read_profile(content.encode(), "mine.toml")
    assert message in str(error.value)
    assert "\n" not in str(error.value).replace(str(error.value.__cause__), "")


def test_a_profile_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(VALID, encoding="utf-8")
    profile = find_profile(path)
    assert [c.describe() for c in profile.constraints] == ["≤ 4 axes"]
    assert not profile.constraints[0].official


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "hexagon",
            "target='hexagon': is not known; expected the path of a .toml file or one of 4d, amd-dpu, ane",
        ),
        ("../secret", "is not known"),
        ("missing.toml", "missing.toml"),
        (3, "target: is of type int; expected a name or the path of a .toml file"),
    ],
)
def test_a_target_that_does_not_exist(target: object, message: str) -> None:
    with pytest.raises(BadInput, match=message.replace("'", ".").replace("(", r"\(")):
        find_profile(target)  # type: ignore[arg-type]


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(BadInput, match="1,000,001 bytes"):
        find_profile(path)
