"""Geometry compared with loops over positions, with torch, and with published figures."""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from onebyone.errors import BadInput
from onebyone.laws.geometry import Field, Geometry, Parallel, Sliding, follow, out_positions, why_not_exact
from tests.laws.oracles import seen, slide, sliding_ops, starts

CHAIN_OPS = list(sliding_ops(kernels=(1, 2, 3), strides=(1, 2), dilations=(1, 2), ceil=(False,)))


def test_out_size_is_torchs_for_every_small_max_pool():
    for k, s, d, ceil, size in product(range(1, 6), range(1, 5), (1, 2, 3), (False, True), range(1, 13)):
        for p in range(k // 2 + 1):
            ours = Sliding(k, s, d, p, p, ceil).out_size(size)
            if ours:
                assert F.max_pool1d(torch.zeros(1, 1, size), k, s, p, d, ceil).shape[-1] == ours
            else:
                with pytest.raises(RuntimeError, match="output size"):
                    F.max_pool1d(torch.zeros(1, 1, size), k, s, p, d, ceil)


@pytest.mark.parametrize("ceil", [False, True])
def test_out_size_is_torchs_in_max_pool2d(ceil):
    for k, s, p, size in product((2, 3, 5), (1, 2, 3), (0, 1), range(5, 12)):
        out = F.max_pool2d(torch.zeros(1, 1, size, size + 3), (k, 2), (s, 2), (p, 1), ceil_mode=ceil).shape[
            -2:
        ]
        axes = Sliding(k, s, 1, p, p, ceil), Sliding(2, 2, 1, 1, 1, ceil)
        assert tuple(out) == (axes[0].out_size(size), axes[1].out_size(size + 3))


def test_out_size_is_torchs_for_every_small_convolution():
    for k, s, d, p, size in product(range(1, 5), range(1, 4), (1, 2), range(4), range(1, 10)):
        op = Sliding(k, s, d, p, p)
        if size + 2 * p >= op.extent:
            out = F.conv1d(torch.zeros(1, 1, size), torch.zeros(1, 1, k), stride=s, padding=p, dilation=d)
            assert op.out_size(size) == out.shape[-1]
        else:
            assert op.out_size(size) == 0


def test_places_and_partial_last_place_against_a_loop_with_asymmetric_padding():
    for op in sliding_ops(kernels=(1, 2, 3, 4, 5), strides=(1, 2, 3, 4), dilations=(1, 2, 3)):
        for size in range(1, 14):
            firsts = starts(op, size)
            assert op.out_size(size) == len(firsts), (op, size)
            reach = firsts[-1] + op.extent if firsts else 0
            assert op.partial_last(size) == (bool(firsts) and reach > size + op.pad_after), (op, size)
            assert op.ceil_mode or not op.partial_last(size)


def test_a_partial_place_changes_the_number_of_places_only_by_one():
    for op in sliding_ops(ceil=(True,)):
        floor = Sliding(op.kernel, op.stride, op.dilation, op.pad_before, op.pad_after)
        for size in range(1, 12):
            assert op.out_size(size) - floor.out_size(size) == op.partial_last(size)


def first_disagreement(through) -> tuple[Sliding, ...] | None:
    """The first chain of two operators on which `through` disagrees with the impulse oracle, or None."""
    for ops in product(CHAIN_OPS, repeat=2):
        field = through(through(Field(), ops[0]), ops[1])
        for place in (0, 1, 5):
            pixels = seen(list(ops), place)
            first = place * field.jump + field.start
            if (min(pixels), max(pixels) + 1) != (first, first + field.size):
                return ops
    return None


def test_field_of_every_short_chain_against_impulses():
    assert first_disagreement(Field.through) is None


@pytest.mark.parametrize(
    "faulty",
    [
        pytest.param(
            lambda f, op: Field(f.jump + op.stride - 1, f.through(op).start, f.through(op).size),
            id="wrong stride",
        ),
        pytest.param(
            lambda f, op: Field(f.through(op).jump, f.through(op).start + 1, f.through(op).size),
            id="off-by-one offset",
        ),
        pytest.param(
            lambda f, op: Field(f.through(op).jump, f.start - op.pad_before, f.through(op).size),
            id="padding not scaled by the jump",
        ),
        pytest.param(
            lambda f, op: Field(f.through(op).jump, f.through(op).start, f.size + (op.kernel - 1) * f.jump),
            id="dilation forgotten",
        ),
        pytest.param(
            lambda f, op: Field(
                f.through(op).jump, f.through(op).start, f.size + (op.extent - 1) * f.jump * op.stride
            ),
            id="jump taken after the stride",
        ),
    ],
)
def test_planted_faults_in_the_field_are_caught(faulty):
    assert first_disagreement(faulty) is not None


def test_numeric_impulses_move_exactly_the_places_whose_field_holds_them():
    """On a finite map with weights of one, pixels outside the field have no effect, and pixels under a tap do."""
    for ops in product(CHAIN_OPS[::3], repeat=2):
        size = 13
        if out_positions(ops, size) < 1:
            continue
        field = follow(ops)
        for pixel in range(size):
            values = [int(p == pixel) for p in range(size)]
            for op in ops:
                values = slide(values, op, [1] * op.kernel)
            for place, value in enumerate(values):
                first, last = (
                    place * field.jump + field.start,
                    place * field.jump + field.start + field.size - 1,
                )
                assert first <= pixel <= last or value == 0
                reached_inside = pixel in seen(list(ops), place) and not any(op.padded() for op in ops)
                assert value > 0 or not reached_inside


def test_join_is_the_hull_and_needs_equal_jumps():
    for start, size, other_start, other_size in product((-3, 0, 2), (1, 4), (-1, 5), (2, 3)):
        joined = Field(2, start, size).join(Field(2, other_start, other_size))
        pixels = {*range(start, start + size), *range(other_start, other_start + other_size)}
        assert joined == Field(2, min(pixels), max(pixels) - min(pixels) + 1)
    assert Field(2).join(Field(4)) is None
    with pytest.raises(BadInput, match="different jumps: 2 and 1 pixels"):
        follow([Parallel(((Sliding(1, stride=2),), ()))])
    with pytest.raises(BadInput, match="expected at least one branch"):
        follow([Parallel(())])


def test_branches_see_what_their_branches_see():
    for left, right, tail in product(CHAIN_OPS[::5], CHAIN_OPS[::7], CHAIN_OPS[::9]):
        right = Sliding(right.kernel, left.stride, right.dilation, right.pad_before, right.pad_after)
        field = follow([Parallel(((left,), (right,))), tail])
        pixels = seen([left, tail], 3) | seen([right, tail], 3)
        assert (3 * field.jump + field.start, field.size) == (min(pixels), max(pixels) + 1 - min(pixels))


def test_cropping_and_striding_a_map_are_operators_of_kernel_one():
    field = follow([Sliding(3, stride=2, pad_before=1)])
    for step, crop, place in product((1, 2, 3), (0, 1, 4), range(3)):
        moved = field.shifted(crop).strided(step)
        assert place * moved.jump + moved.start == (place * step + crop) * field.jump + field.start
        assert moved.size == field.size
    assert field.strided(3) == field.through(Sliding(1, stride=3))
    assert field.shifted(-2) == field.through(Sliding(1, pad_before=2))


# dense against windows


def run(values: list[int], ops: tuple[Sliding, ...]) -> list[int]:
    for number, op in enumerate(ops):
        values = slide(values, op, [2 + 3 * number + t * t for t in range(op.kernel)])
    return values


def dense_equals_windows(ops: tuple[Sliding, ...], window: int, count) -> bool:
    """Run the whole image and every window separately, in integers; `count` gives the number of windows."""
    jump = follow(ops).jump
    nominal = out_positions(ops, window)
    for size in range(window, window + 2 * jump + 1):
        image = [1 + (7 * p * p + 3 * p) % 23 for p in range(size)]
        dense = run(image, ops)
        for i in range(count(size, window, jump)):
            crop = image[i * jump : i * jump + window]
            if len(crop) < window or run(crop, ops) != dense[i : i + nominal]:
                return False
    return True


def positions(size: int, window: int, stride: int) -> int:
    return Geometry((window,), (stride,), (0,), (window,), (0,), True).positions((size,))[0]


DENSE_OPS = list(sliding_ops(kernels=(1, 2, 3), strides=(1, 2, 3), dilations=(1,)))


def test_no_reason_against_exactness_means_that_dense_equals_windows():
    proven = 0
    for ops in product(DENSE_OPS, repeat=2):
        for window in (6, 7, 8):
            if out_positions(ops, window) >= 1 and not why_not_exact(ops, window):
                assert dense_equals_windows(ops, window, positions), (ops, window)
                proven += 1
    assert proven > 300


def test_every_padding_before_and_partial_place_that_is_named_is_a_difference():
    """All weights and pixels are positive, so a pixel missing at the border of a crop always changes the sum."""
    for op in DENSE_OPS:
        for window in (6, 7, 8):
            if op.out_size(window) >= 1 and (op.pad_before or op.partial_last(window)):
                assert why_not_exact([op], window)
                assert not dense_equals_windows((op,), window, positions), (op, window)


def test_reasons_name_the_step_and_the_branch():
    chain = [
        Sliding(3),
        Parallel(((), (Sliding(3, pad_before=1, pad_after=1),))),
        Sliding(2, 2, ceil_mode=True),
    ]
    assert why_not_exact(chain, 9) == (
        "step 1, step 0: padding 1 before and 1 after",
        "step 2: ceil_mode's last position is partial at 7 positions",
    )
    assert why_not_exact(chain[:1] + chain[2:], 10) == ()


def test_one_place_too_many_and_a_wrong_stride_are_caught():
    ops = (Sliding(3), Sliding(2, stride=2))
    assert dense_equals_windows(ops, 8, positions)
    assert not dense_equals_windows(ops, 8, lambda *a: positions(*a) + 1)
    assert not dense_equals_windows(ops, 8, lambda size, window, stride: positions(size, window, 1))


# published numbers


def same(kernel: int, stride: int = 1) -> Sliding:
    return Sliding(kernel, stride, pad_before=kernel // 2, pad_after=kernel // 2)


def test_vgg16_last_pool():
    chain = [op for convs in (2, 2, 3, 3, 3) for op in [same(3)] * convs + [Sliding(2, 2)]]
    assert follow(chain) == Field(jump=32, start=-90, size=212)
    assert out_positions(chain, 224) == 7


def resnet50(stride_in_first: bool) -> list[Sliding | Parallel]:
    steps: list[Sliding | Parallel] = [same(7, 2), same(3, 2)]
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            first, middle = (stride, 1) if stride_in_first else (1, stride)
            body = (Sliding(1, first), same(3, middle), Sliding(1))
            steps.append(Parallel((body, (Sliding(1, stride),) if not block else ())))
    return steps


@pytest.mark.parametrize(("stride_in_first", "size"), [(True, 483), (False, 427)])
def test_resnet50(stride_in_first, size):
    steps = resnet50(stride_in_first)
    assert (follow(steps).size, follow(steps).jump) == (size, 32)
    assert out_positions(steps, 224) == 7


def inception_v3() -> list[Sliding | Parallel]:
    """One axis of Szegedy et al., "Rethinking the Inception Architecture", 2016, up to Mixed_7c."""
    one = Sliding(1)
    # a 1×7 and a 7×1 convolution are, on one axis, a 1 and a 7
    a = Parallel(((one,), (one, same(5)), (one, same(3), same(3)), (same(3), one)))
    b = Parallel(((Sliding(3, 2),), (one, same(3), Sliding(3, 2)), (Sliding(3, 2),)))
    c = Parallel(((one,), (one, one, same(7)), (one, same(7), one, same(7), one), (same(3), one)))
    d = Parallel(((one, Sliding(3, 2)), (one, one, same(7), Sliding(3, 2)), (Sliding(3, 2),)))
    either = Parallel(((same(3),), (one,)))
    e = Parallel(((one,), (one, either), (one, same(3), either), (same(3), one)))
    stem = [Sliding(3, 2), Sliding(3), same(3), Sliding(3, 2), one, Sliding(3), Sliding(3, 2)]
    return [*stem, a, a, a, b, c, c, c, c, d, e, e]


def test_inception_v3():
    assert (follow(inception_v3()).size, follow(inception_v3()).jump) == (1311, 32)
    assert out_positions(inception_v3(), 299) == 8


def test_caffe_net_surgery():
    pool = Sliding(3, 2, ceil_mode=True)
    chain = [Sliding(11, 4), pool, same(5), pool, same(3), same(3), same(3), pool, Sliding(6)]
    assert out_positions(chain, 227) == 1
    assert out_positions(chain, 451) == 8
    geometry = Geometry.from_fields((227, 227), [follow(chain)] * 2, why_not_exact(chain, 227))
    assert geometry.positions((451, 451)) == (8, 8)
    assert not geometry.exact
    assert len(geometry.inexact_because) == 4


# Geometry


def test_positions_count_the_windows_that_fit():
    for window, stride, size in product(range(1, 6), range(1, 5), range(1, 20)):
        fits = [start for start in range(0, size, stride) if start + window <= size]
        if fits:
            assert positions(size, window, stride) == len(fits)
        else:
            with pytest.raises(
                BadInput, match=f"the image is {size} pixels, smaller than the window of {window}"
            ):
                positions(size, window, stride)


def test_the_last_window_lies_in_the_image_and_another_would_not():
    geometry = Geometry((5, 4), (3, 2), (0, 0), (5, 4), (0, 0), True)
    for height, width in product(range(5, 15), range(4, 12)):
        rows, columns = geometry.positions((height, width))
        (_, bottom), (_, right) = geometry.window_at((rows - 1, columns - 1))
        assert bottom <= height < bottom + 3
        assert right <= width < right + 2


def test_halo_is_what_the_receptive_field_has_beyond_the_window():
    for offset, rf, rf_offset in product((-1, 0, 2), range(1, 12), range(-2, 6)):
        geometry = Geometry((6,), (2,), (offset,), (rf,), (rf_offset,), True)
        (window,), (field,) = geometry.window_at((3,)), geometry.receptive_field_at((3,))
        beyond = set(range(*field)) - set(range(*window))
        outside = [p for p in beyond if p < window[0]], [p for p in beyond if p >= window[1]]
        reach = (max(0, window[0] - field[0]), max(0, field[1] - window[1]))
        assert geometry.halo == (reach,)
        if field[1] > window[0] and field[0] < window[1]:
            assert geometry.halo == ((len(outside[0]), len(outside[1])),)


def test_geometry_goes_to_json_and_back():
    geometry = Geometry.from_fields((224, 200), [Field(32, -90, 212), Field(16, 0, 100)], ["conv1: padding"])
    text = json.dumps(geometry.to_dict())
    assert Geometry.from_dict(json.loads(text)) == geometry
    assert geometry.halo == ((90, 0), (0, 0))
    assert str(geometry).splitlines() == [
        "window 224×200, stride 32×16, window offset 0×0",
        "receptive field 212×100, offset 90×0",
        "not exact: conv1: padding",
    ]


@pytest.mark.parametrize(
    "damage", [{"stride": None}, {"stride": [1.5, 2]}, {"window": [8]}, {"window": [0, 8]}]
)
def test_a_damaged_geometry_is_refused(damage):
    data = Geometry((8, 8), (2, 2), (0, 0), (8, 8), (0, 0), True).to_dict()
    with pytest.raises(BadInput):
        Geometry.from_dict({**data, **damage})
    with pytest.raises(BadInput, match="not a geometry"):
        Geometry.from_dict({key: value for key, value in data.items() if key != "exact"})


def test_bad_arguments_name_the_argument():
    with pytest.raises(BadInput, match="stride=0: expected at least 1"):
        Sliding(3, stride=0)
    with pytest.raises(BadInput, match="pad_after=-1: expected 0 or more"):
        Sliding(3, pad_after=-1)
    geometry = Geometry((8, 8), (2, 2), (0, 0), (8, 8), (0, 0), True)
    with pytest.raises(BadInput, match=r"index=\(1,\): expected 2 axes, not 1"):
        geometry.window_at((1,))


def test_reasons_before_and_inside_of_branches_are_all_listed() -> None:
    padded = Sliding(3, pad_before=1, pad_after=2)
    assert why_not_exact([padded, Parallel(((padded,), (), (padded, padded)))], 9) == (
        "step 0: padding 1 before and 2 after",
        "step 1, step 0: padding 1 before and 2 after",
        "step 1, step 0: padding 1 before and 2 after",
        "step 1, step 1: padding 1 before and 2 after",
    )
