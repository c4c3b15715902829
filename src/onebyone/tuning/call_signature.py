"""The example call of a network: its arguments in canonical order, and the check of later calls against it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from onebyone.errors import BadInput
from onebyone.records import by
from onebyone.verification.pytree import arguments, map_tensors

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Call = Callable[..., Any]
"""A function that an engine builds. It takes the network's arguments in canonical order (see `canonical`)."""


@dataclass(frozen=True, eq=False)
class CallSignature:
    """The example arguments of a network, in the order of the network's `forward`.

    If `dynamic_batch` is set, later calls may have another length of the first axis, the same for every tensor.

    >>> s = CallSignature.of(nn.Linear(3, 2), torch.ones(1, 3))
    >>> s.described()
    [{'path': 'input', 'shape': [1, 3], 'dtype': 'float32'}]
    """

    args: Args
    kwargs: Kwargs
    forward_signature: inspect.Signature
    dynamic_batch: bool = False

    @classmethod
    def of(cls, network: nn.Module, example: Any, dynamic_batch: bool = False) -> CallSignature:
        """Bind an example to the network's `forward`.

        Raises BadInput if the example contains no tensor or does not fit the signature of `forward`.
        """
        args, kwargs = arguments(example)
        forward_signature = inspect.signature(network.forward)
        try:
            bound = forward_signature.bind(*args, **kwargs)
        except TypeError as error:
            raise BadInput(
                f"example: does not fit the network's forward{forward_signature}: {error}"
            ) from error
        signature = cls(bound.args, bound.kwargs, forward_signature, dynamic_batch)
        if not signature.tensors:
            raise BadInput(f"example: expected at least one tensor, got {type(example).__name__}")
        if dynamic_batch and len({t.shape[:1] for t in signature.tensors}) != 1:
            shapes = ", ".join(by(t.shape) or "a number" for t in signature.tensors)
            raise BadInput(
                f"dynamic_batch: expected inputs with a common first axis (the batch), got shapes {shapes}"
            )
        return signature

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> CallSignature:
        """Return the same call with `fn` applied to each tensor."""
        args, kwargs = map_tensors(self.args, fn), map_tensors(self.kwargs, fn)
        return CallSignature(args, kwargs, self.forward_signature, self.dynamic_batch)

    def run(self, call: Call) -> Any:
        """Call a function with the example arguments."""
        return call(*self.args, **self.kwargs)

    @property
    def example(self) -> Any:
        """The example as `verify` takes it: a tuple, or a dict by name if there are keyword-only arguments."""
        if not self.kwargs:
            return self.args
        return dict(self.forward_signature.bind(*self.args, **self.kwargs).arguments)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor of the example, in order."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
        return self.tensors[0].device

    def described(self) -> list[dict[str, Any]]:
        """Describe each input as plain data: path, shape and dtype of a tensor, path and value of anything else."""
        bound = self.forward_signature.bind(*self.args, **self.kwargs).arguments
        inputs: list[dict[str, Any]] = []
        for path, leaf in pytree.tree_flatten_with_path(dict(bound))[0]:
            name = pytree.keystr(path).replace("['", ".").replace("']", "").lstrip(".")
            if isinstance(leaf, Tensor):
                dtype = str(leaf.dtype).removeprefix("torch.")
                inputs.append({"path": name, "shape": list(leaf.shape), "dtype": dtype})
            else:
                inputs.append({"path": name, "value": repr(leaf)})
        return inputs

    def canonical(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Put the arguments of a call in the example's order. Raises TypeError as the network's `forward` would."""
        if not kwargs and not self.kwargs and len(args) == len(self.args):
            return args, kwargs
        bound = self.forward_signature.bind(*args, **kwargs)
        return bound.args, bound.kwargs

    def check(self, args: Args, kwargs: Kwargs) -> None:
        """Raise BadInput unless a call has the example's structure, shapes, dtypes, devices and non-tensor values."""
        if not kwargs and len(args) == 1 and self._matches_only_input(args[0]):
            return
        expected, structure = pytree.tree_flatten((self.args, self.kwargs))
        received, received_structure = pytree.tree_flatten((args, kwargs))
        if structure != received_structure:
            raise BadInput(
                f"input: {len(received)} values in another structure than the example's {len(expected)}; "
                f"{self._advice}"
            )
        batches = set()
        for example, value in zip(expected, received, strict=True):
            if isinstance(example, Tensor) and isinstance(value, Tensor):
                self._check_tensor(example, value)
                batches.add(value.shape[:1])
            elif isinstance(example, Tensor) or isinstance(value, Tensor) or example != value:
                raise BadInput(
                    f"input: {_brief(value)} where the example has {_brief(example)}; {self._advice}"
                )
        if self.dynamic_batch and len(batches) > 1:
            sizes = ", ".join(str(*b) for b in batches)
            raise BadInput(f"input: batches of {sizes}; expected the same batch size for every input")

    @cached_property
    def _only_input(self) -> Tensor | None:
        """The input if there is one tensor and nothing else (most networks), so that `check` takes a microsecond."""
        only = self.args[0] if len(self.args) == 1 and not self.kwargs else None
        return only if isinstance(only, Tensor) else None

    def _matches_only_input(self, value: Any) -> bool:
        only = self._only_input
        return (
            only is not None
            and isinstance(value, Tensor)
            and value.shape == only.shape
            and value.dtype == only.dtype
            and value.device == only.device
        )

    def _check_tensor(self, example: Tensor, value: Tensor) -> None:
        same = example.shape == value.shape or (
            self.dynamic_batch and example.shape[1:] == value.shape[1:] and example.dim() == value.dim() > 0
        )
        if not same or example.dtype != value.dtype or example.device != value.device:
            raise BadInput(f"input: {_brief(value)} where the example has {_brief(example)}; {self._advice}")

    @property
    def _advice(self) -> str:
        if self.dynamic_batch:
            return "this form takes any batch size, but otherwise only the example's shapes"
        return "tune with such an example, or, for another batch size, with dynamic_batch=True"


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        device = f" on {value.device}" if value.device.type != "cpu" else ""
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a {dtype} tensor of {by(value.shape) or 'no axes'}{device}"
    return repr(value)[:60]
