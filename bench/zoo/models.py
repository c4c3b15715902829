"""The networks of the zoo: the source, example input and builder of each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

import torch
from torch import Tensor, nn

from bench.zoo import smallest
from bench.zoo.blocks import BLOCKS
from bench.zoo.heads import TrunkAndHeads
from onebyone.pytorch.files.sources import import_torchvision, load_source

#: Above this many parameters, or elements of an input (video clips), gradients are not compared and the batch is one,
#: because float64 would take minutes and gigabytes.
LARGE, LARGE_INPUT = 60_000_000, 1_000_000


@dataclass(frozen=True)
class Entry:
    """One network.

    `key` is its name in the results, `source` names what to load, `inputs` are the shapes of one example without the
    batch, and `window` (in pixels) is the window of its dense form, or None if its input is not an image. `structure`
    entries are only converted, on the meta device.
    """

    key: str
    source: str
    inputs: tuple[tuple[int, ...], ...] = ()
    window: tuple[int, ...] | None = None
    structure: bool = False

    @property
    def group(self) -> str:
        """timm, torchvision, block or structure."""
        return "structure" if self.structure else self.key.split(":")[0]


def _square(channels: int, side: int) -> tuple[tuple[int, ...], ...]:
    return ((channels, side, side),)


#: torchvision's classifiers, the smallest of each family: (image side for converting, window).
CLASSIFIERS = {
    "alexnet": (96, 224),
    "convnext_tiny": (96, 224),
    "densenet121": (96, 224),
    "efficientnet_b0": (96, 224),
    "googlenet": (96, 224),
    "inception_v3": (96, 299),
    "maxvit_t": (224, 224),
    "mnasnet0_5": (96, 224),
    "mobilenet_v2": (96, 224),
    "mobilenet_v3_small": (96, 224),
    "regnet_x_400mf": (96, 224),
    "regnet_y_400mf": (96, 224),
    "resnet18": (96, 224),
    "resnext50_32x4d": (96, 224),
    "shufflenet_v2_x0_5": (96, 224),
    "squeezenet1_1": (96, 224),
    "swin_t": (96, 224),
    "swin_v2_t": (96, 224),
    "vgg11": (96, 224),
    "vgg11_bn": (96, 224),
    "vit_b_16": (224, 224),
    "wide_resnet50_2": (96, 224),
}
SEGMENTATION = {
    "fcn_resnet50": 96,
    "deeplabv3_mobilenet_v3_large": 96,
    "lraspp_mobilenet_v3_large": 96,
}
VIDEO = {
    "mc3_18": (8, 56, 56),
    "r3d_18": (8, 56, 56),
    "r2plus1d_18": (8, 56, 56),
    "s3d": (16, 224, 224),
    "mvit_v2_s": (16, 224, 224),
    "swin3d_t": (8, 64, 64),
}
#: Detectors, as backbone and heads; the extra layers of SSD need its nominal image size.
DETECTION = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": 128,
    "maskrcnn_resnet50_fpn": 96,
    "keypointrcnn_resnet50_fpn": 96,
    "retinanet_resnet50_fpn": 96,
    "fcos_resnet50_fpn": 96,
    "ssd300_vgg16": 300,
    "ssdlite320_mobilenet_v3_large": 320,
}


@cache
def entries() -> tuple[Entry, ...]:
    """Return all entries in the order in which they run: blocks, timm, torchvision, structures."""
    return (*_blocks(), *_timm(), *_torchvision(), *_structures())


def _blocks() -> Iterator[Entry]:
    for name, block in BLOCKS.items():
        yield Entry(f"block:{name}", name, block.inputs, block.window)


def _timm() -> Iterator[Entry]:
    for file, of in sorted(smallest.load().items(), key=lambda item: int(item[1]["parameters"])):
        window = (of["window"], of["window"])
        yield Entry(f"timm:{file}", f"timm:{of['model']}", _square(of["channels"], of["side"]), window)


def _torchvision() -> Iterator[Entry]:
    for name, (side, window) in CLASSIFIERS.items():
        yield Entry(f"torchvision:{name}", f"torchvision:{name}", _square(3, side), (window, window))
    for name, side in SEGMENTATION.items():
        yield Entry(f"torchvision:{name}", f"torchvision:{name}", _square(3, side), (side, side))
    for name, shape in VIDEO.items():
        yield Entry(f"torchvision:{name}", f"torchvision:{name}", ((3, *shape),), shape)
    for name, side in DETECTION.items():
        yield Entry(f"torchvision:{name}", f"torchvision:{name}", _square(3, side), (side, side))


def _structures() -> Iterator[Entry]:
    done = {*CLASSIFIERS, *SEGMENTATION, *VIDEO, *DETECTION}
    for name in import_torchvision().models.list_models():
        if name not in done:
            yield Entry(f"structure:{name}", f"torchvision:{name}", structure=True)


def chosen(globs: Sequence[str] | None) -> tuple[Entry, ...]:
    """Return the entries whose key or source matches one of the globs, or all entries."""
    return tuple(
        e for e in entries() if not globs or any(fnmatchcase(n, g) for g in globs for n in (e.key, e.source))
    )


def build(entry: Entry) -> nn.Module:
    """Build the network with random weights, in eval mode; on the meta device if only its structure is used."""
    if entry.group == "block":
        torch.manual_seed(0)
        return randomised(BLOCKS[entry.source].build().eval())
    if entry.structure:
        return _structure(entry.source)
    model = load_source(entry.source)
    assert isinstance(model, nn.Module)
    if entry.source.partition(":")[2] in DETECTION:
        model = TrunkAndHeads(model).eval()
    return randomised(model)


def _structure(source: str) -> nn.Module:
    try:
        with torch.device("meta"):
            model = load_source(source)
    except (
        NotImplementedError
    ):  # RegNet computes its widths with tensors, which have no values on the meta device
        model = load_source(source)
        assert isinstance(model, nn.Module)
        model = model.to("meta")
    assert isinstance(model, nn.Module)
    return model


def is_large(entry: Entry, model: nn.Module) -> bool:
    """Return whether gradients are not compared."""
    return sum(p.numel() for p in model.parameters()) > LARGE or _large_input(entry)


def _large_input(entry: Entry) -> bool:
    return any(math.prod(shape) > LARGE_INPUT for shape in entry.inputs)


def example(entry: Entry) -> tuple[Tensor, ...]:
    """Return standard normal inputs with two samples, so that mixing of samples is detected (one sample if large)."""
    batch = 1 if _large_input(entry) else 2
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch, *shape, generator=generator) for shape in entry.inputs)


@torch.no_grad()
def randomised(model: nn.Module, seed: int = 2) -> nn.Module:
    """Randomise every constant tensor of a model.

    New networks contain zeros and ones (biases, batch statistics, layer scales of 1e-6, zeroed last layers of a
    branch). Entire branches would then contribute nothing, and faults in them would not be detected.
    """
    generator = torch.Generator().manual_seed(seed)
    statistics = [(n, b) for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
    for name, tensor in [*model.named_parameters(), *statistics]:
        if (
            not tensor.is_floating_point()
            or tensor.numel() < 2
            or bool((tensor != tensor.flatten()[0]).any())
        ):
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        constant = float(tensor.flatten()[0])
        if name.endswith("running_var"):
            tensor.copy_(1.0 + 0.5 * torch.tanh(noise))
        elif abs(constant) < 0.01:
            tensor.copy_(0.05 * noise)
        else:
            tensor.copy_(constant * (1.0 + 0.1 * noise))
    return model
