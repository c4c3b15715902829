"""The settings that proofs run under: eval mode, IEEE arithmetic, a fixed seed. All are restored afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def proof_settings(seed: int, *models: Any) -> Iterator[None]:
    """Eval mode for `models`, and `seed` set; TF32, reduced-precision sums, fused attention and autocast are off.

    What is switched off does not compute the plain sums whose rounding the bounds describe: TF32 rounds the inputs,
    split-K in float16 rounds the partial sums, NNPACK uses Winograd transforms, and the fast path of
    `nn.TransformerEncoderLayer` calls none of its layers.
    """
    with ExitStack() as stack:
        for model in models:
            if isinstance(model, nn.Module):
                stack.enter_context(eval_mode(model))
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices()))
        stack.enter_context(_plain_arithmetic())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.cuda.is_available():
            stack.enter_context(torch.autocast("cuda", enabled=False))
        torch.manual_seed(seed)
        yield


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run the block in eval mode, and restore every module's own training flag afterwards, also after an error.

    >>> m = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with eval_mode(m): [child.training for child in m]
    [False, False]
    >>> [child.training for child in m]
    [True, False]
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        # the flag is set directly, because exported modules forbid .eval() and users override it
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def _cuda_devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


def _switches() -> list[tuple[Any, str, Any]]:
    b = torch.backends
    exact: list[tuple[Any, str, Any]] = [
        (owner, "fp32_precision", "ieee")
        for owner in (
            b.cuda.matmul,
            b.cudnn.conv,  # type: ignore[attr-defined]
            b.cudnn.rnn,
            b.mkldnn.matmul,  # type: ignore[attr-defined]
            b.mkldnn.conv,  # type: ignore[attr-defined]
            b.mkldnn.rnn,  # type: ignore[attr-defined]
        )
    ]
    return [
        *exact,
        (b.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
        (b.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
        (b.cudnn, "benchmark", False),
        (b.cudnn, "deterministic", True),
    ]


@contextmanager
def _plain_arithmetic() -> Iterator[None]:
    with ExitStack() as stack:
        switches = _switches()
        for owner, name, _ in switches:
            stack.callback(_restorer(owner, name, getattr(owner, name)))
        # PyTorch keeps older flags beside the newer ones, and raises if one is read while the two disagree
        # (torch.export reads them). So both are set, and both are restored.
        for read, write, value, default in _older_switches():
            stack.callback(write, _read(read, default))
            write(value)
        for owner, name, value in switches:
            setattr(owner, name, value)
        nnpack = torch.backends.nnpack.set_flags(False)  # type: ignore[no-untyped-call]
        stack.callback(torch.backends.nnpack.set_flags, *nnpack)
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        yield


def _older_switches() -> list[tuple[Callable[[], Any], Callable[[Any], Any], Any, Any]]:
    """For each flag: how it is read and set, its value for proofs, and PyTorch's default."""
    cudnn = torch.backends.cudnn
    return [
        (lambda: cudnn.allow_tf32, lambda v: setattr(cudnn, "allow_tf32", v), False, True),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest", "highest"),
    ]


def _read(read: Callable[[], Any], default: Any) -> Any:
    try:
        return read()
    except RuntimeError:  # the user set only the newer flags
        return default


def _restorer(owner: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


@contextmanager
def direct_convolutions() -> Iterator[None]:
    """Switch cuDNN off: it may choose Winograd or FFT algorithms, which the bounds for plain sums do not cover."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before
