"""The model that `tune` returns: the chosen form under the chosen engine, called like the original."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.tuning.call_signature import Call, CallSignature
from onebyone.tuning.engines.base import to_ordinary_tensor
from onebyone.tuning.input_checks import require_not_tracing, with_ordinary_memory
from onebyone.verification.pytree import map_tensors


class TunedModel(nn.Module):
    """A network in its fastest form, for inference: same arguments and structure of outputs as the original.

    `network` is the form in PyTorch. It shares the original's parameters if the form allows it; an engine that freezes
    or exports reads them once, when it is built. The model stays on its device and in eval mode. Input shapes for
    which the engine was not built raise BadInput; `eager` takes any shape, and so does `compile`, which compiles again.

    It cannot be pickled, copied or exported. In a forked process (such as a worker of a DataLoader) it runs on one
    thread. There the engine "onebyone" works as usual; the threads of other engines do not survive a fork, so `network`
    runs in PyTorch instead.
    """

    def __init__(self, network: nn.Module, call: Call, signature: CallSignature, fixed_shapes: bool) -> None:
        super().__init__()
        self.network = network
        self.training = False
        self._call, self._signature, self._fixed_shapes = call, signature, fixed_shapes
        self._process = os.getpid()
        self.__signature__ = signature.forward_signature

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model like the original. Raises BadInput under torch.export, torch.vmap and similar tracing."""
        require_not_tracing()
        if (
            torch.compiler.is_compiling()
        ):  # the engine's code is compiled already; TorchDynamo must not trace it
            return torch.compiler.disable(self._run)(args, kwargs)  # type: ignore[no-untyped-call]
        return self._run(args, kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = self._signature.canonical(args, kwargs)
        if self._fixed_shapes:
            self._signature.check(args, kwargs)
        args, kwargs = with_ordinary_memory(args), with_ordinary_memory(kwargs) if kwargs else kwargs
        if os.getpid() == self._process or getattr(self._call, "survives_fork", False):
            out = self._call(*args, **kwargs)
        else:
            out = self._run_on_one_thread(args, kwargs)
        if isinstance(out, Tensor):
            return to_ordinary_tensor(out)
        return map_tensors(out, to_ordinary_tensor)

    def _run_on_one_thread(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the form in PyTorch, in a forked process: more threads would wait for those left in the parent."""
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
        with torch.inference_mode():
            return self.network(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raise BadInput for pickle, torch.save and copy, which would need code that was compiled for this process."""
        raise BadInput(
            "a tuned model cannot be pickled or copied, because it was compiled for this process: save the plan "
            "(tuned.save('plan.json')) and apply it with onebyone.tune(model, example, plan='plan.json')"
        )

    def times(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the milliseconds of one call by kind of step, the longest first; empty if the engine cannot tell.

        Use `torch.profiler` for PyTorch's own engines. It cannot look into "onebyone", which is one call of C++; for
        that engine, use this method. Raises BadInput for shapes that the model was not tuned for.

        >>> import onebyone, torch
        >>> tuned = onebyone.tune(nn.Linear(4, 4), torch.ones(2, 4), engines="eager", budget=0.1)
        >>> tuned.model.times(torch.ones(2, 4))
        {}
        """
        time_steps = getattr(self._call, "times", None)
        if time_steps is None:
            return {}
        args, kwargs = self._signature.canonical(args, kwargs)
        self._signature.check(args, kwargs)
        milliseconds: dict[str, float] = time_steps(*args, **kwargs)
        return dict(sorted(milliseconds.items(), key=lambda item: -item[1]))

    def train(self, mode: bool = True) -> TunedModel:
        """Stay in eval mode. Raises BadInput for train(True)."""
        if mode:
            raise BadInput("a tuned model is for inference only: train the original, and tune it again")
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TunedModel:
        raise BadInput(
            "a tuned model keeps the device and dtype it was tuned for: move the original, and tune it again"
        )
