"""Networks whose input has no channel axis, beside images that have one channel."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from onebyone.verification.network_run import Grads


class WithoutChannels(nn.Module):
    """A network whose input has no channel axis, `(N, *window)`, called with one, `(N, 1, *window)`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def of(cls, network: nn.Module | ExportedProgram) -> WithoutChannels:
        """The same for a program too."""
        return cls(network.module() if isinstance(network, ExportedProgram) else network)

    def forward(self, image: Tensor) -> Any:
        """What the network gives for the image's one channel."""
        return self.network(image.squeeze(1))


def under_network(gradients: Grads) -> Grads:
    """Gradients by the names that `WithoutChannels` gives to the network's parameters."""
    return {f"network.{name}": gradient for name, gradient in gradients.items()}
