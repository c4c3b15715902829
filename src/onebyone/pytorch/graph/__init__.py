"""`convert(level="graph")`: whole exported programs, layouts propagated."""

from onebyone.pytorch.graph.conversion import GraphConversion
from onebyone.pytorch.graph.convert import convert_graph
from onebyone.pytorch.graph.counting import copies_at_run_time, layout_operators

__all__ = ["GraphConversion", "convert_graph", "copies_at_run_time", "layout_operators"]
