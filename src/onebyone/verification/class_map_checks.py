"""Class maps (`head="cam"`): their means, which can be compared with crops, and checks of their positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from onebyone.laws.geometry import Geometry
from onebyone.records import by
from onebyone.results import ClassMap
from onebyone.verification import output_comparison
from onebyone.verification.network_run import Grads
from onebyone.verification.pytree import leaves
from onebyone.verification.window_crops import (
    all_windows,
    batch_size,
    compare_rows,
    rows_of,
    run_on_windows,
)

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


def means_of(
    network: nn.Module, geometry: Geometry, window: tuple[int, ...], class_map: ClassMap
) -> tuple[nn.Module, Geometry]:
    """The any-size network whose outputs for windows are the class map's means, and its geometry.

    `network` and `geometry` are those of the class map, `window` the window that the classifier was built for. The
    resulting geometry is that of `head="window"`. It is exact if the network's other operators are and the head is
    linear.
    """
    others = tuple(r for r in geometry.inexact_because if r != class_map.reason)
    reasons = (*others, *((class_map.reason,) if class_map.nonlinear else ()))
    of_windows = replace(geometry, window=window, exact=not reasons, inexact_because=reasons)
    return MeansOfMap(network, class_map.pool), of_windows


def of_the_map(gradients: Grads) -> Grads:
    """Gradients of `MeansOfMap`, under the names that the class map's own network gives its parameters."""
    return {name.removeprefix(f"{_CHILD}."): gradient for name, gradient in gradients.items()}


def why_wrong_positions(
    network: Callable[[Tensor], Any],
    smallest: Sequence[int],
    stride: Sequence[int],
    blank: Callable[[Sequence[int]], Tensor],
) -> str:
    """Why a class map has not as many positions as its geometry says, from the smallest image on; empty if it has.

    `blank(size)` makes an image of `size` pixels.
    """
    for extra in (0, *(s - 1 for s in stride), stride[0]):
        size = [n + extra for n in smallest]
        expected = tuple((n - w) // s + 1 for n, w, s in zip(size, smallest, stride, strict=True))
        try:
            with torch.no_grad():
                counts = [tuple(t.shape[2:]) for _, t in leaves(network(blank(size)))]
        except Exception as error:
            return f"the class map fails on {by(size)} pixels: {type(error).__name__}: {error}"
        if any(count != expected for count in counts):
            return f"{by(size)} pixels give {counts[0]} positions, {expected} are expected"
    return ""


def why_not_local(
    network: nn.Module, smallest: Sequence[int], stride: Sequence[int], image: Tensor, limit: int
) -> str:
    """Why positions of a class map differ from the map of their own pixels alone; empty if they do not.

    At most `limit` positions are compared, in float64. In a network that does not pad they must be equal up to
    rounding.
    """
    (network64,) = output_comparison.copies_in(torch.float64, network)
    image = image.to(torch.float64)
    with torch.no_grad():
        maps = [t for _, t in leaves(network64(image))]
        positions = all_windows(tuple(maps[0].shape[2:]), len(image), smallest, stride).sample(limit)
        batch = batch_size(positions, image.shape[1], None)
        isolated = run_on_windows(lambda x: rows_of(network64(x)), image, positions, batch)
    limits = [
        torch.full_like(a, output_comparison.limit64(2.0**-24 * float(a.abs().max()), 2.0**-24))
        for a in isolated
    ]
    differences = compare_rows([positions.pick(t) for t in maps], isolated, limits)
    if differences.ratio is None or differences.ratio > 1:
        return (
            f"positions of the class map differ by {differences.largest:.3g} from the map of their own pixels"
        )
    return ""
