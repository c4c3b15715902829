"""The demo's data: held-out data are not used in training, and digits are at their stated positions."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from onebyone.comparison.digits import Digits, load_digits
from onebyone.demo import data, pipeline, train
from onebyone.demo.digit_page import compose, scattered


@pytest.fixture(scope="module")
def split() -> tuple[Digits, Digits]:
    digits = load_digits(0, pipeline.HELD_OUT_DIGITS)
    return digits.train, digits.test


def test_every_digit_is_on_one_side(split: tuple[Digits, Digits]) -> None:
    train_ids, test_ids = (set(part.ids.tolist()) for part in split)
    assert not train_ids & test_ids
    assert train_ids | test_ids == set(range(1797))


def test_both_sides_hold_every_digit_alike(split: tuple[Digits, Digits]) -> None:
    shares = [torch.bincount(part.labels, minlength=10) / len(part) for part in split]
    # stratified: each class's share differs by less than one digit of the smaller side
    assert float((shares[0] - shares[1]).abs().max()) < 1 / len(split[1])


def test_no_held_out_digit_is_a_copy_of_a_trained_one(split: tuple[Digits, Digits]) -> None:
    seen = {one.numpy().tobytes() for one in split[0].ink}
    assert not [one for one in split[1].ink if one.numpy().tobytes() in seen]


def test_the_split_depends_on_the_seed_alone(split: tuple[Digits, Digits]) -> None:
    again, other = (load_digits(seed, pipeline.HELD_OUT_DIGITS).test for seed in (0, 1))
    assert torch.equal(split[1].ids, again.ids)
    assert not torch.equal(split[1].ids, other.ids)


def test_no_photograph_is_on_both_sides() -> None:
    assert not set(data.TRAIN_PHOTOGRAPHS) & set(data.TEST_PHOTOGRAPHS)
    # the two motorcycles are one scene seen by two cameras
    assert "motorcycle_right.png" not in {*data.TRAIN_PHOTOGRAPHS, *data.TEST_PHOTOGRAPHS}


def test_photographs_come_with_the_packages_and_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    for name in data.TRAIN_PHOTOGRAPHS + data.TEST_PHOTOGRAPHS:
        image = data.load_photograph(name)
        assert image.ndim == 2
        assert 0 <= float(image.min()) < float(image.max()) <= 1
    assert "pooch" not in sys.modules


def test_photographs_differ() -> None:
    """No held-out photograph is a copy of a training photograph: their thumbnails are not similar."""

    def thumbnail(name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        small = torch.nn.functional.interpolate(data.load_photograph(name)[None, None], (16, 16), mode="area")
        return small.flatten().double().numpy()

    both = [thumbnail(n) for n in data.TRAIN_PHOTOGRAPHS + data.TEST_PHOTOGRAPHS]
    alike = np.corrcoef(both)[: len(data.TRAIN_PHOTOGRAPHS), len(data.TRAIN_PHOTOGRAPHS) :]
    assert alike.max() < 0.9


def test_a_digit_is_drawn_upright_and_in_the_middle() -> None:
    ink = torch.zeros(1, 8, 8)
    ink[0, 1, 6] = 1.0  # second row, seventh column
    drawn = data.strokes(ink, data.WINDOW)[0, 0]
    margin, cell = (data.WINDOW - data.DIGIT) // 2, data.DIGIT // 8
    y, x = divmod(int(drawn.argmax()), data.WINDOW)
    assert margin + cell <= y < margin + 2 * cell
    assert margin + 6 * cell <= x < margin + 7 * cell
    assert float(drawn[:, :margin].max()) == 0


def test_a_page_holds_its_digits_where_it_says(split: tuple[Digits, Digits]) -> None:
    photograph = torch.full((300, 400), 0.8)
    page = compose(photograph, "plain", split[1], count=20, seed=3)
    bare = data.to_bytes(photograph)
    assert np.bincount(page.labels, minlength=10).tolist() == [2] * 10
    outside = np.ones(bare.shape, dtype=bool)
    for (x1, y1, x2, y2), label, row in zip(page.boxes, page.labels, page.digit_ids, strict=True):
        assert (x2 - x1, y2 - y1) == (data.WINDOW, data.WINDOW)
        outside[y1:y2, x1:x2] = False
        where = int((split[1].ids == int(row)).nonzero())
        assert int(split[1].labels[where]) == label
        # independently: the digit's own ink, enlarged, is dark where the page is
        ink = np.kron(split[1].ink[where].numpy(), np.ones((4, 4)))
        darkness = 204.0 - page.image[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4]
        assert np.corrcoef(ink.ravel(), darkness.ravel())[0, 1] > 0.8
    assert (page.image[outside] == bare[outside]).all()


def test_boxes_on_a_page_do_not_touch() -> None:
    corners = scattered((600, 900), 60, np.random.default_rng(1))
    apart = np.abs(corners[:, None] - corners[None]).max(axis=2)
    assert apart[~np.eye(60, dtype=bool)].min() >= data.WINDOW
    assert (corners >= 0).all()
    assert (corners + data.WINDOW <= [600, 900]).all()


def test_too_many_digits_for_a_page_are_refused() -> None:
    with pytest.raises(ValueError, match=r"10 squares of 48 pixels do not fit on \(80, 80\)"):
        scattered((80, 80), 10, np.random.default_rng(0))


def test_batches_are_half_digits_and_repeat_with_the_seed(split: tuple[Digits, Digits]) -> None:
    crops = train.Crops(
        torch.rand(50, 1, data.WINDOW, data.WINDOW, generator=torch.Generator().manual_seed(0))
    )
    images, labels = train.Batches(split[0], crops, seed=5).draw()
    again, _ = train.Batches(split[0], crops, seed=5).draw()
    assert images.shape == (train.BATCH, 1, data.WINDOW, data.WINDOW)
    assert int((labels == data.BACKGROUND).sum()) == train.BATCH // 2
    assert torch.equal(images, again)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_off_centre_digits_are_off_by_far_or_more(split: tuple[Digits, Digits]) -> None:
    batches = train.Batches(split[0], train.Crops(torch.zeros(1, 1, data.WINDOW, data.WINDOW)), seed=0)
    shift = batches._far_shifts(2000)
    assert float(shift.abs().amax(dim=1).min()) >= train.FAR
    # all four sides are met
    assert {(int(a), int(s)) for a, s in zip(shift.abs().argmax(1), shift.sum(1).sign(), strict=True)} >= {
        (0, 1),
        (0, -1),
        (1, 1),
        (1, -1),
    }


def test_a_shift_moves_the_digit_down_and_right_by_that_many_pixels() -> None:
    digits = Digits(torch.ones(1, 8, 8), torch.tensor([3]), torch.tensor([0]))
    batches = train.Batches(digits, train.Crops(torch.full((1, 1, data.WINDOW, data.WINDOW), 0.9)), seed=0)
    centres = []
    for y, x in ((0.0, 0.0), (6.0, -4.0)):
        images, _ = batches._with_digits(200, torch.tensor([[x, y]]).expand(200, 2))
        dark = images.mean(dim=(0, 1)).neg()
        dark = dark - dark.min()
        rows, columns = dark.sum(1), dark.sum(0)
        index = torch.arange(data.WINDOW).float()
        centres.append(
            (float((rows * index).sum() / rows.sum()), float((columns * index).sum() / columns.sum()))
        )
    down, right = centres[1][0] - centres[0][0], centres[1][1] - centres[0][1]
    # a square of 32 moved by 6 leaves the 40 window by 2 pixels, so its centre moves a little less
    assert 4 < down <= 6.2
    assert -4.2 <= right < -3
