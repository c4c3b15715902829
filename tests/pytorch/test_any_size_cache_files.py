"""Where a kept any-size network lies: links, other users, permissions, damage, and programs that are replaced."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onebyone.dense.runner import floating_dtype
from onebyone.pytorch.lift import any_size_cache
from onebyone.pytorch.lift.any_size_cache import cache_path, fingerprint_of, kept_or_made
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from tests.pytorch.anysize import randomise
from tests.pytorch.test_any_size_cache import assert_same, maker, outputs


def saved(network: nn.Module, path: Path) -> Path:
    torch.export.save(torch.export.export(network.eval(), (torch.randn(2, 2, 8, 8),)), path)
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program of one window of 8 × 8 pixels with two channels."""
    network = randomise(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(108, 4)))
    return saved(network, tmp_path / "classifier.pt2")


def kept(program: Path) -> ConvolutionalizedModule:
    """The network that is kept, which must not be made."""
    return kept_or_made(program, {}, lambda: pytest.fail("it is kept"))


def test_a_link_in_its_place_is_neither_followed_nor_replaced(program: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.txt"
    target.write_text("something else")
    cache_path(program).symlink_to(target)
    kept_or_made(program, {}, maker(program, []))
    assert target.read_text() == "something else"
    cache_path(program).unlink()
    kept_or_made(program, {}, maker(program, []))
    cache_path(program).rename(target)
    cache_path(program).symlink_to(target)
    made: list[str] = []
    kept_or_made(program, {}, maker(program, made))
    assert made
    assert cache_path(program).is_symlink()


def test_a_folder_or_a_pipe_in_its_place_stays(program: Path) -> None:
    path = cache_path(program)
    path.mkdir()
    assert kept_or_made(program, {}, maker(program, [])).nominal == (8, 8)
    path.rmdir()
    os.mkfifo(path)
    assert kept_or_made(program, {}, maker(program, [])).nominal == (8, 8)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_name_that_is_as_long_as_the_system_allows_keeps_nothing(program: Path) -> None:
    long = program.with_name("x" * 240 + ".pt2")
    program.rename(long)
    assert kept_or_made(long, {}, maker(long, [])).nominal == (8, 8)
    assert list(long.parent.iterdir()) == [long]


def test_the_file_of_another_user_is_not_trusted(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_or_made(program, {}, maker(program, []))
    kept(program)
    owner = program.stat().st_uid
    for file, user, trusted in (
        (owner, owner + 1, True),
        (owner + 2, owner + 2, True),
        (owner + 2, 9, False),
    ):
        lstat = Path.lstat

        def as_of(path: Path, file: int = file, lstat: Any = lstat) -> Any:
            fields = list(lstat(path))
            return os.stat_result([*fields[:4], file, *fields[5:]])

        with monkeypatch.context() as patch:
            patch.setattr(Path, "lstat", as_of)
            patch.setattr(any_size_cache.os, "getuid", lambda user=user: user)
            assert any_size_cache._is_trusted(cache_path(program), program) is trusted


@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o444])
def test_no_one_else_may_read_it_than_the_program(program: Path, permissions: int) -> None:
    program.chmod(permissions)
    kept_or_made(program, {}, maker(program, []))
    given = stat.S_IMODE(cache_path(program).stat().st_mode)
    assert given & 0o177 & ~permissions == 0
    assert given & 0o600 == 0o600
    kept_or_made(program, {"window": 8}, maker(program, []))  # replaced
    cache_path(program).chmod(0o666)
    kept_or_made(program, {}, maker(program, []))
    assert stat.S_IMODE(cache_path(program).stat().st_mode) & 0o177 & ~permissions == 0


def test_a_program_that_is_replaced_while_it_is_read_keeps_nothing(program: Path, tmp_path: Path) -> None:
    """Otherwise the network of the new program would be kept for the old one, and be used when that is back."""
    before = program.read_bytes()
    other = saved(nn.Sequential(nn.Flatten(), nn.Linear(128, 4)), tmp_path / "other.pt2")

    def make() -> ConvolutionalizedModule:
        program.write_bytes(other.read_bytes())
        return maker(program, [])()

    kept_or_made(program, {}, make)
    program.write_bytes(before)
    given = kept_or_made(program, {}, maker(program, []))
    assert_same(outputs(given, given.model), outputs(given, maker(program, [])().model))


def test_one_damaged_bit_of_a_weight_is_noticed(program: Path) -> None:
    kept_or_made(program, {}, maker(program, []))
    data = bytearray(cache_path(program).read_bytes())
    data[-2] ^= 1
    cache_path(program).write_bytes(data)
    made: list[str] = []
    kept_or_made(program, {}, maker(program, made))
    assert made
    kept(program)  # the sound one has replaced it


def test_the_default_type_is_part_of_the_fingerprint(program: Path) -> None:
    before = fingerprint_of(program, {})
    try:
        torch.set_default_dtype(torch.float64)
        assert fingerprint_of(program, {}) != before
    finally:
        torch.set_default_dtype(torch.float32)


# ---------------------------------------------------------------- what is restored


class TwoTypes(nn.Module):
    """Layers of two types and a buffer that nothing reads: the first parameter decides the type of images."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unused", torch.full((2,), float("nan"), dtype=torch.float64))
        self.first, self.last = nn.Conv2d(2, 3, 3), nn.Linear(108, 4).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).flatten(1).double())


def test_parameters_and_their_order_are_restored(tmp_path: Path) -> None:
    program = saved(TwoTypes(), tmp_path / "two.pt2")
    first = kept_or_made(program, {}, maker(program, []))
    second = kept(program)
    names = [name for name, _ in first.model.named_parameters()]
    assert names == ["first.weight", "first.bias", "last.weight", "last.bias"]
    assert [name for name, _ in second.model.named_parameters()] == names
    assert "unused" in dict(second.model.named_buffers())
    assert floating_dtype(first.model) == floating_dtype(second.model) == torch.float32
    assert_same(outputs(first, first.model), outputs(second, second.model))


def test_weights_whose_memory_order_only_an_axis_of_one_shows_are_not_kept(tmp_path: Path) -> None:
    """`is_contiguous` passes them, and PyTorch chooses the memory order of a convolution by their strides."""
    layer = nn.Conv2d(2, 2, 3, groups=2)
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(72, 4))
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert layer.weight.is_contiguous()
    program = saved(network, tmp_path / "depthwise.pt2")
    kept_or_made(program, {}, lambda: convolutionalize(network.eval(), 8))
    assert not cache_path(program).exists()


def test_bits_are_compared_also_where_numbers_are_equal_or_none() -> None:
    same, zero = any_size_cache._same_bits, torch.zeros(2, 2)
    assert same(zero, zero.clone())
    assert same(torch.tensor(float("nan")), torch.tensor(float("nan")))
    for other in (-zero, zero.double(), zero[:1], torch.full((2, 2), float("nan"))):
        assert not same(zero, other)
    assert not same(zero, torch.zeros(2, 2).t())
    assert same(3, 3)
    assert not same(3, 4)
