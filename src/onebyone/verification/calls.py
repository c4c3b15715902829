"""Observe what a network calls while it runs: its modules, torch functions, and aten operators.

Each function returns a context manager; while it is open, the callbacks see every call that happens. The callbacks
themselves are not observed: torch functions and operators that they call are not reported to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
BeforeModule = Callable[[str, nn.Module, Args, Kwargs], None]
"""Called with (path, module, args, kwargs) before a module runs."""
AfterModule = Callable[[str, nn.Module, Args, Kwargs, Any], None]
"""Called with (path, module, args, kwargs, output) after a module ran."""
BeforeCall = Callable[[Any, Args, Kwargs], None]
"""Called with (function, args, kwargs) before a torch function or operator runs."""
AfterCall = Callable[[Any, Args, Kwargs, Any], None]
"""Called with (function, args, kwargs, result) after a torch function or operator ran."""


@contextmanager
def observe_modules(
    modules: Mapping[str, nn.Module],
    *,
    before: BeforeModule | None = None,
    after: AfterModule | None = None,
    even_if_raising: bool = False,
) -> Iterator[None]:
    """Observe the calls of modules, given by path.

    Args:
        modules: the modules to observe, by their paths in the network.
        before: called before each call of a module.
        after: called after each call of a module.
        even_if_raising: call `after` (with the output None) also for a call that raised.

    >>> import torch
    >>> net, paths = nn.Sequential(nn.ReLU(), nn.Linear(2, 1)), []
    >>> with observe_modules(dict(net.named_modules()), before=lambda path, *_: paths.append(path)):
    ...     _ = net(torch.zeros(1, 2))
    >>> paths
    ['', '0', '1']
    """

    def before_hook(path: str, callback: BeforeModule) -> Callable[..., None]:
        return lambda module, args, kwargs: callback(path, module, args, kwargs)

    def after_hook(path: str, callback: AfterModule) -> Callable[..., None]:
        return lambda module, args, kwargs, output: callback(path, module, args, kwargs, output)

    with ExitStack() as stack:
        for path, module in modules.items():
            if before is not None:
                handle = module.register_forward_pre_hook(before_hook(path, before), with_kwargs=True)
                stack.callback(handle.remove)
            if after is not None:
                hook = after_hook(path, after)
                handle = module.register_forward_hook(hook, with_kwargs=True, always_call=even_if_raising)
                stack.callback(handle.remove)
        yield


def observe_functions(after: AfterCall) -> AbstractContextManager[Any]:
    """Observe the calls of torch functions and tensor methods, such as `F.linear` and `Tensor.view`.

    >>> import torch
    >>> names = []
    >>> with observe_functions(lambda function, *_: names.append(function.__name__)):
    ...     _ = torch.ones(2).relu()
    >>> names
    ['ones', 'relu']
    """
    return _FunctionObserver(after)


def observe_operators(
    before: BeforeCall | None = None, after: AfterCall | None = None
) -> AbstractContextManager[Any]:
    """Observe the calls of aten operators, also those inside of torch functions and exported programs.

    >>> import torch
    >>> names = []
    >>> with observe_operators(lambda operator, *_: names.append(str(operator))):
    ...     _ = torch.ones(2).relu()
    >>> names[-1]
    'aten.relu.default'
    """
    return _OperatorObserver(before, after)


def first_input(args: Args, kwargs: Kwargs) -> Any:
    """Return the first argument of a call, by position or else by name; None if there is none.

    >>> first_input((), {"x": 3, "y": 4})
    3
    """
    return args[0] if args else next(iter(kwargs.values()), None)


class _FunctionObserver(TorchFunctionMode):
    def __init__(self, after: AfterCall) -> None:
        super().__init__()
        self._after = after

    def __torch_function__(self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._after(func, args, kwargs or {}, result)
        return result


class _OperatorObserver(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, before: BeforeCall | None, after: AfterCall | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._before, self._after = before, after

    def __torch_dispatch__(self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        if self._before is not None:
            self._before(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        if self._after is not None:
            self._after(func, args, kwargs or {}, result)
        return result
