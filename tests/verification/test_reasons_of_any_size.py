"""Every sentence in which the verifier of any-size networks says what it did not check, or could not see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import onebyone
from onebyone.verification import verify


def classifier(padding: int = 0) -> nn.Sequential:
    torch.manual_seed(0)
    size = 6 + 2 * padding
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=padding), nn.ReLU(), nn.Flatten(), nn.Linear(2 * size * size, 3)
    ).eval()


def test_any_size_verifications_say_what_they_ran_on() -> None:
    model = classifier()
    d = onebyone.convolutionalize(model, 8)
    without = verify(model, d)
    assert "no example image: random pixels were used instead" in without.unverified
    x = torch.randn(1, 1, 12, 11)
    with_image = verify(model, d, x)
    assert with_image.unverified == ()
    assert "compared on 7 of 20 windows, evenly spread" in verify(model, d, x, max_windows=7).unverified


def test_a_bound_that_cannot_see_a_shift_says_so() -> None:
    """On an image of one colour all windows give the same: a shift by one position changes nothing."""
    model = classifier()
    v = verify(model, onebyone.convolutionalize(model, 8), torch.ones(1, 1, 12, 12))
    assert v.equivalent
    assert "the bound is too coarse to see a shift by one position on this image" in v.unverified
    assert v.dense is not None
    assert v.dense.planted_shift is not None
    column = verify(model, onebyone.convolutionalize(model, 8), torch.randn(1, 1, 12, 8))
    assert column.dense is not None
    assert column.dense.planted_shift is None  # one position on the last axis: there is nothing to shift


class Erfcx(nn.Module):
    """An operator without an error rule."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.erfcx(x)


def test_the_limit_without_rules_is_that_of_whole_networks() -> None:
    model = nn.Sequential(classifier(), Erfcx()).eval()
    inner = onebyone.convolutionalize(model[0], 8)
    right = replace(inner, model=nn.Sequential(inner.model, Erfcx()), original=model, pairs=())
    v = verify(model, right, gradients=False)
    assert v.equivalent, str(v)
    assert (
        "no derived bound (aten.special_erfcx.default): in float64 the limit for whole networks was used instead"
        in v.unverified
    )
    assert v.dense is not None
    assert v.dense.float64_difference is not None
    assert v.dense.float64_limit is not None
    assert v.dense.float64_difference <= v.dense.float64_limit

    class Off(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.erfcx(x) * (1 + 1e-6)

    wrong = replace(right, model=nn.Sequential(inner.model, Off()))
    assert not verify(model, wrong, gradients=False).equivalent


def test_a_network_that_fails_in_float64_says_so_and_needs_a_bound() -> None:
    class Single(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype == torch.float64:
                raise TypeError("only float32")
            return self.inner(x)

    model = classifier()
    d = onebyone.convolutionalize(model, 8)
    bounded = verify(model, replace(d, model=Single(d.model)), gradients=False)
    assert "dense against crops in float64: TypeError: only float32" in bounded.unverified
    odd = nn.Sequential(model, Erfcx()).eval()
    unbounded = replace(d, model=Single(nn.Sequential(d.model, Erfcx())), original=odd, pairs=())
    v = verify(odd, unbounded, gradients=False)
    assert "dense and crops can be compared neither by a bound nor in float64" in v.problems


def test_few_agreeing_windows_are_a_problem_or_a_warning() -> None:
    model = classifier(padding=1)
    d = onebyone.convolutionalize(model, 8)
    x = torch.randn(4, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    share = verify(model, d, x).class_agreement
    assert share is not None
    assert 0.5 < share < 0.95, "a case between the two floors"
    warned = verify(model, d, x)
    assert warned.equivalent
    assert warned.warnings == (
        f"{share:.1%} of {warned.windows:,} windows have the same best class as when cropped, fewer than 95%",
    )
    failed = verify(model, d, x, min_agreement=share + 0.01)
    assert not failed.equivalent
    (problem,) = failed.problems
    assert problem.startswith(f"only {share:.1%} of ")
    assert problem.endswith(f"fewer than the share of min_agreement={share + 0.01:g}")
    assert failed.warnings == ()


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "padded"])
def test_outputs_that_are_not_finite_on_larger_images_never_pass(exact: bool) -> None:
    class Far(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return y if y.shape[-1] == 1 else y + float("inf")

    model = classifier(padding=0 if exact else 1)
    d = onebyone.convolutionalize(model, 8)
    v = verify(model, replace(d, model=Far(d.model)), gradients=False)
    assert "dense outputs, or the crops', hold NaN or infinity" in v.problems
