"""PyTorch's settings of TF32 on a GPU, which by default apply to convolutions and not to linear layers."""

from __future__ import annotations

from typing import Any

import torch

#: The first generation of NVIDIA's GPUs that has TF32 (Ampere).
_FIRST_WITH_TF32 = (8, 0)


def tf32_warning(network: Any) -> str | None:
    """Why linear layers and convolutions of a float32 network on a GPU round differently; None if they do not.

    By default PyTorch rounds the inputs of convolutions to TF32, whose mantissa has 10 bits, and computes matrix
    products in IEEE float32 (PyTorch documentation, "CUDA semantics: TensorFloat-32 on Ampere devices").

    >>> tf32_warning(torch.nn.Linear(2, 3)) is None
    True
    """
    parameters: Any = getattr(network, "parameters", tuple)()  # a function has none
    devices = {p.device for p in parameters if p.device.type == "cuda" and p.dtype == torch.float32}
    if not any(torch.cuda.get_device_capability(d) >= _FIRST_WITH_TF32 for d in devices):
        return None
    backends: Any = torch.backends  # these also have what was set through allow_tf32
    convolutions = backends.cudnn.conv.fp32_precision == "tf32"
    products = backends.cuda.matmul.fp32_precision == "tf32"
    if convolutions == products:
        return None
    less, more = ("linear layers", "convolutions") if convolutions else ("convolutions", "linear layers")
    return (
        f"with PyTorch's present settings, {more} on this GPU round their inputs to TF32 (10 bits) and {less} do not; "
        f"this proof is computed without TF32, and outside it the two forms differ by more than float32 rounding. "
        f"Set torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32 to the same value to avoid this"
    )
