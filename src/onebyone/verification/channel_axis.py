"""Networks whose input has no channel axis, called with images that have one channel."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from onebyone.verification.network_run import Grads


class WithoutChannels(nn.Module):
    """Calls a network that takes `(N, *window)` with an image `(N, 1, *window)`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def of(cls, network: nn.Module | ExportedProgram) -> WithoutChannels:
        """The same for a module and for an exported program."""
        return cls(network.module() if isinstance(network, ExportedProgram) else network)

    def forward(self, image: Tensor) -> Any:
        """The network's outputs for the image's one channel."""
        return self.network(image.squeeze(1))


def under_network(gradients: Grads) -> Grads:
    """Gradients by the names that `WithoutChannels` gives to the network's parameters."""
    return {f"network.{name}": gradient for name, gradient in gradients.items()}
