"""What both executors share: devices, evaluation mode, choosing an output, and telling how far they are."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from onebyone.errors import BadInput
from onebyone.pytorch.lift.outputs import Output, names_of

Progress = bool | Callable[[int, int], object] | None


def place_on(model: nn.Module, device: str | torch.device) -> nn.Module:
    """`model` where it is, if that is `device`; else a copy there, so that the caller's stays put.

    Raises BadInput if there is no such device here.
    """
    wanted = device_named(device)
    here = next((p.device for p in [*model.parameters(), *model.buffers()]), wanted)
    if here.type == wanted.type and (wanted.index is None or here.index == wanted.index):
        return model
    return copy.deepcopy(model).to(wanted)


def device_named(device: str | torch.device) -> torch.device:
    """The device, proven by allocating on it. Raises BadInput if there is no such device here."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).cpu()  # the meta device allocates, but holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"device {str(device)!r} cannot be used here: {reason}") from error
    return found


def floating_dtype(model: nn.Module) -> torch.dtype:
    """The type the network computes in: its first floating parameter's, else float32."""
    floating = (p.dtype for p in [*model.parameters(), *model.buffers()] if p.is_floating_point())
    return next(floating, torch.float32)


def laid_out(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """A copy-free or copied (N, C, H, W) tensor (or of other spatial axes) in the memory order asked for.

    Written by strides, because torch holds a one-channel tensor to be in both orders and would leave it as
    it is, and its convolutions then choose the order of the output by the strides.
    """
    if not channels_last:
        return x.contiguous()
    strides = strides_of(tuple(x.shape), channels_last)
    if x.stride() == strides:
        return x
    return torch.empty_strided(tuple(x.shape), strides, dtype=x.dtype, device=x.device).copy_(x)


def strides_of(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    """The strides of a (N, C, H, W) tensor (or of other spatial axes) in a memory order.

    >>> strides_of((2, 3, 5, 7), True), strides_of((2, 3, 5, 7), False)
    ((105, 1, 21, 3), (105, 35, 7, 1))
    """
    if not channels_last:
        return tuple(torch.empty(shape, device="meta").stride())
    last = torch.empty((shape[0], *shape[2:], shape[1]), device="meta").stride()
    return (last[0], 1, *last[1:-1])


def output_of(result: Any, output: int | str) -> torch.Tensor:
    """The tensor asked for of a network that gives one tensor, or several in a tuple, a dictionary or a record.

    `output` is its number from 0, in the order of the result, or its name: the key of a dictionary, the field
    of a record; nested ones are joined by dots.

    Raises BadInput where the network has no such output.

    >>> output_of({"scores": torch.zeros(1), "boxes": torch.ones(4)}, "boxes")
    tensor([1., 1., 1., 1.])
    """
    leaves = pytree.tree_leaves(result)
    named = [(name, leaf) for name, leaf in zip(names_of(result), leaves, strict=True) if leaf is not None]
    chosen = named[output_index([name for name, _ in named], output)][1]
    if not isinstance(chosen, torch.Tensor):
        raise BadInput(f"output={output}: the network gives a {type(chosen).__name__} there, not a tensor")
    return chosen


def chosen_output(outputs: Sequence[Output], output: int | str) -> tuple[int | str, Output | None]:
    """The number of the output meant and what is known of it; `output` as it is where nothing is known."""
    if not outputs:
        return output, None
    number = output_index([o.name for o in outputs], output)
    return number, outputs[number]


def output_index(names: Sequence[str], output: int | str) -> int:
    """The number of the output that `output` means: a number from 0, or one of the names.

    Raises BadInput where there is none.

    >>> output_index(("scores", "boxes"), "boxes")
    1
    """
    if isinstance(output, str) and output in names:
        return list(names).index(output)
    number = int(output) if isinstance(output, int) or output.isdecimal() else -1
    if not 0 <= number < len(names):
        named = "" if list(names) == [str(k) for k in range(len(names))] else f": {', '.join(names)}"
        gives = "has one output" if len(names) == 1 else f"gives {len(names)} outputs{named}"
        raise BadInput(f"output={output}, but the network {gives}")
    return number


@contextmanager
def telling(progress: Progress, total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A function to call with what was done so far: it feeds the caller's callable, or a bar on stderr."""
    if callable(progress):
        yield lambda done: (progress(done, total), None)[1]
    elif progress:
        with _bar(total, what) as advance:
            yield advance
    else:
        yield lambda _: None


@contextmanager
def _bar(total: int, what: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
