"""An image run in tiles against the same image run at once: "tiled = whole"."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from onebyone.verification.pytree import wide
from onebyone.verification.result import TILED, DenseCheck, Verification
from onebyone.verification.window_crops import compare_rows


def compare_tiled(whole: Any, tiled: Any, bound: Any = None) -> Verification:
    """Whether an image run in tiles gave what it gives when run at once ("tiled = whole").

    `whole` and `tiled` are tensors or arrays of one shape. `bound` is how far they may differ, a number or
    an array: two runs of one network may sum in another order where their shapes differ (see
    `running_error.error_bound`). Without one they must be equal bit for bit.

    >>> compare_tiled(torch.ones(2, 3), torch.ones(2, 3)).equivalent
    True
    >>> compare_tiled(torch.ones(2, 3), torch.ones(2, 4)).problems
    ('shapes (2, 3) and (2, 4) differ',)
    """
    a, b = wide(torch.as_tensor(whole)), wide(torch.as_tensor(tiled))
    expected, found = tuple(a.shape), tuple(b.shape)
    check = DenseCheck(TILED, False, math.prod(expected[1:]), expected, found)
    if expected != found:
        problems = [f"shapes {expected} and {found} differ"]
    elif not bool(torch.isfinite(a).all() & torch.isfinite(b).all()):
        problems = ["NaN or infinity"]
    else:
        limit = torch.zeros_like(a) if bound is None else wide(torch.as_tensor(bound)).expand_as(a)
        figures = compare_rows([b.flatten()[None]], [a.flatten()[None]], [limit.flatten()[None]])
        check = replace(
            check, max_abs_difference=figures.largest, bound=figures.bound, bound_ratio=figures.ratio
        )
        off = figures.ratio is not None and figures.ratio > 1
        said = "bit for bit" if bound is None else f"within {figures.bound:.3g}"
        problems = [f"tiled and whole differ by {figures.largest:.3g}: not equal {said}"] if off else []
    check = replace(check, ok=not problems, why="; ".join(problems))
    return Verification(not problems, TILED, check.max_abs_difference, dense=check, problems=tuple(problems))
