"""Corrupted ONNX files: each must be converted correctly or give one clear sentence, and nothing may be left behind.

`python -m tests.onnx.corrupted --count 500` prints what happened how often. Each file runs in a process of its own with
bounded memory and time, so that a crash in a compiled library is seen too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onebyone.errors import OnebyoneError
from onebyone.onnx.conversion import OnnxConversion
from onebyone.onnx.convert import convert_model
from onebyone.onnx.model_file import open_model
from onebyone.verification.onnx_models import verify_onnx
from tests.onnx.models import integers, model

#: Bytes that a file of a few kilobytes may allocate beyond what the process already has, and seconds that it may take.
MEMORY, SECONDS = 2**30, 60
#: The longest sentence: a path, and what is wrong with the file.
LONGEST = 700

Rng = np.random.Generator


def bases() -> dict[str, onnx.ModelProto]:
    """Small models of the kinds that are deployed: plain, quantised, with a subgraph, with a function."""
    classifier = """g (float[N,2,5,6] x) => (float[N,3] y) {
        c = Conv<kernel_shape=[3,3]>(x, k, kb) r = Relu(c) p = Conv(r, k1) f = Flatten(p)
        h = Gemm<transB=1>(f, w, b) t = Transpose<perm=[1,0]>(v) y = MatMul(h, t) }"""
    quantised = """g (float[N,6] x) => (float[N,4] y) {
        d = DequantizeLinear<axis=1>(q, s) m = MatMul(x, d) y = Add(m, b) }"""
    branches = """g (float[N,6] x, bool flag) => (float[N,4] y) {
        y = If(flag) <then_branch = a () => (float[N,4] u) { u = MatMul(x, w) },
                      else_branch = o () => (float[N,4] e) { e = Gemm(x, w, b) }> }"""
    function = """<domain: "local", opset_import: ["" : 20]> layer (x) => (y) {
        w = Constant<value = float[2,3] {1, 2, 3, 4, 5, 6}>() y = MatMul(x, w) }"""
    called = "g (float[N,2] x) => (float[N,3] y) { y = local.layer(x) }"
    weights = {
        "classifier": {
            "k": integers(4, 2, 3, 3), "kb": integers(4), "k1": integers(2, 4, 1, 1),
            "w": integers(5, 24), "b": integers(5), "v": integers(3, 5),
        },
        "quantised": {"q": integers(6, 4, dtype=np.int8), "s": integers(4), "b": integers(4)},
        "branches": {"w": integers(6, 4), "b": integers(4)},
    }  # fmt: skip
    models = {
        "classifier": model(classifier, weights["classifier"]),
        "quantised": model(quantised, weights["quantised"]),
        "branches": model(branches, weights["branches"]),
        "function": model(called, more=function),
    }
    return {name: ir.serde.serialize_model(m) for name, m in models.items()}


def _truncated(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(0, len(data)))]


def _flipped(data: bytes, rng: Rng) -> bytes:
    array = np.frombuffer(data, np.uint8).copy()
    where = rng.integers(0, len(array), rng.integers(1, 12))
    array[where] ^= (1 << rng.integers(0, 8, len(where))).astype(np.uint8)
    return array.tobytes()


def _overwritten(data: bytes, rng: Rng) -> bytes:
    start, size = int(rng.integers(0, len(data))), int(rng.integers(1, 64))
    return data[:start] + rng.bytes(size) + data[start + size :]


def _inserted(data: bytes, rng: Rng) -> bytes:
    start = int(rng.integers(0, len(data)))
    return data[:start] + rng.bytes(int(rng.integers(1, 16))) + data[start:]


def _removed(data: bytes, rng: Rng) -> bytes:
    start = int(rng.integers(0, len(data)))
    return data[:start] + data[start + int(rng.integers(1, 64)) :]


BYTES: tuple[Callable[[bytes, Rng], bytes], ...] = (_truncated, _flipped, _overwritten, _inserted, _removed)

HUGE = (-1, 0, 2**31 - 1, 2**31, 2**40, 2**62, -(2**62), 7)


def _tensor(m: onnx.ModelProto, rng: Rng) -> TensorProto:
    tensors = list(m.graph.initializer) or [a.t for f in m.functions for n in f.node for a in n.attribute]
    return tensors[rng.integers(len(tensors))]


def _node(m: onnx.ModelProto, rng: Rng) -> onnx.NodeProto:
    nodes = [*m.graph.node, *(n for f in m.functions for n in f.node)]
    nodes += [n for node in m.graph.node for a in node.attribute for n in a.g.node]
    return nodes[rng.integers(len(nodes))]


def _sizes(m: onnx.ModelProto, rng: Rng) -> None:
    tensor = _tensor(m, rng)
    for _ in range(rng.integers(1, 3)):
        tensor.dims[rng.integers(len(tensor.dims))] = int(rng.choice(HUGE))


def _ranks(m: onnx.ModelProto, rng: Rng) -> None:
    tensor = _tensor(m, rng)
    if rng.random() < 0.5:
        tensor.dims.append(1)
    else:
        del tensor.dims[-1]


def _types(m: onnx.ModelProto, rng: Rng) -> None:
    _tensor(m, rng).data_type = int(rng.integers(-1, 40))


def _data(m: onnx.ModelProto, rng: Rng) -> None:
    """The numbers in another field of the tensor, and too few of them."""
    tensor = _tensor(m, rng)
    if rng.random() < 0.5:
        tensor.raw_data = tensor.raw_data[: int(rng.integers(0, len(tensor.raw_data) + 1))]
    else:
        tensor.ClearField("raw_data")
        tensor.float_data.extend([1.0] * int(rng.integers(0, 4)))


def _input_sizes(m: onnx.ModelProto, rng: Rng) -> None:
    axes = m.graph.input[0].type.tensor_type.shape.dim
    axes[rng.integers(len(axes))].dim_value = int(rng.choice(HUGE))


def _operators(m: onnx.ModelProto, rng: Rng) -> None:
    node = _node(m, rng)
    if rng.random() < 0.5:
        node.op_type = str(rng.choice(["", "Unknown", "Gemm", "MatMul", "Conv", "Einsum", "Reshape", "Loop"]))
    else:
        node.domain = str(rng.choice(["com.microsoft", "nowhere", "ai.onnx.ml", "local"]))


def _operands(m: onnx.ModelProto, rng: Rng) -> None:
    node = _node(m, rng)
    names = [o for n in m.graph.node for o in n.output] + ["", "nowhere", "x", "y"]
    if node.input and rng.random() < 0.7:
        node.input[rng.integers(len(node.input))] = str(rng.choice(names))
    elif node.input:
        del node.input[rng.integers(len(node.input))]
    else:
        node.output[0] = str(rng.choice(names))


def _results(m: onnx.ModelProto, rng: Rng) -> None:
    node = _node(m, rng)
    node.output[0] = str(rng.choice([o for n in m.graph.node for o in n.output] + ["", "x"]))


def _attributes(m: onnx.ModelProto, rng: Rng) -> None:
    node = _node(m, rng)
    names = ("transB", "perm", "kernel_shape", "alpha", "axis", "pads", "group", "strides", "equation", "to")
    name = str(rng.choice(names))
    values: list[Any] = [2**62, -5, [2**40, 2**40], [-1], 1.5, "text", [0.5], [3, 1, 2, 0, 7]]
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, values[rng.integers(len(values))])])


def _header(m: onnx.ModelProto, rng: Rng) -> None:
    way = rng.integers(5)
    if way == 0:
        m.ir_version = int(rng.choice([0, -1, 2**31, 999, 1]))
    elif way == 1:
        m.opset_import[0].version = int(rng.choice([0, -1, 1, 6, 99, 2**40]))
    elif way == 2:
        del m.opset_import[:]
    elif way == 3:
        m.ClearField("graph")
    else:
        del m.graph.input[:]


def _order(m: onnx.ModelProto, rng: Rng) -> None:
    """Nodes in another order, twice, or in a cycle."""
    nodes = list(m.graph.node)
    if rng.random() < 0.3:
        nodes.append(nodes[rng.integers(len(nodes))])
    elif rng.random() < 0.5:
        nodes = [nodes[i] for i in rng.permutation(len(nodes))]
    else:
        nodes[0].input[0] = nodes[-1].output[0]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del m.graph.node[:]
    m.graph.node.extend(copies)


def _names(m: onnx.ModelProto, rng: Rng) -> None:
    """Two initializers of one name, an initializer without a name, or one named like a computed value."""
    tensor = TensorProto.FromString(_tensor(m, rng).SerializeToString())
    tensor.name = str(rng.choice([tensor.name, "", m.graph.node[0].output[0], "x"]))
    m.graph.initializer.append(tensor)


def _long_chain(m: onnx.ModelProto, rng: Rng) -> None:
    """A weight behind thousands of operators, or a value behind thousands of reshapes."""
    tensor, count = _tensor(m, rng), int(rng.choice([50, 3000]))
    name = tensor.name or "c"
    if not tensor.name:
        m.graph.initializer.append(numpy_helper.from_array(integers(2, 3), "c"))
    chain = [
        helper.make_node("Identity", [f"{name}{i}" if i else name], [f"{name}{i + 1}"]) for i in range(count)
    ]
    nodes = [*chain, *(onnx.NodeProto.FromString(n.SerializeToString()) for n in m.graph.node)]
    for node in nodes[count:]:
        for index, operand in enumerate(node.input):
            if operand == name:
                node.input[index] = f"{name}{count}"
    del m.graph.node[:]
    m.graph.node.extend(nodes)


def _deep(m: onnx.ModelProto, rng: Rng) -> None:
    """Subgraphs within subgraphs."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["i"])], "g", [], [helper.make_empty_tensor_value_info("i")]
    )
    for depth in range(int(rng.choice([3, 12, 30]))):
        node = helper.make_node(
            "If", ["c"], [f"o{depth}"], then_branch=inner, else_branch=helper.make_graph([], "e", [], [])
        )
        inner = helper.make_graph([node], "g", [], [helper.make_empty_tensor_value_info(f"o{depth}")])
    m.graph.node.extend(inner.node)
    m.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))


