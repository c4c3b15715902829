"""`t.model`: the chosen form under the chosen engine, called like the original."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.tuning.call_signature import Call, Calling
from onebyone.tuning.engines.base import ordinary
from onebyone.tuning.input_checks import plain, require_running
from onebyone.verification.pytree import map_tensors


class TunedModel(nn.Module):
    """A network in its fastest form: takes what the original takes and gives what it gives, for inference.

    `network` is the form in PyTorch; its parameters are the original's own where the form allows it (an engine that
    freezes or exports has read them once). It stays on its device and in eval mode. Shapes that the engine was not
    built for are a BadInput; engines that take any shape (`eager`, and `compile` by compiling once more) do.

    It cannot be pickled, copied or exported. In a forked process (a worker of a DataLoader) it runs on one thread: the
    engine "onebyone" as it is, other engines' threads do not survive, so `network` runs in PyTorch instead.
    """

    def __init__(self, network: nn.Module, call: Call, calling: Calling, fixed: bool) -> None:
        super().__init__()
        self.network = network
        self.training = False
        self._call, self._calling, self._fixed = call, calling, fixed
        self._process = os.getpid()
        self.__signature__ = calling.signature

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the original's. Raises BadInput under torch.export, torch.vmap and the like."""
        require_running()
        if (
            torch.compiler.is_compiling()
        ):  # the engine's code is compiled already: TorchDynamo leaves it alone
            return torch.compiler.disable(self._computed)(args, kwargs)  # type: ignore[no-untyped-call]
        return self._computed(args, kwargs)

    def _computed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = self._calling.canonical(args, kwargs)
        if self._fixed:
            self._calling.check(args, kwargs)
        args, kwargs = plain(args), plain(kwargs) if kwargs else kwargs
        if os.getpid() == self._process or getattr(self._call, "survives_fork", False):
            out = self._call(*args, **kwargs)
        else:
            out = self._on_one_thread(args, kwargs)
        if isinstance(out, Tensor):
            return ordinary(out)
        return map_tensors(out, ordinary)

    def _on_one_thread(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In PyTorch, in a forked process: more threads would wait for those that stayed behind in the parent."""
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
        with torch.inference_mode():
            return self.network(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raises BadInput: pickle, torch.save and copy would need what was compiled for this process alone."""
        raise BadInput(
            "a tuned model cannot be pickled or copied, because it was compiled for this process: save the plan "
            "(tuned.save('plan.json')) and apply it with onebyone.tune(model, example, plan='plan.json')"
        )

    def times(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Milliseconds by kind of step in one call, the longest first; empty where the engine cannot tell.

        `torch.profiler` can look into PyTorch's own engines; into "onebyone", which is one call of C++, this does.
        Raises BadInput for shapes that the model was not tuned for.

        >>> import onebyone, torch
        >>> tuned = onebyone.tune(nn.Linear(4, 4), torch.ones(2, 4), engines="eager", budget=0.1)
        >>> tuned.model.times(torch.ones(2, 4))
        {}
        """
        tell = getattr(self._call, "times", None)
        if tell is None:
            return {}
        args, kwargs = self._calling.canonical(args, kwargs)
        self._calling.check(args, kwargs)
        found: dict[str, float] = tell(*args, **kwargs)
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def train(self, mode: bool = True) -> TunedModel:
        """Stay in eval mode. Raises BadInput for train(True)."""
        if mode:
            raise BadInput("a tuned model computes inference only: train the original, and tune it again")
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TunedModel:
        raise BadInput(
            "a tuned model stays on the device and in the type it was tuned for: tune the original again"
        )
