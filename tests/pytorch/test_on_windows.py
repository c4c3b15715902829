"""A linear layer on windows in both forms: which one runs, that they agree on integers, and that no weight moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import onebyone
from onebyone.laws.cost import rows_are_cheaper
from onebyone.pytorch.lift import window_linear
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import load_dense
from onebyone.verification.window_probes import check_window_pair
from tests.pytorch.anysize import every_window

OUT = 96  # unfolded up to 6 positions


class Operators(TorchDispatchMode):
    """The names of the operators that run, and the most elements that one of them makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.append(str(func).split(".")[1])
        views = any(r.alias_info is not None for r in func._schema.returns)
        if isinstance(out, torch.Tensor) and not views:
            self.most = max(self.most, out.numel())
        return out


class Turned(nn.Module):
    """Flattens in the order of channels-last memory, as R-Net and O-Net of MTCNN do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.movedim(1, -1).flatten(1)


class Some(nn.Module):
    """Takes some features twice and leaves others out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        return torch.cat([flat[:, 3:], flat[:, 5:9]], 1)


def network(axes: int, flatten: nn.Module, stride: int = 2) -> nn.Sequential:
    """A convolution with a stride, then a linear layer over all of a window; every value a small integer."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](2, 3, 2, stride)
    features = flatten(torch.zeros(1, 3, *(range(3, 3 + axes)))).shape[1]
    model = nn.Sequential(conv, flatten, nn.Linear(features, OUT))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randint(-4, 5, parameter.shape, generator=generator).float()
    return model.eval()


def window_of(axes: int, stride: int = 2) -> tuple[int, ...]:
    return tuple(stride * (n - 1) + 2 for n in range(3, 3 + axes))


@pytest.mark.parametrize("flatten", [nn.Flatten(), Turned(), Some()], ids=["plain", "turned", "some"])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("more", [0, 1, 2, 5])
def test_both_forms_give_what_every_crop_gives(axes: int, flatten: nn.Module, more: int) -> None:
    model = network(axes, flatten)
    d = convolutionalize(model, window_of(axes))
    size = tuple(n + 2 * more for n in window_of(axes))
    for batch in (1, 2):
        image = torch.randint(-9, 10, (batch, 2, *size)).float()
        ran = Operators()
        with torch.no_grad(), ran:
            dense = d.model(image)
        positions = batch * (more + 1) ** axes
        assert ran.names.count("convolution") == (1 if rows_are_cheaper(positions, OUT) else 2)
        with torch.no_grad():
            assert torch.equal(dense, every_window(model, d, image))


@pytest.mark.parametrize("flatten", [nn.Flatten(), Turned(), Some()], ids=["plain", "turned", "some"])
def test_at_one_position_the_weight_is_neither_copied_nor_reordered(flatten: nn.Module) -> None:
    model = network(2, flatten)
    d = convolutionalize(model, window_of(2))
    weight = model[2].weight
    image = torch.randint(-9, 10, (1, 2, *window_of(2))).float()
    ran = Operators()
    with torch.no_grad(), ran:
        answer = d.model(image)
    assert ran.most < weight.numel() // 4
    assert ran.names.count("addmm") == 1
    assert torch.equal(answer.flatten(1), model(image))


def test_a_saved_network_chooses_again(tmp_path: Path) -> None:
    model = network(2, nn.Flatten())
    d = convolutionalize(model, window_of(2))
    d.save(tmp_path / "d.pt2")
    back = load_dense(tmp_path / "d.pt2")
    for more in (0, 8):
        image = torch.randint(-9, 10, (1, 2, *(n + more for n in window_of(2)))).float()
        ran = Operators()
        with torch.no_grad(), ran:
            answer = back.model(image)
        assert ran.names.count("convolution") == (2 if more else 1)
        assert torch.equal(answer, d.model(image))
    torch.export.export(d.model, (image,), strict=False)  # and what was loaded or not can be exported again
    program = torch.export.export(back.model, (image,), strict=False)
    assert torch.equal(program.module()(image), answer)


def test_the_rule_grows_with_the_outputs_and_ends() -> None:
    assert all(rows_are_cheaper(1, outputs) for outputs in (1, 10, 4096))
    assert not rows_are_cheaper(2, 16)
    most = {n: max(p for p in range(1, 200) if rows_are_cheaper(p, n)) for n in (16, 64, 512, 1024, 10**6)}
    assert most == {16: 1, 64: 4, 512: 32, 1024: 64, 10**6: 64}


@pytest.mark.parametrize("flatten", [nn.Flatten(), Turned(), Some()], ids=["plain", "turned", "some"])
def test_the_verifier_probes_both_forms(flatten: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(2, flatten)
    d = convolutionalize(model, window_of(2))
    image = torch.randint(-9, 10, (1, 2, 16, 18)).float()
    assert onebyone.verify(model, d, image).equivalent
    (pair,) = d.pairs
    assert check_window_pair(pair, 0).ok
    for form in ("converted", "unfolded"):
        run = getattr(pair, form)
        # the kernel's two axes swapped
        wrong = replace(pair, **{form: lambda x, p, run=run: run(x.flip(-1), p).flip(-1)})
        check = check_window_pair(wrong, 0)
        assert not check.ok
        assert "the integer probe differs" in check.why


def test_training_goes_through_either_form() -> None:
    """Gradients at one position, with the weight's own gradient, equal those of the convolution."""
    source = torch.randint(-4, 5, (1, 3, 4, 5)).double().requires_grad_()
    weight = torch.randint(-4, 5, (7, 36)).double().requires_grad_()
    order = torch.randperm(36)
    grads = []
    for form in (window_linear.as_rows, window_linear.as_convolution):
        out = form(source, weight, None, order, order.argsort(), (3, 3, 4), (1, 1))
        grads.append(
            torch.autograd.grad((out * torch.arange(out.numel()).reshape(out.shape)).sum(), (source, weight))
        )
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
