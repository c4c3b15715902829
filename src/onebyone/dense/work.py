"""What every process of a scan needs to compute any tile: the network, the plan and the settings, as one value."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from onebyone.dense.fingerprint import of_network
from onebyone.dense.plan import ScanPlan
from onebyone.dense.runner import PLAIN_PYTORCH, TileRunner, TorchSettings, open_runner
from onebyone.dense.tuned_runner import TunedTile, tuned_runner
from onebyone.dense.window_runner import WindowRunner
from onebyone.errors import BadInput
from onebyone.memory import reused_memory
from onebyone.records import Labels
from onebyone.tuning.onnx_engines import ONNX_ENGINES


@dataclass(frozen=True)
class OnnxBytes:
    """An ONNX model as its file's content."""

    content: bytes

    def restored(self) -> Any:
        """The model of onnx-ir."""
        import onnx

        from onebyone.onnx.model_file import open_model

        return open_model(onnx.load_model_from_string(self.content))


def portable(model: Any) -> Any:
    """A network in a form that can be pickled: a graph without what its exporter attached, an ONNX model as bytes.

    Raises BadInput for an ONNX model of more than 2 GB.
    """
    if isinstance(model, fx.GraphModule):
        with warnings.catch_warnings():  # from torch, of its own deprecated tree specs
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
            graph = copy.deepcopy(model.graph)
        plain = fx.GraphModule(model, graph)
        for module in plain.modules():
            module.training = False
        return plain
    if isinstance(model, nn.Module):
        return model
    from onebyone.onnx.evaluators import NotRunnable, proto_of

    try:
        return OnnxBytes(proto_of(model).SerializeToString())
    except NotRunnable as error:
        raise BadInput(f"workers: the ONNX model cannot be sent to other processes: {error}") from error


@dataclass(frozen=True)
class ScanWork:
    """A network and how it is applied to tiles; it can be pickled where the network can (see `portable`).

    `model` is an `nn.Module`, or an ONNX model of onnx-ir. `windows` is None for a dense network; for a classifier of
    one window it is the number of windows in a batch. `tuned` is the form in which tiles run; None for the network as
    it is.
    """

    model: Any
    plan: ScanPlan
    labels: Labels
    settings: TorchSettings
    batch: int
    windows: int | None = None
    tuned: TunedTile | None = None

    @contextmanager
    def runner(self) -> Iterator[TileRunner]:
        """The network, ready to run on batches of tiles."""
        if self.tuned is not None and isinstance(self.model, nn.Module):
            with reused_memory(), tuned_runner(self.model, self.settings, self.tuned) as tuned_run:
                yield tuned_run
            return
        settings = self.settings
        if self.tuned is not None:
            settings = replace(settings, engine=self.tuned.plan.choice["engine"])
        with reused_memory(), open_runner(self.model, settings) as run:
            yield run if self.windows is None else WindowRunner(run, self.plan.network, self.windows)

    @property
    def engine(self) -> str:
        """What runs the tiles, in words."""
        choice = None if self.tuned is None else self.tuned.plan.choice
        if isinstance(self.model, nn.Module):
            return PLAIN_PYTORCH if choice is None else f"{choice['engine']}, form {choice['form']}"
        name = choice["engine"] if choice else self.settings.engine
        return ONNX_ENGINES[name or "onnxruntime"]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "model": portable(self.model)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        model = state["model"]
        self.__dict__.update({**state, "model": model.restored() if isinstance(model, OnnxBytes) else model})

    def describe(self) -> dict[str, Any]:
        """What determines the scores, apart from the image, as plain data."""
        tuned = {} if self.tuned is None else {"tuned": self.tuned.to_dict()}
        return {
            **tuned,
            "weights": of_network(self.model),
            "plan": self.plan.to_dict(),
            "labels": self.labels.to_dict(),
            "settings": self.settings.to_dict(),
            "batch": self.batch,
            "windows": self.windows,
        }
