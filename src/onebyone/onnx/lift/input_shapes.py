"""What a model's input looks like: where the channels are, how many there are, and which sizes the file fixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from onebyone.errors import BadInput
from onebyone.lifting.grid import Integers
from onebyone.onnx_file import fed_inputs
from onebyone.records import by

#: An axis at most this long is read as channels, where nothing else tells.
_MOST_COLOURS = 4


@dataclass(frozen=True)
class InputLayout:
    """How the input of a model of one window is laid out.

    Attributes:
        source: the input's value in the original graph.
        window: the size of one window in pixels, per axis.
        channels: the number of channels; None where the input has no channel axis.
        channels_last: whether the channels are the last axis, as in models from Keras.
        batch: the only number of samples that the model takes; None if any.
    """

    source: ir.Value
    window: tuple[int, ...]
    channels: int | None
    channels_last: bool
    batch: int | None

    def index(self) -> Integers:
        """Which (channel, position) of the image each element of the input is, without the batch."""
        numbers = np.arange((self.channels or 1) * prod(self.window), dtype=np.int64)
        if self.channels is None:
            return numbers.reshape(self.window)
        image = numbers.reshape(self.channels, *self.window)
        return np.ascontiguousarray(np.moveaxis(image, 0, -1)) if self.channels_last else image

    def image_value(self) -> ir.Value:
        """The input of the any-size graph: `(batch, C, *sizes)`, whatever the layout of the original."""
        names = ("depth", "height", "width")[3 - len(self.window) :]
        return ir.Value(
            name=self.source.name,
            type=ir.TensorType(self.source.dtype or ir.DataType.FLOAT),
            shape=ir.Shape(["batch", self.channels or 1, *names]),
        )


def image_input(graph: ir.Graph) -> ir.Value:
    """The only input that is no initializer.

    Raises:
        BadInput: there are several, or its type or rank is none of an image.
    """
    inputs = fed_inputs(graph)
    if len(inputs) != 1:
        names = ", ".join(str(value.name) for value in inputs)
        raise BadInput(f"model takes {len(inputs)} inputs ({names}); a network of one image was expected")
    (value,) = inputs
    if value.dtype is not None and not value.dtype.is_floating_point():
        raise BadInput(
            f"model: its input {value.name!r} has the type {value.dtype.name}; an image of floating-point numbers was "
            "expected"
        )
    if value.shape is None or not 3 <= len(value.shape) <= 5:
        rank = "an unknown number of" if value.shape is None else len(value.shape)
        raise BadInput(f"model: its input {value.name!r} has {rank} axes; an image (N, C, H, W) was expected")
    return value


def read_layout(graph: ir.Graph, window: int | Sequence[int] | None, channels: int | None) -> InputLayout:
    """The layout of a graph's input, from the file and from what the caller states.

    Raises:
        BadInput: the window or the channels are not known, or differ from those of the file.
    """
    source = image_input(graph)
    sizes = [size if isinstance(size, int) else None for size in source.shape or ()]
    if sizes[0] == 0:
        raise BadInput(f"model: its input {source.name!r} has a batch of 0 samples")
    given = None if window is None or isinstance(window, int) else tuple(window)
    if given is not None and not (1 <= len(given) <= 3 and all(isinstance(n, int) and n > 0 for n in given)):
        raise BadInput(f"window is {window!r}; one to three positive whole numbers of pixels were expected")
    if isinstance(window, int) and window < 1:
        raise BadInput(f"window is {window!r}; one to three positive whole numbers of pixels were expected")
    axes = len(sizes) - 2 if given is None else len(given)
    if axes not in (len(sizes) - 2, len(sizes) - 1):
        raise BadInput(
            f"window is {window!r}, of {axes} axes; the input {source.name!r} of shape {_text(sizes)} has "
            f"{len(sizes) - 2}"
        )
    bare = axes == len(sizes) - 1
    last = not bare and _channels_last(source, sizes)
    spatial = sizes[1:] if bare else sizes[1:-1] if last else sizes[2:]
    fixed_channels = None if bare else sizes[-1] if last else sizes[1]
    size = _window(source, sizes, spatial, window if isinstance(window, int) else given)
    if bare:
        return InputLayout(source, size, None, False, sizes[0])
    count = fixed_channels or channels or _first_kernel_channels(source)
    if count is None:
        raise BadInput("channels: the model does not tell how many channels the image has; give channels=")
    if channels is not None and channels != count:
        raise BadInput(f"channels is {channels}; the input {source.name!r} has {count}")
    return InputLayout(source, size, count, last, sizes[0])


def _window(
    source: ir.Value,
    sizes: Sequence[int | None],
    spatial: Sequence[int | None],
    window: int | tuple[int, ...] | None,
) -> tuple[int, ...]:
    if window is None:
        if any(size is None for size in spatial):
            raise BadInput(
                f"window: the input {source.name!r} of shape {_text(sizes)} leaves its size free; give the window in "
                "pixels"
            )
        return tuple(size for size in spatial if size is not None)
    wanted = (window,) * len(spatial) if isinstance(window, int) else window
    if any(size not in (None, want) for size, want in zip(spatial, wanted, strict=True)):
        raise BadInput(
            f"window is {by(wanted)}; the model was made for an input of shape {_text(sizes)} ({source.name!r})"
        )
    return wanted


def _text(sizes: Sequence[int | None]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in sizes)})"


def _channels_last(source: ir.Value, sizes: Sequence[int | None]) -> bool:
    """Whether the last axis holds the channels: as the first operator that tells, or a short last axis, says."""
    value, rank = source, len(sizes)
    for _ in range(8):
        uses = list(value.uses())
        if len(uses) != 1:
            break
        node = uses[0].node
        if node.op_type == "Transpose":
            order = node.attributes.get_ints("perm")
            if order is not None and len(order) == rank:
                return bool(order[1] == rank - 1)
            break
        if node.op_type in ("Conv", "MaxPool", "AveragePool", "BatchNormalization", "GlobalAveragePool"):
            return False
        if node.op_type not in ("Cast", "Sub", "Add", "Mul", "Div", "Identity", "Pad"):
            break
        value = node.outputs[0]
    first, last = sizes[1], sizes[-1]
    return last is not None and last <= _MOST_COLOURS and (first is None or first > _MOST_COLOURS)


def _first_kernel_channels(source: ir.Value) -> int | None:
    """The number of channels that the first convolution after the input takes."""
    waiting, seen = [source], set[ir.Value]()
    while waiting:
        value = waiting.pop(0)
        if value in seen:
            continue
        seen.add(value)
        for use in value.uses():
            node = use.node
            if node.op_type == "Conv" and use.idx == 0:
                weight = node.inputs[1]
                kernel = None if weight is None else weight.const_value
                if kernel is not None:
                    return int(kernel.shape[1]) * node.attributes.get_int("group", 1)  # type: ignore[arg-type]
            if node.op_type in ("Cast", "Sub", "Add", "Mul", "Div", "Identity", "Pad", "Transpose"):
                waiting.append(node.outputs[0])
    return None
