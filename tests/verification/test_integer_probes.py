"""Integer probes on layers made by hand: what they compare, that their sums are exact, and every reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from onebyone.errors import BadInput
from onebyone.results import LayerFunctions
from onebyone.verification import integer_probes
from onebyone.verification.integer_probes import (
    GRADIENT_WEIGHTS,
    _agree,
    _longest_sum,
    _same_bits,
    integers,
    probe,
)

Params = dict[str, Tensor]
Function = Callable[[Tensor, Params], Tensor]


def linear(x: Tensor, p: Params) -> Tensor:
    return F.linear(x, p["weight"], p.get("bias"))


def layer(converted: Function, original: Function = linear, features: int = 4) -> LayerFunctions:
    params = {"weight": torch.zeros(3, features), "bias": torch.zeros(3)}
    return LayerFunctions("fc", "Linear", original, converted, params, ((2, features), (features,)), features)


class Recorder:
    """A correct layer that keeps what it was called on."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Params]] = []

    def __call__(self, x: Tensor, p: Params) -> Tensor:
        self.calls.append((x.detach(), {n: t.detach() for n, t in p.items()}))
        return linear(x, p)


def test_the_probe_calls_every_shape_and_all_sums_are_exact_integers() -> None:
    recorder = Recorder()
    assert probe(layer(recorder), 0)[:2] == (True, "")
    assert {tuple(x.shape) for x, _ in recorder.calls} == {(2, 4), (4,)}
    for x, p in recorder.calls:
        for t in (x, p["weight"]):
            assert t.dtype == torch.float64
            assert bool((t % 2 == 1).all())  # odd, and so never 0
        reach = 4 * int(p["weight"].abs().max()) * int(x.abs().max()) + int(p["bias"].abs().max())
        assert reach <= 2**53


def test_the_integers_are_as_large_as_exact_sums_allow() -> None:
    """A small range would let faults cancel; n·m² + m ≤ 2⁵³ leaves room for 2 × 4 products and not for much more."""
    recorder = Recorder()
    probe(layer(recorder), 0)
    largest = max(int(p["weight"].abs().max()) for _, p in recorder.calls)
    # the longest sum is that of a weight's gradient over the 8 values of the first input
    assert 0.8 * math.sqrt(2**53 / 8) < largest <= math.sqrt(2**53 / 8)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (lambda x, p: linear(x, p) + (x.dim() == 1), "integer probe on input (4,): outputs differ in 3 of 3 values"),
        (
            lambda x, p: linear(x, p).flatten(),
            "integer probe on input (2, 4): outputs have shapes (2, 3) and (6,)",
        ),
        (
            lambda x, p: linear(x.detach(), p),
            "integer probe on input (2, 4): only one form has a gradient for input",
        ),
        (
            lambda x, p: linear(x, p | {"weight": p["weight"].detach()}),
            "integer probe on input (2, 4): only one form has a gradient for weight",
        ),
        (
            lambda x, p: linear(x, p) + (p["bias"] - p["bias"].detach()),
            "integer probe on input (2, 4): gradients of bias differ in 3 of 3 values",
        ),
        (
            lambda x, p: linear(x, p) + 2 * (x.sum() - x.sum().detach()),
            "integer probe on input (2, 4): gradients of input differ in 8 of 8 values",
        ),
    ],
    ids=["outputs of one shape", "shape", "no gradient of the input", "no gradient of the weight", "twice", "other"],
)  # fmt: skip
def test_a_wrong_form_is_named(fault: Function, why: str) -> None:
    equal, reason, faults = probe(layer(fault), 0)
    assert (equal, reason, faults) == (False, why, [])


def test_gradients_of_very_large_weights_are_not_probed() -> None:
    """Above `GRADIENT_WEIGHTS` elements the outputs alone are compared."""

    def no_gradient(x: Tensor, p: Params) -> Tensor:
        return linear(x.detach(), p)

    features = GRADIENT_WEIGHTS // 3 + 1
    assert 3 * features > GRADIENT_WEIGHTS
    assert probe(layer(no_gradient, features=features), 0)[0]
    assert not probe(layer(no_gradient, features=features - 1), 0)[0]


def test_complex_layers_are_probed_with_complex_integers() -> None:
    recorder = Recorder()
    real = layer(recorder)
    real.params.update({n: torch.complex(t, t) for n, t in real.params.items()})
    assert probe(real, 0)[0]
    x, p = recorder.calls[0]
    assert x.dtype == p["weight"].dtype == torch.complex128
    parts = torch.view_as_real(p["weight"])
    # a complex product is two real ones: twice the terms
    assert float(parts.abs().max()) <= math.sqrt(2**53 / 16)
    conjugated = layer(lambda x, p: linear(x, p | {"weight": p["weight"].conj()}))
    conjugated.params.update({n: torch.complex(t, t) for n, t in conjugated.params.items()})
    assert not probe(conjugated, 0)[0]


