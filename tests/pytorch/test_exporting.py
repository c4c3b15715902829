"""Examples in every spelling; and one sentence, from every verb that exports, where torch.export fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import onebyone
from onebyone.errors import BadInput, Refused
from onebyone.pytorch.files.program_file import load_program
from onebyone.results.example_inputs import arguments
from onebyone.tuning.engines.exported_program import UnsupportedError, export
from onebyone.tuning.network_forms import program_of
from onebyone.tuning.target import target_of
from tests.pytorch.integer_networks import exact, integer


class Masked(nn.Module):
    """Takes its inputs by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = integer(nn.Linear(4, 6)), integer(nn.Linear(6, 3))

    def forward(self, states: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        hidden: Tensor = self.a(states) * scale
        return self.b(hidden if mask is None else hidden * mask[:, None])


X, MASK = exact(5, 4), torch.tensor([1.0, 0, 1, 1, 0])
EXAMPLES: dict[str, Any] = {
    "a tensor": X,
    "a tuple": (X, MASK),
    "a dict": {"states": X, "mask": MASK},
    "a dict in another order": {"mask": MASK, "states": X},
    "a pair of both": ((X,), {"mask": MASK, "scale": 2.0}),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_every_spelling(name, tmp_path):
    net, example = Masked().eval(), EXAMPLES[name]
    args, kwargs = arguments(example)
    right = net(*args, **kwargs)
    c = onebyone.convert(net, level="graph", example=example)
    assert [change.path for change in c.changes] == ["a", "b"]
    assert torch.equal(c.model.module()(*args, **kwargs), right)
    assert onebyone.verify(net, c, example).equivalent
    path = onebyone.convert(net).save(tmp_path / "layers.pt2", example=example)
    program = load_program(path).program
    assert torch.equal(program.module()(*args, **kwargs), right)
    # the example that a program carries is used where none is given
    assert onebyone.verify(program, onebyone.convert(program)).max_error is not None


def conditional(net: nn.Module, x: Tensor) -> Tensor:
    return net.head(x.flatten(1)) if x.sum() >= 0 else x


def counted(net: nn.Module, x: Tensor) -> Tensor:
    out = x
    for _ in range(int(x.abs().max()) + 1):
        out = net.head(x.flatten(1))
    return out


def through_numpy(net: nn.Module, x: Tensor) -> Tensor:
    return torch.from_numpy(net.head(x.flatten(1)).detach().numpy())


class Net(nn.Module):
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(48, 2), body

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(self, x)
        return out


DEPENDS = "a condition, a number or a size depends on the values of a tensor"
NOT_FOLLOWED = {
    "a condition": (conditional, DEPENDS, "return net.head(x.flatten(1)) if x.sum() >= 0 else x"),
    "a count": (counted, DEPENDS, "for _ in range(int(x.abs().max()) + 1):"),
    "numpy": (
        through_numpy,
        "it passes the values of a tensor to NumPy",
        "return torch.from_numpy(net.head(x.flatten(1)).detach().numpy())",
    ),
}


@pytest.mark.parametrize("name", NOT_FOLLOWED)
@pytest.mark.parametrize("verb", ["graph", "save", "convolutionalize"])
def test_what_cannot_be_exported_is_said_in_one_sentence(name, verb, tmp_path, capfd):
    body, what, line = NOT_FOLLOWED[name]
    net, image = Net(body).train(), torch.ones(2, 3, 4, 4)
    call = {
        "graph": lambda: onebyone.convert(net, level="graph", example=image),
        "save": lambda: onebyone.convert(net).save(tmp_path / "a.pt2", example=image),
        "convolutionalize": lambda: onebyone.convolutionalize(net, 4, 3),
    }[verb]
    with pytest.raises(BadInput) as error:
        call()
    said = str(error.value)
    assert said.startswith("model: torch.export cannot follow the network: ")
    assert what in said
    assert (
        f"(in test_exporting.py, line {body.__code__.co_firstlineno + (2 if body is counted else 1)}: {line})"
        in said
    )
    assert "\n" not in said
    assert capfd.readouterr() == ("", "")  # torch prints its graph, its logs and advice about its internals
    assert net.training


def test_forms_and_engines_that_need_a_program_are_refused_in_tune():
    target = target_of(Net(conditional).eval(), torch.ones(2, 3, 4, 4))
    with pytest.raises(Refused, match=DEPENDS):
        program_of(target)
    with pytest.raises(UnsupportedError, match=DEPENDS):
        export(target.network, target.signature)


def test_an_example_that_does_not_fit_is_not_blamed_on_the_export():
    with pytest.raises(
        BadInput, match=r"^example: the network does not run on it: .*shapes cannot be multiplied"
    ):
        onebyone.convert(Net(lambda net, x: net.head(x)), level="graph", example=torch.ones(2, 5))
