"""What one run returns and records, the settings that it has, and the containers of its values: every part."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.verification import evaluation_context
from onebyone.verification.channel_axis import WithoutChannels
from onebyone.verification.evaluation_context import _older_switches, proof_settings
from onebyone.verification.network_run import INPUT, Observation, Runner, _signs, as_callable, observe
from onebyone.verification.pytree import leaves, map_tensors, wide

aten = torch.ops.aten

# ---------------------------------------------------------------- one run


@pytest.mark.parametrize(
    ("source", "to", "narrowed"),
    [
        (torch.float64, None, False),
        (torch.float64, torch.int64, False),
        (torch.float64, torch.float64, False),
        (torch.float64, torch.float32, True),
        (torch.float32, torch.float16, False),
    ],
)
def test_casts_from_float64_to_a_shorter_type_are_recorded(
    source: torch.dtype, to: torch.dtype | None, narrowed: bool
) -> None:
    run = Observation()
    arguments = (torch.ones(1, dtype=source),)
    run.record_operator(aten._to_copy.default, arguments, {} if to is None else {"dtype": to})
    assert (run.narrowed, run.random) == (narrowed, False)
    run.record_operator(aten._to_copy.default, arguments, {"dtype": torch.int64})
    assert run.narrowed == narrowed, "a later cast does not undo an earlier one"
    run.record_operator(aten.add.Tensor, arguments, {"dtype": torch.float32})
    assert run.narrowed == narrowed, "only casts are casts"
    run.record_operator(aten.bernoulli.default, (), {})
    run.record_operator(aten.relu.default, (), {})
    assert run.random


def test_whole_numbers_are_no_short_outputs() -> None:
    integers, short = torch.ones(1, dtype=torch.int64), torch.ones(1)
    assert Observation([("a", integers)]).short_of_float64 == ""
    assert Observation([("a", integers), ("b", short)]).short_of_float64 == "its output is torch.float32"


def test_a_run_that_fails_with_gradients_only() -> None:
    def without_gradients(x: Tensor) -> Tensor:
        if x.requires_grad:
            raise ValueError("no gradients here")
        return x * 2

    run = observe(Runner(without_gradients, torch.ones(2), 0), gradients=True)
    assert (run.error, run.no_gradients) == ("", "ValueError: no gradients here")
    assert run.outputs[0][1].tolist() == [2.0, 2.0]
    failed = observe(Runner(lambda x: x.missing, torch.ones(2), 0), gradients=True)
    assert failed.error.startswith("AttributeError: ")
    assert failed.no_gradients == ""


class Traceable(nn.Module):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale


class Noisy(nn.Module):
    """Draws numbers, has a parameter that nothing reads, and one that may not be differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
        self.count = nn.Parameter(torch.ones(1, dtype=torch.int64), requires_grad=False)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return (self.weight * x + torch.rand(5, 3)) * scale


def test_the_signs_of_gradients_do_not_depend_on_what_the_network_draws() -> None:
    run = observe(Runner(Noisy(), torch.ones(5, 3), 7), gradients=True)
    signs = torch.randint(2, (5, 3), generator=torch.Generator().manual_seed(7)) * 2.0 - 1
    assert set(run.gradients) == {INPUT, "weight"}, "without those that do not exist"
    assert torch.equal(run.gradients["weight"], signs.sum(0))
    assert torch.equal(run.gradients[INPUT], signs)
    assert run.random
    assert run.no_gradients == ""


def test_examples_by_name_reach_the_network_and_its_gradients() -> None:
    example = {"x": torch.ones(5, 3), "scale": 2.0}
    runner = Runner(Noisy(), example, 7)
    signs = torch.randint(2, (5, 3), generator=torch.Generator().manual_seed(7)) * 2.0 - 1
    assert torch.equal(observe(runner, gradients=True).gradients[f"{INPUT} x"], 2 * signs)
    drawn = torch.rand(5, 3, generator=torch.Generator().manual_seed(7))
    assert torch.equal(observe(runner).outputs[0][1], (1 + drawn) * 2)


