"""Files of rules: what they say on a day, which faults they have, and their rows."""

from __future__ import annotations

import copy
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgekd.contracts.policy import ClassFacts, Policy, load_policy, policy_of
from edgekd.contracts.policy_rows import ZoneRules, compile_zone, padded, unsaid
from edgekd.contracts.projection import OBEYED, past_bounds, project
from edgekd.errors import InputError, RecipeError

TODAY = datetime.date(2026, 6, 1)
CLASSES = ["water", "meadow", "house", "raised_house", "tower"]
FACTS = {
    "meadow": ClassFacts(height_m=0, setback_m=200),
    "house": ClassFacts(height_m=9, setback_m=20, floor_m=0.5),
    "raised_house": ClassFacts(height_m=12, setback_m=20, floor_m=3.0),
    "tower": ClassFacts(height_m=40, setback_m=60, floor_m=4.0),
}
RULES: dict[str, Any] = {
    "schema": 1,
    "name": "bay",
    "zones": {"A": "the seawall", "B": "the slope"},
    "rules": [
        {"id": "12.4", "type": "height_limit", "max_m": 10, "zones": ["A"], "priority": 2,
         "valid": {"from": "2026-01-01", "until": "2027-01-01"}, "source": "Ordinance 12, 4"},
        {"id": "9.1", "type": "flood_zone", "min_floor_m": 2.5, "zones": ["A"], "priority": 1,
         "source": "Ordinance 9, 1"},
        {"id": "3.2", "type": "setback", "min_m": 50, "share": 0.1, "zones": ["B"], "priority": 3,
         "source": "Ordinance 3, 2"},
        {"id": "7", "type": "linear", "coefficients": {"meadow": -2, "tower": 1}, "max": -0.4,
         "priority": 5, "source": "Ordinance 7"},
    ],
}  # fmt: skip


def policy(*changes: Any, rules: list[dict[str, Any]] | None = None) -> Policy:
    """The file with keys of rules changed: ``(number, key, value)``."""
    value = copy.deepcopy(RULES)
    if rules is not None:
        value["rules"] = rules
    for number, key, new in changes:
        value["rules"][number][key] = new
    return policy_of(value, "test")


def limit(name: str, classes: dict[str, float], most: float, priority: int) -> dict[str, Any]:
    return {
        "id": name, "type": "linear", "coefficients": classes, "max": most, "priority": priority,
        "source": "made up",
    }  # fmt: skip


def rows_of(*rules: dict[str, Any], rows: int = 8) -> ZoneRules:
    return compile_zone(policy(rules=list(rules)), "A", TODAY, CLASSES, FACTS, rows)


def test_rules_in_force() -> None:
    found = policy()
    assert [rule.id for rule in found.in_force("A", TODAY)] == ["12.4", "9.1", "7"]
    assert [rule.id for rule in found.in_force("B", TODAY)] == ["3.2", "7"]
    for day, there in (("2025-12-31", False), ("2026-01-01", True), ("2026-12-31", True),
                       ("2027-01-01", False)):  # fmt: skip
        names = [rule.id for rule in found.in_force("A", datetime.date.fromisoformat(day))]
        assert ("12.4" in names) == there, day
    assert found.next_change(datetime.date(2025, 5, 5)) == datetime.date(2026, 1, 1)
    assert found.next_change(datetime.date(2026, 1, 1)) == datetime.date(2027, 1, 1)
    assert found.next_change(datetime.date(2027, 1, 1)) is None
    with pytest.raises(InputError, match="no zone 'C' .valid: A, B"):
        found.in_force("C", TODAY)


def test_the_digest_is_of_what_is_said(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(RULES, sort_keys=False))
    assert load_policy(path).digest == policy().digest
    assert policy((0, "max_m", 10.0)).digest == policy().digest
    assert policy((0, "max_m", 11)).digest != policy().digest
    assert policy((0, "priority", 3)).digest != policy().digest


