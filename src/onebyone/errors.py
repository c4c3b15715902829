"""The errors onebyone raises. Each carries the exit code the command line gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from onebyone.records import Refusal, html_result, html_table


class OnebyoneError(Exception):
    """Base of every error raised on purpose by onebyone."""

    exit_code: ClassVar[int] = 2


class OnebyoneWarning(UserWarning):
    """A result rests on an assumption, which the message names, with the argument that states it instead."""


class InexactWarning(OnebyoneWarning):
    """Dense results are not the numbers of cropping every window, and differ from them by more than a little."""


class BadInput(OnebyoneError, ValueError):
    """An argument or a file cannot be used; the message names the argument, its value and what was expected."""

    exit_code = 2


class MissingExtra(BadInput, ImportError):
    """An optional library is not installed; the message names the extra to install."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {library}, which is not installed: pip install 'onebyone[{extra}]'"
        )


class Refused(OnebyoneError):
    """What was asked cannot be done rightly; `refusals` holds every reason."""

    exit_code = 3

    def __init__(self, refusals: Sequence[Refusal], what: str = "the network cannot be converted") -> None:
        self.refusals = tuple(refusals)
        self.what = what
        super().__init__(what + ":\n" + "\n".join(f"  {r}" for r in self.refusals))

    def _repr_html_(self) -> str:
        """The reasons as a notebook shows them."""
        rows = [(r.path or "(top level)", r.kind, r.reason) for r in self.refusals]
        return html_result(f"refused: {self.what}", html_table(["layer", "kind", "reason"], rows))


class NotEquivalent(OnebyoneError):
    """A verification failed; `verification` holds its result."""

    exit_code = 1

    def __init__(self, message: str, verification: Any = None) -> None:
        self.verification = verification
        super().__init__(message)
