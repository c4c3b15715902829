"""Class maps (`head="cam"`) as what can be compared with crops: their means over the places that the pool took."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from onebyone.pytorch.lift.emitter import window_mean
from onebyone.verification.network_run import Grads

_INSIDE = "map."


class MeansOfMap(nn.Module):
    """Each output of a class map averaged over `pool` places at stride 1: `(N, K, H', W')` → the windows' `(N, K, …)`.

    Shapes: an image `(N, C, H, W)` of at least the size that the network was built for.
    """

    def __init__(self, network: nn.Module, pool: tuple[int, ...]) -> None:
        super().__init__()
        self.map, self.pool = network, pool

    def forward(self, image: Tensor) -> Any:
        """The means, in the structure of the network's outputs."""
        return pytree.tree_map_only(Tensor, lambda t: window_mean(t, self.pool), self.map(image))


def means_of(dense: Any) -> Any:
    """The any-size network whose answers for windows are the class map's means.

    Its geometry is that of `head="window"`: exact where the network's other operators are and the head is linear.
    """
    evidence, geometry = dense.class_map, dense.geometry
    others = tuple(r for r in geometry.inexact_because if r != evidence.reason)
    reasons = (*others, *((evidence.reason,) if evidence.nonlinear else ()))
    windows = replace(geometry, window=dense.nominal, exact=not reasons, inexact_because=reasons)
    return replace(dense, model=MeansOfMap(dense.model, evidence.pool), geometry=windows)


def of_the_map(gradients: Grads) -> Grads:
    """Gradients under the names that the class map's own network gives its parameters."""
    return {name.removeprefix(_INSIDE): gradient for name, gradient in gradients.items()}
