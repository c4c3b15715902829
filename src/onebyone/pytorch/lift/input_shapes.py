"""What a network's input looks like, read from its first layer: how many axes a window has, how many channels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import nn
from torch.export import ExportedProgram

from onebyone.errors import BadInput
from onebyone.pytorch.lift.exported_graph import user_input

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def window_of(model: nn.Module | ExportedProgram, window: int | Sequence[int]) -> tuple[int, ...]:
    """The window in pixels per axis; one number is the same on every axis that the network's first layer has.

    Raises
    ------
    BadInput
        where it is not one to three positive whole numbers.

    >>> window_of(nn.Conv1d(1, 1, 3), 33), window_of(nn.Conv2d(1, 1, 3), 33), window_of(nn.Conv2d(1, 1, 3), (8, 9))
    ((33,), (33, 33), (8, 9))
    """
    # a number that is no `int` is refused below
    listed = tuple(window) if isinstance(window, Iterable) else ()
    size = (window,) * axes_of(model) if isinstance(window, int) else listed
    if not 1 <= len(size) <= 3 or not all(isinstance(n, int) and n > 0 for n in size):
        raise BadInput(f"window is {window!r}; one to three positive whole numbers of pixels were expected")
    return size


def axes_of(model: nn.Module | ExportedProgram) -> int:
    """How many spatial axes the input has, as the first convolution or the exported input tells; else two."""
    if isinstance(model, ExportedProgram):
        return (
            max(1, len(user_input(model).meta["val"].shape) - 2) if model.graph_signature.user_inputs else 2
        )
    return next((_axes(m) for m in model.modules() if isinstance(m, _CONVOLUTIONS)), 2)


def _axes(layer: nn.Module) -> int:
    return next(rank for rank, kind in enumerate(_CONVOLUTIONS, 1) if isinstance(layer, kind))


def hint(model: nn.Module | ExportedProgram, window: tuple[int, ...]) -> str:
    """What to write for the window where the first convolution has another number of axes; else nothing."""
    axes = axes_of(model)
    if axes == len(window):
        return ""
    wanted = tuple(window[:1] * axes)
    return f"; its first layer slides over {axes} {'axis' if axes == 1 else 'axes'}: expected a window such as {wanted}"


def channel_guesses(model: nn.Module | ExportedProgram, window: Sequence[int]) -> tuple[int | None, ...]:
    """Channels that the image may have, from the first layer that tells, likeliest first; None is no channel axis.

    A first convolution that takes four or sixteen times as many may follow a space-to-depth, and one of three a
    transform of a colour image. One over other axes than the window has comes after a change of axes, which may start
    without channels.

    Raises
    ------
    BadInput
        where no layer tells; the caller must give `channels`.
    """
    if isinstance(model, ExportedProgram):
        shape = model.graph_signature.user_inputs and user_input(model).meta["val"].shape
        return (None if len(shape) == len(window) + 1 else int(shape[1]),)
    for module in model.modules():
        if isinstance(module, _CONVOLUTIONS):
            count = int(module.in_channels)
            folded = [count // d for d in (4, 16) if count % d == 0] if len(window) == 2 else []
            some = tuple(dict.fromkeys((count, *folded, 3)))
            return (*some, None) if _axes(module) == len(window) else (None, *some)
        if isinstance(module, nn.Linear) and module.in_features % math.prod(window) == 0:
            return (module.in_features // math.prod(window),)
        if isinstance(module, nn.Linear):
            break
    raise BadInput(
        "channels: the network's first layer does not tell how many channels the image has; give channels="
    )
