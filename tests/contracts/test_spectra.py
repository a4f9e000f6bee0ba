"""Bad bands and derived sensors: by hand-computed values, published tables, and every refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.contracts.sensors import BadBands, DeriveSpec
from edgekd.contracts.spectra import (
    DroppedBand,
    band_runs,
    camera_weights,
    find_bad,
    noise_share,
    observer,
    plan_mixing,
    spacing_nm,
)
from edgekd.errors import DatasetError, InputError

NM = np.linspace(400.0, 850.0, 10)  # 50 nm apart
FINE = np.arange(380.0, 781.0, 5.0)


def derive(**changes: Any) -> DeriveSpec:
    return DeriveSpec.model_validate({"from": "spectral", **changes})


def plan(spec: DeriveSpec, dropped: list[DroppedBand] | None = None, nm: Any = NM) -> Any:
    return plan_mixing("visual", spec, nm, len(nm), dropped or [], Path())


def bad(band: int, cause: Any = "constant") -> DroppedBand:
    return DroppedBand(band, float(NM[band - 1]), cause, "constant, 0 in all training pixels")


def planes(bands: int = 10) -> np.ndarray:
    """Band ``b`` (from 1) holds ``b`` everywhere, plus row/100: nothing is constant."""
    rows = np.arange(6, dtype=np.float32)[:, None] / 100
    return np.stack([np.broadcast_to(b + rows, (6, 5)) for b in range(1, bands + 1)])


# CIE 015:2018, table 6 (1931 observer): x, y, z
TABLE = {
    450: (0.3362, 0.0380, 1.7721), 500: (0.0049, 0.3230, 0.2720), 550: (0.4334, 0.9950, 0.0087),
    600: (1.0622, 0.6310, 0.0008), 650: (0.2835, 0.1070, 0.0000),
}  # fmt: skip


@pytest.mark.parametrize("nm", TABLE)
def test_the_observer_is_that_of_the_tables(nm: int) -> None:
    np.testing.assert_allclose(observer(np.array([float(nm)]))[:, 0], TABLE[nm], atol=0.04)


def test_the_observers_areas_are_those_of_the_tables() -> None:
    """Of 1 nm steps each of the three tables adds up to 106.9 (CIE 1931)."""
    sums = observer(np.arange(360.0, 831.0)).sum(1)
    np.testing.assert_allclose(sums, 106.9, rtol=0.01)


@pytest.mark.parametrize(
    "nm", [FINE, NM, np.array([390, 400, 430, 431, 470, 500, 545, 580, 600, 640, 690, 700.0])]
)
def test_a_white_reflector_is_white_and_grey_grey(nm: np.ndarray) -> None:
    weights = camera_weights("cie1931", nm, Path(), "spectral")
    assert weights.shape == (3, len(nm))
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=2e-3)  # the matrix has four digits
    mixed = plan(derive(camera="cie1931"), nm=nm)
    grey = np.full((len(nm), 2, 2), 0.3, dtype=np.float32)
    np.testing.assert_allclose(mixed(grey), 0.3, rtol=1e-6)
    assert len(mixed.wavelengths_nm) == 0


def test_colours_of_a_camera_are_the_colours() -> None:
    """A reflector of the long wavelengths is red, of the middle ones green, of the short blue."""
    weights = camera_weights("cie1931", FINE, Path(), "spectral")
    red, green, blue = ((weights * part).sum(1) for part in
                        (FINE > 590, (FINE > 500) & (FINE <= 590), FINE <= 500))  # fmt: skip
    assert red.argmax() == 0 and green.argmax() == 1 and blue.argmax() == 2
    assert red.min() < 0.05 and red[0] > 0.7
    # 650 nm alone lies outside sRGB: its green is negative, and it has no blue
    deep = weights[:, np.abs(FINE - 650).argmin()]
    assert deep[0] > 0 and deep[1] < 0 and abs(deep[2]) < deep[0] / 10


def test_bands_far_apart_weigh_for_what_they_stand_for() -> None:
    nm = np.array([380.0, 400, 420, 440, 460, 500, 540, 580, 620, 660, 700, 740])
    np.testing.assert_allclose(spacing_nm(nm)[[0, 4, 5, 11]], [20, 30, 40, 40])
    dense = camera_weights("cie1931", FINE, Path(), "s") @ np.interp(FINE, [380, 780], [0, 1])
    sparse = camera_weights("cie1931", nm, Path(), "s") @ np.interp(nm, [380, 780], [0, 1])
    np.testing.assert_allclose(sparse, dense, atol=0.02)


@pytest.mark.parametrize(
    ("nm", "words"),
    [
        (np.linspace(900.0, 2500.0, 50), "see 0 % of what camera cie1931 does"),
        (np.linspace(550.0, 900.0, 50), "at least 90 %; derive by bands, nm or windows_nm"),
        (np.array([400.0, 550.0, 700.0]), "which see 10 %"),
    ],
)
def test_bands_that_do_not_see_what_a_camera_sees_are_refused(nm: np.ndarray, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        camera_weights("cie1931", nm, Path(), "spectral")


def test_a_camera_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "cam.csv").write_text(
        "nm, red, green, blue\n400,0,0,1\n500,0,0,1\n501,0,1,0\n600,0,1,0\n601,1,0,0\n700,1,0,0\n"
    )
    nm = np.array([420.0, 460, 480, 510, 550, 590, 610, 650, 690])
    weights = camera_weights("cam.csv", nm, tmp_path, "spectral")
    np.testing.assert_allclose(weights.sum(1), 1)
    width = spacing_nm(nm)
    np.testing.assert_allclose(weights[2, :3], width[:3] / width[:3].sum())
    assert (weights[2, 3:] == 0).all() and (weights[0, :6] == 0).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nm,r,g,b\n1,2,3,4\n", "must begin with the line nm,red,green,blue"),
        ("nm,red,green,blue\n400,0,0,x\n500,1,1,1\n", "no table of numbers"),
        ("nm,red,green,blue\n400,0,0\n500,1,1,1\n", "no table of numbers"),
        ("nm,red,green,blue\n400,0,0,1\n", "two rows or more"),
        ("nm,red,green,blue\n500,0,0,1\n400,1,1,1\n", "nm must rise"),
        ("nm,red,green,blue\n400,0,nan,1\n500,1,1,1\n", "be finite"),
        ("nm,red,green,blue\n400,0,-1,1\n500,1,1,1\n", "0 or more"),
        ("nm,red,green,blue\n400,0,0,1\n700,0,1,1\n", "of no colour all 0"),
        ("", "is empty"),
    ],
)
def test_a_camera_file_with_a_fault(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "cam.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        camera_weights("cam.csv", FINE, tmp_path, "spectral")


def test_bands_and_nearest_wavelengths_are_copied() -> None:
    by_band = plan(derive(bands=[10, 1, 1]))
    np.testing.assert_array_equal(by_band(planes()), planes()[[9, 0, 0]])
    np.testing.assert_array_equal(by_band.wavelengths_nm, NM[[9, 0, 0]])
    by_nm = plan(derive(nm=[640, 549, 451]))
    np.testing.assert_array_equal(by_nm(planes()), planes()[[5, 3, 1]])


def test_windows_are_means_of_their_good_bands() -> None:
    windows = derive(windows_nm=[[400, 500], [450, 460], [700, 900]])
    whole = plan(windows)
    np.testing.assert_allclose(whole(planes())[:, 0, 0], [2, 2, 8.5], rtol=1e-6)
    np.testing.assert_allclose(whole.wavelengths_nm, [450, 450, 775])
    less = plan(windows, [bad(1), bad(8, "noise")])  # noisy ones too have good neighbours
    np.testing.assert_allclose(less(planes())[:, 0, 0], [2.5, 2, (7 + 9 + 10) / 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "dropped", "words"),
    [
        (derive(bands=[1, 2, 3]), [bad(2)],
         r"visual would rest on a bad band of spectral, band 2 \(450 nm\): constant, 0 in all"),
        (derive(nm=[460]), [bad(2)], "would rest on a bad band"),
        (derive(nm=[350]), [bad(1)], "would rest on a bad band"),
        (derive(nm=[340]), [], r"has 400.0 nm, more than one band's spacing \(50.0 nm\) away"),
        (derive(nm=[901]), [], "the nearest band of spectral has 850.0 nm"),
        (derive(windows_nm=[[400, 410]]), [bad(1)], "all 1 are bad"),
        (derive(windows_nm=[[410, 420]]), [], "there are none; change windows_nm"),
        (derive(camera="cie1931"), [bad(4)], r"bad band of spectral, band 4 \(550 nm\)"),
    ],
)  # fmt: skip
def test_no_sensor_rests_on_a_bad_band(
    spec: DeriveSpec, dropped: list[DroppedBand], words: str
) -> None:
    with pytest.raises(DatasetError, match=words):
        plan(spec, dropped)


def test_a_noisy_band_may_be_used_and_a_camera_goes_without_what_it_does_not_see() -> None:
    assert plan(derive(bands=[2]), [bad(2, "noise")])(planes())[0, 0, 0] == 2
    nm = np.array([*NM[:7], 720, 745, 775.0])  # a little is seen of the last one
    made = plan(derive(camera="cie1931"), [bad(10)], nm)
    assert made.notes == (
        "visual: camera cie1931 goes without band 10 of spectral, bad and under 0.1 % of each "
        "channel",
    )
    assert (made.weights[:, 9] == 0).all()
    np.testing.assert_allclose(made.weights.sum(1), 1)
    broken = planes()
    broken[9] = np.nan
    assert np.isfinite(made(broken)).all()
    broken[4, 2, 2] = np.nan
    assert np.isnan(made(broken)[:, 2, 2]).all() and np.isfinite(made(broken)).sum() == 3 * 29


def training(values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    mask = np.ones(values.shape[1:], dtype=bool)
    mask[:, -1] = False  # the last column does not train
    return [(values, mask)]


def found(rules: dict[str, Any] | None, values: np.ndarray, marked: list[int] | None = None) -> Any:
    flags = np.isin(np.arange(1, len(values) + 1), marked or [])
    made = None if rules is None else BadBands.model_validate(rules)
    dropped = find_bad(made, NM, training(values), flags, "1 scene")
    return {item.band: item.cause for item in dropped}, dropped


def test_bands_are_dropped_by_rule_and_each_is_named_with_it() -> None:
    values = planes()
    values[2] = 7.5
    values[3] = np.nan
    values[4] = 0
    values[4, :, -1] = np.arange(6)  # constant where it trains, and told there alone
    rules = {"windows_nm": [[790, 810], [840, 900]], "bands": [1, 9]}
    causes, dropped = found(rules, values, [7])
    assert causes == {
        1: "listed", 3: "constant", 4: "empty", 5: "constant", 7: "header", 9: "window",
        10: "window",
    }  # fmt: skip
    assert str(dropped[1]) == ("band 3 (500 nm): constant, 7.5 in all training pixels of 1 scene")
    assert str(dropped[2]).endswith("without data in all training pixels of 1 scene")
    assert str(dropped[5]) == "band 9 (800 nm): within bad_bands.windows_nm 790-810 nm"
    assert found({"constant": False}, values)[0] == {}
    assert found(None, values, [7])[0] == {7: "header"}


def test_noise_is_measured_from_neighbours() -> None:
    random = np.random.default_rng(0)
    ramp = np.broadcast_to(np.linspace(0, 10, 200, dtype=np.float32), (50, 200))
    noise = random.normal(0, 0.5, (50, 200)).astype(np.float32)
    mask = np.ones((50, 200), dtype=bool)
    share = noise_share([ramp + noise], [mask])
    assert share == pytest.approx(0.5 / np.hypot(0.5, 10 / np.sqrt(12)), rel=0.05)
    assert noise_share([noise], [mask]) == pytest.approx(1.0, rel=0.05)
    holes = ramp + noise
    holes[::7] = np.nan
    assert noise_share([holes], [mask]) == pytest.approx(share, rel=0.05)
    assert noise_share([ramp * 0], [mask]) is None
    values = np.stack([ramp, ramp + noise, noise] + [ramp] * 7)
    causes, dropped = found({"noise_max": 0.5}, values)
    assert causes == {3: "noise"} and "noise is 1.0" in str(dropped[0])
    assert found({"noise_max": 0.1}, values)[0] == {2: "noise", 3: "noise"}


def test_neighbours_of_one_reason_are_told_in_a_line() -> None:
    def band(number: int, text: str, nm: float | None = 400.0) -> DroppedBand:
        return DroppedBand(number, nm, "window", text)

    wet = [band(7, "wet", 470), band(5, "wet", 450), band(6, "wet", 460)]
    assert band_runs([*wet, band(8, "dark", 480), band(10, "dark", 500)]) == [
        "bands 5-7 (450-470 nm): wet", "band 8 (480 nm): dark", "band 10 (500 nm): dark",
    ]  # fmt: skip
    assert band_runs([band(1, "x", None), band(2, "x", None)]) == ["bands 1-2: x"]
    assert band_runs([]) == []
