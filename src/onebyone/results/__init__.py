"""What conversions return, and the protocols through which the verifier reads them. No framework is imported here.

`Conversion` and `Convolutionalized` hold what every front end's results share: the records of what changed, their
tables and their JSON form. A front end subclasses them and adds what needs its framework
(`pytorch/modules/conversion.py`, `pytorch/graph/conversion.py`, `pytorch/lift/dense_file.py`).
"""

from onebyone.results.any_size import ClassMap, Convolutionalized, Output
from onebyone.results.conversion import Conversion
from onebyone.results.layer_pairs import LayerFunctions, UnverifiableError, WindowPair
from onebyone.results.protocols import AnySize, Converted, LayerPair

__all__ = [
    "AnySize",
    "ClassMap",
    "Conversion",
    "Converted",
    "Convolutionalized",
    "LayerFunctions",
    "LayerPair",
    "Output",
    "UnverifiableError",
    "WindowPair",
]
