"""The any-size network against the original on every cropped window, in float64."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import onebyone
from onebyone.errors import InexactWarning
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from tests.pytorch.anysize import deviation, every_window, image_for, lenet, randomise
from tests.pytorch.exact_networks import EXACT, Branches

#: float64 rounding of a few hundred terms of size about one: what equal numbers may differ by here. Checked below to
#: be far under what the smallest fault changes.
ROUNDING = 1e-11


@pytest.mark.parametrize("name", EXACT)
def test_equals_cropping_every_window(name: str) -> None:
    build, window, channels = EXACT[name]
    d, error = deviation(build(), window, channels)
    assert d.geometry.exact, d.geometry.inexact_because
    assert error < ROUNDING


ONE_D = nn.Sequential(
    nn.Conv1d(2, 4, 5),
    nn.ReLU(),
    nn.MaxPool1d(2),
    nn.Flatten(),
    nn.Linear(4 * 6, 5),
    nn.ReLU(),
    nn.Linear(5, 3),
)
THREE_D = nn.Sequential(
    nn.Conv3d(1, 3, 3),
    nn.BatchNorm3d(3),
    nn.ReLU(),
    nn.MaxPool3d((1, 2, 2)),
    nn.Flatten(),
    nn.Linear(3 * 3 * 2 * 3, 4),
)


@pytest.mark.parametrize(
    ("model", "window"), [(ONE_D, (16,)), (THREE_D, (5, 6, 8))], ids=["signals", "volumes"]
)
def test_signals_and_volumes(model: nn.Module, window: tuple[int, ...]) -> None:
    d, error = deviation(model, window)
    assert d.geometry.exact
    assert error < ROUNDING
    assert len(d.geometry.stride) == len(window)


INEXACT = {
    "bilinear upsampling": (
        nn.Sequential(
            nn.Conv2d(3, 4, 2, 2),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Flatten(),
            nn.Linear(256, 3),
        ),
        "1 (aten.upsample_bilinear2d): interpolation",
    ),
    "padded convolution": (
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 3)),
        "0 (aten.conv2d): padding",
    ),
    "same padding": (
        nn.Sequential(nn.Conv2d(3, 4, 4, padding="same"), nn.Flatten(), nn.Linear(4 * 64, 3)),
        "0 (aten.conv2d): padding",
    ),
    "padded max-pool": (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(4 * 16, 3)),
        "1 (aten.max_pool2d): padding",
    ),
    "partial ceil_mode place": (
        nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten(), nn.Linear(4 * 16, 3)
        ),
        "1 (aten.max_pool2d): ceil_mode",
    ),
    "padded average pool": (
        nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 3)),
        "0 (aten.avg_pool2d): padding",
    ),
    "asymmetric zero padding": (
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.Linear(64, 3)),
        "aten.pad): padding",
    ),
}


@pytest.mark.parametrize("name", INEXACT)
def test_what_padding_touched_is_never_called_exact(name: str) -> None:
    model, reason = INEXACT[name]
    better = name == "partial ceil_mode place"  # one pixel more, and nothing is partial
    with pytest.warns(InexactWarning, match="at a window of 9×9 it would be") if better else nullcontext():
        d, error = deviation(model, 8)
    assert not d.geometry.exact
    assert any(reason in because for because in d.geometry.inexact_because), d.geometry.inexact_because
    assert error > 1e-3, "the reason is real: the numbers differ"
    image = image_for(d, d.nominal)
    with torch.no_grad():
        nominal = (d.model(image)[..., 0, 0] - model(image).flatten(1)).abs().max()
    assert nominal < ROUNDING, "on an image of the window's size nothing differs"


def test_a_larger_image_has_no_more_places_than_windows() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 4, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, 2, padding=1),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    d = convolutionalize(randomise(model), 32)
    for extra in range(2 * d.geometry.stride[0] + 1):
        places = d.model(torch.zeros(1, 3, 32 + extra, 32)).shape[2:]
        assert tuple(places) == (extra // 8 + 1, 1)


def test_several_outputs_come_as_a_tuple() -> None:
    model = randomise(Branches()).double().eval()
    d = convolutionalize(model, (10, 8))
    image = image_for(d)
    with torch.no_grad():
        first, second = d.model(image)
        crop = model(image[:, :, 1:11, 2:10])
    assert d.geometry.exact
    assert (first[:, :, 1, 2] - crop[0]).abs().max() < ROUNDING
    assert (second[:, :, 1, 2] - crop[1]).abs().max() < ROUNDING


def test_class_map_means_are_the_window_numbers() -> None:
    model = randomise(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )
    )
    model = model.double().eval()
    cam, window = convolutionalize(model, 9, head="cam"), convolutionalize(model, 9)
    image = image_for(window, (17, 13))
    with torch.no_grad():
        maps, scores = cam.model(image), window.model(image)
    assert tuple(maps.shape[2:]) == cam.geometry.positions((17, 13)) == (8, 6)
    assert (F.avg_pool2d(maps, 4, 1) - scores).abs().max() < ROUNDING
    assert cam.geometry.window == (3, 3)
    assert not cam.geometry.exact


def test_weights_are_shared_and_checkpoints_load_both_ways() -> None:
    model = randomise(lenet(norm=True)).eval()
    d = convolutionalize(model, 32)
    ours, theirs = dict(d.model.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in theirs)
    assert d.model.state_dict().keys() == model.state_dict().keys()
    other = randomise(lenet(norm=True), seed=7).eval()
    d.model.load_state_dict(other.state_dict())
    image = torch.randn(1, 1, 32, 32)
    assert torch.allclose(d.model(image)[..., 0, 0], other(image), atol=1e-5)
    other.load_state_dict(d.model.state_dict())


def test_gradients_are_those_of_the_windows() -> None:
    model = randomise(lenet(norm=True)).double().eval()
    d = convolutionalize(model, 32)
    image = image_for(d).requires_grad_()
    target = torch.randn(d.model(image).shape, dtype=torch.float64)
    dense = torch.autograd.grad((d.model(image) * target).sum(), [image, *d.model.parameters()])
    crops = torch.autograd.grad((every_window(model, d, image) * target).sum(), [image, *model.parameters()])
    for a, b in zip(dense, crops, strict=True):
        assert (a - b).abs().max() <= ROUNDING * max(1.0, float(b.abs().max()))


def test_training_mode_brings_dropout_and_batch_statistics_back() -> None:
    model = randomise(
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.Flatten(),
            nn.Linear(36, 50),
            nn.Dropout(0.5),
            nn.Linear(50, 3),
        )
    )
    d = convolutionalize(model, 5)
    image = torch.randn(2, 1, 9, 9)
    before = model[1].running_mean.clone()
    assert torch.equal(d.model(image), d.model(image))
    d.model.train()
    assert not torch.equal(d.model(image), d.model(image))
    assert not torch.equal(model[1].running_mean, before), "statistics are the network's own"


def test_the_given_network_is_left_as_it_was() -> None:
    model = lenet(norm=True).train()
    model[3].eval()
    before = {name: m.training for name, m in model.named_modules()}
    text = str(model)
    convolutionalize(model, 32)
    assert {name: m.training for name, m in model.named_modules()} == before
    assert str(model) == text


def test_in_place_operators_whose_operand_is_read_again() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            half = y[:, :2]
            y.mul_(2).relu_()
            return self.head((y + torch.cat([half, half], 1)).flatten(1))

    d, error = deviation(Reused(), 6)
    assert d.geometry.exact
    assert error < ROUNDING


OPTIMIZERS = {
    "SGD with momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_in_the_any_size_form(name: str) -> None:
    def network() -> nn.Sequential:
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3)
        )
        return randomise(model).double()

    def steps(forward: nn.Module, optimizer: torch.optim.Optimizer, first: int, count: int) -> None:
        for step in range(first, first + count):
            generator = torch.Generator().manual_seed(step)
            image = torch.randn(6, 1, 5, 5, generator=generator, dtype=torch.float64)
            target = torch.randint(3, (6,), generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(forward(image).flatten(1), target).backward()
            optimizer.step()

    straight, changed = network(), network()
    first, second = OPTIMIZERS[name](straight.parameters()), OPTIMIZERS[name](changed.parameters())
    steps(straight, first, 0, 25)
    steps(changed, second, 0, 5)
    d = convolutionalize(changed, 5)
    steps(d.model.train(), second, 5, 20)
    for a, b in zip(straight.parameters(), changed.parameters(), strict=True):
        assert (a - b).abs().max() < ROUNDING
    fresh = network()
    steps(fresh, OPTIMIZERS[name](fresh.parameters()), 0, 5)
    steps(fresh, OPTIMIZERS[name](fresh.parameters()), 5, 20)  # the planted fault: its state is lost
    lost = max(
        float((a - b).detach().abs().max())
        for a, b in zip(straight.parameters(), fresh.parameters(), strict=True)
    )
    assert lost > 1e6 * ROUNDING


@pytest.mark.parametrize("level", ["layers", "native"])
def test_a_converted_network_has_the_layers_of_the_original(level: str) -> None:
    """Its 1×1 convolution of the flattened map is one convolution on windows again, and a pair for the verifier."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 5, 7), nn.Linear(7, 2)
    )
    converted = onebyone.convert(network, level=level).model
    program = torch.export.export(
        converted.eval(), (torch.zeros(2, 3, 8, 7),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    dense, plain = (convolutionalize(n, window=(8, 7)) for n in (program, network))
    assert [c.after for c in dense.changes] == ["6×5 convolution (7, 4, 6, 5)"] == [plain.changes[0].after]
    assert len(dense.pairs) == 1
    assert len(list(dense.model.graph.nodes)) < 25  # without a slice for each of the 30 positions
    assert onebyone.verify(program, dense).equivalent
    x = torch.randn(1, 3, 14, 15, dtype=torch.float64)
    torch.testing.assert_close(dense.model.double()(x), plain.model.double()(x), rtol=1e-12, atol=1e-12)
