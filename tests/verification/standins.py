"""Conversions written by hand, so that these tests depend on the verifier and not on `convert`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onebyone.pytorch.modules.module_pair import ModulePair
from onebyone.records import Change, Refusal


class ConvInPlaceOfLinear(nn.Module):
    """A drop-in: the linear layer's own parameters, seen as a 1×1 convolution's."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1], 1)
        y = F.conv1d(rows, self.weight[:, :, None], self.bias)
        return y.reshape(*x.shape[:-1], -1)


class LinearInPlaceOfConv(nn.Module):
    """A drop-in for an ungrouped 1×1 `nn.Conv2d` of stride 1."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = conv.weight
        self.register_parameter("bias", conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.movedim(-3, -1), self.weight.flatten(1), self.bias)
        return y.movedim(-1, -3)


@dataclass(frozen=True)
class ConvertedByHand:
    """Satisfies `onebyone.results.Converted`, without maps between the state dicts."""

    model: nn.Module
    pairs: tuple[ModulePair, ...]
    changes: tuple[Change, ...] = ()
    refused: tuple[Refusal, ...] = ()
    state_dict_to_original: None = None
    state_dict_from_original: None = None

    def runnable(self, network: nn.Module) -> nn.Module:
        return network


def swap(
    model: nn.Module,
    make: Callable[[nn.Linear], nn.Module] = ConvInPlaceOfLinear,
    make_linear: Callable[[nn.Conv2d], nn.Module] = LinearInPlaceOfConv,
) -> ConvertedByHand:
    """Every linear layer and 1×1 convolution replaced; the Parameter objects shared."""
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    after = copy.deepcopy(model, shared)
    pairs = []
    made: dict[int, nn.Module] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
        if not isinstance(module, nn.Linear) and not pointwise:
            continue
        if id(module) not in made:
            made[id(module)] = make(module) if isinstance(module, nn.Linear) else make_linear(module)
            pairs.append(ModulePair(path, module, made[id(module)]))
        if not path:
            after = made[id(module)]
            continue
        parent, _, name = path.rpartition(".")
        setattr(after.get_submodule(parent), name, made[id(module)])
    return ConvertedByHand(after, tuple(pairs))


class Net(nn.Module):
    """A 1×1 convolution, a flatten and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)
        self.norm = nn.BatchNorm2d(5)
        self.drop = nn.Dropout(0.5)
        self.first = nn.Linear(5 * 4 * 3, 7)
        self.second = nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)), inplace=True)
        return self.second(F.relu(self.first(self.drop(x.flatten(1)))))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()
