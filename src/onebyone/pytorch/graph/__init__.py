"""`convert(level="graph")`: exported programs, rewritten with as few layout operators as possible.

A front end of the layout planner (`onebyone.layout`): `decoder` reads aten operators as rules, `emitter` and `builder`
write the new graph.
"""

from onebyone.pytorch.graph.conversion import GraphConversion
from onebyone.pytorch.graph.convert import convert_graph
from onebyone.pytorch.graph.counting import copies_at_run_time, layout_operators

__all__ = ["GraphConversion", "convert_graph", "copies_at_run_time", "layout_operators"]
