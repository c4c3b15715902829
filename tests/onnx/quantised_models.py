"""Layers of quantised numbers in every form that ONNX's operators take, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.onnx.models import model

Array = np.ndarray[Any, Any]


def numbers(kind: Any, *shape: int, seed: int = 0) -> Array:
    """Random integers over the whole range of a type, except that signed ones keep half of it.

    ONNX Runtime adds pairs of products in 16 bits on processors without VNNI, where full-range weights saturate.
    """
    rng = np.random.default_rng((seed, *shape))
    limits = np.iinfo(kind)
    low, high = (limits.min // 2, limits.max // 2) if limits.min else (0, limits.max)
    return np.asarray(rng.integers(low, high + 1, shape)).astype(kind)


def scales(*shape: int, seed: int = 0, around: float = 0.01) -> Array:
    """Random scales that are not powers of two."""
    return np.asarray(
        np.random.default_rng((seed, *shape)).uniform(around, 2 * around, shape), dtype=np.float32
    )


@dataclass(frozen=True)
class QuantisedCase:
    """One layer as text, its constants, and the type and shape of its input."""

    text: str
    constants: Mapping[str, Array]
    kind: Any
    shape: tuple[int, ...]

    @property
    def model(self) -> ir.Model:
        return model(self.text, self.constants)

    def example(self, seed: int = 1) -> Array:
        return numbers(self.kind, *self.shape, seed=seed)


def _sums(x: str, y: str, node: str, kind: Any, shape: tuple[int, ...], **constants: Array) -> QuantisedCase:
    return QuantisedCase(_graph(x, y, node, kind, np.int32), constants, kind, shape)


def _requantised(
    x: str, y: str, node: str, kind: Any, shape: tuple[int, ...], **constants: Array
) -> QuantisedCase:
    given = {
        "xs": scales(seed=3), "xz": numbers(kind, seed=4), "ys": scales(seed=5, around=0.03),
        "yz": numbers(kind, seed=6),
    } | constants  # fmt: skip
    return QuantisedCase(_graph(x, y, node, kind, kind), given, kind, shape)


def _graph(x: str, y: str, node: str, kind: Any, result: Any) -> str:
    return f"g ({np.dtype(kind).name}[{x}] x) => ({np.dtype(result).name}[{y}] y) {{ {node} }}"


U, S = np.uint8, np.int8
_MM, _CI = "y = MatMulInteger", "y = ConvInteger"
_QM = "y = QLinearMatMul(x, xs, xz, w, ws, wz, ys, yz)"
_QC = "(x, xs, xz, w, ws, wz, ys, yz)"

PRODUCTS: dict[str, QuantisedCase] = {
    "sums without zero points": _sums("N,3", "N,5", f"{_MM}(x, w)", U, (4, 3), w=numbers(S, 3, 5)),
    "sums, unsigned": _sums(
        "N,T,3", "N,T,5", f"{_MM}(x, w, z, v)", U, (2, 4, 3), w=numbers(U, 3, 5), z=numbers(U), v=numbers(U, seed=2)
    ),
    "sums, signed": _sums(
        "N,T,3", "N,T,5", f"{_MM}(x, w, z, v)", S, (2, 4, 3), w=numbers(S, 3, 5), z=numbers(S, 1),
        v=numbers(S, 1, seed=2),
    ),
    "sums, equal zero points by channel": _sums(
        "N,3", "N,5", f"{_MM}(x, w, z, v)", U, (4, 3), w=numbers(S, 3, 5), z=numbers(U), v=np.full(5, 3, S)
    ),
    "sums, rank 4": _sums("N,H,V,3", "N,H,V,5", f"{_MM}(x, w)", S, (2, 4, 6, 3), w=numbers(S, 3, 5)),
    "sums, constant on the left": _sums("N,5,T", "N,3,T", f"{_MM}(w, x)", U, (2, 5, 4), w=numbers(U, 3, 5)),
    "sums, constant on the left with zero points": _sums(
        "N,5,T", "N,3,T", f"{_MM}(w, x, z, v)", U, (2, 5, 4), w=numbers(U, 3, 5), z=numbers(U), v=numbers(U, seed=2)
    ),
    "sums, batch of weights": _sums(
        "N,2,T,3", "N,2,T,5", f"{_MM}(x, w, z)", U, (4, 2, 6, 3), w=numbers(S, 2, 3, 5), z=numbers(U)
    ),
    "sums behind a flattened map": _sums(
        "N,2,3,4", "N,5", f"f = Flatten(x) {_MM}(f, w, z)", U, (2, 2, 3, 4), w=numbers(S, 24, 5), z=numbers(U)
    ),
    "sums behind a flattened map, channels last": _sums(
        "N,2,3,4", "N,5", f"t = Transpose<perm=[0,2,3,1]>(x) f = Flatten(t) {_MM}(f, w)", S, (2, 2, 3, 4),
        w=numbers(S, 24, 5),
    ),
    "a weight transposed in the graph": _sums(
        "N,3", "N,5", f"t = Transpose(w) {_MM}(x, t)", S, (4, 3), w=numbers(S, 5, 3)
    ),
    "by tensor": _requantised("N,T,3", "N,T,5", _QM, U, (2, 4, 3), w=numbers(S, 3, 5), ws=scales(), wz=numbers(S)),
    "by tensor, signed": _requantised(
        "N,T,3", "N,T,5", _QM, S, (2, 4, 3), w=numbers(S, 3, 5), ws=scales(), wz=numbers(S)
    ),
    "by channel": _requantised(
        "N,T,3", "N,T,5", _QM, U, (2, 4, 3), w=numbers(S, 3, 5), ws=scales(5), wz=np.zeros(5, S)
    ),
    "by channel with zero points": _requantised(
        "N,3", "N,5", _QM, S, (4, 3), w=numbers(S, 3, 5), ws=scales(5), wz=numbers(S, 5)
    ),
    "by tensor, constant on the left": _requantised(
        "N,5,T", "N,3,T", "y = QLinearMatMul(w, ws, wz, x, xs, xz, ys, yz)", U, (2, 5, 4),
        w=numbers(U, 3, 5), ws=scales(), wz=numbers(U),
    ),
    "by channel behind a flattened map": _requantised(
        "N,2,3,4", "N,5", f"f = Flatten(x) {_QM.replace('(x', '(f')}", U, (2, 2, 3, 4),
        w=numbers(S, 24, 5), ws=scales(5), wz=np.zeros(5, S),
    ),
    "ONNX Runtime's Gemm with a bias": _requantised(
        "N,3", "N,5", "y = com.microsoft.QGemm<transB=1>(x, xs, xz, w, ws, wz, b, ys, yz)", U, (4, 3),
        w=numbers(S, 5, 3), ws=scales(5), wz=np.zeros(5, S), b=np.arange(-2, 3, dtype=np.int32) * 1000,
    ),
}  # fmt: skip
#: A scale by row of a constant on the left, and scales of a batch of weights: ONNX Runtime has no kernel for these.
BEYOND_ONNX_RUNTIME: dict[str, QuantisedCase] = {
    "by row of a constant on the left": _requantised(
        "N,5,T", "N,3,T", "y = QLinearMatMul(w, ws, wz, x, xs, xz, ys, yz)", U, (2, 5, 4),
        w=numbers(U, 3, 5), ws=scales(3, 1), wz=numbers(U, 3, 1),
    ),
    "a batch of weights by channel": _requantised(
        "N,2,T,3", "N,2,T,5", _QM, U, (4, 2, 6, 3), w=numbers(S, 2, 3, 5), ws=scales(2, 1, 5), wz=numbers(S, 1, 1, 5)
    ),
}  # fmt: skip
CONVOLUTIONS: dict[str, QuantisedCase] = {
    "sums in one dimension": _sums(
        "N,4,T", "N,6,T", f"{_CI}(x, w, z, v)", U, (2, 4, 3), w=numbers(S, 6, 4, 1), z=numbers(U), v=numbers(S)
    ),
    "sums in two dimensions": _sums("N,4,H,V", "N,6,H,V", f"{_CI}(x, w)", U, (2, 4, 3, 5), w=numbers(U, 6, 4, 1, 1)),
    "sums in three dimensions": _sums(
        "N,4,D,H,V", "N,6,D,H,V", f"{_CI}(x, w, z)", U, (2, 4, 3, 5, 2), w=numbers(S, 6, 4, 1, 1, 1), z=numbers(U)
    ),
    "sums with a stride and groups": _sums(
        "N,4,7,6", "N,6,4,2", f"{_CI.replace('Integer', 'Integer<group=2,strides=[2,3]>')}(x, w, z)", U, (2, 4, 7, 6),
        w=numbers(S, 6, 2, 1, 1), z=numbers(U),
    ),
    "sums over the whole map": _sums(
        "N,2,3,4", "N,5,1,1", f"{_CI}(x, w, z)", U, (2, 2, 3, 4), w=numbers(S, 5, 2, 3, 4), z=numbers(U)
    ),
    "by channel in one dimension": _requantised(
        "N,4,T", "N,6,T", f"y = QLinearConv{_QC}", U, (2, 4, 3), w=numbers(S, 6, 4, 1), ws=scales(6), wz=np.zeros(6, S)
    ),
    "by channel in two dimensions": _requantised(
        "N,4,H,V", "N,6,H,V", f"y = QLinearConv{_QC}", S, (2, 4, 3, 5),
        w=numbers(S, 6, 4, 1, 1), ws=scales(6), wz=np.zeros(6, S),
    ),
    "by tensor with groups and a stride": _requantised(
        "N,4,5", "N,6,3", f"y = QLinearConv<group=2, strides=[2]>{_QC}", U, (2, 4, 5),
        w=numbers(S, 6, 2, 1), ws=scales(), wz=numbers(S),
    ),
    "by channel over the whole map": _requantised(
        "N,2,3,4", "N,5,1,1", f"y = QLinearConv{_QC}", U, (2, 2, 3, 4),
        w=numbers(S, 5, 2, 3, 4), ws=scales(5), wz=np.zeros(5, S),
    ),
    "a bias of zeros": _requantised(
        "N,4,T", "N,6,T", "y = QLinearConv(x, xs, xz, w, ws, wz, ys, yz, b)", U, (2, 4, 3),
        w=numbers(S, 6, 4, 1), ws=scales(), wz=numbers(S), b=np.zeros(6, np.int32),
    ),
}  # fmt: skip
