"""What an any-size verification runs: the networks, the image, and where findings are collected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.results import AnySize, ClassMap
from onebyone.verification import output_comparison
from onebyone.verification.channel_axis import WithoutChannels
from onebyone.verification.class_map_checks import means_of
from onebyone.verification.pytree import leaves
from onebyone.verification.result import CLASS_MAP, CLASS_MAP_MEASURED, DENSE_EXACT, DENSE_PADDED
from onebyone.verification.window_crops import mosaic


@dataclass
class AnySizeFindings:
    """What the checks found: failures, what they could not check, and what passed with a warning."""

    problems: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AnySizeSetup:
    """The networks and the image of one verification.

    Attributes
    ----------
    model: the original, as the user gave it.
    network: the any-size network.
    class_map: which pool the class map leaves out; None if the outputs are no class map.
    compared: the network whose outputs are compared with crops: `network`, or the means of its class map.
    geometry: the geometry of `compared`.
    smallest_image: the size of the smallest image that `network` takes.
    classifier: the original as a callable that takes images with a channel axis.
    analysed: the form of `classifier` that the error analysis exports.
    image: the image that is compared, `(N, C, H, W)`.
    fixed_batch: the only batch size that the original takes; None for any.
    dtype: the shortest floating type among the parameters and the input.
    seed: the seed of the probes.
    """

    model: Any
    network: Any
    class_map: ClassMap | None
    compared: Any
    geometry: Geometry
    smallest_image: tuple[int, ...]
    classifier: Any
    analysed: Any
    image: Tensor
    fixed_batch: int | None
    dtype: torch.dtype
    seed: int

    @property
    def target(self) -> str:
        """The name of what is verified."""
        exact, measured = (
            (DENSE_EXACT, DENSE_PADDED) if self.class_map is None else (CLASS_MAP, CLASS_MAP_MEASURED)
        )
        return exact if self.geometry.exact else measured

    def blank(self, size: Sequence[int]) -> Tensor:
        """A black image of `size` pixels."""
        return self.image.new_zeros(1, self.image.shape[1], *size)


def prepare(
    model: Any, network: Any, dense: AnySize, x: Any, seed: int, findings: AnySizeFindings
) -> AnySizeSetup:
    """The setup for what `convolutionalize` returned; `network` is its any-size network as a callable.

    Raises BadInput if `x` is not an image for it.
    """
    compared, geometry = network, dense.geometry
    if dense.class_map is not None:
        compared, geometry = means_of(network, geometry, dense.nominal, dense.class_map)
    analysed = dense.original if isinstance(dense.original, ExportedProgram) else model
    classifier = model
    if dense.bare:
        classifier = analysed = WithoutChannels.of(analysed)
    dtype = output_comparison.own_dtype(model, x)
    device = next(iter(compared.parameters()), torch.zeros(())).device
    image = _image(x, dense.channels, dense.bare, geometry)
    if image is None:
        findings.unverified.append("no example image: random pixels were used instead")
        generator = torch.Generator().manual_seed(seed)
        size = _size_of_several_windows(geometry)
        image = torch.randn(2, dense.channels, *size, generator=generator).to(device, dtype)
    return AnySizeSetup(
        model=model,
        network=network,
        class_map=dense.class_map,
        compared=compared,
        geometry=geometry,
        smallest_image=dense.geometry.window,
        classifier=classifier,
        analysed=analysed,
        image=image,
        fixed_batch=_fixed_batch(analysed),
        dtype=dtype,
        seed=seed,
    )


def _size_of_several_windows(geometry: Geometry) -> list[int]:
    """3, 2 and 4 windows along the axes, and a remainder at the far edge that is too small for another one."""
    counts = zip(geometry.window, (2, 1, 3), geometry.stride, strict=False)
    return [w + n * s + s - 1 for w, n, s in counts]


def _image(x: Any, channels: int, bare: bool, geometry: Geometry) -> Tensor | None:
    """The image of an example: x if it holds several windows, a mosaic of x if it holds one, None without x."""
    window, stride = geometry.window, geometry.stride
    if x is None:
        return None
    image = leaves(x)[0][1] if leaves(x) else None
    if bare and image is not None and image.dim() == len(window) + 1:
        image = image.unsqueeze(1)
    if image is None or image.dim() != len(window) + 2 or image.shape[1] != channels:
        shape = None if image is None else tuple(image.shape)
        raise BadInput(
            f"x has shape {shape}; an image (N, {channels}, …) with {len(window)} axes was expected"
        )
    pixels = tuple(image.shape[2:])
    if any(have < w for have, w in zip(pixels, window, strict=True)):
        raise BadInput(f"x is {pixels} pixels, smaller than the window of {window}")
    if any(have >= w + s for have, w, s in zip(pixels, window, stride, strict=True)):
        return image.detach()
    return mosaic(image.detach()[:2], _size_of_several_windows(geometry))


def _fixed_batch(network: Any) -> int | None:
    """The batch size of the example that a program was exported with; None for a module."""
    if not isinstance(network, ExportedProgram) or network.example_inputs is None:
        return None
    return int(leaves(network.example_inputs[0])[0][1].shape[0])
