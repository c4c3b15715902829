"""Errors of the command line's own parsing, in one sentence: the option, the value and what was expected.

typer finds that an option does not exist, or that a value is not one of its choices. Its wording differs between
versions and does not name the value, so the sentence is written here from the option's declaration.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from onebyone.cli.session import as_json, console, escaped

# typer contains its own copy of click from 0.29 on.
_EXCEPTIONS = sys.modules[typer.BadParameter.__module__]


class Command(TyperCommand):
    """A command whose usage errors know the command that they are about."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter:
            raise
        except _EXCEPTIONS.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


class Group(TyperGroup):
    """The commands; usage errors are printed as one sentence, and the exit code is 2."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            near = get_close_matches(args[0], self.commands)
            hint = f"did you mean {_either(near)}?" if near else f"expected {_either(list(self.commands))}"
            raise _EXCEPTIONS.UsageError(f"{args[0]!r} is not a command: {hint}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, **settings: Any) -> Any:  # type: ignore[override]
        if not settings.pop("standalone_mode", True):
            return super().main(args, standalone_mode=False, **settings)
        words = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(args, standalone_mode=False, **settings)
        except _EXCEPTIONS.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except _EXCEPTIONS.ClickException as error:
            code = report(error, "--json" in words)
        except typer.Abort:
            console(sys.stderr).print("interrupted")
            code = 130
        sys.exit(code if isinstance(code, int) else 0)


def report(error: Any, json: bool) -> int:
    """Print a usage error on stderr, and as JSON on stdout if that was asked for; returns the exit code."""
    text = sentence(error)
    console(sys.stderr).print(f"[bold red]error:[/] {escaped(text)}", soft_wrap=True)
    if json:
        sys.stdout.write(as_json({"error": text, "refusals": []}))
    return int(error.exit_code)


def sentence(error: Any) -> str:
    """A usage error as one sentence.

    >>> sentence(typer.BadParameter("'x' is not a shape such as 1,3,224,224", param_hint="--shape"))
    "--shape: 'x' is not a shape such as 1,3,224,224"
    """
    context = getattr(error, "ctx", None)
    message = error.format_message().rstrip(".")
    if isinstance(error, _EXCEPTIONS.MissingParameter) and error.param is not None:
        return f"{_name(error.param)} is missing{_meaning(error.param)}"
    if isinstance(error, typer.BadParameter):
        return _bad_value(error, context)
    if isinstance(error, _EXCEPTIONS.NoSuchOption):
        options = _options(context)
        near = get_close_matches(error.option_name, options)
        hint = f"did you mean {_either(near)}?" if near else f"{_program(context)} --help lists the options"
        return f"{error.option_name} is not an option of {_program(context)}: {hint}"
    if isinstance(error, _EXCEPTIONS.BadOptionUsage):
        option = _options(context).get(error.option_name)
        if option is None or getattr(option, "is_flag", False):
            return f"{error.option_name} takes no value"
        return f"{error.option_name} needs a value{_meaning(option)}"
    extra = re.search(r"unexpected extra arguments?(?:\(s\))? \((.*)\)", message)
    if extra and context is not None:
        wanted = " ".join(_name(p) for p in context.command.params if p.param_type_name == "argument")
        return f"{extra[1]!r} is one argument too many; expected {wanted or 'no arguments'}"
    return str(message)


def _bad_value(error: Any, context: Any) -> str:
    if error.param is None:
        hint = error.param_hint
        return f"{hint}: {error.message}" if hint else str(error.message)
    expected = _expected(context, error.param.name)
    value = _value(error)
    said = str(error.message) if expected is None or value is None else f"{value!r} is not {expected}"
    return f"{error.param_hint or _name(error.param)}: {said.rstrip('.')}"


def _value(error: Any) -> str | None:
    """The value that was refused, which typer keeps in the cause and click in the message."""
    cause: Any = getattr(error, "__cause__", None)
    if hasattr(cause, "errors") and (errors := cause.errors()):
        return str(errors[0]["input"])
    quoted = re.match(r"(?:Value error, )?'?(.+?)'? is not ", error.message)
    return quoted[1] if quoted else None


def _expected(context: Any, argument: str) -> str | None:
    """What the declaration of an argument allows: choices, or numbers of a range; None for other types.

    Types that onebyone parses itself have their own messages.
    """
    hints = get_type_hints(inspect.unwrap(context.command.callback), include_extras=True)
    hint = hints.get(argument)
    declared = next((a for a in get_args(hint)[1:] if hasattr(a, "param_decls")), None)
    if declared is None or declared.parser is not None:
        return None
    kind = _plain_type(hint)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(member.value for member in kind)}"
    if kind not in (int, float):
        return None
    noun = "an integer" if kind is int else "a number"
    if declared.min is not None and declared.max is not None:
        return f"{noun} from {declared.min:g} to {declared.max:g}"
    return noun if declared.min is None else f"{noun} of {declared.min:g} or more"


def _plain_type(hint: Any) -> Any:
    """The type in `Annotated[type | None, …]` or `Annotated[list[type], …]`."""
    while get_origin(hint) in (Annotated, Union, UnionType, list):
        hint = get_args(hint)[0]
    return hint


def _options(context: Any) -> dict[str, Any]:
    """The options of a command that its help lists, by every name."""
    if context is None:
        return {}
    listed = [p for p in context.command.params if not getattr(p, "hidden", False)]
    return {name: p for p in listed for name in p.opts if name.startswith("-")}


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    return str(next((n for n in parameter.opts if n.startswith("--")), parameter.opts[0]))


def _meaning(parameter: Any) -> str:
    """What an argument is, or in brackets what an option does: the first sentence of its help."""
    text = re.split(r"[.;](?= |$)", parameter.help or "")[0]
    if not text:
        return ""
    is_argument = parameter.param_type_name == "argument"
    return f"; expected {text[0].lower()}{text[1:]}" if is_argument else f" ({text})"


def _program(context: Any) -> str:
    return "onebyone" if context is None or context.parent is None else f"onebyone {context.info_name}"


def _either(names: Sequence[str]) -> str:
    """Names as a list in a sentence.

    >>> _either(["a", "b", "c"]), _either(["a"])
    ('a, b or c', 'a')
    """
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
