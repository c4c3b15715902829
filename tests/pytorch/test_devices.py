"""An any-size network is whole on the device of the network it was made from.

The meta device stands for a GPU: it has no numbers, but its tensors say where they are.
"""

from __future__ import annotations

import pytest
import torch
from torch import fx

import onebyone
from onebyone.errors import BadInput, Refused
from onebyone.pytorch.lift import graph_lifter
from onebyone.pytorch.lift.constants import on_processor
from onebyone.pytorch.lift.emitter import Recorder
from tests.pytorch.exact_networks import EXACT

META = torch.device("meta")
MAKE_CONSTANTS_ON_THE_PROCESSOR = {
    *("ones added", "channels of a number", "channels by index_select", "channels by take_along_dim"),
    *("product on the left", "channels by a list"),
}
"""These networks run on the processor alone; the last is refused on the meta device, where a list has no numbers."""


@pytest.mark.parametrize("name", EXACT)
def test_indices_are_where_the_weights_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, window, channels = EXACT[name]
    monkeypatch.setattr(graph_lifter, "device_of_indices", lambda traced: META)
    model = build().eval().to(META)
    if name in MAKE_CONSTANTS_ON_THE_PROCESSOR:
        with pytest.raises((BadInput, Refused)):
            onebyone.convolutionalize(model, window=window, channels=channels)
        return
    d = onebyone.convolutionalize(model, window=window, channels=channels)
    tensors = dict([*d.model.named_parameters(), *d.model.named_buffers()])
    elsewhere = {name for name, t in tensors.items() if t.device != META and t.ndim}
    assert not elsewhere  # numbers without axes may be on the processor: every device reads them


def test_a_network_without_numbers_keeps_its_indices() -> None:
    """They could not be computed again after `to_empty` and `load_state_dict`."""
    build, window, channels = EXACT["flipped before the flatten"]
    d = onebyone.convolutionalize(build().eval().to(META), window=window, channels=channels)
    indices = [b for name, b in d.model.named_buffers() if "_index_" in name]
    assert indices
    assert all(b.device.type == "cpu" for b in indices)


def test_indices_are_moved_to_the_device() -> None:
    recorder = Recorder(fx.Graph(), META)
    recorder.constant([2, 0, 1])  # type: ignore[arg-type]
    assert [b.device for b in recorder.buffers.values()] == [META]


def test_known_numbers_are_on_the_processor() -> None:
    assert on_processor(torch.ones(2)).device.type == "cpu"
    assert on_processor(torch.ones(2, device="meta")).device == META
