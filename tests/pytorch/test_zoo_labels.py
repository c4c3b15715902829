"""Class names and input sizes that torchvision and timm know of their networks."""

from __future__ import annotations

import pytest
from torch import nn

from onebyone.pytorch.files.preprocessing import zoo_labels, zoo_window
from onebyone.pytorch.files.sources import load_source

pytestmark = pytest.mark.zoo


def test_class_names_of_torchvision_where_the_last_layer_has_as_many_outputs() -> None:
    network = load_source("torchvision:squeezenet1_1")
    labels = zoo_labels("torchvision:squeezenet1_1", network)
    assert labels is not None
    # ImageNet's own order, as the synset list of the challenge gives it
    assert (labels.classes[0], labels.classes[207], labels.classes[999]) == (
        "tench",
        "golden retriever",
        "toilet tissue",
    )
    assert isinstance(network, nn.Module)
    network.classifier[1] = nn.Conv2d(512, 7, 1)
    other = zoo_labels("torchvision:squeezenet1_1", network)
    assert other is not None
    assert other.classes == ()


def test_class_names_of_timm_are_distinct() -> None:
    labels = zoo_labels("timm:test_resnet", load_source("timm:test_resnet"))
    assert labels is not None
    assert len(labels.classes) == len(set(labels.classes)) == 1000
    assert [name for name in labels.classes if name.startswith("crane (")] == ["crane (134)", "crane (517)"]


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("torchvision:resnet18", (224, 224)),
        ("torchvision:inception_v3", (299, 299)),
        ("timm:test_resnet", (160, 160)),
    ],
)
def test_the_input_size(name: str, window: tuple[int, int]) -> None:
    """The sizes that the zoos' own pages state."""
    network = nn.Identity() if name.startswith("torchvision") else load_source(name)
    assert zoo_window(name, network) == window


def test_sources_of_other_kinds_have_neither() -> None:
    assert zoo_labels("torch.nn:Identity", nn.Identity()) is None
    assert zoo_window("torch.nn:Identity", nn.Identity()) is None
