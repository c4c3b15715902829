"""One output of several is selected by number or name, for every container that a network can return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import onebyone
from onebyone.dense import scan_windows
from onebyone.errors import BadInput
from onebyone.records import Labels

IMAGE = np.random.default_rng(0).normal(size=(10, 11, 3)).astype(np.float32)


class NamedOutputs(NamedTuple):
    logits: Any
    boxes: Any


@dataclass
class DataclassOutputs:
    logits: Any
    boxes: Any


torch.export.register_dataclass(
    DataclassOutputs, serialized_type_name="tests.dense.test_outputs.DataclassOutputs"
)


@cache
def transformers_output_class() -> type:
    """A dataclass as the models of transformers define them."""

    @dataclass
    class Output(pytest.importorskip("transformers.utils").ModelOutput):
        loss: Any = None
        logits: Any = None
        hidden_states: Any = None

    return Output


def model_output(logits: torch.Tensor, boxes: torch.Tensor) -> object:
    """Its first field, the loss, is None, as it is at inference."""
    return transformers_output_class()(logits=logits, hidden_states=boxes)


class Both(nn.Module):
    def __init__(self, packed: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
        super().__init__()
        self.logits, self.boxes, self.packed = nn.Conv2d(3, 2, 8), nn.Conv2d(3, 4, 8), packed

    def forward(self, x: torch.Tensor) -> object:
        return self.packed(self.logits(x).flatten(1), self.boxes(x).flatten(1))


FORMS: dict[str, tuple[Callable[..., object], tuple[str, str]]] = {
    "tuple": (lambda a, b: (a, b), ("0", "1")),
    "list": (lambda a, b: [a, b], ("0", "1")),
    "dictionary": (lambda a, b: {"logits": a, "none": None, "boxes": b}, ("logits", "boxes")),
    "nested": (lambda a, b: {"one": {"p": a}, "more": [b]}, ("one.p", "more.0")),
    "named tuple": (NamedOutputs, ("logits", "boxes")),
    "dataclass": (DataclassOutputs, ("logits", "boxes")),
    "transformers": (model_output, ("logits", "hidden_states")),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_output_is_selected_by_number_and_by_name(form: str, tmp_path: Path) -> None:
    if form == "transformers":
        transformers_output_class()  # registered with pytree when it is defined, as a model's own class is at import
    packed, names = FORMS[form]
    net = Both(packed).eval()
    d = onebyone.convolutionalize(net, window=8, labels=Labels(("a", "b")))
    assert [(o.name, o.channels) for o in d.outputs] == [(names[0], 2), (names[1], 4)]
    windows = torch.from_numpy(IMAGE).permute(2, 0, 1).unfold(1, 8, 1).unfold(2, 8, 1)
    crops = windows.permute(1, 2, 0, 3, 4).reshape(-1, 3, 8, 8)
    if form in ("tuple", "dictionary", "nested"):
        d.save(tmp_path / "d.pt2")
    for number, (name, layer) in enumerate(zip(names, (net.logits, net.boxes), strict=True)):
        with torch.no_grad():
            right = layer(crops).reshape(3, 4, -1).permute(2, 0, 1).numpy()
        for dense in (d, tmp_path / "d.pt2") if (tmp_path / "d.pt2").exists() else (d,):
            for output in (number, str(number), name):
                scores = onebyone.scan(dense, IMAGE, output=output)
                # 192 products each, in float32: 2^-24 · 192 on sums of order 1
                np.testing.assert_allclose(scores.scores, right, atol=2**-16)
                assert scores.classes == (("a", "b") if number == 0 else ("0", "1", "2", "3"))
        crop_by_crop = scan_windows(net, IMAGE, d.geometry, output=name)
        np.testing.assert_allclose(crop_by_crop.scores, right, atol=2**-16)
    listed = "" if names[0] == "0" else f": {', '.join(names)}"
    for output in (2, "none", -1):
        with pytest.raises(BadInput, match=f"output={output}, but the network gives 2 outputs{listed}$"):
            onebyone.scan(d, IMAGE, output=output)
