"""What is known of an original ONNX model on an example, for the verification of one conversion of it or of several.

Conversions for several targets often share layers, and always the original: its outputs, what its layers read, and the
results of layers of which both forms are the same as in a conversion that was verified before.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.errors import BadInput, MissingExtra
from onebyone.onnx.conversion import RewrittenLayer
from onebyone.onnx.evaluators import NotRunnable, proto_of, run_onnx_runtime
from onebyone.onnx.layer_models import LayerModel, Scope, scopes_of
from onebyone.verification.onnx_outputs import OriginalOutputs, original_outputs
from onebyone.verification.onnx_probes import Entries, digest
from onebyone.verification.result import LayerCheck

Array = np.ndarray[Any, Any]


class KnownOriginal:
    """An original model, prepared (`convert.prepared`), on an example; it runs once, when it is first asked for.

    Attributes:
        original, feeds: the model and an array for each input; without them nothing is run.
        probes: the integer probe of each structure of a layer (`onnx_probes.probe_key`), and what it could not see.
        layers: where `keeps_layers`, the results of verified layers by `layer_key`, with what is to be listed of them.
        unverified: what could not be run, and why.

    Raises:
        BadInput: the example has not the model's inputs.
    """

    def __init__(
        self, original: ir.Model, feeds: Mapping[str, Array] | None, *, keeps_layers: bool = False
    ) -> None:
        self.original, self.feeds, self.keeps_layers = original, feeds, keeps_layers
        self.probes: dict[Hashable, tuple[LayerCheck, str]] = {}
        self.layers: dict[Hashable, tuple[LayerCheck, tuple[str, ...]]] = {}
        self.unverified: tuple[str, ...] = ()
        self._recorded: dict[str, Array] = {}
        self._plain: list[Array] | None = None
        self._inputs = {str(value.name) for value in original.graph.inputs}
        if feeds is not None:
            if set(feeds) != self._inputs:
                raise BadInput(f"x: has the inputs {sorted(feeds)}; the model takes {sorted(self._inputs)}")
            self._recorded |= {name: np.asarray(array) for name, array in feeds.items()}

    @cached_property
    def scopes(self) -> Mapping[str, Scope]:
        """The scope of each graph and function (`layer_models.scopes_of`)."""
        return scopes_of(self.original)

    @cached_property
    def outputs(self) -> OriginalOutputs:
        """What the original computes on the example, which is given."""
        assert self.feeds is not None
        return original_outputs(self.original, self.feeds, self._plain)

    def recorded(self, names: Collection[str]) -> Mapping[str, Array]:
        """The values of the main graph of these names on the example, and its inputs; nothing where it is not run.

        The original runs as it is stored, and optimised only where ONNX Runtime cannot run it so.

        Raises:
            BadInput: the model fails on the example.
        """
        if self.feeds is None:
            return {}
        computed = {str(value.name) for node in self.original.graph for value in node.outputs}
        missing = (set(names) & computed) - set(self._recorded)
        if missing or self._plain is None:
            try:
                self._run(self.feeds, missing)
            except MissingExtra as error:
                self.unverified = (f"the whole model, and the layers on their own inputs: {error}",)
                return {}
            except NotRunnable as error:
                raise BadInput(f"the model fails on x: {error}") from error
        return self._recorded

    def _run(self, feeds: Mapping[str, Array], missing: Collection[str]) -> None:
        """Run the original once for its outputs and for the values that are missing."""
        watched = self.original.clone()
        outputs = [str(value.name) for value in watched.graph.outputs]
        inner = [
            value for node in watched.graph for value in node.outputs
            if str(value.name) in missing and str(value.name) not in outputs
        ]  # fmt: skip
        watched.graph.outputs.extend(inner)
        names = list(dict.fromkeys([*outputs, *(str(value.name) for value in inner)]))
        proto = proto_of(watched)
        try:
            arrays = dict(
                zip(names, run_onnx_runtime(proto, feeds, optimised=False, outputs=names), strict=True)
            )
            self._plain = [arrays[name] for name in outputs]
        except NotRunnable:
            arrays = dict(zip(names, run_onnx_runtime(proto, feeds, outputs=names), strict=True))
        self._recorded |= {name: arrays[name] for name in missing}


def layer_key(after: LayerModel, entries: Entries, layer: RewrittenLayer) -> Hashable:
    """Equal for layers of two conversions of one original whose checks are the same, up to the random numbers.

    The record says where the original form is; of the converted form, everything counts, its constants included.
    """

    def constant(name: str) -> Hashable:
        return entries.get(name, (name, ())), digest(after.constants[name])

    return layer, after.inputs, after.structure(after.inputs, constant)
