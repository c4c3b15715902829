"""A target: the constraints that an accelerator's compiler states, as data, with the source of every number.

Profiles are TOML files. Those of `profiles/` are known by name; users write their own in the same form
(docs/targets.md).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from onebyone.atomic_files import require_file
from onebyone.errors import BadInput
from onebyone.records import Readable, table
from onebyone.targets import limits, requirements
from onebyone.targets.constraint import Constraint

#: The kinds of constraints, by the `kind` of their table.
KINDS: dict[str, type[Constraint]] = {
    constraint.kind: constraint
    for constraint in (
        limits.RankLimit,
        limits.SizeLimit,
        limits.LayerLimit,
        requirements.MissingOperator,
        requirements.FormRequirement,
        requirements.ConstantOperand,
        requirements.ExplicitAttributes,
        requirements.AttributeValues,
        requirements.StaticShapes,
        requirements.ForbiddenElementTypes,
        requirements.BiasVector,
    )
}
#: A profile is a few kilobytes; a larger file is something else.
LARGEST_PROFILE = 1_000_000
Record = TypeVar("Record")


@dataclass(frozen=True)
class PreferredForm:
    """What runs best on a target, beside what it refuses.

    Attributes:
        form: "conv" if products with a constant should be convolutions, "linear" for the reverse, "any" if stated by
            no one.
        token_axis: where the positions of a sequence go: "width" is (N, C, 1, S), "height" is (N, C, S, 1), and
            "batch" is (N·S, C, 1, 1).
        width_multiple: the last axis is padded to a multiple of this many elements.
    """

    form: Literal["conv", "linear", "any"] = "any"
    token_axis: Literal["width", "height", "batch"] = "width"
    width_multiple: int = 1
    source: str = ""
    official: bool = False


@dataclass(frozen=True)
class ProfileNote:
    """Something that a source states and `check` does not test, because it depends on a later step or on the chip."""

    text: str
    source: str
    official: bool = False


@dataclass(frozen=True)
class TargetProfile(Readable):
    """The constraints of one target; `print(profile)` is a table with the source of each.

    Attributes:
        name: as `--target` takes it.
        title: the product's full name.
        preferred: what runs best there.
        constraints: what its compiler refuses.
        notes: what the sources state beyond that.
    """

    name: str
    title: str
    constraints: tuple[Constraint, ...]
    preferred: PreferredForm = PreferredForm()
    notes: tuple[ProfileNote, ...] = ()

    def rows(self) -> list[tuple[str, str, str, str]]:
        """For each constraint: the operators, what is allowed, whether it is official, and the source."""
        return [
            (
                _operators(c),
                c.describe(),
                "official" if c.official else "not official",
                c.source,
            )
            for c in self.constraints
        ]

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain data for JSON."""
        constraints = [
            {"operators": operators, "constraint": text, "official": official == "official", "source": source}
            for operators, text, official, source in self.rows()
        ]
        preferred = {field.name: getattr(self.preferred, field.name) for field in fields(self.preferred)}
        notes = [{"text": n.text, "source": n.source, "official": n.official} for n in self.notes]
        return {
            "name": self.name,
            "title": self.title,
            "preferred": preferred,
            "constraints": constraints,
            "notes": notes,
        }

    def __str__(self) -> str:
        head = f"{self.name}: {self.title}"
        return "\n".join([head, table(["operators", "constraint", "status", "source"], self.rows())])


def profile_names() -> tuple[str, ...]:
    """The names of the profiles that come with the package.

    >>> {"ane", "qnn-htp", "conv-only"} <= set(profile_names())
    True
    """
    folder = resources.files("onebyone.targets") / "profiles"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def find_profile(target: str | os.PathLike[str] | TargetProfile) -> TargetProfile:
    """The profile of that name, or of the file whose path ends in .toml.

    Raises:
        BadInput: there is no such profile, or the file is not a valid one.

    >>> find_profile("conv-only").preferred.form
    'conv'
    """
    if isinstance(target, TargetProfile):
        return target
    if not isinstance(target, str | os.PathLike):
        raise BadInput(
            f"target: is of type {type(target).__name__}; expected a name or the path of a .toml file"
        )
    if Path(target).suffix == ".toml":
        path = require_file(target)
        if path.stat().st_size > LARGEST_PROFILE:
            raise BadInput(
                f"{path}: has {path.stat().st_size:,} bytes; a profile has at most {LARGEST_PROFILE:,}"
            )
        return read_profile(path.read_bytes(), str(path))
    return _built_in(os.fspath(target))


