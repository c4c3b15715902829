"""Compare an image that was run in tiles with the same image run at once: the target "tiled = whole"."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from onebyone.verification.pytree import wide
from onebyone.verification.result import TILED, DenseCheck, Verification
from onebyone.verification.window_crops import compare_rows


def compare_tiled(whole: Any, tiled: Any, bound: Any = None) -> Verification:
    """Whether the outputs for an image that was run in tiles equal those of the image run at once.

    Parameters
    ----------
    whole, tiled: tensors or arrays of one shape, `(K, H', W')`.
    bound: how far they may differ, a number or an array. Two runs of one network may sum in another order if their
        shapes differ (see `running_error.error_bound`). Without a bound they must be equal bit for bit.

    >>> compare_tiled(torch.ones(2, 3), torch.ones(2, 3)).equivalent
    True
    >>> compare_tiled(torch.ones(2, 3), torch.ones(2, 4)).problems
    ('shapes (2, 3) and (2, 4) differ',)
    """
    a, b = wide(torch.as_tensor(whole)), wide(torch.as_tensor(tiled))
    expected, actual = tuple(a.shape), tuple(b.shape)
    check = DenseCheck(TILED, False, math.prod(expected[1:]), expected, actual)
    if expected != actual:
        problems = [f"shapes {expected} and {actual} differ"]
    elif not bool(torch.isfinite(a).all() & torch.isfinite(b).all()):
        problems = ["NaN or infinity"]
    else:
        limit = torch.zeros_like(a) if bound is None else wide(torch.as_tensor(bound)).expand_as(a)
        differences = compare_rows([b.flatten()[None]], [a.flatten()[None]], [limit.flatten()[None]])
        check = replace(
            check,
            max_abs_difference=differences.largest,
            bound=differences.bound,
            bound_ratio=differences.ratio,
        )
        exceeded = differences.ratio is not None and differences.ratio > 1
        allowed = "bit for bit" if bound is None else f"within {differences.bound:.3g}"
        problems = (
            [f"tiled and whole differ by {differences.largest:.3g}: not equal {allowed}"] if exceeded else []
        )
    check = replace(check, ok=not problems, why="; ".join(problems))
    return Verification(not problems, TILED, check.max_abs_difference, dense=check, problems=tuple(problems))