def _recursive(m: onnx.ModelProto, rng: Rng) -> None:
    """A function that calls itself."""
    function = helper.make_function(
        "local", "again", ["x"], ["y"], [helper.make_node("again", ["x"], ["y"], domain="local")],
        [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)],
    )  # fmt: skip
    m.functions.append(function)
    m.graph.node.append(helper.make_node("again", ["x"], ["unused"], domain="local"))


FIELDS: tuple[Callable[[onnx.ModelProto, Rng], None], ...] = (
    _sizes, _ranks, _types, _data, _input_sizes, _operators, _operands, _results, _attributes, _header, _order, _names,
    _long_chain, _deep, _recursive,
)  # fmt: skip


def _external(m: onnx.ModelProto, folder: Path, rng: Rng) -> None:
    """Weights in another file that is missing, too short, outside the folder or a link, with absurd numbers."""
    if not m.graph.initializer:
        m.graph.initializer.append(numpy_helper.from_array(integers(2, 3), "c"))
    tensor = m.graph.initializer[rng.integers(len(m.graph.initializer))]
    data, outside = tensor.raw_data, folder.parent / "secret.bin"
    outside.write_bytes(data + bytes(64))
    (folder / "data").write_bytes(data[: int(rng.integers(0, len(data) + 1))])
    (folder / "link").symlink_to(outside)
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    locations = ("data", "data", "link", "loop", "folder", "folder/../../secret.bin", "../secret.bin", str(outside), "",
                 "/dev/zero", "missing", "data\0", "x" * 5000, "model.onnx")  # fmt: skip
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": str(rng.choice(np.array(locations, dtype=object)))}
    for key in ("offset", "length"):
        if rng.random() < 0.5:
            entries[key] = str(rng.choice(["0", "-1", "4", "99999999999999", "many", "1e3", "", str(2**70)]))
    if rng.random() < 0.1:
        del entries["location"]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def corrupted(seed: int, folder: Path) -> tuple[str, Path]:
    """Write the file of a seed into a folder; return what was done to it, and its path."""
    rng = np.random.default_rng(seed)
    models = bases()
    name = str(rng.choice(list(models)))
    proto, path, way = models[name], folder / "model.onnx", rng.random()
    if way < 0.35:
        change = BYTES[rng.integers(len(BYTES))]
        path.write_bytes(change(proto.SerializeToString(), rng))
        return f"{change.__name__.strip('_')} bytes of {name}", path
    if way < 0.5:
        _external(proto, folder, rng)
        path.write_bytes(proto.SerializeToString())
        return f"external data of {name}", path
    change_field = FIELDS[rng.integers(len(FIELDS))]
    change_field(proto, rng)
    path.write_bytes(proto.SerializeToString())
    return f"{change_field.__name__.strip('_')} of {name}", path


