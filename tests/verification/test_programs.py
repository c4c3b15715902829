"""Exported programs: layers are compared on the inputs of their weights' products; notes are single sentences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import onebyone
from onebyone.verification import verify
from onebyone.verification.activations import record_inputs


class Reader(nn.Module):
    """An attention, which reads its projections' weights, a product with a bare parameter, a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.matrix = nn.Parameter(torch.randn(8, 6))
        self.twice, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(x, x, x, need_weights=False)[0] @ self.matrix
        return self.last(torch.tanh(self.twice(torch.tanh(self.twice(y)))))


def image_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 1, stride=2), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.Flatten())


@pytest.mark.parametrize(
    ("make", "x", "to"),
    [(Reader, torch.randn(2, 5, 8), "conv"), (image_network, torch.randn(2, 3, 6, 4), "linear")],
)
def test_layers_of_a_program_are_compared_on_their_own_inputs(
    make: Callable[[], nn.Module], x: Tensor, to: str
) -> None:
    program = torch.export.export(make().eval(), (x,))
    found = verify(program, onebyone.convert(program, to=to), x)
    assert found.equivalent, str(found)
    assert not [note for note in found.unverified if "never called" in note]
    assert len(found.layers) >= 2
    for layer in found.layers:
        assert layer.bound is not None
        assert layer.error_ratio <= 1
        assert layer.planted_fault > layer.bound


def test_what_meets_a_weight_is_what_the_module_is_given() -> None:
    """The independent second computation: hooks on the modules that the program was exported from."""
    net, x = Reader().eval(), torch.randn(2, 5, 8)
    layers = {"twice": net.twice, "last": net.last}
    hooked = record_inputs(lambda: net(x), net, layers)
    program = torch.export.export(net, (x,)).module()
    met = record_inputs(lambda: program(x), program, layers)
    assert set(met) == set(hooked) == {"twice", "last"}
    for path in hooked:
        assert torch.allclose(met[path].flatten(0, -2), hooked[path].flatten(0, -2), atol=1e-6)
    # a projection that is never called is known by its weight
    assert set(record_inputs(lambda: net(x), net, {"attention.out_proj": net.attention.out_proj}))


def test_recording_runs_no_hook_of_the_user() -> None:
    net, x, calls = Reader().eval(), torch.randn(2, 5, 8), []
    net.attention.out_proj.register_forward_hook(lambda *_: calls.append(1))
    record_inputs(lambda: net(x), net, {"attention.out_proj": net.attention.out_proj})
    assert not calls


class Narrow(nn.Module):
    """Fails in float64: what it makes inside is float32."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.kind = nn.Conv2d(3, 4, 3), nn.Linear(144, 3), kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "cast before":
            y = self.conv(x.float())
        elif self.kind == "cast after":
            y = self.conv(x).float()
        else:
            y = F.conv2d(self.conv(x), torch.full((4, 4, 1, 1), 0.5))
        return self.fc(y.flatten(1))


@pytest.mark.parametrize("kind", ["cast before", "cast after", "constant inside"])
def test_notes_are_single_sentences_and_nothing_is_printed(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A traced network that fails brings its generated code, and the place in it, in the error's message."""
    net, x = Narrow(kind).eval(), torch.randn(2, 3, 8, 8)
    program = torch.export.export(net, (x,))
    found = [
        verify(net, onebyone.convolutionalize(net, 8)),
        verify(program, onebyone.convert(program), x),
        verify(net, onebyone.convert(net, level="graph", example=x), x),
    ]
    for one in found:
        assert one.equivalent, str(one)
        assert any("RuntimeError" in note for note in one.unverified)
        for said in [*one.problems, *one.unverified]:
            assert "\n" not in said
            assert "Traceback" not in said
            assert "traceback" not in said
    assert capfd.readouterr().err == ""


class Noisy(nn.Module):
    """Adds noise of its own to what a 1×1 convolution gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + torch.randn_like(y)


def test_noise_that_follows_the_memory_layout_is_said() -> None:
    net, x = Noisy().eval(), torch.randn(2, 3, 4, 5)
    found = verify(net, onebyone.convert(net, to="linear"), x)
    assert any("the same seed can give other numbers after a conversion" in note for note in found.unverified)


class Recurrent(nn.Module):
    """Its exported program makes the initial state in float32, whatever the dtype of the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


@pytest.mark.parametrize("fault", [None, "bias"])
def test_a_program_that_runs_in_its_own_dtype_alone_is_compared_in_it(fault: str | None) -> None:
    network, x = Recurrent().eval(), torch.randn(2, 5, 4)
    c = onebyone.convert(network, level="graph", example=x)
    if fault:
        with torch.no_grad():
            c.model.state_dict["head.bias"].add_(1e-3)
        network = Recurrent().eval()
    found = verify(network, c, x)
    assert found.equivalent == (fault is None), str(found)
    (note,) = (note for note in found.unverified if "float64" in note)
    assert note.startswith("gradients, rounding_ratio: no float64 reference (RuntimeError")
    assert found.max_error == pytest.approx(1e-3 if fault else 0.0, rel=1e-3, abs=1e-12)
