"""The modules that are loaded before the processes are forked."""

import warnings

from bench.onnx_zoo import steps  # noqa: F401 - the steps import what they use
from onebyone.onnx import convert  # noqa: F401
from onebyone.verification import onnx_models  # noqa: F401

warnings.simplefilter("ignore")
