"""Small parts of the verifier: settings of proofs, nested tensors, windows of an image, classes of outputs."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.verification import evaluation_context
from onebyone.verification.channel_axis import WithoutChannels, under_network
from onebyone.verification.class_map_checks import MeansOfMap, means_of, of_the_map
from onebyone.verification.evaluation_context import _read, direct_convolutions, eval_mode, proof_settings
from onebyone.verification.pytree import cast, leaves, map_tensors, wide
from onebyone.verification.window_crops import (
    all_windows,
    batch_size,
    compare_rows,
    mosaic,
    rows_of,
    run_on_windows,
)

# ---------------------------------------------------------------- settings


def flags() -> dict[str, Any]:
    b = torch.backends
    return {
        "matmul": b.cuda.matmul.fp32_precision,
        "conv": b.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        "mkldnn": b.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
        "fp16 sums": b.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "bf16 sums": b.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "benchmark": b.cudnn.benchmark,
        "deterministic": b.cudnn.deterministic,
        "fast path": b.mha.get_fastpath_enabled(),
        "cudnn": b.cudnn.enabled,
    }


def test_proofs_run_in_plain_arithmetic_and_everything_is_restored() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    net[0].eval()
    inside: dict[str, Any] = {}

    def failing_proof() -> None:
        with proof_settings(7, net, len):
            inside.update(flags(), seed=torch.initial_seed(), training=[m.training for m in net.modules()])
            raise KeyError

    torch.backends.cudnn.benchmark = True
    try:
        before, state = flags(), torch.random.get_rng_state()
        with pytest.raises(KeyError):
            failing_proof()
        assert flags() == before
    finally:
        torch.backends.cudnn.benchmark = False
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [m.training for m in net.modules()] == [True, False, True]
    assert (inside["seed"], inside["training"]) == (7, [False] * 3)
    assert {inside[n] for n in ("matmul", "conv", "mkldnn")} == {"ieee"}
    wrong = {n for n in ("fp16 sums", "bf16 sums", "benchmark", "fast path") if inside[n]}
    assert wrong == set()
    assert inside["deterministic"]


@pytest.mark.parametrize("before", [True, False])
def test_fused_attention_is_off_inside_and_as_before_afterwards(before: bool) -> None:
    mha = torch.backends.mha
    usual = mha.get_fastpath_enabled()
    try:
        mha.set_fastpath_enabled(before)
        with proof_settings(0):
            assert mha.get_fastpath_enabled() is False
        assert mha.get_fastpath_enabled() is before
    finally:
        mha.set_fastpath_enabled(usual)


def test_autocast_is_off_inside() -> None:
    with torch.autocast("cpu", torch.bfloat16), proof_settings(0):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_direct_convolutions_switch_cudnn_off_and_on_again() -> None:
    before = torch.backends.cudnn.enabled
    inside: list[bool] = []

    def failing() -> None:
        with direct_convolutions():
            inside.append(torch.backends.cudnn.enabled)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert inside == [False]
    assert torch.backends.cudnn.enabled == before


def test_older_flags_are_set_and_restored_too() -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
        with proof_settings(0):
            assert (cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (False, "highest")
        assert (cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (True, "high")
    finally:
        cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def test_a_flag_that_could_not_be_read_is_restored_to_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []

    def unreadable() -> Any:
        raise RuntimeError("the newer flags were set")

    switches = [(unreadable, written.append, "for proofs", "the default")]
    monkeypatch.setattr(evaluation_context, "_older_switches", lambda: switches)
    with proof_settings(0):
        assert written == ["for proofs"]
    assert written == ["for proofs", "the default"]


def test_flags_that_cannot_be_read_have_their_default() -> None:
    def disagree() -> bool:
        raise RuntimeError("the newer flags were set")

    assert _read(disagree, "default") == "default"
    assert _read(lambda: "a value", "default") == "a value"
    with pytest.raises(KeyError):
        _read(lambda: {}["key"], "default")


def test_eval_mode_does_not_call_what_users_override() -> None:
    class Stubborn(nn.Module):
        def eval(self) -> Any:
            raise NotImplementedError

    net = nn.Sequential(Stubborn())
    with eval_mode(net):
        assert not net[0].training
    assert net[0].training


# ---------------------------------------------------------------- nested tensors

Named = namedtuple("Named", ["a", "b"])


@dataclass
class Record:
    x: Tensor
    name: str


class Output(dict):  # type: ignore[type-arg]
    """A mapping that is made from keywords, as the outputs of transformers are."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)