def test_versions_of_a_rule_follow_each_other() -> None:
    first, second = copy.deepcopy(RULES["rules"][0]), copy.deepcopy(RULES["rules"][0])
    second["valid"] = {"from": "2027-01-01"}
    assert len(policy(rules=[first, second]).rules) == 2
    second["valid"] = {"from": "2026-12-31"}
    with pytest.raises(
        RecipeError, match=r"12.4 stands twice for the same days in zone A; end the"
    ):
        policy(rules=[first, second])
    second["zones"] = ["B"]
    assert len(policy(rules=[first, second]).rules) == 2, "elsewhere it is another"
    del second["zones"]
    with pytest.raises(RecipeError, match=r"stands twice .* in zone A"):
        policy(rules=[first, second])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("type: height_limi", "rules.0.type is 'height_limi'"),
        ("type: setback", "rule 12.4 is of type setback, to which max_m does not apply"),
        ("zones: [C]", "rule 12.4 names zone 'C', which is not there"),
        ("max_m: -1", "max_m"),
        ("max: 3", "rule 12.4 is of type height_limit, to which max does not apply"),
        ("maxx: 3", "unknown key 'maxx' in rules.0; did you mean 'max'"),
        ("priority: 0", "priority"),
        ("share: 1.0", "share"),
        ("valid: {from: 2027-01-01, until: 2026-01-01}", "until 2026-01-01 is not after from"),
        ("valid: {from: 2027-02-30}", "day is out of range"),
        ("valid: {from: '2027-02-30'}", "from"),
        *(
            (f"valid: {{until: {day}}}", f"expected a day as YYYY-MM-DD, received '{said}'")
            for day, said in (
                ("1767225600", "1767225600"),
                ("'1767225600'", "1767225600"),
                ("1767225600.5", "1767225600.5"),
                ("'20260101'", "20260101"),
                ("2026-01-01T00:00:00", "2026-01-01 00:00:00"),
                ("2026-01-01T00:00:00+02:00", "2026-01-01 00:00:00+02:00"),
                ("'2026-01-01T00:00:00Z'", "2026-01-01T00:00:00Z"),
                ("'2026-1-1'", "2026-1-1"),
                ("' 2026-01-01'", " 2026-01-01"),
                ("'2026-W01-1'", "2026-W01-1"),
            )
        ),
        ("valid: {until: yes}", "until"),
        ("source: ''", "source"),
        ("max_m: .nan", "max_m"),
    ],
)
def test_faults_of_a_file_are_named(tmp_path: Path, text: str, words: str) -> None:
    key = text.split(":")[0]
    values = {k: v for k, v in RULES["rules"][0].items() if k != key}
    body = yaml.safe_dump({**RULES, "rules": []}, sort_keys=False).replace("rules: []\n", "")
    rule = yaml.safe_dump([values], sort_keys=False).rstrip()
    path = tmp_path / "rules.yaml"
    path.write_text(f"{body}rules:\n{rule}\n  {text}\n")
    with pytest.raises(RecipeError) as caught:
        load_policy(path)
    assert words in str(caught.value) and "line " in str(caught.value)


def test_rows_by_hand() -> None:
    found = compile_zone(policy(), "A", TODAY, CLASSES, FACTS, 6)
    assert [row.rule.id for row in found.rows] == ["9.1", "12.4", "7"], "by priority"
    expected = np.zeros((6, 5))
    expected[0, 2] = 1  # the house's floor is below 2.5 m
    expected[1, 3:] = 1  # above 10 m
    expected[2] = [0, -1, 0, 0, 0.5]
    assert np.array_equal(found.limits.rules, expected.astype(np.float32))
    assert np.allclose(found.limits.bounds, [0, 0, -0.2, 1, 1, 1])
    assert not found.relaxed and not found.without and not found.implied
    slope = compile_zone(policy(), "B", TODAY, CLASSES, FACTS, 2)
    assert np.array_equal(slope.limits.rules[0], [0, 0, 1, 1, 0])
    assert slope.limits.bounds[0] == np.float32(0.1)
    assert slope.rows[0].says == (
        "no buildings within 50 m of the shore with more than 10 % of the probability"
    )


def test_bounds_are_met_at_their_value() -> None:
    """A class that is exactly as high, near or low as it may be is allowed."""
    for number, key, value in ((0, "max_m", 12), (1, "min_floor_m", 3.0)):
        found = compile_zone(policy((number, key, value)), "A", TODAY, CLASSES, FACTS, 6)
        row = next(item for item in found.rows if item.rule.id == ("12.4", "9.1")[number])
        assert row.coefficients[3] == 0
    found = compile_zone(policy((2, "min_m", 60)), "B", TODAY, CLASSES, FACTS, 6)
    assert found.rows[0].coefficients.tolist() == [0, 0, 1, 1, 0]


