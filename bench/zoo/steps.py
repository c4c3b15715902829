"""The steps that are run on one network of the zoo, and their outcomes.

The outcome of a step is converted, refused (with the reason), not equivalent (a verification failed), or crashed (any
other error). A crash ends only its own step.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import onebyone
from bench.zoo import memory
from bench.zoo.dense import dense_step
from bench.zoo.eligible import CONV, LINEAR, eligible_layers, exceptions
from bench.zoo.models import Entry, build, example, is_large
from bench.zoo.outcome import NotEquivalentError, summary
from onebyone.errors import OnebyoneError, Refused
from onebyone.pytorch.graph.convert import convert_graph
from onebyone.pytorch.modules.convert import convert_module

CONVERTED, REFUSED, NOT_EQUIVALENT, CRASHED = "converted", "refused", "not equivalent", "crashed"


@dataclass
class Step:
    """The record of one step: wall-clock and processor seconds, and the increase of resident memory at its peak."""

    name: str
    outcome: str
    reason: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    figures: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class StepRunner:
    """Runs steps, each for itself. `report` is called with the record of each step as soon as it ends."""

    def __init__(self, report: Callable[[Step], None]) -> None:
        self.report = report

    def step(self, name: str, act: Callable[[dict[str, Any]], None]) -> None:
        """Run one step, which adds its figures as it proceeds; an exception determines its outcome."""
        figures: dict[str, Any] = {}
        gc.collect()
        before, start, cpu = memory.forget_peak(), time.perf_counter(), time.process_time()
        outcome, reason = CONVERTED, ""
        try:
            act(figures)
            if failed := figures.pop("failed", None):
                raise NotEquivalentError("; ".join(failed))
        except Refused as error:
            outcome, reason = REFUSED, "; ".join(str(r) for r in error.refusals)
            figures["refusals"] = [r.to_dict() for r in error.refusals]
        except NotEquivalentError as error:
            outcome, reason = NOT_EQUIVALENT, str(error)
        except OnebyoneError as error:
            outcome, reason = REFUSED, f"{type(error).__name__}: {error}"
        except Exception as error:  # the purpose of the zoo is to find these
            outcome, reason = CRASHED, _last_line(error)
        seconds = round(time.perf_counter() - start, 3)
        processor = round(time.process_time() - cpu, 3)
        self.report(Step(name, outcome, reason, seconds, processor, max(0, memory.peak() - before), figures))


class Run(StepRunner):
    """The steps of one network."""

    def __init__(self, entry: Entry, report: Callable[[Step], None]) -> None:
        super().__init__(report)
        self.entry = entry

    def all(self) -> None:
        """Run every step that applies to this network."""
        self.model: nn.Module | None = None
        self.step("build", self._build)
        if self.model is None:
            return
        if self.entry.structure:
            self.step("structure", self._structure)
            return
        self.x = example(self.entry)
        self.step("layers", self._layers)
        self.step("graph", self._graph)
        if self.entry.window is not None:
            self.step("dense", self._dense)

    def _build(self, figures: dict[str, Any]) -> None:
        self.model = build(self.entry)
        figures["parameters"] = sum(p.numel() for p in self.model.parameters())
        figures["eligible"] = _count(self.model)

    def _layers(self, figures: dict[str, Any]) -> None:
        """Convert to 1×1 convolutions and back, and verify both; layers converted back must give identical outputs."""
        assert self.model is not None
        options = {"gradients": not is_large(self.entry, self.model)}
        to_conv = timed(figures, "to_conv", lambda: convert_module(self.model, to="conv"))
        figures |= _converted(self.model, LINEAR, to_conv)
        check(figures, "to_conv", onebyone.verify(self.model, to_conv, self.x, **options))
        back = timed(figures, "to_linear", lambda: convert_module(to_conv.model, to="linear"))
        figures |= _converted(self.model, CONV, back)
        check(figures, "to_linear", onebyone.verify(to_conv.model, back, self.x, **options))
        converted = {c.path for c in to_conv.changes}
        if converted:
            restored = convert_module(
                to_conv.model, to="linear", only=lambda path, _module: path in converted
            )
            figures["round_trip"] = _same_numbers(self.model, restored.model, self.x)

    def _graph(self, figures: dict[str, Any]) -> None:
        """Convert the exported program in both directions, and count its layout operators."""
        assert self.model is not None
        program = timed(figures, "export", lambda: _exported(self.model, self.x))
        for to in ("conv", "linear"):
            result = timed(figures, f"to_{to}", lambda to=to: convert_graph(program, to=to))
            figures[f"to_{to}"] |= {
                "converted": len(result.changes),
                "refused": [r.to_dict() for r in result.refused],
                "layout_before": result.layout_before.total(),
                "layout_after": result.layout_after.total(),
            }
            check(figures, f"to_{to}", onebyone.verify(program, result, self.x, gradients=False))

    def _dense(self, figures: dict[str, Any]) -> None:
        assert self.model is not None
        assert self.entry.window is not None
        dense_step(self.model, self.entry.window, self.entry.inputs[0][0], figures)

    def _structure(self, figures: dict[str, Any]) -> None:
        """Convert in both directions on the meta device, where tensors have no values."""
        assert self.model is not None
        to_conv = timed(figures, "to_conv", lambda: convert_module(self.model, to="conv"))
        figures |= _converted(self.model, LINEAR, to_conv)
        to_linear = timed(figures, "to_linear", lambda: convert_module(self.model, to="linear"))
        figures |= _converted(self.model, CONV, to_linear)


def timed(figures: dict[str, Any], name: str, act: Callable[[], Any]) -> Any:
    """Run `act`, and record its seconds under `name`."""
    start = time.perf_counter()
    result = act()
    figures.setdefault(name, {})["seconds"] = round(time.perf_counter() - start, 4)
    return result


def check(figures: dict[str, Any], name: str, verification: Any) -> None:
    """Record the figures of a verification; a failure makes the outcome of the step "not equivalent" when it ends."""
    figures[name]["verification"] = summary(verification)
    if not verification.equivalent:
        figures.setdefault("failed", []).append(f"{name}: " + "; ".join(verification.problems[:3]))


def _count(model: nn.Module) -> dict[str, int]:
    layers = eligible_layers(model)
    return {form: sum(e.form == form for e in layers) for form in (LINEAR, CONV)}


def _converted(model: nn.Module, form: str, conversion: Any) -> dict[str, Any]:
    """Return how many of the eligible layers of one form were converted, and every exception."""
    layers = [e for e in eligible_layers(model) if e.form == form]
    missed = exceptions(layers, conversion.changes, conversion.refused)
    return {
        f"{form}_converted": len(layers) - len(missed),
        f"{form}_missed": [asdict(m) for m in missed],
        f"{form}_refused": [r.to_dict() for r in conversion.refused],
        f"{form}_copied_bytes": conversion.copied_bytes,
    }


@torch.no_grad()
def _same_numbers(model: nn.Module, restored: nn.Module, x: tuple[torch.Tensor, ...]) -> str:
    """Raise NotEquivalentError unless the outputs with layers converted back equal the original's bit for bit."""
    outputs = []
    for network in (model, restored):
        torch.manual_seed(0)
        outputs.append(torch.utils._pytree.tree_leaves(network(*x)))
    if any(isinstance(a, torch.Tensor) and not torch.equal(a, b) for a, b in zip(*outputs, strict=True)):
        raise NotEquivalentError(
            "round trip: layers that were converted back give other outputs than the original"
        )
    return "bit for bit"


def _exported(model: nn.Module | None, x: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    from onebyone.pytorch.graph.convert import exported

    assert model is not None
    return exported(model, x)


def _last_line(error: BaseException) -> str:
    """Return the type and first line of an error, and the source location where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "onebyone" in f.filename or "bench" in f.filename] or frames
    message = (str(error).strip().splitlines() or [""])[0][:300]
    last = ours[-1]
    return f"{type(error).__name__}: {message} ({Path(last.filename).name}:{last.lineno} {last.name})"