def test_nested_containers_keep_their_types() -> None:
    one = torch.tensor([1.0])
    tree = {"t": (one, [one, None]), "n": Named(one, 3), "r": Record(one, "name"), "o": Output(k=one)}
    assert [path for path, _ in leaves(tree)] == ["t.0", "t.1.0", "n.a", "r.x", "o.k"]
    doubled = map_tensors(tree, lambda t: 2 * t)
    assert [t.item() for _, t in leaves(doubled)] == [2.0] * 5
    assert type(doubled["t"]) is tuple
    assert type(doubled["t"][1]) is list
    assert doubled["t"][1][1] is None
    assert type(doubled["n"]) is Named
    assert doubled["n"].b == 3
    assert doubled["r"] == Record(doubled["r"].x, "name")
    assert type(doubled["o"]) is Output
    assert isinstance(doubled["o"], Mapping)
    assert one.item() == 1.0
    assert leaves(3) == []
    assert leaves(one) == [("", one)]


def test_casts_leave_integers_and_keep_complex_numbers_complex() -> None:
    tree = (
        torch.ones(1),
        torch.ones(1, dtype=torch.int64),
        torch.ones(1, dtype=torch.complex64),
        torch.tensor([True]),
    )
    assert [t.dtype for t in cast(tree, torch.float64)] == [
        torch.float64,
        torch.int64,
        torch.complex128,
        torch.bool,
    ]
    assert cast(torch.ones(1, dtype=torch.complex128), torch.float32).dtype == torch.complex64
    assert wide(torch.tensor([True])).dtype == torch.float64
    assert wide(torch.ones(1, dtype=torch.complex64)).dtype == torch.complex128
    sparse = torch.tensor([[0.0, 2.0]]).to_sparse()
    assert wide(sparse).tolist() == [[0.0, 2.0]]
    assert not wide(torch.ones(1, requires_grad=True)).requires_grad


# ---------------------------------------------------------------- windows


def test_windows_are_cut_and_picked_at_their_positions() -> None:
    image = torch.arange(2 * 1 * 5 * 6.0).reshape(2, 1, 5, 6)
    windows = all_windows((2, 2), 2, (3, 2), (2, 4))
    assert (len(windows), windows.total) == (8, 8)
    crops = windows.crops(image, slice(0, 8))
    assert torch.equal(crops[3], image[0, :, 2:5, 4:6])
    assert torch.equal(crops[6], image[1, :, 2:5, 0:2])
    dense = torch.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)
    assert torch.equal(windows.pick(dense)[3], dense[0, :, 1, 1])
    assert torch.equal(windows.pick(dense)[6], dense[1, :, 1, 0])


@pytest.mark.parametrize("limit", [1, 3, 8, 100])
def test_samples_are_evenly_spread(limit: int) -> None:
    windows = all_windows((2, 4), 1, (1, 1), (1, 1))
    taken = windows.sample(limit)
    assert len(taken) == min(limit, 8)
    assert taken.total == 8
    rows = [tuple(r) for r in windows.index.tolist()]
    numbers = [rows.index(tuple(r)) for r in taken.index.tolist()]
    assert numbers[0] == 0
    assert limit == 1 or numbers[-1] == 7
    assert numbers == sorted(set(numbers))


def test_batches_have_one_size_and_the_last_one_is_filled_up() -> None:
    image = torch.arange(7.0).reshape(1, 1, 1, 7)
    windows, sizes, done = all_windows((1, 7), 1, (1, 1), (1, 1)), [], []

    def run(crops: Tensor) -> list[Tensor]:
        sizes.append(len(crops))
        return [crops.flatten(1), -crops.flatten(1)]

    first, second = run_on_windows(run, image, windows, 3, done.append)
    assert sizes == [3, 3, 3]
    assert done == [3, 6, 7]
    assert first.flatten().tolist() == list(range(7))
    assert torch.equal(second, -first)


def test_batch_sizes() -> None:
    windows = all_windows((10, 10), 1, (4, 4), (1, 1))
    assert batch_size(windows, 3, None) == 64
    assert batch_size(windows.sample(5), 3, None) == 5
    assert batch_size(windows, 3, 7) == 7
    assert batch_size(windows, 2**17, None) == 1
    assert batch_size(windows, 2**12, None) == 2**21 // (2**12 * 16)


