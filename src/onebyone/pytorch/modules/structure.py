"""Copy a tree of modules without copying its parameters and buffers.

`copy.deepcopy` copies too much (every tensor, and every object that a hook can reach) and too little (a closure still
refers to the old module). Here, every module is copied; parameters and buffers are the same objects, or one clone of
each; and every reference to an old module (in a bound method used as a hook, a closure, a partial, a list of layers, a
weak reference) is replaced by a reference to its copy. Objects that do not refer to the tree are shared.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn.modules.module import _WrappedHook
from torch.utils.hooks import RemovableHandle

from onebyone.errors import Refused
from onebyone.records import Refusal

ATOMS = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size, type)
CONTAINERS = (list, tuple, set, frozenset, dict, OrderedDict, defaultdict, deque)
# An object that refers to more objects than this is a part of an application (a trainer, a data set), not of a network.
SEARCH_LIMIT = 20_000


def why_opaque(module: nn.Module) -> str | None:
    """Why `module` cannot be copied from Python; None if it can."""
    return _why_opaque(type(module))  # type: ignore[arg-type]  # a class is hashable


@functools.lru_cache(maxsize=4096)
def _why_opaque(cls: type[nn.Module]) -> str | None:
    if issubclass(cls, torch.jit.ScriptModule):
        return (
            "compiled by TorchScript: give the network as it was before torch.jit.script or torch.jit.trace"
        )
    names = {f"{c.__module__}.{c.__qualname__}" for c in cls.__mro__}
    if "torch.nn.parallel.distributed.DistributedDataParallel" in names:
        return "DistributedDataParallel keeps a record of its parameters: convert its .module and wrap again"
    if any(name.startswith("torch.distributed.fsdp.") for name in names):
        return "FSDP shards its parameters: convert the network before sharding it"
    return None


def require_python(network: object) -> None:
    """Raise Refused, naming every module in `network` that TorchScript compiled, because those cannot be analysed.

    >>> require_python(nn.Linear(2, 2))
    """
    if not isinstance(network, nn.Module):
        return
    compiled = [(path, m) for path, m in walk(network) if isinstance(m, torch.jit.ScriptModule)]
    if compiled:
        refusals = [Refusal(path, type(m).__name__, str(why_opaque(m))) for path, m in compiled]
        raise Refused(refusals, "the network contains modules that are no longer Python")


def walk(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every (dotted path, module). A module used twice is listed at each path; opaque modules are not entered."""
    stack: list[tuple[str, nn.Module]] = [("", root)]
    while stack:
        path, module = stack.pop()
        yield path, module
        if why_opaque(module) is None:
            children = [(n, m) for n, m in vars(module)["_modules"].items() if m is not None]
            stack.extend((f"{path}.{name}" if path else name, child) for name, child in reversed(children))


def copy_structure(root: nn.Module, *, copy_tensors: bool = False) -> tuple[nn.Module, Successors]:
    """A copy of the module tree under `root`, and the mapping from old objects to new ones.

    The copy has the original's Parameter and buffer objects, or, with `copy_tensors`, one clone of each, so that tied
    tensors stay tied. Hooks, flags, names, and modules used at several paths are kept. Opaque modules (see
    `why_opaque`) are shared.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> twin, _ = copy_structure(net)
    >>> twin[0] is net[0], twin[0].weight is net[0].weight
    (False, True)
    """
    successors = Successors(copy_tensors)
    modules = list({id(m): m for _, m in walk(root)}.values())
    for module in modules:
        successors.announce(module)
    for module in modules:
        successors.fill(module)
    return cast(nn.Module, successors.of(root)), successors


