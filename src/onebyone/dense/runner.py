"""Runners: a network applied to a batch of tiles. The one here is for PyTorch; `onnx_runner` has that for ONNX."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onebyone.dense.outputs import select_output
from onebyone.errors import BadInput
from onebyone.pytorch.lift.exported_graph import evaluating

#: The types of 16 bits in which a network can be run.
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
#: What runs networks that are applied as they are, in words.
PLAIN_PYTORCH = "PyTorch, eager"


class TileRunner(Protocol):
    """A network that was loaded once and runs on any number of batches.

    The settings of a runner are plain data that can be pickled; each worker loads the network and makes its own runner.
    """

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised pixels (N, C, *pixels) float32 to the network's output (N, channels, *positions) float32.

        The result may share memory with `batch`: it is used before `batch` is overwritten.
        """
        ...


@contextmanager
def open_runner(model: Any, settings: TorchSettings) -> Iterator[TileRunner]:
    """A runner for a PyTorch network, or for an ONNX model in its engine, with PyTorch's number of threads."""
    if isinstance(model, nn.Module):
        with torch_runner(model, settings) as torch_run:
            yield torch_run
        return
    from onebyone.dense.onnx_runner import OnnxRunner
    from onebyone.tuning.onnx_engines import LoadedOnnx

    threads = torch.get_num_threads()
    loaded = LoadedOnnx(model, settings.engine or "onnxruntime", device=str(settings.device), threads=threads)
    yield OnnxRunner(loaded, settings.output)


@dataclass(frozen=True)
class TorchSettings:
    """How a network is run: where, in which memory order, and which of its outputs is taken.

    `half` is the type of 16 bits that a PyTorch network computes in, "bfloat16" or "float16"; None keeps its own type.
    `engine` is what runs an ONNX model, "onnxruntime" or "openvino"; None is ONNX Runtime.
    """

    device: torch.device
    channels_last: bool
    output: int | str = 0
    half: str | None = None
    engine: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        named = {"half": self.half, "engine": self.engine}
        return {
            "device": self.device.type,
            "channels_last": self.channels_last,
            "output": self.output,
            **{name: value for name, value in named.items() if value is not None},
        }


@dataclass(frozen=True)
class TorchRunner:
    """Runs a PyTorch network that is on its device and in evaluation mode; made by :func:`torch_runner`."""

    model: nn.Module
    settings: TorchSettings

    @torch.inference_mode()
    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised pixels (N, C, *pixels) to the network's output (N, channels, *positions), both float32.

        Nothing is copied on a CPU where the network computes in float32 and `batch` has the memory order asked for.
        """
        inputs = torch.from_numpy(batch)
        # pinned memory is copied while the processor goes on; `cpu` below waits for it
        return self.on_tensor(inputs.to(self.settings.device, non_blocking=inputs.is_pinned()))

    @torch.inference_mode()
    def on_tensor(self, inputs: torch.Tensor) -> NDArray[np.float32]:
        """The same for normalised pixels that are on the device, in any memory order."""
        inputs = inputs.to(floating_dtype(self.model))
        result = select_output(
            self.model(in_memory_order(inputs, self.settings.channels_last)), self.settings.output
        )
        array: NDArray[np.float32] = result.float().cpu().numpy()
        return array


@contextmanager
def torch_runner(model: nn.Module, settings: TorchSettings) -> Iterator[TorchRunner]:
    """A runner for `model`, which is in evaluation mode meanwhile. The caller's model stays on its own device.

    Raises BadInput where the device cannot be used.
    """
    moved = moved_to(model, settings.device)
    if settings.half is not None:
        moved = copy.deepcopy(moved).to(HALF[settings.half])
    with evaluating(moved):
        yield TorchRunner(moved, settings)


def moved_to(model: nn.Module, device: str | torch.device) -> nn.Module:
    """`model` itself where it is on `device` already, else a copy there.

    Raises BadInput where the device cannot be used.
    """
    target = usable_device(device)
    current = next((p.device for p in [*model.parameters(), *model.buffers()]), target)
    if current == target:
        return model
    return copy.deepcopy(model).to(target)


def usable_device(device: str | torch.device) -> torch.device:
    """The device, with its number where there are several, tested by an allocation.

    Raises BadInput where it cannot be used.
    """
    try:
        allocated = torch.zeros(1, device=torch.device(device))
        allocated.cpu()  # the meta device allocates, but its tensors hold no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"device={str(device)!r}: cannot be used here: {reason}") from error
    return allocated.device


def floating_dtype(model: nn.Module) -> torch.dtype:
    """The type the network computes in: that of its first floating-point parameter, else float32."""
    floating = (p.dtype for p in [*model.parameters(), *model.buffers()] if p.is_floating_point())
    return next(floating, torch.float32)


def in_memory_order(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """A tensor (N, C, *spatial) in a memory order, copied only where it has another.

    The strides are set explicitly: torch treats a one-channel tensor as being in both orders and would leave it
    unchanged, but its convolutions choose the memory order of their output by these strides.
    """
    if not channels_last:
        return x.contiguous()
    strides = strides_of(tuple(x.shape), channels_last)
    if x.stride() == strides:
        return x
    return torch.empty_strided(tuple(x.shape), strides, dtype=x.dtype, device=x.device).copy_(x)


def strides_of(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    """The strides of a tensor (N, C, *spatial) in a memory order.

    >>> strides_of((2, 3, 5, 7), True), strides_of((2, 3, 5, 7), False)
    ((105, 1, 21, 3), (105, 35, 7, 1))
    """
    if not channels_last:
        return tuple(torch.empty(shape, device="meta").stride())
    last = torch.empty((shape[0], *shape[2:], shape[1]), device="meta").stride()
    return (last[0], 1, *last[1:-1])
