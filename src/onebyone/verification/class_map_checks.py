"""Class maps (`head="cam"`) in a form that can be compared with crops: averaged over the positions of a window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from onebyone.laws.geometry import Geometry
from onebyone.results import AnySize, ClassMap
from onebyone.verification.network_run import Grads

_CHILD = "map"


class MeansOfMap(nn.Module):
    """Averages each output of a class map over `pool` positions at stride 1: `(N, K, H, W)` → `(N, K, H', W')`.

    The image `(N, C, H, W)` must be at least as large as the window that the network was built for.
    """

    def __init__(self, network: nn.Module, pool: tuple[int, ...]) -> None:
        super().__init__()
        self.add_module(_CHILD, network)
        self.pool = pool

    def forward(self, image: Tensor) -> Any:
        """The means, in the structure of the network's outputs."""
        return pytree.tree_map_only(Tensor, self._means, getattr(self, _CHILD)(image))

    def _means(self, scores: Tensor) -> Tensor:
        average: Any = (nn.functional.avg_pool1d, nn.functional.avg_pool2d, nn.functional.avg_pool3d)
        means: Tensor = average[len(self.pool) - 1](scores, self.pool, 1)
        return means


def means_of(dense: AnySize, class_map: ClassMap) -> tuple[nn.Module, Geometry]:
    """The any-size network whose outputs for windows are the class map's means, and its geometry.

    The geometry is that of `head="window"`. It is exact if the network's other operators are and the head is linear.
    """
    others = tuple(r for r in dense.geometry.inexact_because if r != class_map.reason)
    reasons = (*others, *((class_map.reason,) if class_map.nonlinear else ()))
    geometry = replace(dense.geometry, window=dense.nominal, exact=not reasons, inexact_because=reasons)
    return MeansOfMap(dense.model, class_map.pool), geometry


def of_the_map(gradients: Grads) -> Grads:
    """Gradients of `MeansOfMap`, under the names that the class map's own network gives its parameters."""
    return {name.removeprefix(f"{_CHILD}."): gradient for name, gradient in gradients.items()}
