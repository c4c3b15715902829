"""The whole network converted, verified and described, as plain data that the report shows beside the rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from onebyone.comparison.experiment_inputs import ExperimentInputs
from onebyone.comparison.replacements import to_conv
from onebyone.drawing import describe
from onebyone.errors import OnebyoneError
from onebyone.pytorch.modules.conversion import ModuleConversion
from onebyone.verification import verify

VERIFICATION_SHARE = 0.6
"""Share of the time budget; once it is spent, the whole network is no longer verified."""

PlainData = Mapping[str, Any]


def summarise_network(
    inputs: ExperimentInputs, wanted: Collection[str], elapsed: float
) -> dict[str, PlainData | None]:
    """`conversion` and `verification` of the whole network if R1 is wanted, `drawing` if R2 is; None otherwise.

    `elapsed` is how many seconds of the budget are already spent.
    """
    summary: dict[str, PlainData | None] = {"conversion": None, "verification": None, "drawing": None}
    if "R2" in wanted:
        summary["drawing"] = _or_reason(lambda: describe(inputs.model, inputs.example).to_dict())
    if "R1" in wanted:
        conversion = to_conv(inputs.model)
        summary["conversion"] = conversion.to_dict()
        summary["verification"] = _verification(inputs, conversion, elapsed)
    return summary


def _verification(inputs: ExperimentInputs, conversion: ModuleConversion, elapsed: float) -> PlainData:
    if elapsed > VERIFICATION_SHARE * inputs.budget:
        return not_available(
            f"{elapsed:.0f} s of the budget of {inputs.budget:g} s were already spent; increase the budget"
        )
    # verify takes positional inputs only; for a mapping of keyword arguments it probes the layers alone
    x = None if isinstance(inputs.example, Mapping) else inputs.example
    return _or_reason(
        lambda: verify(inputs.model, conversion, x, seed=inputs.seed, gradients=False).to_dict()
    )


def not_available(reason: str) -> PlainData:
    """The entry for data that could not be computed."""
    return {"not_available": reason}


def _or_reason(compute: Callable[[], PlainData]) -> PlainData:
    try:
        return compute()
    except OnebyoneError as error:
        return not_available(str(error).splitlines()[0])
