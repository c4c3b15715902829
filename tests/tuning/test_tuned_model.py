"""Tuned models with unusual tensors, under exporters and transformations, and in forked processes."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import signal
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader, Dataset

from onebyone.errors import BadInput
from onebyone.tuning.call_signature import CallSignature
from onebyone.tuning.engines import EngineSettings, engine_named
from onebyone.tuning.tuned_model import TunedModel
from tests.tuning.test_engines import model

TWO = EngineSettings(torch.device("cpu"), 2)
EXAMPLE = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
PATIENCE = 600.0  # seconds; a busy machine is slow


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)),
    ).eval()


@pytest.fixture(scope="module", params=["onebyone", "eager", "onnxruntime"])
def tuned(request: pytest.FixtureRequest) -> TunedModel:
    return model(request.param, network(), EXAMPLE, TWO)[0]


class Image(Tensor):
    """A subclass without changes."""


@pytest.mark.parametrize(
    "odd",
    [
        lambda x: torch._neg_view(-x),
        lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag,
        lambda x: x[:, :1].expand(1, 3, 12, 12),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: torch.cat([x, x], 3)[..., 6:18],
        lambda x: x.clone().requires_grad_(),
        lambda x: nn.Parameter(x),
        lambda x: x.as_subclass(Image),
    ],
)
def test_tensors_in_any_memory_format(tuned: TunedModel, odd: Callable[[Tensor], Tensor]) -> None:
    x = odd(EXAMPLE)
    with torch.no_grad():
        right = network().double()(x.double())
    torch.testing.assert_close(
        tuned(x).as_subclass(Tensor).double(), right.as_subclass(Tensor), atol=1e-5, rtol=0
    )


WITHOUT_MEMORY = (
    r"^input: a tensor without ordinary memory \(sparse, FakeTensor, or under torch.vmap or torch.func\); "
    r"a tuned model takes dense tensors: use the original network there$"
)


def _fake(tuned: TunedModel) -> Any:
    with FakeTensorMode() as mode:
        return tuned(mode.from_tensor(EXAMPLE))


@pytest.mark.parametrize(
    "call",
    [
        lambda tuned: tuned(EXAMPLE.to_sparse()),
        lambda tuned: tuned(EXAMPLE.to_mkldnn()),
        lambda tuned: torch.vmap(tuned)(EXAMPLE[None]),
        lambda tuned: torch.func.grad(lambda x: tuned(x).sum())(EXAMPLE),
        _fake,
    ],
)
def test_tensors_without_memory_are_an_error(tuned: TunedModel, call: Callable[[TunedModel], Any]) -> None:
    with pytest.raises(BadInput, match=WITHOUT_MEMORY):
        call(tuned)


def test_another_device_is_an_error() -> None:
    tuned = model("onebyone", network(), EXAMPLE, TWO)[0]
    with pytest.raises(
        BadInput, match=r"^input: a float32 tensor of 1×3×12×12 on meta where the example has"
    ):
        tuned(EXAMPLE.to("meta"))


def test_it_cannot_be_exported(tuned: TunedModel) -> None:
    said = r"^a tuned model cannot be exported or traced \(torch.export, torch.jit, torch.onnx\), because it calls "
    with pytest.raises(BadInput, match=said):
        torch.export.export(tuned, (EXAMPLE,), strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BadInput, match=said):
            torch.jit.trace(tuned, (EXAMPLE,))


def test_it_cannot_be_pickled_or_copied(tuned: TunedModel) -> None:
    said = (
        r"^a tuned model cannot be pickled or copied, because it was compiled for this process: save the plan "
        r"\(tuned.save\('plan.json'\)\) and apply it with onebyone.tune\(model, example, plan='plan.json'\)$"
    )
    attempts: list[Callable[[], Any]] = [
        lambda: torch.save(tuned, io.BytesIO()),
        lambda: pickle.dumps(tuned),
        lambda: copy.deepcopy(tuned),
        lambda: copy.copy(tuned),
    ]
    for attempt in attempts:
        with pytest.raises(BadInput, match=said):
            attempt()


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiling_what_calls_it_changes_nothing(tuned: TunedModel, backend: str) -> None:
    """TorchDynamo leaves the tuned model's call out of the graph; the backend compiles the sum after it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(lambda x: tuned(x) + 1.0, backend=backend)
        torch.testing.assert_close(compiled(EXAMPLE), tuned(EXAMPLE) + 1.0)


def in_child(work: Callable[[], bool]) -> None:
    """Run `work` in a forked process, and assert that it returns True within PATIENCE seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of Python warn about threads at each fork
        process = os.fork()
    if not process:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise AssertionError("the forked process hangs")


def large() -> Tensor:
    """Return an image with enough positions for every thread."""
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["onebyone", "eager", "onednn-graph", "onnxruntime", "openvino"])
def test_a_forked_process_computes_the_same(name: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tuned, _ = model(name, network(), large(), TWO)
        right = tuned(large())

        def agrees() -> bool:
            return bool((tuned(large()) - right).abs().max() < 1e-5)

        assert agrees()
        in_child(agrees)
        assert agrees()
    finally:
        torch.set_num_threads(threads)


def test_a_lock_that_another_thread_holds_at_the_fork_is_free_in_the_child() -> None:
    call = model("onebyone", network(), EXAMPLE, TWO)[0]
    right = call(EXAMPLE)
    with call._call.program._lock:  # type: ignore[attr-defined]
        in_child(lambda: bool((call(EXAMPLE) - right).abs().max() < 1e-5))


class Scored(Dataset[Tensor]):
    """A data set whose items are the outputs of a model, which the workers call."""

    def __init__(self, scorer: TunedModel) -> None:
        self.scorer = scorer

    def __len__(self) -> int:
        return 4

    def __getitem__(self, item: int) -> Tensor:
        return self.scorer(large() + item)[0]


def test_workers_of_a_data_loader() -> None:
    torch.set_num_threads(2)
    try:
        tuned, _ = model("onebyone", network(), large(), TWO)
        right = torch.cat([tuned(large() + i) for i in range(4)])
        loader = DataLoader(Scored(tuned), 2, num_workers=2, timeout=PATIENCE, multiprocessing_context="fork")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.testing.assert_close(torch.cat(list(loader)), right, atol=1e-5, rtol=0)
    finally:
        torch.set_num_threads(1)


def test_the_engine_does_not_keep_the_original_s_parameters() -> None:
    """The parameters are freed when nothing else refers to them, because the engine has packed copies."""
    original = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    x = torch.randn(1, 20, 64)
    with torch.no_grad():
        right, parameter = original(x), weakref.ref(original[0].weight)
    calling = CallSignature.of(original, x)
    call = engine_named("onebyone").build(original, calling, TWO)
    del original, calling
    gc.collect()
    assert parameter() is None
    torch.testing.assert_close(call(x), right, atol=1e-5, rtol=0)


def test_the_form_in_pytorch_can_be_dropped() -> None:
    """`del model.network` frees the original's parameters; the engine and forked processes do not need them."""
    original = network()
    with torch.no_grad():
        right = original(EXAMPLE)
    tuned = model("onebyone", original, EXAMPLE, TWO)[0]
    parameters = [weakref.ref(parameter) for parameter in original.parameters()]
    del original, tuned.network
    gc.collect()
    assert [reference() for reference in parameters] == [None] * len(parameters)
    torch.testing.assert_close(tuned(EXAMPLE), right, atol=1e-5, rtol=0)
