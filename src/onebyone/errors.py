"""The exceptions and warnings of onebyone, with the exit code that the command line uses for each error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from onebyone.records import Refusal, html_result, html_table


class OnebyoneError(Exception):
    """Base class of the errors that onebyone raises deliberately."""

    exit_code: ClassVar[int] = 2


class OnebyoneWarning(UserWarning):
    """A result depends on an assumption; the message names it, and the argument that confirms or changes it."""


class InexactWarning(OnebyoneWarning):
    """Dense scores differ considerably from those of cropping every window."""


class BadInput(OnebyoneError, ValueError):
    """An argument or a file cannot be used; the message names the argument, its value and what was expected."""

    exit_code = 2


class MissingExtra(BadInput, ImportError):
    """An optional library is not installed; the message names the extra to install."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {library}, which is not installed: pip install 'onebyone[{extra}]'"
        )


class Unfinished(BadInput):
    """Parts of an image could not be computed, and the rest was; `failures` are pairs of a place and the reason."""

    def __init__(self, message: str, failures: Sequence[tuple[str, str]]) -> None:
        self.failures = tuple(failures)
        super().__init__(message)


class Refused(OnebyoneError):
    """The request cannot be fulfilled correctly; `refusals` holds every reason."""

    exit_code = 3

    def __init__(self, refusals: Sequence[Refusal], what: str = "the network cannot be converted") -> None:
        self.refusals = tuple(refusals)
        self.what = what
        super().__init__(what + ":\n" + "\n".join(f"  {r}" for r in self.refusals))

    def _repr_html_(self) -> str:
        """The reasons as an HTML table for notebooks."""
        rows = [(r.path or "(top level)", r.kind, r.reason) for r in self.refusals]
        return html_result(f"refused: {self.what}", html_table(["layer", "kind", "reason"], rows))


class NotEquivalent(OnebyoneError):
    """A verification failed; `verification` holds its result, if there is one."""

    exit_code = 1

    def __init__(self, message: str, verification: Any = None) -> None:
        self.verification = verification
        super().__init__(message)
