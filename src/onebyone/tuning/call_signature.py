"""How a network is called: its example's arguments in one order, and what a call must have in common with them."""

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
"""What an engine gives: called like the network, in canonical order."""


@dataclass(frozen=True, eq=False)
class Calling:
    """The example of a network, its arguments in the order of the network's signature.

    `free_batch`: the first axis of every tensor may have another length, the same for all.

    >>> c = Calling.of(nn.Linear(3, 2), torch.ones(1, 3))
    >>> c.described()
    [{'path': 'input', 'shape': [1, 3], 'dtype': 'float32'}]
    """

    args: Args
    kwargs: Kwargs
    signature: inspect.Signature
    free_batch: bool = False

    @classmethod
    def of(cls, network: nn.Module, example: Any, free_batch: bool = False) -> Calling:
        """Raises BadInput where the example holds no tensor or does not fit the network's signature."""
        args, kwargs = arguments(example)
        signature = inspect.signature(network.forward)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise BadInput(f"example: does not fit the network's forward{signature}: {error}") from error
        calling = cls(bound.args, bound.kwargs, signature, free_batch)
        if not calling.tensors:
            raise BadInput(f"example: holds no tensor but {type(example).__name__}; expected an input")
        if free_batch and len({t.shape[:1] for t in calling.tensors}) != 1:
            shapes = ", ".join(by(t.shape) or "a number" for t in calling.tensors)
            raise BadInput(f"dynamic_batch: the inputs {shapes} share no first axis that could be a batch")
        return calling

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> Calling:
        """The same call with `fn` applied to each tensor."""
        args, kwargs = map_tensors(self.args, fn), map_tensors(self.kwargs, fn)
        return Calling(args, kwargs, self.signature, self.free_batch)

    def run(self, call: Call) -> Any:
        """Call with the example."""
        return call(*self.args, **self.kwargs)

    @property
    def example(self) -> Any:
        """The example as `verify` takes it: positional arguments, or named ones where there are any."""
        if not self.kwargs:
            return self.args
        return dict(self.signature.bind(*self.args, **self.kwargs).arguments)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor of the example, in order."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @property
    def device(self) -> torch.device:
        """Where the inputs are."""
        return self.tensors[0].device

    def described(self) -> list[dict[str, Any]]:
        """Each input as plain data: its path, and its shape and type, or its value where it is no tensor."""
        bound = self.signature.bind(*self.args, **self.kwargs).arguments
        found: list[dict[str, Any]] = []
        for path, leaf in pytree.tree_flatten_with_path(dict(bound))[0]:
            name = pytree.keystr(path).replace("['", ".").replace("']", "").lstrip(".")
            if isinstance(leaf, Tensor):
                dtype = str(leaf.dtype).removeprefix("torch.")
                found.append({"path": name, "shape": list(leaf.shape), "dtype": dtype})
            else:
                found.append({"path": name, "value": repr(leaf)})
        return found

    def canonical(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """The arguments of a call in the example's order. Raises TypeError as the network's forward would."""
        if not kwargs and not self.kwargs and len(args) == len(self.args):
            return args, kwargs
        bound = self.signature.bind(*args, **kwargs)
        return bound.args, bound.kwargs

    def check(self, args: Args, kwargs: Kwargs) -> None:
        """Raise BadInput unless a call is like the example: structure, types, shapes, values of what is no tensor."""
        if not kwargs and len(args) == 1 and self._is_like_the_only(args[0]):
            return
        ours, spec = pytree.tree_flatten((self.args, self.kwargs))
        theirs, other = pytree.tree_flatten((args, kwargs))
        if spec != other:
            raise BadInput(
                f"input: {len(theirs)} values in another structure than the example's {len(ours)}; "
                f"{self._advice}"
            )
        batches = set()
        for mine, given in zip(ours, theirs, strict=True):
            if isinstance(mine, Tensor) and isinstance(given, Tensor):
                self._check_tensor(mine, given)
                batches.add(given.shape[:1])
            elif isinstance(mine, Tensor) or isinstance(given, Tensor) or mine != given:
                raise BadInput(f"input: {_brief(given)} where the example has {_brief(mine)}; {self._advice}")
        if self.free_batch and len(batches) > 1:
            raise BadInput(f"input: batches of {', '.join(str(*b) for b in batches)}; expected one for all")

    @cached_property
    def _only(self) -> Tensor | None:
        """The one input of most networks, which can be checked in a microsecond."""
        only = self.args[0] if len(self.args) == 1 and not self.kwargs else None
        return only if isinstance(only, Tensor) else None

    def _is_like_the_only(self, given: Any) -> bool:
        only = self._only
        return (
            only is not None
            and isinstance(given, Tensor)
            and given.shape == only.shape
            and given.dtype == only.dtype
            and given.device == only.device
        )

    def _check_tensor(self, mine: Tensor, given: Tensor) -> None:
        same = mine.shape == given.shape or (
            self.free_batch and mine.shape[1:] == given.shape[1:] and mine.dim() == given.dim() > 0
        )
        if not same or mine.dtype != given.dtype or mine.device != given.device:
            raise BadInput(f"input: {_brief(given)} where the example has {_brief(mine)}; {self._advice}")

    @property
    def _advice(self) -> str:
        if self.free_batch:
            return "this form takes any batch of its example's shape, and nothing else"
        return "tune with such an example, or, for another batch size, with dynamic_batch=True"


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        place = f" on {value.device}" if value.device.type != "cpu" else ""
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of {by(value.shape) or 'no axes'}{place}"
    return repr(value)[:60]
