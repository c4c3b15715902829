"""Beside the rows: the whole network converted, verified and described, as plain data for the report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from onebyone.comparison.experiment_inputs import ExperimentInputs
from onebyone.comparison.replacements import to_conv
from onebyone.drawing import describe
from onebyone.errors import OnebyoneError
from onebyone.pytorch.modules.conversion import ModuleConversion
from onebyone.verification import verify

SHARE = 0.6
"""Of the budget: what is spent by then leaves the verification of the whole network out."""

Plain = Mapping[str, Any]


def whole_network(
    setting: ExperimentInputs, wanted: Collection[str], elapsed: float
) -> dict[str, Plain | None]:
    """`conversion` and `verification` of the whole network where R1 is wanted, `drawing` where R2 is; else None."""
    found: dict[str, Plain | None] = {"conversion": None, "verification": None, "drawing": None}
    if "R2" in wanted:
        found["drawing"] = _or_why_not(lambda: describe(setting.model, setting.example).to_dict())
    if "R1" in wanted:
        conversion = to_conv(setting.model)
        found["conversion"] = conversion.to_dict()
        found["verification"] = _proof(setting, conversion, elapsed)
    return found


def _proof(setting: ExperimentInputs, conversion: ModuleConversion, elapsed: float) -> Plain:
    if elapsed > SHARE * setting.budget:
        late = (
            f"{elapsed:.0f} s of the budget of {setting.budget:g} s were spent before it: give a larger one"
        )
        return unavailable(late)
    # a mapping of named inputs has no place in verify, which then probes the layers alone
    x = None if isinstance(setting.example, Mapping) else setting.example
    return _or_why_not(
        lambda: verify(setting.model, conversion, x, seed=setting.seed, gradients=False).to_dict()
    )


def unavailable(reason: str) -> Plain:
    """What stands where something could not be made."""
    return {"not_available": reason}


def _or_why_not(make: Callable[[], Plain]) -> Plain:
    try:
        return make()
    except OnebyoneError as error:
        return unavailable(str(error).splitlines()[0])
