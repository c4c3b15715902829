"""Random small ONNX networks with integer weights, in which every operator is exact on integers, and a small target."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onebyone.targets import TargetProfile, read_profile
from tests.onnx.models import Array, integers, model


def profile(*constraints: str, form: str = "any") -> TargetProfile:
    """A target with these constraints, each as the lines of a TOML table."""
    tables = "".join(f'[[constraint]]\n{c}\nsource = "a test"\n' for c in constraints)
    return read_profile(f'name = "t"\ntitle = "T"\n[preferred]\nform = "{form}"\n{tables}'.encode(), "t.toml")


def swap_last_axes(m: ir.Model, shape: tuple[int, int, int]) -> None:
    """A planted fault: the elements of the constant of this many numbers in a wrong order."""
    constants = ((str(name), value) for name, value in m.graph.initializers.items())
    name, value, tensor = next(
        (name, value, value.const_value)
        for name, value in constants
        if value.const_value is not None and value.const_value.size == np.prod(shape)
    )
    array = tensor.numpy()
    wrong = np.ascontiguousarray(array.reshape(shape).swapaxes(1, 2).reshape(array.shape))
    value.const_value = ir.tensor(wrong, name=name)


#: A target with small numbers, under which most nodes of a small network offend.
SMALL = profile(
    'kind = "layer"\noperators = ["Conv"]\nquantity = "input-channels"\nmaximum = 3',
    'kind = "layer"\noperators = ["Conv"]\nquantity = "output-channels"\nmaximum = 4',
    'kind = "layer"\noperators = ["Conv"]\nquantity = "groups"\nmaximum = 2',
    'kind = "layer"\noperators = ["Conv"]\nquantity = "kernel"\nmaximum = 2',
    'kind = "layer"\noperators = ["Conv"]\nquantity = "stride"\nmaximum = 1',
    'kind = "layer"\noperators = ["Conv"]\nquantity = "padding"\nmaximum = 0',
    'kind = "explicit-attributes"\noperators = ["Conv"]\nattributes = ["kernel_shape", "strides", "pads", "group"]',
    'kind = "rank"\noperators = ["Conv", "MaxPool"]\nminimum = 4',
    'kind = "missing-operator"\noperators = ["Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand", "Einsum"]',
    'kind = "attribute-values"\noperators = ["Gemm"]\nattribute = "alpha"\nallowed = [1.0]\ndefault = 1.0',
    'kind = "attribute-values"\noperators = ["Gemm"]\nattribute = "transA"\nallowed = [0]\ndefault = 0',
    'kind = "constant-operand"\noperators = ["MatMul"]\nside = "second"',
)

_Step = Callable[[np.random.Generator, list[int], dict[str, Array], str, str], "tuple[str, list[int]] | None"]


def random_network(seed: int) -> tuple[ir.Model, dict[str, Array]]:
    """A network of one input with a map of one or two spatial axes, and integers for it."""
    rng = np.random.default_rng(seed)
    sizes = [1, int(rng.integers(2, 9)), *(int(s) for s in rng.integers(5, 9, rng.integers(1, 3)))]
    first, weights, lines = list(sizes), {}, []
    value = "x"
    for index in range(int(rng.integers(2, 5))):
        step = _STEPS[rng.integers(len(_STEPS))]
        made = step(rng, sizes, weights, value, f"v{index}")
        if made is not None:
            lines.append(made[0])
            value, sizes = f"v{index}", made[1]
    lines += _head(rng, sizes, weights, value)
    text = f"g (float[{','.join(map(str, first))}] x) => (float[1,5] y) {{ {' '.join(lines)} }}"
    return model(text, weights), {"x": integers(*first, seed=seed)}


def _conv(
    rng: np.random.Generator, sizes: list[int], weights: dict[str, Array], x: str, y: str
) -> tuple[str, list[int]] | None:
    count = len(sizes) - 2
    groups = int(rng.choice([g for g in (1, 1, sizes[1]) if sizes[1] % g == 0]))
    outputs = groups * int(rng.integers(1, 4 if groups > 1 else 8))
    kernel = [int(k) for k in rng.integers(1, 4, count)]
    strides = [int(rng.integers(1, 3))] * count
    pads = [int(p) for p in rng.integers(0, 2, 2 * count)]
    after = [
        (s + pads[i] + pads[count + i] - k) // st + 1
        for i, (s, k, st) in enumerate(zip(sizes[2:], kernel, strides, strict=True))
    ]
    if min(after) < 2:
        return None
    weights[f"{y}w"] = integers(outputs, sizes[1] // groups, *kernel, seed=int(rng.integers(99)))
    weights[f"{y}b"] = integers(outputs, seed=3)
    settings = [f"strides={strides}", f"pads={pads}"] + ([f"group={groups}"] if groups > 1 else [])
    return f"{y} = Conv<{', '.join(settings)}>({x}, {y}w, {y}b)", [1, outputs, *after]


def _auto_pad(
    rng: np.random.Generator, sizes: list[int], weights: dict[str, Array], x: str, y: str
) -> tuple[str, list[int]]:
    mode = str(rng.choice(["SAME_UPPER", "SAME_LOWER"]))
    weights[f"{y}w"] = integers(4, sizes[1], *([2] * (len(sizes) - 2)), seed=5)
    return f'{y} = Conv<auto_pad="{mode}">({x}, {y}w)', [1, 4, *sizes[2:]]


def _pool(
    rng: np.random.Generator, sizes: list[int], weights: dict[str, Array], x: str, y: str
) -> tuple[str, list[int]]:
    count = len(sizes) - 2
    return f"{y} = MaxPool<kernel_shape={[2] * count}>({x})", [*sizes[:2], *(s - 1 for s in sizes[2:])]


def _relu(
    rng: np.random.Generator, sizes: list[int], weights: dict[str, Array], x: str, y: str
) -> tuple[str, list[int]]:
    return f"{y} = {rng.choice(['Relu', 'Identity', 'Neg'])}({x})", sizes


def _residual(
    rng: np.random.Generator, sizes: list[int], weights: dict[str, Array], x: str, y: str
) -> tuple[str, list[int]]:
    return f"{y} = Add({x}, {x})", sizes


_STEPS: tuple[_Step, ...] = (_conv, _conv, _auto_pad, _pool, _relu, _residual)


def _head(rng: np.random.Generator, sizes: list[int], weights: dict[str, Array], x: str) -> list[str]:
    features = int(np.prod(sizes[1:]))
    weights["w"] = integers(features, 5, seed=7)
    weights["b"] = integers(5, seed=8)
    kind = rng.integers(3)
    if kind == 0:
        weights["w"] = np.ascontiguousarray(weights["w"].T)
        return [f"f = Flatten({x})", "y = Gemm<transB=1, alpha=2.0>(f, w, b)"]
    if kind == 1:
        return [f"f = Flatten({x})", "m = MatMul(f, w)", "y = Add(m, b)"]
    weights["w"] = np.ascontiguousarray(weights["w"].T)
    return [f"f = Flatten({x})", "t = Transpose<perm=[1,0]>(f)", "m = MatMul(w, t)", "n = Transpose<perm=[1,0]>(m)",
            "y = Add(n, b)"]  # fmt: skip
