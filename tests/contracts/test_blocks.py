"""Spatial blocks: who is near whom, every pixel tested once, classes in every fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from edgekd.contracts.blocks import BUFFER, TEST, TRAIN, VAL, BlockSpec, assign, deal, grown
from edgekd.errors import DatasetError

Map = npt.NDArray[np.uint8]


def spec(**changes: Any) -> BlockSpec:
    values: dict[str, Any] = {"side_px": 8, "buffer_px": 2, "folds": 4}
    return BlockSpec.model_validate(values | changes)


def near(mask: npt.NDArray[np.bool_], by_px: int) -> npt.NDArray[np.bool_]:
    """Pixels at most so far from one that is set, by looking at every pair of pixels."""
    rows, columns = np.nonzero(mask)
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    distance = np.maximum(np.abs(y[..., None] - rows), np.abs(x[..., None] - columns))
    return np.asarray((distance <= by_px).any(-1))


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, BlockSpec, Map | None]:
    height, width = draw(st.integers(6, 40)), draw(st.integers(6, 40))
    folds = draw(st.integers(2, 6))
    made = spec(
        side_px=draw(st.integers(2, 16)),
        buffer_px=draw(st.integers(0, 5)),
        folds=folds,
        val=draw(st.integers(0, folds - 2)),
        seed=draw(st.integers(0, 9)),
        stratified=draw(st.booleans()),
    )
    random = np.random.default_rng(draw(st.integers(0, 9)))
    target = random.choice([0, 1, 2, 255], (height, width)).astype(np.uint8)
    return height, width, made, target if draw(st.booleans()) else None


@given(cases())
@settings(max_examples=60)
def test_the_rules_of_blocks_hold(case: tuple[int, int, BlockSpec, Map | None]) -> None:
    height, width, made, target = case
    tested = np.zeros((height, width), dtype=int)
    try:
        every = [
            assign(height, width, made.model_copy(update={"fold": fold}), target)
            for fold in range(made.folds)
        ]
    except DatasetError:
        reject()  # too few blocks, or the buffer ate a part; hypothesis counts these
    for parts in every:
        assert parts.shape == (height, width) and parts.dtype == np.uint8
        assert set(np.unique(parts)) <= {TRAIN, VAL, TEST, BUFFER}
        tested += parts == TEST
        forbidden = near(parts == TEST, made.buffer_px)
        assert not ((parts == TRAIN) & forbidden).any()
        assert not ((parts == VAL) & forbidden).any()
        if made.val:
            assert not ((parts == TRAIN) & near(parts == VAL, made.buffer_px)).any()
        # nothing is thrown away that could be used
        used = near(parts == TEST, made.buffer_px) | near(parts == VAL, made.buffer_px)
        assert ((parts == BUFFER) <= used).all()
        assert (parts == TRAIN).any() and (parts == VAL).any() == bool(made.val)
    assert (tested == 1).all(), "every pixel is the test of one fold"


@pytest.mark.parametrize("by_px", [0, 1, 3, 50])
def test_grown_is_the_chebyshev_distance(by_px: int) -> None:
    mask = np.random.default_rng(1).random((17, 11)) < 0.03
    assert mask.any()
    np.testing.assert_array_equal(grown(mask, by_px), near(mask, by_px))
    assert not grown(np.zeros((4, 4), dtype=bool), by_px).any()


def test_the_deal_is_a_function_of_the_seed_and_the_scene() -> None:
    one = deal(64, 64, spec())
    np.testing.assert_array_equal(one, deal(64, 64, spec(fold=3, buffer_px=0, val=0)))
    assert (one != deal(64, 64, spec(seed=1))).any()
    assert (one != deal(64, 64, spec(), salt=1)).any()
    assert sorted(np.unique(one, return_counts=True)[1]) == [1024] * 4  # 64 blocks, 16 each


def test_blocks_are_whole_and_none_is_a_sliver() -> None:
    folds = deal(25, 10, spec(side_px=10, folds=3))  # three rows of blocks, of 8 and 9 px
    borders = np.flatnonzero(np.diff(folds[:, 0].astype(int))) + 1
    assert set(borders) <= {9, 17} and (folds == folds[:, :1]).all()


def test_a_stratified_deal_spreads_a_rare_class_over_all_folds() -> None:
    # a class in four blocks of 64; a blind deal puts two of them into one fold most of the time
    target = np.zeros((64, 64), dtype=np.uint8)
    for row, column in ((0, 0), (0, 8), (40, 40), (56, 0)):
        target[row : row + 8, column : column + 8] = 1
    even = blind = 0
    for seed in range(10):
        for stratified in (True, False):
            folds = deal(64, 64, spec(seed=seed, stratified=stratified), target)
            whole = len(np.unique(folds[target == 1])) == 4
            even, blind = even + (whole and stratified), blind + (whole and not stratified)
    assert even == 10 and blind < 5
    hidden = np.full_like(target, 255)  # without labels there is nothing to spread
    np.testing.assert_array_equal(deal(64, 64, spec(), hidden), deal(64, 64, spec(), None))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"side_px": 64}, r"into 1, fewer than the 4 folds; give a smaller data.blocks.side_px"),
        ({"buffer_px": 40}, r"leaves no train pixel.*larger data.blocks.side_px"),
        ({"folds": 2, "val": 0, "buffer_px": 64}, "leaves no train pixel"),
    ],
)
def test_what_leaves_nothing_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        assign(64, 64, spec(**changes))


def test_a_validation_block_that_the_buffer_eats_is_told() -> None:
    said = set()
    for seed in range(12):  # four blocks in a row; one beside the test is within its buffer
        try:
            assign(8, 32, spec(buffer_px=8, seed=seed))
        except DatasetError as err:
            said.add(str(err).split("leaves no ")[1].split()[0])
    assert said == {"train", "val"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fold": 4}, "4 folds count from 0 to 3"),
        ({"val": 3}, "none is left to train"),
        ({"folds": 1}, "greater than or equal to 2"),
        ({"val": True}, "no value for this key"),
        ({"buffer_px": -1}, "greater than or equal to 0"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=words):
        spec(**changes)