def outcome_of(path: Path, target: Path) -> str:
    """What `convert`, `verify` and `save` say of a file: "error: …", "converted", or "WRONG: …"."""
    try:
        opened = open_model(path)
        conversions = [convert_model(opened, to) for to in ("conv", "linear")]
        problems = [problem for c in conversions if c.changes for problem in _checked(opened, c, target)]
    except OnebyoneError as error:
        text = str(error)
        if target.exists() and list(target.iterdir()):
            return f"WRONG: it left {sorted(p.name for p in target.iterdir())}"
        if (
            "\n" in text.strip()
            or not 20 <= len(text) <= LONGEST
            or (str(path) not in text and "model" not in text)
        ):
            return f"WRONG: not one clear sentence: {text[:300]!r}"
        return f"error: {text.replace(str(path.parent), '')}"
    except RecursionError as error:
        return f"WRONG: RecursionError: {error}"
    except Exception as error:
        import traceback

        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "onebyone" in f.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else last.filename
        return f"WRONG: {type(error).__name__}: {str(error)[:200]} ({where})"
    if problems:
        return f"WRONG: {problems[0]}"
    return (
        "converted" if any(c.changes for c in conversions) else "nothing to convert, or refused with reasons"
    )


def _checked(opened: ir.Model, conversion: OnnxConversion, target: Path) -> list[str]:
    verification = verify_onnx(opened, conversion)
    saved = target / f"{conversion.to}.onnx"
    conversion.save(saved)
    open_model(saved)
    for file in target.iterdir():
        file.unlink()
    return [] if verification.equivalent or verification.nothing_verified else list(verification.problems)


