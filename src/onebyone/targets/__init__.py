"""Accelerators as data: what their compilers refuse, with the source of every number, and the check of a network.

Nothing here knows a framework: a front end describes its nodes as `NodeDescription`s.
"""

from onebyone.targets.check import Offender, TargetCheck, padding_notes, violations, violations_of
from onebyone.targets.description import LayerNumbers, NodeDescription, TensorDescription
from onebyone.targets.profile import TargetProfile, find_profile, profile_names, read_profile

__all__ = [
    "LayerNumbers",
    "NodeDescription",
    "Offender",
    "TargetCheck",
    "TargetProfile",
    "TensorDescription",
    "find_profile",
    "padding_notes",
    "profile_names",
    "read_profile",
    "violations",
    "violations_of",
]