class Successors:
    """The mapping from old objects to the new ones that replace them."""

    def __init__(self, copy_tensors: bool) -> None:
        self.copy_tensors = copy_tensors
        self._new: dict[int, Any] = {}
        self._old: list[Any] = []  # keeps ids valid
        self._unrelated: set[int] = set()  # ids of objects that are known not to refer to the tree

    def of(self, old: Any) -> Any:
        """The successor of `old`; `old` itself if it has none."""
        return self._new.get(id(old), old)

    def _record(self, old: Any, new: Any) -> Any:
        self._new[id(old)] = new
        self._old.append(old)
        return new

    def announce(self, module: nn.Module) -> None:
        """Create empty successors of a module and its hook tables and, with `copy_tensors`, clones of its tensors."""
        if why_opaque(module) is not None:
            self._record(module, module)
            return
        if isinstance(module, fx.GraphModule):
            # each GraphModule has a class of its own, which holds its forward
            self._record(module, fx.GraphModule.__new__(type(module)))
        else:
            self._record(module, object.__new__(type(module)))
        for key, value in vars(module).items():
            if _is_hook_table(key, value):
                self._record(value, type(value)())
        if self.copy_tensors:
            for table in ("_parameters", "_buffers"):
                for tensor in vars(module)[table].values():
                    if tensor is not None:
                        self._clone(tensor)

    def fill(self, module: nn.Module) -> None:
        """Fill the announced successor of `module` with everything that the module has."""
        new = self.of(module)
        if new is module:
            return
        state = vars(new)
        for key, value in vars(module).items():
            if _is_hook_table(key, value):
                table = self.of(value)
                table.update((i, self.renew(hook, objects=False)) for i, hook in value.items())
                state[key] = table
            elif key != "_graph":
                state[key] = self.renew(value)
        if isinstance(module, fx.GraphModule):
            new.graph = copy.deepcopy(module.graph)
        elif type(module).__qualname__ == "OptimizedModule" and hasattr(module, "dynamo_ctx"):
            # torch.compile keeps the call of the old module in a closure created in C, which has to be created again
            new._initialize()

    def _clone(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in self._new:
            return cast(torch.Tensor, self._new[id(tensor)])
        if tensor.is_leaf:
            return cast(torch.Tensor, self._record(tensor, copy.deepcopy(tensor)))
        return cast(torch.Tensor, self._record(tensor, tensor.detach().clone()))

    def renew(self, value: Any, *, objects: bool = True) -> Any:
        """`value`, with every reference to an old module replaced by its successor.

        Built-in containers are copied. Other objects are shared unless they refer to the tree. With `objects=False`
        (for hooks) they are shared even then, because the code that attached the hook may read them.
        """
        if isinstance(value, ATOMS):
            return value
        if id(value) in self._new:
            return self._new[id(value)]
        if isinstance(value, torch.Tensor):
            return self._clone(value) if self.copy_tensors else value
        if type(value) in CONTAINERS and objects:
            return self._renew_container(value, objects)
        if not self._refers(value, objects):
            return value
        if type(value) in CONTAINERS:
            return self._renew_container(value, objects)
        return self._renew_referrer(value, objects)

    def _renew_container(self, value: Any, objects: bool) -> Any:
        if isinstance(value, dict):
            new = self._record(value, copy.copy(value))
            for key, item in value.items():
                new[key] = self.renew(item, objects=objects)
            return new
        if isinstance(value, list | deque):
            new = self._record(value, copy.copy(value))
            for i, item in enumerate(value):
                new[i] = self.renew(item, objects=objects)
            return new
        return self._record(value, type(value)(self.renew(item, objects=objects) for item in value))

    def _renew_referrer(self, value: Any, objects: bool) -> Any:
        renew = functools.partial(self.renew, objects=objects)
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, renew(value.__self__))
        if isinstance(value, weakref.ref):
            return weakref.ref(renew(value()))
        if isinstance(value, functools.partial):
            new = type(value)(renew(value.func), *map(renew, value.args), **renew(value.keywords))
            new.__dict__.update({k: renew(v) for k, v in vars(value).items()})
            return new
        if isinstance(value, types.FunctionType):
            return self._renew_function(value, renew)
        if isinstance(value, tuple):  # a named tuple
            return self._record(value, tuple.__new__(type(value), map(renew, value)))
        new = self._record(value, object.__new__(type(value)))
        vars(new).update({k: renew(v) for k, v in vars(value).items()})
        return new

    def _renew_function(self, value: types.FunctionType, renew: Callable[[Any], Any]) -> types.FunctionType:
        old_cells = value.__closure__ or ()
        fresh = [
            cell for cell in old_cells if id(cell) not in self._new and self._refers(_content(cell), False)
        ]
        for cell in fresh:  # empty at first: a function may be its own closure
            self._record(cell, types.CellType())
        cells = tuple(self.of(cell) for cell in old_cells)
        new = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
        self._record(value, new)
        for cell in fresh:
            self.of(cell).cell_contents = renew(_content(cell))
        new.__defaults__ = None if value.__defaults__ is None else tuple(map(renew, value.__defaults__))
        new.__kwdefaults__ = value.__kwdefaults__ and {k: renew(v) for k, v in value.__kwdefaults__.items()}
        new.__qualname__, new.__doc__, new.__module__ = value.__qualname__, value.__doc__, value.__module__
        new.__dict__.update({k: renew(v) for k, v in vars(value).items()})
        return new

    def _refers(self, value: Any, objects: bool) -> bool:
        """Whether an object that has a successor can be reached from `value` without passing through a module."""
        visited: dict[int, Any] = {}
        pending = [value]
        while pending and len(visited) < SEARCH_LIMIT:
            item = pending.pop()
            if isinstance(item, ATOMS) or id(item) in visited or id(item) in self._unrelated:
                continue
            if id(item) in self._new:
                return True
            visited[id(item)] = item
            pending.extend(_contents(item, objects))
        if objects and not pending:
            self._unrelated.update(visited)
            self._old.extend(visited.values())
        return False


def _is_hook_table(key: str, value: Any) -> bool:
    return key.startswith("_") and "hooks" in key and isinstance(value, dict)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell
        return None


def _contents(item: Any, objects: bool) -> list[Any]:
    """The objects that `item` refers to and that a copy could replace."""
    if isinstance(item, torch.Tensor | nn.Module | types.ModuleType):
        return []
    if isinstance(item, dict):
        return list(item.values())
    if isinstance(item, list | tuple | set | frozenset | deque):
        return list(item)
    if isinstance(item, types.MethodType):
        return [item.__self__]
    if isinstance(item, functools.partial):
        return [item.func, *item.args, *item.keywords.values(), *vars(item).values()]
    if isinstance(item, types.FunctionType):
        return [
            *(_content(cell) for cell in item.__closure__ or ()),
            *(item.__defaults__ or ()),
            *(item.__kwdefaults__ or {}).values(),
            *vars(item).values(),
        ]
    if isinstance(item, weakref.ref):
        return [item()]
    if objects or isinstance(item, _WrappedHook | RemovableHandle):
        built: object = type(item).__new__
        plain = built is object.__new__ and hasattr(item, "__dict__")
        return list(vars(item).values()) if plain else []
    return []
