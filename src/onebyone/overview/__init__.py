"""What a network consists of, what converts and what does not, and what it costs: the result of `info`."""

from onebyone.overview.onnx_model import overview_of_onnx
from onebyone.overview.pytorch_network import overview_of_network
from onebyone.overview.result import AnySizeSummary, LayerSummary, NetworkOverview

__all__ = ["AnySizeSummary", "LayerSummary", "NetworkOverview", "overview_of_network", "overview_of_onnx"]
