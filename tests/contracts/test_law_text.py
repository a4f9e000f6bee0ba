"""What a law's file may be misread as: numbers in another base, heights above another datum."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgekd.contracts.policy import Policy, load_policy, policy_of
from edgekd.errors import InputError, RecipeError
from tests.contracts.test_policy import RULES


def law(tmp_path: Path, height: str) -> Policy:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(RULES, sort_keys=False).replace("max_m: 10", f"max_m: {height}"))
    return load_policy(path)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("010", "8"), ("-010", "-8"), ("1:30", "90"), ("0x10", "16"), ("0b11", "3"),
        ("1:30.5", "90.5"),
    ],
)  # fmt: skip
def test_numbers_that_yaml_reads_in_another_base_are_refused(
    tmp_path: Path, written: str, read: str
) -> None:
    with pytest.raises(RecipeError, match=f"line [0-9]+: {written} would be read as {read}; write"):
        law(tmp_path, written)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("10", 10), ("10.5", 10.5), ("0", 0), ("0.5", 0.5), ("1_000", 1000), ("1e1", 10), ("08", 8)],
)
def test_decimal_numbers_are_read_as_they_stand(tmp_path: Path, written: str, meant: float) -> None:
    assert law(tmp_path, written).rules[0].max_m == meant


def test_rules_above_another_datum_than_the_product_are_refused() -> None:
    def above(datum: Any) -> Policy:
        return policy_of({**copy.deepcopy(RULES), "datum": datum}, "test")

    for mine, product in ((None, "MHHW"), ("MHHW", None), ("mhhw", "MHHW"), ("NAVD", "NAVD88")):
        above(mine).require_datum(product, "the model takes")
    with pytest.raises(InputError, match="'bay' have heights above MLLW, and the model takes those "
                                         "above MHHW; convert every min_floor_m"):  # fmt: skip
        above("MLLW").require_datum("MHHW", "the model takes")
    with pytest.raises(RecipeError, match="no name of a datum"):
        above("the sea")


def test_rules_that_name_no_datum_have_the_digest_that_they_had() -> None:
    plain = policy_of(copy.deepcopy(RULES), "test")
    assert "datum" not in plain.model_dump() and "datum" not in plain.model_dump(by_alias=True)
    assert plain.digest != policy_of({**copy.deepcopy(RULES), "datum": "MLLW"}, "test").digest
