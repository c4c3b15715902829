"""Records an argument of chosen torch functions while a network runs, such as the weights of its convolutions."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class ArgumentRecorder(TorchFunctionMode):
    """Within its context, appends the positional argument number `position` of every call of `functions`.

    >>> import torch
    >>> from torch.nn import functional as F
    >>> with ArgumentRecorder([F.linear], 1) as recorder:
    ...     _ = torch.nn.Linear(3, 2)(torch.zeros(1, 3))
    >>> [tuple(weight.shape) for weight in recorder.arguments]
    [(2, 3)]
    """

    def __init__(self, functions: Collection[Callable[..., Any]], position: int) -> None:
        super().__init__()
        self.functions, self.position = functions, position
        self.arguments: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self.functions:
            self.arguments.append(args[self.position])
        return func(*args, **(kwargs or {}))
