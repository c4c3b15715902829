"""Class maps (`head="cam"`): the average pool before the classifier is left out; the head runs at each position.

An average commutes with what is affine (`laws/pooling.py`): where everything after the pool is, the means of the map
over the pool's positions are the window's results. Where something is not (a ReLU between two layers, a softmax, a norm
over channels), the map still shows which positions support a class, but its means differ from the window's results.

Source: Zhou et al., "Learning Deep Features for Discriminative Localization", 2016, §2.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass

from onebyone.errors import Refused
from onebyone.lifting.lifter import Lifter
from onebyone.records import Refusal, by


@dataclass(frozen=True)
class ClassMapStep:
    """One operator of the network.

    `key` is that of its `Call`, and `label` names it in messages. `operands` are the values that it reads and that
    depend on the image, and `results` those that it gives, in the front end's own terms. `affine` says whether it is
    affine in the operands that are given to it; what is not known to be is not.
    """

    key: str
    label: str
    operands: Sequence[Hashable]
    results: Sequence[Hashable]
    affine: Callable[[Collection[Hashable]], bool]


def left_out_pool(
    lifter: Lifter, steps: Iterable[ClassMapStep], outputs: Sequence[Hashable | None]
) -> tuple[tuple[int, ...], tuple[str, ...], tuple[int, ...]]:
    """The pool that a class map leaves out: its positions per axis, the labels of the operators after it that are not
    affine, and the jump of its map in pixels.

    `steps` are the network's operators in the order in which they run, and `outputs` its outputs.

    Raises
    ------
    Refused
        where no average pool was left out, several that differ were, or an output does not come through it.
    """
    pools = {n: pool for n, pool in lifter.left_out.items() if n not in lifter.context_pools}
    if not pools:
        raise _refused(
            "the network has no average pool over several positions before its classifier, and only such a pool can be "
            "left out; use head='window'"
        )
    if len(set(pools.values())) > 1:
        said = " and ".join(
            f"{by(kernel)} positions at stride {by(jump)}" for kernel, jump in set(pools.values())
        )
        raise _refused(f"pools that differ: {said}; use head='window'")
    ((kernel, jump),) = set(pools.values())
    after, nonlinear = _after(steps, set(pools))
    for number, value in enumerate(outputs):
        if value is not None and value not in after:
            raise _refused(f"output {number} does not come through the average pool; use head='window'")
    return kernel, nonlinear, jump


def window_of_class_map(
    pool: tuple[int, ...], jump: tuple[int, ...], stride: tuple[int, ...], window: tuple[int, ...]
) -> tuple[int, ...]:
    """The size in pixels of one position of a class map, which is the smallest image that it takes.

    `pool` are the positions of the pool, `jump` is that of its map, `stride` that of the outputs, and `window` the
    window of the classifier.

    Raises
    ------
    Refused
        where the outputs are at another stride than the pool's map.
    """
    if stride != jump:
        raise _refused(
            f"the outputs are at stride {by(stride)} and the pool's map at {by(jump)}; use head='window'"
        )
    return tuple(w - (k - 1) * j for w, k, j in zip(window, pool, jump, strict=True))


def _refused(reason: str) -> Refused:
    return Refused([Refusal("", "head='cam'", reason)], "the network has no class map")


def _after(steps: Iterable[ClassMapStep], pools: set[str]) -> tuple[set[Hashable], tuple[str, ...]]:
    """Everything that depends on the pools, and the labels of the operators among it that are not affine."""
    after: set[Hashable] = set()
    named: list[str] = []
    for step in steps:
        if step.key in pools:
            after.update(step.results)
            continue
        if not after.intersection(step.operands):
            continue
        after.update(step.results)
        if not after.issuperset(step.operands):
            raise _refused(
                f"at {step.label} the pooled map is combined with values that do not come through the pool"
            )
        if not step.affine(after):
            named.append(step.label)
    return after, tuple(dict.fromkeys(named))
