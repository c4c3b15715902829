"""Cost compared with counting loops and with published figures."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from onebyone.errors import BadInput
from onebyone.laws import cost
from onebyone.laws.cost import Cost, Layer
from onebyone.laws.geometry import Sliding
from tests.laws.oracles import sliding_ops, starts


def counted(
    batch: int, c: int, o: int, ops: list[Sliding], size: tuple[int, ...], groups: int, bias: bool
) -> Cost:
    """Run the loops of the convolution and count MACs and elements read, at two bytes per element."""
    macs, read, written, weights = 0, set(), set(), set()
    offsets = [[t * op.dilation for t in range(op.kernel)] for op in ops]
    for n, out in product(range(batch), range(o)):
        group = out // (o // groups)
        for firsts in product(*(starts(op, s) for op, s in zip(ops, size, strict=True))):
            written.add((n, out, firsts))
            for channel, taps in product(range(c // groups), product(*offsets)):
                macs += 1
                weights.add((out, channel, taps))
                place = tuple(f + t for f, t in zip(firsts, taps, strict=True))
                if all(0 <= p < s for p, s in zip(place, size, strict=True)):
                    read.add((n, group * (c // groups) + channel, place))
    parameters = len(weights) + o * bias
    return Cost(parameters, macs, 2 * (len(read) + parameters), 2 * len(written))


def test_every_small_convolution_is_counted_as_its_loops_run():
    for op, size, (c, o, groups), bias in product(
        sliding_ops(strides=(1, 3), ceil=(False,)), (4, 5), [(1, 2, 1), (2, 4, 2)], (True, False)
    ):
        ops = [op, Sliding(2, 1)]
        if op.out_size(size):
            expected = counted(2, c, o, ops, (size, 3), groups, bias)
            assert cost.convolution(2, c, o, ops, (size, 3), groups=groups, bias=bias, itemsize=2) == expected


def test_linear_and_pointwise_are_counted_as_their_loops_run():
    for rows, features, out in product((1, 3), (1, 4), (2, 5)):
        expected = counted(rows, features, out, [Sliding(1)], (1,), 1, True)
        assert cost.linear(rows, features, out, itemsize=2) == expected
    for stride, size in product((1, 2, 3), (3, 4)):
        expected = counted(2, 4, 6, [Sliding(1, stride)] * 2, (size, 5), 2, False)
        ours = cost.pointwise(2, 4, 6, (size, 5), stride=stride, groups=2, bias=False, itemsize=2)
        assert ours == expected


def test_linear_on_tokens_costs_what_the_pointwise_convolution_costs():
    for tokens, features, out in product((1, 7, 196), (3, 64), (5, 32)):
        assert cost.linear(tokens, features, out) == cost.pointwise(1, features, out, (tokens, 1))


def test_flatten_linear_against_both_convolutions():
    """Claim D5: h·w times the weights of a 1×1 convolution at equal MACs; the cost of the h×w convolution."""
    for channels, h, w, out in product((1, 8), (1, 3), (2, 7), (1, 10)):
        flat = cost.flatten_linear(1, channels, (h, w), out, bias=False)
        point = cost.pointwise(1, channels, out, (h, w), bias=False)
        assert (flat.parameters, flat.macs) == (h * w * point.parameters, point.macs)
        assert flat == cost.convolution(1, channels, out, [Sliding(h), Sliding(w)], (h, w), bias=False)
        assert point.bytes_written == h * w * flat.bytes_written


def vgg16() -> list[Layer]:
    layers, channels = [], 3
    conv, pool = (Sliding(3, pad_before=1, pad_after=1),) * 2, (Sliding(2, 2),) * 2
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers.append(Layer(channels, width, conv))
            channels = width
        layers.append(Layer(channels, None, pool))
    return [
        *layers,
        Layer(512, 4096, (Sliding(7),) * 2),
        Layer(4096, 4096, (Sliding(1),) * 2),
        Layer(4096, 1000, (Sliding(1),) * 2),
    ]


def test_vgg16_has_its_published_parameters_and_macs():
    """138,357,544 parameters and 15.47 billion MACs, as in torchvision's documentation of vgg16."""
    total = cost.network(vgg16(), (224, 224))
    assert total.parameters == 138_357_544
    assert round(total.macs / 1e9, 2) == 15.47


