"""Train the explainer's network and compose its page of digits: `python -m tools.explainer.train` writes data.js.

It is the demo's network with fewer channels, trained in the same way on the same data, so that a browser runs it in
plain JavaScript while a window is dragged. The weights are rounded to float16, in which the file stores them.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from onebyone.comparison.digits import load_digits
from onebyone.demo import data, network, train
from onebyone.demo.digit_page import DigitPage, compose
from onebyone.demo.pipeline import HELD_OUT_DIGITS, LABELS
from onebyone.dense import scan
from onebyone.pytorch.lift.convolutionalize import convolutionalize

FILE = Path(__file__).parents[2] / "docs" / "explainer" / "data.js"
HIDDEN = 32
CROPS = 8000
PAGE_HEIGHT = 280
"""Height of the page of digits in pixels: it is drawn without reduction on a telephone that is turned."""
DIGITS_ON_PAGE = 20


def build(seed: int) -> nn.Sequential:
    """An untrained network from (N, 1, 40, 40) to (N, 11), without padding; the flattened map is 16×4×4.

    >>> build(0).eval()(torch.zeros(2, 1, 40, 40)).shape
    torch.Size([2, 11])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *_block(1, 8, 6, stride=2),  # 40 -> 18
            *_block(8, 16, 3),  # 18 -> 16
            nn.MaxPool2d(2),  # 16 -> 8
            *_block(16, 16, 3),  # 8 -> 6
            *_block(16, 16, 3),  # 6 -> 4
            nn.Flatten(),
            nn.Linear(16 * 4 * 4, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, len(data.CLASSES)),
        )


def _block(channels: int, out_channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out_channels, kernel, stride=stride)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


def trained(seed: int = 0) -> tuple[nn.Sequential, dict[str, float], DigitPage]:
    """The trained network, without batch norms and with float16 values; its accuracies; and the page of digits."""
    split = load_digits(seed, HELD_OUT_DIGITS, "the explainer")
    photographs = [data.load_photograph(name) for name in data.TRAIN_PHOTOGRAPHS]
    batches = train.Batches(split.train, train.Crops(train.background_crops(photographs, CROPS, seed)), seed)
    classifier = build(seed)
    searcher = convolutionalize(classifier.eval(), data.WINDOW, labels=LABELS)

    def search(turn: int) -> torch.Tensor:
        stride = searcher.geometry.stride[0]
        return train.hard_crops(
            photographs, lambda image: scan(searcher, image).probabilities(), stride, seed + turn
        )

    train.train(classifier, batches, search, _report)
    folded = network.folded(classifier)
    for parameter in folded.parameters():
        parameter.copy_(parameter.half().float())
    tests = [data.load_photograph(name) for name in data.TEST_PHOTOGRAPHS]
    crops = train.background_crops(tests, len(split.test), seed)
    plain = torch.full((1, 1, data.WINDOW, data.WINDOW), 0.9)
    accuracy = {
        "plain": train.accuracy(folded, split.test, plain),
        "photographs": train.accuracy(folded, split.test, crops),
    }
    name = data.TEST_PHOTOGRAPHS[0]
    photograph = data.load_photograph(name)
    photograph = data.resized(photograph, PAGE_HEIGHT / min(photograph.shape))
    return folded, accuracy, compose(photograph, name, split.test, DIGITS_ON_PAGE, seed)


def _report(done: int, steps: int) -> None:
    if done % 100 == 0:
        sys.stderr.write(f"{done} of {steps} steps\n")


def described(layer: nn.Module) -> dict[str, Any]:
    """A layer as the page reads it; weights and biases as float16 in base64."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        assert layer.bias is not None
        stored = {
            "shape": list(layer.weight.shape),
            "weight": encoded(layer.weight.detach().numpy().astype("<f2")),
            "bias": encoded(layer.bias.detach().numpy().astype("<f2")),
        }
        if isinstance(layer, nn.Conv2d):
            return {"kind": "convolution", "stride": layer.stride[0], **stored}
        return {"kind": "linear", **stored}
    if isinstance(layer, nn.MaxPool2d):
        return {"kind": "maxpool", "size": layer.kernel_size}
    return {"kind": "flatten" if isinstance(layer, nn.Flatten) else "relu"}


def encoded(values: np.ndarray[Any, Any]) -> str:
    """An array in base64, row by row.

    >>> encoded(np.array([1, -2], "<f2"))
    'ADwAwA=='
    """
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def main() -> int:
    """Train, and write the network and the page."""
    classifier, accuracy, page = trained()
    content = {
        "window": data.WINDOW,
        "classes": list(data.CLASSES),
        "accuracy": accuracy,
        "layers": [described(layer) for layer in classifier],
        "page": {
            "photograph": page.photograph,
            "height": page.image.shape[0],
            "width": page.image.shape[1],
            "digits": [
                [int(box[0]), int(box[1]), int(label)]
                for box, label in zip(page.boxes, page.labels, strict=True)
            ],
            "pixels": encoded(page.image),
        },
    }
    FILE.write_text(f"window.EXPLAINER = {json.dumps(content, indent=0)};\n", "utf-8")
    sys.stdout.write(f"{FILE.name}: {FILE.stat().st_size} bytes, accuracy {accuracy}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