def test_faults_are_reported_as_seen_or_unseen() -> None:
    equal, _, faults = probe(layer(linear), 0)
    assert equal
    assert {f.name: f.seen_by_integers for f in faults} == {
        "bias dropped": True,
        "weight order shifted by one": True,
    }

    def sums(x: Tensor, p: Params) -> Tensor:
        """Depends on no order of the features."""
        return x.sum(-1, keepdim=True) * p["weight"].sum(1) + p["bias"]

    _, _, faults = probe(layer(sums, sums), 0)
    assert {f.name: f.seen_by_integers for f in faults} == {
        "bias dropped": True,
        "weight order shifted by one": False,
    }


def test_probes_differ_with_the_seed_and_repeat_with_it() -> None:
    def values(seed: int) -> Tensor:
        recorder = Recorder()
        probe(layer(recorder), seed)
        return recorder.calls[0][0]

    assert torch.equal(values(3), values(3))
    assert not torch.equal(values(3), values(4))


def test_integers_cover_their_range_without_repeating() -> None:
    generator = torch.Generator().manual_seed(0)
    values = integers((3, 5), 99, generator)
    assert len(set(values.flatten().tolist())) == 15
    assert values.abs().max() <= 99
    assert values.min() < -49 < 49 < values.max()
    crowded = integers((500,), 7, generator)
    assert set(crowded.tolist()) == {-7.0, -5.0, -3.0, -1.0, 1.0, 3.0, 5.0, 7.0}
    assert integers((0, 3), 7, generator).shape == (0, 3)
    assert integers((2,), 5, generator, torch.complex128).dtype == torch.complex128


def test_sums_that_would_not_be_exact_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: integers twice as large as the exact sums allow."""
    right = integer_probes.integers
    monkeypatch.setattr(integer_probes, "integers", lambda s, m, *rest: right(s, m, *rest) * 3)
    with pytest.raises(BadInput, match="not exact"):
        probe(layer(linear), 0)
    monkeypatch.setattr(integer_probes, "integers", lambda s, m, *rest: right(s, m, *rest) / 2)
    with pytest.raises(AssertionError, match="not integers"):
        probe(layer(linear), 0)


def test_gradients_after_one_that_neither_form_has_are_compared_too() -> None:
    """The input has no gradient in both forms, and the weight twice its gradient in one of them."""

    def detached(x: Tensor, p: dict[str, Tensor]) -> Tensor:
        return linear(x.detach(), p)

    def twice(x: Tensor, p: dict[str, Tensor]) -> Tensor:
        weight = p["weight"] + (p["weight"] - p["weight"].detach())
        return linear(x.detach(), p | {"weight": weight})

    params = {"weight": torch.ones(3, 4), "bias": torch.ones(3)}
    right, wrong = (
        LayerFunctions("fc", "Linear", detached, form, params, ((2, 4),), 4) for form in (detached, twice)
    )
    assert probe(right, 0)[:2] == (True, "")
    equal, why, _ = probe(wrong, 0)
    assert not equal
    assert why == "integer probe on input (2, 4): gradients of weight differ in 12 of 12 values"


@pytest.mark.parametrize(
    ("shape", "inputs", "longest"),
    [
        ((5, 2), (1, 2), 5), ((2, 5), (1, 2), 5), ((3, 7), (1, 7), 7), ((7,), (1, 7), 7),
        ((1, 5), (1, 1), 5), ((5, 1), (1, 1), 5),
        ((8, 4, 3, 3), (1, 4, 3, 3), 72),
        ((4, 2, 3, 3), (1, 2, 3, 3), 36), ((2, 4, 3, 3), (1, 4, 3, 3), 36), ((2, 2), (6, 2), 12), ((0, 3), (1, 3), 3),
    ],
    ids=str,
)  # fmt: skip
def test_the_longest_sum_of_a_layer_and_its_gradients(
    shape: tuple[int, ...], inputs: tuple[int, ...], longest: int
) -> None:
    """Linear layers may store their weight either way: gradients of inputs are sums over the outputs."""
    functions = LayerFunctions(
        "fc", "Linear", linear, linear, {"weight": torch.zeros(shape)}, (inputs,), terms=2
    )
    assert _longest_sum(functions, True) == longest
    assert _longest_sum(functions, False) == 2
    assert _longest_sum(replace(functions, terms=1000), True) == 1000


def test_what_is_equal_needs_no_reason() -> None:
    values, generator = torch.ones(2, 3), torch.Generator().manual_seed(0)
    assert _same_bits(values, values.clone(), "outputs") == (True, "")
    both = layer(linear)
    params = {name: integers(tuple(p.shape), 9, generator) for name, p in both.params.items()}
    cotangents: list[Tensor] = []

    def fresh(shape: tuple[int, ...], device: torch.device) -> Tensor:
        cotangents.append(integers(shape, 9, generator))
        return cotangents[-1]

    equal, why, largest = _agree(both, integers((2, 4), 9, generator), params, fresh)
    assert (equal, why) == (True, "")
    assert [largest] == [int(c.abs().max()) for c in cotangents]


def test_integers_have_the_type_that_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.complex128):
        assert integers((2, 3), 9, generator, dtype).dtype == dtype