def test_every_window_against_one_dense_pass():
    layers = [
        Layer(1, 4, (Sliding(3),) * 2),
        Layer(4, None, (Sliding(2, 2),) * 2),
        Layer(4, 10, (Sliding(3),) * 2),
    ]
    window, image, positions = (8, 8), (18, 14), (6, 4)
    one, dense = cost.network(layers, window), cost.network(layers, image)
    # by hand: 6·6·9·4 + 3·3·4·10 MACs in a window; 16·12·9·4 + 6·4·9·4·10 in the dense pass
    assert one.macs == 6 * 6 * 9 * 4 + 9 * 4 * 10
    assert dense.macs == 16 * 12 * 9 * 4 + 24 * 9 * 4 * 10
    apart = cost.every_window(layers, window, positions)
    assert (apart.macs, apart.bytes_moved) == (24 * one.macs, 24 * one.bytes_moved)
    assert apart.parameters == dense.parameters == one.parameters
    for batch in (5, 24, 100):
        batched = cost.every_window(layers, window, positions, batch)
        assert (batched.macs, batched.parameters) == (apart.macs, apart.parameters)
        saved = (24 - -(-24 // batch)) * 4 * one.parameters
        assert apart.bytes_read - batched.bytes_read == saved
        assert batched.bytes_written == apart.bytes_written


def test_a_pool_has_no_macs_but_moves_bytes():
    pool = Layer(3, None, (Sliding(2, 2), Sliding(2, 2))).cost((5, 4), batch=2)
    assert pool == Cost(0, 0, 4 * 2 * 3 * 4 * 4, 4 * 2 * 3 * 2 * 2)


def test_arithmetic_intensity_grows_with_the_batch_towards_the_compute_bound():
    one, many = cost.linear(1, 4096, 4096), cost.linear(512, 4096, 4096)
    assert one.macs_per_byte < 0.25 < 50 < many.macs_per_byte
    assert Cost().macs_per_byte == 0
    assert np.isclose(many.macs_per_byte, many.macs / (many.bytes_read + many.bytes_written), rtol=0, atol=0)


def test_bad_input():
    with pytest.raises(BadInput, match="do not divide into 3 groups"):
        cost.pointwise(1, 4, 6, (2, 2), groups=3)
    with pytest.raises(BadInput, match="layer 1"):
        cost.network([Layer(1, 1, (Sliding(3),)), Layer(1, 1, (Sliding(3),))], (4,))


# which form is fastest


def _measured() -> list[tuple[list[cost.Work], list[float]]]:
    """The measurements that DEFAULT was fitted to: forms of layers with their GFLOP/s, as (works, seconds)."""
    table = [
        ((1, 64, 256, 56), (332, 431, 209, 89)),
        ((1, 512, 128, 28), (374, 437, 215, 173)),
        ((1, 2048, 512, 7), (335, 109, 153, 84)),
        ((1, 512, 2048, 7), (319, 225, 135, 78)),
        ((8, 768, 3072, 14), (440, 449, 214, 137)),
        ((32, 2048, 1000, 1), (114, 43, 159, 162)),
        ((1, 25088, 4096, 1), (1.7, 0.4, 14.5, 14.5)),
    ]
    rows = []
    for (n, c, o, h), rates in table:
        form = cost.pointwise(n, c, o, (h, h), bias=False)
        size, copied = form.bytes_moved, 8 * n * h * h * (c + o) if h > 1 else 0
        names = ["conv", "conv-channels-last", "linear", "permute"]
        works = [
            cost.Work(f, p, form.macs, size, 4 * c * o, copied if f == "permute" else 0)
            for f, p in zip(names, [*names[:3], "linear"], strict=True)
        ]
        rows.append((works, [2e-9 * form.macs / rate for rate in rates]))
    return rows


def test_the_default_processor_s_first_choice_on_what_it_was_fitted_to() -> None:
    """The predictions must be good on the measurements they were fitted to (the benchmark tests others)."""
    lost = []
    for works, seconds in _measured():
        best = cost.rank(works)[0]
        times = dict(zip([w.form for w in works], seconds, strict=True))
        lost.append(times[best] / min(times.values()))
    assert sum(x < 1.03 for x in lost) >= 6
    assert max(lost) < 1.5


def test_a_fit_finds_the_processor_that_made_the_times() -> None:
    """Fitting times computed from known rates reproduces the predictions of these rates."""
    known = cost.Processor(
        seconds_per_mac={"linear": 9e-12, "batched": 8e-12, "conv": 4e-12, "conv-channels-last": 3e-12},
        seconds_per_weight_byte={
            "linear": 1e-11,
            "batched": 2e-11,
            "conv": 3e-11,
            "conv-channels-last": 9e-11,
        },
        seconds_per_call={"linear": 1e-6, "batched": 2e-6, "conv": 3e-6, "conv-channels-last": 4e-6},
        seconds_per_byte=1e-11,
        seconds_per_copied_byte=5e-11,
    )
    draw = np.random.default_rng(0)
    works = []
    for path in cost.PATHS:
        for _ in range(40):
            macs, size, weights, copied = (int(10 ** draw.uniform(3, 9)) for _ in range(4))
            works.append(cost.Work(path, path, macs, size, weights, copied))
    fitted = cost.fit([(w, known.seconds(w)) for w in works])
    for w in works:
        assert fitted.seconds(w) == pytest.approx(known.seconds(w), rel=1e-2)


@pytest.mark.parametrize("seed", range(12))
def test_a_fit_is_the_minimum_also_where_amounts_of_work_are_nearly_proportional(seed: int) -> None:
    """A convex function has its minimum over x ≥ 0 exactly where its slope is 0, or not negative where x is 0."""
    draw = np.random.default_rng(seed)
    spread, noise = 10.0 ** -(seed % 4), 0.3 * (seed % 3)
    measured = []
    for path in cost.PATHS:
        for _ in range(10):
            macs = 10 ** draw.uniform(5, 9)
            size, weights, copied = (int(macs * draw.uniform(1 - spread, 1)) for _ in range(3))
            work = cost.Work(path, path, int(macs), size, weights, copied)
            measured.append((work, cost.DEFAULT.seconds(work) * draw.uniform(1 - noise, 1 + noise)))
    fitted = cost.fit(measured)
    errors = np.array([fitted.seconds(work) / seconds - 1 for work, seconds in measured])
    zeros = 0
    for part, path in [*product(("macs", "weights", ""), cost.PATHS), ("bytes", None), ("copied", None)]:
        amounts = np.array(
            [
                (getattr(w, part) if part else 1) * (path in (None, w.path)) / seconds
                for w, seconds in measured
            ]
        )
        rates = {"macs": fitted.seconds_per_mac, "weights": fitted.seconds_per_weight_byte,
                 "": fitted.seconds_per_call, "bytes": {None: fitted.seconds_per_byte},
                 "copied": {None: fitted.seconds_per_copied_byte}}  # fmt: skip
        slope = errors @ amounts / np.linalg.norm(amounts)
        zeros += rates[part][path] == 0
        assert rates[part][path] >= 0
        assert slope >= -1e-9
        assert rates[part][path] == 0 or slope <= 1e-9
    assert zeros or not noise


@pytest.mark.parametrize(
    ("columns", "target"),
    [
        ([[0, 1, 4, 1], [0, 0, 0, 3], [4, 5, 0, 0], [3, 5, 2, 5]], [1, 5, 0, 1]),
        ([[3, 2, 1, 5], [3, 3, 5, 5], [1, 3, 5, 2], [3, 1, 5, 0]], [2, 1, 2, 4]),
        (
            [[4, 4, 2, 4, 5], [5, 3, 5, 5, 2], [4, 1, 4, 0, 5], [0, 0, 3, 2, 4], [2, 0, 5, 3, 0]],
            [4, 2, 4, 5, 5],
        ),
    ],
)
def test_least_squares_are_those_of_the_best_choice_of_positive_entries(
    columns: list[list[int]], target: list[int]
) -> None:
    """By trying every choice. In these cases more than one entry would become negative when another one joins."""
    a, b = np.array(columns, float).T, np.array(target, float)
    a /= np.linalg.norm(a, axis=0)
    least = np.linalg.norm(b)
    for chosen in product((False, True), repeat=len(columns)):
        part = a[:, chosen]
        x = np.linalg.lstsq(part, b, rcond=None)[0]
        if (x >= 0).all():
            least = min(least, np.linalg.norm(part @ x - b))
    found = cost._nonnegative(a, b)
    assert (found >= 0).all()
    assert np.linalg.norm(a @ found - b) == pytest.approx(least, rel=1e-12)


def test_a_fit_has_the_rates_of_slow_and_of_fast_paths() -> None:
    """A call that takes an hour beside a product of 10^12 MACs per second, and nothing that was copied."""
    calls = dict(zip(cost.PATHS, (1e-6, 1e-3, 1.0, 3600.0), strict=True))
    measured = [
        (cost.Work(path, path, macs, 0), calls[path] + macs * calls[path] * 1e-6)
        for path in cost.PATHS
        for macs in (0, 10**6, 3 * 10**6)
    ]
    fitted = cost.fit(measured)
    assert fitted.seconds_per_call == pytest.approx(calls, rel=1e-9)
    assert fitted.seconds_per_mac == pytest.approx({p: s * 1e-6 for p, s in calls.items()}, rel=1e-9)
    assert (fitted.seconds_per_byte, fitted.seconds_per_copied_byte) == (0.0, 0.0)
    assert set(fitted.seconds_per_weight_byte.values()) == {0.0}


def test_predictions_are_sums() -> None:
    p = cost.DEFAULT
    work = cost.Work("conv", "conv", 10**6, 10**5, 10**4, 10**3)
    expected = (
        p.seconds_per_call["conv"]
        + 1e6 * p.seconds_per_mac["conv"]
        + 1e5 * p.seconds_per_byte
        + 1e4 * p.seconds_per_weight_byte["conv"]
        + 1e3 * p.seconds_per_copied_byte
    )
    assert p.seconds(work) == pytest.approx(expected)


def test_equals_stay_in_order_and_copies_cost() -> None:
    a, b = (cost.Work(name, "linear", 10**6, 10**5) for name in "ab")
    assert cost.rank([a, b]) == ("a", "b")
    assert cost.rank([cost.Work("copies", "linear", 10**6, 10**5, copied=10**6), a]) == ("a", "copies")


def test_what_cannot_be_predicted_or_fitted() -> None:
    with pytest.raises(BadInput, match="path='abacus'"):
        cost.rank([cost.Work("a", "abacus", 1, 1)])
    with pytest.raises(BadInput, match="expected positive seconds on every path"):
        cost.fit([(cost.Work("a", "linear", 1, 1), 1.0)])
    with pytest.raises(BadInput, match="expected positive seconds"):
        cost.fit([(cost.Work(p, p, 1, 1), 0.0) for p in cost.PATHS])


def test_costs_add_up_field_by_field() -> None:
    assert Cost(1, 2, 3, 4) + Cost(10, 20, 30, 40) == Cost(11, 22, 33, 44)
    assert Cost(1, 2, 3, 4).bytes_moved == 7
    assert Cost(5, 6, 7, 8).repeated(3) == Cost(5, 18, 21, 24)


def test_the_size_of_elements_counts_in_networks() -> None:
    layers = [Layer(2, 3, (Sliding(3),)), Layer(3, 4, (Sliding(2),), bias=False)]
    first, second = (
        cost.convolution(5, 2, 3, [Sliding(3)], (9,), itemsize=2),
        cost.convolution(5, 3, 4, [Sliding(2)], (7,), bias=False, itemsize=2),
    )
    assert cost.network(layers, (9,), batch=5, itemsize=2) == first + second


def test_few_positions_are_cheaper_as_rows() -> None:
    """The limit is one sixteenth of the outputs, at least 1 and at most 64."""
    for outputs, limit in ((1, 1), (31, 1), (32, 2), (47, 2), (256, 16), (1024, 64), (10**6, 64)):
        assert cost.rows_are_cheaper(limit, outputs)
        assert not cost.rows_are_cheaper(limit + 1, outputs)


def test_a_processor_may_be_given_and_counts_its_measurements() -> None:
    rates = dict.fromkeys(cost.PATHS, 1e-09)
    slow_product = cost.Processor({**rates, "linear": 1e-3}, rates, rates, 1e-9, 1e-9)
    works = [cost.Work("product", "linear", 10**6, 1), cost.Work("convolution", "conv", 10**6, 1)]
    assert cost.rank(works, slow_product) == ("convolution", "product")
    measured = [
        (cost.Work(p, p, 10**6 * k, 10**5, 10**4 * k), 1e-3 * k) for p in cost.PATHS for k in (1, 2, 3)
    ]
    assert cost.fit(measured).measurements == len(measured) == 12


def test_a_bias_and_four_bytes_are_the_defaults() -> None:
    assert cost.convolution(1, 2, 3, [Sliding(1)], (1,)) == Cost(9, 6, 4 * 11, 4 * 3)
    assert cost.pointwise(1, 2, 3, (1,)) == cost.linear(1, 2, 3) == Cost(9, 6, 4 * 11, 4 * 3)


def test_cropped_windows_in_batches() -> None:
    """5 windows in batches of 2: two full ones and one of a single window; parameters are stored once."""
    layers = [Layer(1, 2, (Sliding(3),))]
    one, two = (cost.network(layers, (4,), batch, itemsize=2) for batch in (1, 2))
    expected = Cost(one.parameters, 5 * one.macs, 2 * two.bytes_read + one.bytes_read, 5 * one.bytes_written)
    assert cost.every_window(layers, (4,), (5,), batch=2, itemsize=2) == expected


def test_a_flattened_map_counts_bytes_of_its_own_type() -> None:
    half, whole = (cost.flatten_linear(2, 3, (4, 5), 6, itemsize=n) for n in (2, 4))
    assert half == cost.linear(2, 60, 6, itemsize=2)
    assert (2 * half.bytes_read, 2 * half.bytes_written) == (whole.bytes_read, whole.bytes_written)


def test_the_ranking_is_by_the_rates_of_the_processor_that_is_given() -> None:
    works = [cost.Work(path, path, 10**6, 4 * 10**6, 4 * 10**6) for path in ("linear", "conv")]
    even = dict.fromkeys(cost.PATHS, 1e-12)
    for fast in ("linear", "conv"):
        rates = {**dict.fromkeys(cost.PATHS, 1e-9), fast: 1e-12}
        processor = cost.Processor(rates, even, even, 1e-12, 1e-12)
        assert cost.rank(works, processor)[0] == fast


def test_the_built_in_rates_are_those_of_a_processor() -> None:
    """Each path has every rate, and a unit of work takes less than a millionth of a second beyond the call."""
    for path in cost.PATHS:
        for per in (cost.DEFAULT.seconds_per_mac, cost.DEFAULT.seconds_per_weight_byte):
            assert 1e-13 < per[path] < 1e-9
        assert 1e-7 < cost.DEFAULT.seconds_per_call[path] < 1e-4
    assert 1e-12 < cost.DEFAULT.seconds_per_byte < 1e-9
    assert 1e-12 < cost.DEFAULT.seconds_per_copied_byte < 1e-9


def test_what_is_not_given_counts_for_nothing() -> None:
    layer = Layer(2, 3, (Sliding(3), Sliding(1)))
    assert layer.cost((5, 4)) == layer.cost((5, 4), batch=1)
    assert layer.cost((5, 4)).macs * 2 == layer.cost((5, 4), batch=2).macs
    assert cost.Work("", "conv", 10, 20) == cost.Work("", "conv", 10, 20, weights=0, copied=0, rows=1)


def test_processors_of_equal_rates_are_equal_whatever_they_were_fitted_to() -> None:
    rates = dict.fromkeys(cost.PATHS, 1e-9)
    one = cost.Processor(rates, rates, rates, 1e-9, 1e-9)
    assert one == cost.Processor(rates, rates, rates, 1e-9, 1e-9, measurements=3)
    assert one != cost.Processor(rates, rates, rates, 1e-9, 2e-9)
    assert one.measurements == 0
    assert cost.DEFAULT.measurements == sum(len(seconds) for _, seconds in _measured())
