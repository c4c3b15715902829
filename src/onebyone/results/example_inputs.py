"""How an example input is passed to a network."""

from __future__ import annotations

from typing import Any


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments that an example stands for.

    A tuple holds positional arguments and a dict keyword arguments; a pair of a tuple and a dict holds both, as
    `ExportedProgram.example_inputs` does. Anything else is a single argument. So is a list, because detection models
    take a list of images, and a named tuple.

    >>> arguments((1, 2)), arguments({"ids": 3}), arguments(((1,), {"mask": 2}))
    (((1, 2), {}), ((), {'ids': 3}), ((1,), {'mask': 2}))
    >>> arguments([1, 2])
    (([1, 2],), {})
    """
    if type(example) is dict:
        return (), {str(k): v for k, v in example.items()}
    if not isinstance(example, tuple) or hasattr(example, "_fields"):
        return (example,), {}
    if len(example) == 2 and type(example[0]) is tuple and type(example[1]) is dict:
        return example[0], {str(k): v for k, v in example[1].items()}
    return example, {}
