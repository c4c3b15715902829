"""The memory that a network needs for a tile, found without running it, and the tile that a budget allows.

The network runs on tensors that have shapes and no values (PyTorch's fake tensors), while the bytes of the tensors that
exist at the same time are counted. This is done for two sizes, and the peak is taken as linear in the pixels between
and beyond them, which holds for convolutions: every feature map is proportional to the pixels.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from onebyone.dense.runner import floating_dtype
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.pytorch.lift.exported_graph import evaluating

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)

#: Libraries of convolutions keep copies of inputs and outputs in layouts of their own, which are not seen here. On CPUs
#: the resident memory of a run was found to be at most 1.6 times the counted peak.
_WORKSPACE = 2.0


def read_bytes(memory: str | int) -> int:
    """A number of bytes from a number or a text such as "4GB" or "512 MiB".

    Raises BadInput for anything else.

    >>> read_bytes("4GB"), read_bytes("1.5 MiB"), read_bytes(1000)
    (4000000000, 1572864, 1000)
    """
    if isinstance(memory, int) and memory > 0:
        return memory
    matched = _SIZE.fullmatch(str(memory).strip())
    if matched is None or float(matched[1]) == 0:
        raise BadInput(f"memory={memory!r}: expected a number of bytes, such as 4GB or 512MiB")
    unit = _UNITS[matched[2].upper()]
    binary = 2 ** (10 * list(_UNITS).index(matched[2].upper()))
    return int(float(matched[1]) * (binary if matched[3] else unit))


@dataclass(frozen=True)
class TileMemory:
    """The bytes of a network's tensors for one tile: `fixed` + `per_pixel` · pixels."""

    fixed: float
    per_pixel: float

    def pixels(self, available: float) -> int:
        """The number of pixels of a tile for which `available` bytes suffice; may be negative."""
        return int((available - self.fixed) / self.per_pixel)


def network_memory(model: nn.Module, geometry: Geometry, channels: int) -> TileMemory:
    """The memory that a dense network needs, by the pixels of a tile."""
    sizes = [tuple(w + s * k for w, s in zip(geometry.window, geometry.stride, strict=True)) for k in (8, 64)]
    peaks = [peak_bytes(model, (1, channels, *size)) for size in sizes]
    per_pixel = (peaks[1] - peaks[0]) / (prod(sizes[1]) - prod(sizes[0]))
    return TileMemory(
        _WORKSPACE * max(0.0, peaks[0] - per_pixel * prod(sizes[0])),
        _WORKSPACE * max(per_pixel, 4.0 * channels),
    )


def pixels_in_budget(
    memory: str | int, needed: TileMemory, other_bytes_per_pixel: float, smallest: int
) -> int:
    """The pixels that all tiles of a batch may have together, for a process that stays below `memory` bytes.

    What the process occupies already (the interpreter, libraries and weights) counts too. `other_bytes_per_pixel` are
    those of buffers outside of the network, `smallest` the pixels of the smallest tile.

    Raises BadInput, with the memory that is needed at least, where the smallest tile does not fit.
    """
    budget, occupied = read_bytes(memory), resident_bytes()
    total = TileMemory(needed.fixed, needed.per_pixel + other_bytes_per_pixel)
    pixels = total.pixels(budget - occupied)
    if pixels < smallest:
        least = occupied + total.fixed + total.per_pixel * smallest
        raise BadInput(
            f"memory={memory}: expected at least {least / 1e9:.2g}GB, of which the process occupies "
            f"{occupied / 1e9:.2g} GB already"
        )
    return pixels


def resident_bytes() -> int:
    """The physical memory that this process occupies; 0 where the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(model: nn.Module, shape: Sequence[int]) -> int:
    """The largest number of bytes that tensors occupy at the same time while `model` runs on an input of `shape`.

    Weights do not count, the input does.

    >>> peak_bytes(nn.ReLU(), (1, 1, 10, 10))
    800
    """
    dtype = floating_dtype(model)
    with FakeTensorMode(allow_non_fake_inputs=True), evaluating(model), torch.no_grad():
        counter = _LiveBytes()
        with counter:
            model(torch.empty(tuple(shape), dtype=dtype))
    return counter.peak


@dataclass
class _Storage:
    count: int
    size: int


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages whose tensors are alive; a storage that several tensors share counts once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._storages: dict[int, _Storage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._storages.get(key)
        if known is None:
            known = self._storages[key] = _Storage(0, storage.nbytes())
            self._now += known.size
            self.peak = max(self.peak, self._now)
        known.count += 1
        weakref.finalize(tensor, self._release, key)

    def _release(self, key: int) -> None:
        storage = self._storages[key]
        storage.count -= 1
        if storage.count == 0:
            self._now -= storage.size
            del self._storages[key]
