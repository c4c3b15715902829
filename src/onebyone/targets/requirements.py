"""Requirements that are not limits on a number: operators, forms, operands, attributes, fixed shapes and types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from onebyone.targets.constraint import Constraint, Finding, Scalar
from onebyone.targets.description import INPUT, NodeDescription, TensorDescription


@dataclass(frozen=True, kw_only=True)
class MissingOperator(Constraint):
    """Operators that the target does not have: those that `operators` lists."""

    kind: ClassVar[str] = "missing-operator"

    def check(self, operation: NodeDescription) -> Finding | None:
        return Finding(operation.operator, operation.shown, "not supported")

    def describe(self) -> str:
        return "not supported"


@dataclass(frozen=True, kw_only=True)
class FormRequirement(Constraint):
    """Products with a constant weight have to be convolutions, or 1×1 convolutions have to be products."""

    kind: ClassVar[str] = "form"

    form: Literal["conv", "linear"]

    def check(self, operation: NodeDescription) -> Finding | None:
        layer = operation.layer
        if layer is None:
            return None
        if self.form == "conv" and layer.form == "linear":
            return Finding(operation.operator, operation.shown, "Conv")
        if self.form == "linear" and layer.form == "conv" and layer.is_linear:
            return Finding(operation.operator, operation.shown, "MatMul or Gemm")
        return None

    def describe(self) -> str:
        if self.form == "conv":
            return "products with a constant weight are convolutions"
        return "convolutions that are linear layers are matrix products"


@dataclass(frozen=True, kw_only=True)
class ConstantOperand(Constraint):
    """Which operand of a MatMul may be the constant one, and whether it must be one matrix (leading axes of size 1)."""

    kind: ClassVar[str] = "constant-operand"

    side: Literal["first", "second", "either"] = "either"
    one_matrix: bool = False

    def check(self, operation: NodeDescription) -> Finding | None:
        pair = operation.inputs[:2]
        constant = [t is not None and t.is_constant for t in pair]
        if len(pair) < 2 or sum(constant) != 1:
            return None
        found = "first" if constant[0] else "second"
        if self.side not in ("either", found):
            return Finding("constant operand", found, self.side)
        sizes = (pair[constant.index(True)] or pair[0]).sizes  # type: ignore[union-attr]
        if self.one_matrix and sizes is not None and any(size != 1 for size in sizes[:-2]):
            return Finding("constant operand", "×".join(map(str, sizes)), "W×V or 1×1×W×V")
        return None

    def describe(self) -> str:
        side = "" if self.side == "either" else f"a constant operand is the {self.side} one"
        return ", ".join(filter(None, [side, "a constant operand is one matrix" if self.one_matrix else ""]))


@dataclass(frozen=True, kw_only=True)
class ExplicitAttributes(Constraint):
    """Attributes that must be written out. `auto_pad` must be NOTSET where "pads" is among them."""

    kind: ClassVar[str] = "explicit-attributes"

    attributes: tuple[str, ...]

    def check(self, operation: NodeDescription) -> Finding | None:
        if "pads" in self.attributes:
            auto = operation.attributes.get("auto_pad", "NOTSET")
            if auto != "NOTSET":
                return Finding("auto_pad", str(auto), "NOTSET, with pads")
        missing = [name for name in self.attributes if name not in operation.attributes]
        return Finding(", ".join(missing), "left out", "written out") if missing else None

    def describe(self) -> str:
        return f"{', '.join(self.attributes)} written out"


@dataclass(frozen=True, kw_only=True)
class AttributeValues(Constraint):
    """The values that an attribute may have; `default` is its value where it is left out."""

    kind: ClassVar[str] = "attribute-values"

    attribute: str
    allowed: tuple[Scalar, ...]
    default: Scalar

    @property
    def title(self) -> str:
        return self.attribute

    def check(self, operation: NodeDescription) -> Finding | None:
        value = operation.attributes.get(self.attribute, self.default)
        return None if value in self.allowed else Finding(self.attribute, value, self._allowed)

    def describe(self) -> str:
        return f"{self.attribute} {self._allowed}"

    @property
    def _allowed(self) -> Scalar:
        return self.allowed[0] if len(self.allowed) == 1 else " or ".join(map(str, self.allowed))


@dataclass(frozen=True, kw_only=True)
class StaticShapes(Constraint):
    """Every size is known. Reported where an unknown size arises: at an input, or at the first node that makes one."""

    kind: ClassVar[str] = "static-shapes"

    def check(self, operation: NodeDescription) -> Finding | None:
        read = [t for t in operation.inputs if t is not None and not t.is_constant]
        if operation.operator != INPUT and any(_is_dynamic(t) for t in read):
            return None
        for tensor in operation.outputs:
            if _is_dynamic(tensor):
                shape = "unknown" if tensor.sizes is None else "×".join(str(s or "?") for s in tensor.sizes)
                return Finding(tensor.name, shape, "fixed sizes")
        return None

    def describe(self) -> str:
        return "every size is fixed"


@dataclass(frozen=True, kw_only=True)
class ForbiddenElementTypes(Constraint):
    """Element types that no tensor may have."""

    kind: ClassVar[str] = "element-type"

    forbidden: tuple[str, ...]

    def check(self, operation: NodeDescription) -> Finding | None:
        for tensor in operation.activations:
            if tensor.element_type in self.forbidden:
                return Finding(tensor.name, tensor.element_type, "another type")
        return None

    def describe(self) -> str:
        return f"no tensor of {', '.join(self.forbidden)}"


@dataclass(frozen=True, kw_only=True)
class BiasVector(Constraint):
    """The addend of a Gemm is a vector of one number per output: shape (M,) or (1, M)."""

    kind: ClassVar[str] = "bias-vector"

    def check(self, operation: NodeDescription) -> Finding | None:
        bias = operation.inputs[2] if len(operation.inputs) > 2 else None
        layer = operation.layer
        if bias is None or bias.sizes is None or layer is None or layer.output_channels is None:
            return None
        allowed = ((layer.output_channels,), (1, layer.output_channels))
        if bias.sizes in allowed:
            return None
        found = "×".join(map(str, bias.sizes)) or "a scalar"
        return Finding("bias", found, f"{layer.output_channels} or 1×{layer.output_channels}")

    def describe(self) -> str:
        return "bias of shape (outputs,) or (1, outputs)"


def _is_dynamic(tensor: TensorDescription) -> bool:
    return tensor.sizes is None or None in tensor.sizes
