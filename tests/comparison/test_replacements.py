"""R1 to R3: verdicts for correct conversions, and for wrong ones that were made on purpose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onebyone.comparison import replacements as r
from onebyone.comparison.claim_result import HOLDS, NOT_AS_SAID, NOT_AVAILABLE, WHEN
from onebyone.comparison.layer_calls import record_layer_calls
from onebyone.errors import BadInput, Refused
from onebyone.laws.flatten import flatten_index, to_kernel
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from onebyone.pytorch.modules.conversion import ModuleConversion
from tests.comparison.conftest import network

IMAGE = torch.randn(1, 3, 8, 7, generator=torch.Generator().manual_seed(1))

# R1


def test_every_layer_is_replaced() -> None:
    model = network()
    figures = r.measure_replacement(model, record_layer_calls(model, IMAGE))
    assert r.replacement_verdict(figures).text == HOLDS
    assert figures["layers_probed"] == figures["bitwise_equal"] == figures["weights_shared"] == 2
    assert figures["planted_faults_caught"] == figures["planted_faults"] > 0


def wrong(module: nn.Module) -> ModuleConversion:
    """A conversion whose layers receive their inputs in the wrong order."""
    right = r.to_conv(module)
    for pair in right.pairs:
        layer = pair.converted
        forward = layer.forward
        layer.forward = lambda x, forward=forward: forward(x.roll(1, -1))  # type: ignore[method-assign]
    return right


def test_a_wrong_conversion_is_found_out() -> None:
    model = network()
    figures = r.measure_replacement(model, record_layer_calls(model, IMAGE), convert=wrong)
    assert r.replacement_verdict(figures).text == NOT_AS_SAID
    assert figures["bitwise_equal"] == 0


def test_a_refusal_is_a_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return super().forward(input) + 1

    model = nn.Sequential(nn.Linear(4, 3), Own(3, 2))
    figures = r.measure_replacement(model, record_layer_calls(model, torch.randn(1, 4)))
    assert r.replacement_verdict(figures).text == "holds when the layer is an ordinary one"
    monkeypatch.setattr(r, "MAX_WEIGHTS", 8)
    sampled = r.measure_replacement(model, record_layer_calls(model, torch.randn(1, 4)))
    assert [p["outputs_probed"] for p in sampled["probes"]] == [2]


def test_a_network_without_such_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    verdict = r.replacement_verdict(r.measure_replacement(model, record_layer_calls(model, IMAGE)))
    assert verdict.text == HOLDS
    assert "its 1×1 convolutions were probed as linear layers" in verdict.because
    assert r.replacement_verdict(r.measure_replacement(model, [])).text == NOT_AVAILABLE


# R2


@pytest.mark.parametrize("block", [(3, 4, 5), (7, 1, 1)])
def test_two_layers_become_kernels(block: tuple[int, int, int]) -> None:
    figures = r.measure_chain(block, 6, 4)
    assert r.chain_verdict(figures).text == HOLDS
    assert figures["convolution_weights"] == [[6, *block], [4, 6, 1, 1]]


def test_another_flatten_order_is_found_out() -> None:
    def channels_last(weight: Tensor, block: tuple[int, int, int]) -> Tensor:
        return torch.from_numpy(np.array(to_kernel(weight.numpy(), flatten_index(block, (1, 2, 0)), block)))

    figures = r.measure_chain((3, 4, 5), 6, 4, channels_last)
    assert r.chain_verdict(figures).text == NOT_AS_SAID
    assert figures["crops_equal"] == 0


def test_kernels_that_do_not_slide_are_found_out() -> None:
    right = r.measure_chain((3, 4, 5), 6, 4)
    assert r.chain_verdict(right | {"crops_equal": 5}).text == NOT_AS_SAID
    assert r.chain_verdict(right | {"one_pixel_out": False}).text == NOT_AS_SAID


def test_large_layers_are_sampled() -> None:
    figures = r.measure_chain((512, 7, 7), 4096, 4096)
    assert figures["neurons_run"][0] == r.MAX_WEIGHTS // 25088
    assert figures["equal_bits"]
    assert figures["largest_integer"] >= 1


def test_layers_in_a_row() -> None:
    found = r.successive(record_layer_calls(network(), IMAGE))
    assert found is not None
    assert [s.path for s in found] == ["5", "7"]
    assert r.successive(record_layer_calls(nn.Linear(3, 2), torch.randn(1, 3))) is None


# R3


def test_the_classifier_takes_larger_images() -> None:
    model = network()
    figures = r.measure_classification(model, IMAGE, r.lifted(model, IMAGE))
    verdict = r.classification_verdict(figures)
    assert verdict.text == HOLDS
    assert figures["places"] == [2, 3]
    assert figures["original_on_larger"].startswith("raises")


def test_a_classifier_with_named_outputs() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"scores": self.body(x)}

    model = Named().eval()
    dense = r.lifted(model, IMAGE)
    figures = r.measure_classification(model, IMAGE, dense)
    assert r.classification_verdict(figures).text == HOLDS
    assert figures["places"] == [2, 3]

    class Off(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"scores": dense.model(x)["scores"] * 1.01}

    figures = r.measure_classification(model, IMAGE, replace(dense, model=Off()))
    assert r.classification_verdict(figures).text == NOT_AS_SAID


def test_a_classifier_with_another_weight_is_found_out() -> None:
    model = network()

    def off(*args: Any, **options: Any) -> ConvolutionalizedModule:
        other = network()
        with torch.no_grad():
            other[7].weight[0, 0] += 0.01  # type: ignore[index, operator]
        return convolutionalize(other, *args[1:], **options)

    figures = r.measure_classification(model, IMAGE, r.lifted(model, IMAGE, off))
    assert r.classification_verdict(figures).text == NOT_AS_SAID


class Global(nn.Module):
    """Every position depends on every other."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head((torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens).mean(1))


def test_what_is_refused_is_a_condition() -> None:
    model, image = Global().eval(), torch.randn(1, 3, 8, 8)
    dense: object
    try:
        dense = r.lifted(model, image)
    except Refused as refusal:
        dense = refusal
    assert isinstance(dense, Refused)
    figures = r.measure_classification(model, image, dense)
    assert figures["equivalent"]
    assert (
        r.classification_verdict(figures).text
        == "holds when the image has the size the network was built for"
    )


def test_a_dense_form_of_one_place_is_a_condition() -> None:
    model = network()
    dense = r.lifted(model, IMAGE)

    class OneAnswer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = dense.model

        def forward(self, x: Tensor) -> Tensor:
            return self.dense(x)[:, :, :1, :1]

    figures = r.measure_classification(model, IMAGE, replace(dense, model=OneAnswer()))
    assert r.classification_verdict(figures).text.startswith(WHEN)


def test_what_is_no_image_has_no_windows() -> None:
    assert r.window_of((IMAGE,)) is IMAGE
    for example in (torch.zeros(2, 5), {"x": IMAGE}, (IMAGE, IMAGE)):
        with pytest.raises(BadInput, match="windows require images"):
            r.window_of(example)
