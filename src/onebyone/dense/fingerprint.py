"""Fingerprints of networks and images, by which an interrupted scan is recognised."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from onebyone.stores.regions import Span
from onebyone.stores.source import ArraySource, ImageSource, SourceProperties

#: Places per axis and pixels per side of the samples of an image's content.
_PLACES, _SIDE = 5, 32
#: Bytes of an array that are read at a time.
_PART = 2**24


def of_network(model: Any) -> str:
    """The SHA-256 of a network: its structure as text and every parameter, buffer and constant, bit for bit.

    >>> of_network(nn.Linear(2, 3, bias=False)) == of_network(nn.Linear(2, 3, bias=False))
    False
    """
    if not isinstance(model, nn.Module):
        return _of_onnx(model)
    digest = hashlib.sha256(getattr(model, "code", repr(model)).encode())
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in sorted(named.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return digest.hexdigest()


def _of_onnx(model: Any) -> str:
    """The same for an ONNX model of onnx-ir."""
    digest = hashlib.sha256(str(model.graph).encode())
    for name, value in sorted(model.graph.initializers.items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.const_value.tobytes())
    return digest.hexdigest()


def of_image(image: Any, source: ImageSource) -> dict[str, Any]:
    """What identifies an image: its shape and type, samples of its content, and for a file its size and time.

    The samples are squares of 32 pixels at 5×5 places, those at the corners included. The sample of a
    region that cannot be read is None. An array that was given itself has no time, so all of its values
    identify it.
    """
    samples: list[str | None] = []
    axes = [
        sorted({round(k * max(0, n - _SIDE) / (_PLACES - 1)) for k in range(_PLACES)}) for n in source.size
    ]
    for start in np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes)).tolist():
        region = [Span(s, min(s + _SIDE, n)) for s, n in zip(start, source.size, strict=True)]
        try:
            content = np.ascontiguousarray(source.read(region)).tobytes()
            samples.append(hashlib.sha256(content).hexdigest()[:32])
        except MemoryError:
            raise
        except Exception:  # readers of damaged files raise errors of many types
            samples.append(None)
    found: dict[str, Any] = {
        "shape": [*source.size, source.channels],
        "dtype": str(source.dtype),
        "content": samples,
    }
    if isinstance(image, str | os.PathLike) and Path(image).exists():
        status = Path(image).stat()
        found |= {"bytes": status.st_size, "modified": status.st_mtime_ns}
    else:
        found["values"] = [_of_array(source)]
    return found


def _of_array(source: ImageSource) -> str | None:
    """The SHA-256 of an array in memory, a part of its rows at a time; None for other sources."""
    while isinstance(source, SourceProperties):
        source = source.source
    if type(source) is not ArraySource:
        return None
    digest = hashlib.sha256()
    rows = max(1, _PART // max(1, source.values[:1].nbytes))
    for first in range(0, len(source.values), rows):
        digest.update(np.ascontiguousarray(source.values[first : first + rows]).data)
    return digest.hexdigest()[:32]
