"""Decoders: which neutral operator (`onebyone.lifting.operators`) each aten operator is, by kind.

A decoder is a function of the graph lifter and the node. It parses the operator's arguments and gives a neutral
operator, or the node's value where PyTorch alone has such an operator. Each file lists its decoders in `DECODERS`, by
operator; `onebyone.pytorch.lift.rules` puts them together.
"""