def test_a_mosaic_repeats_the_image_and_its_mirror() -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    assert mosaic(x, (1, 8))[0, 0, 0].tolist() == [1, 2, 3, 3, 2, 1, 1, 2]
    assert mosaic(x, (3, 2)).shape == (1, 1, 3, 2)


def test_rows_of_outputs() -> None:
    assert [t.shape for t in rows_of((torch.zeros(4), torch.zeros(4, 2, 3)))] == [(4, 1), (4, 6)]


def test_differences_of_rows() -> None:
    crops = [torch.tensor([[0.0, 1.0], [3.0, 2.0]]), torch.tensor([[0.0], [4.0]])]
    dense = [torch.tensor([[0.0, 1.5], [1.0, 2.0]]), torch.tensor([[1.0], [4.0]])]
    figures = compare_rows(dense, crops, [])
    assert (figures.largest, figures.mean) == (2.0, pytest.approx(3.5 / 6))
    assert figures.agreement == 0.5
    assert figures.spread == pytest.approx(torch.tensor([0.0, 1, 3, 2, 0, 4]).std().item())
    assert (figures.bound, figures.ratio) == (None, None)
    limits = [torch.tensor([[1.0, 1.0], [4.0, 1.0]]), torch.tensor([[2.0], [8.0]])]
    bounded = compare_rows(dense, crops, limits)
    assert (bounded.bound, bounded.ratio) == (8.0, 0.5)
    one_class = compare_rows([dense[1]], [crops[1]], [])
    assert one_class.agreement is None
    single = compare_rows([torch.ones(1, 1)], [torch.ones(1, 1)], [])
    assert single.spread == 0.0
    infinite = compare_rows([torch.tensor([[float("nan")]])], [torch.ones(1, 1)], [torch.ones(1, 1)])
    assert (infinite.largest, infinite.mean, infinite.ratio) == (float("inf"),) * 3


# ---------------------------------------------------------------- wrapped networks


def test_networks_without_a_channel_axis() -> None:
    wrapped = WithoutChannels.of(nn.Linear(3, 2))
    assert wrapped(torch.ones(4, 1, 5, 3)).shape == (4, 5, 2)
    names = under_network({"weight": torch.ones(1)})
    assert names.keys() == {"network.weight"} <= dict(wrapped.named_parameters()).keys()


@pytest.mark.parametrize("pool", [(3,), (2, 3), (2, 1, 2)], ids=str)
def test_means_of_a_class_map(pool: tuple[int, ...]) -> None:
    """The loop: the mean over each window of the map."""
    size = tuple(n + 2 for n in pool)
    scores = torch.arange(float(2 * torch.tensor(size).prod())).reshape(1, 2, *size)
    network = nn.Identity()
    means = MeansOfMap(network, pool)(scores)
    assert means.shape == (1, 2, *(3 for _ in pool))
    corner = scores[(slice(None), slice(None), *(slice(1, 1 + n) for n in pool))]
    assert torch.allclose(means[(0, slice(None), *(1 for _ in pool))], corner.flatten(2).mean(2)[0])
    layer = MeansOfMap(nn.Conv2d(1, 1, 1), (2, 2))
    assert of_the_map(dict(layer.named_parameters())).keys() == {"weight", "bias"}


def test_the_geometry_of_means() -> None:
    from onebyone.laws.geometry import Geometry
    from onebyone.results import ClassMap

    linear, nonlinear = ClassMap((2, 2)), ClassMap((2, 2), ("relu",))
    for class_map, others, exact in (
        (linear, (), True),
        (linear, ("it pads",), False),
        (nonlinear, (), False),
    ):
        geometry = Geometry(
            window=(4, 4), stride=(2, 2), window_offset=(0, 0), receptive_field=(4, 4), receptive_field_offset=(0, 0),
            exact=False, inexact_because=(*others, class_map.reason),
        )  # fmt: skip
        _, of_windows = means_of(nn.Identity(), geometry, (6, 6), class_map)
        assert (of_windows.window, of_windows.exact) == ((6, 6), exact)
        assert of_windows.inexact_because == others + ((class_map.reason,) if class_map is nonlinear else ())
