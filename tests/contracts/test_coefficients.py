"""Coefficients: units that are understood, how uncertain values are, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.contracts import coefficients as module
from edgekd.contracts.coefficients import load_coefficients, parse_unit
from edgekd.errors import InputError, RecipeError
from tests.conftest import ROOT
from tests.helpers.sites import write_coefficients

EXAMPLES = sorted((ROOT / "engines" / "coefficients").glob("*.yaml"))


@pytest.mark.parametrize(
    ("text", "t_per_m2", "total"),
    [
        ("relative", None, "m² of full potential"),
        ("t CO2 per ha and year", 1e-4, "t CO2 per year"),
        ("t CO2 per ha per year", 1e-4, "t CO2 per year"),
        ("t CO2/ha/a", 1e-4, "t CO2 per year"),
        ("t CO2 / (ha a)", 1e-4, "t CO2 per year"),
        ("Mg CO₂ ha⁻¹ yr⁻¹", 1e-4, "t CO2 per year"),
        ("kg CO2 m-2 a-1", 1e-3, "t CO2 per year"),
        ("kg CO2·m^-2·a^-1", 1e-3, "t CO2 per year"),
        ("g CO2 m-2 d-1", 1e-6, "t CO2 per day"),
        ("kt CO2/km2", 1e-3, "t CO2"),
        ("kg CO2 per m² and day", 1e-3, "t CO2 per day"),
        ("t CO2 km-2", 1e-6, "t CO2"),
        ("Mt CO2 per km²", 1.0, "t CO2"),
    ],
)
def test_units_that_are_understood(text: str, t_per_m2: float | None, total: str) -> None:
    unit = parse_unit(text)
    assert unit.t_per_m2 == (None if t_per_m2 is None else pytest.approx(t_per_m2))
    assert unit.total == total and unit.text == text
    assert unit.total_per_m2 == pytest.approx(t_per_m2 or 1.0)


@pytest.mark.parametrize(
    "text",
    ["", "t", "t CO2", "kg/ha", "t CO2e per ha", "mg CO2 m-2", "t CO2 per acre", "ha per t CO2",
     "t CO2 ha-2", "kg CO2 m-1", "t CO2 per ha and month", "Relative", "t CO2 per ha and year x"],
)  # fmt: skip
def test_units_that_are_not(text: str) -> None:
    with pytest.raises(ValueError, match="is no unit of uptake, expected relative, or a mass of"):
        parse_unit(text)


def test_a_mass_of_carbon_is_told_apart() -> None:
    with pytest.raises(ValueError, match="12/44 .*multiply values by 44/12"):
        parse_unit("t C per ha and year")


@given(st.text(max_size=30) | st.text(alphabet="tkgCO2 perhamy-1/()²", max_size=30))
def test_any_text_is_a_unit_or_told(text: str) -> None:
    try:
        unit = parse_unit(text)
    except ValueError as err:
        assert "no unit of uptake" in str(err)
    else:
        assert unit.t_per_m2 is None or 0 < unit.t_per_m2 <= 1e6


@given(
    st.sampled_from(sorted(module._MASSES_T)),
    st.sampled_from(sorted(module._AREAS_M2)),
    st.sampled_from([*sorted(module._TIMES), ""]),
)
def test_all_spellings_of_one_unit_are_one(mass: str, area: str, time: str) -> None:
    root, power = (area[:-1], 2) if area.endswith("2") else (area, 1)
    spellings = [
        f"{mass} CO2 per {area}" + (f" and {time}" if time else ""),
        f"{mass} CO2/{area}" + (f"/{time}" if time else ""),
        f"{mass} CO2 {root}-{power}" + (f" {time}-1" if time else ""),
    ]
    found = {(unit.t_per_m2, unit.time) for unit in map(parse_unit, spellings)}
    expected = module._MASSES_T[mass] / module._AREAS_M2[area]
    assert found == {(expected, module._TIMES.get(time, ""))}


@pytest.mark.parametrize(
    ("uncertainty", "sd"),
    [
        ({"kind": "unknown"}, None),
        ({"kind": "absolute", "sd": 0.2}, 0.2),
        ({"kind": "relative", "sd": 0.2}, 0.8),
        ({"kind": "absolute", "interval95": [3, 6.92]}, 1.0),
        ({"kind": "relative", "interval95": [0.51, 1.49]}, 1.0),
    ],
)
def test_standard_deviations(tmp_path: Path, uncertainty: object, sd: float | None) -> None:
    item = {"value": 4.0, "uncertainty": uncertainty, "source": "a trial"}
    path = write_coefficients(tmp_path / "c.yaml", olivine=item)
    found = load_coefficients(path).coefficients["olivine"]
    assert found.sd == (None if sd is None else pytest.approx(sd, rel=1e-4))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"value": -0.1}, "olivine.value is -0.1, but input should be greater than or equal to 0"),
        ({"uncertainty": None}, "olivine lacks the key 'uncertainty'"),
        ({"source": None}, "olivine lacks the key 'source'"),
        ({"uncertainty": {"kind": "relative"}}, "give one of sd, interval95; received none"),
        ({"uncertainty": {"sd": 0.1}}, "lacks the key 'kind'"),
        ({"uncertainty": {"kind": "unknown", "sd": 1}}, "kind is unknown and sd is given"),
        ({"uncertainty": {"kind": "relativ", "sd": 1}}, "did you mean 'relative'"),
        ({"uncertainty": {"kind": "absolute", "sd": -1}}, "sd is -1, but"),
        ({"uncertainty": {"kind": "absolute", "interval95": [0.9, 1]}},
         r"interval95 must be \[low, high\] with 0 <= low <= 0.5 <= high, received \[0.9, 1.0\]"),
        ({"uncertainty": {"kind": "relative", "interval95": [0.2, 0.8]}}, "low <= 1 <= high"),
        ({"uncertainty": {"kind": "absolute", "sd": 1, "interval95": [0, 1]}},
         "received sd and interval95"),
        ({"valeu": 1}, "unknown key 'valeu'.*did you mean 'value'"),
    ],
)  # fmt: skip
def test_faults_are_told(tmp_path: Path, item: dict[str, object], words: str) -> None:
    whole = {"value": 0.5, "uncertainty": {"kind": "absolute", "sd": 0.1}, "source": "a trial"}
    whole = {key: value for key, value in (whole | item).items() if value is not None}
    path = write_coefficients(tmp_path / "c.yaml", olivine=whole)
    with pytest.raises(RecipeError, match=words) as caught:
        load_coefficients(path)
    assert len(caught.value.problems) == 1


def test_parts_of_a_whole_are_not_above_it(tmp_path: Path) -> None:
    item = {"value": 12.0, "uncertainty": {"kind": "unknown"}, "source": "a trial"}
    write_coefficients(tmp_path / "c.yaml", olivine=item)
    assert load_coefficients(tmp_path / "c.yaml").coefficients["olivine"].value == 12
    write_coefficients(tmp_path / "c.yaml", "relative", olivine=item)
    with pytest.raises(RecipeError, match=r"olivine.value is 12, and the unit is relative"):
        load_coefficients(tmp_path / "c.yaml")


def test_classes_that_are_not_there(tmp_path: Path) -> None:
    path = write_coefficients(tmp_path / "c.yaml")
    found = load_coefficients(path)
    found.require_classes(["olivine", "wollastonite", "serpentine", "basalt", "x"], path, path)
    with pytest.raises(InputError) as caught:
        found.require_classes(["olivin", "basalt", "serpentine"], path, Path("map.tif"))
    assert str(caught.value) == (
        f"{path} has coefficients for classes that are not in map.tif: 'olivine'; did you mean "
        "'olivin'?, 'wollastonite' (valid: olivin, basalt, serpentine)"
    )


def test_the_example_says_what_it_does_not_know() -> None:
    assert [path.name for path in EXAMPLES] == ["carbonation.yaml"]
    found = load_coefficients(EXAMPLES[0])
    values = {name: item.value for name, item in found.coefficients.items()}
    assert values == {"olivine": 0.85, "wollastonite": 0.92, "serpentine": 0.45, "basalt": 0.28}
    assert found.unit == "relative" and found.rate_unit.t_per_m2 is None
    assert all(item.sd is None for item in found.coefficients.values())
