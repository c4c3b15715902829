"""The demo's network: its shapes, its costs, and its forms."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from onebyone.comparison.digits import load_digits
from onebyone.demo import data, network, train
from onebyone.laws import cost
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.verification.running_error import error_bound


@pytest.fixture(scope="module")
def trained_a_little() -> nn.Sequential:
    """A network whose batch norms have random statistics and weights."""
    net = network.build(0)
    generator = torch.Generator().manual_seed(1)
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.uniform_(-1, 1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return net.eval()


def test_it_answers_for_one_window_and_pads_nowhere() -> None:
    net = network.build(0).eval()
    assert net(torch.zeros(3, 1, data.WINDOW, data.WINDOW)).shape == (3, len(data.CLASSES))
    assert sum(isinstance(m, nn.Linear) for m in net) == 2
    assert all(m.padding in (0, (0, 0)) for m in net if isinstance(m, nn.Conv2d | nn.MaxPool2d))


def test_it_has_its_seeds_weights_and_leaves_the_random_state() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b, c = network.build(0), network.build(0), network.build(1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a[0].weight, b[0].weight)
    assert not torch.equal(a[0].weight, c[0].weight)


def test_folding_the_batch_norms_keeps_the_function(trained_a_little: nn.Sequential) -> None:
    wide = copy.deepcopy(trained_a_little).double()
    plain = network.folded(wide)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain)
    x = torch.randn(4, 1, data.WINDOW, data.WINDOW, generator=torch.Generator().manual_seed(0)).double()
    bounds = [error_bound(net, x)[0][0] for net in (wide, plain)]
    # folding rounds each weight a few times more, which the bound for summing its n > 30 products covers
    with torch.no_grad():
        assert bool(((wide(x) - plain(x)).abs() <= bounds[0] + bounds[1]).all())
        assert float(wide(x).abs().max()) > 1e6 * float(bounds[0].max())


def test_the_macs_are_those_that_pytorch_counts() -> None:
    plain = network.folded(network.build(0)).to(memory_format=torch.contiguous_format)
    dense = convolutionalize(plain, data.WINDOW)
    layers = network.cost_layers(plain)
    for model, size in ((plain, (data.WINDOW, data.WINDOW)), (dense.model, (127, 160))):
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            model(torch.zeros(1, 1, *size))
        assert cost.network(layers, size).macs * 2 == counted.get_total_flops()


def test_the_work_saved_on_a_page_is_over_twenty_times() -> None:
    layers = network.cost_layers(network.folded(network.build(0)))
    size, stride = (1024, 1024), 4
    positions = [(n - data.WINDOW) // stride + 1 for n in size]
    windows = cost.every_window(layers, (data.WINDOW,) * 2, positions).macs
    assert windows / cost.network(layers, size).macs >= 20


def test_the_dense_form_has_the_window_the_network_has() -> None:
    dense = convolutionalize(network.folded(network.build(0)), data.WINDOW)
    assert dense.geometry.exact
    assert dense.geometry.window == dense.geometry.receptive_field == (data.WINDOW, data.WINDOW)
    assert dense.geometry.stride == (4, 4)


def test_the_dense_form_learns_along(trained_a_little: nn.Sequential) -> None:
    """The dense form that searches during training shares its weights with the network that is trained."""
    dense = convolutionalize(trained_a_little, data.WINDOW)
    x = torch.zeros(1, 1, data.WINDOW, data.WINDOW)
    with torch.no_grad():
        before = dense.model(x).clone()
        trained_a_little[-1].bias += 1
        after = dense.model(x)
        trained_a_little[-1].bias -= 1
    assert torch.equal((after - before).round(decimals=4), torch.ones_like(before))


def test_hard_crops_are_the_windows_that_were_mistaken() -> None:
    photograph = torch.linspace(0, 1, 120 * 160).reshape(120, 160)
    seen: list[np.ndarray] = []

    def search(image: np.ndarray) -> np.ndarray:
        seen.append(image)
        scores = np.zeros((11, (image.shape[0] - 40) // 4 + 1, (image.shape[1] - 40) // 4 + 1), np.float32)
        scores[10] = 1
        scores[7, 2, 3] = 0.5
        return scores

    crops = train.hard_crops([photograph], search, stride=4, seed=0)
    assert crops.shape == (1, 1, 40, 40)
    assert np.array_equal((crops[0, 0] * 255).round().numpy(), seen[0][8:48, 12:52])


def test_a_search_that_finds_nothing_gives_no_crops() -> None:
    nothing = train.hard_crops(
        [torch.rand(60, 60)], lambda image: np.eye(11, dtype=np.float32)[10][:, None, None], stride=4, seed=0
    )
    assert nothing.shape == (0, 1, 40, 40)


def test_training_lowers_the_loss_and_searches_twice() -> None:
    digits = load_digits(0).train
    crops = train.Crops(torch.rand(64, 1, 40, 40, generator=torch.Generator().manual_seed(0)))
    turns: list[int] = []

    def search(turn: int) -> torch.Tensor:
        turns.append(turn)
        return torch.zeros(2, 1, 40, 40)

    batches = train.Batches(digits, crops, seed=0)
    losses = train.train(network.build(0), batches, search, lambda done, total: None, steps=6)
    assert turns == [1, 2]
    assert len(batches.crops.hard) == 4
    assert np.mean(losses[-2:]) < losses[0]