@cache
def _built_in(name: str) -> TargetProfile:
    if name not in profile_names():
        raise BadInput(
            f"target={name!r}: is not known; expected the path of a .toml file or one of {', '.join(profile_names())}"
        )
    file = resources.files("onebyone.targets") / "profiles" / f"{name}.toml"
    return read_profile(file.read_bytes(), f"{name}.toml")


def read_profile(data: bytes, file: str) -> TargetProfile:
    """A profile from the bytes of a TOML file; `file` is its name in messages.

    Raises:
        BadInput: the file is not TOML, has a key that no profile has, lacks one, or a value is of another type.
    """
    try:
        content = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{file}: is not a TOML file: {error}") from error
    _require_keys(content, {"name", "title"}, {"preferred", "constraint", "note"}, file)
    preferred = _table_of(content, "preferred", file)
    return TargetProfile(
        name=_value(content["name"], str, f"{file}: name"),
        title=_value(content["title"], str, f"{file}: title"),
        constraints=tuple(
            _constraint(entry, f"{file}: constraint {i}")
            for i, entry in enumerate(_tables(content, "constraint", file), 1)
        ),
        preferred=_record(PreferredForm, preferred, f"{file}: preferred"),
        notes=tuple(
            _record(ProfileNote, entry, f"{file}: note {i}")
            for i, entry in enumerate(_tables(content, "note", file), 1)
        ),
    )


def _constraint(entry: Mapping[str, Any], where: str) -> Constraint:
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadInput(f"{where}: kind is {kind!r}; expected one of {', '.join(KINDS)}")
    constraint = _record(KINDS[kind], {k: v for k, v in entry.items() if k != "kind"}, f"{where} ({kind})")
    if not constraint.source.strip():
        raise BadInput(f"{where} ({kind}): source is empty; expected where the number is stated")
    if kind == "missing-operator" and not constraint.operators:
        raise BadInput(f"{where} ({kind}): operators is empty; expected the operators that are missing")
    return constraint


def _record(kind: type[Record], entry: Mapping[str, Any], where: str) -> Record:
    """A dataclass from a table with exactly its fields, each of the field's type."""
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    needed = {name for name, field in known.items() if field.default is MISSING}
    _require_keys(entry, needed, set(known) - needed, where)
    return kind(**{key: _value(value, hints[key], f"{where}: {key}") for key, value in entry.items()})


def _require_keys(entry: Mapping[str, Any], needed: set[str], optional: set[str], where: str) -> None:
    unknown = sorted(set(entry) - needed - optional)
    if unknown:
        expected = ", ".join(sorted(needed | optional))
        raise BadInput(f"{where}: has the unknown key {unknown[0]!r}; expected {expected}")
    missing = sorted(needed - set(entry))
    if missing:
        raise BadInput(f"{where}: lacks the key {missing[0]!r}")


def _value(value: Any, hint: Any, where: str) -> Any:
    """The value if it is of the annotated type; lists become tuples."""
    origin = get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise BadInput(f"{where} is {value!r}; expected a list")
        return tuple(_value(item, get_args(hint)[0], where) for item in value)
    if origin is Literal:
        if value not in get_args(hint) or isinstance(value, bool):
            raise BadInput(f"{where} is {value!r}; expected one of {', '.join(map(str, get_args(hint)))}")
        return value
    allowed = [kind for kind in get_args(hint) if kind is not type(None)] if _is_union(origin) else [hint]
    if type(value) not in allowed:
        expected = " or ".join(_TYPE_NAMES[kind] for kind in allowed)
        raise BadInput(f"{where} is {value!r}; expected {expected}")
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and int in allowed
        and float not in allowed
        and value < 0
    ):
        raise BadInput(f"{where} is {value!r}; expected a whole number of at least 0")
    return value


def _is_union(origin: Any) -> bool:
    return origin in (Union, UnionType)


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _tables(content: Mapping[str, Any], key: str, file: str) -> list[Mapping[str, Any]]:
    value = content.get(key, [])
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise BadInput(f"{file}: {key} is not a list of tables; expected [[{key}]]")
    return list(value)


def _table_of(content: Mapping[str, Any], key: str, file: str) -> Mapping[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise BadInput(f"{file}: {key} is not a table; expected [{key}]")
    return value


def _operators(constraint: Constraint) -> str:
    text = ", ".join(constraint.operators) or "all"
    if constraint.exempt:
        text += f" except {', '.join(constraint.exempt)}"
    if constraint.element_types:
        text += f" of {', '.join(constraint.element_types)}"
    return text
