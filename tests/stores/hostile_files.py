"""Malformed and hostile image files: damaged copies of good files, and files made by hand to do harm.

`python -m tests.stores.hostile_files FOLDER COUNT SEED` makes the files, reads each as a user would, and prints one
JSON object: how many were refused, with which sentences, what went wrong, and the memory that it took.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import shutil
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

from onebyone.errors import OnebyoneError
from onebyone.stores.opening import open_file
from onebyone.stores.regions import Span
from tests.stores.image_formats import CASES

Maker = Callable[[Path], Path]
_READ = 512  # pixels per axis that are read of a file that opens


def photograph() -> np.ndarray[Any, Any]:
    y, x = np.mgrid[:96, :128]
    return np.stack([y * 2, x, y + x], axis=-1).astype(np.uint8)


def damaged_files() -> Iterator[tuple[str, Maker]]:
    """Truncations and overwritten bytes of a file of every format."""
    seen = set()
    for case in CASES:
        if case.name in seen:
            continue
        seen.add(case.name)
        for number in range(9):

            def make(folder: Path, case: Any = case, number: int = number) -> Path:
                path = folder / case.name
                case.write(path, photograph())
                random = np.random.default_rng([number, len(case.name), ord(case.name[0])])
                files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
                file = files[number % len(files)]
                content = bytearray(file.read_bytes())
                if number < 4:
                    content = content[: (0, 7, len(content) // 2, len(content) * 9 // 10)[number]]
                else:
                    reach = len(content) if number % 2 else min(len(content), 400)
                    for place in random.integers(0, reach, 2 ** (number - 3)):
                        content[place] = random.integers(256)
                file.write_bytes(content)
                return path

            yield f"{case.name} damaged {number}", make


def store(change: Callable[[Path, dict[str, Any], dict[str, Any]], None], version: int = 3) -> Maker:
    """A small OME-Zarr image whose documents `change` edits: (folder, group's document, array's document)."""

    def make(folder: Path) -> Path:
        path = folder / "bad.zarr"
        group = zarr.open_group(path, mode="w", zarr_format=version)
        group.create_array("0", data=photograph()[..., 0], chunks=(32, 32), compressors=None)
        ome = {
            "version": "0.5" if version == 3 else "0.4",
            "multiscales": [
                {
                    "axes": [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}],
                    "datasets": [
                        {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0]}]}
                    ],
                }
            ],
        }
        group.attrs.put({"ome": ome} if version == 3 else ome)
        names = ("zarr.json", "0/zarr.json") if version == 3 else (".zattrs", "0/.zarray")
        documents = [json.loads((path / name).read_text()) for name in names]
        change(path, documents[0] if version == 2 else documents[0]["attributes"]["ome"], documents[1])
        for name, document in zip(names, documents, strict=True):
            if (path / name).parent.is_dir() and not (path / name).with_suffix(".kept").exists():
                (path / name).write_text(json.dumps(document))
        return path

    return make


def put(
    *keys: Any, value: Any, array: bool = False
) -> Callable[[Path, dict[str, Any], dict[str, Any]], None]:
    def change(path: Path, group: dict[str, Any], document: dict[str, Any]) -> None:
        target: Any = document if array else group
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


def link(name: str, to: str) -> Callable[[Path, dict[str, Any], dict[str, Any]], None]:
    def change(path: Path, group: dict[str, Any], document: dict[str, Any]) -> None:
        secret = path.parent / "secret"
        secret.mkdir(exist_ok=True)
        (secret / "0").write_bytes(b"\1" * 1024)
        target = path / name
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        target.symlink_to(path.parent / to if to else path)

    return change


def chunk(data: bytes, **codec: Any) -> Callable[[Path, dict[str, Any], dict[str, Any]], None]:
    """The first chunk has these bytes, and the array the codec that decompresses them."""

    def change(path: Path, group: dict[str, Any], document: dict[str, Any]) -> None:
        document["codecs"] = [*document["codecs"], codec] if codec else document["codecs"]
        (path / "0" / "c" / "0" / "0").write_bytes(data)

    return change


def hostile_stores() -> Iterator[tuple[str, Maker]]:  # noqa: C901  # a list of files, read from top to bottom
    """Zarr stores that lead out of their folder, state absurd sizes, or decompress to a bomb."""
    where = ("multiscales", 0, "datasets", 0)
    transforms = (*where, "coordinateTransformations")
    for path in (
        "../secret",
        "/etc",
        "..",
        "0/../../secret",
        "",
        ".",
        "missing",
        7,
        None,
        "a" * 5000,
        "0\0",
        "..\\x",
    ):
        yield f"path {str(path)[:20]!r}", store(put(*where, "path", value=path))
    for name, to in (("0", "secret"), ("0/c/0/0", "secret/0"), ("0/c", "secret"), ("0", "")):
        yield f"link {name} to {to}", store(link(name, to))
    for value in (
        [float("nan")] * 2, [0, 0], [-1, 1], [float("inf"), 1], [1], ["a", "b"], None, [1, 1, 1], [1e-320, 1], [{}, 1],
    ):  # fmt: skip
        yield f"scale {value}", store(put(*transforms, value=[{"type": "scale", "scale": value}]))
    for value in ([float("nan")] * 2, ["x", 1], [1], "oops", {"a": 1}):
        bad = [{"type": "scale", "scale": [1, 1]}, {"type": "translation", "translation": value}]
        yield f"translation {value}", store(put(*transforms, value=bad))
    for value in ("scale", [7], [{"type": "affine"}], {"type": "scale"}):
        yield f"transforms {value}", store(put(*transforms, value=value))
    for value in (
        [],
        None,
        "yx",
        [{"name": "y"}],
        [{"name": "y"}, {"name": "y"}],
        [{"name": 1}, {}],
        ["y", "x"],
    ):
        yield f"axes {value}", store(put("multiscales", 0, "axes", value=value))
    for value in ([], None, {}, "0", [None], [{"path": "0"}] * 2, [{"path": "0"}] * 10_000, [[]]):
        yield f"datasets {str(value)[:30]}", store(put("multiscales", 0, "datasets", value=value))
    for value in ([], None, {}, "x", [1], [[]]):
        yield f"multiscales {value}", store(put("multiscales", value=value))
    for value in ([-1, 4], [10**30, 4], [], None, "x", [0, 4], [1.5, 4], [True, 4], [2**40, 2**40], [4] * 40):
        yield f"shape {str(value)[:30]}", store(put("shape", value=value, array=True))
        yield f"shape {str(value)[:30]} v2", store(put("shape", value=value, array=True), 2)
        yield f"chunks {str(value)[:30]} v2", store(put("chunks", value=value, array=True), 2)
        grid = {"name": "regular", "configuration": {"chunk_shape": value}}
        yield f"grid {str(value)[:30]}", store(put("chunk_grid", value=grid, array=True))
    for value in ("object", "|O", "float999", "int64", None, 7, {"name": "struct"}, "complex64"):
        yield f"type {value}", store(put("data_type", value=value, array=True))
        yield f"type {value} v2", store(put("dtype", value=value, array=True), 2)
    for value in ([{"name": "pickle"}], [], None, [{}], "bytes", [{"name": "sharding_indexed"}], [7]):
        yield f"codecs {value}", store(put("codecs", value=value, array=True))
    for value in ({"id": "pickle"}, {"id": "json2"}, {}, "zlib", {"id": None}, 7):
        yield f"compressor {value}", store(put("compressor", value=value, array=True), 2)
    yield "filters v2", store(put("filters", value=[{"id": "pickle"}], array=True), 2)
    bomb = gzip.compress(bytes(2**28), 1)
    yield "gzip bomb", store(chunk(bomb[: 2**21], name="gzip", configuration={"level": 1}))
    zstd = b"\x28\xb5\x2f\xfd" + bytes([0xE0]) + struct.pack("<Q", 2**40) + b"\1\0\0"
    yield "zstd bomb", store(chunk(zstd, name="zstd", configuration={"level": 0, "checksum": False}))
    blosc = {"typesize": 1, "cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "blocksize": 0}
    header = bytes([2, 1, 0x21, 1]) + struct.pack("<III", 2**31 - 1, 2**20, 32)
    yield "blosc bomb", store(chunk(header + bytes(16), name="blosc", configuration=blosc))
    yield "chunk too long", store(chunk(bytes(2**22)))
    yield "chunk too short", store(chunk(b"\0"))
    for name, text in (
        ("deep", "[" * 100_000),
        ("cut", '{"attributes": '),
        ("text", "hello"),
        ("list", "[]"),
        ("nul", "\0"),
    ):
        for file in ("zarr.json", "0/zarr.json"):

            def make(folder: Path, file: str = file, text: str = text) -> Path:
                path = store(lambda *_: None)(folder)
                (path / file).write_text(text)
                return path

            yield f"json {name} {file}", make

    def nested(folder: Path) -> Path:
        path = folder / "bad.zarr"
        zarr.open_group(path, mode="w").attrs.put({"ome": {"bioformats2raw.layout": 3}})
        (path / "0").symlink_to(path)
        return path

    yield "collection in itself", nested


def hostile_pictures() -> Iterator[tuple[str, Maker]]:  # noqa: C901  # the same
    """TIFFs, PNGs and arrays that state absurd sizes, loop, or decompress to more than they state."""

    def tiff(entries: dict[int, tuple[int, int, int]], after: int = 0, data: bytes = b"") -> Maker:
        def make(folder: Path) -> Path:
            rows = b"".join(struct.pack("<HHII", t, k, n, v) for t, (k, n, v) in sorted(entries.items()))
            content = b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + struct.pack("<I", after) + data
            (folder / "bad.tif").write_bytes(content)
            return folder / "bad.tif"

        return make

    plain = {256: (4, 1, 64), 257: (4, 1, 64), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8),
             277: (3, 1, 1), 278: (4, 1, 64), 279: (4, 1, 4096)}  # fmt: skip
    yield "tiff loop of pages", tiff(plain, after=8, data=bytes(4096))
    for tag, values in {
        256: (0, 2**31, 2**32 - 1), 257: (0, 2**31, 2**32 - 1), 258: (0, 7, 128, 65535), 259: (0, 2, 9999, 34887),
        262: (3, 5, 9, 65535), 273: (2**32 - 1, 2**31), 277: (0, 65535), 278: (0, 2**32 - 1), 279: (0, 2**32 - 1),
        284: (0, 2, 7), 317: (2, 3, 99), 339: (0, 3, 6), 330: (8, 2**31), 338: (0, 2), 274: (0, 9),
    }.items():  # fmt: skip
        for value in values:
            yield f"tiff tag {tag} = {value}", tiff({**plain, tag: (4, 1, value)}, data=bytes(4096))
        yield f"tiff tag {tag} of 2^31 values", tiff({**plain, tag: (4, 2**31, 8)}, data=bytes(4096))
        yield f"tiff tag {tag} of a bad type", tiff({**plain, tag: (99, 1, 8)}, data=bytes(4096))
    for missing in (256, 257, 258, 259, 262, 273, 278, 279):
        kept = {tag: value for tag, value in plain.items() if tag != missing}
        yield f"tiff without tag {missing}", tiff(kept, data=bytes(4096))

    def bomb(folder: Path) -> Path:
        path = folder / "bomb.tif"
        tifffile.imwrite(path, np.zeros((8, 8), np.uint8), compression="zlib", metadata=None)
        data = zlib.compress(bytes(2**28), 9)
        content = path.read_bytes()
        with tifffile.TiffFile(path) as file:
            offset = file.pages[0].tags[273].valueoffset, file.pages[0].tags[279].valueoffset
        edited = bytearray(content + data)
        edited[offset[0] : offset[0] + 4] = struct.pack("<I", len(content))
        edited[offset[1] : offset[1] + 4] = struct.pack("<I", len(data))
        path.write_bytes(edited)
        return path

    yield "tiff deflate bomb", bomb

    def png(width: int, height: int) -> Maker:
        def make(folder: Path) -> Path:
            head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
            parts = [b"\x89PNG\r\n\x1a\n"]
            for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(2**20))), (b"IEND", b"")):
                parts.append(
                    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
                )
            (folder / "bad.png").write_bytes(b"".join(parts))
            return folder / "bad.png"

        return make

    for size in ((2**31 - 1, 2**31 - 1), (60_000, 60_000), (0, 5), (2**31, 1), (9000, 9000)):
        yield f"png of {size}", png(*size)

    def npy(header: str, data: bytes = b"\0" * 64) -> Maker:
        def make(folder: Path) -> Path:
            text = header.ljust(118) + "\n"
            (folder / "bad.npy").write_bytes(
                b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + data
            )
            return folder / "bad.npy"

        return make

    for kind, order, shape in (
        ("'|O'", False, "(2,)"), ("'<f4'", False, "(10**9, 10**9)"), ("'<f4'", False, "(-1, 4)"),
        ("'<f4'", 7, "(4, 4)"),
        ("'<f4'", False, "'x'"), ("[('a', '<f4')]", False, "(4, 4)"), ("'<f4'", False, "(1000000000000, 1000000)"),
        ("'<U8'", False, "(1, 2)"), ("'<f4'", False, "__import__('os').getcwd()"), ("'<M8[s]'", False, "(2, 2)"),
    ):  # fmt: skip
        yield f"npy {kind} {shape}", npy(f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}")
    held = io.BytesIO()
    np.save(held, np.array([{}], dtype=object), allow_pickle=True)

    def pickled(folder: Path) -> Path:
        (folder / "bad.npy").write_bytes(held.getvalue())
        return folder / "bad.npy"

    yield "npy with a pickle", pickled
    for name, content in (("empty", b""), ("pdf", b"%PDF-1.7"), ("zip", b"PK\3\4"), ("html", b"<html>" * 50)):
        for suffix in (".png", ".tif", ".svs", ".npy", ".jpg", ".ndpi"):

            def other(folder: Path, suffix: str = suffix, content: bytes = content) -> Path:
                (folder / f"bad{suffix}").write_bytes(content)
                return folder / f"bad{suffix}"

            yield f"{name} as {suffix}", other


def all_files() -> list[tuple[str, Maker]]:
    return [*damaged_files(), *hostile_stores(), *hostile_pictures()]


def outcome(path: Path) -> str:
    """What reading a file gives: "read", or the one sentence of its refusal. Raises whatever else happens."""
    try:
        source = open_file(path)
        region = [Span(0, min(n, _READ)) for n in source.size]
        values = source.read(region)
    except OnebyoneError as error:
        return str(error) or "empty"
    assert values.shape == (*map(len, region), source.channels), (values.shape, source.size)
    assert values.dtype == source.dtype
    return "read"


def main(folder: Path, count: int, seed: int) -> dict[str, Any]:
    files = all_files()
    names = [name for name, _ in files]
    assert len(set(names)) == len(names), [n for n in names if names.count(n) > 1]
    chosen = np.random.default_rng(seed).permutation(len(files))[: count or None]
    for case in CASES:  # every library is loaded and warm before memory is measured
        (folder / "warm").mkdir(exist_ok=True)
        case.write(folder / "warm" / case.name, photograph())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome(folder / "warm" / case.name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, wrong, read = {}, {}, 0
    for number in chosen.tolist():
        name, make = files[number]
        place = folder / str(number)
        place.mkdir()
        path = make(place)
        listing = sorted(os.listdir(place))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                said = outcome(path)
        except BaseException as error:
            wrong[name] = f"{type(error).__name__}: {error}"[:300]
        else:
            if said == "read":
                read += 1
            else:
                refused[name] = said
        if sorted(os.listdir(place)) != listing:
            wrong[name] = "reading it left files behind"
        shutil.rmtree(place)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    return {"files": len(chosen), "read": read, "refused": refused, "wrong": wrong, "memory_mib": grown}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