def test_a_traced_network_is_called_by_position_and_by_name() -> None:
    traced = torch.fx.symbolic_trace(Traceable())
    x, scale = torch.ones(2), torch.tensor(3.0)
    for example in ((x, scale), {"scale": scale, "x": x}, ((x,), {"scale": scale})):
        assert observe(Runner(traced, example, 0)).outputs[0][1].tolist() == [3.0, 3.0]


def test_signs_are_on_the_device_of_the_output_and_of_its_type() -> None:
    signs = _signs(torch.zeros(3, 2, dtype=torch.float64, device="meta"), torch.Generator())
    assert (signs.device.type, signs.dtype, signs.shape) == ("meta", torch.float64, (3, 2))


def test_a_runner_in_another_dtype_keeps_everything_else() -> None:
    def double(outputs: Any) -> Any:
        return outputs * 2

    runner = Runner(abs, torch.tensor([-1.0]), 3, double)
    wide_runner = runner.in_dtype(torch.neg, torch.float64)
    assert (wide_runner.call, wide_runner.seed, wide_runner.after) == (torch.neg, 3, double)
    assert wide_runner.example.dtype == torch.float64
    assert wide_runner().tolist() == [2.0]


def test_a_network_may_change_its_input() -> None:
    def change(x: Tensor) -> Tensor:
        return x.add_(1)

    x = torch.zeros(2)
    for gradients in (False, True):
        assert observe(Runner(change, x, 0), gradients).outputs[0][1].tolist() == [1.0, 1.0]
        assert x.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("argument", ["model", "converted.model"])
def test_what_cannot_be_called_is_named(argument: str) -> None:
    with pytest.raises(BadInput, match=rf"^{argument} is a int, which is neither"):
        as_callable(3, argument)


# ---------------------------------------------------------------- settings


def test_flags_are_off_and_not_unset() -> None:
    """None would be read as off, and be no value of the flag."""
    nnpack = torch._C._get_nnpack_enabled  # type: ignore[attr-defined]
    before = nnpack(), torch.backends.mha.get_fastpath_enabled()
    with proof_settings(0):
        assert nnpack() is False
        assert torch.backends.mha.get_fastpath_enabled() is False
        assert torch.backends.cudnn.benchmark is False
        assert torch.backends.cudnn.deterministic is True
    assert (nnpack(), torch.backends.mha.get_fastpath_enabled()) == before


def test_the_older_flags_for_proofs_and_their_defaults() -> None:
    assert [(value, default) for _, _, value, default in _older_switches()] == [
        (False, True),
        ("highest", "highest"),
    ]


def test_with_a_gpu_its_random_state_and_autocast_are_treated_like_the_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[tuple[Any, ...]] = []

    @contextlib.contextmanager
    def recorded(*args: Any, **kwargs: Any) -> Any:
        used.append((*args, kwargs))
        yield

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.random, "fork_rng", recorded)
    monkeypatch.setattr(torch, "autocast", recorded)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: used.append((seed,)))
    with proof_settings(5):
        pass
    assert used == [
        ({"devices": [0, 1, 2]},), ("cpu", {"enabled": False}), ("cuda", {"enabled": False}), (5,)
    ]  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert evaluation_context._cuda_devices() == []


# ---------------------------------------------------------------- nested containers


@dataclass
class Record:
    x: Any


def test_types_and_keys_of_containers() -> None:
    assert leaves(Record) == [], "a class holds no tensors"
    assert map_tensors(Record, torch.neg) is Record
    assert [path for path, _ in leaves({3: torch.ones(1)})] == ["3"]
    assert map_tensors(torch.Size([2]), torch.neg) == torch.Size([2])
    inner = map_tensors(Record({"a": (torch.ones(1),)}), torch.neg)
    assert inner.x["a"][0].item() == -1


def test_quantised_tensors_are_compared_by_their_numbers() -> None:
    with warnings.catch_warnings():  # these types will leave PyTorch
        warnings.simplefilter("ignore", UserWarning)
        quantised = torch.quantize_per_tensor(torch.tensor([0.5, -1.0]), 0.5, 0, torch.qint8)
    assert wide(quantised).tolist() == [0.5, -1.0]


def test_an_image_of_one_pixel_loses_its_channel_axis_only() -> None:
    assert WithoutChannels(nn.Identity())(torch.ones(1, 1, 1, 3)).shape == (1, 1, 3)