def test_a_rule_that_limits_nothing_is_named() -> None:
    known = FACTS | {"water": ClassFacts(height_m=0)}
    found = compile_zone(policy((0, "max_m", 100)), "A", TODAY, CLASSES, known, 6)
    assert found.without == ["rule 12.4 limits no class of the product"] and len(found.rows) == 2


@pytest.mark.parametrize(
    ("number", "key", "value", "zone", "fact", "lacking"),
    [
        (0, "max_m", 100, "A", "height_m", "water"),
        (1, "min_floor_m", 0.1, "A", "floor_m", "water, meadow"),
        (2, "min_m", 1, "B", "setback_m", "water"),
    ],
)
def test_a_rule_says_which_classes_lack_its_fact(
    number: int, key: str, value: float, zone: str, fact: str, lacking: str
) -> None:
    """A tower whose height nobody said is not found to be low enough."""
    given = policy((number, key, value))
    found = compile_zone(given, zone, TODAY, CLASSES, FACTS, 6)
    name = RULES["rules"][number]["id"]
    assert found.without == [
        f"rule {name} limits none of the classes that have a {fact}, and passes over those "
        f"without ({lacking})"
    ]
    assert unsaid(given.rules[number], CLASSES, FACTS) == (fact, lacking.split(", "))
    assert unsaid(given.rules[3], CLASSES, FACTS) == ("", [])


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([limit("x", {"tovver": 1}, 0.5, 1)], "class 'tovver', which is not there; did you mean "
         "'tower'"),
        ([limit("x", {name: 1 for name in CLASSES}, 0.5, 1)], "sum is at least 1 whatever"),
        ([limit("x", {"tower": 1}, 1e39, 1)], "rule x has the number 1e.39, expected 0 or a size"),
        ([limit("x", {"tower": 1, "house": 1e-7}, 0.5, 1)], "has the number 1e-07"),
        ([limit("x", {"tower": 1e6, "house": 1}, 0.5, 1)], "rule x has coefficients from 1 to "
         "1e.06, expected none more than 1000 times another"),
        ([limit("x", {"tower": -0.5, "house": 0.0004, "water": 0}, 0.5, 1)], "from 0.0004 to 0.5"),
        ([limit("x", {"tower": -1}, -1.2, 1)], "asks for at most -1.2, and its sum is at least -1"),
        ([limit("one", {"tower": 1}, 0.1, 3), limit("two", {"tower": -1}, -0.3, 3),
          limit("fine", {"house": 1}, 0.3, 3)],
         r"rules one \(1 tower <= 0.1\) and two \(-1 tower <= -0.3\) contradict each other at the "
         "same priority, 3"),
        ([limit(str(n), {CLASSES[n]: 1, CLASSES[(n + 1) % 5]: 0.1 * (n + 1)}, 0.4, 1)
          for n in range(5)], "5 rules in force on 2026-06-01, .* room for 4"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_used(rules: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        rows_of(*rules, rows=4)


def test_a_rule_that_forbids_all_and_one_without_a_fact() -> None:
    every = {name: ClassFacts(height_m=20, floor_m=3) for name in CLASSES}
    with pytest.raises(InputError, match=r"12.4 \(no buildings above 10 m\) forbids every class"):
        compile_zone(policy(), "A", TODAY, CLASSES, every, 6)
    with pytest.raises(InputError, match="9.1 of type flood_zone asks for floor_m, which no class"):
        compile_zone(policy(), "A", TODAY, CLASSES, {"tower": ClassFacts(height_m=40)}, 6)


def test_the_lower_priority_yields_by_as_little_as_possible() -> None:
    """At most 0.1 and at least 0.3 of towers: the one with the higher number gives 0.2."""
    for order in (1, -1):
        rules = [limit("low", {"tower": 2}, 0.2, 4), limit("high", {"tower": -1}, -0.3, 2)]
        found = rows_of(*rules[::order])
        assert [row.rule.id for row in found.rows] == ["high", "low"]
        assert [row.relaxed for row in found.rows] == pytest.approx([0, 0.4], abs=1e-6)
        assert found.limits.bounds[:2].tolist() == pytest.approx([-0.3, 0.3], abs=1e-6)
        assert found.relaxed == [
            "rule low (2 tower <= 0.2, priority 4) cannot be met beside those before it, and is "
            "relaxed by 0.4"
        ]
        p = project(np.zeros((1, 5)), *found.limits)
        assert p[0, 4] == pytest.approx(0.3, abs=1e-5)


def test_what_is_small_is_told_all_the_same() -> None:
    """A yield or a contradiction of 5e-5 is one, in rules as uneven as they may be."""
    found = rows_of(limit("high", {"tower": -1}, -0.3, 1), limit("low", {"tower": 1}, 0.29995, 2))
    assert [row.relaxed for row in found.rows] == pytest.approx([0, 5e-5], abs=1e-7)
    assert len(found.relaxed) == 1 and found.relaxed[0].endswith("is relaxed by 5e-05")
    with pytest.raises(InputError, match="rules high .* and low .* contradict each other at the"):
        rows_of(limit("high", {"tower": -1}, -0.3, 1), limit("low", {"tower": 1}, 0.29995, 1))
    uneven = limit("low", {"house": 1000, "tower": 1}, 0.95, 2)
    found = rows_of(limit("high", {"tower": -1}, -1, 1), uneven)
    assert found.rows[1].relaxed == pytest.approx(0.05, abs=1e-4) and len(found.relaxed) == 1


def test_rules_as_uneven_as_they_may_be_hold_in_their_own_units() -> None:
    uneven = {"house": 1000.0, "tower": 1.0}
    found = rows_of(limit("x", uneven, 0.5, 1))
    p = project(np.array([[0.0, 0, 0, 0, 20]]), *found.limits)
    assert 1000 * p[0, 2] + p[0, 4] <= 0.5 + 2e-3 and p[0, 4] > 0.49


def test_what_two_rules_of_a_priority_yield_is_shared_evenly() -> None:
    """0.6 of towers leaves 0.4: meadows and houses want 0.3 each, and both give 0.1."""
    found = rows_of(
        limit("towers", {"tower": -1}, -0.6, 1), limit("meadow", {"meadow": -1}, -0.3, 2),
        limit("house", {"house": -1}, -0.3, 2), limit("last", {"water": -1}, -0.1, 3),
    )  # fmt: skip
    assert [row.relaxed for row in found.rows] == pytest.approx([0, 0.1, 0.1, 0.1], abs=1e-6)


def test_the_least_sum_comes_before_the_least_maximum() -> None:
    """``house + 0.5 meadow >= 0.4`` is promised, and at most 0.1 and 0.2 of them are wanted.

    A house counts twice, so houses yield 0.2, though 0.133 of each would be less at most. Then
    0.5 is left for three that want at most 0.1 each: whoever yields, it is 0.2 in all.
    """
    found = rows_of(
        limit("first", {"house": -1, "meadow": -0.5}, -0.4, 1),
        limit("house", {"house": 1}, 0.1, 2), limit("meadow", {"meadow": 1}, 0.2, 2),
        *(limit(name, {name: 1}, 0.1, 3) for name in ("water", "raised_house", "tower")),
    )  # fmt: skip
    relaxed = {row.rule.id: row.relaxed for row in found.rows}
    assert [relaxed[name] for name in ("first", "house", "meadow")] == pytest.approx(
        [0, 0.2, 0], abs=1e-6
    )
    thirds = [relaxed[name] for name in ("water", "raised_house", "tower")]
    assert thirds == pytest.approx([0.2 / 3] * 3, abs=1e-6)


def test_the_least_important_of_implied_rules_leaves_first() -> None:
    """Of rules that say the same the one stays that yields last: its name is what is answered."""
    same = [limit(f"p{number}", {"tower": number}, 0.5 * number, number) for number in (3, 1, 2)]
    found = rows_of(*same, limit("house", {"house": 1}, 0.4, 4), rows=2)
    assert found.implied == ["p3", "p2"] and [row.rule.id for row in found.rows] == ["p1", "house"]
    found = rows_of(*same, limit("house", {"house": 1}, 0.4, 4), rows=3)
    assert found.implied == ["p3"], "as many as there is no room for, and no more"


def test_implied_rules_leave_where_there_is_no_room() -> None:
    rules = [
        limit("wide", {"tower": 1}, 0.8, 1), limit("narrow", {"tower": 1}, 0.5, 2),
        limit("house", {"house": 1}, 0.4, 3),
    ]  # fmt: skip
    assert rows_of(*rules, rows=3).implied == []
    found = rows_of(*rules, rows=2)
    assert found.implied == ["wide"] and [row.rule.id for row in found.rows] == ["narrow", "house"]
    with pytest.raises(InputError, match="has 2 rules in force"):
        rows_of(*rules, rows=1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
@example(45741)  # relaxed to a point: multipliers ran away
@example(97)
def test_the_order_is_lexicographic(seed: int) -> None:
    """No point of a fine grid that obeys what came before yields less; and all can be met."""
    random = np.random.default_rng(seed)
    names = CLASSES[:3]
    steps = 60
    grid = np.array(
        [(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]
    ) / steps  # fmt: skip
    rules = []
    for number in range(4):
        row = np.round(random.normal(size=3), 2)
        row[0] += 0.01 if not row.any() else 0
        most = float(np.round(max(row.min() + 0.05, random.normal(0, 0.4)), 2))
        rules.append(
            limit(f"r{number}", dict(zip(names, row.tolist(), strict=True)), most, number + 1)
        )
    found = compile_zone(policy(rules=rules), "A", TODAY, names, {}, 4)
    left = np.ones(len(grid), bool)
    for row, spec in zip(found.rows, rules, strict=True):
        over = grid @ [spec["coefficients"][name] for name in names] - spec["max"]
        if left.any():
            assert row.relaxed <= max(0.0, float(over[left].min())) + 1e-6, "no point does better"
        left &= over <= row.relaxed + 1e-9
    p = project(random.normal(0, 3, (50, 3)), *found.limits)
    assert past_bounds(p, *found.limits[:2]).max() <= OBEYED


@pytest.mark.parametrize("seed", [325, 488, 493, 653, 1265, 1502, 1912])
def test_a_chain_of_relaxations_does_not_fail_by_its_own_rounding(seed: int) -> None:
    """Of 2,000 draws those whose first rules leave what a linear programme calls empty."""
    random = np.random.default_rng(seed)
    names, rules = CLASSES[:4], []
    for number in range(6):
        row = np.round(random.normal(size=4), 2) * (random.random(4) > 0.3)
        most = float(np.round(row.min() + 0.05 + random.random() * 0.1, 2))
        rules.append(
            limit(f"r{number}", dict(zip(names, row.tolist(), strict=True)), most, number + 1)
        )
    found = compile_zone(policy(rules=rules), "A", TODAY, names, {}, 6)
    p = project(random.normal(0, 3, (50, 4)), *found.limits)
    assert past_bounds(p, *found.limits[:2]).max() <= OBEYED


def test_contradictions_too_small_to_speak_of_do_not_add_up() -> None:
    """Five priorities, each of which yields by less than 1e-7."""
    names = CLASSES[:3]
    rows = [
        ((0, 1, 1), 0.7308431715), ((2, 1, -2), 0.6155304078), ((1, -2, -1), -0.9746541822),
        ((-2, 0, 0), -0.5383139707), ((1, -2, 2), -0.3210281937),
    ]  # fmt: skip
    rules = [
        limit(f"r{number}", dict(zip(names, map(float, row), strict=True)), most, number + 1)
        for number, (row, most) in enumerate(rows)
    ]
    found = compile_zone(policy(rules=rules), "A", TODAY, names, {}, 8)
    assert all(row.relaxed < 1e-6 for row in found.rows)
    p = project(np.zeros((1, 3)), *found.limits)
    assert past_bounds(p, *found.limits[:2])[0] <= OBEYED


def test_a_rule_that_is_nearly_implied_is_not_left_out() -> None:
    """Room for one: the narrower implies the wider, and not the other way round."""

    def made(*rules: dict[str, object]) -> ZoneRules:
        return compile_zone(policy(rules=list(rules)), "A", TODAY, CLASSES, FACTS, 1)

    wide, narrow = (
        limit(f"at_{most}", {"tower": 1.0}, most, number)
        for number, most in enumerate((0.30, 0.29), start=1)
    )
    assert [row.rule.id for row in made(wide, narrow).rows] == ["at_0.29"]
    with pytest.raises(InputError, match="none of which the others"):
        made(wide, limit("nearly", {"tower": 1.0, "meadow": 0.3}, 0.505, 2))


def test_padding_refuses_what_nothing_can_meet() -> None:
    with pytest.raises(InputError, match="row 1 says 0 <= -0.1, which nothing can meet"):
        padded([[1.0, 0], [0, 0]], [0.5, -0.1], 4)
    with pytest.raises(InputError, match="do not fit 1 rows"):
        padded(np.ones((2, 3)), np.ones(2), 1)
