"""The public function `check`: which nodes of a network an accelerator would not take.

Heavy libraries are imported inside the functions, so that `import onebyone` and `onebyone --help` are fast.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onebyone.errors import BadInput
from onebyone.loading import example_of, onnx_model, require_network

if TYPE_CHECKING:
    from onebyone.results import Conversion
    from onebyone.targets import TargetCheck, TargetProfile

    Target = str | os.PathLike[str] | TargetProfile


def check(model: Any, target: Target | Sequence[Target], *, example: Any = None) -> TargetCheck:
    """List the nodes of a network that a target would not take, without converting it.

    Args:
        model: an ONNX model (a path that ends in .onnx, a `ModelProto` or a model of onnx-ir), an `ExportedProgram`, an
            `nn.Module`, or the name of a source.
        target: the name of a target (`onebyone targets` lists them), the path of a profile (.toml), a `TargetProfile`,
            or several of these.
        example: an example input, with which a module is exported; not needed for other kinds of models.

    Returns:
        A `TargetCheck`: `.offenders`, each with the node's `.path`, the `.constraint`, the number `.found` and the one
        `.allowed`, and whether `convert` with this target mends it (`.mendable`) and `.how`; `.ok` if there are none.

    Raises:
        BadInput: the target is not known, its profile is not valid, or `model` is not a network.

    >>> import torch, onebyone
    >>> m = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    >>> c = onebyone.check(m, target="conv-only", example=torch.ones(2, 4))
    >>> [(o.path, o.constraint, o.found, o.allowed, o.mendable) for o in c.offenders]
    [('0', 'form', 'aten.linear', 'Conv', True)]
    """
    profiles = find_profiles(target)
    onnx = onnx_model(model)
    if onnx is not None:
        from onebyone.onnx.targets.convert import check_model

        return check_model(onnx, profiles)
    from onebyone.pytorch.graph.target_check import check_program

    network = require_network(model)
    return check_program(network, profiles, example_of(network) if example is None else example)


def find_profiles(target: Target | Sequence[Target]) -> tuple[TargetProfile, ...]:
    """The profiles of one target or of several. Raises BadInput if there is none of that name."""
    from onebyone.targets import TargetProfile, find_profile

    single = isinstance(target, str | os.PathLike | TargetProfile)
    targets: Sequence[Any] = (
        [target] if single else list(target) if isinstance(target, list | tuple) else [target]
    )
    if not targets:
        raise BadInput("target=(): expected at least one target")
    return tuple(find_profile(each) for each in targets)


def convert_for_target(
    model: Any,
    onnx: Any,
    target: Any,
    to: str | None,
    only: Any,
    freeze_initialisers: bool,
    example: Any,
    dynamic_axes: Sequence[int] | None,
) -> Conversion[Any]:
    """`convert` for a target: `onnx` is the model where it is an ONNX model, else None."""
    profile, *others = find_profiles(target)
    if others:
        names = ", ".join(each.name for each in (profile, *others))
        raise BadInput(
            f"target: {1 + len(others)} targets were given ({names}); a network is converted for one"
        )
    if onnx is not None:
        from onebyone.onnx.targets.convert import convert_for_target as convert_onnx

        if dynamic_axes is not None:
            raise BadInput("dynamic_axes: an ONNX model already fixes which sizes are free; expected None")
        return convert_onnx(onnx, profile, to, only, freeze_initialisers)
    from onebyone.pytorch.graph.target_check import convert_program_for_target

    if freeze_initialisers:
        raise BadInput(
            "freeze_initialisers=True: applies to ONNX models only; expected False for a PyTorch network"
        )
    return convert_program_for_target(require_network(model), profile, to, only, example, dynamic_axes)
