"""The stage machine: forward only, one stage at a time, and exact through a checkpoint."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.contracts.distill import StagesSpec
from edgekd.errors import InputError
from edgekd.train.distill.schedule import STAGES, StageMachine


def machine(**options) -> StageMachine:
    return StageMachine(StagesSpec(**({"smoothing": 0.0} | options)))


def walk(stages: StageMachine, ratios: list[float]) -> list[str]:
    seen = []
    for ratio in ratios:
        stages.update(ratio * 2.0, 2.0)
        seen.append(stages.stage)
    return seen


def test_the_weights_of_the_paper_and_late_is_reached():
    """In the published sample code late cannot be reached: its condition lies within middle's."""
    stages = machine()
    assert (stages.stage, stages.weights, stages.ratio) == ("early", (0.2, 0.4, 0.4), None)
    walk(stages, [1.0, 0.9, 0.85])
    assert stages.stage == "early"  # not below
    walk(stages, [0.84])
    assert (stages.stage, stages.weights) == ("middle", (0.6, 0.2, 0.2))
    walk(stages, [0.3, 0.9, 0.94])
    assert stages.stage == "middle"
    walk(stages, [0.95])
    assert (stages.stage, stages.weights) == ("late", (0.7, 0.15, 0.15))


def test_it_never_goes_back():
    stages = machine()
    assert walk(stages, [1.0, 0.5, 1.0]) == ["early", "middle", "late"]
    assert walk(stages, [0.1, 2.0, 0.1, 0.9, 0.0]) == ["late"] * 5
    stages = machine()
    assert walk(stages, [0.5, 0.9, 0.86, 0.5]) == ["middle"] * 4  # above 0.85 again: no early


def test_one_update_moves_one_stage_even_where_both_conditions_hold():
    stages = machine(to_middle=2.0, to_late=0.5)
    assert walk(stages, [1.0, 1.0, 1.0]) == ["middle", "late", "late"]


def test_patience_counts_steps_in_a_row():
    stages = machine(patience_steps=3)
    low, high = 0.5, 1.0
    assert walk(stages, [low, low, high, low, low]) == ["early"] * 5
    assert walk(stages, [low]) == ["middle"]
    assert walk(stages, [high, high, low, high, high, high]) == ["middle"] * 5 + ["late"]


def test_the_count_begins_anew_with_a_stage():
    stages = machine(patience_steps=2, to_middle=2.0, to_late=0.5)
    assert walk(stages, [1.0] * 4) == ["early", "middle", "middle", "late"]


def test_smoothing_is_an_average_in_which_the_first_value_counts_fully():
    stages = machine(smoothing=0.9)
    stages.update(3.0, 4.0)
    assert stages.ratio == pytest.approx(0.75)
    assert stages._corrected(stages._teacher) == pytest.approx(3.0)
    stages.update(1.0, 2.0)
    # weights 0.09 and 0.1, which sum to 0.19
    assert stages._corrected(stages._teacher) == pytest.approx((0.09 * 3 + 0.1 * 1) / 0.19)
    assert stages.ratio == pytest.approx((0.09 * 3 + 0.1 * 1) / (0.09 * 4 + 0.1 * 2))


def test_smoothing_lets_one_bad_step_pass():
    stages = machine(smoothing=0.98)
    assert set(walk(stages, [1.0] * 50 + [0.2] + [1.0] * 5)) == {"early"}
    assert walk(stages, [0.2] * 100)[-1] == "middle"


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, -0.1])
@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_a_loss_that_is_no_number_is_refused_by_name(whose, loss):
    stages = machine(smoothing=0.5)
    stages.update(1.0, 1.0)
    before = stages.state_dict()
    with pytest.raises(InputError, match=f"the {whose}'s reconstruction loss is {loss}") as caught:
        stages.update(*((loss, 1.0) if whose == "teacher" else (1.0, loss)))
    assert "update 2" in str(caught.value)
    assert stages.state_dict() == before


def test_losses_of_zero():
    stages = machine()
    stages.update(1.0, 0.0)
    assert (stages.stage, stages.ratio) == ("early", None)
    stages.update(0.0, 0.0)
    assert (stages.stage, stages.ratio) == ("early", None)
    stages.update(0.0, 1.0)
    assert (stages.stage, stages.ratio) == ("middle", 0.0)


def test_no_ratio_breaks_the_row():
    stages = machine(patience_steps=2)
    walk(stages, [0.5])
    stages.update(0.5, 0.0)
    assert walk(stages, [0.5, 0.5]) == ["early", "middle"]


losses = st.floats(0.0, 10.0, allow_nan=False)
specs = st.builds(
    StagesSpec,
    smoothing=st.sampled_from([0.0, 0.5, 0.98]),
    patience_steps=st.integers(1, 4),
    to_middle=st.floats(0.2, 2.0),
    to_late=st.floats(0.2, 2.0),
)


@settings(max_examples=200, deadline=None)
@given(specs, st.lists(st.tuples(losses, losses), max_size=40), st.data())
def test_forward_only_and_resume_equals_no_break(spec, sequence, data):
    whole = StageMachine(spec)
    history = []
    for pair in sequence:
        whole.update(*pair)
        history.append((whole.stage, whole.ratio, whole.weights))
    indices = [0, *(STAGES.index(stage) for stage, _, _ in history)]
    assert all(0 <= b - a <= 1 for a, b in itertools.pairwise(indices))

    cut = data.draw(st.integers(0, len(sequence)))
    first = StageMachine(spec)
    for pair in sequence[:cut]:
        first.update(*pair)
    second = StageMachine(spec)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    resumed = []
    for pair in sequence[cut:]:
        second.update(*pair)
        resumed.append((second.stage, second.ratio, second.weights))
    assert resumed == history[cut:]
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    "change", [{"stage": "last"}, {"updates": "many"}, {"teacher": None}, {"streak": ...}]
)
def test_a_state_that_is_none_is_refused_and_changes_nothing(change):
    stages = machine()
    walk(stages, [0.5])
    before = stages.state_dict()
    state = {key: value for key, value in (before | change).items() if value is not ...}
    with pytest.raises(InputError, match="not the state of a schedule"):
        stages.load_state_dict(state)
    assert stages.state_dict() == before
