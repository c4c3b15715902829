"""A Zarr store that checks every chunk before it is decompressed: where it is, and how large it becomes.

The size of a decompressed chunk is known from the array. A chunk that states or gives more is a decompression bomb: the
header of Zstandard (RFC 8878, 3.1.1.1), Blosc and LZ4 states the size; gzip, zlib, bzip2 and LZMA are decompressed once
more, up to the known size.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from onebyone.errors import BadInput
from onebyone.stores.ome_zarr_writer import zarr_library
from onebyone.stores.zarr_metadata import ArrayMetadata, inside

_SLACK = 2**16  # checksums and headers
_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


def checked_store(root: Path, array: str, metadata: ArrayMetadata) -> Any:
    """A read-only store at `root` for the array named `array`, whose chunks are checked as they are read.

    Its `get` raises BadInput for a chunk that leads out of the store, or becomes larger than the array states.
    """
    zarr_library("reading Zarr")
    from zarr.storage import LocalStore, WrapperStore

    class CheckedStore(WrapperStore):  # type: ignore[misc]
        """The files of a store, checked."""

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            file = inside(root, key)
            if file.is_file() and byte_range is None:
                limit = max(1, metadata.shard) * (metadata.chunk_bytes + _SLACK)
                if key.rpartition("/")[2] not in _METADATA and file.stat().st_size > limit:
                    raise BadInput(
                        f"{root}: its chunk {key} has {file.stat().st_size:,} bytes; expected at most {limit:,}"
                    )
            buffer = await super().get(key, prototype, byte_range)
            if buffer is not None and key.rpartition("/")[2] not in _METADATA:
                _require_chunk(
                    memoryview(buffer.to_bytes()), metadata, byte_range is None, f"{root}: its chunk {key}"
                )
            return buffer

    return CheckedStore(LocalStore(root, read_only=True))


def _require_chunk(data: memoryview, metadata: ArrayMetadata, whole: bool, where: str) -> None:
    """Raise BadInput where a file's chunks become larger than the array states."""
    if not metadata.shard:
        return require_size(data, metadata, where)
    index_bytes = 16 * metadata.shard + 4
    if not whole:  # the index of a shard, or one chunk of it
        return None if len(data) == index_bytes else require_size(data, metadata, where)
    if len(data) < index_bytes:
        raise BadInput(f"{where} is too short for the index of a shard")
    index = data[:index_bytes] if metadata.index_first else data[-index_bytes:]
    for start, length in np.frombuffer(index[:-4], "<u8").reshape(-1, 2).tolist():
        if start != 2**64 - 1:
            if start + length > len(data):
                raise BadInput(f"{where} has an index that leads beyond its end")
            require_size(data[start : start + length], metadata, where)
    return None


def require_size(data: memoryview, metadata: ArrayMetadata, where: str) -> None:
    """Raise BadInput where decompressing a chunk gives more bytes than it has pixels for."""
    limit = metadata.chunk_bytes + _SLACK
    for codec in metadata.codecs:
        if codec in ("bytes", "crc32c", "transpose"):
            continue
        size = _decompressed(codec, data, limit)
        if size > limit:
            raise BadInput(
                f"{where} becomes more than {limit:,} bytes when decompressed; expected {metadata.chunk_bytes:,}"
            )
        return


def _decompressed(codec: str, data: memoryview, limit: int) -> int:
    """The size of decompressed data, or more than `limit` where it is larger."""
    if codec == "zstd":
        return _zstd_size(data, limit)
    if codec == "blosc":
        return int.from_bytes(data[4:8], "little")
    if codec == "lz4":
        return int.from_bytes(data[:4], "little")
    decompressor: Any = {
        "gzip": lambda: zlib.decompressobj(31),
        "zlib": lambda: zlib.decompressobj(15),
        "bz2": bz2.BZ2Decompressor,
        "lzma": lzma.LZMADecompressor,
    }[codec]()
    total, rest = 0, bytes(data)
    while total <= limit:
        try:
            part = decompressor.decompress(rest, 2**20)
        except (zlib.error, OSError, EOFError, lzma.LZMAError, ValueError):
            return total  # the library reports the damage
        total += len(part)
        rest = getattr(decompressor, "unconsumed_tail", b"")
        if not part or decompressor.eof:
            return total
    return total


def _zstd_size(data: memoryview, limit: int) -> int:
    """The content size in the header of a Zstandard frame; measured where it is not stated."""
    if bytes(data[:4]) != b"\x28\xb5\x2f\xfd" or len(data) < 6:
        return 0  # the library reports the damage
    descriptor = data[4]
    flag, single = descriptor >> 6, descriptor >> 5 & 1
    length = (1 if single else 0, 2, 4, 8)[flag]
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    if length:
        return int.from_bytes(data[start : start + length], "little") + (256 if length == 2 else 0)
    try:
        importlib.import_module("imagecodecs").zstd_decode(bytes(data), out=bytearray(limit))
    except Exception:  # larger than the limit, or damaged
        return limit + 1
    return 0