def run_apart(seed: int) -> tuple[str, str]:
    """What was done to the file of a seed, and what came of it in a process with bounded memory and time."""
    with tempfile.TemporaryDirectory() as name:
        folder, target = Path(name) / "in", Path(name) / "out"
        folder.mkdir()
        target.mkdir()
        change, path = corrupted(seed, folder)
        result = Path(name) / "result.json"
        child = os.fork()
        if child == 0:
            _limit()
            result.write_text(json.dumps(outcome_of(path, target)), encoding="utf-8")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            return change, f"WRONG: its process ended with {os.waitstatus_to_exitcode(status)}"
        return change, json.loads(result.read_text(encoding="utf-8"))


def _limit() -> None:
    """Bound the memory and the time of this process."""
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
    signal.alarm(SECONDS)


def main() -> int:
    """Run many seeds, and print what happened how often; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print every file")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    for seed in range(options.first, options.first + options.count):
        change, outcome = run_apart(seed)
        if options.verbose or outcome.startswith("WRONG"):
            print(f"seed {seed}: {change}: {outcome}", flush=True)
        counts[outcome.partition(":")[0]] += 1
    for outcome, count in sorted(counts.items()):
        print(f"{count:6d}  {outcome}")
    return int(counts["WRONG"] > 0)


if __name__ == "__main__":
    sys.exit(main())
